"""A condition against another, on the same items, with intervals and tests."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.arguments import by_name
from eah_interp.benchmarks.metrics import ALL, Metric, Task, metrics_of
from eah_interp.benchmarks.paired import Draws, Pair, sum_by_image
from eah_interp.benchmarks.tabulated import spread_effect
from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_list
from eah_interp.kinds import register
from eah_interp.results import Result
from eah_interp.statistics import Effect, adjust_holm
from eah_interp.studies.scores import ScoredRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Contrast(Result):
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

    def __str__(self) -> str:
        """Write the change, its interval and its p-values on one line.

        Example:
            >>> from eah_interp.benchmarks.metrics import metrics_of
            >>> accuracy = metrics_of("yes_no", matched=False)[0]
            >>> drop = Effect(estimate=-10.0, low=-20.0, high=-1.7, level=0.95, n=20)
            >>> found = Contrast(
            ...     condition="off", reference="plain", metric=accuracy, kind="all",
            ...     n=120, n_dropped=0, effect=drop, p=0.0018, p_holm=0.0037,
            ... )
            >>> print(found)
            accuracy, off minus plain: -10.0 [-20.0, -1.7] points (95 %, 120 items of \
20 images), p = 0.0018, Holm 0.0037
        """
        which = "" if self.kind == ALL else f" ({self.kind})"
        told = f"{self.metric.name}{which}, {self.condition} minus {self.reference}: "
        if self.effect is None:
            return f"{told}undefined, {self.undefined} ({self.n} items)"
        percent = self.metric.percent
        effect = self.effect.write(1 if percent else 2, of="images")
        told += f"{effect}{' points' if percent and self.effect.is_determined else ''} "
        of = f"{self.effect.n} images"
        items = of if self.n == self.effect.n else f"{self.n} items of {of}"
        told += f"({100 * self.effect.level:g} %, {items})"
        if self.p is not None:
            told += f", p {_write_p(self.p)}"
        if self.p_holm is not None:
            told += f", Holm {_write_p(self.p_holm).removeprefix('= ')}"
        return told

    def frame(self) -> pd.DataFrame:
        """List every number, in one row.

        Returns:
            `condition`, `reference`, `task`, `kind` and `metric`; `change` with `low`
            and `high`, McNemar's `gained`, `lost`, `p`, `p_holm`, the odds ratio and
            Cohen's h with their intervals; `undefined` says why there is no number.
        """
        keys = {"condition": self.condition, "reference": self.reference}
        of = {"task": self.metric.task, "kind": self.kind, "metric": self.metric.name}
        return pd.DataFrame([keys | of | self.list_numbers()])

    def list_numbers(self) -> dict[str, Any]:
        """List the numbers by the names that they have in tables."""
        return {
            "n_paired": self.n,
            "n_dropped": self.n_dropped,
            "gained": self.gained,
            "lost": self.lost,
            "p": self.p,
            "p_holm": self.p_holm,
            "undefined": self.undefined,
            **spread_effect(self.effect, "change", "low", "high"),
            **spread_effect(self.odds, "odds", "odds_low", "odds_high"),
            **spread_effect(self.h, "h", "h_low", "h_high"),
        }

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the change with its interval.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.studies import plot_effects

        name = f"{self.condition} minus {self.reference}"
        axis = name_axis(self.metric)
        return plot_effects({"change": {name: self.effect}}, axis=axis, ax=ax)

    def _about(self) -> str:
        return str(self)

    def _first(self, k: int) -> pd.DataFrame:
        chosen = ["gained", "lost", "odds", "odds_low", "odds_high", "h"]
        return self.frame()[chosen].head(k)


def name_axis(metric: Metric) -> str:
    """Write what the change of a metric is drawn on."""
    unit = "points" if metric.percent else "a caption"
    return f"change of {metric.name} ({unit})"


def _write_p(p: float) -> str:
    return f"= {p:.4f}" if p >= LEAST_P else f"< {LEAST_P}"


LEAST_P = 0.0001
"""A smaller p-value is written as smaller than this."""


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
        The contrasts; p-values are not adjusted yet (`adjust_summary`).
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


@by_name
def adjust_family(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Adjust the p-values of the comparisons that were asked, by Holm's method.

    A summary's own `p_holm` counts all that it compared with its one reference. Where
    a question is a few comparisons, perhaps with several references, those few are
    the family.

    Args:
        contrasts: What was asked, as `StudySummary.find` gives it.

    Returns:
        The same, with `p_holm` of this family; None where there is no test.

    Raises:
        InputError: If something else is among them.
        ExtraMissingError: If statsmodels is not installed.
    """
    listed = to_list(contrasts)
    if listed is None or not all(isinstance(one, Contrast) for one in listed):
        got = show_value(contrasts)
        msg = f"contrasts must be a list of what summary.find() gives, got {got}"
        raise InputError(msg)
    family = [one for one in listed if one.p is not None]
    adjusted = iter(adjust_holm([float(one.p or 0.0) for one in family]))
    return tuple(
        one if one.p is None else dataclasses.replace(one, p_holm=next(adjusted))
        for one in listed
    )


def adjust_summary(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Adjust the p-values of all comparisons over all questions, and over captions.

    Comparisons of single kinds of questions are parts of those over all of them: they
    keep their interval and get no adjusted p-value.
    """
    whole = iter(adjust_family([one for one in contrasts if one.kind == ALL]))
    return tuple(next(whole) if one.kind == ALL else one for one in contrasts)
