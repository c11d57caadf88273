"""Processes that share a pool: what they tell each other, through torch.distributed.

Every rank holds some of the points, one range of rows after another; points have global numbers
everywhere. What is written for a `Group` also works for `ALONE`, one process without any, so that
nothing behind is written twice. Collectives act on tensors of the arrays' own device: gloo for
arrays on the CPU, NCCL for those on a GPU.

Sums over points go by leaves of so many rows, counted over all ranks, in float64, and leaves are
added in one fixed binary tree (`total`): the result is the same, bit for bit, for any number of
ranks. A leaf belongs to the rank with its first row; ranks that hold the rest send it.

`Group.together` surrounds what each rank checks and computes by itself, with no collective inside.
At its end all ranks compare: one that failed, or was called with something else, ends the call on
all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..arrays import ArgumentTypeError, ArgumentValueError, Array, Library
from .engines import CPU, Engine

__all__ = ["ALONE", "Alone", "Group", "digest", "group_of", "leaf_nodes", "mean_of", "total"]

# Bytes in which a rank says what it was called with, or what went wrong.
_MESSAGE = 4096
# Bytes of rows of all ranks that travel in one collective.
_AT_ONCE = 1 << 24


def digest(value: Any) -> str:
    """Describe an argument that must be the same on all ranks, in a few characters."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)[:60]
    array = np.ascontiguousarray(value)
    if array.dtype == object:
        array = np.frombuffer(repr(value).encode(), np.uint8)
    checksum = hashlib.blake2b(array.view(np.uint8).reshape(-1).data, digest_size=6).hexdigest()
    return f"{array.dtype} {array.shape} with checksum {checksum}"


class Alone:
    """One process that holds all points.

    Attributes
    ----------
    rank, size : int
    offsets : ndarray (size + 1,), int64
        Where the points of each rank begin; the last entry is N.
    collectives, sent : int
        How many collectives there have been, and bytes of what they distributed.
    """

    rank, size = 0, 1
    collectives = sent = 0

    def __init__(self, offsets: Array | None = None) -> None:
        self.offsets = np.zeros(self.size + 1, np.int64) if offsets is None else offsets

    def __reduce__(self) -> Any:
        return "ALONE" if self is ALONE else (Alone, (self.offsets,))

    def with_points(self, counts: Array) -> Alone:
        """Return the same ranks with so many points each."""
        return Alone(np.concatenate([[0], np.cumsum(counts)]))

    @property
    def start(self) -> int:
        """Number of the first point of this rank."""
        return int(self.offsets[self.rank])

    @property
    def stop(self) -> int:
        """Number after that of its last point."""
        return int(self.offsets[self.rank + 1])

    @property
    def points(self) -> int:
        """N, over all ranks."""
        return int(self.offsets[-1])

    def bounds(self, points: Array) -> Array:
        """Where those of each rank begin among points (m,), increasing; the last entry is m."""
        if self is ALONE:  # which does not know its points
            return np.array([0, len(points)])
        return np.searchsorted(points, self.offsets)

    @contextlib.contextmanager
    def together(self, call: str, facts: dict[str, Any]) -> Iterator[None]:
        """Surround what a rank does by itself; `facts` must then be the same on all ranks."""
        yield

    def gather(self, numbers: Sequence[float] | Array) -> Array:
        """Return the numbers of every rank (size, m), float64; m is the same for all."""
        return np.asarray(numbers, np.float64)[None]

    def best(self, record: Array) -> Array:
        """Return the record (utility, point, ...) of the largest utility, then the lowest point.

        Raises a ValueError on every rank where a utility is NaN or infinite; -inf stands for none.
        """
        records = self.gather(record)
        utility, point = records[:, 0], records[:, 1]
        wrong = np.flatnonzero(np.isnan(utility) | (utility == np.inf))
        if len(wrong):
            raise ValueError(
                f"the utility of point {int(point[wrong[0]])} is {utility[wrong[0]]}: features, "
                "outputs or weights are too large for this precision; rescale them or use float64"
            )
        of_all: Array = records[np.lexsort((point, -utility))[0]]
        return of_all

    def parts(
        self, engine: Engine, own: Any, counts: Sequence[int] | Array
    ) -> Iterator[tuple[int, Any]]:
        """Yield the ranks that have rows, and those rows; each has so many."""
        if len(own):
            yield 0, own

    def concatenated(self, engine: Engine, own: Any, counts: Sequence[int] | Array) -> Any:
        """Return the rows of all ranks, rank by rank, of which each has so many."""
        found = [part for _, part in self.parts(engine, own, counts)]
        result = found[0] if found else own
        for part in found[1:]:
            result = engine.stack(result, part)
        return result

    def rows(self, engine: Engine, points: Array, read: Callable[[Array], Any]) -> Any:
        """Rows of points, given by their global numbers (m,), on every rank.

        `read` returns the rows of points of this rank, by their position there.
        """
        if self is ALONE:
            return read(points)
        order = np.argsort(points, kind="stable")
        bounds = self.bounds(points[order])
        mine = points[order][bounds[self.rank] : bounds[self.rank + 1]] - self.start
        found = self.concatenated(engine, read(mine), np.diff(bounds))
        back = np.empty(len(points), np.int64)
        back[order] = np.arange(len(points))
        return engine.rows(found, back)


