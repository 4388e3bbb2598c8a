"""Claims about processors of LLaVA's kind: image tokens are counted as by the model."""

import json

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import InputError
from eah_interp.lvlm.processors import COUNTING, STRATEGY, fit_processor
from eah_interp.testing import (
    FAMILIES,
    random_image,
    tiny_folder,
    tiny_lvlm,
    tiny_processor,
)

TALL = random_image(2, width=20, height=44)
COUNTERS = [
    name
    for name, family in FAMILIES.items()
    if not family.refused
    and not family.no_processor
    and hasattr(tiny_processor(name), STRATEGY)
]
WRONG = {
    "patch_size": (None, 14, 4),
    STRATEGY: (None, "full", "default"),
    "num_additional_image_tokens": (0, 1, 3),
    "num_image_tokens": (None, 729, 9),
}


def changed(family, **settings):
    processor = tiny_processor(family)
    for name, value in settings.items():
        setattr(processor, name, value)
    return processor


def cases():
    for family in COUNTERS:
        right = tiny_processor(family)
        names = [name for name in COUNTING if hasattr(right, name)]
        for name in names:
            yield from ((family, {name: value}) for value in WRONG[name])
        yield family, {name: WRONG[name][0] for name in names}


def test_the_families_of_llava_are_among_those_that_count():
    asked = {"llava", "llava_next", "llava_onevision", "vipllava", "llava_mistral"}
    assert asked <= set(COUNTERS)


@pytest.mark.parametrize(("family", "settings"), list(cases()))
def test_a_processor_s_missing_or_wrong_settings_are_the_model_s(family, settings):
    hf_model, given = tiny_lvlm(family), changed(family, **settings)
    expected = eah.wrap(hf_model, tiny_processor(family), verify=False)
    model = eah.wrap(hf_model, given, verify=False)
    for images in (TALL, [[TALL, random_image(0)]]):
        found, right = (m.encode(images, "what ?") for m in (model, expected))
        assert found.keys() == right.keys()
        assert torch.equal(found["input_ids"], right["input_ids"])
    for name, value in settings.items():
        assert getattr(given, name) == value, "the user's own was changed"
    inputs = model.encode(TALL, "what ?")
    with torch.no_grad(), model.trace(**inputs):
        logits = model.output.logits.save()
    assert logits.shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", COUNTERS)
def test_a_processor_that_counts_rightly_is_used_itself(family):
    processor = tiny_processor(family)
    assert fit_processor(processor, tiny_lvlm(family).config) is processor
    assert eah.wrap(tiny_lvlm(family), processor, verify=False).processor is processor


def test_a_checkpoint_from_before_the_settings_loads(tmp_path):
    folder = tiny_folder(tmp_path, "llava")
    file = folder / "processor_config.json"
    values = json.loads(file.read_text())
    for name in COUNTING:
        values.pop(name, None)
    file.write_text(json.dumps(values))
    loaded = eah.load(folder)
    expected = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"), verify=False)
    found, right = (m.encode(TALL, "what ?") for m in (loaded, expected))
    assert torch.equal(found["input_ids"], right["input_ids"])
    passed = eah.load(folder, processor=changed("llava", patch_size=None))
    assert torch.equal(passed.encode(TALL, "what ?")["input_ids"], right["input_ids"])


@pytest.mark.parametrize("name", ["patch_size", "num_image_tokens"])
def test_a_setting_that_nobody_has_is_named(name):
    family = "llava" if name == "patch_size" else "llava_onevision"
    processor = tiny_processor(family)
    model = eah.wrap(tiny_lvlm(family), processor, verify=False)
    setattr(processor, name, None)  # after it was fitted: as where no config has it
    message = f"has no {name}, so .* set processor.{name} to"
    with pytest.raises(InputError, match=message):
        model.encode(TALL, "what ?")


def test_a_model_that_counts_otherwise_names_the_processor_s_settings():
    processor = tiny_processor("llava")
    model = eah.wrap(tiny_lvlm("llava"), processor, verify=False)
    processor.patch_size = 4
    message = (
        r"tokens: 64, features: \d+; the processor counts by patch_size=4, "
        "vision_feature_select_strategy='default', num_additional_image_tokens=1: set"
    )
    with pytest.raises(InputError, match=message):
        model.describe(TALL, "what ?")
    with pytest.raises(InputError, match=message), model.trace(TALL, "what ?"):
        model.output.logits.save()
    with pytest.raises(InputError, match=message):
        eah.score_sinks(model, TALL, "what ?")


def test_other_errors_of_a_model_are_left_as_they_are():
    model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"), verify=False)
    inputs = model.encode(TALL, "what ?")
    with pytest.raises(RuntimeError) as raised:
        model.generate(**inputs, max_new_tokens=1, position_ids=torch.zeros(1, 2, 3))
    assert not isinstance(raised.value, InputError)
