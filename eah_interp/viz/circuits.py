"""Patterns as CircuitsVis widgets, an image's tokens put together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from eah_interp.errors import InputError, SettingsError
from eah_interp.indices import check_choice, check_columns
from eah_interp.lvlm.images import ImageLike, read_image
from eah_interp.lvlm.spans import Box, ImageSpan
from eah_interp.results import Result
from eah_interp.shown_results import list_largest
from eah_interp.viz.heads import plot_values
from eah_interp.viz.widgets import Widget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["image", "part", "row"]
"""What becomes one token: an image, each of its grids, or each row of patches."""


@dataclass(frozen=True)
class Tokens:
    """What stands in one prompt.

    Attributes:
        names: Each position's token.
        padded: Whether each position is padding.
        spans: The prompt's images, with their patch grids.
    """

    names: Sequence[str]
    padded: Sequence[bool]
    spans: Sequence[ImageSpan]


# ---- Patterns over fewer tokens: an image's tokens as one, or as a few.


@dataclass(frozen=True, eq=False, repr=False)
class GroupedPatterns(Result):
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

    def _about(self) -> str:
        n_heads, n_rows, n_groups = self.weights.shape
        return (
            f"{n_heads} heads ({', '.join(self.names[:6])}), {n_rows} rows over "
            f"{n_groups} groups of tokens; largest weight first"
        )

    def _first(self, k: int) -> pd.DataFrame:
        def label(cell: tuple[int, ...]) -> dict[str, Any]:
            head, row, group = cell
            return {
                "name": self.names[head],
                "query": self.queries[row],
                "token": self.labels[group],
            }

        return list_largest({"weight": self.weights}, by="weight", k=k, label=label)

    def plot(self, head: str | None = None, *, ax: "Axes | None" = None) -> "Figure":
        """Draw one head's grouped rows.

        Args:
            head: Its name, such as `"L1H3"`; the first when None.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If there is no such head, or `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        name = self.names[0] if head is None and self.names else head
        check_choice("head", name, list(self.names))
        return plot_values(
            self.weights[self.names.index(str(name))],
            title=f"attention of {name}",
            rows="row",
            columns="group of tokens",
            ax=ax,
        )

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


def group_rows(
    rows: Float[Tensor, "head row key"],
    *,
    names: Sequence[str],
    positions: Int[Tensor, " row"],
    tokens: Tokens,
    by: By = "image",
    keep: Iterable[int] = (),
) -> GroupedPatterns:
    """Put an image's tokens together, so that a pattern can be read.

    A group gets the sum of the attention that its tokens get, and pays the mean of what
    they pay: `A[g, h] = mean over x in g of (sum over y in h of A[x, y])`. So rows sum
    to what they summed to. Text tokens stay as they are, padding is left out.

    Args:
        rows: Rows of each head's pattern.
        names: Name of each head.
        positions: Prompt position of each row.
        tokens: What stands in the prompt.
        by: `"image"`: an image is one token, `[image 1]`. `"part"`: each of its grids
            is (overview, crops, tiles). `"row"`: each row of patches is. Image tokens
            that are no patches (newline vectors) are `[image 1:other]`; latents are one
            group.
        keep: Positions of image tokens that stay by themselves, `<patch:r3c5>`, such as
            vision sinks; rows and columns of patches count from 0.

    Returns:
        The grouped rows.

    Raises:
        SettingsError: If `by` is unknown.
        InputError: If a position to keep holds no image token of this prompt.

    Example:
        >>> tokens = Tokens(["What", "?"], [False, False], ())
        >>> eye = torch.eye(2)[None]
        >>> asked = {"names": ["L0H1"], "positions": torch.arange(2)}
        >>> group_rows(eye, tokens=tokens, **asked).labels
        ('What', '?')
    """
    groups = find_groups(tokens, by=by, keep=keep)
    known = {position: row for row, position in enumerate(positions.tolist())}
    sums = torch.zeros(len(groups), rows.shape[-1], dtype=torch.double)
    means = torch.zeros(len(groups), len(known), dtype=torch.double)
    for number, (_, members) in enumerate(groups):
        sums[number, list(members)] = 1
        read = [known[position] for position in members if position in known]
        if read:
            means[number, read] = 1 / len(read)
    queries = means.any(1).nonzero().flatten().tolist()
    weights = torch.einsum("gx,hxy,ky->hgk", means[queries], rows.double(), sums)
    return GroupedPatterns(
        names=tuple(names),
        labels=tuple(label for label, _ in groups),
        groups=tuple(members for _, members in groups),
        queries=tuple(queries),
        weights=weights.float(),
    )


def find_groups(
    tokens: Tokens, *, by: By = "image", keep: Iterable[int] = ()
) -> list[tuple[str, tuple[int, ...]]]:
    """List a prompt's groups of tokens: what each is called, and its positions.

    Raises:
        SettingsError: If `by` is unknown.
        InputError: If a position to keep holds no image token of this prompt.
    """
    check_choice("by", by, By)
    spans, kept = tokens.spans, check_columns("keep", keep)
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
    for position, padded in enumerate(tokens.padded):
        if not padded:
            single = position in kept or position not in label_of
            # a number as the key: two equal words are two groups
            name = position if single else label_of[position]
            groups.setdefault(name, []).append(position)
    return [
        (label_of.get(group[0], tokens.names[group[0]]), tuple(group))
        for group in groups.values()
    ]


def _label_columns(
    span: ImageSpan, number: int, *, by: By, kept: frozenset[int], of: int
) -> dict[int, str]:
    """Name the group of each image token, or the token where it stands alone."""
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


# ---- The widgets.


RULE = (
    "An image's tokens are put together: attention to them is summed, attention from "
    "them is averaged."
)

SPACE = "\N{OPEN BOX}"
"""What stands for a token of spaces or line breaks, which has no label else."""

BLUE = "rgb(0, 114, 178)"
"""The blue of patched runs, told apart from white by every eye."""


def show_whole(grouped: GroupedPatterns, *, run: str) -> Widget:
    """Show whole patterns of heads, as CircuitsVis's attention heads.

    Args:
        grouped: The patterns.
        run: Of which run they are, for the caption.

    Returns:
        A widget: `save` it, show it in a notebook, or share a page with others.

    Raises:
        SettingsError: If only some rows were read.
    """
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


def show_rows(
    rows: Mapping[str, Float[Tensor, " key"]],
    *,
    tokens: Tokens,
    position: int,
    by: By = "image",
    keep: Iterable[int] = (),
    images: ImageLike | Sequence[ImageLike] = (),
) -> Widget:
    """Show what single rows attend to, as CircuitsVis's coloured tokens.

    Args:
        rows: A row of a pattern by the label of its button.
        tokens: What stands in the prompt.
        position: Prompt position of the rows, for the caption.
        by: What of an image becomes one token; see `group_rows`.
        keep: Positions of image tokens that stay by themselves.
        images: The prompt's images: what image tokens stand for is then shown before
            their labels.

    Returns:
        A widget with a button for each row.

    Raises:
        SettingsError: If `by` is unknown.
        InputError: If a position to keep holds no image token, or there is not one
            image for each of the prompt's.
        UnsupportedError: If images are given, and it is not known what grids show.
    """
    groups = find_groups(tokens, by=by, keep=keep)
    columns = [list(members) for _, members in groups]
    stacked = torch.stack(list(rows.values())).double()
    values = torch.stack([stacked[:, members].sum(-1) for members in columns])
    shown: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if shown and len(shown) != len(tokens.spans):
        msg = f"expected {len(tokens.spans)} images, got {len(shown)}"
        raise InputError(msg + ": give each image of the item, in its order")
    thumbnails: dict[int, Image.Image] = {}
    for span, image in zip(tokens.spans, shown, strict=False):
        thumbnails |= cut_groups(image, span, columns)
    return Widget(
        element="ColoredTokensMulti",
        properties={
            "tokens": [label for label, _ in groups],
            "values": values.float().tolist(),
            "labels": list(rows),
        },
        thumbnails=thumbnails,
        caption=f"What {tokens.names[position]!r} at position {position} attends to. "
        f"{RULE}",
    )


# ---- Small cuts of an image, for token labels.


HEIGHT = 32
"""Of a thumbnail, in pixels; a wide one is at most eight times as wide."""


def cut_groups(
    image: ImageLike, span: ImageSpan, groups: Sequence[Iterable[int]]
) -> dict[int, Image.Image]:
    """Cut out what groups of image tokens show: the box around their patches.

    Args:
        image: The original image.
        span: Its span in the prompt.
        groups: Prompt positions of each group.

    Returns:
        A small image for each group that has patches of this image, by its number.

    Raises:
        UnsupportedError: If it is not known which part of the image a grid shows.

    Example:
        >>> from eah_interp.lvlm import ImagePart
        >>> part = ImagePart("image", ((5, 6),), (0.0, 0.0, 1.0, 1.0))
        >>> span = ImageSpan(0, 0, 5, 7, (5, 6), (part,))
        >>> white = Image.new("RGB", (80, 40), "white")
        >>> {n: c.size for n, c in cut_groups(white, span, [[4], [6], [5, 6]]).items()}
        {1: (32, 32), 2: (64, 32)}
    """
    read, own = read_image(image), frozenset(span.columns)
    cuts: dict[int, Image.Image] = {}
    for number, group in enumerate(groups):
        boxes = [span.place(column) for column in group if column in own]
        known = [box for box in boxes if box is not None]
        if known:
            cuts[number] = _cut(read, _around(known))
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
    cut = image.crop(sides)
    width = min(max(round(HEIGHT * cut.width / cut.height), 4), 8 * HEIGHT)
    small = cut.height < HEIGHT
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return cut.resize((width, HEIGHT), how)
