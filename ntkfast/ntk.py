"""The empirical neural tangent kernel of a torch network: features or exact Gram matrices."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ._jacobian import capture, contract, explain, functional, panels
from ._jacobian.capture import Gradient, Plan
from ._jacobian.files import GramFile, PathLike, Rows, fingerprint
from ._jacobian.inputs import Batch, Inputs, batch_length, take
from ._jacobian.layers import EmbeddingSite, Site
from ._jacobian.sketch import CountSketch, KroneckerSketch, mix_int, sign_pattern
from ._jacobian.state import evaluation, unwrap
from .progress import track

__all__ = ["EmpiricalNTK"]

Outputs = Literal["sum", "single", "random", "full"]


# Points per forward and backward pass, at most, and the bytes of their activations on a CPU: more
# gain nothing and leave the caches (measured on ResNet-18: 16 points as fast as any, 54 slower).
_LARGEST_BATCH = 256
_CPU_ACTIVATIONS = 1 << 27
# Points on which every call checks its gradients against autograd.
_PROBE = 2


@dataclass
class _Setup:
    """What a call finds out on its first points."""

    outputs: int
    weights: Tensor
    plan: Plan
    parts: dict[str, Gradient]

    @property
    def combinations(self) -> int:
        return len(self.weights)


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
    sketch : {"sparse", "kronecker", None}
        What :meth:`features` returns. ``"sparse"``: count-sketch of the whole gradient to `dim`
        numbers (all draws together), unbiased with a relative error of about ``dim ** -0.5``, and
        exact when the gradient is no longer than `dim`. ``"kronecker"``: every weight gradient is
        compressed from both sides before it is formed; unbiased and cheaper, but the error falls
        as ``dim ** -0.25`` only. None: the exact gradient, refused above `memory_budget`. Gram
        matrices are always exact.
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
    features and Gram matrices are float64 for a float64 model and float32 otherwise.

    One forward and one backward pass per batch give every layer's input and output gradient, from
    which the gradients of known layers (linear, convolution, normalisation, embedding,
    self-attention) are contracted. Other parameters fall back to torch.func, and
    :meth:`explain` says which. Every call first compares the gradients of two points with
    autograd, and refuses to go on if they differ.

    Source of the kernel and of ``"single"``: Mohamadi, Bae, Sutherland (NeurIPS 2022, arXiv
    2206.12569); of ``"sum"``: their "pNTK" (ICML 2023).

    Examples
    --------
    >>> ntk = EmpiricalNTK(model, dim=2048)
    >>> features = ntk.features(images)  # (N, 2048)
    >>> kernel = ntk.gram(images)  # (N, N), exact
    >>> print(ntk.explain(images))
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs | int = "sum",
        *,
        draws: int = 1,
        sketch: Literal["sparse", "kronecker"] | None = "sparse",
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
        if sketch not in (None, "sparse", "kronecker"):
            raise ValueError(f'sketch is {sketch!r}; expected "sparse", "kronecker" or None')
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
        self._sketch: CountSketch | None = None
        if sketch is not None:
            kind = CountSketch if sketch == "sparse" else KroneckerSketch
            self._sketch = kind(int(dim), int(seed))
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
        devices = sorted({str(p.device) for p in parameters.values()})
        if len(devices) > 1:
            raise ValueError(f"the model's parameters are on several devices: {', '.join(devices)}")
        for name, module in self._net.named_modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
                raise ValueError(f"embedding {name!r} has max_norm: calling it changes its weights")

    # Read from the model each time: it may be trained, moved or cast between calls.
    @property
    def _device(self) -> torch.device:
        return self._net.get_parameter(self._names[0]).device

    @property
    def _input_dtype(self) -> torch.dtype:
        return self._net.get_parameter(self._names[0]).dtype

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of accumulation and of results."""
        return torch.float64 if self._input_dtype == torch.float64 else torch.float32

    def __repr__(self) -> str:
        kind = "exact"
        if self._sketch is not None:
            kind = f"{type(self._sketch).__name__}(dim={self._sketch.dim})"
        return (
            f"EmpiricalNTK({type(self._net).__name__}, outputs={self._outputs!r}, "
            f"parameters={self.n_parameters:,}, {kind})"
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
            # Without gradients few activations live at once; they rarely exceed 64 inputs.
            room = self.memory_budget // (64 * inputs.bytes_per_point() + 1)
            start = 0
            for batch in self._progress(inputs, max(1, min(_LARGEST_BATCH, room)), "outputs"):
                n = batch_length(batch)
                value = functional.checked_outputs(functional.call(self._net, batch), n)
                parts.append(value.to(self._dtype))
                self._check_finite([parts[-1]], start, batch, "X")
                start += n
        return _result(torch.cat(parts), inputs)

    def features(self, X: Any, *, out: PathLike | None = None) -> Any:
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
            When exact features exceed the memory budget, outputs or gradients are not finite
            (says where), or the model mixes the points of a batch.
        """
        inputs = self._inputs(X, "X")
        with evaluation(self._net, self._device):
            setup = self._prepare(inputs)
            scale = setup.combinations if self._outputs == "full" else 1
            width = self._draws * self.n_parameters
            if self._sketch is not None:
                width = self._sketch.dim
            elif out is None and inputs.length is not None:
                self._refuse_if_too_large(inputs.length, scale * width)
            rows = None if inputs.length is None else inputs.length * scale
            extra = 0 if self._sketch is not None else 2 * scale * width * self._dtype.itemsize
            target = Rows(rows, width, self._dtype, self._device, out)
            try:
                start = 0
                size = self._batch_size(setup, extra)
                for batch in self._progress(inputs, size, "features"):
                    n = batch_length(batch)
                    block = torch.zeros((n * scale, width), dtype=self._dtype, device=self._device)
                    values = self._add_features(batch, setup, block)
                    self._check_finite([values, block.view(n, -1)], start, batch, "X", setup)
                    target.append(block.mul_(self._draws**-0.5) if self._draws > 1 else block)
                    start += n
                result = target.finish()
            except BaseException:
                target.discard()
                raise
        return _result(result, inputs)

    def gram(self, X1: Any, X2: Any = None, *, out: PathLike | None = None) -> Any:
        """Compute the exact kernel matrix of the points `X1` and `X2` (default: the same points).

        Per-sample gradients of a whole network never exist: the contraction runs layer by layer,
        on the layers' inputs and output gradients, the cheaper of two ways.

        Parameters
        ----------
        X1, X2 : Tensor, ndarray, dict of them, Dataset or DataLoader
            N1 and N2 points along the first axis. Inputs (not gradients) must fit in memory.
        out : path, optional
            Write a memory-mapped ``.npy`` file there. While incomplete it is called
            ``<out>.partial``, and a call with the same arguments goes on where the last stopped.

        Returns
        -------
        Tensor or ndarray of shape (N1, N2)
            On the model's device; an array when `X1` is one, a read-only memory map with `out`.
            Shape (N1 k, N2 k), point-major, for ``outputs="full"``: entry ``(i k + a, j k + b)``
            is ``<df_a(x_i)/dtheta, df_b(x_j)/dtheta>``.

        Raises
        ------
        ValueError
            When outputs or gradients are not finite (says where), the model mixes the points of a
            batch, or ``<out>.partial`` belongs to another computation.
        """
        rows = self._inputs(X1, "X1").sliceable()
        columns = rows if X2 is None else self._inputs(X2, "X2").sliceable()
        assert rows.length is not None and columns.length is not None
        with evaluation(self._net, self._device):
            setup = self._prepare(rows if rows.length > 1 else columns)
            scale = setup.combinations if self._outputs == "full" else 1
            shape = (rows.length * scale, columns.length * scale)
            size = self._panel_size(setup, rows.length if X2 is None else None)
            result: Any
            file = None
            if out is None:
                result = torch.empty(shape, dtype=self._dtype, device=self._device)
            else:
                mark = fingerprint(self._identity([rows, columns], size))
                file = GramFile(out, shape, self._dtype, mark)
                result = file.matrix
            work = _GramWork(self, setup, rows, columns, size, result, file)
            for _ in track(work.steps(), work.n_steps(), "gram"):
                pass
            if file is not None:
                del work, result
                return file.finish()
        return _result(result, rows)

    def sketch_error(self, X: Any, points: int = 32) -> float:
        """Estimate the error of the sketch on a few points.

        Parameters
        ----------
        X : Tensor, ndarray, dict of them, Dataset or DataLoader
            The first `points` of these points are used.
        points : int
            How many.

        Returns
        -------
        float
            ``|Phi Phi^T - K|_F / |K|_F`` with features Phi and exact kernel K; 0 without a sketch.
        """
        if self._sketch is None:
            return 0.0
        few = self._inputs(X, "X").first(points)
        features = self.features(few).double()
        kernel = self.gram(few).double()
        return float((features @ features.T - kernel).norm() / kernel.norm())

    def explain(self, X: Any, points: int = 1000) -> explain.Explanation:
        """Describe, layer by layer, how gradients of points like those of `X` are contracted.

        Parameters
        ----------
        X : Tensor, ndarray, dict of them, Dataset or DataLoader
            Points of the kind the model takes; the first two are run.
        points : int
            Number of points for which the costs of a Gram matrix are counted.

        Returns
        -------
        Explanation
            A table that prints itself: rule or fallback (and why), parameters, the contraction
            chosen, its cost, and memory per point.
        """
        inputs = self._inputs(X, "X")
        with evaluation(self._net, self._device):
            setup = self._prepare(inputs)
        names = {name: self._n_elements(name) for name in self._names}
        return explain.describe(
            repr(self), names, setup.plan, setup.parts, points, self._outputs == "full"
        )

    def _inputs(self, X: Any, name: str) -> Inputs:
        return Inputs(X, name, self._device, self._input_dtype)

    def _progress(self, inputs: Inputs, size: int, description: str) -> Iterator[Batch]:
        total = None if inputs.length is None else -(-inputs.length // size)
        yield from track(inputs.batches(size), total, description)

    def _n_elements(self, name: str) -> int:
        return self._net.get_parameter(name).numel()

    def _prepare(self, inputs: Inputs) -> _Setup:
        """Find the number of outputs and how to take gradients, and check that on two points."""
        probe = inputs.first(_PROBE)
        n = batch_length(probe)
        with torch.no_grad():
            value = functional.checked_outputs(functional.call(self._net, probe), n)
        self._check_finite([value], 0, probe, inputs.name)
        weights = self._weights(value.shape[1])
        plan, parts = capture.plan(self._net, self._names, probe, weights, self._dtype, inputs.name)
        return _Setup(value.shape[1], weights, plan, parts)

    def _weights(self, k: int) -> Tensor:
        """(R, k) float64: the combinations of outputs whose gradients are taken."""
        if self._outputs == "sum":
            weights = torch.full((1, k), k**-0.5, dtype=torch.float64)
        elif self._outputs == "random":
            key = mix_int(mix_int(self._seed) ^ 0x4F5554)
            signs = sign_pattern(self._draws * k, key, torch.device("cpu"))
            weights = signs.view(self._draws, k) * k**-0.5
        elif self._outputs == "full":
            weights = torch.eye(k, dtype=torch.float64)
        else:
            index = 0 if self._outputs == "single" else int(self._outputs)
            if not 0 <= index < k:
                raise ValueError(f"outputs={index} but the model has {k} outputs (0 to {k - 1})")
            weights = torch.eye(k, dtype=torch.float64)[index : index + 1]
        return weights.to(self._device)

    def _batch_size(self, setup: _Setup, extra: int = 0) -> int:
        room = self.memory_budget // (4 * int(setup.plan.activation_bytes + extra + 1))
        if self._device.type == "cpu":
            room = min(room, _CPU_ACTIVATIONS // int(setup.plan.activation_bytes + 1))
        return max(1, min(_LARGEST_BATCH, room))

    def _panel_size(self, setup: _Setup, n: int | None) -> int:
        """Points per panel: all of them if their factors take half the budget, or a quarter."""
        half = int(self.memory_budget // (2 * setup.plan.resident_bytes + 1))
        return n if n is not None and n <= half else max(1, half // 2)

    def _refuse_if_too_large(self, n: int, width: int) -> None:
        needed = n * width * self._dtype.itemsize
        if needed > self.memory_budget:
            raise ValueError(
                f"exact features of {n} points need {needed} bytes ({explain.size(needed)}), more "
                f"than memory_budget={self.memory_budget} ({explain.size(self.memory_budget)}); "
                'use sketch="sparse", layers="last", gram(X), out=<file>, or a larger budget'
            )

    def _add_features(self, batch: Batch, setup: _Setup, block: Tensor) -> Tensor:
        """Add the gradients of a batch to its features; return its outputs."""
        n = batch_length(batch)
        outputs, gradients = capture.gradients(
            self._net, setup.plan, batch, setup.weights, self._dtype
        )
        for name in self._names:
            gradient = gradients.pop(name, None)
            if gradient is None:
                continue
            offset = self._offsets[name]
            if isinstance(gradient, Tensor):
                self._add(gradient, slice(0, n), offset, block)
                continue
            if all(isinstance(site, EmbeddingSite) for site in gradient):
                for site in gradient:
                    self._add_embedding(site, offset, block)
                continue
            sketch = self._sketch
            if type(sketch) is CountSketch and contract.is_compiled(gradient):
                for r, left, right in contract.factors(gradient, self._dtype):
                    rows, shift = self._place(r, gradient[0].combinations, block)
                    sketch.add_gradients(left, right, offset + shift, rows)
                continue
            if isinstance(sketch, KroneckerSketch):
                tiles = contract.kronecker_tiles(gradient, n, self._dtype, sketch, offset)
            else:
                tiles = contract.gradient_tiles(gradient, n, self._dtype)
            for samples, start, values in tiles:
                self._add(values, samples, offset + start, block)
        return outputs

    def _add(self, values: Tensor, samples: slice, start: int, block: Tensor) -> None:
        """Add (n, R, m) entries of gradients, parameters from `start` on, to features."""
        combinations = values.shape[1]
        if self._outputs == "full":
            rows = block[samples.start * combinations : samples.stop * combinations]
            self._add_rows(values.flatten(0, 1), start, rows)
        else:
            for r in range(combinations):
                self._add_rows(values[:, r], start + r * self.n_parameters, block[samples])

    def _place(self, r: int, combinations: int, block: Tensor) -> tuple[Tensor, int]:
        """Rows of the features that combination `r` is added to, and its first parameter."""
        if self._outputs == "full":
            return block[r::combinations], 0
        return block, r * self.n_parameters

    def _add_embedding(self, site: Site, start: int, block: Tensor) -> None:
        """Add the gradients of an embedding's rows: only those its points look up."""
        columns = torch.arange(site.size, device=self._device)
        index = start + (site.x[:, :, None] * site.size + columns).flatten(1)
        for r in range(site.combinations):
            values = site.delta[:, r].flatten(1).to(self._dtype)
            rows, shift = self._place(r, site.combinations, block)
            if self._sketch is not None:
                self._sketch.add_scattered(values, index + shift, rows)
            else:
                rows.scatter_add_(1, index + shift, values)

    def _add_rows(self, values: Tensor, start: int, block: Tensor) -> None:
        if self._sketch is not None:
            self._sketch.add(values, start, block)
        else:
            block[:, start : start + values.shape[1]] += values

    def _check_finite(
        self, values: list[Tensor], start: int, batch: Batch, of: str, setup: _Setup | None = None
    ) -> None:
        """Raise with the first point that is not finite, and the parameters concerned.

        `values` are (n, *) tensors that any such point makes not finite: outputs, then others.
        """
        bad = torch.zeros(len(values[0]), dtype=torch.bool, device=values[0].device)
        for value in values:
            # The sum is one fast pass; it may overflow, so only the second look decides.
            if not bool(torch.isfinite(value.sum())):
                bad |= ~torch.isfinite(value.flatten(1)).all(1)
        if not bool(bad.any()):
            return
        row, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
        where = f"point {start + row} of {of}" + (f" (and {more} more)" if more else "")
        if setup is None or not bool(torch.isfinite(values[0][row]).all()):
            raise ValueError(f"the model's outputs are not finite (NaN or inf) at {where}")
        point = take(batch, slice(row, row + 1))
        _, gradients = functional.one_by_one(self._net, self._names, point, setup.weights)
        names = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
        if not names:
            raise ValueError(f"gradients overflow {self._dtype} at {where}; use a float64 model")
        raise capture.not_finite(where, names)

    def _identity(self, inputs: list[Inputs], size: int) -> Iterator[Tensor | str]:
        """Everything a kernel matrix depends on."""
        yield f"{self._outputs} {self._draws} {self._seed} {self._names} {size} {self._dtype}"
        yield from self._net.state_dict().values()
        for part in inputs:
            for batch in part.batches(_LARGEST_BATCH):
                yield from batch.values() if isinstance(batch, dict) else [batch]


class _GramWork:
    """The steps of one Gram matrix: panels captured and pairs of panels contracted."""

    def __init__(
        self,
        ntk: EmpiricalNTK,
        setup: _Setup,
        rows: Inputs,
        columns: Inputs,
        size: int,
        result: Any,
        file: GramFile | None,
    ) -> None:
        self._ntk, self._setup = ntk, setup
        self._rows, self._columns = rows, columns
        self._result, self._file = result, file
        self._size, self._batch = size, ntk._batch_size(setup)
        self._pairs = ntk._outputs == "full"
        self._scale = setup.combinations if self._pairs else 1
        # Floats of one tile of per-sample gradients, for an eighth of the budget.
        self._floats = max(1 << 16, ntk.memory_budget // (8 * ntk._dtype.itemsize))

    def _blocks(self) -> Iterator[tuple[int, list[int]]]:
        """Yield row panels and the column panels still missing for each."""
        symmetric = self._rows is self._columns
        done = self._file.done if self._file is not None else set()
        for i in range(0, self._rows.length or 0, self._size):
            columns = range(i if symmetric else 0, self._columns.length or 0, self._size)
            missing = [j for j in columns if (i, j) not in done]
            if missing:
                yield i, missing

    def _n_batches(self, inputs: Inputs, start: int) -> int:
        return -(-min(self._size, (inputs.length or 0) - start) // self._batch)

    def _is_diagonal(self, i: int, j: int) -> bool:
        return self._rows is self._columns and i == j

    def n_steps(self) -> int:
        total = 0
        for i, missing in self._blocks():
            total += self._n_batches(self._rows, i) + len(missing) * len(self._ntk._names)
            total += sum(
                self._n_batches(self._columns, j) for j in missing if not self._is_diagonal(i, j)
            )
        return total

    def steps(self) -> Iterator[None]:
        ntk, combinations = self._ntk, self._setup.combinations
        for i, missing in self._blocks():
            left = yield from self._panel(self._rows, i)
            for j in missing:
                right = left
                if not self._is_diagonal(i, j):
                    right = yield from self._panel(self._columns, j)
                block = yield from panels.gram_block(
                    ntk._names, left, right, self._pairs, combinations, self._floats
                )
                self._store(block.div_(ntk._draws), i, j)
                del right, block

    def _panel(self, inputs: Inputs, start: int) -> Generator[None, None, panels.Panel]:
        ntk, setup = self._ntk, self._setup
        builder = panels.PanelBuilder(setup.combinations, ntk._dtype, ntk._device)
        first = start
        for batch in inputs.panel(start, start + self._size).batches(self._batch):
            n = batch_length(batch)
            outputs, gradients = capture.gradients(
                ntk._net, setup.plan, batch, setup.weights, ntk._dtype
            )
            checks = [outputs, *panels.witnesses(gradients)]
            ntk._check_finite(checks, first, batch, inputs.name, setup)
            builder.append(n, gradients)
            first += n
            yield
        return builder.finish()

    def _store(self, block: Tensor, i: int, j: int) -> None:
        value: Any = block if self._file is None else block.cpu().numpy()
        r, c = i * self._scale, j * self._scale
        self._result[r : r + block.shape[0], c : c + block.shape[1]] = value
        if self._rows is self._columns and i != j:
            self._result[c : c + block.shape[1], r : r + block.shape[0]] = value.T
        if self._file is not None:
            self._file.mark(i, j)


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


def _result(value: Any, inputs: Inputs) -> Any:
    if isinstance(value, Tensor) and inputs.is_numpy:
        return value.cpu().numpy()
    return value
