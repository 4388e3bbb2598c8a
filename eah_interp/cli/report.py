"""The command that writes one picture's page."""

from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, show, show_json, working
from eah_interp.cli.commands import ImageFile, MaxNewTokens
from eah_interp.cli.options import (
    PatchOptions,
    check_output,
    with_options,
    write_command,
)


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def report(
    *,
    image: ImageFile,
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]...",
            help="What to ask; several in quotation marks each. Default: whether each "
            "object is there, or a description.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.html",
            help="The page.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ],
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="NAME",
            help="An object in the picture, whose logit is read and split by heads; "
            "repeatable.",
        ),
    ] = None,
    absent: Annotated[
        list[str] | None,
        typer.Option(
            "--absent", "-a", metavar="NAME", help="An object not in it; repeatable."
        ),
    ] = None,
    caption: Annotated[
        bool, typer.Option("--caption", help="Describe the picture in words too.")
    ] = False,
    caption_start: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Words after which a caption names an object."
        ),
    ] = "There is a",
    max_new_tokens: MaxNewTokens = 40,
    options: PatchOptions,
) -> None:
    """Write one picture's page: answers, donors, sinks, logits, heads, every number.

    One HTML file that needs no network. Each figure has under it the table that it was
    drawn from; what the model cannot be asked is said, not guessed.

        eah-interp report photo.jpg "Is there a boat in the image?" --out boat.html
        eah-interp report photo.jpg -o dog -o person -a cat --caption --out dog.html
        eah-interp report photo.jpg -m CHECKPOINT --layers 0,1 --out photo.html
    """
    with working() as bar:
        bar.expect(3)
        bar.step("importing torch and transformers")
        from eah_interp.cli.tables import record_inspection
        from eah_interp.lvlm.images import read_image
        from eah_interp.report import inspect_image, write_report
        from eah_interp.report.inspect import check_question
        from eah_interp.viz.figures import make_figure

        check_output(out, suffixes=(".html", ".htm"))
        make_figure(height=1.0)  # is matplotlib there?
        options.eah()
        picture = read_image(image)
        check_question(questions or (), [*(objects or ()), *(absent or ())])
        bar.step("loading the model")
        model = options.load()
        given = {
            "out": out,
            "object": objects,
            "absent": absent,
            "caption": caption,
            "caption_start": None if caption_start == "There is a" else caption_start,
            "max_new_tokens": None if max_new_tokens == 40 else max_new_tokens,
        }
        words = [image, *(questions or ())]
        result = inspect_image(
            model,
            picture,
            questions or (),
            objects=objects or (),
            absent=absent or (),
            eah=options.eah_for(model),
            caption=caption,
            title=str(image),
            answer_start=caption_start.strip(),
            max_new_tokens=max_new_tokens,
            name=options.model,
            command=write_command("report", words, given=given, options=options),
            bar=bar,
        )
        bar.step("drawing the page")
        write_report(result, out)
    if options.json:
        show_json(record_inspection(result, command="report"))
        return
    show(result.verdict)
    show(f"Not measured: {remark}" for remark in result.remarks)
    show([f"\nWritten: {out}"])
