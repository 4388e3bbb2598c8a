"""Files of outputs against one of them: every change, raw and at one length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from eah_interp.arguments import by_name, check_flag
from eah_interp.benchmarks.metrics import COMPARED, Metric
from eah_interp.benchmarks.outputs import (
    OutputFile,
    Outputs,
    Singular,
    check_paths,
    read_answer_outputs,
    read_caption_outputs,
)
from eah_interp.benchmarks.paired import Draws, Pair, check_drawing
from eah_interp.benchmarks.pope import Rule
from eah_interp.benchmarks.tabulated import spread_effect, to_plain
from eah_interp.errors import InputError, SettingsError, show_value
from eah_interp.results import Part, Result
from eah_interp.statistics import Effect, percentile_effect, resample_sums
from eah_interp.tables import NOTHING, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eah_interp.benchmarks.mentions import Lemmatize

BY_CONSTRUCTION = {"mentions", "objects"}
"""Metrics that are the same on both sides once captions are matched."""

EQUAL = "equal by construction"

COLUMNS = (
    *("file", "metric", "base", "value", "change", "low", "high"),
    *("matched", "matched_low", "matched_high", "gained", "lost", "p"),
)
"""Of a comparison's table."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OutputChange(Part):
    """How one metric changed from the base to another file.

    Attributes:
        file: The other file's name.
        metric: The metric's name.
        base: Its value in the base: a percentage, or a mean; None where it is not
            defined.
        value: Its value in the other file.
        effect: The change with its interval; None where it is not defined.
        undefined: Why it is not.
        matched: The change with both captions of an image cut at the same number of
            different objects; None for answers, and where it is not defined.
        matched_undefined: Why it is not.
        percent: Whether values are percentages, and changes points.
        gained: Items with the outcome in the other file only; None where the metric is
            not of single items.
        lost: Items with it in the base only.
        p: Of McNemar's exact test.
    """

    file: str
    metric: str
    base: float | None
    value: float | None
    effect: Effect | None
    undefined: str = ""
    matched: Effect | None = None
    matched_undefined: str = ""
    percent: bool = True
    gained: int | None = None
    lost: int | None = None
    p: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Adjusted(Part):
    """How many more absent objects a caption names than words alone would explain.

    Attributes:
        file: The other file's name.
        raw: Change of the mean number of different absent objects of a caption.
        slope: Absent objects that a word more goes with, on either side.
        effect: The change at one number of words; None where it is not defined.
        undefined: Why it is not.
    """

    file: str
    raw: Effect | None
    slope: Effect | None
    effect: Effect | None
    undefined: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OutputComparison(Result):
    """What comparing files of outputs found.

    Attributes:
        outputs: The files and what they say, scored.
        draws: Level, samples and seed of the intervals.
        changes: Every metric's change, file by file.
        adjusted: Of captions, the change of absent objects adjusted for words.
    """

    outputs: Outputs
    draws: Draws
    changes: tuple[OutputChange, ...]
    adjusted: tuple[Adjusted, ...]

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files, the base first."""
        return self.outputs.files

    @property
    def n(self) -> int:
        """How many outputs of each file were compared."""
        return self.outputs.n

    def find(self, metric: str, file: str | None = None) -> OutputChange:
        """Find a metric's change.

        Args:
            metric: Its name, such as `CHAIR_S`.
            file: The other file's name; the first one's when None.

        Raises:
            SettingsError: If there is none.
        """
        wanted = self.files[1].name if file is None else file
        for change in self.changes:
            if (change.file, change.metric) == (wanted, metric):
                return change
        known = ", ".join(dict.fromkeys(change.metric for change in self.changes))
        names = ", ".join(one.name for one in self.files[1:])
        got = f"got {show_value(metric)} of {show_value(wanted)}"
        raise SettingsError(
            f"expected a metric of {known} and a file of {names}, {got}"
        )

    def frame(self) -> pd.DataFrame:
        """List every number.

        Returns:
            One row for each file and metric: `base`, `value`, `change` with `low` and
            `high`, `matched` with `matched_low` and `matched_high`, and McNemar's
            `gained`, `lost`, `p`.
        """
        rows = []
        for one in self.changes:
            row: dict[str, Any] = {"file": one.file, "metric": one.metric}
            row |= {"base": one.base, "value": one.value}
            row |= spread_effect(one.effect, "change", "low", "high")
            row |= spread_effect(one.matched, "matched", "matched_low", "matched_high")
            row |= {"gained": one.gained, "lost": one.lost, "p": one.p}
            rows.append(row)
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return table.astype(dict.fromkeys(COLUMNS[2:], "float64"))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The files, and every change, in words."""
        return (_tabulate_files(self), *_tabulate_changes(self))

    def describe(self) -> str:
        """Describe what the numbers are of."""
        return (
            f"{self.n} {self.outputs.what} of each of {len(self.files)} files, scored "
            f"with {self.outputs.truth}. Intervals: {100 * self.draws.level:g} %, "
            f"paired bootstrap over images, {self.draws.resamples} samples, seed "
            f"{self.draws.seed}."
        )

    def _about(self) -> str:
        others = ", ".join(file.name for file in self.files[1:])
        return f"{others} against {self.files[0].name}: {self.describe()}"

    def to_dict(self) -> dict[str, Any]:
        """Write everything as a mapping that JSON can hold; None for what is not."""
        return {
            "task": self.outputs.task,
            "n": self.n,
            "files": to_plain(self.files),
            "truth": self.outputs.truth,
            "draws": to_plain(self.draws),
            "notes": list(self.outputs.notes),
            "changes": to_plain(self.changes),
            "adjusted": to_plain(self.adjusted),
        }

    def plot(self, file: str | None = None, *, ax: "Axes | None" = None) -> "Figure":
        """Draw every change of a file, raw and matched, with intervals.

        Args:
            file: Its name; the first's when None.
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If there is no such file, or `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.viz.studies import plot_effects

        name = self.find(self.changes[0].metric, file).file
        own = [c for c in self.changes if c.file == name and c.percent]
        series = {"as they are": {c.metric: c.effect for c in own}}
        if self.outputs.task == "caption":
            series["length-matched"] = {c.metric: c.matched for c in own}
        return plot_effects(series, axis="change (points)", ax=ax)

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML page that needs no network and no other file.

        Args:
            path: The file.

        Raises:
            SettingsError: If it cannot be written.
            ExtraMissingError: If matplotlib is not installed.
        """
        from eah_interp.benchmarks.compare_page import write_page

        return write_page(self, path)


