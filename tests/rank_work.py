"""What the ranks of `test_group` do: processes of their own, on loopback, over gloo."""

import contextlib
import datetime
import multiprocessing
import os
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import ntkfast as nf
from ntkfast import arrays, selection
from ntkfast._posterior import covariance, coverage, disk, engines, pool

SIZES = (1, 2, 3, 4, 8)
N, D, K, LABELS = 900, 6, 3, 12


@contextlib.contextmanager
def small_parts():
    """Small leaves, blocks and fronts, so that a small pool has several of each."""
    places = {
        (engines.CpuEngine, "leaf_rows"): 64,
        (engines.GpuEngine, "leaf_rows"): 64,
        (covariance, "EVALUATION_ROWS"): 256,
        (pool, "EVALUATION_ROWS"): 256,
        (disk, "BLOCK_BYTES"): 1 << 11,
        (pool, "BLOCK_BYTES"): 1 << 11,
        (coverage, "BLOCK_BYTES"): 1 << 11,
        (coverage, "_COLUMN_BYTES"): 1 << 15,
        (pool, "_CACHED_BYTES"): 1 << 10,
        (pool, "_FRONT_BYTES"): 1 << 9,
        (pool, "_FRONT_LEAST"): 4,
        (selection, "_ENOUGH"): 12,
    }
    before = {place: getattr(*place) for place in places}
    for place, value in places.items():
        setattr(*place, value)
    try:
        yield
    finally:
        for place, value in before.items():
            setattr(*place, value)


def problem():
    rng = np.random.default_rng(7)
    phi = rng.normal(size=(N, D)) * np.exp(0.3 * rng.normal(size=(N, 1)))
    f = rng.normal(size=(N, K))
    best = int(np.argmax((phi**2).sum(1)))
    for copy in (20, 500, 880):  # ties, on several ranks
        phi[copy], f[copy] = phi[best], f[best]
    labelled = rng.normal(size=(LABELS, D)).astype(np.float32), rng.normal(size=(LABELS, K))
    return phi.astype(np.float32), f, *labelled, rng.integers(0, K, LABELS)


def bounds(size):
    """Unequal parts of the pool, one of them within a leaf."""
    cuts = np.sort(np.random.default_rng(size).choice(np.arange(70, N), size - 1, replace=False))
    if size > 2:
        cuts[0] = cuts[1] - 1
    return np.concatenate([[0], cuts, [N]])


def second_best(points, utilities):
    return int(np.lexsort((points, -utilities))[min(1, len(points) - 1)])


