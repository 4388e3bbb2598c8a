"""Tiny models must be real enough to catch a wrong patch, and the same each time."""

import json
import re
from collections import defaultdict
from importlib import import_module
from types import ModuleType

import pytest
import torch
import transformers as hf

from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.lvlm.layouts.table import LAYOUTS
from eah_interp.lvlm.loading import load_processor
from eah_interp.testing import (
    FAMILIES,
    Family,
    _families,
    random_image,
    tiny_folder,
    tiny_inputs,
    tiny_lvlm,
    tiny_processor,
    tiny_tokenizer,
)
from tests.alignment import share_tensors
from tests.tiny_families import measure_gap, sweep

# PaliGemma's processor calls numpy on a torch tensor in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SUPPORTED = [name for name, facts in FAMILIES.items() if not facts.refused]
REFUSED = [name for name, facts in FAMILIES.items() if facts.refused]
PROCESSED = [name for name, facts in FAMILIES.items() if facts.build_processor]
OFF = torch.finfo(torch.float32).min  # Chameleon switches its codes' logits off
IMAGES = [[random_image(1, width=50, height=30)], [random_image(2, height=70)]]


def compare_heads(pattern):
    """Return the total variation between each pair of heads, mean over the queries."""
    heads = pattern.shape[1]
    pairs = torch.combinations(torch.arange(heads))
    gaps = (pattern[:, pairs[:, 0]] - pattern[:, pairs[:, 1]]).abs().sum(-1) / 2
    return gaps.mean(dim=(0, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_is_of_its_familys_real_class_and_in_evaluation_mode(family):
    model = tiny_lvlm(family, n_layers=2)
    assert type(model) is getattr(hf, FAMILIES[family].model)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 300_000


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_the_size_that_is_asked_for_is_the_size_that_is_built(family):
    model = tiny_lvlm(family, n_layers=2, n_heads=6, n_kv_heads=3, d_head=16)
    text = model.config.get_text_config(decoder=True)
    assert text.num_hidden_layers == 2
    n_kv_heads = getattr(text, "num_key_value_heads", None)  # OPT has no such setting
    shared = 6 if family == "kimi_k25" else 3  # MLA gives every head its own keys
    assert (text.num_attention_heads, n_kv_heads or 3) == (6, shared)
    inputs = tiny_inputs(family)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    output = getattr(output, "language_model_outputs", output)
    assert output.hidden_states[-1].shape[-1] == 96


@pytest.mark.parametrize("family", sweep(SUPPORTED))
@pytest.mark.parametrize("n_kv_heads", [4, 1])
def test_heads_attend_differently_and_logits_are_not_even(family, n_kv_heads):
    model = tiny_lvlm(family, n_kv_heads=n_kv_heads, attn_implementation="eager")
    with torch.no_grad():
        output = model(**tiny_inputs(family, images=IMAGES), output_attentions=True)
    output = getattr(output, "language_model_outputs", output)
    for pattern in output.attentions:
        assert compare_heads(pattern).min() > (0.05 if family == "chameleon" else 0.1)
    logits = output.logits[output.logits > OFF]
    assert 0.8 < logits.std() < 6
    assert 2 < logits.abs().max() < 40


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_tiny_model_does_not_just_repeat_its_last_token(family):
    inputs = tiny_inputs(family)
    model = tiny_lvlm(family)
    tokens = model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    assert len(set(tokens[0, -6:].tolist())) > 2


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_the_image_moves_the_logits(family):
    model = tiny_lvlm(family)
    logits = []
    for seed in (0, 1):
        with torch.no_grad():
            output = model(**tiny_inputs(family, images=[[random_image(seed)]]))
        logits.append(output.logits[:, -1])
    assert (logits[0] - logits[1]).abs().max() > 0.05


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (tiny_lvlm(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    tiny_lvlm("llava", seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_attention_backend_is_the_one_that_is_asked_for(backend):
    model = tiny_lvlm(attn_implementation=backend)
    assert model.config.text_config._attn_implementation == backend


def test_the_type_of_the_weights_is_the_one_that_is_asked_for():
    assert tiny_lvlm(dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("family", PROCESSED)
def test_rows_of_different_lengths_are_padded_on_the_left(family):
    processor = tiny_processor(family)
    placeholder = FAMILIES[family].placeholder
    encoding = processor(
        images=IMAGES,
        text=[placeholder + " a boat", placeholder + " is there a boat in the picture"],
        padding=True,
        return_tensors="pt",
    )
    mask = encoding["attention_mask"]
    assert mask.sum(1).unique().numel() == 2
    assert mask[:, -1].all()


@pytest.mark.parametrize("family", [name for name in PROCESSED if name != "paligemma"])
def test_a_chat_template_writes_one_placeholder_for_each_image(family):
    content = [
        {"type": "image"},
        {"type": "text", "text": "or "},
        {"type": "image"},
        {"type": "text", "text": "what ?"},
    ]
    processor = tiny_processor(family)
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text.count(FAMILIES[family].placeholder) == 2
    assert "what ?" in text
    assert "<unk>" not in tiny_tokenizer(family).tokenize(text)


@pytest.mark.parametrize("family", PROCESSED)
def test_a_tiny_folder_loads_as_the_same_model_and_processor(family, tmp_path):
    folder = tiny_folder(tmp_path / "model", family, n_layers=2, seed=7)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    assert type(processor).__name__ == type(tiny_processor(family)).__name__
    text = [FAMILIES[family].placeholder + " is there a boat ?"]
    encoding = processor(
        images=[[random_image(3, width=48)]], text=text, return_tensors="pt"
    )
    expected = tiny_inputs(family, images=[[random_image(3, width=48)]], prompts=text)
    assert all(torch.equal(encoding[key], expected[key]) for key in expected)
    built = tiny_lvlm(family, n_layers=2, seed=7)
    with torch.no_grad():
        logits = built(**expected).logits
        assert measure_gap(model(**expected).logits, logits) <= 1e-5
        share_tensors(model, built)
        assert torch.equal(model(**expected).logits, logits)


def test_a_text_only_folder_loads_with_its_tokenizer(tmp_path):
    folder = tiny_folder(tmp_path, "llama", n_layers=1)
    assert hf.AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 1
    assert hf.AutoTokenizer.from_pretrained(folder).padding_side == "left"


def test_a_processor_with_a_video_half_loads_where_torchvision_is_missing(tmp_path):
    """A real Qwen2-VL checkpoint has this file, and AutoProcessor asks for it."""
    folder = tiny_folder(tmp_path, "qwen2_vl", n_layers=1)
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    processor = load_processor(folder)
    assert isinstance(processor, hf.Qwen2VLProcessor)
    assert processor.image_processor.patch_size == 8


def test_loading_no_processor_at_all_is_an_error(tmp_path):
    with pytest.raises((OSError, ValueError)):
        load_processor(tmp_path)


def test_a_random_image_has_its_size_and_its_seed():
    image = random_image(5, width=20, height=12)
    assert image.size == (20, 12)
    assert image.tobytes() == random_image(5, width=20, height=12).tobytes()
    assert image.tobytes() != random_image(6, width=20, height=12).tobytes()


def test_an_unknown_family_is_refused_by_the_names_of_those_known():
    with pytest.raises(SettingsError, match="got 'lava'; choose from llava"):
        tiny_lvlm("lava")


def test_each_file_lists_the_families_it_holds():
    held = defaultdict(set)
    for name, facts in FAMILIES.items():
        assert name == facts.name
    for module in vars(_families).values():
        for one in vars(module).values() if isinstance(module, ModuleType) else ():
            if isinstance(one, Family):
                held[module].add(one.name)
    for model_type, rule in LAYOUTS.items():
        held[import_module(rule.__module__)].add(model_type)
    assert len(held) == 9 + 4
    for module, names in held.items():
        start = module.__doc__.index("Families:")
        paragraph = module.__doc__[start:].split("\n\n")[0]
        listed = re.sub(r"\(.*?\)", "", paragraph.removeprefix("Families:"), flags=re.S)
        listed = re.findall(r"[\w-]+", listed)
        assert sorted(listed) == sorted(names), module.__name__


def test_heads_that_cannot_be_grouped_are_refused():
    with pytest.raises(SettingsError, match="n_heads=4, n_kv_heads=3"):
        tiny_lvlm(n_heads=4, n_kv_heads=3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PROCESSED])
def test_a_missing_processor_says_why_it_is_missing(family):
    with pytest.raises(UnsupportedError, match=FAMILIES[family].no_processor):
        tiny_processor(family)


@pytest.mark.parametrize("family", REFUSED)
def test_refused_families_have_no_inputs_and_say_why(family):
    with pytest.raises(UnsupportedError, match=FAMILIES[family].refused):
        tiny_inputs(family)


def test_mistral_inputs_need_one_placeholder_for_each_image():
    with pytest.raises(InputError, match=r"one \[IMG\] for each of 1"):
        tiny_inputs("mistral3", images=[[random_image()]], prompts=["a boat"])
