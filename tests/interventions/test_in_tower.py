"""Interventions in the vision tower, against patterns replaced in transformers."""

import pytest
import torch
from nnsight.intervention.iterator import Iterations

import eah_interp as eah
from eah_interp.errors import (
    InputError,
    ModelError,
    SettingsError,
    UnsupportedError,
)
from eah_interp.finders import find_image_heads
from eah_interp.interventions import donors_of_run
from eah_interp.testing import random_image
from tests.hooked import NO_TOWER
from tests.interventions.test_videos import video_inputs
from tests.lvlm.test_hook_points import PACKED, TOLERANCE
from tests.lvlm.test_tower_attention import ATTENDS, OWN_CODE
from tests.tiny_families import (
    encode,
    ignore_renamed,
    measure_gap,
    share_model,
    share_plain,
    sweep,
)
from tests.tower_oracle import TowerOracle, add

pytestmark = ignore_renamed

CLASS_FIRST = (
    *("llava", "llava_next", "vipllava", "llava_mistral", "llava_next_video"),
    *("internvl", "internvl_gpt_oss", "blip_2", "instructblip", "kosmos2", "inkling2"),
)
CLASS_LAST = ("llama4",)
"""Families whose tower has a token of its own before or after an image's patches."""

SOME = ("llava", "llama4", "idefics2", "qwen2_vl", "qwen2_5_vl", "mistral3", "inkling2")
"""A class token first and last, padding, images, windows, a mask in blocks."""

NEW = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}


def images_of(family, pattern):
    """List the images: the batch row of each, and its tokens in that row."""
    if family not in PACKED:
        seen = pattern.amax((1, 2)) > 0
        return [(row, own.nonzero().flatten()) for row, own in enumerate(seen)]
    extra = int(family in CLASS_FIRST)
    first = 16 + extra  # 32 x 32 pixels, and 48 x 32, in patches of 8 x 8
    return [(0, torch.arange(first)), (0, torch.arange(first, first + 24 + extra))]


def patches_of(family, tokens):
    """Leave out class tokens."""
    start = int(family in CLASS_FIRST)
    return tokens[start : len(tokens) - int(family in CLASS_LAST)]


def density_of(pattern, tokens, patches):
    """Measure each head's sink density in one image, as docs/method.md defines it."""
    densities = []
    for head in pattern:
        sees = (head[tokens] > 0).double()
        keys = sees.sum(-1, keepdim=True)
        sinks = 0
        for column in patches.tolist():
            rows = (tokens != column) & (head[tokens, column] > 0)
            given = head[tokens, column][rows].double().mean()
            sinks += bool(given > (1 / keys[rows]).mean())
        densities.append(sinks / len(patches))
    return torch.tensor(densities, dtype=torch.float32)


def look_at(family):
    """Run plain transformers, and list what its tower's first layer did by image."""
    oracle = TowerOracle(family, share_plain(family))
    logits = oracle.run(encode(family))
    return oracle, logits, images_of(family, oracle.whole(*PATTERNS))


PATTERNS = ("attention_probabilities", 0)

HEADS = ("heads_output", 0)


def expect(family, point, new):
    """Run plain transformers with what a point had replaced."""
    oracle, plain, _ = look_at(family)
    delta = new - oracle.whole(*point)
    edits = {point: add(point[0], delta)}
    return TowerOracle(family, share_plain(family), edits).run(encode(family)), plain


def run_patched(family, settings):
    model = share_model(family)
    with torch.no_grad(), model.trace(**encode(family), use_cache=False):
        patch = eah.intervene(model, settings, tower="vision")
        logits = model.logits.save()
    return patch, logits


