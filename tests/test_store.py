"""Stores of features: what is in them, who may go on with them, and who is killed when."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import store_workers as workers  # noqa: E402
from ntk_networks import literal_jacobian, networks, output_weights  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset, TensorDataset  # noqa: E402

import ntkfast as nf  # noqa: E402
from ntkfast import files, store  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

POINTS = workers.POINTS


@pytest.fixture(scope="module")
def processes():
    """Processes start from one that has imported all they need, and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data", "ntkfast.ntk"])
    return context


@pytest.fixture(scope="module")
def expected():
    ntk = EmpiricalNTK(workers.network(), dim=32)
    return [value.numpy() for value in ntk.outputs_and_features(workers.points())]


def run(processes, target, calls):
    """Run processes at the same time; all must end well."""
    started = [processes.Process(target=target, args=args) for args in calls]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def is_pool(folder, expected, rtol=1e-5):
    features, outputs = nf.open_features(folder)
    np.testing.assert_allclose(outputs, expected[0], rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(features, expected[1], rtol=rtol, atol=1e-6)


class Counting(nn.Module):
    """Counts the points of passes with gradients; stops at one."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner
        type(self).seen, type(self).stop_at = 0, 10**9

    def forward(self, x):
        type(self).seen += len(x)
        if type(self).seen > self.stop_at:
            raise KeyboardInterrupt
        return self.inner(x)


def counted_rows(monkeypatch):
    """Record the numbers of points whose rows are computed and written."""
    numbers, write = [], store.StoreWriter.write

    def counted(self, start, features, outputs):
        numbers.extend(range(start, start + len(outputs)))
        write(self, start, features, outputs)

    monkeypatch.setattr(store.StoreWriter, "write", counted)
    return numbers


class Stream(IterableDataset):
    def __init__(self, x) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


class Once(Stream):
    def __init__(self, x) -> None:
        self.items = iter(x)

    def __iter__(self):
        return self.items


# what is in a store


@pytest.mark.parametrize("outputs", ["sum", "full", 1])
def test_a_store_holds_the_gradients_and_the_outputs(tmp_path, outputs) -> None:
    model, x = networks()["mlp"]
    ntk = EmpiricalNTK(model, outputs, sketch=None)
    written = ntk.features(x, out=tmp_path / "pool")
    features, logits = opened = nf.open_features(tmp_path / "pool")
    jacobian = literal_jacobian(model, x, output_weights(outputs, 3)).flatten(0, 1)
    np.testing.assert_allclose(features, jacobian, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(logits, model(x).detach(), rtol=1e-12)
    for array in (features, logits, written):
        assert isinstance(array, np.memmap) and array.dtype == np.float64
        assert not array.flags.writeable
    assert opened.features is features and opened.outputs is logits
    assert opened.manifest["points"] == 5 and opened.manifest["layers"] == ntk._names
    # Plain arrays, readable by anybody.
    np.testing.assert_array_equal(np.load(tmp_path / "pool/features.npy"), features)
    np.testing.assert_array_equal(written, features)
    assert repr(opened) == (
        f"FeatureStore(features={features.shape} float64, outputs=(5, 3) float64)"
    )


def test_float16_rounds_once(tmp_path, expected) -> None:
    ntk = EmpiricalNTK(workers.network(), dim=32)
    for name, dtype in (("a", "float16"), ("b", np.float16), ("c", torch.float16)):
        outputs, features = ntk.outputs_and_features(
            workers.points(), out=tmp_path / name, dtype=dtype
        )
        assert features.dtype == np.float16 and outputs.dtype == np.float32
        np.testing.assert_array_equal(features, expected[1].astype(np.float16))
    for dtype in ("bfloat16", torch.bfloat16, "int32", "much"):
        with pytest.raises(ValueError, match=r'dtype is .*; expected "float16", "float32"'):
            ntk.features(workers.points(), out=tmp_path / "d", dtype=dtype)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e5, "float16 cannot hold the features of point 0 of X, which reach .*largest number"),
        (1e-7, "float16 cannot hold the features of points 0 to .* lose their digits"),
    ],
)
def test_float16_that_would_lose_digits_is_refused(tmp_path, scale, message) -> None:
    ntk = EmpiricalNTK(nn.Linear(6, 3, bias=False), dim=32)
    with pytest.raises(ValueError, match=message):
        ntk.features(scale * workers.points(), out=tmp_path / "pool", dtype="float16")


def test_what_posterior_takes(tmp_path, expected) -> None:
    EmpiricalNTK(workers.network(), dim=32).features(workers.points(), out=tmp_path / "pool")
    features, outputs = nf.open_features(tmp_path / "pool")
    picked = [
        nf.select(
            nf.Posterior.from_features(phi, f, None, None, None, loss="cross_entropy"),
            "fisher_variance_reduction",
            5,
        ).indices
        for phi, f in ((features, outputs), (expected[1], expected[0]))
    ]
    np.testing.assert_array_equal(*picked)


CONTAINERS = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "dict": lambda x: {"x": x},
    "dataset": TensorDataset,
    "loader": lambda x: DataLoader(TensorDataset(x), 16),
    "stream": Stream,
    "loader of a stream": lambda x: DataLoader(Stream(x), 16),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_data_go_on_where_they_stopped(tmp_path, expected, kind, monkeypatch) -> None:
    model = Counting(workers.network())
    X, folder = CONTAINERS[kind](workers.points()), tmp_path / "pool"
    ntk = EmpiricalNTK(model, dim=32, memory_budget=60_000)
    ntk.features(workers.points()[:20])  # what is found out on a few points is known then
    Counting.stop_at = Counting.seen + 300
    with pytest.raises(KeyboardInterrupt):
        ntk.features(X, out=folder)
    Counting.stop_at = 10**9
    (span,) = json.loads((folder / "manifest.json").read_text())["finished"]
    assert span[0] == 0 and 100 < span[1] < 300
    with pytest.raises(ValueError, match=r"not complete: .*out='.*pool'\) again"):
        nf.open_features(folder)
    written = counted_rows(monkeypatch)
    ntk.features(X, out=folder)
    assert written == list(range(span[1], POINTS))
    is_pool(folder, expected)
    # Complete: nothing is computed again but for the few points that are compared.
    before = snapshot(folder)
    ntk.features(X, out=folder)
    assert len(written) == POINTS - span[1] and snapshot(folder) == before


def test_stores_do_not_depend_on_the_container(tmp_path) -> None:
    ntk = EmpiricalNTK(workers.network(), dim=32)
    for kind in CONTAINERS:
        if kind != "dict" and "stream" not in kind:
            ntk.features(CONTAINERS[kind](workers.points()), out=tmp_path / "pool")


def test_streams(tmp_path, expected) -> None:
    model, folder = Counting(workers.network()), tmp_path / "pool"
    ntk = EmpiricalNTK(model, dim=32, memory_budget=60_000)
    ntk.features(Once(workers.points()), out=folder)  # in one pass
    is_pool(folder, expected)
    ntk.features(workers.points()[:20])
    folder = tmp_path / "stopped"
    stream = Once(workers.points())
    Counting.stop_at = Counting.seen + 300
    with pytest.raises(KeyboardInterrupt):
        ntk.features(stream, out=folder)
    Counting.stop_at = 10**9
    # The rest of a stream that can be read once is not what it was.
    with pytest.raises(ValueError, match="computed again, outputs of points 0 to 1 of X differ"):
        ntk.features(stream, out=folder)
    with pytest.raises(ValueError, match="X gave no points"):
        ntk.features(Once([]), out=folder)
    with pytest.raises(ValueError, match=r"X gave 40 points, and .* of them have been read before"):
        ntk.features(Stream(workers.points()[:40]), out=folder)
    with pytest.raises(ValueError, match="of an unknown number of points, not 800"):
        ntk.features(workers.points(), out=folder)
    ntk.features(Once(workers.points()), out=folder)
    is_pool(folder, expected)
    with pytest.raises(ValueError, match="X is a stream, which 2 processes cannot share"):
        ntk.features(Stream(workers.points()), out=tmp_path / "other", rank=0, world_size=2)
    assert not (tmp_path / "other").exists()


# whose store it is


def _trained(net):
    with torch.no_grad():
        net[0].bias[3] += 1e-3
    return net


def _other_activation(net):
    net[1] = nn.Sigmoid()
    return net


OTHERS = {
    "parameters": (_trained, {}, None, "of another network"),
    "structure": (_other_activation, {}, None, "of another network"),
    "sketch": (None, {"sketch": "kronecker"}, None, "with sketch='sparse', not 'kronecker'"),
    "exact": (None, {"sketch": None}, None, "with sketch='sparse', not None"),
    "dim": (None, {"dim": 33}, None, "with 32 features a row, not 33"),
    "seed": (None, {"seed": 1}, None, "with seed=0, not 1"),
    "outputs": (None, {"outputs": "single"}, None, "with outputs='sum', not 'single'"),
    "an output": (None, {"outputs": 2}, None, "with outputs='sum', not 2"),
    "draws": (None, {"outputs": "random", "draws": 2}, None, "with draws=1, not 2"),
    "layers": (None, {"layers": "last"}, None, r"of other layers \(0.weight, 0.bias, 2.weight, .."),
    "length": (None, {}, lambda x: x[:-1], "of 800 points, not 799"),
    "data": (None, {}, lambda x: x + 1, "of other data"),
    "order": (None, {}, lambda x: x.flip(0), "of other data"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("state", ["complete", "begun"])
def test_a_store_of_something_else_is_refused_by_name(tmp_path, what, state) -> None:
    change, options, data, message = OTHERS[what]
    folder, x = tmp_path / "pool", workers.points()
    EmpiricalNTK(workers.network(), dim=32).features(x, out=folder)
    if state == "begun":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "finished": [[0, 64]]}))
    before = snapshot(folder)
    net = workers.network() if change is None else change(workers.network())
    ntk = EmpiricalNTK(net, **{"dim": 32, **options})
    with pytest.raises(ValueError, match=f"out: .*pool holds features.* {message}") as caught:
        ntk.features(x if data is None else data(x), out=folder)
    assert caught.value.argument == "out"
    assert snapshot(folder) == before


def test_another_dtype_is_refused(tmp_path) -> None:
    ntk = EmpiricalNTK(workers.network(), dim=32)
    ntk.features(workers.points(), out=tmp_path / "pool")
    with pytest.raises(ValueError, match="with dtype='float32', not 'float16'"):
        ntk.features(workers.points(), out=tmp_path / "pool", dtype="float16")


def test_code_that_has_changed_is_noticed(tmp_path) -> None:
    class Scaled(nn.Module):
        scale = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.inner = workers.network()

        def forward(self, x):
            return self.scale * self.inner(x)

    EmpiricalNTK(Scaled(), dim=32).features(workers.points(), out=tmp_path / "pool")
    Scaled.scale = 1.1
    with pytest.raises(ValueError, match=r"outputs of points 0 to 1 of X differ .* by 9.1 %"):
        EmpiricalNTK(Scaled(), dim=32).features(workers.points(), out=tmp_path / "pool")


def test_folders_that_are_no_stores_are_left_alone(tmp_path) -> None:
    ntk, x = EmpiricalNTK(workers.network(), dim=32, sketch="auto"), workers.points()
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=r"file is a file. A path that ends in .npy"):
        ntk.features(x, out=tmp_path / "file")
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/outputs.npy", np.arange(3))
    before = snapshot(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"mine holds outputs.npy, but no manifest.json"):
        ntk.features(x, out=tmp_path / "mine")
    assert snapshot(tmp_path / "mine") == before
    with pytest.raises(FileNotFoundError):
        ntk.features(x, out=tmp_path / "no/such/folder")


def test_arguments_that_are_about_folders(tmp_path) -> None:
    ntk, x = EmpiricalNTK(workers.network(), dim=32), workers.points()
    for out in (None, tmp_path / "phi.npy"):
        for name, value in (("dtype", "float16"), ("rank", 0), ("world_size", 1), ("group", 1)):
            with pytest.raises(ValueError, match=f"{name} is about folders"):
                ntk.features(x, out=out, **{name: value})
    for options, message in (
        ({"rank": 0}, "rank and world_size belong together"),
        ({"world_size": 2}, "rank and world_size belong together"),
        ({"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size"),
        ({"rank": 0, "world_size": 1, "group": 1}, "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk.features(x, out=tmp_path / "pool", **options)
    with pytest.raises(TypeError, match="rank is '0'; expected an int"):
        ntk.features(x, out=tmp_path / "pool", rank="0", world_size=1)
    assert list(tmp_path.iterdir()) == []


# opening


def _changed(**entries):
    def change(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


DAMAGES = {
    "nothing there": (lambda f: f.rename(f.with_name("gone")), "is no store of features"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is no store of features"),
    "torn manifest": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "other json": (lambda f: (f / "manifest.json").write_text("[]"), "was not written by ntkfast"),
    "other format": (_changed(format="other"), "was not written by ntkfast"),
    "newer": (_changed(version=2), "has version 2; this ntkfast reads up to 1"),
    "rows beyond": (_changed(finished=[[0, 11]]), "manifest.json is damaged"),
    "incomplete": (
        _changed(finished=[[0, 2], [3, 8]]),
        r"3 of 10 points are missing \(2, 8 to 9\). Call EmpiricalNTK.features\(.*\) again",
    ),
    "begun": (_changed(finished=[]), r"10 of 10 points are missing \(0 to 9\)"),
    "no features": (lambda f: (f / "features.npy").unlink(), "features.npy is missing: expected"),
    "cut short": (
        lambda f: os.truncate(f / "outputs.npy", 200),
        r"outputs.npy is damaged .*: expected float64 of shape \(10, 2\)",
    ),
    "other shape": (
        lambda f: np.save(f / "features.npy", np.zeros((20, 4), np.float32)),
        r"holds float32 of shape \(20, 4\); expected float32 of shape \(20, 5\)",
    ),
    "objects": (
        lambda f: np.save(f / "features.npy", np.array([{}]), allow_pickle=True),
        "features.npy is damaged",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_cannot_be_opened_says_why(tmp_path, what) -> None:
    damage, message = DAMAGES[what]
    workers.write_rows(tmp_path / "pool")
    damage(tmp_path / "pool")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        nf.open_features(tmp_path / "pool")


def test_damaged_stores_are_not_gone_on_with(tmp_path) -> None:
    workers.write_rows(tmp_path)
    _changed(finished=[[0, 8]])(tmp_path)
    os.truncate(tmp_path / "features.npy", 300)
    with pytest.raises(ValueError, match="calls 8 points finished: the store is damaged"):
        workers.write_rows(tmp_path)


def test_opening_needs_no_torch(tmp_path) -> None:
    workers.write_rows(tmp_path)
    code = (
        "import sys, ntkfast as nf; features, outputs = nf.open_features(sys.argv[1])\n"
        "assert features.sum() == 5050 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


# interruptions


def test_kill_at_random_moments(tmp_path, processes, expected) -> None:
    """kill -9, thirty times: at most the block is lost that was being written."""
    folder, passed, rng = tmp_path / "pool", processes.RawValue("l", 0), random.Random(0)
    before, kills, gains = 0, 0, 0
    while kills < 30:
        passed.value = 0
        process = processes.Process(target=workers.write_pool, args=(folder, passed))
        process.start()
        # Some before anything is written, most while it is.
        moment, patience = rng.choice([0, 0, 1, 16, 32, 48]), time.monotonic() + 60
        while passed.value < moment and process.is_alive() and time.monotonic() < patience:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        manifest = store._read_manifests(folder) if folder.exists() else None
        spans = manifest["finished"] if manifest else []
        assert len(spans) <= 1
        finished = spans[0][1] if spans else 0
        assert finished - before >= passed.value - workers.BATCH
        if finished:
            for array, values in zip(("outputs", "features"), expected, strict=True):
                found = np.load(folder / f"{array}.npy", mmap_mode="r")
                np.testing.assert_allclose(found[:finished], values[:finished], 1e-5, 1e-6)
        gains += finished > before
        kills, before = kills + 1, finished
        if manifest and process.exitcode == 0:  # it was faster: once more from the beginning
            folder = tmp_path / f"pool{kills}"
            before = 0
    assert gains >= 5
    run(processes, workers.write_pool, [(folder,)])
    is_pool(folder, expected)


@pytest.mark.parametrize("n", [workers.ROWS, None], ids=["known length", "stream"])
def test_what_a_kill_leaves_wherever_it_comes(tmp_path, monkeypatch, n) -> None:
    """All that is ever in the folder, at every line that a writer runs; each is gone on with."""
    states = []

    def at_line(frame, event, argument):
        now = snapshot(tmp_path / "pool")
        if not states or now != states[-1]:
            states.append(now)
        return at_line

    modules = {store.__file__, files.__file__}
    tracing = sys.gettrace()
    sys.settrace(lambda frame, *_: at_line if frame.f_code.co_filename in modules else None)
    try:
        workers.write_rows(tmp_path / "pool", n)
    finally:
        sys.settrace(tracing)
    assert len(states) > 20
    seen = []
    for i, state in enumerate(states[1:]):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in state.items():
            (folder / name).write_bytes(content)
        manifest = store._read_manifests(folder)
        spans = manifest["finished"] if manifest else []
        seen.append(spans[0][1] if spans else 0)
        if spans:
            assert len(spans) == 1 and spans[0][0] == 0
            for name, values in zip(
                ("features", "outputs"), workers.rows(0, seen[-1]), strict=True
            ):
                found = np.frombuffer(state[f"{name}.npy"][128:][: values.nbytes], values.dtype)
                np.testing.assert_array_equal(found, values.ravel())
        for found, values in zip(workers.write_rows(folder, n), workers.rows(0, 10), strict=True):
            np.testing.assert_array_equal(found, values)
        assert sorted(snapshot(folder)) == ["features.npy", "manifest.json", "outputs.npy"]
    assert seen == sorted(seen) and set(seen) == {0, 4, 8, 10}


def test_rows_are_on_the_disk_before_the_manifest_says_so(tmp_path, monkeypatch) -> None:
    """And after every write; a machine that fails must not leave holes."""
    events = []

    def recorded(name, function):
        def call(*arguments):
            events.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(store._ArrayFile, "_put", recorded("write", store._ArrayFile._put))
    monkeypatch.setattr(store, "_write_manifest", recorded("manifest", store._write_manifest))
    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(os, "O_DSYNC", 0, raising=False)
    workers.write_rows(tmp_path / "pool")
    first = events.index("manifest", events.index("manifest") + 1)
    block = ["write", "fsync", "write", "fsync", "manifest", "fsync"]
    assert events[first - 4 :] == 3 * block


def test_a_full_disk_leaves_the_store_usable(tmp_path, expected, monkeypatch) -> None:
    ntk, folder = EmpiricalNTK(workers.network(), dim=32), tmp_path / "pool"
    monkeypatch.setattr(store, "_BLOCK_SECONDS", 0.0)
    ntk.features(workers.loader(), out=folder)
    _changed(finished=[[0, 160]])(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 400 * 32 * 4, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write points 400 to 415 .* 400 are finished"):
            ntk.features(workers.loader(), out=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((folder / "manifest.json").read_text())["finished"] == [[0, 400]]
    ntk.features(workers.loader(), out=folder)
    is_pool(folder, expected)


def test_too_little_room_is_seen_before_anything_is_computed(tmp_path, monkeypatch) -> None:
    Usage = type(store.shutil.disk_usage(tmp_path))
    needed = POINTS * 4 * (32 + 3)
    ntk, folder = EmpiricalNTK(workers.network(), dim=32), tmp_path / "pool"
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: Usage(10**9, 0, needed - 1))
    with pytest.raises(OSError, match=r"need 0.000112 GB, and 0.000112 GB are free: make room"):
        ntk.features(workers.points(), out=folder)
    assert not folder.exists()
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: Usage(10**9, 0, needed))
    ntk.features(workers.points(), out=folder)


def test_a_second_process_is_sent_away(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.0)
    first = store.StoreWriter(tmp_path, workers.description())
    for rank, world_size in ((0, 1), (1, 2)):
        with pytest.raises(OSError, match="another process is writing features there"):
            workers.write_rows(tmp_path, rank=rank, world_size=world_size)
    with first:
        first.write(0, *workers.rows(0, 10))
        first.finish()
    workers.write_rows(tmp_path)


# several processes


def test_ranks_write_their_own_rows(tmp_path, processes, expected) -> None:
    folder = tmp_path / "pool"
    calls = [
        (folder, None, {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)})
        for rank in range(3)
    ]
    # Not all of them at first.
    run(processes, workers.write_pool, [calls[0], calls[2]])
    with pytest.raises(ValueError, match=r"267 of 800 points are missing \(266 to 532\)"):
        nf.open_features(folder)
    run(processes, workers.write_pool, [calls[1]])
    is_pool(folder, expected)
    assert sorted(snapshot(folder)) == ["features.npy", "manifest.json", "outputs.npy"]
    whole = nf.open_features(folder)
    parts = [whole.part(rank, 3) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([p.features for p in parts]), whole.features)
    np.testing.assert_array_equal(np.concatenate([p.outputs for p in parts]), whole.outputs)


def test_another_number_of_processes_goes_on(tmp_path, expected, monkeypatch) -> None:
    """Ranks of three, then of two, then one process; each computes what is missing of its share."""
    ntk, folder = EmpiricalNTK(workers.network(), dim=32), tmp_path / "pool"
    written = counted_rows(monkeypatch)
    ntk.features(workers.points(), out=folder, rank=1, world_size=3)
    rows = ntk.features(workers.points(), out=folder, rank=0, world_size=2)
    np.testing.assert_allclose(rows, expected[1][:400], 1e-5, 1e-6)
    manifests = {n for n in snapshot(folder) if n.startswith("manifest")}
    assert manifests == {"manifest-1-of-3.json", "manifest-0-of-2.json"}
    ntk.features(workers.points(), out=folder)
    assert sorted(written) == list(range(800))
    is_pool(folder, expected)
    assert "manifest.json" in snapshot(folder) and len(snapshot(folder)) == 3
    for rank in range(3):  # and those who come too late find it done
        ntk.features(workers.points(), out=folder, rank=rank, world_size=3)


def test_ranks_of_different_networks_are_refused(tmp_path) -> None:
    folder, x = tmp_path / "pool", workers.points()
    EmpiricalNTK(workers.network(), dim=32).features(x, out=folder, rank=0, world_size=2)
    ntk = EmpiricalNTK(_trained(workers.network()), dim=32)
    with pytest.raises(ValueError, match="of another network"):
        ntk.features(x, out=folder, rank=1, world_size=2)
    # Had they come at the same moment:
    (folder / "manifest-1-of-2.json").write_text(
        (folder / "manifest-0-of-2.json").read_text().replace('"seed": 0', '"seed": 1')
    )
    with pytest.raises(ValueError, match="processes with different arguments have written"):
        nf.open_features(folder)


def test_processes_that_come_at_the_same_moment_see_each_other(tmp_path, monkeypatch) -> None:
    """Both had found an empty folder; the other one's seed is another."""
    other, enter = tmp_path / "manifest-1-of-2.json", store.StoreWriter._enter

    def entered(self, spans):
        enter(self, spans)
        manifest = json.loads((tmp_path / "manifest-0-of-2.json").read_text())
        other.write_text(json.dumps({**manifest, "seed": 1}))

    monkeypatch.setattr(store.StoreWriter, "_enter", entered)
    with pytest.raises(ValueError, match="processes with different arguments have written"):
        workers.write_rows(tmp_path, rank=0, world_size=2)
    assert list(tmp_path.iterdir()) == [other]


def test_more_processes_than_points(tmp_path, expected) -> None:
    ntk, folder = EmpiricalNTK(workers.network(), dim=32), tmp_path / "pool"
    lengths = [
        len(ntk.features(workers.points()[:2], out=folder, rank=rank, world_size=5))
        for rank in range(5)
    ]
    assert lengths == [0, 0, 1, 0, 1]
    np.testing.assert_allclose(nf.open_features(folder).features, expected[1][:2], 1e-5, 1e-6)


def test_a_process_group(tmp_path, processes, expected) -> None:
    folder = tmp_path / "pool"
    run(processes, workers.write_pool_in_a_group, [(folder, rank, 2) for rank in range(2)])
    is_pool(folder, expected)


def test_one_sketch_is_fitted_for_all(tmp_path, processes) -> None:
    folder = tmp_path / "pool"
    calls = [(folder, {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    run(processes, workers.write_pool_auto, calls)
    features, _ = nf.open_features(folder)
    assert "sketch.npz" in snapshot(folder)
    # A later EmpiricalNTK takes it from there: other points would have led to another one.
    ntk = EmpiricalNTK(workers.network(), sketch="auto", dim=48, relative_error=0.3)
    written = ntk.features(workers.loader(), out=folder)
    np.testing.assert_array_equal(written, features)
    np.testing.assert_allclose(ntk.features(workers.points()), features, 1e-5, 1e-6)
    # One that has fitted its own has made features that would not fit.
    other = EmpiricalNTK(workers.network(), sketch="auto", dim=48, relative_error=0.3)
    other.fit_sketch(1e3 * workers.points().flip(0))
    before = snapshot(folder)
    with pytest.raises(ValueError, match='another fit of sketch="auto" than this EmpiricalNTK'):
        other.features(workers.loader(), out=folder)
    assert snapshot(folder) == before
    (folder / "sketch.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"sketch.npz is damaged"):
        EmpiricalNTK(workers.network(), sketch="auto", dim=48).features(
            workers.loader(), out=folder
        )


# the page about it


def test_the_page_about_large_pools(tmp_path, monkeypatch) -> None:
    """Its code runs as it is printed; its messages are those that come."""
    page = (Path(__file__).parents[1] / "docs/large-pools.md").read_text(encoding="utf-8")
    section = page[page.index("## Make a store") :].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    labeled_outputs, labeled_features = EmpiricalNTK(
        workers.network(), dim=512
    ).outputs_and_features(workers.points(5).numpy())
    names = {
        "model": workers.network(),
        "pool": TensorDataset(workers.points()),
        "labeled_features": labeled_features,
        "labeled_outputs": labeled_outputs,
        "targets": labeled_outputs.argmax(1),
        "new_points": workers.points(3),
        "np": np,
    }
    for block in (blocks[0], blocks[2]):
        exec(compile(block, "large-pools.md", "exec"), names)
    assert nf.open_features("pool").features.dtype == np.float16
    rest = page[page.index("## Rank from disk") :].split("\n## ")
    names |= {"labels": np.zeros(40, np.int64), "posterior": None}
    for part in rest[:2]:
        for block in re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL):
            exec(compile(block.replace("1000", "40"), "large-pools.md", "exec"), names)
    assert len(names["posterior"].labeled) == 40
    assert names["new_features"].shape == (3, 512)
    with pytest.raises(ValueError) as caught:
        EmpiricalNTK(_trained(workers.network()), dim=512).features(
            names["pool"], out="pool/", dtype="float16"
        )
    assert f"ValueError: {caught.value}" in " ".join(section.split())
