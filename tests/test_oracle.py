"""The oracle itself: numbers worked out by hand, and forwards that change nothing."""

import pytest
import torch

from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.oracle import (
    causal,
    oracle_donors,
    oracle_pattern,
    oracle_scores,
    oracle_shuffled_pattern,
    released_file,
)
from tests.oracle_forward import OracleEAH, oracle_logits
from tests.tiny_families import measure_gap

# text, image, image, image, text; rows sum to one
PATTERN = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [0.2, 0.3, 0.5, 0.0, 0.0],
        [0.1, 0.2, 0.3, 0.4, 0.0],
        [0.1, 0.4, 0.1, 0.1, 0.3],
    ]
)[None, None]
IMAGE = torch.tensor([[False, True, True, True, False]])
REAL = torch.ones(1, 5, dtype=torch.bool)

BY_HAND = {
    "paper": [(0.3 + 0.2) / 3, 0.3 / 3, 0.0],
    # S = 2, E = 4: column 2 divided by 4, column 3 by 3; column 1 is not judged
    "official": [0.0, (0.3 + 0.1) / 4, 0.1 / 3],
    "visible": [(0.3 + 0.2 + 0.4) / 3, (0.3 + 0.1) / 2, 0.1],
}


@pytest.mark.parametrize("definition", BY_HAND)
def test_scores_are_those_worked_out_by_hand(definition):
    found = oracle_scores(PATTERN, IMAGE, REAL, definition)
    assert found.scores[0, 0, 1:4].tolist() == pytest.approx(BY_HAND[definition])
    assert not found.scores[0, 0, [0, 4]].any()


def test_uniform_shares_are_those_worked_out_by_hand():
    found = oracle_scores(PATTERN, IMAGE, REAL, "visible")
    shares = [(1 / 3 + 1 / 4 + 1 / 5) / 3, (1 / 4 + 1 / 5) / 2, 1 / 5]
    assert found.unit[0, 0, 1:4].tolist() == pytest.approx(shares)
    assert found.sinks(1.0)[0, 0].tolist() == [False, True, False, False, False]
    assert found.density(1.0).item() == pytest.approx(1 / 3)


def test_uniform_shares_of_a_llava_prompt_are_those_of_the_method():
    """About 0.0048 for the first and 0.0016 for the last image column of 630 tokens."""
    visible = causal(torch.ones(1, 630, dtype=torch.bool))
    image_mask = torch.zeros(1, 630, dtype=torch.bool)
    image_mask[:, [35, 610]] = True
    even = visible / visible.sum(-1, keepdim=True)
    unit = oracle_scores(even, image_mask, image_mask | True, "visible").unit[0, 0]
    assert unit[35].item() == pytest.approx(0.0048, abs=5e-5)
    assert unit[610].item() == pytest.approx(0.0016, abs=5e-5)


def test_donors_are_those_of_the_released_loop():
    density = torch.tensor([[0.2, 0.7, 0.7], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
    assert oracle_donors(density).tolist() == [1, 0, -1]
    assert oracle_donors(density, official=True).tolist() == [1, -1, -1]
    assert oracle_donors(density[1:], official=True).tolist() == [-1, -1]
    assert oracle_donors(density, "sparsest").tolist() == [0, 2, 0]
    assert oracle_donors(density, gamma=0.8).tolist() == [-1, 0, -1]


def test_a_shuffle_is_the_one_worked_out_by_hand():
    priority = torch.tensor([[0.0, 0.9, 0.5, 0.1, 0.0]])
    donor = torch.tensor([0])
    found = oracle_shuffled_pattern(PATTERN, donor, IMAGE, causal(REAL), priority)
    rows = found[0, 0]
    assert rows[2].tolist() == pytest.approx([0.2, 0.5, 0.3, 0.0, 0.0])
    assert rows[4].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.4, 0.3])


def test_patterns_are_attention_with_a_softmax():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 6, 4, generator=generator) for _ in range(2))
    visible = causal(torch.ones(1, 6, dtype=torch.bool))
    found = oracle_pattern(q, k, visible, 0.5)
    values = torch.eye(6).expand(1, 2, 6, 6)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    expected = sdpa(q, k, values, is_causal=True, scale=0.5)
    torch.testing.assert_close(found.float(), expected)


def test_the_released_file_agrees_with_the_definition():
    """Two ways to the same counts: its literals, and the loops of "official"."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 32, 640, 640, generator=generator)
    hidden = torch.ones(640, 640, dtype=torch.bool).triu(1)
    pattern = logits.masked_fill(hidden, float("-inf")).softmax(-1)
    image_mask = torch.zeros(1, 640, dtype=torch.bool)
    image_mask[:, 35:611] = True
    two = pattern[:, :2]
    found = oracle_scores(two, image_mask, image_mask | True, "official")
    counts = found.sinks(0.0008).sum(-1)[0].tolist()
    assert counts == released_file(pattern).counts[:2]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_an_unedited_oracle_forward_is_the_plain_one(family):
    model = tiny_lvlm(family, n_kv_heads=2, attn_implementation="eager")
    processor = tiny_processor(family)
    token = getattr(processor, "boi_token", None) or processor.image_token
    inputs = processor(
        images=[random_image(0)],
        text=[f"{token} is there a cat ?"],
        return_tensors="pt",
    )
    with torch.no_grad():
        plain = model(**inputs, use_cache=False).logits
    run = oracle_logits(model, inputs)
    # Not bit for bit: it multiplies head by head what the model multiplies at once.
    assert measure_gap(run.logits, plain) <= 1e-5
    assert sorted(run.patterns) == [0, 1, 2]
    nothing = oracle_logits(model, inputs, edit_pattern=lambda _, p, __: p * 0)
    assert (nothing.logits - plain).abs().max() > 0.1
    eah = OracleEAH(
        image_mask=inputs["input_ids"] == model.config.image_token_id,
        token_mask=inputs["attention_mask"].bool(),
        donor=2,
    )
    patched = oracle_logits(model, inputs, edit_pattern=eah)
    assert (patched.logits - plain).abs().max() > 1e-3
    assert torch.equal(patched.patterns[1], run.patterns[1])  # recorded unpatched
    assert not torch.equal(patched.patterns[2], run.patterns[2])
