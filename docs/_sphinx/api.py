"""The pages of the API: every public name of a folder, by topic, from the source.

A folder's `__init__.py` says which names are public and which file each comes from. A
file holds one concept, which the first line of its docstring names: that is the topic.
"""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "eah_interp"
MARK = re.compile(r"<!-- api: (\w+) -->")
TOP = re.compile("<!-- api of the package -->")
LONGEST_VALUE = 80


def public_names(folder: str) -> dict[str, str]:
    """Find a folder's public names, and the module that each is written in.

    Args:
        folder: A folder with an `__init__.py`, or a module, of the package.

    Returns:
        Modules by name, in the order of the folder's table of contents.

    Example:
        >>> public_names("lvlm")["load"]
        'eah_interp.lvlm.loading'
    """
    module = PACKAGE / f"{folder}.py"
    if module.is_file():
        classes = [n for n in ast.parse(module.read_text()).body if is_class(n)]
        return {node.name: f"eah_interp.{folder}" for node in classes}
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    names = {
        alias.asname: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    # Methods of other papers stand in no list: each is a file, and is read off it.
    for path in sorted((PACKAGE / folder / "methods").glob("[!_]*.py")):
        home = f"eah_interp.{folder}.methods.{path.stem}"
        classes = [n for n in ast.parse(path.read_text()).body if is_class(n)]
        names |= {node.name: home for node in classes}
    return names


def is_class(node: ast.AST) -> bool:
    """Tell whether a statement defines a public class."""
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def describe_room(folder: str) -> str:
    """Write the directives that document a folder's public names, under their topics.

    Returns:
        Markdown.
    """
    topics: dict[str, list[str]] = {}
    for name, module in public_names(folder).items():
        topics.setdefault(module, []).append(name)
    parts = []
    for module, names in topics.items():
        parts.append(f"## {topic_of(module)}")
        directives = "\n".join(_directive(folder, module, name) for name in names)
        parts.append(f"```{{eval-rst}}\n{directives}```")
    return "\n\n".join(parts)


def topic_of(module: str) -> str:
    """Read what a module is about, off the first line of its docstring."""
    said = importlib.import_module(module).__doc__ or module
    first = said.strip().splitlines()[0].rstrip(".")
    return first.replace("`", "")


def _directive(folder: str, module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    home = module if ".methods." in module else f"eah_interp.{folder}"
    if isinstance(value, type):
        rest = "   :members:\n   :show-inheritance:\n"
        return f".. autoclass:: {home}.{name}\n{rest}"
    if callable(value) and hasattr(value, "__code__"):
        return f".. autofunction:: {home}.{name}\n"
    long = "   :no-value:\n" if len(repr(value)) > LONGEST_VALUE else ""
    return f".. autodata:: {module}.{name}\n{long}"


def describe_package() -> str:
    """Write a table of what `import eah_interp as eah` offers, and where it is from.

    Returns:
        Markdown.
    """
    package = importlib.import_module("eah_interp")
    rows = ["| name | folder |", "| --- | --- |"]
    for folder, names in package._FOLDERS.items():
        listed = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {listed} | [`eah_interp.{folder}`]({folder}.md) |")
    return "\n".join(rows)


def fill_page(_app: Any, _page: str, content: list[str]) -> None:
    """Put the API where a page asks for it."""
    text = MARK.sub(lambda found: describe_room(found[1]), content[0])
    content[0] = TOP.sub(lambda _: describe_package(), text)


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
