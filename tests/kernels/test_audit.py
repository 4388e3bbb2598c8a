"""The audit of the released file (docs/method.md), line by line.

Each numbered line that concerns scores and donors is a test of definition="official";
where the line is a bug, the same test shows that "paper" and "visible" do not have it.
Lines 1 and 5 (layer 15, batch item 0 only) are settings of EAH.official(), tested
with it; line 8 (no released captions) has nothing to run.
"""

import pytest
import torch

from eah_interp import kernels
from eah_interp.kernels.sinks import DEFAULT_BETA
from tests.oracle import oracle_scores, released_file

FIRST, LAST = 35, 610  # LLaVA-1.5: 576 image tokens between 35 and 37 tokens of text
BETA = DEFAULT_BETA["official"]


def llava_masks(length=648, batch=1):
    image_mask = torch.zeros(batch, length, dtype=torch.bool)
    image_mask[:, FIRST : LAST + 1] = True
    return image_mask


@pytest.fixture(scope="module")
def pattern():
    """A pattern of LLaVA-1.5's shape whose heads differ in sharpness, for two items."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(2, 32, 648, 8, generator=generator)
    keys = torch.randn(2, 32, 648, 8, generator=generator)
    sharpness = 0.5 + 1.5 * torch.rand(2, 32, 1, 1, generator=generator)
    logits = sharpness * (queries @ keys.mT)
    hidden = torch.ones(648, 648, dtype=torch.bool).triu(1)
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def even_share_pattern(length, weight=1e-3):
    """Every row gives `weight` to each image column it sees, the rest to token 0."""
    pattern = torch.zeros(1, 1, length, length)
    pattern[..., FIRST : LAST + 1] = weight
    pattern = pattern.tril()
    pattern[..., 0] = 1 - pattern.sum(-1)
    return pattern


def official_donors(scores):
    return kernels.choose_donors(scores.density(BETA), head_0="never")


def test_official_is_the_released_file(pattern):
    """Counts, donor and patched pattern of batch item 0, on random weights."""
    released = released_file(pattern)
    assert len(set(released.counts)) > 10
    assert released.donor > 0
    found = kernels.score_columns(
        pattern, image_mask=llava_masks(batch=2), definition="official"
    )
    assert found.sinks(BETA)[0].sum(-1).tolist() == released.counts
    donors = official_donors(found)
    assert donors[0] == released.donor
    donors[1:] = -1  # line 5; EAH.official() does this
    patched = kernels.broadcast_pattern(pattern, donors)
    assert torch.equal(patched, released.patched)
    assert not torch.equal(patched, pattern)


def released_counts_in(dtype, pattern):
    """The file's sums, quotients and comparison, each in the model's own dtype."""
    own = torch.eye(pattern.shape[-1], dtype=torch.bool)
    counts = []
    for head in pattern[0]:
        received = head.masked_fill(own, 0)[:, 36:611].sum(0, dtype=dtype)
        counts.append(int((received / torch.arange(611, 36, -1) > 0.0008).sum()))
    return counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_official_sums_in_half_precision_as_the_file_does(dtype):
    """From queries and keys, as eager attention rounds them, and from a pattern."""
    unlike = 0
    hidden = torch.ones(648, 648, dtype=torch.bool).triu(1)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        queries, keys = (
            torch.randn(1, 32, 648, 8, generator=generator) for _ in range(2)
        )
        sharpness = 1 + 4 * torch.rand(1, 32, 1, 1, generator=generator)
        queries, keys = (sharpness * queries).to(dtype), keys.to(dtype)
        logits = queries @ keys.mT * 8**-0.5
        weights = logits.masked_fill(hidden, -torch.inf).float().softmax(-1).to(dtype)
        wanted = released_counts_in(dtype, weights)
        given = {"image_mask": llava_masks(), "definition": "official"}
        for found in (
            kernels.stream_column_scores(queries, keys, **given),
            kernels.score_columns(weights, **given),
        ):
            assert found.sinks(BETA)[0].sum(-1).tolist() == wanted
            assert int(official_donors(found)) == (
                max(range(32), key=wanted.__getitem__) or -1
            )
        wide = kernels.score_columns(weights.float(), **given)
        unlike += wide.sinks(BETA)[0].sum(-1).tolist() != wanted
    assert unlike


def test_line_2_the_first_image_column_is_dropped(pattern):
    columns = {
        definition: kernels.score_columns(
            pattern[:1], image_mask=llava_masks(), definition=definition
        ).columns[0]
        for definition in ("official", "paper", "visible")
    }
    assert columns["official"].nonzero().flatten().tolist() == list(range(36, 611))
    for definition in ("paper", "visible"):
        judged = columns[definition].nonzero().flatten().tolist()
        assert judged == list(range(35, 611))


def test_line_3_a_sink_is_strictly_above_beta():
    assert BETA == 0.0008
    at = torch.tensor([[[BETA]]])
    above = at.nextafter(torch.ones(()))
    unit, judged = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    assert not kernels.ColumnScores(at, unit, judged).sinks(BETA).any()
    assert kernels.ColumnScores(above, unit, judged).sinks(BETA).all()


def test_line_4_the_divisors_run_from_611_to_37():
    pattern = torch.zeros(1, 1, 648, 648)
    pattern[..., 647, :] = 1  # only the last row looks, at everything
    found = kernels.score_columns(
        pattern, image_mask=llava_masks(), definition="official"
    )
    divisors = 1 / found.scores[0, 0, 36:611]
    torch.testing.assert_close(divisors, torch.arange(611.0, 36.0, -1))


def test_line_4_rows_of_text_after_the_image_count():
    pattern = torch.zeros(1, 1, 648, 648)
    pattern[..., :, 0] = 1
    pattern[..., 640, 0], pattern[..., 640, 100] = 0, 1  # one text row, one column
    scores = {
        definition: kernels.score_columns(
            pattern, image_mask=llava_masks(), definition=definition
        ).scores[0, 0, 100]
        for definition in ("official", "paper", "visible")
    }
    assert scores["official"] == pytest.approx(1 / 547)
    assert scores["paper"] == 0  # image rows only, as published
    assert scores["visible"] == pytest.approx(1 / 547)


@pytest.mark.parametrize("length", [620, 648, 700])
def test_line_4_official_is_a_mean_for_a_prompt_of_648_tokens_only(length):
    """Each later row gives 0.001: the mean is 0.001, whatever the prompt's length."""
    pattern = even_share_pattern(length)
    y = torch.arange(FIRST + 1, LAST + 1)
    found = {
        definition: kernels.score_columns(
            pattern, image_mask=llava_masks(length), definition=definition
        ).scores[0, 0, y]
        for definition in ("official", "paper", "visible")
    }
    expected = 1e-3 * (length - 1 - y) / (647 - y)
    torch.testing.assert_close(found["official"], expected, rtol=1e-4, atol=0)
    is_mean = torch.allclose(found["official"], torch.tensor(1e-3), rtol=1e-4)
    assert is_mean == (length == 648)
    mean = torch.full((len(y),), 1e-3)
    torch.testing.assert_close(found["visible"], mean, rtol=1e-4, atol=0)
    of_image = 1e-3 * (LAST - y) / 576  # the same for every length
    torch.testing.assert_close(found["paper"], of_image, rtol=1e-4, atol=1e-9)


