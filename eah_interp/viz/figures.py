"""Figures of vision sinks, readable in a paper's column."""

import io
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eah_interp.errors import ExtraMissingError, InputError
from eah_interp.interventions import SinkMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.35
"""Width of one column of a two-column paper, in inches."""


DONOR = "#D55E00"
"""Vermilion: apart from both ends of cividis under every colour vision."""


MOST_NUMBERED = 12
"""Up to this many heads, each cell says its density."""


def plot_sink_map(
    sink_map: SinkMap, *, item: int = 0, donors: Mapping[int, int] | None = None
) -> "Figure":
    """Draw sink density by layer and head.

    A dot marks the densest head of each layer; a frame, the donor of a patched layer.

    Args:
        sink_map: What `score_sinks` returned.
        item: Which batch item.
        donors: Donor head of each patched layer.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        InputError: If there is no such item.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
        >>> model = eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))
        >>> sinks = eah.score_sinks(model, random_image(), "Is there a cat?")
        >>> plot_sink_map(sinks, donors={1: 0}).axes[0].get_xlabel()
        'head'
    """
    if not 0 <= item < len(sink_map.density):
        msg = f"item {item} does not exist: expected 0 to {len(sink_map.density) - 1}"
        raise InputError(msg)
    density = sink_map.density[item].float().numpy()
    n_layers, n_heads = density.shape
    cell = COLUMN_WIDTH * 0.78 / n_heads
    figure = make_figure(height=1.1 + n_layers * min(max(cell, 0.09), 0.3))
    axes = figure.add_subplot()
    picture = axes.imshow(
        density * 100, cmap="cividis", vmin=0, vmax=max(density.max() * 100, 1)
    )
    axes.set_aspect("auto")
    axes.set_xlabel("head")
    axes.set_ylabel("decoder layer")
    tick_heads(axes, list(sink_map.layers), n_heads)
    if n_heads <= MOST_NUMBERED:
        _write_numbers(axes, density)
    marks = _mark(axes, sink_map, item=item, donors=donors or {})
    bar = figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("sink density (% of image columns)", size=8)
    bar.ax.tick_params(length=2, labelsize=7)
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=len(marks),
        frameon=False,
        fontsize=8,
    )
    return figure


def make_figure(*, width: float = COLUMN_WIDTH, height: float) -> "Figure":
    """Make an empty figure that no window and no global state knows of.

    A notebook shows it all the same, with or without `%matplotlib inline`.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> make_figure(height=1.0)._repr_png_()[1:4]
        b'PNG'
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "figures need matplotlib: pip install 'eah-interp[viz]'"
        raise ExtraMissingError(msg) from error
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    vars(figure)["_repr_png_"] = partial(_write_png, figure)
    return figure


def _write_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_svg(figure: "Figure") -> bytes:
    """Write a figure as SVG, the same bytes for the same figure.

    Example:
        >>> write_svg(make_figure(height=1.0))[:5]
        b'<?xml'
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "eah_interp"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


# -- the parts of a sink map ---------------------------------------------------------
def tick_heads(axes: "Axes", layers: list[int], n_heads: int) -> None:
    """Number heads and layers, not closer than can be read."""
    every = -(-n_heads // 16)
    axes.set_xticks(range(0, n_heads, every))
    every = -(-len(layers) // 20)
    rows = range(0, len(layers), every)
    axes.set_yticks(rows, [str(layers[row]) for row in rows])
    axes.tick_params(length=2, labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def _write_numbers(axes: "Axes", density: Any) -> None:
    bright = density > 0.55 * max(density.max(), 0.01)
    for row, line in enumerate(density):
        for head, value in enumerate(line):
            colour = "black" if bright[row, head] else "white"
            axes.text(
                head,
                row,
                f"{value:.0%}"[:-1],
                color=colour,
                ha="center",
                va="center",
                fontsize=6.5,
            )


def _mark(
    axes: "Axes", sink_map: SinkMap, *, item: int, donors: Mapping[int, int]
) -> list[Any]:
    """Mark densest heads and donors; return what the legend shows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    dot: dict[str, Any] = {
        "marker": "o",
        "markersize": 3,
        "color": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
        "linestyle": "none",
    }
    densest = sink_map.donors[item].tolist()
    rows = [row for row, head in enumerate(densest) if head >= 0]
    heads = [densest[row] for row in rows]
    corner = 0.33 if sink_map.density.shape[-1] <= MOST_NUMBERED else 0.0
    axes.plot([h + corner for h in heads], [r - corner for r in rows], **dot)
    marks: list[Any] = [Line2D([], [], label="densest in its layer", **dot)]
    frame: dict[str, Any] = {"fill": False, "edgecolor": DONOR, "linewidth": 1.6}
    halo: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": 2.8}
    for layer, head in donors.items():
        if head >= 0 and layer in sink_map.layers:
            row = sink_map.layers.index(layer)
            place = head - 0.5, row - 0.5
            axes.add_patch(Rectangle(place, 1, 1, zorder=3, **halo))
            axes.add_patch(Rectangle(place, 1, 1, zorder=3, **frame))
    if donors:
        marks.append(Rectangle((0, 0), 1, 1, label="donor", **frame))
    return marks
