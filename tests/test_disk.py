"""Features that stay on disk: the results from memory, bit for bit, in bounded memory."""

import copy
import os
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from rank_work import small_parts

import ntkfast as nf
from ntkfast._posterior import disk, engines, pool

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")
N, D, K = 2000, 8, 3


@pytest.fixture(autouse=True)
def parts():
    with small_parts():
        yield


def arrays(labels, dtype=np.float32):
    rng = np.random.default_rng(labels)
    phi = rng.normal(size=(N, D)) * np.exp(0.3 * rng.normal(size=(N, 1)))
    phi[[30, 1500]] = phi[700]  # a tie
    f = rng.normal(size=(N, K))
    f[[30, 1500]] = f[700]
    labelled = [None] * 3
    if labels:
        labelled = [
            rng.normal(size=(labels, D)).astype(np.float32),
            rng.normal(size=(labels, K)),
            rng.integers(0, K, labels),
        ]
    return phi.astype(dtype), f, labelled


def both(folder, labels, dtype=np.float32):
    """Posteriors of the same features in memory and on disk."""
    phi, f, labelled = arrays(labels, dtype)
    np.save(folder / "phi.npy", phi)
    held = phi.astype(np.float32) if dtype == np.float16 else phi
    return [
        nf.Posterior.from_features(
            features, f, *labelled, loss="cross_entropy", labeled_indices=[3, 5]
        )
        for features in (held, np.load(folder / "phi.npy", mmap_mode="r"))
    ]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


def batches(post, criterion, batch_size, **keywords):
    for mode in ("sequential", "top"):
        found = nf.select(post, criterion, batch_size, mode, **keywords)
        yield from (found.indices, found.utilities)


def post_free(post):
    return np.setdiff1d(np.arange(N), post.labeled)


def third_best(points, utilities):
    """Of as many as there are; a look at all utilities."""
    order = np.lexsort((points, -utilities))
    return order[min(2, len(order) - 1)]


def state(post):
    yield from (post.mean, post.variance, post.labeled, post.covariance([1, 1999], [7, 0]))
    yield [len(post), post.ridge, post.label_scale]


@pytest.mark.parametrize(
    ("labels", "dtype"), [(0, np.float32), (3, np.float16), (30, np.float32), (3, np.float64)]
)
def test_everything_is_as_from_memory(labels, dtype, tmp_path):
    held, on_disk = both(tmp_path, labels, dtype)
    rng = np.random.default_rng(1)
    some = rng.choice(N, 300, replace=False)
    few = dict(candidates=rng.choice(N, 200, replace=False), evaluation=some)
    weights = rng.random(N)
    for points in ([], [9], [700, 30, 700, 1500, 8, 9]):
        if points:
            for post in (held, on_disk):
                post.condition(points, np.arange(len(points)) % K)
        assert_same(state(held), state(on_disk))
        for criterion, size, keywords in [
            ("fisher_variance_reduction", 30, {}),
            ("variance_reduction", 30, few),
            ("variance_reduction", 5, dict(evaluation=some, precision="float64")),
            ("variance_reduction", 5, dict(candidates=few["candidates"], weights=weights)),
            ("expected_entropy", 4, few),
            ("mlmoc", 3, dict(candidates=np.arange(N) % 2 == 0, evaluation=some)),
            ("epig", 3, few),
            ("d_optimal", 40, {}),
            (
                "d_optimal",
                5,
                dict(noise=np.where(rng.random(N) < 0.3, np.inf, 2.0)[post_free(held)]),
            ),
            ("max_herding", 6, few),
            ("max_herding", 6, few | dict(similarity="cosine", precision="float64")),
            ("uncertainty_herding", 12, dict(evaluation=some)),
            ("prob_cover", 6, few),
            ("fisher_herding", 8, few),
            ("fisher_herding", 8, dict(evaluation=some, weights=weights[some], radius=0.3)),
            ("fisher_herding", 8, dict(evaluation=some[:12])),  # far apart: entropy counts as well
        ]:
            assert_same(
                [nf.utilities(held, criterion, **keywords)],
                [nf.utilities(on_disk, criterion, **keywords)],
            )
            assert_same(
                batches(held, criterion, size, **keywords),
                batches(on_disk, criterion, size, **keywords),
            )
    for criterion in ("fisher_variance_reduction", "emoc", "d_optimal", "fisher_herding"):
        assert_same(
            batches(held, criterion, 5, choose=third_best, **few),
            batches(on_disk, criterion, 5, choose=third_best, **few),
        )
    new = rng.normal(size=(4, D)).astype(np.float32), rng.normal(size=(4, K))
    assert_same([held.predict(*new)], [on_disk.predict(*new)])
    twin = copy.copy(on_disk)
    twin.condition([1], [1])
    assert_same(state(held), state(on_disk))


