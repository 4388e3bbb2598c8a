"""The commands of the ledger of published claims."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from eah_interp.cli.app import App, app, show, show_json, working
from eah_interp.cli.options import Json
from eah_interp.errors import SettingsError

claims = App(
    name="claims",
    help="""Published claims: what would refute them, and what evidence says of them.

    Evidence is of three kinds, never mixed: outputs that others released and that you
    have, the embedded toy, and a checkpoint of yours.

        eah-interp claims list
        eah-interp claims show vcd
        eah-interp claims test vcd --outputs released/ --annotations objects.json \
--synonyms synonyms.txt
    """,
)
app.add_typer(claims, rich_help_panel="Commands")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A claim's name, or a file of it.", show_default=False
    ),
]


@claims.command(name="list")
def list_all(*, json: Json = False) -> None:
    """List the claims of the ledger.

    eah-interp claims list
    """
    with working():
        from eah_interp.cli.layout import lay_out
        from eah_interp.studies.ledger import list_claims, tabulate_claims

        found = list_claims()
    if json:
        listed = [one.to_dict() for one in found.values()]
        show_json({"command": "claims list", "claims": listed})
    else:
        show(lay_out(tabulate_claims(found)))


@claims.command(name="show")
def show_one(*, name: Name, json: Json = False) -> None:
    """Show a claim: paper, what is compared, controls, and what would refute it.

    eah-interp claims show vcd
    """
    with working():
        from eah_interp.studies.ledger import find_claim, write_claim

        found = find_claim(name)
    if json:
        show_json({"command": "claims show", **found.to_dict()})
    else:
        show([write_claim(found)])


@claims.command(name="test")
def run_test(
    *,
    name: Name,
    outputs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Test it on released outputs in DIR, which are found by their hash.",
        ),
    ] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="Test it on the embedded toy.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Test it on a checkpoint, with the items of --study.",
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml", help="With --model: a study file with the items."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="COCO's annotations, or objects by image, for captions."
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CHAIR's synonym list, for captions."),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=2, metavar="N", help="With --toy: scenes.")
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --toy or --model: the study's folder, which a later run goes on "
            "in. A folder that is deleted afterwards when left out.",
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Bootstrap samples.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seeds them.")] = 0,
    json: Json = False,
) -> None:
    """Test a claim on evidence of one kind.

    It holds, does not hold, cannot be told, or was not measured: by the intervals, and
    with the reason.

        eah-interp claims test vcd --outputs less-is-more/CHAIR-eval/data
        eah-interp claims test eah-3 --toy
        eah-interp claims test pai --model CHECKPOINT --study study.yaml
    """
    with working(spinning=outputs is not None) as bar:
        if (outputs is not None) + toy + (model is not None) != 1:
            msg = "expected one of --outputs DIR, --toy and --model NAME, got "
            raise SettingsError(msg + ("none" if not toy else "several"))
        if (model is None) != (study is None):
            msg = "expected --model and --study together: the items are the study's"
            raise SettingsError(msg)
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.paired import Draws
        from eah_interp.cli.layout import lay_out
        from eah_interp.studies.ledger import (
            examine_outputs,
            examine_toy,
            find_claim,
        )

        bar.step("testing")
        claim, draws = find_claim(name), Draws(resamples=resamples, seed=seed)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "study" if out is None else out
            if outputs is not None:
                found = examine_outputs(
                    claim,
                    outputs,
                    annotations=annotations,
                    synonyms=synonyms,
                    draws=draws,
                )
            elif toy:
                found = examine_toy(claim, folder, n_scenes=scenes, draws=draws)
            else:
                files = {"annotations": annotations, "synonyms": synonyms}
                found = _examine(claim, str(model), study, folder, draws, files)
    if json:
        show_json({"command": "claims test", **found.to_dict()})
        return
    show(lay_out(found.table))
    show([f"\n{note}" for note in found.notes])
    show([f"\nRefuted by: {claim.refuted_by}"])


def _examine(
    claim: Any,
    model: str,
    study: Path | None,
    folder: Path,
    draws: Any,
    files: dict[str, Any],
) -> Any:
    """Test a claim on a checkpoint, with a study file's items and decoding."""
    import dataclasses

    from eah_interp.studies.ledger import examine_model
    from eah_interp.studies.study_file import StudyFile

    planned = StudyFile.load(str(study))
    source = dataclasses.replace(planned.source, name=model)
    return examine_model(
        claim,
        source.load(),
        planned.items,
        folder,
        name=model,
        decoding=planned.decoding,
        batch_size=planned.batch_size,
        seed=planned.seed,
        draws=draws,
        **files,
    )
