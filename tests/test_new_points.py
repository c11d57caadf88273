"""New points of a posterior from a kernel: `predict` and `extend` against refitting in float64."""

import copy
import pickle
import re

import numpy as np
import pytest
from problems import golden, relative_error

import ntkfast as nf

K_OUTPUTS = 3
given_labels = pytest.mark.parametrize("n", [0, 1, 6, 20])


class Case:
    """Points, N of them given at first, m later, and n labelled ones; a kernel of length scales."""

    def __init__(self, n, N=14, m=5, per_point=1, seed=0):
        rng = np.random.default_rng(seed)
        self.n, self.N, self.m, self.per_point = n, N, m, per_point
        phi = rng.normal(size=((N + m + n) * per_point, 60)) / 8
        self.K = phi @ phi.T
        self.K = (self.K + self.K.T) / 2
        self.f = rng.normal(size=(N + m + n, K_OUTPUTS))
        self.T = rng.normal(size=(n, K_OUTPUTS))
        self.noise = rng.uniform(0.05, 0.3, n)
        self.u, self.v, self.l = np.arange(N), np.arange(N, N + m), np.arange(N + m, N + m + n)
        self.labels = [(self.l, self.T, self.noise)]

    def block(self, a, b):
        rows, columns = (
            (points[:, None] * self.per_point + np.arange(self.per_point)).ravel()
            for points in (a, b)
        )
        return self.K[np.ix_(rows, columns)]

    def posterior(self, dtype=np.float64, put=lambda a: a, ridge=0.1, noise=None):
        l = self.l if self.n else None  # noqa: E741
        kernels = [self.block(self.u, self.u)]
        kernels += [None, None] if l is None else [self.block(l, self.u), self.block(l, l)]
        return nf.Posterior.from_kernel(
            *(None if K is None else put(K.astype(dtype)) for K in kernels),
            put(self.f[self.u]),
            put(self.f[self.l]),
            put(self.T),
            ridge,
            noise=put(self.noise if noise is None else noise) if self.n else None,
        )

    def condition(self, post, points, ridge=0.1, put=lambda a: a):
        """Label points, by their position in the posterior."""
        T = np.random.default_rng(len(self.labels)).normal(size=(len(points), K_OUTPUTS))
        post.condition(put(np.asarray(points)), put(T))
        everything = np.concatenate([self.u, self.v])  # those of an extended posterior
        self.labels.append((everything[points], T, np.full(len(points), ridge)))

    def new(self, dtype=np.float64, put=lambda a: a, of=None, names=("K_lv", "K_uv"), known=None):
        of = self.v if of is None else of
        known = self.u if known is None else known
        kernels = {"K_lv": (self.l, of), "K_uv": (known, of), "K_vv": (of, of)}
        result = {name: put(self.block(*kernels[name]).astype(dtype)) for name in names}
        if self.n == 0:
            result.pop("K_lv", None)
        return result | {"outputs": put(self.f[of])}

    def refitted(self, points):
        """F and S of any points, by solving for all labels at once in float64."""
        A = np.concatenate([of for of, _, _ in self.labels]).astype(int)
        T = np.concatenate([T for _, T, _ in self.labels])
        D = np.repeat(np.concatenate([noise for _, _, noise in self.labels]), self.per_point)
        finite = np.isfinite(D)
        cross = self.block(A, points)[finite]
        gain = np.linalg.solve(self.block(A, A)[np.ix_(finite, finite)] + np.diag(D[finite]), cross)
        residual = T - self.f[A]
        residual = residual.reshape(-1, 1) if self.per_point > 1 else residual
        change = (gain.T @ residual[finite]).reshape(len(points), K_OUTPUTS)
        return self.f[points] + change, self.block(points, points) - gain.T @ cross


def assert_is(post, case, points, tolerance=1e-10, host=lambda a: a):
    F, S = case.refitted(points)
    every = range(len(points))
    assert len(post) == len(points)
    assert relative_error(host(post.mean), F) <= tolerance
    assert np.abs(host(post.covariance(every, every)) - S).max() <= tolerance
    variance = np.diag(S).reshape(host(post.variance).shape)
    assert np.abs(host(post.variance) - variance).max() <= tolerance


@given_labels
@pytest.mark.parametrize("per_point", [1, K_OUTPUTS])
def test_a_stream_of_labels_and_points(n, per_point):
    case = Case(n, per_point=per_point)
    post = case.posterior()
    everything = np.concatenate([case.u, case.v])
    first, second = case.v[:3], case.v[3:]
    for points in ([], [2], [3, 7, 9], [2, 2]):  # a point again, and twice in one call
        if points:
            case.condition(post, points)
        F, _ = case.refitted(case.v)
        assert relative_error(post.predict(**case.new()), F) <= 1e-10
    old = post.predict(**case.new(of=case.u))  # points that are here, too
    assert relative_error(old, post.mean) <= 1e-10
    post.extend(**case.new(of=first, names=("K_lv", "K_uv", "K_vv")))
    assert_is(post, case, everything[:-2])
    case.condition(post, [15, 4])  # one of the new points
    assert_is(post, case, everything[:-2])
    known = everything[:-2]
    F, _ = case.refitted(second)
    assert relative_error(post.predict(**case.new(of=second, known=known)), F) <= 1e-10
    post.extend(**case.new(of=second, known=known, names=("K_lv", "K_uv", "K_vv")))
    case.condition(post, [18])
    assert_is(post, case, everything)
    assert post.labeled.tolist() == [2, 3, 4, 7, 9, 15, 18]


