"""Patches at some positions: equal to one head, one whole forward, and no more run."""

import pytest
import torch
from torch import Tensor, nn

import eah_interp as eah
from eah_interp.attribution import Case, ablate_heads, patch_heads, pose
from eah_interp.attribution.positions import find_positions
from eah_interp.attribution.readouts import read_tokens
from eah_interp.attribution.replay import choose_batch_size, prepare_replay
from eah_interp.attribution.runs import record
from eah_interp.errors import InputError, SettingsError
from eah_interp.lvlm.inputs import Encoding
from eah_interp.testing import random_image
from tests.attribution.oracle_patching import edit_from, run_by_hand
from tests.attribution.test_patching import assert_same, layer_to_patch, pose_answer
from tests.tiny_families import (
    SUPPORTED,
    build_oracle,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
    sweep,
)

CUT = ("llava", "qwen2_5_vl", "gemma3", "gemma4", "llama4", "internvl_gpt_oss")
"""Grouped queries, windows, layers of their own inputs, chunks, experts, sinks."""


def effects_by_hand(family, case, heads, where, *, other=None, target="plain"):
    """Run the whole model once for every head, which is patched at some positions."""
    plain, inputs = share_plain(family), dict(case.encoding)
    donating = None
    if target != "plain":
        donating = build_oracle(
            family, inputs, layers=target.layers, donor=target.donor
        )
    taken = run_by_hand(plain, dict((other or case).encoding))
    into = run_by_hand(plain, inputs, eah=donating)
    if donating is not None:
        donating.steps = "all"  # the donors that it has chosen stay
    value = case.readout.values(into.logits)
    effects = []
    for layer, head in heads:
        whole = edit_from(taken, layer, head, "output")

        def edit(pattern: Tensor, values: Tensor, z: Tensor, whole=whole) -> Tensor:
            return torch.where(where[:, None], whole(pattern, values, z), z)

        run = run_by_hand(plain, inputs, eah=donating, heads={(layer, head): edit})
        effects.append(case.readout.values(run.logits) - value)
    return torch.stack(effects, 1)


SEES = [family for family in SUPPORTED if family != "emu3"]
"""The tiny codebook of Emu3 has one code for all images: no other one is a source."""


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SEES))
def test_heads_at_positions_have_the_effect_of_a_whole_forward(family):
    model, case = share_model(family), pose_answer(family)
    layers = sorted(model.anatomy.sites)
    heads = [(layers[0], 1), (layer_to_patch(model), 2), (layers[-1], 0)]
    width = case.encoding["input_ids"].shape[1]
    where = torch.arange(width) >= width - 4
    other = pose_answer(family, seed=5)
    found = patch_heads(
        model,
        case,
        source="plain",
        source_images=other,
        heads=heads,
        positions=[-4, -3, -2, -1],
    )
    assert_same(found.effects, effects_by_hand(family, case, heads, where, other=other))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "internvl_gpt_oss"])
def test_heads_are_put_back_at_positions_into_a_patched_run(family):
    model, case = share_model(family), pose_answer(family)
    layers = sorted(model.anatomy.sites)
    target = eah.EAH(layers=tuple(layers[:2]), donor=1)
    heads = [(layers[0], 0), (layers[0], 2), (layers[1], 3), (layers[2], 1)]
    width = case.encoding["input_ids"].shape[1]
    where = torch.arange(width) == width - 2
    found = patch_heads(
        model, case, source="plain", target=target, heads=heads, positions=where
    )
    expected = effects_by_hand(family, case, heads, where, target=target)
    assert_same(found.effects, expected)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_padded_items_are_patched_at_their_own_positions(family):
    questions = [" what ?", " is there a cat near the boat ?"]
    both = encode(family, [random_image(0), random_image(1)], questions)
    others = encode(family, [random_image(5), random_image(6)], questions)
    tokens = both["attention_mask"].bool()
    assert not tokens.all()
    width = tokens.shape[1]
    aims = [(f"{i}", i, width - 1, "a", [(width - 1, 9, 1.0)]) for i in range(2)]
    case, other = (
        Case(Encoding(each), None, read_tokens(aims)) for each in (both, others)
    )
    found = patch_heads(
        share_model(family),
        case,
        source="plain",
        source_images=other,
        heads=[(0, 1), (1, 2)],
        positions="question",
    )
    where = find_positions(share_model(family), case, "question")
    assert where.any(1).all()
    for item in range(2):
        expected = effects_by_hand(
            family,
            case.copies([item]),
            [(0, 1), (1, 2)],
            where[item],
            other=other.copies([item]),
        )
        assert_same(found.effects[item : item + 1], expected)


def test_an_item_that_is_padded_on_the_right_is_patched_likewise():
    short = pose_answer("llava")
    padded = {
        name: torch.cat([value, value.new_full((1, 3), int(name == "input_ids"))], 1)
        if name in ("input_ids", "attention_mask")
        else value
        for name, value in short.encoding.items()
    }
    assert not padded["attention_mask"][:, -3:].any()
    longer = Case(Encoding(padded), None, short.readout)
    width = short.encoding["input_ids"].shape[1]
    options = {"how": "mean", "heads": [(0, 1), (2, 3)], "positions": [width - 3]}
    found = ablate_heads(share_model("llava"), longer, **options)
    expected = ablate_heads(share_model("llava"), short, **options)
    assert_same(found.effects, expected.effects)


