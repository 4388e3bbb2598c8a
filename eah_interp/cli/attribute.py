"""The command that finds the heads that write an object's logit."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, save_figure, show, show_json, working
from eah_interp.cli.options import (
    OUTPUT,
    ImageFile,
    PatchOptions,
    SaveFolder,
    check_figure,
    with_options,
)
from eah_interp.errors import InputError, SettingsError
from eah_interp.files import make_folder


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def attribute(
    *,
    image: ImageFile,
    prompt: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            "-e",
            metavar="NAME",
            help="An object to explain, in the image or not; repeatable.",
        ),
    ] = None,
    objects: Annotated[
        list[str] | None, typer.Option("--object", "-o", hidden=True)
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="An answer to read: objects are explained wherever it names them. "
            "Default: as the first word of the answer.",
        ),
    ] = None,
    yes_no: Annotated[
        bool,
        typer.Option("--yes-no", help='Explain "Yes" minus "No" instead of objects.'),
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, metavar="K", help="How many heads to list.")
    ] = 10,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw all heads by layer, as .png, .pdf or .svg.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw on the image from where heads read the first object.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save: SaveFolder = None,
    options: PatchOptions,
) -> None:
    """Find the heads that write an object's logit, and what EAH does to them.

    Direct effects: what each head adds to the logit by itself, not through later
    layers. Heads, MLPs, embedding and biases add up to the logit. The change by EAH is
    split: the head looks elsewhere (new pattern), finds other things there (new
    values), or counts differently (new scale).

        eah-interp attribute photo.jpg "Describe the image." --explain boat -e fish
        eah-interp attribute photo.jpg "Is there a boat?" --yes-no --figure heads.png
        eah-interp attribute photo.jpg "Describe the image." -e boat \
--caption "There is a boat." --picture boat.png --layers 0,1
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.attribution.cases import pose
        from eah_interp.attribution.direct import attribute_heads
        from eah_interp.attribution.patches import attribute_patches
        from eah_interp.cli.records import record_attribution
        from eah_interp.cli.tables import show_attribution, show_note
        from eah_interp.lvlm.images import read_image

        check_figure(figure, option="--figure")
        check_figure(picture, option="--picture")
        refuse_objects(objects or ())
        check_question(prompt, explain or (), yes_no=yes_no, caption=caption)
        options.eah()
        opened = read_image(image)
        if save is not None:
            make_folder(save)
        bar.step("loading the model")
        model = options.load()
        eah = options.eah_for(model)
        case = pose(
            model,
            opened,
            prompt,
            objects=explain or (),
            metric="yes_no" if yes_no else "logit",
            caption=caption,
        )
        bar.expect(1 if picture is None else 2)
        bar.step("direct effects of every head")
        found = attribute_heads(model, case, patch=eah)
        overlay = None
        if picture is not None:
            bar.step("effects by image token")
            # Before anything is written: there may be no grid to draw on.
            overlay = attribute_patches(model, case, patch=eah).plot(opened)
        record = record_attribution(
            found,
            k=top,
            model=model,
            name=options.model,
            eah=eah,
            image=image,
            prompt=prompt,
            caption=caption,
        )
        if save is not None:
            found.save(save)
        if figure is not None:
            save_figure(found.plot_targets(), figure)
        if overlay is not None and picture is not None:
            save_figure(overlay, picture)
    if options.json:
        show_json(record)
        return
    show([*show_attribution(record), *show_note(record["note"])])
    written = [str(out) for out in (figure, picture, save) if out is not None]
    if written:
        show([f"\nWritten: {', '.join(written)}"])


def refuse_objects(objects: Sequence[str]) -> None:
    """Refuse `--object`, which says elsewhere that an object is in the image.

    Raises:
        SettingsError: If it is given; `--explain` is named.
    """
    if objects:
        new = shlex.join(word for name in objects for word in ("--explain", name))
        msg = (
            f"--object (-o) names what is in the image, as in report and demo: "
            f"expected what to explain, there or not; write {new}"
        )
        raise SettingsError(msg)


def check_question(
    prompt: str, objects: Sequence[str], *, yes_no: bool, caption: str | None
) -> None:
    """Refuse what cannot be asked, in the words of the command line.

    Raises:
        InputError: If nothing is asked.
        SettingsError: If objects, `--yes-no` and `--caption` do not go together.
    """
    if not prompt.strip():
        msg = "the prompt is empty: ask something, such as 'Describe the image.'"
        raise InputError(msg)
    if yes_no and (objects or caption is not None):
        what = "--explain" if objects else "--caption"
        msg = f"--yes-no explains the answer itself: leave out {what}"
        raise SettingsError(msg)
    if not objects and not yes_no:
        msg = "nothing to explain: name one with --explain boat, or use --yes-no"
        raise SettingsError(msg)
    if len(set(objects)) < len(objects):
        msg = f"--explain names a thing twice: {', '.join(objects)}; name each once"
        raise SettingsError(msg)
