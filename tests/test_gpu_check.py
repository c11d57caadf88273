"""The walk of tools/gpu_check.sh, with stand-ins for everything that a machine with a GPU has.

What its steps find is not tested here but that each is run, that none ends the script, and that
what they found is there.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
CHECKS = {"smoke", "smoke of cupy", "posterior of cupy", "tests"}  # side by side
FIRST = ["machine", "link", "checks", "bench", "bench of other"]
NETWORKS = ["link", "memory runs out", "resnet"]
PROFILES = ["profile of a", "profile of b-small", "profile of gram-few"]
# What the stand-in for the smoke test finds wrong.
WRONG = {"smoke", "smoke of cupy"}


def in_order(steps):
    """Names of steps, with the checks as one."""
    names = list(steps)
    place = next(i for i, name in enumerate(names) if name in CHECKS)
    assert set(names[place : place + 4]) == CHECKS
    return [*names[:place], "checks", *names[place + 4 :]]


pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None or sys.platform == "darwin",
    reason="needs bash and the coreutils of GNU",
)

# Every stand-in writes its call down, and fails or hangs where a test says so.
COMMON = """#!/bin/bash
call="$(basename "$0") $*"
echo "$call" >>"$CALLS"
[ -z "$HANG" ] || [[ "$call" != $HANG* ]] || sleep 600
[ -z "$FAIL" ] || [[ "$call" != $FAIL* ]] || exit 7
"""
STAND_INS = {
    "nvidia-smi": "echo 'name'; echo 'NVIDIA H100'",
    "nvcc": "echo 'release 13.0'",
    "compute-sanitizer": "echo 'ERROR SUMMARY: 0 errors'",
    "cmake": "mkdir -p build/gpu-linked/base; touch build/gpu-linked/base/_core.so",
    # Both write the file that their last option asks for.
    "g++": 'while [ $# -gt 0 ]; do [ "$1" != -o ] || touch "$2"; shift; done',
    "ncu": """while [ $# -gt 0 ]; do
    [ "$1" != --export ] || touch "$2.ncu-rep"
    [ "$1" != --import ] || echo "section of $2"
    shift
done""",
    "python3": f"""case "$*" in
  -) exec {sys.executable} "$@" ;;
  "- "*) exec {sys.executable} "$@" ;;
  *EXT_SUFFIX*) echo .so ;;
  *'"include"'*) echo "$HEADERS" ;;
  *cuda_emulated*) exit 1 ;;
  *_core*) [ "$PWD" = / ] || exit 9 ;; # elsewhere the sources might be found first
  *gpu_smoke*--families) echo score-f16x3 gram-bf16 ;;
  *gpu_posterior*) printf 'ok\\t0\\t0\\tcondition\\n' >>"${{@: -1}}" ;;
  *gpu_smoke*)
    printf 'ok\\t1e-7\\t2e-5\\tpicks\\nWRONG\\t1e-2\\t2e-5\\tepig\\n' >>"${{@: -1}}"
    exit 1 ;;
  *"-m pytest"*) echo "12 passed in 3s" ;;
  *bench_cuda*)
    echo "    A A^T, tf32: 400 TFLOP/s"
    echo 'benchmark,case,provider,median_ms,error,commit' >"$OUT/rows.csv"
    echo "cuda scoring a,1e4 x 1e4,ntkfast,3.6,1e-6,$COMMIT" >>"$OUT/rows.csv" ;;
