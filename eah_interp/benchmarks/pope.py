"""POPE: yes/no questions about objects, half of them about absent ones."""

from dataclasses import dataclass

import pandas as pd

from eah_interp.errors import InputError

PRESENT, ANSWER = "present", "says_yes"
"""Columns of an answer table: the truth, and what was answered (missing: neither)."""


@dataclass(frozen=True, kw_only=True)
class PopeScore:
    """How yes/no questions were answered; "yes" is the positive class.

    Rates are percentages, NaN where nothing can be said (no "yes" was given, say).
    An answer that is neither yes nor no counts as wrong, and is counted.

    Attributes:
        n: Questions.
        accuracy: Share answered rightly.
        precision: Share of the "yes" answers that are right.
        recall: Share of the present objects answered with "yes".
        f1: Harmonic mean of precision and recall.
        false_positives: Share of the absent objects answered with "yes".
        yes_ratio: Share answered with "yes".
        n_neither: Answers that are neither.
    """

    n: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    false_positives: float
    yes_ratio: float
    n_neither: int


def score_answers(answers: pd.DataFrame) -> PopeScore:
    """Score yes/no answers as POPE does.

    Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language
    Models", 2023.

    Args:
        answers: One row a question: `present`, whether the object is there, and
            `says_yes`, the answer, missing where it was neither yes nor no.

    Returns:
        The score.

    Raises:
        InputError: If the table is empty or lacks a column.

    Example:
        >>> table = pd.DataFrame({"present": [True, False], "says_yes": [True, True]})
        >>> score = score_answers(table)
        >>> score.accuracy, score.recall, score.false_positives
        (50.0, 100.0, 100.0)
    """
    missing = [name for name in (PRESENT, ANSWER) if name not in answers]
    if missing or answers.empty:
        msg = (
            f"expected at least one answer with columns {PRESENT!r} and {ANSWER!r}, "
            f"got {len(answers)} rows with columns {list(answers.columns)}"
        )
        raise InputError(msg)
    truth = answers[PRESENT].astype(bool)
    given = answers[ANSWER].astype("boolean")
    yes, no = given.fillna(False).astype(bool), (~given).fillna(False).astype(bool)  # noqa: FBT003 - pandas' own signature
    hits, false_alarms = int((yes & truth).sum()), int((yes & ~truth).sum())
    precision = percent(hits, int(yes.sum()))
    recall = percent(hits, int(truth.sum()))
    return PopeScore(
        n=len(answers),
        accuracy=percent(hits + int((no & ~truth).sum()), len(answers)),
        precision=precision,
        recall=recall,
        # From the counts: NaN only where nothing is present and no "yes" was given.
        f1=percent(2 * hits, int(yes.sum()) + int(truth.sum())),
        false_positives=percent(false_alarms, int((~truth).sum())),
        yes_ratio=percent(int(yes.sum()), len(answers)),
        n_neither=int(given.isna().sum()),
    )


def percent(count: int, total: int) -> float:
    """Return a count as a percentage of a total; NaN of nothing.

    Example:
        >>> percent(1, 8), percent(0, 0)
        (12.5, nan)
    """
    return 100 * count / total if total else float("nan")
