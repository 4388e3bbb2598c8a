"""Image-column scores of whole layers, plain and under EAH."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eah_interp.attribution.direct.heads import check_patch
from eah_interp.attribution.patterns.broadcast_scores import BroadcastScores, ScoreRun
from eah_interp.attribution.patterns.visit import (
    Visit,
    check_unedited,
    open_question,
    visit_layers,
)
from eah_interp.errors import UnsupportedError
from eah_interp.interventions.settings import EAH
from eah_interp.kernels import ColumnScores


def score_broadcast(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    eah: EAH | None = None,
    layers: Sequence[int] | None = None,
) -> BroadcastScores:
    """Score every head's image columns in the plain run and under EAH.

    The plain run has each head's own pattern, the patched run the pattern that it
    attends with: in a patched layer, what was donated. Patterns are streamed.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        eah: Settings; `EAH()` when None. Scores are by their definition and threshold.
        layers: Decoder layers to look at; the patched ones when None.

    Returns:
        Scores, thresholds and donors, on the CPU.

    Raises:
        InputError: If images or prompts do not fit.
        SettingsError: If a layer or head does not exist.
        ModelError: If a layer has no heads.
        UnsupportedError: If the model is a patched twin, or layers read unlike keys.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> found = score_broadcast(eah.load(), random_image())
        >>> tuple(found.plain.scores.shape)[:3], found.frame()["donor"].any()
        ((1, 1, 8), np.True_)
    """
    check_unedited(model)
    settings = EAH() if eah is None else eah
    check_patch(model, settings)
    chosen = tuple(sorted(set(settings.layers if layers is None else layers)))
    for layer in chosen:
        model.anatomy.site(layer)
    encoding, prompt_mask = open_question(model, images, prompts)
    runs: list[ScoreRun] = []
    donors: dict[int, Tensor] = {}
    columns: list[Tensor] = []
    for side in (None, settings):
        found: list[ColumnScores] = []

        def look(visit: Visit, found: list[ColumnScores] = found) -> None:
            found.append(visit.score(settings))

        donors = visit_layers(
            model, encoding, look, layers=chosen, eah=side, prompt_mask=prompt_mask
        )
        runs.append(_stack(found, float(settings.beta or 0)))
        columns = [one.columns for one in found]
    return BroadcastScores(
        eah=settings,
        layers=chosen,
        columns=columns[0].cpu(),
        spans=model.spans(encoding),
        plain=runs[0],
        patched=runs[1],
        donors=donors,
    )


def _stack(found: Sequence[ColumnScores], beta: float) -> ScoreRun:
    widths = {one.scores.shape[-1] for one in found}
    if len(widths) > 1:
        msg = (
            f"the layers read {sorted(widths)} keys, so their scores have no common "
            "axis: expected layers that read alike; look at them one by one"
        )
        raise UnsupportedError(msg)
    scores = torch.stack([one.scores for one in found], 1).cpu()
    units = torch.stack([one.unit.expand_as(one.scores) for one in found], 1).cpu()
    return ScoreRun(scores=scores, threshold=beta * units)
