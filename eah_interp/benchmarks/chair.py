"""CHAIR: how often captions name objects that are not in the image."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from eah_interp.arguments import by_name, check_kind
from eah_interp.benchmarks.pope import percent
from eah_interp.benchmarks.scores import FlatScore
from eah_interp.errors import InputError, show_value
from eah_interp.indices import to_list
from eah_interp.results import Result

MENTIONS, TRUTH, TEXT = "mentions", "truth", "caption"
"""Columns of a caption table: objects named, objects there, the text."""

STARTS = "starts"
"""Column of where in the text each mention starts, where that is known."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChairScore(FlatScore, Result):
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

    PERCENTAGES: ClassVar = ("chair_s", "chair_i", "recall", "distinct_4grams")

    def _about(self) -> str:
        return f"{self.n} captions, {self.n_mentions} mentions of objects"

    def _of(self) -> str:
        return f"{self.n} captions"


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
        words, and how many of them differ; case does not count), and `loops` (one
        where the caption does, see `is_loop`).

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
                "loops": int(is_loop(text)),
            }
        )
    return pd.DataFrame(rows, index=captions.index)


@by_name
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
    The text is cut there too where it is known where mentions start (`starts`, which
    `find_mentions` adds), and else left whole.

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
    if STARTS in captions:
        columns = (captions[MENTIONS], captions[STARTS], captions[TEXT], kept)
        ends = [
            _cut_text(named, starts, text, n=len(left))
            for named, starts, text, left in zip(*columns, strict=True)
        ]
        cut[TEXT] = pd.Series(ends, index=captions.index, dtype=object)
    return cut


def _cut_text(named: Sequence[str], starts: Sequence[int], text: str, *, n: int) -> str:
    """Cut a text where its (n+1)-th different object is named."""
    seen: set[str] = set()
    for name, start in zip(named, starts, strict=True):
        if name not in seen and len(seen) == n:
            return text[:start]
        seen.add(name)
    return text


# ---- Captions that say the same thing again and again.


_END = re.compile(r"[.!?\n]+")

_LEAST_SENTENCE, _LEAST_RUN, _LONGEST_PHRASE = 3, 8, 64
"""Words that a sentence, or a run of words, needs to be a loop when it comes again, and
how long a phrase may be that is said again at once."""


def is_loop(text: str) -> bool:
    """Tell whether a caption says the same thing again.

    It does where a sentence of three words or more stands in it twice, or where eight
    words or more are said again at once: a phrase, and the same phrase directly after
    it. Case and the signs around words do not count.

    Args:
        text: The caption.

    Returns:
        Whether it loops.

    Example:
        >>> is_loop("There is a man. He walks. There is a man.")
        True
        >>> is_loop("a man and a dog and a man and a dog and a man and a dog")
        True
        >>> is_loop("A man walks a dog. The dog is white.")
        False
    """
    sentences = [tuple(_list_words(part)) for part in _END.split(text)]
    long = [words for words in sentences if len(words) >= _LEAST_SENTENCE]
    if len(long) > len(set(long)):
        return True
    words = _list_words(text)
    runs = list(zip(*(words[n:] for n in range(_LEAST_RUN)), strict=False))
    if len(runs) == len(set(runs)):  # as in nearly every caption
        return False
    for step in range(1, min(len(words) // 2, _LONGEST_PHRASE) + 1):
        run = 0
        for before, after in zip(words, words[step:], strict=False):
            run = run + 1 if before == after else 0
            if run >= max(step, _LEAST_RUN):
                return True
    return False


def _list_words(text: str) -> list[str]:
    words = text.casefold().split()
    # Most words have no signs around them, and a search takes longer than to ask.
    stripped = (w if w.isalnum() else _SIGNS.sub("", w) for w in words)
    return [word for word in stripped if word]


_SIGNS = re.compile(r"^\W+|\W+$")
