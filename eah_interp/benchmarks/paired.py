"""The same items answered twice: paired, cut to one length, compared with intervals."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from eah_interp.arguments import Named, check_kind
from eah_interp.benchmarks.chair import match_lengths
from eah_interp.benchmarks.metrics import Metric, Task, count_captions, metrics_of
from eah_interp.errors import InputError, SettingsError
from eah_interp.kinds import register
from eah_interp.statistics import (
    Effect,
    Sums,
    check_draws,
    cohens_h,
    compare_outcomes,
    estimate_odds,
    percentile_effect,
    resample_sums,
)


@register
@dataclass(frozen=True, kw_only=True)
class Draws(metaclass=Named):
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
        plain = check_draws(level=self.level, resamples=self.resamples, seed=self.seed)
        for name, value in zip(("level", "resamples", "seed"), plain, strict=True):
            object.__setattr__(self, name, value)


def check_drawing(draws: object) -> Draws:
    """Check how intervals are to be drawn; `Draws()` where nothing is said.

    Raises:
        SettingsError: If it is something else.
    """
    given = Draws() if draws is None else draws
    return check_kind(
        "draws", given, Draws, expected="Draws(...) or None", error=SettingsError
    )


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

    @functools.cached_property
    def counted(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Both with every column that metrics sum."""
        return count_rows(self.before), count_rows(self.after)

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
            for metric, values in side.compare(metrics, draws=draws):
                found[metric.name] = values
        for metric in metrics_of(task, matched=True):
            yield metric, found[metric.name]

    def compare(
        self, metrics: Sequence[Metric], *, draws: Draws
    ) -> Iterator[tuple[Metric, Mapping[str, Any]]]:
        """Compare both as they are, in some metrics.

        Yields:
            The metric; its `effect` or why it is `undefined`; for a binary one also
            `h`, `gained`, `lost`, `p` and `odds`.
        """
        before, after = self.counted
        drawn = _sum_counted(self.counted, metrics, draws=draws)
        for at, metric in enumerate(metrics):
            values = dict(drawn.change(at))
            if metric.binary:
                values["h"] = drawn.size(at)
                values |= _test(before, after, metric, draws=draws)
            yield metric, values


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

    def value(self, at: int) -> float:
        """Return a metric without an interval; NaN where it is not defined."""
        if self.sums is None:
            return math.nan
        return self.metrics[at].scale * self._rates(self.sums, at)[0]

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
        if not bool((olds.isfinite() & news.isfinite()).all()):
            return None  # a divisor is zero: of all images, or of drawn ones
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
    return _sum_counted([count_rows(table) for table in tables], metrics, draws=draws)


def _sum_counted(
    tables: Sequence[pd.DataFrame], metrics: Sequence[Metric], *, draws: Draws
) -> DrawnSums:
    columns = [name for metric in metrics for name in (metric.count, metric.total)]
    sides = []
    for counted in tables:
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
