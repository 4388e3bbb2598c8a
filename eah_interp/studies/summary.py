"""A study summed up: every condition against one, every change with its interval."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.benchmarks.lengths import CAPPED, By, CapChange
from eah_interp.benchmarks.metrics import ALL, MATCHED, Task
from eah_interp.benchmarks.paired import Draws
from eah_interp.benchmarks.pope import Rule
from eah_interp.benchmarks.readouts import ReadoutAudit
from eah_interp.benchmarks.tabulated import spread_effect, to_plain, write_rate
from eah_interp.errors import InputError, SettingsError
from eah_interp.results import Result
from eah_interp.statistics import Effect
from eah_interp.studies.conditions import describe_patch, list_steps
from eah_interp.studies.contrasts import Contrast, Score, name_axis
from eah_interp.studies.manifest import Manifest
from eah_interp.tables import NOTHING, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StudySummary(Result):
    """What a study found.

    Attributes:
        name: Of the study: its folder's.
        manifest: What the study fixes.
        reference: What every condition is compared with.
        draws: Level, samples and seed of the intervals.
        rule: Whose reading of yes/no answers.
        scores: Every metric under every condition.
        contrasts: Every metric's change against the reference.
        failures: By condition: items answered, failed and missing.
        notes: What was left out, and why.
        readouts: By condition, its yes/no answers read in every way.
        caps: Captions of every condition against the reference's, cut to the same mean
            length: what saying less alone would have done.
    """

    name: str
    manifest: Manifest
    reference: str
    draws: Draws
    rule: Rule
    scores: tuple[Score, ...]
    contrasts: tuple[Contrast, ...]
    failures: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    readouts: Mapping[str, ReadoutAudit] = field(default_factory=dict)
    caps: tuple[CapChange, ...] = ()

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest: two summaries with the same are of one study."""
        return hash_manifest(self.manifest)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Conditions, values, changes and tests, in words."""
        return list_tables(self)

    def frame(self) -> pd.DataFrame:
        """List every number.

        Returns:
            One row for each condition, task, kind and metric: which `steps` the
            condition patches; `value` with `value_low`
            and `value_high`; against the reference `change` with `low` and `high`,
            McNemar's `gained`, `lost`, `p`, `p_holm`, the odds ratio and Cohen's h
            with their intervals; `undefined` says why there is no number.
        """
        keys = ("condition", "task", "kind", "metric")
        steps = list_steps(self.manifest.conditions)
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for one in self.scores:
            place = (one.condition, one.metric.task, one.kind, one.metric.name)
            rows[place] = {"n": one.n, "undefined": one.undefined}
            rows[place] |= spread_effect(one.effect, "value", "value_low", "value_high")
        for c in self.contrasts:
            place = (c.condition, c.metric.task, c.kind, c.metric.name)
            row = rows.setdefault(place, {})
            why = c.undefined or row.get("undefined", "")
            row |= {"reference": c.reference, **c.list_numbers(), "undefined": why}
        return pd.DataFrame(
            [
                dict(zip(keys, place, strict=True))
                | {"steps": steps.get(place[0])}
                | row
                for place, row in rows.items()
            ]
        )

    def _about(self) -> str:
        return f"{self.name}, against {self.reference}: {self.describe()}"

    def _first(self, k: int) -> pd.DataFrame:
        try:
            chosen = self._pair(None)[0]
        except SettingsError:  # nothing was compared
            chosen = []
        rows = [
            {"condition": one.condition, "metric": one.metric.name, "n": one.n}
            | spread_effect(one.effect, "change", "low", "high")
            for one in chosen[:k]
        ]
        return pd.DataFrame(rows) if rows else self.frame().head(k)

    @property
    def findings(self) -> tuple[str, ...]:
        """What each condition changed, a sentence each, with its interval."""
        return tuple(_say_findings(self))

    def find(
        self,
        condition: str,
        metric: str,
        *,
        task: str | None = None,
        kind: str = "all",
    ) -> Contrast:
        """Find a contrast, which prints as one line.

        Args:
            condition: The condition.
            metric: The metric, such as `"accuracy"` or `"CHAIR_S"`.
            task: `"yes_no"`, `"caption"` or `"choice"`; needed only where several
                have a metric of that name, such as recall.
            kind: Of which questions; `"all"` of them, or of captions.

        Raises:
            SettingsError: If there is none, or one of several tasks.
        """
        found = [
            one
            for one in self.contrasts
            if (one.condition, one.metric.name, one.kind) == (condition, metric, kind)
            and task in (None, one.metric.task)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            tasks = ", ".join(f"task={one.metric.task!r}" for one in found)
            msg = f"{metric!r} is a metric of several tasks: expected one of {tasks}"
            raise SettingsError(msg)
        of = f"{task}, {kind}" if task else kind
        names = dict.fromkeys(one.condition for one in self.contrasts)
        metrics = dict.fromkeys(one.metric.name for one in self.contrasts)
        msg = (
            f"no contrast of {metric!r} ({of}) for condition {condition!r}: compared "
            f"with {self.reference!r} are {', '.join(names) or 'none'}, in "
            f"{', '.join(metrics) or 'nothing'}"
        )
        raise SettingsError(msg)

    def markdown(self) -> str:
        """Write the tables in Markdown, with what they are of."""
        parts = [f"# {self.name}", self.describe(), *self.notes]
        return "\n\n".join([*parts, *(table.markdown() for table in self.tables)])

    def latex(self) -> str:
        """Write the tables in LaTeX, for the package booktabs."""
        return "\n\n".join(table.latex() for table in self.tables)

    def plot(self, metric: str | None = None, *, ax: "Axes | None" = None) -> "Figure":
        """Draw effects with intervals by condition.

        A filled mark's interval lies on one side of zero. Beside CHAIR stands the
        change with both captions cut to one length.

        Args:
            metric: Which; the first of CHAIR_S and false positives that there is, or
                else of all, when None.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If there is no such metric.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.studies import plot_effects

        chosen, matched = self._pair(metric)
        series = {"as they are": chosen}
        if matched:
            series["length-matched"] = matched
        return plot_effects(
            {
                name: {c.condition: c.effect for c in contrasts}
                for name, contrasts in series.items()
            },
            axis=name_axis(chosen[0].metric),
            ax=ax,
        )

    def plot_layers(self, metric: str | None = None) -> "Figure":
        """Draw the effect of patching one layer, layer by layer.

        Args:
            metric: As for `plot`.

        Raises:
            InputError: If fewer than two conditions differ in their one layer alone.
            SettingsError: If there is no such metric.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.studies import plot_layers

        layers = self.swept_layers
        if len(layers) < 2:
            msg = (
                "expected 2 conditions or more that differ in their one layer, got "
                f"{len(layers)}; study sweep({{'layers': [(0,), (1,), (2,)]}})"
            )
            raise InputError(msg)
        chosen, matched = self._pair(metric)
        name = chosen[0].metric.name
        return plot_layers(
            {
                which: sorted(
                    (layers[c.condition], c.effect)
                    for c in contrasts
                    if c.condition in layers and c.effect is not None
                )
                for which, contrasts in ((name, chosen), (name + MATCHED, matched))
            },
            layers=list(layers.values()),
            axis=name_axis(chosen[0].metric),
        )

    @property
    def swept_layers(self) -> dict[str, int]:
        """Layers of the conditions that broadcast the densest head in one layer each.

        By condition; of those that are alike but for the layer, the largest group.
        """
        groups: dict[str, dict[str, int]] = {}
        for condition in self.manifest.conditions:
            eah = condition.get("eah") or {}
            if eah.get("donor") == "densest" and len(eah.get("layers", ())) == 1:
                rest = str({k: v for k, v in eah.items() if k != "layers"})
                groups.setdefault(rest, {})[str(condition["name"])] = eah["layers"][0]
        return max(groups.values(), key=len, default={})

    def _pair(self, metric: str | None) -> list[list[Contrast]]:
        """Find a metric's contrasts, and those with captions cut to one length."""
        whole = [c for c in self.contrasts if c.kind == ALL]
        usual = ("CHAIR_S", "false positives", *(c.metric.name for c in whole))
        for name in usual if metric is None else (metric,):
            tasks = [c.metric.task for c in whole if c.metric.name == name]
            if tasks:
                own = [c for c in whole if c.metric.task == tasks[0]]
                names = (name, name + MATCHED)
                return [[c for c in own if c.metric.name == n] for n in names]
        known = sorted({c.metric.name for c in self.contrasts})
        msg = f"metric must be one of {', '.join(known) or 'none: no contrasts'}, got "
        raise SettingsError(msg + repr(metric))

    def to_dict(self) -> dict[str, Any]:
        """Write everything as a mapping that JSON can hold; None for what is not."""
        rows = self.frame().astype(object)
        return {
            "study": self.name,
            "manifest": self.manifest.to_dict(),
            "manifest_hash": self.manifest_hash,
            "reference": self.reference,
            "draws": asdict(self.draws),
            "rule": self.rule,
            "failures": [dict(row) for row in self.failures],
            "notes": list(self.notes),
            "readouts": to_plain(self.readouts),
            "caps": [to_plain(asdict(one)) for one in self.caps],
            "rows": [
                {key: to_plain(value) for key, value in row.items()}
                for row in rows.to_dict("records")
            ],
        }

    def describe(self) -> str:
        """Describe what the numbers are of."""
        m, draws = self.manifest, self.draws
        return (
            f"{m.model}, {m.n_items} items, {len(m.conditions)} conditions; manifest "
            f"{self.manifest_hash[:12]}. Intervals: {100 * draws.level:g} %, paired "
            f"bootstrap over images, {draws.resamples} samples, seed {draws.seed}. "
            f"Yes and no are read by the rule of {self.rule!r}."
        )


