"""Figures of both towers: which of the vision tower's tokens become which columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eah_interp.lvlm.images import read_image
from eah_interp.lvlm.spans import ImagePart
from eah_interp.viz.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    escape,
    explain,
    make_figure,
    open_axes,
    refuse_axes,
)

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


MOST_TICKS = 14
"""So many layers are numbered at most."""

MOST_ABREAST = 3
"""So many panels stand side by side at most."""


@dataclass(frozen=True)
class KindPanel:
    """One way in which a model looks at one image.

    Attributes:
        title: What it is.
        parts: Grids of image tokens, such as the crops of an image.
        image: The image to draw on; a blank one when None.
    """

    title: str
    parts: Sequence[ImagePart]
    image: Any = None


def plot_kinds(
    panels: Sequence[KindPanel],
    kinds: Mapping[int, str],
    *,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw which patches of images are sinks, and of which kind.

    Args:
        panels: What is drawn: an image, or the ways in which a model looks at it.
        kinds: The kind of each column that is a sink.
        ax: Axes to draw the only panel into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide, of several panels a page.

    Raises:
        SettingsError: If `ax` is no axes, or there are several panels for it.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> part = ImagePart("image", ((5, 6), (7, 8)), (0.0, 0.0, 1.0, 1.0))
        >>> panel = KindPanel("image", [part])
        >>> figure = plot_kinds([panel], {6: "tower", 7: "language"})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['vision tower', 'language model']
    """
    all_axes = _open_panels(len(panels), ax=ax)
    shown: dict[str, Any] = {}
    for axes, panel in zip(all_axes, panels, strict=False):
        if len(panels) > 1:
            axes.set_title(escape(panel.title), size=8)
        _draw_kinds(axes, panel, kinds, shown)
    for spare in all_axes[len(panels) :]:
        spare.set_axis_off()
    handles = [shown[kind] for kind in COLOURS if kind in shown]
    names = [NAMES[kind] for kind in COLOURS if kind in shown]
    if handles:
        options: dict[str, Any] = {"alone": ax is None, "loc": "lower center"}
        explain(
            all_axes[0], **options, handles=handles, labels=names, ncols=len(handles)
        )
    figure: Figure = all_axes[0].figure
    return figure


def _open_panels(n_panels: int, *, ax: "Axes | None") -> list[Any]:
    """Open axes for each panel: a user's own for one, or a figure of ours."""
    if n_panels == 1:
        return [open_axes(ax, height=COLUMN_WIDTH)]
    refuse_axes(ax, panels=f"{n_panels} panels, one for each way of looking")
    across = min(n_panels, MOST_ABREAST)
    down = -(-n_panels // across)
    side = PAGE_WIDTH / MOST_ABREAST
    figure = make_figure(width=side * across, height=(side + 0.2) * down + 0.3)
    return list(figure.subplots(down, across, squeeze=False).flat)


def _draw_kinds(
    axes: Any, panel: KindPanel, kinds: Mapping[int, str], shown: dict[str, Any]
) -> None:
    """Draw one panel; note one patch of each kind for the legend."""
    boxes = [part.box or (0.0, 0.0, 1.0, 1.0) for part in panel.parts]
    if panel.image is not None:
        axes.imshow(read_image(panel.image), extent=(0, 1, 1, 0), aspect="auto")
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    axes.set_xlim(min(*lefts, 0), max(*rights, 1))
    axes.set_ylim(max(*bottoms, 1), min(*tops, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    for part, box in zip(panel.parts, boxes, strict=True):
        _draw_part(axes, part, box, kinds, shown)


def _draw_part(
    axes: Any,
    part: ImagePart,
    box: tuple[float, float, float, float],
    kinds: Mapping[int, str],
    shown: dict[str, Any],
) -> None:
    """Draw one grid of image tokens, its sinks filled."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    n_rows, n_columns = len(part.columns), len(part.columns[0])
    width, height = (right - left) / n_columns, (bottom - top) / n_rows
    for row, line in enumerate(part.columns):
        for index, column in enumerate(line):
            kind = kinds.get(column, "none")
            colour = COLOURS[kind]
            is_sink = kind != "none"
            drawn = Rectangle(
                (left + index * width, top + row * height),
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
    every = [*before, *after]
    shown = every[:: max(1, -(-len(every) // MOST_TICKS))]
    names = [str(place + n_tower if place < 0 else place) for place in shown]
    axes.set_xticks(shown, names)
    axes.set_xlabel("tower's layer | decoder's depth")
    axes.set_ylabel("norm")
    if named:
        explain(axes, alone=ax is None, loc="upper center", ncols=len(named))
    figure: Figure = axes.figure
    return figure
