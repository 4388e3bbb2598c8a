"""MMVP: pairs of images that CLIP takes for the same, with one question each."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from eah_interp.arguments import by_name, check_path
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.pope import percent
from eah_interp.benchmarks.records import read_answer, read_records
from eah_interp.benchmarks.scores import FlatScore
from eah_interp.benchmarks.tabulated import tabulate_rates
from eah_interp.errors import InputError, show_value
from eah_interp.foreign_files import read_text
from eah_interp.results import Result
from eah_interp.tables import Table

URL = "https://huggingface.co/datasets/MMVP/MMVP"
"""Where the questions (Questions.csv) and images are."""

_COLUMNS = ("Index", "Question", "Options", "Correct Answer")

_OPTION = re.compile(r"\(([a-z])\)\s*")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MmvpScore(FlatScore, Result):
    """How pairs of images were told apart, in percent.

    Attributes:
        n_pairs: Pairs.
        n: Questions.
        n_unread: Answers in which no option was found; they are wrong.
        accuracy: Share of the questions answered rightly.
        pairs: Share of the pairs with both answered rightly: the published number.
    """

    n_pairs: int
    n: int
    n_unread: int
    accuracy: float
    pairs: float

    PERCENTAGES: ClassVar = ("accuracy", "pairs")
    N_COUNTS: ClassVar = 3

    def _about(self) -> str:
        return f"{self.n} questions of {self.n_pairs} pairs, {self.n_unread} unread"

    def _of(self) -> str:
        return f"{self.n_pairs} pairs"

    @property
    def tables(self) -> tuple[Table, ...]:
        """The results, in words."""
        columns = {
            "n": "n",
            "accuracy": "accuracy",
            "n_pairs": "pairs",
            "pairs": "both right",
            "n_unread": "unread",
        }
        notes = "Percent. Options are read from the answers, not judged by GPT-4."
        return (tabulate_rates("MMVP", {"all": self}, columns, first="", notes=notes),)


def read_mmvp_questions(path: Path | str) -> pd.DataFrame:
    """Read MMVP's questions.

    Args:
        path: `Questions.csv`: Index, Question, Options such as "(a) Open (b) Closed",
            and Correct Answer such as "(a)". Two that follow each other are a pair.

    Returns:
        One row a question: `question_id` (the index), `question`, `options` as they
        stand, `correct` (its letter), `pair` (from 1) and `place`.

    Raises:
        InputError: If it cannot be read, a column is missing, an index stands twice,
            options or an answer are no letters, or a question is left without a pair.
    """
    path = check_path("path", path)
    text = read_text(path)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own are of it
        raise InputError(f"cannot read {path}: {error}; MMVP is at {URL}") from error
    names = {str(name).strip().lstrip("\ufeff").lower(): name for name in table.columns}
    missing = [name for name in _COLUMNS if name.lower() not in names]
    if missing:
        msg = f"{path}: expected the columns {', '.join(_COLUMNS)}, got "
        raise InputError(msg + f"{list(table.columns)}; MMVP is at {URL}")
    rows: list[dict[str, object]] = []
    for number, row in enumerate(table.to_dict("records"), start=1):
        place = f"{path}, question {number}"
        index, question, options, answer = (
            str(row[names[name.lower()]]).strip() for name in _COLUMNS
        )
        letters = list(list_options(options))
        correct = read_option(answer, options)
        if not index.isdecimal() or len(letters) < 2 or correct is None:
            msg = (
                f"{place}: expected a number, options such as '(a) Open (b) Closed' "
                f"and a correct answer such as '(a)', got {index!r}, {options!r} and "
                f"{answer!r}"
            )
            raise InputError(msg)
        rows.append(
            {
                "question_id": int(index),
                "question": question,
                "options": options,
                "correct": correct,
                "pair": (number + 1) // 2,
                "place": place,
            }
        )
    found = pd.DataFrame(rows)
    if not rows or len(rows) % 2 or found.question_id.duplicated().any():
        msg = (
            f"{path}: expected pairs of questions with an index each, got "
            f"{len(rows)} questions of {len({row['question_id'] for row in rows})} "
            "indices"
        )
        raise InputError(msg)
    return found


def read_mmvp_answers(path: Path | str) -> pd.DataFrame:
    """Read answers in the form of MMVP's scripts.

    Args:
        path: JSON lines `{"question_id": 1, "prompt": "...", "answer": "(a)",
            "response": "..."}`, where `answer` is the right one and `response` the
            model's. Without a `response`, the model's is under `answer`, `text` and
            the like.

    Returns:
        One row an answer: `question_id`, `answer` (the model's) and `place`.

    Raises:
        InputError: If it cannot be read, an answer or a question_id is missing, or one
            stands twice.
    """
    rows: list[dict[str, object]] = []
    places: dict[int, str] = {}
    for record in read_records(check_path("path", path)):
        number = record.values.get("question_id")
        if not isinstance(number, int) or isinstance(number, bool):
            got = show_value(number) if "question_id" in record.values else "none"
            msg = f"{record.place}: expected a whole number as question_id, got {got}"
            raise InputError(msg)
        if number in places:
            msg = f"{record.place}: question_id {number} stands in {places[number]} "
            raise InputError(f"{msg}already; expected one each")
        places[number] = record.place
        text = (
            record.text("response")
            if "response" in record.values
            else read_answer(record)[0]
        )
        rows.append({"question_id": number, "answer": text, "place": record.place})
    return pd.DataFrame(rows)


def list_options(options: str) -> dict[str, str]:
    """List options by their letters.

    Example:
        >>> list_options("(a) Open (b) Closed")
        {'a': 'Open', 'b': 'Closed'}
    """
    parts = _OPTION.split(options.strip())
    letters, texts = parts[1::2], parts[2::2]
    return {key: text.strip() for key, text in zip(letters, texts, strict=True)}


def read_option(answer: str, options: str) -> str | None:
    """Read which option an answer takes.

    A letter in brackets, `(a)`, decides where one option's stands alone; else a letter
    that is all of the answer, or its first word, as in `a` or `B.`; else the text of
    one option that is in the answer and no other is, unless it is part of the other.

    Args:
        answer: What the model said.
        options: The options, as MMVP writes them.

    Returns:
        The letter; None where no option, or several, are taken.

    Example:
        >>> options = "(a) Open (b) Closed"
        >>> [read_option(text, options) for text in ("(b)", "A.", "It is open.", "Yes")]
        ['b', 'a', 'a', None]
    """
    known = list_options(options)
    said = answer.casefold()
    bracketed = {letter for letter in known if f"({letter})" in said}
    if bracketed:
        return bracketed.pop() if len(bracketed) == 1 else None
    first = re.match(r"\W*([a-z])(?:[.:)]|\s*$)", said)
    if first and first[1] in known:
        return first[1]
    whole = {
        letter
        for letter, text in known.items()
        if text and re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", said)
    }
    # "Not open" is in an answer wherever "open" is: the longer one is what it says.
    longest = {
        letter
        for letter in whole
        if not any(
            known[letter].casefold() in known[other].casefold()
            for other in whole - {letter}
        )
    }
    return longest.pop() if len(longest) == 1 else None


@by_name
def score_mmvp(answers: pd.DataFrame, *, questions: pd.DataFrame) -> MmvpScore:
    """Score answers as MMVP does: a pair counts if both of its answers are right.

    Source: Tong et al., "Eyes Wide Shut?", 2024 (arXiv:2401.06209), and its
    `gpt_grader.py`. There GPT-4 judges answers, and pairs are lines of the file of
    answers that follow each other, whatever they answer. Here the option is read from
    the answer (`read_option`), and pairs are the benchmark's.

    No released answers were found: this was tried on made files in the published
    format alone.

    Args:
        answers: `question_id` and `answer`, as `read_mmvp_answers` returns them.
        questions: As `read_mmvp_questions` returns them.

    Returns:
        The score.

    Raises:
        InputError: If a column is missing, or a question has no answer or an answer no
            question.
    """
    check_table(
        "answers", answers, unique="question_id", question_id="key", answer="text"
    )
    check_table(
        "questions",
        questions,
        unique="question_id",
        question_id="key",
        options="text",
        correct="text",
        pair="key",
    )
    given = dict(zip(answers.question_id, answers.answer, strict=True))
    asked = set(questions.question_id)
    unanswered, unasked = asked - set(given), set(given) - asked
    if unanswered or unasked:
        msg = (
            f"expected one answer to each question, got {len(unanswered)} questions "
            f"without an answer and {len(unasked)} answers without a question, such as "
            f"question_id {min(unanswered or unasked, key=str)}"
        )
        raise InputError(msg)
    texts = [str(given[number]) for number in questions.question_id]
    read = list(map(read_option, texts, questions.options))
    right = pd.Series(
        [one == truth for one, truth in zip(read, questions.correct, strict=True)]
    )
    both = right.groupby(questions.pair.to_numpy()).all()
    return MmvpScore(
        n_pairs=len(both),
        n=len(right),
        n_unread=read.count(None),
        accuracy=percent(int(right.sum()), len(right)),
        pairs=percent(int(both.sum()), len(both)),
    )
