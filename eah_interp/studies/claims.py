"""The paper's four claims, each answered by what a study measured."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from eah_interp.arguments import by_name
from eah_interp.benchmarks.metrics import ALL, MATCHED, count_captions
from eah_interp.benchmarks.paired import Draws, check_drawing
from eah_interp.errors import InputError, SettingsError, UnsupportedError, show_value
from eah_interp.results import Part, Result
from eah_interp.statistics import Effect, percentile_effect, resample_sums
from eah_interp.studies.conditions import BASELINE, PatchedConditions
from eah_interp.studies.contrasts import Contrast, contrast_conditions
from eah_interp.studies.items import cluster_items
from eah_interp.studies.scores import ScoredRows, score_rows
from eah_interp.studies.study import StudyRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Verdict = Literal["holds", "does not hold", "cannot be told", "not measured"]

STATEMENTS = {
    1: "Shallow layers hold dense vision sinks, deep layers sparse ones.",
    2: "Images with denser sinks in layers 0 and 1 have fewer hallucinations.",
    3: "Broadcasting the densest head of the second layer lowers hallucination; deeper "
    "layers do so less.",
    4: "All recipients, beta = 0.002 and the densest donor are best; it costs nothing.",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Finding(Part):
    """One comparison that bears on a claim.

    Attributes:
        what: What is compared.
        effect: The difference, or correlation; None where there is none.
        digits: How many it is written with.
        expected: The sign that the claim says.
        why: Why it was not measured, or is not defined; what it is.
        decides: Whether the claim's verdict goes by it, or it only stands beside.
    """

    what: str
    effect: Effect | None = None
    digits: int = 1
    expected: Literal["above zero", "below zero"] = "below zero"
    why: str = ""
    decides: bool = True

    @property
    def verdict(self) -> Verdict:
        """What the interval says of it."""
        if self.effect is None:
            return "cannot be told" if self.why.startswith("undef") else "not measured"
        if not self.effect.excludes_zero:
            return "cannot be told"
        above = self.effect.low > 0
        return "holds" if above == (self.expected == "above zero") else "does not hold"

    def __str__(self) -> str:
        """Write the effect with its interval, or why there is none."""
        return self.why if self.effect is None else self.effect.write(self.digits)


COLUMNS = (
    *("claim", "what", "estimate", "low", "high", "level", "n"),
    *("expected", "verdict", "why"),
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Claim(Result):
    """A claim of the paper, and what was found.

    Attributes:
        number: As in `docs/method.md`.
        statement: What is claimed.
        findings: What bears on it.
    """

    number: int
    statement: str
    findings: tuple[Finding, ...]

    def _about(self) -> str:
        return f"{self.number}. {self.statement} {self.verdict.capitalize()}."

    def frame(self) -> pd.DataFrame:
        """List what bears on the claim.

        Returns:
            Columns `claim what estimate low high level n expected verdict why`.
        """
        return list_findings(self.findings, claim=self.number)

    def _first(self, k: int) -> pd.DataFrame:
        return list_first(self.findings, k)

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw what bears on the claim, with intervals.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            UnsupportedError: If nothing was measured, so that there is nothing to draw.
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        return plot_findings(self.findings, f"claim {self.number}", ax=ax)

    @property
    def verdict(self) -> Verdict:
        """Whether everything measured says so; one that says the opposite decides."""
        return judge(self.findings)


def list_findings(findings: Sequence[Finding], *, claim: int | str) -> pd.DataFrame:
    """List findings, one row each: columns `claim what estimate ... why`.

    Args:
        findings: What bears on a claim.
        claim: Its number, or name.
    """
    rows = [
        {
            "claim": claim,
            "what": one.what,
            "estimate": math.nan if one.effect is None else one.effect.estimate,
            "low": math.nan if one.effect is None else one.effect.low,
            "high": math.nan if one.effect is None else one.effect.high,
            "level": math.nan if one.effect is None else one.effect.level,
            "n": 0 if one.effect is None else one.effect.n,
            "expected": one.expected,
            "verdict": one.verdict,
            "why": one.why,
        }
        for one in findings
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def list_first(findings: Sequence[Finding], k: int) -> pd.DataFrame:
    """List the first `k` findings in words."""
    rows = [
        {"what": one.what, "effect": str(one), "verdict": one.verdict}
        for one in findings[:k]
    ]
    return pd.DataFrame(rows)


def plot_findings(
    findings: Sequence[Finding], name: str, *, ax: "Axes | None"
) -> "Figure":
    """Draw what bears on a claim, with intervals.

    Raises:
        UnsupportedError: If nothing was measured, so that there is nothing to draw.
        SettingsError: If `ax` is no axes.
        ExtraMissingError: If matplotlib is not installed.
    """
    from eah_interp.viz.studies import plot_effects

    effects = {one.what: one.effect for one in findings if one.effect}
    if not effects:
        msg = (
            f"nothing was measured of {name}, so there is nothing to draw: its "
            "findings say what is missing"
        )
        raise UnsupportedError(msg)
    return plot_effects({"": effects}, axis=name, ax=ax)


def judge(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim by what was measured of it.

    It holds where everything measured says so; one finding whose interval lies on the
    other side decides that it does not; else it cannot be told. Findings that only
    stand beside, and what was not measured, have no part in it.

    Args:
        findings: What bears on it.

    Example:
        >>> below = Effect(estimate=-3.0, low=-4.0, high=-1.0, level=0.95, n=9)
        >>> judge([Finding(what="CHAIR_S", effect=below)])
        'holds'
    """
    deciding = [finding for finding in findings if finding.decides]
    found = {finding.verdict for finding in deciding} - {"not measured"}
    if "does not hold" in found:
        return "does not hold"
    if not found:
        return "not measured"
    return "holds" if found == {"holds"} else "cannot be told"


