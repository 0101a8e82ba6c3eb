"""Operands of a product that its tasks put together themselves, from blocks that lie as they lie.

Design note. A block of an operand that is not cut as the product's grid wants it could be cut and joined by tasks of
its own, as `rechunk` does. What these join then lies on one worker and goes to others from there: every byte is sent
twice. So a tile's task takes the blocks themselves: whole where all of one belongs to its rows (or columns), else the
part, which a task of next to no work takes out where the block is. The pieces are joined inside the task, a stretch of
k at a time (`workers.operand.Joined`). In the graph such an operand stays a `rechunk` expression, which is not lowered.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskgraph.chunks import offsets, refine
from taskgraph.expr import Expr
from taskgraph.problem import PIECE_BYTES, SHORTEST_PIECE, even

#: The most pieces that all tasks of a product take of an operand (chosen: as many as it may have tasks; the scheduler
#: keeps an edge for each). What needs more is cut and joined by tasks of its own.
MOST_PIECES = 100_000


@dataclass(frozen=True)
class Piece:
    """A run of one block along one axis: the block's number and, where it is not all of it, from where to where."""

    block: int
    part: tuple[int, int] | None
    size: int


@dataclass(frozen=True)
class Gathered:
    """The blocks of `base` of which an operand's blocks are made.

    k: for every stretch of k, the run of a block that it is. outer: for every block of the operand along the other
    axis, the runs of which it is joined.
    """

    base: Expr
    inner_first: bool
    k: tuple[Piece, ...]
    outer: tuple[tuple[Piece, ...], ...]

    @property
    def cut(self) -> tuple[int, ...]:
        """The stretches of k."""
        return tuple(p.size for p in self.k)

    @property
    def is_cut(self) -> bool:
        """Whether some task takes a part of a block."""
        return any(p.part for p in itertools.chain(self.k, *self.outer))

    @property
    def axis(self) -> int:
        """Along which the pieces follow each other."""
        return -1 if self.inner_first else -2

    def index(self, k: Piece, outer: Piece) -> tuple[int, int]:
        """The last two numbers of the block."""
        return (k.block, outer.block) if self.inner_first else (outer.block, k.block)

    def slices(self, k: Piece, outer: Piece) -> tuple[slice, slice] | None:
        """The part of that block; None for all of it."""
        if not k.part and not outer.part:
            return None
        of_k, of_outer = (slice(*p.part) if p.part else slice(None) for p in (k, outer))
        return (of_k, of_outer) if self.inner_first else (of_outer, of_k)

    def is_strided(self, k: Piece, outer: Piece, matrices: int) -> bool:
        """Whether a part of so many matrices is not in one piece in memory: a message to another worker then takes a
        copy of it."""
        first, last = (k, outer) if self.inner_first else (outer, k)
        return last.part is not None or (first.part is not None and matrices > 1)


def gathered(x: Expr, inner_first: bool) -> Gathered:
    """How an operand that is a `rechunk` is put together. inner_first: whether k is its last axis but one."""
    (base,) = x.inputs
    k_axis, outer_axis = (-2, -1) if inner_first else (-1, -2)
    k = _runs(base.chunks[k_axis], refine(base.chunks[k_axis], x.chunks[k_axis]))
    outer = _runs(base.chunks[outer_axis], refine(base.chunks[outer_axis], x.chunks[outer_axis]))
    return Gathered(base, inner_first, k, _joined(outer, x.chunks[outer_axis]))


def can_be_gathered(x: Expr, inner_first: bool, users: int) -> bool:
    """Whether the tasks of a product can put an operand together: each of its blocks goes to so many tiles."""
    if x.op.name != "rechunk" or x.inputs[0].chunks[:-2] != x.chunks[:-2] or 0 in x.shape:
        return False
    found, lead = gathered(x, inner_first), 1
    for sizes in x.chunks[:-2]:
        lead *= len(sizes)
    return lead * users * len(found.k) * sum(map(len, found.outer)) <= MOST_PIECES