def results(path, mine=slice(None), convert=lambda a: a, group=None):
    """Every kind of call, by name; those of one process where `mine` is all."""
    phi, f, phi_l, f_l, y = problem()
    rng = np.random.default_rng(3)
    some = rng.choice(N, 70, replace=False)  # in no order
    few = dict(candidates=rng.choice(N, 50, replace=False), evaluation=some)
    found = {}

    def state(name, post):
        found[f"{name}: mean"], found[f"{name}: variance"] = post.mean, post.variance
        found[f"{name}: labeled"] = post.labeled
        found[f"{name}: covariance"] = post.covariance([1, 899, 500], [899, 7])
        found[f"{name}: settings"] = [len(post), post.ridge, post.label_scale]

    def picks(name, post, criterion, batch_size, **keywords):
        selection = nf.select(post, criterion, batch_size, **keywords)
        found[f"{name}: {criterion}"] = selection.indices
        found[f"{name}: {criterion} utilities"] = selection.utilities

    fit = lambda *labels: nf.Posterior.from_features(  # noqa: E731
        convert(phi[mine]), f[mine], *labels, loss="cross_entropy", labeled_indices=[3, 5],
        group=group,
    )  # fmt: skip
    post = fit(phi_l, f_l, y)
    state("labels", post)
    picks("labels", post, "fisher_variance_reduction", 9)
    found["utilities"] = nf.utilities(
        post, "variance_reduction", evaluation=some, weights=rng.random(70)
    )
    picks("few", post, "expected_entropy", 4, **few, label_probs=rng.dirichlet(np.ones(K), 50))
    picks("top", post, "epig", 5, mode="top", candidates=np.arange(N) % 3 == 1)
    picks("spread", post, "d_optimal", 20, noise=np.where(np.arange(N - 2) % 5, 0.5, np.inf))
    covering = few | dict(weights=0.5 + rng.random(70))
    picks("covering", post, "max_herding", 6, **covering, similarity="cosine")
    picks("covering", post, "uncertainty_herding", 6, candidates=np.arange(0, N, 7))
    picks("covering", post, "prob_cover", 6, evaluation=some)
    picks("covering", post, "fisher_herding", 7, candidates=np.arange(0, N, 7))
    picks("covering few", post, "fisher_herding", 7, **covering, similarity="cosine")
    apart = dict(candidates=few["candidates"], evaluation=some[:12])  # entropy counts as well
    picks("covering apart", post, "fisher_herding", 7, **apart)
    picks("covering top", post, "max_herding", 6, mode="top", **covering)
    for criterion in ("variance_reduction", "emoc", "d_optimal", "fisher_herding"):
        picks("chosen", post, criterion, 4, **few, choose=second_best)
    picks("chosen of the top", post, "epig", 3, mode="top", **few, choose=second_best)
    for step, points in enumerate([[700], [100, 20, 899, 21, 500, 20]]):
        post.condition(points, np.arange(len(points)) % K)
        state(f"step {step}", post)
    picks("steps", post, "variance_reduction", 12, candidates=np.arange(200, 700))
    found["predict"] = post.predict(phi_l, f_l)
    post.save(path)
    loaded = nf.Posterior.load(path, group=group).to(post.mean)
    state("loaded", loaded)
    loaded.condition([4], [1])
    picks("loaded", loaded, "fisher_variance_reduction", 5)
    picks("loaded", loaded, "max_herding", 3, **few)
    post = fit(None, None, None)  # ridge and label scale are means over all points
    state("none", post)
    picks("none", post, "uncertainty_herding", 5, **few)
    picks("none", post.copy(), "variance_reduction", 6, noise=np.linspace(1, 2, N - 2))
    picks("noise", post, "mlmoc", 3, **few, noise=np.where(np.arange(50) % 2, np.inf, 1.0))
    return {name: np.array(array) for name, array in found.items()}


