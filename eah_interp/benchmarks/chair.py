"""CHAIR: how often captions name objects that are not in the image."""

from collections.abc import Set
from dataclasses import dataclass

import pandas as pd

from eah_interp.arguments import check_kind
from eah_interp.benchmarks.pope import percent
from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_list

MENTIONS, TRUTH, TEXT = "mentions", "truth", "caption"
"""Columns of a caption table: objects named, objects there, the text."""


@dataclass(frozen=True, kw_only=True)
class ChairScore:
    """How much captions hallucinate, with what any comparison has to be read beside.

    Attributes:
        n: Captions.
        chair_s: Percentage of captions that name at least one absent object.
        chair_i: Percentage of mentions that are of absent objects; each mention
            counts. NaN where nothing is mentioned.
        recall: Percentage of the objects in the images that are named; NaN where
            the images are empty.
        mentions: Mean number of mentions in a caption.
        objects: Mean number of different objects that a caption names.
        words: Mean number of words in a caption, split at whitespace.
        distinct_4grams: Percentage of the runs of four words that their caption has
            not had before: 100 where none repeats itself. NaN where no caption has
            four words.
        n_hallucinating: Captions that name at least one absent object.
        n_absent: Mentions of absent objects.
        n_mentions: Mentions.
        n_objects: Different objects that are named, once a caption.
        n_found: Objects in the images that are named, once a caption.
        n_truth: Objects in the images, once a caption.
        n_4grams: Runs of four words.
        n_distinct_4grams: Different ones, once a caption.
    """

    n: int
    chair_s: float
    chair_i: float
    recall: float
    mentions: float
    objects: float
    words: float
    distinct_4grams: float
    n_hallucinating: int
    n_absent: int
    n_mentions: int
    n_objects: int
    n_found: int
    n_truth: int
    n_4grams: int
    n_distinct_4grams: int


def check_captions(captions: pd.DataFrame, *columns: str) -> None:
    """Check that captions are a table that has these columns once, and texts.

    Raises:
        InputError: If they are not.
    """
    check_kind("captions", captions, pd.DataFrame, expected="a table of pandas")
    missing = [name for name in columns if name not in captions]
    if missing:
        msg = f"captions lack the columns {missing}, got {list(captions.columns)}"
        raise InputError(msg)
    twice = captions.columns[captions.columns.duplicated()].tolist()
    if twice:
        raise InputError(f"captions have the columns {show_value(twice)} twice")
    odd = [text for text in captions[TEXT] if not isinstance(text, str)]
    if odd:
        got = show_value(odd[0])
        raise InputError(f"column {TEXT!r} must hold texts, got {got}")


def count_mentions(captions: pd.DataFrame) -> pd.DataFrame:
    """Count, for each caption, what CHAIR is made of.

    Args:
        captions: One row a caption: `mentions`, the objects named, each time they
            are, `truth`, the objects in the image, and `caption`, the text.

    Returns:
        One row a caption: `n_mentions`, `n_absent` (mentions of absent objects),
        `n_objects`, `n_found` and `n_truth` (different objects: named, named and
        there, there), `n_words`, `n_4grams` and `n_distinct_4grams` (runs of four
        words, and how many of them differ; case does not count).

    Raises:
        InputError: If a column is missing.

    Example:
        >>> row = {"mentions": ["cup", "pan"], "truth": ["cup"], "caption": "cup, pan"}
        >>> counts = count_mentions(pd.DataFrame([row]))
        >>> counts[["n_mentions", "n_absent", "n_objects", "n_found"]].values.tolist()
        [[2, 1, 2, 1]]
    """
    check_captions(captions, MENTIONS, TRUTH, TEXT)
    for name in (MENTIONS, TRUTH):
        for value in captions[name]:
            listed = value if isinstance(value, Set) else to_list(value)
            if listed is None or not all(isinstance(one, str) for one in listed):
                got = show_value(value)
                msg = f"column {name!r} must hold lists of objects, got {got}"
                raise InputError(msg)
    rows = []
    columns = (captions[MENTIONS], captions[TRUTH], captions[TEXT])
    for named, there, text in zip(*columns, strict=True):
        truth, words = set(there), text.casefold().split()
        grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
        rows.append(
            {
                "n_mentions": len(named),
                "n_absent": sum(name not in truth for name in named),
                "n_objects": len(set(named)),
                "n_found": len(truth & set(named)),
                "n_truth": len(truth),
                "n_words": len(words),
                "n_4grams": len(grams),
                "n_distinct_4grams": len(set(grams)),
            }
        )
    return pd.DataFrame(rows, index=captions.index)


