"""The commands that score answers and captions of any model, from their files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eah_interp.cli.app import app, show, show_json, working
from eah_interp.cli.options import Json

score = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Score answers (POPE) or captions (CHAIR) of any model, from their files.",
)
app.add_typer(score, name="score", rich_help_panel="Commands")


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
    json: Json = False,
) -> None:
    """Score yes/no answers about objects.

    Questions and answers belong together by their question_id, or in order.

        eah-interp score pope answers.jsonl --questions coco_pope_random.json
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.pope import count_turned, score_answers
        from eah_interp.benchmarks.pope_files import (
            match_answers,
            read_pope_answers,
            read_pope_questions,
        )
        from eah_interp.cli.records import record_pope
        from eah_interp.cli.tables import show_pope

        bar.step("scoring")
        matched = match_answers(
            read_pope_questions(questions), read_pope_answers(answers), rule=rule
        )
        record = record_pope(
            score_answers(matched),
            files={"answers": answers, "questions": questions},
            rule=rule,
            n_turned=count_turned(matched),
        )
    if json:
        show_json(record)
    else:
        show(show_pope(record))


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
            "...), or a JSON file of objects by image.",
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
        typer.Option(help="What to do with several captions of one image."),
    ] = "refuse",
    json: Json = False,
) -> None:
    """Score how often captions name objects that are not in the image.

    NLTK and its data are needed; without them, or without one of the files, the error
    says where to get them.

        eah-interp score chair captions.jsonl --annotations coco --synonyms synonyms.txt
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.chair import score_captions
        from eah_interp.benchmarks.chair_files import (
            read_captions,
            read_ground_truth,
        )
        from eah_interp.benchmarks.mentions import (
            find_mentions,
            load_lemmatizer,
            read_synonyms,
        )
        from eah_interp.cli.records import record_chair
        from eah_interp.cli.tables import show_chair

        bar.step("scoring")
        vocabulary = read_synonyms(synonyms)
        table = read_captions(captions, repeats=repeats)
        lemmatize = load_lemmatizer()
        truth = read_ground_truth(
            annotations,
            vocabulary=vocabulary,
            images=set(table.image_id),
            year=year,
            lemmatize=lemmatize,
        )
        named = find_mentions(
            table, truth=truth, vocabulary=vocabulary, lemmatize=lemmatize
        )
        files = {
            "captions": captions,
            "annotations": annotations,
            "synonyms": synonyms,
        }
        record = record_chair(score_captions(named), named, files=files)
    if json:
        show_json(record)
    else:
        show(show_chair(record))
