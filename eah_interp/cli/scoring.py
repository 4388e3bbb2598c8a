"""What `eah-interp score` reads, and how it shows what it found."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.benchmarks.chair import ChairScore, score_captions
from eah_interp.benchmarks.chair_files import (
    Repeats,
    read_captions,
    read_ground_truth,
)
from eah_interp.benchmarks.mentions import (
    find_mentions,
    load_lemmatizer,
    read_synonyms,
)
from eah_interp.benchmarks.pope import PopeScore, Rule, score_answers
from eah_interp.benchmarks.pope_files import (
    match_answers,
    read_pope_answers,
    read_pope_questions,
)
from eah_interp.report.reading import list_versions

_OFTEN = 5


@dataclasses.dataclass(frozen=True)
class ScoredAnswers:
    """A file of answers, scored.

    Attributes:
        score: The score.
        rule: How the answers were read.
        files: What was read.
    """

    score: PopeScore
    rule: Rule
    files: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold; null where nothing can be said."""
        return {
            "command": "score pope",
            "versions": list_versions(),
            "files": {name: str(path) for name, path in self.files.items()},
            "rule": self.rule,
            "score": _without_nan(self.score),
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out: the rates, then the counts they are of."""
        score = self.score
        yield Text(f"POPE, {score.n} answers, read by the rule {self.rule!r}\n")
        n_yes, n_absent = score.tp + score.fp, score.fp + score.tn
        table = _table()
        for name, value, said in (
            ("accuracy", score.accuracy, f"{score.tp + score.tn} of {score.n} answers"),
            ("precision", score.precision, f"{score.tp} of {n_yes} yes"),
            ("recall", score.recall, f"{score.tp} of {score.tp + score.fn} present"),
            ("F1", score.f1, ""),
            ("yes ratio", score.yes_ratio, f"{n_yes} of {score.n} answers"),
            ("wrong yes", score.false_positives, f"{score.fp} of {n_absent} absent"),
        ):
            table.add_row(name, _say(value), said)
        yield table
        yield Text(
            f"\nTP {score.tp}, FP {score.fp}, TN {score.tn}, FN {score.fn}. "
            f"{score.n_neither} answers have no word of yes or no; the rule counts "
            "them as yes.",
            style="dim",
        )


@dataclasses.dataclass(frozen=True)
class ScoredCaptions:
    """A file of captions, scored.

    Attributes:
        score: The score.
        captions: The table it is of.
        files: What was read.
    """

    score: ChairScore
    captions: pd.DataFrame
    files: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Write it as a mapping that JSON can hold, every caption's objects too."""
        columns = ["image_id", "mentions", "absent", "n_tokens"]
        return {
            "command": "score chair",
            "versions": list_versions(),
            "files": {name: str(path) for name, path in self.files.items()},
            "score": _without_nan(self.score),
            "captions": self.captions[columns].to_dict("records"),
        }

    def show(self) -> Iterator[RenderableType]:
        """Lay it out: the rates with what they are of, and the usual suspects."""
        score = self.score
        yield Text(f"CHAIR, {score.n} captions\n")
        table = _table()
        said_s = f"{score.n_hallucinating} of {score.n} captions"
        said_i = f"{score.n_absent} of {score.n_mentions} mentions"
        for name, value, said in (
            ("CHAIR_S", score.chair_s, said_s),
            ("CHAIR_I", score.chair_i, said_i),
            ("recall", score.recall, f"{score.n_found} of {score.n_truth} objects"),
            ("mentions", score.mentions, "a caption"),
            ("words", score.words, "a caption"),
        ):
            table.add_row(name, _say(value), said)
        yield table
        often = Counter(name for names in self.captions.absent for name in names)
        if often:
            said = ", ".join(f"{name} {n}" for name, n in often.most_common(_OFTEN))
            yield Text(f"\nMost often named though absent: {said}.", style="dim")
        yield Text(
            "\nShorter captions have a lower CHAIR too: read it beside recall, "
            "mentions and words.",
            style="dim",
        )


def score_pope_files(
    answers: Path, *, questions: Path, rule: Rule = "pope"
) -> ScoredAnswers:
    """Score a file of answers.

    Raises:
        InputError: If a file is not as expected, or they do not belong together.
    """
    asked, given = read_pope_questions(questions), read_pope_answers(answers)
    score = score_answers(match_answers(asked, given, rule=rule))
    return ScoredAnswers(score, rule, {"answers": answers, "questions": questions})


def score_chair_files(
    captions: Path,
    *,
    annotations: Path,
    synonyms: Path,
    year: int = 2014,
    repeats: Repeats = "refuse",
) -> ScoredCaptions:
    """Score a file of captions.

    Raises:
        InputError: If a file is missing or not as expected.
        ExtraMissingError: If NLTK, or its data, is not installed.
    """
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
    found = find_mentions(
        table, truth=truth, vocabulary=vocabulary, lemmatize=lemmatize
    )
    files = {"captions": captions, "annotations": annotations, "synonyms": synonyms}
    return ScoredCaptions(score_captions(found), found, files)


def _table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table


def _say(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.1f}"


def _without_nan(score: PopeScore | ChairScore) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in dataclasses.asdict(score).items()
    }