@by_name
def answer_claims(
    run: StudyRun,
    rows: ScoredRows | None = None,
    *,
    reference: str = BASELINE.name,
    draws: Draws | None = None,
) -> tuple[Claim, ...]:
    """Answer the paper's four claims with what a study measured.

    Claims 1 and 2 need a study with `sinks=True`. Claim 3 needs a condition that
    broadcasts the densest head of layer 1 to all heads, and the same for deeper layers;
    claim 4 the same with fewer recipients, with other donors, and with several betas
    under the paper's definition. What is lacking is named, not guessed. No interval is
    adjusted for how many there are.

    Args:
        run: The study.
        rows: Its answers, as `score_rows` reads them, which it does when None.
        reference: The model as it is.
        draws: Level, samples and seed of the intervals; `Draws()` when None.

    Returns:
        The claims, in order.

    Raises:
        SettingsError: If there is no such reference, or `draws` are none.
    """
    draws = check_drawing(draws)
    if not isinstance(reference, str) or reference not in run.conditions:
        listed, got = ", ".join(run.conditions), show_value(reference)
        msg = f"reference must be a condition of the study ({listed}), got {got}"
        raise SettingsError(msg)
    rows = score_rows(run) if rows is None else rows
    conditions = PatchedConditions(run.manifest.conditions)
    # One kind of question: claims are about all of them.
    whole = dataclasses.replace(rows, questions=rows.questions.assign(kind=ALL))
    compare = _Comparer(whole, draws)
    sinks = run.sinks()
    findings = (
        _depths(sinks, run, draws),
        _errors(sinks, run, rows, reference, draws),
        (*_broadcast(conditions, compare, reference), *_layers(conditions, compare)),
        _best(conditions, compare),
    )
    return tuple(
        Claim(number=number, statement=STATEMENTS[number], findings=tuple(found))
        for number, found in enumerate(findings, start=1)
    )


class _Comparer:
    """Contrasts between any two conditions, as findings."""

    def __init__(self, rows: ScoredRows, draws: Draws) -> None:
        self.rows, self.draws = rows, draws

    def __call__(
        self, condition: str, reference: str, *, metrics: Sequence[str], label: str
    ) -> Iterator[Finding]:
        found = contrast_conditions(
            self.rows, condition, reference=reference, draws=self.draws
        )
        by_name = {c.metric.name: c for c in found if c.metric.name in metrics}
        for name in metrics:
            if name in by_name:
                yield _finding(by_name[name], label)


def _finding(contrast: Contrast, label: str) -> Finding:
    return Finding(
        what=f"{contrast.metric.name}: {label}",
        effect=contrast.effect,
        why=f"undefined: {contrast.undefined}" if contrast.undefined else "",
    )


def _depths(sinks: Any, run: StudyRun, draws: Draws) -> Iterator[Finding]:
    if sinks.empty:
        yield _lacking("density of shallow and deep layers", "sinks=True")
        return
    for what, effect in compare_depths(sinks, run.items(), draws=draws).items():
        yield Finding(what=what, effect=effect, expected="above zero")


def _errors(
    sinks: Any, run: StudyRun, rows: ScoredRows, reference: str, draws: Draws
) -> Iterator[Finding]:
    if sinks.empty:
        yield _lacking("density and hallucination", "sinks=True")
        return
    found = correlate_with_errors(sinks, run.items(), rows, reference, draws=draws)
    for what, (effect, why) in found.items():
        yield Finding(what=what, effect=effect, digits=2, why=why)


