"""A table of the page."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of words and numbers, as they are shown.

    Attributes:
        caption: What it shows.
        header: Names of its columns; the first names the rows.
        rows: Its cells; a number that ends in a star stands out.
        total: A last row, set apart; none where empty.
        notes: How to read it.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    notes: str = ""


def join(words: Iterable[str]) -> str:
    """Write words with commas between."""
    return ", ".join(words)


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


def _for_markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(text.replace("|", r"\|").split())


def _for_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
