"""Integers and numbers of any kind as plain ones, plain tensors, choices of words."""

import math
import numbers
import operator
from collections.abc import Set
from typing import Any, get_args

from eah_interp.errors import InputError, SettingsError, show_value


def to_int(value: object) -> int | None:
    """Return an integer of any kind as a plain one; None for anything else.

    Booleans, strings and fractions are no integers, nor is 1.0.

    Example:
        >>> import numpy as np
        >>> [to_int(value) for value in (3, np.int64(3), np.array(3), "3", 3.0, True)]
        [3, 3, 3, None, None, None]
    """
    try:
        # A tensor of one element counts as an integer in torch, a list of one does not.
        if isinstance(value, bool) or getattr(value, "shape", ()) != ():
            return None
        if "bool" in str(getattr(value, "dtype", "")):
            return None
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # RuntimeError: no numbers, or no shape
        return None


def to_ints(values: object) -> tuple[int, ...] | None:
    """Return integers of any kind as plain ones; None where one is anything else.

    Args:
        values: One integer, or a list, tuple, range, array, tensor or pandas column.

    Example:
        >>> import numpy as np
        >>> to_ints(np.array([2, 0])), to_ints(3), to_ints("12"), to_ints([1.9])
        ((2, 0), (3,), None, None)
    """
    one = to_int(values)
    if one is not None:
        return (one,)
    found = [to_int(value) for value in to_list(values) or ()]
    plain = tuple(value for value in found if value is not None)
    return plain if found and len(plain) == len(found) else None


def check_item(item: object, n_items: int) -> int:
    """Check that a batch item is there.

    Args:
        item: Its number.
        n_items: How many there are.

    Raises:
        InputError: If it is not.

    Example:
        >>> check_item(1, 2)
        1
    """
    index = to_int(item)
    if index is None or not 0 <= index < n_items:
        msg = f"item {show_value(item)} does not exist: expected 0 to {n_items - 1}"
        raise InputError(msg)
    return index


def check_integer(name: str, value: object, *, least: int = 0) -> int:
    """Check that a value is an integer, of any kind, in its range; make it plain.

    Raises:
        SettingsError: If it is not.

    Example:
        >>> check_integer("seed", "12")
        Traceback (most recent call last):
            ...
        eah_interp.errors.SettingsError: seed must be an integer of 0 or more, got '12'
    """
    one = to_int(value)
    # What torch's generators and tensors take.
    if one is None or not least <= one < 2**63:
        msg = f"{name} must be an integer of {least} or more, got {show_value(value)}"
        raise SettingsError(msg)
    return one


def check_choice(name: str, value: object, choices: Any, more: str = "") -> None:
    """Check that a value is one of a `Literal`'s strings.

    Args:
        name: Of the setting.
        value: What was given.
        choices: The `Literal`, or its strings.
        more: What else is allowed, for the message.

    Raises:
        SettingsError: If it is not.
    """
    listed = tuple(choices) if isinstance(choices, list | tuple) else get_args(choices)
    # An array compares with each string by itself.
    if not isinstance(value, str) or value not in listed:
        msg = (
            f"{name} must be one of {', '.join(listed)}{more}, got {show_value(value)}"
        )
        raise SettingsError(msg)


def to_list(values: object) -> list[Any] | None:
    """Return a list, tuple, range, array, tensor or pandas column as a list.

    Returns:
        None for anything else: a string, a set, a mapping, a scalar.

    Example:
        >>> to_list((1, 2)), to_list("12")
        ([1, 2], None)
    """
    if isinstance(values, list | tuple | range):
        return list(values)
    listed = _as_python(values)
    return listed if isinstance(listed, list) else None


def is_dense(tensor: Any) -> bool:
    """Return whether a tensor is laid out as one plain array of its numbers.

    Sparse tensors, nested ones and those of quantised numbers know few operations, and
    raise errors of their own in the middle of a run.

    Example:
        >>> import torch
        >>> is_dense(torch.ones(2)), is_dense(torch.ones(2).to_sparse())
        (True, False)
    """
    # By name: who checks arguments does not wait for torch.
    plain = str(tensor.layout) == "torch.strided"
    return plain and not (tensor.is_quantized or tensor.is_nested)


def check_columns(name: str, values: object) -> frozenset[int]:
    """Check that positions of tokens are integers, and make them plain ones.

    Args:
        name: Of the argument.
        values: A list, set, range, array, tensor or pandas column; or none.

    Raises:
        InputError: If they are not.

    Example:
        >>> sorted(check_columns("columns", {5, 3})), sorted(check_columns("keep", ()))
        ([3, 5], [])
    """
    listed = list(values) if isinstance(values, Set) else to_list(values)
    found = [to_int(value) for value in listed or ()]
    plain = frozenset(value for value in found if value is not None)
    if listed is None or None in found:
        got = show_value(values)
        raise InputError(f"{name} must be positions of tokens, got {got}")
    return plain


def to_float(value: object) -> float | None:
    """Return a finite real number of any kind as a float; None for anything else.

    Example:
        >>> import numpy as np
        >>> [to_float(value) for value in (1, np.float32(0.5), "1", 1j, True)]
        [1.0, 0.5, None, None, None]
    """
    one = to_int(value)
    if one is None and not isinstance(value, numbers.Real):
        value = _as_python(value)
    if one is None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        return None
    try:
        number = float(value if one is None else one)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _as_python(value: object) -> Any:
    try:
        return value.tolist() if hasattr(value, "tolist") else None
    except RuntimeError:  # a tensor without numbers
        return None
