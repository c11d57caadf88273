"""The command line as pages show it, from the help of the typer app."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from ntkfast._cli.commands import app as ntkfast_app

__all__ = ["setup"]

# What rich reads as style; the rest in brackets is text.
_STYLE = re.compile(r"\[/?(?:bold|italic|dim|cyan|green|yellow|magenta|blue|red)\]")


def _escaped(text: str) -> str:
    """Return Markdown that shows a text as it is, but for bold."""
    text = re.sub(r"([\\<>*_`#|\[\]])", r"\\\1", re.sub(r"\[(/?)bold\]", "\x00", text))
    return _STYLE.sub("", text.replace("\x00", "**"))


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs of a help text; indented ones are for monospace."""
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        if block.startswith("  "):
            plain = re.sub("^  ", "", _STYLE.sub("", block), flags=re.MULTILINE)
            yield f"```text\n{plain}\n```\n"
        else:
            yield f"{_escaped(block)}\n"


def _option(parameter: Any, context: Any) -> Iterator[str]:
    record = parameter.get_help_record(context)
    if record is not None:
        yield f"`{record[0]}`"
        yield f": {_escaped(record[1])}\n"


def _command(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    if " " in name:
        yield f"## `{name}`\n"
    yield from _blocks(command.help or "")
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```\n"
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        if "--help" in parameter.opts:
            continue
        panel = getattr(parameter, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).extend(_option(parameter, context))
    for panel, lines in panels.items():
        yield f"**{panel}**\n"
        yield from lines
    for child, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _command(below, f"{name} {child}")


class Commands(SphinxDirective):
    """All commands with their options, a section each."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the generated Markdown."""
        text = "\n".join(_command(typer.main.get_command(ntkfast_app), "ntkfast"))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
