"""Pages that follow from the package: one for every public name, and those of the examples.

They are written to ``generated`` before Sphinx looks for pages, so that a new name or a new example
has its page without anybody writing it. And the sections of README.md that pages show.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import ntkfast as nf

__all__ = ["setup"]

logger = logging.getLogger(__name__)

DOCS = Path(__file__).parents[1]
GENERATED = DOCS / "generated"
EXAMPLES = DOCS.parent / "examples"
GALLERY = GENERATED / "gallery"  # of sources; the pages are in generated/examples

# What users meet first comes first; names that are not here follow.
_ORDER = ["LookAheadLearner", "EmpiricalNTK", "Posterior", "utilities", "select", "criteria"]
# What these return belongs on their page.
_WITH = {"select": ["ntkfast.selection.Selection"], "criteria": ["ntkfast.criteria.Criterion"]}
_MODULES = ["ntkfast.ops", "ntkfast.cuda_ops"]


def _summary(thing: Any) -> str:
    """First paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _title(text: str) -> list[str]:
    return [text, "=" * len(text), ""]


def _auto(kind: str, name: str) -> list[str]:
    members = ["   :members:"] if kind == "class" else []
    return [f".. auto{kind}:: {name}", *members, ""]


def _kind(thing: Any) -> str:
    return "class" if inspect.isclass(thing) else "function"


def _page_of_name(name: str) -> list[str]:
    lines = [*_title(name), ".. currentmodule:: ntkfast", ""]
    lines += _auto(_kind(getattr(nf, name)), name)
    for path in _WITH.get(name, []):
        lines += _auto("class", path)
    return lines


def _page_of_module(module: ModuleType) -> list[str]:
    """Page of what is defined in a module, by its ``__all__`` or its public functions."""
    own = [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", "") == module.__name__
        and (inspect.isclass(thing) or inspect.isfunction(thing))
    ]
    names = [name for name in getattr(module, "__all__", own) if name in own]
    title = module.__name__.removeprefix("ntkfast.")
    lines = [*_title(title), f".. automodule:: {module.__name__}", ""]
    for name in names:
        lines += _auto(_kind(getattr(module, name)), name)
    return lines


def _integrations() -> Iterator[ModuleType]:
    """Return the modules of ``ntkfast.integrations`` whose host is installed."""
    try:
        package = importlib.import_module("ntkfast.integrations")
    except ModuleNotFoundError:
        return
    for module in pkgutil.iter_modules(package.__path__, "ntkfast.integrations."):
        if not module.name.rpartition(".")[2].startswith("_"):
            try:
                yield importlib.import_module(module.name)
            except ImportError as error:
                logger.info("no page for %s: %s", module.name, error)


def _rows(entries: list[tuple[str, str]]) -> Iterator[str]:
    for page, summary in entries:
        yield from (f":doc:`{page}`", f"   {summary}", "")


def _write_reference() -> None:
    folder = GENERATED / "api"
    folder.mkdir(parents=True)
    names = sorted(
        nf.__all__, key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name)
    )
    public, below = [], []
    for name in names:
        (folder / f"{name}.rst").write_text("\n".join(_page_of_name(name)), encoding="utf-8")
        public.append((name, _summary(getattr(nf, name))))
    hosts = []
    for module in [*map(importlib.import_module, _MODULES), *_integrations()]:
        text = "\n".join(_page_of_module(module))
        (folder / f"{module.__name__}.rst").write_text(text, encoding="utf-8")
        group = hosts if ".integrations." in module.__name__ else below
        group.append((module.__name__, _summary(module)))
    lines = [*_title("API reference"), "Everything that ``import ntkfast as nf`` gives:", ""]
    lines += _rows(public)
    if hosts:
        lines += ["Query strategies for other frameworks:", "", *_rows(hosts)]
    lines += ["The operations underneath, arrays in and arrays out, for authors of libraries:", ""]
    lines += _rows(below)
    pages = [page for page, _ in public + hosts + below]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {page}" for page in pages), ""]
    (folder / "index.rst").write_text("\n".join(lines), encoding="utf-8")


def _in_gallery(path: Path) -> str:
    """Return an example as sphinx-gallery wants it: a title, a text, and the code."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, _, text = (ast.get_docstring(tree) or path.stem).partition(":")
    text = " ".join(text.split())
    lines = ['"""', *_title(title), text[:1].upper() + text[1:]]
    used = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    for name in sorted(name for name in used if name and ".integrations." in name):
        if (GENERATED / "api" / f"{name}.rst").exists():
            lines[-1] += f" Reference: :doc:`{name} </generated/api/{name}>`."
    code = source.splitlines()[tree.body[0].end_lineno :]
    return "\n".join([*lines, '"""', *code, ""])


def _write_gallery() -> None:
    """Write the examples to where sphinx-gallery finds them: pictures first, then the hosts."""
    paths = sorted(EXAMPLES.glob("*.py"))
    text = (DOCS / "ext" / "examples.rst").read_text(encoding="utf-8")
    top, *below = re.split(r"^\.\. folder: (\w+)\n", text, flags=re.MULTILINE)
    GALLERY.mkdir(parents=True)
    (GALLERY / "GALLERY_HEADER.rst").write_text(top, encoding="utf-8")
    for name, header in zip(below[::2], below[1::2], strict=True):
        (GALLERY / name).mkdir()
        (GALLERY / name / "GALLERY_HEADER.rst").write_text(header, encoding="utf-8")
        for path in paths:
            if path.stem.startswith("plot_") == (name == "pictures"):
                (GALLERY / name / path.name).write_text(_in_gallery(path), encoding="utf-8")


def _link(match: re.Match[str]) -> str:
    """Return a link of README.md as a page has it: files that are no pages are named only."""
    text, target = match.groups()
    page = re.sub(r"^docs/|^(?=CONTRIBUTING|CHANGELOG)", "", target)
    if not (DOCS / page.lower()).exists():
        return text if text == f"`{target}`" or target not in text else f"`{target}`"
    return f"[{text}]({page.lower()})"


class ReadmeSection(SphinxDirective):
    """``{readme} Speed``: what README.md says below that heading, which stands there only."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the section."""
        path = DOCS.parent / "README.md"
        self.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        heading = re.escape(self.arguments[0])
        found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
        if found is None:
            raise self.error(
                f"README.md has no section {self.arguments[0]!r} (any more): name another one, or "
                "move what it said here"
            )
        section = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", _link, found[1])
        return self.parse_text_to_nodes(section, allow_section_headings=True)


def setup(app: Any) -> dict[str, Any]:
    """Write the pages, and register the directive."""
    app.add_directive("readme", ReadmeSection)
    shutil.rmtree(GENERATED, ignore_errors=True)
    _write_reference()
    _write_gallery()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
