"""The cost model of one product: what each cut would take on each class of devices, and which is the cheapest.

Design note. Seconds of a cut are those of its slowest slot (a slot is one task at a time of a worker): the operations
of its tiles over its measured rate, half a millisecond a task, the bytes of the operands that must come from other
workers over the link, and for a GPU operands and results over its own link. There is no size threshold anywhere: a
product stays on the CPU exactly where moving and launching costs more than a GPU saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskgraph.chunks import numblocks, refine
from taskgraph.expr import DType, Expr
from taskgraph.machine import Device, Machine

Floats = NDArray[np.float64]

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
    """A product's sizes and blocks, whatever its transpose flags."""
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
        k_blocks=_common(ak, bk, free_a=a.op.kind == "source", free_b=b.op.kind == "source"),
        a_bytes=a.nbytes,
        b_bytes=b.nbytes,
        free_a=a.op.kind == "source",
        free_b=b.op.kind == "source",
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


@dataclass(frozen=True)
class Slots:
    """Places for one task at a time, an entry each: the worker's name and kind, operations per second, bytes per second
    between host and device, bytes of memory. Arrays, since a plan weighs some dozens of cuts on thousands of them."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rates: Floats
    links: Floats
    memory: Floats

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Choice:
    """A cut (blocks along m and n, panels along k), the tiles of every slot, and what they are predicted to cost.

    bytes_over: by how much a task's operands and result exceed their share of a device's memory; what fits goes before
    what is fast.
    """

    bytes_over: float
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


def classes(pin: str | None, machine: Machine, dtype: DType) -> list[tuple[tuple[Device, ...], float]]:
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
    able = tuple(d for d in gpus if d.computes(dtype))
    alone = [(d, 1.0) for d in (cpus, able) if d] or [(gpus, 1.0)]
    return [*alone, (cpus + able, MIXED_GAIN)] if len(alone) == 2 else alone


def slots_of(devices: Sequence[Device], dtype: DType) -> Slots:
    """The slots of some workers, as many for each as it runs tasks at once."""
    every = [d for d in devices for _ in range(d.threads)]
    return Slots(
        tuple(d.name for d in every),
        tuple(d.kind for d in every),
        np.asarray([d.rate(dtype) for d in every]),
        np.asarray([d.link for d in every]),
        np.asarray([d.memory_bytes / d.threads for d in every]),
    )


def best_grid(p: Problem, slots: Slots, machine: Machine) -> Choice:
    """The cheapest of the cuts worth a look, all of the product on these slots."""
    cpus = len(machine.of_kind("cpu"))
    # operands are taken to lie on the CPU workers in equal shares: a CPU worker has its own share already
    share = {"gpu": 1.0, "cpu": 1.0 - 1.0 / max(1, cpus)} if machine.is_cluster else {"gpu": 0.0, "cpu": 0.0}
    remote = np.asarray([share[k] for k in slots.kinds])
    options = [_evaluate(p, m, n, slots, remote, machine) for m, n in _grids(p, slots)]
    return min(options, key=lambda c: (c.bytes_over, c.seconds, len(c.m) * len(c.n), len(c.m)))


def _grids(p: Problem, slots: Slots) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts worth a look: as the operands lie, and even ones, near-square for the output, of a few tiles a slot."""
    most = TILES_PER_SLOT * len(slots)
    found = [(p.m_blocks, p.n_blocks)] if len(p.m_blocks) * len(p.n_blocks) <= 4 * most else []
    per_slot = 1.0 if p.batch == 1 else 1.0 / p.batch
    for tiles in sorted({max(1, round(len(slots) * per_slot * f)) for f in (1, 1.5, 2, 3, TILES_PER_SLOT)} | {1, 2}):
        for gm in _divisors(tiles):
            gn = tiles // gm
            if gm <= max(1, p.m) and gn <= max(1, p.n) and _near_square(p, gm, gn):
                found.append((even(p.m, gm), even(p.n, gn)))
    # where memory is scarce: tiles whose results take half of a task's room
    room = MEMORY_SHARE * float(slots.memory.min())
    side = min(max(1, math.ceil(math.sqrt(4 * p.itemsize * p.m * p.n / room))), max(1, p.m), max(1, p.n))
    found.append((even(p.m, side), even(p.n, side)))
    return list(dict.fromkeys(found))


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _near_square(p: Problem, gm: int, gn: int) -> bool:
    side_m, side_n = p.m / gm, p.n / gn
    return max(gm, gn) <= 2 or max(side_m, side_n) <= 8 * max(1.0, min(side_m, side_n))


