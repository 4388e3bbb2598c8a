"""Objects' logits, plain against patched: a line for each object."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.attribution.direct.head_attribution import HeadAttribution
from eah_interp.attribution.lens.lens_map import LensReading, LogitLens
from eah_interp.errors import SettingsError
from eah_interp.viz.effects import PATCHED, PLAIN, name_target, style_lines
from eah_interp.viz.figures import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
