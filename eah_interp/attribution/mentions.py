"""Where a generated caption names objects, as places among its tokens."""

import bisect
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eah_interp.errors import InputError, SettingsError, show_value

# ---- Objects as English words: checked, capitalised, put into the plural.


_UNCHANGED = (
    *("fish", "sheep", "deer", "moose", "bison", "swine", "shrimp", "squid", "salmon"),
    *("trout", "offspring", "craft", "chassis", "skis"),
)

_PLURAL_ALREADY = {"people", "men", "women", "children", "mice", "geese", "feet"}

_MEN_ARE_NOT = ("human", "german", "roman", "norman", "shaman", "talisman", "ottoman")

_IRREGULAR = {
    "person": "people",
    "man": "men",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "cactus": "cacti",
    "quiz": "quizzes",
    "sis": "ses",
    "wolf": "wolves",
    "half": "halves",
    "calf": "calves",
    "loaf": "loaves",
    "elf": "elves",
    "leaf": "leaves",
    "thief": "thieves",
    "scarf": "scarves",
    "hoof": "hooves",
    "knife": "knives",
    "wife": "wives",
    "life": "lives",
}
"""Ends of words: `bookshelf` changes as `elf` does."""

_TAKES_ES = (
    *("s", "x", "z", "ch", "sh"),
    *("tomato", "potato", "hero", "echo", "mango", "volcano", "tornado", "mosquito"),
)

_TAKES_S = ("stomach", "monarch", "epoch", "loch")

_PLURAL_END = re.compile(
    r".*(?:es|[^aeious]s)(?<!lens)"
)  # boxes, knives, boats; not bus, glass

_HEAD = re.compile(r"(.+?)((?:[ -](?:of|in|on|with|for)[ -].+)?)", re.DOTALL)


def check_words(words: Sequence[str], *, role: str) -> None:
    """Check that words can name objects.

    Args:
        words: What to check, in the user's writing.
        role: What the words are, for the message: "words".

    Raises:
        SettingsError: If there are none, if one is empty, has spaces around it or
            neither a letter nor a digit, or if one is given twice.

    Example:
        >>> check_words(["boat", "hot dog"], role="words")
        >>> check_words(["boat", " "], role="words")
        Traceback (most recent call last):
        ...
        eah_interp.errors.SettingsError: words: expected words such as 'boat', ...
    """
    if isinstance(words, str):
        msg = f"{role}: expected a list of words, got the text {words!r}; pass [...]"
        raise SettingsError(msg)
    if not words:
        msg = f"{role}: expected at least one word such as 'boat', got none"
        raise SettingsError(msg)
    for word in words:
        if word != word.strip() or not any(letter.isalnum() for letter in word):
            msg = (
                f"{role}: expected words such as 'boat', with letters or digits and "
                f"no spaces around them, got {word!r}; write the word alone, the space "
                "before it is added as the tokenizer wants it"
            )
            raise SettingsError(msg)
    twice = [word for i, word in enumerate(words) if word in words[:i]]
    if twice:
        msg = f"{role}: expected different words, got {twice[0]!r} twice; keep one"
        raise SettingsError(msg)


def capitalise(word: str) -> str:
    """Write the first letter large and leave the others as they are.

    Example:
        >>> capitalise("hot dog"), capitalise("TV")
        ('Hot dog', 'TV')
    """
    return word[:1].upper() + word[1:]


def pluralise(word: str) -> str:
    """Put an English noun into its usual plural.

    Rules for endings (bus, knife, baby), irregular nouns of everyday scenes (person,
    mouse, sheep) and their compounds (bookshelf, snowman). A phrase changes in its
    head: the last word, or the one before `of`, `in`, `on`, `with`, `for`. A word that
    does not end in a Latin letter, and one that looks like a plural (boats), is left as
    it is. *Not* covered: rarer foreign plurals (octopodes), second plurals (fishes,
    cactuses), words that look like a plural and are none, but for `lens`.

    Args:
        word: A noun or noun phrase.

    Returns:
        Its plural.

    Example:
        >>> [pluralise(word) for word in ("boat", "bus", "knife", "person", "sheep")]
        ['boats', 'buses', 'knives', 'people', 'sheep']
        >>> pluralise("glass of water"), pluralise("hot dog")
        ('glasses of water', 'hot dogs')
    """
    match = _HEAD.fullmatch(word)
    head, rest = match.groups() if match else (word, "")
    if not unicodedata.name(head[-1:] or " ", "").startswith("LATIN"):
        return word
    plural = _pluralise_head(head)
    return (capitalise(plural) if head[0].isupper() else plural) + rest


