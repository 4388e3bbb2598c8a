"""Objects as token ids: how a model would write a word at a given place."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from eah_interp.attribution.mentions import check_words, decode_exactly, inflect
from eah_interp.errors import InputError, SettingsError, show_value

Forms = Literal["word", "all"]

_STAND_IN = "a"  # what a word follows where nothing is said to be before it

_OPENING = (
    "([{<\u201c\u2018\u00ab\u2014/"  # after these a word is written without a space
)


@dataclass(frozen=True)
class Spelling:
    """One way of writing an object.

    Attributes:
        text: As written, leading space included: " boat".
        ids: The tokens that write it in that context.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ObjectWord:
    """An object and how a model would name it.

    Attributes:
        name: As the user wrote it: "boat".
        spellings: Different token sequences; the first writes the word itself.
    """

    name: str
    spellings: tuple[Spelling, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the word itself."""
        return self.spellings[0].ids

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The different first tokens of all spellings, in order."""
        return tuple(dict.fromkeys(spelling.ids[0] for spelling in self.spellings))


@dataclass(frozen=True)
class _Place:
    """Where a word is written: after which text and tokens, with a space or not."""

    tokenizer: Any
    text: str
    ids: list[int]
    spaced: bool


def spell_object(
    tokenizer: Any,
    word: str,
    *,
    before: str | Sequence[int] = "",
    synonyms: Sequence[str] = (),
    forms: Forms = "word",
) -> ObjectWord:
    """Spell an object as the tokenizer writes it at a given place.

    The ids are those that the tokenizer adds when the word is written after `before`.
    A space is put between the two unless `before` ends in whitespace, an opening
    bracket or a special token; where that would change the tokens of `before` or
    cannot be spelled, the other way is taken. Spelled means that decoding the ids
    gives back the word, a whole word (in an uncased tokenizer: whatever its case).

    *Not* covered: languages written without spaces; token sequences other than the
    tokenizer's own that would also write the word. If a tokenizer writes the space
    as a token of its own, that token is the word's first.

    Args:
        tokenizer: The model's tokenizer.
        word: The object: "boat", "hot dog".
        before: The text, or token ids, directly before the word: the end of the
            prompt "ASSISTANT:", or of a caption, "There is a". Where it is empty, or
            special tokens only, the word is taken to be in the middle of a sentence.
        synonyms: Other words for the same object.
        forms: "word", the word and its synonyms as they are; "all", also capitalised,
            in the plural, and both, as far as the tokenizer can spell them.

    Returns:
        The word with its spellings: the word, the synonyms, then the other forms.

    Raises:
        SettingsError: If `forms` is unknown, a word is empty or given twice, or the
            tokenizer cannot spell the word or a synonym.
        InputError: If every way of writing the word changes the tokens of `before`,
            or a token id is negative.

    Example:
        >>> from eah_interp.toy import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> boat = spell_object(tokenizer, "boat", before="There is a")
        >>> boat.spellings[0].text, tokenizer.convert_ids_to_tokens(boat.ids)
        (' boat', ['▁boat'])
        >>> spelled = spell_object(tokenizer, "bicycle", synonyms=["star"])
        >>> tokenizer.convert_ids_to_tokens(spelled.first_ids)
        ['▁bi', '▁star']
    """
    if not isinstance(forms, str) or forms not in get_args(Forms):
        msg = f"forms: expected one of {list(get_args(Forms))}, got {show_value(forms)}"
        raise SettingsError(msg)
    if synonyms:
        check_words(synonyms, role="synonyms")
    given = (word, *synonyms)
    check_words(given, role="word and synonyms")
    place = _find_place(tokenizer, before)
    found = [_write(place, name) or _refuse(place, name) for name in given]
    if forms == "all":
        others = [_write(place, form) for name in given for form in inflect(name)]
        found += [spelling for spelling in others if spelling is not None]
    different: dict[tuple[int, ...], Spelling] = {}
    for spelling in found:
        different.setdefault(spelling.ids, spelling)
    return ObjectWord(word, tuple(different.values()))


def check_beginnings(tokenizer: Any, words: Sequence[ObjectWord]) -> None:
    """Check that first tokens are of their words: no blank, which begins every word.

    Args:
        tokenizer: The model's tokenizer.
        words: The objects, spelled.

    Raises:
        SettingsError: If the tokenizer writes the space before a word, or a synonym of
            it, as a token of its own.

    Example:
        >>> from eah_interp.toy import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> check_beginnings(tokenizer, [spell_object(tokenizer, "zebra")])
        Traceback (most recent call last):
        ...
        eah_interp.errors.SettingsError: the tokenizer has no token that begins ...
    """
    for word in words:
        for spelling in word.spellings:
            if not decode_exactly(tokenizer, spelling.ids[:1]).strip():
                tokens = tokenizer.convert_ids_to_tokens(list(spelling.ids[:2]))
                msg = (
                    "the tokenizer has no token that begins "
                    f"{spelling.text.strip()!r}: it writes "
                    f"{', '.join(map(repr, tokens))}, ..., of which the first begins "
                    "every word; name another object, or use metric='log_prob', which "
                    "reads whole words (without synonyms)"
                )
                raise SettingsError(msg)


def check_distinct(words: Sequence[ObjectWord]) -> None:
    """Check that one logit can tell objects apart: no two start with the same token.

    Args:
        words: The objects, spelled.

    Raises:
        SettingsError: If there are none, or if two have the same name or a first
            token in common.

    Example:
        >>> from eah_interp.toy import build_tokenizer
        >>> words = [spell_object(build_tokenizer(), w) for w in ("zebra", "yak")]
        >>> check_distinct(words)
        Traceback (most recent call last):
        ...
        eah_interp.errors.SettingsError: 'zebra' and 'yak' cannot be told apart ...
    """
    check_words([word.name for word in words], role="objects")
    starts: dict[int, ObjectWord] = {}
    for word in words:
        for token in word.first_ids:
            other = starts.setdefault(token, word)
            if other is not word:
                msg = (
                    f"{other.name!r} and {word.name!r} cannot be told apart by the "
                    "logit of one token: expected different first tokens, got token "
                    f"{token} for {_text_with(other, token)!r} and "
                    f"{_text_with(word, token)!r}; use metric='log_prob', which spells "
                    "whole words"
                )
                raise SettingsError(msg)


def _text_with(word: ObjectWord, first: int) -> str:
    return next(s.text for s in word.spellings if s.ids[0] == first)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]


