"""Rows that share their weight with a learned sink sum to less than one, exactly so."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp import errors, kernels
from eah_interp.kernels.patterns import mix_values, pattern_blocks
from eah_interp.kernels.replacements import (
    mean_pattern,
    shuffled_pattern,
    uniform_pattern,
)
from tests.kernels.cases import Case, cases, make_case
from tests.kernels.test_sinks import assert_scores_agree
from tests.oracle import (
    oracle_broadcast,
    oracle_mean_pattern,
    oracle_pattern,
    oracle_scores,
    oracle_shuffled_pattern,
    oracle_uniform_pattern,
)

OF_HEADS, OF_ROWS = "one of each head", "one of each row of each head"


def draw_sinks(case: Case, kind: str, seed: int = 0):
    """Draw logits as large as the case's own: `[batch or 1, head, query or 1, 1]`."""
    batch, n_heads, n_rows, _ = case.queries.shape
    shape = (1, n_heads, 1, 1) if kind == OF_HEADS else (batch, n_heads, n_rows, 1)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(case: Case, sinks, **changes):
    """Attend by the oracle's loops, in float64."""
    batch, n_heads, n_rows, d_head = case.queries.shape
    sink = sinks.double().expand(batch, n_heads, n_rows, 1).squeeze(-1)
    settings = {"scale": d_head**-0.5, "softcap": case.softcap, **changes}
    return oracle_pattern(case.queries, case.keys, case.visible, sink=sink, **settings)


def whole_pattern(case: Case, sinks, **changes):
    settings = {"mask": case.visible, "softcap": case.softcap, **changes}
    blocks = pattern_blocks(case.queries, case.keys, sink_logits=sinks, **settings)
    return torch.cat([part.weights for part in blocks], dim=2)


