"""Claims about EAH on a TransformerBridge: the numbers of nnsight, or a refusal."""

import warnings

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import (
    InputError,
    ModelError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
)

pytest.importorskip("transformer_lens", reason="needs eah-interp[lens]")

from eah_interp.transformer_lens import eah_hooks, score_sinks, to_bridge

COMPUTES_WITH_ITS_PATTERN = (
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "gemma3",
    "mistral3",
    "emu3",
    "llava_mistral",
    "qwen3_5",
)
SHOWS_ITS_PATTERN_ONLY = (
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "glm4v",
    "llama4",
    "gemma4",
    "muse_glimmer",
)
FULL_ATTENTION = {"qwen3_5": (1,)}
"""Layers to patch where not every layer attends."""
IMAGES = [[random_image(0)], [random_image(1, width=48)]]
WORDS = ("what ?", "is there a cat near the boat ?")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make(family, **settings):
    facts = FAMILIES[family]
    processor = tiny_processor(family) if facts.build_processor else None
    model = eah.wrap(tiny_lvlm(family, n_kv_heads=2, **settings), processor)
    prompts = [f"{facts.placeholder} {words}" for words in WORDS]
    return model, dict(tiny_inputs(family, images=IMAGES, prompts=prompts))


def run(bridge, inputs, hooks=()):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        return bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=list(hooks), **rest)


def traced(model, inputs, settings):
    with torch.no_grad(), model.trace(**inputs):
        patch = eah.intervene(model, settings)
        logits = model.output.logits.save()
    return patch, logits


def assert_same(model, inputs, settings, bridge):
    patch, expected = traced(model, inputs, settings)
    hooks = eah_hooks(bridge, settings, inputs=inputs)
    logits = run(bridge, inputs, hooks)
    real = inputs["attention_mask"].bool()
    size = expected[real].abs().max()
    assert (logits - expected)[real].abs().max() <= 1e-4 * size
    for ours, theirs in zip(hooks.patch.layers, patch.layers, strict=True):
        assert ours.donors.tolist() == theirs.donors.tolist()
        assert ours.patched.tolist() == theirs.patched.tolist()
        if theirs.density is not None:
            torch.testing.assert_close(ours.density, theirs.density)
    plain = run(bridge, inputs)
    assert (logits - plain)[real].abs().max() > 1e-3 * size, "a weak test"


@pytest.mark.parametrize("family", COMPUTES_WITH_ITS_PATTERN + SHOWS_ITS_PATTERN_ONLY)
def test_a_bridge_gives_the_donors_and_logits_of_nnsight(family):
    model, inputs = make(family)
    settings = eah.EAH(layers=FULL_ATTENTION.get(family, (0, 1)))
    assert_same(model, inputs, settings, to_bridge(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"donor": "sparsest"},
        {"donor": "random", "seed": 3},
        {"donor": "mean"},
        {"donor": "uniform"},
        {"donor": "shuffled"},
        {"donor": 2},
        {"recipients": (0, 3)},
        {"definition": "paper"},
        {"definition": "official", "items": "first", "beta": 0.05},
        {"donor": "mean", "recipients": (1,)},
        {"donor": "mean", "items": "first"},
    ],
    ids=str,
)
def test_every_setting_is_the_same(settings):
    model, inputs = make("llava")
    assert_same(model, inputs, eah.EAH(**settings), to_bridge(model))


def test_a_bridge_shares_weights_and_leaves_the_model_alone():
    model, inputs = make("llava")
    with torch.no_grad():
        before = model._module(**inputs).logits
    bridge = to_bridge(model)
    own = {p.data_ptr() for p in model._module.parameters()}
    assert {p.data_ptr() for p in bridge.original_model.parameters()} == own
    with torch.no_grad():
        assert torch.equal(model._module(**inputs).logits, before)
    assert model._module.config._attn_implementation == "sdpa"
    patch, _ = traced(model, inputs, eah.EAH())
    assert (patch.donors >= 0).all()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_sinks_are_those_of_nnsight_from_a_bridge_and_from_a_cache(family):
    model, inputs = make(family)
    bridge = to_bridge(model)
    expected = eah.score_sinks(model, inputs)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(inputs["input_ids"], **rest)
    for source in (bridge, cache):
        found = score_sinks(source, inputs=inputs)
        assert found.layers == expected.layers
        torch.testing.assert_close(found.density, expected.density)
        assert torch.equal(found.sinks, expected.sinks)
        assert torch.equal(found.donors, expected.donors)


def test_a_cache_of_an_intervened_bridge_has_the_donor_s_pattern_everywhere():
    model, inputs = make("llava")
    bridge = to_bridge(model)
    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        _, cache = bridge.run_with_cache(inputs["input_ids"], **rest)
    pattern = cache["blocks.1.attn.hook_pattern"]
    assert torch.equal(pattern, pattern[:, :1].expand_as(pattern))
    untouched = cache["blocks.0.attn.hook_pattern"]
    assert not torch.equal(untouched, untouched[:, :1].expand_as(untouched))
    stack = cache.decompose_resid(layer=-1, pos_slice=-1)
    if isinstance(stack, tuple):
        stack = stack[0]
    attributed = cache.logit_attrs(stack, tokens=5, pos_slice=-1)
    assert attributed.shape == stack.shape[:2]
    assert attributed.isfinite().all()


