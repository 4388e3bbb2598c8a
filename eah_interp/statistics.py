"""Differences between two conditions on the same items, with their intervals."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp.arguments import check_level
from eah_interp.errors import ExtraMissingError, InputError, SettingsError, show_value
from eah_interp.indices import check_integer, is_dense, to_float, to_list
from eah_interp.kinds import register

Counts = Float[Tensor, "run item"]

_MOST = 10_000_000
"""More bootstrap samples than that are a slip: they would not end."""

_NO_WIDTH = 1e-9
"""Narrower intervals have their width from rounding."""

_NO_SHARE = 1e-3
"""How far beyond 0 and 1 rounding carries a share, of half precision too."""


@register
@dataclass(frozen=True, kw_only=True)
class Effect:
    """An estimate with its interval; nothing is printed without one.

    Where no item differs from the others, resampling them gives an interval without
    width, however few they are. The data cannot carry it: both ends are NaN, it
    excludes nothing, and it is written as undetermined.

    Attributes:
        estimate: The point estimate.
        low: Lower end of the interval; NaN where it is undetermined.
        high: Upper end; the same.
        level: Confidence level of the interval.
        n: What was resampled or averaged: items, or runs.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int

    def __post_init__(self) -> None:
        if self.high - self.low < _NO_WIDTH:
            for end in ("low", "high"):
                object.__setattr__(self, end, math.nan)

    @property
    def is_determined(self) -> bool:
        """Whether the data can carry an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Write the estimate and its interval: `-4.2 [-6.0, -2.5]`."""
        return self.write()

    def write(self, digits: int = 1, *, of: str = "items") -> str:
        """Write the estimate and its interval with so many digits.

        Args:
            digits: After the point.
            of: What was resampled or averaged, in the plural.

        Example:
            >>> Effect(estimate=0.12, low=0.01, high=0.23, level=0.95, n=9).write(2)
            '+0.12 [+0.01, +0.23]'
            >>> Effect(estimate=0.0, low=0.0, high=0.0, level=0.95, n=4).write()
            'undetermined (4 items, none differ)'
        """
        if not self.is_determined:
            return write_undetermined(self.estimate, n=self.n, digits=digits, of=of)
        return (
            f"{self.estimate:+.{digits}f} "
            f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        )


def write_undetermined(
    estimate: float, *, n: int, digits: int = 1, of: str = "items"
) -> str:
    """Write an estimate whose interval the data cannot carry.

    Example:
        >>> write_undetermined(0.0, n=4, of="scenes")
        'undetermined (4 scenes, none differ)'
        >>> write_undetermined(-100.0, n=8)
        '-100.0, undetermined (8 items, all alike)'
    """
    if abs(estimate) < _NO_WIDTH:
        return f"undetermined ({n} {of}, none differ)"
    return f"{estimate:+.{digits}f}, undetermined ({n} {of}, all alike)"


def check_draws(
    *, level: object, resamples: object, seed: object
) -> tuple[float, int, int]:
    """Check how an interval is drawn.

    Returns:
        The level, the number of samples and the seed, as plain numbers: SciPy takes no
        others.

    Raises:
        SettingsError: If the level is not between 0 and 1, there are no samples or
            more than ten million, or the seed is no integer of 0 or more.
    """
    plain = check_level(level), check_integer("resamples", resamples, least=1)
    if plain[1] > _MOST:
        got = show_value(resamples)
        raise SettingsError(f"resamples must be at most {_MOST:,}, got {got}")
    return (*plain, check_integer("seed", seed))


