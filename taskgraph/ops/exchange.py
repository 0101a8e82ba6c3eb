"""Rows that move between the blocks of an axis: what taking and adding up by position become on many blocks.

Design note. What goes from one block to another is picked out where it lies, so a task holds one block of the source
and what it picks, or one block of the result and what comes in, never the axis. The result is put together in the
order of the positions: the sums have the same bits however the arrays are cut. Where the positions are known when the
graph is built, blocks that have nothing for each other have no task between them, and blocks that nobody wants are not
read. All of this runs on the host, on NumPy's arrays, and no function changes its arguments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize

from taskgraph.chunks import numblocks, offsets
from taskgraph.expr import Chunks
from taskgraph.lower import array_of_tasks

Span = tuple[int, int]
#: Elements that are added in one go: their positions take 2 MiB (measured: with 2**16 or 2**20 it is no faster).
AT_ONCE = 2**18


def spans(sizes: Sequence[int]) -> list[Span]:
    """Where every block begins and ends."""
    return [(s, s + n) for s, n in zip(offsets(sizes), sizes, strict=True)]


def replaced(items: Sequence[Any], axis: int, *new: Any) -> tuple[Any, ...]:
    """The items with others in the place of one."""
    return (*items[:axis], *new, *items[axis + 1 :])


# -- in one block ------------------------------------------------------------------------------------------------------


def take_rows(x: Any, index: Any, axis: int, start: int = 0) -> Any:
    """The elements of a block that begins at `start`, by their positions along the axis."""
    return np.take(x, index - start, axis=axis)


def pick_rows(x: Any, index: Any, axis: int, span: Span) -> Any:
    """Of a block at `span` along the axis, what the positions `index` ask for, in their order."""
    return take_rows(x, index[_inside(index, span)], axis, span[0])


def join_rows(index: Any, axis: int, of: Sequence[Span], *parts: Any) -> Any:
    """What `pick_rows` found in the blocks at the spans `of`, in the order of the positions."""
    out = np.empty(replaced(parts[0].shape, axis, index.size), parts[0].dtype)
    for span, part in zip(of, parts, strict=True):
        out[(slice(None),) * axis + (_inside(index, span),)] = part
    return out


def choose_rows(x: Any, index: Any, axis: int, span: Span) -> Any:
    """The elements along the axis whose positions lie in `span`."""
    return np.compress(_inside(index, span), x, axis=axis)


def add_rows(axis: int, span: Span, *parts: Any) -> Any:
    """The block at `span` of zeros to which elements are added, in their order.

    parts: blocks of positions, and then, for each, those of the elements that belong into the span.
    """
    half = len(parts) // 2
    lead, (_, *rest) = span[0], np.moveaxis(parts[half], axis, 0).shape
    out = np.zeros((span[1] - lead, *rest), parts[half].dtype)
    for index, part in zip(parts[:half], parts[half:], strict=True):
        add_lines(out, index[_inside(index, span)] - lead, np.moveaxis(part, axis, 0))
    return np.moveaxis(out, 0, axis)


def add_lines(out: Any, at: Any, lines: Any) -> None:
    """Add each of the lines to the one of `out` (contiguous, of the caller) at its position, in their order.

    On flat arrays, where NumPy's `add.at` takes 2 to 3 ns an element (10 to 20 on others; measured on an AMD EPYC),
    and some at a time, since every element needs its position.
    """
    size = math.prod(out.shape[1:])
    flat, columns, step = out.reshape(-1), np.arange(size), max(1, AT_ONCE // max(1, size))
    for s in range(0, len(at), step):
        np.add.at(flat, (at[s : s + step, None] * size + columns).ravel(), lines[s : s + step].ravel())


def _inside(index: Any, span: Span) -> Any:
    return (index >= span[0]) & (index < span[1])


# -- between blocks ----------------------------------------------------------------------------------------------------


def gather(x: Any, index: Any, axis: int, chunks: Chunks) -> Any:
    """`take_rows` on dask arrays: `index` is one, of one dimension, or an array of NumPy's, known now.

    chunks: of the result, along the axis as `index` is cut.
    """
    token = tokenize(x.name, index if isinstance(index, np.ndarray) else index.name, axis, chunks)
    name, source = f"take-{token}", spans(x.chunks[axis])
    positions = _Positions(f"take-index-{token}", index, chunks[axis])
    tasks = dict(positions.tasks)
    for j in range(len(chunks[axis])):
        wanted = positions.meets(j, source)
        for lead in _others(chunks, axis):
            refs = {k: TaskRef((x.name, *replaced(lead, axis, k))) for k in wanted}
            key = (name, *replaced(lead, axis, j))
            if len(wanted) == 1:
                tasks[key] = Task(key, take_rows, refs[wanted[0]], positions[j], axis, source[wanted[0]][0])
                continue
            parts = {k: (f"take-part-{token}", *replaced(lead, axis, k, j)) for k in wanted}
            for k, part in parts.items():
                tasks[part] = Task(part, pick_rows, refs[k], positions[j], axis, source[k])
            of = tuple(source[k] for k in wanted)
            tasks[key] = Task(key, join_rows, positions[j], axis, of, *[TaskRef(part) for part in parts.values()])
    return array_of_tasks(name, tasks, positions.arrays(x), chunks, x.dtype)


def scatter_add(x: Any, index: Any, axis: int, chunks: Chunks) -> Any:
    """`add_rows` on dask arrays, `index` cut as `x` is along the axis (or known); chunks: of the result."""
    token = tokenize(x.name, index if isinstance(index, np.ndarray) else index.name, axis, chunks)
    name, target = f"scatter-add-{token}", spans(chunks[axis])
    positions = _Positions(f"scatter-add-index-{token}", index, x.chunks[axis])
    meets = [set(positions.meets(j, target)) for j in range(len(x.chunks[axis]))]
    tasks = dict(positions.tasks)
    for k, span in enumerate(target):
        given = [j for j, met in enumerate(meets) if k in met] or [0]
        for lead in _others(chunks, axis):
            parts = []
            for j in given:
                block = TaskRef((x.name, *replaced(lead, axis, j)))
                if len(target) > 1:
                    part = (f"scatter-add-part-{token}", *replaced(lead, axis, j, k))
                    tasks[part] = Task(part, choose_rows, block, positions[j], axis, span)
                    block = TaskRef(part)
                parts.append(block)
            key = (name, *replaced(lead, axis, k))
            tasks[key] = Task(key, add_rows, axis, span, *[positions[j] for j in given], *parts)
    return array_of_tasks(name, tasks, positions.arrays(x), chunks, x.dtype)


class _Positions:
    """Blocks of positions along an axis, to be computed or known."""

    def __init__(self, name: str, index: Any, sizes: Sequence[int]):
        self.known = [index[s:e] for s, e in spans(sizes)] if isinstance(index, np.ndarray) else None
        self.index, self.name = index, name if self.known else index.name
        self.tasks: dict[Any, Any] = {(name, j): DataNode((name, j), v) for j, v in enumerate(self.known or ())}

    def __getitem__(self, j: int) -> TaskRef:
        return TaskRef((self.name, j))

    def meets(self, j: int, blocks: Sequence[Span]) -> list[int]:
        """The numbers of the blocks that some position of block j may lie in: at least one."""
        if self.known is None:
            return list(range(len(blocks)))
        found = np.searchsorted([e for _, e in blocks], self.known[j], side="right")
        return [int(k) for k in np.unique(found)] or [0]

    def arrays(self, x: Any) -> list[Any]:
        return [x] if self.known else [x, self.index]


def _others(chunks: Chunks, axis: int) -> Iterator[tuple[int, ...]]:
    """The blocks along all axes but one, along which it is the first."""
    return itertools.product(*[range(n) for n in replaced(numblocks(chunks), axis, 1)])
