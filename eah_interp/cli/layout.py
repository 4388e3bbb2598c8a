"""Tables of words and numbers on a terminal, however wide it is.

Nothing here needs a model, so that commands that only read files start at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from eah_interp.tables import Table as Cells
from eah_interp.tables import align

if TYPE_CHECKING:
    from eah_interp.benchmarks.compare import OutputComparison


def make_columns(*names: str, right: Sequence[int] = (), header: bool = True) -> Table:
    """Make a table without lines; numbers stand at the right."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=header
    )
    for number, name in enumerate(names):
        table.add_column(
            Text(name), justify="right" if number in right else "left", overflow="fold"
        )
    return table


LONGEST = 26
"""Letters of a cell before it is folded, where a table has no room."""


def lay_out(
    table: Cells,
    *,
    columns: Mapping[str, str] | None = None,
    width: int | None = None,
) -> Iterator[RenderableType]:
    """Lay out a table of a page: its caption, its cells and its notes.

    A page scrolls, but a terminal has a width: of numbers, columns that do not fit
    follow below, under the same names of rows, and no header is cut.

    Args:
        table: The table.
        columns: Which columns to show, and what to call them; all when None.
        width: Columns of the screen; the terminal's when None.
    """
    shown = columns or {name: name for name in table.header}
    # Names may stand twice in a header: places count, not names.
    places = [n for n, name in enumerate(table.header) if name in shown]
    right = [
        number
        for number, place in enumerate(places)
        if not table.prose
        and all(align(row[place]) or not row[place] for row in table.rows)
    ]
    yield Text(f"\n{table.caption}", style="bold underline")
    blocks = _fit(table, places, shown, width=width or Console().width)
    for number, chosen in enumerate(blocks):
        if number:
            yield Text("")
        grid = make_columns(
            *(shown[table.header[places[n]]] for n in chosen),
            right=[at for at, n in enumerate(chosen) if n in right],
        )
        for row in table.lines:
            grid.add_row(*(Text(row[places[n]]) for n in chosen))
        yield grid
    if table.notes:
        yield Text(table.notes, style="dim")


def _fit(
    table: Cells, places: Sequence[int], shown: Mapping[str, str], *, width: int
) -> Iterator[list[int]]:
    """Share columns out into blocks that fit, each with the names of the rows."""
    sizes = [
        max(
            len(shown[table.header[place]]),
            *(min(len(row[place]), LONGEST) for row in table.lines),
            0,
        )
        for place in places
    ]
    if table.prose or len(sizes) < 2:
        yield list(range(len(places)))
        return
    block, used = [0], sizes[0]
    for n, size in enumerate(sizes[1:], start=1):
        if len(block) > 1 and used + 2 + size > width:
            yield block
            block, used = [0], sizes[0]
        block.append(n)
        used += 2 + size
    yield block


def show_comparison(found: "OutputComparison") -> Iterator[RenderableType]:
    """Lay out files of outputs against the first of them, change by change."""
    yield Text(found.describe())
    for note in found.outputs.notes:
        yield Text(note, style="bold")
    for table in found.tables:
        yield from lay_out(table)
