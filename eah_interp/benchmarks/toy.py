"""The toy world's own POPE and CHAIR, with exact ground truth."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from tqdm import tqdm

from eah_interp.arguments import by_name, check_count, check_flag, check_kind
from eah_interp.benchmarks.chair import ChairScore, count_mentions, score_captions
from eah_interp.benchmarks.pope import PopeScore, score_answers
from eah_interp.errors import InputError, NumericalError, SettingsError, show_value
from eah_interp.indices import to_list
from eah_interp.results import ModelResult
from eah_interp.statistics import Counts, compare_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.interventions import EAH
    from eah_interp.lvlm import LVLM
    from eah_interp.toy.language import Sampling
    from eah_interp.toy.render import Scene


@dataclass(frozen=True, eq=False, repr=False)
class ToyBenchmark(ModelResult):
    """Answers and captions of one model on the same scenes, unscored and scored.

    Attributes:
        questions: What `ask_about_scenes` returned.
        captions: What `describe_scenes` returned.
        eah: The patch of every forward pass; None where there was none.
    """

    questions: pd.DataFrame
    captions: pd.DataFrame
    eah: "EAH | None" = field(default=None, kw_only=True)

    def _about(self) -> str:
        return f"{len(self.questions)} questions, {len(self.captions)} captions"

    def _first(self, k: int) -> pd.DataFrame:
        chosen = ("accuracy", "false_positives", "chair_s", "chair_i", "recall")
        table = self.frame()
        whole = table[table["kind"].isin(["all", "captions"])]
        return whole[whole["metric"].isin(chosen)].head(k)

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw POPE's accuracy and false positives, and CHAIR, as bars.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.heads import plot_bars

        pope, chair = self.pope(), self.chair()
        bars = {
            "accuracy": pope.accuracy,
            "false positives": pope.false_positives,
            "CHAIR_S": chair.chair_s,
            "CHAIR_I": chair.chair_i,
            "recall of captions": chair.recall,
        }
        return plot_bars(
            list(bars),
            {"plain": list(bars.values())},
            title=self._about(),
            axis="percent",
            ax=ax,
        )

    def pope(self, sampling: str | None = None) -> PopeScore:
        """Score the answers to all questions, or to one sampling's."""
        table = self.questions
        if sampling is not None:
            table = table[table.kind == sampling]
        return score_answers(table)

    def chair(self) -> ChairScore:
        """Score the captions."""
        return score_captions(self.captions)

    def frame(self) -> pd.DataFrame:
        """List every number: `benchmark`, `kind`, `metric`, `value`."""
        scores: list[tuple[str, str, PopeScore | ChairScore]] = [
            ("POPE", kind, self.pope(kind)) for kind in self.questions.kind.unique()
        ]
        scores += [("POPE", "all", self.pope()), ("CHAIR", "captions", self.chair())]
        return pd.DataFrame(
            [
                {"benchmark": name, "kind": kind, "metric": metric, "value": value}
                for name, kind, score in scores
                for metric, value in dataclasses.asdict(score).items()
            ]
        )


@by_name
def run_toy_benchmark(
    model: "LVLM",
    scenes: "Sequence[Scene] | None" = None,
    *,
    eah: "EAH | None" = None,
    pairs: int = 1,
    batch_size: int = 64,
    progress: bool = True,
) -> ToyBenchmark:
    """Ask a model about toy scenes, and have it describe them.

    Args:
        model: The toy, or any model that speaks its language.
        scenes: Scenes; the first 1,000 of the test split when None.
        eah: A patch for every forward pass; none when None.
        pairs: Yes/no pairs for each scene and sampling.
        batch_size: Prompts in one forward pass.
        progress: Whether to show a bar.

    Returns:
        Answers and captions.

    Raises:
        InputError: If there are no scenes.

    Example:
        >>> import eah_interp as eah
        >>> from eah_interp.toy import draw_scenes
        >>> scenes = draw_scenes(range(4))
        >>> result = run_toy_benchmark(eah.load(), scenes, progress=False)
        >>> len(result.questions), len(result.captions)
        (24, 4)
    """
    from eah_interp.lvlm.anatomy import name_model
    from eah_interp.toy.scenes import draw_scenes

    scenes = draw_scenes(range(1000)) if scenes is None else scenes
    if eah is not None:
        model.check(eah)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    return ToyBenchmark(
        model=name_model(model),
        eah=eah,
        questions=ask_about_scenes(model, scenes, eah=eah, pairs=pairs, **options),
        captions=describe_scenes(model, scenes, eah=eah, **options),
    )


