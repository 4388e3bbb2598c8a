# `make demo` and `make test` each work alone in a fresh clone.
# The first that runs; constraints.txt was made on 3.11.
PYTHON ?= $(firstword $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c "" 2>/dev/null && echo $$p; done))
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST ?= .venv-lowest
NEWEST ?= .venv-newest
PEERS ?= .venv-peers
EXTRAS := dev,viz,eval,lens,docs
# The site is built on the tested versions only.
LOWEST_EXTRAS := dev,viz,eval,lens
# As on a processor without AVX: kernels of PyTorch, MKL and oneDNN that every x86-64 has.
PORTABLE := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
# Test workers; each uses one torch thread.
WORKERS ?= 2
# torch is named so that pip takes one exact wheel (here: the local CPU build).
INSTALL := -m pip install --quiet --disable-pip-version-check
TORCH := torch==2.13.0
PIP := $(BIN)/python $(INSTALL) -c constraints.txt $(TORCH)

.PHONY: demo test lint unit docs tutorials tutorials-build check-all slow fuzz portable lowest newest large bench bench-attribution bench-peers bench-quick model-card support-table dist clean

demo: $(VENV)/.demo
	$(BIN)/eah-interp demo --out demo-out

test: lint unit tutorials

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

# The documentation site, in build/docs; a warning is an error. All pages are read anew (-E):
# some are made from the code and from CITATION.cff.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs

# Every notebook runs to its end; its asserts stand behind its prose. `tutorials-build` makes
# the notebooks anew from their scripts, outputs included.
tutorials: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=300 -n $(WORKERS) tutorials/*.ipynb

tutorials-build: $(VENV)/.dev
	$(BIN)/python tutorials/build.py

# The newest releases come last: what fails there may be nobody's here, and has stopped nothing.
check-all: test slow fuzz large portable lowest bench-quick newest

# With a real Ray, which the fast tests do without.
slow: $(VENV)/.ray
	$(BIN)/python -m pytest -m slow -n $(WORKERS)

# Ten thousand odd inputs at every door; each that ends wrongly is printed with the number that
# makes it again.
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs 10000 --seed 0

# Models with adapters, quantised or kept away, which need the extra `large`; without it the
# fast tests skip them.
large: $(VENV)/.large
	$(BIN)/python -m pytest -n $(WORKERS) tests/large "tests/docs/test_code_blocks.py::test_the_code_of_a_page_runs[docs/how-to/large-models.md]"

# The fast tests as on another machine: with other kernels, and (tests/alignment.py) with sums
# whose order depends on where a weight lies in memory, as on AMD's processors.
portable: $(VENV)/.dev
	$(PORTABLE) $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --kernels-by-address

# The fast tests on the lowest versions that pyproject.toml admits. Old releases warn of what
# newer ones of their own dependencies will drop; that is not ours to mend.
lowest: $(LOWEST)/.dev
	$(LOWEST)/bin/python -m pytest -m "not slow" -n $(WORKERS) -W ignore::DeprecationWarning

# The fast tests on the newest releases there are today, torch's apart; what they warn of as
# outdated (transformers in FutureWarnings) is not yet wrong. A failure is reported in
# an issue, not worked around: it is mended with the bounds and with constraints.txt.
newest: $(NEWEST)/bin/python
	$(NEWEST)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager $(TORCH) -e ".[$(EXTRAS)]" -e ./toys
	$(NEWEST)/bin/python -m pytest -m "not slow" -n $(WORKERS) -W ignore::DeprecationWarning -W ignore::FutureWarning

bench: $(VENV)/.demo
	$(BIN)/python docs/bench/prefill.py
	$(BIN)/python docs/bench/generation.py
	$(BIN)/python docs/bench/attribution.py
	$(BIN)/python docs/bench/paths.py
	$(BIN)/python docs/bench/lens.py
	$(MAKE) bench-peers

bench-attribution: $(VENV)/.demo
	$(BIN)/python docs/bench/attribution.py

# Beside other tools; TransformerLens is in the environment of ours.
bench-peers: $(VENV)/.dev $(PEERS)/.made
	$(BIN)/python docs/bench/peers.py

model-card: $(VENV)/.dev
	$(BIN)/python docs/toy/model_card.py

support-table: $(VENV)/.dev
	$(BIN)/python docs/support/support_table.py

bench-quick: $(VENV)/.demo
	$(BIN)/python docs/bench/prefill.py --quick
	$(BIN)/python docs/bench/generation.py --quick
	$(BIN)/python docs/bench/attribution.py --smoke
	$(BIN)/python docs/bench/paths.py --smoke
	$(BIN)/python docs/bench/lens.py --smoke
	$(BIN)/python docs/bench/peers.py --smoke

# Both distributions, as they are uploaded: docs/releasing.md.
dist: $(VENV)/.dev
	$(BIN)/python $(INSTALL) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist toys
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) $(PEERS) demo-out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp per set of extras; the larger set serves the smaller.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[$(EXTRAS)]" -e ./toys
	touch $(VENV)/.dev $(VENV)/.demo

$(VENV)/.ray: $(VENV)/.dev
	$(PIP) -e ".[$(EXTRAS),ray]"
	touch $@

$(VENV)/.large: $(VENV)/.dev
	$(PIP) -e ".[$(EXTRAS),large]"
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[viz]" -e ./toys
	touch $(VENV)/.demo

$(LOWEST)/.dev: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python $(INSTALL) packaging
	$(LOWEST)/bin/python .ci/lowest.py $(LOWEST_EXTRAS) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(INSTALL) -c $(LOWEST)/constraints.txt $(TORCH) -e ".[$(LOWEST_EXTRAS)]" -e ./toys
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An environment for each tool that ours cannot share: nnterp imports what nnsight 0.8 has
# no longer, and vlmprobe's adapters take transformers 5.3 alone.
$(PEERS)/.made:
	$(PYTHON) -m venv --clear $(PEERS)/nnterp
	$(PEERS)/nnterp/bin/python $(INSTALL) $(TORCH) nnterp==1.3.0 nnsight==0.7.0 transformers==5.23.0
	$(PYTHON) -m venv --clear $(PEERS)/vlmprobe
	$(PEERS)/vlmprobe/bin/python $(INSTALL) $(TORCH) vlmprobe==1.0.1 transformers==5.3.0
	touch $@

$(NEWEST)/bin/python:
	$(PYTHON) -m venv $(NEWEST)
