"""Block sizes: how they combine, and how they are cut where the user does not say."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from dask.array.core import common_blockdim, normalize_chunks

from taskgraph.expr import Chunks, DType, Shape


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that all the shapes broadcast to; ValueError where there is none."""
    if all(s == shapes[0] for s in shapes):
        return shapes[0]
    return np.broadcast_shapes(*shapes)


def unify(shape: Shape, operands: Sequence[tuple[Shape, Chunks]]) -> Chunks:
    """Blocks of the result of an elementwise operation of that shape: the common refinement of its inputs' blocks."""
    of_full_shape = [c for s, c in operands if s == shape]
    if len(of_full_shape) == len(operands) and all(c == of_full_shape[0] for c in of_full_shape):
        return of_full_shape[0]
    result = []
    for axis in range(len(shape)):
        sizes = set()
        for s, c in operands:
            at = axis - (len(shape) - len(s))
            if at >= 0 and s[at] == shape[axis]:
                sizes.add(c[at])
        result.append(sizes.pop() if len(sizes) == 1 else tuple(common_blockdim(sizes)))
    return tuple(result)


def aligned(wanted: Chunks, shape: Shape) -> Chunks:
    """Blocks that an input of that shape must have to be used block by block in a result with the blocks `wanted`."""
    offset = len(wanted) - len(shape)
    return tuple(
        wanted[offset + axis] if size == sum(wanted[offset + axis]) else (size,) for axis, size in enumerate(shape)
    )


def normalize(chunks: Any, shape: Shape, dtype: DType) -> Chunks:
    """Chunks as Dask takes them ("auto", a number, one per axis) as block sizes; "auto" follows `array.chunk-size`."""
    try:
        found = normalize_chunks(chunks, shape=shape, dtype=dtype)
    except ZeroDivisionError:  # Dask divides the bytes of a block by the shape: where it has a 0, nothing is to be cut
        return single(shape)
    return tuple(tuple(int(c) for c in axis) for axis in found)


def single(shape: Shape) -> Chunks:
    """All one block."""
    return tuple((s,) for s in shape)


def numblocks(chunks: Chunks) -> tuple[int, ...]:
    """How many blocks there are along each axis."""
    return tuple(len(c) for c in chunks)


def is_single(chunks: Chunks) -> bool:
    """Whether it is all one block."""
    return all(len(c) == 1 for c in chunks)


def offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where every block begins.

    >>> offsets((3, 3, 1))
    (0, 3, 6)
    """
    return tuple(itertools.accumulate(sizes, initial=0))[:-1]


def refine(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The blocks between all boundaries of two cuts of one size.

    >>> refine((4, 4), (2, 6))
    (2, 2, 4)
    """
    ends = sorted({*itertools.accumulate(one), *itertools.accumulate(other)})
    return tuple(e - s for s, e in zip([0, *ends[:-1]], ends, strict=True) if e > s) or (0,)


def overlaps(old: Sequence[int], new: Sequence[int]) -> list[list[tuple[int, int]]]:
    """For every new block, the old ones that it meets and the length of the overlap.

    >>> overlaps((4, 4), (3, 5))
    [[(0, 3)], [(0, 1), (1, 4)]]
    """
    starts, found = offsets(old), []
    for low, size in zip(offsets(new), new, strict=True):
        mine, i = [], max(0, bisect.bisect_right(starts, low) - 1)
        while i < len(old) and starts[i] < low + size:
            length = min(low + size, starts[i] + old[i]) - max(low, starts[i])
            if length > 0:
                mine.append((i, length))
            i += 1
        found.append(mine)
    return found
