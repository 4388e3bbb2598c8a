"""Ablation: what becomes of an object when a head returns nothing, or its mean."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eah_interp.attribution.cases.batches import check_batch_size
from eah_interp.attribution.cases.pose import as_case
from eah_interp.attribution.cases.readouts import MetricName
from eah_interp.attribution.patching.head_patching import HeadPatching
from eah_interp.attribution.patching.nodes import NodeName, find_nodes
from eah_interp.attribution.patching.recording import Recording, record
from eah_interp.attribution.patching.sides import (
    Side,
    check_side,
    gather,
    name_side,
    split_items,
    take_item,
)
from eah_interp.attribution.patching.variants import Given, measure_variants
from eah_interp.errors import SettingsError
from eah_interp.lvlm.attention import AttentionCall

Ablation = Literal["zero", "mean"]
"""What a head returns instead: nothing; or its mean over the item's positions."""


def ablate_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    how: Ablation = "zero",
    target: Side = "plain",
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: str | Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    heads: Sequence[NodeName] | None = None,
    together: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> HeadPatching:
    """Ablate each head, and measure what becomes of an object.

    `"zero"`: the head returns nothing. `"mean"`: it returns, at every position, the
    mean of what it returned at this item's positions (images and text, no padding),
    which leaves the stream nearer to what later layers are used to. In a patched run
    the donors stay those that it chose with all its heads.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        how: What the head returns instead.
        target: The run in which heads are ablated: `"plain"`, or EAH settings.
        objects: The words, such as `["boat", "fish"]`.
        metric: What is read; see `pose`.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        heads: `(layer, head)`, `"L3H7"`, or another component, `"L3.mlp"`; every
            head of every layer when None.
        together: Ablate all of them at once, instead of one at a time.
        batch_size: Most copies in one forward pass; halved, with a warning, when
            memory runs out.
        progress: Whether to show a bar.

    Returns:
        Effects by target and ablation (ablated minus not), on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or a head, mode or run does not
            exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If items of a batch are not independent in this model.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = ablate_heads(
        ...     eah.load(), random_image(), objects=["dog"], heads=["L3H7", "L3.mlp"]
        ... )
        >>> found.source, found.effects.shape
        ('zero', torch.Size([1, 2]))
    """
    if how not in get_args(Ablation):
        msg = f"how must be one of {', '.join(get_args(Ablation))}, got {how!r}"
        raise SettingsError(msg)
    check_batch_size(batch_size)
    check_side(model, target, name="target")
    nodes = find_nodes(model, heads)
    case = as_case(
        model,
        images,
        prompts,
        objects=objects,
        metric=metric,
        caption=caption,
        synonyms=synonyms,
    )
    variants = [nodes] if together else [(node,) for node in nodes]
    effects, values = [], []
    for item, indices, (settings,) in split_items(case, target):
        run = record(model, take_item(case, item), settings)
        found = measure_variants(
            model,
            run,
            variants,
            _average(run, how),
            batch_size=batch_size,
            progress=progress,
            label="ablations",
        )
        effects.append((indices, found.T))
        values.append((indices, run.values))
    n_targets = len(case.readout.targets)
    return HeadPatching(
        metric=case.readout.metric,
        targets=case.readout.targets,
        what="output",
        source=how,
        target=name_side(target),
        source_patch=None,
        target_patch=None if target == "plain" else target,
        patches=tuple("+".join(node.name for node in each) for each in variants),
        values=gather(values, n_targets),
        source_values=None,
        effects=gather(effects, n_targets),
    )


def _average(run: Recording, how: Ablation) -> Given:
    """Set nodes to nothing, or to their mean over a run's positions."""
    assert run.prompt is not None
    tokens = run.prompt.token_mask[0]

    def instead(output: Tensor, lines: Tensor) -> Tensor:
        """Replace an output whose lines, `[position ...]`, are given."""
        if how == "zero":
            return torch.zeros_like(output)
        mean = lines[tokens[: len(lines)]].float().mean(0, keepdim=True)
        return mean.expand_as(lines).reshape(output.shape).to(output.dtype)

    def heads(layer: int, call: AttentionCall) -> Tensor:
        del call
        return instead(run.heads[layer], run.heads[layer][0])

    blocks = {
        path: instead(output, output.reshape(-1, output.shape[-1]))
        for path, output in run.blocks.items()
    }
    return Given(heads, blocks)
