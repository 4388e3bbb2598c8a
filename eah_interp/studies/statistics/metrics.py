"""What is reported of a study: each a count over a total, so that it can be drawn."""

from dataclasses import dataclass
from typing import Literal

from eah_interp.errors import SettingsError
from eah_interp.studies.plan.items import Task

Better = Literal["higher", "lower", "neither"]

MATCHED = ", length-matched"
"""Both captions of a picture cut at the same number of mentions."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A rate.

    Attributes:
        name: What it is called.
        task: Of which items.
        count: Column that is summed above the line.
        total: Column that is summed below it.
        percent: Whether it is a percentage; else a mean.
        better: Which way is good.
        binary: Whether an item has it or has it not, so that McNemar's test applies.
        matched: Whether captions are cut to one length first; only in comparisons.
    """

    name: str
    task: Task
    count: str
    total: str
    percent: bool = True
    better: Better = "higher"
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
    _answers("F1", "two_hits", "yes_and_present"),
    _answers("precision", "hit", "yes"),
    _answers("recall", "hit", "present"),
    _answers("false positives", "false_alarm", "absent", binary=True, better="lower"),
    _answers("yes-ratio", "yes", "one", better="neither"),
    _answers("neither", "neither", "one", better="neither"),
    _captions("CHAIR_S", "hallucinates", "one", binary=True, better="lower"),
    _captions(
        f"CHAIR_S{MATCHED}",
        "hallucinates",
        "one",
        binary=True,
        better="lower",
        matched=True,
    ),
    _captions("CHAIR_I", "n_absent", "n_mentions", better="lower"),
    _captions(
        f"CHAIR_I{MATCHED}", "n_absent", "n_mentions", better="lower", matched=True
    ),
    _captions("recall", "n_found", "n_truth"),
    _captions("mentions", "n_mentions", "one", percent=False, better="neither"),
    _captions("words", "n_words", "one", percent=False, better="neither"),
    _captions("tokens", "n_tokens", "one", percent=False, better="neither"),
)
"""In the order of the tables."""


def metrics_of(task: Task, *, matched: bool) -> tuple[Metric, ...]:
    """List the metrics of a task, with or without the length-matched ones."""
    return tuple(m for m in METRICS if m.task == task and (matched or not m.matched))


def find_metric(name: str, task: Task) -> Metric:
    """Find a metric by name.

    Raises:
        SettingsError: If there is none.

    Example:
        >>> find_metric("CHAIR_S", "caption").better
        'lower'
    """
    for metric in METRICS:
        if (metric.name, metric.task) == (name, task):
            return metric
    listed = ", ".join(metric.name for metric in METRICS if metric.task == task)
    msg = f"metric of a {task} must be one of {listed}, got {name!r}"
    raise SettingsError(msg)
