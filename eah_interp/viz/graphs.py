"""Circuits as layered graphs, and what they explain over their size."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eah_interp.viz.figures import escape, explain, open_axes, style_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "q": "#0072b2",
    "k": "#d55e00",
    "v": "#009e73",
    "stream": "#777777",
}
"""By which input an edge is read: colours that the colour-blind tell apart."""

WIDEST, THINNEST = 2.4, 0.5

_AT = re.compile(r"L(\d+)(?:H(\d+)|G(\d+))?")


def plot_graph(
    edges: Sequence[tuple[str, str, str]],
    *,
    weights: Sequence[float],
    title: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw edges between components, layers upwards.

    Args:
        edges: Sender, receiver and input of each: `("L1H3", "L2H0", "q")`. A group of
            keys (`L2G0`) is drawn as a component of its own.
        weights: How wide each is drawn, by its size; a negative one is dashed.
        title: What is drawn.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> edges = [("image", "L0H1", "v"), ("L0H1", "logit", "stream")]
        >>> figure = plot_graph(edges, weights=[1.0, -0.5], title="two edges")
        >>> sorted(text.get_text() for text in figure.axes[0].texts)[:3]
        ['', '', 'L0H1']
    """
    places = lay_nodes(
        [name for sender, receiver, _ in edges for name in (sender, receiver)]
    )
    rows = sorted({row for _, row in places.values()})
    axes = open_axes(ax, height=min(1.2 + 0.45 * len(rows), 7.0))
    sizes = [abs(weight) if math.isfinite(weight) else 0.0 for weight in weights]
    most = max(sizes, default=0.0) or 1.0
    used = [what for what in COLOURS if any(edge[2] == what for edge in edges)]
    for (sender, receiver, what), size, weight in zip(
        edges, sizes, weights, strict=True
    ):
        share = size / most
        axes.annotate(
            "",
            xy=places[receiver],
            xytext=places[sender],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.15,head_length=0.3",
                "color": COLOURS.get(what, COLOURS["stream"]),
                "linewidth": THINNEST + (WIDEST - THINNEST) * share,
                "linestyle": "--" if weight < 0 else "-",
                "shrinkA": 7,
                "shrinkB": 7,
                "alpha": 0.35 + 0.65 * share,
            },
        )
    for name, (across, up) in places.items():
        axes.text(
            across,
            up,
            escape(name),
            ha="center",
            va="center",
            fontsize=6,
            bbox={
                "boxstyle": "round,pad=0.2",
                "fc": "white",
                "ec": "#444444",
                "lw": 0.6,
            },
        )
    for what in used:
        axes.plot([], [], color=COLOURS[what], label=what)
    widest = max((abs(across) for across, _ in places.values()), default=0.0)
    axes.set_xlim(-widest - 0.8, widest + 0.8)
    axes.set_ylim(min(rows, default=0.0) - 0.6, max(rows, default=0.0) + 0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(escape(title), size=8)
    for side in axes.spines.values():
        side.set_visible(False)
    if used:
        explain(axes, alone=ax is None, loc="upper center", ncols=len(used))
    figure: Figure = axes.figure
    return figure


def lay_nodes(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Place components: a line for each layer's heads, one for its MLP, even lines.

    Example:
        >>> places = lay_nodes(["image", "L0H1", "L0.mlp", "logit", "L0H3"])
        >>> [places[name][1] for name in ("image", "L0H1", "L0H3", "L0.mlp", "logit")]
        [0.0, 1.0, 1.0, 2.0, 3.0]
    """
    order = {name: _rank(name) for name in dict.fromkeys(names)}
    lines = sorted({rank[:2] for rank in order.values()})
    places = {}
    for height, line in enumerate(lines):
        own = sorted((rank, name) for name, rank in order.items() if rank[:2] == line)
        for number, (_, name) in enumerate(own):
            places[name] = (number - (len(own) - 1) / 2, float(height))
    return places


def _rank(name: str) -> tuple[float, int, int, str]:
    """Order a component: its layer, its half of it, its number there."""
    found = _AT.match(name)
    if found is None:
        return (float("inf") if name == "logit" else -1.0, 0, 0, name)
    number = found[2] or found[3]
    half = 0 if number is not None else 1
    return float(found[1]), half, int(number or 0), name


LINES = {
    "kept": ("-", "#0072b2"),
    "left out": ("--", "#d55e00"),
    "random": (":", "#777777"),
}


def plot_shares(
    shares: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    axis: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw lines over the share of edges, which runs by powers of ten.

    Args:
        shares: Where they were measured.
        lines: By name (`kept`, `left out`, `random`) a number for each share.
        axis: What they are.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> figure = plot_shares([0.1, 1.0], {"kept": [0.4, 1.0]}, axis="share")
        >>> figure.axes[0].get_xscale()
        'log'
    """
    axes: Any = open_axes(ax, height=2.4)
    for name, heights in lines.items():
        style, colour = LINES[name]
        axes.plot(shares, heights, style, color=colour, label=name, marker="o", ms=2.5)
    for level in (0.0, 1.0):
        axes.axhline(level, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("share of the edges")
    axes.set_ylabel(escape(axis))
    style_lines(axes)
    explain(axes, alone=ax is None, loc="upper center", ncols=len(lines))
    figure: Figure = axes.figure
    return figure