@pytest.mark.parametrize("family", CUT)
def test_positions_before_the_first_change_are_not_run_again(family):
    model, case = share_model(family), pose_answer(family)
    width = case.encoding["input_ids"].shape[1]
    first, layers = width - 4, model._module.get_submodule(model.anatomy.layers)
    assert prepare_replay(model, record(model, case), first=first).cuts_rows
    rows: list[int] = []
    attended: list[int] = []

    def leave(module, args, output):
        rows.append((output[0] if isinstance(output, tuple) else output).shape[1])

    def project(module, args, output):
        attended.append(output.shape[1])

    parts = layers[1].self_attn.modules()
    projection = next(part for part in parts if isinstance(part, nn.Linear))
    handles = [
        layers[1].register_forward_hook(leave),
        projection.register_forward_hook(project),
    ]
    options = {"heads": [(1, 0), (1, 1)], "positions": [first], "batch_size": 3}
    ablate_heads(model, case, **options)
    for handle in handles:
        handle.remove()
    # The record, a trial from this layer and one that leaves it out, and the copies:
    # their attention is the recorded one.
    assert rows == [width, 4, 4, 4]
    assert attended == [width, 4]


def test_a_patch_changes_nothing_before_it():
    model, case = share_model("llava"), pose_answer("llava")
    found = ablate_heads(model, case, positions="last")
    last, before = found.effects
    assert last.abs().max() > 1e-3
    # It reads the position before: what is left is what runs of other shapes round.
    torch.testing.assert_close(before, torch.zeros_like(before), atol=3e-5, rtol=0)


def test_positions_have_names():
    model = eah.load()
    options = {"prompts": "Is there a boat near the fish?", "objects": ["boat", "fish"]}
    case = pose(model, random_image(), **options)
    ids = case.encoding["input_ids"][0]
    image = ids == model.anatomy.image_token_id
    places = {
        name: find_positions(model, case, name)[0]
        for name in ("last", "image", "text", "question", "object")
    }
    assert places["last"].nonzero().tolist() == [[len(ids) - 1]]
    assert torch.equal(places["image"], image)
    assert torch.equal(places["text"], ~image)
    after = torch.arange(len(ids)) > image.nonzero().max()
    assert torch.equal(places["question"], after)
    words = model.tokenizer.decode(ids[places["object"]])
    assert words.split() == ["boat", "fish"]
    options["source"] = eah.EAH()
    found = patch_heads(
        model, random_image(), heads=[(1, 0)], positions="object", **options
    )
    assert "at object" in repr(found)


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ("first", SettingsError, "positions='first' does not fit .* one of \"last\""),
        ([10_000], SettingsError, r"positions=\[10000\] does not fit"),
        ([-1, -1], SettingsError, "each once"),
        (torch.ones(3, dtype=torch.bool), SettingsError, r"has shape \(3,\): expected"),
        ("object", InputError, "positions='object' are none in item 0"),
    ],
)
def test_positions_that_are_not_there_are_refused(
    positions, error, message, monkeypatch, as_users_run_it
):
    model = eah.load()
    monkeypatch.setattr(type(model), "trace", None)
    with pytest.raises(error, match=message):
        ablate_heads(
            model, random_image(), "What is it?", objects=["fish"], positions=positions
        )


def test_words_that_are_not_read_have_no_positions(as_users_run_it):
    options = {"metric": "yes_no", "positions": "object"}
    with pytest.raises(SettingsError, match=r'objects=\["fish"\]; or number the pos'):
        ablate_heads(eah.load(), random_image(), "Fish?", **options)
    with pytest.raises(InputError, match="'object' are none in item 0"):
        ablate_heads(eah.load(), random_image(), "Fish?", objects=["boat"], **options)
    without = eah.load()
    case = pose(without, random_image(), "Fish?", objects=["fish"], metric="yes_no")
    without.tokenizer = None
    with pytest.raises(SettingsError, match="a model with its tokenizer; number"):
        find_positions(without, case, "object")


def test_a_yes_or_no_question_has_the_positions_of_what_it_is_about():
    model = eah.load()
    images = [random_image(0), random_image(1)]
    prompts = ["Is there a boat in the image?", "Is there, by it, a fish in the image?"]
    asked = {"metric": "yes_no", "objects": [["boat"], ["fish"]]}
    case = pose(model, images, prompts, **asked)
    ids = case.encoding["input_ids"]
    words = [
        torch.tensor([model.tokenizer.decode([i]).strip() == word for i in row])
        for row, word in zip(ids.tolist(), ("boat", "fish"), strict=True)
    ]
    mask = torch.stack(words)
    assert mask.sum(-1).tolist() == [1, 1]
    assert torch.equal(find_positions(model, case, "object"), mask)
    assert [target.label for target in case.readout.targets] == ["Yes - No"] * 2
    heads = {"heads": [(1, 0), (2, 3)]}
    by_name = ablate_heads(model, case, positions="object", **heads)
    by_mask = ablate_heads(model, case, positions=mask, **heads)
    assert torch.equal(by_name.effects, by_mask.effects)
    assert by_name.effects.abs().max() > 0
    plain = pose(model, images, prompts, metric="yes_no")
    assert torch.equal(
        ablate_heads(model, plain, positions=mask, **heads).values, by_name.values
    )


def test_batches_are_as_large_as_a_long_prompt_on_a_cpu():
    model = share_model("llava")
    assert choose_batch_size(model, 624) == 1
    assert choose_batch_size(model, 100) == 10
    assert choose_batch_size(model, 1) == 64
    assert choose_batch_size(model, 100_000) == 1
