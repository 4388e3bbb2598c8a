"""Checkpoints that lack weights, or have them in another shape, are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaForConditionalGeneration, PreTrainedModel

import eah_interp as eah
from eah_interp.errors import ModelError
from eah_interp.testing import tiny_folder

QUERIES = "layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path, "llava")


def rewrite(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(QUERIES))
    change(weights, name)
    save_file(weights, path, metadata={"format": "pt"})


def drop(weights, name):
    del weights[name]


def narrow(weights, name):
    weights[name] = weights[name][:-1].clone()


LACKS = rf"lacks 1 \(\S*{QUERIES}\).*allow_missing=True"
NARROWED = rf"1 have another shape \(\S*{QUERIES}: \(31, 32\) in place of \(32, 32\)"


@pytest.mark.parametrize(("change", "message"), [(drop, LACKS), (narrow, NARROWED)])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_checkpoint_without_a_weight_is_refused(folder, change, message, dtype):
    rewrite(folder, change)
    asked = {} if dtype is None else {"dtype": dtype}
    with pytest.raises(ModelError, match=message):
        eah.load(folder, **asked)
    with pytest.raises(ModelError, match=message):
        eah.load(folder, config=AutoConfig.from_pretrained(folder), **asked)
    later = eah.load(folder, dispatch=False, **asked)
    with pytest.raises(ModelError, match=message):
        later.dispatch()


@pytest.mark.parametrize("change", [drop, narrow])
def test_it_loads_where_that_is_asked_for(folder, change):
    rewrite(folder, change)
    assert eah.load(folder, allow_missing=True).verified


def test_many_missing_weights_are_counted_and_some_are_named(folder):
    rewrite(
        folder, lambda weights, _: [weights.pop(n) for n in [*weights] if "mlp" in n]
    )
    with pytest.raises(ModelError, match=r"lacks \d\d \(.*mlp.*, \.\.\.\), which"):
        eah.load(folder)


def change_config(folder, part, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_config_of_fewer_layers_is_refused(folder, part):
    """Another model would run: that of the first layers."""
    last = json.loads((folder / "config.json").read_text())[part]["num_hidden_layers"]
    change_config(folder, part, num_hidden_layers=last - 1)
    with pytest.raises(ModelError, match=rf"layers\.{last - 1}\..*its own config"):
        eah.load(folder)
    assert eah.load(folder, allow_missing=True, verify=False) is not None


def test_a_config_without_the_biases_is_refused(folder):
    config = AutoConfig.from_pretrained(folder)
    config.text_config.attention_bias = True
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    eah.load(folder, verify=False)
    change_config(folder, "text_config", attention_bias=False)
    with pytest.raises(ModelError, match=r"q_proj\.bias|k_proj\.bias"):
        eah.load(folder)


@pytest.mark.parametrize(
    "name", ["value_head.weight", "model.language_model.rotary_emb.inv_freq", "step"]
)
def test_what_is_no_part_of_the_model_does_not_matter(folder, name):
    rewrite(folder, lambda weights, _: weights.update({name: torch.ones(8)}))
    assert eah.load(folder).verified


def test_a_tied_head_is_not_missing(tmp_path):
    folder = tiny_folder(tmp_path, "llava")
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert not [name for name in weights if "lm_head" in name]
    eah.load(folder, verify=False)


def test_transformers_is_left_as_it_was(folder):
    plain = PreTrainedModel.__dict__["from_pretrained"]
    model = eah.load(folder, verify=False)
    assert PreTrainedModel.__dict__["from_pretrained"] is plain
    again = type(model._module).from_pretrained(folder)
    assert all(map(torch.equal, model._module.parameters(), again.parameters()))
