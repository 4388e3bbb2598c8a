"""Logits of objects as tables."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from eah_interp.report.grids import Grid
from eah_interp.report.inspection import Caption, Inspection, ObjectLogit
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.report.words import say_same_token

FEW = 4
"""Up to this many objects more are listed rather than summed up."""

OBJECTS = "Logits of objects, where a caption is about to name one"


def tabulate_objects(found: Inspection) -> tuple[Grid, ...]:
    """Lay out the logits of objects under every condition.

    Args:
        found: What was measured.

    Returns:
        The objects that matter and the means of the rest; where that leaves some out,
        a second table of all. None where no object's logit was read.
    """
    caption = found.caption
    if caption is None or not caption.objects:
        return ()
    asked = {one.question.object for one in found.asked}
    ordered = sorted(caption.objects, key=lambda o: (not o.present, not o.companion))
    near = [o for o in ordered if o.present or o.companion or o.object in asked]
    rest = [o for o in ordered if o not in near]
    if len(rest) <= FEW:
        return (_tabulate_objects(caption, ordered, title=OBJECTS),)
    return (
        _tabulate_objects(caption, near, title=OBJECTS, rest=rest),
        _tabulate_objects(caption, ordered, title=f"All {len(ordered)} objects"),
    )


def _tabulate_objects(
    caption: Caption,
    listed: Sequence[ObjectLogit],
    *,
    title: str,
    rest: Sequence[ObjectLogit] = (),
) -> Grid:
    names = list(caption.objects[0].logits)
    controls = [name for name in names if name not in (PLAIN, PATCHED)]
    rows = [
        (one.object, one.token, _say_presence(one), *_cells(one.logits, controls))
        for one in listed
    ]
    there = [one for one in caption.objects if one.present]
    absent = [one for one in caption.objects if not one.present]
    for kind, group in (
        (f"mean of {len(rest)} others", rest),
        (f"mean of {len(there)} in the picture", there),
        (f"mean of {len(absent)} not in it", absent),
    ):
        if len(group) > 1:
            means = {name: fmean(o.logits[name] for o in group) for name in names}
            rows.append((kind, "", "", *_cells(means, controls)))
    notes = (
        f'Logit of the first token of each name, after "{caption.answer_start}" in the '
        f'answer to "{caption.prompt}" (position {caption.position}, counted from 0). '
        "Each change is from the logit without EAH; controls broadcast another donor."
    )
    if any(one.companion for one in listed):
        notes += " A companion is absent, but often goes with what is there."
    return Grid(
        caption=title,
        header=(
            "object",
            "token",
            "there",
            "without EAH",
            "with EAH",
            "change",
            *(f"{name}: logit" for name in controls),
            *(f"{name}: change" for name in controls),
        ),
        rows=tuple(rows),
        notes=notes + say_same_token(caption),
    )


def _cells(logits: Any, controls: Iterable[str]) -> tuple[str, ...]:
    plain = logits[PLAIN]
    return (
        f"{plain:.2f}",
        f"{logits[PATCHED]:.2f}",
        f"{logits[PATCHED] - plain:+.2f}",
        *(f"{logits[name]:.2f}" for name in controls),
        *(f"{logits[name] - plain:+.2f}" for name in controls),
    )


def _say_presence(one: ObjectLogit) -> str:
    if one.present:
        return "yes"
    return "companion" if one.companion else "no"