def _pluralise_head(head: str) -> str:
    lower = head.lower()
    last = re.split(r"[ -]", lower)[-1]
    if last in _PLURAL_ALREADY or _PLURAL_END.fullmatch(last):
        return head
    if last.endswith(_UNCHANGED):
        return head
    if last == "ox":
        return f"{head}en"
    if not last.endswith((*_MEN_ARE_NOT, "mongoose")):
        for ending, plural in _IRREGULAR.items():
            if last.endswith(ending):
                return head[: -len(ending)] + plural
    if last.endswith("y") and last[-2:-1] not in {*"aeiou", ""}:
        return f"{head[:-1]}ies"
    if last.endswith(_TAKES_ES) and not last.endswith(_TAKES_S):
        return f"{head}es"
    return f"{head}s"


def inflect(word: str) -> tuple[str, ...]:
    """List a word's forms: itself, capitalised, plural, capitalised plural.

    Example:
        >>> inflect("knife"), inflect("Sheep")
        (('knife', 'Knife', 'knives', 'Knives'), ('Sheep',))
    """
    plural = pluralise(word)
    forms = (word, capitalise(word), plural, capitalise(plural))
    return tuple(dict.fromkeys(forms))


_MOST_IDS = 2**32
"""Tokenizers count their tokens in 32 bits."""

_LETTER = r"[\w\u0300-\u036f]"  # with combining accents, which `\w` leaves out

_JOINT = r"(?:\s*-\s*|\s+)"  # "hot dog", "hot-dog", and "hot - dog" of word-level ones

_WINDOW, _CONTEXT = 16, 4  # tokens decoded together, and those before them


@dataclass(frozen=True)
class Mention:
    """A place in a caption where an object is named.

    Attributes:
        name: Which object, as the user wrote it.
        text: What the caption says: "boats".
        start: Index of the first token that holds one of its letters.
        stop: One past the index of the last token that does.
    """

    name: str
    text: str
    start: int
    stop: int


def find_mentions(
    tokenizer: Any,
    ids: Sequence[int],
    words: Sequence[str],
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Mention, ...]:
    """Find every place in a caption's tokens where an object is named.

    An object is named by its word, by a synonym, and by the plural of either, in any
    case. Only whole words count: "boathouse" is not a boat, "boat's" and "sail-boat"
    are. At one place the longest name wins, so that "hot dog" is no dog if hot dogs
    are asked for. A name of several words may be hyphenated. A name that is given
    goes before a plural: of "glass" and "glasses", "glasses" is the second.

    What is searched is the decoded text, and it is mapped back by decoding the
    tokens' growing beginnings, so no offsets are needed and the ids need not be those
    that encoding the text would give. Special tokens (start, end, padding, unknown)
    are no text: a name does not reach across them. *Not* covered: a name that is cut
    off by the end of the caption, and other languages' inflections.

    Args:
        tokenizer: Decodes ids: the model's tokenizer.
        ids: The caption's token ids, usually as generated.
        words: The objects.
        synonyms: More names of an object, by its word.

    Returns:
        The mentions in the order of the caption; none if no object is named.

    Raises:
        SettingsError: If `words` is empty, a word or synonym is empty or given twice,
            one name (or one plural) means two objects, or synonyms are given for a
            word that is not among `words`.
        InputError: If a token id is negative.

    Example:
        >>> from eah_interp.toy import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> ids = tokenizer.encode("There is a lighthouse.", add_special_tokens=False)
        >>> tokenizer.convert_ids_to_tokens(ids)
        ['▁There', '▁is', '▁a', '▁light', 'house', '.']
        >>> find_mentions(tokenizer, ids, ["house", "lighthouse"])
        (Mention(name='lighthouse', text='lighthouse', start=3, stop=5),)
    """
    pattern, names = _compile(_list_names(words, synonyms or {}))
    mentions = []
    for offset, run in _split_at_specials(tokenizer, ids):
        text = decode_exactly(tokenizer, run)
        found = list(pattern.finditer(text))
        if not found:
            continue
        begun, done = _map_to_tokens(tokenizer, run, text)
        for match in found:
            first = bisect.bisect_right(begun, match.start()) - 1
            last = bisect.bisect_left(done, match.end())
            name = names[(match.lastindex or 1) - 1]
            place = (offset + first, offset + last)
            mentions.append(Mention(name, match.group(), *place))
    return tuple(mentions)


