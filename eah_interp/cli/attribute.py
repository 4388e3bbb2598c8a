"""The command that says which heads move which object."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from eah_interp.cli.app import app, save_figure, show, show_json, working
from eah_interp.cli.commands import FIGURES, ImageFile
from eah_interp.cli.options import PatchOptions, check_output, with_options
from eah_interp.errors import InputError, SettingsError
from eah_interp.files import make_folder


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def attribute(
    *,
    image: ImageFile,
    prompt: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            "-o",
            metavar="NAME",
            help="An object to explain, in the picture or not; repeatable.",
        ),
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
            rich_help_panel="Output",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw on the picture from where heads read the first object.",
            rich_help_panel="Output",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write every number into this folder, as Parquet and JSON.",
            rich_help_panel="Output",
        ),
    ] = None,
    options: PatchOptions,
) -> None:
    """Find the heads that write an object's logit, and what EAH does to them.

    Direct effects: what each head adds to the logit by itself, not through later
    layers. Heads, MLPs, embedding and biases add up to the logit. The change by EAH is
    split: the head looks elsewhere (new pattern), finds other things there (new
    values), or counts differently (new scale).

        eah-interp attribute photo.jpg "Describe the image." --object boat -o fish
        eah-interp attribute photo.jpg "Is there a boat?" --yes-no --figure heads.png
        eah-interp attribute photo.jpg "Describe the image." -o boat \
--caption "There is a boat." --picture boat.png --layers 0,1
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.effects import attribute_objects
        from eah_interp.lvlm.images import read_image
        from eah_interp.viz.figures import make_figure

        for option, out in (("--figure", figure), ("--picture", picture)):
            check_output(out, suffixes=FIGURES, option=option)
            if out is not None:
                make_figure(height=1.0)  # is matplotlib there?
        check_question(prompt, objects or (), yes_no=yes_no, caption=caption)
        options.eah()
        read_image(image)
        if save is not None:
            make_folder(save)
        bar.step("loading the model")
        model = options.load()
        result = attribute_objects(
            model,
            image,
            prompt=prompt,
            objects=objects or (),
            caption=caption,
            yes_no=yes_no,
            eah=options.eah_for(model),
            k=top,
            name=options.model,
            on_picture=picture is not None,
            bar=bar,
        )
        if save is not None:
            result.found.save(save)
        if figure is not None:
            save_figure(result.found.plot_targets(), figure)
        if picture is not None and result.patches is not None:
            save_figure(result.patches.plot(read_image(image)), picture)
    if options.json:
        show_json(result.to_dict())
        return
    show(result.show())
    written = [str(out) for out in (figure, picture, save) if out is not None]
    if written:
        show([f"\nWritten: {', '.join(written)}"])


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
        what = "--object" if objects else "--caption"
        msg = f"--yes-no explains the answer itself: leave out {what}"
        raise SettingsError(msg)
    if not objects and not yes_no:
        msg = "nothing to explain: name an --object, such as -o boat, or use --yes-no"
        raise SettingsError(msg)
    if len(set(objects)) < len(objects):
        msg = f"--object names a thing twice: {', '.join(objects)}; name each once"
        raise SettingsError(msg)