def _check_numbers(name: str, value: object, *, n_axes: int | None = None) -> Tensor:
    """Check that an argument is a tensor of finite numbers, or of flags."""
    right = isinstance(value, Tensor) and is_dense(value)
    if not right or value.is_complex() or value.is_meta:  # type: ignore[attr-defined]
        raise InputError(f"{name} must be a tensor of numbers, got {show_value(value)}")
    found: Tensor = value  # type: ignore[assignment]
    if n_axes is not None and found.ndim != n_axes:
        msg = f"{name} must have {n_axes} axes, got the shape {tuple(found.shape)}"
        raise InputError(msg)
    if not bool(found.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinity: expected finite numbers")
    return found


def _check_counts(before: object, after: object) -> tuple[Tensor, ...]:
    parts = [to_list(pair) or () for pair in (before, after)]
    if [len(pair) for pair in parts] != [2, 2]:
        msg = "before and after must each be counts and totals, two tables [run, item]"
        raise InputError(msg)
    names = ("counts before", "totals before", "counts after", "totals after")
    listed = [*parts[0], *parts[1]]
    return tuple(map(lambda n, t: _check_numbers(n, t, n_axes=2), names, listed))


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
        The change, after minus before, in percentage points; its interval is
        undetermined where no item differs from the others.

    Raises:
        InputError: If shapes differ, there are fewer than two items, a run's total
            is zero, or totals are so small that a resampled one is.

    Example:
        >>> one = torch.ones(1, 8)
        >>> some = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 1]])
        >>> print(compare_rates((one, one), (some, one)))
        -62.5 [-100.0, -25.0]
        >>> print(compare_rates((one, one), (one, one)))
        undetermined (8 items, none differ)
    """
    from scipy import stats

    level, resamples, seed = check_draws(level=level, resamples=resamples, seed=seed)
    parts = _check_counts(before, after)
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or parts[0].shape[-1] < 2:
        msg = f"expected four tables [run, item] of 2 items or more, got {shapes}"
        raise InputError(msg)
    if any(bool((total.sum(-1) == 0).any()) for total in (parts[1], parts[3])):
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
            # The same draws, and not all of them in memory at a time.
            batch=max(1, _BLOCK // n_items),
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
        InputError: If there are fewer than two values, or one is no finite number.
        SettingsError: If the level is not between 0 and 1.

    Example:
        >>> print(estimate_mean([1.0, 2.0, 3.0]))
        +2.0 [-0.5, +4.5]
    """
    from scipy import stats

    level = check_level(level)
    listed = to_list(values)
    numbers = [to_float(value) for value in listed or ()]
    if listed is None or None in numbers:
        raise InputError(f"values must be finite numbers, got {show_value(values)}")
    if len(listed) < 2:
        msg = f"an interval of a mean needs 2 values or more, got {len(listed)}"
        raise InputError(msg)
    values = listed
    sample = torch.tensor(numbers, dtype=torch.float64)
    mean, error = float(sample.mean()), float(sample.std()) / len(values) ** 0.5
    half = float(stats.t.ppf(0.5 + level / 2, df=len(values) - 1)) * error
    return Effect(
        estimate=mean, low=mean - half, high=mean + half, level=level, n=len(values)
    )


# ---- Tests and effect sizes for yes/no outcomes of the same items, twice.


Outcomes = Bool[Tensor, " item"]


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """Items whose outcome changed, and whether they might have by chance.

    Attributes:
        gained: Items with the outcome after, and not before.
        lost: Items with it before, and not after.
        p: Exact two-sided p-value of McNemar's test; 1 if no item changed.
    """

    gained: int
    lost: int
    p: float


def compare_outcomes(before: Outcomes, after: Outcomes) -> Discordance:
    """Test whether as many items gained an outcome as lost it (McNemar, exact).

    Items that kept their outcome say nothing of a change. Of the others each is a coin
    toss if nothing changed: the p-value is a binomial's. Items are taken as
    independent; several questions about one image are not quite.

    Args:
        before: The outcome under one condition.
        after: The same items' under another.

    Returns:
        Both counts, and the p-value.

    Raises:
        InputError: If the two are not of the same items.
        ExtraMissingError: If statsmodels is not installed.

    Example:
        >>> before = torch.tensor([True, True, True, True, True, False])
        >>> compare_outcomes(before, torch.zeros(6, dtype=torch.bool))
        Discordance(gained=0, lost=5, p=0.0625)
    """
    for name, flags in (("before", before), ("after", after)):
        if _check_numbers(name, flags, n_axes=1).dtype != torch.bool:
            raise InputError(f"{name} must be flags (bool), got {flags.dtype}")
    if before.shape != after.shape:
        msg = f"expected as many items twice, got {len(before)} and {len(after)}"
        raise InputError(msg)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    if gained + lost == 0:  # nothing to toss a coin for
        return Discordance(gained=0, lost=0, p=1.0)
    try:
        from statsmodels.stats.contingency_tables import mcnemar
    except ImportError as error:
        msg = "McNemar's test needs statsmodels: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    found = mcnemar([[both, lost], [gained, neither]], exact=True)
    return Discordance(gained=gained, lost=lost, p=min(float(found.pvalue), 1.0))


def adjust_holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values for how many there are, by Holm's method.

    Args:
        p_values: Of all comparisons of a family.

    Returns:
        Adjusted values, in the same order: below 0.05 where the family as a whole
        errs in at most one of twenty studies.

    Raises:
        InputError: If one is no number from 0 to 1.
        ExtraMissingError: If statsmodels is not installed.

    Example:
        >>> adjust_holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    listed = to_list(p_values)
    shares = [to_float(value) for value in listed or ()]
    if listed is None or any(p is None or not 0 <= p <= 1 for p in shares):
        got = show_value(p_values)
        raise InputError(f"p_values must be numbers from 0 to 1, got {got}")
    if not listed:
        return ()
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        msg = "Holm's method needs statsmodels: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    adjusted = multipletests(shares, method="holm")[1]
    return tuple(float(value) for value in adjusted)