class Group(Alone):
    """A process group of torch.distributed.

    Raises
    ------
    TypeError, ValueError
        No process group, or one that this process is not in, or whose backend cannot carry arrays
        of this library.
    """

    def __init__(self, process_group: Any, library: Library) -> None:
        torch = sys.modules.get("torch")
        distributed = getattr(torch, "distributed", None)
        if (
            torch is None
            or distributed is None
            or not distributed.is_available()
            or not isinstance(process_group, distributed.ProcessGroup)
        ):
            raise ArgumentTypeError(
                "group",
                "group must be a process group of torch.distributed (torch.distributed.group.WORLD "
                f"after init_process_group); got {type(process_group).__name__}",
            )
        self._torch, self._distributed = torch, distributed
        # A group that somebody still holds after `destroy_process_group` may abort the process when
        # that ends: it must not be a posterior that keeps one.
        self._held = weakref.ref(process_group)
        self.rank = distributed.get_rank(process_group)
        self.size = distributed.get_world_size(process_group)
        if self.rank < 0:
            raise ArgumentValueError("group", "this process is no member of group")
        if library.module == "cupy":
            raise ArgumentTypeError(
                "group", "with a group the features are numpy arrays or torch tensors, not cupy's"
            )
        self._device = torch.device("cpu") if library.device is None else library.device
        kinds = [str(getattr(device, "type", device)) for device in process_group._device_types]
        if self._device.type not in kinds:
            raise ArgumentValueError(
                "group",
                f"group has a backend for {', '.join(kinds)}, and the features are on "
                f"{self._device.type}: "
                'init_process_group("cpu:gloo,cuda:nccl") carries both',
            )
        self.collectives = self.sent = 0
        self._call = ""
        super().__init__()

    @property
    def _group(self) -> Any:
        group = self._held()
        if group is None:
            raise RuntimeError(
                "the process group of this posterior has been destroyed (destroy_process_group): "
                "`mean`, `variance` and `predict` need none, everything else does"
            )
        return group

    def with_points(self, counts: Array) -> Group:
        """Return the same ranks with so many points each."""
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        return self

    def of(self, library: Library) -> Group:
        """Return the same ranks and points, for arrays of this library."""
        return Group(self._group, library).with_points(np.diff(self.offsets))

    def __reduce__(self) -> Any:
        raise TypeError(
            "a posterior with group= cannot be pickled: its points are on several ranks"
        )

    def _collect(self, collective: Callable[[], Any], size: int) -> None:
        self.collectives += 1
        self.sent += size
        try:
            collective()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise RuntimeError(
                f"rank {self.rank} has lost the other ranks in {self._call}: one has died, or did "
                "not make the same call within the time-out of the group. Nothing has changed "
                f"here; start the processes anew ({reason})"
            ) from error

    def _all(self, own: Any) -> list[Any]:
        """Return the tensors of all ranks."""
        found = [self._torch.empty_like(own) for _ in range(self.size)]
        group = self._group
        self._collect(
            lambda: self._distributed.all_gather(found, own, group=group),
            own.numel() * own.element_size() * self.size,
        )
        return found

    def gather(self, numbers: Sequence[float] | Array) -> Array:
        """Return the numbers of every rank (size, m), float64; m is the same for all."""
        own = self._torch.tensor(np.asarray(numbers, np.float64), device=self._device)
        result: Array = self._torch.stack(self._all(own)).cpu().numpy()
        return result

    def _tensor(self, array: Any) -> Any:
        """Return an array as a tensor that collectives take."""
        if not isinstance(array, np.ndarray):
            return array.contiguous()
        array = np.ascontiguousarray(array)
        array = array if array.flags.writeable else array.copy()
        return self._torch.from_numpy(array).to(self._device)

    def parts(
        self, engine: Engine, own: Any, counts: Sequence[int] | Array
    ) -> Iterator[tuple[int, Any]]:
        """Yield the ranks that have rows, and those rows; each has so many.

        Few rows come in one collective, many rank by rank, so that they are not all in memory.
        """
        on_host = isinstance(own, np.ndarray)
        most = int(max(counts))
        if not most:
            return
        row = self._tensor(engine.like(own, 1))
        if most * self.size * row.numel() * row.element_size() <= _AT_ONCE:
            padded = self._tensor(engine.like(own, most))
            padded[: len(own)] = self._tensor(own)
            padded[len(own) :] = 0
            for root, found in enumerate(self._all(padded)):
                if counts[root]:
                    rows = found[: int(counts[root])]
                    yield root, rows.cpu().numpy() if on_host else rows
            return
        for root, count in enumerate(counts):
            if count:
                like = own if root == self.rank else engine.like(own, int(count))
                rows = self._broadcast(self._tensor(like), root)
                yield root, rows.cpu().numpy() if on_host else rows

    def _broadcast(self, rows: Any, root: int) -> Any:
        group = self._group
        source = self._distributed.get_global_rank(group, root)
        self._collect(
            lambda: self._distributed.broadcast(rows, source, group=group),
            rows.numel() * rows.element_size(),
        )
        return rows

    @contextlib.contextmanager
    def together(self, call: str, facts: dict[str, Any]) -> Iterator[None]:
        """Surround what a rank does by itself; then compare with the others.

        Raises
        ------
        RuntimeError
            Another rank failed: its message.
        ValueError
            `facts` differ: the first that does, by name.
        """
        self._call, failed = call, None
        try:
            yield
        except Exception as error:
            failed = error
        if failed is None:
            said = {"call": call} | {name: digest(value) for name, value in facts.items()}
        else:
            said = {"failed": f"{type(failed).__name__}: {failed}"[:1500]}
        text = json.dumps(said).encode()
        assert len(text) <= _MESSAGE
        own = np.zeros(_MESSAGE, np.uint8)
        own[: len(text)] = np.frombuffer(text, np.uint8)
        found = self._all(self._torch.from_numpy(own).to(self._device))
        if failed is not None:
            raise failed
        heard = [json.loads(bytes(one.cpu().numpy()).rstrip(b"\0")) for one in found]
        for rank, one in enumerate(heard):
            if "failed" in one:
                raise RuntimeError(
                    f"{call} has failed on rank {rank}, and so on all; nothing has changed. "
                    f"There: {one['failed']}"
                )
        for name in heard[0]:
            for rank, one in enumerate(heard):
                if one.get(name) != heard[0][name]:
                    raise ValueError(
                        f"the ranks do not agree about {name}: it is {heard[0][name]} on rank 0 "
                        f"and {one.get(name)} on rank {rank}; nothing has changed"
                    )


