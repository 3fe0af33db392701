"""Mathematics as MathML, made while the pages are built: browsers draw it with nothing to load."""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)

# What the converter does not know, in words that it does.
WORDS = {r"\arg\max": r"\operatorname*{argmax}", "{aligned}": "{align*}"}


def mathml(latex: str, *, display: str, where: nodes.Node | None = None) -> str:
    """Returns a formula as MathML; what cannot be converted is a warning, which ends the build.

    Args:
        latex: The formula, without dollars.
        display: "inline" or "block".
        where: The node to name in the warning.

    Returns:
        A `<math>` element, or the formula as code.
    """
    known = latex.strip()
    if ("&" in known or r"\\" in known) and r"\begin" not in known:  # rows without environment
        known = rf"\begin{{align*}}{known}\end{{align*}}"
    for word, other in WORDS.items():
        known = known.replace(word, other)
    try:
        made = convert(known, display=display)
    except Exception as error:  # its errors have no base class of their own
        made, trouble = "", f"{type(error).__name__} {error}"
    else:
        # An unknown command comes through as its own name, an unknown environment as ampersands.
        trouble = "an unknown command" if "\\" in made or "<mi>&</mi>" in made else ""
    if trouble:
        logger.warning("formula %r: %s", latex, trouble, location=where)
        return f"<code>{html.escape(latex)}</code>"
    return made


def visit_math(self: Any, node: nodes.math) -> None:  # noqa: ANN401 (a translator of Sphinx)
    """Writes a formula within a line."""
    self.body.append(mathml(node.astext(), display="inline", where=node))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:  # noqa: ANN401
    """Writes a formula that stands alone; one too wide for the screen scrolls by itself."""
    made = mathml(node.astext(), display="block", where=node)
    self.body.append(self.starttag(node, "div", CLASS="math-block", tabindex="0"))
    self.body.append(f"{made}</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:  # noqa: ANN401
    """Makes this the renderer that `html_math_renderer = "mathml"` names."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
