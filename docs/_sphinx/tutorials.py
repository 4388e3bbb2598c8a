"""The executed notebooks of `tutorials/` become pages, with a list of them."""

import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def copy_notebooks(source: Path, pages: Path) -> list[str]:
    """Copy notebooks to a folder of pages, in which nothing else remains.

    Args:
        source: Folder of `NN_name.ipynb`.
        pages: Folder to make.

    Returns:
        The notebooks' names without their ending, in order.
    """
    found = sorted(source.glob("*.ipynb"))
    if pages.is_dir():
        for old in pages.glob("*.ipynb"):
            if old.name not in {path.name for path in found}:
                old.unlink()
    pages.mkdir(exist_ok=True)
    for path in found:
        new = pages / path.name
        if not new.exists() or new.read_bytes() != path.read_bytes():
            shutil.copyfile(path, new)
    return [path.stem for path in found]


def is_executed(notebook: Path) -> bool:
    """Tell whether every cell with code in it has been run."""
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return all(cell["execution_count"] for cell in code if "".join(cell["source"]))


def on_start(app: Any) -> None:
    """Bring the notebooks in before Sphinx looks for pages."""
    from sphinx.util import logging

    pages = Path(app.srcdir) / "tutorials"
    for name in copy_notebooks(ROOT / "tutorials", pages):
        if not is_executed(pages / f"{name}.ipynb"):
            said = "tutorials/%s.ipynb has cells that were not run; run it and save it"
            logging.getLogger(__name__).warning(said, name)


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("config-inited", lambda app, _config: on_start(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