ALONE = Alone()


def group_of(process_group: Any, library: Library) -> Alone:
    """Return the ranks that a posterior is shared by."""
    return ALONE if process_group is None else Group(process_group, library)


def leaf_nodes(first: int, last: int) -> list[tuple[int, int]]:
    """Largest aligned nodes (level, index) that make up the leaves [first, last), in order.

    Node (level, i) of the tree is the sum of the leaves [i 2^level, (i + 1) 2^level).
    """
    nodes = []
    while first < last:
        level = 0
        while first % (2 << level) == 0 and first + (2 << level) <= last:
            level += 1
        nodes.append((level, first >> level))
        first += 1 << level
    return nodes


class _Tree:
    """Sums of leaves that come in order, added as the nodes of the tree say."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int, Any]] = []

    def add(self, level: int, index: int, value: Any) -> None:
        while self.nodes and self.nodes[-1][:2] == (level, index - 1) and index % 2:
            value = self.nodes.pop()[2] + value
            level, index = level + 1, index // 2
        self.nodes.append((level, index, value))

    def total(self) -> Any:
        result = None
        for _, _, value in reversed(self.nodes):
            result = value if result is None else value + result
        return result


def total(
    group: Alone,
    engine: Engine,
    counts: Array,
    read: Callable[[int, int], tuple[Any, ...]],
    leaf: Callable[..., Any],
    like: Any,
    *,
    leaf_rows: int,
    step: int,
) -> Any:
    """Sum over the rows of all ranks, the same bit for bit for any distribution of them.

    Parameters
    ----------
    group, engine
        Whose rows, and what they are arrays of.
    counts : array (size,)
        Rows of each rank.
    read : function
        Of [a, b), positions among the rows of this rank, to arrays of b - a rows each.
    leaf : function
        Of those arrays to the sum over their rows.
    like : matrix of the engine, or float
        What such a sum is like.
    leaf_rows : int
        Rows of a leaf.
    step : int
        Rows to read at once, a multiple of that.
    """
    bounds = np.concatenate([[0], np.cumsum(counts)])
    # The leaf that a rank's first row belongs to may have begun before: those rows go there.
    heads = np.minimum(-bounds[:-1] % leaf_rows, counts)
    own_first, own_last = int(bounds[group.rank]), int(bounds[group.rank + 1])
    begin = own_first + int(heads[group.rank])
    tails: list[Any] = []
    if heads.any():
        for part in read(0, int(heads[group.rank])):
            tail = engine.like(part, 0)
            for root, rows in group.parts(engine, part, heads):
                # They end the leaf of this rank if no rank in between begins another.
                ends = -(-own_last // leaf_rows) == -(-int(bounds[root]) // leaf_rows)
                if root > group.rank and begin < own_last and ends:
                    tail = engine.stack(tail, rows)
            tails.append(tail)
    tree = _Tree()
    for a in range(begin, own_last, step):
        b = min(a + step, own_last)
        rows = read(a - own_first, b - own_first)
        if b == own_last and tails and len(tails[0]):
            rows = tuple(engine.stack(x, y) for x, y in zip(rows, tails, strict=True))
        for at in range(0, len(rows[0]), leaf_rows):
            part = tuple(x[at : at + leaf_rows] for x in rows)
            tree.add(0, (a + at) // leaf_rows, leaf(*part))
        del rows, part  # before the next ones are read
    if group.size == 1:
        return tree.total()
    return _of_all(group, engine, tree, bounds, heads, like, leaf_rows)


def _of_all(
    group: Alone,
    engine: Engine,
    own: _Tree,
    bounds: Array,
    heads: Array,
    like: Any,
    leaf_rows: int,
) -> Any:
    """Add the nodes of all ranks, which every rank can name, in the order of their leaves."""
    nodes = [
        leaf_nodes(int(begin) // leaf_rows, -(-int(last) // leaf_rows)) if begin < last else []
        for begin, last in zip(bounds[:-1] + heads, bounds[1:], strict=True)
    ]
    assert nodes[group.rank] == [node[:2] for node in own.nodes]
    of_own = np.array([value for *_, value in own.nodes]).reshape(-1, 1)
    if not isinstance(like, float):  # matrices, as rows
        of_own = engine.like(like.reshape(1, -1), 0)
        for *_, value in own.nodes:
            of_own = engine.stack(of_own, value.reshape(1, -1))
    tree = _Tree()
    for root, values in group.parts(engine, of_own, [len(of_root) for of_root in nodes]):
        for (level, index), value in zip(nodes[root], values, strict=True):
            whole = float(value[0]) if isinstance(like, float) else value.reshape(like.shape)
            tree.add(level, index, whole)
    return tree.total()


def mean_of(group: Alone, values: Array) -> float:
    """Mean of numbers of the points of all ranks, the same for any number of ranks."""
    alone = group.size == 1
    counts = np.array([len(values)]) if alone else np.diff(group.offsets)
    sum_of_all = total(
        group,
        CPU,
        counts,
        lambda a, b: (values[a:b],),
        lambda part: float(part.sum()),
        0.0,
        leaf_rows=CPU.leaf_rows,
        step=CPU.leaf_rows,
    )
    return float(sum_of_all) / int(counts.sum())
