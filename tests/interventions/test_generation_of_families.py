"""Cached generation under an edit is the oracle's, token by token, in every family."""

import pytest
import torch
from torch.nn.functional import pad

import eah_interp as eah
from eah_interp.interventions.donation import column_priority, layer_seed
from tests.oracle import (
    oracle_broadcast,
    oracle_mean_pattern,
    oracle_shuffled_pattern,
    oracle_uniform_pattern,
)
from tests.oracle_forward import oracle_generate, oracle_logits
from tests.tiny_families import (
    SUPPORTED,
    build_oracle,
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)

pytestmark = ignore_renamed

STEPS = 4
TOLERANCE = 1e-4
"""Of the largest logit, in float32: SDPA and eager attention are 3e-6 apart here."""
GREEDY = {
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def generate(family, encoding, settings):
    edited = eah.edit(share_model(family), settings)
    return edited.generate(**encoding, do_sample=False, **GREEDY)


def check_steps(found, expected):
    """Compare two generations: the tokens, and the logits that each step gave."""
    assert len(found.logits) == STEPS
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert measure_gap(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_batch_generates_under_an_edit_as_under_the_oracle(family):
    encoding, plain = encode(family), share_plain(family)
    expected = {"no patch": oracle_generate(plain, encoding, **GREEDY)}
    for steps in ("prefill", "all"):
        oracle = build_oracle(family, encoding, steps=steps)
        expected[steps] = oracle_generate(
            plain, encoding, edit_pattern=oracle, **GREEDY
        )
        found = generate(family, encoding, eah.EAH(steps=steps))
        check_steps(found, expected[steps])
    last = {name: one.logits[-1] for name, one in expected.items()}
    assert measure_gap(last["prefill"], last["no patch"]) > 20 * TOLERANCE
    assert measure_gap(last["all"], last["prefill"]) > 20 * TOLERANCE


def change_rows(donor, image, priority, donors):
    """Return a control's `edit_pattern` for a forward without a cache."""

    def edit(layer, pattern, visible):
        if layer != 1:
            return pattern
        new = (0, pattern.shape[-1] - image.shape[-1])
        columns = pad(image, new)
        if donor == "mean":
            return oracle_mean_pattern(pattern)
        if donor == "uniform":
            return oracle_uniform_pattern(pattern, columns, visible)
        if donor == "shuffled":
            return oracle_shuffled_pattern(
                pattern, donors, columns, visible, pad(priority, new)
            )
        return oracle_broadcast(pattern, donors)

    return edit


@pytest.mark.parametrize("family", ["llava", "llava_mistral"])
@pytest.mark.parametrize("donor", ["densest", "mean", "uniform", "shuffled"])
def test_steps_of_a_row_without_padding_equal_whole_prompts_read_again(family, donor):
    """Without padding SDPA gets no mask, and a sliding window's cache drops keys.

    The reference has neither: it reads the prompt and what was generated in one
    forward without a cache, all of its rows under the control.
    """
    settings = eah.EAH(steps="all", donor=donor)
    model, plain = share_model(family), share_plain(family)
    encoding = {
        name: tensor[1:] for name, tensor in encode(family).items()
    }  # the longer row
    assert encoding["attention_mask"].all()
    oracle = build_oracle(family, encoding)
    oracle_logits(plain, encoding, edit_pattern=oracle)
    image = oracle.image_mask
    priority = column_priority(image, layer_seed(settings, 1))
    edit = change_rows(donor, image, priority, oracle.donors[1])

    found = generate(family, encoding, settings)

    grown = dict(encoding)
    for ours in found.logits:
        run = oracle_logits(plain, grown, edit_pattern=edit)
        assert measure_gap(ours, run.logits[:, -1]) <= TOLERANCE
        token = run.logits[:, -1].argmax(-1, keepdim=True)
        grown["input_ids"] = torch.cat([grown["input_ids"], token], dim=1)
        grown["attention_mask"] = pad(grown["attention_mask"], (0, 1), value=1)
    assert found.sequences.tolist() == grown["input_ids"].tolist()
    assert model.verified
