"""The code of README.md runs as it is printed there; CONTRIBUTING.md names what exists."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def what_readers_have():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    draw = {"X_labeled": 12, "X_pool": 80, "X_test": 5}
    names = {name: torch.randn(n, 6, generator=generator) for name, n in draw.items()}
    with torch.no_grad():  # as sure of its labels as a trained one
        network[-1].weight.mul_(20)
        labels = network(names["X_labeled"]).argmax(1)
    y_new = np.random.default_rng(0).integers(3, size=20)
    return {"model": network, "y_labeled": labels, "y_new": y_new, **names}


def test_readme_has_both_ways_in():
    assert len(BLOCKS) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("block", BLOCKS, ids=["model", "arrays"][: len(BLOCKS)])
def test_readme_block(block):
    namespace = what_readers_have() if "model" in block.split("import")[1] else {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert len(set(np.asarray(namespace["picked"].indices).tolist())) == 20
    if "probabilities" in namespace:
        total = namespace["probabilities"].sum(1)
        np.testing.assert_allclose(np.asarray(total), 1, atol=1e-5)


in_a_clone = pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="archives leave .ci out")


@in_a_clone
def test_paths_of_contributing():
    top = r"[\w-]+\.(?:md|txt|toml)|(?<!`)`(?:tests|bench|tools)(?=`)"
    inside = r"(?<![\w./$-])(?:csrc|ntkfast|tests|bench|tools|docs|\.ci)/[\w./-]*\w"
    paths = {p.strip("`") for p in re.findall(f"{inside}|{top}", CONTRIBUTING)}
    assert len(paths) >= 60
    assert [p for p in sorted(paths) if not (ROOT / p).exists()] == []


@in_a_clone
def test_commands_of_contributing():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    targets = set(re.findall(r"(?:^    |`|&& )make\s+([a-z-]+)", CONTRIBUTING, flags=re.MULTILINE))
    assert len(targets) >= 8
    assert targets <= phony
    steps = re.findall(r"^ *step ([a-z-]+)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    table = re.findall(r"^\| `make ([a-z-]+)`", CONTRIBUTING, flags=re.MULTILINE)
    assert sorted(steps) == sorted(table)


def test_links_of_contributing():
    headings = re.findall(r"^## (.*)$", CONTRIBUTING, flags=re.MULTILINE)
    links = re.findall(r"\]\(#([\w-]*)\)", CONTRIBUTING)
    assert links == [heading.lower().replace(" ", "-") for heading in headings]
