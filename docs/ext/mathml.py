"""Formulas as MathML, which browsers draw themselves: no script, and no request to anywhere.

Browsers need a font that knows how to stretch brackets and where to put exponents. Not every system
has one, so the pages bring STIX Two Math along (from the package ziamath), as much as formulas use.
"""

from __future__ import annotations

from html import escape
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from fontTools import subset
from sphinx.util import logging

__all__ = ["setup"]

logger = logging.getLogger(__name__)

# Latin, Greek, punctuation, arrows and operators, brackets, the alphabets of mathematics.
_USED = (
    "U+20-7E,U+A0-FF,U+2C6-2DD,U+300-338,U+391-3F6,U+2010-205F,U+20D0-20E1,U+2102-2124,U+2190-21FF"
)
_USED += (
    ",U+2200-22FF,U+2308-230B,U+27E8-27EF,U+1D400-1D4CF,U+1D538-1D56B,U+1D6A4-1D71B,U+1D7D8-1D7E1"
)


def _mathml(node: nodes.math | nodes.math_block, *, block: bool) -> str:
    """Return the MathML of a formula, or its source with a warning, which fails the build."""
    try:
        return latex2mathml.tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s: %s", node.astext(), error, location=node)
        return escape(node.astext())


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_mathml(node, block=False)}</span>')
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _write_font(app: Any) -> None:
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    with as_file(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as font:
        subset.main([str(font), f"--unicodes={_USED}", f"--output-file={folder / 'formulas.ttf'}"])


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer; `html_math_renderer = "mathml"` chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("builder-inited", _write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
