"""EAH as TransformerLens forward hooks."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from eah_interp._types import ColumnMask
from eah_interp.errors import InputError
from eah_interp.interventions import EAH, EAHPatch, LayerPatch
from eah_interp.interventions.donation import choose_patch, donate_pattern
from eah_interp.kernels import PatternBlock, find_visible, score_columns
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.transformer_lens.bridges import (
    find_attention,
    pattern_flows,
    pattern_name,
)
from eah_interp.transformer_lens.projections import project_patch

Hook: TypeAlias = Callable[..., Tensor | None]


class EAHHooks(list[tuple[str, Hook]]):
    """Forward hooks, as TransformerLens takes them, and what they did.

    Attributes:
        eah: The settings.
        patches: What was done in each layer, filled in by the forward pass.
    """

    def __init__(self, eah: EAH) -> None:
        """Begin without hooks."""
        super().__init__()
        self.eah = eah
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
        return EAHPatch(
            self.eah, tuple(self.patches[layer] for layer in self.eah.layers)
        )


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
    tokens, images = read_masks(bridge, inputs)
    hooks = EAHHooks(eah)
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
            hooks.patches[layer] = choose_patch(
                eah, scores, batch_heads, layer=layer, device=pattern.device
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
    """See that a prefill has the rows and tokens that the hooks were made for.

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
    new = donate_pattern(eah, block, patch, image_mask=wide.to(pattern.device))
    return new.to(pattern.dtype)
