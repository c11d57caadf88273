"""What a build says that it will do about GPU kernels, on machines that are pretended."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHOICE = ROOT / "cmake" / "choose_cuda.cmake"
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
RELEASE = "80-real, 86-real, 89-real, 90a-real, 100-real, 120"

pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="no cmake here"),
    pytest.mark.skipif(sys.platform == "win32", reason="pretends by shell scripts"),
]


@pytest.fixture
def choose(tmp_path):
    """The first line of a build, or its error, for an nvcc and GPUs as given."""

    def program(name, text):
        (tmp_path / name).write_text("#!/bin/sh\n" + text)
        (tmp_path / name).chmod(0o755)

    def choose(nvcc, gpus, *definitions, **environment):
        if nvcc:
            known = "\n".join(
                f"compute_{n}" for n in (80, 86, 89, 90, *(100, 120)[: 2 * (nvcc > "12.7")])
            )
            program("nvcc", f'[ "$1" = --version ] && echo "release {nvcc}, V" || echo "{known}"')
        if gpus is not None:
            program("nvidia-smi", "\n".join(f"echo {capability}" for capability in gpus))
        given = [f"-D{definition}" for definition in definitions]
        done = subprocess.run(
            [CMAKE, *given, "-P", str(CHOICE)],
            env=dict(PATH=str(tmp_path), **environment),
            capture_output=True,
            text=True,
        )
        return (done.stdout + done.stderr).splitlines()[0 if done.returncode == 0 else 1]

    return choose


@pytest.mark.parametrize(
    ("nvcc", "gpus", "definitions", "expected"),
    [
        # As it comes: for the GPUs here, and nothing that takes long without one.
        (
            "13.0",
            ["9.0", "9.0"],
            [],
            "CPU code and GPU kernels for 90a-real (the GPUs here; nvcc 13.0)",
        ),
        ("13.0", ["8.6", "7.5", "12.0"], [], "GPU kernels for 86-real, 120-real (the GPUs here"),
        ("12.4", ["12.0"], [], "GPU kernels for 80-virtual (the GPUs here"),
        (
            "13.0",
            None,
            [],
            "no GPU kernels: no GPU is here (nvidia-smi shows none); GPU kernels all",
        ),
        ("13.0", [], [], "no GPU kernels: no GPU is here (nvidia-smi shows none)"),
        (
            "13.0",
            ["7.5"],
            [],
            "no GPU kernels: the GPU has compute capability 7.5, and 8.0 is needed",
        ),
        (None, ["9.0"], [], "no GPU kernels: no working nvcc was found"),
        ("11.8", ["9.0"], [], "no GPU kernels: nvcc 11.8 is older than 12.4"),
        # As asked for.
        ("13.0", ["9.0"], ["NTKFAST_CUDA=OFF"], "no GPU kernels: NTKFAST_CUDA=OFF"),
        ("13.0", ["9.0"], ["NTKFAST_CUDA=ON"], "GPU kernels for 90a-real (the GPUs here"),
        ("13.0", None, ["NTKFAST_CUDA=ON"], f"GPU kernels for {RELEASE} (every kind of GPU"),
        ("13.0", ["9.0"], ["NTKFAST_CUDA=RELEASE"], f"GPU kernels for {RELEASE} (every kind"),
        (
            "12.4",
            None,
            ["NTKFAST_CUDA=ON"],
            "GPU kernels for 80, 86-real, 89-real, 90a-real (every",
        ),
        (
            "13.0",
            None,
            ["CMAKE_CUDA_ARCHITECTURES=80;89"],
            "GPU kernels for 80, 89 (CMAKE_CUDA_ARCH",
        ),
        (None, None, ["NTKFAST_CUDA=ON"], "NTKFAST_CUDA=ON, but no working nvcc was found."),
        (
            "11.8",
            None,
            ["NTKFAST_CUDA=RELEASE"],
            "NTKFAST_CUDA=RELEASE, but nvcc 11.8 is older than",
        ),
    ],
)
def test_first_line(choose, nvcc, gpus, definitions, expected):
    choice = [] if any("NTKFAST_CUDA=" in d for d in definitions) else ["NTKFAST_CUDA=AUTO"]
    line = choose(nvcc, gpus, *choice, *definitions)
    assert expected in line
    if "but" not in line:
        assert "minute" in line and "processors" in line
        assert ("GPU kernels for" in line) == ("leave them out" in line)


def test_architectures_of_the_environment(choose):
    line = choose("13.0", ["9.0"], "NTKFAST_CUDA=AUTO", CUDAARCHS="89-real")
    assert "GPU kernels for 89-real (CUDAARCHS" in line


def test_sdist_is_reproducible(tmp_path, monkeypatch):
    """The same sources give the same bytes, from another folder and at another time."""
    backend = pytest.importorskip("scikit_build_core.build")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    built = []
    for name, age in ("a", 0), ("b", 86400):
        sources = tmp_path / name
        shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.so"))
        for path in sources.rglob("*"):
            os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
        monkeypatch.chdir(sources)
        built.append(sources / "dist" / backend.build_sdist("dist"))
    assert built[0].read_bytes() == built[1].read_bytes()
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "PKG-INFO", "LICENSE", "csrc/python/module.cc", "ntkfast/_core.pyi"}
    assert needed <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "__pycache__" in name]


def test_smoke_test_of_a_wheel():
    """The script that proves wheels where there is numpy alone passes here as well."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "smoke_test.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "baseline: values are right" in done.stdout
