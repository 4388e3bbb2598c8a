"""Figures of what components do to an object's logit."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.attribution.direct import HeadAttribution
from eah_interp.attribution.lens import LensReading, LogitLens
from eah_interp.attribution.results import largest
from eah_interp.errors import SettingsError
from eah_interp.viz.figures import COLUMN_WIDTH, make_figure, tick_heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

PAGE_WIDTH = 7.0
"""Width of a page of a two-column paper, in inches."""


PLAIN, PATCHED = "#7F7F7F", "#0072B2"
"""A grey and a blue that are also apart in brightness."""


def plot_heads(
    panels: Mapping[str, "Tensor"],
    *,
    layers: Iterable[int],
    title: str,
) -> "Figure":
    """Draw effects of heads by layer and head, signs told apart, one scale for all.

    Args:
        panels: A `[layer head]` tensor for each panel's title.
        layers: Decoder index of each layer.
        title: What the effects are on.

    Returns:
        A matplotlib figure: one column wide, of several panels a page.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> panels = {"plain": torch.randn(2, 4)}
        >>> figure = plot_heads(panels, layers=(0, 1), title="cat")
        >>> figure.axes[0].get_title()
        'plain'
    """
    n_layers, n_heads = next(iter(panels.values())).shape
    figure = make_figure(
        width=COLUMN_WIDTH if len(panels) == 1 else PAGE_WIDTH,
        height=_height(n_layers, n_heads),
    )
    _draw_heads(figure, panels, layers=list(layers), title=title)
    return figure


def plot_targets(found: HeadAttribution) -> "Figure":
    """Draw direct effects of heads on every target, a line of panels each.

    Args:
        found: What `attribute_heads` returned.

    Returns:
        A matplotlib figure; each line has a scale of its own.

    Raises:
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import attribute_heads
        >>> from eah_interp.testing import random_image
        >>> found = attribute_heads(eah.load(), random_image(), objects=["dog", "cup"])
        >>> [bar.get_ylabel() for bar in plot_targets(found).axes[1::2]]
        ['effect on dog', 'effect on cup']
    """
    n_targets, n_layers, n_heads = found.plain.heads.shape
    whole = make_figure(
        width=COLUMN_WIDTH if found.patched is None else PAGE_WIDTH,
        height=_height(n_layers, n_heads) * n_targets,
    )
    lines = whole.subfigures(n_targets, 1, squeeze=False)[:, 0]
    for index, (line, target) in enumerate(zip(lines, found.targets, strict=True)):
        panels = {"plain": found.plain.heads[index]}
        if found.patched is not None:
            panels["patched"] = found.patched.heads[index]
            panels["change"] = panels["patched"] - panels["plain"]
        title = f"effect on {name_target(target)}"
        _draw_heads(line, panels, layers=list(found.layers), title=title)
    return whole


def _height(n_layers: int, n_heads: int) -> float:
    cell = min(max(COLUMN_WIDTH * 0.78 / n_heads, 0.09), 0.22)
    return max(1.7, 0.9 + n_layers * cell)


def _draw_heads(
    figure: Any, panels: Mapping[str, "Tensor"], *, layers: list[int], title: str
) -> None:
    """Draw panels side by side with one colour bar."""
    tensors = {name: panel.float().numpy() for name, panel in panels.items()}
    # heads that were left out are NaN, and stay blank
    sizes = [float(panel.abs().nan_to_num().max()) for panel in panels.values()]
    most = max(sizes) or 1.0
    all_axes = figure.subplots(1, len(tensors), squeeze=False, sharey=True)[0]
    for axes, (name, panel) in zip(all_axes, tensors.items(), strict=True):
        drawn = axes.imshow(panel, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        axes.set_title(name, size=8)
        axes.set_xlabel("head")
        tick_heads(axes, layers, panel.shape[1])
    all_axes[0].set_ylabel("decoder layer")
    bar = figure.colorbar(drawn, ax=list(all_axes), pad=0.02)
    bar.set_label(title, size=8)
    bar.ax.tick_params(length=2, labelsize=7)


def plot_top(
    found: HeadAttribution, target: int = 0, *, k: int = 12, by: str | None = None
) -> "Figure":
    """Draw the components with the largest effects as bars, plain against patched.

    Args:
        found: What `attribute_heads` returned.
        target: Which target.
        k: How many heads, MLPs and other components.
        by: The column that is compared: `"plain"`, or by default `"change"` where
            there is a patched run.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        SettingsError: If there is no such target or column.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import attribute_heads
        >>> from eah_interp.testing import random_image
        >>> found = attribute_heads(eah.load(), random_image(), objects=["dog"])
        >>> len(plot_top(found, k=5).axes[0].patches)
        5
    """
    check_target(found.targets, target)
    by = by or ("plain" if found.patched is None else "change")
    table = found.frame()
    table = table[(table["target"] == target) & (table["kind"] != "remainder")]
    top = largest(table, k, by=by)
    runs = {"plain": PLAIN} | ({"patched": PATCHED} if found.patched else {})
    figure = make_figure(height=0.8 + (0.07 + 0.09 * len(runs)) * len(top))
    axes = figure.add_subplot()
    thick = 0.8 / len(runs)
    for number, (run, colour) in enumerate(runs.items()):
        shift = (number - (len(runs) - 1) / 2) * thick
        places = [row + shift for row in range(len(top))]
        axes.barh(places, top[run], height=thick, color=colour, label=run)
    axes.set_yticks(range(len(top)), list(top["name"]))
    axes.set_ylim(len(top) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel(f"direct effect on {name_target(found.targets[target])} (logit)")
    axes.set_title(f"{len(top)} components, largest {by} first", size=8)
    style_lines(axes)
    if found.patched is not None:
        _write_changes(axes, top[["plain", "patched"]].max(axis=1), top["change"])
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=7)
    return figure


def _write_changes(axes: Any, ends: Iterable[float], changes: Iterable[float]) -> None:
    """Write each change beside its bars."""
    axes.margins(x=0.14)
    for row, (end, change) in enumerate(zip(ends, changes, strict=True)):
        axes.annotate(
            f"{change:+.2g}",
            (max(end, 0), row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )


def check_target(targets: tuple[Any, ...], target: int) -> None:
    """Refuse a target that is not there.

    Raises:
        SettingsError: If it is not.
    """
    if not 0 <= target < len(targets):
        msg = f"target {target} does not exist: expected 0 to {len(targets) - 1}"
        raise SettingsError(msg)


def name_target(target: Any) -> str:
    """Name a target in a figure; dollar signs are no formulas."""
    return str(target.label).replace("$", r"\$")


def style_lines(axes: Any) -> None:
    """Make axes of lines or bars readable in a column, without a box around them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2, labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