def test_nothing_is_labelled():
    case = Case(0)
    post = case.posterior()
    np.testing.assert_array_equal(post.predict(outputs=case.f[case.v]), case.f[case.v])
    blocks = Case(0, per_point=K_OUTPUTS)
    found = blocks.posterior().predict(outputs=blocks.f[blocks.v])
    np.testing.assert_array_equal(found, blocks.f[blocks.v])
    post.extend(**case.new(names=("K_uv", "K_vv")))
    case.labels = [(np.empty(0, int), np.empty((0, K_OUTPUTS)), np.empty(0))]
    assert_is(post, case, np.concatenate([case.u, case.v]))


@given_labels
def test_on_any_device_and_in_any_type(n, anywhere):
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 3e-6)):
        case = Case(n)
        post = case.posterior(dtype, anywhere.put)
        case.condition(post, [1, 5], put=anywhere.put)
        new = case.new(dtype, anywhere.put)
        F, _ = case.refitted(case.v)
        assert relative_error(anywhere.host(post.predict(**new)), F) <= tolerance
        post.extend(**case.new(dtype, anywhere.put, names=("K_lv", "K_uv", "K_vv")))
        case.condition(post, [16], put=anywhere.put)
        everything = np.concatenate([case.u, case.v])
        assert_is(post, case, everything, tolerance, anywhere.host)
        assert np.dtype(dtype).name in repr(post)


def test_small_noises():
    """Labels of one point are merged, and still belong to the right row of K_lv."""
    case = Case(8)
    case.l[5] = case.l[2]
    case.noise = np.full(8, 1e-9)
    case.noise[3] = np.inf
    case.labels = [(case.l, case.T, case.noise)]
    post = case.posterior(ridge=1e-9)
    case.condition(post, [4, 6], 1e-9)
    F, _ = case.refitted(case.v)
    assert relative_error(post.predict(**case.new()), F) <= 1e-5
    post.extend(**case.new(names=("K_lv", "K_uv", "K_vv")))
    case.condition(post, [15], 1e-9)
    assert_is(post, case, np.concatenate([case.u, case.v]), 1e-5)


def test_a_float32_posterior_becomes_float64_where_new_points_need_it():
    case = Case(4)
    case.K[14 * 1 : 19, :] *= 1e3
    case.K[:, 14:19] *= 1e3  # the new points: the same kernel in other units
    post = case.posterior(np.float32)
    assert "float32" in repr(post)
    post.extend(**case.new(np.float32, names=("K_lv", "K_uv", "K_vv")))
    assert "float64" in repr(post)
    F, S = case.refitted(np.concatenate([case.u, case.v]))
    assert np.abs(post.covariance(range(19), range(19)) - S).max() <= 1e-6 * S.max()
    assert relative_error(post.mean, F) <= 1e-4


def test_cross_entropy():
    """Residuals are those at the time of each call, also for points that were not there then."""
    p = golden("cross_entropy")
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    K = phi @ phi.T
    settings = dict(ridge=p["lam"], loss="cross_entropy", label_scale=p["scale"])
    labels = p["f_l"], p["T"]
    cross = p["phi_l"] @ phi.T
    whole = nf.Posterior.from_kernel(K, cross, p["K_ll"], f, *labels, **settings)
    part = nf.Posterior.from_kernel(
        K[:20, :20], cross[:, :20], p["K_ll"], f[:20], *labels, **settings
    )
    for i, c in ((3, 1), (7, 0), (3, 2)):
        whole.condition([i], [c])
        part.condition([i], [c])
    new = dict(K_lv=cross[:, 20:], K_uv=K[:20, 20:], outputs=f[20:])
    assert relative_error(part.predict(**new), whole.mean[20:]) <= 1e-10
    part.extend(K_vv=K[20:, 20:], **new)
    assert relative_error(part.mean, whole.mean) <= 1e-10
    every = range(len(f))
    assert relative_error(part.covariance(every, every), whole.covariance(every, every)) <= 1e-10
    whole.condition([22], [1])
    part.condition([22], [1])
    assert relative_error(part.mean, whole.mean) <= 1e-10
    assert part.label_scale == whole.label_scale


COPIES = {
    "copy": nf.Posterior.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda post: pickle.loads(pickle.dumps(post)),
    "to": lambda post: post.to(np.empty(0)),
}


