"""The commands that run studies, show how far they are, and sum them up."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eah_interp.cli.app import INTERRUPTED, App, app, show, show_json, working
from eah_interp.cli.options import (
    PAGE,
    Json,
    check_output,
    with_options,
    write_command,
)
from eah_interp.errors import SettingsError

study = App(
    name="study",
    help="""Ask a model the same questions under many conditions, with intervals.

    A study file states the model, the items, the conditions and the decoding. Running
    it fills a folder with one row for each item and condition; a run that is killed
    goes on where it stopped when it is started again.

        eah-interp study check study.yaml
        eah-interp study run study.yaml --out runs/first
        eah-interp study status runs/first
    """,
)
app.add_typer(study, rich_help_panel="Commands")

File = Annotated[
    Path, typer.Argument(metavar="FILE.yaml", help="A study file.", show_default=False)
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A study's folder.", show_default=False)
]


# ---- Run a study.


@study.command()
def run(
    *,
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The study's folder. Default: runs/ and FILE's name."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="local: this process. ray: workers that each hold a model."),
    ] = "local",
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Only every N-th batch, from the I-th: for N jobs that share DIR.",
        ),
    ] = "1/1",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Ray workers. Default: one a GPU, or 2 without."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A Ray cluster's. Default: this machine."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Run batches in which an item failed once more."
        ),
    ] = False,
    trust_images: Annotated[
        bool,
        typer.Option(
            "--trust-images",
            help="Go on in a folder from before images were hashed: that they are "
            "still the same is yours to know.",
        ),
    ] = False,
) -> None:
    """Run a study, or what is missing of it.

    Every batch under every condition becomes a file of its own, whole or not there.
    After Ctrl-C (which finishes the batch), a crash or a full disk, the same command
    goes on. A folder that holds another study is refused.

        eah-interp study run study.yaml --out runs/first
        eah-interp study run study.yaml --out runs/first --shard 2/8
        eah-interp study run study.yaml --out runs/first --engine ray --workers 4
    """
    folder = Path("runs") / file.stem if out is None else out
    try:
        with working():
            from eah_interp.cli.tables import show_progress
            from eah_interp.studies.progress import measure_progress
            from eah_interp.studies.study_file import StudyFile

            planned = StudyFile.load(file)
        # tqdm shows the progress from here on, also in a job's log.
        with working(spinning=False):
            planned.study().run(
                folder,
                engine=engine,
                shard=shard,
                workers=workers,
                address=address,
                retry_failed=retry_failed,
                trust_images=trust_images,
            )
            found = measure_progress(folder)
    except KeyboardInterrupt as error:
        reason = str(error) or f"stopped; what was finished is in {folder}"
        again = write_command(
            "study run",
            [file],
            given={
                "out": folder,
                "shard": shard,
                "engine": engine,
                "workers": workers,
                "address": address,
                "trust_images": trust_images,
            },
            defaults={"shard": "1/1", "engine": "local"},
        )
        typer.echo(f"\n{reason}:\n\n    {again}", err=True)
        raise typer.Exit(INTERRUPTED) from error
    show(show_progress(found))


@study.command()
def status(*, folder: Folder, json: Json = False) -> None:
    """Show how much of a study is there, and what failed.

    eah-interp study status runs/first
    """
    with working():
        from eah_interp.cli.tables import show_progress
        from eah_interp.studies.progress import measure_progress

        found = measure_progress(folder)
    if json:
        show_json(found.to_dict())
    else:
        show(show_progress(found))


@study.command()
def check(*, file: File, json: Json = False) -> None:
    """Read a study file and list what would run; no model is loaded.

    eah-interp study check study.yaml
    """
    with working():
        from eah_interp.cli.tables import show_plan
        from eah_interp.studies.study_file import StudyFile

        planned = StudyFile.load(file)
    if json:
        show_json(planned.to_dict())
    else:
        show(show_plan(planned))


# ---- Sum a study up.


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
            help="COCO's annotations, or a file of objects by image, for captions.",
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
        from eah_interp.benchmarks.paired import Draws

        return {
            "reference": self.reference,
            "partial": self.partial,
            "draws": Draws(resamples=self.resamples, seed=self.seed),
            "annotations": self.annotations,
            "synonyms": self.synonyms,
            "rule": self.rule,
        }


@study.command()
@with_options(SummaryOptions)
def summary(
    *,
    folder: Folder,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print LaTeX, for the package booktabs.")
    ] = False,
    json: Json = False,
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
        from eah_interp.cli.tables import show_summary
        from eah_interp.studies import StudyRun, summarise

        bar.step("drawing intervals")
        found = summarise(StudyRun.load(folder), **options.keywords())
    if json:
        show_json(found.to_dict())
    elif markdown or latex:
        typer.echo(found.markdown() if markdown else found.latex())
    else:
        show(show_summary(found))


@study.command()
@with_options(SummaryOptions)
def report(
    *,
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="The page. Default: DIR/report.html."),
    ] = None,
    claims: Annotated[
        bool | None,
        typer.Option(
            "--claims/--no-claims",
            help="Show all of the paper's four claims, or none. Default: those that "
            "the study bears on.",
            show_default=False,
        ),
    ] = None,
    options: SummaryOptions,
) -> None:
    """Write a study's report: one HTML page that works without a network.

    What was compared and what came of it, figures, values and changes with intervals,
    tests, the paper's claims that the study bears on, and answers that changed.

        eah-interp study report runs/first --out first.html
    """
    with working() as bar:
        check_output(out, suffixes=PAGE)
        bar.expect(2)
        bar.step("importing")
        from eah_interp.studies import StudyRun
        from eah_interp.studies import report as write_report

        bar.step("drawing intervals and figures")
        path = write_report(
            StudyRun.load(folder),
            folder / "report.html" if out is None else out,
            claims=claims,
            **options.keywords(),
        )
    show([f"Written: {path}"])
