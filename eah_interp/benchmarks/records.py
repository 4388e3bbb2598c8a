"""Files of JSON objects: JSON lines, an array, or objects one after the other.

Releases use all three under the same suffix. Whatever is wrong is said with its line.
"""

import bisect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eah_interp.errors import InputError


@dataclass(frozen=True)
class Record:
    """One object of a file.

    Attributes:
        values: Its keys and values.
        place: Where it begins, as `file:line`.
    """

    values: Mapping[str, Any]
    place: str

    def key(self, *names: str) -> str | None:
        """Return the first of some keys that it has; None where it has none."""
        return next((name for name in names if name in self.values), None)

    def text(self, *names: str) -> str:
        """Return the text under the first of some keys that it has.

        Raises:
            InputError: If it has none of them, or holds something else there.

        Example:
            >>> Record({"text": "Yes"}, "answers.jsonl:1").text("answer", "text")
            'Yes'
        """
        name = self.key(*names)
        if name is None:
            expected = " or ".join(map(repr, names))
            msg = f"{self.place}: expected the key {expected}, got {list(self.values)}"
            raise InputError(msg)
        value = self.values[name]
        if not isinstance(value, str):
            got = f"got {json.dumps(value)[:60]}"
            raise InputError(f"{self.place}: expected text under {name!r}, {got}")
        return value


def read_records(path: Path | str) -> list[Record]:
    """Read the objects of a file.

    Args:
        path: JSON lines, one array of objects, or objects that follow each other.

    Returns:
        The objects, in the file's order, each with the line where it begins.

    Raises:
        InputError: If the file cannot be read, is not JSON, holds something other
            than objects, or nothing.
    """
    path = Path(path)
    text = read_text(path)
    lines = [place for place, sign in enumerate(text) if sign == "\n"]
    records = []
    for start, value in _values(text, path):
        place = f"{path}:{bisect.bisect_left(lines, start) + 1}"
        if not isinstance(value, dict):
            got = json.dumps(value)[:60]
            raise InputError(f"{place}: expected a JSON object {{...}}, got {got}")
        records.append(Record(value, place))
    if not records:
        raise InputError(f"{path}: expected JSON objects, got an empty file")
    return records


def read_json(path: Path | str) -> Any:
    """Read a file that holds one JSON value.

    Raises:
        InputError: If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def read_text(path: Path | str) -> str:
    """Read a text file.

    Raises:
        InputError: If it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        msg = (
            f"{path}: expected text in UTF-8, got byte {error.start} of something else"
        )
        raise InputError(msg) from error


def _values(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield where each value starts, and the value."""
    decoder = json.JSONDecoder()
    try:
        place = _skip(text, 0)
        closing = text[place : place + 1] == "["
        place = _skip(text, place + closing)
        while place < len(text) and not (closing and text[place] == "]"):
            value, end = decoder.raw_decode(text, place)
            yield place, value
            place = _skip(text, end)
            if closing:
                place = _next_item(text, place)
        if closing and _skip(text, place + 1) < len(text):
            raise json.JSONDecodeError("Extra data", text, place + 1)
        if closing and place >= len(text):
            raise json.JSONDecodeError("The array does not end", text, place)
    except json.JSONDecodeError as error:
        msg = f"{path}:{error.lineno}: not JSON: {error.msg}"
        raise InputError(f"{msg}; was the file cut off?") from error


def _next_item(text: str, place: int) -> int:
    if text[place : place + 1] == ",":
        return _skip(text, place + 1)
    if text[place : place + 1] not in ("]", ""):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    return place


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
