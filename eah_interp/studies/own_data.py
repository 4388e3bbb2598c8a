"""Questions and captions of a user's own, from a table: CSV, JSON lines or pandas."""

import csv
import hashlib
import io
import json
import math
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from eah_interp.arguments import by_name, check_limit, check_path, check_text
from eah_interp.benchmarks.records import read_records
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.files import make_folder, save_bytes
from eah_interp.foreign_files import read_text
from eah_interp.indices import check_choice
from eah_interp.studies.items import MOST_BYTES, TOY, Item
from eah_interp.studies.store import COLUMNS

_YES = {"yes", "y", "true", "t", "1", "1.0"}
_NO = {"no", "n", "false", "f", "0", "0.0"}

_LONGEST = 120
"""How long a downloaded file's name may be, before its end alone is kept."""

_OWN = {"item", "id", "prompt", "label", "truth", *COLUMNS}
_OWN |= {"task", "image", "kind", "object", "cluster"}
"""Columns that a study's rows have: a user's further ones are called otherwise."""


@by_name
def table_items(
    table: "str | Path | pd.DataFrame",
    *,
    task: Literal["yes_no", "caption"] = "yes_no",
    image: str = "image",
    question: str = "question",
    label: str = "label",
    objects: str = "objects",
    name: str | None = None,
    kind: str | None = None,
    cluster: str | None = None,
    images: str | Path | None = None,
    prompt: str | Sequence[Mapping[str, Any]] = "Describe the image.",
    suffix: str = "",
    download: str | Path | None = None,
    limit: int | None = None,
) -> tuple[Item, ...]:
    """List items of a table: a row is a question about an image, or an image.

    Args:
        table: A CSV or TSV file, JSON lines, a JSON array, or a frame.
        task: `"yes_no"`: each row has a question and its label. `"caption"`: each has
            an image to be described and the objects in it, where they are known.
        image: Column of the image: a file, a scene of the toy world such as
            `toy:test:3`, or an address (see `download`).
        question: Column of the question, as the model gets it.
        label: Column of the answer that is right: yes or no, true or false, 1 or 0.
            Left out where the table has none: answers are then kept and not scored.
        objects: Column of the objects in the image: a list, or a text with commas.
            Left out where the table has none.
        name: Column of the item's name; its row, counted from 1, when None.
        kind: Column of the kind of question, by which results are also split.
        cluster: Column of what items belong to; the image when None.
        images: Folder or archive (.zip) that paths begin at; the table's folder when
            None, or the working directory for a frame.
        prompt: What a caption's model is asked.
        suffix: Put after every question.
        download: Folder into which addresses (https) are downloaded, once. Without it
            an address is refused: nothing is fetched that was not asked for.
        limit: Only so many first rows.

    Returns:
        The items. Further columns are kept: `StudyRun.frame()` has them.

    Raises:
        InputError: If the table cannot be read, a column is missing, or a value in it
            is none; its row is named. If the column of labels or objects was named and
            is not there, or is there in other letters.
        SettingsError: If the limit is no number of 0 or more.

    Example:
        >>> table = pd.DataFrame({"file": ["toy:test:0"], "q": ["Is there a cup?"]})
        >>> table = table.assign(truth=["no"], source="mine")
        >>> items = table_items(table, image="file", question="q", label="truth")
        >>> items[0].label, dict(items[0].columns)
        (False, {'source': 'mine'})
    """
    check_choice("task", task, ("yes_no", "caption"))
    check_text("suffix", suffix)
    columns = {"image": image, "question": question, "label": label, "name": name}
    columns |= {"objects": objects, "kind": kind, "cluster": cluster}
    for setting, column in columns.items():
        if column is not None or setting in ("image", "question", "label", "objects"):
            check_text(f"{setting}, the name of a column,", column, error=SettingsError)
    rows, folder = _read_table(table)
    limit = check_limit("limit", limit)
    own, setting = (label, "label") if task == "yes_no" else (objects, "objects")
    _check_there(rows, own, setting=setting)
    place = folder if images is None else check_path("images", images)
    needed = [image, question] if task == "yes_no" else [image]
    needed += [column for column in (name, kind, cluster) if column is not None]
    used = {*needed, label if task == "yes_no" else objects}
    found = []
    for number, (where, row) in enumerate(rows[:limit], start=1):
        _check_finite(row, where=where)
        missing = [column for column in needed if _is_gap(row.get(column))]
        if missing:
            msg = (
                f"{where}: expected something in the columns {', '.join(needed)}, got "
                f"nothing in {', '.join(missing)}; the row has "
                f"{', '.join(map(str, row))}; name columns that are called "
                "otherwise, as in image='file'"
            )
            raise InputError(msg)
        common: dict[str, Any] = {
            "id": str(number if name is None else row[name]),
            "task": task,
            "image": _find_image(str(row[image]), place, download, where=where),
            "kind": "" if kind is None else str(row[kind]),
            "cluster": "" if cluster is None else str(row[cluster]),
            "columns": _keep(row, used, where=where),
        }
        if task == "yes_no":
            asked = str(row[question]) + suffix
            right = _read_label(row.get(label), where=where, column=label)
            found.append(Item(prompt=asked, label=right, **common))
        else:
            there = _read_objects(row.get(objects), where=where, column=objects)
            found.append(Item(prompt=prompt, truth=there, **common))
    if not found:
        raise InputError("the table has no rows: expected at least one")
    return tuple(found)


