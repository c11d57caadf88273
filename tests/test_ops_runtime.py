"""Long operations beside the rest of a Python program: threads, Ctrl-C, forks."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from score_problems import problem, some_candidates
from scoring import score_features

from ntkfast import ops

SCORE = "expected_entropy"


def test_other_threads_advance():
    """The GIL is released: another thread's clock ticks while this one scores."""
    psi, kw = problem(0, N=1000, candidates=1000, evaluation=1000, k=10, d=8)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    clock = threading.Thread(target=tick)
    clock.start()
    start = end = 0.0
    while end - start < 0.2:  # the same points twice as often, until the call is long enough
        kw = some_candidates(kw, np.tile(np.arange(len(kw["candidates"])), 2))
        start = time.perf_counter()
        score_features(SCORE, psi, **kw)
        end = time.perf_counter()
    done.set()
    clock.join()
    assert sum(start < t < end for t in ticks) >= 5


def test_two_threads_at_once():
    """Both get what each gets alone, whoever holds the pool."""
    problems = [problem(s, candidates=400, evaluation=900, k=10, d=16) for s in range(2)]
    alone = [score_features(SCORE, psi, **kw) for psi, kw in problems]
    grams = [ops.weighted_gram(psi, psi[:, 0].copy()) for psi, _ in problems]
    wrong, together = [], threading.Barrier(2)

    def work(i):
        psi, kw = problems[i]
        together.wait()
        for _ in range(20):
            if not np.array_equal(score_features(SCORE, psi, **kw), alone[i]):
                wrong.append(i)
            if not np.array_equal(ops.weighted_gram(psi, psi[:, 0].copy()), grams[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


LONG_CALL = """
import sys, time
import numpy as np
from score_problems import problem
from scoring import score_blocks, score_dense, score_features
from ntkfast import ops
{arguments}
small = problem(0)
score_features("emoc", small[0], **small[1])
print("started", flush=True)
start = time.process_time()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", time.process_time() - start, flush=True)
    assert np.isfinite(score_features("emoc", small[0], **small[1])).all()
    sys.exit(0)
print("finished")
sys.exit(1)
"""
POOL = "psi, kw = problem(0, N=3000, candidates=30000, evaluation=60000, k=10, d=64)"
LONG_CALLS = {
    "score_features": (POOL, 'score_features("expected_entropy", psi, **kw)'),
    "score_dense": (
        POOL + "; S = psi @ psi.T",
        'score_dense("expected_entropy", S, **kw)',
    ),
    "score_blocks": (
        "from block_problems import blocks; "
        "S, kw = blocks(0, N=40, k=26, candidates=4000, evaluation=8000)",
        'score_blocks("expected_entropy", S, **kw)',
    ),
    "one long loop": ("A = np.eye(7000)", "ops.cholesky(A)"),
    "many short loops": (
        "X = np.broadcast_to(np.ones(300), (4_000_000, 300))",
        "ops.quadratic_form(X, np.eye(300))",
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("call", LONG_CALLS)
def test_ctrl_c(call, threads):
    """KeyboardInterrupt soon after SIGINT, and the next call works.

    In processor time, so that what else runs on the machine does not count.
    """
    arguments, statement = LONG_CALLS[call]
    child = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL.format(arguments=arguments, call=statement)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NTKFAST_NUM_THREADS": threads},
        cwd=os.path.dirname(__file__),
    )
    try:
        assert child.stdout.readline() == "started\n"
        time.sleep(0.4)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0, out + err
    word, used = out.split()
    assert word == "interrupted"
    assert float(used) < 3 * int(threads)


FORK = """
import os, sys, threading, warnings
import numpy as np
from score_problems import problem
from scoring import score_features
from ntkfast import ops
warnings.simplefilter("ignore", DeprecationWarning)
psi, kw = problem(0, candidates=300, evaluation=700, k=10)
expected = score_features("expected_entropy", psi, **kw)

def same(_=0):
    return np.array_equal(score_features("expected_entropy", psi, **kw), expected)

stop = threading.Event()
if sys.argv[1:] == ["busy"]:  # another thread holds the pool while the process forks
    def work():
        while not stop.is_set():
            same()
    busy = threading.Thread(target=work)
    busy.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if same() and same() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert same()
if sys.argv[1:] == ["busy"]:
    stop.set()
    busy.join()
else:
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(same, range(6)))
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("arguments", [[], ["busy"]], ids=["idle", "busy"])
def test_fork_after_use(arguments):
    """A child has none of its parent's threads; it starts its own."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NTKFAST_NUM_THREADS": "3"},
        cwd=os.path.dirname(__file__),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"