@pytest.mark.parametrize("per_point", [1, K_OUTPUTS])
@given_labels
def test_files_and_copies_know_the_labels(n, per_point, tmp_path):
    case = Case(n, per_point=per_point)
    post = case.posterior()
    case.condition(post, [2, 8])
    post.save(tmp_path / "posterior")
    copies = {name: copied(post) for name, copied in COPIES.items()}
    copies["file"] = nf.Posterior.load(tmp_path / "posterior")
    expected = post.predict(**case.new())
    case.condition(post, [5])  # a copy has its own labels
    for each in copies.values():
        np.testing.assert_array_equal(each.predict(**case.new()), expected)
        each.extend(**case.new(names=("K_lv", "K_uv", "K_vv")))
        assert len(each) == 19 and len(post) == 14
    F, _ = case.refitted(case.v)
    assert relative_error(post.predict(**case.new()), F) <= 1e-10


def test_files_of_the_first_version(tmp_path):
    """They hold no factor of the labels: everything but new points works."""
    case, path = Case(6), tmp_path / "posterior.npz"
    post = case.posterior()
    case.condition(post, [2])
    post.save(path)
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    for name in ("factor", "rows", "weights", "given", "points", "labeled"):
        del stored[name]
    np.savez(path, **(stored | dict(version=np.array(1))))
    old = nf.Posterior.load(path)
    assert_is(old, case, case.u)
    for call in (old.predict, lambda **new: old.extend(K_vv=case.block(case.v, case.v), **new)):
        with pytest.raises(ValueError, match="comes from a file of an earlier version"):
            call(**case.new())
    case.condition(old, [7, 1])
    assert_is(old, case, case.u)
    old.save(path)
    with pytest.raises(ValueError, match="comes from a file of an earlier version"):
        nf.Posterior.load(path).predict(**case.new())


def test_damaged_factors(tmp_path):
    case, path = Case(6), tmp_path / "posterior.npz"
    case.posterior().save(path)
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    for change in (
        dict(factor=stored["factor"][:-1]),
        dict(factor=np.full((6, 6), np.nan)),
        dict(rows=stored["rows"][:, 1:]),
        dict(weights=stored["weights"][1:]),
        dict(given=stored["given"][1:]),
        dict(given=stored["given"] + 3),
        dict(points=np.array([14])),
        dict(labeled=np.array(5)),
    ):
        np.savez(path, **(stored | change))
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged: "):
            nf.Posterior.load(path)


def test_what_is_refused():
    case = Case(6)
    post = case.posterior()
    everything = case.new(names=("K_lv", "K_uv", "K_vv"))
    before = post.copy()

    def refused(error, message, method=post.extend, **changes):
        arguments = {**everything, **changes}
        if method == post.predict:
            del arguments["K_vv"]
        with pytest.raises(error, match=message):
            method(**{name: value for name, value in arguments.items() if value is not False})

    broken = everything["K_uv"].copy()
    broken[1, 2] = np.nan
    for method in (post.predict, post.extend):
        refused(
            ValueError, r"K_lv is missing: .* given to from_kernel .* \(6, 5\)$", method, K_lv=None
        )
        refused(ValueError, r"K_lv has shape \(5, 6\); expected \(6, 5\)", method,
                K_lv=everything["K_lv"].T)  # fmt: skip
        refused(ValueError, r"K_uv has shape \(5, 14\); expected \(14, 5\)", method,
                K_uv=everything["K_uv"].T)  # fmt: skip
        refused(ValueError, "K_uv contains NaN at row 1, column 2", method, K_uv=broken)
        refused(ValueError, r"outputs has shape \(5, 2\)", method, outputs=case.f[case.v][:, :2])
        refused(TypeError, "from a kernel takes no features", method, features=np.ones((5, 3)))
    refused(ValueError, r"K_uv is missing: .* \(14, 5\)$", K_uv=None)
    refused(ValueError, r"K_vv is missing: .* \(5, 5\)$", K_vv=None)
    refused(ValueError, "K_vv is not symmetric", K_vv=np.triu(everything["K_vv"]))
    refused(ValueError, "are not parts of one kernel matrix", K_vv=0.1 * everything["K_vv"])
    refused(ValueError, "are not parts of one kernel matrix", K_uv=20 * everything["K_uv"])
    refused(ValueError, "are not parts of one kernel matrix", K_lv=20 * everything["K_lv"])
    post.predict(**case.new(names=("K_lv",)))  # K_uv is not read yet
    post.condition([3], [0])
    refused(ValueError, r"K_uv is missing: the kernel of the N points", post.predict, K_uv=None)
    before.condition([3], [0])
    np.testing.assert_array_equal(post.mean, before.mean)
    assert len(post) == 14
    features = nf.Posterior.from_features(case.f, case.f, None, None, None)
    for method in (features.predict, features.extend):
        with pytest.raises(
            TypeError, match=r"from features takes features .*; K_lv, K_uv.* belong"
        ):
            method(outputs=case.f, K_uv=np.ones((19, 19)))
