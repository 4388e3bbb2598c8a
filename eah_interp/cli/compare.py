"""The command that compares files of outputs, without a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eah_interp.cli.app import app, show, show_json, uncollected, working
from eah_interp.cli.options import PAGE, Json, check_figure, check_output


@app.command(rich_help_panel="Commands")
def compare(
    *,
    base: Annotated[
        Path,
        typer.Argument(
            help="Captions or answers, as JSON lines: what others are compared with.",
            show_default=False,
        ),
    ],
    patched: Annotated[
        list[Path],
        typer.Argument(
            help="The same of another model, or of it under a method; or several.",
            show_default=False,
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For captions: COCO's annotations, or a JSON file of objects by "
            "image.",
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For captions: CHAIR's synonym list, synonyms.txt."
        ),
    ] = None,
    singular: Annotated[
        Literal["nltk", "pattern"],
        typer.Option(
            help="Which of the two ground truths COCO's annotations are read as; "
            "pattern needs that package."
        ),
    ] = "nltk",
    year: Annotated[
        int, typer.Option(metavar="YEAR", help="Of COCO's annotations.")
    ] = 2014,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For answers: POPE's questions with their labels."
        ),
    ] = None,
    rule: Annotated[
        Literal["pope", "opera"],
        typer.Option(help="Whose rule says what is a yes."),
    ] = "pope",
    common: Annotated[
        bool,
        typer.Option(
            "--common",
            help="Leave out, and count, images or questions that a file lacks.",
        ),
    ] = False,
    image_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Where images stand in files of captions."),
    ] = None,
    caption_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Where captions stand in them.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Bootstrap samples.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seeds them.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page too, one file."),
    ] = None,
    frontier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw recall against CHAIR_I of every file (.png, .pdf, .svg).",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare files of captions or answers about the same images; no model is needed.

    Every change with its interval, raw and with captions matched in length: shorter
    captions hallucinate less.

        eah-interp compare base.jsonl vcd.jsonl --annotations coco --synonyms list.txt
        eah-interp compare base.jsonl vcd.jsonl --questions coco_pope_popular.json
    """
    with working() as bar, uncollected():
        check_output(out, suffixes=PAGE)
        check_figure(frontier, option="--frontier")
        bar.expect(3)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.compare import compare_outputs
        from eah_interp.benchmarks.frontier import plot_frontier
        from eah_interp.benchmarks.paired import Draws
        from eah_interp.cli.app import save_figure
        from eah_interp.cli.layout import show_comparison

        bar.step("reading and scoring")
        found = compare_outputs(
            base,
            patched,
            annotations=annotations,
            synonyms=synonyms,
            singular=singular,
            year=year,
            questions=questions,
            rule=rule,
            common=common,
            image_key=image_key,
            caption_key=caption_key,
            draws=Draws(resamples=resamples, seed=seed),
        )
        bar.step("writing")
        if frontier is not None:
            save_figure(plot_frontier(found.outputs, draws=found.draws), frontier)
        if out is not None:
            found.report(out)
    if json:
        show_json({"command": "compare", **found.to_dict()})
    else:
        show(show_comparison(found))
        show([f"\nWritten: {path}" for path in (out, frontier) if path is not None])
