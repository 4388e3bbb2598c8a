"""Patterns and scores from queries and keys, a block of rows at a time."""

import subprocess
import sys
import textwrap

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp import errors, kernels
from tests.kernels.cases import DEFINITIONS, LAYOUTS, cases, make_case, masks_of
from tests.kernels.test_sinks import BETAS, assert_scores_agree
from tests.oracle import oracle_pattern, oracle_scores

HEADS = [(4, 4), (4, 2), (4, 1)]


def stream(case, **settings):
    return kernels.stream_column_scores(
        case.queries,
        case.keys,
        image_mask=case.image_mask,
        token_mask=case.token_mask,
        mask=case.visible,
        softcap=case.softcap,
        **settings,
    )


def oracle(case, definition):
    """Score the float64 pattern of a case's own queries and keys."""
    scale = case.queries.shape[-1] ** -0.5
    pattern = oracle_pattern(case.queries, case.keys, case.visible, scale, case.softcap)
    return oracle_scores(
        pattern, case.image_mask, case.token_mask, definition, case.visible
    )


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("block", [1, 3, 7, None])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
def test_streamed_scores_are_the_oracles(
    definition, block, n_heads, n_kv_heads, layouts
):
    case = make_case(*layouts, n_heads=n_heads, n_kv_heads=n_kv_heads)
    found = stream(case, definition=definition, block=block)
    expected = oracle(case, definition)
    assert_scores_agree(found, expected, rtol=1e-4, atol=1e-6)
    beta = BETAS[definition]
    assert torch.equal(found.sinks(beta), expected.sinks(beta))


@hypothesis.given(
    case=cases(),
    definition=st.sampled_from(DEFINITIONS),
    block=st.sampled_from([1, 3, 7, None]),
)
def test_streamed_scores_are_the_oracles_on_drawn_cases(case, definition, block):
    found = stream(case, definition=definition, block=block)
    assert_scores_agree(found, oracle(case, definition), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("block", [1, 3, 7, None])
def test_streaming_is_scoring_the_pattern(definition, block):
    case = make_case("ttiiiiitt", "tiitiitt", n_kv_heads=2)
    whole = kernels.score_columns(case.pattern, definition=definition, **case.masks)
    found = stream(case, definition=definition, block=block)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.unit, whole.unit)
    assert torch.equal(found.columns, whole.columns)


def test_soft_capping_is_applied_before_the_softmax():
    plain = make_case("ttiiiiitt")
    capped = make_case("ttiiiiitt", softcap=0.5)
    found = stream(capped)
    assert_scores_agree(found, oracle(capped, "visible"), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.scores, stream(plain).scores, rtol=0.05)


def test_the_scale_is_the_callers():
    case = make_case("ttiiiiitt")
    pattern = oracle_pattern(case.queries, case.keys, case.visible, 0.05)
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, "visible", case.visible
    )
    found = stream(case, scale=0.05)
    assert_scores_agree(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_sees_what_its_boolean_twin_sees(dtype, share):
    """Hidden is what is below half the dtype's minimum, or minus infinity."""
    case = make_case("ttiiiiitt", "iiitt", sees="bidirectional")
    lowest = torch.finfo(dtype).min * share
    additive = torch.zeros(case.visible.shape, dtype=dtype)
    additive = additive.masked_fill(~case.visible, lowest)
    additive[0, 0, 0, -1] = float("-inf")
    found = kernels.stream_column_scores(
        case.queries,
        case.keys,
        image_mask=case.image_mask,
        token_mask=case.token_mask,
        mask=additive,
    )
    same = stream(case)
    torch.testing.assert_close(found.scores, same.scores)
    torch.testing.assert_close(found.unit, same.unit)


def test_an_additive_mask_may_carry_a_bias():
    case = make_case("ttiiiiitt")
    bias = torch.randn(case.visible.shape, generator=torch.Generator().manual_seed(1))
    mask = bias.masked_fill(~case.visible, torch.finfo(torch.float32).min)
    scale = case.queries.shape[-1] ** -0.5
    pattern = oracle_pattern(case.queries, case.keys, case.visible, scale, bias=bias)
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, "visible", case.visible
    )
    found = kernels.stream_column_scores(
        case.queries, case.keys, image_mask=case.image_mask, mask=mask
    )
    assert_scores_agree(found, expected, rtol=1e-4, atol=1e-6)


def test_without_a_mask_attention_is_causal_and_skips_padding():
    case = make_case("ttiiiiitt", "iiitt")
    found = kernels.stream_column_scores(
        case.queries,
        case.keys,
        image_mask=case.image_mask,
        token_mask=case.token_mask,
    )
    assert_scores_agree(found, oracle(case, "visible"), rtol=1e-4, atol=1e-6)


