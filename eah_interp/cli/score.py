"""The commands that score answers and captions of any model, from their files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eah_interp.cli.app import app, show, show_json, working

score = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Score answers (POPE) or captions (CHAIR) of any model, from their files.",
)
app.add_typer(score, name="score", rich_help_panel="Commands")

Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON instead.", rich_help_panel="Output"),
]


@score.command()
def pope(
    *,
    answers: Annotated[
        Path,
        typer.Argument(
            help="What a model answered, as JSON lines: question and answer.",
            show_default=False,
        ),
    ],
    questions: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The questions with their labels, as JSON lines."
        ),
    ],
    rule: Annotated[
        Literal["pope", "opera"],
        typer.Option(help="Whose rule says what is a yes."),
    ] = "pope",
    as_json: Json = False,
) -> None:
    """Score yes/no answers about objects.

    Questions and answers belong together by their question_id, or in order.

        eah-interp score pope answers.jsonl --questions coco_pope_random.json
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.cli.scoring import score_pope_files

        bar.step("scoring")
        result = score_pope_files(answers, questions=questions, rule=rule)
    if as_json:
        show_json(result.to_dict())
    else:
        show(result.show())


@score.command()
def chair(
    *,
    captions: Annotated[
        Path,
        typer.Argument(
            help="Captions, as JSON lines: image_id and caption.", show_default=False
        ),
    ],
    annotations: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="COCO's annotations (instances_val2014.json, captions_val2014.json, "
            "...), or a JSON file of objects by picture.",
        ),
    ],
    synonyms: Annotated[
        Path,
        typer.Option(metavar="FILE", help="CHAIR's synonym list, synonyms.txt."),
    ],
    year: Annotated[
        int, typer.Option(metavar="YEAR", help="Of COCO's annotations.")
    ] = 2014,
    repeats: Annotated[
        Literal["refuse", "count"],
        typer.Option(help="What to do with several captions of one picture."),
    ] = "refuse",
    as_json: Json = False,
) -> None:
    """Score how often captions name objects that are not in the picture.

    NLTK and its data are needed; without them, or without one of the files, the error
    says where to get them.

        eah-interp score chair captions.jsonl --annotations coco --synonyms synonyms.txt
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.cli.scoring import score_chair_files

        bar.step("scoring")
        result = score_chair_files(
            captions,
            annotations=annotations,
            synonyms=synonyms,
            year=year,
            repeats=repeats,
        )
    if as_json:
        show_json(result.to_dict())
    else:
        show(result.show())
