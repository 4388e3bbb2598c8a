"""What an attention mask lets each row see, and whether a call's tensors fit."""

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp.errors import InputError


def find_visible(mask: Tensor) -> Bool[Tensor, "..."]:
    """Say which keys an attention mask, or logits that it was added to, leave visible.

    Args:
        mask: Boolean (True is visible), or additive: a key is hidden where the value
            is at most half the dtype's minimum, whatever logits were added to it.

    Returns:
        True where a row may look.

    Example:
        >>> import torch
        >>> find_visible(torch.tensor([0.0, -7.5, torch.finfo().min, -torch.inf]))
        tensor([ True,  True, False, False])
    """
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2


def check_attention_shapes(
    queries: Tensor, keys: Tensor, mask: Tensor | None, sink_logits: Tensor | None
) -> None:
    """See that the tensors of an attention call fit each other.

    Raises:
        InputError: If they do not.
    """
    n_heads, n_groups = queries.shape[1], keys.shape[1]
    if n_heads % n_groups:
        msg = (
            f"{n_heads} query heads do not divide into {n_groups} key/value groups; "
            "pass queries [batch head query d_head] and keys "
            "[batch kv_head key d_head] of one attention call"
        )
        raise InputError(msg)
    n_batch, n_rows, n_keys = queries.shape[0], queries.shape[2], keys.shape[2]
    if mask is None and n_rows != n_keys:
        msg = (
            f"a causal pattern needs as many queries as keys, got {n_rows} "
            f"and {n_keys}; pass the attention call's own mask"
        )
        raise InputError(msg)
    wanted = (n_batch, n_heads, n_rows, n_keys)
    if mask is not None and not _fits(mask, wanted, may_be_one=(0, 1)):
        msg = (
            f"the attention mask has shape {tuple(mask.shape)}: expected {wanted}, "
            "with 1 allowed for batch and head"
        )
        raise InputError(msg)
    wanted = (n_batch, n_heads, n_rows, 1)
    if sink_logits is not None and not _fits(sink_logits, wanted, may_be_one=(0, 2)):
        msg = (
            f"the sink logits have shape {tuple(sink_logits.shape)}: expected "
            f"{wanted}, with 1 allowed for batch and query; a model's one logit per "
            "head is logits.view(1, -1, 1, 1)"
        )
        raise InputError(msg)


def _fits(
    given: Tensor, wanted: tuple[int, ...], *, may_be_one: tuple[int, ...]
) -> bool:
    return given.ndim == len(wanted) and all(
        size == whole or (size == 1 and axis in may_be_one)
        for axis, (size, whole) in enumerate(zip(given.shape, wanted, strict=True))
    )
