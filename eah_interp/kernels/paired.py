"""Tests and effect sizes for yes/no outcomes of the same items, twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eah_interp.errors import ExtraMissingError, InputError
from eah_interp.kernels.statistics import Effect

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
    independent; several questions about one picture are not quite.

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
        ExtraMissingError: If statsmodels is not installed.

    Example:
        >>> adjust_holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    if not p_values:
        return ()
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        msg = "Holm's method needs statsmodels: pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    adjusted = multipletests(list(p_values), method="holm")[1]
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

    Example:
        >>> odds = estimate_odds(10, 5)
        >>> odds.estimate, round(odds.low, 2), round(odds.high, 2)
        (2.0, 0.62, 7.46)
    """
    from scipy import stats

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

    Example:
        >>> round(float(cohens_h(torch.tensor(0.5), torch.tensor(1.0))), 3)
        1.571
    """

    def angle(share: Tensor) -> Tensor:
        return 2 * torch.asin(share.clamp(0, 1).sqrt())

    return angle(after) - angle(before)
