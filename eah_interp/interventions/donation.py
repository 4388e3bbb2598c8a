"""How a patch is planned (who donates) and applied (what is written where)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from eah_interp._types import ColumnMask, Donors, HeadMask, HeadOutputs
from eah_interp.interventions.eah import EAH, LayerPatch
from eah_interp.kernels.broadcast import broadcast_pattern
from eah_interp.kernels.patterns import PatternBlock
from eah_interp.kernels.replacements import (
    mean_pattern,
    shuffled_pattern,
    uniform_pattern,
)
from eah_interp.kernels.sinks import ColumnScores, choose_donors, stream_column_scores
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.prompt import Prompt


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
    if not eah.has_donor_head:
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
        parts = call.pattern_inputs(prompt.scored_mask)
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
    if eah.has_donor_head:
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
    *,
    recipients: HeadMask | None = None,
) -> None:
    """Write the patch: at the call's inputs where it can be, else as its output.

    Args:
        eah: The settings.
        operation: The attention call in nnsight.
        call: The same call, taken apart.
        prompt: Its tokens. Where an answer follows the prompt in this forward pass
            and only the prefill is patched, the answer's rows are left alone.
        patch: Who donates in each item.
        recipients: The heads that receive in each item; those of the settings when
            None.
    """
    if recipients is None:
        recipients = recipient_mask(
            eah, (call.queries.shape[0], call.n_heads), device=call.queries.device
        )
    rows = patched_rows(eah, prompt, call.queries.shape[2])
    if eah.remakes_pattern or call.sinks_are_weights or rows is not None:
        new = patched_outputs(eah, call, prompt, patch)
        change = heads_changed(patch.patched, recipients, n_heads=call.n_heads)
        _replace_output(operation, new, change, rows)
    elif recipients is None or call.n_kv_heads == call.n_heads:
        operation.inputs = call.broadcast(patch.donors, recipients).inputs
    else:
        operation.skip((call.attend_partly(patch.donors, recipients), None))


def patched_outputs(
    eah: EAH, call: AttentionCall, prompt: Prompt, patch: LayerPatch
) -> HeadOutputs:
    """Compute what every head would return if all of them received, in every row."""
    if eah.remakes_pattern or call.sinks_are_weights:
        change = control_change(eah, prompt.image_mask, patch)
        return call.attend_with(change, prompt.token_mask)
    return call.broadcast(patch.donors).attend()


def patched_rows(
    eah: EAH, prompt: Prompt, n_rows: int
) -> Bool[Tensor, "batch query"] | None:
    """Mark the query rows that are patched; None for all.

    A generation patches the prompt's rows, unless every step is patched; an answer
    that is read in one forward pass with its prompt is treated the same.
    """
    if eah.steps == "all" or prompt.prompt_mask is None:
        return None
    return prompt.prompt_mask[:, :n_rows]


def recipient_mask(
    eah: EAH, batch_heads: tuple[int, int], *, device: torch.device
) -> HeadMask | None:
    """Mark the heads that receive; None for all."""
    if eah.recipients == "all":
        return None
    mask = torch.zeros(batch_heads[1], dtype=torch.bool, device=device)
    mask[list(eah.recipients)] = True
    return mask.expand(batch_heads[0], -1)


def heads_changed(
    patched: Tensor, recipients: HeadMask | None, *, n_heads: int
) -> HeadMask:
    """Mark the heads whose output is replaced, in each batch item."""
    rows = patched.unsqueeze(1).expand(-1, n_heads)
    return rows if recipients is None else rows & recipients


def _replace_output(
    operation: Any, new: Tensor, change: HeadMask, rows: Tensor | None
) -> None:
    output = operation.output
    where = change[:, None, :, None]
    if rows is not None:
        where = where & rows[:, :, None, None]
    mixed = torch.where(where, new, output[0])
    operation.output = (mixed, *output[1:])


def donate_pattern(
    eah: EAH,
    block: PatternBlock,
    patch: LayerPatch,
    *,
    image_mask: ColumnMask,
) -> Tensor:
    """Replace the recipients' rows of a pattern by what is donated to them.

    Args:
        eah: The settings.
        block: Whole patterns or some rows of them, as the model computed them.
        patch: Who donates in each item.
        image_mask: True at image tokens, as wide as the pattern.

    Returns:
        The new weights, in the block's dtype.
    """
    weights = block.weights
    batch_heads = (weights.shape[0], weights.shape[1])
    recipients = recipient_mask(eah, batch_heads, device=weights.device)
    if not eah.remakes_pattern:
        return broadcast_pattern(weights, patch.donors, recipients=recipients)
    new = control_change(eah, image_mask, patch)(block)
    heads = heads_changed(patch.patched, recipients, n_heads=batch_heads[1])
    return torch.where(heads[:, :, None, None], new, weights)


def control_change(
    eah: EAH, image_mask: ColumnMask, patch: LayerPatch
) -> Callable[[PatternBlock], Tensor]:
    """Make the map from a block of the model's pattern to the donated one."""
    if not eah.remakes_pattern:
        return lambda block: broadcast_pattern(block.weights, patch.donors)
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
