"""Scores of a benchmark as a table, and as bars."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def list_scores(score: Any) -> pd.DataFrame:
    """List every number of a score: columns `metric value`."""
    values = {
        field.name: getattr(score, field.name) for field in dataclasses.fields(score)
    }
    table = pd.DataFrame({"metric": list(values), "value": list(values.values())})
    return table.astype({"value": "float64"})


def plot_scores(
    score: Any, names: Sequence[str], *, title: str, ax: "Axes | None"
) -> "Figure":
    """Draw some percentages of a score as bars.

    Raises:
        SettingsError: If `ax` is no axes.
        ExtraMissingError: If matplotlib is not installed.
    """
    from eah_interp.viz.heads import plot_bars

    shown = [name.replace("_", " ") for name in names]
    values = [float(getattr(score, name)) for name in names]
    return plot_bars(shown, {"plain": values}, title=title, axis="percent", ax=ax)


VARIANTS = ("official", "corrected")
"""By a benchmark's own script, and without its faults."""


def list_variants(score: Any, group: str) -> pd.DataFrame:
    """List both variants of a score: columns `variant`, the group's, `metric value`.

    Args:
        score: Has results by group, under the name of each variant.
        group: What a group is called.
    """
    rows = [
        {"variant": variant, group: name, "metric": metric, "value": value}
        for variant in VARIANTS
        for name, rates in getattr(score, variant).items()
        for metric, value in vars(rates).items()
    ]
    return lay_variants(rows, group)


def lay_variants(rows: Sequence[Mapping[str, Any]], group: str) -> pd.DataFrame:
    """Lay rows out as `list_variants` does, also where there are none."""
    table = pd.DataFrame(rows, columns=["variant", group, "metric", "value"])
    return table.astype({"value": "float64"})


def plot_variants(
    values: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    axis: str = "percent",
    ax: "Axes | None",
) -> "Figure":
    """Draw both variants of a score as bars, the difference beside them.

    Args:
        values: By variant, then by name: the same names in both.
        title: What they are of.
        axis: What they are in.
        ax: Axes to draw into; a figure of its own when None.

    Raises:
        SettingsError: If `ax` is no axes.
        ExtraMissingError: If matplotlib is not installed.
    """
    from eah_interp.viz.heads import plot_bars

    names = list(next(iter(values.values())))
    runs = {variant: list(found.values()) for variant, found in values.items()}
    return plot_bars(names, runs, title=title, axis=axis, ax=ax)
