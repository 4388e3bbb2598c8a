"""What autodoc is told about this package's docstrings."""

import re
from typing import Any

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples):$")


def show_formulas(lines: list[str]) -> list[str]:
    """Mark indented lines before the first section as preformatted.

    Example:
        >>> show_formulas(["Add.", "", "    a + b", "", "Args:", "    a: One."])
        ['Add.', '', '::', '', '    a + b', '', 'Args:', '    a: One.']
    """
    shown: list[str] = []
    inside = False
    for place, line in enumerate(lines):
        if SECTION.match(line):
            return [*shown, *lines[place:]]
        if line.startswith("    ") and not inside and (not shown or not shown[-1]):
            inside = True
            shown += ["::", ""]
        elif line and not line.startswith(" "):
            inside = False
        shown.append(line)
    return shown


def on_docstring(*event: Any) -> None:
    """Prepare a docstring; of a constant without one, do not show its type's."""
    _app, kind, _name, value, _options, lines = event
    said = "\n".join(lines).strip()
    borrowed = (type(value).__doc__ or "").strip()
    if kind == "data" and said and said[:40] == borrowed[:40]:
        lines.clear()
    lines[:] = show_formulas(lines)


def setup(app: Any) -> dict[str, bool]:
    """Connect it, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", on_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
