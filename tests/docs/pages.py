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


NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")


def differ(shown, printed):
    """Say where what a page shows is not what was printed; nothing where it is.

    Spaces do not count, and a number may differ by two of its last shown digit: other
    kernels round otherwise.
    """
    parts = [NUMBER.split(text) for text in (shown, printed)]
    words = [" ".join("# ".join(part[::2]).split()) for part in parts]
    if words[0] != words[1]:
        return f"shown: {words[0]}\nprinted: {words[1]}"
    pairs = zip(NUMBER.finditer(shown), NUMBER.finditer(printed), strict=True)
    for one, other in pairs:
        last = 10 ** -len(one[1]) if one[1] else 0
        if abs(float(one[0]) - float(other[0])) > 2.001 * last:
            return f"shown: {one[0]}, printed: {other[0]}"
    return ""


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, and what follows it.

    A text block straight after is what the block prints, or, where it says
    `SomeError: its message`, the error that it ends in.
    """

    language: str
    text: str
    line: int
    error: str | None
    prints: str | None = None


def find_blocks(page, language=None):
    """Return a page's fenced blocks in order, those of one language if it is named."""
    text = page.read_text()
    found = list(FENCE.finditer(text))
    blocks = []
    for match, after in zip_longest(found, found[1:]):
        error = prints = None
        if (
            after
            and (match[1], after[1]) == ("python", "text")
            and not text[match.end() : after.start()].strip()
        ):
            prints = after[2]
            error = " ".join(after[2].split())
            if re.match(r"\w+Error: ", error):
                prints = None
            else:
                error = None
        line = text[: match.start(2)].count("\n") + 1
        blocks.append(Block(match[1], match[2], line, error, prints))
    return [block for block in blocks if language in (None, block.language)]
