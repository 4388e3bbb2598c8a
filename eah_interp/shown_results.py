"""Results on a screen: a few lines of text, a small table and picture in notebooks."""

import base64
import dataclasses
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eah_interp.errors import EAHError
from eah_interp.tables import Table

WIDTH = 100
"""Letters of a line."""

ROWS, ROWS_IN_HTML = 3, 8
"""How many of its rows a result shows."""

LONGEST_CELL = 24

MOST_BYTES = 48_000
"""A larger picture is drawn with fewer dots, or left out."""

SHARPNESS = (100, 60, 40)
"""Dots per inch, tried in this order."""


# ---- Text.


def write_lines(part: Any) -> str:
    """Write what a result is: title, settings, and the rows that are looked at first.

    At most eight lines of `WIDTH` letters, whatever the result holds.
    """
    lines = _fold(_title(part), most=2)
    settings = _settings(part)
    for line in settings:
        lines += _fold(line, most=1 if len(settings) > 1 else 2)
    return "\n".join([*lines, *_rows(part)])


def _title(part: Any) -> str:
    model = getattr(part, "model", "")
    of = f" of {model}" if model and isinstance(model, str) else ""
    return f"{type(part).__name__}{of}: {part._about()}"


def _settings(part: Any) -> list[str]:
    return [
        f"{name.replace('_', ' ')}: "
        + ("none, a plain run" if value is None else brief(value))
        for name, value in part._settings().items()
    ]


def _rows(part: Any) -> list[str]:
    frame = _first(part, ROWS)
    if frame is None:
        return []
    if frame.empty:
        return ["no rows"]
    return lay_out(frame, caption="", width=WIDTH).text().splitlines()[1:]


def _first(part: Any, k: int) -> pd.DataFrame | None:
    try:
        found: pd.DataFrame | None = part._first(k)
    except EAHError:  # such as a study whose folder is gone: there is nothing to list
        return None
    return found


def _fold(text: str, *, most: int) -> list[str]:
    """Break a text into so many lines; what is left over is cut."""
    return textwrap.wrap(
        _clean(text), WIDTH, subsequent_indent="  ", max_lines=most, placeholder=" ..."
    )


def _clean(text: str) -> str:
    """Put a text on one line, and write signs out that a screen would act on."""
    plain = " ".join(text.split())
    if plain.isprintable():
        return plain
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in plain
    )


