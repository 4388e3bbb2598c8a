"""Claims about paired tests and bootstraps of many rates, against other sources."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from eah_interp.errors import InputError
from eah_interp.statistics import (
    adjust_holm,
    cohens_h,
    compare_outcomes,
    estimate_odds,
    percentile_effect,
    resample_sums,
)


def test_a_rate_s_interval_is_scipy_s_to_the_last_digit():
    rng = np.random.default_rng(1)
    count, total = rng.integers(0, 3, 40), rng.integers(1, 5, 40)
    reference = stats.bootstrap(
        (count, total),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=999,
        method="percentile",
        rng=7,
    ).confidence_interval
    columns = torch.from_numpy(np.stack([count, total], 1).astype(float))
    sums = resample_sums(columns, resamples=999, seed=7)
    drawn = sums.drawn[:, 0] / sums.drawn[:, 1]
    found = percentile_effect(float(drawn.mean()), drawn, level=0.95, n=sums.n)
    assert found.low == pytest.approx(reference.low, abs=1e-12)
    assert found.high == pytest.approx(reference.high, abs=1e-12)


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    columns = torch.rand(30, 3)
    whole = resample_sums(columns, resamples=50)
    monkeypatch.setattr("eah_interp.statistics._BLOCK", 100)
    assert torch.equal(resample_sums(columns, resamples=50).drawn, whole.drawn)


def test_undefined_samples_and_single_items_are_refused():
    with pytest.raises(InputError, match="2 images or more to draw from, got 1"):
        resample_sums(torch.ones(1, 1))
    some = torch.tensor([1.0, torch.nan, 2.0])
    with pytest.raises(InputError, match="zero in 1 of 3 bootstrap samples"):
        percentile_effect(1.0, some, level=0.95, n=3)
    with pytest.raises(InputError, match="its divisor is zero"):
        percentile_effect(math.nan, some, level=0.95, n=3)


@pytest.mark.slow
def test_intervals_over_pictures_cover_as_often_as_they_say():
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        # Pictures of several questions that are right or wrong together.
        size = rng.integers(1, 6, 120)
        skill = rng.beta(2, 2, 120)
        old, new = (rng.binomial(size, s) for s in (skill, np.clip(skill + 0.1, 0, 1)))
        truth = float(np.clip(skill_of_all() + 0.1, 0, 1).mean() - 0.5)
        columns = torch.from_numpy(np.stack([old, new, size], 1).astype(float))
        sums = resample_sums(columns, resamples=400, seed=trial)
        drawn = (sums.drawn[:, 1] - sums.drawn[:, 0]) / sums.drawn[:, 2]
        found = percentile_effect(0.0, drawn, level=0.95, n=120)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / trials <= 0.975


def skill_of_all():
    """Return the skills of very many pictures: their mean is the truth."""
    return stats.beta(2, 2).ppf((np.arange(10_000) + 0.5) / 10_000)


def outcomes(both, lost, gained, neither):
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return torch.tensor(before), torch.tensor(after)


@pytest.mark.parametrize(("gained", "lost"), [(0, 6), (3, 9), (5, 5), (12, 1), (1, 0)])
def test_mcnemar_is_a_binomial_of_the_items_that_changed(gained, lost):
    before, after = outcomes(20, lost, gained, 30)
    n, least = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    found = compare_outcomes(before, after)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert found.p == pytest.approx(stats.binomtest(gained, n).pvalue)


def test_nothing_that_changed_is_no_evidence(as_users_run_it):
    assert compare_outcomes(*outcomes(5, 0, 0, 5)).p == 1.0
    with pytest.raises(InputError, match="no item changed"):
        estimate_odds(0, 0)
    with pytest.raises(InputError, match="as many items twice"):
        compare_outcomes(torch.ones(2).bool(), torch.ones(3).bool())


def test_holm_s_adjustment_agrees_with_its_definition():
    for values in itertools.permutations([0.01, 0.04, 0.03, 0.005]):
        order = sorted(range(4), key=values.__getitem__)
        expected, most = [0.0] * 4, 0.0
        for place, index in enumerate(order):
            most = max(most, min(1.0, (4 - place) * values[index]))
            expected[index] = most
        assert adjust_holm(values) == pytest.approx(expected)
    assert adjust_holm([]) == ()


def test_odds_of_change_have_the_exact_interval():
    found = estimate_odds(9, 3)
    share = stats.beta.ppf([0.025, 0.975], [9, 10], [4, 3])  # Clopper and Pearson
    assert found.estimate == 3
    assert (found.low, found.high) == pytest.approx(tuple(share / (1 - share)))
    one_way = estimate_odds(4, 0)
    assert one_way.estimate == one_way.high == math.inf
    assert one_way.low == pytest.approx(0.025**0.25 / (1 - 0.025**0.25))


def test_cohens_h_is_a_difference_of_angles():
    old, new = torch.tensor([0.5, 0.0, 0.2]), torch.tensor([0.5, 1.0, 0.1])
    expected = [0.0, math.pi, 2 * math.asin(0.1**0.5) - 2 * math.asin(0.2**0.5)]
    assert cohens_h(old, new).tolist() == pytest.approx(expected, abs=1e-6)
