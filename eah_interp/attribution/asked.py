"""What a user asks for, and says is in the images: checked, a list for each item."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eah_interp.arguments import check_mapping, check_unicode
from eah_interp.attribution.mentions import check_words
from eah_interp.attribution.readouts import MetricName
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.indices import check_choice, to_int, to_ints, to_list


@dataclass(frozen=True)
class Words:
    """The objects that are asked for, of every item alike or of each its own.

    Attributes:
        lists: A list for each item; one for all of them where `by_item` is False.
        by_item: Whether each item has a list of its own.
    """

    lists: tuple[tuple[str, ...], ...]
    by_item: bool

    @property
    def all(self) -> tuple[str, ...]:
        """All words, each once."""
        return tuple(dict.fromkeys(word for own in self.lists for word in own))

    def of_rows(self, n_rows: int) -> tuple[tuple[str, ...], ...]:
        """List the words of each row.

        Raises:
            InputError: If there is not a list for each.
        """
        if not self.by_item:
            return self.lists * n_rows
        if len(self.lists) != n_rows:
            msg = (
                f"objects has {len(self.lists)} lists for {n_rows} items: expected a "
                "list for each item (an empty one where nothing is asked), or one flat "
                "list of words for all items"
            )
            raise InputError(msg)
        return self.lists


def check_objects(objects: object, metric: MetricName, *, captioned: bool) -> Words:
    """Read the objects that are asked for; of `"yes_no"`, what the question is about.

    Raises:
        SettingsError: If they are no words, or do not fit the metric.
    """
    check_choice("metric", metric, MetricName)
    words = _list_objects(objects)
    for number, own in enumerate(words.lists):
        _check_own(own, metric, item=number if words.by_item else None)
    if not words.all and metric != "yes_no":
        msg = f'metric="{metric}" takes at least one object, got 0: none'
        if words.by_item:
            msg += (
                "; every item has an empty list: expected an object for one item at "
                "least"
            )
        raise SettingsError(msg)
    if captioned and metric not in ("logit", "log_prob"):
        msg = (
            f'metric="{metric}" is read at the answer position: with a caption use '
            '"logit" or "log_prob"'
        )
        raise SettingsError(msg)
    return words


YES_NO = Words((("Yes", "No"),), by_item=False)
"""The words that are read where the metric is `"yes_no"`."""


def reads_log_prob(asked: Mapping[str, Any]) -> bool:
    """Return whether log-probabilities are asked for, in the words of `pose`.

    Before anything else is checked: the metric may be of any kind still.
    """
    metric = asked.get("metric")
    return isinstance(metric, str) and metric == "log_prob"


def _list_objects(objects: object) -> Words:
    """Read words for every item, or a list of words for each.

    Raises:
        SettingsError: If they are neither, or both.
    """
    listed = [objects] if isinstance(objects, str) else to_list(objects)
    lists = [None if isinstance(one, str) else to_list(one) for one in listed or ()]
    mixed = None in lists and any(own is not None for own in lists)
    if listed is None or mixed:
        got = show_value(objects)
        msg = f"objects must be a list of words, or of lists of words, got {got}"
        if mixed:
            msg += (
                "; words and lists do not go together: write a list for each item, "
                'such as [["boat"], ["cup", "pan"], []]'
            )
        raise SettingsError(msg)
    by_item = bool(lists) and None not in lists
    each = [own or [] for own in lists] if by_item else [listed]
    for word in (word for own in each for word in own):
        if not isinstance(word, str) or not word.strip():
            got = show_value(objects)
            raise SettingsError(f"objects must be a list of words, got {got}")
        check_unicode("an object", word)
    return Words(tuple(tuple(map(str, own)) for own in each), by_item=by_item)


def _check_own(words: tuple[str, ...], metric: MetricName, *, item: int | None) -> None:
    """Check one list of objects; an item's own may be empty."""
    whose = "objects" if item is None else f"the objects of item {item}"
    fits = len(words) == 2 if metric == "logit_diff" else bool(words)
    empty = not words and (item is not None or metric == "yes_no")
    if not empty and not fits:
        wanted = "two objects" if metric == "logit_diff" else "at least one object"
        msg = (
            f'metric="{metric}" takes {wanted}, got {len(words)}: '
            f"{', '.join(words) or 'none'}"
        )
        raise SettingsError(msg if item is None else f"{whose}: {msg}")
    if words:
        check_words(words, role=whose)


