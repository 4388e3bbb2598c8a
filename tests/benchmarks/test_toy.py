"""Claims about the toy benchmark: true to the scenes, and to plain transformers."""

import dataclasses
import time

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import eah_interp as eah
from eah_interp.benchmarks import run_toy_benchmark
from eah_interp.benchmarks.toy import ask_about_scenes, describe_scenes
from eah_interp.errors import InputError
from eah_interp.toy import draw_scenes, prompt_for, questions_for, toy_path
from eah_interp.toy.language import CAPTION_PROMPTS, SAMPLINGS, mentions_in

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model():
    return eah.load()


@pytest.fixture(scope="module")
def plain():
    return LlavaForConditionalGeneration.from_pretrained(toy_path()).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(toy_path())


@torch.no_grad()
def test_answers_are_those_of_plain_transformers_one_by_one(model, plain, processor):
    scenes = draw_scenes(range(4))
    table = ask_about_scenes(model, scenes, batch_size=5, **QUIET)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    expected = []
    for kind in SAMPLINGS:
        for scene in scenes:
            for question in questions_for(scene, sampling=kind):
                inputs = processor(
                    images=scene.pil(),
                    text=prompt_for(question.text),
                    return_tensors="pt",
                )
                logits = plain(**inputs).logits[0, -1]
                margin = float(logits[yes] - logits[no])
                expected.append((scene.seed, kind, question.object, margin))
    found = zip(table.scene, table.kind, table.object, table.margin, strict=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3] == pytest.approx(theirs[3], abs=1e-3)
    assert (table.says_yes == (table.margin > 0)).all()
    by_seed = {scene.seed: scene.objects for scene in scenes}
    truth = [o in by_seed[s] for s, o in zip(table.scene, table.object, strict=True)]
    assert table.present.tolist() == truth


def test_captions_are_those_of_plain_transformers_one_by_one(model, plain, processor):
    scenes = draw_scenes(range(4))
    table = describe_scenes(model, scenes, batch_size=3, **QUIET)
    for scene, row in zip(scenes, table.itertuples(), strict=True):
        text = prompt_for(CAPTION_PROMPTS[0])
        inputs = processor(images=scene.pil(), text=text, return_tensors="pt")
        ids = plain.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        said = processor.decode(new, skip_special_tokens=True).strip()
        assert row.caption == said
        assert row.mentions == list(mentions_in(said))
        assert row.truth == list(scene.objects)


def test_a_patch_changes_answers_and_captions(model):
    scenes = draw_scenes(range(8))
    settings = eah.EAH(layers=tuple(range(model.n_layers)), donor="uniform")
    before = run_toy_benchmark(model, scenes, **QUIET)
    after = run_toy_benchmark(model, scenes, eah=settings, **QUIET)
    assert (before.questions.margin - after.questions.margin).abs().min() > 0
    assert before.captions.caption.tolist() != after.captions.caption.tolist()


def test_a_random_donor_is_drawn_for_each_scene_whatever_its_batch(model):
    scenes = draw_scenes(range(6))
    settings = eah.EAH(layers=(2,), donor="random")
    together = ask_about_scenes(model, scenes, eah=settings, batch_size=32, **QUIET)
    alone = ask_about_scenes(model, scenes, eah=settings, batch_size=1, **QUIET)
    assert together.margin.tolist() == pytest.approx(alone.margin.tolist(), abs=1e-3)
    other = dataclasses.replace(settings, seed=1)
    again = ask_about_scenes(model, scenes, eah=other, **QUIET)
    assert (together.margin - again.margin).abs().max() > 1e-2


def test_every_number_is_listed(model):
    result = run_toy_benchmark(model, draw_scenes(range(8)), pairs=2, **QUIET)
    table = result.frame().set_index(["kind", "metric"]).value
    assert table["all", "n"] == len(result.questions) == result.pope().n
    for kind in SAMPLINGS:
        assert table[kind, "accuracy"] == result.pope(kind).accuracy
    assert table["captions", "recall"] == result.chair().recall
    assert result.questions.present.mean() == 0.5


def test_without_scenes_there_is_nothing_to_ask(model):
    with pytest.raises(InputError, match="at least one scene, got none"):
        run_toy_benchmark(model, [], **QUIET)


@pytest.mark.slow
def test_a_thousand_scenes_take_less_than_five_minutes(model):
    start = time.process_time()  # one thread's, whatever else runs beside it
    result = run_toy_benchmark(model, **QUIET)
    assert len(result.captions) == 1000
    assert time.process_time() - start < 300
