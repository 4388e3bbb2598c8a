"""Adapters of PEFT: exact in place and merged, loaded from folders, or refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import eah_interp as eah
from eah_interp.errors import InputError, ModelError, UnsupportedError
from eah_interp.lvlm.spans import image_mask, image_token_id
from eah_interp.lvlm.weights import check_plain
from eah_interp.testing import tiny_folder, tiny_lvlm, tiny_processor
from tests.large.measure import (
    IMAGE,
    PROMPT,
    assert_alike,
    measure_direct,
    measure_gradients,
    measure_runs,
    patched_logits,
)
from tests.oracle_forward import OracleEAH, oracle_logits

peft = pytest.importorskip("peft", reason="needs peft: make large, or the extra large")
# PEFT 0.21 asks transformers 5.23 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:Warning")

DECODER = r".*language_model.*"
KINDS = {
    "attention": {"target_modules": DECODER + "(q_proj|k_proj|v_proj|o_proj)"},
    "DoRA": {"target_modules": DECODER + "o_proj", "use_dora": True},
    "whole modules": {
        "target_modules": DECODER + "(o_proj|up_proj)",
        "modules_to_save": ["norm", "input_layernorm", "lm_head"],
    },
    "unembedding": {"target_modules": DECODER + "q_proj|lm_head|.*embed_tokens"},
}


def adapt(hf_model=None, *, dropout=0.0, **settings):
    """Put a trained adapter into a tiny model; trained: nothing of it is zero."""
    hf_model = hf_model or tiny_lvlm("llava", n_kv_heads=2)
    config = peft.LoraConfig(r=4, lora_dropout=dropout, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(hf_model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                new = 0.05 * torch.randn(parameter.shape)
                parameter.data = parameter.data + new.to(parameter.data)
    return adapted


@pytest.fixture(params=KINDS)
def adapted(request):
    return adapt(**KINDS[request.param]).eval()


def test_an_adapter_counts_as_its_merged_model_does(adapted):
    plain = tiny_lvlm("llava", n_kv_heads=2)
    model = eah.wrap(adapted, tiny_processor("llava"))
    direct, runs = measure_direct(model), measure_runs(model)
    gradients = measure_gradients(model)
    encoding = model.encode(IMAGE, PROMPT)
    with torch.no_grad():
        logits = adapted(**encoding).logits
        moved = (logits - plain(**encoding).logits).abs().max()
    assert moved > 0.1, "the adapter does nothing: a weak test"
    merged = eah.wrap(adapted.merge_and_unload(), tiny_processor("llava"))
    assert_alike(measure_direct(merged), direct, share=1e-4)
    assert_alike(measure_runs(merged), runs, share=1e-4)
    assert_alike(measure_gradients(merged), gradients, share=1e-3)


@pytest.mark.filterwarnings("ignore:.*merging LoRA weights won't be possible:Warning")
def test_a_constant_that_an_adapter_adds_is_one():
    adapted = adapt(target_modules=DECODER + "o_proj", lora_bias=True).eval()
    twin = tiny_lvlm("llava", n_kv_heads=2)
    layers = adapted.get_base_model().model.language_model.layers
    for layer, plain in zip(layers, twin.model.language_model.layers, strict=True):
        proj, own = layer.self_attn.o_proj, plain.self_attn
        own.o_proj = torch.nn.Linear(own.o_proj.in_features, own.o_proj.out_features)
        scale, up = proj.scaling["default"], proj.lora_B["default"]
        added = up.weight @ proj.lora_A["default"].weight
        own.o_proj.weight.data = (proj.base_layer.weight + scale * added).detach()
        own.o_proj.bias.data = (scale * up.bias).detach()
    found = measure_direct(eah.wrap(adapted, tiny_processor("llava")))
    assert found["constants"].abs().min() > 1e-3
    expected = measure_direct(eah.wrap(twin, tiny_processor("llava")))
    assert_alike(found, expected, share=1e-4)


def test_a_patch_of_an_adapted_model_equals_the_slow_oracle():
    settings = KINDS["attention"]
    untouched = adapt(
        tiny_lvlm("llava", n_kv_heads=2, attn_implementation="eager"), **settings
    )
    untouched = untouched.eval().get_base_model()
    model = eah.wrap(adapt(**settings).eval(), tiny_processor("llava"))
    encoding = model.encode(IMAGE, PROMPT)
    oracle = OracleEAH(
        image_mask=image_mask(encoding["input_ids"], image_token_id(untouched.config)),
        token_mask=encoding["attention_mask"].bool(),
    )
    expected = oracle_logits(untouched, encoding, edit_pattern=oracle).logits
    found = patched_logits(model, eah.EAH())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_is_switched_off_counts_as_the_plain_model_does():
    adapted = adapt(**KINDS["whole modules"]).eval()
    model = eah.wrap(adapted, tiny_processor("llava"))
    plain = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    with adapted.disable_adapter():
        found = measure_direct(model)
    assert_alike(found, measure_direct(plain), share=1e-4)


def test_nothing_is_logged_of_an_adapted_model(caplog, capsys):
    from transformers.utils import logging as of_transformers

    adapted = adapt(**KINDS["attention"]).eval()
    logger = of_transformers.get_logger("transformers")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        eah.wrap(adapted, tiny_processor("llava"))
    logger.removeHandler(caplog.handler)
    out = capsys.readouterr()
    assert caplog.text + out.out + out.err == ""


# -- training mode ---------------------------------------------------------------------


def test_dropout_of_a_new_adapter_is_refused_though_its_model_evaluates():
    config = peft.LoraConfig(lora_dropout=0.3, **KINDS["attention"])
    fresh = peft.get_peft_model(tiny_lvlm("llava"), config)
    assert not fresh.get_base_model().training
    model = eah.wrap(fresh, tiny_processor("llava"))  # zero so far: nothing moves
    said = r"a part of the model is in training mode, and in .*lora_dropout.* call eval"
    with pytest.raises(UnsupportedError, match=said):
        patched_logits(model, eah.EAH())
    fresh.eval()
    patched_logits(model, eah.EAH())


@pytest.mark.parametrize("train", [False, True])
def test_dropout_of_a_trained_adapter_is_named_when_it_is_wrapped(train):
    adapted = adapt(dropout=0.3, **KINDS["attention"])
    adapted.get_base_model().train(train)
    whole = "the model" if train else "a part of the model"
    said = rf"not deterministic: .*; {whole} is in training mode, .*call model.eval\(\)"
    if not train:
        adapted.get_base_model().training = False
        for layer in adapted.modules():
            layer.training = isinstance(layer, torch.nn.Dropout)
    with pytest.raises(ModelError, match=said):
        eah.wrap(adapted, tiny_processor("llava"))


# -- folders ---------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Save a base model and an adapter with dropout that names it; return both."""
    base = tiny_folder(tmp_path / "base", "llava", n_kv_heads=2)
    adapted = adapt(dropout=0.5, **KINDS["whole modules"]).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted


