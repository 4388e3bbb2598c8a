"""A figure of what is gained against what it costs, with intervals both ways."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where something stands on a figure of two measures, and how sure that is.

    Attributes:
        at: Across, and up.
        covariance: Of the two.
    """

    at: tuple[float, float]
    covariance: Sequence[Sequence[float]]

    def outline(self, *, level: float = 0.95) -> list[tuple[float, float]]:
        """Trace the ellipse that holds a share of a normal distribution.

        Args:
            level: The share.

        Example:
            >>> spot = Spot(at=(1.0, 2.0), covariance=((4.0, 0.0), (0.0, 1.0)))
            >>> [round(number, 2) for number in spot.outline()[0]]
            [5.9, 2.0]
        """
        (a, b), (_, d) = self.covariance
        # A root of the covariance takes the circle to the ellipse (Cholesky's).
        first = math.sqrt(max(a, 0.0))
        second = b / first if first else 0.0
        third = math.sqrt(max(d - second**2, 0.0))
        radius = math.sqrt(-2 * math.log(1 - level))
        turns = [2 * math.pi * step / 72 for step in range(73)]
        return [
            (
                self.at[0] + radius * first * math.cos(turn),
                self.at[1]
                + radius * (second * math.cos(turn) + third * math.sin(turn)),
            )
            for turn in turns
        ]


def plot_line(
    spots: Mapping[str, Spot],
    *,
    line: Sequence[tuple[float, float]],
    label: str,
    across: str,
    up: str,
) -> "Figure":
    """Draw spots with their ellipses, around a line that they are compared with.

    Args:
        spots: By name.
        line: Its points, in order.
        label: What the line is.
        across: What the axis across is.
        up: What the other one is.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> spot = Spot(at=(1.0, 2.0), covariance=((4.0, 0.0), (0.0, 1.0)))
        >>> names = {"label": "b", "across": "x", "up": "y"}
        >>> figure = plot_line({"a": spot}, line=[(0.0, 0.0)], **names)
        >>> len(figure.axes[0].lines)
        3
    """
    figure = make_figure(width=COLUMN_WIDTH, height=3.0 + 0.16 * len(spots))
    axes = figure.add_subplot()
    xs, ys = zip(*line, strict=True)
    axes.plot(xs, ys, color="#777777", marker=".", linewidth=1.2, label=escape(label))
    for number, (name, spot) in enumerate(spots.items()):
        colour = COLOURS[number % len(COLOURS)]
        rim = spot.outline()
        axes.plot([x for x, _ in rim], [y for _, y in rim], color=colour, linewidth=0.7)
        axes.plot(
            *spot.at,
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
