"""Figures of both towers: which of the vision tower's tokens become which columns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eah_interp.lvlm.images import read_image
from eah_interp.lvlm.spans import ImagePart
from eah_interp.viz.figures import COLUMN_WIDTH, explain, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


def plot_links(
    tokens: Sequence[int], columns: Sequence[int], *, ax: "Axes | None" = None
) -> "Figure":
    """Draw which tokens of the vision tower go into which image columns.

    Args:
        tokens: The token of each link.
        columns: The column of each link.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> plot_links([0, 1, 2, 3], [5, 5, 6, 6]).axes[0].get_ylabel()
        'image column'
    """
    axes = open_axes(ax, height=2.4)
    axes.plot(tokens, columns, ".", markersize=3, color="C0")
    axes.set_xlabel("token of the vision tower")
    axes.set_ylabel("image column")
    figure: Figure = axes.figure
    return figure


# ---- Kinds of sinks: on the image, and by their norms along both towers.

COLOURS = {
    "tower": "tab:orange",
    "language": "tab:blue",
    "both": "tab:purple",
    "none": "0.75",
}
"""The colour of each kind."""

NAMES = {
    "tower": "vision tower",
    "language": "language model",
    "both": "both",
    "none": "no sink",
}


def plot_kinds(
    part: ImagePart,
    kinds: Mapping[int, str],
    *,
    image: Any = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw which patches of an image are sinks, and of which kind.

    Args:
        part: A grid of image tokens.
        kinds: The kind of each column that is a sink.
        image: The image to draw on; a blank one when None.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        InputError: If the image is none.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> part = ImagePart("image", ((5, 6), (7, 8)), (0.0, 0.0, 1.0, 1.0))
        >>> figure = plot_kinds(part, {6: "tower", 7: "language"})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['vision tower', 'language model']
    """
    axes = open_axes(ax, height=COLUMN_WIDTH)
    from matplotlib.patches import Rectangle

    n_rows, n_columns = len(part.columns), len(part.columns[0])
    left, top, right, bottom = part.box or (0.0, 0.0, 1.0, 1.0)
    if image is not None:
        axes.imshow(read_image(image), extent=(0, 1, 1, 0), aspect="auto")
    axes.set_xlim(min(left, 0), max(right, 1))
    axes.set_ylim(max(bottom, 1), min(top, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    width, height = (right - left) / n_columns, (bottom - top) / n_rows
    shown: dict[str, Any] = {}
    for row, line in enumerate(part.columns):
        for index, column in enumerate(line):
            kind = kinds.get(column, "none")
            colour = COLOURS[kind]
            place = (left + index * width, top + row * height)
            is_sink = kind != "none"
            drawn = Rectangle(
                place,
                width,
                height,
                facecolor=colour if is_sink else "none",
                edgecolor=colour,
                alpha=0.6 if is_sink else 1.0,
                linewidth=0.4,
            )
            axes.add_patch(drawn)
            if is_sink:
                shown.setdefault(kind, drawn)
    handles = [shown[kind] for kind in COLOURS if kind in shown]
    names = [NAMES[kind] for kind in COLOURS if kind in shown]
    if handles:
        options: dict[str, Any] = {"alone": ax is None, "loc": "lower center"}
        explain(axes, **options, handles=handles, labels=names, ncols=len(handles))
    figure: Figure = axes.figure
    return figure


def plot_norms(
    tower: "Tensor",
    decoder: "Tensor",
    *,
    kinds: Sequence[str],
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw the norm of image columns along the vision tower, then along the decoder.

    Args:
        tower: Norms by layer of the vision tower, `[layer column]`; NaN where unknown.
        decoder: Norms entering the decoder and leaving each layer, `[depth column]`.
        kinds: The kind of each column.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> kinds = ["none", "tower"]
        >>> figure = plot_norms(torch.rand(2, 2), torch.rand(4, 2), kinds=kinds)
        >>> figure.axes[0].get_yscale()
        'log'
    """
    axes = open_axes(ax, height=2.4)
    n_tower = len(tower)
    before = range(-n_tower, 0)
    after = range(len(decoder))
    order = sorted(range(len(kinds)), key=lambda place: kinds[place] != "none")
    named: set[str] = set()
    for place in order:
        kind = kinds[place]
        is_sink = kind != "none"
        style: dict[str, Any] = {
            "color": COLOURS[kind],
            "linewidth": 1.2 if is_sink else 0.5,
        }
        axes.plot(before, tower[:, place].tolist(), **style)
        label = None if kind in named else NAMES[kind]
        axes.plot(after, decoder[:, place].tolist(), **style, label=label)
        named.add(kind)
    axes.axvline(-0.5, color="0.5", linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("layers of the vision tower | depth of the decoder")
    axes.set_ylabel("norm")
    if named:
        axes.legend(fontsize=7, frameon=False)
    figure: Figure = axes.figure
    return figure
