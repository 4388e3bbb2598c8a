"""Figures of what components do to an object's logit."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from eah_interp.attribution.cases.labels import largest
from eah_interp.attribution.direct.head_attribution import HeadAttribution
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
