"""Methods of other papers, a file each: its class is found, and stands in no list."""

import importlib
import pkgutil
from typing import Any

from eah_interp.interventions.intervention import Intervention


def _find_methods() -> dict[str, type[Intervention]]:
    found: dict[str, type[Intervention]] = {}
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda one: one.name):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and "kind" in vars(value):
                found[name] = value
    return found


METHODS: dict[str, type[Intervention]] = _find_methods()
"""The classes by name."""


def __getattr__(name: str) -> Any:
    if name not in METHODS:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return METHODS[name]
