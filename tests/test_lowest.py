"""The lower bounds of pyproject.toml are what `make lowest` installs."""

import re
import runpy

import pytest
from packaging.version import Version


@pytest.fixture
def lowest(pytestconfig):
    return runpy.run_path(str(pytestconfig.rootpath / ".ci/lowest.py"))


def test_every_bound_is_installed_except_the_exempt(lowest, pytestconfig):
    lines = lowest["list_lowest"](["dev", "viz", "eval", "lens"])
    bounds = dict(line.split("==") for line in lines)
    assert {"nnsight", "transformers", "numpy", "transformer-lens"} <= set(bounds)
    assert set(lowest["EXEMPT"]) == {"torch"}
    assert not set(bounds) & set(lowest["EXEMPT"])
    pins = (pytestconfig.rootpath / "constraints.txt").read_text()
    for name, tested in re.findall(r"^([\w-]+)==(\S+)$", pins, re.MULTILINE):
        if name in bounds:
            assert Version(bounds[name]) <= Version(tested), name


def test_a_dependency_without_one_lower_bound_is_refused(lowest, tmp_path):
    listing = lowest["list_lowest"]
    file = tmp_path / "pyproject.toml"
    listing.__globals__["PYPROJECT"] = file
    for requirements, message in (
        (["numpy"], "expected one lower bound .*got numpy"),
        (["numpy>=1", "numpy>=2"], "numpy: two different bounds"),
    ):
        file.write_text(f"[project]\ndependencies = {requirements}\n")
        with pytest.raises(SystemExit, match=message):
            listing([])
