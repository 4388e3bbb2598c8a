"""The pages that users read, and the fenced blocks in them."""

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def find_pages():
    """Return README.md and every page of docs/, the copied notebooks aside."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if page.parent.name != "tutorials"]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, and the error that follows it.

    An error is promised by a text block straight after, `SomeError: its message`.
    """

    language: str
    text: str
    line: int
    error: str | None


def find_blocks(page, language=None):
    """Return a page's fenced blocks in order, those of one language if it is named."""
    text = page.read_text()
    found = list(FENCE.finditer(text))
    blocks = []
    for match, after in zip_longest(found, found[1:]):
        error = None
        if (
            after
            and after[1] == "text"
            and not text[match.end() : after.start()].strip()
        ):
            error = " ".join(after[2].split())
            error = error if re.match(r"\w+Error: ", error) else None
        line = text[: match.start(2)].count("\n") + 1
        blocks.append(Block(match[1], match[2], line, error))
    return [block for block in blocks if language in (None, block.language)]
