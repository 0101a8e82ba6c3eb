"""The cost model of one product: what each cut would take on each class of devices, and which is the cheapest.

Design note. Seconds of a cut are those of its slowest slot (a slot is one task at a time of a worker): the operations
of its tiles over its measured rate, half a millisecond a task, the bytes of the operands that must come from other
workers over the link, and for a GPU operands and results over its own link. There is no size threshold anywhere: a
product stays on the CPU exactly where moving and launching costs more than a GPU saves.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from taskgraph.chunks import numblocks
from taskgraph.expr import DType, Expr
from taskgraph.machine import Device, Machine

#: Both classes together must be this much faster than the better one alone: a mixed product waits for its slowest tile
#: and takes CPU workers from everything else (chosen: more than the error of the predicted rates).
MIXED_GAIN = 0.9
#: Tiles per slot at the most: more only add tasks, fewer leave unequal devices unbalanced (chosen).
TILES_PER_SLOT = 4
#: Bytes per second at which a host cuts and joins blocks (measured: NumPy copies at 3 to 6 GB/s a core).
COPY_BYTES_PER_S = 4e9
#: Share of a device's memory for operands and results of its tiles: the rest holds what comes next and what goes.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Problem:
    """A product as the cost model sees it: sizes, how the operands lie, what cutting them costs."""

    name: str
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
    free_a: bool
    free_b: bool
    flops: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def problem_of(node: Expr) -> Problem:
    a, b = node.inputs
    ta, tb = node.params["ta"], node.params["tb"]
    am, ak = (a.chunks[-1], a.chunks[-2]) if ta else (a.chunks[-2], a.chunks[-1])
    bk, bn = (b.chunks[-1], b.chunks[-2]) if tb else (b.chunks[-2], b.chunks[-1])
    k = sum(ak)
    return Problem(
        name=node.name,
        m=node.shape[-2],
        n=node.shape[-1],
        k=k,
        batch=math.prod(numblocks(node.chunks[:-2])),
        dtype=node.dtype,
        m_blocks=am,
        n_blocks=bn,
        k_blocks=ak if ak == bk else _refine(ak, bk),
        a_bytes=a.nbytes,
        b_bytes=b.nbytes,
        free_a=a.op.kind == "source",
        free_b=b.op.kind == "source",
        flops=2 * node.size * k,
    )


def _refine(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The blocks between all boundaries of two cuts of one size."""
    ends = sorted({sum(c[: i + 1]) for c in (one, other) for i in range(len(c))})
    return tuple(e - s for s, e in zip([0, *ends[:-1]], ends, strict=True) if e > s) or (0,)


def even(size: int, parts: int) -> tuple[int, ...]:
    """A size cut in parts that differ by one at the most.

    >>> even(10, 4)
    (3, 3, 2, 2)
    """
    q, r = divmod(size, parts)
    return tuple([q + 1] * r + [q] * (parts - r))


@dataclass(frozen=True)
class Slot:
    name: str
    kind: str
    rate: float
    link: float
    memory: float


@dataclass(frozen=True)
class Choice:
    seconds: float
    bytes_moved: float
    m: tuple[int, ...]
    n: tuple[int, ...]
    panels: int
    counts: tuple[int, ...]
    by_rows: bool


def is_small(p: Problem, home: Device, machine: Machine) -> bool:
    """Whether no cut can pay: one task takes less than the tasks that a cut would add."""
    one_block = p.batch == len(p.m_blocks) == len(p.n_blocks) == len(p.k_blocks) == 1
    return one_block and p.flops / home.rate(p.dtype) <= 4 * machine.task_seconds


def classes(pin: str | None, machine: Machine) -> list[tuple[tuple[Device, ...], float]]:
    """The sets of devices that the pin allows, each with the factor by which it must beat the others."""
    cpus, gpus = machine.of_kind("cpu"), machine.of_kind("gpu")
    if pin == "cpu":
        return [(cpus, 1.0)]
    if pin == "gpu":
        return [(gpus, 1.0)]
    if pin is not None and pin.startswith("gpu:"):
        return [((gpus[int(pin[4:])],), 1.0)]
    if pin == "cpu+gpu":
        return [(cpus + gpus, 1.0)]
    alone = [(d, 1.0) for d in (cpus, gpus) if d]
    return [*alone, (cpus + gpus, MIXED_GAIN)] if len(alone) == 2 else alone


def slots_of(devices: Sequence[Device], dtype: DType) -> tuple[Slot, ...]:
    return tuple(
        Slot(d.name, d.kind, d.rate(dtype), d.link, d.memory_bytes / d.threads)
        for d in devices
        for _ in range(d.threads)
    )


def best_grid(p: Problem, slots: tuple[Slot, ...], machine: Machine) -> Choice:
    options = [_evaluate(p, m, n, slots, machine) for m, n in _grids(p, slots)]
    return min(options, key=lambda c: (c.seconds, len(c.m) * len(c.n), len(c.m)))


