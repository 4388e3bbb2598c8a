"""Tables in words: every change with its interval, or with why it has none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eah_interp.kernels.statistics import Effect
from eah_interp.studies.plan.items import Task
from eah_interp.studies.statistics.contrasts import Contrast, Score
from eah_interp.studies.statistics.scores import ALL

if TYPE_CHECKING:
    from eah_interp.studies.statistics.summary import StudySummary

NOTHING = "–"  # noqa: RUF001 - a dash where a table has nothing to say
BY_KIND = ("accuracy", "F1", "false positives", "yes-ratio")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",  # noqa: RUF001
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of words.

    Attributes:
        caption: What it shows.
        header: Names of its columns; the first names the rows.
        rows: Its cells.
        notes: How to read it.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str = ""

    def markdown(self) -> str:
        r"""Write it in Markdown.

        Example:
            >>> print(Table(caption="A", header=("b",), rows=(("1|2",),)).markdown())
            **A**
            <BLANKLINE>
            | b |
            | --- |
            | 1\|2 |
        """
        rule = ["---"] * len(self.header)
        lines = [self.header, rule, *self.rows]
        table = "\n".join(
            "| " + " | ".join(_for_markdown(cell) for cell in line) + " |"
            for line in lines
        )
        notes = f"\n\n{_for_markdown(self.notes)}" if self.notes else ""
        return f"**{_for_markdown(self.caption)}**\n\n{table}{notes}"

    def latex(self) -> str:
        r"""Write it in LaTeX, for the package booktabs.

        Example:
            >>> table = Table(caption="A", header=("b",), rows=(("1 %",),))
            >>> table.latex().splitlines()[5]
            '1 \\% \\\\'
        """
        body = [" & ".join(map(_for_latex, row)) + r" \\" for row in self.rows]
        lines = [
            r"\begin{table*}",
            r"\caption{" + _for_latex(f"{self.caption} {self.notes}".strip()) + "}",
            r"\begin{tabular}{l" + "r" * (len(self.header) - 1) + "}",
            r"\toprule",
            " & ".join(map(_for_latex, self.header)) + r" \\ \midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
        return "\n".join(lines)


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


def list_tables(summary: "StudySummary") -> tuple[Table, ...]:
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
    tests = [c for c in summary.contrasts if c.p_holm is not None]
    if tests:
        tables.append(_tests(summary, tests))
    return tuple(tables)


def _of_task(
    summary: "StudySummary",
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
        yield _grid(
            f"{label}: values",
            metrics,
            cells,
            notes=f"{units} {level} intervals over pictures; up to {n} items.",
        )
        found = [c for c in changes if c.kind == kind]
        if kind != ALL:
            found = [c for c in found if c.metric.name in BY_KIND]
        metrics = tuple(dict.fromkeys(c.metric.name for c in found))
        cells = {(c.condition, c.metric.name): write_change(c) for c in found}
        if found:
            yield _grid(
                f"{label}: change against {summary.reference}",
                metrics,
                cells,
                notes=f"Points; {level} intervals, pictures drawn for both conditions.",
            )


def _grid(
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


def _tests(summary: "StudySummary", tests: Sequence[Contrast]) -> Table:
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
        "questions about one picture as independent; the intervals do not.",
    )


def _failures(summary: "StudySummary") -> Table:
    names = ("condition", "answered", "failed", "missing")
    return Table(
        caption="Items by condition",
        header=names,
        rows=tuple(tuple(str(row[name]) for name in names) for row in summary.failures),
        notes="An item that failed under one of two conditions is left out of both "
        "when they are compared.",
    )


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _for_markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(text.replace("|", r"\|").split())


def _for_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