@by_name
def compare_outputs(
    base: str | Path,
    patched: "str | Path | Sequence[str | Path]",
    *,
    annotations: str | Path | None = None,
    synonyms: str | Path | None = None,
    singular: Singular = "nltk",
    year: int = 2014,
    questions: str | Path | None = None,
    rule: Rule = "pope",
    common: bool = False,
    image_key: str | None = None,
    caption_key: str | None = None,
    lemmatize: "Lemmatize | None" = None,
    draws: Draws | None = None,
) -> OutputComparison:
    """Compare files of captions, or of yes/no answers, about the same images.

    No model is needed. Captions need what is in the images (`annotations`) and CHAIR's
    `synonyms`; answers need POPE's `questions`. Outputs are paired by image or
    question; intervals are of a bootstrap that draws images, the same for both sides.

    Shorter captions hallucinate less, so every change of captions is given raw and
    length-matched: with k the smaller number of different objects of an image's two
    captions, each is cut before its (k+1)-th different object, and each object left
    counts once (`match_lengths`). Beside it stands what peers report, the change of
    absent objects adjusted for words by regression.

    Args:
        base: The file that others are compared with.
        patched: The other file, or several.
        annotations: COCO's annotations (a folder), or a file of objects by image.
        synonyms: CHAIR's synonym list.
        singular: Which of COCO's two ground truths, where `annotations` is a folder:
            words of its captions made singular by NLTK's lemmas or by `pattern`.
        year: Of COCO's files.
        questions: The questions with their labels.
        rule: Whose reading of a yes/no answer.
        common: Whether images or questions that a file lacks are left out of all, and
            counted; they are refused otherwise.
        image_key: Where images stand in files of captions, see `read_captions`.
        caption_key: Where captions stand.
        lemmatize: How captions are read; `load_lemmatizer()` when None.
        draws: Level, samples and seed of the intervals; `Draws()` when None.

    Returns:
        The comparison.

    Raises:
        SettingsError: If neither or both of captions and answers are asked for, or an
            argument is impossible.
        InputError: If a file cannot be read, is about other images, or holds one twice.
        ExtraMissingError: If NLTK, `pattern` or statsmodels is needed and missing.
    """
    paths, draws = check_paths(base, patched), check_drawing(draws)
    common = check_flag("common", common)
    if (questions is None) == (annotations is None and synonyms is None):
        msg = (
            "expected either questions, to compare answers, or annotations and "
            "synonyms, to compare captions, got "
            f"{'neither' if questions is None else 'both'}"
        )
        raise SettingsError(msg)
    if questions is not None:
        outputs = read_answer_outputs(
            paths, questions=questions, rule=rule, common=common
        )
    elif annotations is None or synonyms is None:
        missing = "annotations" if annotations is None else "synonyms"
        msg = f"captions need annotations and synonyms, got no {missing}: name the file"
        raise SettingsError(msg)
    else:
        outputs = read_caption_outputs(
            paths,
            annotations=annotations,
            synonyms=synonyms,
            singular=singular,
            year=year,
            common=common,
            image_key=image_key,
            caption_key=caption_key,
            lemmatize=lemmatize,
        )
    return compare(outputs, draws=draws)


