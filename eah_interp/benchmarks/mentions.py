"""Which objects a caption names, by CHAIR's rules: its words, pairs and lemmas."""

import functools
import re
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_kind, check_mapping, check_path
from eah_interp.benchmarks.chair import MENTIONS, STARTS, TEXT, TRUTH, check_captions
from eah_interp.errors import ExtraMissingError, InputError, show_value
from eah_interp.foreign_files import read_json, read_text
from eah_interp.indices import to_list
from eah_interp.results import Part

ImageId: TypeAlias = int | str
"""An image: its number where it has one, else its name."""

Lemmatize: TypeAlias = Callable[[str], list[str]]
"""Text to its words as a vocabulary has them."""


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary(Part):
    """What counts as naming an object.

    Attributes:
        objects: Each name to its object, itself the first name of its group.
        pairs: Two neighbouring words to the one they are read as.
    """

    objects: Mapping[str, str]
    pairs: Mapping[str, str]

    def _about(self) -> str:
        kinds = sorted(set(self.objects.values()))
        listed = ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")
        return f"{len(self.objects)} names of {len(kinds)} objects ({listed})"


IMAGE, ABSENT, TOKENS, ENDS = "image_id", "absent", "n_tokens", "ends"


@by_name
def find_mentions(
    captions: pd.DataFrame,
    *,
    truth: Mapping[ImageId, Collection[str]],
    vocabulary: Vocabulary,
    lemmatize: Lemmatize | None = None,
) -> pd.DataFrame:
    """Find the objects that captions name, beside those in their images.

    Source: Rohrbach et al., 2018 (arXiv:1809.02156), with words normalised as
    `load_lemmatizer` does.

    Args:
        captions: One row a caption, `image_id` and `caption`, as `read_captions`
            returns them.
        truth: Image to the objects in it, as `read_ground_truth` returns it.
        vocabulary: Names of objects.
        lemmatize: What `load_lemmatizer` returned; loaded when None.

    Returns:
        The captions with `mentions` (objects named, in order, each time), `starts` and
        `ends` (where in the text each of them stands), `truth` (sorted), `absent`
        (those of the mentions that are not there) and `n_tokens` (words and signs,
        pairs as one: the length OPERA's script reports). It is the table of
        `score_captions`.

    Raises:
        InputError: If a column is missing, or an image has no ground truth.
        ExtraMissingError: If NLTK, or its data, is not installed.

    Example:
        >>> from eah_interp.benchmarks import make_vocabulary
        >>> row = {"image_id": 1, "caption": "a mug beside a baby bird"}
        >>> table = find_mentions(
        ...     pd.DataFrame([row]),
        ...     truth={1: {"cup"}},
        ...     vocabulary=make_vocabulary([["cup", "mug"], ["bird"]]),
        ...     lemmatize=str.split,
        ... )
        >>> table.mentions[0], table.absent[0]
        (['cup', 'bird'], ['bird'])
    """
    check_captions(captions, IMAGE, TEXT)
    check_kind("truth", truth, Mapping, expected="a mapping of image to objects")
    check_kind("vocabulary", vocabulary, Vocabulary, expected="a Vocabulary")
    for image, objects in truth.items():
        listed = objects if isinstance(objects, Set) else to_list(objects)
        if listed is None or not all(isinstance(name, str) for name in listed):
            got = show_value(objects)
            raise InputError(f"truth must be lists of objects, got {got} of {image!r}")
    odd = [image for image in captions[IMAGE] if not isinstance(image, Hashable)]
    if odd:
        got = show_value(odd[0])
        raise InputError(f"column {IMAGE!r} must hold names or numbers, got {got}")
    unknown = [image for image in captions[IMAGE] if image not in truth]
    if unknown:
        msg = (
            f"expected ground truth of every captioned image, got none of "
            f"{len(unknown)} of {len(captions)}: {unknown[:3]}; are the annotations "
            "of the split and year that the captions are about?"
        )
        raise InputError(msg)
    lemmatize = load_lemmatizer() if lemmatize is None else lemmatize
    read = [_read_words(text, lemmatize, vocabulary) for text in captions[TEXT]]
    placed = [_place_objects(words, vocabulary) for words in read]
    named = [[name for name, _ in one] for one in placed]
    there = [truth[image] for image in captions[IMAGE]]
    absent = [
        [name for name in names if name not in objects]
        for names, objects in zip(named, there, strict=True)
    ]
    found = captions.copy()
    found[MENTIONS] = named
    found[STARTS] = [[span[0] for _, span in one] for one in placed]
    found[ENDS] = [[span[1] for _, span in one] for one in placed]
    found[TRUTH] = [sorted(objects) for objects in there]
    found[ABSENT] = absent
    found[TOKENS] = [len(words) for words in read]
    return found


