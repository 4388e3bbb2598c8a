"""A study summed up: every condition against one, every change with its interval."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.benchmarks.pope_rules import Rule
from eah_interp.errors import SettingsError
from eah_interp.kernels.statistics import Effect
from eah_interp.studies.reports.tables import Table, list_tables
from eah_interp.studies.run.manifest import Manifest
from eah_interp.studies.statistics.contrasts import Contrast, Score
from eah_interp.studies.statistics.draws import Draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class StudySummary:
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

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest: two summaries with the same are of one study."""
        return hash_manifest(self.manifest)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Items, values, changes and tests, in words."""
        return list_tables(self)

    def frame(self) -> pd.DataFrame:
        """List every number.

        Returns:
            One row for each condition, task, kind and metric: `value` with `value_low`
            and `value_high`; against the reference `change` with `low` and `high`,
            McNemar's `gained`, `lost`, `p`, `p_holm`, the odds ratio and Cohen's h
            with their intervals; `undefined` says why there is no number.
        """
        keys = ("condition", "task", "kind", "metric")
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for one in self.scores:
            place = (one.condition, one.metric.task, one.kind, one.metric.name)
            rows[place] = {"n": one.n, "undefined": one.undefined}
            rows[place] |= _spread(one.effect, "value", "value_low", "value_high")
        for c in self.contrasts:
            place = (c.condition, c.metric.task, c.kind, c.metric.name)
            row = rows.setdefault(place, {})
            row |= {"reference": c.reference, "n_paired": c.n}
            row |= {"n_dropped": c.n_dropped, "gained": c.gained, "lost": c.lost}
            row |= {"p": c.p, "p_holm": c.p_holm}
            row |= {"undefined": c.undefined or row.get("undefined", "")}
            row |= _spread(c.effect, "change", "low", "high")
            row |= _spread(c.odds, "odds", "odds_low", "odds_high")
            row |= _spread(c.h, "h", "h_low", "h_high")
        return pd.DataFrame(
            [dict(zip(keys, place, strict=True)) | row for place, row in rows.items()]
        )

    def find(
        self, condition: str, metric: str, *, task: str, kind: str = "all"
    ) -> Contrast:
        """Find a contrast.

        Raises:
            SettingsError: If there is none.
        """
        for one in self.contrasts:
            place = (one.condition, one.metric.name, one.metric.task, one.kind)
            if place == (condition, metric, task, kind):
                return one
        msg = f"no contrast of {metric!r} ({task}, {kind}) for condition {condition!r}"
        raise SettingsError(msg)

    def markdown(self) -> str:
        """Write the tables in Markdown, with what they are of."""
        parts = [f"# {self.name}", self.describe(), *self.notes]
        return "\n\n".join([*parts, *(table.markdown() for table in self.tables)])

    def latex(self) -> str:
        """Write the tables in LaTeX, for the package booktabs."""
        return "\n\n".join(table.latex() for table in self.tables)

    def plot(self, metric: str | None = None) -> "Figure":
        """Draw effects with intervals by condition.

        Args:
            metric: Which; the first of CHAIR_S and false positives when None.

        Raises:
            SettingsError: If there is no such metric.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.study_figures import plot_effects

        return plot_effects(self, metric)

    def to_dict(self) -> dict[str, Any]:
        """Write everything as a mapping that JSON can hold; None for what is not."""
        rows = self.frame().astype(object)
        return {
            "study": self.name,
            "manifest": asdict(self.manifest),
            "manifest_hash": self.manifest_hash,
            "reference": self.reference,
            "draws": asdict(self.draws),
            "rule": self.rule,
            "failures": [dict(row) for row in self.failures],
            "notes": list(self.notes),
            "rows": [
                {key: _plain(value) for key, value in row.items()}
                for row in rows.to_dict("records")
            ],
        }

    def describe(self) -> str:
        """Say what the numbers are of."""
        m, draws = self.manifest, self.draws
        return (
            f"{m.model}, {m.n_items} items, {len(m.conditions)} conditions; manifest "
            f"{self.manifest_hash[:12]}. Intervals: {100 * draws.level:g} %, paired "
            f"bootstrap over pictures, {draws.resamples} samples, seed {draws.seed}. "
            f"Yes and no are read by the rule of {self.rule!r}."
        )


def hash_manifest(manifest: Manifest) -> str:
    """Hash everything that a study fixes."""
    text = json.dumps(asdict(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _spread(effect: Effect | None, *names: str) -> dict[str, Any]:
    if effect is None:
        return dict.fromkeys(names)
    parts = (effect.estimate, effect.low, effect.high)
    return dict(zip(names, parts, strict=True))


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not abs(value) < float("inf")):
        return None
    return value