@pytest.mark.parametrize("labels", [0, 4, 10])
def test_blocks(labels, tmp_path, monkeypatch):
    """k rows for each point; the moments stay on disk, pairs are of points in memory."""
    n = 600
    rng = np.random.default_rng(labels)
    phi, f = rng.normal(size=(n * K, D)).astype(np.float32), rng.normal(size=(n, K))
    np.save(tmp_path / "phi.npy", phi)
    labelled = [None] * 3
    if labels:
        labelled = [rng.normal(size=(labels * K, D)).astype(np.float32),
                    rng.normal(size=(labels, K)), rng.integers(0, K, labels)]  # fmt: skip
    held, on_disk = (
        nf.Posterior.from_features(features, f, *labelled, loss="cross_entropy")
        for features in (phi, np.load(tmp_path / "phi.npy", mmap_mode="r"))
    )
    few = dict(candidates=rng.choice(n, 40, replace=False), evaluation=rng.choice(n, 50))
    few["evaluation"] = np.unique(few["evaluation"])[::-1]
    for points in ([], [7, 3, 7]):
        if points:
            for post in (held, on_disk):
                post.condition(points, np.arange(len(points)) % K)
        assert_same((held.mean, held.variance), (on_disk.mean, on_disk.variance))
        assert_same([held.covariance([1, 9], [7])], [on_disk.covariance([1, 9], [7])])
        for criterion, size, keywords in [
            ("fisher_variance_reduction", 20, {}),
            ("variance_reduction", 5, few),
            ("variance_reduction", 5, dict(candidates=few["candidates"])),
            ("epig", 3, few),
            ("emoc", 3, few),
            ("d_optimal", 5, {}),
        ]:
            assert_same(
                [nf.utilities(held, criterion, **keywords)],
                [nf.utilities(on_disk, criterion, **keywords)],
            )
            assert_same(
                batches(held, criterion, size, **keywords),
                batches(on_disk, criterion, size, **keywords),
            )
    on_disk.save(tmp_path / "post.npz")
    loaded = nf.Posterior.load(tmp_path / "post.npz")
    assert_same(batches(held, "emoc", 3, **few), batches(loaded, "emoc", 3, **few))
    monkeypatch.setattr(pool, "HELD_BYTES", 1000)
    nf.select(on_disk, "variance_reduction", 3)
    with pytest.raises(
        ValueError, match=r"candidates: epig over k x k blocks holds .* pass samples"
    ):
        nf.select(on_disk, "epig", 2)


def test_float16_rows_are_taken_however_they_were_cut(tmp_path):
    """Chosen by indices they are no map any more."""
    phi, f, _ = arrays(0, np.float16)
    np.save(tmp_path / "phi.npy", phi)
    found = []
    for rows in (phi.astype(np.float32), np.load(tmp_path / "phi.npy", mmap_mode="r")):
        post = nf.Posterior.from_features(
            rows, f, rows[[0, 5]], f[[0, 5]], [1, 0], loss="cross_entropy", labeled_indices=[0, 5]
        )
        found.append((post.mean, post.predict(rows[[7, 2]], f[[7, 2]])))
    assert_same(*found)


def test_picks_that_the_front_misses_are_found(tmp_path, monkeypatch):
    """Groups are right where candidates outside the front are better: a pass finds them."""
    held, on_disk = both(tmp_path, 3)
    found, better = [], pool.PoolMoments._better

    def watched(*arguments):
        found.append(better(*arguments))
        return found[-1]

    monkeypatch.setattr(pool.PoolMoments, "_better", watched)
    assert_same(
        batches(held, "variance_reduction", 200), batches(on_disk, "variance_reduction", 200)
    )
    assert any(one is not None for one in found) and any(one is None for one in found)


def test_a_batch_does_not_read_the_disk_for_each_pick(tmp_path, monkeypatch):
    rows, read = [], disk.Source.read
    monkeypatch.setattr(disk.Source, "read", lambda *a: (rows.append(a[2] - a[1]), read(*a))[1])
    monkeypatch.setattr(pool, "_FRONT_LEAST", 400)
    _, on_disk = both(tmp_path, 3)
    assert sum(rows) == N  # built in one pass
    rows.clear()
    nf.utilities(on_disk, "variance_reduction")
    assert sum(rows) == 2 * N  # G, then q
    rows.clear()
    nf.select(on_disk, "variance_reduction", 100)
    assert sum(rows) <= 20 * N
    taken, take = [], disk.Source.take
    monkeypatch.setattr(disk.Source, "take", lambda *a: (taken.append(len(a[1])), take(*a))[1])
    for criterion in ("d_optimal", "max_herding"):
        rows.clear()
        taken.clear()
        nf.select(on_disk, criterion, 40, evaluation=range(0, N, 9))
        assert sum(rows) <= 2 * N and sum(taken) < 10 * N, criterion
    rows.clear()
    on_disk.condition([1, 2], [0, 1])
    assert sum(rows) == N


