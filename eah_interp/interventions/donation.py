"""How a patch is planned (who donates) and applied (what is written where)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eah_interp._types import ColumnMask, Donors, HeadMask
from eah_interp.interventions.patches import LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.kernels import (
    ColumnScores,
    PatternBlock,
    choose_donors,
    mean_pattern,
    shuffled_pattern,
    stream_column_scores,
    uniform_pattern,
)
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import Prompt


def plan_patch(
    eah: EAH, call: AttentionCall, prompt: Prompt, *, layer: int
) -> LayerPatch:
    """Score the layer, if the donor rule asks for it, and choose donors."""
    scores = score_call(eah, call, prompt) if eah.needs_scores else None
    batch_heads = (call.queries.shape[0], call.n_heads)
    return choose_patch(
        eah, scores, batch_heads, layer=layer, device=call.queries.device
    )


def choose_patch(
    eah: EAH,
    scores: ColumnScores | None,
    batch_heads: tuple[int, int],
    *,
    layer: int,
    device: torch.device,
) -> LayerPatch:
    """Choose the donors of a layer from its scores, or without where none are needed.

    Args:
        eah: The settings.
        scores: The layer's scores; None where `eah.needs_scores` is false.
        batch_heads: How many batch items and query heads there are.
        layer: The decoder layer, for its own random draws.
        device: Where the donors are wanted.

    Returns:
        Who donates in each item, and which items are patched.
    """
    density = None if scores is None else scores.density(float(eah.beta or 0.0))
    n_batch, n_heads = batch_heads
    if eah.donor in ("mean", "uniform"):
        donors = torch.full((n_batch,), -1, device=device)
    else:
        rule: Any = "densest" if eah.donor == "shuffled" else eah.donor
        unscored = torch.zeros(n_batch, n_heads, device=device)
        donors = choose_donors(
            unscored if density is None else density,
            rule=rule,
            gamma=eah.gamma,
            seed=layer_seed(eah, layer),
            head_0=eah.head_0,
        )
    if eah.items == "first":
        first = torch.arange(n_batch, device=device) == 0
        donors = donors.masked_fill(~first, -1)
    return LayerPatch(layer, donors, patched_items(eah, donors), density, scores)


def score_call(eah: EAH, call: AttentionCall, prompt: Prompt) -> ColumnScores:
    """Score the image columns of one attention call, streamed, without gradients."""
    with torch.no_grad():
        parts = call.pattern_inputs(prompt.token_mask)
        queries, keys = parts.pop("queries"), parts.pop("keys")
        tokens = parts.pop("token_mask")
        return stream_column_scores(
            queries,
            keys,
            image_mask=prompt.image_mask[:, : keys.shape[2]],
            token_mask=tokens,
            definition=eah.definition,
            **parts,
        )


def patched_items(eah: EAH, donors: Donors) -> Tensor:
    """Mark the batch items that are patched; some controls have no donor head."""
    if eah.donor not in ("mean", "uniform"):
        return donors >= 0
    items = torch.arange(len(donors), device=donors.device)
    return items == 0 if eah.items == "first" else items >= 0


def layer_seed(eah: EAH, layer: int) -> int | list[int]:
    """Give every layer draws of its own."""
    if isinstance(eah.seed, int):
        return eah.seed * 1009 + layer
    return [seed * 1009 + layer for seed in eah.seed]


def apply_patch(
    eah: EAH,
    operation: Any,
    call: AttentionCall,
    prompt: Prompt,
    patch: LayerPatch,
) -> None:
    """Write the patch: at the call's inputs where it can be, else as its output."""
    recipients = recipient_mask(
        eah, (call.queries.shape[0], call.n_heads), device=call.queries.device
    )
    if eah.donor in ("mean", "uniform", "shuffled"):
        change = control_change(eah, prompt.image_mask, patch)
        new = call.attend_with(change, prompt.token_mask)
        _replace_output(operation, new, _heads(patch.patched, recipients, call))
    elif recipients is None or call.n_kv_heads == call.n_heads:
        operation.inputs = call.broadcast(patch.donors, recipients).inputs
    else:
        operation.skip((call.attend_partly(patch.donors, recipients), None))


def recipient_mask(
    eah: EAH, batch_heads: tuple[int, int], *, device: torch.device
) -> HeadMask | None:
    """Mark the heads that receive; None for all."""
    if eah.recipients == "all":
        return None
    mask = torch.zeros(batch_heads[1], dtype=torch.bool, device=device)
    mask[list(eah.recipients)] = True
    return mask.expand(batch_heads[0], -1)


def _heads(
    patched: Tensor, recipients: HeadMask | None, call: AttentionCall
) -> HeadMask:
    rows = patched.unsqueeze(1).expand(-1, call.n_heads)
    return rows if recipients is None else rows & recipients


def _replace_output(operation: Any, new: Tensor, change: HeadMask) -> None:
    output = operation.output
    mixed = torch.where(change[:, None, :, None], new, output[0])
    operation.output = (mixed, *output[1:])


def control_change(
    eah: EAH, image_mask: ColumnMask, patch: LayerPatch
) -> Callable[[PatternBlock], Tensor]:
    """Make the map from a block of the model's pattern to the control's."""
    if eah.donor == "mean":
        return lambda block: mean_pattern(block.weights)
    if eah.donor == "uniform":

        def even(block: PatternBlock) -> Tensor:
            image = image_mask[:, : block.weights.shape[-1]]
            return uniform_pattern(
                block.weights, image_mask=image, visible=block.visible
            )

        return even
    priority = column_priority(image_mask, layer_seed(eah, patch.layer))

    def shuffled(block: PatternBlock) -> Tensor:
        width = block.weights.shape[-1]
        return shuffled_pattern(
            block.weights,
            patch.donors,
            image_mask=image_mask[:, :width],
            visible=block.visible,
            priority=priority[:, :width],
        )

    return shuffled


def column_priority(image_mask: ColumnMask, seed: int | list[int]) -> Tensor:
    """Draw a number for each image token, by its place among the image tokens.

    So an item's permutation does not depend on the padding of its batch.
    """
    seeds = [seed] * len(image_mask) if isinstance(seed, int) else seed
    priority = torch.zeros(image_mask.shape)
    for row, (mask, one) in enumerate(zip(image_mask.cpu(), seeds, strict=True)):
        generator = torch.Generator().manual_seed(one)
        priority[row, mask] = torch.rand(int(mask.sum()), generator=generator)
    return priority.to(image_mask.device)
