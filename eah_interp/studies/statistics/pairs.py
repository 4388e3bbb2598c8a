"""The same items under two conditions: what is dropped, cut, and compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from eah_interp.benchmarks.lengths import match_lengths
from eah_interp.kernels.paired import compare_outcomes, estimate_odds
from eah_interp.studies.plan.items import Task
from eah_interp.studies.statistics.draws import Draws, count_rows, sum_by_picture
from eah_interp.studies.statistics.metrics import Metric, metrics_of


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
        """Cut both captions of a picture at the same number of mentions."""
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
            drawn = sum_by_picture(tables, metrics, draws=draws)
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
