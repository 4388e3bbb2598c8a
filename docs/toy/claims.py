"""From the tables of `measure.py` to effects with intervals."""

import math
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from conditions import CONTROLS, PAIR, PLAIN, name_of
from measure import Run
from scipy import stats

from eah_interp.benchmarks.chair import count_mentions, match_lengths
from eah_interp.benchmarks.toy import METRICS, ToyBenchmark, count_by_scene
from eah_interp.errors import InputError
from eah_interp.statistics import Effect, compare_rates, estimate_mean

Rate: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def rate_of(runs: list[Run], condition: str, metric: str) -> Rate:
    """Return a metric's counts and totals, `[run, scene]` each."""
    return count_by_scene([run.results[condition] for run in runs], metric)


def level_of(runs: list[Run], condition: str, metric: str) -> list[float]:
    """Return a metric under a condition, in percent, for each run."""
    count, total = rate_of(runs, condition, metric)
    return [round(v, 2) for v in (100 * count.sum(-1) / total.sum(-1)).tolist()]


def contrast(
    runs: list[Run], *, before: str, after: str, metric: str
) -> dict[str, Any]:
    """Compare two conditions: over scenes, by run, and over runs."""
    first, second = (rate_of(runs, name, metric) for name in (before, after))
    return _contrast(first, second)


def _contrast(first: Rate, second: Rate) -> dict[str, Any]:
    """Compare two rates; undefined where a toy has nothing to divide by.

    A patch can leave a toy without a single mention: then it has no CHAIR_I.
    """
    try:
        return _define_contrast(first, second)
    except InputError:
        return {"over_scenes": None, "each_run": [], "over_runs": None}


def _define_contrast(first: Rate, second: Rate) -> dict[str, Any]:
    rows = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    each = [
        compare_rates(
            tuple(part[None] for part in old), tuple(part[None] for part in new)
        )
        for old, new in rows
    ]
    found: dict[str, Any] = {
        "over_scenes": _plain(compare_rates(first, second)),
        "each_run": [_plain(effect) for effect in each],
    }
    if len(each) > 1:
        over = estimate_mean([effect.estimate for effect in each])
        found["over_runs"] = _plain(over)
    return found


def length_matched(runs: list[Run], condition: str) -> dict[str, Any]:
    """Compare CHAIR_S with both captions cut at the same number of objects."""
    cut: tuple[list[ToyBenchmark], list[ToyBenchmark]] = ([], [])
    for run in runs:
        both = [run.results[name] for name in (PLAIN, condition)]
        for side, result, other in zip(cut, both, reversed(both), strict=True):
            captions = match_lengths(result.captions, other=other.captions)
            side.append(ToyBenchmark(result.questions, captions))
    before, after = (count_by_scene(side, "CHAIR_S") for side in cut)
    return _contrast(before, after)


def compare_conditions(runs: list[Run], conditions: list[str]) -> dict[str, Any]:
    """Compare every condition with the plain model, in every metric."""
    found: dict[str, Any] = {}
    for condition in conditions:
        found[condition] = {
            metric: contrast(runs, before=PLAIN, after=condition, metric=metric)
            for metric in METRICS
        }
        found[condition]["CHAIR_S, length-matched"] = length_matched(runs, condition)
    return found


def compare_donors(runs: list[Run], n_layers: int) -> dict[str, Any]:
    """Compare the densest donor with every control, layer by layer."""
    layers = [(layer,) for layer in range(n_layers)] + [PAIR]
    return {
        name_of(at, "densest"): {
            control: {
                metric: contrast(
                    runs,
                    before=name_of(at, control),
                    after=name_of(at, "densest"),
                    metric=metric,
                )
                for metric in ("CHAIR_S", "false positives")
            }
            for control in CONTROLS
        }
        for at in layers
    }


def compare_priors(seeds: list[Run], low: Run) -> dict[str, Any]:
    """Compare the toy of the weak prior with the three of the strong one."""
    return {
        metric: _contrast(
            rate_of(seeds, PLAIN, metric), rate_of([low] * len(seeds), PLAIN, metric)
        )
        for metric in METRICS
    }


