"""A study on one page of HTML, which needs no network and no other file."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from eah_interp.arguments import check_path
from eah_interp.benchmarks.pope import Rule
from eah_interp.errors import SettingsError
from eah_interp.files import name_file, save_bytes
from eah_interp.studies.claims import Claim, answer_claims, density_and_errors
from eah_interp.studies.contrasts import Draws, Pair
from eah_interp.studies.scores import ScoredRows, score_rows
from eah_interp.studies.study import StudyRun
from eah_interp.studies.summary import NOTHING, StudySummary
from eah_interp.studies.summing import REFERENCE, check_sum, sum_up
from eah_interp.tables import Table

if TYPE_CHECKING:
    from eah_interp.viz.page import Drawing

TEMPLATE = "report.html.jinja"

ERRORS = {
    "caption": "absent objects in the caption",
    "yes_no": "false positives (%)",
}
"""What the errors of each kind of item are, on the axis of a figure."""

DRAWN_WITH = ("numpy", "scipy")
"""Packages that the page's numbers depend on, beside those of the study."""


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
) -> Path:
    """Write a study's report: one HTML file, whole or not at all.

    Settings, versions and the manifest's hash; failures; values and changes with
    intervals; tests; the paper's four claims; figures; and answers that changed.

    Args:
        run: The study.
        out: The file.
        reference: As for `summarise`.
        partial: As for `summarise`; the page says so.
        draws: As for `summarise`.
        annotations: As for `summarise`.
        synonyms: As for `summarise`.
        rule: As for `summarise`.

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
    rows = score_rows(run, annotations=annotations, synonyms=synonyms, rule=rule)
    summary = sum_up(run, rows, reference=reference, draws=draws, rule=rule)
    page = render(
        summary,
        claims=answer_claims(run, rows, reference=reference, draws=summary.draws),
        examples=find_examples(run, rows, reference=reference),
        drawings=tuple(_draw(run, rows, summary)),
        missing=sum(int(row["missing"]) for row in summary.failures),
    )
    save_bytes(page.encode(), path)
    return path


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
        claims: The four claims.
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
