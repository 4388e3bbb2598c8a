"""A table of the page."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of words and numbers, as they are shown.

    Attributes:
        caption: What it shows.
        header: Names of its columns; the first names the rows.
        rows: Its cells; a number that ends in a star stands out.
        total: A last row, set apart; none where empty.
        notes: How to read it.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    notes: str = ""


def join(words: Iterable[str]) -> str:
    """Write words with commas between."""
    return ", ".join(words)
