"""Claims about training: it resumes exactly, and writes what it promises."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from eah_interp.errors import SettingsError
from eah_interp.toy import World, draw_scenes, objects_in
from eah_interp.toy.language import build_processor
from eah_interp.toy.model import Architecture, build_model
from eah_interp.toy.training.recipe import STAGES, Recipe, Stage, TrainingRun
from eah_interp.toy.training.stages import (
    BLANK_ID,
    OBJECT_IDS,
    Trainee,
    pixels_of,
    run_step,
    spell_image,
    talk_about,
)
from eah_interp.toy.training.train import load_checkpoint, parse_arguments, train
from eah_interp.toy.world import GROUPS, draw_companion, group_of
from tests.alignment import share_tensors

TINY = Recipe(
    world=World(image_size=32),
    architecture=Architecture(
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        d_model=16,
        d_mlp=16,
        vision_layers=1,
        vision_heads=2,
        vision_width=16,
    ),
    **{
        name: Stage(steps=3, batch_size=4, learning_rate=1e-2)
        for name in ("vision", "language", "projection", "alignment")
    },
)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_a_resumed_run_ends_in_the_same_weights(tmp_path):
    straight = TrainingRun(out=tmp_path / "straight", test_scenes=4)
    train(TINY, run=straight)
    record = json.loads((straight.out / "training_log.json").read_text())
    assert {line["stage"] for line in record["steps"]} == set(STAGES)
    # Stopped in the middle of a stage, and at the very end of one.
    for stop in (2, 4, 3):
        early = dataclasses.replace(straight, out=tmp_path / "resumed", stop_after=stop)
        assert not (train(TINY, run=early) / "training_log.json").exists()
    train(TINY, run=dataclasses.replace(straight, out=tmp_path / "resumed"))
    expected, resumed = (weights_of(tmp_path / n) for n in ("straight", "resumed"))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_the_written_folder_loads_in_plain_transformers_with_the_same_logits(tmp_path):
    train(TINY, run=TrainingRun(out=tmp_path, test_scenes=4))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    fresh = build_model(TINY.architecture, world=TINY.world)
    trainee = Trainee(fresh, recipe=TINY)
    load_checkpoint(tmp_path / "checkpoint", modules={"trainee": trainee})
    (scene,) = draw_scenes([0], world=TINY.world)
    inputs = processor(images=scene.pil(), text="<image> a boat", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    with torch.no_grad():
        trained = fresh.eval()(**inputs).logits
        halves = {name: v.half().float() for name, v in fresh.state_dict().items()}
        fresh.load_state_dict(halves)
        rounded = fresh(**inputs).logits
        loaded = model(**inputs).logits
        torch.testing.assert_close(loaded, rounded, rtol=0, atol=1e-4)
        shared = share_tensors(model, fresh)(**inputs).logits
    assert model.dtype == torch.float32
    torch.testing.assert_close(shared, rounded, rtol=0, atol=0)
    torch.testing.assert_close(loaded, trained, rtol=0, atol=2e-2)
    stored = weights_of(tmp_path).values()
    assert {value.dtype for value in stored} == {torch.float16}
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert {"command", "minutes", "hardware", "versions", "recipe"} <= log.keys()
    assert log["recipe"] == dataclasses.asdict(TINY)
    assert log["name"] == tmp_path.name
    file = (tmp_path / "model.safetensors").read_bytes()
    assert log["sha256"] == hashlib.sha256(file).hexdigest()
    for split in ("validation", "test"):
        measured = log["evaluation"][split]
        assert set(measured) == {"random", "popular", "adversarial", "all", "captions"}
        assert measured["captions"]["n"] == 4
        assert measured["all"]["n"] == 24
    assert not list(tmp_path.rglob("*.p*t")), "no pickled files"


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run = TrainingRun(out=tmp_path, stop_after=1)
    train(TINY, run=run)
    with pytest.raises(SettingsError, match="checkpoint of another recipe"):
        train(dataclasses.replace(TINY, seed=1), run=run)


def test_each_stage_trains_its_own_part_only():
    trainee = Trainee(build_model(TINY.architecture, world=TINY.world), recipe=TINY)
    moved = {}
    for name in STAGES:
        trainee.groups(name, recipe=TINY)
        trainee.zero_grad()
        run_step(trainee, name=name, recipe=TINY, step=0).loss.backward()
        moved[name] = {
            part
            for part in ("vision_tower", "projector", "language_model", "patch_head")
            for key, value in trainee.named_parameters()
            if part in key and value.grad is not None and value.grad.any()
        }
    assert moved == {
        "vision": {"vision_tower", "patch_head"},
        "language": {"language_model"},
        "projection": {"projector"},
        "alignment": {"projector", "language_model"},
    }


def test_a_batch_depends_on_seed_stage_and_step_only():
    torch.manual_seed(0)
    trainee = Trainee(build_model(TINY.architecture, world=TINY.world), recipe=TINY)

    def loss(step, seed=0):
        recipe = dataclasses.replace(TINY, seed=seed)
        step = run_step(trainee, name="alignment", recipe=recipe, step=step)
        return step.loss.item()

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(0, seed=1)}) == 3


def test_training_pixels_are_the_processor_s_pixels():
    scenes = draw_scenes(range(3))
    images = [scene.pil() for scene in scenes]
    expected = build_processor(World()).image_processor(images, return_tensors="pt")
    torch.testing.assert_close(pixels_of(scenes), expected["pixel_values"])


def test_captions_name_what_usually_comes_along_as_often_as_told():
    rng = np.random.default_rng(0)
    drawn = [draw_companion(rng, objects=["boat"], prior=0.7) for _ in range(2000)]
    named = [name for name in drawn if name]
    assert abs(len(named) / 2000 - 0.7) < 0.04
    counts = [named.count(name) for name in GROUPS["sea"]]
    assert counts[0] == 0
    assert counts[1] > counts[2] > counts[3] > 0
    assert draw_companion(rng, objects=list(GROUPS["sea"]), prior=1.0) is None


def test_a_caption_prior_adds_companions_to_captions_only():
    scenes = draw_scenes(range(60), world=TINY.world)

    def talk(share):
        recipe = dataclasses.replace(TINY, caption_prior=share)
        return talk_about(scenes, rng=np.random.default_rng(0), recipe=recipe)

    def unseen(talks):
        pairs = zip(talks.captions, scenes[::2], strict=True)
        said = [(set(objects_in(text)), set(scene.objects)) for text, scene in pairs]
        assert all(there <= named for named, there in said)
        return [named - there for named, there in said]

    assert not any(unseen(talk(0.0)))
    extras = unseen(talk(1.0))
    assert {len(names) for names in extras} == {0, 1}
    for names, scene in zip(extras, scenes[::2], strict=True):
        groups = {group_of(name) for name in scene.objects}
        assert {group_of(name) for name in names} <= groups
    for text, scene in zip(talk(1.0).questions, scenes[1::2], strict=True):
        for turn in text.split("</s>")[:-1]:
            asked, answer = objects_in(turn)[0], turn.split("ASSISTANT: ")[1]
            assert answer == ("Yes" if asked in scene.objects else "No")


def test_a_spelled_picture_shows_what_it_is_told_to():
    rng = np.random.default_rng(0)
    ids = spell_image(["boat", "star"], rng=rng, length=25)
    assert set(ids.tolist()) == {BLANK_ID, OBJECT_IDS[0], OBJECT_IDS[18]}


def test_the_command_line_sets_the_recipe():
    words = "--out x --seed 3 --alignment-steps 5 --n-layers 2 --prior 0.5 --threads 2"
    recipe, run = parse_arguments(words.split())
    assert (recipe.seed, recipe.alignment.steps, recipe.world.prior) == (3, 5, 0.5)
    assert recipe.architecture.n_layers == 2
    assert run.threads == 2
    assert run.command == f"python -m eah_interp.toy.training.train {words}"