def assert_patterns_agree(found, expected, case: Case):
    real = case.token_mask[:, None, :, None]
    torch.testing.assert_close(
        found.double() * real, expected * real, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", [OF_HEADS, OF_ROWS])
@hypothesis.given(case=cases(), block=st.sampled_from([1, 3, None]))
def test_patterns_with_a_sink_are_the_oracles(kind, case, block):
    sinks = draw_sinks(case, kind)
    found = whole_pattern(case, sinks, block=block)
    assert_patterns_agree(found, reference(case, sinks), case)


def test_a_causal_pattern_without_a_mask_has_its_sink_too():
    case = make_case("ttiiiiitt", "tiiitt", n_kv_heads=2)
    sinks = draw_sinks(case, OF_ROWS)
    blocks = pattern_blocks(
        case.queries,
        case.keys,
        token_mask=case.token_mask,
        sink_logits=sinks,
        block=4,
    )
    pad = torch.nn.functional.pad
    parts = [pad(b.weights, (0, 9 - b.weights.shape[-1])) for b in blocks]
    assert_patterns_agree(torch.cat(parts, 2), reference(case, sinks), case)


def test_a_sink_is_neither_scaled_nor_capped_nor_biased():
    case = make_case("ttiiiiitt", n_kv_heads=2)
    sinks = draw_sinks(case, OF_ROWS)
    bias = torch.randn(case.visible.shape, generator=torch.Generator().manual_seed(1))
    mask = bias.masked_fill(~case.visible, torch.finfo(torch.float32).min)
    settings = {"scale": 0.1, "softcap": 2.0}
    found = whole_pattern(case, sinks, mask=mask, **settings)
    assert_patterns_agree(found, reference(case, sinks, bias=bias, **settings), case)


@pytest.mark.parametrize("family", ["gpt_oss", "inkling2"])
def test_patterns_with_a_sink_are_those_of_transformers(family):
    from importlib import import_module
    from types import SimpleNamespace

    module = import_module(f"transformers.models.{family}.modeling_{family}")
    case = make_case("ttiiiiitt", "ttiitiiit", n_kv_heads=2)
    kind = OF_HEADS if family == "gpt_oss" else OF_ROWS
    sinks, values = draw_sinks(case, kind), torch.randn(2, 2, 9, 5)
    attention = SimpleNamespace(
        num_key_value_groups=2, training=False, sinks=sinks.flatten()
    )
    lowest = torch.finfo(torch.float32).min
    output, pattern = module.eager_attention_forward(
        attention,
        case.queries,
        case.keys,
        values,
        torch.zeros(case.visible.shape).masked_fill(~case.visible, lowest),
        scaling=8**-0.5,
        sinks=sinks,
    )
    found = whole_pattern(case, sinks, block=4)
    torch.testing.assert_close(found, pattern, rtol=1e-6, atol=1e-7)
    mixed = mix_values(
        case.queries,
        case.keys,
        values,
        change=lambda part: part.weights,
        sink_logits=sinks,
        block=4,
    )
    torch.testing.assert_close(mixed, output, rtol=1e-5, atol=1e-6)


@hypothesis.given(case=cases())
def test_what_a_row_loses_is_the_sinks_share_and_the_rest_keeps_its_proportions(case):
    sinks = draw_sinks(case, OF_ROWS)
    found, plain = whole_pattern(case, sinks), whole_pattern(case, None)
    mass = found.sum(-1, keepdim=True)
    assert mass.max() < 1
    torch.testing.assert_close(found, plain * mass, rtol=1e-4, atol=1e-7)


def test_a_sink_of_minus_infinity_is_none_and_a_loud_one_takes_all():
    case = make_case("ttiiiiitt", "tiitt")
    sinks = draw_sinks(case, OF_HEADS)
    silent = whole_pattern(case, torch.full_like(sinks, -torch.inf))
    torch.testing.assert_close(silent, whole_pattern(case, None))
    assert whole_pattern(case, torch.full_like(sinks, 1e4)).max() == 0


def test_gradients_reach_the_sinks():
    case = make_case("ttiiiiitt", n_kv_heads=2)
    ours = draw_sinks(case, OF_HEADS).requires_grad_()
    values, weigh = torch.randn(1, 2, 9, 8), torch.randn(1, 9, 4, 8)
    mixed = mix_values(
        case.queries,
        case.keys,
        values,
        change=lambda part: part.weights,
        sink_logits=ours,
        block=4,
    )
    (mixed * weigh).sum().backward()
    theirs = ours.detach().double().requires_grad_()
    pattern = reference(case, theirs)
    whole = pattern @ values.repeat_interleave(2, 1).double()
    (whole.transpose(1, 2) * weigh).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("definition", ["paper", "official", "visible"])
@pytest.mark.parametrize("block", [1, 4, None])
def test_scores_are_of_what_the_sink_leaves_and_the_unit_is_of_whole_rows(
    definition, block
):
    case = make_case("ttiiiiitt", "tiitiitt", n_kv_heads=2)
    sinks = draw_sinks(case, OF_ROWS)
    settings = {
        "image_mask": case.image_mask,
        "token_mask": case.token_mask,
        "mask": case.visible,
        "definition": definition,
        "block": block,
    }
    found = kernels.stream_column_scores(
        case.queries, case.keys, sink_logits=sinks, **settings
    )
    pattern = reference(case, sinks)
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, definition, case.visible
    )
    assert_scores_agree(found, expected, rtol=1e-4, atol=1e-6)
    whole = kernels.score_columns(pattern.float(), definition=definition, **case.masks)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-5, atol=1e-7)
    plain = kernels.stream_column_scores(case.queries, case.keys, **settings)
    assert torch.equal(found.unit, plain.unit)
    assert found.scores.sum() < 0.9 * plain.scores.sum()


@pytest.mark.parametrize("name", ["mean", "uniform", "shuffled"])
@hypothesis.given(case=cases(), data=st.data())
def test_controls_of_rows_with_a_sink_are_the_oracles(name, case, data):
    pattern = reference(case, draw_sinks(case, OF_ROWS)).float()
    masks = {"image_mask": case.image_mask, "visible": case.visible}
    batch, n_heads, _, length = pattern.shape
    one = st.integers(-1, n_heads - 1)
    donors = torch.tensor(data.draw(st.lists(one, min_size=batch, max_size=batch)))
    priority = torch.rand(batch, length, generator=torch.Generator().manual_seed(2))
    mass = pattern.sum(-1)
    if name == "mean":
        found, expected = mean_pattern(pattern), oracle_mean_pattern(pattern)
        mass = mass.mean(1, keepdim=True).expand(-1, n_heads, -1)
    elif name == "uniform":
        found = uniform_pattern(pattern, **masks)
        expected = oracle_uniform_pattern(pattern, **masks)
    else:
        found = shuffled_pattern(pattern, donors, priority=priority, **masks)
        expected = oracle_shuffled_pattern(pattern, donors, priority=priority, **masks)
        mass = oracle_broadcast(mass[..., None], donors)[..., 0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), mass)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 1, 1), (3, 4, 1, 1), (2, 4, 5, 1)])
def test_sink_logits_that_do_not_fit_are_refused(shape):
    case = make_case("tiiiitt", "tiiiitt")
    with pytest.raises(errors.InputError, match=r"sink logits .*expected \(2, 4, 7, 1"):
        whole_pattern(case, torch.zeros(shape))
