"""Sums by picture, drawn anew: where every interval of a study comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from eah_interp.errors import InputError
from eah_interp.kernels.bootstrap import Sums, percentile_effect, resample_sums
from eah_interp.kernels.paired import cohens_h
from eah_interp.kernels.statistics import Effect
from eah_interp.studies.statistics.metrics import Metric
from eah_interp.studies.statistics.scores import count_captions

_NO_WIDTH = 1e-9


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How intervals are drawn.

    Attributes:
        level: Confidence level.
        resamples: Bootstrap samples of pictures.
        seed: Seeds them.
    """

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class DrawnSums:
    """Counts and totals of metrics, on one side or on two, and over drawn pictures.

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
        if effect.high - effect.low > _NO_WIDTH:
            return {"effect": effect, "undefined": ""}
        if bounds is None:
            reason = f"the same in all {n} pictures: no spread to draw an interval from"
            return {"effect": None, "undefined": reason}
        # No picture differs from the others. That says how rare one that does may be
        # (Clopper and Pearson's interval of 0 in n), and not that there is none.
        half = bounds[1] * (1 - ((1 - level) / 2) ** (1 / n))
        low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
        return {"effect": replace(effect, low=low, high=high), "undefined": ""}


def count_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of questions or captions with every column that metrics sum."""
    if "caption" in table:
        return count_captions(table)
    return table.assign(
        two_hits=2 * table.hit, yes_and_present=table.yes + table.present
    )


def sum_by_picture(
    tables: Sequence[pd.DataFrame], metrics: Sequence[Metric], *, draws: Draws
) -> DrawnSums:
    """Sum what metrics are made of, over all pictures and over drawn ones.

    Args:
        tables: Questions or captions: one table, or two of the same items.
        metrics: What is summed.
        draws: How intervals are drawn.
    """
    columns = [name for metric in metrics for name in (metric.count, metric.total)]
    sides = []
    for table in tables:
        counted = count_rows(table)
        by_picture = counted.groupby("cluster", sort=False)[list(set(columns))].sum()
        sides.append(by_picture[columns].to_numpy(dtype=float))
    wide = torch.cat([torch.from_numpy(side) for side in sides], dim=1)
    try:
        sums = resample_sums(wide, resamples=draws.resamples, seed=draws.seed)
    except InputError as error:
        return DrawnSums(tuple(metrics), draws, None, str(error))
    return DrawnSums(tuple(metrics), draws, sums)
