"""The parts of the documentation site, which are no package."""

import importlib
import sys

import pytest

from tests.docs.pages import ROOT


@pytest.fixture
def part(monkeypatch):
    """Import a module of docs/_sphinx by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_sphinx"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load