def brief(value: Any) -> str:
    """Write a value on one line: tensors by their shape, functions by their name.

    Example:
        >>> brief(torch.zeros(2, 3)), brief(["a", None, 0.25]), brief(len)
        ('[2, 3]', "['a', None, 0.25]", 'len')
    """
    if isinstance(value, Tensor | np.ndarray):
        return str(list(value.shape))
    if isinstance(value, pd.DataFrame):
        return f"a table of {len(value)} rows"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [
            f"{one.name}={brief(getattr(value, one.name))}"
            for one in dataclasses.fields(value)
            if one.repr
        ]
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{brief(k)}: {brief(v)}' for k, v in _some(value))}}}"
    if isinstance(value, list | tuple):
        listed = ", ".join(brief(one) for one in value[:MOST_LISTED])
        more = f", ... {len(value)} in all" if len(value) > MOST_LISTED else ""
        ends = "[]" if isinstance(value, list) else "()"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"{ends[0]}{listed}{comma}{more}{ends[1]}"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    text = repr(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."


MOST_LISTED = 12


def _some(values: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(values.items())[:MOST_LISTED]


def count(n: int, word: str) -> str:
    """Write a number of things.

    Example:
        >>> count(1, "item"), count(2, "item")
        ('1 item', '2 items')
    """
    return f"{n} {word}{'' if n == 1 else 's'}"


def count_heads(n_layers: int, n_heads: int) -> str:
    """Write how many layers there are of how many heads.

    Example:
        >>> count_heads(1, 8)
        '1 layer x 8 heads'
    """
    return f"{count(n_layers, 'layer')} x {count(n_heads, 'head')}"


def list_fields(part: Any) -> str:
    """Describe a dataclass by its fields."""
    fields = [
        (field.name, getattr(part, field.name)) for field in dataclasses.fields(part)
    ]
    shown = {*part._settings(), "model"}
    return ", ".join(
        f"{name}{' ' if isinstance(value, Tensor) else '='}{brief(value)}"
        for name, value in fields
        if name not in shown
    )


def lay_out(frame: pd.DataFrame, *, caption: str, width: int = 0) -> Table:
    """Lay rows out as a table of short cells; columns that do not fit are left out."""
    columns = {
        str(name): [_write_cell(cell) for cell in frame[name].tolist()]
        for name in frame.columns
    }
    header: list[str] = []
    room = width
    for name, cells in columns.items():
        room -= max(map(len, [name, *cells])) + 2
        if width and header and room < len("..."):
            break
        header.append(name)
    rows = list(zip(*(columns[name] for name in header), strict=True))
    if len(header) < len(columns):
        header.append("...")
        rows = [(*row, "") for row in rows]
    return Table(caption=caption, header=tuple(header), rows=tuple(rows))


def _write_cell(cell: Any) -> str:
    if isinstance(cell, list | tuple):
        text = ", ".join(map(str, cell))
    elif pd.isna(cell):
        text = "nan" if isinstance(cell, float) else ""
    elif isinstance(cell, float):
        text = f"{cell:.4g}"
    else:
        text = str(cell)
    text = _clean(text)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


# ---- Notebooks.


def write_html(part: Any) -> str:
    """Write a result as HTML: what it is, a small table, and a picture."""
    lines = [_title(part), *_settings(part)]
    text = "<br>".join(escape(_cut(line)) for line in lines)
    frame = _first(part, ROWS_IN_HTML)
    table = ""
    if frame is not None and not frame.empty:
        caption = f"{len(frame)} rows that come first" if len(frame) > 1 else "one row"
        table = lay_out(frame, caption=caption).html()
    elif frame is not None:
        table = "<p>no rows</p>"
    picture = _draw(part)
    image = ""
    if picture:
        data = base64.b64encode(picture).decode()
        name = escape(type(part).__name__, quote=True)
        image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
    return f'<div class="eah-result"><p>{text}</p>\n{table}\n{image}</div>'


def _cut(text: str) -> str:
    plain = _clean(text)
    return plain if len(plain) <= 4 * WIDTH else f"{plain[: 4 * WIDTH - 4]} ..."


def _draw(part: Any) -> bytes:
    """Draw a result as a small PNG; nothing where it cannot be drawn."""
    with warnings.catch_warnings():
        # A glance needs no word on a sign that the font lacks, or on an empty axis.
        warnings.simplefilter("ignore")
        try:
            figure = part._picture()
        except EAHError:  # no matplotlib, or nothing that can be drawn without more
            return b""
        for dots in SHARPNESS if figure is not None else ():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=dots)
            if buffer.tell() <= MOST_BYTES:
                return buffer.getvalue()
    return b""


# ---- Which rows come first.


def find_largest(values: Tensor, k: int) -> list[tuple[int, ...]]:
    """Find the places of the `k` largest values, either sign, the largest first.

    NaN is no value.

    Example:
        >>> find_largest(torch.tensor([[0.5, float("nan")], [-2.0, 1.0]]), 2)
        [(1, 0), (1, 1)]
    """
    sizes = values.abs().flatten().float()
    sizes = sizes.masked_fill(sizes.isnan(), -1)
    found = sizes.topk(min(k, len(sizes)))
    places = [int(place) for size, place in zip(*found, strict=True) if size >= 0]
    return [
        tuple(int(one) for one in torch.unravel_index(torch.tensor(p), values.shape))
        for p in places
    ]


def list_largest(
    columns: Mapping[str, Tensor],
    *,
    by: str,
    k: int,
    label: Callable[[tuple[int, ...]], Mapping[str, Any]],
) -> pd.DataFrame:
    """List the `k` cells whose `by` is largest, either sign, and no others.

    Args:
        columns: Numbers of each cell, tensors of one shape.
        by: The column that is compared.
        k: How many.
        label: What is written of a cell, by its place.
    """
    rows = [
        {**label(cell)}
        | {name: values[cell].item() for name, values in columns.items()}
        for cell in find_largest(columns[by], k)
    ]
    return pd.DataFrame(rows)


# ---- Comparison.


def are_same(one: Any, other: Any) -> bool:
    """Compare values that may hold tensors and tables; NaN is the same as NaN.

    Example:
        >>> are_same({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0])})
        True
        >>> are_same((float("nan"), 1), (float("nan"), 2))
        False
    """
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return _are_same_tensors(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(are_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            are_same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, pd.DataFrame):
        return bool(one.equals(other))
    if isinstance(one, np.ndarray):
        numbers = one.dtype.kind in "fc"
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=numbers
        )
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return all(
            are_same(getattr(one, field.name), getattr(other, field.name))
            for field in dataclasses.fields(one)
            if field.compare
        )
    return bool(one == other)


def _are_same_tensors(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = one.detach().cpu(), other.detach().cpu()
    if not one.is_floating_point() or torch.equal(one, other):
        return torch.equal(one, other)
    nowhere = one.isnan()
    if not torch.equal(nowhere, other.isnan()):
        return False
    return torch.equal(one.masked_fill(nowhere, 0), other.masked_fill(nowhere, 0))
