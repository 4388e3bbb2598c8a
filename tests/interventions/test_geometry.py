"""Rows and columns are those of the prompt, however a run reads it: at once, in parts,
several tokens at a time, from a cache, or again in every pass."""

import copy

import pytest
import torch
from transformers import GenerationConfig

import eah_interp as eah
from eah_interp.attribution import attribute_heads
from eah_interp.errors import InputError, NumericalError, UnsupportedError
from eah_interp.interventions import donors_of_run
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.crossed import cross
from tests.interventions.other_methods import NEW, wrapped
from tests.tiny_families import share_model

SETTINGS = {
    "EAH": eah.EAH(),
    "EAH in all steps": eah.EAH(steps="all"),
    "EAH to some": eah.EAH(steps="all", recipients=(0, 3)),
    "mean": eah.EAH(donor="mean", steps="all"),
    "uniform": eah.EAH(donor="uniform"),
    "shuffled": eah.EAH(donor="shuffled", steps="all"),
    "PAI": eah.PAI(layers=":", alpha=3.0),
    "PAI of the prompt": eah.PAI(layers=":", alpha=3.0, steps="prefill"),
    "VAR": eah.VAR(sink_dims=(0, 5), tau=1.5, rho=0.3, layers=":"),
    "mean ablation": eah.Ablation(heads=["L1H0", "L2H1"], how="mean"),
    "zero ablation": eah.Ablation(heads=["L1H0", "L2H1"]),
    "knockout": eah.Ablation(heads=["L1H0", "L0H1"], how="knockout"),
    "previous": eah.Ablation(heads=["L1H0", "L0H1"], how="previous"),
}
PROMPTS = ["is there a cat ?", "what is near the tree or the boat ?"]
LONG = {**NEW, "max_new_tokens": 12, "min_new_tokens": 12}


def run(model, settings, *inputs, **given):
    with torch.no_grad(), model.trace(*inputs, **given):
        eah.intervene(model, settings)


@pytest.fixture(scope="module")
def model():
    return wrapped("sdpa", 2)


@pytest.fixture
def encoding(model):
    return model.encode(random_image(), PROMPTS[0])


# ---- what a run returns, and where its settings stand


def without_cache(model, how):
    if how == "argument":
        return {"use_cache": False}
    config = copy.deepcopy(model._module.generation_config)
    config.use_cache = False
    config.max_new_tokens = config.min_new_tokens = 4
    config.do_sample = False
    return {"generation_config": config}


@pytest.mark.parametrize("returned", [{}, {"return_dict_in_generate": True}])
@pytest.mark.parametrize("how", ["argument", "generation config"])
@pytest.mark.parametrize("name", ["EAH", "uniform", "PAI of the prompt"])
def test_a_prompt_patch_is_refused_where_each_pass_reads_the_prompt_again(
    model, encoding, name, how, returned
):
    patched = eah.edit(model, SETTINGS[name])
    asked = without_cache(model, how)
    length = NEW if how == "argument" else {}
    with pytest.raises(UnsupportedError, match="makes each of them read it again"):
        patched.generate(**encoding, **asked, **length, **returned)
    if how == "argument":
        one = {**length, "max_new_tokens": 1, "min_new_tokens": 1}
        patched.generate(**encoding, **asked, **one, **returned)


def test_a_configs_return_type_hides_no_unpatched_pass(model, encoding):
    config = copy.deepcopy(model._module.generation_config)
    config.return_dict_in_generate, config.use_cache = True, False
    config.max_new_tokens, config.min_new_tokens = 4, 4
    with pytest.raises(UnsupportedError, match="makes each of them read it again"):
        eah.edit(model, eah.EAH()).generate(**encoding, generation_config=config)


@pytest.mark.parametrize("returned", [{}, {"return_dict_in_generate": True}])
def test_all_steps_called_once_are_counted_whatever_is_returned(
    model, encoding, returned
):
    with (
        pytest.raises(UnsupportedError, match="patched 1 of 4 forward passes"),
        model.generate(**encoding, **NEW, **returned),
    ):
        eah.intervene(model, SETTINGS["PAI"])


def test_describe_returns_text_whatever_generate_returns(model):
    patched = eah.edit(model, eah.EAH())
    plain = patched.describe(random_image(), PROMPTS[0], max_new_tokens=4)
    dicts = patched.describe(
        random_image(), PROMPTS[0], max_new_tokens=4, return_dict_in_generate=True
    )
    assert dicts == plain


# ---- several tokens in a pass


@pytest.fixture(scope="module")
def assistants():
    """One that is often wrong, one that is often right."""
    return [tiny_lvlm("llava", n_layers=2), tiny_lvlm("llava", n_kv_heads=2)]


