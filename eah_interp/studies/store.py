"""A study's rows on disk: a file for each batch and condition, whole or not there."""

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eah_interp.errors import ExtraMissingError, InputError, SettingsError, show_value
from eah_interp.files import clear_parts, make_folder, save_bytes
from eah_interp.foreign_files import Kind, read_parquet

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

KINDS: dict[str, Kind] = {
    name: "integer" if dtype == "Int64" else "text" for name, dtype in COLUMNS.items()
}
SINK_KINDS: dict[str, Kind] = {
    "item": "text",
    "layer": "integer",
    "head": "integer",
    "density": "number",
}


SINK_KEYS = ["item", "layer", "head"]
"""What a sink density is of."""


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
            if path.exists() and _read_rows(path)["error"].notna().any():
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
        parts = {}
        for name in conditions:
            for path in _files(self._of(name)):
                part = parts[path] = _read_rows(path)
                if not part["condition"].eq(name).all():
                    msg = f"{path} has rows of another condition than {name!r}"
                    raise InputError(f"{msg}: it was copied there; delete it")
        if not parts:
            return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        return _join(parts, keys=["condition", "item"])

    def read_sinks(self) -> pd.DataFrame:
        """Read the sink densities; an empty table if there are none."""
        parts = {path: _read_sinks(path) for path in _files(self.folder / SINKS)}
        return _join(parts, keys=SINK_KEYS) if parts else pd.DataFrame()

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


MOST_BYTES = 255
"""How long a folder's name may be, on most file systems."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever its ending."""


def check_name(name: object) -> None:
    """Check that a condition's name can name a folder, on any machine.

    Raises:
        SettingsError: If it is no text, empty, too long, ends in a dot, holds what is
            no text, or is a device's on Windows.

    Example:
        >>> check_name("EAH layers=0+1")
        >>> check_name("aux")
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: name must be one that a folder can have: \
'aux' is a device on Windows; choose another
    """
    wrong = ""
    if not isinstance(name, str):
        wrong = f"got {show_value(name)[:60]}, which is no text"
    elif not name.strip():
        wrong = f"{name!r} is empty"
    elif any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        wrong = f"{name[:60]!a} holds control characters, or half a character"
    elif len(slug(name).encode()) > MOST_BYTES:
        wrong = (
            f"{name[:60]!r}... is {len(slug(name).encode())} bytes long as a folder, "
            f"at most {MOST_BYTES} are possible"
        )
    elif _RESERVED.fullmatch(name):
        wrong = f"{name!r} is a device on Windows"
    elif name.endswith("."):
        wrong = f"{name[-60:]!r} ends in a dot, which Windows leaves out"
    if wrong:
        msg = f"name must be one that a folder can have: {wrong}; choose another"
        raise SettingsError(msg)


def check_folders(names: Sequence[str]) -> None:
    """Check that each of some conditions can have a folder of its own.

    Raises:
        SettingsError: If two are the same to a file system that does not tell capitals,
            or ways to write an accent, apart.
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", slug(name).casefold())
        if folded in seen:
            msg = (
                f"conditions called {seen[folded]!r} and {name!r} would share a folder "
                "where capitals, or ways to write an accent, are not told apart"
            )
            raise SettingsError(msg)
        seen[folded] = name


def _name(batch: int) -> str:
    return f"{batch:06d}.parquet"


def _files(folder: Path) -> Iterator[Path]:
    # By the whole name: "000001 (1).parquet" and "000001.sync-conflict.parquet" are
    # copies that a user or a program made, and no batches.
    for path in sorted(folder.glob("*.parquet")):
        if re.fullmatch(r"\d{6,}\.parquet", path.name):
            yield path


def _join(parts: Mapping[Path, pd.DataFrame], *, keys: list[str]) -> pd.DataFrame:
    """Join files; a row that two of them have is in one that was copied."""
    table = pd.concat(parts.values(), ignore_index=True)
    twice = table.duplicated(keys, keep=False)
    if twice.any():
        source = [str(path) for path, part in parts.items() for _ in range(len(part))]
        first = table[twice].iloc[0]
        same = (table[keys] == first[keys]).all(axis=1)
        paths = dict.fromkeys(
            path for path, is_it in zip(source, same, strict=True) if is_it
        )
        msg = (
            f"expected each row once, got {first['item']!r} twice, in "
            f"{' and '.join(paths)}; one of them is a copy: delete it"
        )
        raise InputError(msg)
    return table


def has_rows(folder: Path) -> bool:
    """Whether a folder has rows, or sink densities, of any study."""
    places = [folder / SINKS, *(folder / ROWS).glob("*")]
    return any(True for place in places for _ in _files(place))


def list_answered(folder: Path) -> set[str]:
    """List the items that something was measured of: not those that failed."""
    found: set[str] = set()
    for path in (p for place in (folder / ROWS).glob("*") for p in _files(place)):
        rows = _read_rows(path)
        found |= set(rows["item"][rows["error"].isna()])
    for path in _files(folder / SINKS):
        found |= set(_read_sinks(path)["item"])
    return found


def _to_parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, index=False, engine="pyarrow")
    except ImportError as error:
        msg = "studies need pyarrow: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    return buffer.getvalue()


def _read_rows(path: Path) -> pd.DataFrame:
    """Read a file of rows, with the columns and types that were written."""
    return _read(path, KINDS).astype(COLUMNS)


def _read_sinks(path: Path) -> pd.DataFrame:
    """Read a file of sink densities."""
    table = _read(path, SINK_KINDS)
    if table[["layer", "head", "density"]].isna().any(axis=None):
        raise _changed(path, "a row lacks its layer, head or density")
    return table


def _changed(path: Path, what: str) -> InputError:
    msg = (
        f"{path} was changed since it was written: {what}; delete this file and run "
        "the study again, which makes it anew"
    )
    return InputError(msg)


def _read(path: Path, kinds: dict[str, Kind]) -> pd.DataFrame:
    try:
        table = read_parquet(path, kinds)
    except InputError as error:
        msg = (
            f"cannot read {path}: {error}; delete this file and run the study again, "
            "which makes it anew"
        )
        raise InputError(msg) from error
    if table[["item"]].isna().any(axis=None):
        raise _changed(path, "a row names no item")
    return table
