"""The tables of the page."""

from collections.abc import Iterator

from eah_interp.interventions import EAH, SinkMap
from eah_interp.report.donors import list_donors
from eah_interp.report.grids import Grid, join
from eah_interp.report.inspection import Asked, Inspection
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.report.words import say_condition, say_donors

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


def tabulate_answers(found: Inspection) -> Grid:
    """Lay out what was said, without EAH and with it."""
    rows = [
        (
            one.question.prompt,
            _say_truth(one.question.present),
            one.answers[PLAIN],
            one.answers[PATCHED],
        )
        for one in found.asked
    ]
    caption = found.caption
    said = [row[0] for row in rows]
    if caption is not None and caption.answers and caption.prompt not in said:
        there = join(found.subject.present) or "not stated"
        rows.append(
            (caption.prompt, there, caption.answers[PLAIN], caption.answers[PATCHED])
        )
    return Grid(
        caption="Answers in words, chosen greedily",
        header=("asked", "truth", "without EAH", "with EAH"),
        rows=tuple(rows),
        notes="An answer stops at the limit of new tokens, if not before. EAH patches "
        "the prompt alone, unless steps is all.",
    )


def tabulate_donors(found: Inspection) -> Grid:
    """Lay out who donated, by question and condition."""
    names = list(found.asked[0].reading.patches)
    rows = [
        (
            one.question.prompt,
            *(say_donors(list_donors(one.reading.patches[name])) for name in names),
        )
        for one in found.asked
    ]
    return Grid(
        caption="Donor heads, and their sink density",
        header=("asked", *map(say_condition, names)),
        rows=tuple(rows),
        notes="Density: the share of the image columns that are vision sinks of that "
        "head. Where a control needs no scores, no density is measured.",
    )


def tabulate_density(found: Inspection) -> Grid:
    """Lay out the density of every head in the plain model; donors have a star."""
    sink_map, donors = found.sink_map, found.donors
    n_heads = sink_map.density.shape[-1]
    rows = [
        (
            f"L{layer}",
            *(
                f"{100 * value:.0f}" + ("*" if donors.get(layer) == head else "")
                for head, value in enumerate(line)
            ),
        )
        for layer, line in zip(
            sink_map.layers, sink_map.density[0].tolist(), strict=True
        )
    ]
    return Grid(
        caption=f"Sink density in %: {found.asked[-1].question.prompt}",
        header=("layer", *(f"H{head}" for head in range(n_heads))),
        rows=tuple(rows),
        notes=_say_columns(sink_map, found.eah),
    )


def tabulate_yes_no(one: Asked) -> Grid:
    """Lay out the logits of Yes and No under every condition."""
    rows = []
    for name, margin in one.margins.items():
        patch = one.reading.patches.get(name)
        says = "Yes" if margin > 0 else "No"
        if one.question.present not in (None, margin > 0):
            says += " (wrong)"
        rows.append(
            (
                say_condition(name) if patch is None or name == PATCHED else name,
                "" if patch is None else say_donors(list_donors(patch)),
                says,
                f"{one.yes[name]:.2f}",
                f"{one.no[name]:.2f}",
                f"{margin:+.2f}",
                "" if patch is None else f"{margin - one.margins[PLAIN]:+.2f}",
            )
        )
    return Grid(
        caption=f"Logits of Yes and No: {one.question.prompt}",
        header=("condition", "donor", "says", "Yes", "No", "Yes - No", "change"),
        rows=tuple(rows),
        notes=f"Of the first word of the answer, position {one.reading.position} "
        "counted from 0. Below with EAH: control donors, for comparison. Says: the "
        "larger of the two logits.",
    )


def tabulate_next(one: Asked) -> Grid:
    """Lay out the likeliest first tokens of an answer, plain beside patched."""
    sides = [one.next_tokens[name] for name in (PLAIN, PATCHED)]
    rows = []
    for rank, pair in enumerate(zip(*sides, strict=True), start=1):
        cells = [(repr(e["token"])[1:-1], f"{e['logit']:.2f}") for e in pair]
        rows.append((str(rank), *cells[0], *cells[1]))
    return Grid(
        caption=f"Likeliest first tokens: {one.question.prompt}",
        header=("rank", "without EAH", "logit", "with EAH", "logit"),
        rows=tuple(rows),
    )


def list_settings(eah: EAH) -> Iterator[tuple[str, str, str]]:
    """List every setting of EAH, its value and its meaning."""
    for name, value in eah.to_dict().items():
        yield name, _say_value(value), MEANINGS[name]


def _say_columns(sink_map: SinkMap, eah: EAH) -> str:
    n_columns = int(sink_map.columns[0].sum())
    said = (
        f"Share of the {n_columns} image columns that are vision sinks, definition "
        f"{sink_map.definition}, beta {sink_map.beta:g}, in the unpatched model. "
        "A star marks the donor of a patched layer."
    )
    if len(eah.layers) > 1:
        said += " A later layer's donor is chosen after the patch of the earlier one."
    return said


def _say_truth(present: bool | None) -> str:  # noqa: FBT001 - the fact itself
    return "not stated" if present is None else ("Yes" if present else "No")


def _say_value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
