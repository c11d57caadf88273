"""The code of README.md runs as it is printed there."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
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