def _find_place(tokenizer: Any, before: str | Sequence[int]) -> _Place:
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if isinstance(before, str):
        text, ids = before, _encode(tokenizer, before)
    else:
        # Tokens do not reach across special ones, such as thousands of an image.
        last = max((i for i, t in enumerate(before) if t in special), default=0)
        text, ids = decode_exactly(tokenizer, before[last:]), list(before)
    if all(token in special for token in ids):
        text, spaced = _STAND_IN, True
    else:
        closed = text[-1:].isspace() or text.endswith(tuple(_OPENING))
        spaced = not closed and ids[-1] not in special
    return _Place(tokenizer, text, _encode(tokenizer, text), spaced)


def _continue(place: _Place, word: str) -> list[Spelling]:
    """Write a word after a place, with and without a space, if its tokens stay."""
    n = len(place.ids)
    found = []
    for text in (f" {word}", word) if place.spaced else (word, f" {word}"):
        ids = _encode(place.tokenizer, place.text + text)
        if ids[:n] == place.ids and len(ids) > n:
            found.append(Spelling(text, tuple(ids[n:])))
    return found


def _write(place: _Place, word: str) -> Spelling | None:
    """Spell a word at a place, or find that it cannot be."""
    return next((s for s in _continue(place, word) if _reads(place, s, word)), None)


def _reads(place: _Place, spelling: Spelling, word: str) -> bool:
    """Whether tokens give back a word: alone, and as a whole word at their place."""
    if set(spelling.ids) & set(place.tokenizer.all_special_ids):
        return False
    alone = decode_exactly(place.tokenizer, spelling.ids).strip()
    joined = decode_exactly(place.tokenizer, [*place.ids, *spelling.ids])
    rest = joined.removesuffix(alone)
    return _fold(alone) == _fold(word) and not rest[-1:].isalnum()


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _refuse(place: _Place, word: str) -> NoReturn:
    """Explain why a word cannot be spelled at a place."""
    written = _continue(place, word)
    if not written:
        msg = (
            f"{word!r} cannot be written after {place.text[-20:]!r}: expected the "
            "tokens before it to stay as they are, but the tokenizer merges them with "
            "the word; end `before` where a token ends, without a trailing space"
        )
        raise InputError(msg)
    tokens = place.tokenizer.convert_ids_to_tokens(list(written[0].ids))
    read = decode_exactly(place.tokenizer, written[0].ids).strip()
    msg = (
        f"the tokenizer cannot spell {word!r}: expected tokens that give back the "
        f"word, got {', '.join(map(str, tokens))} for {read!r}; use a word that the "
        "model knows, or a synonym"
    )
    raise SettingsError(msg)
