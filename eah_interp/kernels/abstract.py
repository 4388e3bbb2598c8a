"""Tensors that carry a shape but no numbers."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_abstract(tensor: Tensor) -> bool:
    """Whether a tensor carries a shape but no numbers (meta, or nnsight's scan)."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
