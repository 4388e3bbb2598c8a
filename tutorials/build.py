"""Make every notebook from its script, and execute it.

`python tutorials/build.py` makes all of them, `python tutorials/build.py 01 03` those
whose names begin so. A notebook is written when it has run to its end, whole or not at
all. It keeps no times and no machine's names, and its cells are numbered: built again
without a change, it differs in nothing but what its outputs say.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LONGEST = 120
"""Seconds that a notebook may take."""

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""What notebooks run with: no network, no bars, sums in one order."""


def read_script(script: Path) -> Any:
    """Read a percent script as a notebook without outputs, its cells numbered."""
    import jupytext

    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: Any) -> list[str]:
    """Run a notebook in a folder of its own; return what it wrote to stderr."""
    from nbclient import NotebookClient

    warned = []
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                warned.append(output.text)
            else:
                kept.append(output)
        cell.outputs = kept
    notebook.metadata["language_info"] = {"name": "python"}
    return warned


def build(script: Path) -> None:
    """Make a script's notebook."""
    import nbformat

    from eah_interp.files import save_bytes

    notebook = read_script(script)
    start = time.perf_counter()
    warned = execute(notebook)
    nbformat.validate(notebook)
    content = (nbformat.writes(notebook) + "\n").encode()
    save_bytes(content, script.with_suffix(".ipynb"))
    took = time.perf_counter() - start
    print(f"{script.stem}: {took:.0f} s, {len(content) / 1e6:.2f} MB")
    for text in warned:
        print(f"  stderr, not kept: {text.strip()[:300]}", file=sys.stderr)


def main() -> None:
    """Build the notebooks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="how their names begin; all if none")
    names = parser.parse_args().names
    os.environ.update(QUIET)
    root = str(HERE.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path.insert(0, root)
    scripts = sorted(HERE.glob("[0-9][0-9]_*.py"))
    wanted = [s for s in scripts if not names or s.name.startswith(tuple(names))]
    if not wanted:
        known = ", ".join(script.stem for script in scripts)
        raise SystemExit(f"no tutorial begins with {' or '.join(names)}; got {known}")
    for script in wanted:
        build(script)


if __name__ == "__main__":
    main()
