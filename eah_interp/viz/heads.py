"""Figures of effects on objects' logits: by head, by component, by object, by depth."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.viz.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    PATCHED,
    PLAIN,
    add_bar,
    escape,
    explain,
    make_figure,
    open_axes,
    refuse_axes,
    style_lines,
    tick_heads,
    write_beside,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

Panels = Mapping[str, "Tensor"]
"""A `[layer head]` tensor for each panel's title."""


def plot_heads(
    panels: Panels,
    *,
    layers: Iterable[int],
    title: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw effects of heads by layer and head, signs told apart, one scale for all.

    Args:
        panels: A `[layer head]` tensor for each panel's title; NaN stays blank.
        layers: Decoder index of each layer.
        title: What the effects are on.
        ax: Axes to draw one panel into; a figure of its own when None.

    Returns:
        A matplotlib figure: one column wide, of several panels a page.

    Raises:
        SettingsError: If axes are given for several panels.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> panels = {"plain": torch.randn(2, 4)}
        >>> figure = plot_heads(panels, layers=(0, 1), title="cat")
        >>> figure.axes[0].get_title()
        'plain'
    """
    if len(panels) > 1:
        refuse_axes(ax, panels=f"{len(panels)} panels")
    if ax is not None:
        axes = open_axes(ax, height=1.0)
        _fill_axes([axes], panels, layers=list(layers), title=title)
        given: Figure = axes.figure
        return given
    figure = make_figure(width=_width(panels), height=_height(panels))
    _draw_heads(figure, panels, layers=list(layers), title=title)
    return figure


def plot_head_lines(
    lines: Sequence[tuple[str, Panels]], *, layers: Iterable[int]
) -> "Figure":
    """Draw lines of panels as `plot_heads` does, each with a scale of its own.

    Args:
        lines: What the effects of each line are on, and its panels.
        layers: Decoder index of each layer.

    Returns:
        A matplotlib figure.

    Raises:
        ExtraMissingError: If matplotlib is not installed.
    """
    first = lines[0][1]
    whole = make_figure(width=_width(first), height=_height(first) * len(lines))
    parts = whole.subfigures(len(lines), 1, squeeze=False)[:, 0]
    for part, (title, panels) in zip(parts, lines, strict=True):
        _draw_heads(part, panels, layers=list(layers), title=title)
    return whole


def _width(panels: Panels) -> float:
    return COLUMN_WIDTH if len(panels) == 1 else PAGE_WIDTH


def _height(panels: Panels) -> float:
    n_layers, n_heads = next(iter(panels.values())).shape
    cell = min(max(COLUMN_WIDTH * 0.78 / max(n_heads, 1), 0.09), 0.22)
    return max(1.7, 0.9 + n_layers * cell)


def _draw_heads(figure: Any, panels: Panels, *, layers: list[int], title: str) -> None:
    """Draw panels side by side with one colour bar."""
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    _fill_axes(list(all_axes), panels, layers=layers, title=title)


def _fill_axes(
    all_axes: Sequence[Any], panels: Panels, *, layers: list[int], title: str
) -> None:
    tensors = {name: panel.float().numpy() for name, panel in panels.items()}
    # heads that were left out are NaN, and stay blank
    sizes = [
        float(panel.abs().nan_to_num().max()) if panel.numel() else 0.0
        for panel in panels.values()
    ]
    most = max(sizes) or 1.0
    for axes, (name, panel) in zip(all_axes, tensors.items(), strict=True):
        drawn = axes.imshow(panel, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        axes.set_title(name, size=8)
        axes.set_xlabel("head")
        tick_heads(axes, layers, panel.shape[1])
    all_axes[0].set_ylabel("decoder layer")
    add_bar(all_axes[0].figure, list(all_axes), drawn, label=title)


def plot_values(
    values: "Tensor",
    *,
    title: str,
    rows: str,
    columns: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw a matrix of numbers, signs told apart.

    Args:
        values: `[row column]`; NaN stays blank.
        title: What the numbers are.
        rows: What each row is.
        columns: What each column is.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> shown = {"title": "learned", "rows": "item", "columns": "position"}
        >>> plot_values(torch.eye(2), **shown).axes[0].get_xlabel()
        'position'
    """
    axes = open_axes(ax, height=min(1.2 + 0.12 * len(values), 4.0))
    most = float(values.abs().nan_to_num().max()) if values.numel() else 0.0
    drawn = axes.imshow(
        values.float().numpy(),
        cmap="PuOr",
        vmin=-(most or 1.0),
        vmax=most or 1.0,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.locator_params(integer=True)
    style_lines(axes)
    add_bar(axes.figure, axes, drawn, label=title)
    figure: Figure = axes.figure
    return figure


# ---- Bars: the components with the largest effects.


def plot_bars(
    names: Sequence[str],
    runs: Mapping[str, Sequence[float]],
    *,
    title: str,
    axis: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw a bar for each component and run, the change written beside two.

    Args:
        names: The components, from the top down.
        runs: Their effects, `plain` and, where there is one, `patched`; or two others.
        title: Which components they are.
        axis: What the effects are on.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> runs = {"plain": [1.0, -0.5], "patched": [0.2, -0.4]}
        >>> figure = plot_bars(["L1H3", "MLP 2"], runs, title="two", axis="effect")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['-0.8', '+0.1']
    """
    axes = open_axes(ax, height=0.8 + (0.07 + 0.09 * len(runs)) * len(names))
    thick = 0.8 / len(runs)
    for number, (run, effects) in enumerate(runs.items()):
        shift = (number - (len(runs) - 1) / 2) * thick
        places = [row + shift for row in range(len(names))]
        colour = (PLAIN, PATCHED)[number]
        axes.barh(places, effects, height=thick, color=colour, label=run)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel(escape(axis))
    axes.set_title(title, size=8)
    style_lines(axes)
    if len(runs) > 1:
        axes.margins(x=0.14)  # leaves room for the changes
        for row, (before, after) in enumerate(zip(*runs.values(), strict=True)):
            if math.isnan(before) or math.isnan(after):  # nothing stands there
                continue
            axes.annotate(
                f"{after - before:+.2g}",
                (max(before, after, 0), row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        explain(axes, alone=ax is None, loc="upper center", ncols=2)
    figure: Figure = axes.figure
    return figure


# ---- Objects' logits, plain against patched: a line for each object.


MARKS = {True: "o", False: "D", None: "o"}
"""Circles are objects that are there, diamonds objects that are not."""

GROUPS = {True: "in the image", False: "not in the image"}


def plot_logits(table: pd.DataFrame, *, metric: str = "logit") -> "Figure":
    """Draw each object's logit, plain against patched, with the change written.

    The grey mark is the plain run, the blue one the patched run; the number at the
    right is patched minus plain. Objects that are in the image are circles above the
    line, the others diamonds below it.

    Args:
        table: Columns `object row plain`, of a patched run `patched change`, and
            `present`: whether the object is in the image; empty where not known.
        metric: What was read.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> table = pd.DataFrame({"object": ["cup"], "row": 0, "plain": 1.0})
        >>> axes = plot_logits(table.assign(present=True)).axes[0]
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['cup']
    """
    patched, grouped = "patched" in table, bool(table["present"].notna().all())
    figure = make_figure(height=0.95 + 0.19 * len(table))
    axes = figure.add_subplot()
    names = []
    for place, row in enumerate(table.to_dict("records")):
        name = escape(str(row["object"]))
        # the batch item is named where there are several
        names.append(name if table["row"].nunique() == 1 else f"{name} ({row['row']})")
        mark: dict[str, Any] = {
            "marker": MARKS[bool(row["present"]) if grouped else None],
            "markersize": 5,
            "linestyle": "none",
        }
        axes.plot(
            [row["plain"]], [place], **mark, markerfacecolor="none", color=PLAIN,
            markeredgewidth=1.4, zorder=4,
        )  # fmt: skip
        if patched:
            ends = [row["plain"], row["patched"]]
            axes.plot(ends[1:], [place], **mark, color=PATCHED, zorder=3)
            axes.plot(ends, [place, place], color="0.6", linewidth=1.2, zorder=2)
            write_beside(axes, place, f"{row['change']:+.2f}", size=7.0)
    axes.set_yticks(range(len(table)), names)
    axes.set_ylim(len(table) - 0.5, -0.5)
    what = "log-probability" if metric == "log_prob" else "logit"
    axes.set_xlabel(f"{what}, change at the right" if patched else what)
    style_lines(axes)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    n_there = int(table["present"].sum()) if grouped else 0
    if 0 < n_there < len(table):
        axes.axhline(n_there - 0.5, color="0.4", linewidth=0.7, linestyle=(0, (4, 3)))
    _explain_marks(figure, patched=patched, grouped=grouped)
    return figure


def _explain_marks(figure: "Figure", *, patched: bool, grouped: bool) -> None:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5}
    hollow: dict[str, Any] = {
        "color": "white",
        "markeredgecolor": PLAIN,
        "markeredgewidth": 1.4,
    }
    handles = [Line2D([], [], label="plain", **dot, **hollow)]
    if patched:
        handles.append(Line2D([], [], label="patched", color=PATCHED, **dot))
    if grouped:
        for known, label in GROUPS.items():
            shape = dot | {"marker": MARKS[known], "color": "0.25"}
            handles.append(Line2D([], [], label=label, **shape))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=7,
        handletextpad=0.2,
        columnspacing=1.2,
    )


# ---- Curves over the decoder's depth.


LINES = {"answer": "-", "image max": "--", "image mean": ":"}
"""How each curve is drawn, so that they differ in print."""

MOST_TICKS = 12


def plot_curves(
    curves: Mapping[str, Mapping[str, "Tensor"]],
    *,
    points: Sequence[str],
    axis: str,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw curves over depth, grey for the plain run and blue for the patched one.

    Args:
        curves: By run (`plain`, `patched`) and name (`answer`, `image max`, `image
            mean`) a number for each point.
        points: Where they were read, the embedding first.
        axis: What they are of.
        ax: Axes to draw into; a figure of its own when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> curves = {"plain": {"answer": torch.tensor([0.0, 1.0])}}
        >>> figure = plot_curves(curves, points=["embedding", "L0"], axis="logit")
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['answer']
    """
    axes = open_axes(ax, height=2.4)
    for run, colour in (("plain", PLAIN), ("patched", PATCHED)):
        for name, style in LINES.items():
            if run not in curves or name not in curves[run]:
                continue
            axes.plot(
                range(len(points)),
                curves[run][name].numpy(),
                style,
                color=colour,
                label=name if len(curves) == 1 else f"{name}, {run}",
                linewidth=1.3,
                marker="o" if name == "answer" else None,
                markersize=2.5,
            )
    every = -(-len(points) // MOST_TICKS)
    shown = range(0, len(points), every)
    labels = ["emb." if n == 0 else points[n] for n in shown]
    axes.set_xticks(list(shown), labels)
    axes.set_xlabel("read after")
    axes.set_ylabel(escape(axis))
    style_lines(axes)
    alone: dict[str, Any] = {"alone": ax is None, "loc": "upper center"}
    explain(axes, **alone, ncols=len(curves), handlelength=2.6)
    figure: Figure = axes.figure
    return figure
