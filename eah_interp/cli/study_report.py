"""The commands that sum a study up: `study summary` and `study report`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eah_interp.cli.app import show, show_json, working
from eah_interp.cli.options import check_output
from eah_interp.cli.study import Folder, study
from eah_interp.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eah_interp.studies.summary import StudySummary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """What a summary compares, and with which files captions are scored."""

    reference: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The condition that others are compared with."
        ),
    ] = "baseline"
    partial: Annotated[
        bool, typer.Option("--partial", help="Sum up a study that is not complete.")
    ] = False
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="COCO's annotations, or a file of objects by picture, for captions.",
        ),
    ] = None
    synonyms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CHAIR's synonym list, for captions."),
    ] = None
    rule: Annotated[
        str, typer.Option(metavar="pope|opera", help="How yes and no are read.")
    ] = "pope"
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Bootstrap samples.")
    ] = 2000
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seeds them.")] = 0

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of `summarise` and `report`."""
        from eah_interp.studies.contrasts import Draws

        return {
            "reference": self.reference,
            "partial": self.partial,
            "draws": Draws(resamples=self.resamples, seed=self.seed),
            "annotations": self.annotations,
            "synonyms": self.synonyms,
            "rule": self.rule,
        }


def _with_summary_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above in place of its `options`."""
    shared = inspect.signature(SummaryOptions).parameters
    own = inspect.signature(command).parameters

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = SummaryOptions(**{name: values.pop(name) for name in shared})
        command(**values, options=options)

    kept = [value for name, value in own.items() if name != "options"]
    every = [
        value.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for value in (*kept, *shared.values())
    ]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {value.name: value.annotation for value in every}
    return run


@study.command()
@_with_summary_options
def summary(
    *,
    folder: Folder,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print LaTeX, for the package booktabs.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and nothing else.")
    ] = False,
    options: SummaryOptions,
) -> None:
    """Print what a study found: every change with its interval.

    eah-interp study summary runs/first
    eah-interp study summary runs/first --latex > tables.tex
    """
    with working() as bar:
        if markdown + latex + json > 1:
            msg = "expected one of --markdown, --latex and --json, got several"
            raise SettingsError(msg)
        bar.expect(2)
        bar.step("importing")
        from eah_interp.studies import StudyRun, summarise

        bar.step("drawing intervals")
        found = summarise(StudyRun.load(folder), **options.keywords())
    if json:
        show_json(found.to_dict())
    elif markdown or latex:
        typer.echo(found.markdown() if markdown else found.latex())
    else:
        show(_lay_out(found))


@study.command()
@_with_summary_options
def report(
    *,
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="The page. Default: DIR/report.html."),
    ] = None,
    options: SummaryOptions,
) -> None:
    """Write a study's report: one HTML page that works without a network.

    Settings, failures, values, changes with intervals, tests, the paper's four claims,
    figures, and answers that changed.

        eah-interp study report runs/first --out first.html
    """
    with working() as bar:
        check_output(out, suffixes=(".html", ".htm"))
        bar.expect(2)
        bar.step("importing")
        from eah_interp.studies import StudyRun
        from eah_interp.studies import report as write_report

        bar.step("drawing intervals and figures")
        path = write_report(
            StudyRun.load(folder),
            folder / "report.html" if out is None else out,
            **options.keywords(),
        )
    show([f"Written: {path}"])


def _lay_out(found: "StudySummary") -> "Iterator[RenderableType]":
    from rich.table import Table
    from rich.text import Text

    yield Text(found.name, style="bold")
    yield Text(found.describe() + "\n", style="dim")
    yield from (Text(note + "\n", style="bold") for note in found.notes)
    for table in found.tables:
        grid = Table(
            title=Text(table.caption),
            title_justify="left",
            title_style="bold",
            box=None,
            padding=(0, 2, 0, 0),
        )
        for name in table.header:
            grid.add_column(Text(name))
        for row in table.rows:
            grid.add_row(*map(Text, row))
        yield grid
        yield Text(table.notes + "\n", style="dim")
