"""The rows of attention patterns at the positions that are read, and no others."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eah_interp.interventions.donation import donate_pattern
from eah_interp.interventions.patches import LayerPatch
from eah_interp.interventions.settings import EAH
from eah_interp.kernels import PatternBlock, pattern_blocks
from eah_interp.lvlm.attention import AttentionCall
from eah_interp.lvlm.worker import Prompt

Rows = Float[Tensor, "place head key"]


def read_rows(
    call: AttentionCall,
    prompt: Prompt,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> PatternBlock:
    """Rebuild one query row of every head for each place.

    Args:
        call: The attention call.
        prompt: Its tokens.
        items: The batch item of each place.
        positions: The query position of each place.

    Returns:
        The rows, `[place head 1 key]`, float32: every place stands as an item of its
        own.
    """
    parts = call.pattern_inputs(prompt.token_mask)
    items, positions = items.to(call.queries.device), positions.to(call.queries.device)
    queries = parts.pop("queries")[items, :, positions].unsqueeze(2)
    keys = parts.pop("keys")
    mask, tokens = parts.pop("mask"), parts.pop("token_mask")
    if mask is None:
        place = torch.arange(keys.shape[2], device=keys.device)
        mask = (place <= positions[:, None])[:, None, None]
        if tokens is not None:
            mask = mask & tokens[items, None, None]
    else:
        wide = mask.expand(keys.shape[0], -1, -1, -1)
        mask = wide[items, :, positions].unsqueeze(2)
    sink = parts.pop("sink_logits", None)
    if sink is not None:
        wide = sink.expand(keys.shape[0], -1, call.queries.shape[2], 1)
        parts["sink_logits"] = wide[items, :, positions].unsqueeze(2)
    (block,) = pattern_blocks(queries, keys[items], mask=mask, **parts)
    return block


def donate_rows(
    eah: EAH,
    block: PatternBlock,
    patch: LayerPatch,
    prompt: Prompt,
    *,
    items: Int[Tensor, " place"],
    positions: Int[Tensor, " place"],
) -> Rows:
    """Patch the rows of `read_rows` as the forward pass is patched.

    Args:
        eah: The settings.
        block: The model's own rows.
        patch: Who donates in each batch item.
        prompt: The tokens; rows after the prompt keep their pattern in a prefill patch.
        items: The batch item of each place.
        positions: The query position of each place.

    Returns:
        The rows after the patch.
    """
    device = block.weights.device
    items = items.to(device)
    seed = eah.seed
    if not isinstance(seed, int):
        seed = tuple(seed[item] for item in items.tolist())
    of_places = replace(
        patch,
        donors=patch.donors[items],
        patched=patch.patched[items],
        density=None,
        scores=None,
    )
    images = prompt.image_mask[:, : block.weights.shape[-1]][items]
    new = donate_pattern(replace(eah, seed=seed), block, of_places, image_mask=images)
    if eah.steps == "prefill" and prompt.prompt_mask is not None:
        inside = prompt.prompt_mask[items, positions.to(device)]
        new = torch.where(inside[:, None, None, None], new, block.weights)
    return new[:, :, 0]