def test_hooks_of_ours_and_of_others_stand_side_by_side():
    model, inputs = make("llava")
    bridge = to_bridge(model)
    seen = []

    def look(pattern, hook):
        seen.append(pattern.clone())

    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    run(bridge, inputs, [*hooks, ("blocks.1.attn.hook_pattern", look)])
    (pattern,) = seen
    assert torch.equal(pattern, pattern[:, :1].expand_as(pattern))


def generate(bridge, inputs, settings, n=4):
    hooks = eah_hooks(bridge, settings, inputs=inputs)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        return bridge.generate(
            inputs["input_ids"],
            max_new_tokens=n,
            do_sample=False,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
            **rest,
        )


@pytest.mark.parametrize("steps", ["prefill", "all"])
def test_generation_on_an_intervened_bridge_is_that_of_an_edited_model(steps):
    model, inputs = make("llava")
    one = {name: value[1:] for name, value in inputs.items()}
    settings = eah.EAH(layers=(0, 1), steps=steps)
    expected = eah.edit(model, settings).generate(
        **one, max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    found = generate(to_bridge(model), one, settings)
    assert found[0, -4:].tolist() == expected[0, -4:].tolist()


def test_where_keys_are_cached_a_prefill_patch_is_refused_while_decoding():
    model, inputs = make("qwen3_vl")
    bridge = to_bridge(model)
    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    run(bridge, inputs, hooks)
    write = dict(hooks)["blocks.1.attn.k.hook_out"]
    step = torch.zeros(2, 1, 2, 8)
    with pytest.raises(UnsupportedError, match='use steps="all"'):
        write(step, None)
    lasting = eah_hooks(bridge, eah.EAH(steps="all"), inputs=inputs)
    assert dict(lasting)["blocks.1.attn.k.hook_out"](step, None).shape == step.shape


@pytest.mark.parametrize(
    "settings", [{"donor": "mean"}, {"donor": "shuffled"}, {"recipients": (0, 1)}]
)
def test_what_needs_an_edit_of_the_pattern_is_refused_where_edits_are_lost(settings):
    model, inputs = make("glm4v")
    with pytest.raises(SettingsError, match="discards edits of the pattern"):
        eah_hooks(to_bridge(model), eah.EAH(**settings), inputs=inputs)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_other_inputs_than_the_hooks_were_made_for_are_refused(family):
    model, inputs = make(family)
    bridge = to_bridge(model)
    facts = FAMILIES[family]
    other = dict(
        tiny_inputs(
            family,
            images=[[random_image(7)], [random_image(8, width=48)]],
            prompts=[f"{facts.placeholder} {words} dog" for words in WORDS],
        )
    )
    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    with pytest.raises((InputError, UnsupportedError), match="made for"):
        run(bridge, other, hooks)


def test_other_pictures_are_refused_where_donors_were_chosen_before():
    model, inputs = make("qwen2_5_vl")
    bridge = to_bridge(model)
    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    pictures = inputs["pixel_values"]
    with pytest.raises(UnsupportedError, match="does not attend like its donor"):
        run(bridge, {**inputs, "pixel_values": pictures.flip(0)}, hooks)


def test_other_pictures_are_scored_anew_where_the_pattern_is_replaced():
    model, inputs = make("llava")
    bridge = to_bridge(model)
    hooks = eah_hooks(bridge, eah.EAH(), inputs=inputs)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    logits = run(bridge, other, hooks)
    patch, expected = traced(model, other, eah.EAH())
    assert hooks.patch.donors.tolist() == patch.donors.tolist()
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-3)


def test_models_layers_and_inputs_that_do_not_fit_are_refused():
    model, inputs = make("llava")
    bridge = to_bridge(model)
    with pytest.raises(ModelError, match="layer 9 does not exist"):
        eah_hooks(bridge, eah.EAH(layers=(9,)), inputs=inputs)
    with pytest.raises(SettingsError, match=r"heads \[7\] do not exist"):
        eah_hooks(bridge, eah.EAH(donor=7), inputs=inputs)
    words = {"input_ids": torch.full((1, 5), 9), "attention_mask": torch.ones(1, 5)}
    with pytest.raises(InputError, match="hold no image tokens"):
        eah_hooks(bridge, eah.EAH(), inputs=words)
    with pytest.raises(InputError, match="input_ids"):
        eah_hooks(bridge, eah.EAH(), inputs={})
    with pytest.raises(InputError, match="no forward pass has reached"):
        _ = eah_hooks(bridge, eah.EAH(), inputs=inputs).patch
    for family, kind in (("vipllava", "VipLlava"), ("llava_pixtral", "Llava")):
        with pytest.raises(ModelError, match=f"no bridge for {kind}"):
            to_bridge(make(family)[0])


def test_a_layer_without_attention_is_refused():
    model, inputs = make("qwen3_5")
    with pytest.raises(ModelError, match="layer 0 has no attention pattern"):
        eah_hooks(to_bridge(model), eah.EAH(layers=(0,)), inputs=inputs)


def test_a_cache_without_patterns_is_refused():
    model, inputs = make("llava")
    bridge = to_bridge(model)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            inputs["input_ids"], names_filter="blocks.0.hook_resid_pre", **rest
        )
    with pytest.raises(InputError, match="the cache lacks"):
        score_sinks(cache, inputs=inputs)


def test_the_probe_warns_nobody():
    model, inputs = make("qwen3_vl")
    bridge = to_bridge(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eah_hooks(bridge, eah.EAH(), inputs=inputs)
