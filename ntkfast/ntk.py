"""The empirical neural tangent kernel of a torch network: features or exact Gram matrices."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import store
from ._ntk import capture, choose, explain, functional, gram, stored
from ._ntk.budget import automatic_budget, largest_batch
from ._ntk.capture import Gradient, Plan
from ._ntk.explain import SketchReport
from ._ntk.features import FeatureSum, Layout
from ._ntk.fields import Fields, InputFields
from ._ntk.files import GramFile, PathLike, Rows, fingerprint, identity_of
from ._ntk.inputs import Batch, Inputs, as_tensor, batch_length, leaves, take
from ._ntk.replica import isolated, replica
from ._ntk.sketch import CountSketch, KroneckerSketch, mix_int, sign_pattern
from ._ntk.unwrap import unwrap
from .arrays import memory_advice
from .progress import track

__all__ = ["EmpiricalNTK", "InputFields", "SketchName", "as_tensor"]

Outputs = Literal["sum", "single", "random", "full"]
SketchName = Literal["sparse", "kronecker", "auto"]


# Bytes of the activations of a forward and backward pass on a CPU: more gain nothing and leave the
# caches (measured on ResNet-18: 16 points as fast as any, 54 slower).
_CPU_ACTIVATIONS = 1 << 27
# Where a GPU has no room for batches and panels.
_ADVICE = (
    "a smaller memory_budget= takes fewer points at a time (the default is up to half of what is "
    "free beside the result); a result without room of its own goes to a file by out="
)
# Points that a fingerprint reads at once.
_READ = 256
# Points, from all over the data, on which every call first checks its gradients against autograd.
_PROBE = 3
# Points on which the cost of a fallback is measured, and the cost, in plain passes, worth a word.
_TRIAL = 16
_DEAR = 20
# Points on which sketches are chosen and their error is estimated, at most so many rows of their
# Gram matrix, and outputs (or draws) that stand for all.
_SKETCH_POINTS = 32
_SKETCH_ROWS = 128
_SKETCH_COMBINATIONS = 8
# Relative difference, from those in a folder, of rows that are computed again: rounding of float16
# and TF32, or of a network in half precision.
_AGAIN = {
    torch.float64: 1e-2,
    torch.float32: 1e-2,
    torch.bfloat16: 0.3,
    torch.float16: 0.3,
}


@dataclass
class _Setup:
    """What a call works with, and finds out on a few points."""

    net: nn.Module
    weights: Tensor
    plan: Plan
    parts: dict[str, Gradient]
    key: str
    budget: int  # bytes that the call may allocate

    @property
    def combinations(self) -> int:
        return len(self.weights)


@dataclass
class _FeatureWork:
    """What blocks of features are made with."""

    sum_of: FeatureSum
    rows_per_point: int
    width: int
    batch: int


class EmpiricalNTK:
    """Tangent kernel of a network, ``K(x, x') = <df(x)/dtheta, df(x')/dtheta>``.

    The network is evaluated in eval mode, on a private copy of its structure that shares the
    parameters: nothing of it (parameters, ``.grad``, training flags, hooks, buffers, random state)
    is changed by any call, finished or not, and several threads may use one model. (Its forward
    hooks are part of what it computes and run, on the copy.) Parameters with
    ``requires_grad=False`` are frozen: they are not part of theta.

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
    sketch : {"sparse", "kronecker", "auto", None}
        What :meth:`features` returns. ``"sparse"``: count-sketch of the whole gradient to `dim`
        numbers (all draws together), unbiased with a relative error of about ``dim ** -0.5``, and
        exact when the gradient is no longer than `dim`. ``"kronecker"``: every weight gradient is
        compressed from both sides before it is formed; unbiased and cheaper, but the error falls
        as ``dim ** -0.25`` only. ``"auto"``: for every parameter the cheapest unbiased sketch with
        which the whole stays within `relative_error`, see :meth:`fit_sketch`. None: the exact
        gradient, refused above `memory_budget`. Gram matrices are always exact.
    dim : int
        Number of features of a sketch.
    relative_error : float
        For ``"auto"``: the largest ``|Phi Phi^T - K|_F / |K|_F`` wanted on the points that the
        sketch is fitted to, as a root mean square over seeds (one seed in twenty has twice that).
    seed : int
        Of the random combinations and the sketch. Results depend on it and on nothing else that is
        random.
    layers : None, "last" or sequence of str
        Which parameters make theta: all trainable ones, those of the last module that has any, or
        those whose name (of a parameter or of a module that contains them) is given.
    inputs : int, str, sequence of them, or callable, optional
        Which fields of an item (a tuple, a dict) of a data set are inputs of the model: their
        positions, or names (passed by name if ``forward`` takes all of them, else in this order),
        or a function that makes a tensor, a dict or a tuple of tensors from a batch as the loader
        gives it. By default the signature of ``forward`` decides: ``(x, y)`` of a model with one
        input is x and a label, ``(a, b, y)`` of one with two a, b and a label, and what could be
        either is refused.
    memory_budget : int, optional
        Bytes a call may allocate beside the model, its inputs and its result (approximate).
        Default: 2 GiB; for a model on a CUDA device the largest power of two that is at most half
        of the memory free there beside the result. Products of gradients on a GPU take up to half
        a GiB of workspace more. More memory means fewer passes. Points are divided by it, so
        results with another budget may differ in their last bits.

    Raises
    ------
    ValueError, TypeError
        For a model without trainable parameters, and for arguments out of range.

    Notes
    -----
    Gradients are taken in the model's dtype and accumulated in it (float32 for half precision), so
    features and Gram matrices are float64 for a float64 model and float32 otherwise.

    One forward and one backward pass per batch give the input and the output gradient of every
    torch function that reads a parameter, from which the gradients of known ones (linear,
    convolution, normalisation, embedding, attention, recurrent, sums and products) are contracted,
    whoever calls them. Other parameters fall back to torch.func, and :meth:`explain` says which.

    Networks may fold, repeat, gather, sort or route their points: which rows belong to which point
    is measured by further backward passes with weighted points, on a few points where the
    operations show that it holds for all, or else in every batch. Whatever a batch does that none
    did before is compared with autograd (gradients of randomly weighted sums), and the points are
    evaluated in other company: models whose outputs depend on other points, or on chance, are
    refused.

    Source of the kernel and of ``"single"``: Mohamadi, Bae, Sutherland (NeurIPS 2022, arXiv
    2206.12569); of ``"sum"``: their "pNTK" (ICML 2023).

    Examples
    --------
    >>> import torch, ntkfast as nf
    >>> layers = [torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)]
    >>> model = torch.nn.Sequential(*layers)
    >>> images = torch.rand(50, 64)
    >>> ntk = nf.EmpiricalNTK(model, dim=2048)
    >>> ntk.features(images).shape
    torch.Size([50, 2048])
    >>> ntk.gram(images).shape  # exact
    torch.Size([50, 50])
    >>> print(ntk.explain(images))  # doctest: +ELLIPSIS
    EmpiricalNTK(Sequential, outputs='sum', sketch='sparse', dim=2048, parameters=2,410)
    ...
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs | int = "sum",
        *,
        draws: int = 1,
        sketch: SketchName | None = "sparse",
        dim: int = 4096,
        relative_error: float = 0.05,
        seed: int = 0,
        layers: Literal["last"] | Sequence[str] | None = None,
        inputs: InputFields = None,
        memory_budget: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if isinstance(outputs, bool) or not (
            outputs in ("sum", "single", "random", "full") or isinstance(outputs, (int, np.integer))
        ):
            raise ValueError(
                f'outputs is {outputs!r}; expected "sum", "single", "random", "full" or an int'
            )
        if sketch not in (None, "sparse", "kronecker", "auto"):
            raise ValueError(
                f'sketch is {sketch!r}; expected "sparse", "kronecker", "auto" or None'
            )
        if not isinstance(relative_error, (int, float)) or not 0 < relative_error < 1:
            raise ValueError(f"relative_error is {relative_error!r}; expected a number in (0, 1)")
        for name, value in (("draws", draws), ("dim", dim)):
            _check_positive(name, value)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed is {seed!r}; expected an int >= 0")
        if draws != 1 and outputs != "random":
            raise ValueError(f'draws={draws} needs outputs="random", not {outputs!r}')
        self.model = model
        self.memory_budget = memory_budget
        self._net = unwrap(model)
        self._fields = Fields(self._net, inputs)
        self._outputs, self._draws, self._seed = outputs, int(draws), int(seed)
        self._sketch: CountSketch | None = None
        if sketch is not None:
            kind = KroneckerSketch if sketch == "kronecker" else CountSketch
            self._sketch = kind(int(dim), int(seed))
        self.sketch, self._relative_error = sketch, float(relative_error)
        self._chosen: choose.Sketches | None = None
        self._layers = layers
        self._names = _select(self._net, layers)
        parameters = dict(self._net.named_parameters())
        for name in self._names:
            if parameters[name].is_complex():
                raise ValueError(
                    f"parameter {name!r} is complex: keep real numbers, (..., 2), and use "
                    "torch.view_as_complex of them in forward"
                )
            if isinstance(parameters[name], nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"parameter {name!r} is not initialised; run the lazy model once before"
                )
        self._layout = Layout(
            {name: parameters[name].shape for name in self._names}, outputs == "full"
        )
        self.n_parameters = self._layout.total
        self._warned = False
        self._plans: dict[str, tuple[Plan, Tensor, list[Any]]] = {}
        devices = sorted({str(p.device) for p in parameters.values()})
        if len(devices) > 1:
            raise ValueError(f"the model's parameters are on several devices: {', '.join(devices)}")
        for name, module in self._net.named_modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
                raise ValueError(f"embedding {name!r} has max_norm: calling it changes its weights")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # they refer to copies of the model

    @property
    def memory_budget(self) -> int:
        """Bytes a call may allocate: as given, or what the default is now."""
        given = self._memory_budget
        return automatic_budget(self._device) if given is None else given

    @memory_budget.setter
    def memory_budget(self, value: int | None) -> None:
        if value is not None:
            _check_positive("memory_budget", value)
        self._memory_budget = None if value is None else int(value)

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
        dim = "" if self._sketch is None else f", dim={self._sketch.dim}"
        return (
            f"EmpiricalNTK({type(self._net).__name__}, outputs={self._outputs!r}, "
            f"sketch={self.sketch!r}{dim}, parameters={self.n_parameters:,})"
        )

    # public

    def outputs(self, X: Any) -> Any:
        """Evaluate the network in eval mode, without gradients.

        Parameters
        ----------
        X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
            N points along the first axis.

        Returns
        -------
        Tensor or ndarray of shape (N, k)
            In the model's dtype (float32 for half precision); an array when `X` is one.
        """
        inputs = self._inputs(X, "X")
        parts: list[Tensor] = []
        with memory_advice(_ADVICE), isolated(self._net, self._device) as net:
            # Without gradients few activations live at once; they rarely exceed 64 inputs.
            room = self.memory_budget // (64 * inputs.bytes_per_point() + 1)
            start = 0
            size = max(2, min(largest_batch(self._device), room))
            for batch in self._progress(inputs, size, "outputs"):
                evaluate = functional.evaluate_only if start else capture.evaluated
                parts.append(evaluate(net, batch).to(self._dtype))
                self._check_finite([parts[-1]], start, batch, "X")
                start += batch_length(batch)
        return _result(torch.cat(parts), inputs)

    def features(
        self,
        X: Any,
        *,
        out: PathLike | None = None,
        dtype: Any = None,
        group: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Any:
        """Compute features: ``Phi @ Phi.T`` equals (or estimates, for a sketch) ``gram(X)``.

        Parameters
        ----------
        X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
            N points along the first axis; datasets and loaders are streamed.
        out : path, optional
            Where to write them instead of holding them in memory. A path that ends in ``.npy``
            becomes a memory-mapped file of the features. Any other is a folder, which
            `ntkfast.open_features` opens: the features, the outputs beside them, and a manifest of
            what they were computed from. A call that was killed or has failed goes on there when it
            is called again, and loses a few seconds' work at most.
        dtype : {"float16", "float32", "float64"}, optional
            Type of the features in the folder; default: that of the features. float16 halves the
            folder, and is refused where it would lose digits.
        group : torch.distributed.ProcessGroup, optional
            Processes that share the work: all call this with the same arguments, each writes its
            own rows of one folder (on a file system they all see), and none waits for another.
            Default: the default group, or the processes of torchrun.
        rank, world_size : int, optional
            The same without a group: number of this process, and of all of them.

        Returns
        -------
        Tensor or ndarray of shape (N, d)
            On the model's device; an array when `X` is one, a read-only memory map with `out` (of
            the rows of this process). d is `dim` for a sketch and ``draws * P`` for exact gradients
            (in the order of ``named_parameters``, divided by ``sqrt(draws)``). Shape (N k, d),
            point-major, for ``outputs="full"``.

        Raises
        ------
        ValueError
            When exact features exceed the memory budget, outputs or gradients are not finite
            (says where), or the model mixes the points of a batch; when the folder holds features
            of another network, other data or settings (says which), or is damaged.
        OSError
            When the disk is full, before or while the folder is written; when another process is
            writing to it. What is finished stays.

        Notes
        -----
        With ``sketch="auto"`` the first call fits the sketch to its first points
        (:meth:`fit_sketch`), which takes about as long as the features of a hundred points; all
        others keep it, so that features of one object always fit together. A folder keeps it, too:
        every later call with that folder takes it from there.

        A folder is checked before anything is added: the fingerprint of parameters and structure,
        the settings, the length of the data, a few points, and the first finished rows, which are
        computed again. A stream of unknown length can go to a folder from one process; to go on it
        must start anew, and what it gave before is read, not computed, again.
        """
        keywords = dict(dtype=dtype, group=group, rank=rank, world_size=world_size)
        return self.outputs_and_features(X, out=out, **keywords)[1]

    def outputs_and_features(
        self,
        X: Any,
        *,
        out: PathLike | None = None,
        dtype: Any = None,
        group: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> tuple[Any, Any]:
        """Compute :meth:`outputs` and :meth:`features` in one pass over the data.

        So both belong to the same inputs even where every reading gives others (streams that can
        be read once).

        Parameters
        ----------
        X, out, dtype, group, rank, world_size
            As for :meth:`features`.

        Returns
        -------
        outputs : Tensor or ndarray of shape (N, k)
            A memory map, too, where `out` is a folder.
        features : Tensor or ndarray of shape (N, d)

        Raises
        ------
        ValueError, RuntimeError, OSError
            As :meth:`features`.
        """
        folder = stored.folder_of(out)
        if folder is None:
            given = dict(dtype=dtype, group=group, rank=rank, world_size=world_size)
            stored.refuse_without_folder(given)
        else:
            share = stored.as_share(group, rank, world_size)
            kind = stored.as_dtype(dtype, self._dtype)
        inputs = self._inputs(X, "X")
        with memory_advice(_ADVICE), isolated(self._net, self._device) as net:
            setup = self._prepare(net, inputs)
            if folder is not None:
                return self._to_store(inputs, setup, folder, kind, *share)
            if self.sketch == "auto":
                with _choosing:
                    if self._chosen is None:
                        self._choose(inputs, setup)
            work = self._feature_work(setup)
            if self._sketch is None and out is None and inputs.length is not None:
                numbers = inputs.length * work.rows_per_point * work.width
                self._refuse_if_too_large(setup, inputs.length, numbers)
            rows = None if inputs.length is None else inputs.length * work.rows_per_point
            target = Rows(rows, work.width, self._dtype, self._device, out)
            setup.budget = self.memory_budget  # of what the result leaves
            work = self._feature_work(setup)
            outputs: list[Tensor] = []
            try:
                start = 0
                for batch in self._progress(inputs, work.batch, "features"):
                    values, block = self._features_of(setup, work, batch, start)
                    target.append(block)
                    outputs.append(values)
                    start += len(values)
                features = target.finish()
            except BaseException:
                target.discard()
                raise
            self._learn(setup)
        return _result(torch.cat(outputs), inputs), _result(features, inputs)

    def _feature_work(self, setup: _Setup) -> _FeatureWork:
        """Return what blocks of features are made with, the sketch being fixed."""
        scale = setup.combinations if self._layout.full else 1
        width = self._draws * self.n_parameters if self._sketch is None else self._sketch.dim
        extra = 0 if self._sketch is not None else 2 * scale * width * self._dtype.itemsize
        sum_of = FeatureSum(self._layout, self._sketch, self._chosen, self._dtype)
        return _FeatureWork(sum_of, scale, width, self._batch_size(setup, extra))

    def _features_of(
        self, setup: _Setup, work: _FeatureWork, batch: Batch, start: int
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and features of a batch whose first point is number `start` of X."""
        n = batch_length(batch)
        shape = (n * work.rows_per_point, work.width)
        block = torch.zeros(shape, dtype=self._dtype, device=self._device)
        values, gradients = self._gradients(setup, batch, setup.weights)
        work.sum_of.add(gradients, n, block)
        self._check_finite([values, block.view(n, -1)], start, batch, "X", setup)
        return values.to(self._dtype), block.mul_(self._draws**-0.5) if self._draws > 1 else block

    def _to_store(
        self,
        inputs: Inputs,
        setup: _Setup,
        folder: Path,
        dtype: np.dtype[Any],
        rank: int,
        world_size: int,
    ) -> tuple[Any, Any]:
        """Write the rows of this process to a folder, and return them."""
        if inputs.length is None and world_size > 1:
            raise ValueError(
                f"X is a stream, which {world_size} processes cannot share, as none can go to its "
                "own points: pass a Dataset that can be indexed, or use one process (rank=0, "
                "world_size=1)"
            )
        work = self._feature_work(setup)
        network = fingerprint(identity_of(self._net))
        description: dict[str, Any] = {
            "network": network,
            "layers": self._names,
            "outputs": self._outputs if isinstance(self._outputs, str) else int(self._outputs),
            "draws": self._draws,
            "sketch": self.sketch,
            "seed": int(self._seed),
            "points": inputs.length,
            "data": fingerprint(inputs.identity()),
            "dtype": str(dtype),
            "n_features": work.width,
            "rows_per_point": work.rows_per_point,
            "outputs_dtype": str(self._dtype).removeprefix("torch."),
            "n_outputs": setup.weights.shape[1],
        }
        store.read_checked(folder, description)  # before anything is added
        description["fitted_sketch"] = None
        if self.sketch == "auto":
            with _choosing:
                self._chosen, description["fitted_sketch"] = stored.shared_sketches(
                    folder,
                    network,
                    self._chosen,
                    lambda: self._choose(inputs, setup),
                    self._device,
                )
            work = self._feature_work(setup)
        with store.StoreWriter(folder, description, rank, world_size) as writer:
            self._compare_with_store(inputs, setup, work, writer)
            parts = [(start, inputs.part(start, stop)) for start, stop in writer.missing()]
            counts = [part.n_batches(work.batch) for _, part in parts]
            total = None if None in counts else sum(count or 0 for count in counts)
            batches = (
                numbered for start, part in parts for numbered in part.numbered(work.batch, start)
            )
            # One bar for all processes: several would write over each other.
            shown = track(batches, total, "features") if rank == 0 else batches
            for start, batch in shown:
                values, block = self._features_of(setup, work, batch, start)
                writer.write(start, block.numpy(force=True), values.numpy(force=True))
            rows = writer.finish()
        self._learn(setup)
        return rows.outputs, rows.features

    def _compare_with_store(
        self, inputs: Inputs, setup: _Setup, work: _FeatureWork, writer: store.StoreWriter
    ) -> None:
        """Compute the first rows of a store again: fingerprints do not see what code does."""
        start = writer.one_finished()
        if start is None:
            return
        # (Of a stream the first points are finished first, and a look at them loses none.)
        count = min(2, writer.finished_after(start))
        part = inputs.few(count) if inputs.length is None else inputs.part(start, start + count)
        for batch in part.batches(count):
            values, block = self._features_of(setup, work, batch, start)
            stop = start + len(values)
            then = writer.rows(start, stop)
            for what, now, before in (("outputs", values, then[1]), ("features", block, then[0])):
                expected = now.double().numpy(force=True)
                scale = float(np.linalg.norm(expected))
                error = float(np.linalg.norm(before - expected)) / scale if scale else 0.0
                if not error <= _AGAIN[self._input_dtype]:
                    raise ValueError(
                        f"out: computed again, {what} of points {start} to {stop - 1} of X differ "
                        f"from those in the folder by {100 * error:.2g} %, though parameters and "
                        "structure of the network are the same: its code, or the data, have "
                        "changed since. Give another folder"
                    )
            start = stop

    def gram(self, X1: Any, X2: Any = None, *, out: PathLike | None = None) -> Any:
        """Compute the exact kernel matrix of the points `X1` and `X2` (default: the same points).

        Per-sample gradients of a whole network never exist: the contraction runs layer by layer,
        on the layers' inputs and output gradients, the cheaper of two ways.

        Parameters
        ----------
        X1, X2 : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
            N1 and N2 points along the first axis. Inputs (not gradients) must fit in memory.
        out : path, optional
            Write a memory-mapped ``.npy`` file there. While incomplete it is called
            ``<out>.partial``, and a call with the same arguments goes on where the last stopped
            (without a `memory_budget` in the blocks that the file was begun with).

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
        with memory_advice(_ADVICE), isolated(self._net, self._device) as net:
            # Inside, since loaders draw random numbers, too.
            rows = self._inputs(X1, "X1").sliceable()
            columns = rows if X2 is None else self._inputs(X2, "X2").sliceable()
            assert rows.length is not None and columns.length is not None
            setup = self._prepare(net, rows if rows.length > 1 else columns)
            scale = setup.combinations if self._layout.full else 1
            shape = (rows.length * scale, columns.length * scale)
            result: Any = None
            file = None
            if out is None:
                result = torch.empty(shape, dtype=self._dtype, device=self._device)
                setup.budget = self.memory_budget  # of what the result leaves
            size = self._panel_size(setup, rows.length if X2 is None else None)
            if out is not None:
                if self._memory_budget is None:  # it may have been another when the file was begun
                    size = GramFile.panel_of(out) or size
                mark = fingerprint(self._identity([rows, columns]))
                file = GramFile(out, shape, self._dtype, mark, size)
                result = file.matrix

            def capture(batch: Batch, start: int, of: str) -> dict[str, Gradient]:
                values, gradients = self._gradients(setup, batch, setup.weights)
                checks = [values, *gram.witnesses(gradients)]
                self._check_finite(checks, start, batch, of, setup)
                return gradients

            work = gram.GramWork(
                capture,
                self._names,
                rows,
                columns,
                result,
                file,
                panel=size,
                batch=self._batch_size(setup),
                pairs=self._layout.full,
                combinations=setup.combinations,
                draws=self._draws,
                tile_floats=self._tile_floats(setup),
                dtype=self._dtype,
                device=self._device,
            )
            for _ in track(work.steps(), work.n_steps(), "gram"):
                pass
            self._learn(setup)
            if file is not None:
                del work, result
                return file.finish()
        return _result(result, rows)

    def fit_sketch(self, X: Any) -> float:
        """Choose the sketches of ``sketch="auto"`` on the first (at most 32) points of `X`.

        Features do so by themselves, on the first points they see; this does it on points of your
        choice, or again (after more training, say). Features from before do not fit those from
        after. The choice depends on the model, the points and the seed.

        Parameters
        ----------
        X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
            Points of the kind that features will be asked for; a few dozen, typical ones.

        Returns
        -------
        float
            The relative error ``|Phi Phi^T - K|_F / |K|_F`` to expect on such points, as a root
            mean square over seeds. It holds for Gram matrices of as many points: where the
            gradients of different points are nearly orthogonal, it grows with their number.

        Raises
        ------
        ValueError
            When the sketch is not ``"auto"``, and as :meth:`features`.

        Warns
        -----
        UserWarning
            When no sketch to `dim` features reaches `relative_error`; says which `dim` would.

        Notes
        -----
        Small parameters that carry much of the kernel get columns of their own, without error. The
        others share the rest of the `dim` columns, as count-sketches of their gradients, of a few
        combinations of the gradient's rows (never forming the gradient), or as tensor-sketches
        (Pham, Pagh, KDD 2013), whichever is cheapest within the error allowed to all of them.
        Every choice is unbiased. :meth:`explain` shows them.
        """
        if self.sketch != "auto":
            raise ValueError('fit_sketch needs sketch="auto"')
        inputs = self._inputs(X, "X")
        with memory_advice(_ADVICE), isolated(self._net, self._device) as net, _choosing:
            return self._choose(inputs, self._prepare(net, inputs)).error

    def sketch_error(self, X: Any, points: int = 32) -> float:
        """Estimate the error of the sketch on a few points.

        Parameters
        ----------
        X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
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
        few = self._inputs(X, "X").few(points)
        return explain.gram_errors(self.features(few).double(), self.gram(few).double())[0]

    def explain(self, X: Any, points: int = 1000) -> explain.Explanation:
        """Describe, layer by layer, how gradients of points like those of `X` are contracted.

        Parameters
        ----------
        X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
            Points of the kind the model takes. A few of them show how gradients are taken; the
            first (at most) 32, what every parameter contributes to the kernel and what error the
            sketch makes, so a few dozen typical ones are best and two are fastest.
        points : int
            Number of points for which the costs of a Gram matrix are counted.

        Returns
        -------
        Explanation
            A table that prints itself: rule or fallback (and why), parameters, share of the kernel,
            sketch, the contraction chosen, its cost, and memory per point. Below it the relative
            error ``|Phi Phi^T - K|_F / |K|_F`` of the sketch: of this seed on these points, its
            range over random halves of them, and (not for ``"kronecker"``) what to expect over
            seeds.
        """
        inputs = self._inputs(X, "X")
        with memory_advice(_ADVICE), isolated(self._net, self._device) as net:
            setup = self._prepare(net, inputs, explaining=True)
            if self.sketch == "auto" and self._chosen is None:
                with _choosing:
                    self._choose(inputs, setup)
            shares, few = self._shares(inputs, setup, estimate=False)
        report = self._report(shares, few, setup)
        names = {name: shape.numel() for name, shape in self._layout.shapes.items()}
        return explain.describe(
            repr(self), names, setup.plan, setup.parts, points, self._layout.full, report
        )

    def _report(self, shares: dict[str, choose.Share], few: Inputs, setup: _Setup) -> SketchReport:
        """Describe the sketch on a few points with known kernels."""
        kernels = {name: share.kernel for name, share in shares.items()}
        total = torch.stack(list(kernels.values())).sum(0)
        trace = float(total.trace())
        parts = {
            name: float(kernel.trace()) / trace if trace else 0.0
            for name, kernel in kernels.items()
        }
        n, errors, expected = few.length or 0, None, None
        if self._sketch is not None:
            features = self.features(few).double()
            if self._outputs == "full":
                features = features.view(n, setup.combinations, -1)
                features = features[:, _few(setup.combinations)].flatten(0, 1)
            exact = total / self._draws
            if self._draws > _SKETCH_COMBINATIONS:
                exact = self.gram(few).double()
            errors = explain.gram_errors(features, exact)
            if self._chosen is not None:
                expected = self._chosen.error
            elif not isinstance(self._sketch, KroneckerSketch) and trace:
                entries = sum(share.entries for share in shares.values())
                square = choose.hash_error(total, entries, self._sketch.dim)
                expected = square**0.5 / float(total.norm())
        return SketchReport(n, parts, errors, expected, self._chosen)

    def _inputs(self, X: Any, name: str) -> Inputs:
        if isinstance(X, Inputs):
            return X
        return Inputs(X, name, self._device, self._input_dtype, self._fields)

    def _progress(self, inputs: Inputs, size: int, description: str) -> Iterator[Batch]:
        yield from track(inputs.batches(size), inputs.n_batches(size), description)

    def _prepare(self, net: nn.Module, inputs: Inputs, *, explaining: bool = False) -> _Setup:
        """Find the number of outputs and how to take gradients, and check that on a few points.

        Gradients of these (`parts`) are there only when `explaining`.
        """
        probe = inputs.probe(_PROBE)
        parameters = self._theta()
        # What is known of a network holds for inputs of the same kind, as long as modules, their
        # settings and their tensors are the same ones and lie where they did: whatever else may be
        # done differently shows in the operations.
        state, settings = capture.identity(self._net)
        kind = [(leaf.shape[1:], leaf.dtype) for leaf in leaves(probe)]
        key = repr((settings, kind, sorted(probe) if isinstance(probe, dict) else 0))
        kept = None if explaining else self._plans.get(key)
        if kept is not None:
            return _Setup(net, kept[1], kept[0].copy(net), {}, key, self.memory_budget)
        plan, weights, parts = capture.plan(
            net, lambda: replica(self._net), parameters, probe, self._weights, self._dtype
        )
        setup = _Setup(net, weights, plan, parts, key, self.memory_budget)
        # (Whose ids these are must live as long.)
        self._plans = {key: (plan.copy(), weights, state)}
        if plan.fallback and not self._warned:
            self._warn_if_dear(setup, probe, inputs)
        return setup

    def _learn(self, setup: _Setup) -> None:
        """Keep what a call has found out for those to come."""
        kept = self._plans.get(setup.key)
        if kept is not None:
            self._plans = {setup.key: (setup.plan.copy(), *kept[1:])}

    def _theta(self) -> dict[str, nn.Parameter]:
        """Return the chosen parameters; raise a ValueError if they are others than at first."""
        found = dict(self._net.named_parameters())
        now = {name: found[name].shape for name in _select(self._net, self._layers)}
        then = self._layout.shapes
        if list(now.items()) != list(then.items()):
            gone = [f"{name!r} is frozen, tied or gone" for name in then if name not in now]
            new = [f"{name!r} is new" for name in now if name not in then]
            other = [
                f"{name!r} has shape {tuple(now[name])}, not {tuple(shape)}"
                for name, shape in then.items()
                if now.get(name, shape) != shape
            ]
            what = "; ".join([*gone, *new, *other][:5]) or "their order"
            raise ValueError(
                f"the model's trainable parameters have changed since this EmpiricalNTK was made "
                f"({what}): make a new one (features of before do not fit those of after)"
            )
        return {name: found[name] for name in now}

    def _warn_if_dear(self, setup: _Setup, probe: Batch, inputs: Inputs) -> None:
        """Say which parameters make the gradients cost many plain passes, before they do."""
        net, plan = setup.net, setup.plan
        trial, n = inputs.first(_TRIAL)[0], inputs.length
        seeds = torch.ones((batch_length(trial), setup.weights.shape[1]), device=self._device)
        started = time.perf_counter()
        functional.weighted_sum(net, plan.parameters, trial, seeds)
        plain = (time.perf_counter() - started) / batch_length(trial)
        started = time.perf_counter()
        capture.by_fallback(net, plan, probe, list(plan.fallback), setup.weights)
        each = (time.perf_counter() - started) / batch_length(probe)
        if each < _DEAR * plain or (n is not None and n * each < 2):
            return
        self._warned = True
        name, reason = next(iter(plan.fallback.items()))
        more = f" and {len(plan.fallback) - 1} more" if len(plan.fallback) > 1 else ""
        how = "torch.func" if plan.vectorised else "autograd, one point at a time"
        total = "" if n is None else f", {n * each:.0f} seconds for {n} points"
        warnings.warn(
            f"no layer rule covers parameter {name!r}{more} ({reason}): gradients by {how} cost "
            f"about {each / plain:.0f} plain forward and backward passes{total}. "
            "explain(X) shows all of them, layers=... leaves some out",
            UserWarning,
            stacklevel=5,
        )

    def _gradients(
        self, setup: _Setup, batch: Batch, weights: Tensor
    ) -> tuple[Tensor, dict[str, Gradient]]:
        return capture.gradients(setup.net, setup.plan, batch, weights, self._dtype)

    def _choose(self, inputs: Inputs, setup: _Setup) -> choose.Sketches:
        """Fix the sketch of every parameter on the first points; say if it falls short."""
        assert self._sketch is not None
        shares, _ = self._shares(inputs, setup, estimate=True)
        dim, allowed = self._sketch.dim, self._relative_error
        chosen = choose.choose(shares, dim, self._seed, allowed)
        if chosen.error > allowed:
            warnings.warn(
                f"the sketch to dim={dim} features has an estimated relative error of "
                f"{chosen.error:.2g} on {chosen.points} points, above "
                f"relative_error={allowed:g}; dim={chosen.needed} would reach it",
                stacklevel=3,
            )
        self._chosen = chosen
        return chosen

    def _shares(
        self, inputs: Inputs, setup: _Setup, *, estimate: bool
    ) -> tuple[dict[str, choose.Share], Inputs]:
        """Exact kernels of every parameter on the first points, and those points.

        With `estimate` also the errors of sketches of its weight.
        """
        pairs = self._layout.full
        few = setup.weights[_few(setup.combinations)]
        room = int(setup.budget // (4 * setup.plan.activation_bytes + 1))
        most = min(_SKETCH_POINTS, _SKETCH_ROWS // (len(few) if pairs else 1), room)
        points, start = inputs.few(max(2, most)), 0
        builder = gram.PanelBuilder(len(few), self._dtype, self._device)
        for batch in points.batches(self._batch_size(setup)):
            outputs, gradients = self._gradients(setup, batch, few)
            checks = [outputs, *gram.witnesses(gradients)]
            self._check_finite(checks, start, batch, inputs.name, setup)
            builder.append(batch_length(batch), gradients)
            start += batch_length(batch)
        panel = builder.finish()
        shares: dict[str, choose.Share] = {}
        offsets = self._layout.offsets()
        for name, shape in self._layout.shapes.items():
            entries = shape.numel() * (1 if pairs else self._draws)
            kernel = choose.kernel(name, panel, pairs, len(few), self._tile_floats(setup))
            shares[name] = share = choose.Share(kernel, entries)
            if estimate and self._sketch is not None and name in panel.parts:
                share.shape = choose.weight_shape(panel.parts[name])
                choose.estimate(share, panel.parts[name], panel, pairs, self._sketch, offsets[name])
        return shares, points

    def _tile_floats(self, setup: _Setup) -> int:
        """Floats of one tile of per-sample gradients, for an eighth of the budget."""
        return max(1 << 16, setup.budget // (8 * self._dtype.itemsize))

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
        room = setup.budget // (4 * int(setup.plan.activation_bytes + extra + 1))
        if self._device.type == "cpu":
            room = min(room, _CPU_ACTIVATIONS // int(setup.plan.activation_bytes + 1))
        return max(2, min(largest_batch(self._device), room))

    def _panel_size(self, setup: _Setup, n: int | None) -> int:
        """Points per panel: all of them if their factors take half the budget, or a quarter.

        A block of the matrix takes a quarter at most.
        """
        half = int(setup.budget // (2 * setup.plan.resident_bytes + 1))
        scale = setup.combinations if self._layout.full else 1
        side = math.isqrt(setup.budget // (4 * scale**2 * self._dtype.itemsize))
        return n if n is not None and n <= min(half, side) else max(1, min(half // 2, side))

    def _refuse_if_too_large(self, setup: _Setup, n: int, numbers: int) -> None:
        needed, budget = numbers * self._dtype.itemsize, setup.budget
        if needed > budget:
            raise ValueError(
                f"exact features of {n} points need {needed} bytes ({explain.size(needed)}), more "
                f"than memory_budget={budget} ({explain.size(budget)}); "
                'use sketch="sparse", layers="last", gram(X), out=<file>, or a larger budget'
            )

    def _check_finite(
        self, values: list[Tensor], start: int, batch: Batch, of: str, setup: _Setup | None = None
    ) -> None:
        """Raise with the first point that is not finite, and the parameters concerned.

        `values` are (n, *) tensors that any such point makes not finite: outputs, then others.
        """
        # The sum is one fast pass; it may overflow, so only the second look decides. (A GPU is
        # waited for once.)
        if bool(torch.isfinite(torch.stack([value.sum().float() for value in values])).all()):
            return
        bad = torch.zeros(len(values[0]), dtype=torch.bool, device=values[0].device)
        for value in values:
            bad |= ~torch.isfinite(value.flatten(1)).all(1)
        if not bool(bad.any()):
            return
        row, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
        where = f"point {start + row} of {of}" + (f" (and {more} more)" if more else "")
        if setup is None or not bool(torch.isfinite(values[0][row]).all()):
            raise ValueError(f"the model's outputs are not finite (NaN or inf) at {where}")
        point = take(batch, slice(row, row + 1))
        gradients = functional.one_by_one(
            setup.net, setup.plan.parameters, point, setup.weights, pairs=bool(setup.plan.pairs)
        )
        names = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
        if not names:
            raise ValueError(f"gradients overflow {self._dtype} at {where}; use a float64 model")
        raise capture.not_finite(where, names)

    def _identity(self, inputs: list[Inputs]) -> Iterator[Tensor | str]:
        """Everything a kernel matrix depends on."""
        yield f"{self._outputs} {self._draws} {self._seed} {self._names} {self._dtype}"
        yield from identity_of(self._net)
        for part in inputs:
            for batch in part.batches(_READ):
                yield from leaves(batch)


# One thread at a time fixes the sketch of an object.
_choosing = threading.RLock()


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive int")


def _few(combinations: int) -> slice:
    """Return the outputs or draws that stand for all of them."""
    return slice(None, None, -(-combinations // _SKETCH_COMBINATIONS))


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
