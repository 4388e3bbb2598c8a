"""Patterns as CircuitsVis widgets, a picture's tokens put together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eah_interp.attribution.patterns import HeadPatterns
from eah_interp.attribution.patterns import RunName as Run
from eah_interp.errors import InputError, SettingsError
from eah_interp.lvlm.spans import Box, ImageSpan
from eah_interp.viz.widgets import Widget

# ---- Patterns over fewer tokens: a picture's tokens as one, or as a few.


By = Literal["image", "part", "row"]
"""What becomes one token: a picture, each of its grids, or each row of patches."""


@dataclass(frozen=True)
class GroupedPatterns:
    """Rows of patterns over groups of tokens.

    Attributes:
        names: Name of each entry of the head axis: `L1H3`.
        labels: What each group is called: a token's text, `[image 1]`.
        groups: The prompt positions of each group.
        queries: The group of each entry of the row axis.
        weights: Attention of groups to groups: the sum over the columns of a group,
            the mean over its rows that were read.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    queries: tuple[int, ...]
    weights: Float[Tensor, "head row group"]

    @property
    def whole(self) -> bool:
        """Whether every group attends: whole patterns were read."""
        return self.queries == tuple(range(len(self.groups)))

    def frame(self) -> pd.DataFrame:
        """List every weight.

        Returns:
            Columns `name query token group read_at n_tokens weight`: the group that
            attends, the group that is read, its first position and its size.
        """
        _, n_rows, n_groups = self.weights.shape
        table = pd.MultiIndex.from_product(
            [self.names, range(n_rows), range(n_groups)],
            names=["name", "query", "group"],
        ).to_frame(index=False)
        table["query"] = [self.queries[row] for row in table["query"]]
        table.insert(2, "token", [self.labels[group] for group in table["group"]])
        table["read_at"] = [self.groups[group][0] for group in table["group"]]
        table["n_tokens"] = [len(self.groups[group]) for group in table["group"]]
        table["weight"] = self.weights.double().flatten().numpy()
        return table


def group_patterns(
    found: HeadPatterns,
    *,
    item: int = 0,
    run: Run = "plain",
    by: By = "image",
    keep: Iterable[int] = (),
) -> GroupedPatterns:
    """Put a picture's tokens together, so that a pattern can be read.

    A group gets the sum of the attention that its tokens get, and pays the mean of what
    they pay: `A[g, h] = mean over x in g of (sum over y in h of A[x, y])`. So rows sum
    to what they summed to. Text tokens stay as they are, padding is left out.

    Args:
        found: What `read_patterns` returned.
        item: Which batch item.
        run: Plain or patched.
        by: `"image"`: a picture is one token, `[image 1]`. `"part"`: each of its grids
            is (overview, crops, tiles). `"row"`: each row of patches is. Image tokens
            that are no patches (newline vectors) are `[image 1:other]`; latents are one
            group.
        keep: Positions of image tokens that stay by themselves, `<patch:r3c5>`, such as
            vision sinks; rows and columns of patches count from 0.

    Returns:
        The grouped rows.

    Raises:
        SettingsError: If `by`, the item or the run is unknown.
        InputError: If a position to keep holds no image token of this item.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import read_patterns
        >>> from eah_interp.testing import random_image
        >>> image = random_image()
        >>> found = read_patterns(eah.load(), image, "What?", heads=["L1H3"])
        >>> grouped = group_patterns(found)
        >>> len(found.tokens[0]) - len(grouped.labels)  # 100 tokens have become one
        99
    """
    if by not in get_args(By):
        msg = f"by must be one of {', '.join(get_args(By))}, got {by!r}"
        raise SettingsError(msg)
    found.find_item(item)
    spans = found.spans[item]
    kept = frozenset(keep)
    strangers = kept - {column for span in spans for column in span.columns}
    if strangers:
        msg = (
            f"expected positions of image tokens to keep, got {sorted(strangers)}; "
            "take them from spans, or from sinks"
        )
        raise InputError(msg)
    label_of: dict[int, str] = {}
    for number, span in enumerate(spans, 1):
        label_of |= _label_columns(span, number, by=by, kept=kept, of=len(spans))
    groups: dict[str | int, list[int]] = {}
    for position, padded in enumerate(found.padding[item].tolist()):
        if not padded:
            single = position in kept or position not in label_of
            name = position if single else label_of[position]
            groups.setdefault(name, []).append(position)
    members = list(groups.values())
    labels = [label_of.get(group[0], found.tokens[item][group[0]]) for group in members]
    mean, sums, queries = _build_matrices(found, members)
    rows = found.find_run(run).rows[item].double()
    weights = torch.einsum("gx,hxy,ky->hgk", mean, rows, sums)
    return GroupedPatterns(
        names=found.names,
        labels=tuple(labels),
        groups=tuple(map(tuple, members)),
        queries=queries,
        weights=weights.float(),
    )