def lies_within(x: Expr) -> bool:
    """Whether every block of a `rechunk` is a part of one block, or all of one."""
    return (
        x.op.name == "rechunk"
        and 0 not in x.shape
        and all(
            {*itertools.accumulate(old)} <= {*itertools.accumulate(new)}
            for old, new in zip(x.inputs[0].chunks, x.chunks, strict=True)
        )
    )


def parts_of(x: Expr) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...], bool]]:
    """For every block of such a `rechunk`, row-major: its index, the block that it is a part of, which part, and
    whether that is not in one piece in memory (`Gathered.is_strided`)."""
    runs = [_runs(old, new) for old, new in zip(x.inputs[0].chunks, x.chunks, strict=True)]
    for index in itertools.product(*[range(len(r)) for r in runs]):
        pieces = [r[i] for r, i in zip(runs, index, strict=True)]
        slices = tuple([slice(*p.part) if p.part else slice(None) for p in pieces])
        is_strided = any(p.part and math.prod([q.size for q in pieces[:at]]) > 1 for at, p in enumerate(pieces))
        yield index, tuple([p.block for p in pieces]), slices, is_strided


def _runs(blocks: Sequence[int], finer: Sequence[int]) -> tuple[Piece, ...]:
    """Every stretch of a finer cut as a run of a block.

    >>> _runs((4, 2), (3, 1, 2))
    (Piece(block=0, part=(0, 3), size=3), Piece(block=0, part=(3, 4), size=1), Piece(block=1, part=None, size=2))
    """
    found, starts, at, block = [], offsets(blocks), 0, 0
    for size in finer:
        while at >= starts[block] + blocks[block]:
            block += 1
        start = at - starts[block]
        found.append(Piece(block, (start, start + size) if size < blocks[block] else None, size))
        at += size
    return tuple(found)


def _joined(runs: Sequence[Piece], coarser: Sequence[int]) -> tuple[tuple[Piece, ...], ...]:
    """The runs in groups, one for every block of a coarser cut."""
    found, left = [], iter(runs)
    for size in coarser:
        group: list[Piece] = []
        while sum(p.size for p in group) < size:
            group.append(next(left))
        found.append(tuple(group))
    return tuple(found)


def stretches(cut: Sequence[int], joined: Sequence[int]) -> tuple[int, ...]:
    """A cut along k so fine that what a task joins takes little memory at a time. joined: for everything that is joined
    of several pieces, its bytes for each of k.

    >>> stretches((2048, 512), [65536]), stretches((2048, 512), [])
    ((683, 683, 682, 512), (2048, 512))
    """
    most = max(PIECE_BYTES // max(1, *joined, 1), SHORTEST_PIECE)
    return tuple([part for size in cut for part in even(size, max(1, -(-size // most)))]) if joined else tuple(cut)


@functools.lru_cache(maxsize=4096)
def parts_taken(blocks: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    """How many of the runs between all borders of two cuts are no whole blocks of the first.

    >>> parts_taken((4, 4), (2, 2, 4)), parts_taken((4, 4), (8,))
    (2, 0)
    """
    if blocks == wanted:
        return 0
    ends, more = set(np.cumsum(blocks).tolist()), set(np.cumsum(wanted).tolist())
    starts = sorted({0, *ends, *more})
    whole = {(end - size, end) for end, size in zip(np.cumsum(blocks).tolist(), blocks, strict=True)}
    return sum((a, b) not in whole for a, b in itertools.pairwise(starts))


@functools.lru_cache(maxsize=4096)
def spans(blocks: tuple[int, ...], wanted: tuple[int, ...]) -> NDArray[np.float64]:
    """For every block of the second cut, 1 where it is joined of several of the first, else 0.

    >>> spans((2, 2, 4), (4, 4))
    array([1., 0.])
    """
    ends, wants = np.cumsum(blocks), np.cumsum(wanted)
    inside = np.searchsorted(ends, wants, "left") - np.searchsorted(ends, wants - np.asarray(wanted), "right")
    found: NDArray[np.float64] = (inside > 0).astype(float)
    return found
