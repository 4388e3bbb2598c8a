"""EAH as the released file does it: the slow way, and an oracle for `EAH.official()`.

Written from docs/method.md's description of the released file, none of its code: eager
attention in every layer, so that whole patterns exist; in the patched layer a Python
loop over heads that copies each head's pattern and sums it, then a loop that copies the
winner's pattern to every head. Batch item 0 only; head 0 never donates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "released_style"
_PATCH = "released_patch"


@dataclass(frozen=True)
class ReleasedPatch:
    """What the released file has as literals: 36, 611 and 0.0008.

    Attributes:
        start: First column judged: one past the first image token.
        stop: One past the last image token.
        beta: A column counts when its score is above this.
    """

    start: int = 36
    stop: int = 611
    beta: float = 0.0008


def use_released_style(
    model: PreTrainedModel, *, layer: int, patch: ReleasedPatch
) -> PreTrainedModel:
    """Switch a model to eager attention, and one decoder layer to the released EAH.

    Args:
        model: A LLaVA that nnsight has not instrumented; changed in place.
        layer: The decoder layer to patch, counted from 0.
        patch: Columns and threshold.

    Returns:
        The same model.
    """
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation({"text_config": NAME, "vision_config": "eager"})
    decoder: Any = model.get_decoder()
    setattr(decoder.layers[layer].self_attn, _PATCH, patch)
    return model


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, Tensor]:
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    pattern = torch.softmax(logits, -1, dtype=torch.float32).to(query.dtype)
    patch = getattr(module, _PATCH, None)
    if patch is not None:
        _overwrite_pattern(pattern, patch)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _overwrite_pattern(pattern: Tensor, patch: ReleasedPatch) -> None:
    n_heads, n_rows, n_keys = pattern.shape[1:]
    own = torch.eye(n_rows, n_keys, dtype=torch.bool, device=pattern.device)
    width = patch.stop - patch.start
    divisor = patch.stop - torch.arange(width, device=pattern.device)
    most, winner = 0, 0
    for head in range(n_heads):
        copied = pattern[0, head].clone().float()
        received = copied.masked_fill(own, 0).sum(0)[patch.start : patch.stop]
        count = int((received / divisor > patch.beta).sum())
        if count > most:
            most, winner = count, head
    if winner > 0:
        donated = pattern[0, winner].clone()
        for head in range(n_heads):
            pattern[0, head] = donated.clone()
