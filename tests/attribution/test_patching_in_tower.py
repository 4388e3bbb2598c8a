"""Heads of the vision tower, patched: one head, one forward of plain transformers."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import HeadPatching, ablate_heads, patch_heads
from eah_interp.attribution import tower_variants as variants
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.testing import random_image
from tests.attribution.test_patching import assert_same, pose_answer
from tests.hooked import NO_TOWER
from tests.lvlm.test_hook_points import PACKED
from tests.lvlm.test_tower_attention import ATTENDS, OWN_CODE
from tests.tiny_families import (
    ignore_renamed,
    share_model,
    share_plain,
)
from tests.tower_oracle import TowerOracle, add

pytestmark = ignore_renamed

SOME = ("llava", "llava_next", "idefics3", "qwen2_5_vl", "mistral3")
"""One image, tiles, tiles and padding, windows, a mask of all images."""

FEW = ("llava", "qwen2_5_vl", "idefics3")

EVERY = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in ATTENDS
]


def look(family, case):
    """Run an item in plain transformers, and keep what its tower's heads do."""
    oracle = TowerOracle(family, share_plain(family))
    value = case.readout.values(oracle.run(case.encoding))
    return oracle, value


def effects_by_hand(family, case, new):
    """Run the whole model once for every head, `new(layer)` being what heads become."""
    oracle, value = look(family, case)
    changes = []
    for layer in (0, 1):
        own = oracle.whole("heads_output", layer)
        becomes = new(oracle, layer)
        for head in range(own.shape[1]):
            delta = torch.zeros_like(own)
            delta[:, head] = (becomes - own)[:, head]
            edits = {("heads_output", layer): add("heads_output", delta)}
            run = TowerOracle(family, share_plain(family), edits).run(case.encoding)
            changes.append(case.readout.values(run) - value)
    return torch.stack(changes, 1)


def average(family):
    """Average what heads return over the tokens of an image: of one, if packed."""

    def new(oracle, layer):
        own = oracle.whole("heads_output", layer)
        pattern = oracle.whole("attention_probabilities", layer)
        seen = torch.ones(own.shape[0], own.shape[2], dtype=torch.bool)
        if family not in PACKED:
            seen = pattern.amax((1, 2)) > 0
        means = [own[i][:, there].mean(1, keepdim=True) for i, there in enumerate(seen)]
        return torch.stack(means).expand_as(own)

    return new


