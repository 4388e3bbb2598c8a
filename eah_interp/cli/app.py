"""The command line's door: what it is about, and its version."""

from typing import Annotated

import typer

import eah_interp

app = typer.Typer(
    name="eah-interp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> bool:  # noqa: FBT001 - typer calls it so
    if value:
        typer.echo(f"eah-interp {eah_interp.__version__}")
        raise typer.Exit
    return value


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and leave.",
        ),
    ] = False,
) -> None:
    """Look at vision sinks in vision-language models, and patch them with EAH.

    A **vision sink** is an image token that an attention head looks at more than
    evenly. **EAH** broadcasts the pattern of the head with the most sinks to the other
    heads of a shallow layer, which is claimed to lower hallucination.

    Begin with the embedded toy model, which needs no download and no GPU; then your
    own picture, and your own model:

        eah-interp demo --out demo-out
        eah-interp sinks photo.jpg
        eah-interp ask photo.jpg "Is there a dog in the image?" -m CHECKPOINT

    Layers and heads are counted from 0. Exit codes: 0 done, 1 failed, 2 asked for
    something impossible, 130 interrupted.
    """
