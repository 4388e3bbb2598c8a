"""Minimal pairs stand place for place, or say which does not."""

import pytest

import eah_interp as eah
from eah_interp.attribution import patch_paths, pose_pairs
from eah_interp.errors import InputError
from eah_interp.toy import draw_scene, without_object
from tests.tiny_families import share_model


def make_images():
    scenes = [draw_scene(seed, objects=["boat", "fish"]) for seed in range(2)]
    return [s.pil() for s in scenes], [without_object(s, "boat").pil() for s in scenes]


def test_pairs_are_what_functions_take():
    model, (images, others) = eah.load(), make_images()
    prompts = ["Is there a boat in the image?"] * 2
    asked = {"metric": "yes_no", "senders": ["image"], "receivers": ["logit", "L1H0.q"]}
    metric = {"metric": asked.pop("metric")}
    pairs = pose_pairs(model, images, prompts, source_images=others, **metric)
    assert len(pairs) == 2
    found = patch_paths(model, pairs.case, source_images=pairs.other, **asked)
    same = patch_paths(model, images, prompts, source_images=others, **metric, **asked)
    assert found.effects.tolist() == same.effects.tolist()
    back = pairs.turned()
    turned = patch_paths(model, back.case, source_images=back.other, **asked)
    assert turned.values.tolist() == pytest.approx(
        found.source_values.tolist(), abs=1e-5
    )


def test_pairs_of_other_lengths_are_named():
    model, (images, _) = eah.load(), make_images()
    with pytest.raises(InputError, match=r"pair 1 has .* and .* tokens"):
        pose_pairs(
            model,
            images,
            ["Is there a boat in the image?"] * 2,
            source_prompts=[
                "Is there a fish in the image?",
                "Is there a bicycle in the image?",
            ],
            metric="yes_no",
        )


def test_images_of_other_sizes_make_no_pair():
    model = share_model("qwen2_5_vl")
    image = draw_scene(0).pil()
    with pytest.raises(InputError, match=r"pair 0 has .* and .* tokens"):
        pose_pairs(
            model,
            image,
            " what ?",
            source_images=image.resize((160, 80)),
            objects=["cat"],
        )


def test_a_pair_differs_in_something():
    with pytest.raises(InputError, match="a pair differs in something"):
        pose_pairs(eah.load(), draw_scene(0).pil(), "what?", metric="yes_no")
