"""EAH as TransformerLens forward hooks."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.arguments import by_name
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.interventions import EAH, EAHPatch, LayerPatch
from eah_interp.kernels.broadcast import broadcast_keys, broadcast_queries
from eah_interp.kernels.patterns import PatternBlock, find_visible
from eah_interp.kernels.sinks import score_columns
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.transformer_lens.bridges import (
    find_attention,
    pattern_flows,
    pattern_name,
    run,
)

# ---- EAH where a bridge discards edits of the pattern


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
    patch = eah.choose_donors(
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


Hook: TypeAlias = Callable[..., Tensor | None]


class EAHHooks(list[tuple[str, Hook]]):
    """Forward hooks, as TransformerLens takes them, and what they did.

    Attributes:
        eah: The settings.
        model: The model's name.
        patches: What was done in each layer, filled in by the forward pass.
    """

    def __init__(self, eah: EAH, model: str = "") -> None:
        """Begin without hooks."""
        super().__init__()
        self.eah = eah
        self.model = model
        self.patches: dict[int, LayerPatch] = {}

    @property
    def patch(self) -> EAHPatch:
        """Donors and densities of the last forward pass, by layer.

        Raises:
            InputError: If no forward pass has run.
        """
        missing = [layer for layer in self.eah.layers if layer not in self.patches]
        if missing:
            msg = f"no forward pass has reached layers {missing} yet; run the bridge"
            raise InputError(msg)
        layers = tuple(self.patches[layer] for layer in self.eah.layers)
        return EAHPatch(self.eah, layers, model=self.model)


@by_name
def eah_hooks(
    bridge: Any, eah: EAH | None = None, *, inputs: Mapping[str, Any]
) -> EAHHooks:
    """Make EAH's forward hooks for a bridge, for `run_with_hooks` and `bridge.hooks`.

    Where the bridge computes with what hooks write to `hook_pattern`, the pattern is
    scored and replaced there. Where it discards such edits, donors are chosen in a
    pass of its own, and the broadcast is written to the query and key projections;
    what came of it is checked in every pass. Which kind it is, is tried out.

    Args:
        bridge: A `TransformerBridge`.
        eah: The settings; `EAH()` when None.
        inputs: The encoding that the bridge will be run on: `input_ids`,
            `attention_mask`, `pixel_values`, ...

    Returns:
        Pairs of hook point and hook. `.patch` has donors and densities after a run.

    Raises:
        ModelError: If a layer does not exist or cannot be patched.
        SettingsError: If a head does not exist, or this bridge cannot do a setting.
        InputError: If there are no image tokens.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> from eah_interp.testing import tiny_lvlm, tiny_processor
        >>> from eah_interp.transformer_lens import eah_hooks, to_bridge
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> bridge, inputs = to_bridge(model), model.encode(random_image(), "a cat?")
        >>> hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
        >>> ids = inputs.pop("input_ids")
        >>> logits = bridge.run_with_hooks(ids, fwd_hooks=hooks, **inputs)
        >>> hooks.patch.donors.shape
        torch.Size([1])
    """
    eah = EAH() if eah is None else eah
    if not isinstance(eah, EAH):
        msg = (
            f"these hooks write patterns of EAH, and {eah!r} is none of its settings: "
            "TransformerLens has hooks of its own for ablations, and nnsight takes "
            "every intervention (eah_interp.intervene)"
        )
        raise SettingsError(msg)
    if eah.reads_kind != "all":
        msg = (
            f"columns={eah.columns!r}: these hooks do not look at the vision tower or "
            "at massive activations, so sinks of one kind are not known to them; use "
            "nnsight (eah_interp.intervene) for that"
        )
        raise SettingsError(msg)
    tokens, images = read_masks(bridge, inputs)
    hooks = EAHHooks(eah, name_model(bridge.original_model))
    for layer in eah.layers:
        find_attention(bridge, layer)
    eah.check_fits(n_heads=bridge.cfg.n_heads)
    for layer in eah.layers:
        if pattern_flows(bridge, layer, inputs):
            hooks += _replace_pattern(hooks, layer, tokens=tokens, images=images)
        else:
            hooks += project_patch(
                bridge, hooks, layer, inputs=inputs, tokens=tokens, images=images
            )
    return hooks


def read_masks(bridge: Any, inputs: Mapping[str, Any]) -> tuple[ColumnMask, ColumnMask]:
    """Read which positions of an encoding are tokens, and which are image tokens.

    Raises:
        InputError: If there are no `input_ids`, or no image in a row.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        msg = "expected a tensor input_ids in the inputs; pass what model.encode gives"
        raise InputError(msg)
    images = image_mask(ids, image_token_id(bridge.original_model.config))
    without = (~images.any(-1)).nonzero().flatten().tolist()
    if without:
        msg = f"rows {without} of the inputs hold no image tokens; pass an image"
        raise InputError(msg)
    mask = inputs.get("attention_mask")
    tokens = torch.ones_like(images) if mask is None else mask.bool()
    return tokens, images


def _replace_pattern(
    hooks: EAHHooks, layer: int, *, tokens: ColumnMask, images: ColumnMask
) -> list[tuple[str, Hook]]:
    """Score and replace the pattern where the bridge computes with it."""
    eah = hooks.eah
    visible: list[Tensor] = []

    def see(scores: Tensor, hook: Any) -> None:
        del hook
        visible[:] = [find_visible(scores)]

    def replace(pattern: Tensor, hook: Any) -> Tensor | None:
        del hook
        if pattern.shape[2] == pattern.shape[3]:
            check_rows(pattern, tokens)
            seen = visible[0]
            scores = None
            if eah.needs_scores:
                with torch.no_grad():
                    scores = score_columns(
                        pattern,
                        image_mask=images.to(pattern.device),
                        token_mask=tokens.to(pattern.device),
                        visible=seen,
                        definition=eah.definition,
                    )
            batch_heads = (pattern.shape[0], pattern.shape[1])
            hooks.patches[layer] = eah.choose_donors(
                scores, batch_heads, layer=layer, device=pattern.device
            )
        elif eah.steps != "all":
            return None
        elif layer not in hooks.patches:
            msg = "a decoding step came before any prompt; run the prompt first"
            raise InputError(msg)
        return _new_pattern(
            eah, pattern, visible[0], hooks.patches[layer], images=images
        )

    return [
        (f"blocks.{layer}.attn.hook_attn_scores", see),
        (pattern_name(layer), replace),
    ]


def check_rows(pattern: Tensor, tokens: ColumnMask) -> None:
    """Check that a prefill has the rows and tokens that the hooks were made for.

    Raises:
        InputError: If it has others.
    """
    found = (pattern.shape[0], pattern.shape[2])
    if found != tuple(tokens.shape):
        msg = (
            f"these hooks were made for inputs of [batch, position] "
            f"{tuple(tokens.shape)}, got {found}; make hooks for these inputs"
        )
        raise InputError(msg)


def _new_pattern(
    eah: EAH,
    pattern: Tensor,
    visible: Tensor,
    patch: LayerPatch,
    *,
    images: ColumnMask,
) -> Tensor:
    width = pattern.shape[-1]
    wide = torch.nn.functional.pad(images, (0, width - images.shape[1]))
    block = PatternBlock(slice(0, pattern.shape[2]), pattern.float(), visible)
    new = eah.donated(patch, image_mask=wide.to(pattern.device))(block)
    heads = patch.patched[:, None].expand(pattern.shape[:2])
    recipients = eah.recipient_mask(pattern)
    if recipients is not None:
        heads = heads & recipients
    return torch.where(heads[:, :, None, None], new, block.weights).to(pattern.dtype)
