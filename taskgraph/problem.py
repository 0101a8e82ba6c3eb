"""Products as the cost model sees them, and the operands among them that a task can read itself.

Design note. A source (a file, random numbers) can be made anywhere, any part of it: once, by tasks whose results are
moved to those who need them and lie in memory meanwhile; or by every task that needs it, a piece of k at a time, each
piece multiplied and forgotten. The second is *streaming*. It reads a block once for every tile that meets it, and holds
and moves nothing; so it wins where memory or links are scarce, and where few tiles meet a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskgraph.chunks import numblocks, refine
from taskgraph.expr import DType, Expr

#: Bytes per second at which one core makes a part of a source (measured: Zarr arrays in the system's cache 1.5 to 2.9
#: GB/s with the chunks that a part cuts, normal numbers of float32 0.13 to 0.25, filling memory 4). Only these sources
#: are read by the tasks that multiply them.
READ_BYTES_PER_S = {"read": 1.5e9, "random": 0.2e9, "full": 4e9, "eye": 4e9}
#: What a task reads of an operand at a time: so many bytes at the most, unless that is less than so long a piece of k
#: (chosen: every piece is a pass over the tile, which costs a tenth of multiplying 512).
PIECE_BYTES, SHORTEST_PIECE = 64 * 10**6, 512
#: Where memory is scarce: a share of a task's room, and pieces that much shorter, down to these (chosen: two of them
#: and what they are read through leave most of the room to the tile).
PIECE_SHARE, THINNEST_PIECE = 1 / 8, 64


#: A panel may be so much longer than others, where borders of the operands' blocks then are its own (chosen: cutting
#: costs a task a block, waiting for the longest panel a share of its time).
UNEVEN_PANELS = 1.25
#: The most tasks of one product: what needs more is refused, since a scheduler takes half a minute for so many.
MOST_TASKS = 100_000


@dataclass(frozen=True)
class Problem:
    """A product as the cost model sees it: sizes, how the operands lie, what cutting them costs.

    a_batched, b_batched: whether the operand has blocks along the leading axes. a_along, b_along: in how many blocks
    each lies along k. a_at, b_at: the kind of the workers on
    which it lies. a_read, b_read: bytes per second at which the tasks of the tiles read it themselves, piece by piece;
    0 where they do not. piece_bytes: of one piece, at the most.
    """

    m: int
    n: int
    k: int
    batch: int
    dtype: DType
    m_blocks: tuple[int, ...]
    n_blocks: tuple[int, ...]
    k_blocks: tuple[int, ...]
    a_bytes: int
    b_bytes: int
    a_free: bool
    b_free: bool
    a_batched: bool
    b_batched: bool
    a_along: int
    b_along: int
    a_at: str
    b_at: str
    flops: int
    a_read: float = 0.0
    b_read: float = 0.0
    piece_bytes: int = PIECE_BYTES

    @property
    def shortest_piece(self) -> int:
        """Of k, whatever its bytes."""
        return max(THINNEST_PIECE, SHORTEST_PIECE * self.piece_bytes // PIECE_BYTES)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def result_bytes(self) -> float:
        """Bytes of the result; leading axes may be several to a block."""
        return self.flops / max(1, 2 * self.k) * self.itemsize


def level(size: int, parts: int) -> tuple[int, ...]:
    """A size cut in parts of one width but for the last, which is hardly less, as files and Dask have their blocks: no
    block of a result is then cut again to be written. Where it would be much less, as `even`.

    >>> level(39, 4), level(9, 4)
    ((10, 10, 10, 9), (3, 2, 2, 2))
    """
    width = -(-size // parts)
    rest = size - width * (parts - 1)
    return (width,) * (parts - 1) + (rest,) if rest >= 0.9 * width else even(size, parts)


def reading_rate(x: Expr) -> float:
    """Bytes per second at which a task makes any part of it; 0 for what is not made from its position alone."""
    return READ_BYTES_PER_S.get(x.op.name, 0.0) if x.op.kind == "source" and x.device is None else 0.0


def piece_sizes(p: Problem, panels: Sequence[int], tallest: int, widest: int) -> tuple[int, ...]:
    """The pieces in which a tile's task reads its operands along k, of the panels' borders: along blocks of what they
    are read from, or of what they are multiplied by, where those are short enough."""
    rows = p.a_bytes / (p.batch if p.a_batched else 1) * tallest / max(1, p.m * p.k) * (p.a_read > 0)
    columns = p.b_bytes / (p.batch if p.b_batched else 1) * widest / max(1, p.n * p.k) * (p.b_read > 0)
    most = max(int(p.piece_bytes / max(rows, columns, 1.0)), p.shortest_piece)
    found: list[int] = []
    ends = set(np.cumsum(panels).tolist())
    at = 0
    for block in refine(p.k_blocks, panels):
        if found and found[-1] + block <= most and at not in ends:
            found[-1] += block
        else:
            found += even(block, max(1, -(-block // most)))
        at += block
    return tuple(found)


def panel_sizes(p: Problem, panels: int) -> tuple[int, ...]:
    """k in so many panels of about one size: borders of the operands' blocks where there are suitable ones, and where
    an operand lies in blocks or is read in them."""
    if p.a_free and p.b_free and not p.a_read and not p.b_read:
        return even(p.k, panels)
    borders = np.cumsum(p.k_blocks)
    ends = borders[np.abs(borders[:, None] - p.k * np.arange(1, panels + 1) / panels).argmin(axis=0)]
    sizes = np.diff(ends, prepend=0)
    if sizes.min() > 0 and sizes.max() <= UNEVEN_PANELS * p.k / panels:
        return tuple(int(s) for s in sizes)
    return even(p.k, panels)


def problem_of(node: Expr, a_at: str = "cpu", b_at: str = "cpu") -> Problem:
    """A product's sizes and blocks, whatever its transpose flags."""
    a, b = node.inputs
    ta, tb = node.params["ta"], node.params["tb"]
    am, ak = (a.chunks[-1], a.chunks[-2]) if ta else (a.chunks[-2], a.chunks[-1])
    bk, bn = (b.chunks[-1], b.chunks[-2]) if tb else (b.chunks[-2], b.chunks[-1])
    k = sum(ak)
    return Problem(
        m=node.shape[-2],
        n=node.shape[-1],
        k=k,
        batch=math.prod(numblocks(node.chunks[:-2])),
        dtype=node.dtype,
        m_blocks=am,
        n_blocks=bn,
        k_blocks=_common(ak, bk, free_a=a.op.kind == "source", free_b=b.op.kind == "source"),
        a_bytes=a.nbytes,
        b_bytes=b.nbytes,
        a_free=a.op.kind == "source",
        b_free=b.op.kind == "source",
        a_batched=math.prod(numblocks(a.chunks[:-2])) > 1,
        b_batched=math.prod(numblocks(b.chunks[:-2])) > 1,
        a_along=len(ak),
        b_along=len(bk),
        a_at=a_at,
        b_at=b_at,
        flops=2 * node.size * k,
    )


def _common(of_a: tuple[int, ...], of_b: tuple[int, ...], *, free_a: bool, free_b: bool) -> tuple[int, ...]:
    """The blocks of k for both operands: as one lies where the other is made as it is wanted, else a cut of both."""
    if free_a and free_b:
        return min(of_a, of_b, key=len)
    if of_a == of_b or free_b:
        return of_a
    return of_b if free_a else refine(of_a, of_b)


def even(size: int, parts: int) -> tuple[int, ...]:
    """A size cut in parts that differ by one at the most.

    >>> even(10, 4)
    (3, 3, 2, 2)
    """
    q, r = divmod(size, parts)
    return tuple([q + 1] * r + [q] * (parts - r))


@functools.lru_cache(maxsize=4096)
def divisors(n: int) -> tuple[int, ...]:
    """All that divide a number, the least first.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return (*small, *[n // d for d in reversed(small) if d * d != n])
