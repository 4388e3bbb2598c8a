"""One model for all tests of studies."""

import pytest

import eah_interp as eah
from tests.studies.common import toy_study


@pytest.fixture(scope="session")
def toy():
    return eah.load()


@pytest.fixture(scope="session")
def undisturbed(toy, tmp_path_factory):
    """Return the folder of a study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    toy_study(toy).run(folder, progress=False)
    return folder
