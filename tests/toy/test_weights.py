"""Claims about the committed weights: they load anywhere, are small, and see."""

import ast
import dataclasses
import json
import time

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from eah_interp.toy import (
    OBJECTS,
    SAMPLINGS,
    draw_scene,
    draw_scenes,
    evaluate,
    prompt_for,
    questions_for,
    score_answers,
    toy_path,
    write_captions,
)
from eah_interp.toy.model import build_model
from eah_interp.toy.recipe import Recipe

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


def test_balanced_questions_of_the_test_split_are_answered(model, processor):
    scenes = draw_scenes(range(200))
    asked = [(s, q) for s in scenes for q in questions_for(s)]
    margins = score_answers(
        model,
        processor,
        scenes=[scene for scene, _ in asked],
        questions=[question for _, question in asked],
    )
    truth = torch.tensor([question.answer for _, question in asked])
    assert truth.float().mean() == 0.5
    assert ((margins > 0) == truth).float().mean() > 0.8


def test_without_the_picture_the_answers_are_lost(model, processor):
    scenes = draw_scenes(range(100))
    asked = [(s, q) for s in scenes for q in questions_for(s)]
    margins = score_answers(
        model,
        processor,
        scenes=[scenes[(s.seed + 50) % 100] for s, _ in asked],
        questions=[question for _, question in asked],
    )
    truth = torch.tensor([question.answer for _, question in asked])
    assert 0.35 < ((margins > 0) == truth).float().mean() < 0.65


def test_captions_name_objects_in_the_picture(model, processor):
    scenes = draw_scenes(range(32))
    captions = write_captions(model, processor, scenes=scenes)
    assert all(any(name in text for name in OBJECTS) for text in captions)
    assert all(text.strip().endswith(".") for text in captions)


def test_an_evaluation_has_every_number(model, processor):
    measured = evaluate(model, processor, n_scenes=24)
    assert set(measured.false_positives) == set(SAMPLINGS)
    assert measured.n_questions == 48
    assert 0 < measured.recall <= 100
    assert measured.chair_i <= measured.chair_s


def test_the_log_belongs_to_the_weights(model):
    log = json.loads((toy_path() / "training_log.json").read_text())
    assert log["parameters"] == sum(p.numel() for p in model.parameters())
    assert log["command"] in (toy_path() / "README.md").read_text()
    assert log["evaluation"]["test"]["accuracy_by_sampling"]["random"] > 80


def test_no_file_of_the_room_imports_transformers_at_its_head():
    files = list(toy_path().parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.parse(file.read_text()).body:
            assert "transformers" not in (getattr(node, "module", None) or ""), file
