"""Which nnsight and transformers the hook points were tested with."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

from eah_interp.errors import EAHError, ModelError

TESTED: dict[str, tuple[str, str]] = {
    "nnsight": ("0.8.1", "0.8.1"),
    "transformers": ("5.23.0", "5.23.0"),
}
"""Lowest and highest tested release of what hook points depend on."""


def list_untested() -> str:
    """Say which installed libraries are outside the tested range; empty if none is.

    Example:
        >>> list_untested()
        ''
    """
    found = []
    for name, (low, high) in TESTED.items():
        installed = version(name)
        if not _order(low) <= _order(installed) <= _order(high):
            tested = low if low == high else f"{low} to {high}"
            found.append(f"{name} {installed} (tested: {tested})")
    return ", ".join(found)


@contextlib.contextmanager
def naming_versions() -> Iterator[None]:
    """Say in any failure to load whether untested versions may be its cause.

    Raises:
        ModelError: In place of whatever else was raised, where a version is untested.
    """
    try:
        yield
    except Exception as error:
        untested = list_untested()
        if not untested or (
            isinstance(error, EAHError) and not isinstance(error, ModelError)
        ):
            raise
        msg = (
            f"{error}; this may be for the versions installed: {untested}; install "
            "the tested ones, or write an issue with this message"
        )
        raise ModelError(msg) from error


def _order(release: str) -> tuple[int, ...]:
    """Make release numbers comparable; what follows the numbers does not count.

    Example:
        >>> _order("5.10.0.dev1") > _order("5.9")
        True
    """
    numbers = []
    for part in release.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
