"""What methods gain against what they cost, on one figure: the frontier."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd

from eah_interp.arguments import by_name, check_kind, check_text
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.metrics import COMPARED, Metric
from eah_interp.benchmarks.outputs import Outputs
from eah_interp.benchmarks.paired import Draws, check_drawing, sum_by_image
from eah_interp.errors import InputError
from eah_interp.indices import check_choice
from eah_interp.statistics import Effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axes: TypeAlias = Literal["recall", "length"]
"""Recall against CHAIR_I, or F1 of objects against words."""

_AXES = {"recall": ("CHAIR_I", "recall"), "length": ("words", "F1")}

_NAMES = {
    "CHAIR_I": "CHAIR_I (% of mentions, less is better)",
    "recall": "recall (% of objects)",
    "words": "words of a caption",
    "F1": "F1 of objects (%)",
}


def list_frontier(
    captions: "Mapping[str, pd.DataFrame] | Outputs", *, draws: Draws | None = None
) -> pd.DataFrame:
    """List where sets of captions stand between hallucinating less and naming less.

    Args:
        captions: What `compare_outputs(...).outputs` is, or tables of captions by name:
            `mentions`, `truth`, `caption`, and `cluster` (the image; each caption is
            one of its own where there is no such column).
        draws: Level, samples and seed of the intervals; `Draws()` when None.

    Returns:
        One row a set: `name`, and for each of `CHAIR_I`, `recall`, `words` and `F1`
        its value with `..._low` and `..._high`; NaN where it is not defined.

    Raises:
        InputError: If there is no caption.
    """
    rows = []
    for name, table in _list_tables(captions):
        row: dict[str, Any] = {"name": name}
        for metric, effect in _score(table, draws=check_drawing(draws)).items():
            parts = (metric, f"{metric}_low", f"{metric}_high")
            values = (
                (effect.estimate, effect.low, effect.high)
                if effect is not None
                else (float("nan"),) * 3
            )
            row |= dict(zip(parts, values, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


@by_name
def plot_frontier(
    captions: "Mapping[str, pd.DataFrame] | Outputs",
    *,
    axes: Axes = "recall",
    draws: Draws | None = None,
) -> "Figure":
    """Draw where sets of captions stand: recall against CHAIR_I, or F1 against length.

    A method that only names less moves along the frontier: it lowers CHAIR_I and recall
    together. One that hallucinates less at no cost moves off it.

    Args:
        captions: As for `list_frontier`.
        axes: `"recall"` against CHAIR_I, or F1 of objects against `"length"`.
        draws: As for `list_frontier`.

    Returns:
        A matplotlib figure, one column wide.

    Raises:
        InputError: If there is no caption, or nothing to draw of a set.
        SettingsError: If there are no such axes.
        ExtraMissingError: If matplotlib is not installed.
    """
    from eah_interp.viz.frontier import plot_points

    check_choice("axes", axes, Axes)
    across, up = _AXES[axes]
    points = {}
    for name, table in _list_tables(captions):
        found = _score(table, draws=check_drawing(draws))
        x, y = found[across], found[up]
        if x is None or y is None:
            missing = across if x is None else up
            msg = f"{name}: {missing} is not defined: nothing is named, or no image has"
            raise InputError(f"{msg} an object; leave it out of the figure")
        points[name] = (x, y)
    return plot_points(points, across=_NAMES[across], up=_NAMES[up])


def _list_tables(
    captions: "Mapping[str, pd.DataFrame] | Outputs",
) -> Iterator[tuple[str, pd.DataFrame]]:
    listed: list[tuple[str, pd.DataFrame]]
    if isinstance(captions, Mapping):
        listed = list(captions.items())
    else:
        check_kind(
            "captions",
            captions,
            Outputs,
            expected="tables by name, or what compare_outputs(...).outputs is",
        )
        if captions.task != "caption":
            msg = "a frontier is of captions, got answers: expected files of captions"
            raise InputError(msg)
        names = (file.name for file in captions.files)
        listed = list(zip(names, captions.tables, strict=True))
    if not listed:
        msg = "expected at least one caption in every set, got no set"
        raise InputError(msg)
    for name, table in listed:
        check_text("a set's name", name)
        check_table(
            f"captions of {name!r}",
            table,
            mentions="names",
            truth="names",
            caption="text",
        )
    for name, table in listed:
        own = table.reset_index(drop=True)
        extra: dict[str, Any] = {"condition": ""}
        extra["item"] = own.index.astype(str)
        if "cluster" not in own:
            extra["cluster"] = own.index.astype(str)
        if "n_tokens" not in own:
            extra["n_tokens"] = 0
        yield name, own.assign(**extra)


def _score(table: pd.DataFrame, *, draws: Draws) -> dict[str, Effect | None]:
    wanted = {name for pair in _AXES.values() for name in pair}
    metrics: list[Metric] = [
        one for one in COMPARED if one.task == "caption" and one.name in wanted
    ]
    drawn = sum_by_image([table], metrics, draws=draws)
    found: dict[str, Effect | None] = {}
    n = drawn.sums.n if drawn.sums is not None else 0
    for at, metric in enumerate(metrics):
        effect, value = drawn.level(at)["effect"], drawn.value(at)
        if effect is None and math.isfinite(value):  # the same in all images
            none = math.nan
            effect = Effect(estimate=value, low=none, high=none, level=draws.level, n=n)
        found[metric.name] = effect
    return found
