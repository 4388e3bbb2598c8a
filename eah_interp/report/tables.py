"""The tables of the page that stand by themselves: answers, donors, logits, heads."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from eah_interp.attribution import HeadAttribution
from eah_interp.attribution.patches import RunOrChange
from eah_interp.attribution.results import largest
from eah_interp.interventions import EAH
from eah_interp.report.inspection import (
    Asked,
    Caption,
    Inspection,
    ObjectLogit,
    list_donors,
)
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.tables import Table

RUNS: tuple[RunOrChange, ...] = ("plain", "patched", "change")
"""The two runs and their difference, in the words of every table and figure."""


# ---- Answers and donors.


TRUTHS = {None: "not stated", True: "Yes", False: "No"}


def tabulate_answers(found: Inspection) -> Table:
    """Lay out what was said, plain and patched."""
    rows = [
        (
            one.question.prompt,
            TRUTHS[one.question.present],
            one.answers[PLAIN],
            one.answers[PATCHED],
        )
        for one in found.asked
    ]
    caption = found.caption
    said = [row[0] for row in rows]
    if caption is not None and caption.answers and caption.prompt not in said:
        there = ", ".join(found.subject.present) or "not stated"
        rows.append(
            (caption.prompt, there, caption.answers[PLAIN], caption.answers[PATCHED])
        )
    return Table(
        caption="Answers in words, chosen greedily",
        header=("asked", "truth", "plain", "patched"),
        rows=tuple(rows),
        prose=True,
        notes="An answer stops at the limit of new tokens, if not before. EAH patches "
        "the prompt alone, unless steps is all.",
    )


def tabulate_donors(found: Inspection) -> Table:
    """Lay out donors by question and condition."""
    names = list(found.asked[0].reading.patches)
    rows = [
        (
            one.question.prompt,
            *(say_donors(list_donors(one.reading.patches[name])) for name in names),
        )
        for one in found.asked
    ]
    return Table(
        caption="Donor heads, and their sink density",
        header=("asked", *map(say_condition, names)),
        rows=tuple(rows),
        notes="Density: the share of the image columns that are vision sinks of that "
        "head. Where a control needs no scores, no density is measured.",
    )


def tabulate_yes_no(one: Asked) -> Table:
    """Lay out the logits of Yes and No under every condition."""
    rows = []
    for name, margin in one.margins.items():
        patch = one.reading.patches.get(name)
        says = "Yes" if margin > 0 else "No"
        if one.question.present not in (None, margin > 0):
            says += " (wrong)"
        rows.append(
            (
                say_condition(name),
                "" if patch is None else say_donors(list_donors(patch)),
                says,
                f"{one.yes[name]:.2f}",
                f"{one.no[name]:.2f}",
                f"{margin:+.2f}",
                "" if patch is None else f"{margin - one.margins[PLAIN]:+.2f}",
            )
        )
    return Table(
        caption=f"Logits of Yes and No: {one.question.prompt}",
        header=("condition", "donor", "says", "Yes", "No", "Yes - No", "change"),
        rows=tuple(rows),
        notes=f"Of the first word of the answer, position {one.reading.position} "
        "counted from 0. Below patched: control donors, for comparison. Says: the "
        "larger of the two logits.",
    )


def tabulate_next(one: Asked) -> Table:
    """Lay out the likeliest first tokens of an answer, plain beside patched."""
    sides = [one.next_tokens[name] for name in (PLAIN, PATCHED)]
    rows = []
    for rank, pair in enumerate(zip(*sides, strict=True), start=1):
        cells = [(repr(e["token"])[1:-1], f"{e['logit']:.2f}") for e in pair]
        rows.append((str(rank), *cells[0], *cells[1]))
    return Table(
        caption=f"Likeliest first tokens: {one.question.prompt}",
        header=("rank", "plain", "logit", "patched", "logit"),
        rows=tuple(rows),
    )


def say_settings(eah: EAH) -> str:
    """Write EAH's settings in a line.

    Example:
        >>> say_settings(EAH())
        'EAH: layer 1, densest donor to all heads, definition visible, beta 1, prefill'
    """
    layers = ", ".join(map(str, eah.layers))
    plural = "s" * (len(eah.layers) > 1)
    donor = eah.donor_name
    heads = "all" if eah.recipients == "all" else ", ".join(map(str, eah.recipients))
    gamma = "" if eah.gamma is None else f", gamma {eah.gamma:g}"
    return (
        f"EAH: layer{plural} {layers}, {donor} donor to {heads} heads, definition "
        f"{eah.definition}, beta {eah.beta:g}{gamma}, {eah.steps}"
    )


def say_donors(donors: Iterable[Mapping[str, Any]]) -> str:
    """Name each layer's donor, and how dense in sinks it was, if that is known.

    Example:
        >>> say_donors([{"layer": 1, "name": "L1H3", "density": 0.42, "patched": True}])
        'L1H3 (42%)'
    """
    said = []
    for one in donors:
        nobody = f"L{one['layer']}: {'no head' if one['patched'] else 'unpatched'}"
        density = "" if one["density"] is None else f" ({one['density']:.0%})"
        said.append((one["name"] or nobody) + density)
    return ", ".join(said)


def say_condition(name: str) -> str:
    """Name a condition: the two runs as every figure names them, controls by donor."""
    return "patched" if name == PATCHED else name


# ---- Logits of objects as tables.


FEW = 4
"""Up to this many objects more are listed rather than summed up."""

OBJECTS = "Logits of objects, where a caption is about to name one"


def tabulate_objects(found: Inspection) -> tuple[Table, ...]:
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
) -> Table:
    names = list(caption.objects[0].logits)
    controls = [name for name in names if name not in (PLAIN, PATCHED)]
    rows = [
        (one.object, one.token, _name_presence(one), *_cells(one.logits, controls))
        for one in listed
    ]
    there = [one for one in caption.objects if one.present]
    absent = [one for one in caption.objects if not one.present]
    for kind, group in (
        (f"mean of {len(rest)} others", rest),
        (f"mean of {len(there)} in the image", there),
        (f"mean of {len(absent)} not in it", absent),
    ):
        if len(group) > 1:
            means = {name: fmean(o.logits[name] for o in group) for name in names}
            rows.append((kind, "", "", *_cells(means, controls)))
    notes = (
        f'Logit of the first token of each name, after "{caption.answer_start}" in the '
        f'answer to "{caption.prompt}" (position {caption.position}, counted from 0). '
        "Each change is from the plain logit; controls broadcast another donor."
    )
    if any(one.companion for one in listed):
        notes += " A companion is absent, but often goes with what is there."
    return Table(
        caption=title,
        header=(
            "object",
            "token",
            "there",
            *RUNS,
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


def _name_presence(one: ObjectLogit) -> str:
    if one.present:
        return "yes"
    return "companion" if one.companion else "no"


def say_same_token(caption: Caption) -> str:
    """Warn of objects whose names begin with one token."""
    by_token: dict[str, list[str]] = {}
    for one in caption.objects:
        by_token.setdefault(one.token, []).append(one.object)
    shared = [" and ".join(names) for names in by_token.values() if len(names) > 1]
    if not shared:
        return ""
    return f" These names begin with one token, hence one logit: {'; '.join(shared)}."


# ---- Direct effects of heads as tables that can be added up by hand.


PARTS = ("new_pattern", "new_values", "new_scale")
"""What a head's change is split into; see `tabulate_heads`."""

