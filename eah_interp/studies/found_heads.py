"""Heads that a method has to find first: on images on which nothing is tested."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from eah_interp.attribution.mentions import find_mentions
from eah_interp.errors import InputError
from eah_interp.finders import HeadScores, find_hallucination_heads, find_prompt_heads
from eah_interp.indices import check_choice
from eah_interp.interventions.head_lists import Head
from eah_interp.studies.conditions import BASELINE
from eah_interp.studies.items import Item, cluster_items, open_image
from eah_interp.studies.scores import list_mentions

ONE_IN, MOST_IMAGES = 4, 40
"""One image in so many is set aside to find heads on, and so many at most."""

MOST_ITEMS = 40
"""Items that heads are found on."""

FEWEST, SHARE = 3, 0.02
"""Releases change three heads, or 20 of 1,024."""

Finder: TypeAlias = Literal["prompt", "hallucination"]

Files: TypeAlias = dict[str, str | Path | None]
"""`annotations` and `synonyms`, as for `score_rows`."""


def set_aside(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Part the items of the first images, on which heads are found, from the others.

    Args:
        items: All items of a study.

    Returns:
        Those to find heads on, and those to test on. They share no image.

    Raises:
        InputError: If there are fewer than two images.

    Example:
        >>> from eah_interp.studies import toy_items
        >>> aside, others = set_aside(toy_items(8))
        >>> len(aside), len(others)
        (14, 42)
    """
    table = pd.DataFrame(
        {
            "image": [item.image for item in items],
            "cluster": [item.cluster for item in items],
        }
    )
    clusters = cluster_items(table).tolist()
    images = list(dict.fromkeys(clusters))
    if len(images) < 2:
        msg = (
            f"heads are found on other images than they are tested on: expected 2 "
            f"images or more, got {len(images)}; use more items"
        )
        raise InputError(msg)
    chosen = set(images[: min(MOST_IMAGES, max(1, len(images) // ONE_IN))])
    pairs = list(zip(items, clusters, strict=True))
    return (
        tuple(item for item, cluster in pairs if cluster in chosen),
        tuple(item for item, cluster in pairs if cluster not in chosen),
    )


def find_followers(model: Any, items: Sequence[Item], files: Files) -> HeadScores:
    """Find the heads that say yes to questions for what is not there.

    Args:
        model: An LVLM.
        items: Items; questions whose answer should be no are taken.
        files: Not needed.

    Raises:
        InputError: If there is no such question.
    """
    del files
    false = [item for item in items if item.label is False][:MOST_ITEMS]
    if not false:
        raise InputError("no question is to be answered with no")
    return find_prompt_heads(
        model,
        [[open_image(item.image)] for item in false],
        [item.prompt for item in false],
        told=["Yes"] * len(false),
        true=["No"] * len(false),
    )


def find_speakers(model: Any, items: Sequence[Item], files: Files) -> HeadScores:
    """Find the heads that raise what the model's captions name and is not there.

    Args:
        model: An LVLM.
        items: Items; captions are taken that name absent objects and present ones.
        files: What objects of photographs are read with.

    Raises:
        InputError: If no caption names both.
    """
    told = [item for item in items if item.task == "caption"]
    captions = [
        model.describe([[open_image(item.image)]], [item.prompt])[0] for item in told
    ]
    read = list(_read_captions(model, told, captions, files))[:MOST_ITEMS]
    if not read:
        msg = f"none of {len(told)} captions names absent and present objects"
        raise InputError(msg)
    chosen = [told[place] for place, _, _ in read]
    return find_hallucination_heads(
        model,
        [[open_image(item.image)] for item in chosen],
        [item.prompt for item in chosen],
        objects=[words for _, words, _ in read],
        truth=[truth for _, _, truth in read],
        caption=[captions[place] for place, _, _ in read],
    )


def _read_captions(
    model: Any, told: Sequence[Item], captions: Sequence[str], files: Files
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Read what captions name by those very words, where it is absent and present."""
    if not told:
        return
    rows = pd.DataFrame(
        {
            "item": range(len(told)),
            "condition": BASELINE.name,
            "cluster": "",
            "n_tokens": 0,
            "truth": [list(item.truth) for item in told],
            "image": [item.image for item in told],
            "answer": list(captions),
        }
    )
    table, _ = list_mentions(rows, files["annotations"], files["synonyms"])
    for place, named, truth in zip(
        table["item"], table.mentions, table.truth, strict=True
    ):
        words = list(dict.fromkeys(named))
        if not words:
            continue
        tokenizer = model.tokenizer
        ids = tokenizer(captions[place], add_special_tokens=False)["input_ids"]
        own = {one.name for one in find_mentions(tokenizer, ids, words)}
        said = [word for word in words if word in own]
        if 0 < sum(word in truth for word in said) < len(said):
            yield place, said, list(truth)


FINDERS: dict[str, Callable[[Any, Sequence[Item], Files], HeadScores]] = {
    "prompt": find_followers,
    "hallucination": find_speakers,
}
"""What finds heads, by the name of the finder."""


def find_heads(
    finder: str, model: Any, items: Sequence[Item], files: Files
) -> tuple[Head, ...]:
    """Find heads in a model: 2 % of its heads, three at least.

    Args:
        finder: A key of `FINDERS`.
        model: An LVLM.
        items: What they are found on.
        files: `annotations` and `synonyms`.

    Raises:
        SettingsError: If there is no such finder.
        InputError: If the items do not show what is needed.
    """
    check_choice("found", finder, Finder)
    found = FINDERS[finder](model, items, files)
    n_heads = found.mean.numel()
    return found.top(min(n_heads, max(FEWEST, round(SHARE * n_heads)))).pairs
