"""A condition against another, on the same items, with intervals and tests."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from eah_interp.benchmarks.metrics import ALL, Metric, Task, metrics_of
from eah_interp.benchmarks.paired import Draws, Pair, sum_by_image
from eah_interp.kinds import register
from eah_interp.statistics import Effect, adjust_holm
from eah_interp.studies.scores import ScoredRows


@register
@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric under a condition, with its interval.

    Attributes:
        condition: The condition.
        metric: The metric.
        kind: Of which questions; `all` of them, or of captions.
        n: Items.
        effect: The value and its interval; None where it is not defined.
        undefined: Why it is not.
    """

    condition: str
    metric: Metric
    kind: str
    n: int
    effect: Effect | None
    undefined: str = ""


@register
@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How a metric changed from one condition to another, on items that both have.

    Attributes:
        condition: The condition.
        reference: What it is compared with.
        metric: The metric.
        kind: Of which questions; `all` of them, or of captions.
        n: Items that both conditions answered.
        n_dropped: Items that one of the two answered, and that are left out.
        effect: The change, condition minus reference: points of a percentage, or of
            a mean; None where it is not defined.
        undefined: Why it is not.
        gained: Items that have the outcome under the condition only; None where the
            metric is not of single items.
        lost: Items that have it under the reference only.
        p: Of McNemar's exact test.
        p_holm: The same, adjusted for all tests of the summary; None where the
            comparison is not of that family.
        odds: gained / lost.
        h: Cohen's h of the two rates.
    """

    condition: str
    reference: str
    metric: Metric
    kind: str
    n: int
    n_dropped: int
    effect: Effect | None = None
    undefined: str = ""
    gained: int | None = None
    lost: int | None = None
    p: float | None = None
    p_holm: float | None = None
    odds: Effect | None = None
    h: Effect | None = None


def score_conditions(
    rows: ScoredRows, conditions: Sequence[str], *, draws: Draws
) -> tuple[Score, ...]:
    """Score every condition, with intervals over images.

    Args:
        rows: The answers.
        conditions: Names, in order.
        draws: How intervals are drawn.

    Returns:
        The scores, of every kind of question and of the captions.
    """
    found = []
    for condition in conditions:
        for task, kind, table in _tables(rows, condition):
            metrics = metrics_of(task, matched=False)
            drawn = sum_by_image([table], metrics, draws=draws)
            for at, metric in enumerate(metrics):
                found.append(
                    Score(
                        condition=condition,
                        metric=metric,
                        kind=kind,
                        n=len(table),
                        **drawn.level(at),
                    )
                )
    return tuple(found)


def contrast_conditions(
    rows: ScoredRows,
    condition: str,
    *,
    reference: str,
    draws: Draws,
    reference_rows: ScoredRows | None = None,
) -> tuple[Contrast, ...]:
    """Compare a condition with another, in every metric and kind.

    An item that failed under one of the two is left out of both.

    Args:
        rows: The answers.
        condition: What is compared.
        reference: With what.
        draws: How intervals are drawn.
        reference_rows: Where the reference's answers are, if in another study.

    Returns:
        The contrasts; p-values are not adjusted yet (`adjust_family`).
    """
    others = {
        (task, kind): table
        for task, kind, table in _tables(reference_rows or rows, reference)
    }
    found: list[Contrast] = []
    for task, kind, table in _tables(rows, condition):
        if (task, kind) not in others:
            continue
        pair = Pair.of(others[task, kind], table)
        for metric, values in pair.contrast(task, draws=draws):
            found.append(
                Contrast(
                    condition=condition,
                    reference=reference,
                    metric=metric,
                    kind=kind,
                    n=len(pair.before),
                    n_dropped=pair.n_dropped,
                    **values,
                )
            )
    return tuple(found)


def _tables(
    rows: ScoredRows, condition: str
) -> Iterator[tuple[Task, str, pd.DataFrame]]:
    asked = rows.questions[rows.questions.condition == condition]
    if len(asked):
        yield "yes_no", ALL, asked
        kinds = list(dict.fromkeys(asked.kind))
        for kind in kinds if len(kinds) > 1 else ():
            yield "yes_no", kind, asked[asked.kind == kind]
    told = rows.captions[rows.captions.condition == condition]
    if len(told):
        yield "caption", ALL, told


def adjust_family(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Adjust the p-values of all comparisons over all questions, and over captions.

    Comparisons of single kinds of questions are parts of those over all of them: they
    keep their interval and get no adjusted p-value.
    """
    family = [
        at for at, one in enumerate(contrasts) if one.p is not None and one.kind == ALL
    ]
    adjusted = adjust_holm([float(contrasts[at].p or 0.0) for at in family])
    found = list(contrasts)
    for at, value in zip(family, adjusted, strict=True):
        found[at] = dataclasses.replace(found[at], p_holm=value)
    return tuple(found)
