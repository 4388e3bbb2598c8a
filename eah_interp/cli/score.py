"""The commands that score answers and captions of any model, from their files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eah_interp.cli.app import App, app, show, show_json, working
from eah_interp.cli.options import Json
from eah_interp.errors import SettingsError

score = App(
    help="Score answers or captions of any model, from their files: POPE, CHAIR, "
    "AMBER, MME, HallusionBench, MMVP.",
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
        from eah_interp.benchmarks.readouts import audit_readouts
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
            audit=audit_readouts(matched),
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


# ---- Benchmarks whose scores lay themselves out.


def _print(name: str, score: Any, files: Mapping[str, Path], *, json: bool) -> None:
    """Print a score that has tables, or the record of it."""
    from eah_interp.cli.layout import lay_out
    from eah_interp.cli.records import record_benchmark

    if json:
        show_json(record_benchmark(name, score, files=files))
    else:
        show(part for table in score.tables for part in lay_out(table))


@score.command()
def amber(
    *,
    answers: Annotated[
        Path,
        typer.Argument(
            help="What a model answered: id and response each.", show_default=False
        ),
    ],
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", help="AMBER's annotations.json.")
    ],
    relations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="AMBER's relation.json, for captions."),
    ] = None,
    safe_words: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="AMBER's safe_words.txt, for captions."),
    ] = None,
    json: Json = False,
) -> None:
    """Score AMBER's yes/no questions and captions, by its script and corrected.

    Nouns of captions are compared as words; the published numbers compare vectors too.

        eah-interp score amber answers.json --annotations annotations.json
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.amber import (
            read_amber_annotations,
            read_amber_answers,
            read_amber_words,
            score_amber,
        )

        if (relations is None) != (safe_words is None):
            msg = "captions need both --relations and --safe-words, got one of them"
            raise SettingsError(msg)
        bar.step("scoring")
        words: Any = (None, frozenset())
        if relations is not None and safe_words is not None:
            words = read_amber_words(relations, safe_words)
        found = score_amber(
            read_amber_answers(answers),
            annotations=read_amber_annotations(annotations),
            relations=words[0],
            safe_words=words[1],
        )
    _print("amber", found, {"answers": answers, "annotations": annotations}, json=json)


@score.command()
def mme(
    *,
    answers: Annotated[
        Path,
        typer.Argument(
            help="A folder of existence.txt and so on, with answers.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Score MME's fourteen tasks, by its script and corrected.

    eah-interp score mme results/
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.mme import read_mme, score_mme

        bar.step("scoring")
        found = score_mme(read_mme(answers))
    _print("mme", found, {"answers": answers}, json=json)


@score.command()
def hallusionbench(
    *,
    answers: Annotated[
        Path,
        typer.Argument(
            help="Answers in the form of HallusionBench.json.", show_default=False
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="HallusionBench.json, where answers lack the truth."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Score HallusionBench by a yes/no parser, by its script's rules and corrected.

    eah-interp score hallusionbench answers.json --questions HallusionBench.json
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.hallusionbench import (
            read_hallusionbench,
            score_hallusionbench,
        )

        bar.step("scoring")
        asked = None if questions is None else read_hallusionbench(questions)
        found = score_hallusionbench(
            read_hallusionbench(answers, answers=True), questions=asked
        )
    files = {"answers": answers}
    if questions is not None:
        files["questions"] = questions
    _print("hallusionbench", found, files, json=json)


@score.command()
def mmvp(
    *,
    answers: Annotated[
        Path,
        typer.Argument(
            help="What a model answered: question_id and response each.",
            show_default=False,
        ),
    ],
    questions: Annotated[
        Path, typer.Option(metavar="FILE", help="MMVP's Questions.csv.")
    ],
    json: Json = False,
) -> None:
    """Score MMVP's pairs; the option is read from the answer, no model judges it.

    eah-interp score mmvp answers.jsonl --questions Questions.csv
    """
    with working() as bar:
        bar.expect(2)
        bar.step("importing pandas and torch")
        from eah_interp.benchmarks.mmvp import (
            read_mmvp_answers,
            read_mmvp_questions,
            score_mmvp,
        )

        bar.step("scoring")
        found = score_mmvp(
            read_mmvp_answers(answers), questions=read_mmvp_questions(questions)
        )
    _print("mmvp", found, {"answers": answers, "questions": questions}, json=json)
