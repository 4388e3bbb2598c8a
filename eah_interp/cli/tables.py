"""Results as tables for the terminal."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.cli.app import save_figure, write_json
from eah_interp.errors import UnsupportedError
from eah_interp.files import save_bytes
from eah_interp.interventions import SinkMap
from eah_interp.report import write_report
from eah_interp.report.inspection import (
    Asked,
    Caption,
    Inspection,
    list_donor_sinks,
    list_donors,
)
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.report.tables import (
    say_condition,
    say_donors,
    say_same_token,
    say_settings,
)

SHADES = ("dim", "", "cyan", "bold yellow")
"""From no sinks to the densest third of the map."""


def show_demo(demo: Inspection) -> Iterator[RenderableType]:
    """Lay out the demo as a reader goes through it."""
    model = demo.model
    yield _title("What was run")
    yield Text(
        f"{model['name']} ({model['class']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {model['dtype']} on {model['device']})\n"
        f"{say_settings(demo.eah)}\n"
        f"Picture: {demo.subject.title}" + _say_objects(demo)
    )
    yield _title("Answers, without EAH and with it")
    yield _tabulate_answers(demo)
    yield _title("Donor head of each patched layer")
    yield _tabulate_donors(demo)
    yield _title(f"Sink density of every head, in %: {demo.asked[-1].question.prompt}")
    yield tabulate_density(demo.sink_map, donors=demo.donors)
    for one in demo.asked:
        if one.is_yes_no:
            yield _title(f"Logits of Yes and No: {one.question.prompt}")
            yield _tabulate_yes_no(one)
    if any(one.is_yes_no for one in demo.asked):
        yield Text("Below with EAH: control donors, for comparison.", style="dim")
    if demo.caption is not None and demo.caption.objects:
        yield _title("Logits of objects, where a caption is about to name one")
        yield _tabulate_objects(demo.caption)
    yield _title("What it comes to")
    for sentence in demo.verdict:
        yield Text(sentence)


def tabulate_density(
    sink_map: SinkMap, *, donors: Mapping[int, int], width: int | None = None
) -> RenderableType:
    """Lay out the density of every head, in blocks of heads that fit the screen.

    Args:
        sink_map: The densities; item 0 is shown.
        donors: Donor head of each patched layer, marked.
        width: Columns of the screen; the terminal's when None.
    """
    density = sink_map.density[0]
    n_heads = density.shape[1]
    width = Console().width if width is None else width
    fit = max((width - 7) // 5, 1)
    third = max(float(density.max()), 1e-9) / 3
    blocks: list[RenderableType] = []
    for first in range(0, n_heads, fit):
        heads = range(first, min(first + fit, n_heads))
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("layer", justify="right", style="dim")
        for head in heads:
            table.add_column(f"H{head}", justify="right", min_width=4, no_wrap=True)
        for row, layer in enumerate(sink_map.layers):
            cells = [Text(str(layer))]
            for head in heads:
                value = float(density[row, head])
                shade = SHADES[min(int(value / third) + 1, 3)] if value else SHADES[0]
                donor = donors.get(layer) == head
                mark = "*" if donor else ""
                style = "bold reverse" if donor else shade
                cells.append(Text(f"{value * 100:.0f}{mark}", style=style))
            table.add_row(*cells)
        blocks.append(table)
    marked = any(head >= 0 for head in donors.values())
    note = "* donor; " if marked else ""
    n_columns = int(sink_map.columns[0].sum())
    about = f"{note}share of the {n_columns} image columns that are vision sinks"
    if len(donors) > 1:
        about += (
            ", in the unpatched model; a later layer's donor is chosen after the patch "
            "of the earlier one"
        )
    return Group(*blocks, Text(about, style="dim"))


def tabulate_top(sink_map: SinkMap, *, k: int) -> Table:
    """Lay out the densest heads."""
    table = _table("head", "density", "sinks", right=2)
    for row in sink_map.top(k).itertuples():
        table.add_row(str(row.name), f"{row.density:.1%}", str(row.n_sinks))
    return table


def tabulate_next(sides: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Lay out the likeliest next tokens, plain beside patched."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for name in sides:
        table.add_column("without EAH" if name == PLAIN else "with EAH")
        table.add_column("logit", justify="right")
    for line in zip(*sides.values(), strict=True):
        cells: list[RenderableType] = []
        for entry in line:
            cells += [Text(repr(entry["token"])[1:-1]), f"{entry['logit']:.2f}"]
        table.add_row(*cells)
    return table


# -- the demo's tables ---------------------------------------------------------------
def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold underline")


def _table(*names: str, right: int = 0, gap: int = 2) -> Table:
    """Make a table whose last `right` columns are numbers."""
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold")
    for number, name in enumerate(names):
        is_number = number >= len(names) - right
        table.add_column(name, justify="right" if is_number else "left")
    return table


def _say_objects(demo: Inspection) -> str:
    if not demo.subject.present:
        return ""
    return f", with {', '.join(demo.subject.present)}"


def _say_truth(present: bool | None) -> str:  # noqa: FBT001 - the fact itself
    return "?" if present is None else ("Yes" if present else "No")


def _tabulate_answers(demo: Inspection) -> Table:
    table = _table("asked", "truth", "without EAH", "with EAH")
    for one in demo.asked:
        table.add_row(
            Text(one.question.prompt),
            _say_truth(one.question.present),
            Text(one.answers[PLAIN]),
            Text(one.answers[PATCHED]),
        )
    caption = demo.caption
    if caption is not None and caption.prompt not in [
        one.question.prompt for one in demo.asked
    ]:
        there = ", ".join(demo.subject.present) or "?"
        texts = (caption.answers[PLAIN], caption.answers[PATCHED])
        table.add_row(Text(caption.prompt), Text(there), *map(Text, texts))
    return table


def _tabulate_donors(demo: Inspection) -> Table:
    table = _table("asked", "donor (its sink density)")
    for one in demo.asked:
        donors = list_donors(one.reading.patches[PATCHED])
        table.add_row(Text(one.question.prompt), say_donors(donors))
    return table


def _tabulate_yes_no(one: Asked) -> Table:
    table = _table("", "donor", "says", "Yes", "No", "Yes - No", "change", right=4)
    margins = one.margins
    for name, margin in margins.items():
        patch = one.reading.patches.get(name)
        donors = "" if patch is None else say_donors(list_donors(patch))
        change = "" if name == PLAIN else f"{margin - margins[PLAIN]:+.2f}"
        says = "Yes" if margin > 0 else "No"
        if one.question.present not in (None, margin > 0):
            says += " (wrong)"
        table.add_row(
            say_condition(name),
            donors,
            says,
            f"{one.yes[name]:.2f}",
            f"{one.no[name]:.2f}",
            f"{margin:+.2f}",
            change,
        )
    return table


def _tabulate_objects(caption: Caption) -> RenderableType:
    conditions = list(caption.objects[0].logits)
    controls = [name for name in conditions if name not in (PLAIN, PATCHED)]
    table = _table(
        "object",
        "there",
        "without",
        "EAH",
        "change",
        *controls,
        right=3 + len(controls),
        gap=2 if len(controls) < 4 else 1,
    )
    near = [o for o in caption.objects if o.present or o.companion]
    rest = [o for o in caption.objects if not (o.present or o.companion)]
    if len(rest) <= 4:
        near, rest = [*near, *rest], []

    def add(name: str, there: str, logits: Mapping[str, float]) -> None:
        plain = logits[PLAIN]
        table.add_row(
            Text(name),
            there,
            f"{plain:.2f}",
            f"{logits[PATCHED]:.2f}",
            f"{logits[PATCHED] - plain:+.2f}",
            *(f"{logits[control] - plain:+.2f}" for control in controls),
        )

    for one in near:
        absent = "companion" if one.companion else "no"
        there = "yes" if one.present else absent
        add(one.object, there, one.logits)
    if rest:
        means = {name: fmean(o.logits[name] for o in rest) for name in conditions}
        add(f"{len(rest)} others", "no", means)
    where = (
        f'Logit of the first token of each name, after "{caption.answer_start}" in the '
        f'answer to "{caption.prompt}" (position {caption.position}, counted from 0). '
        "Under the controls: the change."
    )
    if rest:
        where += " Of the others: the mean."
    if any(one.companion for one in near):
        where += " A companion is absent, but often goes with what is there."
    twice = say_same_token(caption)
    return Group(table, Text(where + twice, style="dim"))


# ---- What the demo writes: its record, its figures and its page.


def record_inspection(found: Inspection, *, command: str) -> dict[str, Any]:
    """Write what was measured, but for heads, as JSON can hold it.

    Args:
        found: What was measured.
        command: The command that measured it.
    """
    subject = found.subject
    return {
        "command": command,
        "versions": dict(found.versions),
        "model": dict(found.model),
        "settings": found.eah.to_dict(),
        "picture": {
            "title": subject.title,
            "present": list(subject.present),
            "absent": list(subject.absent),
        },
        "questions": [_record_question(one) for one in found.asked],
        "caption": dataclasses.asdict(found.caption) if found.caption else None,
        "sinks": _record_sinks(found.sink_map, found.asked[-1].question.prompt),
        "verdict": list(found.verdict),
        "not_measured": list(found.remarks),
    }


def _record_question(one: Asked) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one.question),
        "position": one.reading.position,
        "answers": dict(one.answers),
        "yes": dict(one.yes),
        "no": dict(one.no),
        "yes_minus_no": one.margins,
        "donors": {
            name: list_donors(patch) for name, patch in one.reading.patches.items()
        },
    }


def _record_sinks(sink_map: SinkMap, prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "definition": sink_map.definition,
        "beta": sink_map.beta,
        "n_columns": int(sink_map.columns[0].sum()),
        "layers": list(sink_map.layers),
        "density": sink_map.density[0].tolist(),
    }


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        files: The files.
        note: Why the picture is not among them; empty where it is.
    """

    files: tuple[Path, ...]
    note: str


def save_demo(found: Inspection, folder: Path) -> Saved:
    """Write result.json, report.html, sinks.png and picture.png into a folder.

    The picture is left out, with a note, where image tokens have no known place.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
        SettingsError: If the folder cannot be written to.
    """
    from eah_interp.viz import plot_sinks

    names = ("report.html", "result.json", "sinks.png", "picture.png")
    page, result, sinks, picture = (folder / name for name in names)
    save_bytes(
        (write_json(record_inspection(found, command="demo")) + "\n").encode(), result
    )
    write_report(found, page)
    save_figure(found.sink_map.plot(donors=found.donors), sinks)
    patch = found.asked[-1].reading.patches[PATCHED]
    columns = {d.title: d.columns for d in list_donor_sinks(patch, found.sink_map)}
    try:
        drawn = plot_sinks(found.subject.image, found.span, columns=columns)
    except UnsupportedError as error:
        picture.unlink(missing_ok=True)
        note = f"{picture.name} is not drawn: {error}"
        return Saved((page, result, sinks), note)
    save_figure(drawn, picture)
    return Saved((page, result, sinks, picture), "")