def score_captions(captions: pd.DataFrame) -> ChairScore:
    """Score captions as CHAIR does.

    Source: Rohrbach et al., "Object Hallucination in Image Captioning", 2018
    (arXiv:1809.02156). Every mention counts, repeated ones too.

    Args:
        captions: As for `count_mentions`; `find_mentions` makes one of captions about
            COCO's images.

    Returns:
        The score.

    Raises:
        InputError: If the table is empty or lacks a column.

    Example:
        >>> row = {"mentions": ["cup", "pan"], "truth": ["cup"], "caption": "cup, pan"}
        >>> score = score_captions(pd.DataFrame([row]))
        >>> score.chair_s, score.chair_i, score.recall
        (100.0, 50.0, 100.0)
    """
    check_kind("captions", captions, pd.DataFrame, expected="a table of pandas")
    if captions.empty:
        msg = "expected at least one caption, got an empty table"
        raise InputError(msg)
    counts = count_mentions(captions)
    total = counts.sum()
    n_hallucinating = int((counts.n_absent > 0).sum())
    return ChairScore(
        n=len(captions),
        chair_s=percent(n_hallucinating, len(captions)),
        chair_i=percent(int(total.n_absent), int(total.n_mentions)),
        recall=percent(int(total.n_found), int(total.n_truth)),
        mentions=float(counts.n_mentions.mean()),
        objects=float(counts.n_objects.mean()),
        words=float(counts.n_words.mean()),
        distinct_4grams=percent(int(total.n_distinct_4grams), int(total.n_4grams)),
        n_hallucinating=n_hallucinating,
        n_absent=int(total.n_absent),
        n_mentions=int(total.n_mentions),
        n_objects=int(total.n_objects),
        n_found=int(total.n_found),
        n_truth=int(total.n_truth),
        n_4grams=int(total.n_4grams),
        n_distinct_4grams=int(total.n_distinct_4grams),
    )


# ---- Captions of one length: shortening alone lowers CHAIR.


def match_lengths(captions: pd.DataFrame, *, other: pd.DataFrame) -> pd.DataFrame:
    """Cut each caption to as many different objects as its image's other one names.

    Of two captions of an image the longer one has more room to name what is not
    there. With k the smaller number of different objects of the pair, a caption ends
    before its (k+1)-th different object, and each object that is left counts once.
    Matched both ways, both name the same number of objects, and what is left of a
    difference in CHAIR is not one of length. Mentions would not do for k: a caption
    that repeats itself would be cut early, and pass for one that hallucinates less.
    Only mentions are cut, not the text.

    Args:
        captions: One row a caption, with `mentions`.
        other: Captions of the same images, in the same order.

    Returns:
        The captions with fewer mentions.

    Raises:
        InputError: If there are not as many captions in both.

    Example:
        >>> loops = pd.DataFrame({"mentions": [["cup", "cup", "pan", "fork"]]})
        >>> match_lengths(loops, other=pd.DataFrame({"mentions": [["pan", "cup"]]}))
            mentions
        0  [cup, pan]
    """
    if len(captions) != len(other):
        msg = f"expected as many captions twice, got {len(captions)} and {len(other)}"
        raise InputError(msg)
    pairs = zip(captions[MENTIONS], other[MENTIONS], strict=True)
    cut = captions.copy()
    # A dict keeps the first mention of each object, in order.
    kept = [list(dict.fromkeys(named))[: len(set(like))] for named, like in pairs]
    cut[MENTIONS] = pd.Series(kept, index=captions.index, dtype=object)
    return cut
