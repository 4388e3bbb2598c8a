"""Patches that cannot be are refused before any forward pass."""

import pytest

import eah_interp as eah
from eah_interp.attribution import (
    Case,
    ablate_heads,
    approximate_heads,
    attribute_recipients,
    patch_heads,
    trace_mediators,
)
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from tests.attribution.test_patching import pose_answer
from tests.tiny_families import share_model


@pytest.fixture
def still(monkeypatch, as_users_run_it):
    """Return a loaded model that cannot run."""
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": []}, "the set of heads is empty"),
        ({"heads": [(9, 0)]}, "layer 9 does not exist"),
        ({"heads": [(1, 8)]}, "L1H8 does not exist: the model has heads 0 to 7"),
        ({"heads": ["L1.attn"]}, "'L1.attn' is no node.*L0.mlp"),
        ({"heads": [(1, 2), "L1H2"]}, "L1H2 is named twice"),
        ({"heads": ["L1.mlp"], "what": "pattern"}, "L1.mlp has no pattern"),
        ({"what": "keys"}, "what must be one of output, pattern, values"),
        ({"source": "patched"}, 'source must be "plain" or an intervention'),
        ({"target": "patched"}, 'target must be "plain" or an intervention'),
        ({"target": eah.EAH(layers=(9,))}, "layer 9 does not exist"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"objects": ["日本"]}, "cannot spell"),
    ],
)
def test_what_does_not_exist_is_refused(still, options, message):
    options = {"source": eah.EAH(), "objects": ["fish"], **options}
    with pytest.raises(SettingsError, match=message):
        patch_heads(still, random_image(), **options)


def test_heads_of_layers_without_attention_are_refused(as_users_run_it):
    model = share_model("qwen3_5")
    layer = min(model.anatomy.unfit)
    with pytest.raises(ModelError, match=f"layer {layer} cannot be patched"):
        patch_heads(model, pose_answer("qwen3_5"), source=eah.EAH(), heads=[(layer, 0)])


def test_positions_that_do_not_correspond_are_refused(still):
    image = random_image()
    options = {"source": "plain", "objects": ["fish"]}
    with pytest.raises(InputError, match=r"the source has \d+ tokens, the target \d+"):
        patch_heads(still, image, "What?", source_prompts="What is there?", **options)
    with pytest.raises(InputError, match="the source has 2 items, the target 1"):
        patch_heads(
            still,
            image,
            "What?",
            source_images=[image, image],
            source_prompts=["What?"] * 2,
            **options,
        )


def test_pictures_that_stand_elsewhere_are_refused(as_users_run_it):
    case = pose_answer("llava")
    moved = Encoding(case.encoding)
    moved["input_ids"] = moved["input_ids"].roll(1, 1)
    other = Case(moved, None, case.readout)
    with pytest.raises(InputError, match="image tokens at different places, first at"):
        patch_heads(share_model("llava"), case, source="plain", source_images=other)
    padded = Encoding(case.encoding)
    padded["attention_mask"] = padded["attention_mask"].clone()
    padded["attention_mask"][:, 0] = 0
    other = Case(padded, None, case.readout)
    with pytest.raises(InputError, match="padding at different places, first at pos"):
        patch_heads(share_model("llava"), case, source="plain", source_images=other)


def test_a_case_wants_a_case_as_its_source(as_users_run_it):
    with pytest.raises(SettingsError, match="the source is a case too"):
        patch_heads(
            share_model("llava"),
            pose_answer("llava"),
            source="plain",
            source_images=random_image(),
        )


def test_seeds_that_do_not_fit_the_items_are_refused(still):
    source = eah.EAH(donor="random", seed=(1, 2, 3))
    with pytest.raises(InputError, match="expected a seed for each of 1 items, got 3"):
        patch_heads(still, random_image(), source=source, objects=["fish"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "noise"}, "how must be one of zero, mean"),
        ({"heads": []}, "the set of heads is empty"),
        ({"target": "patched"}, 'target must be "plain" or an intervention'),
    ],
)
def test_ablations_that_do_not_exist_are_refused(still, options, message):
    with pytest.raises(SettingsError, match=message):
        ablate_heads(still, random_image(), objects=["fish"], **options)


@pytest.fixture
def crowded():
    """Return a model whose rows crowd each other out: two get half of what one gets."""
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    mlp = model._module.model.language_model.layers[1].mlp
    mlp.register_forward_hook(lambda *seen: seen[-1] / len(seen[-1]))
    return model


@pytest.mark.parametrize(
    "attribute",
    [
        lambda *asked: patch_heads(*asked, source=eah.EAH()),
        lambda *asked: ablate_heads(*asked),
        lambda *asked: attribute_recipients(*asked),
        lambda *asked: trace_mediators(*asked, eah=eah.EAH()),
        lambda *asked: approximate_heads(
            *asked, source=eah.EAH(), method="integrated_gradients", check=0
        ),
    ],
    ids=["patching", "ablation", "recipients", "mediators", "integrated gradients"],
)
def test_a_model_whose_rows_are_not_independent_is_refused(crowded, attribute):
    case = pose_answer("llava")
    message = "two copies .* expected at most .*; rows of a batch are not independent"
    with pytest.raises(UnsupportedError, match=message):
        attribute(crowded, case)


def test_a_component_that_returns_no_row_for_each_copy_is_refused():
    """Such as one that computes equal rows once: they would all be set, not some."""
    model = eah.wrap(tiny_lvlm("llava", n_kv_heads=2), tiny_processor("llava"))
    mlp = model._module.model.language_model.layers[2].mlp
    mlp.register_forward_hook(lambda *seen: seen[-1][:1])
    message = r"layers.2.mlp returned \(1, .* for 3 rows: expected 3 times \(1, .* out"
    nodes = ["L2.mlp", "L2H0"]
    with pytest.raises(ModelError, match=message):
        patch_heads(model, pose_answer("llava"), source=eah.EAH(), heads=nodes)
