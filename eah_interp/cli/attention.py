"""The command that draws what heads attend to on images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eah_interp.cli.app import app, save_figure, show, show_json, working
from eah_interp.cli.options import (
    MAX_NEW_TOKENS,
    OUTPUT,
    MaxNewTokens,
    ModelOptions,
    SaveFolder,
    check_figure,
    with_options,
)
from eah_interp.errors import InputError, SettingsError
from eah_interp.files import make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from eah_interp.attribution import HeadPatterns


@app.command(rich_help_panel="Commands")
@with_options(ModelOptions)
def attention(
    *,
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Image files: the prompt is asked of each.", show_default=False
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--heads",
            metavar="L3H7",
            help="Heads, as in L3H7 or L3H7,L5H1; repeatable.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="The K heads with the densest vision sinks, as the command sinks "
            "lists them; of several images, in their mean.",
        ),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="The mean over every head of every layer.")
    ] = False,
    words: Annotated[
        bool,
        typer.Option(
            "--words",
            help="Generate the answer, and map each of its words: the attention that "
            "the word was predicted from. Without it, that of the answer's first word.",
        ),
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Put all images into one prompt, which is asked once."
        ),
    ] = False,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw on the image, as .png, .pdf or .svg. Of several images each has "
            "a file, with its number (from 0) after the name: FILE-0.png.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save: SaveFolder = None,
    options: ModelOptions,
) -> None:
    """Show what heads attend to on an image, and for which word of the answer.

    The weights are those that the model attends with, under SDPA as under eager
    attention; only the rows that are shown are made.

        eah-interp attention photo.jpg "What is this?" --heads L3H7 --out map.png
        eah-interp attention photo.jpg "What is this?" --mean --words --out words.png
        eah-interp attention a.jpg b.jpg "Is there a dog?" --top 5 --json
        eah-interp attention photo.jpg "What is this?" --top 5 -m CHECKPOINT
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.attribution import read_patterns
        from eah_interp.cli.records import record_attention
        from eah_interp.cli.tables import show_attention, show_note
        from eah_interp.lvlm.images import read_image

        check_figure(out)
        named = ",".join(heads or ())
        check_asked(prompt, any_head=bool(named or top or mean))
        opened = [read_image(image) for image in images]
        if save is not None:
            make_folder(save)
        bar.step("loading the model")
        model = options.load()
        bar.expect(1)
        bar.step("attention")
        found = read_patterns(
            model,
            [opened] if together else [[image] for image in opened],
            [prompt] if together else [prompt] * len(opened),
            heads=named or None,
            top=top,
            mean=mean,
            words=words,
            max_new_tokens=max_new_tokens,
        )
        record = record_attention(
            found, model=model, name=options.model, images=images, prompt=prompt
        )
        # Before anything is written: there may be no grid to draw on.
        figures = _draw(found, opened, files=number_files(out, len(images)))
        if save is not None:
            found.save(save)
        for file, figure in figures.items():
            save_figure(figure, file)
    if options.json:
        show_json(record)
        return
    show([*show_attention(record), *show_note(record["note"])])
    written = [*map(str, figures), *([] if save is None else [str(save)])]
    if written:
        show([f"\nWritten: {', '.join(written)}"])


def _draw(
    found: "HeadPatterns", images: Sequence["Image"], *, files: Sequence[Path]
) -> dict[Path, "Figure"]:
    """Draw each image's maps, by the file they are for; none of an empty answer."""
    places = [(i, n) for i, spans in enumerate(found.spans) for n in range(len(spans))]
    return {
        file: found.plot(image, item=item, number=number)
        for file, image, (item, number) in zip(files, images, places, strict=False)
        if not found.words or found.words[item]
    }


def check_asked(prompt: str, *, any_head: bool) -> None:
    """Refuse what cannot be shown, in the words of the command line.

    Raises:
        InputError: If nothing is asked.
        SettingsError: If no head is named.
    """
    if not prompt.strip():
        msg = "the prompt is empty: ask something, such as 'Describe the image.'"
        raise InputError(msg)
    if not any_head:
        msg = (
            "no head is named: expected --heads L3H7, --top 5 for those with the "
            "densest sinks, or --mean for the mean over all heads"
        )
        raise SettingsError(msg)


def number_files(out: Path | None, n_images: int) -> Sequence[Path]:
    """Name a figure's file for each image.

    Example:
        >>> [path.name for path in number_files(Path("a.png"), 2)]
        ['a-0.png', 'a-1.png']
    """
    if out is None:
        return ()
    if n_images == 1:
        return (out,)
    return [out.with_stem(f"{out.stem}-{number}") for number in range(n_images)]