@pytest.mark.parametrize(("name", "prompt"), cross([*SETTINGS], PROMPTS))
def test_assisted_decoding_writes_what_greedy_decoding_writes(
    model, assistants, name, prompt
):
    encoding = model.encode(random_image(len(prompt)), prompt)
    patched = eah.edit(model, SETTINGS[name])
    expected = patched.generate(**encoding, **LONG)
    for assistant in assistants:
        found = patched.generate(**encoding, **LONG, assistant_model=assistant)
        assert found.tolist() == expected.tolist()
    assert any(each.n_rows > 1 for each in model_passes(patched)[1:])


def model_passes(model):
    return model.interleaver.eah_passes


@pytest.mark.parametrize("name", ["EAH in all steps", "PAI", "mean ablation"])
def test_prompt_lookup_writes_what_greedy_decoding_writes(name):
    model = share_model("qwen2_vl")
    encoding = model.encode(random_image(1), " is there a cat near the boat ?")
    patched = eah.edit(model, SETTINGS[name])
    expected = patched.generate(**encoding, **LONG)
    found = patched.generate(**encoding, **LONG, prompt_lookup_num_tokens=3)
    assert found.tolist() == expected.tolist()
    assert any(each.n_rows > 1 for each in model_passes(patched)[1:])


SECOND = {
    "another prompt": {"guidance_scale": 1.5},
    "its own length": {"guidance_scale": 1.5, "negative_prompt_ids": "the same"},
    "the model itself": {"assistant_model": "itself"},
    "a wrapped twin": {"assistant_model": "twin"},
    "a part of it": {"assistant_early_exit": 2},
    "in a config": {"generation_config": GenerationConfig(guidance_scale=1.5)},
}


@pytest.mark.parametrize("given", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("name", ["EAH", "EAH in all steps", "PAI", "mean ablation"])
def test_passes_of_something_else_through_the_same_layers_are_refused(
    model, encoding, name, given
):
    patched = eah.edit(model, SETTINGS[name])
    made = {"the same": encoding["input_ids"], "itself": model._module, "twin": patched}
    given = {
        key: made.get(value, value) if isinstance(value, str) else value
        for key, value in given.items()
    }
    with pytest.raises(UnsupportedError, match=r"second prompt|layers of the model"):
        patched.generate(**encoding, **NEW, **given)


# ---- a prompt partly in the cache


def cached_turn(model, encoding, n_tokens):
    """What a first turn leaves: the cache of a prompt's first tokens, unpatched."""
    first = {
        "input_ids": encoding["input_ids"][:, :n_tokens],
        "attention_mask": encoding["attention_mask"][:, :n_tokens],
        "pixel_values": encoding["pixel_values"],
    }
    with torch.no_grad():
        return model._module(**first, use_cache=True).past_key_values


@pytest.mark.parametrize("name", ["PAI", "zero ablation"])
def test_a_second_turn_is_patched_at_its_own_places(model, name):
    """Of PAI, only the rows that words are read from change: none is in the cache."""
    encoding = model.encode(random_image(), PROMPTS[1])
    width = encoding["input_ids"].shape[1]
    settings = SETTINGS[name]
    if (
        name == "zero ablation"
    ):  # in the last layer: nothing that is cached depends on it
        settings = eah.Ablation(heads=["L2H1", "L2H3"])
    patched = eah.edit(model, settings)
    expected = patched.generate(**encoding, **NEW)
    rest = {k: v for k, v in encoding.items() if k != "pixel_values"}
    cache = cached_turn(model, encoding, width - 3)
    found = patched.generate(**rest, past_key_values=cache, **NEW)
    assert model_passes(patched)[0].past == width - 3
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "name", ["EAH", "EAH in all steps", "VAR", "mean ablation", "PAI of the prompt"]
)
def test_what_the_cache_hides_is_not_scored_or_left_unpatched(model, name):
    encoding = model.encode(random_image(), PROMPTS[1])
    rest = {k: v for k, v in encoding.items() if k != "pixel_values"}
    cache = cached_turn(model, encoding, encoding["input_ids"].shape[1] - 3)
    patched = eah.edit(model, SETTINGS[name])
    with pytest.raises(UnsupportedError, match=r"of the prompt's 30 tokens are in a"):
        patched.generate(**rest, past_key_values=cache, **NEW)


@pytest.mark.parametrize("name", ["EAH", "PAI", "zero ablation"])
def test_keys_before_the_prompt_are_refused(model, encoding, name):
    """A learned prefix shifts every column; so do tokens that only the cache knows."""
    text = torch.full((1, 4), 20)
    with torch.no_grad():
        cache = model._module(input_ids=text, use_cache=True).past_key_values
    inputs = {k: v for k, v in encoding.items() if k != "attention_mask"}
    with (
        pytest.raises(UnsupportedError, match="4 keys stand before the prompt"),
        torch.no_grad(),
        model.trace(**inputs, past_key_values=cache),
    ):
        eah.intervene(model, SETTINGS[name])