def _read_table(table: Any) -> tuple[list[tuple[str, Mapping[str, Any]]], Path]:
    """Read rows with their places, and the folder that paths begin at."""
    if isinstance(table, pd.DataFrame):
        frame, folder = table, Path()
        places = [f"row {n} of the table" for n in range(1, len(frame) + 1)]
    else:
        path = check_path("table", table)
        folder = path.parent
        if path.suffix.lower() not in (".csv", ".tsv"):
            records = read_records(path)
            return [(record.place, record.values) for record in records], folder
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        frame = _read_separated(path, separator)
        places = [f"row {n} of {path}" for n in range(1, len(frame) + 1)]
    twice = sorted({str(c) for c in frame.columns[frame.columns.duplicated()]})
    if twice:
        raise InputError(f"columns stand in the table twice: {', '.join(twice)}")
    listed = frame.rename(columns=str).to_dict("records")
    return [
        (place, {str(k): v for k, v in row.items()})
        for place, row in zip(places, listed, strict=True)
    ], folder


def _read_separated(path: Path, separator: str) -> pd.DataFrame:
    """Read a CSV or TSV file, every value as text, or None where there is nothing.

    Not as pandas does: it gives two columns of one name two names, and takes the first
    of too many values for a row's name, so that all others belong to the next column.

    Raises:
        InputError: If it cannot be read, or a row has not a value for each column.
    """
    try:
        text = io.StringIO(read_text(path), newline="")
        rows = [
            row for row in csv.reader(text, delimiter=separator, strict=True) if row
        ]
    except csv.Error as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not rows:
        raise InputError(f"cannot read {path}: no columns to parse from file")
    header, *values = rows
    while header and not header[-1] and all(row[-1:] in ([], [""]) for row in values):
        # spreadsheets write empty columns after the last
        header.pop()
        values = [row[: len(header)] for row in values]
    for number, row in enumerate(values, start=1):
        if len(row) != len(header):
            msg = (
                f"row {number} of {path}: expected {len(header)} values, one for each "
                f"of {', '.join(header)}, got {len(row)}: {show_value(row)}; write "
                "quotes around a text that has the separator in it"
            )
            raise InputError(msg)
    return pd.DataFrame(
        [[value or None for value in row] for row in values],
        columns=header,
        dtype=object,
    )


def _check_there(
    rows: Sequence[tuple[str, Mapping[str, Any]]], column: str, *, setting: str
) -> None:
    """Check that a column that may be left out was, and is not called otherwise.

    Raises:
        InputError: If a column was named that no row has, or differs in its case.
    """
    named = list(dict.fromkeys(str(name) for _, row in rows for name in row))
    if column in named or not rows:
        return
    near = [name for name in named if name.strip().lower() == column.strip().lower()]
    if near or column != setting:
        msg = (
            f"expected the column {column!r}, got {', '.join(named)}; name the one "
            f"that is meant, as in {setting}={near[0] if near else 'right'!r}"
        )
        raise InputError(msg)


