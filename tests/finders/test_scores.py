"""Rankings say how sure they are: intervals, halves, and what chance would give."""

from itertools import product

import pytest
import torch
from scipy import stats

from eah_interp.errors import InputError, SettingsError
from eah_interp.finders import HeadScores
from eah_interp.finders.scores import _draw_groups, _draw_times
from eah_interp.interventions import HeadList


def make(labels="signs", n_items=12, seed=0, effect=0.0, lines=1):
    """Draw scores of 2 layers of 3 heads; the second head of layer 4 has an effect."""
    generator = torch.Generator().manual_seed(seed)
    n_lines = n_items * lines
    scores = torch.randn(n_lines, 2, 3, generator=generator)
    group = torch.arange(n_lines) % 2 == 0 if labels == "groups" else None
    shift = torch.ones(n_lines) if group is None else group.float()
    scores[:, 1, 1] += effect * shift
    return HeadScores(
        finder="prompt",
        measure="a fall",
        scores=scores,
        layers=(0, 4),
        items=torch.arange(n_items).repeat_interleave(lines),
        labels=labels,
        group=group,
    )


LABELS = [("signs", 1), ("groups", 2), ("heads", 1)]


@pytest.mark.parametrize(("labels", "lines"), LABELS)
def test_an_effect_is_found_and_its_shuffle_is_not(labels, lines):
    found = make(labels, effect=2.5, lines=lines)
    assert found.top(1) == HeadList(((4, 1),))
    assert found.significant() == ("L4H1",)
    p = [found.shuffled(seed).p_value(resamples=99) for seed in range(10)]
    assert sum(value > 0.05 for value in p) >= 8


def test_signs_give_the_p_value_of_all_signs():
    found = make(n_items=8, seed=3, effect=0.8)
    flat = found.scores.flatten(1).double()
    signs = torch.tensor(list(product([-1, 1], repeat=8))).double()
    exact = ((signs @ flat / 8).amax(1) >= flat.mean(0).amax() - 1e-12).double().mean()
    assert found.p_value(resamples=20_000) == pytest.approx(float(exact), abs=0.01)


def test_a_score_of_groups_is_a_difference_of_means():
    found = make("groups", lines=2)
    even = found.scores[::2].mean(0) - found.scores[1::2].mean(0)
    torch.testing.assert_close(found.mean.float(), even)


def test_groups_are_shuffled_within_items():
    items = torch.tensor([5, 5, 7, 7, 7, 9])
    group = torch.tensor([True, False, True, True, False, True])
    generator = torch.Generator().manual_seed(0)
    drawn = _draw_groups(items, group, 300, generator)
    for item, n in ((5, 1), (7, 2), (9, 1)):
        assert (drawn[:, items == item].sum(1) == n).all()
    share = drawn.double().mean(0)
    expected = torch.tensor([1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3, 1]).double()
    torch.testing.assert_close(share, expected, rtol=0, atol=0.1)


def test_halves_are_drawn_from_their_own_items():
    generator = torch.Generator().manual_seed(0)
    among = torch.rand(50, 9, generator=generator) < 0.5
    times = _draw_times(among, generator)
    assert (times[~among] == 0).all()
    assert times.sum(1).tolist() == among.sum(1).tolist()


def test_a_ranking_of_noise_is_not_stable_and_one_of_effects_is():
    noise = make("heads", n_items=40).stability(resamples=300)
    assert noise.low < 0 < noise.high
    sure = make("heads", n_items=40)
    scores = sure.scores + 3 * torch.arange(6.0).view(2, 3)
    sure = HeadScores(**{**vars(sure), "scores": scores}).stability(resamples=300)
    assert sure.estimate == 1
    with pytest.raises(InputError, match="halves need 4 items or more, got 3"):
        make(n_items=3).stability()


def test_too_few_items_have_no_intervals():
    table = make(n_items=1).frame(resamples=50)
    assert table[["low", "high", "stability"]].isna().all().all()
    assert table["score"].notna().all()


def test_unfit_parts_are_refused(as_users_run_it):
    whole = vars(make())
    for changes, message in (
        ({"layers": (0,)}, "expected 2 layers"),
        ({"items": torch.arange(3)}, "expected 12 items"),
        ({"scores": whole["scores"] * float("nan")}, "scores must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            HeadScores(**{**whole, **changes})
    with pytest.raises(SettingsError, match="k must be 1 to 6 heads, got 7"):
        make().top(7)
    with pytest.raises(SettingsError, match="seed must be"):
        make().shuffled(-1)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "lines"), LABELS)
def test_p_is_uniform_where_nothing_is_to_be_found(labels, lines):
    p = [
        make(labels, seed=seed, lines=lines).p_value(resamples=199, seed=seed)
        for seed in range(200)
    ]
    check_uniform(p)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "lines"), LABELS)
def test_p_is_uniform_with_an_effect_whose_labels_are_shuffled(labels, lines):
    found = make(labels, effect=1.5, lines=lines)
    p = [
        found.shuffled(seed).p_value(resamples=199, seed=1000 + seed)
        for seed in range(200)
    ]
    check_uniform(p)


def check_uniform(p):
    """Compare with a uniform law, and with the rate at which one may be below 0.05."""
    assert stats.kstest(p, "uniform").pvalue > 0.01
    n_found = sum(value <= 0.05 for value in p)
    assert 3 <= n_found <= 19  # 200 draws of 0.05: 99 % lie within
