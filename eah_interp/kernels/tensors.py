"""What a kernel takes: tensors of so many axes, of a kind, in one place."""

from typing import Any, Literal

import torch
from torch import Tensor

from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import to_float

TensorKind = Literal["float", "bool", "int"]
"""What a tensor holds."""


def check_tensor(
    name: str, value: object, *, axes: str | None = None, kind: TensorKind = "float"
) -> Tensor:
    """Check that an argument is a tensor with these axes that holds this kind.

    Args:
        name: Of the argument.
        value: What was given.
        axes: The names of its axes, as in `"batch head query key"`; any when None.
        kind: What it holds: numbers, flags or indices.

    Returns:
        The tensor.

    Raises:
        InputError: If it is something else.

    Example:
        >>> import torch
        >>> check_tensor("donors", torch.zeros(2), axes="batch", kind="int")
        Traceback (most recent call last):
            ...
        eah_interp.errors.InputError: donors must be a tensor of int [batch], got \
float32 of shape (2,)
    """
    # A list has no shape, an array of NumPy no device, a sparse tensor few operations.
    expected = f"{kind} [{'...' if axes is None else axes}]"
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        what = show_value(value) if not hasattr(value, "shape") else type(value)
        msg = f"{name} must be a (dense) tensor of {expected}, got {what}"
        raise InputError(msg)
    holds = {
        "float": value.is_floating_point(),
        "bool": value.dtype == torch.bool,
        "int": value.dtype != torch.bool
        and not (value.is_floating_point() or value.is_complex()),
    }
    if not holds[kind] or (axes is not None and value.ndim != len(axes.split())):
        msg = (
            f"{name} must be a tensor of {expected}, got "
            f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        )
        raise InputError(msg)
    return value


def check_sizes(name: str, value: Tensor, *wanted: int | tuple[int, ...]) -> None:
    """Check the size of each axis: one number, or one of several.

    Raises:
        InputError: If one is another.

    Example:
        >>> import torch
        >>> check_sizes("values", torch.zeros(2, 4, 6), 2, (1, 4), 6)
    """
    sizes = [(size,) if isinstance(size, int) else size for size in wanted]
    fit = all(got in size for got, size in zip(value.shape, sizes, strict=True))
    if not fit:
        said = " x ".join(" or ".join(map(str, dict.fromkeys(s))) for s in sizes)
        msg = f"{name} has shape {tuple(value.shape)}: expected {said}"
        raise InputError(msg)


def check_place(**given: Tensor | None) -> None:
    """Check that of some tensors either all or none are on the meta device.

    Raises:
        InputError: If some have numbers and some have not.
    """
    there = {name: one.is_meta for name, one in given.items() if one is not None}
    if len(set(there.values())) > 1:
        empty = ", ".join(name for name, is_meta in there.items() if is_meta)
        msg = f"{empty} is on the meta device, which has no numbers; the others are not"
        raise InputError(msg)


def check_finite(name: str, value: Any, *, positive: bool = False) -> float | None:
    """Check that a number is finite, and above zero where that is asked.

    Returns:
        It as a plain number; None as it is.

    Raises:
        SettingsError: If it is not.
    """
    number = None if value is None else to_float(value)
    if value is not None and (number is None or (positive and number <= 0)):
        kind = "a number above 0" if positive else "a finite number"
        raise SettingsError(f"{name} must be {kind}, got {show_value(value)}")
    return number
