"""Quantised weights: a model counts as its dequantised twin does, or is refused."""

import copy

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

import eah_interp as eah
from eah_interp.attribution import attribute_patches
from eah_interp.attribution.direct import WORST_ERROR_QUANTISED
from eah_interp.errors import NumericalError, UnsupportedError
from eah_interp.lvlm.weights import check_plain, find_quantised
from eah_interp.studies.manifest import hash_weights
from eah_interp.testing import tiny_folder, tiny_lvlm, tiny_processor
from tests.large.measure import (
    ASKED,
    IMAGE,
    PROMPT,
    assert_alike,
    measure_direct,
    measure_runs,
    patched_logits,
)

pytest.importorskip(
    "bitsandbytes", reason="needs bitsandbytes: make large, or the extra large"
)
pytestmark = [
    # Its CPU kernels have no gradients, which is why they are asked for none.
    pytest.mark.filterwarnings(
        "error:.*autograd kernel was not registered:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]

# Blocks of 64 weights have to fit the rows; those of the tiny vision tower do not.
WIDE = {"d_head": 16, "n_kv_heads": 2}
LEFT = ["model.vision_tower", "model.multi_modal_projector"]
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


ROUNDING = 0.25
"""What 8 bits may change in a random model's numbers, of the largest; most is less."""


def configure(kind, left=(*LEFT, "lm_head")):
    return BitsAndBytesConfig(**KINDS[kind], llm_int8_skip_modules=list(left))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llava", **WIDE)


def dequantise(hf_model):
    """Build the model of float32 weights that a quantised one computes with."""
    twin = tiny_lvlm("llava", **WIDE)
    for name, module in hf_model.named_modules():
        if not type(module).__name__.startswith("Linear"):
            continue
        state = getattr(module, "state", None)
        weight = dequantize_bnb_weight(copy.deepcopy(module.weight), copy.copy(state))
        twin.get_submodule(name).weight.data = weight.detach().float()
    return twin


@pytest.fixture(scope="module", params=KINDS)
def pair(request, folder):
    """Load a quantised model, and its dequantised twin; return both and how near."""
    fresh = eah.load(folder, quantization_config=configure(request.param), verify=False)
    twin = dequantise(fresh._module)  # before it runs, and is repacked
    model = eah.load(folder, quantization_config=configure(request.param))
    return model, eah.wrap(twin, tiny_processor("llava"))


def test_a_quantised_model_is_one_and_computes_as_it_does_alone(pair):
    model, twin = pair
    assert find_quantised(model._module) is not None
    encoding = model.encode(IMAGE, PROMPT)
    with torch.no_grad():
        plain = model._module(**encoding).logits
        float32 = twin._module(**encoding).logits
    with torch.no_grad(), model.trace(**encoding):
        logits = model.output.logits.save()
    assert torch.equal(logits, plain)
    assert (plain - float32).abs().max() <= 0.05 * float32.abs().max()


def test_it_counts_as_its_dequantised_twin_does(pair):
    model, twin = pair
    assert_alike(measure_direct(model), measure_direct(twin), share=ROUNDING)
    found, expected = measure_runs(model), measure_runs(twin)
    for name in ("text", "sink dims"):  # a choice, which rounding may turn
        found.pop(name), expected.pop(name)
    assert_alike(found, expected, share=ROUNDING)


def test_heads_are_credited_with_what_their_projection_makes_of_them(pair):
    """At the outputs that the quantised run has: no rounding of its own is in it."""
    model, twin = pair
    decoder = model._module.model.language_model
    inputs, seen = model.encode(IMAGE, PROMPT), {}

    def keep(name):
        def hook(module, args):
            seen[name] = args[0][0, -1].float()

        return hook

    handles = [decoder.norm.register_forward_pre_hook(keep("final"))]
    for index, layer in enumerate(decoder.layers):
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep(index)))
    with torch.no_grad():
        model._module(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        found = eah.attribute_heads(model, IMAGE, PROMPT, **ASKED)
    token = model.processor.tokenizer(" boat", add_special_tokens=False).input_ids[0]
    rms = (seen["final"].square().mean() + decoder.norm.variance_epsilon).sqrt()
    direction = decoder.norm.weight / rms * model._module.lm_head.weight[token]
    direction, by_hand = direction.detach(), []
    for index, layer in enumerate(twin._module.model.language_model.layers):
        width = layer.self_attn.head_dim
        weights = layer.self_attn.o_proj.weight.detach().split(width, 1)
        slices = seen[index].split(width)
        by_hand.append(
            [float(w @ z @ direction) for w, z in zip(weights, slices, strict=True)]
        )
    expected = torch.tensor(by_hand)
    # Packed for the CPU, scales of 4-bit weights are rounded to bfloat16.
    error = (found.plain.heads[0] - expected).abs().max() / expected.abs().max()
    assert error < 6e-3
    assert float(found.plain.error.max()) < WORST_ERROR_QUANTISED


def test_what_the_rounding_leaves_is_refused_where_it_is_much(pair, monkeypatch):
    model, _ = pair
    monkeypatch.setattr("eah_interp.attribution.direct.WORST_ERROR_QUANTISED", 0)
    monkeypatch.setattr("eah_interp.attribution.direct.WORST_ERROR_EXACT", 0)
    with pytest.raises(NumericalError, match="quantised output projections round"):
        eah.attribute_heads(model, IMAGE, PROMPT, **ASKED)


def test_gradients_through_quantised_weights_are_refused(pair):
    model, _ = pair
    said = "has quantised weights .*use patch_heads, which needs no gradients"
    with pytest.raises(UnsupportedError, match=said):
        eah.approximate_heads(model, IMAGE, PROMPT, source=eah.EAH(), **ASKED)
    with pytest.raises(UnsupportedError, match=said):
        attribute_patches(model, IMAGE, PROMPT, method="attention_gradient", **ASKED)


def test_a_quantised_unembedding_is_read_through(folder):
    config = configure("int8", left=LEFT)
    model = eah.load(folder, quantization_config=config)
    assert type(model._module.lm_head) is not nn.Linear
    twin = dequantise(
        eah.load(folder, quantization_config=config, verify=False)._module
    )
    expected = measure_direct(eah.wrap(twin, tiny_processor("llava")))
    assert_alike(measure_direct(model), expected, share=ROUNDING)


def test_a_model_in_memory_is_wrapped(folder):
    from transformers import AutoModelForImageTextToText

    config = configure("int8")
    quantised = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=config
    )
    model = eah.wrap(quantised, tiny_processor("llava"))
    loaded = eah.load(folder, quantization_config=config)
    torch.testing.assert_close(
        patched_logits(model, eah.EAH()), patched_logits(loaded, eah.EAH())
    )


