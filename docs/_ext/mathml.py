"""Render formulas as MathML when the site is built: no script and no font is fetched."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def to_mathml(tex: str, *, is_block: bool) -> str:
    """Return the MathML of a formula in TeX."""
    markup = str(latex2mathml.tex2mathml(tex))
    # The name of the keyword for block formulas differs between docutils versions; the attribute does not.
    return markup.replace("<math", '<math display="block"', 1) if is_block else markup


def visit_math(self: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    self.body.append(to_mathml(node.astext(), is_block=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(f'<div class="math">{to_mathml(node.astext(), is_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
