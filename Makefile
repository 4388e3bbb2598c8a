# `make demo` and `make test` each work alone in a fresh clone.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Test workers; each uses one torch thread.
WORKERS ?= 2
# torch is named so that pip takes one exact wheel (here: the local CPU build).
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0

.PHONY: demo test lint unit check-all slow bench bench-quick model-card support-table clean

demo: $(VENV)/.demo
	$(BIN)/eah-interp demo --out demo-out

test: lint unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

check-all: test slow bench-quick

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.demo
	$(BIN)/python docs/bench/prefill.py

model-card: $(VENV)/.dev
	$(BIN)/python docs/toy/model_card.py

support-table: $(VENV)/.dev
	$(BIN)/python docs/support/support_table.py

bench-quick: $(VENV)/.demo
	$(BIN)/python docs/bench/prefill.py --quick

clean:
	rm -rf $(VENV) demo-out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp per set of extras; the larger set serves the smaller.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev,viz,eval,lens]"
	touch $(VENV)/.dev $(VENV)/.demo

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[viz]"
	touch $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
