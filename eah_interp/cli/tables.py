"""Results laid out for a terminal, by the page's own tables where there is one."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.cli.layout import lay_out, make_columns
from eah_interp.cli.records import SUMS
from eah_interp.interventions import EAH, FoundSinks, SinkMap
from eah_interp.report.inspection import Asked, Inspection, list_donors
from eah_interp.report.reading import PATCHED, PLAIN
from eah_interp.report.tables import (
    PARTS,
    RUNS,
    say_donors,
    say_settings,
    tabulate_answers,
    tabulate_donors,
    tabulate_next,
    tabulate_objects,
    tabulate_yes_no,
)
from eah_interp.statistics import write_undetermined
from eah_interp.toy.model import INSTALL_TOYS

if TYPE_CHECKING:
    from eah_interp.studies.conditions import Condition
    from eah_interp.studies.progress import StudyProgress
    from eah_interp.studies.study_file import StudyFile
    from eah_interp.studies.summary import StudySummary


# ---- One image: the demo, a question, the sinks.


def show_demo(found: Inspection) -> Iterator[RenderableType]:
    """Lay out the demo as a reader goes through it."""
    model = found.model
    present = ", ".join(found.subject.present)
    yield _title("What was run")
    yield Text(
        f"{model['name']} ({model['class']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {model['dtype']} on {model['device']})\n"
        f"{say_settings(found.eah)}\n"
        f"Image: {found.subject.title}{f', with {present}' if present else ''}"
    )
    yield from lay_out(tabulate_answers(found))
    columns = {"asked": "asked", "patched": "donor (its sink density)"}
    yield from lay_out(tabulate_donors(found), columns=columns)
    yield _title(f"Sink density of every head, in %: {found.asked[-1].question.prompt}")
    yield tabulate_density(found.sink_map, donors=found.donors)
    for one in found.asked:
        if one.is_yes_no:
            yield from lay_out(tabulate_yes_no(one))
    for table in tabulate_objects(found)[:1]:
        changes = {
            name: name.removesuffix(": change")
            for name in table.header
            if name.endswith(": change")
        }
        columns = {name: name for name in ("object", "there", *RUNS)} | changes
        yield from lay_out(table, columns=columns)
        yield Text("Under the controls: the change.", style="dim")
    yield _title("What it comes to")
    for sentence in found.verdict:
        yield Text(sentence)
    yield from show_note(found.note)


def show_note(note: str | None) -> Iterator[RenderableType]:
    """Lay out what the model cannot know of the image, where there is something."""
    if note:
        yield Text(f"\n{note}", style="bold")


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold underline")


SHADES = ("dim", "", "cyan", "bold yellow")
"""From no sinks to the densest third of the map."""


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
    fit = max((width - 7) // 5, 1)  # five columns a head, after seven for the layer
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
            ", in the plain model; a later layer's donor is chosen after the patch "
            "of the earlier one"
        )
    return Group(*blocks, Text(about, style="dim"))


def show_answer(found: Asked, *, eah: EAH) -> Iterator[RenderableType]:
    """Lay out a question's answers, plain and patched, side by side."""
    yield Text(say_settings(eah), style="dim")
    donors = say_donors(list_donors(found.reading.patches[PATCHED]))
    yield Text(f"Donor: {donors}\n", style="dim")
    table = Table(expand=True)
    for name in ("plain", "patched"):
        table.add_column(name, ratio=1)
    table.add_row(*(Text(found.answers[run]) for run in (PLAIN, PATCHED)))
    yield table
    yield from lay_out(tabulate_next(found))
    if found.is_yes_no:
        plain, patched = (found.margins[run] for run in (PLAIN, PATCHED))
        yield Text(
            f"\nYes minus No, in logits: {plain:+.2f} plain, {patched:+.2f} "
            f"patched ({patched - plain:+.2f})"
        )


