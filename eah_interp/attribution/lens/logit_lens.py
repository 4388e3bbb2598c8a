"""The logit lens: what each layer's residual stream would say of an object."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eah_interp.attribution.cases.pose import Case, as_case
from eah_interp.attribution.cases.readouts import MetricName, Readout
from eah_interp.attribution.direct.heads import check_patch
from eah_interp.attribution.lens.lens_map import LensReading, LogitLens
from eah_interp.attribution.lens.streams import StreamRun, trace_streams
from eah_interp.attribution.lens.unembedding import Unembedding, find_unembedding
from eah_interp.errors import SettingsError
from eah_interp.interventions.settings import EAH
from eah_interp.lvlm.spans import ImageSpan

LOGITS_AT_ONCE = 2**25
"""How many logits are held at a time: 128 MiB of float32."""


def logit_lens(
    model: Any,
    images: object,
    prompts: object = None,
    *,
    objects: Sequence[str] = (),
    metric: MetricName = "logit",
    caption: str | Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    patch: EAH | None = None,
) -> LogitLens:
    """Read an object off the residual stream of every layer, at answer and picture.

    The stream that enters the first layer and that leaves each layer is put through
    the model's own final norm, unembedding, and whatever it does to logits after that
    (nostalgebraist, "interpreting GPT: the logit lens", 2020; on image tokens: Neo et
    al., "Towards Interpreting Visual Information Processing in Vision-Language
    Models", 2025). After the last layer, at the answer, that is the model's logit:
    checked before anything is returned.

    Early layers are not written to be read by the unembedding: a low rank there does
    not say that the object is not represented.

    Args:
        model: An LVLM.
        images: An image or images; a ready-made encoding; or a `Case` of `pose`.
        prompts: A prompt or prompts; "Describe the image." when None.
        objects: The words, such as `["boat", "fish"]`.
        metric: `"logit"`, `"logit_diff"` of two objects, or `"yes_no"`.
        caption: An answer; objects are then read wherever it names them, and at the
            image tokens.
        synonyms: Other words for an object, by object.
        patch: EAH settings of a second, patched run.

    Returns:
        Logit, rank and probability by target, layer and position, on the CPU.

    Raises:
        InputError: If images or prompts do not fit, or the caption names no object.
        SettingsError: If a word cannot be spelled, the metric is not a logit, or a
            target reads several positions.
        ModelError: If norm and unembedding do not make the model's logits of what its
            last layer returns.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image
        >>> lens = logit_lens(eah.load(), random_image(), objects=["dog"])
        >>> lens.points[:2], tuple(lens.plain.logit.shape)  # answer, 100 patches
        (('embedding', 'L0'), (1, 9, 101))
        >>> lens.top(1)["place"].tolist()
        ['image']
    """
    if patch is not None:
        check_patch(model, patch)
    if metric == "log_prob":
        msg = (
            "the lens reads one position at a time, and a log-probability of a whole "
            'word several: expected metric="logit", "logit_diff" or "yes_no"; the '
            "result has the probability of the first token"
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
    _check_positions(case.readout)
    spans = model.spans(case.encoding)
    places = list_places(case.readout, spans)
    plain, _ = _read_run(model, case, None, places)
    patched: LensReading | None = None
    donors: dict[int, Tensor] = {}
    if patch is not None:
        patched, donors = _read_run(model, case, patch, places)
    return LogitLens(
        metric=case.readout.metric,
        targets=case.readout.targets,
        points=("embedding", *(f"L{i}" for i in range(model.anatomy.n_layers))),
        positions=places,
        spans=spans,
        plain=plain,
        patch=patch,
        patched=patched,
        donors=donors,
    )


def list_places(readout: Readout, spans: Sequence[Sequence[ImageSpan]]) -> Tensor:
    """List where each target is looked for: its own position, then image tokens.

    Returns:
        Positions, `[target place]`; -1 where a target's row has fewer.
    """
    rows = [
        [target.position, *(c for span in spans[target.row] for c in span.columns)]
        for target in readout.targets
    ]
    places = torch.full((len(rows), max(map(len, rows))), -1)
    for index, row in enumerate(rows):
        places[index, : len(row)] = torch.tensor(row)
    return places


def _check_positions(readout: Readout) -> None:
    if not readout.is_linear:
        msg = 'this case reads log-probabilities; pose it with metric="logit"'
        raise SettingsError(msg)
    for index, target in enumerate(readout.targets):
        read = sorted(set(readout.positions[readout.owner == index].tolist()))
        if read != [target.position]:
            msg = (
                f"target {target.label!r} reads positions {read}: expected one "
                "position for each target of a lens"
            )
            raise SettingsError(msg)


def _read_run(
    model: Any, case: Case, eah: EAH | None, places: Tensor
) -> tuple[LensReading, dict[int, Tensor]]:
    """Run a case, and read every target at its places after every layer."""
    readout = case.readout
    there = places >= 0
    rows = readout.target_rows[:, None].expand_as(places)[there]
    pairs, inverse = torch.unique(
        torch.stack([rows, places[there]], 1), dim=0, return_inverse=True
    )
    where = torch.zeros_like(places)
    where[there] = inverse
    run = trace_streams(model, case, eah, items=pairs[:, 0], positions=pairs[:, 1])
    end = _find_end(model, case, run, where)
    shape = (len(readout.targets), len(run.points), places.shape[1])
    reading = LensReading(
        logit=torch.full(shape, math.nan),
        rank=torch.full(shape, -1),
        probability=torch.full(shape, math.nan),
    )
    for point, stream in enumerate(run.points):
        found = _read_stream(end, stream, readout, rows=pairs[:, 0])
        for name, values in found.items():
            picked = torch.stack([values[t, where[t]] for t in range(shape[0])])
            getattr(reading, name)[:, point][there] = picked[there]
    return reading, run.donors


def _find_end(model: Any, case: Case, run: StreamRun, where: Tensor) -> Unembedding:
    """Find the unembedding, checked at the places that the readout reads."""
    last = run.points[-1][where[case.readout.owner, 0].to(run.points[-1].device)]
    return find_unembedding(model, raw=run.raw, final=run.final, last=last)


def _read_stream(
    end: Unembedding, stream: Tensor, readout: Readout, *, rows: Tensor
) -> dict[str, Tensor]:
    """Read every target off one layer's stream, some places at a time.

    Returns:
        Logit, rank and probability, `[target place]` each; only places of a target's
        own row are of use.
    """
    n_targets = len(readout.targets)
    n_places = len(stream)
    found = {
        "logit": torch.zeros(n_targets, n_places),
        "rank": torch.zeros(n_targets, n_places, dtype=torch.long),
        "probability": torch.zeros(n_targets, n_places),
    }
    step = max(1, LOGITS_AT_ONCE // len(end.off))
    for start in range(0, n_places, step):
        part = slice(start, start + step)
        logits = end.read(stream[part])
        total = logits.logsumexp(-1)
        for t, target in enumerate(readout.targets):
            if not (rows[part] == target.row).any():
                continue
            own = readout.owner == t
            weights = readout.weights[own].to(logits.device)
            picked = logits[:, readout.tokens[own].to(logits.device)]
            named = picked[:, weights > 0]
            best = named.amax(-1, keepdim=True)
            found["logit"][t, part] = (picked * weights).sum(-1).cpu()
            found["rank"][t, part] = (1 + (logits > best).sum(-1)).cpu()
            found["probability"][t, part] = (named - total[:, None]).exp().sum(-1).cpu()
    return found
