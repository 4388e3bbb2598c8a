"""Patterns as CircuitsVis widgets, a picture's tokens put together."""

from collections.abc import Iterable, Sequence

import torch
from PIL import Image

from eah_interp.attribution.patterns.head_patterns import HeadPatterns
from eah_interp.attribution.patterns.pattern_run import Run
from eah_interp.errors import InputError, SettingsError
from eah_interp.viz.grouping import By, group_patterns
from eah_interp.viz.thumbnails import cut_groups
from eah_interp.viz.widgets import Widget

RULE = (
    "A picture's tokens are put together: attention to them is summed, attention from "
    "them is averaged."
)

SPACE = "\N{OPEN BOX}"
"""What stands for a token of spaces or line breaks, which has no label else."""

BLUE = "rgb(0, 114, 178)"
"""The blue of patched runs, told apart from white by every eye."""


def show_attention(
    found: HeadPatterns,
    *,
    item: int = 0,
    run: Run = "plain",
    by: By = "image",
    keep: Iterable[int] = (),
) -> Widget:
    """Show whole patterns of heads, as CircuitsVis's attention heads.

    Args:
        found: What `read_patterns(..., query="all")` returned.
        item: Which batch item.
        run: Plain or patched.
        by: What of a picture becomes one token; see `group_patterns`.
        keep: Positions of image tokens that stay by themselves.

    Returns:
        A widget: `save` it, show it in a notebook, or share a page with others.

    Raises:
        SettingsError: If only some rows were read, or the item or run is not there.
        InputError: If a position to keep holds no image token.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import read_patterns
        >>> from eah_interp.testing import random_image
        >>> image = random_image()
        >>> asked = {"heads": ["L1H3", "L2H0"], "query": "all"}
        >>> found = read_patterns(eah.load(), image, "What?", **asked)
        >>> show_attention(found).properties["attentionHeadNames"]
        ['L1H3', 'L2H0']
    """
    grouped = group_patterns(found, item=item, run=run, by=by, keep=keep)
    if not grouped.whole:
        msg = (
            f"expected whole patterns, got rows of {len(grouped.queries)} of "
            f'{len(grouped.groups)} tokens: read_patterns(..., query="all"), or '
            "show_tokens for a row"
        )
        raise SettingsError(msg)
    return Widget(
        element="AttentionHeads",
        properties={
            "attention": grouped.weights.tolist(),
            "attentionHeadNames": list(grouped.names),
            "tokens": [label.strip() or SPACE for label in grouped.labels],
            "minValue": 0.0,
            "maxValue": 1.0,
            "positiveColor": BLUE,
            "maskUpperTri": False,
        },
        caption=f"Attention patterns, {run} run. {RULE}",
    )


def show_tokens(
    found: HeadPatterns,
    *,
    item: int = 0,
    query: int = -1,
    by: By = "image",
    keep: Iterable[int] = (),
    images: Image.Image | Sequence[Image.Image] = (),
) -> Widget:
    """Show what one row of each head attends to, as CircuitsVis's coloured tokens.

    Args:
        found: What `read_patterns` returned.
        item: Which batch item.
        query: Position of the row; its own attention, not a mean.
        by: What of a picture becomes one token; see `group_patterns`.
        keep: Positions of image tokens that stay by themselves.
        images: The item's pictures: what image tokens stand for is then shown before
            their labels.

    Returns:
        A widget with a button for each head, plain and patched.

    Raises:
        SettingsError: If the row, item or run is not there.
        InputError: If a position to keep holds no image token, or there is not one
            picture for each of the item's.
        UnsupportedError: If pictures are given, and it is not known what grids show.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import read_patterns
        >>> from eah_interp.testing import random_image
        >>> found = read_patterns(eah.load(), random_image(), heads=["L1H3"])
        >>> show_tokens(found).properties["labels"]
        ['L1H3']
    """
    place = found.find_row(query)
    kept = tuple(keep)
    columns, labels = [], []
    for run in found.runs:
        grouped = group_patterns(found, item=item, run=run, by=by, keep=kept)
        rows = found.find_run(run).rows[item, :, place]
        sums = [rows[:, list(group)].double().sum(-1) for group in grouped.groups]
        columns.append(torch.stack(sums, 0))
        ending = f" {run}" if len(found.runs) > 1 else ""
        labels += [name + ending for name in found.names]
    spans = found.spans[found.find_item(item)]
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if pictures and len(pictures) != len(spans):
        msg = f"expected {len(spans)} pictures of item {item}, got {len(pictures)}"
        raise InputError(msg)
    thumbnails: dict[int, Image.Image] = {}
    for span, picture in zip(spans, pictures, strict=False):
        thumbnails |= cut_groups(picture, span, grouped.groups)
    position = int(found.positions[place])
    token = found.tokens[item][position]
    return Widget(
        element="ColoredTokensMulti",
        properties={
            "tokens": list(grouped.labels),
            "values": torch.cat(columns, 1).float().tolist(),
            "labels": labels,
        },
        thumbnails=thumbnails,
        caption=f"What {token!r} at position {position} attends to. {RULE}",
    )
