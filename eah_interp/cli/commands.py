"""The commands. Nothing here imports torch before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, save_figure, show, show_json, working
from eah_interp.cli.options import (
    ModelOptions,
    PatchOptions,
    check_output,
    with_options,
    write_command,
)
from eah_interp.files import make_folder

FIGURES = (".png", ".pdf", ".svg")

MaxNewTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Longest answer in words, in tokens.")
]
ImageFile = Annotated[Path, typer.Argument(help="An image file.", show_default=False)]


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
            rich_help_panel="Output",
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
        typer.Option(metavar="FILE", help="A picture of yours instead of a scene."),
    ] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="NAME",
            help="An object in the picture; repeatable.",
        ),
    ] = None,
    absent: Annotated[
        list[str] | None,
        typer.Option(
            "--absent", "-a", metavar="NAME", help="An object not in it; repeatable."
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Your own question; repeatable."
        ),
    ] = None,
    caption_start: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Words after which a caption names an object."
        ),
    ] = "There is a",
    max_new_tokens: MaxNewTokens = 40,
    options: PatchOptions,
) -> None:
    """See what EAH does to one picture: answers, donors, densities, logits, controls.

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
        from eah_interp.cli.demo import run_demo
        from eah_interp.cli.subject import choose_subject
        from eah_interp.cli.tables import record_inspection, save_demo, show_demo
        from eah_interp.viz.figures import make_figure

        if out is not None:
            make_folder(out)
            make_figure(height=1.0)  # is matplotlib there?
        eah = options.eah()
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
        given = {
            "out": out,
            "scene": scene if image is None else None,
            "image": image,
            "object": objects,
            "absent": absent,
            "prompt": prompts,
            "caption_start": None if caption_start == "There is a" else caption_start,
            "max_new_tokens": None if max_new_tokens == 40 else max_new_tokens,
        }
        result = run_demo(
            model,
            subject,
            eah=eah,
            name=options.model,
            answer_start=caption_start.strip(),
            max_new_tokens=max_new_tokens,
            command=write_command("demo", given=given, options=options),
            bar=bar,
        )
        saved = None if out is None else save_demo(result, out)
    if options.json:
        show_json(record_inspection(result, command="demo"))
        return
    show(show_demo(result))
    if saved is not None:
        show([f"\nWritten: {', '.join(map(str, saved.files))}"])
        if saved.note:
            show([saved.note])
    if not (result.caption and result.caption.objects):
        show(["\nName what is in it and what is not: --object dog --absent cat."])
    elif image is None:
        show([f"\nAnother picture: --scene {scene + 1}. Your own: --image FILE."])
        show(["Many pictures, with controls and intervals: eah-interp toy"])


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def ask(
    *,
    image: ImageFile,
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    max_new_tokens: MaxNewTokens = 40,
    options: PatchOptions,
) -> None:
    """Answer a question about a picture, without EAH and with it, side by side.

    eah-interp ask photo.jpg "Is there a dog in the image?" --layers 0,1
    eah-interp ask photo.jpg "What is this?" -m llava-hf/llava-1.5-7b-hf
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.ask import answer
        from eah_interp.lvlm.images import read_image

        options.eah()
        read_image(image)
        bar.step("loading the model")
        model = options.load()
        result = answer(
            model,
            image,
            prompt=question,
            eah=options.eah_for(model),
            name=options.model,
            max_new_tokens=max_new_tokens,
            bar=bar,
        )
    if options.json:
        show_json(result.to_dict())
    else:
        show(result.show())


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
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write the heat map, as .png, .pdf or .svg.",
            rich_help_panel="Output",
        ),
    ] = None,
    options: PatchOptions,
) -> None:
    """Score the vision sinks of every head of every layer on one picture.

    Densities are the plain model's. The donors are those that EAH would take in
    --layers with these settings; nothing else of EAH shows here.

        eah-interp sinks photo.jpg --prompt "Is there a dog?" --out sinks.png
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.sinks import find_sinks
        from eah_interp.lvlm.images import read_image
        from eah_interp.viz.figures import make_figure

        check_output(out, suffixes=FIGURES)
        if out is not None:
            make_figure(height=1.0)  # is matplotlib there?
        options.eah()
        read_image(image)
        bar.step("loading the model")
        model = options.load()
        result = find_sinks(
            model,
            image,
            prompt=prompt,
            eah=options.eah_for(model),
            k=top,
            name=options.model,
            bar=bar,
        )
        if out is not None:
            save_figure(result.sink_map.plot(donors=result.donor_heads), out)
    if options.json:
        show_json(result.to_dict())
        return
    show(result.show())
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
        if options.model is None:
            from eah_interp.cli.models import list_models, show_models

            record = list_models()
            parts = list(show_models(record))
        else:
            from eah_interp.report.reading import list_model

            bar.step("loading the model")
            model = options.load()
            about = list_model(model, options.model)
            record = {"command": "models", **about, "verified": model.verified}
            parts = [
                f"{options.model} works: {about['class']}, {about['n_layers']} layers "
                f"x {about['n_heads']} heads, {about['n_kv_heads']} key/value groups; "
                "hook points run and verified."
            ]
    if options.json:
        show_json(record)
    else:
        show(parts)