Known = tuple[str, ...] | None
"""What is in an image; None where it is not known."""


@dataclass(frozen=True)
class Told:
    """What is in the images, as a user says it.

    Attributes:
        lists: A list for each item; a single one where `by_item` is False.
        by_item: Whether it was a list of lists.
    """

    lists: tuple[Known, ...]
    by_item: bool


def check_truth(truth: object, metric: MetricName) -> Told | None:
    """Read what is in the images.

    Raises:
        SettingsError: If it is no list of names, or of lists of names, or what is read
            is not about one object.
    """
    if truth is None:
        return None
    if metric in ("logit_diff", "yes_no"):
        msg = (
            f'metric="{metric}" is not about one object that is in the image or not: '
            'expected "logit" or "log_prob" with truth=; leave truth out'
        )
        raise SettingsError(msg)
    listed = _list_names(truth)
    if listed is not None and all(map(_is_name, listed)):
        return Told((tuple(map(str, listed)),), by_item=False)
    each = [None if isinstance(one, str) else _list_names(one) for one in listed or ()]
    known = zip(each, listed or (), strict=True)
    right = [
        all(map(_is_name, own)) if own is not None else _is_missing(one)
        for own, one in known
    ]
    if listed is None or not all(right):
        msg = (
            "truth must be a list of what is in the image for each item, such as "
            f'[["boat", "cup"], []], or None where that is not known, got '
            f"{show_value(truth)}"
        )
        raise SettingsError(msg)
    return Told(
        tuple(None if own is None else tuple(map(str, own)) for own in each),
        by_item=True,
    )


def _list_names(names: object) -> list[Any] | None:
    """List names; a set of them has no order, and needs none."""
    if isinstance(names, str):
        return [names]
    return sorted(names, key=str) if isinstance(names, Set) else to_list(names)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_missing(value: object) -> bool:
    """Whether a table says that a value is not known."""
    is_nan = isinstance(value, float) and value != value
    return value is None or value is pd.NA or is_nan


def share_truth(told: Told | None, n_items: int) -> tuple[Known, ...]:
    """List what is in each item's image.

    Raises:
        InputError: If there is not a list for each.
    """
    if told is None:
        return (None,) * n_items
    if not told.by_item and n_items == 1:
        return told.lists
    if not told.by_item or len(told.lists) != n_items:
        got = f"{len(told.lists)} lists" if told.by_item else "one flat list of names"
        msg = (
            f"truth has {got} for {n_items} items: expected a list for each item, such "
            'as [["boat", "cup"], []], and None where it is not known'
        )
        raise InputError(msg)
    return told.lists


def check_synonyms(synonyms: object) -> dict[str, tuple[str, ...]]:
    """Check that synonyms are a mapping of words to words."""
    found: dict[str, tuple[str, ...]] = {}
    given = {} if synonyms is None else check_mapping("synonyms", synonyms)
    for name, value in given.items():
        words = [value] if isinstance(value, str) else to_list(value)
        if words is None or not all(isinstance(w, str) and w.strip() for w in words):
            got = show_value(value)
            msg = f"synonyms must be lists of words, got {got} of {name!r}"
            raise SettingsError(msg)
        found[name] = tuple(words)
    return found


def list_captions(caption: object) -> list[Any]:
    """List an answer for each row: texts, or lists of token ids."""
    captions = [caption] if isinstance(caption, str) else to_list(caption)
    if captions and to_int(captions[0]) is not None:
        captions = [captions]
    found: list[Any] = []
    for one in captions or ():
        ids = one if isinstance(one, str) else to_ints(one)
        if ids is None or (not isinstance(ids, str) and min(ids) < 0):
            found.clear()
            break
        found.append(ids if isinstance(ids, str) else list(ids))
    if not found:
        got = show_value(caption)
        msg = f"caption must be a text or token ids, one for each row, got {got}"
        raise InputError(msg)
    return found
