"""A study on one page of HTML, which needs no network and no other file."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from eah_interp.arguments import by_name, check_kind, check_path
from eah_interp.benchmarks.frontier import plot_frontier
from eah_interp.benchmarks.metrics import ALL
from eah_interp.benchmarks.paired import Draws, Pair
from eah_interp.benchmarks.pope import Rule
from eah_interp.errors import SettingsError
from eah_interp.files import name_file, save_bytes
from eah_interp.studies.claims import Claim, answer_claims, density_and_errors
from eah_interp.studies.scores import ScoredRows, score_rows
from eah_interp.studies.study import StudyRun
from eah_interp.studies.summary import StudySummary, tabulate_conditions
from eah_interp.studies.summing import REFERENCE, check_sum, sum_up
from eah_interp.tables import NOTHING, Table

if TYPE_CHECKING:
    from eah_interp.viz.page import Drawing

TEMPLATE = "report.html.jinja"

TASKS = {"caption": "captions", "yes_no": "yes/no answers"}

ERRORS = {
    "caption": "absent objects in the caption",
    "yes_no": "false positives (%)",
}
"""What the errors of each kind of item are, on the axis of a figure."""

DRAWN_WITH = ("numpy", "scipy")
"""Packages that the page's numbers depend on, beside those of the study."""


@by_name
def report(
    run: StudyRun,
    out: str | Path,
    *,
    reference: str = REFERENCE,
    partial: bool = False,
    draws: Draws | None = None,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    rule: Rule = "pope",
    claims: bool | None = None,
) -> Path:
    """Write a study's report: one HTML file, whole or not at all.

    What was compared, and what came of it; figures; values and changes with intervals;
    tests; those of the paper's four claims that the study bears on; answers that
    changed; settings, versions and the manifest's hash.

    Args:
        run: The study.
        out: The file.
        reference: As for `summarise`.
        partial: As for `summarise`; the page says so.
        draws: As for `summarise`.
        annotations: As for `summarise`.
        synonyms: As for `summarise`.
        rule: As for `summarise`.
        claims: Whether to show the paper's four claims; when None, those of which
            the study has measured something, and of them what it has.

    Returns:
        The file.

    Raises:
        UnsupportedError: As for `summarise`.
        SettingsError: As for `summarise`, or if the file cannot be written.
        InputError: As for `summarise`.
        ExtraMissingError: If matplotlib or statsmodels is not installed.
    """
    path = check_path("out", out, error=SettingsError)
    check_sum(run, reference=reference, partial=partial)
    if claims is not None:
        check_kind(
            "claims",
            claims,
            bool,
            expected="True, False or None",
            error=SettingsError,
        )
    rows = score_rows(run, annotations=annotations, synonyms=synonyms, rule=rule)
    summary = sum_up(run, rows, reference=reference, draws=draws, rule=rule)
    answered = answer_claims(run, rows, reference=reference, draws=summary.draws)
    page = render(
        summary,
        claims=() if claims is False else _choose_claims(answered, every=bool(claims)),
        examples=find_examples(run, rows, reference=reference),
        drawings=tuple(_draw(run, rows, summary)),
        missing=sum(int(row["missing"]) for row in summary.failures),
    )
    save_bytes(page.encode(), path)
    return path


def _choose_claims(claims: tuple[Claim, ...], *, every: bool) -> tuple[Claim, ...]:
    """Leave out what a study has not measured, unless all was asked for."""
    if every:
        return claims
    measured = [
        dataclasses.replace(
            claim,
            findings=tuple(
                one for one in claim.findings if one.verdict != "not measured"
            ),
        )
        for claim in claims
    ]
    return tuple(claim for claim in measured if claim.findings)


