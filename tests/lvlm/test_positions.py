"""Claims about positions: what has more tokens than a model has is refused, no less."""

import pytest
import torch
from transformers import BloomConfig, GenerationConfig, LlamaConfig, OPTConfig

import eah_interp as eah
from eah_interp.errors import InputError
from eah_interp.lvlm.positions import position_limit
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm, tiny_processor

RED = random_image()
ROPE = {"rope_theta": 1e4}


def short_llava(limit, **rope):
    """Return a tiny LLaVA of few positions."""
    hf_model = tiny_lvlm("llava")
    text = hf_model.config.text_config
    text.max_position_embeddings = limit
    text.rope_parameters = {**text.rope_parameters, **rope}
    return eah.wrap(hf_model, tiny_processor("llava"))


def logits_of(model, *args, **kwargs):
    with torch.no_grad(), model.trace(*args, **kwargs):
        logits = model.output.logits.save()
    return logits


def n_tokens(model, prompt):
    return model.encode(RED, prompt)["input_ids"].shape[1]


@pytest.fixture(scope="module")
def fits():
    """Return a model that has just as many positions as "what ?" has tokens."""
    return short_llava(n_tokens(short_llava(4096), "what ?"))


def test_a_prompt_that_fits_runs_and_one_token_more_is_refused(fits):
    limit = position_limit(fits.config)
    assert logits_of(fits, RED, "what ?").shape[1] == limit
    message = f"has {limit + 1} tokens, image tokens included: expected at most {limit}"
    for call in (
        lambda: logits_of(fits, RED, "what now ?"),
        lambda: fits.describe(RED, "what now ?", max_new_tokens=1),
        lambda: eah.score_sinks(fits, RED, "what now ?"),
        lambda: eah.edit(fits).describe(RED, "what now ?"),
        lambda: fits.generate(RED, "what now ?", max_new_tokens=1),
        lambda: logits_of(fits, **fits.encode(RED, "what now ?")),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(InputError, match=message), fits.scan(RED, "what now ?"):
        fits.output.logits.save()


def test_padding_needs_no_position(fits):
    inputs = fits.encode(RED, "what ?")
    left = torch.zeros(1, 3, dtype=torch.long)
    padded = {name: torch.cat([left, inputs[name]], 1) for name in MASKED}
    assert (
        logits_of(fits, **{**inputs, **padded}).shape[1]
        == left.shape[1] + (inputs["input_ids"].shape[1])
    )


MASKED = ("input_ids", "attention_mask")


def test_an_answer_needs_positions_for_all_but_its_last_token():
    model = short_llava(n_tokens(short_llava(4096), "what ?") + 3)
    limit = position_limit(model.config)
    greedy = {"do_sample": False}
    assert model.generate(RED, "what ?", max_new_tokens=4, **greedy) is not None
    message = "answer of up to 5 need .* max_new_tokens of at most 4"
    given = GenerationConfig(max_new_tokens=5, do_sample=False)
    for asked in (
        {"max_new_tokens": 5, **greedy},
        {"max_length": limit + 2, **greedy},
        {"generation_config": given},
    ):
        with pytest.raises(InputError, match=message):
            model.generate(RED, "what ?", **asked)
    with pytest.raises(InputError, match="answer of up to 64 need"):
        model.describe(RED, "what ?")


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")
def test_learned_positions_are_refused_before_they_run_out():
    hf_model = tiny_lvlm("blip_2")
    model = eah.wrap(hf_model)
    inputs = dict(tiny_inputs("blip_2"))
    limit = hf_model.config.text_config.max_position_embeddings
    long = torch.full((1, limit), 200)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], long], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(InputError, match=f"expected at most {limit}"):
        logits_of(model, **inputs)


def test_tokens_in_a_cache_count(fits):
    inputs = fits.encode(RED, "what ?")
    with torch.no_grad():
        cache = fits._module(**inputs, use_cache=True).past_key_values
    more = torch.full((1, 1), 200)
    with pytest.raises(InputError, match="expected at most"):
        logits_of(fits, input_ids=more, past_key_values=cache)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "dynamic", "factor": 2.0}, None),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            256,
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            64,
        ),
    ],
)
def test_scaled_positions_reach_as_far_as_they_are_scaled(rope, expected):
    config = LlamaConfig(max_position_embeddings=64, rope_parameters={**ROPE, **rope})
    assert position_limit(config) == expected


def test_a_config_without_a_limit_has_none():
    assert position_limit(OPTConfig(max_position_embeddings=7)) == 7
    assert position_limit(BloomConfig()) is None
