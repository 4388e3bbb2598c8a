"""Captions of one length: shortening alone lowers CHAIR."""

import pandas as pd

from eah_interp.benchmarks.chair import MENTIONS
from eah_interp.errors import InputError


def match_lengths(captions: pd.DataFrame, *, other: pd.DataFrame) -> pd.DataFrame:
    """Cut each caption after as many mentions as the other one of its picture has.

    Of two captions of a picture the longer one has more room to name what is not
    there. Matched both ways, both name equally many objects, and what is left of a
    difference in CHAIR is not one of length. Only mentions are cut, not the text.

    Args:
        captions: One row a caption, with `mentions`.
        other: Captions of the same pictures, in the same order.

    Returns:
        The captions with fewer mentions.

    Raises:
        InputError: If there are not as many captions in both.

    Example:
        >>> long = pd.DataFrame({"mentions": [["cup", "pan", "fork"]]})
        >>> match_lengths(long, other=pd.DataFrame({"mentions": [["cup"]]}))
          mentions
        0    [cup]
    """
    if len(captions) != len(other):
        msg = f"expected as many captions twice, got {len(captions)} and {len(other)}"
        raise InputError(msg)
    pairs = zip(captions[MENTIONS], other[MENTIONS], strict=True)
    cut = captions.copy()
    kept = [list(named)[: len(like)] for named, like in pairs]
    cut[MENTIONS] = pd.Series(kept, index=captions.index, dtype=object)
    return cut
