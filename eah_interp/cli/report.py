"""The command that writes one image's page."""

from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, show, show_json, working
from eah_interp.cli.options import (
    CAPTION_START,
    MAX_NEW_TOKENS,
    OUTPUT,
    PAGE,
    Absent,
    CaptionStart,
    ImageFile,
    MaxNewTokens,
    PatchOptions,
    check_matplotlib,
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
            rich_help_panel=OUTPUT,
        ),
    ],
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="NAME",
            help="An object in the image, whose logit is read and split by heads; "
            "repeatable.",
        ),
    ] = None,
    absent: Absent = None,
    caption: Annotated[
        bool, typer.Option("--caption", help="Describe the image in words too.")
    ] = False,
    caption_start: CaptionStart = CAPTION_START,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    options: PatchOptions,
) -> None:
    """Write one image's page: answers, donors, sinks, logits, heads, every number.

    One HTML file that needs no network. Each figure has under it the table that it was
    drawn from; what the model cannot be asked is said, not guessed.

        eah-interp report photo.jpg "Is there a boat in the image?" --out boat.html
        eah-interp report photo.jpg -o dog -o person -a cat --caption --out dog.html
        eah-interp report photo.jpg -m CHECKPOINT --layers 0,1 --out photo.html
    """
    with working() as bar:
        bar.expect(3)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import record_inspection
        from eah_interp.cli.tables import show_note
        from eah_interp.lvlm.images import read_image
        from eah_interp.report.inspect import inspect_image
        from eah_interp.report.page import write_report
        from eah_interp.report.subjects import check_question

        check_output(out, suffixes=PAGE)
        check_matplotlib()
        options.eah()
        opened = read_image(image)
        check_question(questions or (), [*(objects or ()), *(absent or ())])
        bar.step("loading the model")
        model = options.load()
        command = write_command(
            "report",
            [image, *(questions or ())],
            given={
                "out": out,
                "object": objects,
                "absent": absent,
                "caption": caption,
                "caption_start": caption_start,
                "max_new_tokens": max_new_tokens,
            },
            defaults={
                "caption_start": CAPTION_START,
                "max_new_tokens": MAX_NEW_TOKENS,
            },
            options=options,
        )
        found = inspect_image(
            model,
            opened,
            questions or (),
            objects=objects or (),
            absent=absent or (),
            eah=options.eah_for(model),
            caption=caption,
            title=str(image),
            answer_start=caption_start.strip(),
            max_new_tokens=max_new_tokens,
            name=options.model,
            command=command,
            bar=bar,
        )
        bar.step("drawing the page")
        write_report(found, out)
    if options.json:
        show_json(record_inspection(found, command="report"))
        return
    show([*found.verdict, *show_note(found.note)])
    show(f"Not measured: {remark}" for remark in found.remarks)
    show([f"\nWritten: {out}"])
