"""Which head donates: ties, thresholds, controls."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp import errors, kernels
from tests.oracle import oracle_donors


@st.composite
def densities(draw, max_batch=3):
    """Draw densities with many ties, in eighths (exact in float32)."""
    n_heads = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 8), min_size=n_heads, max_size=n_heads)
    rows = draw(st.lists(row, min_size=1, max_size=max_batch))
    return torch.tensor(rows) / 8


@hypothesis.given(
    density=densities(),
    rule=st.sampled_from(["densest", "sparsest"]),
    gamma=st.sampled_from([None, 0.125, 0.5, 1.0]),
)
def test_donors_are_the_oracles(density, rule, gamma):
    found = kernels.choose_donors(density, rule=rule, gamma=gamma)
    assert found.tolist() == oracle_donors(density, rule, gamma).tolist()


@hypothesis.given(density=densities(max_batch=1))
def test_without_head_0_donors_are_the_released_files(density):
    found = kernels.choose_donors(density, head_0="never")
    assert found.tolist() == oracle_donors(density, official=True).tolist()


def test_the_densest_head_wins_and_the_lowest_index_wins_a_tie():
    density = torch.tensor([[0.1, 0.5, 0.2, 0.5], [0.3, 0.3, 0.1, 0.2]])
    assert kernels.choose_donors(density).tolist() == [1, 0]
    assert kernels.choose_donors(density, rule="sparsest").tolist() == [0, 2]


def test_no_sink_anywhere_is_no_donor():
    density = torch.tensor([[0.0, 0.0], [0.0, 0.1]])
    assert kernels.choose_donors(density).tolist() == [-1, 1]
    assert kernels.choose_donors(density, gamma=0.2).tolist() == [-1, -1]


def test_a_donor_just_at_gamma_donates():
    density = torch.tensor([[0.0, 0.25]])
    assert kernels.choose_donors(density, gamma=0.25).tolist() == [1]


@pytest.mark.parametrize("head", [0, 2])
def test_a_named_head_donates_whatever_its_density(head):
    density = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.0, 0.0]])
    assert kernels.choose_donors(density, rule=head).tolist() == [head, head]


def test_random_donors_repeat_and_reach_every_head():
    density = torch.rand(1, 5)
    drawn = [
        kernels.choose_donors(density, rule="random", seed=seed).item()
        for seed in range(100)
    ]
    again = [
        kernels.choose_donors(density, rule="random", seed=seed).item()
        for seed in range(100)
    ]
    assert drawn == again
    assert set(drawn) == set(range(5))
    assert max(map(drawn.count, range(5))) < 45  # 20 expected


def test_a_random_donor_is_an_items_own():
    """The same head whatever batch the item stands in, also with one seed each."""
    density = torch.rand(3, 8)
    alone = kernels.choose_donors(density[:1], rule="random", seed=7)
    together = kernels.choose_donors(density, rule="random", seed=7)
    assert together.tolist() == alone.tolist() * 3
    seeds = [4, 5, 6]
    each = kernels.choose_donors(density, rule="random", seed=seeds)
    for b, seed in enumerate(seeds):
        single = kernels.choose_donors(density[b : b + 1], rule="random", seed=seed)
        assert each[b] == single[0]


def test_a_random_choice_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kernels.choose_donors(torch.rand(0, 4).new_zeros(2, 4), rule="random", seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("as_users_run_it")
def test_an_unknown_rule_is_refused():
    with pytest.raises(errors.SettingsError, match=r"densest.*best"):
        kernels.choose_donors(torch.rand(1, 4), rule="best")


@pytest.mark.parametrize("head", [4, -1, 99])
def test_a_head_that_does_not_exist_is_refused(head):
    with pytest.raises(errors.SettingsError, match=rf"head {head} .*expected 0 to 3"):
        kernels.choose_donors(torch.rand(1, 4), rule=head)


def test_seeds_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(errors.InputError, match="seed"):
        kernels.choose_donors(torch.rand(3, 4), rule="random", seed=[1, 2])
