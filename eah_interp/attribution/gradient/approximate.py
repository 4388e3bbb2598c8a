"""Gradient approximations of what patching every head would do, and how good they are.

Exact patching runs every head; a gradient says it of all heads at once, to first order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from eah_interp.attribution.cases.batches import check_batch_size
from eah_interp.attribution.cases.pose import as_case
from eah_interp.attribution.cases.readouts import MetricName
from eah_interp.attribution.gradient.approximations import (
    draw_heads,
    integrate,
    linearise,
    move_heads,
    patch_sample,
)
from eah_interp.attribution.gradient.head_approximation import HeadApproximation, Method
from eah_interp.attribution.gradient.run import (
    check_gradients,
    run_with_gradients,
    with_gradients,
)
from eah_interp.attribution.patching.head_patching import What
from eah_interp.attribution.patching.recording import record
from eah_interp.attribution.patching.replay import prepare_replay
from eah_interp.attribution.patching.sides import (
    Side,
    check_side,
    gather,
    name_side,
    pose_alike,
    split_items,
    take_item,
)
from eah_interp.errors import SettingsError


def approximate_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    source: Side,
    target: Side = "plain",
    source_images: object = None,
    source_prompts: object = None,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: str | Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    what: What = "output",
    method: Method = "attribution_patching",
    n_steps: int = 8,
    check: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> HeadApproximation:
    """Approximate what patching each head would do, from gradients, and check some.

    `"attribution_patching"` (Nanda 2023; Syed et al., arXiv:2310.10348): the change of
    a head's output between the runs, times the target's gradient there in the target
    run, summed over positions and width. Two forward passes and one backward pass for
    each target of an item, whatever the number of heads. `"integrated_gradients"`
    (Sundararajan et al., arXiv:1703.01365; for patching Hanna et al.,
    arXiv:2403.17806): the gradient's mean along the way from the target's to the
    source's outputs of a whole layer, earlier layers as in the target run; a layer's
    heads sum to the exact effect of patching them all, which is returned. One head's
    part in that is not quite what it would do alone.

    Gradients go through everything that comes after a head: norms, MLPs, later
    patterns. Choices are constants to them: the donors of an EAH run, and which
    experts a router picks, whose jumps no gradient sees. A sample of heads is patched
    exactly as well, and `.agreement` says how good the approximation is there.

    Needs a backward pass: eager or SDPA attention, or FlashAttention on its devices;
    weights that are not quantised. Memory is that of a forward pass that keeps its
    activations: of one item, and for integrated gradients of `batch_size` copies from
    the layer on.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        source: The run that activations are taken from: `"plain"`, or EAH settings.
        target: The run that they are put into, likewise.
        source_images: Other pictures for the source, whose tokens stand where those
            of `images` do.
        source_prompts: Other prompts for the source, of the same length.
        objects: The words, such as `["boat", "fish"]`.
        metric: What is read; see `pose`.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        what: `"output"`: what the head returns. `"pattern"`: the source's attention
            pattern over the target's values (the gradient of the pattern times its
            change; no pattern is written out). `"values"`: the target's pattern over
            the source's values.
        method: How effects are approximated.
        n_steps: Points of the integral, by the rule of Gauss and Legendre.
        check: How many heads are patched exactly, drawn at random: the same for all
            targets. 0 for none, at the price of an approximation nobody has checked.
        seed: Of that draw.
        batch_size: Most copies of an item in one forward pass; halved, with a warning,
            when memory runs out.

    Returns:
        Approximate effects by target, layer and head, and exact ones of some heads, on
        the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            positions of source and target do not correspond.
        SettingsError: If a word cannot be spelled, or a mode, run or number is
            impossible.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model has no gradients (quantised weights, inference
            mode, attention without a backward pass), or its items are not independent.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> model, image = eah.load(), random_image()
        >>> found = approximate_heads(model, image, objects=["dog"], source=eah.EAH())
        >>> found.approximate.shape, found.agreement.n_checked
        (torch.Size([1, 8, 8]), 16)
        >>> bool(found.agreement.correlation > 0.8)
        True
    """
    _check_numbers(what=what, method=method, n_steps=n_steps, check=check)
    check_batch_size(batch_size)
    check_side(model, source, name="source")
    check_side(model, target, name="target")
    check_gradients(model)
    asked: dict[str, Any] = {
        "objects": objects,
        "metric": metric,
        "caption": caption,
        "synonyms": synonyms,
    }
    case = other = as_case(model, images, prompts, **asked)
    if source_images is not None or source_prompts is not None:
        pictures = images if source_images is None else source_images
        words = prompts if source_prompts is None else source_prompts
        other = pose_alike(model, case, pictures, words, **asked)
    sample = draw_heads(model, check, seed=seed)
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for item, indices, (given, wanted) in split_items(case, source, target):
        taken = record(model, take_item(other, item), given)
        ours = take_item(case, item)
        found: dict[str, Tensor] = {}
        if method == "integrated_gradients":
            into = record(model, ours, wanted)
            moved = move_heads(taken, into, what)
            replay = prepare_replay(model, into)
            found |= integrate(model, replay, moved, n_steps, batch_size)
        else:
            with with_gradients(model):
                run = run_with_gradients(model, ours, wanted)
                into = run.recording
                moved = move_heads(taken, into, what)
                found["approximate"] = linearise(run, moved)
            del run  # its graph
        found |= {"values": into.values, "source_values": taken.values}
        if sample:
            whole = into if into.leaving else record(model, ours, wanted)
            found["exact"] = patch_sample(model, whole, moved, sample, batch_size)
        for name, tensor in found.items():
            parts.setdefault(name, []).append((indices, tensor))
    n_targets = len(case.readout.targets)
    gathered = {name: gather(part, n_targets) for name, part in parts.items()}
    unchecked = torch.full_like(gathered["approximate"], torch.nan)
    return HeadApproximation(
        metric=case.readout.metric,
        targets=case.readout.targets,
        layers=tuple(sorted(model.anatomy.sites)),
        method=method,
        what=what,
        source=name_side(source, pictured=other is not case),
        target=name_side(target),
        source_patch=None if source == "plain" else source,
        target_patch=None if target == "plain" else target,
        n_steps=n_steps if method == "integrated_gradients" else None,
        values=gathered["values"],
        source_values=gathered["source_values"],
        approximate=gathered["approximate"],
        exact=gathered.get("exact", unchecked),
        whole_layers=gathered.get("whole_layers"),
    )


def _check_numbers(*, what: str, method: str, n_steps: int, check: int) -> None:
    for name, given, known in (("what", what, What), ("method", method, Method)):
        if given not in get_args(known):
            msg = f"{name} must be one of {', '.join(get_args(known))}, got {given!r}"
            raise SettingsError(msg)
    for name, number, least in (("n_steps", n_steps, 1), ("check", check, 0)):
        if isinstance(number, bool) or number < least:
            msg = f"{name} must be {least} or more, got {number}"
            raise SettingsError(msg)
