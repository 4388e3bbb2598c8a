"""Claims about objects as tokens: spelled in context, found in captions."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from eah_interp.attribution.mentions import (
    Mention,
    capitalise,
    find_mentions,
    inflect,
    pluralise,
)
from eah_interp.attribution.objects import (
    ObjectWord,
    Spelling,
    check_distinct,
    spell_object,
)
from eah_interp.errors import InputError, SettingsError
from eah_interp.testing import tiny_tokenizer
from eah_interp.toy import OBJECTS, build_tokenizer

TEXTS = [
    "There is a boat near the boathouse, and a hot dog on the table.",
    "USER: Is there a dog in the image? ASSISTANT: Yes, there are two dogs.",
    "A person and three people see knives, a knife, boats and a lighthouse.",
    "The woman's boat is small. A butterfly, a sail-boat; a mushroom\nand a café!",
    "The quick brown fox jumps over the lazy dog. 'Pack my box', (5) liquor jugs:",
    " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
]
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrap(core):
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def byte_level():
    """GPT-2's and Qwen's kind: `Ġboat`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    return wrap(core)


def unigram(*, byte_fallback):
    """SentencePiece's Unigram: `▁boat`; unknown letters are <unk> or bytes."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    pieces = [
        (piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"]
    ]
    pieces += [(byte, -30.0) for byte in BYTES] if byte_fallback else []
    core.model = models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrap(core)


def llama():
    """Llama's kind: a BPE whose normalizer writes `▁` and puts one first."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIALS, show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    learnt = json.loads(core.to_str())["model"]
    vocabulary = learnt["vocab"]
    vocabulary |= {byte: len(vocabulary) + i for i, byte in enumerate(BYTES)}
    core.model = models.BPE(
        vocabulary,
        [tuple(pair) for pair in learnt["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("$^"), "isolated")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrap(core)


def wordpiece():
    """BERT's kind, uncased: `boat ##house`, spaces are not kept."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=260, special_tokens=SPECIALS, show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    vocabulary = json.loads(core.to_str())["model"]["vocab"]
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary.setdefault(f"##{letter}", len(vocabulary))
    core.model = models.WordPiece(vocabulary, unk_token="<unk>")
    return wrap(core)


TOKENIZERS = {
    "byte level": byte_level(),
    "unigram": unigram(byte_fallback=False),
    "unigram, bytes": unigram(byte_fallback=True),
    "llama": llama(),
    "wordpiece": wordpiece(),
    "toy": build_tokenizer(),
    "word level": tiny_tokenizer("llava"),
}
OPEN = [kind for kind in TOKENIZERS if kind != "word level"]  # they know all letters
SPACED = {"byte level": "Ġboat", "wordpiece": "boat", "word level": "boat"}


@pytest.fixture(params=TOKENIZERS)
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(kind):
    return TOKENIZERS[kind]


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def pieces(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


# Spelling ---------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "ASSISTANT:", "There is a", "a boat and a"])
def test_a_word_is_written_with_the_space_its_family_wants(kind, tokenizer, before):
    boat = spell_object(tokenizer, "boat", before=before)
    assert pieces(tokenizer, boat.ids) == [SPACED.get(kind, "▁boat")]
    assert boat.name == "boat"
    assert boat.spellings == (Spelling(" boat", boat.ids),)


@pytest.mark.parametrize("kind", OPEN)
@given(
    word=st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8),
    before=st.sampled_from(
        ["", "ASSISTANT:", "There is a", "Is it\n", "(", "a, b", "5"]
    ),
)
def test_the_ids_continue_the_text_with_the_word(kind, word, before):
    tokenizer = TOKENIZERS[kind]
    spelled = spell_object(tokenizer, word, before=before)
    written = (before or "a") + spelled.spellings[0].text
    prefix = encode(tokenizer, before or "a")
    assert encode(tokenizer, written) == [*prefix, *spelled.ids]
    assert decode(tokenizer, [*prefix, *spelled.ids]).endswith(word)
    assert decode(tokenizer, spelled.ids).strip() == word


@pytest.mark.parametrize("kind", ["byte level", "unigram, bytes", "llama"])
@given(word=st.text(st.characters(categories=["L"]), min_size=1, max_size=4))
def test_tokenizers_with_bytes_spell_words_of_every_script(kind, word):
    spelled = spell_object(TOKENIZERS[kind], word, before="There is a")
    assert decode(TOKENIZERS[kind], spelled.ids).strip() == word


def test_a_place_may_be_given_as_tokens(tokenizer):
    for before in ("ASSISTANT:", "There is a"):
        ids = tokenizer.encode(before)
        by_ids = spell_object(tokenizer, "dog", before=ids)
        assert by_ids == spell_object(tokenizer, "dog", before=before)
        assert by_ids == spell_object(tokenizer, "dog", before=tuple(ids))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_prompts_with_images_and_padding_are_places(family):
    tokenizer = tiny_tokenizer(family)
    image = [tokenizer.all_special_ids[-1]] * 3000
    ids = [
        tokenizer.pad_token_id,
        *image,
        *encode(tokenizer, "what is this ? assistant :"),
    ]
    boat = spell_object(tokenizer, "boat", before=ids)
    assert pieces(tokenizer, boat.ids) == ["boat"]
    assert spell_object(tokenizer, "boat", before=image).ids == boat.ids


def test_after_a_line_break_a_bracket_or_a_special_token_there_is_no_space():
    tokenizer = TOKENIZERS["byte level"]
    for before in (
        "assistant\n",
        "see (",
        "The boat.</s>",
        encode(tokenizer, "a.</s>"),
    ):
        boat = spell_object(tokenizer, "boat", before=before)
        assert boat.spellings[0].text == "boat", before
        assert decode(tokenizer, boat.ids) == "boat"
    llama = spell_object(TOKENIZERS["llama"], "boat", before="assistant\n")
    assert "▁" not in "".join(pieces(TOKENIZERS["llama"], llama.ids))


def test_nothing_but_special_tokens_is_the_middle_of_a_sentence(tokenizer):
    for before in ("", (), [tokenizer.bos_token_id], "<s>"):
        boat = spell_object(tokenizer, "boat", before=before)
        assert boat == spell_object(tokenizer, "boat", before="It is a")


def test_an_unknown_word_before_is_a_word():
    tokenizer = TOKENIZERS["word level"]
    before = encode(tokenizer, "a zebra")
    assert before[-1] == tokenizer.unk_token_id
    boat = spell_object(tokenizer, "boat", before=before)
    assert boat.spellings[0].text == " boat"


def test_where_the_tokens_before_would_change_the_other_way_is_taken():
    """After "a " a byte-level BPE would merge the space into the word."""
    tokenizer = TOKENIZERS["byte level"]
    assert encode(tokenizer, "a boat")[:2] != encode(tokenizer, "a ")
    boat = spell_object(tokenizer, "boat", before="a ")
    assert boat.spellings[0].text == " boat"
    assert pieces(tokenizer, boat.ids) == ["Ġboat"]


def test_a_place_that_every_writing_would_change_is_refused():
    """A BPE that merges `x` with what follows, space or not."""
    vocabulary = {piece: i for i, piece in enumerate([*"abotxĠ", "xb", "xĠ", "<unk>"])}
    core = Tokenizer(
        models.BPE(vocabulary, [("x", "b"), ("x", "Ġ")], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()
    tokenizer = wrap(core)
    assert spell_object(tokenizer, "boat", before="a").spellings[0].text == " boat"
    with pytest.raises(
        InputError, match=r"'boat' cannot be written after 'ax'.* expected"
    ):
        spell_object(tokenizer, "boat", before="ax")


def test_a_word_is_never_glued_to_the_one_before():
    """Where only the spaceless writing is known, "a" + "hut" would read "ahut"."""
    core = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "ahut:")], 0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = wrap(core)
    glued = spell_object(tokenizer, "hut", before="a:")
    assert glued.spellings[0].text == "hut"
    with pytest.raises(SettingsError, match="cannot spell 'hut'"):
        spell_object(tokenizer, "hut", before="a")


def test_words_of_several_tokens_keep_them_all():
    tokenizer = TOKENIZERS["toy"]
    lighthouse = spell_object(tokenizer, "lighthouse", before="ASSISTANT:")
    assert pieces(tokenizer, lighthouse.ids) == ["▁light", "house"]
    assert pieces(tokenizer, lighthouse.first_ids) == ["▁light"]
    assert len(spell_object(TOKENIZERS["word level"], "red cup").ids) == 2


def test_synonyms_follow_the_word():
    tokenizer = TOKENIZERS["word level"]
    boat = spell_object(tokenizer, "boat", synonyms=["ship", "big boat"])
    assert [s.text for s in boat.spellings] == [" boat", " ship", " big boat"]
    assert pieces(tokenizer, boat.first_ids) == ["boat", "ship", "big"]
    assert boat.ids == boat.spellings[0].ids


def test_all_forms_are_capitalised_and_plural_ones_too():
    tokenizer = TOKENIZERS["byte level"]
    plain = spell_object(tokenizer, "knife", synonyms=["box"])
    full = spell_object(tokenizer, "knife", synonyms=["box"], forms="all")
    assert [s.text for s in plain.spellings] == [" knife", " box"]
    forms = ["knife", "box", "Knife", "knives", "Knives", "Box", "boxes", "Boxes"]
    assert [s.text for s in full.spellings] == [f" {form}" for form in forms]
    assert full.spellings[:2] == plain.spellings
    assert len(full.first_ids) == len(set(full.first_ids))
    assert set(full.first_ids) == {s.ids[0] for s in full.spellings}


def test_forms_that_cannot_be_spelled_or_do_not_differ_are_left_out():
    """The word-level tokenizer is uncased and knows few plurals."""
    tokenizer = TOKENIZERS["word level"]
    person = spell_object(tokenizer, "person", synonyms=["Person"], forms="all")
    assert [s.text for s in person.spellings] == [" person", " people"]
    boat = spell_object(tokenizer, "boat", forms="all")
    assert [s.text for s in boat.spellings] == [" boat"]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("word level", "zebra"),
        ("word level", "boats"),
        ("unigram", "café船"),
        ("toy", "café"),
        ("wordpiece", "船"),
        ("toy", "<image>"),
        ("byte level", "</s>boat"),
        ("word level", "red-cup"),  # reads "red - cup"
    ],
)
def test_a_word_that_does_not_come_back_is_refused(kind, word):
    tokenizer = TOKENIZERS[kind]
    with pytest.raises(SettingsError, match=f"cannot spell {word!r}: expected .* got"):
        spell_object(tokenizer, word)
    with pytest.raises(SettingsError, match=f"cannot spell {word!r}"):
        spell_object(tokenizer, "boat", synonyms=[word], forms="all")


def test_the_refusal_shows_what_the_tokenizer_made_of_the_word():
    with pytest.raises(SettingsError, match="got <unk> for '<unk>'; use a word"):
        spell_object(TOKENIZERS["word level"], "zebra")


@pytest.mark.parametrize(
    ("word", "synonyms", "message"),
    [
        ("", (), "letters or digits"),
        (" ", (), "letters or digits"),
        ("\n", (), "letters or digits"),
        ("--", (), "letters or digits"),
        (" boat", (), "no spaces around them, got ' boat'"),
        ("boat", [""], "letters or digits"),
        ("boat", ["boat"], "different words, got 'boat' twice"),
        ("boat", ["dog", "dog"], "different words, got 'dog' twice"),
        ("boat", "ship", "a list of words, got the text 'ship'"),
    ],
)
def test_impossible_words_are_refused(word, synonyms, message):
    with pytest.raises(SettingsError, match=message):
        spell_object(TOKENIZERS["toy"], word, synonyms=synonyms)


def test_unknown_forms_are_refused(as_users_run_it):
    with pytest.raises(SettingsError, match="forms: expected one of"):
        spell_object(TOKENIZERS["toy"], "boat", forms="plural")


def test_negative_tokens_before_a_word_are_refused():
    with pytest.raises(InputError, match="expected 0 or more, got -100"):
        spell_object(TOKENIZERS["toy"], "boat", before=[5, -100])


# Telling objects apart --------------------------------------------------------------


def test_objects_of_the_toy_are_distinct():
    check_distinct([spell_object(TOKENIZERS["toy"], name) for name in OBJECTS])


def test_objects_that_start_alike_are_refused():
    tokenizer = TOKENIZERS["toy"]
    words = [spell_object(tokenizer, name) for name in ("boat", "zebra", "yak")]
    check_distinct(words[:2])
    space = words[1].ids[0]
    message = rf"'zebra' and 'yak' .* token {space} for ' zebra' .* metric='log_prob'"
    with pytest.raises(SettingsError, match=message):
        check_distinct(words)


def test_a_start_shared_by_a_synonym_is_refused():
    boat = ObjectWord("boat", (Spelling(" boat", (7,)), Spelling(" ship", (8, 9))))
    fish = ObjectWord("fish", (Spelling(" fish", (5,)), Spelling(" shark", (8, 1))))
    check_distinct([boat])
    with pytest.raises(SettingsError, match="token 8 for ' ship' and ' shark'"):
        check_distinct([boat, fish])


def test_the_same_object_twice_or_none_is_refused():
    boat = ObjectWord("boat", (Spelling(" boat", (7,)),))
    with pytest.raises(SettingsError, match="got 'boat' twice"):
        check_distinct([boat, boat])
    with pytest.raises(SettingsError, match="at least one"):
        check_distinct([])


# Mentions ---------------------------------------------------------------------------

ASKED = ("boat", "dog", "hot dog", "person", "knife")
NAIVE = {
    "hot dog": r"hot[\s-]dogs?",  # first, and its dog is no other
    "dog": "dogs?",
    "boat": "boats?",
    "person": "persons?|people",
    "knife": "knife|knives",
}
PARTS = (
    *("a", "the", "boat", "boats", "Boat", "boathouse", "BOAT", "dog", "dogs", "hot"),
    *("hotdog", "Hot", "hot dog", "hot-dogs", "person", "People", "personal", "knife"),
    *("knives", "'", ",", ".", "-", "\n", "é", "船", "5", "_"),
)
CAPTION = st.lists(st.sampled_from(PARTS), max_size=40).map(" ".join)


def count_naively(text):
    """Count names where words are parted by one hyphen or space, however written."""
    text = re.sub(r"\s*-\s*", "-", re.sub(r"\s+", " ", text))
    found = []
    for name, pattern in NAIVE.items():
        whole = rf"(?<!\w)(?:{pattern})(?!\w)"
        text, n = re.subn(whole, "|", text, flags=re.IGNORECASE)
        found += [name] * n
    return sorted(found)


def locate_naively(tokenizer, ids, mention, begin):
    """Find the tokens of an ASCII mention by decoding every beginning."""
    lengths = [len(decode(tokenizer, ids[:k])) for k in range(len(ids) + 1)]
    start = next(k for k in range(len(ids)) if lengths[k + 1] > begin)
    end = begin + len(mention.text)
    return start, next(k for k in range(len(ids) + 1) if lengths[k] >= end)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=CAPTION)
@example(text="hot - dog")
@example(text="a hot \n dog and hot - - dogs")
def test_mentions_are_those_a_naive_search_of_the_text_finds(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, text)
    mentions = find_mentions(tokenizer, ids, ASKED)
    written = decode(tokenizer, ids).replace("<unk>", "\x00")  # no text: never letters
    assert sorted(m.name for m in mentions) == count_naively(written)
    for mention in mentions:
        assert mention.text in decode(tokenizer, ids[mention.start : mention.stop])
        assert mention.text not in decode(
            tokenizer, ids[mention.start + 1 : mention.stop]
        )
        assert mention.text not in decode(
            tokenizer, ids[mention.start : mention.stop - 1]
        )


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(
    words=st.lists(
        st.sampled_from(["a", "the", "boat", "boats", "boathouse", "hot dog", "knife"]),
        min_size=15,
        max_size=35,
    )
)
def test_mentions_lie_where_decoding_every_beginning_puts_them(kind, words):
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, " ".join(words))
    text = decode(tokenizer, ids)
    mentions = find_mentions(tokenizer, ids, ["boat"])
    begins = [m.start() for m in re.finditer(r"\bboats?\b", text)]
    for mention, begin in zip(mentions, begins, strict=True):
        place = locate_naively(tokenizer, ids, mention, begin)
        # A word's token may hold its space too: then both name the same token.
        assert (mention.start, mention.stop) == place


@pytest.mark.parametrize("kind", ["byte level", "unigram, bytes", "llama", "toy"])
@given(data=st.data())
def test_mentions_are_found_among_any_tokens(kind, data):
    """As a model may write them: broken bytes, spaces alone, another segmentation."""
    tokenizer = TOKENIZERS[kind]
    boat = st.sampled_from(["boat", " boat", " boats", " Boat"])
    part = st.one_of(
        boat.map(lambda text: encode(tokenizer, text)),
        st.lists(st.integers(4, len(tokenizer) - 1), max_size=5),
        st.sampled_from([" b", "o", "a", "t"]).map(
            lambda text: encode(tokenizer, text)
        ),
    )
    drawn = data.draw(st.lists(part, min_size=1, max_size=25))
    ids = [i for some in drawn for i in some if i not in tokenizer.all_special_ids]
    text = decode(tokenizer, ids)
    mentions = find_mentions(tokenizer, ids, ["boat"])
    pattern = r"(?<!\w)boats?(?![\w\u0300-\u036f])"
    assert [m.text for m in mentions] == re.findall(pattern, text, re.IGNORECASE)
    for mention in mentions:
        assert mention.text in decode(tokenizer, ids[mention.start : mention.stop])
        assert mention.text not in decode(
            tokenizer, ids[mention.start + 1 : mention.stop]
        )


def test_a_mention_starts_at_the_token_of_its_first_letter():
    """The toy writes an unknown word's space as a token of its own."""
    tokenizer = TOKENIZERS["toy"]
    ids = encode(tokenizer, "There is a yak.")
    assert pieces(tokenizer, ids) == ["▁There", "▁is", "▁a", "▁", "y", "a", "k", "."]
    assert find_mentions(tokenizer, ids, ["yak"]) == (Mention("yak", "yak", 4, 7),)


@pytest.mark.parametrize("kind", ["byte level", "unigram, bytes", "llama"])
def test_a_mention_holds_every_byte_of_its_letters(kind):
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, "The 船, an écrou")
    [ship, nut] = find_mentions(tokenizer, ids, ["船", "écrou"])
    for mention, text in ((ship, "船"), (nut, "écrou")):
        assert decode(tokenizer, ids[mention.start : mention.stop]).strip() == text
        shorter = decode(tokenizer, ids[mention.start + 1 : mention.stop])
        assert shorter.strip() != text
        assert decode(tokenizer, ids[mention.start : mention.stop - 1]).strip() != text


@pytest.mark.parametrize("kind", ["byte level", "unigram, bytes", "llama"])
@given(words=st.integers(0, 30), after=st.sampled_from(["…", "……", " …", "", "🙂"]))
def test_bytes_around_a_mention_do_not_move_it(kind, words, after):
    """Byte tokens in a row read as nothing until the last of them is there."""
    tokenizer = TOKENIZERS[kind]
    ids = encode(tokenizer, "a " * words + "…船" + after + " a" * words)
    [ship] = find_mentions(tokenizer, ids, ["船"])
    ends = [k for k in range(len(ids) + 1) if "船" in decode(tokenizer, ids[:k])]
    assert ship.stop == ends[0]
    assert decode(tokenizer, ids[ship.start : ship.stop]) == "船"


def test_the_longest_name_wins(tokenizer):
    ids = encode(tokenizer, "a red cup, a red, a cup and a red dog")
    found = find_mentions(tokenizer, ids, ["cup", "red", "red cup"])
    assert [m.name for m in found] == ["red cup", "red", "cup", "red"]
    found = find_mentions(tokenizer, ids, ["cup", "dog"], synonyms={"dog": ["red cup"]})
    assert [(m.name, m.text) for m in found] == [
        ("dog", "red cup"),
        ("cup", "cup"),
        ("dog", "dog"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a boathouse and a riverboat", []),
        ("a boat_2 and a boat2", []),
        ("a cafe\u0301", []),  # a combining accent goes on with the word
        ("the boat's sail", ["boat"]),
        ("a sail-boat", ["boat"]),
        ("'boat'", ["boat"]),
        ("(boat/cafe)", ["boat", "cafe"]),
        ("Boats.boat", ["Boats", "boat"]),
    ],
)
def test_only_whole_words_count(text, found):
    tokenizer = TOKENIZERS["byte level"]
    mentions = find_mentions(tokenizer, encode(tokenizer, text), ["boat", "cafe"])
    assert [mention.text for mention in mentions] == found


def test_plurals_and_synonyms_are_the_object():
    tokenizer = TOKENIZERS["byte level"]
    ids = encode(tokenizer, "Knives, a blade, two BLADES and the person with people.")
    words = ["knife", "person"]
    found = find_mentions(tokenizer, ids, words, synonyms={"knife": ["blade"]})
    assert [(m.name, m.text) for m in found] == [
        ("knife", "Knives"),
        ("knife", "blade"),
        ("knife", "BLADES"),
        ("person", "person"),
        ("person", "people"),
    ]


def test_an_accent_may_be_typed_apart_from_its_letter():
    tokenizer = TOKENIZERS["byte level"]
    [mention] = find_mentions(tokenizer, encode(tokenizer, "a café"), ["cafe\u0301"])
    assert (mention.name, mention.text) == ("cafe\u0301", "café")


def test_a_given_name_goes_before_a_plural():
    tokenizer = TOKENIZERS["byte level"]
    ids = encode(tokenizer, "a glass and glasses")
    found = find_mentions(tokenizer, ids, ["glass", "glasses"])
    assert [m.name for m in found] == ["glass", "glasses"]


def test_special_tokens_are_skipped_and_counted(tokenizer):
    caption = encode(tokenizer, "There is a boat")
    start, stop, pad = (
        tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>")
    )
    [alone] = find_mentions(tokenizer, caption, ["boat"])
    ids = [pad, pad, start, *caption, stop, pad]
    [mention] = find_mentions(tokenizer, ids, ["boat"])
    assert (mention.start, mention.stop) == (alone.start + 3, alone.stop + 3)
    again = find_mentions(tokenizer, [*ids, *caption], ["boat", "boat there"])
    assert [m.name for m in again] == ["boat", "boat"]


def test_special_tokens_are_no_names():
    tokenizer = TOKENIZERS["word level"]
    ids = encode(tokenizer, "a zebra and a <pad>")
    assert tokenizer.unk_token_id in ids
    assert find_mentions(tokenizer, ids, ["unk", "pad"]) == ()


def test_a_caption_without_the_objects_has_no_mentions(tokenizer):
    assert find_mentions(tokenizer, encode(tokenizer, "There is a tree."), ASKED) == ()
    assert find_mentions(tokenizer, [], ["boat"]) == ()


def test_captions_of_the_toy_name_their_objects():
    tokenizer = TOKENIZERS["toy"]
    for name in OBJECTS:
        ids = encode(tokenizer, f"The image shows a {name}.")
        [mention] = find_mentions(tokenizer, ids, OBJECTS)
        spelled = spell_object(tokenizer, name, before="The image shows a")
        assert mention.name == name
        assert tuple(ids[mention.start : mention.stop]) == spelled.ids


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, ids, **settings):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **settings)