def test_line_4_official_judges_long_prompts_by_another_measure():
    """The same columns are sinks in a long prompt and not in a short one."""
    density = {
        (definition, length): kernels.score_columns(
            even_share_pattern(length, weight=0.0007),
            image_mask=llava_masks(length),
            definition=definition,
        ).density(BETA)
        for definition in ("official", "paper")
        for length in (648, 900)
    }
    assert density["official", 648] == 0
    assert density["official", 900] > 0.9
    assert density["paper", 648] == density["paper", 900]


def test_line_5_the_other_definitions_choose_a_donor_for_every_item(pattern):
    """The file scores batch item 0 alone: with five beams, one beam in five."""
    released = released_file(pattern)
    assert torch.equal(released.patched[1], pattern[1])
    found = kernels.score_columns(pattern, image_mask=llava_masks(batch=2))
    donors = kernels.choose_donors(found.density(1.0))
    assert donors.min() >= 0
    patched = kernels.broadcast_pattern(pattern, donors)
    assert not torch.equal(patched[1], pattern[1])


def with_densest(pattern, *heads):
    """Make the first of `heads` the densest, and the others its equals."""
    best = pattern.clone()
    even = torch.ones(648, 648).tril()
    best[0, list(heads)] = even / even.sum(-1, keepdim=True)
    return best


def test_line_6_head_0_never_donates(pattern):
    """As the densest head it switches the patch off, instead of the runner-up."""
    densest = with_densest(pattern, 0)
    released = released_file(densest)
    assert released.donor == -1
    assert torch.equal(released.patched, densest)
    found = kernels.score_columns(
        densest, image_mask=llava_masks(batch=2), definition="official"
    )
    assert official_donors(found)[0] == -1
    assert kernels.choose_donors(found.density(BETA))[0] == 0  # eligible for the others


def test_line_6_the_lowest_index_wins_a_tie(pattern):
    tied = with_densest(pattern, 21, 7, 13)
    assert released_file(tied).donor == 7
    found = kernels.score_columns(
        tied, image_mask=llava_masks(batch=2), definition="official"
    )
    assert official_donors(found)[0] == 7


@pytest.mark.parametrize("n_heads", [1, 4, 40])
def test_line_6_any_number_of_heads_is_scored(n_heads):
    """The file's 32 is a literal; ours is the pattern's."""
    pattern = even_share_pattern(648).expand(1, n_heads, 648, 648)
    found = kernels.score_columns(
        pattern, image_mask=llava_masks(), definition="official"
    )
    assert found.density(BETA).tolist() == [[1.0] * n_heads]


def test_line_7_a_cached_step_patches_nothing(pattern):
    """One query row: the released mask removes it. So EAH is prefill only in effect."""
    step = pattern[:, :, -1:]
    released = released_file(step)
    assert released.counts == [0] * 32
    assert torch.equal(released.patched, step)


def test_the_span_follows_the_prompt():
    """Ours takes the span from the mask: 36..610 is LLaVA-1.5's, not a constant."""
    image_mask = torch.zeros(1, 30, dtype=torch.bool)
    image_mask[:, 12:20] = True
    token_mask = torch.ones(1, 30, dtype=torch.bool)
    token_mask[:, :3] = False
    pattern = torch.ones(1, 1, 30, 30).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    found = kernels.score_columns(
        pattern, image_mask=image_mask, token_mask=token_mask, definition="official"
    )
    expected = oracle_scores(pattern, image_mask, token_mask, "official")
    assert found.columns[0].nonzero().flatten().tolist() == list(range(13, 20))
    torch.testing.assert_close(found.scores.double(), expected.scores)
    # first 9, last 16 from the first real token: S = 10, E = 17, N(y=13) = 17 - 0
    assert found.scores[0, 0, 13] == pytest.approx(
        float(pattern[0, 0, 14:, 13].sum()) / 17
    )