def compare(outputs: Outputs, *, draws: Draws) -> OutputComparison:
    """Compare scored outputs with those of the first file.

    Args:
        outputs: The outputs.
        draws: How intervals are drawn.
    """
    first, names = outputs.tables[0], [file.name for file in outputs.files]
    changes: list[OutputChange] = []
    adjusted: list[Adjusted] = []
    for name, table in zip(names[1:], outputs.tables[1:], strict=True):
        pair = Pair.of(first, table)
        changes += _change(pair, outputs.task, name, draws=draws)
        if outputs.task == "caption":
            adjusted.append(_adjust(pair, name, draws=draws))
    return OutputComparison(
        outputs=outputs,
        draws=draws,
        changes=tuple(changes),
        adjusted=tuple(adjusted),
    )


def _change(
    pair: Pair, task: str, name: str, *, draws: Draws
) -> Iterator[OutputChange]:
    metrics = [metric for metric in COMPARED if metric.task == task]
    sides = [table.sum(numeric_only=True) for table in pair.counted]
    cut: dict[str, Any] = {}
    if task == "caption":
        cut = {
            metric.name: values
            for metric, values in pair.matched().compare(metrics, draws=draws)
        }
    for metric, values in pair.compare(metrics, draws=draws):
        old, new = (_rate(side, metric) for side in sides)
        matched = cut.get(metric.name, {"effect": None, "undefined": ""})
        fixed = task == "caption" and metric.name in BY_CONSTRUCTION
        yield OutputChange(
            file=name,
            metric=metric.name,
            base=old,
            value=new,
            effect=values["effect"],
            undefined=values["undefined"],
            matched=None if fixed else matched["effect"],
            matched_undefined=EQUAL if fixed else matched["undefined"],
            percent=metric.percent,
            gained=values.get("gained"),
            lost=values.get("lost"),
            p=values.get("p"),
        )


def _rate(sums: pd.Series, metric: Metric) -> float | None:
    total = float(sums[metric.total])
    return metric.scale * float(sums[metric.count]) / total if total else None


# ---- Length adjusted away by regression, as peers do.


