"""Questions: what is read where, and that teacher forcing is the generation's run."""

import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, attribute_heads, pose
from eah_interp.attribution.cases import as_case
from eah_interp.attribution.readouts import read_tokens
from eah_interp.errors import InputError, SettingsError
from eah_interp.lvlm.inputs import Encoding, append_tokens, repeat_rows
from eah_interp.testing import random_image
from eah_interp.toy import draw_scene

QUESTION = "Is there a boat in the image?"


@pytest.fixture(scope="module")
def toy():
    return eah.load()


@pytest.fixture(scope="module")
def scene():
    return draw_scene(3)


def run(model, case, patch=None):
    with torch.no_grad(), model.trace(**case.inputs, use_cache=False):
        if patch is not None:
            eah.intervene(model, patch, prompt_mask=case.prompt_mask)
        logits = model.output.logits.save()
    return logits


# -- the answer position -------------------------------------------------------------


def test_an_object_is_read_after_the_prompt_as_its_first_token(toy):
    case = pose(toy, random_image(), QUESTION, objects=["boat", "lighthouse"])
    logits = run(toy, case)
    tokens = [
        toy.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]
        for word in ("boat", "lighthouse")
    ]
    torch.testing.assert_close(case.readout.values(logits), logits[0, -1, tokens])
    assert case.prompt_mask is None
    assert [t.label for t in case.readout.targets] == ["boat", "lighthouse"]


def test_yes_no_is_the_logit_of_yes_minus_that_of_no(toy):
    case = pose(toy, [random_image(0), random_image(1)], QUESTION, metric="yes_no")
    logits = run(toy, case)
    yes, no = (toy.tokenizer.convert_tokens_to_ids(f"▁{w}") for w in ("Yes", "No"))
    expected = logits[:, -1, yes] - logits[:, -1, no]
    torch.testing.assert_close(case.readout.values(logits), expected)


def test_synonyms_are_read_as_the_mean_of_their_logits(toy):
    case = pose(toy, random_image(), objects=["boat"], synonyms={"boat": ["fish"]})
    both = pose(toy, random_image(), objects=["boat", "fish"])
    logits = run(toy, case)
    torch.testing.assert_close(
        case.readout.values(logits)[0], both.readout.values(logits).mean()
    )


