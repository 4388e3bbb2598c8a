"""How a patch changed what a benchmark found, scene by scene."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pandas as pd
import torch

from eah_interp.benchmarks.chair import count_mentions
from eah_interp.benchmarks.toy import ToyBenchmark
from eah_interp.errors import InputError, SettingsError
from eah_interp.kernels.statistics import Counts, compare_rates

CountByScene: TypeAlias = Callable[[ToyBenchmark], pd.DataFrame]


def _of_captions(count: str, total: str) -> CountByScene:
    def count_scenes(result: ToyBenchmark) -> pd.DataFrame:
        counts = count_mentions(result.captions).assign(one=1)
        counts["hallucinates"] = (counts.n_absent > 0).astype(int)
        table = counts[[count, total]].set_axis(["count", "total"], axis=1)
        return table.groupby(result.captions.scene.to_numpy()).sum()

    return count_scenes


def _of_questions(*, absent_only: bool) -> CountByScene:
    def count_scenes(result: ToyBenchmark) -> pd.DataFrame:
        asked = result.questions
        asked = asked[~asked.present] if absent_only else asked
        hits = asked.says_yes if absent_only else asked.says_yes == asked.present
        table = asked.assign(count=hits.astype(int), total=1)
        return table.groupby("scene")[["count", "total"]].sum()

    return count_scenes


METRICS: dict[str, CountByScene] = {
    "CHAIR_S": _of_captions("hallucinates", "one"),
    "CHAIR_I": _of_captions("n_absent", "n_mentions"),
    "recall": _of_captions("n_found", "n_truth"),
    "mentions per 100 captions": _of_captions("n_mentions", "one"),
    "accuracy": _of_questions(absent_only=False),
    "false positives": _of_questions(absent_only=True),
}
"""Each a count over a total, by scene, so that it can be resampled by scene."""


def count_by_scene(
    results: Sequence[ToyBenchmark], metric: str
) -> tuple[Counts, Counts]:
    """Count what a metric is made of, for each run and scene.

    Args:
        results: Results of one or more models on the same scenes.
        metric: One of `METRICS`.

    Returns:
        Counts and totals, `[run, scene]` each, scenes in the order of their seeds;
        100 x counts / totals, summed over scenes, is the metric.

    Raises:
        SettingsError: If there is no such metric.
        InputError: If the results are not about the same scenes.
    """
    if metric not in METRICS:
        msg = f"metric must be one of {', '.join(METRICS)}, got {metric!r}"
        raise SettingsError(msg)
    tables = [METRICS[metric](result).sort_index() for result in results]
    if any(list(table.index) != list(tables[0].index) for table in tables):
        msg = f"{metric}: expected results of the same scenes, got different ones"
        raise InputError(msg)
    stacked = torch.tensor(
        [table.to_numpy().tolist() for table in tables], dtype=torch.float64
    )
    return stacked[..., 0], stacked[..., 1]


def compare_benchmarks(
    before: ToyBenchmark,
    after: ToyBenchmark,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two results on the same scenes, with intervals.

    A CHAIR difference stands beside those of recall and of mentions, since naming
    less lowers CHAIR too.

    Args:
        before: Say, of the model as it is.
        after: Say, of the model under a patch.
        level: Confidence level of the paired bootstrap over scenes.
        resamples: Its samples.
        seed: Seeds them.

    Returns:
        One row a metric: `metric`, `before`, `after` in percent, `change` in
        points with its interval `low`, `high`.

    Raises:
        InputError: If the results are not about the same scenes.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.benchmarks import run_toy_benchmark
        >>> from eah_interp.toy import draw_scenes
        >>> model, scenes = eah.load(), draw_scenes(range(8))
        >>> plain = run_toy_benchmark(model, scenes, progress=False)
        >>> bool((compare_benchmarks(plain, plain, resamples=20).change == 0).all())
        True
    """
    rows = []
    for metric in METRICS:
        counts, totals = count_by_scene([before, after], metric)
        first, second = ((counts[i : i + 1], totals[i : i + 1]) for i in (0, 1))
        effect = compare_rates(
            first, second, level=level, resamples=resamples, seed=seed
        )
        rows.append(
            {
                "metric": metric,
                "before": float(100 * first[0].sum() / first[1].sum()),
                "after": float(100 * second[0].sum() / second[1].sum()),
                "change": effect.estimate,
                "low": effect.low,
                "high": effect.high,
            }
        )
    return pd.DataFrame(rows)
