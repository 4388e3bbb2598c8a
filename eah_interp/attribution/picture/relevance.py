"""Which patches of the picture move an object's logit, through which heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eah_interp.attribution.cases.pose import Case, as_case
from eah_interp.attribution.cases.readouts import MetricName
from eah_interp.attribution.direct.heads import check_patch
from eah_interp.attribution.direct.run import run_direct
from eah_interp.attribution.gradient.run import check_gradients
from eah_interp.attribution.picture.attention_gradient import (
    SourceRun,
    run_attention_gradient,
)
from eah_interp.attribution.picture.effects import PictureEffects
from eah_interp.attribution.picture.map import PictureAttribution
from eah_interp.errors import InputError, SettingsError
from eah_interp.interventions.settings import EAH

Method = Literal["contribution", "attention_gradient"]
"""How an image token is credited; see `attribute_patches`."""


def attribute_patches(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: str | Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    patch: EAH | None = None,
    method: Method = "contribution",
) -> PictureAttribution:
    """Credit every image token with what each head takes from it to an object's logit.

    With `y` an image token, `A` the head's pattern and `x` the position that is read:

    - `"contribution"`: the head's direct effect, split over what it reads,
      `A[x, y] * v[y] W_O s`, with `s` the frozen slope of the logit. Exact: image and
      text tokens together give the head's direct effect (`attribute_heads`), and not
      what it does through later components.
    - `"attention_gradient"`: `A[x, y] * dm/dA[x, y]`, the gradient through all later
      layers (Chefer et al., "Generic Attention-model Explainability", 2021, with both
      signs kept). A first-order estimate: its sums are no effects of anything.

    Image tokens carry what the vision tower and earlier layers moved into them, so this
    says from which *position* a head read, not which pixels mattered.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: The words, such as `["boat", "fish"]`.
        metric: What is read of them; `"log_prob"` under `"attention_gradient"` only.
        caption: An answer; objects are then read wherever it names them.
        synonyms: Other words for an object, by object.
        patch: EAH settings of a second, patched run.
        method: How image tokens are credited.

    Returns:
        Effects by target, layer, head and image token, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, the caption names no object, or
            there is no image token.
        SettingsError: If a word cannot be spelled, or the method is unknown or does not
            fit the metric.
        ModelError: If heads do not write into the residual stream, under
            `"contribution"`.
        UnsupportedError: If the model has no gradients, under `"attention_gradient"`.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = attribute_patches(eah.load(), random_image(), objects=["dog"])
        >>> found.plain.patches.shape, found.picture(0)[0].shape
        (torch.Size([1, 8, 8, 100]), torch.Size([10, 10]))
    """
    if method not in get_args(Method):
        msg = f"method must be one of {', '.join(get_args(Method))}, got {method!r}"
        raise SettingsError(msg)
    if patch is not None:
        check_patch(model, patch)
    _check_linear(method, linear=metric != "log_prob")
    case = as_case(
        model,
        images,
        prompts,
        objects=objects,
        metric=metric,
        caption=caption,
        synonyms=synonyms,
    )
    _check_linear(method, linear=case.readout.is_linear)
    if method == "attention_gradient":
        check_gradients(model)
    spans = model.spans(case.encoding)
    columns = _list_columns(case, spans)
    runs = {"plain": _split(model, case, None, method)}
    if patch is not None:
        runs["patched"] = _split(model, case, patch, method)
    effects = {name: _gather(run, columns) for name, run in runs.items()}
    return PictureAttribution(
        metric=case.readout.metric,
        method=method,
        targets=case.readout.targets,
        layers=tuple(model.anatomy.sites),
        columns=columns,
        spans=spans,
        plain=effects["plain"],
        patch=patch,
        patched=effects.get("patched"),
        donors=runs["patched"].donors if patch is not None else {},
    )


def _check_linear(method: Method, *, linear: bool) -> None:
    if method == "contribution" and not linear:
        msg = (
            "a log-probability is not a sum of direct effects: expected metric="
            '"logit", "logit_diff" or "yes_no", or method="attention_gradient"'
        )
        raise SettingsError(msg)


def _list_columns(case: Case, spans: Sequence[Sequence[Any]]) -> Tensor:
    """List the image tokens of each target's row, -1 where it has fewer."""
    rows = [
        [column for span in spans[target.row] for column in span.columns]
        for target in case.readout.targets
    ]
    for target, row in zip(case.readout.targets, rows, strict=True):
        if not row:
            msg = (
                f"row {target.row} has no image tokens: expected at least 1 for "
                f"{target.label!r}; pass an image with each prompt"
            )
            raise InputError(msg)
    columns = torch.full((len(rows), max(map(len, rows))), -1)
    for index, row in enumerate(rows):
        columns[index, : len(row)] = torch.tensor(row)
    return columns


def _split(model: Any, case: Case, eah: EAH | None, method: Method) -> SourceRun:
    if method == "attention_gradient":
        return run_attention_gradient(model, case, eah)
    run = run_direct(model, case, eah)
    donors = {} if run.patch is None else run.patch.layers
    return SourceRun(
        values=run.values.cpu(),
        sources=[run.sources(layer).cpu() for layer in run.heads],
        donors={p.layer: p.donors.cpu() for p in donors},
    )


def _gather(run: SourceRun, columns: Tensor) -> PictureEffects:
    """Keep what image tokens were credited with; text tokens in one sum."""
    there = columns >= 0
    patches, text = [], []
    for source in run.sources:  # target head key
        index = columns.clamp(min=0)
        picked = source.gather(-1, index[:, None].expand(-1, source.shape[1], -1))
        patches.append(picked * there[:, None])
        image = torch.zeros(len(source), source.shape[-1], dtype=torch.bool)
        for row, (own, real) in enumerate(zip(columns, there, strict=True)):
            image[row, own[real]] = True
        text.append(source.masked_fill(image[:, None], 0).sum(-1))
    return PictureEffects(run.values, torch.stack(patches, 1), torch.stack(text, 1))
