"""Figures of vision sinks: densities of heads, and scores of image columns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eah_interp.viz.figures import (
    COLUMN_WIDTH,
    DONOR,
    add_bar,
    explain,
    make_figure,
    open_axes,
    tick_heads,
    write_beside,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# ---- Sink density by layer and head.

MOST_NUMBERED = 12
"""Up to this many heads, each cell says its density."""


def plot_density_map(
    density: "Tensor",
    *,
    layers: Sequence[int],
    densest: Sequence[int],
    donors: Mapping[int, int] | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw sink density by layer and head.

    A dot marks the densest head of each layer; a frame, the donor of a patched layer.

    Args:
        density: `[layer head]`, in [0, 1].
        layers: Decoder index of each layer.
        densest: Densest head of each layer; -1 for none.
        donors: Donor head of each patched layer; -1 for none.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> figure = plot_density_map(torch.rand(1, 4), layers=[1], densest=[2])
        >>> figure.axes[0].get_xlabel()
        'head'
    """
    shown = density.float().numpy()
    n_layers, n_heads = shown.shape
    cell = COLUMN_WIDTH * 0.78 / max(n_heads, 1)
    axes = open_axes(ax, height=1.1 + n_layers * min(max(cell, 0.09), 0.3))
    most = max(100 * shown.max(initial=0), 1)
    drawn = axes.imshow(shown * 100, cmap="cividis", vmin=0, vmax=most)
    axes.set_aspect("auto")
    axes.set_xlabel("head")
    axes.set_ylabel("decoder layer")
    tick_heads(axes, list(layers), n_heads)
    if n_heads <= MOST_NUMBERED:
        _write_numbers(axes, shown)
    corner = 0.33 if n_heads <= MOST_NUMBERED else 0.0  # beside the cell's number
    marks = [_mark_densest(axes, densest, corner=corner)]
    for layer, head in (donors or {}).items():
        if head >= 0 and layer in layers:
            place = head - 0.5, list(layers).index(layer) - 0.5
            _frame(axes, place, 1)
    if donors:
        marks.append(_outline((0.0, 0.0), 1, label="donor"))
    label = "sink density (% of image columns)"
    add_bar(axes.figure, axes, drawn, label=label, fraction=0.05)
    alone: dict[str, Any] = {"alone": ax is None, "loc": "lower center"}
    explain(axes, **alone, handles=marks, ncols=len(marks), fontsize=8)
    figure: Figure = axes.figure
    return figure


def _write_numbers(axes: "Axes", density: Any) -> None:
    bright = density > 0.55 * max(density.max(initial=0), 0.01)
    for row, line in enumerate(density):
        for head, value in enumerate(line):
            axes.text(
                head,
                row,
                f"{value:.0%}"[:-1],
                color="black" if bright[row, head] else "white",
                ha="center",
                va="center",
                fontsize=6.5,
            )


def _mark_densest(axes: "Axes", densest: Sequence[int], *, corner: float) -> Any:
    """Put a dot on each layer's densest head; return what the legend shows."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {
        "marker": "o",
        "markersize": 3,
        "color": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
        "linestyle": "none",
    }
    places = [(head, row) for row, head in enumerate(densest) if head >= 0]
    axes.plot([h + corner for h, _ in places], [r - corner for _, r in places], **dot)
    return Line2D([], [], label="densest in its layer", **dot)


def _frame(axes: "Axes", place: tuple[float, float], n_columns: int) -> None:
    """Frame a donor's cells, with a halo that parts the frame from any colour."""
    for colour, width in (("white", 2.8), (DONOR, 1.6)):
        frame = _outline(place, n_columns, colour=colour, width=width)
        axes.add_patch(frame)


def _outline(
    place: tuple[float, float],
    n_columns: int,
    *,
    colour: str = DONOR,
    width: float = 1.6,
    label: str = "",
) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        place, n_columns, 1, fill=False, edgecolor=colour, linewidth=width,
        label=label, clip_on=False, zorder=3,
    )  # fmt: skip


# ---- Donor against recipients: scores of image columns, plain and patched.

MOST = 8.0
"""Ratios of score to threshold are coloured up to this, and down to one over it."""

MOST_LABELLED = 40
"""Up to this many heads, each line says its head and density."""


def plot_columns(
    ratios: Mapping[str, "Tensor"],
    *,
    densities: Mapping[str, Sequence[float]],
    donors: Sequence[int],
    layer: int,
) -> "Figure":
    """Draw one layer's heads, plain beside patched, a line each.

    Every cell is an image column's score, in multiples of the sink threshold: purple
    is a vision sink, orange is none, white lies at the threshold. The percentage beside
    a line is the head's sink density. A frame marks a donor. Of more than 200 columns
    not every one has a pixel of its own: save the figure as PDF, or with a higher dpi.

    Args:
        ratios: Score over threshold by the panel's title, `[head column]` each.
        densities: Sink density of each head by the panel's title.
        donors: The heads that donate.
        layer: Decoder index of the layer.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> ratios = {"plain": torch.ones(2, 9), "patched": torch.ones(2, 9)}
        >>> shares = {"plain": [0.1, 0.2], "patched": [0.2, 0.2]}
        >>> figure = plot_columns(ratios, densities=shares, donors=[1], layer=0)
        >>> figure.axes[0].get_ylabel()
        'head of layer 0'
    """
    from matplotlib.colors import LogNorm

    n_heads, n_columns = next(iter(ratios.values())).shape
    few = n_heads <= MOST_LABELLED
    figure = make_figure(height=1.15 + (0.15 if few else 0.06) * n_heads)
    panels = figure.subplots(1, len(ratios), sharey=True)
    for axes, (title, ratio) in zip(panels, ratios.items(), strict=True):
        drawn = axes.imshow(
            ratio.numpy(),
            cmap="PuOr",
            norm=LogNorm(1 / MOST, MOST, clip=True),
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(title, size=8)
        axes.tick_params(length=2, labelsize=7)
        axes.set_xlabel("image column", size=8)
        if few:
            for row, density in enumerate(densities[title]):
                write_beside(axes, row, f"{density:.0%}", size=6.5)
        for head in donors:
            _frame(axes, (-0.5, head - 0.5), n_columns)
    ticks = range(n_heads) if few else range(0, n_heads, 8)
    panels[0].set_yticks(list(ticks), [str(head) for head in ticks])
    panels[0].set_ylabel(f"head of layer {layer}", size=8)
    for head, label in zip(ticks, panels[0].get_yticklabels(), strict=True):
        if head in donors:
            label.set_fontweight("bold")
            label.set_color(DONOR)
    bar = add_bar(
        figure, list(panels), drawn,
        label="score / sink threshold (above 1: a vision sink)",
        location="bottom", fraction=0.05, pad=0.03, aspect=30,
    )  # fmt: skip
    names = [f"1/{MOST:.0f}", "1/2", "1", "2", f"{MOST:.0f}"]
    bar.set_ticks([1 / MOST, 1 / 2, 1, 2, MOST], labels=names)
    bar.minorticks_off()
    return figure