# ---- Objects' logits, plain against patched: a line for each object.


MARKS = {True: "o", False: "D", None: "o"}
"""Circles are objects that are there, diamonds objects that are not."""


GROUPS = {True: "in the picture", False: "not in the picture"}


def list_logits(
    found: HeadAttribution | LogitLens, *, present: Iterable[str] | None = None
) -> pd.DataFrame:
    """List what `plot_logits` draws, in its order.

    Args:
        found: What `attribute_heads` or `logit_lens` returned.
        present: The objects that are in the picture; not known when None.

    Returns:
        Columns `object row target position plain`, of a patched run `patched change`,
        and `present` (empty where it is not known). Objects that are there come first.

    Raises:
        SettingsError: If `present` names none of the objects.
    """
    values = {"plain": found.plain, "patched": found.patched}
    table = pd.DataFrame(
        {
            "object": [target.label for target in found.targets],
            "row": [target.row for target in found.targets],
            "target": range(len(found.targets)),
            "position": [target.position for target in found.targets],
        }
    )
    for name, run in values.items():
        if run is not None:
            own = run.logit[:, -1, 0] if isinstance(run, LensReading) else run.values
            table[name] = own.double().numpy()
    if found.patched is not None:
        table["change"] = table["patched"] - table["plain"]
    if present is None:
        unknown = pd.Series(pd.NA, index=table.index, dtype="boolean")
        return table.assign(present=unknown)
    there = {present} if isinstance(present, str) else set(present)
    if there and not there & set(table["object"]):
        named = ", ".join(dict.fromkeys(table["object"]))
        msg = f"present names none of the objects: expected some of {named}"
        raise SettingsError(msg)
    table["present"] = table["object"].isin(there).astype("boolean")
    return table.sort_values("present", ascending=False, kind="stable").reset_index(
        drop=True
    )