def render(
    summary: StudySummary,
    *,
    claims: tuple[Claim, ...],
    examples: "tuple[Example, ...]",
    drawings: "tuple[Drawing, ...]",
    missing: int,
) -> str:
    """Lay out the page; whatever a study holds is shown as text.

    Args:
        summary: The numbers.
        claims: The paper's claims that are shown.
        examples: Answers that changed.
        drawings: The figures.
        missing: Rows that are not there.

    Returns:
        The page.
    """
    from eah_interp.viz.page import render_page

    template = files("eah_interp.studies").joinpath(TEMPLATE).read_text("utf-8")
    manifest = dataclasses.asdict(summary.manifest)
    return render_page(
        template,
        summary=summary,
        manifest=manifest,
        compared=_tabulate_compared(summary),
        conditions=tabulate_conditions(summary),
        facts=_tabulate_facts(summary),
        claims=[(claim, _tabulate_claim(claim)) for claim in claims],
        # The page may be mailed: where the images lie is nobody else's to know.
        examples=[
            dataclasses.replace(example, image=name_file(example.image))
            for example in examples
        ],
        drawings=drawings,
        missing=missing,
    )


def _tabulate_compared(summary: StudySummary) -> Table:
    """Lay out what was compared: conditions, items, model and metrics."""
    manifest, draws = summary.manifest, summary.draws
    counted = {
        score.metric.task: score.n for score in summary.scores if score.kind == ALL
    }
    asked = ", ".join(f"up to {n} {TASKS[task]}" for task, n in counted.items())
    metrics = dict.fromkeys(c.metric.name for c in summary.contrasts)
    names = [str(one["name"]) for one in manifest.conditions]
    facts = {
        "model": f"{manifest.model}, {manifest.dtype} on {manifest.device}",
        "items": f"{manifest.n_items}" + (f" ({asked} scored)" if asked else ""),
        "compared": f"{', '.join(n for n in names if n != summary.reference) or 'none'}"
        f"; each against {summary.reference}",
        "metrics": ", ".join(metrics) or "none: nothing to compare",
        "intervals": f"{100 * draws.level:g} %, paired bootstrap over images",
    }
    return Table(
        caption="This study",
        header=("what", "value"),
        rows=tuple(facts.items()),
        prose=True,
    )


def _tabulate_facts(summary: StudySummary) -> Table:
    fixed = dataclasses.asdict(summary.manifest)
    versions = fixed["versions"]
    facts = {
        "manifest, SHA-256": summary.manifest_hash,
        **{k: v for k, v in fixed.items() if not isinstance(v, dict | tuple)},
        **{f"version of {name}": number for name, number in versions.items()},
        **{f"summed up with {name}": version(name) for name in DRAWN_WITH},
    }
    return Table(
        caption="What the study fixes",
        header=("setting", "value"),
        rows=tuple((name, str(value)) for name, value in facts.items()),
        prose=True,
    )


def _tabulate_claim(claim: Claim) -> Table:
    return Table(
        caption=f"What was measured of claim {claim.number}",
        header=("comparison", "difference or correlation", "expected", "verdict"),
        rows=tuple(
            (one.what, str(one), one.expected if one.effect else NOTHING, one.verdict)
            for one in claim.findings
        ),
    )


def _draw(
    run: StudyRun, rows: ScoredRows, summary: StudySummary
) -> "Iterator[Drawing]":
    from eah_interp.viz.page import Drawing, embed_figure
    from eah_interp.viz.studies import plot_densities

    level = f"{100 * summary.draws.level:g} % intervals"
    marks = "filled marks: the interval lies on one side of zero"
    tasks = {"caption": "CHAIR_S", "yes_no": "false positives"}
    measured = {c.metric.name for c in summary.contrasts}
    sweep = len(summary.swept_layers) > 1
    for name in tasks.values():
        if name in measured:
            figure = summary.plot(name)
            text = f"Change of {name} against {summary.reference} by condition, {level}"
            yield Drawing(source=embed_figure(figure), text=f"{text}; {marks}.")
            if sweep:
                text = f"Change of {name} by patched layer, {level}; {marks}."
                figure = summary.plot_layers(name)
                yield Drawing(source=embed_figure(figure), text=text)
    yield from _draw_frontier(rows, summary)
    sinks = run.sinks()
    if sinks.empty:
        return
    table = density_and_errors(sinks, run.items(), rows, summary.reference)
    for task, name in tasks.items():
        own = table[table.task == task]
        if len(own):
            figure = plot_densities(
                list(own.densest), list(own.error), axis=ERRORS[task]
            )
            text = (
                f"Errors ({name}) under {summary.reference} against the density of the "
                "densest head of layers 0 and 1: dots are images, marks are means of "
                "fifths of them with 95 % intervals."
            )
            yield Drawing(source=embed_figure(figure), text=text)


