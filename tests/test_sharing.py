"""Posteriors and learners that are shared: by threads, copies, pickles and memory maps."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import REPRESENTATIONS, relative_error

import ntkfast as nf
from ntkfast.lock import Lock

with contextlib.suppress(ModuleNotFoundError):  # posteriors need none
    import torch
    from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter", "ignore:.*hardly above")
N = 120
KINDS = [*REPRESENTATIONS, "blocks", "blocks of a kernel"]


def large(kind):
    """A posterior large enough that a call lets other threads in."""
    rng = np.random.default_rng(0)
    k = 3 if "blocks" in kind else 1
    phi, f = rng.normal(size=(N * k, 400)) / 20, rng.normal(size=(N, 3))
    if "kernel" not in kind:
        return nf.Posterior.from_features(phi, f, None, None, None, 0.1)
    return nf.Posterior.from_kernel(phi @ phi.T, None, None, f, None, None, 0.1)


def together(functions, threads=4):
    """Call the functions in threads that start at once; return what they return."""
    barrier = threading.Barrier(threads, timeout=60)
    functions = list(functions)

    def run(part):
        barrier.wait()
        return [function() for function in part]

    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(run, [functions[i::threads] for i in range(threads)])
        return [result for part in parts for result in part]


def assert_same(found, expected, tolerance=1e-9):
    assert len(found) == len(expected)
    assert found.labeled.tolist() == expected.labeled.tolist()
    assert repr(found) == repr(expected)
    for x, y in zip(state(found), state(expected), strict=True):
        assert relative_error(x, y) <= tolerance


def state(post):
    every = range(len(post))
    return map(np.asarray, (post.mean, post.variance, post.covariance(every, every)))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_from_several_threads(kind):
    """Squared loss: every order of the labels is the same."""
    post, expected = large(kind), large(kind)
    together([lambda i=i: post.condition([i, i + 1], [i % 3, 0]) for i in range(40)])
    for i in range(40):
        expected.condition([i, i + 1], [i % 3, 0])
    assert_same(post, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_belongs_together(kind, tmp_path):
    """Copies, files, pickles, utilities taken while labels come in are those of one moment."""
    post = large(kind)
    moments = {0: post.copy()}
    one_by_one = post.copy()
    for i in range(12):
        one_by_one.condition([i], [i % 3])
        moments[i + 1] = one_by_one.copy()

    def file(at):
        post.save(tmp_path / str(at))
        return nf.Posterior.load(tmp_path / str(at))

    reading = [
        lambda _: post.copy(),
        lambda _: copy.deepcopy(post),
        lambda _: pickle.loads(pickle.dumps(post)),
        lambda _: post.to(np.empty(0)),
        file,
    ]

    def write():
        for i in range(12):
            post.condition([i], [i % 3])

    found = together(
        [
            write,
            *(lambda i=i: [read(i + 3 * j) for j, read in enumerate(reading)] for i in range(3)),
        ]
    )
    copies = [each for part in found if part is not None for each in part]
    assert len(copies) == 15
    for each in copies:
        assert_same(each, moments[len(each.labeled)], 1e-12)
    assert_same(post, moments[12])

    scored = [nf.utilities(moments[i], "emoc", candidates=range(50, 60)) for i in range(13)]
    post = moments[0].copy()
    found = together(
        [write_to(post), *[lambda: nf.utilities(post, "emoc", candidates=range(50, 60))] * 3]
    )
    for utilities in found[1:]:
        assert min(relative_error(utilities, u) for u in scored) <= 1e-9


def write_to(post):
    def write():
        for i in range(12):
            post.condition([i], [i % 3])

    return write


def test_points_from_several_threads():
    post = large("features")
    rng = np.random.default_rng(1)
    phi, f = rng.normal(size=(24, 2, 400)) / 20, rng.normal(size=(24, 2, 3))
    together(
        [lambda i=i: post.extend(phi[i], f[i]) for i in range(12)]
        + [lambda i=i: post.condition([i], [i % 3]) for i in range(12)]
    )
    assert len(post) == N + 24
    expected = large("features")
    for i in range(12):
        expected.condition([i], [i % 3])
    assert_same_first(post, expected)
    new = np.array([expected.predict(phi[i], f[i]) for i in range(12)]).reshape(-1, 3)
    order = lambda rows: rows[np.argsort(rows[:, 0])]  # noqa: E731 (threads extend in any order)
    assert relative_error(order(post.mean[N:]), order(new)) <= 1e-9


def assert_same_first(post, expected):
    assert post.labeled.tolist() == expected.labeled.tolist()
    assert relative_error(post.mean[:N], expected.mean) <= 1e-9
    assert relative_error(post.covariance(range(N), range(N)),
                          expected.covariance(range(N), range(N))) <= 1e-9  # fmt: skip


def test_a_call_that_fails_lets_others_in():
    post = large("features")
    with pytest.raises(ValueError, match="out of range"):
        post.condition([N], [0])
    with pytest.raises(ValueError, match="unknown criterion"):
        nf.utilities(post, "magic")
    together([lambda i=i: post.condition([i], [0]) for i in range(4)])
    assert post.labeled.tolist() == [0, 1, 2, 3]


def test_turns_are_in_the_order_of_asking():
    """Whatever the thread that lets the lock go does next."""
    lock, order, waiting = Lock(), [], []

    def ask(i):
        for _ in range(3):
            with lock, lock:
                order.append(i)

    with lock:
        for i in range(6):
            waiting.append(threading.Thread(target=ask, args=(i,)))
            waiting[-1].start()
            while len(lock._waiting) <= i:
                pass
    for thread in waiting:
        thread.join()
    assert order == [*range(6)] * 3


@pytest.mark.skipif(os.name == "nt", reason="signals of threads are POSIX")
def test_ctrl_c_while_waiting_leaves_the_lock_whole():
    lock, held, go = Lock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)

    def interrupt():
        while not lock._waiting:
            pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    go.set()
    thread.join()
    interrupter.join()
    assert together([lambda: lock.__enter__() or lock.__exit__(None, None, None)] * 8) == [None] * 8
    assert lock._owner is None and not lock._waiting


def _condition_in_child(post, queue):
    post.condition([0], [0])
    queue.put(post.labeled.tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_not_locked_out():
    """By a thread of its parent that holds the lock, and is not there to let it go."""
    post, held, go = large("features"), threading.Event(), threading.Event()

    def hold():
        with post._lock:
            held.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_condition_in_child, args=(post, queue))
    try:
        child.start()
        assert queue.get(timeout=60) == [0]
    finally:
        go.set()
        thread.join()
        child.kill()
        child.join()
    assert post.labeled.tolist() == []


# --- Learners -------------------------------------------------------------------------------------


@pytest.fixture
def learner():
    pytest.importorskip("torch")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    X = torch.randn(N, 6, dtype=torch.float64)
    return nf.LookAheadLearner(model, loss="squared", evaluation_size=30, dim=256).fit(
        X[:20], np.arange(20) % 3, X
    )


def test_a_learner_in_several_threads(learner):
    expected, picks = copy.deepcopy(learner), learner.query(4)
    found = together([lambda: learner.query(4) for _ in range(8)])
    assert all(torch.equal(each.indices, picks.indices) for each in found)
    X = torch.randn(5, 6, dtype=torch.float64)
    together(
        [lambda i=i: learner.update([i, 60 + i], [i % 3, 1]) for i in range(24)]
        + [lambda: learner.query(3)] * 4
        + [lambda: learner.predict(X)] * 4
    )
    for i in range(24):
        expected.update([i, 60 + i], [i % 3, 1])
    assert_same(learner.posterior, expected.posterior)
    assert repr(learner.posterior).count("given 68 labels") == 1


def test_fits_and_queries_at_once(learner):
    """A query answers from one fit or the other, never from half of each."""
    X = torch.randn(60, 6, dtype=torch.float64)
    other = copy.copy(learner).fit(X[:20], np.arange(20) % 3, X)
    answers = [learner.query(5).indices.tolist(), other.query(5).indices.tolist()]
    found = together(
        [
            lambda: learner.fit(X[:20], np.arange(20) % 3, X),
            *[lambda: learner.query(5).indices.tolist()] * 11,
        ]
    )
    for each in found:
        assert each is learner or each in answers


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda learner: pickle.loads(pickle.dumps(learner)),
}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_learner_are_independent(learner, copied):
    learner.update([3], [1])
    before = learner.posterior.copy()
    twin = COPIES[copied](learner)
    assert_same(twin.posterior, before)
    assert twin.classes_.tolist() == learner.classes_.tolist()
    assert (twin.ntk.model is learner.ntk.model) == (copied == "copy")
    twin.update([7, 8], [0, 2])
    assert_same(learner.posterior, before)
    learner.update([7, 8], [0, 2])
    assert_same(twin.posterior, learner.posterior)
    X = torch.randn(50, 6, dtype=torch.float64)
    twin.fit(X[:9], np.arange(9) % 3, X)
    assert len(twin.posterior) == 50 and len(learner.posterior) == N
    assert twin._lock is not learner._lock
    assert twin.posterior._lock is not learner.posterior._lock


def test_a_copy_of_what_is_not_fitted(learner):
    fresh = nf.LookAheadLearner(learner.ntk.model)
    for copied in COPIES.values():
        twin = copied(fresh)
        with pytest.raises(RuntimeError, match="call fit"):
            twin.query(1)
        assert not hasattr(twin, "classes_")


@pytest.mark.parametrize("sketch", ["sparse", "auto"])
def test_a_copy_keeps_its_sketch(learner, sketch):
    X = torch.randn(40, 6, dtype=torch.float64)
    first = nf.LookAheadLearner(learner.ntk.model, sketch=sketch, dim=64, relative_error=0.9)
    first.fit(None, None, X)
    twin = copy.copy(first)
    twin.fit(None, None, 3 * X[:20])
    torch.testing.assert_close(first.predict(X), first.posterior.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twin.predict(3 * X[:20]), twin.posterior.mean, rtol=1e-9, atol=1e-9)


# --- Read-only memory maps ------------------------------------------------------------------------


def read_only(joblib, path, value):
    joblib.dump(value, path)
    return joblib.load(path, mmap_mode="r")


@pytest.mark.parametrize("labels", [1, 7, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_from_a_read_only_memory_map(kind, labels, tmp_path):
    joblib = pytest.importorskip("joblib")
    post = large(kind)
    post.condition([5], [1])
    found = read_only(joblib, tmp_path / "posterior", post)
    again = read_only(joblib, tmp_path / "again", post)
    mapped = found._rows.psi if "kernel" not in kind else found._rows.S
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    assert_same(found, post, 0)
    for criterion in ("emoc", "variance_reduction"):
        for mode in ("top", "sequential"):
            expected = nf.select(post, criterion, 3, mode)
            assert (
                nf.select(found, criterion, 3, mode).indices.tolist() == expected.indices.tolist()
            )
    for each in (post, found):
        each.condition(np.arange(labels), np.arange(labels) % 3)
        each.condition([5], [2])
    assert_same(found, post, 0)
    for result in (found.mean, found.variance, found.labeled, found.covariance([0], [1])):
        assert type(result) is np.ndarray
        result[...] = 0  # their own memory
    if "kernel" not in kind:
        rows = np.ones((3 if kind == "blocks" else 1, 400))
        for each in (post, found):
            each.extend(rows, np.ones((1, 3)))
    assert_same(found, post, 0)
    assert again.labeled.tolist() != found.labeled.tolist()  # the file is as it was
    assert_same(joblib.load(tmp_path / "posterior"), again, 0)


def test_a_learner_from_a_read_only_memory_map(learner, tmp_path):
    joblib = pytest.importorskip("joblib")
    found = read_only(joblib, tmp_path / "learner", learner)
    assert found.query(4).indices.tolist() == learner.query(4).indices.tolist()
    for each in (learner, found):
        each.update([1, 2, 3], [0, 1, 2])
    assert_same(found.posterior, learner.posterior, 0)
    X = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(found.predict(X), learner.predict(X))
    assert found.fit(X, [0, 1, 2, 0, 1], X) is found
