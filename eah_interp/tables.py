"""One table of words and numbers, as text, HTML, Markdown and LaTeX."""

import re
from dataclasses import dataclass
from html import escape

_NUMBER = re.compile(r"[+\-−–]?[\d.,]*(e[+-]?\d+)?( ?%)?( \[.*\])?\*?")  # noqa: RUF001

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",  # noqa: RUF001
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}

NOTHING = "–"  # noqa: RUF001
"""What stands in a table where there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of words and numbers, as they are shown.

    Attributes:
        caption: What it shows.
        header: Names of its columns; the first names the rows.
        rows: Its cells; a number that ends in a star stands out.
        total: A last row, set apart; none where empty.
        notes: How to read it.
        prose: Whether cells are sentences, to be wrapped, and not numbers.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    notes: str = ""
    prose: bool = False

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """Its rows, the total included."""
        return (*self.rows, self.total) if self.total else self.rows

    def text(self) -> str:
        """Write it in aligned columns, numbers to the right.

        Example:
            >>> rows = (("EAH", "61*"), ("random", "7"))
            >>> print(Table(caption="Share", header=("donor", "%"), rows=rows))
            Share
            donor     %
            EAH     61*
            random    7
        """
        lines = (self.header, *self.lines)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        right = [bool(align(cell)) for cell in self.rows[0]] if self.rows else []
        right = right or [False] * len(widths)
        written = [
            "  ".join(
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.caption, *written, *([self.notes] * bool(self.notes))])

    def __str__(self) -> str:
        return self.text()

    def html(self) -> str:
        """Write it in HTML that a page's style sheet and a screen reader know.

        Whatever its cells hold is shown as text.

        Example:
            >>> rows = (("<i>", "1"),)
            >>> table = Table(caption="A", header=("b", "c"), rows=rows)
            >>> table.html().splitlines()[5]
            '<tr><th scope="row">&lt;i&gt;</th><td class="number">1</td></tr>'
        """
        # a column's header stands as the numbers under it do
        first = [""] * len(self.header)
        if self.rows and not self.prose:
            first[1:] = self.rows[0][1:]
        header = "".join(
            _cell("th", name, 'scope="col"', align(cell) and "number")
            for name, cell in zip(self.header, first, strict=True)
        )
        body = "\n".join(f"<tr>{self._row(row)}</tr>" for row in self.rows)
        foot = (
            f"<tfoot><tr>{self._row(self.total)}</tr></tfoot>\n" if self.total else ""
        )
        notes = f'\n<p class="note">{escape(self.notes)}</p>' if self.notes else ""
        kind = ' class="prose"' if self.prose else ' class="numbers"'
        caption = escape(self.caption)
        # a wide table scrolls by itself, also by keyboard, and not the whole page
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">\n'
            f"<table{kind}>\n<caption>{caption}</caption>\n"
            f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
            f"{foot}</table>\n</div>{notes}"
        )

    __html__ = html  # jinja2 shows what has this as it is, and escapes the rest

    def _row(self, row: tuple[str, ...]) -> str:
        words = "words" if len(row[0]) > LONG else ""
        name = _cell("th", row[0], 'scope="row"', "answer" if self.prose else words)
        kinds = ["answer" if self.prose else _kind(cell) for cell in row[1:]]
        cells = zip(row[1:], kinds, strict=True)
        return name + "".join(_cell("td", cell, "", kind) for cell, kind in cells)

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
        table = "\n".join(
            "| " + " | ".join(map(_for_markdown, line)) + " |"
            for line in (self.header, rule, *self.lines)
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
        body = [" & ".join(map(_for_latex, row)) + r" \\" for row in self.lines]
        if self.total:
            body.insert(-1, r"\midrule")
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


def align(cell: str) -> str:
    """Name how a cell is set: numbers to the right, those with a star bold.

    Example:
        >>> align("+0.12"), align("61*"), align("L1H6"), align("1.0 [0.5, 1.5]")
        ('number', 'number star', '', 'number')
    """
    if not _NUMBER.fullmatch(cell) or not cell:
        return ""
    return "number star" if cell.endswith("*") else "number"


LONG = 24
"""Letters of a cell that is wrapped, so that it pushes no other off the page."""


def _kind(cell: str) -> str:
    """Name how a cell of a table of numbers is set: words are wrapped."""
    return align(cell) or ("words" if len(cell) > LONG else "")


def _cell(tag: str, text: str, scope: str, kind: str) -> str:
    opened = [tag, scope, f'class="{kind}"' if kind else ""]
    return f"<{' '.join(filter(None, opened))}>{escape(text)}</{tag}>"


def _for_markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(text.replace("|", r"\|").split())


def _for_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
