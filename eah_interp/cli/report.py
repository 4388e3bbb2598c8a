"""The command that writes one image's page."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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

CIRCUIT = "Circuit"
FEW_EDGES = 20


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
    circuit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another image of the same size, such as the same without the object: "
            "find which heads and MLPs read which, where the answer to the first "
            "yes-or-no question differs between the two.",
            show_default=False,
            rich_help_panel=CIRCUIT,
        ),
    ] = None,
    circuit_edges: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many edges the circuit has. It takes N + 26 runs in which some "
            "edges are kept, and one backward pass, whatever the model's size.",
            rich_help_panel=CIRCUIT,
        ),
    ] = FEW_EDGES,
    options: PatchOptions,
) -> None:
    """Write one image's page: answers, donors, sinks, logits, heads, every number.

    One HTML file that needs no network. Each figure has under it the table that it was
    drawn from; what the model cannot be asked is said, not guessed. With --circuit it
    has the edges too by which one image's answer differs from another's.

        eah-interp report photo.jpg "Is there a boat in the image?" --out boat.html
        eah-interp report photo.jpg -o dog -o person -a cat --caption --out dog.html
        eah-interp report photo.jpg -m CHECKPOINT --layers 0,1 --out photo.html
        eah-interp report boat.png -o boat --circuit no-boat.png --out boat.html
    """
    with working() as bar:
        bar.expect(3)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import record_circuit, record_inspection
        from eah_interp.cli.tables import show_note
        from eah_interp.lvlm.images import read_image
        from eah_interp.report.circuits import count_runs, tell_circuit, trace_answer
        from eah_interp.report.inspect import NOT_TRACED, attempt, inspect_image
        from eah_interp.report.page import write_report
        from eah_interp.report.subjects import check_question

        check_output(out, suffixes=PAGE)
        check_matplotlib()
        options.eah()
        opened = read_image(image)
        other = None if circuit is None else read_image(circuit)
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
                "circuit": circuit,
                "circuit_edges": circuit_edges if circuit else None,
            },
            defaults={
                "circuit_edges": FEW_EDGES,
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
        circuits: list[Any] = []
        if other is not None:
            bar.expect(2)
            remarks: list[str] = []
            asked = next((one for one in found.asked if one.is_yes_no), None)
            if asked is None:
                remarks.append(f"{NOT_TRACED}: no question is answered by yes or no")
            else:
                typer.echo(
                    f"finding a circuit: {count_runs(circuit_edges)} runs with some "
                    "edges, beside one backward pass",
                    err=True,
                )
                prompt = asked.question.prompt
                trace = partial(trace_answer, model, opened, prompt, other=other)
                traced = partial(trace, n_edges=circuit_edges, bar=bar)
                circuits = attempt(traced, remarks, NOT_TRACED)
            found = replace(found, remarks=(*found.remarks, *remarks))
        bar.step("drawing the page")
        write_report(found, out, circuits=circuits)
    if options.json:
        record = record_inspection(found, command="report")
        if circuits:
            record["circuit"] = record_circuit(*circuits)
        show_json(record)
        return
    show([*found.verdict, *map(tell_circuit, circuits), *show_note(found.note)])
    show(f"Not measured: {remark}" for remark in found.remarks)
    show([f"\nWritten: {out}"])