def find_present(
    words: Sequence[str],
    truth: Iterable[str],
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> frozenset[str]:
    """Find the objects that a list of what is in an image names.

    As in captions, an object is named by its word, by a synonym, and by the plural of
    either, in any case.

    Args:
        words: The objects.
        truth: What is in the image.
        synonyms: More names of an object, by its word.

    Returns:
        Those of the words that are in the image.

    Raises:
        SettingsError: If one name means two objects.

    Example:
        >>> sorted(find_present(["boat", "hot dog", "cup"], ["Boats", "hot-dog"]))
        ['boat', 'hot dog']
    """
    own = {word: names for word, names in (synonyms or {}).items() if word in words}
    owners = {_key(name): word for name, word in _list_names(words, own).items()}
    named = [
        owners.get(_key(form)) for name in truth for form in (name, pluralise(name))
    ]
    return frozenset(word for word in named if word is not None)


def decode_exactly(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode token ids to exactly the text they write, special tokens included.

    Args:
        tokenizer: The model's tokenizer.
        ids: Token ids.

    Returns:
        Their text.

    Raises:
        InputError: If an id is negative, or larger than any token's.

    Example:
        >>> from eah_interp.toy import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> decode_exactly(tokenizer, tokenizer.encode("a boat ."))
        '<s> a boat .'
    """
    numbers = [int(token) for token in ids]
    odd = [number for number in numbers if not 0 <= number < _MOST_IDS]
    if odd:
        msg = (
            f"token ids: expected 0 or more, got {show_value(odd[0])}; leave out "
            "labels and placeholders such as -100"
        )
        raise InputError(msg)
    return str(tokenizer.decode(numbers, clean_up_tokenization_spaces=False))


def _list_names(
    words: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Map every way of naming an object to the object."""
    check_words(words, role="words")
    check_synonyms_of(synonyms, words)
    given = {}
    for word in words:
        others = synonyms.get(word, ())
        if others:
            check_words(others, role=f"synonyms of {word!r}")
        given[word] = (word, *others)
        check_words(given[word], role=f"names of {word!r}")
    named = _without_conflicts(given)
    taken = {_key(name) for name in named}
    plurals = {
        word: [p for p in map(pluralise, names) if _key(p) not in taken]
        for word, names in given.items()
    }
    return named | _without_conflicts(plurals)


def check_synonyms_of(
    synonyms: Mapping[str, Sequence[str]], words: Sequence[str]
) -> None:
    """Check that synonyms are of objects that are asked for.

    Raises:
        SettingsError: If some are of another word.
    """
    strangers = [word for word in synonyms if word not in words]
    if strangers:
        msg = (
            f"synonyms: expected them for words among {list(words)}, got some for "
            f"{strangers[0]!r}; add it to words"
        )
        raise SettingsError(msg)


def _without_conflicts(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Turn objects' names round; refuse a name of two objects."""
    owners: dict[str, str] = {}
    for word, forms in names.items():
        for form in forms:
            owner = owners.setdefault(_key(form), word)
            if owner != word:
                msg = (
                    f"{form!r} names two objects: expected one, got {owner!r} and "
                    f"{word!r}; leave one out, or make it a synonym of the other"
                )
                raise SettingsError(msg)
    return {form: word for word, forms in names.items() for form in forms}


def _key(name: str) -> str:
    """Reduce a name to what distinguishes it when it is looked for."""
    return " ".join(_parts(name)).casefold()


def _parts(name: str) -> list[str]:
    return [p for p in re.split(r"[\s-]+", unicodedata.normalize("NFC", name)) if p]


def _compile(names: Mapping[str, str]) -> tuple[re.Pattern[str], list[str]]:
    """Write a pattern with a group for each name, the longest name first."""
    forms = sorted(names, key=lambda form: len(_key(form)), reverse=True)
    groups = [f"({_JOINT.join(map(re.escape, _parts(form)))})" for form in forms]
    pattern = f"(?<!{_LETTER})(?:{'|'.join(groups)})(?!{_LETTER})"
    return re.compile(pattern, re.IGNORECASE), [names[form] for form in forms]


def _split_at_specials(
    tokenizer: Any, ids: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the runs of tokens that are text, each with the index of its first."""
    special = set(tokenizer.all_special_ids)
    run: list[int] = []
    for index, token in enumerate(ids):
        if token not in special:
            run.append(int(token))
        elif run:
            yield index - len(run), run
            run = []
    if run:
        yield len(ids) - len(run), run


def _map_to_tokens(
    tokenizer: Any, ids: Sequence[int], text: str
) -> tuple[list[int], list[int]]:
    """Count, after each number of tokens, the characters begun and those done.

    The two differ while a character's bytes are spread over tokens. Decoding is local
    in every tokenizer we know, so a token is read with those shortly before it; where
    that does not give the whole text, every beginning is decoded from the start.
    """
    begun, done = _read_along(tokenizer, ids, text, window=_WINDOW)
    if done[-1] != len(text):
        begun, done = _read_along(tokenizer, ids, text, window=len(ids))
    return begun, done


def _read_along(
    tokenizer: Any, ids: Sequence[int], text: str, *, window: int
) -> tuple[list[int], list[int]]:
    begun, done = [0], [0]
    context, seen, base = 0, "", 0  # what a window starts from: token, text, length
    since = 0
    for stop in range(1, len(ids) + 1):
        new = decode_exactly(tokenizer, ids[context:stop])[len(seen) :]
        same = _count_same(new, text[base : base + len(new)])
        cut = same < len(new) and new.endswith("\ufffd")
        done.append(max(done[-1], base + same))
        begun.append(max(begun[-1], done[-1] + cut))
        if stop - since >= window and same == len(new):
            since, base = stop, base + same
            context = max(0, stop - _CONTEXT)
            seen = decode_exactly(tokenizer, ids[context:stop])
    return begun, done


def _count_same(one: str, other: str) -> int:
    """Count the characters in which two texts begin alike."""
    if one == other:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