def join_pairs(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Read pairs of words as one, from left to right.

    Args:
        words: Lemmas, in order.
        vocabulary: Its pairs.

    Returns:
        The words and pairs.

    Example:
        >>> from eah_interp.benchmarks import make_vocabulary
        >>> join_pairs("a hot dog stand".split(), make_vocabulary([["dog"]]))
        ['a', 'hot dog', 'stand']
    """
    return [word for word, _, _ in _join(words, vocabulary)]


def _join(
    words: Sequence[str], vocabulary: Vocabulary
) -> Iterator[tuple[str, int, int]]:
    """Yield each word or pair, with the first and last word that it is of."""
    place = 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        both = pair in vocabulary.pairs
        end = place + 1 if both else place
        yield vocabulary.pairs[pair] if both else words[place], place, end
        place = end + 1  # a word of one pair begins no other


def find_objects(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Name the object of each word that names one, in order.

    Where a toilet is named no seat counts, since it would be a chair.

    Args:
        words: As `join_pairs` returns them.
        vocabulary: Names of objects.

    Returns:
        The objects; one that is named twice stands twice.

    Example:
        >>> from eah_interp.benchmarks import make_vocabulary
        >>> vocabulary = make_vocabulary([["toilet"], ["chair", "seat"]])
        >>> find_objects("the seat of a toilet".split(), vocabulary)
        ['toilet']
    """
    placed = [(word, (0, 0)) for word in words]
    return [name for name, _ in _place_objects(placed, vocabulary)]


_Span: TypeAlias = tuple[int, int]
"""Where in a text something starts and ends."""


def _place_objects(
    words: Sequence[tuple[str, _Span]], vocabulary: Vocabulary
) -> list[tuple[str, _Span]]:
    """Name the object of each word that names one, with where it stands."""
    skipped = {"seat"} if any(word == "toilet" for word, _ in words) else set()
    return [
        (vocabulary.objects[word], span)
        for word, span in words
        if word in vocabulary.objects and word not in skipped
    ]


def _read_words(
    text: str, lemmatize: Lemmatize, vocabulary: Vocabulary
) -> list[tuple[str, _Span]]:
    """Read a text's words and pairs, with where they stand in it."""
    if isinstance(lemmatize, NltkLemmatizer):
        tokens, words = lemmatize.read(text)
    else:
        words = lemmatize(text)
        tokens = words
    spans = _locate(text, tokens)
    return [
        (word, (spans[first][0], spans[last][1]))
        for word, first, last in _join(words, vocabulary)
    ]


_PART = re.compile(r"[^\W_]+|[^\w\s]|_")


def _locate(text: str, tokens: Sequence[str]) -> list[_Span]:
    """Find tokens in a text, each after the one before it.

    A tokenizer of NLTK takes a text's own parts, but for quotes. Words of a user's own
    function may be lemmas: one that does not stand in the text as it is stands where
    the next word begins as it does, and else at the place that was reached.
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # a capital of two letters, as in Turkish
        lowered = "".join(sign.lower()[:1] for sign in text)
    spans, place = [], 0
    for token in tokens:
        places = [(lowered.find(form, place), len(form)) for form in _forms(token)]
        there = [(at, at + size) for at, size in places if at >= 0]
        found = min(there) if there else _find_like(lowered, token, place)
        spans.append(found)
        place = max(place, found[1])
    return spans


def _forms(token: str) -> tuple[str, ...]:
    """List how a token may stand in a text: quotes are written in two ways."""
    token = token.lower()
    return (token, '"', "''") if token in ("``", "''") else (token,)


def _find_like(text: str, token: str, place: int) -> _Span:
    """Find the next word that begins as a lemma does; the place itself if none."""
    head = token.lower()[: max(1, min(3, len(token) - 1))]
    for found in _PART.finditer(text, place):
        if head and found.group().startswith(head):
            return found.span()
    return place, place


# ---- CHAIR's vocabulary: which words name which object, and which pairs are one word.


URL = (
    "https://raw.githubusercontent.com/LisaAnne/Hallucination/master/data/synonyms.txt"
)
"""The official synonym list for COCO's 80 objects."""


@by_name
def make_vocabulary(
    groups: Sequence[Sequence[str]], *, pairs: Mapping[str, str] | None = None
) -> Vocabulary:
    """Make a vocabulary of groups of names.

    Args:
        groups: Names of one object each, the object's own first. Of a name in two
            groups the last counts, as in the official script.
        pairs: Neighbouring words to the word they are read as. None: the metric's own
            pairs, and the names of two words in the groups that would else not be
            found. The qualifiers of animals and vehicles are among the metric's own:
            "baby bird" is a bird and no baby, "passenger jet" no passenger.

    Returns:
        The vocabulary.

    Raises:
        InputError: If there are no groups, or one is empty.

    Example:
        >>> vocabulary = make_vocabulary([["cup", "mug"], ["lamp", "floor lamp"]])
        >>> vocabulary.objects["mug"], vocabulary.pairs["baby bird"]
        ('cup', 'bird')
    """
    listed = [to_list(group) for group in to_list(groups) or ()]
    if not listed or not all(listed):
        msg = "expected groups of at least one name each, got none or an empty one"
        raise InputError(msg)
    if not all(isinstance(name, str) for group in listed for name in group or ()):
        raise InputError(f"groups must be lists of names, got {show_value(groups)}")
    if pairs is not None:
        check_mapping("pairs", pairs, error=InputError)
        if not all(isinstance(word, str) for word in pairs.values()):
            raise InputError(f"pairs must map words to a word, got {show_value(pairs)}")
    objects = {name: group[0] for group in groups for name in group}
    if pairs is None:
        pairs = _own_pairs(objects) | _METRICS_PAIRS
    return Vocabulary(MappingProxyType(objects), MappingProxyType(dict(pairs)))


@by_name
def read_synonyms(path: Path | str) -> Vocabulary:
    """Read CHAIR's synonym list.

    The official list is a text file with a line for each object: its name, then its
    synonyms, separated by a comma and one blank. Names are taken as they stand, as the
    official script does: one that begins with a blank or has a capital is never found.
    A JSON file with `synonym_groups`, and optionally `double_word_map`, does too.

    Args:
        path: The file; not part of this package.

    Returns:
        The vocabulary.

    Raises:
        InputError: If the file cannot be read, is empty, or a line of it is separated
            by something else.
    """
    path = check_path("path", path)
    try:
        if path.suffix.lower() == ".json":
            return _from_json(path)
        lines = read_text(path).split("\n")
    except InputError as error:
        msg = f"{error}; the official synonym list is at {URL}"
        raise InputError(msg) from error
    groups = []
    for number, line in enumerate(lines, start=1):
        names = line.strip().split(", ")
        odd = [name for name in names if "," in name]
        if odd:
            msg = (
                f"{path}:{number}: expected names separated by a comma and a blank, "
                f"got {odd[0]!r}"
            )
            raise InputError(msg)
        groups += [names] if line.strip() else []
    if not groups:
        msg = f"{path}: expected a line of names for each object, got an empty file"
        raise InputError(f"{msg}; the official synonym list is at {URL}")
    return make_vocabulary(groups)


def _from_json(path: Path) -> Vocabulary:
    content = read_json(path)
    if isinstance(content, list):
        content = {"synonym_groups": content}
    groups = content.get("synonym_groups") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not all(map(_is_names, groups)):
        raise InputError(f"{path}: expected lists of names under 'synonym_groups'")
    pairs = content.get("double_word_map")
    if pairs is not None and not (
        isinstance(pairs, dict) and _is_names(list(pairs.values()))
    ):
        msg = f"{path}: expected pairs of words, each with a word, as 'double_word_map'"
        raise InputError(msg)
    return make_vocabulary(groups, pairs=pairs)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _own_pairs(objects: Mapping[str, str]) -> dict[str, str]:
    """Join the names of two words, unless the second names the object by itself."""
    names = {name: name.split() for name in objects}
    return {
        name: name
        for name, words in names.items()
        if " ".join(words) == name
        and len(words) == 2
        and objects.get(words[1]) != objects[name]
    }


# The pairs of the metric for COCO (Rohrbach et al., 2018). Some join what is no object
# of COCO's, so that its second word alone does not count as one.
_JOINED = [
    "air plane",
    "baseball bat",
    "baseball glove",
    "cell phone",
    "fire hydrant",
    "hair drier",
    "home plate",
    "hot dog",
    "laptop computer",
    "mobile phone",
    "motor bike",
    "motor cycle",
    "parking meter",
    "potted plant",
    "sports ball",
    "stop light",
    "stop sign",
    "street light",
    "suit case",
    "teddy bear",
    "tennis racket",
    "traffic light",
    "traffic signal",
    "train track",
    "wine glass",
]

_ANIMALS = [
    "animal",
    "bear",
    "bird",
    "cat",
    "cow",
    "cub",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
]

_QUALIFIED = {"baby": _ANIMALS, "adult": _ANIMALS, "passenger": ["jet", "train"]}

_REPLACED = {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}

_METRICS_PAIRS = (
    {name: name for name in _JOINED}
    | {f"{word} {name}": name for word, names in _QUALIFIED.items() for name in names}
    | _REPLACED
)


# ---- Captions as CHAIR reads them: lower-case tokens, each as its lemma.


DATA = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")
"""NLTK's data that this needs."""

_PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}
"""First letter of a Penn tag to WordNet's part of speech; nouns for all others."""