KINDS = {
    "block": "MLPs and other blocks",
    "embedding": "embedding",
    "between": "added between layers",
    "bias": "biases",
    "remainder": "remainder (rounding)",
}
"""What is summed over, by kind; heads stand before them."""

MOST_HEADS = 10
"""Heads that have a row each; the others are summed up."""


def tabulate_heads(found: HeadAttribution, target: int) -> Table:
    """Lay out a target's logit as a sum: its largest heads, and all that is left.

    The rows add up to the last one, up to the rounding of each to four decimals.
    """
    table = found.frame()
    own = table[table["target"] == target]
    heads = own[own["kind"] == "head"].reset_index(drop=True)
    top = largest(heads, min(MOST_HEADS, len(heads)), by="change")
    rows = [
        (str(row["name"]), *(_write(row[name]) for name in (*RUNS, *PARTS)))
        for row in top.to_dict("records")
    ]
    others = heads[~heads["name"].isin(top["name"])]
    if len(others):
        rest = (_write(others[name].sum()) for name in (*RUNS, *PARTS))
        rows.append((f"{len(others)} other heads", *rest))
    for kind, title in KINDS.items():
        sums = own[own["kind"] == kind][list(RUNS)].sum()
        if kind == "remainder" or (sums != 0).any():
            rows.append((title, *(_write(sums[run]) for run in RUNS), "", "", ""))
    assert found.patched is not None
    plain, patched = (float(r.values[target]) for r in (found.plain, found.patched))
    name = found.targets[target].label
    return Table(
        caption=f"Direct effects on {name}, in logits",
        header=("component", *RUNS, "pattern", "values", "scale"),
        rows=tuple(rows),
        total=(
            f"{name}: sum",
            *(_write(value) for value in (plain, patched, patched - plain)),
            "",
            "",
            "",
        ),
        notes=f"The {len(top)} heads that EAH changes most, then all the rest: each "
        "column adds up to its last row. A head's change has three parts: it looks "
        "elsewhere (pattern), finds other things there (values), or counts "
        "differently because a later norm rescales it (scale). Effects through later "
        "components are not in it.",
    )


