"""HallusionBench: questions with and without a figure, and with an edited one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from eah_interp.arguments import by_name, check_flag, check_path
from eah_interp.benchmarks.checked import check_table
from eah_interp.benchmarks.pope import percent, read_strictly
from eah_interp.benchmarks.records import ANSWERS, Record, read_records
from eah_interp.benchmarks.scores import VARIANTS, list_variants, plot_variants
from eah_interp.benchmarks.tabulated import tabulate_rates
from eah_interp.errors import InputError, show_value
from eah_interp.results import Part, Result
from eah_interp.shown_results import count
from eah_interp.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

URL = "https://github.com/tianyi-lab/HallusionBench"
"""Where the questions are (HallusionBench.json), and how to get the figures."""

_ID = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What names a question."""

RATES = {"a_acc": "aAcc", "f_acc": "fAcc", "q_acc": "qAcc"}
"""Accuracies, and what HallusionBench calls them."""

_SAID = ("model_prediction", *ANSWERS)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HallusionRates(Part):
    """Accuracies, in percent.

    Attributes:
        n: Questions.
        a_acc: Of questions.
        f_acc: Of figures: those whose every question is answered rightly.
        q_acc: Of questions asked of several figures: right for every one of them.
        n_figures: Figures.
        n_pairs: Questions, each with its figures.
        n_uncertain: Answers that say neither yes nor no.
    """

    n: int
    a_acc: float
    f_acc: float
    q_acc: float
    n_figures: int
    n_pairs: int
    n_uncertain: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HallusionScore(Result):
    """HallusionBench by a yes/no parser.

    Attributes:
        official: By group (`all`, `VD`, `VS`): an uncertain answer is right where a
            question has no figure, as in the official script.
        corrected: The same, but where the truth is known without the figure an
            uncertain answer is wrong, and groups of one question are no pairs.
        n_missing: Questions of the benchmark that have no answer.
    """

    official: Mapping[str, HallusionRates]
    corrected: Mapping[str, HallusionRates]
    n_missing: int

    def _about(self) -> str:
        asked = self.official["all"].n if "all" in self.official else 0
        lacking = f", {self.n_missing} unanswered" if self.n_missing else ""
        return f"{count(asked, 'question')}{lacking}, official and corrected"

    def _first(self, k: int) -> pd.DataFrame:
        table = self.frame()
        return table[table.metric.isin(list(RATES))].head(k)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The results, in words."""
        columns = {
            "n": "n",
            **RATES,
            "n_figures": "figures",
            "n_pairs": "pairs",
            "n_uncertain": "uncertain",
        }
        notes = (
            "An uncertain answer without a figure is right, a single question a pair.",
            "Neither of these.",
        )
        missing = f" {self.n_missing} questions have no answer."
        return tuple(
            tabulate_rates(
                f"HallusionBench, {variant}",
                getattr(self, variant),
                columns,
                first="questions",
                notes=note + (missing if self.n_missing else ""),
            )
            for variant, note in zip(VARIANTS, notes, strict=True)
        )

    def frame(self) -> pd.DataFrame:
        """List every number: columns `variant group metric value`."""
        return list_variants(self, "group")

    def plot(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the accuracies of each group of questions, both variants.

        Args:
            ax: Axes of matplotlib to draw into; a figure of its own when None.

        Raises:
            SettingsError: If `ax` is no axes.
            ExtraMissingError: If matplotlib is not installed.
        """
        values = {
            variant: {
                f"{shown}, {group}": getattr(one, name)
                for group, one in getattr(self, variant).items()
                for name, shown in RATES.items()
            }
            for variant in VARIANTS
        }
        return plot_variants(values, title="HallusionBench", ax=ax)


@by_name
def read_hallusionbench(path: Path | str, *, answers: bool = False) -> pd.DataFrame:
    """Read HallusionBench's questions, or a file of answers in its form.

    Args:
        path: `HallusionBench.json`; or a file with the same keys, and answers under
            `model_prediction` (`answer`, `response` and the like do too).
        answers: Whether it holds answers; its truths may then be missing.

    Returns:
        One row a question: its five parts `category`, `subcategory`, `set_id`,
        `figure_id` and `question_id` as texts, `visual_input`, `question`, `filename`
        (None without a figure), `label` (True for yes; missing where not given),
        `answer` where there are some, and `place`.

    Raises:
        InputError: If it cannot be read, a key is missing, a question stands twice, or
            a truth is neither 0 nor 1.
    """
    answers = check_flag("answers", answers)
    try:
        records = read_records(check_path("path", path))
    except InputError as error:
        raise InputError(f"{error}; HallusionBench is at {URL}") from error
    rows: list[dict[str, Any]] = []
    places: dict[tuple[str, ...], str] = {}
    for record in records:
        row: dict[str, Any] = {name: _word(record, name) for name in _ID}
        key = tuple(row.values())
        if key in places:
            msg = (
                f"{record.place}: question {'_'.join(key)} stands in {places[key]} "
                "already; expected one each"
            )
            raise InputError(msg)
        places[key] = record.place
        row["visual_input"] = _word(record, "visual_input")
        row["question"] = record.text("question")
        row["filename"] = record.values.get("filename")
        row["label"] = _read_truth(record, may_lack=answers)
        if answers:
            row["answer"] = record.text(*_SAID)
        rows.append({**row, "place": record.place})
    return pd.DataFrame(rows)


