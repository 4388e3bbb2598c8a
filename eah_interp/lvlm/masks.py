"""What an attention call gets besides queries and keys: masks and biases."""

from typing import Any

import torch
from torch import Tensor

from eah_interp._types import Donors, HeadMask
from eah_interp.errors import ModelError


def broadcast_extra(extra: Any, donors: Donors, change: HeadMask) -> Any:
    """Broadcast a tensor along its head axis, where it has one."""
    n_heads = change.shape[1]
    if not isinstance(extra, Tensor) or extra.ndim != 4 or extra.shape[1] != n_heads:
        return extra
    if n_heads == 1:
        return extra
    wide = extra.expand(change.shape[0], -1, -1, -1)
    items = torch.arange(change.shape[0], device=extra.device)
    donated = wide[items, donors.clamp(min=0).to(extra.device)].unsqueeze(1)
    return torch.where(change[:, :, None, None], donated, wide)


def add_bias(bias: Tensor, mask: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Write a position bias and a mask (causal when None) as one additive mask."""
    n_rows, n_keys = queries.shape[2], keys.shape[2]
    bias = bias[..., :n_keys].float()
    if mask is None:
        place = torch.arange(n_keys, device=keys.device)
        mask = (place <= place[-n_rows:, None])[None, None]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(torch.float32).min)
    biased: Tensor = bias + mask.float()
    return biased


def write_out_block_mask(mask: Any, queries: Tensor, n_keys: int) -> Tensor:
    """Write Flex's block mask out as a boolean one.

    Raises:
        ModelError: If the mask is of another kind.
    """
    from torch.nn.attention.flex_attention import create_mask

    if not hasattr(mask, "mask_mod"):
        msg = (
            f"an attention mask of type {type(mask).__name__} cannot be read: expected "
            "None, a tensor, or a Flex block mask; load with attn_implementation='sdpa'"
        )
        raise ModelError(msg)
    n_batch, _, n_rows, _ = queries.shape
    return create_mask(
        mask.mask_mod, n_batch, 1, n_rows, n_keys, device=str(queries.device)
    )
