"""Every instruction set and any number of threads, each in a process of its own."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import isa_battery
import numpy as np
import pytest
import reference
from block_problems import check as check_blocks
from score_problems import check, covariance

from ntkfast import _core

HERE = Path(__file__).parent
ISAS = ["baseline", "avx2", "avx512"]
THREADS = ["1", "2", "3", "7"]


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        cwd=HERE,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The battery's results for an instruction set and a number of threads, run once each."""
    folder, known = tmp_path_factory.mktemp("isa"), {}

    def run(isa, threads):
        if (isa, threads) not in known:
            path = folder / f"{isa}-{threads}.npz"
            done = python("isa_battery.py", path, NTKFAST_CPU_ISA=isa, NTKFAST_NUM_THREADS=threads)
            if f"NTKFAST_CPU_ISA={isa}: " in done.stderr:  # unknown off x86
                pytest.skip(done.stderr.strip().splitlines()[-1])
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"{isa} {threads}\n"
            with np.load(path) as archive:
                known[isa, threads] = {name: archive[name] for name in archive.files}
        return known[isa, threads]

    return run


@pytest.mark.parametrize("isa", ISAS)
def test_scores(results, isa):
    found = results(isa, "2")
    for name, criterion, dtype, psi, keywords in isa_battery.score_calls():
        some = np.linspace(0, len(keywords["candidates"]) - 1, 4).astype(int)
        check(found[name], criterion, covariance(psi, keywords), keywords, dtype, some)


@cache
def block_utilities(criterion, dtype):
    S, keywords = next((S, kw) for c, S, kw in isa_battery.block_calls(dtype) if c == criterion)
    return reference.score_blocks(criterion, S, **keywords)


@pytest.mark.parametrize("isa", ISAS)
def test_blocks(results, isa):
    found = results(isa, "2")
    for dtype in isa_battery.DTYPES:
        for criterion, S, keywords in isa_battery.block_calls(dtype):
            name = f"{criterion}, blocks, {np.dtype(dtype).name}"
            expected = block_utilities(criterion, dtype)
            check_blocks(found[name], criterion, S, keywords, dtype, expected=expected)


@pytest.mark.parametrize("isa", ISAS)
def test_linear_algebra(results, isa):
    found = results(isa, "2")
    for name, *arguments in isa_battery.factors():
        for operation, expected in isa_battery.linear_algebra(reference, *arguments).items():
            value = found[f"{operation}, {name}"]
            assert value.dtype == expected.dtype
            bound = 1e-6 if value.dtype == np.float32 else 1e-12
            assert np.abs(value - expected).max() <= bound * np.abs(expected).max(), operation


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_change_a_bit(results, isa, threads):
    one, found = results(isa, "1"), results(isa, threads)
    assert one.keys() == found.keys()
    assert [n for n in one if one[n].tobytes() != found[n].tobytes()] == []


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux")
def test_supported_isas_are_those_of_the_processor():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    needs = {
        "avx512": {"avx2", "fma", "avx512f", "avx512dq", "avx512vl", "avx512bw"},
        "avx2": {"avx2", "fma"},
        "baseline": set(),
    }
    assert _core.supported_isas() == [isa for isa in needs if needs[isa] <= flags]


# --- Settings that cannot be followed ---

FIRST_USE = """
import numpy as np
import ntkfast
from ntkfast import ops
print("imported")
for use in (ops.{call}, ops.{call}):
    try:
        use()
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "name, value, call, expected",
    [
        ("NTKFAST_CPU_ISA", "nonsense", "cpu_isa", "expected baseline, avx2 or avx512"),
        ("NTKFAST_NUM_THREADS", "0", "num_threads", "expected a number from 1 to 4096"),
        ("NTKFAST_NUM_THREADS", "-2", "num_threads", "expected a number from 1 to 4096"),
        ("NTKFAST_NUM_THREADS", "4097", "num_threads", "expected a number from 1 to 4096"),
        ("NTKFAST_NUM_THREADS", "2x", "num_threads", "expected a number from 1 to 4096"),
        ("NTKFAST_NUM_THREADS", "abc", "num_threads", "expected a number from 1 to 4096"),
    ],
)
def test_bad_setting(name, value, call, expected):
    """Import works; every use says which setting is wrong and what it may be."""
    done = python("-c", FIRST_USE.format(call=call), **{name: value})
    message = f"{name}={value}: {expected}"
    assert done.stdout.splitlines() == ["imported", message, message], done.stderr


@pytest.mark.parametrize(
    "name, value", [("NTKFAST_CPU_ISA", "nonsense"), ("NTKFAST_NUM_THREADS", "0")]
)
def test_operations_under_a_bad_setting(name, value):
    """An operation raises the same error; it neither crashes nor takes another setting."""
    script = """
import numpy as np
from score_problems import problem
from scoring import score_features
from ntkfast import ops
psi, keywords = problem(0)
for operation in (
    lambda: score_features("emoc", psi, **keywords),
    lambda: ops.weighted_gram(psi, psi[:, 0].copy()),
    lambda: ops.cholesky(np.eye(70)),
):
    try:
        operation()
    except ValueError as error:
        print(error)
"""
    done = python("-c", script, **{name: value})
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{name}={value}: ") for line in lines), (
        done.stdout + done.stderr
    )


def test_an_empty_setting_is_none():
    done = python(
        "-c",
        "from ntkfast import ops; print(ops.cpu_isa(), ops.num_threads() >= 1)",
        NTKFAST_CPU_ISA="",
        NTKFAST_NUM_THREADS="",
    )
    assert done.stdout.split()[1:] == ["True"], done.stderr
