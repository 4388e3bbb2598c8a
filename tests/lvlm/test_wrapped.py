"""A wrapped model used as a transformers model is: called, copied, changed."""

import copy

import pytest
import torch
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import LlamaAttention

import eah_interp as eah
from eah_interp.errors import ModelError, SettingsError, UnsupportedError
from eah_interp.interventions import HeadList
from eah_interp.lvlm.model import LVLM
from eah_interp.lvlm.same_layers import check_same_layers
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor

PROMPT = "is there a cat ?"
PATCH = eah.PAI(layers=":", alpha=3.0)


def wrap(root=None):
    return eah.wrap(
        tiny_lvlm("llava") if root is None else root, tiny_processor("llava")
    )


@pytest.fixture(scope="module")
def model():
    return wrap()


def last_logits(model, settings=None):
    with torch.no_grad(), model.trace(random_image(), PROMPT):
        if settings is not None:
            eah.intervene(model, settings)
        logits = model.output.logits[0, -1].save()
    return logits


CALLS = {
    "called": lambda twin, inputs: twin(**inputs),
    "its forward": lambda twin, inputs: twin.forward(**inputs),
    "image and prompt": lambda twin, _: twin(random_image(), PROMPT),
    "in evaluation": lambda twin, inputs: twin.eval()(**inputs),
    "in its dtype": lambda twin, inputs: twin.float().requires_grad_(False)(**inputs),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_twin_that_is_called_is_patched(model, call):
    """Calling it ran the bare model, and eval() returned that, without a word."""
    twin = eah.edit(model, PATCH)
    expected = last_logits(model, PATCH)
    with torch.no_grad():
        found = call(twin, model.encode(random_image(), PROMPT)).logits[0, -1]
    assert torch.equal(found, expected)
    assert not torch.allclose(found, last_logits(model))


def test_a_plain_model_is_called_as_what_it_wraps(model):
    inputs = model.encode(random_image(), PROMPT)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model._module(**inputs).logits)


@pytest.mark.parametrize("name", ["eval", "half", "bfloat16", "double", "float"])
def test_what_returns_a_module_returns_the_wrapped_model(name):
    twin = eah.edit(wrap(), PATCH)
    again = getattr(twin, name)()
    assert isinstance(again, LVLM)
    assert again.patches == (PATCH,)


@pytest.mark.parametrize("how", ["the model", "its twin"])
def test_a_copy_is_refused_and_its_remedy_is_exact(model, how):
    with pytest.raises(UnsupportedError, match=r"copy\.deepcopy\(model\._module\)"):
        copy.deepcopy(model if how == "the model" else eah.edit(model, PATCH))
    before = last_logits(model, PATCH)
    other = eah.wrap(copy.deepcopy(model._module), model.processor)
    assert torch.equal(last_logits(other, PATCH), before)
    with torch.no_grad():
        other._module.lm_head.weight.zero_()
    assert torch.equal(last_logits(model, PATCH), before)
    assert not last_logits(other, PATCH).any()


def layers_of(model):
    return model._module.model.language_model.layers


def append(layers):
    layers.append(copy.deepcopy(layers[-1]))
    layers[-1].self_attn.layer_idx = len(layers) - 1


def swap(layers):
    layers[0], layers[1] = layers[1], layers[0]


def drop(layers):
    del layers[-1]


def replace(layers):
    layers[1].self_attn = copy.deepcopy(layers[1].self_attn)


CHANGES = {
    append: "4 layers, and had 3 when",
    drop: "2 layers, and had 3 when",
    swap: "another module at model.language_model.layers.0 than",
    replace: "another module at model.language_model.layers.1.self_attn than",
}


@pytest.mark.parametrize(("change", "message"), CHANGES.items())
@pytest.mark.parametrize("edited", [False, True])
def test_layers_that_are_not_those_that_were_wrapped_are_refused(
    change, message, edited
):
    """A fourth layer was left unpatched; the others ended in nnsight's own errors."""
    model = wrap()
    if edited:
        model = eah.edit(model, PATCH)
    root = model._module
    change(layers_of(model))
    root.config.text_config.num_hidden_layers = len(layers_of(model))
    for run in (
        lambda: model.describe(random_image(), PROMPT, max_new_tokens=2),
        lambda: eah.score_sinks(model, random_image(), PROMPT),
    ):
        with pytest.raises(ModelError, match=message):
            run()
    assert last_logits(wrap(root), PATCH).isfinite().all()


def test_another_forward_of_a_class_is_refused(model, monkeypatch):
    """What is not called: nnsight has compiled the one that was there."""
    monkeypatch.setattr(LlamaAttention, "forward", lambda *_, **__: None)
    with pytest.raises(ModelError, match=r"another forward in LlamaAttention"):
        last_logits(model, PATCH)


def test_weights_and_compiled_layers_are_no_other_layers():
    model = wrap()
    layers = layers_of(model)
    attention = layers[1].self_attn
    attention.v_proj = copy.deepcopy(attention.v_proj)
    expected = last_logits(wrap(), PATCH)
    torch.testing.assert_close(last_logits(model, PATCH), expected)
    layers[0] = torch.compile(layers[0], backend="eager")
    check_same_layers(model)


SEVERAL = {
    "argument": {"num_return_sequences": 2, "do_sample": True},
    "beams": {"num_return_sequences": 2, "num_beams": 2},
    "config": {
        "generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)
    },
}


@pytest.mark.parametrize("given", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("images", [random_image(), [random_image(), random_image(1)]])
def test_several_answers_to_a_prompt_are_refused_by_describe(model, given, images):
    """Of one prompt the others were dropped; of two, the second answer was not its."""
    with pytest.raises(SettingsError, match="describe returns one answer a prompt"):
        model.describe(images, PROMPT, max_new_tokens=2, **given)


def test_several_answers_that_the_models_own_config_asks_for_are_refused():
    model = wrap()
    config = model._module.generation_config
    config.num_beams = config.num_return_sequences = 2
    with pytest.raises(SettingsError, match="describe returns one answer a prompt"):
        model.describe(random_image(), PROMPT, max_new_tokens=2)
    assert isinstance(
        model.describe(random_image(), PROMPT, num_return_sequences=1), str
    )


def test_results_of_a_twin_name_what_patches_it():
    toy, objects = eah.load(), ["boat"]
    image = eah.toy.draw_scene(0).pil()
    twin = eah.edit(eah.edit(toy, eah.EAH()), eah.EAH(), tower="vision")
    by = ", patched by EAH, patched by EAH in the vision tower"
    for ask in (eah.score_sinks, eah.attribute_heads):
        given = {} if ask is eah.score_sinks else {"objects": objects}
        plain, patched = (ask(one, image, **given).model for one in (toy, twin))
        assert patched == plain + by
        assert "patched" not in plain
    # Heads are the model's, whatever patches it while they are looked for.
    for found_in, used_in in ((toy, twin), (twin, toy)):
        heads = HeadList.of(found_in, ["L1H0"])
        for one in (heads, HeadList(heads.heads, model=heads.model)):
            assert used_in.check(eah.Ablation(heads=one))
