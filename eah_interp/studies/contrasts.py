"""A condition against another, on the same items, with intervals and tests."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from eah_interp.arguments import check_kind
from eah_interp.benchmarks.chair import match_lengths
from eah_interp.errors import InputError, SettingsError
from eah_interp.statistics import (
    Effect,
    Sums,
    adjust_holm,
    check_draws,
    cohens_h,
    compare_outcomes,
    estimate_odds,
    percentile_effect,
    resample_sums,
)
from eah_interp.studies.items import Task
from eah_interp.studies.scores import (
    ALL,
    Metric,
    ScoredRows,
    count_captions,
    metrics_of,
)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How intervals are drawn.

    Attributes:
        level: Confidence level.
        resamples: Bootstrap samples of images.
        seed: Seeds them.
    """

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_draws(level=self.level, resamples=self.resamples, seed=self.seed)


def check_drawing(draws: object) -> Draws:
    """Check how intervals are to be drawn; `Draws()` where nothing is said.

    Raises:
        SettingsError: If it is something else.
    """
    given = Draws() if draws is None else draws
    return check_kind(
        "draws", given, Draws, expected="Draws(...) or None", error=SettingsError
    )


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


# ---- The same items under two conditions: what is dropped, cut, and compared.


@dataclass(frozen=True)
class Pair:
    """The same items under two conditions, row by row.

    Attributes:
        before: Under the reference.
        after: Under the condition.
        n_dropped: Items that only one of the two has.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    n_dropped: int = 0

    @classmethod
    def of(cls, before: pd.DataFrame, after: pd.DataFrame) -> "Pair":
        """Pair what both have, in the order of the first."""
        first, second = before.set_index("item"), after.set_index("item")
        both = [item for item in first.index if item in second.index]
        old, new = first.loc[both].reset_index(), second.loc[both].reset_index()
        n_dropped = len(first) + len(second) - 2 * len(both)
        return cls(old, new.assign(cluster=old.cluster), n_dropped)

    def matched(self) -> "Pair":
        """Cut both captions of an image at the same number of different objects."""
        return Pair(
            match_lengths(self.before, other=self.after),
            match_lengths(self.after, other=self.before),
            self.n_dropped,
        )

    def contrast(
        self, task: Task, *, draws: Draws
    ) -> Iterator[tuple[Metric, Mapping[str, Any]]]:
        """Compare both in every metric of a task.

        Yields:
            The metric, and values of a `Contrast` by name.
        """
        if self.before.empty:
            for metric in metrics_of(task, matched=True):
                yield metric, {"undefined": "no item was answered under both"}
            return
        found: dict[str, Mapping[str, Any]] = {}
        for cut in (False, True) if task == "caption" else (False,):
            side = self.matched() if cut else self
            metrics = [m for m in metrics_of(task, matched=True) if m.matched == cut]
            tables = (side.before, side.after)
            drawn = sum_by_image(tables, metrics, draws=draws)
            for at, metric in enumerate(metrics):
                values = dict(drawn.change(at))
                if metric.binary:
                    values["h"] = drawn.size(at)
                    values |= _test(
                        count_rows(side.before),
                        count_rows(side.after),
                        metric,
                        draws=draws,
                    )
                found[metric.name] = values
        for metric in metrics_of(task, matched=True):
            yield metric, found[metric.name]


def _test(
    before: pd.DataFrame, after: pd.DataFrame, metric: Metric, *, draws: Draws
) -> Mapping[str, Any]:
    """Test a metric that an item has or has not, where it applies to the item."""
    applies = (before[metric.total] > 0).to_numpy()
    if not applies.any():
        return {}
    old, new = (
        torch.from_numpy(side[metric.count].to_numpy()[applies] > 0)
        for side in (before, after)
    )
    found = compare_outcomes(old, new)
    odds = None
    if found.gained + found.lost:
        odds = estimate_odds(found.gained, found.lost, level=draws.level)
    return {"gained": found.gained, "lost": found.lost, "p": found.p, "odds": odds}


# ---- Sums by image, and over drawn images: where every interval of a study comes from.


@dataclass(frozen=True)
class DrawnSums:
    """Counts and totals of metrics, on one side or on two, and over drawn images.

    Attributes:
        metrics: The metrics.
        draws: How intervals are drawn.
        sums: A count and a total for each metric, side by side; None where there is
            nothing to draw from.
        reason: Why there is not.
    """

    metrics: tuple[Metric, ...]
    draws: Draws
    sums: Sums | None
    reason: str = ""

    def level(self, at: int) -> Mapping[str, Any]:
        """Estimate a metric: `effect`, or why it is `undefined`."""
        if self.sums is None:
            return {"effect": None, "undefined": self.reason}
        value, drawn = self._rates(self.sums, at)
        metric = self.metrics[at]
        bounds = (0.0, 100.0) if metric.percent else None
        return self._estimate(metric.scale * value, metric.scale * drawn, bounds)

    def change(self, at: int) -> Mapping[str, Any]:
        """Estimate a metric's change, second side minus first."""
        if self.sums is None:
            return {"effect": None, "undefined": self.reason}
        (old, olds), (new, news) = self._both(self.sums, at)
        metric = self.metrics[at]
        bounds = (-100.0, 100.0) if metric.percent else None
        value, drawn = metric.scale * (new - old), metric.scale * (news - olds)
        return self._estimate(value, drawn, bounds)

    def size(self, at: int) -> Effect | None:
        """Estimate a change as Cohen's h; None where it is not defined."""
        if self.sums is None:
            return None
        (old, olds), (new, news) = self._both(self.sums, at)
        whole = cohens_h(torch.tensor(old), torch.tensor(new))
        found = self._estimate(float(whole), cohens_h(olds, news), None)
        effect: Effect | None = found["effect"]
        return effect

    def _both(self, sums: Sums, at: int) -> Any:
        return self._rates(sums, at), self._rates(sums, len(self.metrics) + at)

    @staticmethod
    def _rates(sums: Sums, at: int) -> tuple[float, torch.Tensor]:
        count, total = 2 * at, 2 * at + 1
        whole = sums.whole[count] / sums.whole[total]
        return float(whole), sums.drawn[:, count] / sums.drawn[:, total]

    def _estimate(
        self, value: float, drawn: torch.Tensor, bounds: tuple[float, float] | None
    ) -> Mapping[str, Any]:
        n, level = self.sums.n if self.sums is not None else 0, self.draws.level
        try:
            effect = percentile_effect(value, drawn, level=level, n=n)
        except InputError as error:
            return {"effect": None, "undefined": str(error)}
        if effect.is_determined:
            return {"effect": effect, "undefined": ""}
        if bounds is None:
            reason = f"the same in all {n} images: no spread to draw an interval from"
            return {"effect": None, "undefined": reason}
        # No image differs from the others. That says how rare one that does may be
        # (Clopper and Pearson's interval of 0 in n), and not that there is none.
        half = bounds[1] * (1 - ((1 - level) / 2) ** (1 / n))
        low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
        return {"effect": replace(effect, low=low, high=high), "undefined": ""}


def sum_by_image(
    tables: Sequence[pd.DataFrame], metrics: Sequence[Metric], *, draws: Draws
) -> DrawnSums:
    """Sum what metrics are made of, over all images and over drawn ones.

    Args:
        tables: Questions or captions: one table, or two of the same items.
        metrics: What is summed.
        draws: How intervals are drawn.
    """
    columns = [name for metric in metrics for name in (metric.count, metric.total)]
    sides = []
    for table in tables:
        counted = count_rows(table)
        by_image = counted.groupby("cluster", sort=False)[list(set(columns))].sum()
        sides.append(by_image[columns].to_numpy(dtype=float))
    wide = torch.cat([torch.from_numpy(side) for side in sides], dim=1)
    try:
        sums = resample_sums(wide, resamples=draws.resamples, seed=draws.seed)
    except InputError as error:
        return DrawnSums(tuple(metrics), draws, None, str(error))
    return DrawnSums(tuple(metrics), draws, sums)


def count_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of questions or captions with every column that metrics sum."""
    if "caption" in table:
        return count_captions(table)
    return table.assign(
        two_hits=2 * table.hit, yes_and_present=table.yes + table.present
    )