def _broadcast(
    conditions: PatchedConditions, compare: _Comparer, reference: str
) -> Iterator[Finding]:
    name = _method(conditions)
    if name is None:
        yield _lacking("the broadcast against none", "EAH(layers=(1,)) as a condition")
        return
    metrics = ("CHAIR_S", f"CHAIR_S{MATCHED}", "false positives")
    yield from compare(
        name, reference, metrics=metrics, label=f"{name!r} against {reference!r}"
    )


def _layers(conditions: PatchedConditions, compare: _Comparer) -> Iterator[Finding]:
    name = _method(conditions)
    deeper = conditions.varied(name, "layers") if name else {}
    deeper = {k: v for k, v in deeper.items() if min(v) > max(SECOND)}
    if name is None or not deeper:
        yield _lacking("layer 1 against deeper ones", 'sweep({"layers": [(1,), (2,)]})')
    for other in deeper:
        label = f"{name!r} against {other!r}"
        yield from compare(str(name), other, metrics=HALLUCINATION, label=label)


def _best(conditions: PatchedConditions, compare: _Comparer) -> Iterator[Finding]:
    name = _method(conditions)
    paper = conditions.first(
        layers=SECOND, definition="paper", beta=PAPER_BETA, donor="densest"
    )
    needed = (
        ("all recipients against fewer", name, "recipients", "EAH(recipients=(0, 1))"),
        (
            "beta 0.002 against others",
            paper,
            "beta",
            "EAH.paper(), EAH.paper(beta=...)",
        ),
        ("the densest donor against others", name, "donor", "control_conditions()"),
    )
    for what, best, key, remedy in needed:
        others = conditions.varied(best, key) if best else {}
        if not others:
            yield _lacking(what, remedy)
        for other in others:
            label = f"{best!r} against {other!r}"
            yield from compare(str(best), other, metrics=HALLUCINATION, label=label)
    yield Finding(
        what="time and memory", why="not part of a study: see the docs on performance"
    )


def _method(conditions: PatchedConditions) -> str | None:
    wanted = {"layers": SECOND, "donor": "densest", "recipients": "all"}
    wanted |= {"steps": "prefill"}
    return conditions.first(**wanted)


def _lacking(what: str, remedy: str) -> Finding:
    return Finding(what=what, why=f"the study lacks it: run it with {remedy}")


SECOND = [1]
"""The paper's second layer, counted from 0."""

PAPER_BETA = 0.002

HALLUCINATION = ("CHAIR_S", "false positives")
"""By what conditions are compared: of captions, and of questions."""


# ---- Sink densities of a study: by depth, and beside what went wrong.


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
        items: The items, for which images they are about.
        draws: How intervals are drawn.

    Returns:
        Differences in points, by name: of the mean density of heads, and of the share
        of dense heads; None where there are too few images or layers.
    """
    table = _with_images(sinks, items)
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
    """Put the density of shallow layers beside errors, image by image.

    Args:
        sinks: Densities by item, layer and head.
        items: The items.
        rows: The answers.
        condition: Under which errors are counted: the model as it is.

    Returns:
        One row for each image and task: `cluster`, `task`, `density` (mean over
        heads of the first two layers), `densest` (the densest of those heads),
        `error` (absent objects in its captions, or the percentage of questions about
        absent objects answered with yes) and `n_objects`, where known.
    """
    table = _with_images(sinks, items)
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
        objects = items.groupby(cluster_items(items)).truth.first().map(len)
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
    """Correlate the density of shallow layers with errors, over images.

    Spearman's: Pearson's of ranks. Then the same within images of one number of
    objects, since fuller images have both more sinks and more to get wrong.

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
            found[f"{what}, among images of as many objects"] = _correlate(
                centred, draws
            )
    return found


def _beside(
    early: pd.DataFrame, task: str, errors: pd.Series, objects: pd.Series
) -> pd.DataFrame:
    heads = early[early.task == task].groupby(["cluster", "layer", "head"]).density
    by_image = heads.mean().groupby("cluster")
    table = pd.DataFrame({"density": by_image.mean(), "densest": by_image.max()})
    table = table.join(errors.rename("error"), how="inner")
    table["n_objects"] = objects.reindex(table.index).fillna(0)
    return table.rename_axis("cluster").reset_index().assign(task=task)


def _with_images(sinks: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    own = items[["item", "task"]].assign(cluster=cluster_items(items))
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
    # Sums are all that a correlation needs: a sample is drawn without its items.
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
