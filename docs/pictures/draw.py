"""Draw the pictures of docs/pictures.md and other pages from their own code blocks.

    python docs/pictures/draw.py

A picture `images/PAGE-NAME.png` is the figure that the page's blocks call `NAME`.
"""

import re
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "pictures.md", ROOT / "docs" / "how-to" / "attention.md")


def find_pictures(page: Path) -> list[str]:
    """Find the names of the figures of its own that a page shows."""
    return re.findall(rf"images/{page.stem}-(\w+)\.png\)", page.read_text())


def draw(page: Path, folder: Path) -> list[str]:
    """Run a page's blocks, and write the figures that it shows."""
    sys.path.insert(0, str(ROOT))
    from tests.docs.pages import find_blocks

    scope: dict[str, object] = {"__name__": "__main__"}
    with chdir(mkdtemp()):
        for block in find_blocks(page, "python"):
            exec(block.text, scope)
    names = find_pictures(page)
    for name in names:
        figure = scope[name]
        figure.savefig(folder / f"{page.stem}-{name}.png", dpi=200, metadata={})  # type: ignore[attr-defined]
    return names


if __name__ == "__main__":
    for page in PAGES:
        draw(page, ROOT / "docs" / "images")