# PEFT 0.21 asks transformers 5.23 for an attribute by its old name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:Warning")
def test_an_adapter_on_quantised_weights_counts_as_its_twin(folder):
    peft = pytest.importorskip("peft", reason="needs peft: make large")
    from tests.large.test_adapters import KINDS as OF_ADAPTERS
    from tests.large.test_adapters import adapt

    settings = OF_ADAPTERS["attention"]
    config = configure("int8")
    fresh = eah.load(folder, quantization_config=config, verify=False)
    twin = adapt(dequantise(fresh._module), **settings).eval()
    quantised = adapt(
        eah.load(folder, quantization_config=config, verify=False)._module, **settings
    ).eval()
    assert isinstance(quantised, peft.PeftModel)
    model = eah.wrap(quantised, tiny_processor("llava"))
    expected = measure_direct(eah.wrap(twin, tiny_processor("llava")))
    assert_alike(measure_direct(model), expected, share=ROUNDING)


def test_hashing_never_changes_the_model(pair):
    """bitsandbytes' state_dict() of weights repacked for this CPU makes others."""
    model, _ = pair
    encoding = model.encode(IMAGE, PROMPT)
    with torch.no_grad():
        before = model._module(**encoding).logits
    layer = model._module.model.language_model.layers[0].self_attn.o_proj
    state = getattr(layer.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        with pytest.raises(UnsupportedError, match="has repacked 4-bit weights"):
            hash_weights(model._module)
    else:
        assert hash_weights(model._module) == hash_weights(model._module)
    with torch.no_grad():
        assert torch.equal(model._module(**encoding).logits, before)


def test_what_hands_weights_on_refuses_quantised_ones(pair):
    model, _ = pair
    with pytest.raises(UnsupportedError, match=r"has quantised weights .* without q"):
        check_plain(model._module, for_what="Ray")