def assert_same(family, found, expected, plain):
    tokens = encode(family)["attention_mask"].bool()
    assert measure_gap(found[tokens], expected[tokens]) <= TOLERANCE
    assert measure_gap(expected[tokens], plain[tokens]) > 20 * TOLERANCE


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_every_head_of_an_image_attends_like_its_densest(family):
    oracle, _, images = look_at(family)
    own = oracle.whole(*PATTERNS)
    new, donors = own.clone(), []
    for row, tokens in images:
        density = density_of(own[row], tokens, patches_of(family, tokens))
        donors.append(int(density.argmax()) if density.max() > 0 else -1)
        if donors[-1] >= 0:
            new[row][:, tokens] = own[row, donors[-1]][tokens]
    expected, plain = expect(family, PATTERNS, new)
    patch, logits = run_patched(family, eah.EAH(layers=(0,)))
    assert patch.tower == "vision"
    assert patch.donors.tolist() == donors
    assert_same(family, logits, expected, plain)


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_a_head_that_receives_its_own_pattern_changes_not_one_bit(family):
    model, encoding = share_model(family), encode(family)
    settings = eah.EAH(layers=(0, 1), donor=1, recipients=(1,))
    _, logits = run_patched(family, settings)
    with torch.no_grad():
        plain = model._module(**encoding, use_cache=False).logits
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_heads_are_ablated_image_by_image(family):
    oracle, _, images = look_at(family)
    heads, own = oracle.whole(*HEADS), oracle.whole(*PATTERNS)
    means, even = heads.clone(), own.clone()
    for row, tokens in images:
        means[row][1, tokens] = heads[row][1, tokens].mean(0)
        patches = patches_of(family, tokens)
        seen = torch.zeros_like(own[row, 1])
        seen[:, patches] = (own[row, 1][:, patches] > 0).float()
        even[row, 1, tokens] = (seen / seen.sum(-1, keepdim=True))[tokens]
    nothing = heads.clone()
    nothing[:, 1] = 0
    for how, point, new in (
        ("zero", HEADS, nothing),
        ("mean", HEADS, means),
        ("uniform", PATTERNS, even),
    ):
        expected, plain = expect(family, point, new)
        patch, logits = run_patched(family, eah.Ablation(heads=("L0H1",), how=how))
        assert_same(family, logits, expected, plain)
        assert patch.layers == (0,)


@pytest.mark.parametrize("family", SOME)
def test_some_heads_receive_and_some_are_scaled(family):
    oracle, _, _ = look_at(family)
    own, heads = oracle.whole(*PATTERNS), oracle.whole(*HEADS)
    new = own.clone()
    new[:, [0, 2]] = own[:, 3:]
    expected, plain = expect(family, PATTERNS, new)
    _, logits = run_patched(family, eah.EAH(layers=(0,), donor=3, recipients=(0, 2)))
    assert_same(family, logits, expected, plain)
    half = heads.clone()
    half[:, 2] *= 0.5
    expected, plain = expect(family, HEADS, half)
    scaled = eah.ScaleHeads(heads=("L0H2",), factor=0.5)
    assert_same(family, run_patched(family, scaled)[1], expected, plain)


@pytest.mark.parametrize("family", sweep(ATTENDS))
def test_densities_are_those_of_plain_patterns(family):
    oracle, _, images = look_at(family)
    own = oracle.whole(*PATTERNS)
    found = eah.score_sinks(
        share_model(family), encode(family), layers=[0], tower="vision"
    )
    assert found.tower == "vision"
    assert len(found.density) == len(images)
    for number, (row, tokens) in enumerate(images):
        patches = patches_of(family, tokens)
        assert found.columns[number].sum() == len(patches)
        density = density_of(own[row], tokens, patches)
        assert torch.allclose(found.density[number, 0], density, atol=1e-6)


@pytest.mark.parametrize("family", SOME)
def test_a_batch_is_scored_as_its_images_alone(family):
    model = share_model(family)
    pictures = [random_image(0), random_image(1, width=48)]
    both, *alone = (
        eah.score_sinks(
            model, encode(family, some, ["what ?"] * len(some)), tower="vision"
        )
        for some in (pictures, pictures[:1], pictures[1:])
    )
    single = torch.cat([one.density for one in alone])
    # One column on the threshold may fall to either side.
    assert (both.density - single).abs().max() <= 1 / 16 + 1e-6
    assert (both.density == single).float().mean() > 0.95
    assert (both.donors == torch.cat([one.donors for one in alone])).all()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_both_towers_are_patched_in_one_trace(family):
    model, encoding = share_model(family), encode(family)
    in_tower = eah.EAH(layers=(0,), donor=1)
    with torch.no_grad(), model.trace(**encoding):
        own = model.vision_attention_probabilities[0]
        model.vision_attention_probabilities[0] = own[:, 1:2].expand_as(own)
        eah.intervene(model, eah.EAH(layers=(1,)))
        expected = model.logits.save()
    with torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, in_tower, tower="vision")
        patch = eah.intervene(model, eah.EAH(layers=(1,)))
        logits = model.logits.save()
    tokens = encoding["attention_mask"].bool()
    assert measure_gap(logits[tokens], expected[tokens]) <= TOLERANCE
    assert (patch.tower, patch.layers[0].layer) == ("language", 1)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_generation_reads_what_the_patched_tower_saw(family):
    model, encoding = share_model(family), encode(family)
    settings = eah.Ablation(heads=("L0H1", "L0H2"))
    _, logits = run_patched(family, settings)
    with torch.no_grad(), model.generate(**encoding, **NEW) as tracer:
        eah.intervene(model, settings, tower="vision")
        ids = tracer.result.save()
    first = ids[:, encoding["input_ids"].shape[1]]
    assert torch.equal(first, logits[:, -1].argmax(-1))


