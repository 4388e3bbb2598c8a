"""Scores of a benchmark as a table, and as bars."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pandas as pd

from eah_interp.arguments import methods_by_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@methods_by_name
class FlatScore:
    """What a score of single numbers shares: its table, and its bars.

    Attributes:
        PERCENTAGES: Which of its numbers are drawn.
        N_COUNTS: How many of its numbers come first, and say only how much was scored.
    """

    PERCENTAGES: ClassVar[tuple[str, ...]]
    N_COUNTS: ClassVar[int] = 1

    def frame(self) -> pd.DataFrame:
        """List every number: columns `metric value`."""
        numbers = dataclasses.fields(cast("Any", self))
        values = {one.name: getattr(self, one.name) for one in numbers}
        table = pd.DataFrame({"metric": list(values), "value": list(values.values())})
        return table.astype({"value": "float64"})

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the percentages as bars.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        shown = [name.replace("_", " ") for name in self.PERCENTAGES]
        values = {"plain": [float(getattr(self, name)) for name in self.PERCENTAGES]}
        return plot_bars(shown, values, title=self._of(), axis="percent", ax=ax)

    def _first(self, k: int) -> pd.DataFrame:
        return self.frame().iloc[self.N_COUNTS :].head(k)

    def _of(self) -> str:
        raise NotImplementedError


VARIANTS = ("official", "corrected")
"""By a benchmark's own script, and without its faults."""


def list_variants(
    score: Any, group: str, *, more: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """List both variants of a score: columns `variant`, the group's, `metric value`.

    Args:
        score: Has results by group, under the name of each variant.
        group: What a group is called.
        more: Further results by variant and group, listed after those.
    """
    found = [{name: getattr(score, name) for name in VARIANTS}, more or {}]
    rows = [
        {"variant": variant, group: name, "metric": metric, "value": value}
        for part in found
        for variant, groups in part.items()
        for name, rates in groups.items()
        for metric, value in vars(rates).items()
    ]
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