def _adjust(pair: Pair, name: str, *, draws: Draws) -> Adjusted:
    """Regress absent objects on words and on the side, captions of both sides pooled.

    absent = a + slope x words + change x (1 on the second side, else 0), by least
    squares; all of it is made of sums over captions, so that images can be redrawn.
    """
    columns = []
    for counts in pair.counted:
        words = counts.n_words.astype(float)
        absent = (counts.n_objects - counts.n_found).astype(float)
        parts = {
            "one": counts.one.astype(float),
            "w": words,
            "y": absent,
            "ww": words * words,
            "wy": words * absent,
        }
        by_image = pd.DataFrame(parts).groupby(counts.cluster, sort=False).sum()
        columns.append(torch.from_numpy(by_image.to_numpy(dtype=float, copy=True)))
    try:
        sums = resample_sums(
            torch.cat(columns, dim=1), resamples=draws.resamples, seed=draws.seed
        )
    except InputError as error:
        none = dict.fromkeys(("raw", "slope", "effect"))
        return Adjusted(file=name, undefined=str(error), **none)
    whole, drawn = _regress(sums.whole), _regress(sums.drawn)
    found: dict[str, Effect | None] = {}
    undefined = ""
    for key in ("raw", "slope", "effect"):
        try:
            found[key] = percentile_effect(
                float(whole[key]), drawn[key], level=draws.level, n=sums.n
            )
        except InputError as error:
            found[key], undefined = None, f"{key}: {error}"
    return Adjusted(file=name, undefined=undefined, **found)


def _regress(sums: Any) -> dict[str, Any]:
    """Solve the regression of sums of both sides: one, w, y, ww and wy of each."""
    before, after = sums[..., :5].unbind(-1), sums[..., 5:].unbind(-1)
    n0, w0, y0, ww0, wy0 = before
    n1, w1, y1, ww1, wy1 = after
    spread = ww0 - w0 * w0 / n0 + ww1 - w1 * w1 / n1
    shared = wy0 - w0 * y0 / n0 + wy1 - w1 * y1 / n1
    # Captions of one and the same length have no slope; 0 / 0 is NaN.
    slope = shared / spread.where(spread > 1e-9 * (ww0 + ww1), torch.nan)
    raw = y1 / n1 - y0 / n0
    return {"raw": raw, "slope": slope, "effect": raw - slope * (w1 / n1 - w0 / n0)}


# ---- In words.


def _tabulate_files(found: OutputComparison) -> Table:
    return Table(
        caption="Files",
        header=("file", "outputs", "left out", "SHA-256"),
        rows=tuple(
            (file.name, str(file.n), str(file.n_left_out), file.sha256[:12])
            for file in found.files
        ),
        notes="The first is the base.",
    )


def _tabulate_changes(found: OutputComparison) -> Iterator[Table]:
    base = found.files[0].name
    is_captions = found.outputs.task == "caption"
    for file in found.files[1:]:
        own = [change for change in found.changes if change.file == file.name]
        header = ("metric", "base", "value", "change")
        yield Table(
            caption=f"{file.name} against {base}",
            header=(*header, "length-matched") if is_captions else header,
            rows=tuple(_write_row(change, with_matched=is_captions) for change in own),
            notes=_explain(found, file.name),
        )


def _explain(found: OutputComparison, name: str) -> str:
    parts = []
    for change in found.changes:
        if change.file == name and change.p is not None:
            parts.append(
                f"{change.metric}: {change.gained} gained it, {change.lost} lost it, "
                f"McNemar's exact p {change.p:.2g}."
            )
    for one in found.adjusted:
        if one.file == name and one.effect is not None:
            assert one.raw is not None
            parts.append(
                "Absent objects a caption (different ones): change "
                f"{one.raw.write(2)}; adjusted for words by regression "
                f"{one.effect.write(2)}."
            )
        elif one.file == name:
            why = f"undefined, {one.undefined}"
            parts.append(f"Adjusted for words by regression: {why}.")
    return " ".join(parts)


def _write_row(change: OutputChange, *, with_matched: bool) -> tuple[str, ...]:
    digits = 1 if change.percent else 2
    values = [
        NOTHING if value is None else f"{value:.{digits}f}"
        for value in (change.base, change.value)
    ]
    row = (change.metric, *values, _write(change.effect, change.undefined, digits))
    if not with_matched:
        return row
    if change.matched_undefined == EQUAL:
        return (*row, EQUAL)
    return (*row, _write(change.matched, change.matched_undefined, digits))


def _write(effect: Effect | None, undefined: str, digits: int) -> str:
    return f"undefined: {undefined}" if effect is None else effect.write(digits)