def _evaluate(
    p: Problem, m: tuple[int, ...], n: tuple[int, ...], slots: Slots, remote: Floats, machine: Machine
) -> Choice:
    """Seconds and bytes of one cut: every slot computes its tiles and fetches the operands that they need.

    remote: the share of the operands' bytes that a slot must fetch from other workers.
    """
    gm, gn = len(m), len(n)
    tiles = p.batch * gm * gn
    counts = deal(tiles, slots.rates)
    panels, over = _panels(p, gm, gn, MEMORY_SHARE * float(slots.memory[counts > 0].min()))
    row, column = p.a_bytes / (p.batch * gm), p.b_bytes / (p.batch * gn)
    computing = counts * (panels * machine.task_seconds + p.flops / tiles / slots.rates)
    results = counts * (p.itemsize * p.m * p.n / (gm * gn))
    choices = []
    for by_rows in (True, False):
        operands = _operand_bytes(counts, gm, gn, row, column, by_rows)
        crossing = operands * remote
        times = computing + crossing / machine.link_bytes_per_s + (operands + results) / slots.links
        choices.append((float(times.max()), float(crossing.sum()), not by_rows))
    seconds, moved, by_columns = min(choices)
    seconds += _cutting(p, m, n, len(slots), machine) + (panels > 1) * 2 * machine.task_seconds
    return Choice(over, seconds, moved, m, n, panels, tuple(counts.tolist()), not by_columns)


def deal(tiles: int, rates: Floats | Sequence[float]) -> NDArray[np.int64]:
    """Equal tiles dealt to slots so that the last one is done as early as can be.

    Within a time T a slot does floor(T * rate) tiles; T is found by bisection, and tiles beyond the wanted number are
    taken from the slots that would end last.

    >>> deal(8, [3.0, 1.0])
    array([6, 2])
    """
    r = np.asarray(rates, dtype=float) / np.sum(rates)
    low, high = 0.0, float(tiles + len(r))  # at `high` even rounding down leaves enough
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if np.floor(middle * r).sum() >= tiles else (middle, high)
    counts = np.floor(high * r * (1 + 1e-12)).astype(np.int64)
    excess = int(counts.sum()) - tiles
    if excess:
        last = np.argsort(-counts / r, kind="stable")
        counts[last[counts[last] > 0][:excess]] -= 1
    return counts


def _operand_bytes(counts: NDArray[np.int64], gm: int, gn: int, row: float, column: float, by_rows: bool) -> Floats:
    """Bytes of the operands that each slot's run of tiles needs; a run goes along block rows, or block columns."""
    along, line_bytes, along_bytes = (gn, row, column) if by_rows else (gm, column, row)
    end = np.cumsum(counts)
    spanned = (end - 1) // along - (end - counts) // along + 1
    needed: Floats = (counts > 0) * (spanned * line_bytes + np.minimum(along, counts) * along_bytes)
    return needed


def _panels(p: Problem, gm: int, gn: int, room: float) -> tuple[int, float]:
    """Runs of k that are summed apart, so that a task's operands and its result (twice: the sum and what is added)
    fit in the room, and the bytes by which they still exceed it."""
    operands = p.a_bytes / (p.batch * gm) + p.b_bytes / (p.batch * gn)
    result = 2 * p.itemsize * p.m * p.n / (gm * gn)
    most = len(p.k_blocks) if len(p.k_blocks) > 1 else max(1, p.k)
    panels = min(most, max(1, math.ceil(operands / max(room - result, room / 4))))
    return panels, max(0.0, operands / panels + result - room)


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
