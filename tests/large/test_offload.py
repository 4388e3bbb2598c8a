"""Weights that accelerate keeps away count as those at hand do, wherever they are."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn

import eah_interp as eah
from eah_interp.errors import ModelError, UnsupportedError
from eah_interp.lvlm.weights import check_plain, find_device, read_weights
from eah_interp.studies.manifest import hash_weights
from eah_interp.testing import tiny_folder, tiny_inputs, tiny_lvlm, tiny_processor
from tests.attribution.test_direct import pose_tokens
from tests.large.measure import (
    IMAGE,
    PROMPT,
    assert_alike,
    measure_direct,
    measure_gradients,
    measure_runs,
)

DECODER = "model.language_model"
PARTS = [
    "model.vision_tower",
    "model.multi_modal_projector",
    f"{DECODER}.embed_tokens",
    *(f"{DECODER}.layers.{layer}" for layer in range(3)),
    f"{DECODER}.norm",
    f"{DECODER}.rotary_emb",
    "lm_head",
]
AWAY = {
    "layers": [f"{DECODER}.layers.1", f"{DECODER}.layers.2"],
    "norm": [f"{DECODER}.norm", "lm_head"],
    "vision tower": ["model.vision_tower", "model.multi_modal_projector"],
}


def map_parts(away):
    return {part: "disk" if part in away else "cpu" for part in PARTS}


def send_away(model, kind, folder):
    """Keep weights away as accelerate does beside a GPU; here it is the CPU."""
    if kind == "cpu_offload":
        return cpu_offload(model, execution_device="cpu")
    if kind == "disk_offload":
        return disk_offload(model, str(folder), execution_device="cpu")
    parts = map_parts(AWAY[kind])
    return dispatch_model(
        model, parts, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


@pytest.fixture(scope="module")
def plain():
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    measured = (measure_direct(model), measure_runs(model), measure_gradients(model))
    return model, measured


@pytest.mark.parametrize("kind", ["cpu_offload", *AWAY])
def test_what_is_kept_away_is_measured_as_what_is_at_hand(kind, plain, tmp_path):
    _, (direct, runs, gradients) = plain
    hf_model = send_away(tiny_lvlm("llava", n_kv_heads=2), kind, tmp_path)
    assert any(parameter.is_meta for parameter in hf_model.parameters())
    model = eah.wrap(hf_model, tiny_processor("llava"))
    assert model.verified
    assert model.device == torch.device("cpu")
    assert_alike(measure_direct(model), direct, share=1e-4)
    if kind in ("cpu_offload", "norm"):  # the others read nothing else
        trained = [p.requires_grad for p in hf_model.parameters()]
        assert_alike(measure_runs(model), runs, share=1e-4)
        assert_alike(measure_gradients(model), gradients, share=1e-3)
        assert [p.requires_grad for p in hf_model.parameters()] == trained
    assert any(parameter.is_meta for parameter in hf_model.parameters())


def test_a_model_on_the_disk_alone_is_measured(plain, tmp_path):
    hf_model = send_away(tiny_lvlm("llava", n_kv_heads=2), "disk_offload", tmp_path)
    model = eah.wrap(hf_model, tiny_processor("llava"))
    assert_alike(measure_direct(model), plain[1][0], share=1e-4)
    assert not hasattr(hf_model, "hf_device_map")


def test_a_device_map_with_the_disk_first_loads(plain, tmp_path):
    folder = tiny_folder(tmp_path / "model", "llava", n_kv_heads=2)
    places = map_parts(["model.vision_tower", f"{DECODER}.layers.1"])
    model = eah.load(folder, device_map=places, offload_folder=tmp_path / "away")
    assert any(parameter.is_meta for parameter in model._module.parameters())
    assert_alike(measure_direct(model), plain[1][0], share=1e-4)


def test_gemma_norms_and_biases_are_read_where_they_are():
    """A gain of one plus the weight, norms behind attention; biases of projections."""
    for family in ("gemma3", "kosmos2"):
        inputs = tiny_inputs(family)
        found = []
        for away in (False, True):
            hf_model = tiny_lvlm(family)
            if away:
                cpu_offload(hf_model, execution_device="cpu")
            model = eah.wrap(hf_model)
            last = inputs["input_ids"].shape[1] - 1
            case = pose_tokens(inputs, {"x": [(last, 9, 1.0)]})
            heads = eah.attribute_heads(model, case).plain
            found.append({"heads": heads.heads, "constants": heads.bias})
        assert_alike(found[1], found[0], share=1e-4)


def test_weights_are_hashed_where_they_are(plain):
    model, _ = plain
    away = cpu_offload(tiny_lvlm("llava", n_kv_heads=2), execution_device="cpu")
    assert hash_weights(away) == hash_weights(model._module)


def test_text_alone_is_traced(plain):
    away = cpu_offload(tiny_lvlm("llava", n_kv_heads=2), execution_device="cpu")
    model = eah.wrap(away, tiny_processor("llava"))
    found = []
    for one in (plain[0], model):
        with torch.no_grad(), one.trace("is there a cat ?"):
            logits = one.output.logits.save()
        found.append(logits)
    torch.testing.assert_close(found[1], found[0])
    assert model.describe(IMAGE, PROMPT, max_new_tokens=2) == plain[0].describe(
        IMAGE, PROMPT, max_new_tokens=2
    )


def test_weights_that_come_with_a_module_above_are_refused_by_name():
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    cpu_offload(block, execution_device="cpu", preload_module_classes=["Sequential"])
    assert find_device(block) == torch.device("cpu")
    with pytest.raises(ModelError, match=r"of a LayerNorm are not at hand.*preload"):
        read_weights(block[0])


def test_what_hands_weights_on_refuses_those_kept_away():
    away = cpu_offload(tiny_lvlm("llava"), execution_device="cpu")
    with pytest.raises(UnsupportedError, match=r"a bridge needs .* off the device"):
        check_plain(away, for_what="a bridge")
    check_plain(tiny_lvlm("llava"), for_what="a bridge")
