"""Effects by image token: they add up, equal an oracle's, and lie where patches lie."""

from dataclasses import replace

import pytest
import torch
from transformers.models.llama import modeling_llama

import eah_interp as eah
from eah_interp.attribution import attribute_heads
from eah_interp.attribution.cases import Case, pose
from eah_interp.attribution.patches import PictureAttribution, attribute_patches
from eah_interp.attribution.readouts import read_tokens
from eah_interp.errors import InputError, SettingsError, UnsupportedError
from eah_interp.lvlm import ImagePart, ImageSpan
from eah_interp.lvlm.anatomy import attention_operation
from eah_interp.lvlm.inputs import Encoding
from eah_interp.lvlm.spans import lay_out
from eah_interp.testing import random_image, tiny_inputs, tiny_lvlm, tiny_processor
from tests.attribution.planted import COPIES, OBJECT, build_planted
from tests.attribution.test_direct import pose_answer, pose_tokens
from tests.tiny_families import (
    PICTURES,
    QUESTIONS,
    SUPPORTED,
    encode,
    ignore_renamed,
    share_model,
    sweep,
)

DIRECT = [family for family in SUPPORTED if family != "inkling2"]  # see test_direct


def last_layers(model):
    """Return settings that patch a layer which later layers follow."""
    return eah.EAH(layers=(sorted(model.anatomy.sites)[-2:][0],))


# -- contributions -------------------------------------------------------------------


