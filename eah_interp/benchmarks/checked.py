"""Tables of answers that a user made, checked column by column before they are read."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from eah_interp.arguments import check_kind
from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_int, to_list

ColumnKind: TypeAlias = Literal["text", "flag", "flag or none", "key", "names"]
"""What a column holds: texts, True and False, those or nothing, names or numbers, or
lists of names."""


def _is_names(value: object) -> bool:
    listed = to_list(value)
    return listed is not None and all(isinstance(one, str) for one in listed)


def _is_none(value: object) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))  # type: ignore[call-overload]


_RIGHT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("texts", lambda value: isinstance(value, str)),
    "flag": ("True and False", lambda value: isinstance(value, bool | np.bool_)),
    "flag or none": (
        "True, False or nothing",
        lambda value: isinstance(value, bool | np.bool_) or _is_none(value),
    ),
    "key": (
        "names or whole numbers",
        lambda value: isinstance(value, str) or to_int(value) is not None,
    ),
    "names": ("lists of names", _is_names),
}


def check_table(
    name: str, table: object, *, unique: str = "", **columns: ColumnKind
) -> pd.DataFrame:
    """Check that a table has some columns, each once, and the right values in them.

    Args:
        name: Of the argument.
        table: What was given.
        unique: A column in which no value may stand twice; none when empty.
        **columns: What each column has to hold.

    Returns:
        The table.

    Raises:
        InputError: If it is none, is empty, lacks a column, has one twice, or holds
            something else in it.

    Example:
        >>> check_table("answers", pd.DataFrame({"answer": [3]}), answer="text")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: answers must hold texts in the column 'answer', \
got 3
    """
    found: pd.DataFrame = check_kind(
        name, table, pd.DataFrame, expected="a table of pandas"
    )
    listed = [str(column) for column in found.columns]
    missing = [column for column in columns if column not in listed]
    if missing or found.empty:
        got = f"{len(found)} rows with {show_value(listed)}"
        raise InputError(f"{name} need the columns {list(columns)}, got {got}")
    twice = [column for column in columns if listed.count(column) > 1]
    if twice:
        raise InputError(f"{name} have the column {twice[0]!r} twice: expected it once")
    for column, kind in columns.items():
        what, is_right = _RIGHT[kind]
        odd = [value for value in found[column] if not is_right(value)]
        if odd:
            got = show_value(odd[0])
            msg = f"{name} must hold {what} in the column {column!r}, got {got}"
            raise InputError(msg)
    if unique:
        again = found[unique][found[unique].duplicated()]
        if len(again):
            got = show_value(again.iloc[0])
            raise InputError(f"{name} have {unique} {got} twice: expected each once")
    return found
