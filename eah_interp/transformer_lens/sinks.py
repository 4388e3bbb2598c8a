"""Vision sinks of a bridge's heads, from a run or from an activation cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eah_interp._types import Definition
from eah_interp.arguments import by_name
from eah_interp.errors import InputError
from eah_interp.interventions import EAH, SinkMap
from eah_interp.interventions.intervention import list_layers
from eah_interp.kernels.patterns import find_visible
from eah_interp.kernels.sinks import choose_donors, score_columns
from eah_interp.lvlm.anatomy import name_model
from eah_interp.lvlm.spans import find_spans
from eah_interp.transformer_lens.bridges import pattern_name
from eah_interp.transformer_lens.hooks import read_masks


@by_name
def score_sinks(
    source: Any,
    *,
    inputs: Mapping[str, Any],
    definition: Definition = "visible",
    beta: float | None = None,
    layers: Sequence[int] | None = None,
) -> SinkMap:
    """Score every head's vision sinks, as `eah_interp.score_sinks` does for an LVLM.

    Args:
        source: A `TransformerBridge`, which is run once, or an `ActivationCache` of a
            run that kept `hook_pattern` and `hook_attn_scores`.
        inputs: The encoding that was or is run.
        definition: How sinks are scored.
        beta: Threshold of a sink; by default the definition's.
        layers: Which layers; all that have a pattern when None.

    Returns:
        The map, as for an LVLM.

    Raises:
        InputError: If a cache lacks a pattern, or there are no image tokens.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> from eah_interp.testing import tiny_lvlm, tiny_processor
        >>> from eah_interp.transformer_lens import score_sinks, to_bridge
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> inputs = model.encode(random_image(), "a cat?")
        >>> score_sinks(to_bridge(model), inputs=inputs).density.shape
        torch.Size([1, 3, 4])
    """
    eah = EAH(definition=definition, beta=beta)
    is_cache = hasattr(source, "cache_dict")
    bridge = source.model if is_cache else source
    tokens, images = read_masks(bridge, inputs)
    if layers is None:
        layers = [n for n in range(len(bridge.blocks)) if _has_pattern(bridge, n)]
    layers = list_layers(layers)
    cache = source if is_cache else _run(bridge, inputs, layers)
    density, sinks, columns = [], [], images
    for layer in layers:
        pattern, logits = (_take(cache, name) for name in _names(layer))
        scores = score_columns(
            pattern,
            image_mask=images.to(pattern.device),
            token_mask=tokens.to(pattern.device),
            visible=_find_visible(pattern, logits),
            definition=definition,
        )
        density.append(scores.density(float(eah.beta or 0)).cpu())
        sinks.append(scores.sinks(float(eah.beta or 0)).cpu())
        columns = scores.columns.cpu()
    stacked = torch.stack(density, 1)
    return SinkMap(
        model=name_model(bridge.original_model),
        layers=tuple(layers),
        density=stacked,
        sinks=torch.stack(sinks, 1),
        columns=columns,
        donors=torch.stack([choose_donors(one) for one in stacked.unbind(1)], 1),
        spans=find_spans(bridge.original_model.config, inputs),
        definition=definition,
        beta=float(eah.beta or 0),
    )


def _find_visible(pattern: Tensor, logits: Tensor) -> Tensor:
    """Read off which keys each row may attend to.

    A bridge that shows its pattern after the fact shows the weights as logits too;
    there a key is visible if any head gives it weight.
    """
    if torch.equal(pattern, logits):
        return (pattern > 0).any(1, keepdim=True)
    return find_visible(logits)


def _names(layer: int) -> tuple[str, str]:
    return pattern_name(layer), f"blocks.{layer}.attn.hook_attn_scores"


def _has_pattern(bridge: Any, layer: int) -> bool:
    return pattern_name(layer) in bridge.hook_dict


def _run(bridge: Any, inputs: Mapping[str, Any], layers: Sequence[int]) -> Any:
    names = {name for layer in layers for name in _names(layer)}
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            inputs["input_ids"], names_filter=lambda name: name in names, **rest
        )
    return cache


def _take(cache: Any, name: str) -> Tensor:
    if name not in cache:
        msg = (
            f"the cache lacks {name}: run_with_cache without a names_filter, or with "
            "one that keeps hook_pattern and hook_attn_scores"
        )
        raise InputError(msg)
    value: Tensor = cache[name]
    return value