def _word(record: Record, key: str) -> str:
    value = record.values.get(key)
    if not isinstance(value, str | int) or isinstance(value, bool):
        got = show_value(value) if key in record.values else "none"
        msg = f"{record.place}: expected a number or word under {key!r}, got {got}"
        raise InputError(msg)
    return str(value)


def _read_truth(record: Record, *, may_lack: bool) -> bool | None:
    if may_lack and "gt_answer" not in record.values:
        return None
    truth = _word(record, "gt_answer")
    if truth not in ("0", "1"):
        msg = f"{record.place}: expected the truth 0 or 1 as gt_answer, got {truth!r}"
        raise InputError(msg)
    return truth == "1"


@by_name
def score_hallusionbench(
    answers: pd.DataFrame, *, questions: pd.DataFrame | None = None
) -> HallusionScore:
    """Score answers as HallusionBench does, with a yes/no parser for its judge.

    Source: Guan et al., "HallusionBench", 2023 (arXiv:2310.14566), and its `utils.py`.
    There GPT-4 judges whether an answer agrees with the reference; here the first word
    of yes or no is compared with the truth (`read_strictly`), and an answer with
    neither is uncertain. What the official script does that a reader would not expect:

    - Where a visual-supplement question is asked without its figure (VS, figure 0), an
      uncertain answer is right. `corrected` counts it as wrong.
    - fAcc leaves those out, since they have no figure; qAcc has them.
    - A question's figures share `category`, `subcategory`, `set_id` and `question_id`:
      qAcc counts one that was asked of one figure alone as a pair all the same.
      `corrected` does not.
    - A part of the benchmark gives groups that are not whole; they are counted as they
      are, and `n_missing` says how many questions lack.

    Args:
        answers: As `read_hallusionbench(..., answers=True)` returns them.
        questions: The benchmark, whose truths are taken; those of `answers` when None.

    Returns:
        The score.

    Raises:
        InputError: If a column is missing, an answer is to no question of the
            benchmark or to another text, or has no truth.
    """
    keys: dict[str, Any] = dict.fromkeys((*_ID, "visual_input"), "key")
    check_table("answers", answers, **keys, answer="text")
    if "label" in answers:
        check_table("answers", answers, label="flag or none")
    if questions is not None:
        wanted: dict[str, Any] = dict.fromkeys(_ID, "key")
        check_table("questions", questions, **wanted, label="flag", question="text")
    own = answers.copy()
    n_missing = 0
    if questions is not None:
        own["label"] = _join_truth(own, questions)
        n_missing = len(questions) - len(own)
    labels = own.label if "label" in own else pd.Series([None] * len(own))
    lacking = [n for n, label in enumerate(labels) if label is None or pd.isna(label)]
    if lacking:
        msg = (
            f"{_place(own, lacking[0])}: expected the truth of every question, got "
            f"none of {len(lacking)}; pass questions (HallusionBench.json, at {URL})"
        )
        raise InputError(msg)
    read = [read_strictly(str(text)) for text in own.answer]
    own["given"] = pd.Series(read, index=own.index, dtype=object)
    return HallusionScore(
        official=_rate_groups(own, official=True),
        corrected=_rate_groups(own, official=False),
        n_missing=n_missing,
    )


def _place(table: pd.DataFrame, row: int) -> str:
    return str(table.place.iloc[row]) if "place" in table else f"row {row}"


def _join_truth(own: pd.DataFrame, questions: pd.DataFrame) -> list[Any]:
    keys = zip(*(questions[name].astype(str) for name in _ID), strict=True)
    known = {
        key: (label, text)
        for key, label, text in zip(
            keys, questions.label, questions.question, strict=True
        )
    }
    found = []
    for row, key in enumerate(zip(*(own[n].astype(str) for n in _ID), strict=True)):
        if key not in known:
            msg = (
                f"{_place(own, row)}: expected a question of the benchmark, got "
                f"{'_'.join(key)}; are both of one release?"
            )
            raise InputError(msg)
        found.append(known[key][0])
    return found


def _rate_groups(own: pd.DataFrame, *, official: bool) -> dict[str, HallusionRates]:
    found = {"all": _rate(own, official=official)}
    for category in ("VD", "VS"):
        part = own[own.category == category]
        if len(part):
            found[category] = _rate(part, official=official)
    return found


def _rate(own: pd.DataFrame, *, official: bool) -> HallusionRates:
    right: list[bool] = []
    figures: dict[tuple[str, ...], list[bool]] = {}
    pairs: dict[tuple[str, ...], list[bool]] = {}
    for row in own.itertuples():
        alone = row.category == "VS" and str(row.figure_id) == "0"
        is_right = row.given is not None and bool(row.given) == bool(row.label)
        if row.given is None and alone and official:
            is_right = True
        right.append(bool(is_right))
        about = (str(row.category), str(row.subcategory), str(row.set_id))
        pairs.setdefault((*about, str(row.question_id)), []).append(right[-1])
        if not alone:
            figures.setdefault((*about, str(row.figure_id)), []).append(right[-1])
    kept = [flags for flags in pairs.values() if official or len(flags) > 1]
    return HallusionRates(
        n=len(right),
        a_acc=percent(sum(right), len(right)),
        f_acc=percent(sum(map(all, figures.values())), len(figures)),
        q_acc=percent(sum(map(all, kept)), len(kept)),
        n_figures=len(figures),
        n_pairs=len(kept),
        n_uncertain=sum(given is None for given in own.given),
    )
