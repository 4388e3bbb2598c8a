"""A study on one page of HTML, which needs no network and no other file."""

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from eah_interp.benchmarks.pope_rules import Rule
from eah_interp.files import save_bytes
from eah_interp.studies.reports.examples import Example, find_examples
from eah_interp.studies.statistics.claims import Claim, answer_claims
from eah_interp.studies.statistics.densities import density_and_errors
from eah_interp.studies.statistics.draws import Draws
from eah_interp.studies.statistics.scores import ScoredRows
from eah_interp.studies.statistics.summary import StudySummary
from eah_interp.studies.statistics.summing import REFERENCE, sum_up
from eah_interp.studies.study import StudyRun

if TYPE_CHECKING:
    from eah_interp.viz.page import Drawing

TEMPLATE = "report.html.jinja"
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
    found = sum_up(
        run,
        reference=reference,
        partial=partial,
        draws=draws,
        annotations=annotations,
        synonyms=synonyms,
        rule=rule,
    )
    rows, summary = found.rows, found.summary
    page = render(
        summary,
        claims=answer_claims(run, rows, reference=reference, draws=summary.draws),
        examples=find_examples(run, rows, reference=reference),
        drawings=tuple(_draw(run, rows, summary)),
        missing=sum(int(row["missing"]) for row in summary.failures),
    )
    path = Path(out)
    save_bytes(page.encode(), path)
    return path


def render(
    summary: StudySummary,
    *,
    claims: tuple[Claim, ...],
    examples: tuple[Example, ...],
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

    room = files("eah_interp.studies.reports")
    source = room.joinpath(TEMPLATE).read_text(encoding="utf-8")
    manifest = dataclasses.asdict(summary.manifest)
    return render_page(
        source,
        summary=summary,
        manifest=manifest,
        facts={k: v for k, v in manifest.items() if not isinstance(v, dict | tuple)},
        claims=claims,
        examples=examples,
        drawings=drawings,
        missing=missing,
        versions={name: version(name) for name in DRAWN_WITH},
    )


def _draw(
    run: StudyRun, rows: ScoredRows, summary: StudySummary
) -> "Iterator[Drawing]":
    from eah_interp.viz.page import Drawing, embed_figure
    from eah_interp.viz.study_figures import (
        layers_of,
        plot_density,
        plot_effects,
        plot_layers,
    )

    level = f"{100 * summary.draws.level:g} % intervals"
    marks = "filled marks: the interval lies on one side of zero"
    tasks = {"caption": "CHAIR_S", "yes_no": "false positives"}
    measured = {c.metric.name for c in summary.contrasts}
    sweep = len(layers_of(summary)) > 1
    for name in tasks.values():
        if name in measured:
            figure = plot_effects(summary, name)
            text = f"Change of {name} against {summary.reference} by condition, {level}"
            yield Drawing(source=embed_figure(figure), text=f"{text}; {marks}.")
            if sweep:
                text = f"Change of {name} by patched layer, {level}; {marks}."
                figure = plot_layers(summary, name)
                yield Drawing(source=embed_figure(figure), text=text)
    sinks = run.sinks()
    if sinks.empty:
        return
    table = density_and_errors(sinks, run.items(), rows, summary.reference)
    for task, name in tasks.items():
        if len(table[table.task == task]):
            text = (
                f"Errors ({name}) under {summary.reference} against the density of the "
                "densest head of layers 0 and 1: dots are pictures, marks are means of "
                "fifths of them with 95 % intervals."
            )
            yield Drawing(
                source=embed_figure(plot_density(table, task=task)), text=text
            )