esac""",
}


@pytest.fixture
def walk(tmp_path):
    """Runs the script on a machine that is pretended; what it left and printed."""
    for name in (
        "tools",
        "bin",
        "csrc",
        "headers",
        "build/gpu-carry/base",
        "build/gpu-carry/other",
    ):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(TOOLS / "gpu_check.sh", tmp_path / "tools")
    stage = "#!/bin/bash\nmkdir -p $1/package\n"
    for path, text in {
        "tools/stage_package.sh": stage,
        **{f"bin/{name}": COMMON + text for name, text in STAND_INS.items()},
    }.items():
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    (tmp_path / "headers" / "Python.h").touch()
    for variant in ("base", "other"):
        (tmp_path / "build" / "gpu-carry" / variant / "libntkfast_cuda.a").touch()

    def walk(stage, *arguments, fail="", hang="", without=()):
        for name in without:
            (tmp_path / "bin" / name).unlink()
        out, calls = tmp_path / "out", tmp_path / "calls"
        calls.touch()
        done = subprocess.run(
            ["bash", tmp_path / "tools" / "gpu_check.sh", out, "abc123", stage, *arguments],
            env=dict(
                PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin", CALLS=str(calls), FAIL=fail, HANG=hang,
                OUT=str(out), HEADERS=str(tmp_path / "headers"),
            ),
            cwd="/", capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = (out / "steps.tsv").read_text().splitlines()
        steps = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
        assert len(list(out.iterdir())) <= 8
        return steps, done.stdout, calls.read_text()

    return walk


def test_first_stage(walk, tmp_path):
    steps, printed, calls = walk("first")
    assert in_order(steps) == FIRST
    # The smoke test found something wrong, and nothing was lost for it.
    assert {name for name, how in steps.items() if how != "ok"} == WRONG
    table = printed[printed.index("=== commit abc123") :]
    for expected in (
        "smoke", "FAILED (1)", "epig", "wrong", "12 passed", "400 TFLOP/s", "cuda scoring a",
        "3.6 ms",
    ):  # fmt: skip
        assert expected in table
    assert "abc123" in (tmp_path / "out" / "rows.csv").read_text()
    assert "--variant other" in calls and "-n 12" in calls


def test_networks_and_profiles(walk, tmp_path):
    steps, _, calls = walk("networks,profiles")
    assert [name for name in steps if name != "link"] == [*NETWORKS[1:], *PROFILES]
    assert set(steps.values()) == {"ok"}
    assert "--only resnet" in calls and "gpu_posterior.py memory" in calls
    assert "section of" in (tmp_path / "out" / "profile.txt").read_text()
    # What one call has linked the next one finds.
    linked = calls.count("g++ -shared")
    assert linked == 2 and walk("networks")[2].count("g++ -shared") == linked


def test_opponents(walk):
    steps, _, calls = walk("opponents")
    assert set(steps.values()) == {"ok"} and "--chunks 64 256" in calls


def test_sanitizers(walk, tmp_path):
    """A line for every tool and family; what one of them finds is in the table and the log."""
    steps, printed, calls = walk("sanitize", fail="compute-sanitizer --tool racecheck")
    assert steps == {"link": "ok", "sanitizers": "FAILED"}
    found = [
        line.split("\t") for line in (tmp_path / "out" / "sanitize.tsv").read_text().splitlines()
    ]
    assert {(tool, family): how for tool, family, how, *_ in found} == {
        ("racecheck", "score-f16x3"): "FAILED (7)",
        ("racecheck", "gram-bf16"): "FAILED (7)",
        ("memcheck", "score-f16x3"): "clean",
        ("memcheck", "gram-bf16"): "clean",
    }
    assert any("ERROR SUMMARY: 0 errors" in line[-1] for line in found)
    assert (
        "sanitizers: 2 clean" in printed
        and "racecheck of gram-bf16" in (tmp_path / "out" / "log").read_text()
    )
    assert "--library torch --family gram-bf16" in calls  # which cupy has no type for
    assert "--library cupy --family score-f16x3" in calls and "initcheck" not in calls


@pytest.mark.parametrize(
    ("pattern", "failed"),
    [
        ("nvidia-smi", set()),
        ("python3 bench/bench_cuda", {"bench", "bench of other"}),
        ("python3 -m pytest", {"tests"}),
        ("python3 tools/gpu_posterior", {"posterior of cupy"}),
    ],
)
def test_no_failure_ends_it(walk, pattern, failed):
    steps, printed, _ = walk("first", fail=pattern)
    assert in_order(steps) == FIRST
    assert {name for name, how in steps.items() if how != "ok"} == WRONG | failed
    assert "=== commit abc123" in printed


def test_builds_from_source_where_linking_fails(walk):
    steps, _, calls = walk("first", fail="g++ -shared")
    assert steps["link"].startswith("FAILED") and steps["build from source"] == "ok"
    assert "--compile-no-warning-as-error" in calls and steps["tests"] == "ok"


def test_bare_machine(walk):
    """Without nvcc, ncu and compute-sanitizer; then even without a compiler."""
    missing = ("nvcc", "ncu", "compute-sanitizer", "nvidia-smi")
    steps, _, _ = walk("first,sanitize,profiles", without=missing)
    assert in_order(steps)[:5] == FIRST and steps["tests"] == "ok"
    assert steps["sanitizers"] == "FAILED" and steps["profile of a"].startswith("FAILED")


def test_time_is_up(walk, tmp_path):
    """A step that hangs ends with what is left, and the table is printed all the same."""
    steps, printed, _ = walk("first,sanitize", "6", hang="python3 bench/bench_cuda")
    assert (steps["smoke"], steps["bench"]) == ("FAILED (1)", "TIME IS UP")
    assert steps["bench of other"] == "skipped"
    assert "skipped" in (tmp_path / "out" / "sanitize.tsv").read_text()
    assert "wrong" in printed[printed.index("=== commit abc123") :]


def test_steps_by_name(walk):
    steps, _, _ = walk("link,tests")
    assert list(steps) == ["link", "tests"]
