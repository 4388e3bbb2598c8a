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
        from eah_interp.benchmarks.toy import compare_benchmarks, run_toy_benchmark
        from eah_interp.cli.records import record_toy
        from eah_interp.cli.tables import show_toy
        from eah_interp.report.reading import PLAIN, compare_with
        from eah_interp.toy.scenes import draw_scenes

        options.eah()
        bar.step("loading the model")
        model = options.load()
        eah = options.eah_for(model)
        conditions = compare_with(eah, controls=controls)
        bar.expect(len(conditions))
        drawn = draw_scenes(range(scenes))
        found = {}
        for condition, settings in conditions.items():
            bar.step(f"{condition}, {scenes} scenes")
            found[condition] = run_toy_benchmark(
                model, drawn, eah=settings, batch_size=batch_size, progress=False
            )
        plain = found.pop(PLAIN)
        changes = {name: compare_benchmarks(plain, one) for name, one in found.items()}
        record = record_toy(
            changes, model=model, name=options.model, eah=eah, n_scenes=scenes
        )
    if options.json:
        show_json(record)
    else:
        show(show_toy(record))