def sinks_by_layer(runs: list[Run]) -> list[dict[str, Any]]:
    """Average density over heads, and of the densest head, by layer and definition.

    The intervals are of the mean over scenes, all runs together.
    """
    table = pd.concat([run.sinks.assign(run=i) for i, run in enumerate(runs)])
    rows = []
    for (definition, beta, layer), part in table.groupby(
        ["definition", "beta", "layer"]
    ):
        heads = part.groupby(["run", "scene"]).density
        row = {"definition": definition, "beta": beta, "layer": int(layer)}
        for label, values in (
            ("mean head", heads.mean()),
            ("densest head", heads.max()),
        ):
            by_scene = values.groupby("scene").mean().to_numpy()
            row[label] = _plain(_mean(100 * by_scene))
            row[f"{label}, each run"] = [
                round(100 * v, 1) for v in values.groupby("run").mean()
            ]
        shares = (part.density >= 0.2).groupby([part.run, part.scene]).mean()
        row["dense heads"] = _plain(
            _mean(100 * shares.groupby("scene").mean().to_numpy())
        )
        rows.append(row)
    return rows


def early_against_deep(runs: list[Run]) -> dict[str, Any]:
    """Compare the mean density of the first two layers with that of the last two."""
    found: dict[str, Any] = {}
    for definition, beta in (
        runs[0].sinks[["definition", "beta"]].drop_duplicates().itertuples(index=False)
    ):
        each = []
        for run in runs:
            sinks = run.sinks
            part = sinks[(sinks.definition == definition) & (sinks.beta == beta)]
            means = 100 * part.groupby("layer").density.mean().sort_index()
            each.append(round(float(means.iloc[:2].mean() - means.iloc[-2:].mean()), 2))
        found[f"{definition}, beta {beta:g}"] = {
            "each_run": each,
            "over_runs": _plain(estimate_mean(each)),
        }
    return found


def density_by_head(run: Run) -> dict[str, list[list[float]]]:
    """Return mean densities `[layer][head]` by definition."""
    table = run.sinks
    means = table.groupby(["definition", "beta", "layer", "head"]).density.mean()
    return {
        f"{definition}, beta {beta:g}": [
            [round(float(v), 4) for v in row.groupby("head").mean()]
            for _, row in part.groupby("layer")
        ]
        for (definition, beta), part in means.groupby(["definition", "beta"])
    }


def density_and_hallucination(runs: list[Run], *, beta: float) -> dict[str, Any]:
    """Correlate early sink density with hallucination over scenes, run by run.

    Spearman's correlation between the mean density of the heads of layers 0 and 1 and
    the number of absent objects in the caption; then the same within scenes of one
    number of objects, since fuller scenes have both more sinks and more to get wrong.
    """
    found: dict[str, Any] = {"raw": [], "within object count": []}
    for run in runs:
        sinks = run.sinks
        early = sinks[
            (sinks.definition == "visible") & (sinks.beta == beta) & (sinks.layer < 2)
        ]
        density = early.groupby("scene").density.mean()
        captions = run.results[PLAIN].captions.set_index("scene").loc[density.index]
        absent = count_mentions(captions.reset_index()).n_absent.to_numpy(float)
        strata = captions.truth.map(len).to_numpy()
        ranks = [stats.rankdata(values) for values in (density.to_numpy(), absent)]
        found["raw"].append(_correlate(*ranks))
        for values in ranks:
            for stratum in np.unique(strata):
                values[strata == stratum] -= values[strata == stratum].mean()
        found["within object count"].append(_correlate(*ranks))
    for values in list(found.items()):
        name, effects = values
        estimates = [effect["estimate"] for effect in effects]
        found[f"{name}, over runs"] = _plain(estimate_mean(estimates), digits=3)
    return found


def _correlate(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    found = stats.bootstrap(
        (x, y),
        lambda a, b, axis: _pearson(a, b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    estimate = float(_pearson(x, y, axis=-1))
    effect = Effect(
        estimate=estimate, low=found.low, high=found.high, level=0.95, n=len(x)
    )
    return _plain(effect, digits=3)


def _pearson(x: np.ndarray, y: np.ndarray, *, axis: int) -> np.ndarray:
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    norm = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return (x * y).sum(axis=axis) / norm


def _mean(values: np.ndarray) -> Effect:
    return estimate_mean(values.tolist())


def _plain(effect: Effect, *, digits: int = 2) -> dict[str, Any]:
    parts = (("estimate", effect.estimate), ("low", effect.low), ("high", effect.high))
    return {"n": effect.n} | {
        key: None if math.isnan(v) else round(float(v), digits) for key, v in parts
    }