def test_the_pool_is_never_in_memory(tmp_path, monkeypatch):
    N, D = 20000, 256
    monkeypatch.setattr(engines.CpuEngine, "leaf_rows", 1024)
    for place in (disk, pool):
        monkeypatch.setattr(place, "BLOCK_BYTES", 1 << 20)
    for name in ("_FRONT_BYTES", "_CACHED_BYTES"):
        monkeypatch.setattr(pool, name, 1 << 18)
    rng = np.random.default_rng(0)
    path = tmp_path / "phi.npy"
    np.save(path, rng.normal(size=(N, D)).astype(np.float32))
    f = rng.normal(size=(N, 2))
    tracemalloc.start()
    try:
        post = nf.Posterior.from_features(
            np.load(path, mmap_mode="r"), f, None, None, None, loss="cross_entropy"
        )
        post.condition([1, 2, 3], [0, 1, 0])
        nf.select(post, "fisher_variance_reduction", 5)
        nf.select(post, "epig", 2, evaluation=range(50))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * path.stat().st_size


def test_what_is_not_finite_is_located(tmp_path):
    phi, f, labelled = arrays(3)
    for labels in ([None] * 3, labelled):
        phi[1234, 5] = np.inf
        np.save(tmp_path / "phi.npy", phi)
        with pytest.raises(ValueError, match="features contains inf at row 1234, column 5"):
            nf.Posterior.from_features(np.load(tmp_path / "phi.npy", mmap_mode="r"), f, *labels)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_parts_orders_and_modes_of_a_map(mode, tmp_path):
    phi, f, _ = arrays(0)
    expected = phi[400:1400, 1:].copy()
    np.save(tmp_path / "phi.npy", np.asfortranarray(phi) if mode == "r" else phi.astype(">f4"))
    features = np.load(tmp_path / "phi.npy", mmap_mode=mode)
    if mode == "c":  # what is written is in memory alone, and stays
        features[500] = expected[100] = 2.0
    post = nf.Posterior.from_features(features[400:1400, 1:], f[400:1400], None, None, None)
    held = nf.Posterior.from_features(expected, f[400:1400], None, None, None)
    for _ in range(2):
        assert_same(
            batches(held, "variance_reduction", 20), batches(post, "variance_reduction", 20)
        )
    assert_same(state_of_part(held), state_of_part(post))
    if mode == "c":
        with pytest.raises(ValueError, match="whose changes no file has: write them to a file"):
            post.save(tmp_path / "post.npz")
        return
    post.save(tmp_path / "post.npz")
    assert_same(state_of_part(held), state_of_part(nf.Posterior.load(tmp_path / "post.npz")))


class GpuInName:
    on_gpu = True


def state_of_part(post):
    return post.mean, post.variance, post.covariance([1, 999], [7, 0])


@pytest.mark.parametrize("labels", [0, 3, 30])
def test_a_file_refers_to_the_features(labels, tmp_path):
    """The state goes on where it was, wherever the folder is, and however often it is saved."""
    folder = tmp_path / "a"
    folder.mkdir()
    held, on_disk = both(folder, labels)
    for post in (held, on_disk):
        post.condition([9, 700], [0, 1])
    on_disk.save(folder / "post.npz")
    assert (folder / "post.npz").stat().st_size < 60 * N + 50000  # without features
    shutil.copytree(folder, tmp_path / "b")
    folder.rename(tmp_path / "c")
    for place in "b", "c":
        loaded = nf.Posterior.load(tmp_path / place / "post.npz")
        assert_same(state(held), state(loaded))
        for post in (held.copy(), loaded):
            post.condition([5, 1], [2, 0], [0.5, np.inf])
        loaded.save(tmp_path / place / "post.npz")
    held.condition([5, 1], [2, 0], [0.5, np.inf])
    # Seen from the root, or with the features given.
    (tmp_path / "c" / "post.npz").rename(tmp_path / "post.npz")
    moved = nf.Posterior.load(tmp_path / "post.npz")
    (tmp_path / "c").rename(tmp_path / "d")
    with pytest.raises(ValueError, match=r"c.phi.npy, which is not there: pass features=np.load"):
        nf.Posterior.load(tmp_path / "post.npz")
    features = np.load(tmp_path / "d" / "phi.npy", mmap_mode="r")
    given = nf.Posterior.load(tmp_path / "post.npz", features)
    for loaded in (moved, given, pickle.loads(pickle.dumps(given)), given.to("cpu")):
        if loaded is not moved:
            assert_same(state(held), state(loaded))
        for criterion in ("fisher_variance_reduction", "d_optimal"):
            assert_same(batches(held, criterion, 20), batches(loaded, criterion, 20))
        some = dict(evaluation=range(100), candidates=range(100, 200))
        assert_same(
            batches(held, "max_herding", 5, **some), batches(loaded, "max_herding", 5, **some)
        )