# ---- A patch that stays.


def generate_by_hand(family, point, delta):
    """Generate in plain transformers, whose tower is edited; logits of each step."""
    oracle = TowerOracle(family, share_plain(family), {point: add(point[0], delta)})
    with torch.no_grad(), oracle.attending():
        found = oracle.plain.generate(**encode(family), **NEW, **LOGITS)
    return torch.stack(found.logits)


LOGITS = {"output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize(
    "family",
    [
        family
        if family in ("llava", "qwen2_5_vl", "inkling2")
        else pytest.param(family, marks=pytest.mark.slow)
        for family in ATTENDS
    ],
)
def test_a_twin_generates_as_transformers_do_whose_tower_is_edited(family):
    oracle, _, _ = look_at(family)
    delta = torch.zeros_like(oracle.whole(*HEADS))
    delta[:, 1] = -oracle.whole(*HEADS)[:, 1]
    expected = generate_by_hand(family, HEADS, delta)
    plain = generate_by_hand(family, HEADS, delta * 0)
    model, settings = share_model(family), eah.Ablation(heads=("L0H1",))
    twin = eah.edit(model, settings, tower="vision")
    with torch.no_grad():
        found = twin.generate(**encode(family), **NEW, **LOGITS)
        own = model.generate(**encode(family), **NEW, **LOGITS)
    assert measure_gap(torch.stack(found.logits), expected) <= TOLERANCE
    assert measure_gap(torch.stack(own.logits), plain) <= TOLERANCE
    assert measure_gap(expected, plain) > 20 * TOLERANCE
    _, logits = run_patched(family, settings)
    with torch.no_grad(), twin.trace(**encode(family), use_cache=False):
        again = twin.logits.save()
    assert torch.equal(again, logits)


@pytest.mark.parametrize("family", ["llava", "idefics2", "qwen2_5_vl"])
def test_a_twin_answers_a_batch_as_its_items_alone(family):
    model = share_model(family)
    twin = eah.edit(model, eah.EAH(layers=(0,)), tower="vision")
    pictures, prompts = [random_image(0), random_image(1, width=48)], [" what ?"] * 2
    gaps = []
    for one in (model, twin):
        both, *alone = (
            one.generate(**encode(family, some, prompts[: len(some)]), **NEW, **LOGITS)
            for some in (pictures, pictures[:1], pictures[1:])
        )
        singles = torch.cat([single.logits[0] for single in alone])
        gaps.append(float(measure_gap(both.logits[0], singles)))
    assert gaps[1] <= max(2 * gaps[0], TOLERANCE)


def test_a_twin_carries_patches_of_both_towers():
    model, encoding = share_model("llava"), encode("llava")
    in_tower, after = eah.EAH(layers=(0,), donor=1), eah.EAH(layers=(1,))
    twin = eah.edit(eah.edit(model, in_tower, tower="vision"), after)
    with torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, in_tower, tower="vision")
        patch = eah.intervene(model, after)
        expected = model.logits.save()
    with torch.no_grad(), twin.trace(**encoding):
        logits = twin.logits.save()
    assert torch.equal(logits, expected)
    donors = {tower: donors_of_run(twin, tower=tower) for tower in TOWERS}
    assert {tower: list(found) for tower, found in donors.items()} == {
        "vision": [0],
        "language": [1],
    }
    assert donors["vision"][0].tolist() == [1, 1]
    assert donors["language"][1].tolist() == patch.donors.tolist()
    first, second = str(twin).splitlines()[:2]
    assert first == f"patched by InTower(settings={in_tower})"
    assert second == f"patched by {after}"
    assert twin.patches[1] is after
    assert twin.patches[0].settings is in_tower
    twin.clear_edits()
    assert twin.patches == model.patches == ()


TOWERS = ("vision", "language")


def test_one_settings_in_both_towers_are_two_patches():
    model, encoding, settings = share_model("llava"), encode("llava"), eah.EAH()
    with torch.no_grad(), model.trace(**encoding):
        seen = eah.intervene(model, settings, tower="vision")
        read = eah.intervene(model, settings)
    donors = [donors_of_run(model, tower=tower)[1].tolist() for tower in TOWERS]
    assert donors == [seen.donors.tolist(), read.donors.tolist()]


