"""What equal bits may be asked of, and how to see on any machine whether they may.

A matrix product chooses its kernel by the shape of its factors, and on some processors
(AMD's) by their address too: torch allocates at multiples of 64 bytes, a mapped file
promises multiples of 8. Kernels sum in different orders, so the last bits differ. Hence
equal bits are asserted only between two computations of the same tensors in the same
shapes; between a loaded model and one in memory, other shapes, or two builds, the
models' difference without a patch says what is allowed.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_families import measure_gap

ALIGNED = 64
"""Addresses that torch allocates at are multiples of this many bytes."""

FLOOR = 16 * torch.finfo(torch.float32).eps
"""What rounding alone may change, in units of the largest number."""


def share_tensors(model: nn.Module, other: nn.Module) -> nn.Module:
    """Let a model compute with another's very tensors; return it."""
    for mine, theirs in zip(list_tensors(model), list_tensors(other), strict=True):
        assert torch.equal(mine, theirs)
        mine.data = theirs.data
    return model


def misalign(model: nn.Module, offset: int = 8) -> nn.Module:
    """Move a model's weights, in place, to where a mapped file may have them.

    Args:
        model: Any model.
        offset: Bytes past a multiple of 64.
    """
    moved: dict[int, Tensor] = {}  # by address: tied weights stay tied
    for tensor in list_tensors(model):
        if tensor.data_ptr() not in moved:
            moved[tensor.data_ptr()] = copy_to(tensor, offset)
        tensor.data = moved[tensor.data_ptr()]
    return model


def copy_to(tensor: Tensor, offset: int) -> Tensor:
    """Copy a tensor into a buffer of its own, so many bytes past a multiple of 64."""
    buffer = torch.empty(tensor.nbytes + ALIGNED + offset, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNED + offset
    copy = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor.detach())


def list_tensors(model: nn.Module) -> Iterator[Tensor]:
    """List a model's parameters and buffers, those of no numbers left out."""
    both = itertools.chain(model.parameters(), model.buffers())
    return (tensor for tensor in both if tensor.numel())


def assert_as_alike(
    found: Tensor, expected: Tensor, *, plain: tuple[Tensor, Tensor]
) -> None:
    """Check that two models' results differ no more than their plain results do.

    Args:
        found: One model's result.
        expected: The other's.
        plain: The results of the same two models on the same input, unpatched. Patches
            may magnify a difference: four times as much is allowed, and rounding.
    """
    noise = measure_gap(*plain)
    assert noise <= 1e-4, "these are two different models"
    assert measure_gap(found, expected) <= 4 * noise + FLOOR


class KernelsByAddress(TorchDispatchMode):
    """Within it, products sum in an order that depends on address and shape.

    As on the processors that do so, but on any: where a factor is not at a multiple of
    64 bytes, or the product has one row, the second half of a sum comes first.
    """

    supports_higher_order_operators = True  # FlexAttention is one

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute one operation."""
        operation, kwargs = getattr(function, "overloadpacket", None), kwargs or {}
        aten = torch.ops.aten
        if operation in (aten.mm, aten.bmm) and _is_odd(*args):
            return _in_other_order(function, *args)
        if operation is aten.addmm and not kwargs and _is_odd(*args[1:]):
            return args[0] + _in_other_order(aten.mm.default, *args[1:])
        if operation is aten._grouped_mm and _is_odd(*args[:2]):
            # Its own rule: strides are multiples of 16 bytes.
            return _in_other_order(function, *args, step=4, **kwargs)
        return function(*args, **kwargs)


def _is_odd(*factors: Tensor) -> bool:
    """Return whether these are factors for which another kernel is chosen."""
    real = (Tensor, nn.Parameter)  # no fake tensor, which has no address
    if any(type(f) not in real or f.is_meta or f.device.type != "cpu" for f in factors):
        return False
    if not factors[0].is_floating_point() or factors[0].dtype.itemsize < 4:
        return False
    one_row = factors[0].shape[-2] == 1
    return one_row or any(factor.data_ptr() % ALIGNED for factor in factors)


def _in_other_order(
    function: Any, left: Tensor, right: Tensor, *rest: Any, step: int = 1, **kwargs: Any
) -> Tensor:
    half = left.shape[-1] // 2 // step * step
    if not half:
        return function(left, right, *rest, **kwargs)
    behind = function(left[..., half:], right[..., half:, :], *rest, **kwargs)
    return behind + function(left[..., :half], right[..., :half, :], *rest, **kwargs)
