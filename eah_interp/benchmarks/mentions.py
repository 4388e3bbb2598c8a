"""Which objects a caption names, by CHAIR's rules."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from eah_interp.benchmarks.chair import MENTIONS, TEXT, TRUTH
from eah_interp.benchmarks.images import ImageId
from eah_interp.benchmarks.lemmas import Lemmatize, load_lemmatizer
from eah_interp.benchmarks.vocabulary import Vocabulary
from eah_interp.errors import InputError

IMAGE, ABSENT, TOKENS = "image_id", "absent", "n_tokens"


def find_mentions(
    captions: pd.DataFrame,
    *,
    truth: Mapping[ImageId, Collection[str]],
    vocabulary: Vocabulary,
    lemmatize: Lemmatize | None = None,
) -> pd.DataFrame:
    """Find the objects that captions name, beside those in their pictures.

    Source: Rohrbach et al., 2018 (arXiv:1809.02156), with words normalised as
    `load_lemmatizer` does.

    Args:
        captions: One row a caption, `image_id` and `caption`, as `read_captions`
            returns them.
        truth: Picture to the objects in it, as `read_ground_truth` returns it.
        vocabulary: Names of objects.
        lemmatize: What `load_lemmatizer` returned; loaded when None.

    Returns:
        The captions with `mentions` (objects named, in order, each time), `truth`
        (sorted), `absent` (those of the mentions that are not there) and `n_tokens`
        (words and signs, pairs as one: the length OPERA's script reports). It is the
        table of `score_captions`.

    Raises:
        InputError: If a column is missing, or a picture has no ground truth.
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
    missing = [name for name in (IMAGE, TEXT) if name not in captions]
    if missing:
        msg = f"captions lack the columns {missing}, got {list(captions.columns)}"
        raise InputError(msg)
    unknown = [image for image in captions[IMAGE] if image not in truth]
    if unknown:
        msg = (
            f"expected ground truth of every captioned picture, got none of "
            f"{len(unknown)} of {len(captions)}: {unknown[:3]}; are the annotations "
            "of the split and year that the captions are about?"
        )
        raise InputError(msg)
    lemmatize = load_lemmatizer() if lemmatize is None else lemmatize
    joined = [join_pairs(lemmatize(text), vocabulary) for text in captions[TEXT]]
    named = [find_objects(words, vocabulary) for words in joined]
    there = [truth[image] for image in captions[IMAGE]]
    absent = [
        [name for name in names if name not in objects]
        for names, objects in zip(named, there, strict=True)
    ]
    found = captions.copy()
    found[MENTIONS] = named
    found[TRUTH] = [sorted(objects) for objects in there]
    found[ABSENT] = absent
    found[TOKENS] = [len(words) for words in joined]
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
    joined, place = [], 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        both = pair in vocabulary.pairs
        joined.append(vocabulary.pairs[pair] if both else words[place])
        place += 2 if both else 1
    return joined


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
    skipped = {"seat"} if "toilet" in words else set()
    return [
        vocabulary.objects[word]
        for word in words
        if word in vocabulary.objects and word not in skipped
    ]
