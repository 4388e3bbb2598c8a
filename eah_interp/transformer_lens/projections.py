"""EAH where a bridge discards edits of the pattern: at the query and key projections.

Every head that gets the donor's projected query and key gets its pattern, wherever
rotary embedding and norms are the same for every head. That is checked in every pass,
on the pattern that the bridge shows afterwards.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import SettingsError, UnsupportedError
from eah_interp.interventions import LayerPatch
from eah_interp.interventions.donation import choose_patch
from eah_interp.kernels import (
    broadcast_keys,
    broadcast_queries,
    find_visible,
    score_columns,
)
from eah_interp.transformer_lens.bridges import pattern_name, run

if TYPE_CHECKING:
    from eah_interp.transformer_lens.hooks import EAHHooks, Hook

TOLERANCE = 1e-4
"""Largest difference of a weight from the donor's that is still rounding."""


def project_patch(
    bridge: Any,
    hooks: "EAHHooks",
    layer: int,
    *,
    inputs: Mapping[str, Any],
    tokens: ColumnMask,
    images: ColumnMask,
) -> "list[tuple[str, Hook]]":
    """Choose a layer's donors in a pass of its own, and make the hooks that broadcast.

    Args:
        bridge: The bridge.
        hooks: Hooks of earlier layers, active in that pass.
        layer: The layer.
        inputs: The encoding.
        tokens: Which positions are tokens.
        images: Which are image tokens.

    Returns:
        Hooks on the query and key projections, and one that checks the pattern.

    Raises:
        SettingsError: If the settings need an edit of the pattern itself.
    """
    eah = hooks.eah
    if eah.remakes_pattern or eah.recipients != "all":
        wish = f"donor={eah.donor!r}, recipients={eah.recipients!r}"
        msg = (
            f"this bridge discards edits of the pattern in layer {layer}: it can give "
            f"a head's pattern to all heads, but not {wish}; use nnsight "
            "(eah_interp.intervene) for that"
        )
        raise SettingsError(msg)
    pattern, visible = _observe(bridge, hooks, layer, inputs=inputs)
    scores = score_columns(
        pattern,
        image_mask=images,
        token_mask=tokens,
        visible=visible,
        definition=eah.definition,
    )
    patch = choose_patch(
        eah,
        scores if eah.needs_scores else None,
        (pattern.shape[0], pattern.shape[1]),
        layer=layer,
        device=pattern.device,
    )
    items = torch.arange(len(pattern), device=pattern.device)
    wanted = pattern[items, patch.donors.clamp(min=0)]
    hooks.patches[layer] = patch
    return _write(hooks, layer, patch=patch, wanted=wanted, n_heads=pattern.shape[1])


def _observe(
    bridge: Any, hooks: "EAHHooks", layer: int, *, inputs: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return a layer's pattern, and what its mask lets every row see."""
    patterns: list[Tensor] = []
    masks: list[Tensor | None] = []

    def keep(pattern: Tensor, hook: Any) -> None:
        del hook
        patterns.append(pattern)

    def keep_mask(module: Any, args: Any, kwargs: Any) -> None:
        del module, args
        masks.append(kwargs.get("attention_mask"))

    attention = bridge.blocks[layer].attn
    handle = attention.register_forward_pre_hook(keep_mask, with_kwargs=True)
    try:
        run(bridge, inputs, hooks=[*hooks, (pattern_name(layer), keep)], until=layer)
    finally:
        handle.remove()
    pattern, mask = patterns[0], masks[0]
    if mask is None or mask.ndim != 4:
        return pattern, None
    size = pattern.shape[-1]
    seen = find_visible(mask[..., :size])
    return pattern, seen.expand(pattern.shape[0], -1, size, size)


def _write(
    hooks: "EAHHooks",
    layer: int,
    *,
    patch: LayerPatch,
    wanted: Tensor,
    n_heads: int,
) -> "list[tuple[str, Hook]]":
    n_items, n_rows = wanted.shape[:2]

    def heads_first(value: Tensor) -> Tensor:
        if value.ndim != 4:
            msg = (
                f"layer {layer}'s projection is shown as {tuple(value.shape)}: "
                "expected [batch, pos, head, d_head]; use nnsight "
                "(eah_interp.intervene)"
            )
            raise UnsupportedError(msg)
        decodes = value.shape[1] == 1 and n_rows > 1
        if decodes and hooks.eah.steps == "prefill":
            msg = (
                "a decoding step: this bridge keeps the broadcast keys in its cache, "
                'so a prefill patch cannot end with the prompt; use steps="all", or '
                "nnsight (eah_interp.edit)"
            )
            raise UnsupportedError(msg)
        if value.shape[0] != n_items or not (decodes or value.shape[1] == n_rows):
            msg = (
                "these hooks were made for inputs of [batch, position] "
                f"{(n_items, n_rows)}, got {tuple(value.shape[:2])}; make hooks for "
                "these inputs"
            )
            raise UnsupportedError(msg)
        return value.transpose(1, 2)

    def write_queries(value: Tensor, hook: Any) -> Tensor:
        del hook
        return broadcast_queries(heads_first(value), patch.donors).transpose(1, 2)

    def write_keys(value: Tensor, hook: Any) -> Tensor:
        del hook
        keys = heads_first(value)
        return broadcast_keys(keys, patch.donors, n_heads=n_heads).transpose(1, 2)

    def check(pattern: Tensor, hook: Any) -> None:
        del hook
        if pattern.shape[2] != pattern.shape[3]:
            return
        rows = patch.patched
        gap = (pattern[rows] - wanted[rows, None]).abs().amax() if rows.any() else 0.0
        if float(gap) > TOLERANCE:
            msg = (
                f"layer {layer} does not attend like its donor after the patch "
                f"(weights are up to {float(gap):.2g} apart): these are other inputs "
                "than the hooks were made for, or heads differ beyond their "
                "projections; use nnsight (eah_interp.intervene)"
            )
            raise UnsupportedError(msg)

    return [
        (f"blocks.{layer}.attn.q.hook_out", write_queries),
        (f"blocks.{layer}.attn.k.hook_out", write_keys),
        (pattern_name(layer), check),
    ]
