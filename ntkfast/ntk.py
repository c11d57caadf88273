"""The empirical neural tangent kernel of a torch network: features or exact Gram matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ._jacobian import functional
from ._jacobian.inputs import Batch, Inputs, batch_length, take
from ._jacobian.sketch import CountSketch, mix_int, sign_pattern
from ._jacobian.state import evaluation, unwrap
from .progress import track

__all__ = ["EmpiricalNTK"]

Outputs = Literal["sum", "single", "random", "full"]


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


class EmpiricalNTK:
    """Tangent kernel of a network, ``K(x, x') = <df(x)/dtheta, df(x')/dtheta>``.

    The network is evaluated in eval mode; nothing of it (parameters, ``.grad``, training flags,
    hooks, random state) is changed by any call. Parameters with ``requires_grad=False`` are
    frozen: they are not part of theta.

    Parameters
    ----------
    model : torch.nn.Module
        Network that returns one tensor of shape (N, k) (or (N,), k = 1) for N points along the
        first axis of its input, each row depending on its own point alone.
    outputs : {"sum", "single", "random", "full"} or int
        The scalar output whose gradient makes the kernel. ``"sum"``: sum of the logits / sqrt(k)
        ("pNTK"); ``"single"``: logit 0; an int: that logit; ``"random"``: a +-1 combination /
        sqrt(k), averaged over `draws`; ``"full"``: every logit, kernels have k x k blocks and all
        rows are ordered point-major.
    draws : int
        Number of random combinations; the kernel is the mean of their kernels. Only for
        ``"random"``.
    sketch : {"sparse", None}
        What :meth:`features` returns. ``"sparse"``: count-sketch of the whole gradient to `dim`
        numbers (all draws together), unbiased with a relative error of about ``dim ** -0.5``, and
        exact when the gradient is no longer than `dim`. None: the exact gradient, refused above
        `memory_budget`. Gram matrices are always exact.
    dim : int
        Number of features of a sketch.
    seed : int
        Of the random combinations and the sketch. Results depend on it and on nothing else that is
        random.
    layers : None, "last" or sequence of str
        Which parameters make theta: all trainable ones, those of the last module that has any, or
        those whose name (of a parameter or of a module that contains them) is given.
    memory_budget : int
        Bytes a call may allocate beside the model, its inputs and its result (approximate).

    Raises
    ------
    ValueError, TypeError
        For a model without trainable parameters, and for arguments out of range.

    Notes
    -----
    Gradients are taken in the model's dtype and accumulated in it (float32 for half precision), so
    features and Gram matrices are float64 for a float64 model and float32 otherwise. Source:
    Mohamadi, Bae, Sutherland (NeurIPS 2022), eq. 3 for the kernel; "pNTK" from Mohamadi, Bae,
    Sutherland (ICML 2023).
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs | int = "sum",
        *,
        draws: int = 1,
        sketch: Literal["sparse"] | None = "sparse",
        dim: int = 4096,
        seed: int = 0,
        layers: Literal["last"] | Sequence[str] | None = None,
        memory_budget: int = 2**31,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if isinstance(outputs, bool) or not (
            outputs in ("sum", "single", "random", "full") or isinstance(outputs, (int, np.integer))
        ):
            raise ValueError(
                f'outputs is {outputs!r}; expected "sum", "single", "random", "full" or an int'
            )
        if sketch not in (None, "sparse"):
            raise ValueError(f'sketch is {sketch!r}; expected "sparse" or None')
        for name, value in (("draws", draws), ("dim", dim), ("memory_budget", memory_budget)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive int")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed is {seed!r}; expected an int >= 0")
        if draws != 1 and outputs != "random":
            raise ValueError(f'draws={draws} needs outputs="random", not {outputs!r}')
        self.model = model
        self.memory_budget = int(memory_budget)
        self._net = unwrap(model)
        self._outputs, self._draws, self._seed = outputs, int(draws), int(seed)
        self._sketch = CountSketch(int(dim), int(seed)) if sketch == "sparse" else None
        self._layers = layers
        self._names = _select(self._net, layers)
        parameters = dict(self._net.named_parameters())
        # Where each parameter lies in the flattened gradient.
        self._offsets: dict[str, int] = {}
        total = 0
        for name in self._names:
            if isinstance(parameters[name], nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"parameter {name!r} is not initialised; run the lazy model once before"
                )
            self._offsets[name] = total
            total += parameters[name].numel()
        self.n_parameters = total
        first = parameters[self._names[0]]
        self._device, self._input_dtype = first.device, first.dtype
        self._dtype = torch.float64 if first.dtype == torch.float64 else torch.float32

    def __repr__(self) -> str:
        kind = "exact" if self._sketch is None else f"sparse sketch, dim={self._sketch.dim}"
        return (
            f"EmpiricalNTK({type(self._net).__name__}, outputs={self._outputs!r}, "
            f"parameters={self.n_parameters}, {kind})"
        )

    # public

    def outputs(self, X: Any) -> Any:
        """Evaluate the network in eval mode, without gradients.

        Parameters
        ----------
        X : Tensor, ndarray, dict of them, Dataset or DataLoader
            N points along the first axis.

        Returns
        -------
        Tensor or ndarray of shape (N, k)
            In the model's dtype (float32 for half precision); an array when `X` is one.
        """
        inputs = self._inputs(X, "X")
        parts: list[Tensor] = []
        with evaluation(self._net, self._device), torch.no_grad():
            size = self._forward_batch(inputs)
            start = 0
            for batch in self._progress(inputs, size, "outputs"):
                values = self._forward(batch).to(self._dtype)
                self._check_finite(values, start, batch, "the model's outputs")
                parts.append(values)
                start += len(values)
        return _result(torch.cat(parts), inputs)

    def features(self, X: Any, *, out: str | os.PathLike[str] | None = None) -> Any:
        """Compute features: ``Phi @ Phi.T`` equals (or estimates, for a sketch) ``gram(X)``.

        Parameters
        ----------
        X : Tensor, ndarray, dict of them, Dataset or DataLoader
            N points along the first axis; datasets and loaders are streamed.
        out : path, optional
            Write a memory-mapped ``.npy`` file there instead of holding the features in memory.

        Returns
        -------
        Tensor or ndarray of shape (N, d)
            On the model's device; an array when `X` is one, a read-only memory map with `out`. d
            is `dim` for a sketch and ``draws * P`` for exact gradients (in the order of
            ``named_parameters``, divided by ``sqrt(draws)``). Shape (N k, d), point-major, for
            ``outputs="full"``.

        Raises
        ------
        ValueError
            When exact features exceed the memory budget, or outputs or gradients are not finite
            (says where).
        """
        inputs = self._inputs(X, "X")
        with evaluation(self._net, self._device):
            weights = self._weights(self._probe(inputs))
            per_point = len(weights) if self._outputs == "full" else 1
            width = (
                self._sketch.dim if self._sketch is not None else self._draws * self.n_parameters
            )
            self._refuse_if_too_large(inputs.length, per_point * width, out)
            target = _Rows(inputs.length, per_point, width, self._dtype, self._device, out)
            try:
                start = 0
                for batch in self._progress(
                    inputs, self._gradient_batch(inputs, weights), "features"
                ):
                    n = batch_length(batch)
                    block = torch.zeros(
                        (n * per_point, width), dtype=self._dtype, device=self._device
                    )
                    self._accumulate_features(batch, weights, block)
                    self._check_finite(block.view(n, -1), start, batch, "the gradients", weights)
                    target.append(block)
                    start += n
            except BaseException:
                target.discard()
                raise
            return target.finish(inputs)

    def gram(self, X1: Any, X2: Any = None) -> Any:
        """Compute the exact kernel matrix of the points `X1` and `X2` (default: the same points).

        Parameters
        ----------
        X1, X2 : Tensor, ndarray, dict of them, Dataset or DataLoader
            N1 and N2 points along the first axis.

        Returns
        -------
        Tensor or ndarray of shape (N1, N2)
            On the model's device; an array when `X1` is one. Shape (N1 k, N2 k), point-major, for
            ``outputs="full"``: entry ``(i k + a, j k + b)`` is ``<df_a(x_i)/dtheta,
            df_b(x_j)/dtheta>``.

        Raises
        ------
        ValueError
            When outputs or gradients are not finite (says where).
        """
        rows = self._inputs(X1, "X1")
        with evaluation(self._net, self._device):
            rows = rows.sliceable()
            columns = rows if X2 is None else self._inputs(X2, "X2").sliceable()
            assert rows.length is not None and columns.length is not None
            weights = self._weights(self._probe(rows))
            per_point = len(weights) if self._outputs == "full" else 1
            result = torch.empty(
                (rows.length * per_point, columns.length * per_point),
                dtype=self._dtype,
                device=self._device,
            )
            panel = self._gradient_batch(rows, weights)
            starts = range(0, rows.length, panel)
            for i in track(starts, len(starts), "gram"):
                left = self._jacobian(rows.panel(i, i + panel), i, weights, per_point)
                for j in range(i if X2 is None else 0, columns.length, panel):
                    same = X2 is None and i == j
                    right = (
                        left
                        if same
                        else self._jacobian(columns.panel(j, j + panel), j, weights, per_point)
                    )
                    block = left @ right.T
                    r, c = i * per_point, j * per_point
                    result[r : r + block.shape[0], c : c + block.shape[1]] = block
                    if X2 is None and not same:
                        result[c : c + block.shape[1], r : r + block.shape[0]] = block.T
        return _result(result, rows)

    # private

    def _inputs(self, X: Any, name: str) -> Inputs:
        return Inputs(X, name, self._device, self._input_dtype)

    def _progress(self, inputs: Inputs, size: int, description: str) -> Iterator[Batch]:
        total = None if inputs.length is None else -(-inputs.length // size)
        yield from track(inputs.batches(size), total, description)

    def _forward(self, batch: Batch) -> Tensor:
        return functional.checked_outputs(functional.call(self._net, batch), batch_length(batch))

    def _probe(self, inputs: Inputs) -> int:
        """Return the number of outputs k, from a forward pass of one point."""
        with torch.no_grad():
            return self._forward(inputs.first(1)).shape[1]

    def _weights(self, k: int) -> Tensor:
        """(R, k) float64: the combinations of outputs whose gradients are taken."""
        if self._outputs == "sum":
            weights = torch.full((1, k), k**-0.5, dtype=torch.float64)
        elif self._outputs == "random":
            key = mix_int(mix_int(self._seed) ^ 0x4F5554)
            weights = (
                sign_pattern(self._draws * k, key, torch.device("cpu")).view(self._draws, k)
                * k**-0.5
            )
        elif self._outputs == "full":
            weights = torch.eye(k, dtype=torch.float64)
        else:
            index = 0 if self._outputs == "single" else int(self._outputs)
            if not 0 <= index < k:
                raise ValueError(f"outputs={index} but the model has {k} outputs (0 to {k - 1})")
            weights = torch.eye(k, dtype=torch.float64)[index : index + 1]
        return weights.to(self._device)

    def _forward_batch(self, inputs: Inputs) -> int:
        # Without gradients only a few activations live at once; they rarely exceed 64 times the
        # input.
        return max(1, min(256, self.memory_budget // (64 * inputs.bytes_per_point() + 1)))

    def _gradient_batch(self, inputs: Inputs, weights: Tensor) -> int:
        # Per-sample gradients of a batch, their intermediate copies, and the activations of the
        # network.
        gradient = 3 * len(weights) * self.n_parameters * self._dtype.itemsize
        return max(1, min(256, self.memory_budget // (gradient + 256 * inputs.bytes_per_point())))

    def _refuse_if_too_large(self, n: int | None, width: int, out: object) -> None:
        if self._sketch is not None or out is not None or n is None:
            return
        needed = n * width * self._dtype.itemsize
        if needed > self.memory_budget:
            raise ValueError(
                f"exact features of {n} points need {needed} bytes ({_bytes(needed)}), more than "
                f"memory_budget={self.memory_budget} ({_bytes(self.memory_budget)}); use "
                'sketch="sparse", layers="last", gram(X), out=<file>, or a larger memory_budget'
            )

    def _gradients(self, batch: Batch, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield pieces ``(p, values (n, R, m))``: m parameters of the gradients from p on."""
        try:
            gradients = functional.vectorised(self._net, self._names, batch, weights)
        except (RuntimeError, NotImplementedError):
            # vmap refuses in-place updates, control flow that looks at the data, and operations
            # without a batching rule.
            gradients = functional.one_by_one(self._net, self._names, batch, weights)
        for name in self._names:
            values = gradients.pop(name)
            yield (
                self._offsets[name],
                values.to(self._dtype).flatten(2) if values.ndim > 2 else values[:, :, None],
            )

    def _accumulate_features(self, batch: Batch, weights: Tensor, block: Tensor) -> None:
        """Add the gradients of a batch to its features (n, width), or (n k, width) for "full"."""
        scale = self._draws**-0.5
        for start, values in self._gradients(batch, weights):
            if self._outputs == "full":
                self._add(values.reshape(-1, values.shape[2]), start, block)
            else:
                for draw in range(values.shape[1]):
                    self._add(values[:, draw] * scale, start + draw * self.n_parameters, block)

    def _add(self, values: Tensor, start: int, block: Tensor) -> None:
        if self._sketch is not None:
            self._sketch.add(values, start, block)
        else:
            block[:, start : start + values.shape[1]] += values

    def _jacobian(self, inputs: Inputs, first: int, weights: Tensor, per_point: int) -> Tensor:
        """Exact features of a panel that starts at point `first`."""
        assert inputs.length is not None
        width = self._draws * self.n_parameters
        batch = inputs.first(inputs.length)
        block = torch.zeros(
            (inputs.length * per_point, width), dtype=self._dtype, device=self._device
        )
        sketch, self._sketch = self._sketch, None
        try:
            self._accumulate_features(batch, weights, block)
        finally:
            self._sketch = sketch
        self._check_finite(block.view(inputs.length, -1), first, batch, "the gradients", weights)
        return block

    def _check_finite(
        self, values: Tensor, start: int, batch: Batch, what: str, weights: Tensor | None = None
    ) -> None:
        """Raise with the first point that is not finite, and the parameters concerned."""
        bad = ~torch.isfinite(values.sum(1))
        if not bool(bad.any()):
            return
        bad = ~torch.isfinite(values).all(1)
        if not bool(bad.any()):
            return
        row = int(bad.nonzero()[0])
        where = f"point {start + row}" + (
            f" (and {int(bad.sum()) - 1} more)" if int(bad.sum()) > 1 else ""
        )
        if weights is not None:
            point = take(batch, slice(row, row + 1))
            with torch.no_grad():
                if not bool(torch.isfinite(self._forward(point)).all()):
                    raise ValueError(f"the model's outputs are not finite (NaN or inf) at {where}")
            gradients = functional.one_by_one(self._net, self._names, point, weights)
            names = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
            if names:
                where += f", parameters {', '.join(names[:5])}" + (
                    ", ..." if len(names) > 5 else ""
                )
        raise ValueError(f"{what} are not finite (NaN or inf) at {where}")


def _select(model: nn.Module, layers: Literal["last"] | Sequence[str] | None) -> list[str]:
    """Names of the parameters that make theta, in the order of ``named_parameters``."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "the model has no trainable parameters (requires_grad=True): its tangent kernel is zero"
        )
    if layers is None:
        return trainable
    if isinstance(layers, str):
        if layers != "last":
            raise ValueError(f'layers is {layers!r}; expected None, "last" or a sequence of names')
        last = trainable[-1].rpartition(".")[0]
        return [name for name in trainable if name.rpartition(".")[0] == last]
    chosen: set[str] = set()
    for layer in layers:
        found = [name for name in trainable if name == layer or name.startswith(f"{layer}.")]
        if not found:
            known = [name for name, _ in model.named_parameters()]
            frozen = any(name == layer or name.startswith(f"{layer}.") for name in known)
            reason = (
                "has only frozen parameters"
                if frozen
                else "is no module or parameter with parameters"
            )
            raise ValueError(
                f"layers: {layer!r} {reason} of the model; it has {', '.join(known[:8])}, ..."
            )
        chosen.update(found)
    if not chosen:
        raise ValueError("layers is empty; expected at least one name")
    return [name for name in trainable if name in chosen]


def _result(value: Tensor, inputs: Inputs) -> Any:
    return value.cpu().numpy() if inputs.is_numpy else value


class _Rows:
    """Collects blocks of rows in a tensor, a memory-mapped file, or (unknown length) a list."""

    def __init__(
        self,
        n: int | None,
        per_point: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        path: str | os.PathLike[str] | None,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._blocks: list[Tensor] = []
        self._tensor: Tensor | None = None
        self._map: Any = None
        self._filled = 0
        self._expected = None if n is None else n * per_point
        if self._path is not None:
            if n is None:
                raise ValueError("out needs data of known length; this loader has none")
            # Written beside its final name, so that an interrupted call leaves no half-filled file
            # behind.
            self._partial = self._path.with_name(self._path.name + ".partial")
            kind = np.float64 if dtype == torch.float64 else np.float32
            self._map = np.lib.format.open_memmap(
                self._partial, mode="w+", dtype=kind, shape=(n * per_point, width)
            )
        elif n is not None:
            self._tensor = torch.empty((n * per_point, width), dtype=dtype, device=device)

    def append(self, block: Tensor) -> None:
        stop = self._filled + len(block)
        if self._expected is not None and stop > self._expected:
            raise ValueError(f"X gave more rows than its length promised ({self._expected})")
        if self._map is not None:
            self._map[self._filled : stop] = block.cpu().numpy()
        elif self._tensor is not None:
            self._tensor[self._filled : stop] = block
        else:
            self._blocks.append(block)
        self._filled = stop

    def discard(self) -> None:
        if self._map is not None:
            self._map = None
            self._partial.unlink(missing_ok=True)

    def finish(self, inputs: Inputs) -> Any:
        if self._expected is not None and self._filled != self._expected:
            self.discard()
            raise ValueError(f"X gave {self._filled} rows; its length promised {self._expected}")
        if self._map is not None:
            assert self._path is not None
            self._map.flush()
            self._map = None
            os.replace(self._partial, self._path)
            return np.load(self._path, mmap_mode="r")
        if self._tensor is None and not self._blocks:
            raise ValueError("X is empty; expected at least one point")
        return _result(
            self._tensor if self._tensor is not None else torch.cat(self._blocks), inputs
        )