def hash_manifest(manifest: Manifest) -> str:
    """Hash everything that a study fixes."""
    text = json.dumps(manifest.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- What was compared, and what came of it, in sentences.


HEADLINES = {"caption": ("CHAIR_S",), "yes_no": ("false positives", "accuracy")}
"""The metric that is told first of each task; the next where that has no number."""

BESIDE = {
    "caption": (f"CHAIR_S{MATCHED}", "recall", "words"),
    "yes_no": ("accuracy", "yes-ratio"),
}
"""What a change has to be read beside: who says less, or No, hallucinates less."""


def _say_findings(summary: StudySummary) -> Iterable[str]:
    for task, names in HEADLINES.items():
        own = [c for c in summary.contrasts if c.metric.task == task and c.kind == ALL]
        for condition in dict.fromkeys(c.condition for c in own):
            found = [c for n in names for c in own if _is(c, condition, n)]
            defined = [c for c in found if c.effect is not None]
            if found:
                first = (defined or found)[0]
                told = _say_finding(summary, first)
                beside = [c for n in BESIDE[task] for c in own if _is(c, condition, n)]
                more = [
                    f"{one.metric.name} {write_change(one)}"
                    for one in beside
                    if one is not first and one.effect is not None
                ]
                yield f"{told} Beside it: {', '.join(more)}." if more else told


def _is(contrast: Contrast, condition: str, metric: str) -> bool:
    return (contrast.condition, contrast.metric.name) == (condition, metric)


def _say_finding(summary: StudySummary, contrast: Contrast) -> str:
    metric = contrast.metric.name
    if contrast.effect is None:
        return (
            f"{contrast.condition}: what it changes of {metric} cannot be told "
            f"({contrast.undefined})."
        )
    effect = contrast.effect
    values = {
        s.condition: s.effect.estimate
        for s in summary.scores
        if (s.metric.name, s.metric.task, s.kind) == (metric, contrast.metric.task, ALL)
        and s.effect is not None
    }
    names = (contrast.reference, contrast.condition)
    ends = [values[name] for name in names if name in values]
    unit = " %" if contrast.metric.percent else ""
    between = f" from {ends[0]:.1f} to {ends[1]:.1f}{unit}" if len(ends) == 2 else ""
    name = contrast.condition
    if not effect.excludes_zero:
        told = f"Whether {name} changes {metric} cannot be told{',' * bool(between)}"
    else:
        told = f"{name} {'raises' if effect.low > 0 else 'lowers'} {metric}"
    return (
        f"{told}{between}: {write_change(contrast)} points against "
        f"{contrast.reference}, {contrast.n} items."
    )


def tabulate_conditions(summary: StudySummary) -> Table:
    """Lay out what is done to the model under each condition."""
    steps = list_steps(summary.manifest.conditions)
    return Table(
        caption="Conditions",
        header=("condition", "what is done", "steps", "settings"),
        rows=tuple(
            (str(one["name"]), what, steps[str(one["name"])] or NOTHING, settings)
            for one in summary.manifest.conditions
            for what, settings in [describe_patch(one)]
        ),
        prose=True,
        notes="Steps: whether the prompt alone is patched (prefill), or every "
        "generated word too (all).",
    )


# ---- Tables: every change with its interval, or with why it has none.


BY_KIND = ("accuracy", "F1", "false positives", "yes-ratio")


def write_value(effect: Effect | None, *, undefined: str = "", digits: int = 1) -> str:
    """Write a value with its interval; no value without one.

    Example:
        >>> write_value(Effect(estimate=3.0, low=1.0, high=4.0, level=0.95, n=9))
        '3.0 [1.0, 4.0]'
    """
    if effect is None:
        return f"undefined: {undefined}" if undefined else NOTHING
    parts = effect.estimate, effect.low, effect.high
    value, low, high = (f"{part:.{digits}f}" for part in parts)
    return f"{value} [{low}, {high}]"


def write_change(contrast: Contrast) -> str:
    """Write a change with its interval; why it has none where it has none."""
    if contrast.effect is None:
        return f"undefined: {contrast.undefined}"
    return contrast.effect.write(1 if contrast.metric.percent else 2)


def list_tables(summary: StudySummary) -> tuple[Table, ...]:
    """Lay a summary out in tables."""
    tables = [_failures(summary)]
    tasks: tuple[tuple[Task, str], ...] = (
        ("yes_no", "Yes/no questions"),
        ("caption", "Captions"),
    )
    for task, title in tasks:
        scores = [s for s in summary.scores if s.metric.task == task]
        changes = [c for c in summary.contrasts if c.metric.task == task]
        tables += _of_task(summary, title, scores, changes)
    tables += _caps(summary)
    if summary.readouts:
        tables.append(_readouts(summary.readouts))
    tests = [c for c in summary.contrasts if c.p_holm is not None]
    if tests:
        tables.append(_tests(summary, tests))
    return tuple(tables)


def _of_task(
    summary: StudySummary,
    title: str,
    scores: Sequence[Score],
    changes: Sequence[Contrast],
) -> Iterable[Table]:
    level = f"{100 * summary.draws.level:g} %"
    units = "Percent; mentions, words and tokens are means of a caption."
    for kind in dict.fromkeys(score.kind for score in scores):
        own = [s for s in scores if s.kind == kind]
        if kind != ALL:
            own = [s for s in own if s.metric.name in BY_KIND]
        n = max(score.n for score in own)
        label = title if kind == ALL else f"{title}, {kind}"
        metrics = tuple(dict.fromkeys(score.metric.name for score in own))
        cells = {
            (s.condition, s.metric.name): write_value(
                s.effect,
                undefined=s.undefined,
                digits=1 if s.metric.percent else 2,
            )
            for s in own
        }
        yield _by_condition(
            f"{label}: values",
            metrics,
            cells,
            notes=f"{units} {level} intervals over images; up to {n} items.",
        )
        found = [c for c in changes if c.kind == kind]
        if kind != ALL:
            found = [c for c in found if c.metric.name in BY_KIND]
        metrics = tuple(dict.fromkeys(c.metric.name for c in found))
        cells = {(c.condition, c.metric.name): write_change(c) for c in found}
        if found:
            yield _by_condition(
                f"{label}: change against {summary.reference}",
                metrics,
                cells,
                notes=f"Points; {level} intervals, images drawn for both conditions.",
            )


def _by_condition(
    caption: str,
    metrics: tuple[str, ...],
    cells: dict[tuple[str, str], str],
    *,
    notes: str,
) -> Table:
    conditions = dict.fromkeys(condition for condition, _ in cells)
    return Table(
        caption=caption,
        header=("condition", *metrics),
        rows=tuple(
            (name, *(cells.get((name, metric), NOTHING) for metric in metrics))
            for name in conditions
        ),
        notes=notes,
    )


def _tests(summary: StudySummary, tests: Sequence[Contrast]) -> Table:
    return Table(
        caption=f"Items that changed against {summary.reference}",
        header=(
            *("condition", "metric", "gained", "lost", "odds ratio"),
            *("Cohen's h", "p", "p (Holm)"),
        ),
        rows=tuple(
            (
                c.condition,
                c.metric.name,
                str(c.gained),
                str(c.lost),
                write_value(c.odds) if c.odds else "undefined: no item changed",
                c.h.write(2) if c.h else NOTHING,
                _p(c.p),
                _p(c.p_holm),
            )
            for c in tests
        ),
        notes="Gained: items that are so under the condition only. McNemar's exact "
        f"test; Holm's adjustment over these {len(tests)} comparisons. The test takes "
        "questions about one image as independent; the intervals do not.",
    )


def _caps(summary: StudySummary) -> Iterable[Table]:
    units: tuple[tuple[By, str], ...] = (
        ("objects", "different objects"),
        ("words", "words"),
    )
    for by, unit in units:
        own = [one for one in summary.caps if one.by == by]
        if not own:
            continue
        cells = {
            (one.condition, one.metric): one.effect.write()
            if one.effect
            else f"undefined: {one.undefined}"
            for one in own
        }
        lengths = {one.condition: one.length for one in own}
        yield Table(
            caption=f"Captions against {summary.reference}'s, cut to the same mean "
            f"number of {unit}",
            header=("condition", unit, *CAPPED),
            rows=tuple(
                (name, f"{length:.2f}", *(cells[name, metric] for metric in CAPPED))
                for name, length in lengths.items()
            ),
            notes=f"Points, each object once a caption. {summary.reference}'s own "
            f"captions have {own[0].full:.2f} {unit}; where a condition's are longer "
            "nothing is cut. Who only says less stands at zero.",
        )


def _readouts(audits: Mapping[str, ReadoutAudit]) -> Table:
    names = [one.name for one in next(iter(audits.values())).readouts]
    return Table(
        caption="F1 by how the answer is read",
        header=("condition", *names, "spread"),
        rows=tuple(
            (
                condition,
                *(write_rate(audit.find(name).score.f1) for name in names),
                write_rate(audit.spread),
            )
            for condition, audit in audits.items()
        ),
        notes="Percent, the same answers: by POPE's rule, OPERA's, the first word "
        "alone, and the first word of yes or no wherever it stands. A change smaller "
        "than the spread hangs on the reading.",
    )


def _failures(summary: StudySummary) -> Table:
    names = ("answered", "failed", "missing")
    steps = list_steps(summary.manifest.conditions)
    return Table(
        caption="Items by condition",
        header=("condition", "steps", *names),
        rows=tuple(
            (
                str(row["condition"]),
                steps.get(row["condition"]) or NOTHING,
                *(str(row[name]) for name in names),
            )
            for row in summary.failures
        ),
        notes="Steps: whether the prompt alone is patched (prefill), or every "
        "generated word too (all). An item that failed under one of two conditions is "
        "left out of both when they are compared.",
    )


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
