"""Control patterns: what a causal claim about a donor is compared with."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp.kernels.replacements import (
    mean_pattern,
    shuffled_pattern,
    uniform_pattern,
)
from tests.kernels.cases import Case, cases, make_case
from tests.oracle import (
    oracle_broadcast,
    oracle_mean_pattern,
    oracle_shuffled_pattern,
    oracle_uniform_pattern,
)

CONTROLS = ("mean", "uniform", "shuffled")


def control(name, case: Case, donors, priority, rows=slice(None)):
    pattern, visible = case.pattern[:, :, rows], case.visible[:, :, rows]
    masks = {"image_mask": case.image_mask, "visible": visible}
    if name == "mean":
        return mean_pattern(pattern)
    if name == "uniform":
        return uniform_pattern(pattern, **masks)
    return shuffled_pattern(pattern, donors, priority=priority, **masks)


def oracle_control(name, case: Case, donors, priority):
    if name == "mean":
        return oracle_mean_pattern(case.pattern)
    if name == "uniform":
        return oracle_uniform_pattern(case.pattern, case.image_mask, case.visible)
    return oracle_shuffled_pattern(
        case.pattern, donors, case.image_mask, case.visible, priority
    )


@st.composite
def controlled(draw):
    """Draw a case, a donor for each item (-1: none) and priorities without ties."""
    case = draw(cases())
    batch, n_heads = case.queries.shape[:2]
    length = case.image_mask.shape[1]
    donors = draw(
        st.lists(st.integers(-1, n_heads - 1), min_size=batch, max_size=batch)
    )
    ranks = [draw(st.permutations(range(length))) for _ in range(batch)]
    return case, torch.tensor(donors), torch.tensor(ranks) / length


@pytest.mark.parametrize("name", CONTROLS)
@hypothesis.given(drawn=controlled())
def test_controls_are_the_oracles(name, drawn):
    found = control(name, *drawn)
    torch.testing.assert_close(found, oracle_control(name, *drawn))


@pytest.mark.parametrize("name", CONTROLS)
@hypothesis.given(drawn=controlled(), start=st.integers(0, 4))
def test_controls_of_a_block_are_rows_of_the_whole(name, drawn, start):
    case = drawn[0]
    rows = slice(min(start, case.image_mask.shape[1] - 1), None)
    whole = control(name, *drawn)
    torch.testing.assert_close(control(name, *drawn, rows=rows), whole[:, :, rows])


@pytest.mark.parametrize("name", CONTROLS)
@hypothesis.given(drawn=controlled())
def test_controls_are_patterns(name, drawn):
    """Rows sum to one, nothing hidden is seen, and padding is nobody's business."""
    case = drawn[0]
    found = control(name, *drawn)
    real = case.token_mask[:, None].expand(found.shape[:-1])
    sums = found.sum(-1)[real]
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert found.min() >= 0
    hidden = ~case.visible.expand_as(found) & real[..., None]
    assert not found[hidden].any()


def test_the_mean_is_every_heads():
    case = make_case("ttiiiittt", "tiitt")
    found = mean_pattern(case.pattern)
    for h in range(4):
        torch.testing.assert_close(found[:, h], case.pattern.mean(1))


def test_an_even_row_sees_the_image_and_nothing_else():
    case = make_case("ttiiiitttt")
    found = control("uniform", case, None, None)
    assert torch.equal(found[:, :, :2], case.pattern[:, :, :2])  # no image yet
    assert (
        found[0, :, 4].tolist() == [pytest.approx([0, 0, *[1 / 3] * 3, *[0] * 5])] * 4
    )
    assert (
        found[0, :, 9].tolist() == [pytest.approx([0, 0, *[0.25] * 4, 0, 0, 0, 0])] * 4
    )


@hypothesis.given(drawn=controlled())
def test_shuffling_moves_image_weight_and_keeps_the_rest(drawn):
    case, donors, priority = drawn
    found = control("shuffled", case, donors, priority)
    donated = oracle_broadcast(case.pattern, donors)
    image = case.image_mask[:, None, None].expand_as(found)
    text = found.masked_fill(image, 0)
    torch.testing.assert_close(text, donated.masked_fill(image, 0))
    moved = found.masked_fill(~image, 0).sort(-1).values
    patched = (donors >= 0)[:, None, None, None]
    was = donated.masked_fill(~image, 0).sort(-1).values
    torch.testing.assert_close(moved * patched, was * patched)


def test_one_permutation_serves_every_row_that_sees_the_whole_image():
    case = make_case("ttiiiiiitttt")
    priority = torch.tensor([[0, 0, 5, 2, 7, 1, 9, 4, 0, 0, 0, 0]]) / 10
    found = control("shuffled", case, torch.tensor([1]), priority)
    source = [5, 3, 7, 2, 4, 6]  # the image columns by ascending priority
    expected = case.pattern[:, 1, 8:, source]
    assert torch.equal(found[:, 3, 8:, 2:8], expected)
    assert not torch.equal(found[:, 3, 8:, 2:8], case.pattern[:, 1, 8:, 2:8])


def test_priorities_in_order_of_position_shuffle_nothing():
    case = make_case("ttiiiittt", "tiitt")
    priority = torch.arange(9.0).expand(2, 9)
    donors = torch.tensor([1, 3])
    found = control("shuffled", case, donors, priority)
    torch.testing.assert_close(found, oracle_broadcast(case.pattern, donors))


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_leave_their_inputs_alone_and_keep_the_dtype(name):
    case = make_case("ttiiiittt")
    pattern = case.pattern.bfloat16()
    before = pattern.clone()
    masks = {"image_mask": case.image_mask, "visible": case.visible}
    found = {
        "mean": lambda: mean_pattern(pattern),
        "uniform": lambda: uniform_pattern(pattern, **masks),
        "shuffled": lambda: shuffled_pattern(
            pattern, torch.tensor([1]), priority=torch.rand(1, 9), **masks
        ),
    }[name]()
    assert found.dtype == torch.bfloat16
    assert torch.equal(pattern, before)
