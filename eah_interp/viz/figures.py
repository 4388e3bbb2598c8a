"""What all figures share: sizes, colours, and axes that a paper's column can hold."""

import io
from functools import partial
from typing import TYPE_CHECKING, Any

from eah_interp.errors import ExtraMissingError, SettingsError, show_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.35
"""Width of one column of a two-column paper, in inches."""

PAGE_WIDTH = 7.0
"""Width of a page of a two-column paper, in inches."""

PLAIN, PATCHED = "#7F7F7F", "#0072B2"
"""A grey and a blue that are also apart in brightness."""

DONOR = "#D55E00"
"""Vermilion: apart from both ends of cividis under every colour vision."""


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


def open_axes(ax: Any, *, width: float = COLUMN_WIDTH, height: float) -> Any:
    """Take the axes that a user gave, or make a figure with axes of its own.

    Args:
        ax: The user's; None for new ones.
        width: Of a new figure, in inches.
        height: Of a new figure, in inches.

    Raises:
        SettingsError: If `ax` is something else.
        ExtraMissingError: If matplotlib is not installed.
    """
    if ax is None:
        return make_figure(width=width, height=height).add_subplot()
    if not callable(getattr(ax, "imshow", None)) or not hasattr(ax, "figure"):
        msg = (
            "ax must be one axes of matplotlib, such as plt.subplots()[1], or be left "
            f"out, got {show_value(ax)}"
        )
        raise SettingsError(msg)
    return ax


def refuse_axes(ax: object, *, panels: str) -> None:
    """Refuse axes where several are drawn.

    Raises:
        SettingsError: If `ax` was given.
    """
    if ax is not None:
        msg = (
            f"this plot has {panels} and makes a figure for them: leave ax out, and "
            "find its axes in figure.axes"
        )
        raise SettingsError(msg)


def explain(axes: Any, *, alone: bool, loc: str, **options: Any) -> None:
    """Add a legend: outside the axes of a figure of ours, inside a user's own."""
    options = {"frameon": False, "fontsize": 7} | options
    if alone:
        axes.figure.legend(loc=f"outside {loc}", **options)
    else:
        axes.legend(loc="best", **options)


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


def tick_heads(axes: "Axes", layers: list[int], n_heads: int) -> None:
    """Number heads and layers, not closer than can be read."""
    every = -(-n_heads // 16)
    axes.set_xticks(range(0, n_heads, every))
    every = -(-len(layers) // 20)
    rows = range(0, len(layers), every)
    axes.set_yticks(rows, [str(layers[row]) for row in rows])
    _shrink_text(axes)


def style_lines(axes: Any) -> None:
    """Make axes of lines or bars readable in a column, without a box around them."""
    axes.spines[["top", "right"]].set_visible(False)
    _shrink_text(axes)


def _shrink_text(axes: Any) -> None:
    axes.tick_params(length=2, labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def add_bar(figure: Any, axes: Any, drawn: Any, *, label: str, **options: Any) -> Any:
    """Add a colour bar with a small label; options are matplotlib's `colorbar`'s."""
    bar = figure.colorbar(drawn, ax=axes, **{"pad": 0.02} | options)
    bar.set_label(escape(label), size=8)
    bar.ax.tick_params(length=2, labelsize=7)
    return bar


def write_beside(axes: "Axes", row: int, text: str, *, size: float) -> None:
    """Write a number at the right of a line of cells or marks."""
    axes.annotate(
        text,
        (1.0, row),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
    )


def escape(name: str) -> str:
    """Write a name so that its dollar signs begin no formula."""
    return name.replace("$", r"\$")
