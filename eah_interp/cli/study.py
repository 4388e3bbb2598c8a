"""The commands that run studies; `report` and `summary` are in `study_report.py`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eah_interp.cli.app import app, show, show_json, working

if TYPE_CHECKING:
    from eah_interp.studies.progress import StudyProgress

study = typer.Typer(
    name="study",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
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

INTERRUPTED = 130

File = Annotated[
    Path, typer.Argument(metavar="FILE.yaml", help="A study file.", show_default=False)
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A study's folder.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


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
            )
            found = measure_progress(folder)
    except KeyboardInterrupt as error:
        reason = str(error) or f"stopped; what was finished is in {folder}"
        typer.echo(
            f"\n{reason}:\n\n    {_again(file, folder, shard, engine)}", err=True
        )
        raise typer.Exit(INTERRUPTED) from error
    show(_tell(found))


@study.command()
def status(*, folder: Folder, json: Json = False) -> None:
    """Say how much of a study is there, and what failed.

    eah-interp study status runs/first
    """
    with working():
        from eah_interp.studies.progress import measure_progress

        found = measure_progress(folder)
    if json:
        show_json(found.to_dict())
    else:
        show(_tell(found))


@study.command()
def check(*, file: File, json: Json = False) -> None:
    """Read a study file and say what would run; no model is loaded.

    eah-interp study check study.yaml
    """
    with working():
        from eah_interp.studies.study_file import StudyFile

        planned = StudyFile.load(file)
        record = planned.to_dict()
    if json:
        show_json(record)
        return
    tasks = ", ".join(f"{count} {task}" for task, count in record["tasks"].items())
    show(
        [
            f"{file} is a study of {record['model']['name']}:",
            f"  {record['n_items']} items ({tasks}) in {record['n_batches']} batches "
            f"of up to {planned.batch_size}",
            f"  {len(planned.conditions)} conditions: "
            + ", ".join(condition.name for condition in planned.conditions),
            f"  {record['n_rows']} rows in all",
        ]
    )


def _tell(found: "StudyProgress") -> list[str]:
    lines = [f"{found.folder}: {found.n_rows} of {found.n_wanted} rows"]
    lines += [
        f"  {name}: {count} of {found.n_items}"
        for name, count in found.by_condition.items()
        if count != found.n_items
    ]
    if found.errors:
        lines.append(
            f"{found.n_failed} rows have an error instead of an answer "
            "(study run --retry-failed runs their batches again):"
        )
        lines += [
            f"  {count} x {error} ({example})" for error, count, example in found.errors
        ]
    return lines


def _again(file: Path, folder: Path, shard: str, engine: str) -> str:
    parts: list[Any] = ["eah-interp study run", file, "--out", folder]
    parts += ["--shard", shard] if shard != "1/1" else []
    parts += ["--engine", engine] if engine != "local" else []
    return " ".join(map(str, parts))