def load_lemmatizer() -> "NltkLemmatizer":
    """Load what turns a caption into lemmas, from NLTK.

    Lower-cased, split by NLTK's `word_tokenize`, tagged as a whole by its averaged
    perceptron, and each token put through WordNet's `lemmatize` with its part of
    speech: the reading behind published CHAIR since OPERA (the script of 2018 used the
    package `pattern`). Lemmas are kept, so that 500 captions take seconds.

    Returns:
        A function of a text that returns its lemmas in order.

    Raises:
        ExtraMissingError: If NLTK, or its data, is not installed.
    """
    return NltkLemmatizer()


class NltkLemmatizer:
    """What `load_lemmatizer` returns: a function of a text, which knows its tokens."""

    def __init__(self) -> None:
        try:
            import nltk
            from nltk.stem import WordNetLemmatizer
            from nltk.tag.perceptron import PerceptronTagger
        except ImportError as error:
            msg = f"CHAIR needs NLTK ({error}): pip install 'eah-interp[eval]'"
            raise ExtraMissingError(msg) from error
        self._lemma_of = functools.cache(WordNetLemmatizer().lemmatize)
        self._tokenize = nltk.word_tokenize
        try:
            self._tagger = PerceptronTagger()
            self("two cups")  # each of the three sets of data is opened
        except LookupError as error:
            msg = (
                f"NLTK's data is not complete in any of {nltk.data.path}: get it with "
                f"`python -m nltk.downloader {' '.join(DATA)}`, or set NLTK_DATA to a "
                "folder that has it"
            )
            raise ExtraMissingError(msg) from error

    def __call__(self, text: str) -> list[str]:
        """Return the lemmas of a text, in order."""
        return self.read(text)[1]

    def read(self, text: str) -> tuple[list[str], list[str]]:
        """Return the tokens of a text, and their lemmas, side by side."""
        tokens = self.split(text)
        tagged = self._tagger.tag(tokens)
        parts = [(word, _PARTS.get(tag[:1], "n")) for word, tag in tagged]
        return tokens, [self._lemma_of(word, part) for word, part in parts]

    def nouns(self, text: str) -> list[str]:
        """Return the lemmas of a text's nouns, case kept, as AMBER's script does."""
        tagged = self._tagger.tag(list(self._tokenize(text)))
        return [self._lemma_of(word, "n") for word, tag in tagged if tag[:2] == "NN"]

    def split(self, text: str) -> list[str]:
        """Return the lower-case tokens of a text."""
        return list(self._tokenize(text.lower()))


