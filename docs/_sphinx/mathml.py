"""Equations as MathML, made when the site is built: no script, no font, no network.

Every current browser draws MathML by itself. The translation is docutils' own.
"""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

# What docutils' translator does not know, in words that it knows.
SPELLINGS = {r"\dots": r"\ldots"}


def to_mathml(tex: str, *, as_block: bool) -> str:
    """Translate one equation.

    Args:
        tex: The equation in LaTeX, without dollars.
        as_block: Whether it stands on lines of its own.

    Returns:
        A `<math>` element.

    Raises:
        docutils.utils.math.MathError: If a command is not known.
    """
    for unknown, known in SPELLINGS.items():
        tex = tex.replace(unknown, known)
    return str(tex2mathml(tex, as_block=as_block))


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write an equation within a line."""
    writer.body.append(to_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write an equation on lines of its own, which scroll where they are too wide."""
    equation = to_mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="math-block" tabindex="0">{equation}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Make it the way that this site writes equations."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
