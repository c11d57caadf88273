"""What holds for every host: nothing is imported unasked, and a missing host says how to get it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

HOSTS = {
    "skactiveml": "skactiveml",
    "modal": "modAL",
    "small_text": "small_text",
    "baal": "baal",
    "libact": "libact",
    "skorch": "skorch",
}


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_imports_no_host():
    heavy = [*HOSTS.values(), "sklearn", "torch", "scipy", "pandas"]
    code = (
        "import sys, ntkfast, ntkfast.integrations as i; "
        f"print(sorted(i.__all__), {heavy} & sys.modules.keys())"
    )
    assert run(code.replace(str(heavy), f"set({heavy})")) == f"{sorted(HOSTS)} set()"


@pytest.mark.parametrize("name", HOSTS)
def test_a_missing_host(name, monkeypatch):
    """Both ways of asking for a module end in one sentence that names the package and the extra."""
    if name in ("baal", "skorch"):
        pytest.importorskip("torch")
    for module in [m for m in sys.modules if m.partition(".")[0] == HOSTS[name]]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, HOSTS[name], None)
    monkeypatch.delitem(sys.modules, f"ntkfast.integrations.{name}", raising=False)
    import ntkfast.integrations

    monkeypatch.delitem(vars(ntkfast.integrations), name, raising=False)
    extra = name.replace("_", "-")
    message = rf"needs {HOSTS[name]}: pip install 'ntkfast\[{extra}\]'"
    if name == "libact":
        message = "needs libact: pip install git.*ntucllab/libact"
    with pytest.raises(ImportError, match=message):
        getattr(ntkfast.integrations, name)


def test_unknown_host():
    import ntkfast.integrations

    with pytest.raises(AttributeError, match="'alipy'"):
        _ = ntkfast.integrations.alipy
    assert set(HOSTS) < set(dir(ntkfast.integrations))


# Those that draw are longer, and `make docs` runs them.
SHORT = [path for path in sorted(EXAMPLES.glob("*.py")) if not path.stem.startswith("plot_")]


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25