@pytest.mark.parametrize("dispatch", [True, False])
def test_an_adapter_folder_loads_as_peft_loads_it(folders, dispatch):
    folder, adapted = folders
    model = eah.load(folder, dispatch=dispatch)
    encoding = model.encode(IMAGE, PROMPT)
    with torch.no_grad(), model.trace(**encoding):
        logits = model.output.logits.save()
    with torch.no_grad():
        expected = adapted(**encoding).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not any(module.training for module in model._module.modules())


def test_an_adapters_own_processor_is_used(folders):
    folder, _ = folders
    assert "Look: " not in eah.load(folder).processor.chat_template
    processor = tiny_processor("llava")
    processor.chat_template = "Look: " + processor.chat_template
    processor.save_pretrained(folder)
    assert eah.load(folder).processor.chat_template.startswith("Look: ")


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    ending = "layers.1.mlp.up_proj.lora_B.weight"
    name = next(name for name in weights if name.endswith(ending))
    change(weights, name)
    save_file(weights, path, metadata={"format": "pt"})


def drop(weights, name):
    del weights[name]


def narrow(weights, name):
    weights[name] = weights[name][:-1].clone()


def rename(weights, name):
    weights[name.replace("layers.1", "layers.7")] = weights.pop(name)


@pytest.mark.parametrize("change", [drop, narrow, rename])
@pytest.mark.parametrize("dispatch", [True, False])
def test_an_adapter_whose_weights_do_not_fit_is_refused(folders, change, dispatch):
    folder, _ = folders
    rewrite(folder, change)
    with pytest.raises(ModelError, match=r"does not fit its base model: .*up_proj"):
        eah.load(folder, dispatch=dispatch).dispatch()


def test_a_base_without_its_weights_is_refused(folders):
    folder, _ = folders
    path = folder.parent / "base" / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith("q_proj.weight"))]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 .*q_proj"):
        eah.load(folder)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folders_that_cannot_be_loaded_are_refused_by_name(folders):
    folder, _ = folders
    for kind in ("PREFIX_TUNING", "PROMPT_TUNING", "XLORA", "ADAPTION_PROMPT"):
        edit_config(folder, peft_type=kind)
        with pytest.raises(ModelError, match=f"is {kind}, which .* such as LoRA"):
            eah.load(folder)
    edit_config(folder, peft_type="LORA", base_model_name_or_path="./nowhere")
    with pytest.raises(InputError, match=r"no model at nowhere|no model at ./nowhere"):
        eah.load(folder)
    edit_config(folder, base_model_name_or_path="nobody/nothing")
    with pytest.raises(InputError, match="names the base model 'nobody/nothing'"):
        eah.load(folder)
    edit_config(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base model"):
        eah.load(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        eah.load(folder)


def test_an_adapter_without_weights_or_beside_a_model_is_refused(folders):
    folder, _ = folders
    base = folder.parent / "base"
    (base / "adapter_config.json").write_bytes(
        (folder / "adapter_config.json").read_bytes()
    )
    with pytest.raises(ModelError, match="holds a whole model and an adapter"):
        eah.load(base)
    (base / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="but no weights: expected adapter_model"):
        eah.load(folder)


# -- what is no layer ------------------------------------------------------------------


def test_learned_prefixes_and_prompts_are_refused_by_name():
    shape = {"num_layers": 3, "num_attention_heads": 4, "token_dim": 32}
    for kind, name in (
        (peft.PrefixTuningConfig, "PREFIX_TUNING"),
        (peft.PromptTuningConfig, "PROMPT_TUNING"),
    ):
        config = kind(task_type="CAUSAL_LM", num_virtual_tokens=4, **shape)
        prefixed = peft.get_peft_model(tiny_lvlm("llava"), config)
        with pytest.raises(ModelError, match=f"'default' is {name}, which puts"):
            eah.wrap(prefixed, tiny_processor("llava"))


def test_what_hands_weights_on_refuses_an_adapter():
    adapted = adapt(**KINDS["attention"]).eval()
    with pytest.raises(UnsupportedError, match=r"Ray needs .* holds an adapter: merge"):
        check_plain(adapted.get_base_model(), for_what="Ray")
