"""Direct logit attribution: what every head writes towards an object's logit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eah_interp.attribution.cases.pose import Caption, as_case
from eah_interp.attribution.cases.readouts import MetricName
from eah_interp.attribution.direct.head_attribution import (
    Change,
    DirectEffects,
    HeadAttribution,
)
from eah_interp.attribution.direct.run import DirectRun, run_direct
from eah_interp.errors import NumericalError, SettingsError, UnsupportedError
from eah_interp.interventions.settings import EAH

WORST_ERROR = {torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest share of a target that components may leave unexplained, by dtype."""

WORST_ERROR_EXACT = 1e-3


def attribute_heads(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: Caption | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    patch: EAH | None = None,
    sources: bool = False,
) -> HeadAttribution:
    """Attribute an object's logit to every head, MLP and the embedding, directly.

    A component's direct effect is what it writes into the residual stream, times the
    slope of the logit there, with the scale of every norm frozen at its value (Elhage
    et al., "A Mathematical Framework for Transformer Circuits", 2021). Effects add up
    to the logit; what they leave is returned. What a head does *through* later
    components is not in it: see `patch_heads`.

    With `patch`, the same of the patched run, and the change of every head split into
    new values by the old pattern, a new pattern, and a new scale of the norms.

    Where the logits are capped (Gemma 2's `30 tanh(x / 30)`), effects are on the
    capped logit by the chord from zero: they add up to it.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: The words, such as `["boat", "fish"]`.
        metric: `"logit"`, `"logit_diff"` of two objects, or `"yes_no"`.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        patch: EAH settings of a second, patched run.
        sources: Also split every head's effect by the position that it read.

    Returns:
        Effects by target, layer and head, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, or the metric is not linear in the
            logits.
        ModelError: If a component does not write into the residual stream.
        NumericalError: If the effects do not add up to the logit.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> model = eah.load()
        >>> heads = attribute_heads(model, random_image(), objects=["fish", "boat"])
        >>> heads.plain.heads.shape, bool(heads.plain.error.max() < 1e-4)
        (torch.Size([2, 8, 8]), True)
        >>> heads.top(1)[["object", "kind"]].values.tolist()
        [['fish', 'head'], ['boat', 'head']]
    """
    if patch is not None:
        check_patch(model, patch)
    if metric == "log_prob":
        msg = (
            "a log-probability is not a sum of direct effects: expected metric="
            '"logit", "logit_diff" or "yes_no" here; exact patching takes "log_prob"'
        )
        raise SettingsError(msg)
    case = as_case(
        model,
        images,
        prompts,
        objects=objects,
        metric=metric,
        caption=caption,
        synonyms=synonyms,
    )
    if not case.readout.is_linear:
        msg = 'this case reads log-probabilities; pose it with metric="logit"'
        raise SettingsError(msg)
    plain = run_direct(model, case, None)
    plain_effects = _sum_up(model, plain, sources=sources)
    change, patched_effects, donors = None, None, {}
    if patch is not None:
        patched = run_direct(model, case, patch)
        patched_effects = _sum_up(model, patched, sources=sources)
        change = _split_change(plain, patched)
        assert patched.patch is not None
        donors = {p.layer: p.donors.cpu() for p in patched.patch.layers}
    return HeadAttribution(
        metric=case.readout.metric,
        targets=case.readout.targets,
        layers=tuple(plain.heads),
        blocks=tuple(_name_block(model, path) for path in plain.blocks),
        spans=model.spans(case.encoding),
        plain=plain_effects,
        patch=patch,
        patched=patched_effects,
        donors=donors,
        change=change,
    )


def check_patch(model: Any, eah: EAH) -> None:
    """Refuse settings that do not fit a model, before any forward pass.

    Raises:
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no heads.
    """
    for layer in eah.layers:
        model.anatomy.site(layer)
    eah.check_fits(n_heads=model.n_heads)


def _name_block(model: Any, path: str) -> str:
    """Name a component by layer: `L3.mlp`."""
    return "L" + path.removeprefix(f"{model.anatomy.layers}.")


def _sum_up(model: Any, run: DirectRun, *, sources: bool) -> DirectEffects:
    """Stack a run's effects, and refuse them if they do not add up."""
    by_source = None
    if sources:
        widths = {run.rows[layer].shape[-1] for layer in run.heads}
        if len(widths) > 1:
            msg = (
                f"layers read {sorted(widths)} keys, so effects by position have no "
                "common axis; leave sources out"
            )
            raise UnsupportedError(msg)
        by_source = torch.stack([run.sources(layer).cpu() for layer in run.heads], 1)
    n_targets = len(run.values)
    blocks = [effect.cpu() for effect in run.blocks.values()]
    effects = DirectEffects(
        values=run.values.cpu(),
        heads=torch.stack([effect.cpu() for effect in run.heads.values()], 1),
        blocks=torch.stack(blocks, 1) if blocks else torch.zeros(n_targets, 0),
        embedding=run.embedding.cpu(),
        between=run.between.cpu(),
        bias=run.bias.cpu(),
        sources=by_source,
    )
    worst = float(effects.error.max())
    allowed = WORST_ERROR.get(model._module.dtype, WORST_ERROR_EXACT)
    if not worst <= allowed:
        msg = (
            f"direct effects leave {worst:.2g} of a logit unexplained: expected at "
            f"most {allowed:g}; something else writes to the residual stream, or the "
            "token's logit is masked out. Use exact patching, or a float32 model"
        )
        raise NumericalError(msg)
    return effects


def _split_change(plain: DirectRun, patched: DirectRun) -> Change:
    """Split each head's change: `A v g -> A v g' -> A v' g' -> A' v' g'`."""
    rescaled, old_pattern = [], []
    for layer, output in plain.outputs.items():
        rescaled.append(patched.credit(layer, output).cpu())
        mixed = patched.mix(layer, plain.rows[layer])
        old_pattern.append(patched.credit(layer, mixed).cpu())
    before = torch.stack([effect.cpu() for effect in plain.heads.values()], 1)
    after = torch.stack([effect.cpu() for effect in patched.heads.values()], 1)
    scaled, mixed_old = torch.stack(rescaled, 1), torch.stack(old_pattern, 1)
    return Change(
        new_values=mixed_old - scaled,
        new_pattern=after - mixed_old,
        new_scale=scaled - before,
    )
