"""Draw the pictures of docs/pictures.md from its own code blocks.

    python docs/pictures/draw.py

A picture `images/pictures-NAME.png` is the figure that the blocks call `NAME`.
"""

import re
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pictures.md"
PICTURE = re.compile(r"\(images/pictures-(\w+)\.png\)")


def draw(page: Path, folder: Path) -> list[str]:
    """Run a page's blocks, and write the figures that it shows."""
    sys.path.insert(0, str(ROOT))
    from tests.docs.pages import find_blocks

    text = page.read_text()
    scope: dict[str, object] = {"__name__": "__main__"}
    with chdir(mkdtemp()):
        for block in find_blocks(page, "python"):
            exec(block.text, scope)
    names = PICTURE.findall(text)
    for name in names:
        figure = scope[name]
        figure.savefig(folder / f"pictures-{name}.png", dpi=200, metadata={})  # type: ignore[attr-defined]
    return names


if __name__ == "__main__":
    draw(PAGE, ROOT / "docs" / "images")
