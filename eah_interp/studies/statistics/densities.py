"""Sink densities of a study: by depth, and beside what went wrong."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from eah_interp.errors import InputError
from eah_interp.kernels.bootstrap import percentile_effect, resample_sums
from eah_interp.kernels.statistics import Effect
from eah_interp.studies.statistics.draws import Draws
from eah_interp.studies.statistics.scores import ScoredRows, count_captions

EARLY = 2
"""How many layers are shallow; as many last ones are deep."""

DENSE = 0.2
"""From which density on the paper calls a head a dense one."""


def compare_depths(
    sinks: pd.DataFrame, items: pd.DataFrame, *, draws: Draws
) -> Mapping[str, Effect | None]:
    """Compare densities of the first two layers with those of the last two.

    Args:
        sinks: Densities by item, layer and head.
        items: The items, for which pictures they are about.
        draws: How intervals are drawn.

    Returns:
        Differences in points, by name: of the mean density of heads, and of the share
        of dense heads; None where there are too few pictures or layers.
    """
    table = _with_pictures(sinks, items)
    layers = sorted({int(layer) for layer in table.layer})
    early, deep = layers[:EARLY], layers[-EARLY:]
    ends = f"layers {_name(early)} minus layers {_name(deep)}"
    found: dict[str, Effect | None] = {}
    for name, values in (
        ("mean density", table.density),
        (f"share of heads of density {DENSE} or more", table.density >= DENSE),
    ):
        by_layer = values.groupby([table.cluster, table.layer]).mean().unstack()
        gap = 100 * (by_layer[early].mean(axis=1) - by_layer[deep].mean(axis=1))
        found[f"{name}, {ends}"] = _mean(gap, draws) if len(layers) > EARLY else None
    return found


def density_and_errors(
    sinks: pd.DataFrame, items: pd.DataFrame, rows: ScoredRows, condition: str
) -> pd.DataFrame:
    """Put the density of shallow layers beside errors, picture by picture.

    Args:
        sinks: Densities by item, layer and head.
        items: The items.
        rows: The answers.
        condition: Under which errors are counted: the model as it is.

    Returns:
        One row for each picture and task: `cluster`, `task`, `density` (mean over
        heads of the first two layers), `densest` (the densest of those heads),
        `error` (absent objects in its captions, or the percentage of questions about
        absent objects answered with yes) and `n_objects`, where known.
    """
    table = _with_pictures(sinks, items)
    early = table[table.layer.isin(sorted(set(table.layer))[:EARLY])]
    told = rows.captions[rows.captions.condition == condition]
    asked = rows.questions[rows.questions.condition == condition]
    asked = asked[asked.absent == 1]
    parts = []
    if len(told):
        errors = count_captions(told).groupby("cluster").n_absent.mean()
        objects = told.groupby("cluster").truth.first().map(len)
        parts.append(_beside(early, "caption", errors, objects))
    if len(asked):
        errors = 100 * asked.groupby("cluster").false_alarm.mean()
        objects = items.groupby("cluster").truth.first().map(len)
        parts.append(_beside(early, "yes_no", errors, objects))
    columns = ["cluster", "task", "density", "densest", "error", "n_objects"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def correlate_with_errors(
    sinks: pd.DataFrame,
    items: pd.DataFrame,
    rows: ScoredRows,
    condition: str,
    *,
    draws: Draws,
) -> Mapping[str, tuple[Effect | None, str]]:
    """Correlate the density of shallow layers with errors, over pictures.

    Spearman's: Pearson's of ranks. Then the same within pictures of one number of
    objects, since fuller pictures have both more sinks and more to get wrong.

    Args:
        sinks: As for `density_and_errors`.
        items: The same.
        rows: The same.
        condition: The same.
        draws: How intervals are drawn.

    Returns:
        The correlation, or why there is none, by name.
    """
    table = density_and_errors(sinks, items, rows, condition)
    names = {"caption": "absent objects in captions", "yes_no": "false positives"}
    found = {}
    for task, part in table.groupby("task"):
        what = f"density of layers 0 and 1 with {names[str(task)]}"
        ranks = part[["density", "error"]].rank()
        found[what] = _correlate(ranks, draws)
        if part.n_objects.nunique() > 1:
            centred = ranks - ranks.groupby(part.n_objects).transform("mean")
            found[f"{what}, among pictures of as many objects"] = _correlate(
                centred, draws
            )
    return found


def _beside(
    early: pd.DataFrame, task: str, errors: pd.Series, objects: pd.Series
) -> pd.DataFrame:
    heads = early[early.task == task].groupby(["cluster", "layer", "head"]).density
    by_picture = heads.mean().groupby("cluster")
    table = pd.DataFrame({"density": by_picture.mean(), "densest": by_picture.max()})
    table = table.join(errors.rename("error"), how="inner")
    table["n_objects"] = objects.reindex(table.index).fillna(0)
    return table.rename_axis("cluster").reset_index().assign(task=task)


def _with_pictures(sinks: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    own = items[["item", "cluster", "task"]]
    own = own.assign(cluster=own.cluster.where(own.cluster != "", own["item"]))
    return sinks.merge(own, on="item", how="inner")


def _mean(values: pd.Series, draws: Draws) -> Effect | None:
    columns = torch.from_numpy(values.to_numpy(dtype=float, copy=True))[:, None]
    try:
        sums = resample_sums(columns, resamples=draws.resamples, seed=draws.seed)
        whole, drawn = float(sums.whole[0]) / sums.n, sums.drawn[:, 0] / sums.n
        return percentile_effect(whole, drawn, level=draws.level, n=sums.n)
    except InputError:
        return None


def _correlate(ranks: pd.DataFrame, draws: Draws) -> tuple[Effect | None, str]:
    x, y = torch.from_numpy(ranks.to_numpy(dtype=float, copy=True)).unbind(1)
    columns = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1)
    try:
        sums = resample_sums(columns, resamples=draws.resamples, seed=draws.seed)
        whole, drawn = float(_pearson(sums.whole)), _pearson(sums.drawn)
        return percentile_effect(whole, drawn, level=draws.level, n=sums.n), ""
    except InputError as error:
        return None, f"undefined: {error}"


def _pearson(sums: Any) -> Any:
    n, x, y, xx, yy, xy = sums.unbind(-1)
    spread = ((n * xx - x * x) * (n * yy - y * y)).clamp(min=0).sqrt()
    # A sample of one and the same value has no correlation; 0 / 0 is NaN.
    return (n * xy - x * y) / spread.where(spread > 1e-9 * n * n, torch.nan)


def _name(layers: list[int]) -> str:
    return " and ".join(map(str, layers))