def _write(value: Any) -> str:
    """Write to four decimals; what rounds to nothing, but is not, by its size."""
    if pd.isna(value):
        return ""
    if 0 < abs(value) < 0.00005:
        return f"{float(value):+.0e}"
    return f"{float(value) + 0.0:+.4f}"


# ---- How the result was made.


FACTS = {
    "name": "model",
    "n_layers": "decoder layers",
    "n_heads": "query heads of a layer",
    "n_kv_heads": "key/value groups of a layer",
    "d_head": "width of a head",
    "attention": "attention backend",
    "weights": "weights, SHA-256",
}
"""What is known of the model, as a reader would name it."""

MEANINGS = {
    "layers": "decoder layers that are patched, counted from 0",
    "definition": "how a column's sink score is defined (docs/method.md)",
    "beta": "least score of a vision sink",
    "gamma": "least sink density of a densest donor; none: any",
    "donor": "whose pattern is broadcast",
    "recipients": "heads that receive it",
    "steps": "whether generated tokens are patched too",
    "seed": "of the random and shuffled donors",
    "items": "which batch items are patched",
    "head_0": "whether head 0 may donate",
}
"""What each setting of EAH means, in a few words."""


def tabulate_settings(eah: EAH) -> Table:
    """Lay out every setting of EAH, its value and its meaning."""
    return Table(
        caption="Settings of EAH",
        header=("setting", "value", "meaning"),
        rows=tuple(
            (name, _write_setting(value), MEANINGS[name])
            for name, value in eah.to_dict().items()
        ),
        prose=True,
    )


def tabulate_facts(found: Inspection) -> Table:
    """Lay out the model, the versions and the date."""
    facts = {FACTS.get(name, name): value for name, value in found.model.items()}
    facts |= {f"version of {name}": value for name, value in found.versions.items()}
    facts["date"] = found.made_at
    return Table(
        caption="Model and versions",
        header=("what", "value"),
        rows=tuple((name, str(value)) for name, value in facts.items()),
        prose=True,
    )


def _write_setting(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
