"""nf.show_config: what an installation says of itself."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ntkfast as nf
from ntkfast import _core, config


def in_a_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_it_returns_what_is_there():
    found = nf.show_config(mode="dicts")
    assert found["ntkfast"] == {
        "version": importlib.metadata.version("ntkfast"),
        "folder": str(Path(nf.__file__).parent),
    }
    assert found["Python"]["version"] == platform.python_version()
    core = found["Compiled core"]
    assert core["file"] == _core.__file__
    assert core["compiler"].split()[0] in ("GCC", "Clang")
    assert core["instruction set"] == nf.ops.cpu_isa()
    assert core["instruction set"] in core["supported"] and core["supported"][-1] == "baseline"
    assert core["threads"] == nf.ops.num_threads()
    assert found["Packages"]["numpy"] == np.__version__
    json.dumps(found)  # plain values


def test_it_prints_the_same(capsys):
    assert nf.show_config() is None
    printed = capsys.readouterr().out
    for section, entries in nf.show_config("dicts").items():
        assert f"{section}:\n" in printed
        for name, value in entries.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            assert f"  {name}: {'not installed' if value is None else shown}\n" in printed


def test_supported_instruction_sets_are_those_that_can_be_forced():
    for isa in ("avx512", "avx2", "baseline"):
        done = in_a_new_process(
            "import ntkfast as nf; print(nf.show_config('dicts')['Compiled core'])",
            NTKFAST_CPU_ISA=isa,
        )
        assert done.returncode == 0, done.stderr
        supported = isa in _core.supported_isas()
        assert (f"'instruction set': '{isa}'" in done.stdout) == supported, done.stdout


def test_it_imports_no_package_and_needs_none():
    """With numpy alone it reports; nothing is imported to find out a version."""
    done = in_a_new_process(
        "import sys\n"
        "from importlib import metadata\n"
        "version = metadata.version\n"
        "def only_numpy(name):\n"
        "    if name not in ('numpy', 'ntkfast'): raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = only_numpy\n"
        "import ntkfast as nf\n"
        "nf.show_config()\n"
        "assert not {'torch', 'cupy', 'typer', 'matplotlib', 'tqdm'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "  torch: not installed\n" in done.stdout
    assert f"  numpy: {np.__version__}\n" in done.stdout


def test_import_is_light():
    """What import does not need it leaves alone: each of these takes longer than ntkfast itself."""
    heavy = {"importlib.metadata", "email", "multiprocessing", "unittest", "asyncio", "torch"}
    done = in_a_new_process(
        "import sys, numpy\nbefore = set(sys.modules)\nimport ntkfast\n"
        f"print(sorted({heavy} & (set(sys.modules) - before)))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_cupy_goes_by_many_names(monkeypatch):
    def version(name):
        if name != "cupy-cuda12x":
            raise importlib.metadata.PackageNotFoundError(name)
        return "13.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert nf.show_config("dicts")["Packages"]["cupy"] == "13.1"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [("NTKFAST_NUM_THREADS", "abc", "threads"), ("NTKFAST_CPU_ISA", "foo", "instruction set")],
)
def test_nonsense_in_the_environment_is_reported(name, value, key):
    done = in_a_new_process("import ntkfast as nf; nf.show_config()", **{name: value})
    assert done.returncode == 0, done.stderr
    assert f"  {key}: {name}={value}: expected" in done.stdout
    assert f"Environment:\n  {name}: {value}\n" in done.stdout


@pytest.mark.parametrize(
    ("compiled", "emulated", "problem", "expected"),
    [
        (False, False, "", "no"),
        (True, False, "", "yes"),
        (True, False, "no driver", "yes, but not usable: no driver"),
        (True, True, "", "emulated on the CPU, for tests"),
    ],
)
def test_cuda(monkeypatch, compiled, emulated, problem, expected):
    monkeypatch.setattr(_core, "cuda_compiled", lambda: compiled)
    monkeypatch.setattr(_core, "cuda_emulated", lambda: emulated)
    monkeypatch.setattr(_core, "cuda_available", lambda: compiled and not problem)
    monkeypatch.setattr(_core, "cuda_problem", lambda: problem)
    assert nf.show_config("dicts")["CUDA"]["in this build"] == expected


def test_modes():
    with pytest.raises(ValueError, match='mode must be "stdout" or "dicts"; got \'json\''):
        nf.show_config("json")


def test_the_command_line_shows_the_same():
    pytest.importorskip("typer")
    done = in_a_new_process(
        "import sys, ntkfast.cli; sys.argv = ['ntkfast', 'info']; ntkfast.cli.main()",
        COLUMNS="300",
        PYTHONIOENCODING="utf-8",
    )
    assert done.returncode == 0, done.stderr
    for section, entries in nf.show_config("dicts").items():
        for name, value in entries.items():
            label = name if section in ("Packages", "Environment") else f"{section} {name}"
            shown = config.USES[name] if value is None else value
            shown = ", ".join(shown) if isinstance(shown, list) else str(shown)
            assert any(label in row and shown in row for row in done.stdout.splitlines()), label