def test_scores_of_a_twin_say_where_it_was_patched_and_are_saved(tmp_path):
    twin = eah.edit(share_model("llava"), eah.EAH(layers=(0,)), tower="vision")
    found = eah.score_sinks(twin, encode("llava"), tower="vision", layers=[1])
    plain = eah.score_sinks(
        share_model("llava"), encode("llava"), tower="vision", layers=[1]
    )
    assert not torch.equal(found.density, plain.density)
    assert "InTower(settings=EAH(" in repr(found)
    found.save(tmp_path)
    assert type(found).load(tmp_path) == found


def test_a_twin_in_the_tower_is_refused_as_a_patch_is():
    model = share_model("llava")
    with pytest.raises(UnsupportedError, match="PAI cannot act in the vision tower"):
        eah.edit(model, eah.PAI(), tower="vision")
    with pytest.raises(SettingsError, match="layer 2 does not exist: expected 0 to 1"):
        eah.edit(model, eah.EAH(layers=(2,)), tower="vision")
    for family in NO_TOWER:
        with pytest.raises(ModelError, match="no vision tower of layers"):
            eah.edit(share_model(family), eah.EAH(layers=(0,)), tower="vision")
    twin = eah.edit(model, eah.EAH(layers=(0,)), tower="vision")
    with pytest.raises(InputError, match="expected an image in the run, got none"):
        twin.generate("is there a cat ?", **NEW)


# ---- What was done says so.


def test_what_was_done_says_in_which_tower():
    patch, _ = run_patched("llava", eah.EAH(layers=(0,)))
    assert "layer 0 of the vision tower" in repr(patch)
    ablated, _ = run_patched("llava", eah.Ablation(heads=("L0H1",), how="mean"))
    assert "layers 0 of the vision tower" in repr(ablated)
    found = eah.score_sinks(share_model("llava"), encode("llava"), tower="vision")
    assert "of the vision tower" in " ".join(repr(found).split())
    assert len(found.frame()) == 2 * 2 * 4
    assert found.densest(2)


# ---- What has no meaning there is refused, before any forward pass.


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (eah.PAI(), "PAI cannot act in the vision tower .*made for the language"),
        (eah.VAR(sink_dims=(1,)), "VAR cannot act in the vision tower"),
        (eah.EAH(definition="paper"), "counts the tokens of a causal prompt"),
        (eah.EAH.official(layers=(0,)), "counts the tokens of a causal prompt"),
        (eah.EAH(columns="tower"), "kinds of the decoder's image columns"),
        (eah.EAH(items="first"), "means the first prompt of a batch"),
        (eah.Ablation(heads=("L0H1",), how="previous"), "token that was read bef"),
        (eah.Ablation(heads=("L0H1",), how="knockout"), "there are no others"),
        (eah.ScaleHeads(heads=("L0H1",), factor=0.0, rows="last"), "words are read"),
    ],
)
def test_what_only_a_prompt_has_is_refused_by_name(settings, match):
    model = share_model("llava")
    refused = pytest.raises(UnsupportedError, match=match)
    with refused, torch.no_grad(), model.trace(**encode("llava")):
        eah.intervene(model, settings, tower="vision")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (eah.EAH(layers=(2,)), "layer 2 does not exist: expected 0 to 1"),
        (eah.EAH(donor=4), r"heads \[4\] do not exist"),
        (eah.Ablation(heads=("L0H4",)), "heads L0H4 do not exist"),
    ],
)
def test_layers_and_heads_are_the_towers(settings, match):
    model = share_model("llava")
    refused = pytest.raises(SettingsError, match=match)
    with refused, torch.no_grad(), model.trace(**encode("llava")):
        eah.intervene(model, settings, tower="vision")


def test_heads_that_were_found_in_the_decoder_are_refused():
    model = share_model("llava")
    found = find_image_heads(model, [random_image()], "what ?").top(2)
    refused = pytest.raises(UnsupportedError, match="found in the language model")
    with refused, torch.no_grad(), model.trace(**encode("llava")):
        eah.intervene(model, eah.Ablation(heads=found), tower="vision")


def test_masks_of_prompts_are_refused():
    model, encoding = share_model("llava"), encode("llava")
    mask = torch.ones_like(encoding["input_ids"], dtype=torch.bool)
    refused = pytest.raises(UnsupportedError, match="image_mask tells tokens of the pr")
    with refused, torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, eah.EAH(layers=(0,)), image_mask=mask, tower="vision")


def test_a_later_step_is_refused():
    model = share_model("llava")
    refused = pytest.raises(UnsupportedError, match="in a run's first forward pass")
    with refused, torch.no_grad(), model.generate(**encode("llava"), **NEW):
        for _ in Iterations()[1:]:
            eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")


