"""What may fail in a study: an item, which is recorded, or the machine, which stops."""

import torch
from torch import Tensor

from eah_interp.errors import (
    EAHError,
    ExtraMissingError,
    NumericalError,
    UnsupportedError,
)

ITEM_ERRORS = (EAHError, ValueError, IndexError, KeyError, TypeError, RuntimeError)
"""What an item may fail with."""

_MACHINE_ERRORS = tuple(
    getattr(torch, name)
    for name in ("OutOfMemoryError", "AcceleratorError")
    if hasattr(torch, name)
)
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory")


def refuse_machine(error: Exception, where: str) -> None:
    """Stop for what is no item's fault: it would be recorded for all that follow.

    Args:
        error: What was raised.
        where: In which batch, under which condition.

    Raises:
        UnsupportedError: If memory is too small, or the device failed.
        ExtraMissingError: If a package is missing.

    Example:
        >>> refuse_machine(ValueError("no such token"), "batch 3")
        >>> refuse_machine(MemoryError("out of memory"), "batch 3")
        Traceback (most recent call last):
            ...
        eah_interp.errors.UnsupportedError: the machine failed in batch 3: out of \
memory; a smaller batch_size (in a new folder) needs less; what is there stays, and \
the same study goes on from it
    """
    if isinstance(error, ExtraMissingError):
        raise error
    short = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(s in str(error) for s in _NO_MEMORY)
    )
    if short or isinstance(error, _MACHINE_ERRORS):
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "a smaller batch_size (in a new folder) needs less; " if short else ""
        msg = (
            f"the machine failed in {where}: {cause}; {remedy}what is there stays, "
            "and the same study goes on from it"
        )
        raise UnsupportedError(msg) from error


def refuse_nan(ids: Tensor, scores: Tensor) -> Tensor:
    """Stop a generation whose logits are no numbers: its words would be chance.

    Raises:
        NumericalError: If one is NaN.
    """
    del ids
    if bool(torch.isnan(scores).any()):
        msg = (
            "the model's logits are NaN: expected numbers; load it in another dtype, "
            "or see what the patch does to it"
        )
        raise NumericalError(msg)
    return scores


def describe(error: BaseException) -> str:
    """Write an error into a row.

    Example:
        >>> describe(ValueError("no image"))
        'ValueError: no image'
    """
    return f"{type(error).__name__}: {error}"