@ignore_renamed
@pytest.mark.parametrize("family", sweep(DIRECT))
def test_image_and_text_tokens_add_up_to_each_heads_direct_effect(family):
    model = share_model(family)
    case = pose_answer(family, model)
    settings = last_layers(model)
    found = attribute_patches(model, case, patch=settings)
    heads = attribute_heads(model, case, patch=settings)
    for mine, direct in ((found.plain, heads.plain), (found.patched, heads.patched)):
        torch.testing.assert_close(mine.heads, direct.heads, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(mine.values, direct.values)
    assert found.layers == heads.layers
    assert found.plain.patches.abs().max() > 1e-4
    assert (found.patched.patches - found.plain.patches).abs().max() > 1e-4


def test_the_planted_head_takes_the_object_from_image_tokens_alone():
    model = build_planted()
    found = attribute_patches(
        model, random_image(), "Is there a", objects=[OBJECT.strip()]
    )
    assert found.top(1)["name"].tolist() == ["L{}H{}".format(*COPIES)]
    layer, head = COPIES
    taken = found.plain.patches[0, layer, head]
    assert taken.abs().min() > 0
    assert found.plain.text.abs().max() < 1e-6 * taken.abs().max()
    rest = found.plain.patches.clone()
    rest[0, layer, head] = 0
    assert not rest.any()
    # attention is even and image tokens are multiples of one direction
    model_z = attribute_heads(
        model, random_image(), "Is there a", objects=[OBJECT.strip()]
    ).plain.heads[0, layer, head]
    assert taken.sum() == pytest.approx(float(model_z), rel=1e-5)


# -- attention x gradient ------------------------------------------------------------


def gradient_by_hand(inputs, *, position, token, donors, attention):
    """Add zeros to the pattern's row in plain eager attention, and differentiate."""
    hf_model = tiny_lvlm("llava", n_kv_heads=2, attn_implementation="eager")
    rows, extra = {}, {}

    def attend(module, query, key, value, mask, scaling, **kwargs):
        groups = module.num_key_value_groups
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
        weights = (query @ key.transpose(2, 3) * scaling + mask).softmax(-1)
        index = module.layer_idx
        if index in donors:
            weights = weights[:, donors[index]][:, None].expand_as(weights)
        rows[index] = weights[0, :, position].detach()
        extra[index] = torch.zeros_like(rows[index], requires_grad=True)
        at = torch.zeros_like(weights)
        at[0, :, position] = 1
        weights = weights + at * extra[index][None, :, None]
        return (weights @ value).transpose(1, 2), None

    attention.setattr(modeling_llama, "eager_attention_forward", attend)
    logits = hf_model(**inputs, use_cache=False).logits
    gradients = torch.autograd.grad(logits[0, position, token], list(extra.values()))
    return torch.stack([rows[i] * g for i, g in enumerate(gradients)])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_times_gradient_equals_that_by_hand(attention, monkeypatch):
    model = eah.wrap(
        tiny_lvlm("llava", n_kv_heads=2, attn_implementation=attention),
        tiny_processor("llava"),
    )
    inputs = model.encode(random_image(), "Is there a cat?")
    position, token = inputs["input_ids"].shape[1] - 2, 17
    # the second target reads an earlier position, and must not leak into the first
    case = pose_tokens(
        inputs, {"x": [(position, token, 1.0)], "y": [(position - 1, 9, 1.0)]}
    )
    found = attribute_patches(
        model, case, patch=eah.EAH(layers=(1,)), method="attention_gradient"
    )
    donor = {1: int(found.donors[1][0])}
    columns = found.columns[0]
    for run, donors in ((found.plain, {}), (found.patched, donor)):
        for t, (place, word) in enumerate(((position, token), (position - 1, 9))):
            with monkeypatch.context() as patch:
                by_hand = gradient_by_hand(
                    inputs, position=place, token=word, donors=donors, attention=patch
                )
            torch.testing.assert_close(
                run.patches[t], by_hand[..., columns], atol=1e-5, rtol=1e-3
            )
            torch.testing.assert_close(
                run.heads[t], by_hand.sum(-1), atol=1e-5, rtol=1e-3
            )


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_layers_credit_is_the_slope_of_scaling_its_heads(family):
    """`sum_y A dm/dA` is the derivative of the target by the scale of a head.

    Of some of the heads: a norm after attention takes no notice of the scale of all.
    """
    model = share_model(family)
    case = pose_answer(family, model)
    found = attribute_patches(model, case, method="attention_gradient")
    last = case.encoding["input_ids"].shape[1] - 1
    step = 2e-3  # OPT's ReLUs have kinks
    values = []
    for scale in (1 + step, 1 - step):
        with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
            operation = attention_operation(model, model.anatomy.sites[found.layers[0]])
            z = operation.output[0].clone()
            z[:, last, :2] = z[:, last, :2] * scale
            operation.output = (z, *operation.output[1:])
            logits = model.output.logits.save()
        values.append(case.readout.values(logits))
    slope = (values[0] - values[1]) / (2 * step)
    credit = found.plain.heads[:, 0, :2].sum(-1)
    torch.testing.assert_close(credit[:2], slope[:2], atol=1e-2, rtol=5e-2)
    assert credit[:2].abs().max() > 1e-3


def test_whole_words_are_read_where_they_are_written():
    model = share_model("llava")
    case = pose(model, random_image(), "what ?", objects=["cat"], metric="log_prob")
    found = attribute_patches(model, case, method="attention_gradient")
    assert found.metric == "log_prob"
    assert found.plain.patches.abs().max() > 1e-5


def test_weights_are_left_as_trainable_as_they_were():
    model = share_model("llava")
    before = [p.requires_grad for p in model._module.parameters()]
    attribute_patches(model, pose_answer("llava", model), method="attention_gradient")
    after = [p.requires_grad for p in model._module.parameters()]
    assert after == before
    assert any(before)
    assert all(p.grad is None for p in model._module.parameters())


@pytest.mark.parametrize("method", ["contribution", "attention_gradient"])
def test_rows_of_a_batch_are_credited_apart(method):
    model = share_model("llava")
    asked = {"objects": ["cat", "boat"], "patch": eah.EAH(), "method": method}
    found = attribute_patches(model, list(PICTURES), list(QUESTIONS), **asked)
    for row, (picture, question) in enumerate(zip(PICTURES, QUESTIONS, strict=True)):
        alone = attribute_patches(model, picture, question, **asked)
        mine = slice(2 * row, 2 * row + 2)
        torch.testing.assert_close(
            found.patched.patches[mine], alone.patched.patches, atol=1e-4, rtol=1e-3
        )


# -- on the picture ------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_patches():
    return attribute_patches(
        eah.load(), random_image(), objects=["fish", "boat"], patch=eah.EAH()
    )


def test_a_picture_holds_each_patchs_sum_in_its_place(toy_patches):
    (grid,) = toy_patches.picture(1, run="patched")
    (part,) = toy_patches.span(1).parts
    columns = toy_patches.columns[1].tolist()
    for row, line in enumerate(part.columns):
        for index, column in enumerate(line):
            expected = toy_patches.patched.patches[1, ..., columns.index(column)].sum()
            assert grid[row, index] == pytest.approx(float(expected), abs=1e-5)


def test_signs_are_kept_apart_and_add_up(toy_patches):
    both, up, down = (
        toy_patches.summed(0, sign=sign) for sign in ("both", "positive", "negative")
    )
    assert (up >= 0).all()
    assert (down <= 0).all()
    torch.testing.assert_close(up + down, both, atol=1e-5, rtol=1e-4)
    assert (up > both.clamp(min=0) + 1e-4).any()  # heads do cancel each other


def test_some_heads_and_the_change_can_be_drawn(toy_patches):
    heads = [(2, 3), (7, 0)]
    some = toy_patches.summed(0, heads=heads, run="change")
    change = toy_patches.patched.patches[0] - toy_patches.plain.patches[0]
    torch.testing.assert_close(some, change[2, 3] + change[7, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "idefics3"])
def test_grids_are_those_of_the_models_patches(family):
    model = share_model(family)
    inputs = model.encode(random_image(width=64, height=32), "what ?")
    last = inputs["input_ids"].shape[1] - 1
    readout = read_tokens([("x", 0, last, "x", [(last, 9, 1.0)])])
    found = attribute_patches(model, Case(inputs, None, readout))
    parts = found.span(0).parts
    assert all(part.box is not None for part in parts)
    grids = found.picture(0)
    assert [g.shape for g in grids] == [
        (len(part.columns), len(part.columns[0])) for part in parts
    ]
    sums = found.summed(0)
    columns = found.columns[0].tolist()
    for part, grid in zip(parts, grids, strict=True):
        for r, line in enumerate(part.columns):
            for c, column in enumerate(line):
                if part.find_box(r, c) is None:
                    assert grid[r, c].isnan()
                else:
                    assert grid[r, c] == sums[columns.index(column)]


def test_a_patch_that_shows_padding_alone_has_no_number():
    part = ImagePart("image", ((4, 5), (6, 7)), (0.0, -1.0, 1.0, 1.0))
    span = ImageSpan(0, 0, 4, 8, (4, 5, 6, 7), (part,))
    (grid,) = lay_out(span, {4: 1.0, 5: 2.0, 6: 3.0, 7: 4.0})
    assert grid[0].isnan().all()
    assert grid[1].tolist() == [3.0, 4.0]
    unknown = replace(span, parts=(replace(part, box=None),))
    assert lay_out(unknown, dict.fromkeys(span.columns, 1.0))[0].sum() == 4


def test_a_row_with_fewer_image_tokens_is_credited_for_its_own_only():
    model = share_model("qwen2_vl")
    inputs = encode("qwen2_vl")
    last = inputs["input_ids"].shape[1] - 1
    targets = [(f"row {row}", row, last, "x", [(last, 7, 1.0)]) for row in (0, 1)]
    found = attribute_patches(model, Case(Encoding(inputs), None, read_tokens(targets)))
    short = int((found.columns >= 0).sum(1).argmin())
    missing = found.columns[short] < 0
    assert missing.any()
    assert not found.plain.patches[short][..., missing].any()
    listed = found.frame().query("target == @short")["read_at"].dropna().unique()
    assert set(listed) == set(found.columns[short][~missing].tolist())


@ignore_renamed
def test_learned_queries_have_no_place_in_the_picture():
    model = share_model("instructblip")
    found = attribute_patches(model, pose_answer("instructblip", model))
    with pytest.raises(UnsupportedError, match="got learned queries or a layout"):
        found.picture(0)
    assert len(found.top(2)) == 6  # the numbers are there


def test_the_frame_lists_every_number_once(toy_patches):
    table = toy_patches.frame()
    n_targets, n_layers, n_heads, n_patches = toy_patches.plain.patches.shape
    assert len(table) == n_targets * n_layers * n_heads * (n_patches + 1)
    one = table[(table.target == 1) & (table.name == "L4H2")]
    total = one["plain"].sum()
    assert total == pytest.approx(float(toy_patches.plain.heads[1, 4, 2]), abs=1e-5)
    text = one[one.read_at.isna()]
    assert text["patched"].item() == pytest.approx(
        float(toy_patches.patched.text[1, 4, 2])
    )


def test_it_is_saved_and_loaded(toy_patches, tmp_path):
    loaded = PictureAttribution.load(toy_patches.save(tmp_path / "picture"))
    assert torch.equal(loaded.patched.patches, toy_patches.patched.patches)
    assert loaded.spans == toy_patches.spans
    assert torch.equal(loaded.picture(0)[0], toy_patches.picture(0)[0])


# -- refusals ------------------------------------------------------------------------


def test_bad_questions_are_refused_before_any_forward(monkeypatch, as_users_run_it):
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    asked = {"objects": ["fish"]}
    with pytest.raises(SettingsError, match="method must be one of contribution"):
        attribute_patches(model, random_image(), **asked, method="rollout")
    with pytest.raises(SettingsError, match="not a sum of direct effects"):
        attribute_patches(model, random_image(), **asked, metric="log_prob")
    with pytest.raises(SettingsError, match="layer 9 does not exist"):
        attribute_patches(model, random_image(), **asked, patch=eah.EAH(layers=(9,)))


def test_a_row_without_pictures_is_refused():
    model = share_model("llava")
    inputs = dict(tiny_inputs("llava"))
    last = inputs["input_ids"].shape[1] - 1
    inputs = {name: inputs[name][:, -4:] for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match="row 0 has no image tokens"):
        attribute_patches(model, pose_tokens(inputs, {"x": [(3, 9, 1.0)]}))
    assert last > 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 2}, "target 2 does not exist"),
        ({"heads": [(8, 0)]}, "there is no head L8H0"),
        ({"heads": []}, "heads must be layers and heads"),
        ({"image": 1}, "image 1 does not exist"),
        ({"run": "clean"}, "run='clean' is not there"),
        ({"sign": "up"}, "sign must be one of both, positive, negative"),
    ],
)
def test_impossible_pictures_are_refused(toy_patches, change, said, as_users_run_it):
    asked = {"target": 0, **change}
    with pytest.raises(SettingsError, match=said):
        toy_patches.picture(asked.pop("target"), **asked)


def test_a_patched_picture_needs_a_patched_run():
    found = attribute_patches(eah.load(), random_image(), objects=["fish"])
    with pytest.raises(SettingsError, match="expected plain; a patched run is made by"):
        found.summed(0, run="change")
