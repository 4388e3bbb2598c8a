"""The command that measures how much a toy hallucinates."""

from typing import Annotated

import typer

from eah_interp.cli.app import app, show, show_json, working
from eah_interp.cli.options import PatchOptions, with_options


@app.command(rich_help_panel="Commands")
@with_options(PatchOptions)
def toy(
    *,
    scenes: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="Test scenes to describe and ask about."),
    ] = 200,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls", help="Measure control donors beside EAH's own."
        ),
    ] = True,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Prompts in one forward pass.")
    ] = 64,
    options: PatchOptions,
) -> None:
    """Measure how much a toy hallucinates, plain and under EAH and its controls.

    Yes/no questions as POPE asks them and captions as CHAIR scores them, on scenes
    whose ground truth is exact; every change with its 95 % interval.

        eah-interp toy --scenes 100 --layers 0,1
        eah-interp toy --model toy:seed-1 --layers 2 --no-controls
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing torch and transformers")
        from eah_interp.cli.hallucinate import measure_hallucination

        options.eah()
        bar.step("loading the model")
        model = options.load()
        result = measure_hallucination(
            model,
            eah=options.eah_for(model),
            n_scenes=scenes,
            controls=controls,
            batch_size=batch_size,
            name=options.model,
            bar=bar,
        )
    if options.json:
        show_json(result.to_dict())
    else:
        show(result.show())
