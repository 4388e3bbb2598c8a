"""The commands that look at one image, and the one that lists models.

Nothing here imports torch before a command runs, so that help comes at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, save_figure, show, show_json, working
from eah_interp.cli.options import (
    CAPTION_START,
    MAX_NEW_TOKENS,
    OUTPUT,
    Absent,
    CaptionStart,
    ImageFile,
    MaxNewTokens,
    ModelOptions,
    PatchOptions,
    check_figure,
    check_matplotlib,
    with_options,
    write_command,
)
from eah_interp.errors import InputError
from eah_interp.files import make_folder


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def demo(
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write report.html, result.json, sinks.png and picture.png into this "
            "folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    scene: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Which test scene of the toy world to draw."
        ),
    ] = 0,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image of yours instead of a scene."),
    ] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="NAME",
            help="An object in the image; repeatable.",
        ),
    ] = None,
    absent: Absent = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Your own question; repeatable."
        ),
    ] = None,
    caption_start: CaptionStart = CAPTION_START,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    options: PatchOptions,
) -> None:
    """Show what EAH does to one image: answers, donors, densities, logits, controls.

    By default the embedded toy model looks at a drawn scene, and is asked about an
    object that is there and about one that is not but often goes with it.

        eah-interp demo --out demo-out
        eah-interp demo --scene 7 --layers 0,1 --donor uniform
        eah-interp demo --object boat --object tree --absent fish
        eah-interp demo -m CHECKPOINT --image beach.jpg -o dog -a surfboard
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import record_inspection, save_demo
        from eah_interp.cli.tables import show_demo
        from eah_interp.report.inspect import inspect_subject
        from eah_interp.report.subjects import check_words, choose_subject

        if out is not None:
            make_folder(out)
            check_matplotlib()
        options.eah()
        subject = choose_subject(
            image=image,
            scene=scene,
            objects=objects or (),
            absent=absent or (),
            prompts=prompts or (),
        )
        bar.step("loading the model")
        model = options.load()
        eah = options.eah_for(model)
        check_words(model, subject, answer_start=caption_start.strip())
        command = write_command(
            "demo",
            given={
                "out": out,
                "scene": scene if image is None else None,
                "image": image,
                "object": objects,
                "absent": absent,
                "prompt": prompts,
                "caption_start": caption_start,
                "max_new_tokens": max_new_tokens,
            },
            defaults={
                "caption_start": CAPTION_START,
                "max_new_tokens": MAX_NEW_TOKENS,
            },
            options=options,
        )
        found = inspect_subject(
            model,
            subject,
            eah=eah,
            name=options.model,
            answer_start=caption_start.strip(),
            max_new_tokens=max_new_tokens,
            command=command,
            bar=bar,
        )
        files, note = ([], "") if out is None else save_demo(found, out)
    if options.json:
        show_json(record_inspection(found, command="demo"))
        return
    show(show_demo(found))
    if files:
        show([f"\nWritten: {', '.join(map(str, files))}"])
    if note:
        show([note])
    if not (found.caption and found.caption.objects):
        show(["\nName what is in it and what is not: --object dog --absent cat."])
    elif image is None:
        show([f"\nAnother picture: --scene {scene + 1}. Your own: --image FILE."])
        show(["Many images, with controls and intervals: eah-interp toy"])


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def ask(
    *,
    image: ImageFile,
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    options: PatchOptions,
) -> None:
    """Answer a question about an image, without EAH and with it, side by side.

    eah-interp ask photo.jpg "Is there a dog in the image?" --layers 0,1
    eah-interp ask photo.jpg "What is this?" -m llava-hf/llava-1.5-7b-hf
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import record_answer
        from eah_interp.cli.tables import show_answer, show_note
        from eah_interp.lvlm.images import read_image
        from eah_interp.report.inspect import ask_question
        from eah_interp.report.reading import compare_with
        from eah_interp.report.subjects import Question

        options.eah()
        opened = read_image(image)
        if not question.strip():
            msg = "the question is empty: ask something, such as 'Is there a boat?'"
            raise InputError(msg)
        bar.step("loading the model")
        model = options.load()
        eah = options.eah_for(model)
        bar.expect(4)
        found = ask_question(
            model,
            opened,
            Question(question),
            conditions=compare_with(eah, controls=False),
            eah=eah,
            max_new_tokens=max_new_tokens,
            bar=bar,
        )
        record = record_answer(
            found, model=model, name=options.model, eah=eah, image=image
        )
    if options.json:
        show_json(record)
    else:
        show([*show_answer(found, eah=eah), *show_note(record["note"])])


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def sinks(
    *,
    image: ImageFile,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="What the model is asked meanwhile."
        ),
    ] = "Describe the image.",
    top: Annotated[
        int,
        typer.Option(min=1, metavar="K", help="How many of the densest heads to list."),
    ] = 10,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds",
            help="Also tell sinks of the vision tower from those of the language "
            "model.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write the heat map, as .png, .pdf or .svg.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    options: PatchOptions,
) -> None:
    """Score the vision sinks of every head of every layer on one image.

    Densities are the plain model's. The donors are those that EAH would take in
    --layers with these settings; nothing else of EAH shows here. The report command
    draws sinks by kind on the image.

        eah-interp sinks photo.jpg --prompt "Is there a dog?" --out sinks.png
        eah-interp sinks photo.jpg --kinds
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import record_sinks
        from eah_interp.cli.tables import (
            donor_heads,
            show_kinds,
            show_note,
            show_sinks,
        )
        from eah_interp.interventions.find_sinks import find_sinks
        from eah_interp.interventions.sinks import score_sinks
        from eah_interp.lvlm.images import read_image
        from eah_interp.report.inspection import list_donors
        from eah_interp.report.reading import PATCHED, read_next_token

        check_figure(out)
        options.eah()
        opened = read_image(image)
        bar.step("loading the model")
        model = options.load()
        eah = options.eah_for(model)
        bar.expect(2)
        bar.step("sinks of every head")
        found = score_sinks(
            model, opened, prompt, definition=eah.definition, beta=eah.beta
        )
        # Donors of later layers depend on the patch of earlier ones: patch, and see.
        reading = read_next_token(
            model, opened, prompt=prompt, conditions={PATCHED: eah}, bar=bar
        )
        donors = list_donors(reading.patches[PATCHED])
        told = find_sinks(model, opened, prompt) if kinds else None
        record = record_sinks(
            found,
            k=top,
            donors=donors,
            model=model,
            name=options.model,
            eah=eah,
            image=image,
            prompt=prompt,
            kinds=told,
        )
        if out is not None:
            save_figure(found.plot(donors=donor_heads(donors)), out)
    if options.json:
        show_json(record)
        return
    show(show_sinks(found, k=top, donors=donors, eah=eah, prompt=prompt))
    if told is not None:
        show(show_kinds(told, k=top))
    show(show_note(record["note"]))
    if out is not None:
        show([f"\nWritten: {out}"])


@app.command(rich_help_panel="Commands")
@with_options(ModelOptions)
def models(*, options: ModelOptions) -> None:
    """List what can be loaded and what is refused, or examine one checkpoint.

    eah-interp models
    eah-interp models --model llava-hf/llava-1.5-7b-hf
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.records import list_models
        from eah_interp.cli.tables import show_model, show_models
        from eah_interp.report.reading import list_model

        if options.model is None:
            record = list_models()
            parts = show_models(record)
        else:
            bar.step("loading the model")
            model = options.load()
            about = list_model(model, options.model)
            record = {"command": "models", **about, "verified": model.verified}
            parts = show_model(record)
    if options.json:
        show_json(record)
    else:
        show(parts)