def test_a_prompt_read_in_chunks_is_refused_before_it_is_scored(model, encoding):
    with pytest.raises((InputError, UnsupportedError), match="whole prompt"):
        eah.edit(model, eah.EAH()).generate(**encoding, **NEW, prefill_chunk_size=7)


# ---- masks


def test_padding_in_a_mask_of_the_users_is_no_row(model):
    images, prompts = [random_image(0), random_image(1)], PROMPTS
    encoding = model.encode(images, prompts)
    expected = eah.score_sinks(model, encoding)
    tokens = encoding["attention_mask"].bool()
    width = tokens.shape[1]
    causal = torch.ones(width, width).tril().bool()
    seen = causal & tokens[:, None, None] & tokens[:, None, :, None]
    written = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)
    places = (tokens.cumsum(-1) - 1).clamp(min=0)
    for mask in (seen, written):
        own = {**encoding, "attention_mask": mask, "position_ids": places}
        found = eah.score_sinks(model, own)
        torch.testing.assert_close(found.density, expected.density)
        assert found.donors.tolist() == expected.donors.tolist()


@pytest.mark.parametrize("name", ["EAH in all steps", "mean ablation"])
def test_padding_that_generate_finds_by_itself_is_no_row(model, name):
    encoding = model.encode([random_image(0), random_image(1)], PROMPTS)
    assert not encoding["attention_mask"].all()
    patched = eah.edit(model, SETTINGS[name])
    seen = patched.generate(**encoding, **NEW), donors_of_run(patched)
    bare = {k: v for k, v in encoding.items() if k != "attention_mask"}
    for given in (bare, {**bare, "attention_mask": None}):
        found = patched.generate(**given, **NEW), donors_of_run(patched)
        assert found[0].tolist() == seen[0].tolist()
        assert str(found[1]) == str(seen[1])


def test_a_mask_beside_image_and_prompt_is_taken_by_describe_as_by_generate(model):
    image, prompt = random_image(0), PROMPTS[0]
    encoding = model.encode(image, prompt)
    hidden = encoding["attention_mask"].clone()
    hidden[:, 3:9] = 0
    expected = model.generate(**{**encoding, "attention_mask": hidden}, **NEW)
    new = expected[:, encoding["input_ids"].shape[1] :]
    (text,) = model.processor.batch_decode(new, skip_special_tokens=True)
    found = model.describe(image, prompt, attention_mask=hidden, **NEW)
    assert found == text.strip()


def hidden_by(number, dtype=torch.float32):
    return lambda seen: torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, number)


ODD_MASKS = {
    "too short": (lambda seen: seen[:, 0, -1, 2:], "a flag for each token"),
    "added, of two axes": (
        lambda seen: hidden_by(-torch.inf)(seen[:, 0, -1]),
        "holds -inf: expected 1 at tokens",
    ),
    "flags above one": (lambda seen: 2 * seen[:, 0, -1].long(), "holds 2: expected 1"),
    "a mapping": (lambda seen: {"full_attention": seen}, "a tensor of flags, got"),
    "faint": (hidden_by(-1e4), "hides keys by -10000, so whether"),
    "fainter": (hidden_by(-1e9), "hides keys by -1e"),
    "NaN": (hidden_by(torch.nan), "holds NaN: expected 0"),
    "flags as floats": (torch.Tensor.float, "1 and 0 as float32, .* hide nothing"),
    "half": (hidden_by(-6e4, torch.half), "booleans or float32, .* got float16"),
    "integers": (torch.Tensor.long, "booleans or float32, .* got int64"),
}


@pytest.mark.parametrize(("make", "says"), ODD_MASKS.values(), ids=ODD_MASKS)
def test_a_mask_that_does_not_say_what_it_hides_is_refused(model, make, says):
    encoding = model.encode([random_image(0), random_image(1)], PROMPTS)
    tokens = encoding["attention_mask"].bool()
    seen = tokens[:, None, None] & torch.ones(2 * tokens.shape[1:]).tril().bool()
    own = {**encoding, "attention_mask": make(seen)}
    with pytest.raises(InputError, match=says):
        eah.score_sinks(model, own)
    with pytest.raises(InputError, match=says):
        run(model, None, **own)


def test_booleans_are_refused_where_eager_attention_would_add_them():
    model = wrapped("eager", 2)
    encoding = model.encode(random_image(), PROMPTS[0])
    width = encoding["input_ids"].shape[1]
    seen = torch.ones(1, 1, width, width).tril().bool()
    with pytest.raises(InputError, match="so that booleans hide nothing"):
        run(model, eah.EAH(), **{**encoding, "attention_mask": seen})