def test_a_word_of_several_tokens_is_read_whole(toy):
    words = ["lighthouse", "boat"]
    case = pose(toy, random_image(), objects=words, metric="log_prob")
    values = case.readout.values(run(toy, case))
    for row, word in enumerate(words):
        ids = toy.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        expected, encoding = 0.0, toy.encode(random_image())
        for token in ids:
            with torch.no_grad(), toy.trace(**encoding):
                logits = toy.output.logits.save()
            expected += float(logits[0, -1].log_softmax(-1)[token])
            encoding = append_tokens(encoding, [[token]], pad=0)
        assert len(ids) == (2 if word == "lighthouse" else 1)
        torch.testing.assert_close(float(values[row]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("word", ["zebra", "yak", "giraffe", "umbrella", "kite"])
def test_a_word_that_no_token_begins_is_refused_or_read_whole(toy, word):
    """Every such word's first token is the same blank: they would get one table."""
    assert toy.tokenizer.tokenize(f" {word}")[0] == "▁"
    for asked in (
        {"objects": [word]},
        {"objects": ["boat", word], "metric": "logit_diff"},
        {"objects": ["boat"], "synonyms": {"boat": [word]}},
        {"objects": ["boat"], "synonyms": {"boat": [word]}, "metric": "log_prob"},
    ):
        with pytest.raises(
            SettingsError, match=f"no token that begins '{word}': .*'▁'"
        ):
            pose(toy, random_image(), **asked)
    whole = pose(toy, random_image(), objects=[word], metric="log_prob")
    assert len(whole.readout.tokens) == len(toy.tokenizer.tokenize(f" {word}"))


# -- captions ------------------------------------------------------------------------


def test_a_caption_is_read_before_each_place_that_names_an_object(toy, scene):
    caption = "There is a boat. A fish is near the boat."
    case = pose(toy, scene.image, objects=["boat", "fish"], caption=caption)
    ids = case.encoding["input_ids"][0]
    named = [t.label for t in case.readout.targets]
    assert named == ["boat", "fish", "boat"]
    for target, token in zip(case.readout.targets, case.readout.tokens, strict=True):
        assert int(ids[target.position + 1]) == int(token)
        assert toy.tokenizer.decode([int(token)]).strip() == target.label


@pytest.mark.parametrize(
    "patch",
    [
        eah.EAH(),
        eah.EAH(steps="all"),
        eah.EAH(donor="shuffled"),
        eah.EAH(donor="mean"),
        eah.EAH(recipients=(0, 5), layers=(0, 1)),
    ],
)
def test_a_patched_caption_is_read_as_it_was_generated(toy, scene, patch):
    """The prompt's rows choose donors and are patched; the answer's rows are not."""
    patched = eah.edit(toy, patch)
    encoding = toy.encode(scene.image)
    width = encoding["input_ids"].shape[1]
    out = patched.generate(
        **encoding, max_new_tokens=12, output_logits=True, return_dict_in_generate=True
    )
    answer = out.sequences[0, width:].tolist()
    longer = append_tokens(encoding, [answer], pad=0)
    mask = torch.zeros_like(longer["input_ids"], dtype=torch.bool)
    mask[:, :width] = True
    readout = read_tokens([("x", 0, width, "x", [(width, 1, 1.0)])])
    logits = run(toy, Case(longer, mask, readout), patch)[0, width - 1 : -1]
    torch.testing.assert_close(logits, torch.cat(out.logits), atol=1e-4, rtol=1e-4)
    without = run(toy, Case(longer, None, readout), patch)[0, width - 1 : -1]
    if patch.steps == "prefill":  # the mask is not idle
        assert (without - logits).abs().max() > 1e-3


def test_generated_ids_are_a_caption(toy, scene):
    ids = toy.tokenizer(" There is a boat.", add_special_tokens=False)["input_ids"]
    as_ids = pose(toy, scene.image, objects=["boat"], caption=[ids])
    as_text = pose(toy, scene.image, objects=["boat"], caption="There is a boat.")
    assert torch.equal(as_ids.encoding["input_ids"], as_text.encoding["input_ids"])


def test_captions_of_different_length_are_those_of_single_rows(toy, scene):
    captions = ["There is a boat.", "There is a fish and a boat and a boat."]
    other = draw_scene(4)
    both = pose(toy, [scene.image, other.image], objects=["boat"], caption=captions)
    found = attribute_heads(toy, both)
    for row, image in enumerate((scene.image, other.image)):
        one = pose(toy, image, objects=["boat"], caption=captions[row])
        alone = attribute_heads(toy, one)
        mine = [i for i, t in enumerate(found.targets) if t.row == row]
        torch.testing.assert_close(
            found.plain.heads[mine], alone.plain.heads, atol=1e-5, rtol=1e-4
        )


# -- copies --------------------------------------------------------------------------


def test_copies_of_items_have_their_targets(toy):
    case = pose(
        toy, [random_image(0), random_image(1)], QUESTION, objects=["boat", "fish"]
    )
    copies = case.copies([1, 0, 1])
    values = case.readout.values(run(toy, case)).view(2, 2)
    again = copies.readout.values(run(toy, copies)).view(3, 2)
    torch.testing.assert_close(again, values[[1, 0, 1]], atol=1e-5, rtol=1e-5)


def test_targets_of_one_position_are_read_in_passes_of_their_own():
    readout = read_tokens(
        [
            ("a", 0, 4, "a", [(4, 1, 1.0)]),
            ("b", 0, 4, "b", [(4, 2, 1.0)]),
            ("c", 0, 5, "c", [(5, 2, 1.0)]),
            ("d", 1, 4, "d", [(4, 2, 1.0)]),
        ]
    )
    assert readout.passes() == [[0, 2, 3], [1]]


# -- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"objects": []}, SettingsError, "takes at least one object, got 0"),
        ({"objects": ["boat"], "metric": "logit_diff"}, SettingsError, "two objects"),
        (
            {"objects": [["boat"], ["fish"]], "metric": "yes_no"},
            InputError,
            "objects has 2 lists for 1 items",
        ),
        ({"objects": ["xyzzy€"]}, SettingsError, "cannot spell"),
        ({"objects": ["boat"], "caption": "A fish."}, InputError, "does not name boat"),
        (
            {"objects": ["boat"], "caption": ["A boat.", "A boat."]},
            InputError,
            "each of 1",
        ),
        (
            {"objects": ["boat", "fish"], "metric": "logit_diff", "caption": "A boat."},
            SettingsError,
            "read at the answer position",
        ),
    ],
)
def test_impossible_questions_are_refused_before_any_forward(
    toy, monkeypatch, as_users_run_it, asked, error, message
):
    monkeypatch.setattr(type(toy), "trace", None)
    with pytest.raises(error, match=message):
        pose(toy, random_image(), **asked)


def test_a_case_is_a_whole_question(toy):
    case = pose(toy, random_image(), QUESTION, metric="yes_no")
    assert as_case(toy, case, metric="logit", objects=()) is case
    with pytest.raises(SettingsError, match="nothing beside it, got objects"):
        as_case(toy, case, objects=["boat"])


def test_rows_that_cannot_be_told_apart_are_refused():
    ids = torch.ones(2, 3, dtype=torch.long)
    flat = Encoding({"input_ids": ids, "pixel_values": torch.ones(9, 4)})
    with pytest.raises(InputError, match="9 lines for 2 rows"):
        repeat_rows(flat, [0, 0])


def test_what_an_answer_would_lack_is_refused():
    ids = torch.ones(1, 3, dtype=torch.long)
    embedded = Encoding({"input_ids": ids, "inputs_embeds": torch.ones(1, 3, 4)})
    with pytest.raises(InputError, match="inputs_embeds tells something of every"):
        append_tokens(embedded, [[1]], pad=0)
    with pytest.raises(InputError, match="an answer for each of 1 rows, got 2"):
        append_tokens(Encoding({"input_ids": ids}), [[1], [2]], pad=0)