def test_a_run_without_an_image_is_refused():
    model = share_model("llava")
    refused = pytest.raises(InputError, match="expected an image in the run, got none")
    with refused, torch.no_grad(), model.trace("is there a cat ?"):
        eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")


def test_one_of_several_invokes_is_refused():
    model = share_model("llava")
    refused = pytest.raises(UnsupportedError, match="for one of several invokes")
    with refused, torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(random_image(), "what ?"):
            eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")
        with tracer.invoke(random_image(1), "is there a cat ?"):
            model.logits.save()


def test_a_layer_that_has_run_is_refused():
    model = share_model("qwen2_vl")
    refused = pytest.raises(UnsupportedError, match="layer 0 has already run")
    with refused, torch.no_grad(), model.trace(**encode("qwen2_vl")):
        model.vision_layers_output[0].save()
        eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")


def test_a_layer_patched_at_its_output_is_not_patched_again():
    model = share_model("qwen2_vl")
    settings = eah.Ablation(heads=("L0H1",))
    refused = pytest.raises(UnsupportedError, match="layer 0")
    with refused, torch.no_grad(), model.trace(**encode("qwen2_vl")):
        eah.intervene(model, settings, tower="vision")
        eah.intervene(model, eah.Ablation(heads=("L0H2",)), tower="vision")
        model.logits.save()


@pytest.mark.parametrize("family", [*NO_TOWER, *OWN_CODE])
def test_a_model_whose_tower_does_not_attend_is_refused(family):
    model = share_model(family)
    match = "no vision tower of layers|computed by code of its own"
    with pytest.raises(ModelError, match=match):
        eah.score_sinks(model, encode(family), tower="vision")
    refused = pytest.raises(ModelError, match=match)
    with refused, torch.no_grad(), model.trace(**encode(family)):
        eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")


def test_there_are_two_towers_and_sinks_of_the_tower_are_its_own():
    model, encoding = share_model("llava"), encode("llava")
    with pytest.raises(UnsupportedError, match="kinds of the decoder's image columns"):
        eah.score_sinks(model, encoding, tower="vision", columns="tower")
    with pytest.raises(UnsupportedError, match="counts the tokens of a causal prompt"):
        eah.score_sinks(model, encoding, tower="vision", definition="paper")


@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_no_tower_and_what_are_no_settings_is_refused():
    model, encoding = share_model("llava"), encode("llava")
    with pytest.raises(SettingsError, match="tower"):
        eah.score_sinks(model, encoding, tower="visual")
    refused = pytest.raises(SettingsError, match="settings, such as")
    with refused, torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, "EAH", tower="vision")
    refused = pytest.raises(SettingsError, match="tower")
    with refused, torch.no_grad(), model.trace(**encoding):
        eah.intervene(model, eah.EAH(layers=(0,)), tower="visual")


# ---- Videos, and towers that run again.


def with_a_picture(inputs, config):
    """Put an image of 4 x 4 patches, merged to 2 x 2 tokens, before a video."""
    ids = torch.full((1, 5), config.image_token_id)
    ids[0, 0] = config.vision_start_token_id
    pixels = inputs["pixel_values_videos"][:16]
    ids = torch.cat([ids, inputs["input_ids"]], 1)
    kinds = torch.where(ids == config.video_token_id, 2, 0)
    return inputs | {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.flip(0),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": kinds + (ids == config.image_token_id),
    }


def test_frames_of_a_video_are_items_of_their_own():
    model = share_model("qwen2_5_vl")
    inputs = video_inputs(model._module.config)
    found = eah.score_sinks(model, inputs, tower="vision")
    assert found.columns.tolist() == [[True] * 16] * 2
    with torch.no_grad(), model.trace(**inputs):
        patch = eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")
        model.logits.save()
    assert patch.donors.tolist() == found.donors[:, 0].tolist()


def test_a_tower_that_runs_again_is_refused_at_the_end_of_the_run():
    model = share_model("qwen2_5_vl")
    config = model._module.config
    inputs = with_a_picture(video_inputs(config), config)
    refused = pytest.raises(UnsupportedError, match="tower ran more than once")
    with refused, torch.no_grad(), model.trace(**inputs):
        eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")
        model.logits.save()
    refused = pytest.raises(UnsupportedError, match="tower ran more than once")
    again = {**NEW, "use_cache": False}
    with refused, torch.no_grad(), model.generate(**encode("qwen2_5_vl"), **again):
        eah.intervene(model, eah.EAH(layers=(0,)), tower="vision")