def estimate_odds(gained: int, lost: int, *, level: float = 0.95) -> Effect:
    """Estimate the odds that an item that changed gained the outcome.

    The odds ratio of matched pairs, gained / lost, with the exact interval: Clopper
    and Pearson's of the share that gained. One side is infinite, or zero, where all
    that changed changed one way.

    Args:
        gained: Items that gained it.
        lost: Items that lost it.
        level: Confidence level.

    Returns:
        The ratio; 1 is no change.

    Raises:
        InputError: If no item changed: there is no ratio.
        SettingsError: If a count is no integer of 0 or more, or the level no share.

    Example:
        >>> odds = estimate_odds(10, 5)
        >>> odds.estimate, round(odds.low, 2), round(odds.high, 2)
        (2.0, 0.62, 7.46)
    """
    from scipy import stats

    level = check_level(level)
    gained, lost = check_integer("gained", gained), check_integer("lost", lost)
    total = gained + lost
    if total == 0:
        msg = "no item changed: the odds of gaining against losing are undefined"
        raise InputError(msg)
    found = stats.binomtest(gained, total).proportion_ci(level, method="exact")
    low, high = (
        share / (1 - share) if share < 1 else math.inf
        for share in (float(found.low), float(found.high))
    )
    ratio = gained / lost if lost else math.inf
    return Effect(estimate=ratio, low=low, high=high, level=level, n=total)


def cohens_h(
    before: Float[Tensor, "*sample"], after: Float[Tensor, "*sample"]
) -> Float[Tensor, "*sample"]:
    """Compute Cohen's h: the difference of two shares on a scale of even steps.

    2 arcsin sqrt(after) - 2 arcsin sqrt(before); 0.2 is called small, 0.5 medium.

    Args:
        before: Shares in [0, 1].
        after: Shares in [0, 1].

    Returns:
        After minus before.

    Raises:
        InputError: If shapes differ, or one is no share.

    Example:
        >>> round(float(cohens_h(torch.tensor(0.5), torch.tensor(1.0))), 3)
        1.571
    """
    _check_numbers("before", before)
    _check_numbers("after", after)
    if before.shape != after.shape:
        msg = f"expected as many shares twice, got {before.shape} and {after.shape}"
        raise InputError(msg)
    for name, shares in (("before", before), ("after", after)):
        # Rounding may carry a share beyond its ends, and percentages are no shares.
        if bool(((shares < -_NO_SHARE) | (shares > 1 + _NO_SHARE)).any()):
            low, high = float(shares.min()), float(shares.max())
            msg = f"{name} must be shares from 0 to 1, got {low:.3g} to {high:.3g}"
            raise InputError(f"{msg}; divide percentages by 100")

    def angle(share: Tensor) -> Tensor:
        return 2 * torch.asin(share.clamp(0, 1).sqrt())

    return angle(after) - angle(before)


# ---- Bootstrap intervals of many rates at once


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
        columns: A row an item: an image with all that was asked about it.
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

    _, resamples, seed = check_draws(level=0.5, resamples=resamples, seed=seed)
    _check_numbers("columns", columns, n_axes=2)
    n = len(columns)
    if n < 2:
        msg = f"an interval needs 2 images or more to draw from, got {n}"
        raise InputError(msg)
    table = columns.double()
    rng, parts, size = np.random.default_rng(seed), [], max(1, _BLOCK // n)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        # Each sample counts in a range of its own, so one bincount serves all.
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
    level = check_level(level)
    n = check_integer("n", n)
    right = isinstance(samples, Tensor) and is_dense(samples)
    right = right and not (samples.is_meta or samples.is_complex())
    if not right or samples.ndim != 1 or not len(samples):
        got = show_value(samples)
        raise InputError(f"samples must be a tensor of one axis, got {got}")
    if not isinstance(estimate, float) and to_float(estimate) is None:
        raise InputError(f"estimate must be a number, got {show_value(estimate)}")
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


# ---- Ranks, and how they correlate.


def rank_rows(rows: Float[Tensor, "line value"]) -> Float[Tensor, "line value"]:
    """Rank numbers line by line, the least first, ties at the mean of their ranks.

    Example:
        >>> rank_rows(torch.tensor([[0.5, 0.1, 0.5]])).tolist()
        [[2.5, 1.0, 2.5]]
    """
    from scipy import stats

    return torch.from_numpy(stats.rankdata(rows.numpy(), axis=1, nan_policy="omit"))


def correlate_ranks(
    one: Float[Tensor, "line value"], other: Float[Tensor, "line value"]
) -> Float[Tensor, " line"]:
    """Correlate the ranks of two tables, line by line (Spearman).

    NaN where a line holds one number only.

    Example:
        >>> one = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
        >>> round(correlate_ranks(one, one**3).item(), 9)
        1.0
        >>> round(correlate_ranks(one, -one).item(), 9)
        -1.0
    """
    first, second = (
        ranks - ranks.mean(1, keepdim=True)
        for ranks in (rank_rows(one), rank_rows(other))
    )
    size = first.norm(dim=1) * second.norm(dim=1)
    found: Tensor = (first * second).sum(1) / size
    return torch.where(size > 0, found, torch.nan)