def _draw_frontier(rows: ScoredRows, summary: StudySummary) -> "Iterator[Drawing]":
    """Draw recall against CHAIR_I of every condition that names anything."""
    from eah_interp.viz.page import Drawing, embed_figure

    by_name = {str(n): own for n, own in rows.captions.groupby("condition", sort=False)}
    named = {
        name: own
        for name, own in by_name.items()
        if any(map(len, own.mentions)) and any(map(len, own.truth))
    }
    if len(named) > 1:
        figure = plot_frontier(named, draws=summary.draws)
        text = (
            "Recall against CHAIR_I by condition, with intervals both ways: one "
            "that only names less lowers both."
        )
        yield Drawing(source=embed_figure(figure), text=text)


# ---- Answers that a condition changed, to be read and not only counted.


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item, answered differently under a condition.

    Attributes:
        condition: The condition.
        item: The item's name.
        image: Its image.
        prompt: What was asked.
        truth: What is true: yes or no, or the objects in the image.
        before: The answer under the reference.
        after: The answer under the condition.
        change: `"mended"` or `"broken"`: an error less, or more, than before.
    """

    condition: str
    item: str
    image: str
    prompt: str
    truth: str
    before: str
    after: str
    change: str


def find_examples(
    run: StudyRun, rows: ScoredRows, *, reference: str, most: int = 3
) -> tuple[Example, ...]:
    """List the first items that each condition mended, and that it broke.

    Args:
        run: The study.
        rows: Its answers.
        reference: What conditions are compared with.
        most: How many of each, by condition and task.

    Returns:
        The examples: not a sample, and no measure of how many there are.
    """
    answers = run.frame().set_index(["condition", "item"]).sort_index()
    found: list[Example] = []
    for condition in run.conditions:
        if condition == reference:
            continue
        for table in (rows.questions, rows.captions):
            errors = _errors(table)
            first = errors[errors.condition == reference]
            pair = Pair.of(first, errors[errors.condition == condition])
            gap = (pair.after.n_errors - pair.before.n_errors).to_numpy()
            for change, chosen in (("mended", gap < 0), ("broken", gap > 0)):
                for item in list(pair.after["item"][chosen])[:most]:
                    before = answers.loc[(reference, item)]
                    after = answers.loc[(condition, item)]
                    found.append(
                        Example(
                            condition=condition,
                            item=str(item),
                            image=str(after["image"]),
                            prompt=str(after["prompt"]),
                            truth=_truth(after),
                            before=str(before["answer"]),
                            after=str(after["answer"]),
                            change=change,
                        )
                    )
    return tuple(found)


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    keys = table[["item", "condition", "cluster"]]
    if "caption" not in table:
        return keys.assign(n_errors=1 - table.right)
    named = zip(table.mentions, table.truth, strict=True)
    counts = [len(set(mentions) - set(truth)) for mentions, truth in named]
    return keys.assign(n_errors=pd.Series(counts, table.index, dtype=int))


def _truth(row: pd.Series) -> str:
    if row["task"] == "yes_no":
        return "yes" if row["label"] else "no"
    return ", ".join(row["truth"]) or "not stated in the item"
