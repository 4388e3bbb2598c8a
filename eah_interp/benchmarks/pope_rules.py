"""How a free answer becomes a yes or a no: POPE's rule, and OPERA's."""

import re
from typing import Literal, TypeAlias

from eah_interp.errors import SettingsError

Rule: TypeAlias = Literal["pope", "opera"]
"""Whose reading of an answer."""

_NO = {"pope": {"No", "not", "no"}, "opera": {"No", "not", "no", "NO"}}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_PLAIN = {"yes", "no", "not", "yeah", "yep", "nope", "nah"}


def says_yes(answer: str, *, rule: Rule = "pope") -> bool:
    """Read an answer as a benchmark's own script does: "yes" unless it says no.

    "pope" (Li et al., 2023): of the text before the first full stop, commas deleted
    and split at single spaces, no part is `No`, `not` or `no`. "opera" (Huang et al.,
    "OPERA", 2024): full stops and commas are deleted and all of the answer is read;
    `NO` and anything that ends in `n't` are noes too. Other whitespace and signs are
    not removed by either, so "No!" and "No" before a line break read as yes.

    Args:
        answer: What the model said.
        rule: Whose rule.

    Returns:
        Whether it counts as yes.

    Raises:
        SettingsError: If there is no such rule.

    Example:
        >>> says_yes("Yes. There is no cat.")
        True
        >>> says_yes("Yes. There is no cat.", rule="opera")
        False
    """
    if rule not in _NO:
        raise SettingsError(f"rule must be one of {', '.join(_NO)}, got {rule!r}")
    text = answer.split(".")[0] if rule == "pope" else answer.replace(".", "")
    parts = text.replace(",", "").split(" ")
    if rule == "opera" and any(part.endswith("n't") for part in parts):
        return False
    return not _NO[rule].intersection(parts)


def is_neither(answer: str) -> bool:
    """Tell whether an answer has no word of yes or no at all.

    Both rules count such an answer as a yes. The words are yes, no, not, anything in
    n't, yeah, yep, nope and nah, whatever their case and the signs around them.

    Args:
        answer: What the model said.

    Returns:
        Whether it is neither.

    Example:
        >>> [is_neither(text) for text in ("No!", "There isn't.", "A dog.", "")]
        [False, False, True, True]
    """
    words = _WORD.findall(answer.casefold().replace("\u2019", "'"))
    return not any(word in _PLAIN or word.endswith("n't") for word in words)