def test_features_that_have_changed_are_refused(tmp_path):
    _, post = both(tmp_path, 3)
    post.save(tmp_path / "post.npz")
    pickled = pickle.dumps(post)
    load = lambda: nf.Posterior.load(tmp_path / "post.npz")  # noqa: E731
    path, as_it_was = tmp_path / "phi.npy", tmp_path / "as_it_was.npy"
    shutil.copy2(path, as_it_was)
    load()
    stamp = path.stat().st_atime_ns, path.stat().st_mtime_ns
    np.save(path, arrays(4)[0])
    os.utime(path, ns=stamp)  # as if nobody had touched it
    with pytest.raises(ValueError, match="have been changed since"):
        load()
    shutil.copy2(as_it_was, path)
    os.utime(path)  # touched, and the same
    load()
    with pytest.raises(ValueError, match=r"pickled posterior .* have been changed or moved"):
        pickle.loads(pickled)
    changed = np.load(path, mmap_mode="r+")
    changed[1237, 3] += 1.0  # of none of the sampled rows
    changed.flush()
    with pytest.raises(
        ValueError, match=r"post.npz is of features in .*phi.npy, and these have been"
    ):
        load()
    for other in (arrays(4)[0], arrays(3)[0][:1000], arrays(3)[0].astype(np.float64)):
        np.save(path, other)
        with pytest.raises(ValueError, match="have been changed since: build the posterior again"):
            load()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="have been changed since"):
        load()
    with pytest.raises(ValueError, match=r"features: .*post.npz was saved with others"):
        nf.Posterior.load(tmp_path / "post.npz", np.load(as_it_was, mmap_mode="r")[::-1])
    with pytest.raises(TypeError, match=r"features must be a memory map: np\.load"):
        nf.Posterior.load(tmp_path / "post.npz", np.load(as_it_was))
    shutil.copy2(as_it_was, path)
    loaded = load()
    assert_same(state(post), state(loaded))
    held, _ = both(tmp_path, 3)
    held.save(tmp_path / "held.npz")
    with pytest.raises(ValueError, match="holds its features itself; leave them out"):
        nf.Posterior.load(tmp_path / "held.npz", loaded._space.source.array)


def test_damaged_files_are_refused(tmp_path):
    _, post = both(tmp_path, 3)
    post.save(tmp_path / "post.npz")
    with np.load(tmp_path / "post.npz") as archive:
        stored = dict(archive)
    damaged = tmp_path / "damaged.npz"
    for name in stored:
        if name in ("relative", "format"):
            continue
        np.savez(damaged, **{key: value for key, value in stored.items() if key != name})
        with pytest.raises(ValueError, match="damaged"):
            nf.Posterior.load(damaged)
    for changes in (
        dict(variance=stored["variance"][1:]),
        dict(update_0_C=stored["update_0_C"][:, 1:]),
        dict(theta=stored["theta"][1:]),
        dict(source=np.array("{}")),
        dict(mean=stored["mean"][1:]),
    ):
        np.savez(damaged, **stored | changes)
        with pytest.raises(ValueError, match="is damaged"):
            nf.Posterior.load(damaged)
    np.savez(damaged, **stored | dict(version=np.array(5)))
    with pytest.raises(ValueError, match="has version 5; this ntkfast reads up to 4"):
        nf.Posterior.load(damaged)


def test_what_needs_all_features_is_refused(tmp_path, monkeypatch):
    held, post = both(tmp_path, 3)
    phi, f, _ = arrays(0)
    before = list(state(post))
    with pytest.raises(ValueError, match="write the new points into the files"):
        post.extend(phi[:2], f[:2])
    monkeypatch.setattr("ntkfast.posterior.engine_of", lambda library: GpuInName())
    with pytest.raises(ValueError, match="to: features on disk are worked on by the CPU"):
        post.to(phi)
    monkeypatch.undo()
    np.save(tmp_path / "whole.npy", np.ones((4, 2), int))
    with pytest.raises(TypeError, match="features has dtype int64; expected float16"):
        nf.Posterior.from_features(
            np.load(tmp_path / "whole.npy", mmap_mode="r"), f[:4], None, None, None
        )
    monkeypatch.setattr(pool, "HELD_BYTES", 1000)
    for criterion in ("epig", "max_herding"):
        with pytest.raises(ValueError, match=f"evaluation: .* {criterion} .* pass a sample"):
            nf.select(post, criterion, 2, candidates=[1, 2, 3])
    assert_same(batches_of_top(held), batches_of_top(post))
    assert_same(before, state(post))


def batches_of_top(post):
    found = nf.select(post, "epig", 2, "top", candidates=[1, 2, 3])
    return found.indices, found.utilities
