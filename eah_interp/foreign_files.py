"""Files that others wrote: text, JSON and Parquet, read within bounds.

What a file can hold to stop its reader (values nested ten thousand deep, a number of
ten thousand digits, half a character, a key that stands twice) is an error that names
the file, and the line where there is one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import pandas as pd

from eah_interp.errors import InputError

MOST_DEEP = 64
"""How deep values may be nested in each other: what we read has a tenth of it."""

MOST_DIGITS = 40
"""How many digits an integer may have: identifiers of 128 bits have 39."""

Kind = Literal["text", "integer", "number"]
"""What a column of a table holds."""


def read_text(path: Path | str) -> str:
    """Read a text file; a byte order mark is left out, and lines end in a newline.

    Raises:
        InputError: If it cannot be read, or is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {path}: {reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = (
            f"{path}:{line}: expected text in UTF-8, got byte {error.start} of "
            "something else"
        )
        raise InputError(msg) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path | str) -> Any:
    """Read a file that holds one JSON value.

    Python's words for numbers that JSON has not (NaN, Infinity) are read, since many
    files hold them where nobody looks.

    Raises:
        InputError: If it cannot be read, is not JSON, has a key twice, or is out of
            bounds.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        ...     _ = file.write('{"id": 3}')
        ...     file.flush()
        ...     read_json(file.name)
        {'id': 3}
    """
    text = JsonText(read_text(path), path)
    start = text.skip_blanks(0)
    value, end = text.read(start)
    end = text.skip_blanks(end)
    if end < len(text.text):
        text.refuse(end, "not JSON: Extra data")
    return value


class JsonText:
    """Text that holds JSON values, and the file that it is of.

    Attributes:
        text: The text.
        path: The file, for errors.
    """

    def __init__(self, text: str, path: Path | str) -> None:
        self.text = text
        self.path = path
        # Looked for once: what needs a slower way is hardly ever there.
        long = re.search(rf"\d{{{MOST_DIGITS + 1}}}", text)
        self._halves = _HALF.search(text) is not None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=_make_object, parse_int=_make_integer if long else int
        )

    def read(self, start: int) -> tuple[Any, int]:
        """Read the value that begins at a place.

        Args:
            start: The place, from 0.

        Returns:
            The value, and the place where it ends.

        Raises:
            InputError: If it is not JSON, has a key twice, or is out of bounds.
        """
        try:
            value, end = self._decoder.raw_decode(self.text, start)
        except json.JSONDecodeError as error:
            # How deep a parser goes before it gives up differs between Pythons: what is
            # out of bounds before the place is named first, on all of them.
            for place, what in _list_unfit(self.text[: error.pos], start):
                self.refuse(place, what)
            self.refuse(error.pos, f"not JSON: {error.msg}")
        except (_UnfitError, RecursionError):
            self._refuse_unfit(start)
        if not _is_flat_enough(value):
            self._refuse_unfit(start)
        if self._halves and _has_halves(value):
            found = _HALF.search(self.text, start)
            place = start if found is None else found.start()
            self.refuse(place, "expected text, got half a character, a lone surrogate")
        return value, end

    def skip_blanks(self, place: int) -> int:
        """Return the first place from one on that is no white space."""
        while place < len(self.text) and self.text[place] in " \t\r\n":
            place += 1
        return place

    def line(self, place: int) -> int:
        """Return the line of a place, counted from 1."""
        return self.text.count("\n", 0, place) + 1

    def refuse(self, place: int, what: str) -> NoReturn:
        """Refuse what stands at a place.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{self.path}:{self.line(place)}: {what}")

    def _refuse_unfit(self, start: int) -> NoReturn:
        for place, what in _list_unfit(self.text, start):
            self.refuse(place, what)
        self.refuse(start, "not JSON that can be read")


_HALF = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""One half of a surrogate pair without the other, as JSON escapes it."""

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL
)

_COLON = re.compile(r"[ \t\r\n]*:")


class _UnfitError(Exception):
    """JSON that is not read: where it stands is looked for afterwards."""


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _UnfitError
    return found


def _make_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise _UnfitError
    return int(digits)


def _is_flat_enough(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEEP):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return True
    return False


def _has_halves(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _list_unfit(text: str, start: int) -> Iterator[tuple[int, str]]:
    """List what is out of bounds in JSON, with its place."""
    inside: list[set[str] | None] = []  # of each open object, the keys so far
    for found in _TOKEN.finditer(text, start):
        token = found.group()
        if token in "[{":
            inside.append(set() if token == "{" else None)
            if len(inside) > MOST_DEEP:
                yield found.start(), f"expected values nested up to {MOST_DEEP} deep"
        elif token in "]}":
            del inside[-1:]
        elif token[0] == '"':
            keys = inside[-1] if inside else None
            if keys is not None and _COLON.match(text, found.end()):
                key = json.loads(token, strict=False)
                if key in keys:
                    yield found.start(), f"expected every key once, got {key!r} again"
                keys.add(key)
        elif len(token.lstrip("-")) > MOST_DIGITS and token.lstrip("-").isdigit():
            n_digits = len(token.lstrip("-"))
            most = f"expected integers of up to {MOST_DIGITS} digits"
            yield found.start(), f"{most}, got one of {n_digits}"


# ---- Tables.


def read_parquet(path: Path, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """Read some columns of a Parquet file.

    What pandas noted in it (an index, its own types) is passed over.

    Args:
        path: The file.
        kinds: What each of the columns has to hold; missing values are allowed.

    Returns:
        The columns, in this order.

    Raises:
        InputError: If it cannot be read, or lacks a column, or has another kind of
            value there.
        ImportError: If pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in kinds if names.count(name) != 1]
            if missing:
                msg = f"expected the columns {', '.join(kinds)}, got {names!r:.100}"
                raise InputError(msg)
            table = file.read(columns=list(kinds)).select(list(kinds))
        for name, kind in kinds.items():
            held = table.schema.field(name).type
            if not _holds(pa.types, held, kind):
                msg = f"expected {kind} in the column {name!r}, got {held}"
                raise InputError(msg)
        found: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise InputError(" ".join(str(error).split())) from error
    return found


def _holds(types: Any, held: Any, kind: Kind) -> bool:
    if types.is_dictionary(held):
        held = held.value_type
    if types.is_null(held):  # a column in which every value is missing
        return True
    if kind == "text":
        return bool(types.is_string(held) or types.is_large_string(held))
    whole = bool(types.is_integer(held))
    return whole or (kind == "number" and bool(types.is_floating(held)))