def learner(rows=slice(None), group=None):
    torch.manual_seed(0)
    X = torch.randn(90, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    made = nf.LookAheadLearner(
        model, criterion="fisher_variance_reduction", dim=64, evaluation_size=40, group=group
    )
    made.fit(X[:5], ["a", "b", "c", "a", "b"], X[5:][rows])
    first = made.query(4)
    made.update(first, ["a", "c", "b", "b"])
    second = made.query(4)
    v = np.random.default_rng(0).random(85)
    others = [
        made.query(4, criterion=criterion, weights=v, choose=second_best if i % 2 else None).indices
        for i, criterion in enumerate(("d_optimal", "emoc", "uncertainty_herding"))
    ]
    q = np.full((85, 3), 1 / 3)
    others.append(made.query(2, criterion="expected_log_loss", log_loss_targets=q).indices)
    wrong = group is None or dist.get_rank() == 0
    with pytest.raises((RuntimeError, ValueError), match="none of the classes"):
        made.update(first, ["a", "c", "b", "z" if wrong else "b"])
    return {
        "first": first.indices,
        "second": second.indices,
        "others": np.concatenate(others),
        "predict": made.predict(X[:5]),
    }


def pretend_gpu():
    """CPU tensors count as those of a GPU, on doubles of its operations."""
    import gpu_doubles

    engines.cuda_ops, arrays._GPU_TYPES = gpu_doubles.Operations(), ("cuda", "cpu")


def of_all_sizes(rank, folder):
    groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    for size, group in groups.items():
        if rank >= size:
            continue
        first, last = bounds(size)[rank : rank + 2]
        path = folder / f"features-{size}-{rank}.npy"

        def on_disk(array, path=path):
            np.save(path, array)
            return np.load(path, mmap_mode="r")

        # On every second rank the features are on disk.
        convert = on_disk if rank % 2 else (lambda a: a)
        with small_parts():
            found = results(folder / f"saved-{size}.npz", slice(first, last), convert, group)
        np.savez(folder / f"results-{size}-{rank}.npz", **found)
    if rank < 3:
        found = learner(slice((0, 17, 50)[rank], (17, 50, 85)[rank]), groups[3])
        np.savez(folder / f"learner-{rank}.npz", **found)
    if rank < 2:
        pretend_gpu()
        first, last = bounds(2)[rank : rank + 2]
        with small_parts():
            path = folder / "saved-gpu.npz"
            found = results(path, slice(first, last), torch.tensor, groups[2])
        np.savez(folder / f"gpu-{rank}.npz", **found)


def failing(rank, folder):
    """Calls that must end with an error on all of three ranks; what each of them said."""
    phi, f, phi_l, f_l, y = problem()
    rows = slice(rank * 300, rank * 300 + 300)
    said, group = [], dist.group.WORLD
    short = dist.new_group(timeout=datetime.timedelta(seconds=3))

    def fit(rows=rows, group=group, **changes):
        given = dict(features=phi[rows], outputs=f[rows], labeled_features=phi_l) | changes
        labels = dict(labeled_outputs=f_l, targets=y, loss="squared")
        return nf.Posterior.from_features(**labels | given, group=group)

    post = fit()
    before = post.mean, post.variance, nf.select(post, "variance_reduction", 3).indices
    same = lambda found: all(map(np.array_equal, before, found))  # noqa: E731

    def refused(call):
        try:
            call()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("nothing")

    wrong = phi[rows].copy()
    wrong[4, 2] = np.nan
    refused(lambda: fit(features=wrong if rank == 1 else phi[rows]))
    refused(lambda: fit(features=phi[rows, : 6 - rank // 2], labeled_features=None, targets=None,
                        labeled_outputs=None))  # fmt: skip
    refused(lambda: fit(labeled_features=phi_l + (rank == 2)))
    refused(lambda: post.condition([5], [rank % 2]))
    refused(lambda: post.condition([5 if rank else 900], [1]))
    refused(lambda: nf.select(post, "variance_reduction", 3 + (rank == 1)))
    refused(
        lambda: (nf.utilities if rank else post.covariance)(*((post, "epig"), ([1], [2]))[not rank])
    )
    refused(lambda: post.save(folder / ("nowhere" if rank == 1 else ".") / "x.npz"))
    said.append(f"files: {len(list(folder.glob('*x*.npz')))}")
    post.save(folder / "some.npz")
    if rank == 1:
        (folder / "some-1-of-3.npz").unlink()
    dist.barrier()
    refused(lambda: nf.Posterior.load(folder / "some.npz", group=group))
    refused(lambda: nf.Posterior.load(folder / "some-0-of-3.npz"))
    refused(lambda: nf.Posterior.load(folder / "some.npz"))
    few = dict(evaluation=[1, 2, 3], candidates=[4, 5, 600])
    refused(lambda: nf.select(post, "epig", 2, **few, choose=lambda points, utilities: rank))
    refused(lambda: nf.select(post, "max_herding", 2, **few,
                              choose=lambda points, utilities: 0 if rank == 1 else 7))  # fmt: skip
    refused(lambda: nf.utilities(post, "max_herding", radius=1.0 + rank))
    refused(lambda: post.extend(phi, f))
    refused(post.__getstate__)
    after = post.mean, post.variance, nf.select(post, "variance_reduction", 3).indices
    said.append(f"as before: {same(after)}")
    late = fit(group=short)
    if rank != 1:  # which does not call
        refused(lambda: late.condition([5], [1]))
        said.append(f"as before: {same((late.mean, late.variance, before[2]))}")
    if rank == 2:  # dies in the middle of the call
        covariance.WeightSpace._updated = lambda *_: os._exit(7)
    refused(lambda: post.condition([5], [1]))
    said.append(f"as before: {same((post.mean, post.variance, before[2]))}")
    (folder / f"said-{rank}.txt").write_text("\n".join(said))
    os._exit(0)  # a group that has lost a rank cannot be left in order


def start(rank, size, folder, work):
    warnings.simplefilter("ignore")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(minutes=3),
        )
        work(rank, folder)
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    # Without the farewells of a group: others may have left.
    os._exit(0)


def run(size, folder, work):
    """Run `work` on so many ranks; return what has gone wrong there."""
    context = multiprocessing.get_context("forkserver")
    # By names that are installed: the server does not know this folder, and passes over the rest.
    context.set_forkserver_preload(["pytest", "torch.distributed", "ntkfast.learner"])
    ranks = [
        context.Process(target=start, args=(rank, size, Path(folder), work), daemon=True)
        for rank in range(size)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(240)
        if one.is_alive():
            one.kill()
    return "\n".join(path.read_text() for path in sorted(Path(folder).glob("error-*.txt")))