@pytest.mark.parametrize("family", EVERY)
def test_ablating_a_head_has_the_effect_of_a_forward_of_its_own(family):
    model, case = share_model(family), pose_answer(family)
    zero = ablate_heads(model, case, tower="vision")
    nothing = effects_by_hand(family, case, lambda *_: torch.zeros(()))
    assert_same(zero.effects, nothing)
    assert (zero.tower, zero.patches[:2]) == ("vision", ("L0H0", "L0H1"))
    mean = ablate_heads(model, case, how="mean", heads=["L1H2"], tower="vision")
    expected = effects_by_hand(family, case, average(family))
    torch.testing.assert_close(mean.effects, expected[:, 6:7], atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("family", EVERY)
def test_another_images_head_has_the_effect_of_a_forward_of_its_own(family):
    model, case = share_model(family), pose_answer(family)
    other = pose_answer(family, seed=5)
    theirs, _ = look(family, other)
    found = patch_heads(
        model, case, source="plain", source_images=other, tower="vision"
    )
    expected = effects_by_hand(
        family, case, lambda _, layer: theirs.whole("heads_output", layer)
    )
    assert_same(found.effects, expected)
    assert found.source == "plain, another image"


@pytest.mark.parametrize("family", FEW[1:])
def test_patterns_and_values_of_another_image_are_mixed_as_by_hand(family):
    model, case = share_model(family), pose_answer(family)
    other = pose_answer(family, seed=5)
    theirs, _ = look(family, other)

    def mix(pattern, values):
        groups = pattern.shape[1] // values.shape[1]
        return pattern @ values.repeat_interleave(groups, 1)

    def of(oracle, layer):
        names = ("attention_probabilities", "values")
        return [oracle.whole(name, layer) for name in names]

    hands = {
        "pattern": lambda own, n: mix(of(theirs, n)[0], of(own, n)[1]),
        "values": lambda own, n: mix(of(own, n)[0], of(theirs, n)[1]),
    }
    for what, new in hands.items():
        found = patch_heads(
            model, case, source="plain", source_images=other, what=what, tower="vision"
        )
        assert_same(found.effects, effects_by_hand(family, case, new))


@pytest.mark.parametrize("family", FEW[1:])
def test_what_the_broadcast_makes_of_heads_is_put_into_the_plain_tower(family):
    model, case = share_model(family), pose_answer(family)
    found = patch_heads(
        model, case, source=eah.EAH(layers=(0,), donor=1), tower="vision"
    )

    def broadcast(oracle, layer):
        own = oracle.whole("heads_output", layer)
        pattern = oracle.whole("attention_probabilities", layer)[:, 1:2]
        values = oracle.whole("values", layer)
        return own if layer else pattern @ values

    expected = effects_by_hand(family, case, broadcast)
    assert_same(found.effects[:, :4], expected[:, :4])
    assert found.effects[:, 1].abs().max() == 0  # the donor's own


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_heads_together_and_batches_of_any_size(family):
    model, case = share_model(family), pose_answer(family)
    whole = ablate_heads(model, case, tower="vision")
    for batch_size in (1, 3):
        part = ablate_heads(model, case, batch_size=batch_size, tower="vision")
        assert_same(part.effects, whole.effects)
    heads = ["L0H1", "L1H0"]
    found = ablate_heads(model, case, heads=heads, together=True, tower="vision")
    oracle, value = look(family, case)
    edits = {}
    for layer, head in ((0, 1), (1, 0)):
        mask = torch.ones_like(oracle.whole("heads_output", layer))
        mask[:, head] = 0
        edits["heads_output", layer] = lambda now, start, mask=mask: (
            now * mask[:, :, start : start + now.shape[2]]
        )
    run = TowerOracle(family, share_plain(family), edits).run(case.encoding)
    assert_same(found.effects[:, 0], case.readout.values(run) - value)
    assert found.patches == ("L0H1+L1H0",)


def test_an_item_of_a_batch_has_the_effects_that_it_has_alone():
    model = eah.load()
    images = [
        random_image(0, width=80, height=80),
        random_image(1, width=80, height=80),
    ]
    asked = {"objects": ["boat"], "heads": ["L0H1", "L1H3"], "tower": "vision"}
    both = ablate_heads(model, images, ["Is there a boat?"] * 2, **asked)
    for item, image in enumerate(images):
        alone = ablate_heads(model, image, "Is there a boat?", **asked)
        torch.testing.assert_close(
            both.effects[item : item + 1], alone.effects, atol=3e-5, rtol=1e-3
        )


def test_copies_share_batches_where_they_may(monkeypatch):
    sizes = {}
    run_set = variants._run_set

    def count(model, run, batch, new, **look):
        sizes.setdefault(type(model._module).__name__, []).append(len(batch))
        return run_set(model, run, batch, new, **look)

    monkeypatch.setattr(variants, "_run_set", count)
    for family in ("llava", "llava_next", "qwen2_5_vl", "mistral3", "molmo2"):
        ablate_heads(
            share_model(family), pose_answer(family), batch_size=8, tower="vision"
        )
    tried = [1, 2]
    assert sizes["LlavaForConditionalGeneration"] == [*tried, 8, 1]
    assert sizes["LlavaNextForConditionalGeneration"] == [*tried, 8, 1]
    tiles = variants.record_tower(share_model("llava_next"), pose_answer("llava_next"))
    assert len(tiles.heads[0]) > 1
    assert sizes["Qwen2_5_VLForConditionalGeneration"] == [*tried, 8, 1]
    # One mask of all images; and tokens that are found by numbers of the whole batch.
    assert sizes["Mistral3ForConditionalGeneration"] == [*tried, *[1] * 9]
    assert sizes["Molmo2ForConditionalGeneration"] == [*tried, *[1] * 9]


def test_copies_that_are_not_what_was_recorded_are_run_one_by_one(monkeypatch):
    model, case = share_model("llava"), pose_answer("llava")
    whole = ablate_heads(model, case, tower="vision")
    monkeypatch.setattr(variants, "check_copy", _fail)
    alone = ablate_heads(model, case, batch_size=8, tower="vision")
    assert_same(alone.effects, whole.effects)


def _fail(*_):
    raise RuntimeError


def test_a_result_says_whose_heads_it_is_about(tmp_path):
    found = ablate_heads(share_model("llava"), pose_answer("llava"), tower="vision")
    assert "8 patched of the vision tower" in " ".join(repr(found).split())
    assert HeadPatching.load(found.save(tmp_path)) == found
    assert found.grid().shape == (2, 4)
    title = found.plot().axes[0].get_title()
    assert "vision tower" in title


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"positions": "last"}, "positions= is about the language model's run"),
        ({"target": eah.EAH(layers=(0,))}, "target= is about the language model's"),
    ],
)
def test_what_only_the_language_model_has_is_refused(asked, match):
    model, case = share_model("llava"), pose_answer("llava")
    with pytest.raises(UnsupportedError, match=match):
        ablate_heads(model, case, tower="vision", **asked)
    with pytest.raises(UnsupportedError, match=match):
        patch_heads(model, case, source="plain", tower="vision", **asked)


@pytest.mark.usefixtures("as_users_run_it")
def test_heads_and_settings_are_the_towers():
    model, case = share_model("llava"), pose_answer("llava")
    for name, match in (("L2H0", "layer 2 does not"), ("L0H4", "L0H4 does not")):
        with pytest.raises(SettingsError, match=match):
            ablate_heads(model, case, heads=[name], tower="vision")
    with pytest.raises(SettingsError, match="no node of this model"):
        ablate_heads(model, case, heads=["L0.mlp"], tower="vision")
    with pytest.raises(SettingsError, match="tower"):
        ablate_heads(model, case, tower="visual")
    with pytest.raises(UnsupportedError, match="PAI cannot act in the vision tower"):
        patch_heads(model, case, source=eah.PAI(), tower="vision")
    refused = pytest.raises(UnsupportedError, match="cannot have their values patched")
    with refused:
        patch_heads(
            model,
            case,
            source="plain",
            what="values",
            together=True,
            source_images=pose_answer("llava", seed=5),
            tower="vision",
        )
    twin = eah.edit(model, eah.EAH(layers=(0,)), tower="vision")
    with pytest.raises(UnsupportedError, match="the model is a patched twin"):
        ablate_heads(twin, case, tower="vision")


@pytest.mark.parametrize("family", [*NO_TOWER, *OWN_CODE])
def test_a_model_whose_tower_does_not_attend_is_refused(family):
    model, case = share_model(family), pose_answer(family)
    match = r"no vision tower of layers|code of its own"
    with pytest.raises(ModelError, match=match):
        ablate_heads(model, case, heads=["L0H0"], tower="vision")


def test_images_of_another_shape_are_no_source():
    own = variants.record_tower(share_model("llava"), pose_answer("llava"))
    other = variants.record_tower(share_model("llava"), pose_answer("llava"))
    other.heads = {layer: heads[:, :8] for layer, heads in other.heads.items()}
    with pytest.raises(InputError, match="expected 17 tokens, got"):
        variants.check_same_images(own, other)