def _is_gap(value: object) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))  # type: ignore[call-overload]


def _check_finite(row: Mapping[str, Any], *, where: str) -> None:
    """Check that no number of a row is infinite; one that is NaN counts as missing."""
    for column, value in row.items():
        inside = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, float) and math.isinf(one) for one in inside):
            got = show_value(value)
            msg = (
                f"{where}: expected a finite number or a text in the column {column!r}"
            )
            raise InputError(f"{msg}, got {got}")


def _read_label(value: object, *, where: str, column: str) -> bool | None:
    if _is_gap(value):
        return None
    word = str(value).strip().strip(".").lower()
    if word in _YES or word in _NO:
        return word in _YES
    msg = (
        f"{where}: expected yes or no, true or false, 1 or 0 in the column {column!r}, "
        f"got {show_value(value)}"
    )
    raise InputError(msg)


def _read_objects(value: object, *, where: str, column: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) and _is_gap(value):
        return ()
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                msg = f"{where}: the column {column!r} begins a list and ends none"
                raise InputError(f"{msg}: {show_value(value)}") from error
        else:
            value = [one.strip() for one in value.replace(";", ",").split(",")]
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, str) for one in value
    ):
        msg = (
            f"{where}: expected a list of objects, or a text with commas, in the "
            f"column {column!r}, got {show_value(value)}"
        )
        raise InputError(msg)
    return tuple(one for one in value if one)


def _keep(row: Mapping[str, Any], used: set[str], *, where: str) -> dict[str, Any]:
    """Keep further columns as JSON holds them."""
    kept: dict[str, Any] = {}
    for column, value in row.items():
        if column in used:
            continue
        if column in _OWN:
            msg = (
                f"{where}: a study's rows have a column {column!r} of their own: call "
                "yours otherwise, or say what it is, as in label='answer'"
            )
            raise InputError(msg)
        if not isinstance(value, list | tuple | dict) and _is_gap(value):
            kept[column] = None
        elif isinstance(value, str | bool | int | float):
            kept[column] = value
        elif hasattr(value, "item") and pd.api.types.is_scalar(value):
            kept[column] = value.item()
        else:
            kept[column] = str(value)
    return kept


def _find_image(
    image: str, folder: Path, download: str | Path | None, *, where: str
) -> str:
    if image.startswith(TOY):
        return image
    if "://" in image:
        if download is None:
            msg = (
                f"{where}: {show_value(image)} is an address, and nothing is fetched "
                "that was not asked for: name a folder, as in download='images'"
            )
            raise InputError(msg)
        return str(_fetch(image, check_path("download", download), where=where))
    return str(folder / Path(image).expanduser())


def _fetch(address: str, folder: Path, *, where: str) -> Path:
    """Download an image, unless it is there."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https":
        msg = (
            f"{where}: expected an address that begins with https, got {address!r:.80}"
        )
        raise InputError(msg)
    plain = "".join(
        c if c.isalnum() or c in "._-" else "_" for c in parts.netloc + parts.path
    )
    if parts.query or len(plain) > _LONGEST:
        # Images of one path differ in what is asked of it: `get?id=1` and `get?id=2`.
        told = hashlib.sha256(address.encode()).hexdigest()[:16]
        plain = f"{told}-{plain[-_LONGEST:]}"
    path = folder / plain
    if path.is_file():
        return path
    make_folder(folder)
    try:
        with urllib.request.urlopen(address, timeout=60) as found:
            content = found.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        msg = f"{where}: {address} cannot be downloaded: {error}"
        raise InputError(msg) from error
    if len(content) > MOST_BYTES:
        raise InputError(f"{where}: {address} has more than {MOST_BYTES} bytes")
    save_bytes(content, path)
    return path
