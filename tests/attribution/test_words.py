"""The map of each generated word is the row that it was generated from."""

import dataclasses

import numpy as np
import pytest
import torch

import eah_interp as eah
from eah_interp.attribution import Case, HeadPatterns, pose, read_patterns, runs
from eah_interp.attribution.readouts import read_tokens
from eah_interp.attribution.words import split_words
from eah_interp.errors import InputError, ModelError, SettingsError, UnsupportedError
from eah_interp.kernels.patterns import pattern_blocks
from eah_interp.lvlm.inputs import Encoding, append_tokens
from eah_interp.testing import random_image
from eah_interp.toy import draw_scene
from tests.tiny_families import (
    SUPPORTED,
    encode,
    ignore_renamed,
    share_model,
    share_plain,
    sweep,
)

CLOSE = {"rtol": 1e-4, "atol": 2e-6}
HEADS = ["L0H1", "L1H3"]
N_NEW = 4


def generate_eagerly(family, encoding, n_new):
    """Generate with transformers alone, and keep the row of each new token.

    Returns:
        The new tokens, and by token the patterns' last rows, `[layer batch head key]`.
    """
    with torch.no_grad():
        found = share_plain(family).generate(
            **encoding,
            max_new_tokens=n_new,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    rows = [[layer[:, :, -1].float() for layer in step] for step in found.attentions]
    return found.sequences[:, encoding["input_ids"].shape[1] :], rows


@pytest.mark.parametrize(
    "family", ["llava_next", "qwen2_5_vl", "gemma3", "internvl_gpt_oss"]
)
def test_a_words_row_is_that_of_the_eager_generation(family):
    encoding = encode(family)
    found = read_patterns(
        share_model(family), encoding, heads=HEADS, words=True, max_new_tokens=N_NEW
    )
    tokens, rows = generate_eagerly(family, encoding, N_NEW)
    width = encoding["input_ids"].shape[1]
    compared = 0
    for item, words in enumerate(found.words):
        for number, word in enumerate(words):
            steps = [query - (width - 1) for query in word.queries]
            for name in HEADS:
                layer, head = int(name[1]), int(name[3])
                expected = torch.zeros(found.plain.rows.shape[-1])
                for step in steps:
                    row = rows[step][layer][item, head]
                    stop = width + step  # a sliding window's cache has the last keys
                    expected[stop - len(row) : stop] += row / len(steps)
                got = found.row(name, item=item, word=number)
                torch.testing.assert_close(got, expected, **CLOSE)
                compared += 1
        said = [q for word in words for q in word.queries]
        assert said == sorted(set(said))
        assert set(said) <= set(range(width - 1, width - 1 + tokens.shape[1]))
    assert compared >= 2 * len(HEADS)


def answer(family):
    """Write answers of two lengths after the prompts, as a case of them."""
    encoding = Encoding(encode(family))
    longer = append_tokens(encoding, [[9], [10, 11]], pad=0)
    mask = longer["attention_mask"].bool()
    mask[:, encoding["input_ids"].shape[1] :] = False
    readout = read_tokens([("word", 0, 1, "word", [(1, 9, 1.0)])])
    return Case(longer, mask, readout)


@ignore_renamed
@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_rows_of_words_are_those_of_output_attentions(family):
    """On every family that has them: SDPA here, eager there, and the mean of all."""
    case, model = answer(family), share_model(family)
    found = read_patterns(model, case, heads="L1H1", mean=True, words=True)
    width = int(case.prompt_mask.nonzero()[:, 1].max()) + 1
    assert found.positions.tolist() == [width - 1, width]
    assert [len(q) for w in found.words for q in [w[-1].queries]] in ([1, 1], [1, 2])
    rows = found.plain.rows
    assert rows[0, :, 1].isnan().all()
    assert not rows[0, :, 0].isnan().any()
    assert not rows[1].isnan().any()
    with torch.no_grad():
        output = share_plain(family)(**case.encoding, output_attentions=True)
    # BLIP's keep the decoder's apart from the Q-Former's.
    said = getattr(output, "language_model_outputs", output).attentions
    every = {
        layer: said[place] for place, layer in enumerate(sorted(model.anatomy.sites))
    }
    own = every[1][:, 1, [width - 1, width]].float()
    mean = torch.cat(list(every.values()), 1).float().mean(1)[:, [width - 1, width]]
    for item, n_real in ((0, 1), (1, 2)):
        got, expected = rows[item, :, :n_real], (own, mean)
        for head in range(2):
            torch.testing.assert_close(
                got[head], expected[head][item, :n_real], rtol=1e-3, atol=1e-5
            )


def test_the_mean_is_that_of_output_attentions():
    encoding = encode("llava")
    found = read_patterns(share_model("llava"), encoding, mean=True, query=[-1, -3])
    with torch.no_grad():
        said = share_plain("llava")(**encoding, output_attentions=True).attentions
    expected = torch.stack(said).float().mean((0, 2))[:, [-1, -3]]
    torch.testing.assert_close(found.plain.rows[:, 0], expected, **CLOSE)
    assert found.heads == (None,)
    assert not found.plain.sinks.any()


def test_the_top_heads_are_the_densest_of_score_sinks():
    model, images = eah.load(), [draw_scene(n).pil() for n in range(3)]
    found = read_patterns(model, images, ["What is there?"] * 3, heads="L3H7", top=5)
    sinks = eah.score_sinks(model, images, ["What is there?"] * 3)
    mean = sinks.frame().groupby("name", sort=False)["density"].mean()
    named = mean.sort_values(ascending=False, kind="stable").index[:5].tolist()
    assert found.names == ("L3H7", *[name for name in named if name != "L3H7"])


def test_a_batch_is_its_single_items():
    model, images = eah.load(), [draw_scene(n).pil() for n in (0, 1)]
    prompts = ["Describe the image.", "Is there a cup in the image?"]
    asked = {"heads": "L3H7,L1H3", "mean": True, "words": True, "patch": eah.EAH()}
    found = read_patterns(model, images, prompts, **asked)
    assert [len(words) for words in found.words] == [11, 1]
    for item in range(2):
        one = read_patterns(model, images[item], prompts[item], **asked)
        assert [w.text for w in one.words[0]] == [w.text for w in found.words[item]]
        for run in ("plain", "patched"):
            for name in found.names:
                for word in range(len(one.words[0])):
                    alone = one.row(name, word=word, run=run)
                    row = found.row(name, item=item, word=word, run=run)
                    shown = row[~found.padding[item]][: len(alone)]
                    torch.testing.assert_close(shown, alone, rtol=1e-3, atol=1e-5)
    # No row stands for a word that an item has not.
    short = found.plain.rows[1, :, 1:]
    assert short.isnan().all()
    assert not found.frame()[["plain", "patched", "change"]].isna().to_numpy().any()
    with pytest.raises(SettingsError, match="no word of the answer of item 1 is pred"):
        found.plot(images[1], item=1, query=int(found.positions[1]))
    grouped = found.group(item=1)
    assert grouped.weights.shape[1] == 1
    assert not grouped.weights.isnan().any()


def test_an_answer_in_a_patched_run_is_read_as_the_patch_generates():
    """Under a patch of all steps, rows are those of the patched generation."""
    model, image = eah.load(), draw_scene(0).pil()
    patch = eah.EAH(donor=3, steps="all")
    found = read_patterns(model, image, heads="L1H0", words=True, patch=patch)
    donor = read_patterns(model, image, heads="L1H3", words=True)
    for word in range(len(found.words[0])):
        got = found.row("L1H0", word=word, run="patched")
        torch.testing.assert_close(got, donor.row("L1H3", word=word), **CLOSE)
        assert not torch.allclose(got, found.row("L1H0", word=word), atol=1e-3)


def test_the_words_of_a_caption_are_read_without_generating(monkeypatch):
    model = eah.load()
    case = pose(model, draw_scene(0).pil(), objects=["cup"], caption="There is a cup.")
    monkeypatch.setattr(model, "generate", None)
    found = read_patterns(model, case, heads="L2H1", words=True)
    assert [word.text for word in found.words[0]] == ["There", "is", "a", "cup", "."]
    width = int(case.prompt_mask[0].nonzero().max()) + 1
    assert found.words[0][0].queries == (width - 1,)
    rows = read_patterns(model, case, heads="L2H1", query="all")
    for number, word in enumerate(found.words[0]):
        expected = rows.plain.rows[0, 0, list(word.queries)].mean(0)
        torch.testing.assert_close(found.row("L2H1", word=number), expected, **CLOSE)


def test_shares_and_frame_say_what_the_rows_say():
    image, prompt = draw_scene(0).pil(), "Describe the image."
    found = read_patterns(
        eah.load(), image, prompt, heads="L3H7", mean=True, words=True
    )
    shares, table = found.shares(), found.frame()
    assert len(shares) == 2 * len(found.words[0])
    columns = list(found.span(0).columns)
    for line in shares.itertuples():
        row = found.row(line.name, word=line.word)
        assert line.plain == pytest.approx(float(row[columns].sum()), abs=1e-6)
        own = table[(table["name"] == line.name) & (table["word"] == line.word)]
        weights = own.groupby("read_at")["plain"].mean().to_numpy()
        np.testing.assert_allclose(weights, row.numpy(), atol=1e-6)
        assert own["said"].unique().tolist() == [line.said]
    assert (
        shares.loc[shares["name"] == "mean", ["layer", "head"]].isna().to_numpy().all()
    )
    plain = read_patterns(eah.load(), image, prompt, heads="L3H7", patch=eah.EAH())
    (line,) = plain.shares().itertuples()
    expected = plain.row("L3H7", run="patched")[columns].sum()
    assert line.patched == pytest.approx(float(expected), abs=1e-6)
    assert line.change == pytest.approx(line.patched - line.plain)


def test_words_come_back_from_disk(tmp_path):
    image = draw_scene(0).pil()
    found = read_patterns(eah.load(), image, top=1, mean=True, words=True)
    again = HeadPatterns.load(found.save(tmp_path / "words"))
    assert again == found
    assert again.words == found.words
    assert len(repr(found).splitlines()) <= 8
    assert "<img" in found._repr_html_()
    assert dataclasses.replace(found, words=()) != found


# ---- Words.


class Bytes:
    """A byte-level tokenizer: each token is a byte or a text with its space."""

    all_special_ids = (0,)
    unk_token_id = None

    def __init__(self, *pieces):
        self.pieces = [b"</s>", *pieces]

    def convert_ids_to_tokens(self, token):
        return self.pieces[token].decode(errors="replace").replace(" ", "\u0120")

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["A", " fi", "re", "-", "truck", ".", "</s>"], ["A", "fire-truck", "."]),
        ([' "', "No", "!", '"', "\n\n", "Yes"], ['"', "No", '!"', "Yes"]),
        (["don", "'t", " ", "go"], ["don't", "go"]),
        (["...", " ", "?"], ["...", "?"]),
        (["一只", "猫", "。"], ["一只", "猫", "。"]),
        (["</s>", " ", "\n"], []),
    ],
)
def test_tokens_are_joined_to_words(pieces, words):
    tokenizer = Bytes(*[piece.encode() for piece in pieces if piece != "</s>"])
    known = [piece.decode() for piece in tokenizer.pieces]
    ids = [known.index(piece) for piece in pieces]
    found = split_words(tokenizer, ids)
    assert [text for text, _ in found] == words
    places = [place for _, tokens in found for place in tokens]
    text = [p for p, piece in enumerate(pieces) if piece.strip() and piece != "</s>"]
    assert places == text


