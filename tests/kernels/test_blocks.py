"""Patterns a block of rows at a time, and what is mixed with them."""

import pytest
import torch

from eah_interp import errors
from eah_interp.kernels.patterns import mix_values, pattern_blocks
from tests.kernels.cases import make_case
from tests.oracle import causal, oracle_pattern

HEADS = [(4, 4), (4, 2), (4, 1)]


def test_gradients_flow_through_mixed_values():
    """In-place steps inside the blocks spoil nothing that backward needs."""
    case = make_case("ttiiiiitt", n_kv_heads=2)
    inputs = [case.queries, case.keys, torch.randn(1, 2, 9, 8)]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.clone().requires_grad_() for tensor in inputs]
    mixed = mix_values(*ours, change=lambda part: part.weights, block=4)
    q, k, v = theirs
    repeated = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    plain = sdpa(q, *repeated, is_causal=True).transpose(1, 2)
    weigh = torch.randn(plain.shape)
    (mixed * weigh).sum().backward()
    (plain * weigh).sum().backward()
    torch.testing.assert_close(mixed, plain, rtol=1e-4, atol=1e-5)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 5, None])
def test_blocks_are_the_oracles_pattern_in_order(block):
    case = make_case("ttiiiiitt", "tiitiitt", n_kv_heads=2, sees="bidirectional")
    blocks = list(
        pattern_blocks(
            case.queries, case.keys, mask=case.visible, softcap=2.0, block=block
        )
    )
    whole = torch.cat([part.weights for part in blocks], dim=2)
    seen = torch.cat([part.visible for part in blocks], dim=2)
    expected = oracle_pattern(
        case.queries, case.keys, case.visible, case.queries.shape[-1] ** -0.5, 2.0
    )
    real = case.token_mask[:, None, :, None]
    torch.testing.assert_close(
        whole.double() * real, expected * real, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(seen.expand_as(case.visible), case.visible)
    starts = [part.rows.start for part in blocks]
    assert starts == sorted(starts)
    assert sum(part.weights.shape[2] for part in blocks) == whole.shape[2] == 9


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_mixing_values_is_attending_with_the_changed_pattern(n_heads, n_kv_heads):
    case = make_case("ttiiiiitt", "tiitt", n_heads=n_heads, n_kv_heads=n_kv_heads)
    values = torch.randn(2, n_kv_heads, 9, 5)
    found = mix_values(
        case.queries,
        case.keys,
        values,
        change=lambda part: part.weights.flip(1) * part.visible,
        mask=case.visible,
        block=4,
    )
    pattern = case.pattern.flip(1)
    for h in range(n_heads):
        expected = pattern[:, h] @ values[:, h // (n_heads // n_kv_heads)]
        torch.testing.assert_close(found[:, :, h], expected, rtol=1e-4, atol=1e-5)


def test_a_cached_step_needs_its_own_mask():
    """One query row among many keys: which row it is, only the mask knows."""
    case = make_case("ttiiiiitt")
    row = case.queries[:, :, -1:]
    with pytest.raises(errors.InputError, match=r"1 and 9.*mask"):
        list(pattern_blocks(row, case.keys))
    mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    last = next(iter(pattern_blocks(row, case.keys, mask=mask)))
    torch.testing.assert_close(last.weights, case.pattern[:, :, -1:])


def test_heads_that_do_not_divide_into_groups_are_refused():
    queries, keys = torch.randn(1, 4, 6, 8), torch.randn(1, 3, 6, 8)
    with pytest.raises(errors.InputError, match=r"4.*3"):
        list(pattern_blocks(queries, keys))


def test_long_causal_prompts_need_no_square_mask():
    """The default mask is made per block: `causal` of the oracle agrees with it."""
    token_mask = torch.ones(1, 50, dtype=torch.bool)
    token_mask[:, :9] = False
    queries, keys = torch.randn(1, 2, 50, 4), torch.randn(1, 2, 50, 4)
    blocks = pattern_blocks(queries, keys, token_mask=token_mask, block=6)
    visible = [part.visible for part in blocks]
    # A causal block leaves out the keys after its last row: none of them is visible.
    assert [part.shape[-1] for part in visible] == [*range(6, 50, 6), 50]
    pad = torch.nn.functional.pad
    seen = torch.cat([pad(part, (0, 50 - part.shape[-1])) for part in visible], dim=2)
    assert torch.equal(seen, causal(token_mask))
