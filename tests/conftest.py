"""What every test shares: no network, few threads, reproducible hypothesis runs."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import jaxtyping
import pytest
import torch

hypothesis.settings.register_profile(
    "eah", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("eah")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_addoption(parser):
    parser.addoption(
        "--reference-data",
        default="../shared/data",
        help="folder with the reference data of the metric tests (only read)",
    )
    parser.addoption(
        "--kernels-by-address",
        action="store_true",
        help="let products depend on where their factors lie, as on AMD's processors",
    )


_last_file: list[Path] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Take what earlier files have left (models, modules) out of the collector's way.

    It would look through millions of objects again and again, for an eighth of the
    time. What could be freed is freed first.
    """
    if _last_file != [item.path]:
        _last_file[:] = [item.path]
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run a test, its fixtures included, as on another processor if so asked."""
    if not item.config.getoption("--kernels-by-address"):
        return (yield)
    from tests.alignment import KernelsByAddress  # after jaxtyping's import hook

    with KernelsByAddress():
        return (yield)


@pytest.fixture(scope="session")
def reference_data(request) -> Path:
    """Return the reference data's folder, or skip the test that asks for it."""
    folder = Path(request.config.getoption("--reference-data"))
    folder = request.config.rootpath / folder  # an absolute folder stays as it is
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}; name it with --reference-data")
    return folder


@pytest.fixture
def as_users_run_it():
    """Switch the shape and type checks off, as in any use outside these tests.

    With them on, a wrong mode or shape is stopped by beartype before our own refusal,
    which is what a user would meet.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
