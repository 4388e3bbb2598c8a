"""A figure of what is gained against what it costs, with intervals both ways."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eah_interp.statistics import Effect
from eah_interp.viz.figures import COLUMN_WIDTH, escape, make_figure, style_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = "osD^vP*X"
"""Seven colours and eight marks: 56 pairs that are apart, also without colour."""


def plot_points(
    points: Mapping[str, tuple[Effect, Effect]], *, across: str, up: str
) -> "Figure":
    """Draw a point for each name, with its interval both ways.

    An interval that is undetermined is not drawn, the point is.

    Args:
        points: By name, what stands on the axis across and on the one that goes up.
        across: What the axis across is.
        up: What the other one is.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> effect = Effect(estimate=3.0, low=1.0, high=4.0, level=0.95, n=9)
        >>> figure = plot_points({"a": (effect, effect)}, across="words", up="F1")
        >>> figure.axes[0].get_xlabel()
        'words'
    """
    figure = make_figure(width=COLUMN_WIDTH, height=2.4 + 0.16 * len(points))
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        if x.is_determined:
            axes.plot((x.low, x.high), (y.estimate,) * 2, color=colour, linewidth=0.8)
        if y.is_determined:
            axes.plot((x.estimate,) * 2, (y.low, y.high), color=colour, linewidth=0.8)
        axes.plot(
            x.estimate,
            y.estimate,
            marker=MARKS[number % len(MARKS)],
            markersize=4.5,
            color=colour,
            linestyle="",
            label=escape(name),
        )
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    style_lines(axes)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=7)
    return figure