def donor_heads(donors: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return the donor head of each patched layer that has one."""
    return {d["layer"]: d["head"] for d in donors if d["head"] is not None}


def show_sinks(
    found: SinkMap,
    *,
    k: int,
    donors: Sequence[Mapping[str, Any]],
    eah: EAH,
    prompt: str,
) -> Iterator[RenderableType]:
    """Lay out the density of every head, the `k` densest, and EAH's donors."""
    about = f"{prompt} (definition {eah.definition}, beta {eah.beta:g})"
    yield Text(f"Sink density of every head, in %: {about}", style="bold")
    yield tabulate_density(found, donors=donor_heads(donors))
    yield Text(f"\nThe {k} densest heads", style="bold")
    table = make_columns("head", "density", "sinks", right=(1, 2))
    for row in found.top(k).itertuples():
        table.add_row(str(row.name), f"{row.density:.1%}", str(row.n_sinks))
    yield table
    yield Text(f"\nEAH's donor: {say_donors(donors)}")
    if eah.gamma is not None:
        n_dense = int(found.dense(eah.gamma).sum())
        yield Text(f"Dense heads (at least {eah.gamma:.0%}): {n_dense}")


def show_kinds(found: FoundSinks, *, k: int) -> Iterator[RenderableType]:
    """Lay out whose sinks the image columns are: the first `k`, with what decided."""
    yield Text("\nSinks of the vision tower and of the language model", style="bold")
    yield Text(f"{found._about()}.")
    sinks = found.frame().query("kind != 'none'")
    if not len(sinks):
        return
    table = make_columns("column", "kind", "why", "heads", right=(0, 3))
    for row in sinks.head(k).itertuples():
        cells = (row.column, row.kind, row.rule, f"{row.share:.1%}")
        table.add_row(*(Text(str(cell)) for cell in cells))
    yield table
    if len(sinks) > k:
        yield Text(f"... and {len(sinks) - k} more")


def show_attention(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out how much of each row goes to each image, and to which patches."""
    said = record["words"]
    of = "of the words of the answer" if said else "of the prompt's last token"
    yield Text(f"Attention to the image, {of}: {record['prompt']}", style="bold")
    several = len(record["images"]) > 1
    names = [*(["image"] if several else []), "head", *(["word"] if said else [])]
    table = make_columns(
        *names, "to the image", "strongest patches", right=[len(names)]
    )
    for one in record["maps"]:
        cells = [one["image"]] if several else []
        cells += [one["name"], *([one["word"]] if said else [])]
        strongest = ", ".join(map(_name_patch, one["strongest"]))
        table.add_row(*map(Text, [*cells, f"{one['share']:.1%}", strongest]))
    yield table
    empty = [i for i, words in enumerate(said or ()) if not words]
    if empty:
        yield Text(f"\nEmpty answers, of which there is no map: {empty}")
    places = "rRcC: row R and column C of the patch grid, from 0, at the upper left."
    if not record["spatial"]:
        places = (
            "Image tokens of this model are learned queries, or of a layout that is "
            "not known: they stand for no places in the image, and are named by their "
            "position in the prompt; there is no map to draw."
        )
    yield Text(f"\n{places}", style="dim")


def _name_patch(one: Mapping[str, Any]) -> str:
    weight, patch = f"{one['weight']:.1%}", one["patch"]
    if patch is None:
        return f"position {one['position']} {weight}"
    part = "" if patch["part"] == "image" else f"{patch['part']} "
    return f"{part}r{patch['row']}c{patch['column']} {weight}"


# ---- Models.


def show_models(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out what `list_models` found."""
    yield Text(
        "The embedded toys; the first is loaded when no --model is named", style="bold"
    )
    toys = make_columns("toy", "folder")
    for toy in record["toys"]:
        toys.add_row(toy["name"], toy["path"] or f"not installed: {INSTALL_TOYS}")
    yield toys
    yield Text(
        "\nFamilies with tests; any checkpoint of them loads by name", style="bold"
    )
    table = make_columns("family", "class in transformers", "eager", "SDPA", "lens")
    for column in table.columns[1:]:
        column.no_wrap = True
    for family in record["families"]:
        if family["supported"]:
            ways = ("eager", "sdpa", "transformer_lens")
            results = [family["tests"].get(way, "-") for way in ways]
            table.add_row(family["name"], family["class"], *results)
    yield table
    yield Text(
        "exact: the same donors, and logits within 1e-4, as an oracle that replaces "
        "patterns head by head (on tiny random models); lens: TransformerLens, "
        "where it has a bridge\n",
        style="dim",
    )
    yield Text("Refused", style="bold")
    for family in record["families"]:
        if not family["supported"]:
            yield Text(f"{family['class']}: {family['why']}")
    yield Text(
        "\nOther decoder-only models are examined when they are loaded, and refused "
        "with a reason where they do not fit: eah-interp models --model NAME",
        style="dim",
    )


def show_model(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Report that a checkpoint can be worked on."""
    yield Text(
        f"{record['name']} works: {record['class']}, {record['n_layers']} layers x "
        f"{record['n_heads']} heads, {record['n_kv_heads']} key/value groups; hook "
        "points run and verified."
    )


# ---- Direct effects of heads.


def show_attribution(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out a table for each object, and whether it adds up."""
    yield Text(say_settings(EAH.from_dict(record["settings"])), style="dim")
    donors = ", ".join(
        one["name"] or f"L{one['layer']}: unpatched or no head"
        for one in record["donors"]
    )
    yield Text(f"Donor: {donors}", style="dim")
    for target in record["targets"]:
        where = "first word of the answer"
        if record["caption"] is not None:
            where = f"where the caption is about to say {target['text']!r}"
        yield Text(
            f"\n{target['object']}: {where}, position {target['position']}",
            style="bold",
        )
        plain, patched = target["plain"], target["patched"]
        yield Text(
            f"logit {plain:.3f} plain, {patched:.3f} patched ({patched - plain:+.3f})"
        )
        yield _tabulate_effects(target)
    yield Text(
        "\nDirect effects, in logits; pattern + values + scale = change. "
        f"Components add up to the logit within {record['error']:.0e} of it.",
        style="dim",
    )


def _tabulate_effects(target: Mapping[str, Any]) -> Table:
    names = ("component", *RUNS, "pattern", "values", "scale")
    table = make_columns(*names, right=range(1, len(names)))
    for row in target["top"]:
        numbers = (f"{row[name]:+.3f}" for name in (*RUNS, *PARTS))
        table.add_row(row["name"], *numbers)
    table.add_section()
    for kind, sums in target["sums"].items():
        if kind != "remainder" and any(sums.values()):
            numbers = (f"{sums[name]:+.3f}" for name in RUNS)
            table.add_row(SUMS[kind], *numbers, style="dim")
    plain, patched = target["plain"], target["patched"]
    logit = (f"{value:+.3f}" for value in (plain, patched, patched - plain))
    table.add_row("logit", *logit)
    return table


# ---- Scores of files, and of the toy.


def show_pope(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out the rates of answers, and the counts that they are of."""
    score = record["score"]
    n, tp, fp, tn, fn = (score[name] for name in ("n", "tp", "fp", "tn", "fn"))
    yield Text(f"POPE, {n} answers, read by the rule {record['rule']!r}\n")
    yield _tabulate_rates(
        ("accuracy", score["accuracy"], f"{tp + tn} of {n} answers"),
        ("precision", score["precision"], f"{tp} of {tp + fp} yes"),
        ("recall", score["recall"], f"{tp} of {tp + fn} present"),
        ("F1", score["f1"], ""),
        ("yes ratio", score["yes_ratio"], f"{tp + fp} of {n} answers"),
        ("wrong yes", score["false_positives"], f"{fp} of {fp + tn} absent"),
    )
    yield Text(
        f"\nTP {tp}, FP {fp}, TN {tn}, FN {fn}. {score['n_neither']} answers have no "
        "word of yes or no; the rule counts them as yes. By their first word of yes or "
        f"no, whatever its case and signs, {record['n_turned']} answers would turn "
        "round (NO, no! and **No** count as yes by POPE's rule).",
        style="dim",
    )
    read = ", ".join(
        f"{name} {'none' if value is None else f'{value:.2f}'}"
        for name, value in record["f1_by_reading"].items()
    )
    yield Text(f"F1 by how answers are read: {read}.", style="dim")


OFTEN = 5
"""How many of the absent objects that are named most often are listed."""


def show_chair(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out the rates of captions, what they are of, and the usual suspects."""
    score = record["score"]
    yield Text(f"CHAIR, {score['n']} captions\n")
    of_captions = f"{score['n_hallucinating']} of {score['n']} captions"
    of_mentions = f"{score['n_absent']} of {score['n_mentions']} mentions"
    of_objects = f"{score['n_found']} of {score['n_truth']} objects"
    of_grams = f"{score['n_distinct_4grams']} of {score['n_4grams']} runs of 4 words"
    yield _tabulate_rates(
        ("CHAIR_S", score["chair_s"], of_captions),
        ("CHAIR_I", score["chair_i"], of_mentions),
        ("recall", score["recall"], of_objects),
        ("mentions", score["mentions"], "a caption"),
        ("objects", score["objects"], "different ones a caption"),
        ("words", score["words"], "a caption"),
        ("distinct 4-grams", score["distinct_4grams"], of_grams),
    )
    often = Counter(name for one in record["captions"] for name in one["absent"])
    if often:
        said = ", ".join(f"{name} {n}" for name, n in often.most_common(OFTEN))
        yield Text(f"\nMost often named though absent: {said}.", style="dim")
    yield Text(
        "\nShorter captions have a lower CHAIR too, and so have captions that repeat "
        "themselves: read it beside recall, objects and distinct 4-grams.",
        style="dim",
    )


def _tabulate_rates(*rates: tuple[str, float | None, str]) -> Table:
    table = make_columns("", "", "", right=(1,), header=False)
    for name, value, of in rates:
        table.add_row(name, "none" if value is None else f"{value:.1f}", of)
    return table


def show_toy(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out how much a toy hallucinates: metric by metric, a row a condition."""
    name, n_scenes = record["model"]["name"], record["scenes"]
    yield Text(f"{name}, {n_scenes} test scenes", style="bold")
    yield Text(say_settings(EAH.from_dict(record["settings"])) + "\n", style="dim")
    table = make_columns("", PLAIN, "condition", "change", "95 %", right=(1,))
    for rows in zip(*record["changes"].values(), strict=True):
        first = (rows[0]["metric"], f"{rows[0]['before']:.1f}")
        for condition, row in zip(record["changes"], rows, strict=True):
            change = f"{row['change']:+.1f}"
            if row["low"] is None:
                interval = write_undetermined(row["change"], n=n_scenes, of="scenes")
                change = ""  # it stands in the interval's column, if it is not zero
            else:
                interval = f"[{row['low']:+.1f}, {row['high']:+.1f}]"
            table.add_row(*first, condition, change, interval)
            first = ("", "")
    yield table
    yield Text(
        "\nIntervals: paired bootstrap over scenes, of this one model. False "
        "positives: 'Yes' to absent objects. A patch that only shortens captions "
        "lowers CHAIR too: read it beside recall and mentions.",
        style="dim",
    )


# ---- Studies.


def show_plan(planned: "StudyFile") -> Iterator[RenderableType]:
    """List what a study file would run."""
    record = planned.to_dict()
    tasks = ", ".join(f"{count} {task}" for task, count in record["tasks"].items())
    names = ", ".join(map(_name_steps, planned.conditions))
    yield f"{planned.path} is a study of {record['model']['name']}:"
    yield (
        f"  {record['n_items']} items ({tasks}) in {record['n_batches']} batches of up "
        f"to {planned.batch_size}"
    )
    yield f"  {len(planned.conditions)} conditions: {names}"
    yield f"  {record['n_rows']} rows in all"


def _name_steps(condition: "Condition") -> str:
    patch = condition.patch
    return condition.name if patch is None else f"{condition.name} ({patch.steps})"


def show_progress(found: "StudyProgress") -> Iterator[RenderableType]:
    """Show how much of a study is there, and what failed."""
    yield f"{found.folder}: {found.n_rows} of {found.n_wanted} rows"
    for name, count in found.by_condition.items():
        if count != found.n_items:
            yield f"  {name}: {count} of {found.n_items}"
    if found.errors:
        yield (
            f"{found.n_failed} rows have an error instead of an answer "
            "(study run --retry-failed runs their batches again):"
        )
    for error, count, example in found.errors:
        yield f"  {count} x {error} ({example})"


def show_summary(found: "StudySummary") -> Iterator[RenderableType]:
    """Lay out every table of a study's summary."""
    yield Text(found.name, style="bold")
    yield Text(found.describe(), style="dim")
    yield from (Text(f"\n{note}", style="bold") for note in found.notes)
    for table in found.tables:
        yield from lay_out(table)