def test_words_of_a_tokenizer_without_spaces_in_tokens_are_told_apart():
    tokenizer = share_model("qwen2_5_vl").tokenizer
    ids = tokenizer("a red boat", add_special_tokens=False)["input_ids"]
    assert [text for text, _ in split_words(tokenizer, ids)] == ["a", "red", "boat"]


def test_a_character_of_several_tokens_is_whole():
    cat = "猫".encode()
    tokenizer = Bytes(b"a ", *[cat[n : n + 1] for n in range(3)], b"s")
    assert split_words(tokenizer, [1, 2, 3, 4, 5]) == [
        ("a", (0,)), ("猫s", (1, 2, 3, 4))
    ]  # fmt: skip
    assert split_words(None, [7, 8]) == [("7", (0,)), ("8", (1,))]


# ---- What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no head is named: expected heads, such as"),
        ({"top": 0}, "top must be an integer of 1 or more, got 0"),
        ({"top": 999}, "top must be 1 to 12 heads, got 999"),
        ({"heads": []}, r"the list of heads is empty: .* top=5 or mean=True"),
        ({"heads": "L1H3,"}, "'' is no node of this model"),
        ({"heads": "L1H3", "words": True, "query": 3}, "expected no query beside it"),
        ({"heads": "L1H3", "words": True, "max_new_tokens": 0}, "max_new_tokens must"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        read_patterns(share_model("llava"), encode("llava"), **changes)


def test_a_part_of_a_model_is_refused():
    with pytest.raises(ModelError, match="pass the whole model"):
        read_patterns([], random_image(), mean=True)


def test_an_empty_answer_is_refused(monkeypatch):
    model = eah.load()
    end = model.tokenizer.eos_token_id
    encoding = model.encode(draw_scene(0).pil(), "Is there a cup?")
    ids = torch.cat([encoding["input_ids"], torch.tensor([[end]])], 1)
    monkeypatch.setattr(model, "generate", lambda **_: ids)
    with pytest.raises(InputError, match="every answer ended before its first word"):
        read_patterns(model, encoding, mean=True, words=True)


def test_an_image_token_in_an_answer_is_refused():
    # By chance, the first answer of this random model has one.
    with pytest.raises(InputError, match=r"item 0 holds the image token \(id 4\)"):
        read_patterns(share_model("llava"), encode("llava"), mean=True, words=True)


@pytest.fixture(scope="module")
def said():
    return read_patterns(eah.load(), draw_scene(0).pil(), heads=(3, 7), words=True)


def test_words_that_are_not_there_are_refused(said):
    with pytest.raises(SettingsError, match="word 99 does not exist: expected 0 to 10"):
        said.row("L3H7", word=99)
    with pytest.raises(SettingsError, match="name two rows: expected one"):
        said.row("L3H7", word=0, query=3)
    with pytest.raises(SettingsError, match="name rows twice: expected one"):
        said.plot(words=[0], query=3)
    with pytest.raises(SettingsError, match="or name a word with word="):
        said.row("L3H7")
    with pytest.raises(SettingsError, match="words must be a list of numbers"):
        said.plot(words=[])
    one = read_patterns(eah.load(), random_image(), heads=(3, 7))
    with pytest.raises(SettingsError, match=r"word 0 was not read: .*words=True"):
        one.picture("L3H7", word=0)
    with pytest.raises(SettingsError, match="word 0 was not read"):
        one.plot(words=[0])


def test_a_strip_has_a_panel_for_each_word(said):
    figure = said.plot(draw_scene(0).pil())
    shown = [axes for axes in figure.axes if axes.images]
    shares = said.shares()
    expected = [f"{line.said}\n{line.plain:.0%}" for line in shares.itertuples()]
    assert [axes.get_title() for axes in shown] == expected
    assert shown[0].get_ylabel() == "L3H7"
    some = said.plot(words=[3, 0])
    titles = [axes.get_title() for axes in some.axes if axes.images]
    assert titles == [expected[3], expected[0]]
    sizes = [
        t.get_fontsize() for t in figure.findobj(lambda a: hasattr(a, "get_fontsize"))
    ]
    assert min(sizes) >= 6


def test_latents_have_shares_and_no_picture():
    encoding = encode("idefics2")
    asked = {"mean": True, "words": True, "max_new_tokens": 2}
    found = read_patterns(share_model("idefics2"), encoding, **asked)
    assert found.shares()["plain"].between(0, 1).all()
    with pytest.raises(UnsupportedError, match="learned queries"):
        found.plot()


def test_only_the_asked_rows_are_made_and_of_a_mean_one_layer_at_a_time(monkeypatch):
    made = []

    def watched(queries, keys, **options):
        made.append(tuple(queries.shape[:3]))
        return pattern_blocks(queries, keys, **options)

    monkeypatch.setattr(runs, "pattern_blocks", watched)
    encoding = encode("llava")
    n_items = len(encoding["input_ids"])
    read_patterns(share_model("llava"), encoding, mean=True, query=[-1, -4])
    assert made == [(n_items, 4, 2)] * 3