# ---- no image token


@pytest.mark.parametrize(
    "name", ["EAH", "uniform", "mean", "PAI", "VAR", "knockout", "shuffled"]
)
def test_what_acts_on_image_columns_refuses_a_prompt_without_any(model, name):
    ids = torch.arange(20, 30)[None]
    with pytest.raises(InputError, match="selects no tokens: expected at least 1"):
        run(model, SETTINGS[name], input_ids=ids)
    run(model, SETTINGS["zero ablation"], input_ids=ids)


# ---- modes of torch


def test_training_mode_is_refused_where_a_patch_would_not_be_what_it_says():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    root = model._module
    root.train()
    eah.score_sinks(model, random_image())  # nothing draws in this model
    for module in root.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    with pytest.raises(UnsupportedError, match=r"dropout draws anew .* call eval\(\)"):
        eah.score_sinks(model, random_image())
    with pytest.raises(UnsupportedError, match="dropout"):
        eah.edit(model, eah.EAH()).describe(random_image(), max_new_tokens=2)
    root.eval()
    eah.score_sinks(model, random_image())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused(reentrant):
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    model._module.train()
    model._module.activation_checkpointing_enable({"use_reentrant": reentrant})
    with pytest.raises(UnsupportedError, match="computes layers a second time"):
        run(model, eah.EAH(), random_image(), "what ?")
    model._module.activation_checkpointing_disable()
    run(model, eah.EAH(), random_image(), "what ?")


def test_attribution_works_where_a_notebook_has_switched_gradients_off(model):
    asked = {"objects": ["cat"], "patch": eah.EAH()}
    expected = attribute_heads(model, random_image(), **asked)
    torch.set_grad_enabled(False)
    try:
        found = attribute_heads(model, random_image(), **asked)
        rough = eah.approximate_heads(
            model, random_image(), objects=["cat"], source=eah.EAH(), check=0
        )
    finally:
        torch.set_grad_enabled(True)
    assert torch.equal(found.patched.heads, expected.patched.heads)
    assert rough.approximate.abs().max() > 0


# ---- attention maps beside a patch


@pytest.mark.parametrize(
    "name",
    ["mean", "uniform", "shuffled", "EAH to some", "PAI", "VAR", "zero ablation"],
)
def test_maps_that_would_not_be_the_patched_ones_are_refused(name):
    model = wrapped("eager", 2)
    with (
        pytest.raises(UnsupportedError, match="read_patterns"),
        torch.no_grad(),
        model.trace(random_image(), PROMPTS[0], output_attentions=True),
    ):
        eah.intervene(model, SETTINGS[name])
    model._module.config.get_text_config().output_attentions = True
    with pytest.raises(UnsupportedError, match="read_patterns"):
        run(model, SETTINGS[name], random_image(), PROMPTS[0])


def test_maps_of_a_whole_broadcast_are_the_patched_ones():
    model = wrapped("eager", 2)
    with (
        torch.no_grad(),
        model.trace(random_image(), PROMPTS[0], output_attentions=True),
    ):
        patch = eah.intervene(model, eah.EAH())
        maps = model.output.attentions.save()
    assert len(maps) == 3
    donor = int(patch.donors[0])
    for head in range(4):
        torch.testing.assert_close(maps[1][0, head], maps[1][0, donor])


# ---- numbers that are none


def test_no_text_is_made_of_logits_that_are_no_numbers():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    with torch.no_grad():
        model._module.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="logits are NaN"):
        model.describe(random_image(), "what ?", max_new_tokens=3)
    inputs = model.encode(random_image(), "what ?")
    for given in (
        {},
        {"num_beams": 2},
        {"logits_processor": [lambda _, s: s.nan_to_num()]},
    ):
        with pytest.raises(NumericalError, match="logits are NaN"):
            model.generate(**inputs, max_new_tokens=3, **given)
    with (
        pytest.raises(NumericalError, match="logits are NaN"),
        model.generate(**inputs, max_new_tokens=3) as tracer,
    ):
        tracer.result.save()
    with pytest.raises(NumericalError, match="NaN or infinite"):
        eah.patch_heads(model, random_image(), objects=["cat"], source=eah.EAH())


# ---- which patch is this


def test_a_twin_shows_what_it_is_patched_by(model):
    twin = eah.edit(eah.edit(model, eah.EAH()), eah.PAI(layers=(2,)))
    assert repr(twin) != repr(model)
    first, second, *_ = repr(twin).splitlines()
    assert first.startswith("patched by EAH(")
    assert "layers=(1,)" in first
    assert second.startswith("patched by PAI(")
    twin.clear_edits()
    assert repr(twin) == repr(model)