def test_long_captions_are_read_in_linear_time(tokenizer):
    ids = encode(tokenizer, "There is a boat and the 船🙂 on a table. ") * 100
    counting = Counting(tokenizer)
    assert len(find_mentions(counting, ids, ["boat"])) == 100
    assert counting.decoded < 20 * len(ids)


def test_the_tokens_of_an_image_are_not_read_for_the_word_after_it():
    tokenizer = TOKENIZERS["word level"]
    counting = Counting(tokenizer)
    image = [tokenizer.convert_tokens_to_ids("<image>")] * 3000
    before = [*image, *encode(tokenizer, "what is this ? assistant :")]
    boat = spell_object(counting, "boat", before=before)
    assert pieces(tokenizer, boat.ids) == ["boat"]
    assert counting.decoded < 50


class Shouting:
    """A tokenizer whose `^` makes all that follows uppercase: no window shows it."""

    all_special_ids = ()

    def decode(self, ids, *, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        quiet, _, loud = "".join(map(chr, ids)).partition("^")
        return quiet + loud.upper()


def test_a_tokenizer_that_windows_misread_is_read_from_the_start():
    text = "a boat ^" + "and " * 20 + "a boat"
    ids = list(map(ord, text))
    found = find_mentions(Shouting(), ids, ["boat"])
    assert [m.text for m in found] == ["boat", "BOAT"]
    assert [(m.start, m.stop) for m in found] == [(2, 6), (len(ids) - 4, len(ids))]


@pytest.mark.parametrize(
    ("words", "synonyms", "message"),
    [
        ([], None, "at least one word"),
        ([""], None, "letters or digits"),
        (["boat", " "], None, "letters or digits"),
        ("boat", None, "a list of words, got the text 'boat'"),
        (["boat", "boat"], None, "got 'boat' twice"),
        (["boat", "Boat"], None, "'Boat' names two objects.* 'boat' and 'Boat'"),
        (["boat"], {"dog": ["puppy"]}, r"among \['boat'\], got some for 'dog'"),
        (["boat"], {"boat": [""]}, "synonyms of 'boat': expected words"),
        (["boat"], {"boat": "ship"}, "synonyms of 'boat': .* the text 'ship'"),
        (["boat"], {"boat": ["boat"]}, "got 'boat' twice"),
        (["boat", "car"], {"car": ["boat"]}, "'boat' names two objects"),
        (["ax", "axe"], None, "'axes' names two objects"),
    ],
)
def test_impossible_names_are_refused(words, synonyms, message):
    with pytest.raises(SettingsError, match=message):
        find_mentions(TOKENIZERS["toy"], [7, 8], words, synonyms=synonyms)


def test_negative_tokens_are_refused():
    with pytest.raises(InputError, match="expected 0 or more, got -100"):
        find_mentions(TOKENIZERS["toy"], [7, -100], ["boat"])


# English ----------------------------------------------------------------------------

PLURALS = (
    "boat boats, bus buses, glass glasses, box boxes, bench benches, brush brushes, "
    "stomach stomachs, knife knives, shelf shelves, bookshelf bookshelves, "
    "giraffe giraffes, roof roofs, handkerchief handkerchiefs, person people, "
    "woman women, snowman snowmen, human humans, child children, mouse mice, "
    "house houses, blouse blouses, goose geese, mongoose mongooses, foot feet, "
    "tooth teeth, ox oxen, fox foxes, baby babies, toy toys, key keys, "
    "butterfly butterflies, potato potatoes, photo photos, zoo zoos, sheep sheep, "
    "fish fish, starfish starfish, reindeer reindeer, aircraft aircraft, "
    "scissors scissors, skis skis, glasses glasses, boats boats, lens lenses, "
    "series series, oasis oases, quiz quizzes, cactus cacti, waltz waltzes, "
    "people people, TV TVs, Person People, café cafés, t-shirt t-shirts, 船 船, 5 5"
)


@pytest.mark.parametrize("pair", PLURALS.split(", "))
def test_plurals_are_english(pair):
    singular, plural = pair.split()
    assert pluralise(singular) == plural


def test_phrases_change_in_their_head():
    assert pluralise("hot dog") == "hot dogs"
    assert pluralise("traffic light") == "traffic lights"
    assert pluralise("cup of tea") == "cups of tea"
    assert pluralise("man with a hat") == "men with a hat"
    assert pluralise("mother-in-law") == "mothers-in-law"


def test_forms_are_different_and_start_with_the_word():
    assert inflect("TV") == ("TV", "TVs")
    assert inflect("boat") == ("boat", "Boat", "boats", "Boats")
    assert capitalise("") == ""
