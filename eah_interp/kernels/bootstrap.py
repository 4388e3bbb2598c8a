"""Bootstrap intervals of many rates at once: what is drawn is drawn for all of them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eah_interp.errors import InputError
from eah_interp.kernels.statistics import Effect

Columns = Float[Tensor, "item column"]

_BLOCK = 4_000_000
"""Draws held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums of columns: over all items, and over each bootstrap sample of them.

    Attributes:
        n: Items.
        whole: The sums over all items.
        drawn: The sums over each sample.
    """

    n: int
    whole: Float[Tensor, " column"]
    drawn: Float[Tensor, "sample column"]


def resample_sums(columns: Columns, *, resamples: int = 10_000, seed: int = 0) -> Sums:
    """Sum columns over items, and over bootstrap samples of the items.

    All columns share the draws, so that whatever is made of the sums (a rate, the
    difference of two) has its items paired. Items are drawn as `scipy.stats.bootstrap`
    draws them: the same seed, the same samples.

    Args:
        columns: A row an item: a picture with all that was asked about it.
        resamples: Bootstrap samples.
        seed: Seeds them.

    Returns:
        The sums.

    Raises:
        InputError: If there are fewer than two items.

    Example:
        >>> sums = resample_sums(torch.ones(5, 1), resamples=3)
        >>> sums.whole.tolist(), sums.drawn.tolist()
        ([5.0], [[5.0], [5.0], [5.0]])
    """
    import numpy as np

    n = len(columns)
    if n < 2:
        msg = f"an interval needs 2 pictures or more to draw from, got {n}"
        raise InputError(msg)
    table = columns.double()
    rng, parts, size = np.random.default_rng(seed), [], max(1, _BLOCK // n)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        parts.append(torch.from_numpy(times).double() @ table)
    return Sums(n=n, whole=table.sum(0), drawn=torch.cat(parts))


def percentile_effect(
    estimate: float, samples: Float[Tensor, " sample"], *, level: float, n: int
) -> Effect:
    """Give an estimate the percentile interval of its bootstrap samples.

    Args:
        estimate: Of all items.
        samples: Of each bootstrap sample.
        level: Confidence level.
        n: Items that were drawn from.

    Returns:
        The estimate with its interval.

    Raises:
        InputError: If the estimate, or a sample of it, is not defined; it says how
            many are not.

    Example:
        >>> print(percentile_effect(0.5, torch.arange(101) / 100, level=0.8, n=7))
        +0.5 [+0.1, +0.9]
    """
    lost = int((~samples.isfinite()).sum())
    if not math.isfinite(estimate):
        msg = "its divisor is zero"
        raise InputError(msg)
    if lost:
        msg = f"its divisor is zero in {lost} of {len(samples)} bootstrap samples"
        raise InputError(msg)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(samples.double(), ends).tolist()
    return Effect(estimate=estimate, low=low, high=high, level=level, n=n)