def load_singularizer() -> Lemmatize:
    """Load what turns a caption into singular words, from the package `pattern`.

    Lower-cased, split by NLTK's `word_tokenize`, each token put through `singularize`
    of `pattern.en`: the reading of COCO's captions behind the ground truth that OPERA
    and others released. It is no dependency of ours: its installation needs old Pythons
    or a compiler, and released lists of objects by image do as well.

    Returns:
        A function of a text that returns its words in order, for `read_ground_truth`.

    Raises:
        ExtraMissingError: If `pattern`, NLTK, or NLTK's data, is not installed.
    """
    try:
        from pattern.en import singularize  # type: ignore[import-not-found]
    except ImportError as error:
        msg = (
            f"the ground truth 'pattern' needs the package pattern ({error}): "
            "`pip install pattern`, or give a list of objects by image that was made "
            "with it, or take the ground truth 'nltk'"
        )
        raise ExtraMissingError(msg) from error
    reader = load_lemmatizer()
    single = functools.cache(singularize)

    def singular(text: str) -> list[str]:
        return [str(single(token)) for token in reader.split(text)]

    return singular


# ---- How files name images: by number, or by a file name that ends in one.


_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d+)(?:\.[A-Za-z]+)?")


def image_id_of(value: Any, *, place: str) -> ImageId:
    """Return what identifies an image, however a file writes it.

    Args:
        value: A number, its digits, or a file name such as COCO's.
        place: Where it stands, for the error.

    Returns:
        The number; a name without one as it is.

    Raises:
        InputError: If it is neither a number nor a name.

    Example:
        >>> image_id_of("COCO_val2014_000000226988.jpg", place="captions.jsonl:1")
        226988
    """
    if isinstance(value, str) and value:
        found = _NUMBERED.fullmatch(value)
        return int(found[1]) if found else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    msg = f"{place}: expected an image's number or file name, got {show_value(value)}"
    raise InputError(msg)
