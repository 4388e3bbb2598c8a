"""What gradients cannot do is refused by name, bad input before any forward pass."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution.gradient import approximate_heads
from eah_interp.attribution.gradient_runs import run_with_gradients
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.attribution.test_gradient import pose_two
from tests.tiny_families import share_model

ASKED = {"objects": ["boat"], "source": eah.EAH()}


def refuse(model, **asked):
    return approximate_heads(model, random_image(), "Is there", **{**ASKED, **asked})


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"objects": ["d\u2063g"]}, SettingsError, "spell|letters"),
        ({"objects": []}, SettingsError, "at least one object"),
        ({"objects": ["boat"], "caption": "a cat"}, InputError, "does not name boat"),
        ({"method": "gradient"}, SettingsError, "method must be one of attribution_p"),
        ({"what": "value"}, SettingsError, "what must be one of output, pattern, val"),
        (
            {"n_steps": 0},
            SettingsError,
            "n_steps must be an integer of 1",
        ),
        ({"check": -1}, SettingsError, "check must be an integer of 0 or more, got -1"),
        ({"batch_size": 0}, SettingsError, "batch_size must be at least 1"),
        (
            {"source": "patched"},
            SettingsError,
            'source must be "plain" or an intervention',
        ),
        ({"target": None}, SettingsError, 'target must be "plain" or an intervention'),
        ({"source": eah.EAH(layers=(9,))}, SettingsError, "layer 9 does not exist"),
        ({"target": eah.EAH(donor=77)}, SettingsError, "heads .77. do not exist"),
        ({"source_prompts": "Is there a"}, InputError, "the source has"),
    ],
)
def test_bad_input_is_refused_before_any_forward(
    asked, error, message, monkeypatch, as_users_run_it
):
    model = share_model("llava")
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(error, match=message):
        refuse(model, **asked)


def test_a_layer_without_heads_is_refused(as_users_run_it):
    model = share_model("lfm2_vl")
    layer = min(model.anatomy.unfit)
    with pytest.raises(ModelError, match=rf"layer {layer} cannot be patched"):
        approximate_heads(model, pose_two("lfm2_vl"), source=eah.EAH(layers=(layer,)))


@pytest.mark.filterwarnings("ignore:.*quantiz.*:Warning")
def test_quantised_weights_are_refused_before_any_forward(monkeypatch):
    hf_model = tiny_lvlm("llava")
    mlp = hf_model.model.language_model.layers[2].mlp
    mlp.up_proj = torch.ao.nn.quantized.dynamic.Linear(*mlp.up_proj.weight.T.shape)
    model = share_model("llava")
    monkeypatch.setattr(model, "_module", hf_model, raising=False)
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(
        UnsupportedError, match=r"layers\.2\.mlp\.up_proj .Linear. has q"
    ):
        refuse(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_one_byte_are_refused(dtype):
    hf_model = tiny_lvlm("llava")
    norm = hf_model.model.language_model.layers[1].input_layernorm
    norm.weight = torch.nn.Parameter(norm.weight.to(dtype), requires_grad=False)
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
    model._module.model.language_model.layers[1].input_layernorm.weight = norm.weight
    with pytest.raises(UnsupportedError, match=r"quantised weights .(int8|float8)"):
        refuse(model)


def test_inference_mode_is_refused():
    model = share_model("llava")
    with (
        torch.inference_mode(),
        pytest.raises(UnsupportedError, match=r"this runs in torch\.inference_mode"),
    ):
        refuse(model)
    with torch.inference_mode():
        hf_model = tiny_lvlm("llava")
    model = eah.wrap(hf_model, tiny_processor("llava"))
    with pytest.raises(UnsupportedError, match=r"was made in torch\.inference_mode"):
        refuse(model)


def test_direct_effects_are_refused_in_inference_mode_too():
    model, case = share_model("llava"), pose_two("llava")
    for attribute in (eah.attribute_heads, eah.attribution.attribute_patches):
        with (
            torch.inference_mode(),
            pytest.raises(UnsupportedError, match=r"runs in torch\.inference_mode"),
        ):
            attribute(model, case)


def test_what_was_encoded_in_inference_mode_is_differentiated_outside():
    model = share_model("llava")
    asked = {"objects": ["cat"]}
    given = (random_image(0), "is there a cat ?")
    expected = eah.attribute_heads(model, *given, **asked).plain.heads
    with torch.inference_mode():
        case = eah.attribution.pose(model, *given, **asked)
        encoding = model.encode(*given)
        made = {name: value.clone() for name, value in encoding.items()}
    assert made["pixel_values"].is_inference()
    for inputs in (case, encoding, made):
        found = eah.attribute_heads(model, inputs, **({} if inputs is case else asked))
        torch.testing.assert_close(found.plain.heads, expected)


def test_no_grad_is_no_hindrance_and_weights_are_left_as_they_were():
    model = share_model("llava")
    before = [p.requires_grad for p in model._module.parameters()]
    case = pose_two("llava")
    with torch.no_grad():
        inside = approximate_heads(model, case, source=eah.EAH(), check=0)
    outside = approximate_heads(model, case, source=eah.EAH(), check=0)
    assert torch.equal(inside.approximate, outside.approximate)
    assert [p.requires_grad for p in model._module.parameters()] == before
    assert all(p.grad is None for p in model._module.parameters())
    for parameter in model._module.parameters():
        parameter.requires_grad_(requires_grad=False)
    frozen = approximate_heads(model, case, source=eah.EAH(), check=0)
    for parameter, flag in zip(model._module.parameters(), before, strict=True):
        parameter.requires_grad_(requires_grad=flag)
    assert torch.equal(frozen.approximate, outside.approximate)


def test_the_graph_begins_at_the_first_heads():
    """No weight and no vision tower is part of it: that is what its memory is."""
    model = share_model("llava")
    run = run_with_gradients(model, pose_two("llava"), None)
    leaves, seen, stack = set(), set(), [run.values.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack += [parent for parent, _ in node.next_functions]
    assert leaves == {id(run.heads[0])}


@pytest.mark.slow
# torch and transformers warn of one another on the way to Flex
@pytest.mark.filterwarnings("ignore")
def test_attention_without_a_backward_pass_is_refused_by_name():
    model = eah.wrap(tiny_lvlm("llava", attn_implementation="flex_attention"))
    message = r"'flex_attention' on cpu.* does not support backward.*use patch_heads"
    with pytest.raises(UnsupportedError, match=message):
        approximate_heads(model, pose_two("llava"), source=eah.EAH(), check=0)


def test_an_operation_without_a_backward_pass_is_refused_by_name():
    model = eah.wrap(
        tiny_lvlm("llava", attn_implementation="sdpa"), tiny_processor("llava")
    )

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(_, tensor):
            return tensor.clone()

    def break_graph(module, args):
        return (NoBackward.apply(args[0]), *args[1:])

    norm = model._module.model.language_model.norm
    handle = norm.register_forward_pre_hook(break_graph)
    with pytest.raises(UnsupportedError, match=r"'sdpa' on cpu.*use patch_heads"):
        refuse(model, check=0)
    handle.remove()


def test_heads_that_no_gradient_reaches_are_refused():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))

    def cut(module, args):
        return (args[0].detach(), *args[1:])

    layer = model._module.model.language_model.layers[2]
    handle = layer.register_forward_pre_hook(cut)
    with pytest.raises(UnsupportedError, match=r"no gradient reaches .* \[0, 1\]"):
        refuse(model, check=0)
    handle.remove()