def ask_about_scenes(
    model: "LVLM",
    scenes: "Sequence[Scene]",
    *,
    eah: "EAH | None" = None,
    samplings: "Sequence[Sampling]" = ("random", "popular", "adversarial"),
    pairs: int = 1,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask POPE's yes/no questions about toy scenes.

    The answer is read off the next token's logits: "Yes" if its logit is above that of
    "No". A donor that is drawn is drawn anew for every scene.

    Args:
        model: The toy, or any model that speaks its language.
        scenes: Scenes.
        eah: A patch for every forward pass; none when None.
        samplings: How absent objects are chosen, as in `toy.questions_for`.
        pairs: Yes/no pairs for each scene and sampling.
        batch_size: Questions in one forward pass.
        progress: Whether to show a bar.

    Returns:
        One row a question: `scene` (its seed), `kind` (the sampling), `object`,
        `present`, `margin` (logit of "Yes" minus "No"), `says_yes`.

    Raises:
        InputError: If there are no scenes.
        NumericalError: If the model's logits are NaN or infinite.
    """
    from eah_interp.interventions import intervene
    from eah_interp.toy.language import prompt_for, questions_for

    asked = [
        (scene, kind, question)
        for kind in samplings
        for scene in _require(scenes)
        for question in questions_for(scene, sampling=kind, pairs=pairs)
    ]
    yes, no = model.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    margins: list[float] = []
    for part in _batches(asked, batch_size, label="questions", progress=progress):
        images = [scene.pil() for scene, _, _ in part]
        encoding = model.encode(images, [prompt_for(q.text) for _, _, q in part])
        settings = _seed_scenes(eah, [scene for scene, _, _ in part])
        with torch.no_grad(), model.trace(**encoding, logits_to_keep=1):
            if settings is not None:
                intervene(model, settings)
            logits = model.output.logits[:, -1].float().save()
        if not bool(logits.isfinite().all()):
            msg = (
                "the model's logits are NaN or infinite: expected finite numbers; load "
            )
            raise NumericalError(f"{msg}it in a dtype of more range, float32 say")
        margins += (logits[:, yes] - logits[:, no]).tolist()
    table = pd.DataFrame(
        {
            "scene": [scene.seed for scene, _, _ in asked],
            "kind": [kind for _, kind, _ in asked],
            "object": [question.object for _, _, question in asked],
            "present": [question.answer for _, _, question in asked],
            "margin": margins,
        }
    )
    return table.assign(says_yes=table.margin > 0)


def describe_scenes(
    model: "LVLM",
    scenes: "Sequence[Scene]",
    *,
    eah: "EAH | None" = None,
    prompt: str = "Describe the image.",
    max_new_tokens: int = 40,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Describe toy scenes, greedily.

    Args:
        model: The toy, or any model that speaks its language.
        scenes: Scenes.
        eah: A patch for every generation; none when None.
        prompt: What is asked.
        max_new_tokens: Longest caption, in tokens.
        batch_size: Captions at a time.
        progress: Whether to show a bar.

    Returns:
        One row a scene: `scene` (its seed), `caption`, `mentions` and `truth` (lists
        of objects).

    Raises:
        InputError: If there are no scenes.
    """
    from eah_interp.interventions import edit
    from eah_interp.toy.language import mentions_in

    rows: list[dict[str, Any]] = []
    scenes = list(_require(scenes))
    for part in _batches(scenes, batch_size, label="captions", progress=progress):
        settings = _seed_scenes(eah, part)
        patched = model if settings is None else edit(model, settings)
        texts = patched.describe(
            [scene.pil() for scene in part],
            [prompt] * len(part),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        for scene, text in zip(part, texts, strict=True):
            row = {"scene": scene.seed, "caption": text}
            row |= {"mentions": list(mentions_in(text)), "truth": list(scene.objects)}
            rows.append(row)
    return pd.DataFrame(rows)


def _require(scenes: "Sequence[Scene]") -> "Sequence[Scene]":
    from eah_interp.toy.render import Scene

    listed = to_list(scenes)
    if listed is None or not all(isinstance(scene, Scene) for scene in listed):
        got = show_value(scenes)
        raise InputError(f"scenes must be a list of scenes of the toy, got {got}")
    if not listed:
        msg = "expected at least one scene, got none; draw some with draw_scenes"
        raise InputError(msg)
    return listed


def _seed_scenes(eah: "EAH | None", scenes: "Sequence[Scene]") -> "EAH | None":
    if eah is None:
        return None
    from eah_interp.interventions.donation import seed_items

    settings: EAH = seed_items(eah, [scene.seed for scene in scenes])
    return settings


def _batches(
    items: list[Any], size: int, *, label: str, progress: bool
) -> Iterator[list[Any]]:
    progress, size = check_flag("progress", progress), check_count("batch_size", size)
    bar = tqdm(total=len(items), desc=label, disable=not progress)
    with bar:
        for start in range(0, len(items), size):
            yield items[start : start + size]
            bar.update(len(items[start : start + size]))


# ---- How a patch changed what a benchmark found, scene by scene.


CountByScene: TypeAlias = Callable[[ToyBenchmark], pd.DataFrame]


def _of_captions(count: str, total: str) -> CountByScene:
    def count_scenes(result: ToyBenchmark) -> pd.DataFrame:
        counts = count_mentions(result.captions).assign(one=1)
        counts["hallucinates"] = (counts.n_absent > 0).astype(int)
        counts["n_repeated_4grams"] = counts.n_4grams - counts.n_distinct_4grams
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
    "objects per 100 captions": _of_captions("n_objects", "one"),
    "repeats per 100 captions": _of_captions("n_repeated_4grams", "one"),
    "accuracy": _of_questions(absent_only=False),
    "false positives": _of_questions(absent_only=True),
}
"""Each a count over a total, by scene, so that it can be resampled by scene.

A repeat is a run of four words that the caption has had before.
"""


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
    if not isinstance(metric, str) or metric not in METRICS:
        msg = f"metric must be one of {', '.join(METRICS)}, got {show_value(metric)}"
        raise SettingsError(msg)
    tables = [METRICS[metric](result).sort_index() for result in results]
    if any(list(table.index) != list(tables[0].index) for table in tables):
        msg = f"{metric}: expected results of the same scenes, got different ones"
        raise InputError(msg)
    stacked = torch.tensor(
        [table.to_numpy().tolist() for table in tables], dtype=torch.float64
    )
    return stacked[..., 0], stacked[..., 1]


@by_name
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
        points with its interval `low`, `high`: NaN where no scene differs from the
        others, so that there is none.

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
    for name, one in (("before", before), ("after", after)):
        expected = "what run_toy_benchmark returns"
        check_kind(name, one, ToyBenchmark, expected=expected)
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
