"""CHAIR's vocabulary: which words name which object, and which pairs are one word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from eah_interp.benchmarks.records import read_json, read_text
from eah_interp.errors import InputError

URL = (
    "https://raw.githubusercontent.com/LisaAnne/Hallucination/master/data/synonyms.txt"
)
"""The official synonym list for COCO's 80 objects."""

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


@dataclass(frozen=True)
class Vocabulary:
    """What counts as naming an object.

    Attributes:
        objects: Each name to its object, itself the first name of its group.
        pairs: Two neighbouring words to the one they are read as.
    """

    objects: Mapping[str, str]
    pairs: Mapping[str, str]


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
    if not groups or not all(groups):
        msg = "expected groups of at least one name each, got none or an empty one"
        raise InputError(msg)
    objects = {name: group[0] for group in groups for name in group}
    if pairs is None:
        pairs = _own_pairs(objects) | _METRICS_PAIRS
    return Vocabulary(MappingProxyType(objects), MappingProxyType(dict(pairs)))


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
    path = Path(path)
    try:
        if path.suffix.lower() == ".json":
            return _from_json(path)
        lines = read_text(path).splitlines()
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
