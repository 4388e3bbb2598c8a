"""POPE: yes/no questions about objects, half of them about absent ones."""

from dataclasses import dataclass

import pandas as pd

from eah_interp.errors import InputError

PRESENT, ANSWER, NEITHER = "present", "says_yes", "neither"
"""Columns of an answer table: the truth, what was answered (missing: nothing that can
be counted), and optionally whether a rule had to guess it."""


@dataclass(frozen=True, kw_only=True)
class PopeScore:
    """How yes/no questions were answered; "yes" is the positive class.

    Rates are percentages, NaN where nothing can be said (no "yes" was given, say). An
    answer that is missing counts as wrong.

    Attributes:
        n: Questions.
        accuracy: Share answered rightly.
        precision: Share of the "yes" answers that are right.
        recall: Share of the present objects answered with "yes".
        f1: Harmonic mean of precision and recall.
        false_positives: Share of the absent objects answered with "yes".
        yes_ratio: Share answered with "yes".
        n_neither: Answers that are neither yes nor no; those that a parsing rule
            takes for one of them all the same are among the counts below.
        tp: Present objects answered with "yes".
        fp: Absent objects answered with "yes".
        tn: Absent objects answered with "no".
        fn: Present objects answered with "no".
    """

    n: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    false_positives: float
    yes_ratio: float
    n_neither: int
    tp: int
    fp: int
    tn: int
    fn: int


def score_answers(answers: pd.DataFrame) -> PopeScore:
    """Score yes/no answers as POPE does.

    Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language
    Models", 2023 (arXiv:2305.10355).

    Args:
        answers: One row a question: `present`, whether the object is there, and
            `says_yes`, the answer, missing where it was neither yes nor no.
            `neither`, where there is such a column, marks answers that a rule
            counts though they are neither (`match_answers` makes it).

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
    neither = given.isna()
    if NEITHER in answers:
        neither |= answers[NEITHER].astype(bool)
    tp, fp = int((yes & truth).sum()), int((yes & ~truth).sum())
    tn, fn = int((no & ~truth).sum()), int((no & truth).sum())
    n_yes, n_present = int(yes.sum()), int(truth.sum())
    return PopeScore(
        n=len(answers),
        accuracy=percent(tp + tn, len(answers)),
        precision=percent(tp, n_yes),
        recall=percent(tp, n_present),
        # From the counts: NaN only where nothing is present and no "yes" was given.
        f1=percent(2 * tp, n_yes + n_present),
        false_positives=percent(fp, int((~truth).sum())),
        yes_ratio=percent(n_yes, len(answers)),
        n_neither=int(neither.sum()),
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
    )


def percent(count: int, total: int) -> float:
    """Return a count as a percentage of a total; NaN of nothing.

    Example:
        >>> percent(1, 8), percent(0, 0)
        (12.5, nan)
    """
    return 100 * count / total if total else float("nan")
