"""What is reported of answers and captions: rates, each a count over a total."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import pandas as pd

from eah_interp.benchmarks.chair import count_mentions
from eah_interp.kinds import register

Task: TypeAlias = Literal["yes_no", "caption", "choice"]
"""A question to be answered with yes or no, an image to be described, or a question
with options of which one is to be taken."""

ALL = "all"
"""The kind of question that stands for every kind."""


def count_captions(captions: pd.DataFrame) -> pd.DataFrame:
    """Count what CHAIR and its companions are made of, for each caption.

    Args:
        captions: A row a caption: `item`, `condition`, `cluster`, `n_tokens`, and what
            `count_mentions` reads.

    Returns:
        The captions with `one`, `hallucinates`, `n_tokens`, `two_found` and
        `named_and_there` (of which F1 is made), and what `count_mentions` counts.
    """
    counts = count_mentions(captions)
    counts["one"] = 1
    counts["hallucinates"] = (counts.n_absent > 0).astype(int)
    counts["two_found"] = 2 * counts.n_found
    counts["named_and_there"] = counts.n_objects + counts.n_truth
    counts["n_tokens"] = captions.n_tokens.fillna(0).astype(int)
    keys = captions[["item", "condition", "cluster"]]
    return pd.concat([keys, counts], axis=1)


def count_yes_no(
    yes: pd.Series, present: pd.Series, neither: pd.Series
) -> pd.DataFrame:
    """Count what metrics of yes/no answers are made of, for each answer.

    Args:
        yes: Whether it says yes.
        present: Whether yes is right.
        neither: Whether it is neither yes nor no.

    Returns:
        Zeros and ones: `one`, `right`, `yes`, `present`, `absent`, `hit`,
        `false_alarm`, `neither`.
    """
    yes, present = yes.astype(bool), present.astype(bool)
    counts = {
        "one": pd.Series(data=True, index=yes.index),
        "right": yes == present,
        "yes": yes,
        "present": present,
        "absent": ~present,
        "hit": yes & present,
        "false_alarm": yes & ~present,
        "neither": neither.astype(bool),
    }
    return pd.DataFrame(counts).astype(int)


# ---- What is reported of a study: each a count over a total, so that it can be drawn.


MATCHED = ", length-matched"
"""Both captions of an image cut at the same number of different objects."""


@register
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A rate.

    Attributes:
        name: What it is called.
        task: Of which items.
        count: Column that is summed above the line.
        total: Column that is summed below it.
        percent: Whether it is a percentage; else a mean.
        binary: Whether an item has it or has it not, so that McNemar's test applies.
        matched: Whether captions are cut to one length first; only in comparisons.
    """

    name: str
    task: Task
    count: str
    total: str
    percent: bool = True
    binary: bool = False
    matched: bool = False

    @property
    def scale(self) -> float:
        """What a rate is multiplied with."""
        return 100.0 if self.percent else 1.0


def _answers(name: str, count: str, total: str, **more: object) -> Metric:
    return Metric(name=name, task="yes_no", count=count, total=total, **more)  # type: ignore[arg-type]


def _captions(name: str, count: str, total: str, **more: object) -> Metric:
    return Metric(name=name, task="caption", count=count, total=total, **more)  # type: ignore[arg-type]


METRICS = (
    _answers("accuracy", "right", "one", binary=True),
    # 2 hits / (yes + present) is the harmonic mean, as a count over a total.
    _answers("F1", "two_hits", "yes_and_present"),
    _answers("precision", "hit", "yes"),
    _answers("recall", "hit", "present"),
    _answers("false positives", "false_alarm", "absent", binary=True),
    _answers("yes-ratio", "yes", "one"),
    _answers("neither", "neither", "one"),
    _captions("CHAIR_S", "hallucinates", "one", binary=True),
    _captions(
        f"CHAIR_S{MATCHED}",
        "hallucinates",
        "one",
        binary=True,
        matched=True,
    ),
    _captions("CHAIR_I", "n_absent", "n_mentions"),
    _captions(f"CHAIR_I{MATCHED}", "n_absent", "n_mentions", matched=True),
    _captions("recall", "n_found", "n_truth"),
    _captions("mentions", "n_mentions", "one", percent=False),
    _captions("objects", "n_objects", "one", percent=False),
    _captions("words", "n_words", "one", percent=False),
    _captions("tokens", "n_tokens", "one", percent=False),
    _captions("distinct 4-grams", "n_distinct_4grams", "n_4grams"),
)
"""In the order of the tables."""


COMPARED = (
    *(metric for metric in METRICS if metric.task == "yes_no"),
    _captions("CHAIR_S", "hallucinates", "one", binary=True),
    _captions("CHAIR_I", "n_absent", "n_mentions"),
    _captions("recall", "n_found", "n_truth"),
    _captions("precision", "n_found", "n_objects"),
    _captions("F1", "two_found", "named_and_there"),
    _captions("mentions", "n_mentions", "one", percent=False),
    _captions("objects", "n_objects", "one", percent=False),
    _captions("words", "n_words", "one", percent=False),
    _captions("distinct 4-grams", "n_distinct_4grams", "n_4grams"),
    _captions("loops", "loops", "one", binary=True),
)
"""What files of outputs are compared in; of captions each also length-matched."""


def metrics_of(task: Task, *, matched: bool) -> tuple[Metric, ...]:
    """List the metrics of a task, with or without the length-matched ones."""
    return tuple(m for m in METRICS if m.task == task and (matched or not m.matched))
