"""Differences between two conditions on the same items, with their intervals."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.errors import InputError

Counts = Float[Tensor, "run item"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """An estimate with its interval; nothing is printed without one.

    Attributes:
        estimate: The point estimate.
        low: Lower end of the interval.
        high: Upper end.
        level: Confidence level of the interval.
        n: What was resampled or averaged: items, or runs.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Write the estimate and its interval: `-4.2 [-6.0, -2.5]`."""
        return self.write()

    def write(self, digits: int = 1) -> str:
        """Write the estimate and its interval with so many digits.

        Example:
            >>> Effect(estimate=0.12, low=0.01, high=0.23, level=0.95, n=9).write(2)
            '+0.12 [+0.01, +0.23]'
        """
        return (
            f"{self.estimate:+.{digits}f} "
            f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        )


def compare_rates(
    before: tuple[Counts, Counts],
    after: tuple[Counts, Counts],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Effect:
    """Estimate how a rate changed between two conditions, items paired.

    A rate is a sum of counts over a sum of totals (hallucinated mentions over
    mentions, say), in percent, for each run, and then averaged over the runs. The
    interval is a percentile bootstrap that draws items, the same for both conditions
    and all runs: it answers "other items, these very models". `estimate_mean` asks
    about other models.

    Args:
        before: Counts and totals of the first condition.
        after: The same of the second.
        level: Confidence level.
        resamples: Bootstrap samples.
        seed: Seeds them.

    Returns:
        The change, after minus before, in percentage points.

    Raises:
        InputError: If shapes differ, there are fewer than two items, a run's total
            is zero, or totals are so small that a resampled one is.

    Example:
        >>> one = torch.ones(1, 8)
        >>> change = compare_rates((one, one), (torch.zeros(1, 8), one))
        >>> change.estimate, change.low, change.high
        (-100.0, -100.0, -100.0)
    """
    from scipy import stats

    parts = (*before, *after)
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or parts[0].shape[-1] < 2:
        msg = f"expected four tables [run, item] of 2 items or more, got {shapes}"
        raise InputError(msg)
    if any(bool((total.sum(-1) == 0).any()) for total in (before[1], after[1])):
        msg = "a run has a total of zero: its rate is undefined; leave the run out"
        raise InputError(msg)
    rows = [part.double().numpy() for part in parts]
    n_items = rows[0].shape[-1]
    samples = [row for part in rows for row in part]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # told below
        found = stats.bootstrap(
            samples,
            lambda *drawn, axis: _change(drawn, axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=level,
            method="percentile",
            rng=seed,
        )
    interval = found.confidence_interval
    if math.isnan(interval.low) or math.isnan(interval.high):
        msg = (
            "totals are so small that some bootstrap samples have none: the change "
            "has no interval; use more items, or a rate of something more frequent"
        )
        raise InputError(msg)
    return Effect(
        estimate=float(_change(samples, axis=-1)),
        low=float(interval.low),
        high=float(interval.high),
        level=level,
        n=n_items,
    )


def _change(samples: Sequence[Any], *, axis: int) -> Any:
    """Return the mean over runs of the second rate minus the first, in percent."""
    import numpy as np

    sums = [sample.sum(axis=axis) for sample in samples]
    n_runs = len(sums) // 4
    counts, totals = sums[:n_runs], sums[n_runs : 2 * n_runs]
    new_counts, new_totals = sums[2 * n_runs : 3 * n_runs], sums[3 * n_runs :]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which the caller refuses
        changes = [
            100 * (new / whole - old / total)
            for old, total, new, whole in zip(
                counts, totals, new_counts, new_totals, strict=True
            )
        ]
    return sum(changes) / n_runs


def estimate_mean(values: Sequence[float], *, level: float = 0.95) -> Effect:
    """Estimate a mean, with Student's interval.

    Over runs of training it answers "another model of the same recipe". With three
    runs it is wide, as it has to be: two degrees of freedom.

    Args:
        values: Two values or more, independent of each other.
        level: Confidence level.

    Returns:
        The mean.

    Raises:
        InputError: If there are fewer than two values.

    Example:
        >>> print(estimate_mean([1.0, 2.0, 3.0]))
        +2.0 [-0.5, +4.5]
    """
    from scipy import stats

    if len(values) < 2:
        msg = f"an interval of a mean needs 2 values or more, got {len(values)}"
        raise InputError(msg)
    sample = torch.tensor(values, dtype=torch.float64)
    mean, error = float(sample.mean()), float(sample.std()) / len(values) ** 0.5
    half = float(stats.t.ppf(0.5 + level / 2, df=len(values) - 1)) * error
    return Effect(
        estimate=mean, low=mean - half, high=mean + half, level=level, n=len(values)
    )
