"""A comparison of outputs on one page of HTML, which needs no other file."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from eah_interp.arguments import check_path
from eah_interp.benchmarks.chair import MENTIONS, STARTS, TEXT, TRUTH
from eah_interp.benchmarks.frontier import plot_frontier
from eah_interp.benchmarks.mentions import ENDS
from eah_interp.errors import SettingsError
from eah_interp.files import name_file, save_bytes
from eah_interp.tables import Table
from eah_interp.viz.page import Drawing, embed_figure, render_page

if TYPE_CHECKING:
    from eah_interp.benchmarks.compare import OutputComparison

TEMPLATE = "compare.html.jinja"

MOST_EXAMPLES = 10
"""How many changed outputs of each file a page shows."""


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: What it says.
        kind: `"present"` or `"absent"`, of an object; empty otherwise.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class ChangedOutput:
    """One image or question, told or answered differently.

    Attributes:
        item: The image or question.
        truth: What is in the image, or the right answer.
        before: What the base says, in pieces.
        after: What the other file says.
        change: How it changed, in words.
    """

    item: str
    truth: str
    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    change: str


def mark_caption(row: pd.Series) -> tuple[Piece, ...]:
    """Cut a caption at the objects it names, and tell which are in the image.

    Args:
        row: A caption, as `find_mentions` returns it.

    Returns:
        Its parts, in order; together they are the caption.
    """
    text, place = row[TEXT], 0
    pieces: list[Piece] = []
    truth = set(row[TRUTH])
    for name, start, end in zip(row[MENTIONS], row[STARTS], row[ENDS], strict=True):
        if not place <= start < end:  # found nowhere, or inside the one before
            continue
        pieces.append(Piece(text[place:start]))
        kind = "present" if name in truth else "absent"
        pieces.append(Piece(text[start:end], kind))
        place = end
    pieces.append(Piece(text[place:]))
    return tuple(piece for piece in pieces if piece.text)


def find_changed(
    found: "OutputComparison", file: int, *, most: int = MOST_EXAMPLES
) -> tuple[ChangedOutput, ...]:
    """List the outputs that changed most.

    Captions by how many more or fewer different absent objects they name, then by
    objects, then by words; answers that turned, in the order of the questions.

    Args:
        found: The comparison.
        file: Which of its files, from 1.
        most: How many.
    """
    before, after = found.outputs.tables[0], found.outputs.tables[file]
    pairs = zip(before.iterrows(), after.iterrows(), strict=True)
    if found.outputs.task == "yes_no":
        turned = (
            ChangedOutput(
                item=str(old["question"]),
                truth="yes" if old["present"] else "no",
                before=(Piece(str(old["answer"])),),
                after=(Piece(str(new["answer"])),),
                change="mended" if new["right"] else "broken",
            )
            for (_, old), (_, new) in pairs
            if old["yes"] != new["yes"]
        )
        return tuple(one for one, _ in zip(turned, range(most), strict=False))
    ranked = []
    for number, ((_, old), (_, new)) in enumerate(pairs):
        lost, gained = (len(set(row[MENTIONS]) - set(row[TRUTH])) for row in (old, new))
        named = len(set(new[MENTIONS])) - len(set(old[MENTIONS]))
        words = len(new[TEXT].split()) - len(old[TEXT].split())
        size = (-abs(gained - lost), -abs(named), -abs(words), number)
        if old[TEXT] != new[TEXT]:
            ranked.append((size, old, new, gained - lost))
    return tuple(
        ChangedOutput(
            item=str(old["item"]),
            truth=", ".join(old[TRUTH]) or "nothing",
            before=mark_caption(old),
            after=mark_caption(new),
            change=f"{change:+d} absent",
        )
        for _, old, new, change in sorted(ranked, key=lambda one: one[0])[:most]
    )


def write_page(found: "OutputComparison", path: str | Path) -> Path:
    """Write the page, as `OutputComparison.report` says."""
    target = check_path("path", path, error=SettingsError)
    template = files("eah_interp.benchmarks").joinpath(TEMPLATE).read_text("utf-8")
    page = render_page(
        template,
        found=found,
        names=[file.name for file in found.files],
        facts=_tabulate_facts(found),
        changes=found.tables[1:],
        drawings=list(_draw(found)),
        changed=[
            (file.name, find_changed(found, number))
            for number, file in enumerate(found.files[1:], start=1)
        ],
        is_captions=found.outputs.task == "caption",
    )
    save_bytes(page.encode(), target)
    return target


def _tabulate_facts(found: "OutputComparison") -> Table:
    return Table(
        caption="Files",
        header=("file", "name", "outputs", "left out", "SHA-256"),
        rows=tuple(
            (
                # The page may be mailed: where files lie is nobody else's to know.
                name_file(file.path),
                file.name,
                str(file.n),
                str(file.n_left_out),
                file.sha256,
            )
            for file in found.files
        ),
        notes="The first is the base.",
    )


def _draw(found: "OutputComparison") -> Iterator[Drawing]:
    level = f"{100 * found.draws.level:g} % intervals"
    marks = "filled marks: the interval lies on one side of zero"
    for file in found.files[1:]:
        text = (
            f"Changes of {file.name} against {found.files[0].name}, {level}; {marks}."
        )
        yield Drawing(source=embed_figure(found.plot(file.name)), text=text)
    if found.outputs.task == "caption":
        for axes in ("recall", "length"):
            figure = plot_frontier(found.outputs, axes=axes)
            what = {
                "recall": "Recall against CHAIR_I",
                "length": "F1 of objects against words",
            }[axes]
            text = f"{what}, of every file, {level} both ways; better is up."
            yield Drawing(source=embed_figure(figure), text=text)
