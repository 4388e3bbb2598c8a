"""Figures of studies: effects with intervals, layer by layer, sinks beside errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eah_interp.statistics import Effect, estimate_mean
from eah_interp.viz.figures import (
    escape,
    explain,
    make_figure,
    open_axes,
    style_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = (("#0072B2", "o"), ("#D55E00", "s"))
"""Blue circles, then vermilion squares: apart under every colour vision."""

LONGEST = 26
"""Letters of a condition's name that are written."""


def plot_effects(
    series: Mapping[str, Mapping[str, Effect | None]],
    *,
    axis: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw effects by condition, with intervals.

    A filled mark's interval lies on one side of zero. Where an effect is undefined, it
    says so.

    Args:
        series: One or two, by name: the effect under each condition. The first has
            every condition.
        axis: What the effects are on.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> effect = Effect(estimate=3.0, low=1.0, high=4.0, level=0.95, n=9)
        >>> figure = plot_effects({"all": {"EAH": effect}}, axis="change (points)")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['EAH']
    """
    conditions = list(next(iter(series.values())))
    several = len(series) > 1
    height = 0.95 + len(conditions) * (0.24 if several else 0.17)
    axes = open_axes(ax, height=height)
    axes.axvline(0, color="0.5", linewidth=0.7, zorder=0)
    for number, (effects, look) in enumerate(
        zip(series.values(), SERIES, strict=False)
    ):
        shift = 0.32 * number - 0.16 if several else 0.0
        for row, condition in enumerate(conditions):
            if condition in effects:
                _draw(axes, effects[condition], row + shift, look=look)
    axes.set_yticks(range(len(conditions)), [_shorten(name) for name in conditions])
    axes.set_ylim(len(conditions) - 0.5, -0.5)
    axes.set_xlabel(axis)
    style_lines(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if several:
        looks = dict(zip(series, SERIES, strict=False))
        _explain_series(axes, looks, alone=ax is None)
    figure: Figure = axes.figure
    return figure


def plot_layers(
    series: Mapping[str, Sequence[tuple[int, Effect]]],
    *,
    layers: Sequence[int],
    axis: str,
) -> "Figure":
    """Draw the effect of patching one layer, layer by layer.

    Args:
        series: One or two, by name: a layer and its effect, in order; one without
            any is left out.
        layers: The layers that were patched.
        axis: What the effects are on.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
    """
    figure = make_figure(height=2.2)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.5", linewidth=0.7, zorder=0)
    drawn = {}
    pairs = zip(series.items(), SERIES, strict=False)
    for number, ((name, found), look) in enumerate(pairs):
        if not found:
            continue
        drawn[name] = look
        shift = 0.16 * number - 0.08
        places = [layer + shift for layer, _ in found]
        estimates = [effect.estimate for _, effect in found]
        axes.plot(places, estimates, color=look[0], linewidth=0.8)
        for place, (_, effect) in zip(places, found, strict=True):
            _draw(axes, effect, place, look=look, upright=True)
    axes.set_xticks(sorted(layers))
    axes.set_xlabel("patched decoder layer")
    axes.set_ylabel(axis)
    style_lines(axes)
    if len(drawn) > 1:
        _explain_series(axes, drawn, alone=True)
    return figure


def plot_densities(
    densest: Sequence[float], errors: Sequence[float], *, axis: str
) -> "Figure":
    """Draw the density of each image's densest shallow head against its errors.

    Dots are images, moved a little apart; marks are means of fifths of them by
    density, with Student's intervals.

    Args:
        densest: Densities, in [0, 1].
        errors: Errors of the same images.
        axis: What the errors are.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
    """
    figure = make_figure(height=2.2)
    axes = figure.add_subplot()
    x = 100 * np.asarray(densest, dtype=float)
    y = np.asarray(errors, dtype=float)
    # equal counts of errors would hide each other
    step = min(np.diff(np.unique(y)), default=1.0)
    rng = np.random.default_rng(0)
    moved = y + rng.uniform(-0.06, 0.06, len(y)) * step
    axes.scatter(x, moved, s=7, color="0.6", alpha=0.6, linewidths=0, zorder=1)
    for group in np.array_split(np.argsort(x, kind="stable"), 5):
        if len(group) < 2:  # one image has no interval
            continue
        mean = estimate_mean(y[group].tolist())
        place = float(np.median(x[group]))
        _draw(axes, mean, place, look=SERIES[0], upright=True, filled=True)
    axes.set_xlabel("density of the densest head of layers 0 and 1 (%)")
    axes.set_ylabel(axis)
    style_lines(axes)
    return figure


def _draw(
    axes: Any,
    effect: Effect | None,
    place: float,
    *,
    look: tuple[str, str],
    upright: bool = False,
    filled: bool | None = None,
) -> None:
    """Draw an estimate with its interval, or write that it is undefined."""
    colour, mark = look
    if effect is None:
        if not upright:
            axes.annotate(
                "undefined", (0, place), (3, 0), textcoords="offset points",
                va="center", fontsize=6, color=colour,
            )  # fmt: skip
        return
    filled = effect.excludes_zero if filled is None else filled
    ends, at = (effect.low, effect.high), (place, place)
    line = (at, ends) if upright else (ends, at)
    axes.plot(*line, color=colour, linewidth=1.2, solid_capstyle="butt")
    point = (place, effect.estimate) if upright else (effect.estimate, place)
    axes.plot(
        *point,
        marker=mark,
        markersize=4,
        color=colour,
        markerfacecolor=colour if filled else "white",
        markeredgewidth=1,
    )


def _explain_series(
    axes: Any, looks: Mapping[str, tuple[str, str]], *, alone: bool
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=mark, markersize=4, label=name)
        for name, (colour, mark) in looks.items()
    ]
    shown: dict[str, Any] = {"handles": handles, "ncols": len(handles)}
    explain(axes, alone=alone, loc="upper center", **shown)


def _shorten(name: str) -> str:
    """Write a condition's name, not too long for a column."""
    return escape(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
