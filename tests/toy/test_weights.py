"""Claims about the committed weights: they load anywhere, are small, and see."""

import ast
import dataclasses
import hashlib
import json
import time

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import eah_interp as eah
from eah_interp.benchmarks.toy import ask_about_scenes, describe_scenes
from eah_interp.errors import SettingsError
from eah_interp.toy import OBJECTS, TOYS, draw_scene, draw_scenes, prompt_for, toy_path
from eah_interp.toy.model import build_model
from eah_interp.toy.training.recipe import Recipe

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "README.md",
    "training_log.json",
}


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(toy_path()).eval()


@pytest.fixture(scope="module")
def toy(model, processor):
    return eah.wrap(model, processor)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(toy_path())


def test_the_folder_holds_what_it_should_and_is_small():
    assert {path.name for path in toy_path().iterdir()} == FILES
    assert (toy_path() / "model.safetensors").stat().st_size <= 10_000_000


def test_they_load_in_under_two_seconds():
    times = []
    for _ in range(2):
        start = time.process_time()  # the machine may be shared
        LlavaForConditionalGeneration.from_pretrained(toy_path())
        AutoProcessor.from_pretrained(toy_path())
        times.append(time.process_time() - start)
    assert min(times) < 2


def test_every_weight_is_in_the_file_and_none_is_left_over():
    _, report = LlavaForConditionalGeneration.from_pretrained(
        toy_path(), output_loading_info=True
    )
    problems = {name: keys for name, keys in report.items() if keys}
    assert not problems


def test_the_weights_are_of_the_default_recipe(model):
    log = json.loads((toy_path() / "training_log.json").read_text())
    built = build_model(Recipe().architecture, world=Recipe().world)
    shapes = {name: value.shape for name, value in built.state_dict().items()}
    assert shapes == {n: value.shape for n, value in model.state_dict().items()}
    assert log["recipe"] == dataclasses.asdict(Recipe())


@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_single_prompts(model, processor):
    scenes = draw_scenes(range(2))
    texts = [prompt_for("Is there a lighthouse in the image?"), prompt_for("boat?")]
    images = [scene.pil() for scene in scenes]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    together = model(**batch).logits[:, -1]
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = model(**processor(images=image, text=text, return_tensors="pt"))
        torch.testing.assert_close(
            together[row], alone.logits[0, -1], rtol=0, atol=1e-4
        )


def test_a_picture_takes_one_token_for_each_patch(model, processor):
    scene = draw_scene(0)
    inputs = processor(images=scene.pil(), text="<image>", return_tensors="pt")
    n_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert n_tokens == scene.labels.size == model.config.image_seq_length


def test_balanced_questions_of_the_test_split_are_answered(toy):
    table = ask_about_scenes(
        toy, draw_scenes(range(200)), samplings=["random"], progress=False
    )
    assert table.present.mean() == 0.5
    assert (table.says_yes == table.present).mean() > 0.9


def test_without_the_picture_the_answers_are_lost(toy):
    scenes = draw_scenes(range(100))
    others = [
        dataclasses.replace(scene, image=scenes[(i + 50) % 100].image)
        for i, scene in enumerate(scenes)
    ]
    table = ask_about_scenes(toy, others, samplings=["random"], progress=False)
    assert 0.35 < (table.says_yes == table.present).mean() < 0.65


def test_captions_name_objects_in_the_picture(toy):
    table = describe_scenes(toy, draw_scenes(range(32)), progress=False)
    assert all(any(name in text for name in OBJECTS) for text in table.caption)
    assert all(text.endswith(".") for text in table.caption)


@pytest.mark.parametrize("name", TOYS)
def test_the_log_belongs_to_the_weights(name):
    folder = toy_path(name)
    log = json.loads((folder / "training_log.json").read_text())
    file = (folder / "model.safetensors").read_bytes()
    assert log["sha256"] == hashlib.sha256(file).hexdigest()
    assert log["name"] == name
    assert log["command"] in (folder / "README.md").read_text()


def validation(name):
    log = json.loads((toy_path(name) / "training_log.json").read_text())
    measured = log["evaluation"]["validation"]
    assert measured["captions"]["n"] >= 500
    return measured


def test_the_default_toy_sees_and_hallucinates_as_it_was_meant_to():
    measured = validation(TOYS[0])
    assert measured["all"]["accuracy"] >= 90
    assert measured["random"]["accuracy"] >= 90
    assert measured["captions"]["recall"] >= 80
    assert 20 <= measured["captions"]["chair_s"] <= 60


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_is_worth_studying(name):
    measured = validation(name)
    assert measured["all"]["accuracy"] >= 90
    assert measured["captions"]["recall"] >= 75
    adversarial = measured["adversarial"]["false_positives"]
    ratio = adversarial / measured["random"]["false_positives"]
    if name == "low-prior":
        assert ratio < 2
    else:
        assert ratio >= 3
        assert measured["captions"]["chair_s"] >= 20


def test_toys_of_one_recipe_differ_in_their_seed_only():
    recipes = {
        name: json.loads((toy_path(name) / "training_log.json").read_text())["recipe"]
        for name in TOYS
    }
    for seed in (1, 2):
        assert recipes[f"seed-{seed}"] == {**recipes["seed-0"], "seed": seed}
    low = recipes["low-prior"]["world"]
    assert low["prior"] < recipes["seed-0"]["world"]["prior"]
    assert recipes["low-prior"] == {**recipes["seed-0"], "world": low}


def test_an_unknown_toy_is_refused(as_users_run_it):
    with pytest.raises(SettingsError, match="expected one of"):
        toy_path("seed-9")


def test_no_file_of_the_room_imports_transformers_at_its_head():
    files = list(toy_path().parents[1].glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.parse(file.read_text()).body:
            assert "transformers" not in (getattr(node, "module", None) or ""), file