def test_padding_may_hold_any_numbers():
    """A model computes something at padding too; the scores ignore it."""
    case = make_case("ttiiiiitt", "iiitt")
    loud = case.queries.clone(), case.keys.clone()
    for tensor in loud:
        tensor[1, :, :4] = 1e4
    clean = stream(case)
    found = kernels.stream_column_scores(
        *loud,
        image_mask=case.image_mask,
        token_mask=case.token_mask,
        mask=case.visible,
    )
    torch.testing.assert_close(found.scores, clean.scores)


@pytest.mark.parametrize("block", [None, 100])
def test_bfloat16_inputs_are_scored_in_float32(block):
    layout = "tt" + "i" * 300 + "ttt"
    case = make_case(layout, n_heads=2, n_kv_heads=1)
    queries, keys = case.queries.bfloat16(), case.keys.bfloat16()
    found = kernels.stream_column_scores(
        queries, keys, image_mask=case.image_mask, block=block
    )
    assert found.scores.dtype == torch.float32
    scale = queries.shape[-1] ** -0.5
    pattern = oracle_pattern(queries.float(), keys.float(), case.visible, scale)
    expected = oracle_scores(pattern, case.image_mask, case.token_mask, "visible")
    # The dot products themselves may be rounded to bfloat16 (2 ** -8), the sums not.
    assert_scores_agree(found, expected, rtol=2e-2, atol=1e-5)


def test_a_callers_autocast_changes_no_score():
    case = make_case("ttiiiiitt", n_kv_heads=2)
    plain = stream(case)
    whole = kernels.score_columns(case.pattern, **case.masks)
    pattern = case.pattern
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = stream(case)
        assert torch.equal(found.scores, plain.scores)
        found = kernels.score_columns(pattern, **case.masks)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, whole.scores)


def test_even_attention_streams_to_the_uniform_share():
    image_mask, _ = masks_of("t" + "i" * 400 + "ttt")
    queries, keys = torch.zeros(1, 2, 404, 4), torch.randn(1, 2, 404, 4)
    for block in (None, 7):
        found = kernels.stream_column_scores(
            queries, keys, image_mask=image_mask, block=block
        )
        assert not found.sinks(1.0001).any()
        assert found.density(0.9999).min() == 1


def test_streaming_leaves_its_inputs_alone():
    case = make_case("ttiiiiitt", n_kv_heads=2)
    before = case.queries.clone(), case.keys.clone(), case.visible.clone()
    stream(case, block=3)
    after = case.queries, case.keys, case.visible
    assert all(map(torch.equal, before, after))


def test_queries_that_are_no_numbers_are_refused():
    for poisoned in range(2):
        case = make_case("ttiiiiitt")
        (case.queries, case.keys)[poisoned][0, 1, 6, 2] = float("nan")
        with pytest.raises(errors.NumericalError, match="NaN"):
            stream(case)


def test_streaming_refuses_an_item_without_image_tokens():
    with pytest.raises(errors.InputError, match=r"image.*0 of .*item 1"):
        stream(make_case("tiiiitt", "tttt"))


@pytest.mark.usefixtures("as_users_run_it")
def test_streaming_refuses_an_unknown_definition():
    with pytest.raises(
        errors.SettingsError, match=r"paper.*official.*visible.*released"
    ):
        stream(make_case("tiiiitt"), definition="released")


def test_a_block_without_rows_is_refused():
    case = make_case("tiiiitt")
    with pytest.raises(errors.InputError, match=r"block.*at least 1.*0"):
        stream(case, block=0)


@pytest.mark.parametrize(
    "shape", [(1, 1, 7, 6), (1, 1, 6, 7), (3, 1, 7, 7), (1, 3, 7, 7)]
)
def test_a_mask_that_does_not_fit_is_refused(shape):
    case = make_case("tiiiitt", "tiiiitt")
    mask = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(errors.InputError, match=r"mask.*shape"):
        kernels.stream_column_scores(
            case.queries, case.keys, image_mask=case.image_mask, mask=mask
        )


@pytest.mark.slow
@pytest.mark.parametrize("n_kv_heads", [32, 8])
def test_ten_thousand_tokens_score_within_a_gibibyte(n_kv_heads):
    """32 heads x 10,000 tokens x 128; a whole pattern would be 12 GiB."""
    code = """
        import resource, sys
        import torch
        from eah_interp.kernels import stream_column_scores

        n_kv_heads = int(sys.argv[1])
        torch.set_num_threads(2)
        q = torch.randn(1, 32, 10_000, 128, dtype=torch.bfloat16)
        k = torch.randn(1, n_kv_heads, 10_000, 128, dtype=torch.bfloat16)
        image = torch.zeros(1, 10_000, dtype=torch.bool)
        image[:, 100:9_000] = True
        few = slice(0, 64)  # warms the kernels, so that their workspace is not counted
        stream_column_scores(q[:, :, few], k[:, :, few], image_mask=image[:, 50:114])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stream_column_scores(q, k, image_mask=image)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(after - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(n_kv_heads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mebibytes = int(done.stdout) / 1024
    assert mebibytes < 1024, f"{mebibytes:.0f} MiB"
