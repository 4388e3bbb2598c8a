"""Classes that saved results are made of, found by the name that a file says."""

import importlib
from collections.abc import Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type[Any])

PACKAGE = "eah_interp"

ROOMS = (
    *("attribution", "benchmarks", "finders", "interventions", "report", "studies"),
    "viz",
)
"""Folders whose classes saved results may name."""

_bases: list[type[Any]] = []
_by_source: list[type[Any]] = []


def register(kind: Kind) -> Kind:
    """Let saved results hold instances of a class, and of classes derived from it."""
    _bases.append(kind)
    return kind


def register_by_source(kind: Kind) -> Kind:
    """Register a class whose children of a user's own are saved with their source.

    A file then names the code and a hash of its text (`eah_interp.plugins`), so that it
    is loaded only where that code was imported because the user said so.
    """
    _by_source.append(kind)
    return register(kind)


def needs_source(kind: type[Any]) -> bool:
    """Tell whether instances of a class are saved with a hash of its source."""
    return issubclass(kind, tuple(_by_source)) and not _is_ours(kind)


def find_kind(name: object) -> type[Any] | None:
    """Find a registered class by its name; ours go before a user's own.

    A class is registered when its file is imported: where none of ours is of that name,
    all are, so that a result can be loaded wherever it was made.

    Example:
        >>> find_kind("Popen") is None
        True
    """
    named = _list_named(name)
    if not any(map(_is_ours, named)):
        for room in ROOMS:
            importlib.import_module(f"{PACKAGE}.{room}")
        named = _list_named(name)
    return next(filter(_is_ours, named), named[-1] if named else None)


def _list_named(name: object) -> list[type[Any]]:
    return [kind for kind in _list_kinds() if kind.__name__ == name]


def _list_kinds() -> Iterator[type[Any]]:
    pending = list(_bases)
    while pending:
        kind = pending.pop(0)
        pending.extend(kind.__subclasses__())
        yield kind


def _is_ours(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == PACKAGE
