"""Objects as English words: checked, capitalised, put into the plural."""

import re
import unicodedata
from collections.abc import Sequence

from eah_interp.errors import SettingsError

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
