"""Column scores, sinks and densities from a whole pattern."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from eah_interp import errors, kernels
from eah_interp.kernels.sinks import DEFAULT_BETA, dense_heads
from tests.kernels.cases import (
    DEFINITIONS,
    LAYOUTS,
    cases,
    make_case,
    masks_of,
    tokens_moved,
)
from tests.oracle import causal, oracle_scores

BETAS = {"paper": 0.05, "official": 0.05, "visible": 1.0}  # tiny prompts, larger shares


def assert_scores_agree(found, expected, *, rtol=1e-5, atol=1e-7):
    """Scores, units and columns agree, and so do the sinks they make."""
    assert torch.equal(found.columns, expected.columns)
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(found.scores.double(), expected.scores, **close)
    unit = found.unit.double().expand_as(expected.unit)
    judged = expected.columns[:, None].expand_as(unit)
    seen = judged & (expected.scores > 0)  # a column that nobody sees has no share
    torch.testing.assert_close(unit[seen], expected.unit[seen], **close)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("sees", ["causal", "bidirectional", "sliding"])
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_are_the_oracles(definition, sees, layouts):
    case = make_case(*layouts, sees=sees)
    pattern = case.pattern
    found = kernels.score_columns(pattern, definition=definition, **case.masks)
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, definition, case.visible
    )
    assert_scores_agree(found, expected)
    beta = BETAS[definition]
    assert expected.sinks(beta).any(), "the case has no sink: it proves nothing"
    assert torch.equal(found.sinks(beta), expected.sinks(beta))
    torch.testing.assert_close(
        found.density(beta).double(), expected.density(beta), rtol=1e-6, atol=0
    )


@hypothesis.given(case=cases(), definition=st.sampled_from(DEFINITIONS))
def test_scores_are_the_oracles_on_drawn_cases(case, definition):
    pattern = case.pattern
    found = kernels.score_columns(pattern, definition=definition, **case.masks)
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, definition, case.visible
    )
    assert_scores_agree(found, expected)


def test_the_defaults_are_causal_visible_and_without_padding():
    case = make_case("ttiiiitt", "tiitiitt")
    pattern = case.pattern
    found = kernels.score_columns(pattern, image_mask=case.image_mask)
    explicit = kernels.score_columns(pattern, definition="visible", **case.masks)
    assert torch.equal(found.scores, explicit.scores)
    assert torch.equal(found.unit, explicit.unit)
    assert DEFAULT_BETA == {"paper": 0.002, "official": 0.0008, "visible": 1.0}


def test_the_default_visibility_skips_padding():
    case = make_case("ttiiiitt", "iitt")
    masks = {"image_mask": case.image_mask, "token_mask": case.token_mask}
    found = kernels.score_columns(case.pattern, **masks)
    expected = oracle_scores(case.pattern, definition="visible", **masks)
    assert_scores_agree(found, expected)


def test_heads_may_see_different_keys():
    case = make_case("ttiiiitt", n_heads=2, n_kv_heads=2)
    windows = torch.cat([case.visible, case.visible.triu(-2)], dim=1)
    pattern = case.pattern * windows
    pattern = pattern / pattern.sum(-1, keepdim=True)
    found = kernels.score_columns(
        pattern, image_mask=case.image_mask, visible=windows, definition="visible"
    )
    expected = oracle_scores(
        pattern, case.image_mask, case.token_mask, "visible", windows
    )
    assert not torch.allclose(expected.unit[:, 0], expected.unit[:, 1])
    assert_scores_agree(found, expected)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_left_padding_changes_no_score(definition):
    case = make_case("ttiiiitiiitt")
    moved = tokens_moved(case, 5)
    found = kernels.score_columns(case.pattern, definition=definition, **case.masks)
    padded = kernels.score_columns(moved.pattern, definition=definition, **moved.masks)
    torch.testing.assert_close(padded.scores[..., 5:], found.scores)
    assert not padded.scores[..., :5].any()
    assert torch.equal(padded.columns[:, 5:], found.columns)
    beta = BETAS[definition]
    assert torch.equal(padded.density(beta), found.density(beta))


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_what_padding_rows_attend_to_changes_no_score(definition):
    case = make_case("tiiiitt", "iiit")
    pattern = case.pattern
    noisy = pattern.clone()
    noisy[1, :, :3] = 1 / pattern.shape[-1]  # transformers leaves an even spread there
    clean = kernels.score_columns(pattern, definition=definition, **case.masks)
    found = kernels.score_columns(noisy, definition=definition, **case.masks)
    assert torch.equal(found.scores, clean.scores)


@hypothesis.given(case=cases(), definition=st.sampled_from(DEFINITIONS))
def test_a_batch_scores_like_its_items(case, definition):
    pattern = case.pattern
    batch = kernels.score_columns(pattern, definition=definition, **case.masks)
    for b, real in enumerate(case.token_mask):
        alone = pattern[b : b + 1][..., real, :][..., real]
        single = kernels.score_columns(
            alone,
            image_mask=case.image_mask[b : b + 1, real],
            visible=case.visible[b : b + 1][..., real, :][..., real],
            definition=definition,
        )
        torch.testing.assert_close(
            batch.scores[b : b + 1][..., real], single.scores, rtol=1e-5, atol=1e-7
        )


@hypothesis.given(case=cases(), definition=st.sampled_from(DEFINITIONS), data=st.data())
def test_scores_follow_their_heads(case, definition, data):
    n_heads = case.queries.shape[1]
    order = data.draw(st.permutations(range(n_heads)))
    pattern = case.pattern
    plain = kernels.score_columns(pattern, definition=definition, **case.masks)
    moved = kernels.score_columns(
        pattern[:, order], definition=definition, **case.masks
    )
    torch.testing.assert_close(
        moved.scores, plain.scores[:, order], rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("length", [5, 17, 64, 300])
def test_even_attention_has_no_sinks(length):
    """Strictly above the uniform share: rounding makes no sink where there is none."""
    visible = causal(torch.ones(2, length, dtype=torch.bool))
    even = (visible / visible.sum(-1, keepdim=True)).expand(2, 3, length, length)
    image_mask = torch.zeros(2, length, dtype=torch.bool)
    image_mask[:, 1:-1] = True
    found = kernels.score_columns(even.float(), image_mask=image_mask)
    expected = found.unit.expand_as(found.scores)
    judged = image_mask[:, None].expand_as(expected)
    torch.testing.assert_close(found.scores[judged], expected[judged])
    assert not found.sinks(1.0).any()
    assert found.sinks(0.99)[judged].all()


def test_a_late_column_is_never_a_paper_sink():
    """Few image rows come after it and the divisor is the whole image: as published."""
    length = 40
    image_mask = torch.ones(1, length, dtype=torch.bool)
    pattern = torch.zeros(1, 1, length, length)
    pattern[..., 0] = 1  # every row looks at the first token,
    pattern[..., -1, :] = 0
    pattern[..., -1, -2] = 1  # and the last row at the last but one
    paper = kernels.score_columns(pattern, image_mask=image_mask, definition="paper")
    ours = kernels.score_columns(pattern, image_mask=image_mask)
    assert paper.scores[0, 0, -2] == pytest.approx(1 / length)
    assert ours.scores[0, 0, -2] == 1
    assert paper.scores[0, 0, -1] == ours.scores[0, 0, -1] == 0  # nobody sees it


def test_scores_are_float32_also_of_bfloat16_patterns():
    image_mask, token_mask = masks_of("t" + "i" * 200 + "tttt")
    case = make_case("t" + "i" * 200 + "tttt", n_heads=2, n_kv_heads=2)
    pattern = case.pattern.bfloat16()
    found = kernels.score_columns(pattern, image_mask=image_mask)
    assert found.scores.dtype == found.unit.dtype == torch.float32
    expected = oracle_scores(pattern, image_mask, token_mask, "visible")
    assert_scores_agree(found, expected)


def test_scoring_leaves_its_inputs_alone():
    case = make_case("tiiiitt", "iiit")
    pattern = case.pattern
    before = pattern.clone()
    kernels.score_columns(pattern, **case.masks)
    assert torch.equal(pattern, before)


def test_dense_heads_reach_gamma():
    density = torch.tensor([[0.0, 0.15, 0.2, 0.2001, 1.0]])
    found = dense_heads(density, gamma=0.2)
    assert found.tolist() == [[False, False, True, True, True]]


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5, float("nan")])
def test_a_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(errors.SettingsError, match="gamma"):
        dense_heads(torch.rand(1, 4), gamma=gamma)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_an_item_without_image_tokens_is_refused(definition):
    case = make_case("tiiiitt", "tttt")
    with pytest.raises(errors.InputError, match=r"image.*0 of .*item 1"):
        kernels.score_columns(case.pattern, definition=definition, **case.masks)


PLACES = {"image column": (5, 3), "text column": (6, 0), "own": (3, 3), "text": (0, 0)}


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_that_are_no_numbers_are_refused(weight, place, definition):
    """Also where no score would show them: the model's numbers are broken."""
    case = make_case("tiiiitt")
    pattern = case.pattern
    pattern[0, 2, *place] = weight
    with pytest.raises(errors.NumericalError, match="NaN or infinite"):
        kernels.score_columns(pattern, definition=definition, **case.masks)


def test_a_decoding_step_is_refused():
    """One query row is no prefill; a row's own column would be the wrong one."""
    case = make_case("tiiiitt")
    step = case.pattern[:, :, -1:]
    with pytest.raises(errors.InputError, match=r"1 query rows and 7 keys"):
        kernels.score_columns(step, image_mask=case.image_mask)


@pytest.mark.usefixtures("as_users_run_it")
def test_an_unknown_definition_is_refused():
    case = make_case("tiiiitt")
    with pytest.raises(
        errors.SettingsError, match=r"paper.*official.*visible.*released"
    ):
        kernels.score_columns(case.pattern, definition="released", **case.masks)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("wrong", ["image_mask", "token_mask", "visible"])
def test_shapes_that_disagree_are_refused(wrong):
    case = make_case("tiiiitt")
    masks = case.masks
    masks[wrong] = masks[wrong][..., :-1]  # one key short
    with pytest.raises(errors.InputError, match=r"shape \(1, .*expected"):
        kernels.score_columns(case.pattern, **masks)
