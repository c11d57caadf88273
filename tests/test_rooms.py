"""Which module may look into which room: the private wing `_x` belongs to the public module `x`."""

import ast
import re
from pathlib import Path

import conftest
import pytest

import ntkfast

PACKAGE = Path(ntkfast.__file__).parent
# Whose wing a public module may open. `selection` is the other face of what is behind `posterior`.
WINGS = {"posterior": "_posterior", "selection": "_posterior", "ntk": "_ntk", "cli": "_cli"}


def imported(path):
    """Modules of ntkfast that a file imports, by their path from the package."""
    inside = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("ntkfast", *inside)[: len(inside) + 2 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in names if name.startswith("ntkfast."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_rooms(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = {room, WINGS.get(room), "_core"}
    wings = {name[0] for name in imported(path) if re.match("_[a-z]", name[0])}
    assert wings <= allowed


def test_wings_have_a_public_module():
    wings = {folder.parent.name for folder in PACKAGE.glob("_*/__init__.py")}
    assert wings == set(WINGS.values())


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_nobody_asks_for_blocks(path):
    """What differs with k x k blocks is behind the methods of the spaces."""
    assert not re.search(r"isinstance\([^)]*BlockSpace", path.read_text())


def test_gpu_tests_are_where_they_are_looked_for(request):
    of_a_gpu = {item.path.name for item in request.session.items if item.get_closest_marker("gpu")}
    assert of_a_gpu <= conftest.WITH_GPU
