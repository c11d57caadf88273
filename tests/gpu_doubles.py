"""Stand-ins for a GPU in ordinary test runs: `ntkfast.cuda_ops` and cupy, both in host memory.

`Operations` computes with `ntkfast.ops` and is as strict about types, layouts and places as the
launchers are. `cupy` has what ntkfast uses of the library of that name; like the original, its
arrays refuse to meet those of numpy.
"""

import operator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from ntkfast import ops


def tf32(array):
    """Round float32 to the 11 significant bits of tf32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


class Operations:
    """The functions of `ntkfast.cuda_ops`; `calls` holds the names of those called."""

    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name[0] != "_" and callable(getattr(Operations, name, None)):
            self.calls.append(name)
        return object.__getattribute__(self, name)

    def problem(self):
        return ""

    def squared_norms(self, X, out=None):
        return _like(X, ops.squared_norms(_matrix(X), None if out is None else _vector(out)))

    def product(self, X, B):
        return _like(X, ops.product(_matrix(X), _double(B)))

    def weighted_gram(self, X, weights):
        return _like(X, ops.weighted_gram(_matrix(X), _vector(weights)))

    def quadratic_form(self, X, G):
        return _like(X, ops.quadratic_form(_matrix(X), _double(G)))

    def gram_add(self, A, B, out, *, products):
        A, B = (_rounded(a, products) for a in (A, B))
        ops.gram_add(A, B, _matrix(out))

    def whiten(self, features, W):
        return _like(features, ops.whiten(_matrix(features), _double(W)))

    def condition_features(self, psi, U, C):
        ops.condition_features(_matrix(psi), _double(U), _double(C))

    def condition_dense(self, S, V):
        ops.condition_dense(_matrix(S), _double(V))

    def triangular_solve(self, L, B, *, transpose=False):
        return _like(L, ops.triangular_solve(_double(L), _host(B), transpose=transpose))

    def cholesky(self, A):
        try:
            L, failed = ops.cholesky(_host(A)), 0
        except ValueError:
            L, failed = np.full(A.shape, np.nan), 1
        return _like(A, L), _like(A, np.array([failed]))

    def score_features(self, criterion, psi, inputs, *, variance, products):
        inputs, variance = _scoring(inputs), _vector(variance)
        rounded = _rounded(psi, products)
        return _like(psi, ops.score_features(criterion, rounded, inputs, variance=variance))

    def score_dense(self, criterion, S, inputs, *, variance, downdate=None):
        if downdate is not None:
            assert downdate.dtype == S.dtype
            downdate = _matrix(downdate)
        inputs, variance = _scoring(inputs), _vector(variance)
        found = ops.score_dense(criterion, _matrix(S), inputs, variance=variance, downdate=downdate)
        return _like(S, found)

    def score_blocks(self, criterion, covariance, inputs, *, variance, evaluation_variance):
        S, inputs, variance = _matrix(covariance), _scoring(inputs), _vector(variance)
        k, every = inputs.mean.shape[1], np.arange(len(inputs.mean))
        inputs = replace(
            inputs,
            candidates=every if inputs.candidates is None else inputs.candidates,
            evaluation=every if inputs.evaluation is None else inputs.evaluation,
        )
        m, n = len(inputs.candidates), len(inputs.evaluation)
        assert S.shape == (m * k, k * n)
        wrong = np.zeros(m + n, np.int64)
        wrong[:m] = _indefinite(variance, inputs.noise)
        if evaluation_variance is not None:
            evaluation_variance = _vector(evaluation_variance)
            wrong[m:] = _indefinite(evaluation_variance, np.full(n, inputs.ridge))
        if wrong.any():
            return _like(covariance, np.full(m, np.nan)), _like(covariance, wrong)
        S = np.ascontiguousarray(S.reshape(-1, k, n).swapaxes(1, 2)).reshape(m * k, n * k)
        found = ops.score_blocks(
            criterion, S, inputs, variance=variance, evaluation_variance=evaluation_variance
        )
        return _like(covariance, found), _like(covariance, wrong)

    def select_variance_reduction(self, psi, candidates, count, *, gram, q, s, noise):
        psi = _matrix(psi).astype(np.float64)
        psi = psi if candidates is None else psi[_indices(candidates)]
        q, s, G, noise = _vector(q), _vector(s), _double(gram), _vector(noise)
        C, picked, utilities = np.eye(psi.shape[1]), [], []
        for _ in range(count):
            utility = np.maximum(q, 0) / (np.maximum(s, 0) + noise)
            utility[picked] = -np.inf
            picked.append(int(np.nanargmax(utility)))
            utilities.append(utility[picked[-1]])
            g = C @ psi[picked[-1]]
            D = s[picked[-1]] + noise[picked[-1]]
            ops.downdate_moments(psi, g, C @ (G @ g), float(g @ G @ g), D, q, s)
            C -= np.outer(g, g) / D
        return _like(gram, np.array(picked)), _like(gram, np.array(utilities))


def _host(array):
    """The memory of an array on the pretended GPU."""
    if isinstance(array, Cupy):
        return array.memory
    assert isinstance(array, torch.Tensor) and not array.requires_grad
    return array.view(torch.uint16).numpy() if array.dtype == torch.bfloat16 else array.numpy()


def _like(array, result):
    return Cupy(result) if isinstance(array, Cupy) else torch.tensor(result)


def _typed(array, kind):
    assert str(array.dtype).removeprefix("torch.") == kind
    if kind == "bfloat16":
        return array.float().numpy()
    return _matrix(array)


def _rounded(array, products):
    """What tensor cores see of an array."""
    return {
        "fma64": lambda a: _typed(a, "float64"),
        "f16x3": lambda a: _typed(a, "float32"),
        "f16": lambda a: tf32(_typed(a, "float32")),
        "bf16": lambda a: _typed(a, "bfloat16").astype(np.float32),
    }[products](array)


def _indefinite(blocks, noise):
    finite = np.where(np.isinf(noise), 1e300, noise)
    return np.linalg.eigvalsh(blocks)[:, 0] + finite <= 0


def _matrix(array):
    memory = _host(array)
    assert memory.ndim == 2 and memory.dtype in (np.float32, np.float64)
    assert memory.shape[1] < 2 or memory.strides[1] == memory.itemsize, "rows must be contiguous"
    return memory


def _double(array):
    assert _matrix(array).dtype == np.float64
    return _matrix(array)


def _vector(array):
    memory = _host(array)
    assert memory.dtype == np.float64 and memory.flags.c_contiguous
    return memory


def _indices(array):
    memory = _host(array)
    assert memory.dtype == np.int64 and memory.flags.c_contiguous
    return memory


def _scoring(inputs):
    host = {}
    for name, value in vars(inputs).items():
        assert not isinstance(value, np.ndarray), f"{name} is on the host"
        if isinstance(value, (torch.Tensor, Cupy)):
            host[name] = (_indices if name in ("candidates", "evaluation") else _vector)(value)
    return replace(inputs, **host)


class Cupy:
    """An array of cupy."""

    device = "GPU 0"

    def __init__(self, memory):
        self.memory = np.asarray(memory)

    dtype = property(lambda self: self.memory.dtype)
    shape = property(lambda self: self.memory.shape)
    ndim = property(lambda self: self.memory.ndim)
    T = property(lambda self: Cupy(self.memory.T))

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a numpy array is not allowed")

    __array_ufunc__ = None

    def __len__(self):
        return len(self.memory)

    def __getitem__(self, key):
        if isinstance(key, tuple):
            return Cupy(self.memory[tuple(_key(k) for k in key)])
        return Cupy(self.memory[_key(key)])

    def __setitem__(self, key, value):
        self.memory[_key(key)] = _operand(value)

    def __abs__(self):
        return Cupy(abs(self.memory))

    def __int__(self):
        return int(self.memory)

    def __float__(self):
        return float(self.memory)

    def __bool__(self):
        return bool(self.memory)

    def get(self):
        return np.array(self.memory)

    def astype(self, dtype, copy=True):
        return Cupy(self.memory.astype(dtype, copy=copy)) if copy or dtype != self.dtype else self

    def take(self, indices, axis):
        return Cupy(self.memory.take(indices.memory, axis))

    def diagonal(self):
        return Cupy(self.memory.diagonal())

    def reshape(self, *shape):
        return Cupy(self.memory.reshape(shape))

    def swapaxes(self, a, b):
        return Cupy(self.memory.swapaxes(a, b))

    def max(self):
        return Cupy(self.memory.max())

    def argmax(self):
        return Cupy(self.memory.argmax())


def _key(key):
    assert not isinstance(key, np.ndarray)
    return key.memory if isinstance(key, Cupy) else key


def _operand(value):
    if isinstance(value, (np.ndarray, torch.Tensor)):
        raise TypeError(f"unsupported type {type(value)}")
    return value.memory if isinstance(value, Cupy) else value


def _operator(function, swapped=False):
    def method(self, other):
        operands = (self.memory, _operand(other))
        return Cupy(function(*(operands[::-1] if swapped else operands)))

    return method


def _matmul(a, b):
    assert a.shape[-1] > 0, "an empty sum, which not every library knows"
    return a @ b


for _name in ("add", "sub", "mul", "truediv", "gt"):
    setattr(Cupy, f"__{_name}__", _operator(getattr(operator, _name)))
    if _name != "gt":
        setattr(Cupy, f"__r{_name}__", _operator(getattr(operator, _name), swapped=True))
Cupy.__matmul__ = _operator(_matmul)
Cupy.__module__ = "cupy"


def _array(value, dtype=None, order=None):
    return Cupy(np.array(value.memory if isinstance(value, Cupy) else value, dtype, order=order))


cupy = SimpleNamespace(
    __name__="cupy",
    cuda=SimpleNamespace(Device=lambda: "GPU 0"),
    ndarray=Cupy,
    array=_array,
    asarray=_array,
    ascontiguousarray=lambda a: Cupy(np.ascontiguousarray(a.memory)),
    empty=lambda shape, dtype: Cupy(np.full(shape, np.nan, dtype)),
    zeros=lambda shape, dtype: Cupy(np.zeros(shape, dtype)),
    eye=lambda n, dtype: Cupy(np.eye(n, dtype=dtype)),
    vstack=lambda parts: Cupy(np.vstack([a.memory for a in parts])),
    einsum=lambda formula, *arrays: Cupy(np.einsum(formula, *(a.memory for a in arrays))),
    linalg=SimpleNamespace(qr=lambda a, mode: Cupy(np.linalg.qr(a.memory, mode=mode))),
)