def plot_logits(
    found: HeadAttribution | LogitLens, *, present: Iterable[str] | None = None
) -> "Figure":
    """Draw each object's logit, plain against patched, with the change written.

    The grey mark is the plain run, the blue one the patched run; the number at the
    right is patched minus plain. Objects that are in the picture are circles above the
    line, the others diamonds below it.

    Args:
        found: What `attribute_heads` or `logit_lens` returned.
        present: The objects that are in the picture; no difference is made when None.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        SettingsError: If `present` names none of the objects.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import attribute_heads
        >>> from eah_interp.testing import random_image
        >>> asked = {"objects": ["dog", "cup"], "patch": eah.EAH()}
        >>> found = attribute_heads(eah.load(), random_image(), **asked)
        >>> axes = plot_logits(found, present=["cup"]).axes[0]
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['cup', 'dog']
    """
    table = list_logits(found, present=present)
    figure = make_figure(height=0.95 + 0.19 * len(table))
    axes = figure.add_subplot()
    for place in range(len(table)):
        known = None if present is None else bool(table["present"].iloc[place])
        mark: dict[str, Any] = {
            "marker": MARKS[known],
            "markersize": 5,
            "linestyle": "none",
        }
        plain = float(table["plain"].iloc[place])
        axes.plot(
            [plain], [place], **mark, markerfacecolor="none", color=PLAIN,
            markeredgewidth=1.4, zorder=4,
        )  # fmt: skip
        if found.patched is None:
            continue
        patched = float(table["patched"].iloc[place])
        axes.plot([patched], [place], **mark, color=PATCHED, zorder=3)
        axes.plot(
            [plain, patched], [place, place], color="0.6", linewidth=1.2, zorder=2
        )
        axes.annotate(
            f"{table['change'].iloc[place]:+.2f}",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    names = [_name(found, table, number) for number in range(len(table))]
    axes.set_yticks(range(len(table)), names)
    axes.set_ylim(len(table) - 0.5, -0.5)
    metric = "log-probability" if found.metric == "log_prob" else "logit"
    axes.set_xlabel(f"{metric}, change at the right" if found.patched else metric)
    style_lines(axes)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    if present is not None:
        _divide(axes, n_there=int(table["present"].sum()), n_all=len(table))
    _legend(figure, patched=found.patched is not None, grouped=present is not None)
    return figure


def _name(found: HeadAttribution | LogitLens, table: pd.DataFrame, number: int) -> str:
    """Name an object, and its batch item where there are several."""
    line = table.iloc[number]
    name = name_target(found.targets[int(line["target"])])
    return name if table["row"].nunique() == 1 else f"{name} ({line['row']})"


def _divide(axes: Any, *, n_there: int, n_all: int) -> None:
    if 0 < n_there < n_all:
        axes.axhline(n_there - 0.5, color="0.4", linewidth=0.7, linestyle=(0, (4, 3)))


def _legend(figure: "Figure", *, patched: bool, grouped: bool) -> None:
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


def plot_lens(lens: LogitLens, target: int = 0, *, of: str = "logit") -> "Figure":
    """Draw what each layer says of an object, at the answer and at image tokens.

    Args:
        lens: What `logit_lens` returned.
        target: Which target.
        of: `"logit"` or `"probability"`.

    Returns:
        A matplotlib figure, one column wide: the answer, and the largest and the mean
        over image tokens; grey plain, blue patched.

    Raises:
        SettingsError: If there is no such target or number.
        ExtraMissingError: If matplotlib is not installed.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.attribution import logit_lens
        >>> from eah_interp.testing import random_image
        >>> lens = logit_lens(eah.load(), random_image(), objects=["dog"])
        >>> [line.get_label() for line in plot_lens(lens).axes[0].lines]
        ['answer', 'image max', 'image mean']
    """
    check_target(lens.targets, target)
    figure = make_figure(height=2.4)
    axes = figure.add_subplot()
    curves = lens.curves(target, of=of)
    depth = range(len(lens.points))
    for run, colour in (("plain", PLAIN), ("patched", PATCHED)):
        for name, style in LINES.items():
            if run not in curves or name not in curves[run]:
                continue
            label = name if len(curves) == 1 else f"{name}, {run}"
            axes.plot(
                depth,
                curves[run][name].numpy(),
                style,
                color=colour,
                label=label,
                linewidth=1.3,
                marker="o" if name == "answer" else None,
                markersize=2.5,
            )
    every = -(-len(lens.points) // MOST_TICKS)
    shown = range(0, len(lens.points), every)
    labels = ["emb." if n == 0 else lens.points[n] for n in shown]
    axes.set_xticks(list(shown), labels)
    axes.set_xlabel("read after")
    axes.set_ylabel(f"{of} of {name_target(lens.targets[target])}")
    style_lines(axes)
    figure.legend(
        loc="outside upper center",
        ncols=len(curves),
        frameon=False,
        fontsize=7,
        handlelength=2.6,
    )
    return figure