def _build_matrices(
    found: HeadPatterns, groups: list[list[int]]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Make the mean over a group's rows, the sum over its columns, and who has rows."""
    known = {position: row for row, position in enumerate(found.positions.tolist())}
    sums = torch.zeros(len(groups), found.images.shape[1], dtype=torch.double)
    means = torch.zeros(len(groups), len(known), dtype=torch.double)
    for number, group in enumerate(groups):
        sums[number, group] = 1
        read = [known[position] for position in group if position in known]
        if read:
            means[number, read] = 1 / len(read)
    queries = means.any(1).nonzero().flatten().tolist()
    return means[queries], sums, tuple(queries)


def _label_columns(
    span: ImageSpan, number: int, *, by: By, kept: frozenset[int], of: int
) -> dict[int, str]:
    """Say of each image token which group it is in, or what it is called alone."""
    image = f"image {number}"
    which = f"{image}:" if of > 1 else ""
    repeated = len(span.parts) > 1
    base = f"[{image}]" if by == "image" else f"[{image}:other]"
    labels = dict.fromkeys(span.columns, base if span.parts else f"[{image}]")
    for part in span.parts:
        same = [one for one in span.parts if one.name == part.name]
        name = part.name + (f" {same.index(part) + 1}" if len(same) > 1 else "")
        within = f"{name}:" if repeated else ""
        for row, line in enumerate(part.columns):
            for place, column in enumerate(line):
                if by == "part":
                    labels[column] = f"[{image}:{name}]" if repeated else f"[{image}]"
                elif by == "row":
                    labels[column] = f"[{image}:{within}r{row}]"
                if column in kept:
                    labels[column] = f"<{which}{within}patch:r{row}c{place}>"
    for column in kept & set(span.columns):
        if not labels[column].startswith("<"):
            labels[column] = f"<{which}token:{column}>"
    return labels


# ---- Small cuts of a picture, for token labels.


HEIGHT = 32
"""Of a thumbnail, in pixels; a wide one is at most eight times as wide."""


def cut_groups(
    image: Image.Image, span: ImageSpan, groups: Sequence[Iterable[int]]
) -> dict[int, Image.Image]:
    """Cut out what groups of image tokens show: the box around their patches.

    Args:
        image: The original picture.
        span: Its span in the prompt.
        groups: Prompt positions of each group.

    Returns:
        A small picture for each group that has patches of this picture, by its number.

    Raises:
        UnsupportedError: If it is not known which part of the picture a grid shows.

    Example:
        >>> from eah_interp.lvlm import ImagePart
        >>> part = ImagePart("image", ((5, 6),), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 7, (5, 6), (part,))
        >>> white = Image.new("RGB", (80, 40), "white")
        >>> {n: c.size for n, c in cut_groups(white, span, [[4], [6], [5, 6]]).items()}
        {1: (32, 32), 2: (64, 32)}
    """
    own = frozenset(span.columns)
    cuts: dict[int, Image.Image] = {}
    for number, group in enumerate(groups):
        boxes = [span.place(column) for column in group if column in own]
        known = [box for box in boxes if box is not None]
        if known:
            cuts[number] = _cut(image, _around(known))
    return cuts


def _around(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = box
    sides = (
        math.floor(left * image.width + 1e-6),
        math.floor(top * image.height + 1e-6),
        max(math.ceil(right * image.width - 1e-6), 1),
        max(math.ceil(bottom * image.height - 1e-6), 1),
    )
    cut = image.convert("RGB").crop(sides)
    width = min(max(round(HEIGHT * cut.width / cut.height), 4), 8 * HEIGHT)
    small = cut.height < HEIGHT
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return cut.resize((width, HEIGHT), how)


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
