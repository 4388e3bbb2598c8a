"""Claims about intervals: they cover what they should, and pair items."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from eah_interp.benchmarks.paired import Draws
from eah_interp.errors import InputError
from eah_interp.statistics import (
    Effect,
    cohens_h,
    compare_rates,
    correlate_ranks,
    estimate_mean,
    percentile_effect,
    resample_sums,
)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def test_the_change_of_a_rate_is_of_sums_over_sums_averaged_over_runs():
    before = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 1]]).double()
    totals = torch.tensor([[2.0, 1, 3, 2], [1, 1, 1, 1]]).double()
    after = torch.tensor([[0.0, 0, 1, 0], [1, 1, 0, 1]]).double()
    change = compare_rates((before, totals), (after, totals), resamples=50)
    expected = ((1 / 8 - 3 / 8) + (3 / 4 - 1 / 4)) / 2
    assert change.estimate == pytest.approx(100 * expected)
    assert change.n == 4


def test_a_bootstrap_interval_agrees_with_the_normal_one_on_many_items():
    torch.manual_seed(0)
    before = (torch.rand(1, 2000) < 0.5).double()
    flips = (torch.rand(1, 2000) < 0.2).double()
    after = before * (1 - flips)
    change = compare_rates((before, ones(1, 2000)), (after, ones(1, 2000)))
    difference = (after - before)[0]
    error = 100 * float(difference.std()) / math.sqrt(2000)
    assert change.low == pytest.approx(change.estimate - 1.96 * error, abs=0.3)
    assert change.high == pytest.approx(change.estimate + 1.96 * error, abs=0.3)


def test_items_are_paired_between_conditions():
    torch.manual_seed(0)
    before = (torch.rand(1, 300) < 0.5).double()
    same = compare_rates((before, ones(1, 300)), (before.clone(), ones(1, 300)))
    assert same.estimate == 0
    assert not same.is_determined  # paired, no item differs
    shuffled = before[:, torch.randperm(300)]
    apart = compare_rates((before, ones(1, 300)), (shuffled, ones(1, 300)))
    assert apart.high - apart.low > 5


def test_an_interval_of_many_items_is_drawn_in_parts_and_is_the_same(monkeypatch):
    torch.manual_seed(0)
    old, new = (torch.rand(1, 60).round() for _ in range(2))
    whole = compare_rates((old, ones(1, 60)), (new, ones(1, 60)))
    monkeypatch.setattr("eah_interp.statistics._BLOCK", 100)
    assert compare_rates((old, ones(1, 60)), (new, ones(1, 60))) == whole


@pytest.mark.parametrize("before", [50.0, -0.2])
def test_percentages_are_no_shares(before):
    """They were cut to 1, and h was 0 or pi whatever the data said."""
    with pytest.raises(InputError, match=r"before must be shares from 0 to 1, got"):
        cohens_h(torch.tensor(before), torch.tensor(0.5))
    almost = torch.tensor(1 + 1e-6)
    assert cohens_h(almost, torch.tensor(1.0)) == 0


def test_items_are_drawn_together_for_all_runs():
    # Two runs with opposite changes on every item: any joint draw cancels exactly.
    base, up = torch.zeros(1, 50), torch.rand(1, 50).round()
    before, after = torch.cat([base, up]), torch.cat([up, base])
    change = compare_rates((before, ones(2, 50)), (after, ones(2, 50)))
    assert change.estimate == pytest.approx(0)
    assert not change.is_determined


def same_change(value):
    after = torch.full((1, 4), value).double()
    return compare_rates((ones(1, 4), ones(1, 4)), (after, ones(1, 4)))


@pytest.mark.parametrize(
    ("effect", "written"),
    [
        (same_change(1.0), "undetermined (4 items, none differ)"),
        (same_change(0.5), "-50.0, undetermined (4 items, all alike)"),
        (estimate_mean([3.0, 3.0]), "+3.0, undetermined (2 items, all alike)"),
        (
            percentile_effect(0.0, torch.zeros(9), level=0.95, n=7),
            "undetermined (7 items, none differ)",
        ),
    ],
    ids=["no change", "the same change", "mean", "percentile"],
)
def test_what_never_differs_has_no_interval_and_shows_nothing(effect, written):
    """A bootstrap of equal items has no width: that is no certainty."""
    assert math.isnan(effect.low)
    assert math.isnan(effect.high)
    assert not effect.is_determined
    assert not effect.excludes_zero
    assert str(effect) == written


def test_the_interval_over_runs_is_student_s():
    values = [3.0, 5.0, 10.0]
    mean = estimate_mean(values)
    low, high = stats.t.interval(0.95, 2, loc=6.0, scale=stats.sem(values))
    assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
    assert not mean.excludes_zero
    assert estimate_mean([3.0, 3.1, 3.2]).excludes_zero


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, np.array])
def test_numbers_of_any_kind_draw_what_plain_ones_draw(kind, as_users_run_it):
    rates = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2, 5)
    plain = {"resamples": 50, "seed": 3}
    given = {name: kind(number) for name, number in plain.items()}
    runs = (rates, ones), (rates.flip(1), ones)
    assert compare_rates(*runs, **given) == compare_rates(*runs, **plain)
    drawn = resample_sums(rates, **given).drawn
    assert (drawn == resample_sums(rates, **plain).drawn).all()
    assert Draws(**given) == Draws(**plain)
    assert type(Draws(**given).seed) is int


def test_an_effect_prints_its_interval():
    effect = Effect(estimate=-4.21, low=-6.0, high=-2.5, level=0.95, n=3)
    assert str(effect) == "-4.2 [-6.0, -2.5]"


def test_undefined_rates_and_single_items_are_refused(as_users_run_it):
    with pytest.raises(InputError, match="total of zero"):
        compare_rates(
            (ones(1, 3), ones(1, 3)), (ones(1, 3), torch.zeros(1, 3).double())
        )
    with pytest.raises(InputError, match="2 items or more"):
        compare_rates((ones(1, 1), ones(1, 1)), (ones(1, 1), ones(1, 1)))
    with pytest.raises(InputError, match="four tables"):
        compare_rates((ones(1, 3), ones(1, 4)), (ones(1, 3), ones(1, 3)))
    rare = torch.zeros(1, 6).double()
    rare[0, 0] = 1
    with pytest.raises(InputError, match="some bootstrap samples have none"):
        compare_rates((rare, rare), (rare, rare))
    with pytest.raises(InputError, match="2 values or more"):
        estimate_mean([1.0])


def test_ranks_are_correlated_as_scipy_does():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 4, 7, generator=generator).round()
    mixed = (
        torch.randint(0, 6, (3, 20), generator=generator).float(),
        torch.randn(3, 20, generator=generator),
    )
    for one, other in (drawn, mixed):
        expected = [
            stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)
        ]
        found = correlate_ranks(one, other)
        torch.testing.assert_close(found, torch.tensor(expected).double())