def _grids(p: Problem, slots: Sequence[Slot]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts worth a look: as the operands lie, and even ones, near-square for the output, of a few tiles a slot."""
    most = TILES_PER_SLOT * len(slots)
    found = [(p.m_blocks, p.n_blocks)] if len(p.m_blocks) * len(p.n_blocks) <= 4 * most else []
    per_slot = 1.0 if p.batch == 1 else 1.0 / p.batch
    for tiles in sorted({max(1, round(len(slots) * per_slot * f)) for f in (1, 1.5, 2, 3, TILES_PER_SLOT)} | {1, 2}):
        for gm in _divisors(tiles):
            gn = tiles // gm
            if gm <= max(1, p.m) and gn <= max(1, p.n) and _near_square(p, gm, gn):
                found.append((even(p.m, gm), even(p.n, gn)))
    return list(dict.fromkeys(found)) or [(p.m_blocks, p.n_blocks)]


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _near_square(p: Problem, gm: int, gn: int) -> bool:
    side_m, side_n = p.m / gm, p.n / gn
    return max(gm, gn) <= 2 or max(side_m, side_n) <= 8 * max(1.0, min(side_m, side_n))


def _evaluate(p: Problem, m: tuple[int, ...], n: tuple[int, ...], slots: tuple[Slot, ...], machine: Machine) -> Choice:
    """Seconds and bytes of one cut on these slots: each computes its tiles and fetches the operands they need."""
    gm, gn = len(m), len(n)
    tiles = p.batch * gm * gn
    counts = deal(tiles, [s.rate for s in slots])
    panels = _panels(p, gm, gn, counts, slots)
    tile_flops = p.flops / tiles
    row, column = p.a_bytes / (p.batch * gm), p.b_bytes / (p.batch * gn)
    remote = {"gpu": 1.0, "cpu": 1.0 - 1.0 / max(1, len(machine.of_kind("cpu")))}
    best: Choice | None = None
    for by_rows in (True, False):
        seconds, moved = 0.0, 0.0
        for slot, count, operands in zip(
            slots, counts, _operand_bytes(counts, gm, gn, row, column, by_rows), strict=True
        ):
            crossing = operands * remote[slot.kind] if machine.is_cluster else 0.0
            result = p.itemsize * p.m * p.n / (gm * gn) * count
            time = (
                count * panels * (machine.task_seconds + tile_flops / panels / slot.rate)
                + crossing / machine.link_bytes_per_s
                + (operands + result) / slot.link
            )
            seconds, moved = max(seconds, time), moved + crossing
        seconds += _cutting(p, m, n, len(slots), machine) + (panels > 1) * 2 * machine.task_seconds
        if best is None or (seconds, moved) < (best.seconds, best.bytes_moved):
            best = Choice(seconds, moved, m, n, panels, counts, by_rows)
    assert best is not None
    return best


def deal(tiles: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Equal tiles dealt to slots so that the last one is done first: in proportion to speed.

    >>> deal(8, [3.0, 1.0])
    (6, 2)
    """
    total = math.fsum(rates)
    counts = [int(tiles * r / total) for r in rates]
    # what rounding down left over goes to whoever would be done first with one more
    finish = [((c + 1) / r, i) for i, (c, r) in enumerate(zip(counts, rates, strict=True))]
    heapq.heapify(finish)
    for _ in range(tiles - sum(counts)):
        _, i = finish[0]
        counts[i] += 1
        heapq.heapreplace(finish, ((counts[i] + 1) / rates[i], i))
    return tuple(counts)


def _operand_bytes(counts: Sequence[int], gm: int, gn: int, row: float, column: float, by_rows: bool) -> list[float]:
    """Bytes of the operands that each slot's run of tiles needs; a run goes along block rows, or block columns."""
    along, line_bytes, along_bytes = (gn, row, column) if by_rows else (gm, column, row)
    result, at = [], 0
    for count in counts:
        if count:
            spanned = (at + count - 1) // along - at // along + 1
            result.append(spanned * line_bytes + min(along, count) * along_bytes)
        else:
            result.append(0.0)
        at += count
    return result


def _panels(p: Problem, gm: int, gn: int, counts: Sequence[int], slots: Sequence[Slot]) -> int:
    """Runs of k that are summed apart, so that a task's operands and result fit in a device; 1 where all of k fits."""
    room = MEMORY_SHARE * min(s.memory for s, c in zip(slots, counts, strict=True) if c)
    operands = p.a_bytes / (p.batch * gm) + p.b_bytes / (p.batch * gn)
    result = 2 * p.itemsize * p.m * p.n / (gm * gn)
    return min(
        len(p.k_blocks) if len(p.k_blocks) > 1 else max(1, p.k),
        max(1, math.ceil(operands / max(room - result, room / 4))),
    )


def _cutting(p: Problem, m: Sequence[int], n: Sequence[int], slots: int, machine: Machine) -> float:
    """Seconds to cut operands that lie otherwise; a source is made as it is wanted."""
    seconds = 0.0
    for blocks, wanted, size, free in (
        (p.m_blocks, m, p.a_bytes, p.free_a),
        (p.n_blocks, n, p.b_bytes, p.free_b),
    ):
        if tuple(blocks) != tuple(wanted) and not free:
            seconds += (size / COPY_BYTES_PER_S + len(wanted) * len(p.k_blocks) * machine.task_seconds) / slots
    return seconds
