"""A study's rows on disk: a file for each batch and condition, whole or not there."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eah_interp.errors import ExtraMissingError, InputError, SettingsError
from eah_interp.files import clear_parts, make_folder, save_bytes

ROWS, SINKS = "rows", "sinks"

COLUMNS = {
    "item": "string",
    "condition": "string",
    "answer": "string",
    "n_tokens": "Int64",
    "donors": "string",
    "error": "string",
}
"""Columns of a row and their types: everything else about an item is in the items."""


@dataclass(frozen=True)
class Store:
    """A study's folder.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    def prepare(self, conditions: Sequence[str]) -> None:
        """Make the folders, and clear away what a killed run had half written.

        Raises:
            SettingsError: If a folder cannot be made.
        """
        for folder in [self.folder / SINKS, *map(self._of, conditions)]:
            make_folder(folder)
            clear_parts(folder)

    def has(self, condition: str, batch: int) -> bool:
        """Whether a batch's rows are there."""
        return (self._of(condition) / _name(batch)).exists()

    def write(self, condition: str, batch: int, rows: pd.DataFrame) -> None:
        """Write a batch's rows, whole or not at all.

        Raises:
            SettingsError: If they cannot be written; what is there stays.
        """
        table = rows[list(COLUMNS)].astype(COLUMNS)
        self._save(table, self._of(condition) / _name(batch))

    def _save(self, table: pd.DataFrame, path: Path) -> None:
        try:
            save_bytes(_to_parquet(table), path)
        except SettingsError as error:
            msg = (
                f"{error}; every batch that was finished before stays in {self.folder}:"
                " make room, and run the same study into it again to go on"
            )
            raise SettingsError(msg) from error

    def forget_failed(self, conditions: Sequence[str], batches: Sequence[int]) -> None:
        """Delete the rows of batches in which an item failed, to make them anew.

        Raises:
            InputError: If a file cannot be read; it is named.
        """
        for path in [self._of(c) / _name(b) for c in conditions for b in batches]:
            if path.exists() and _read(path)["error"].notna().any():
                path.unlink(missing_ok=True)

    def has_sinks(self, batch: int) -> bool:
        """Whether a batch's sink densities are there."""
        return (self.folder / SINKS / _name(batch)).exists()

    def write_sinks(self, batch: int, table: pd.DataFrame) -> None:
        """Write a batch's sink densities, whole or not at all.

        Raises:
            SettingsError: If they cannot be written; what is there stays.
        """
        self._save(table, self.folder / SINKS / _name(batch))

    def read(self, conditions: Sequence[str]) -> pd.DataFrame:
        """Read all rows, by condition and in the order of the items.

        Raises:
            InputError: If a file cannot be read; it is named.
        """
        parts = [_read(path) for name in conditions for path in _files(self._of(name))]
        if not parts:
            return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        return pd.concat(parts, ignore_index=True)

    def read_sinks(self) -> pd.DataFrame:
        """Read the sink densities; an empty table if there are none."""
        parts = [_read(path) for path in _files(self.folder / SINKS)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def _of(self, condition: str) -> Path:
        return self.folder / ROWS / slug(condition)


def slug(name: str) -> str:
    """Make a folder's name of a condition's, one for one.

    Example:
        >>> slug("EAH layers=0+1"), slug("a/b")
        ('EAH%20layers=0+1', 'a%2Fb')
    """
    # A leading dot too: a condition called ".." would be another folder.
    return re.sub(r"[^\w.=+-]|^\.", lambda m: f"%{ord(m.group()):02X}", name)


def _name(batch: int) -> str:
    return f"{batch:06d}.parquet"


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("[0-9]*.parquet"))


def _to_parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, index=False, engine="pyarrow")
    except ImportError as error:
        msg = "studies need pyarrow: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    return buffer.getvalue()


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        msg = (
            f"cannot read {path}: {error}; delete this file and run the study again, "
            "which makes it anew"
        )
        raise InputError(msg) from error
