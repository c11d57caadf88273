"""The table of criteria as pages show it, from `ntkfast.criteria()`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import ntkfast as nf
from ntkfast.criteria import Criterion, automatic

__all__ = ["latex", "setup"]

# What is a sign or an operator in a formula; single letters are variables, other words are text.
_SIGNS = {
    "sum": r"\sum",
    "max": r"\max",
    "min": r"\min",
    "argmax": r"\operatorname{argmax}",
    "softmax": r"\operatorname{softmax}",
    "exp": r"\exp",
    "log": r"\log",
    "det": r"\det",
    "lam": r"\lambda",
    "rho": r"\rho",
    "f+": r"f^{+}",
    "ŷ": r"\hat{y}",
    "!=": r"\neq",
}
_OPERATOR = r"\\(?:operatorname\{\w+\}|log|det|max)(?:_\{\w+\})?"
_NAME = r"[^\W\d_]{2,}(?:_[^\W\d_]{2,})*"
_TOKENS = re.compile(rf"f\+|!=|{_NAME}(?: (?:{_NAME}|a\b))*|[_^](?:-?\w+|\([^()]*\))|\s+|.")


def _parts(formula: str) -> Iterator[str]:
    for token in _TOKENS.findall(formula):
        words = token.split()
        if token in _SIGNS:
            yield _SIGNS[token]
        elif token[0] in "_^" and len(token) > 1:
            yield f"{token[0]}{{{token[1:].strip('()')}}}"
        elif words and len(words[0]) > 1 and words[0][0].isalpha():
            # Words between formulas, among them perhaps an operator: "the largest softmax".
            for word in words:
                yield _SIGNS.get(word) or r"\text{ " + word.replace("_", r"\_") + " }"
                yield " "
        else:
            yield " " if token.isspace() else token


def latex(formula: str) -> str:
    r"""Return the LaTeX of a formula as the table writes it.

    >>> latex("sum_x v S(x,c)^2 / (S(c,c) + lam_c)")
    '\\sum_{x} v S(x,c)^{2} / (S(c,c) + \\lambda_{c})'
    >>> latex("variance_reduction with v(x) = h(x)")
    '\\text{variance\\_reduction with } v(x) = h(x)'
    >>> latex("B^(1-w) exp(-x)")
    'B^{1-w} \\exp(-x)'
    """
    text = re.sub(r" \}\s*\\text\{ ", " ", "".join(_parts(formula)))  # words in a row are one text
    text = re.sub(r"(^|[(\[])\\text\{ ", r"\1\\text{", text)
    text = text.replace("(y|c)", r"(y \mid c)")
    text = re.sub(r"\|([^|]+)\|", r"{\\lVert \1 \\rVert}", text)
    text = re.sub(rf"({_OPERATOR}) (?=[^(])", r"\1 \\, ", text)
    text = re.sub(r" \} *(?=[)\]])", "}", text)
    return re.sub(r" +", " ", text).strip()


def _lines(formula: str) -> list[str]:
    """Return the formula, and what it then defines, a line each."""
    return re.split(r";\s+|,\s+(?=\S+ = )", formula)


def _sentence(use: str) -> str:
    first = use.split()[0]
    if any(first == row.name for row in nf.criteria()):
        return f"`{first}`{use[len(first) :]}."
    return f"{use[0].upper()}{use[1:]}."


def _section(row: Criterion) -> Iterator[str]:
    yield f"({row.name})="
    yield f"### `{row.name}`"
    yield ""
    yield _sentence(row.use)
    for line in _lines(row.formula):
        yield f"\n$$\n{latex(line)}\n$$"
    facts = [
        "Looks at the outputs after each label: two classes at least."
        if row.look_ahead
        else "Looks at the covariance alone, so a batch needs no guesses of labels.",
    ]
    if row.needs:
        facts.append("Reads " + ", ".join(f"`{name}`" for name in row.needs) + ".")
    if row.moments and not row.coverage:
        facts.append("Needs no pairs of points where there are features: the cheapest kind.")
    yield "\n" + " ".join(facts) + "\n"


def _overview() -> Iterator[str]:
    """Return a list of definitions, the defaults first; a table would be too wide for phones."""
    defaults = {
        automatic(classes=classes, covers=True): "classes" if classes else "regression"
        for classes in (True, False)
    }
    for row in sorted(nf.criteria(), key=lambda row: row.name not in defaults):
        default = f"**Default for {defaults[row.name]}.** " if row.name in defaults else ""
        yield f"[`{row.name}`](#{row.name})"
        yield f": {default}{_sentence(row.use)}\n"


def _signs() -> Iterator[str]:
    """Return a table of what the printed one says below its formulas."""
    legend = " ".join(repr(nf.criteria()).rpartition("\n\n")[2].split()).removesuffix(".")
    yield "| sign | meaning |"
    yield "|---|---|"
    for entry in re.split(r"[,;] (?=\S{1,9}: )", legend):
        sign, _, meaning = entry.partition(": ")
        meaning = re.sub(r"([*_|])", r"\\\1", meaning)
        yield f"| ${latex(sign)}$ | {meaning} |"


class Criteria(SphinxDirective):
    """A list of all of them, the signs that it uses, or a section for each with its formulas."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the generated Markdown."""
        short = {"overview": _overview, "signs": _signs}
        if self.arguments[0] in short:
            return self.parse_text_to_nodes("\n".join(short[self.arguments[0]]()))
        text = "\n".join(line for row in nf.criteria() for line in _section(row))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("criteria", Criteria)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
