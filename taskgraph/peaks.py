"""What every worker holds at the most for one product, from its shapes and cut alone.

Design note. A plan does not know which worker has which block of a kept operand, nor what else runs. So this is a bound
more than a forecast: blocks lie in equal numbers, the largest ones; what a worker has and what it needs are taken to be
different parts, as far as the operand is large enough; and its last operand comes while all of its other tiles are
done. `simulate` knows better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from taskgraph.cost import Choice, Evaluation
from taskgraph.expr import Expr
from taskgraph.gathering import spans
from taskgraph.holding import MESSAGE_BYTES
from taskgraph.machine import Device
from taskgraph.problem import PIECE_BYTES, SHORTEST_PIECE
from taskgraph.slots import Floats
from workers.backend import shares_of

if TYPE_CHECKING:
    from taskgraph.plan import ProductPlan


def peaks(e: Evaluation, choice: Choice, is_one: bool) -> dict[str, int]:
    """Bytes that every worker in use holds at the most: operands, its tiles, and on every thread the buffers of one in
    the making. What does not fit goes to its disk, or from a GPU to its host, so that it is never more than the memory
    that it has. is_one: both operands are one array.
    """
    units, panels, used = e.slots.units, e.cut.layers * choice.chain, np.flatnonzero(np.bincount(e.worker))
    threads, memory = np.asarray([u.threads for u in units]), np.asarray([u.memory for u in units])
    tiles = np.bincount(e.worker, e.each_tile, len(units))
    results = tiles * (1 + (e.cut.layers > 1) / e.cut.layers)
    work = _most(e, _buffers(e, choice)) * threads
    first = np.minimum(_most(e, e.tile) * threads, results)
    pieces = _most(e, np.maximum(e.row[:, None], e.column) / panels)
    # a message, while it is unpacked, or as long as it is sent
    comes = np.minimum(e.crossing.max(), np.maximum(pieces, MESSAGE_BYTES))
    on_host = _on_host(e, is_one) + results + work + comes
    shares = [shares_of(int(m)) for m in memory]
    at_rest = np.minimum(results, [s.results for s in shares])
    copies = np.minimum(_copies(e, panels, is_one), [s.copies for s in shares])
    pairs = 2 * _most(e, np.where(e.held > 0, (e.row[:, None] + e.column) / max(panels, len(e.p.k_blocks)), 0.0))
    on_device = at_rest + np.maximum(copies, pairs) + work + np.where(at_rest < results, first, 0.0)
    found = np.minimum(np.where(e.is_gpu, on_device, on_host), memory)
    return {units[w].name: int(found[w]) for w in used}


def with_epilogue(
    planned: ProductPlan,
    node: Expr,
    users: Mapping[Expr, Sequence[Expr]],
    kept: Sequence[Expr],
    devices: Sequence[Device],
) -> dict[str, int]:
    """The same with the elementwise work that will run in the tasks of the product's tiles: the tile that it takes, and
    its share of what it takes besides, of which all may lie on one worker; and with kept data that others need.

    users: of every expression of the graph. kept: the data in it that lie on workers.
    """
    behind, x = [], node
    while len(users[x]) == 1 and users[x][0].op.kind == "elementwise" and users[x][0].shape == node.shape:
        x = users[x][0]
        behind.append(x)
    if planned.mirrored:
        behind = []
    others = list(dict.fromkeys(i for n in behind for i in n.inputs if i is not node and i not in behind and i.ndim))
    taken = {x.inputs[0] if x.op.name == "rechunk" else x for x in (*node.inputs, *others)}
    idle = [x for x in kept if x not in taken]
    parts = len(planned.slots)
    largest = max(planned.grid.m) * max(planned.grid.n) / max(1, planned.m * planned.n * planned.batch)
    passing = max(n.nbytes for n in behind) if len(behind) > 1 else 0
    kinds, found = {d.name: d for d in devices}, {}
    for name, nbytes in planned.peak_bytes.items():
        d = kinds[name]
        share = min(1.0, max(1, planned.slots.count(name)) / parts if name in planned.slots else 1.0)
        more = largest * (node.nbytes * bool(behind) + passing) * d.threads + share * max(0, x.nbytes - node.nbytes)
        more += sum(min(o.nbytes, _lies(o, d, devices) + share * o.nbytes) for o in others)
        more += sum(_lies(o, d, devices) for o in idle)
        found[name] = int(min(nbytes + more, d.memory_bytes))
    return found


def _lies(x: Expr, d: Device, devices: Sequence[Device]) -> float:
    """Bytes of the blocks of `x` that lie on a CPU worker, of equal numbers on all of them."""
    if d.kind == "gpu" or x.op.kind == "source":
        return 0.0
    each = math.ceil(math.prod(map(len, x.chunks)) / sum(o.kind == "cpu" for o in devices))
    return min(x.nbytes, each * math.prod(map(max, x.chunks)) * x.dtype.itemsize)


def _most(e: Evaluation, each: Floats) -> Floats:
    """Of every worker's tiles, the most bytes. each: for every block of rows and of columns."""
    found = np.zeros(len(e.slots.units))
    np.maximum.at(found, e.worker, np.broadcast_to(each[None, :, :, None], e.shape).ravel())
    return found


def _buffers(e: Evaluation, choice: Choice) -> Floats:
    """Bytes of what a task has besides its operands and its result: what was added up so far, the product of one of
    several stretches of k, and the pieces of k that it reads, or joins."""
    p, panels = e.p, e.cut.layers * choice.chain
    joined = np.zeros_like(e.tile)
    for sizes, blocks, wanted, free, axis in (
        (e.row, p.m_blocks, e.cut.m, p.a_free, 1),
        (e.column, p.n_blocks, e.cut.n, p.b_free, 0),
    ):
        if not free:
            most = np.maximum(PIECE_BYTES, sizes * SHORTEST_PIECE / max(1, p.k))
            joined = joined + np.expand_dims(np.minimum(sizes / panels, most) * spans(blocks, wanted), axis)
    # sources are made in several blocks along k
    several = len(p.k_blocks) > panels or p.a_free or p.b_free or bool(joined.any())
    buffers: Floats = (choice.chain > 1) * e.tile + several * e.scratch + e.piece + joined
    return buffers


def _on_host(e: Evaluation, is_one: bool) -> Floats:
    """Bytes of the operands in every CPU worker's memory: what it needs, and whole blocks that lie there."""
    p, held = e.p, []
    for x_bytes, needed, blocks, along, batched, lies_at, free in (
        (p.a_bytes, e.operands_a[0], p.m_blocks, p.a_along, p.a_batched, p.a_at, p.a_free or p.a_read > 0),
        (p.b_bytes, e.operands_b[0], p.n_blocks, p.b_along, p.b_batched, p.b_at, p.b_free or p.b_read > 0),
    ):
        count = len(blocks) * along * (p.batch if batched else 1)
        longest = max(p.k_blocks) / max(1, p.k) if len(p.k_blocks) == along else 1 / along
        largest = x_bytes * max(blocks) / max(1, sum(blocks)) * longest / (p.batch if batched else 1)
        lies = 0.0 if free or lies_at == "gpu" else math.ceil(count / max(1, e.setting.holding["cpu"])) * largest
        held.append((x_bytes, lies, needed))
    (a_bytes, a_lies, a_needed), (b_bytes, b_lies, b_needed) = held
    if is_one:
        return np.minimum(a_bytes, a_lies + a_needed + b_needed)
    return np.minimum(a_bytes, a_lies + a_needed) + np.minimum(b_bytes, b_lies + b_needed)


def _copies(e: Evaluation, panels: int, is_one: bool) -> Floats:
    """Bytes of operands of which a GPU keeps copies: what several of its tiles need, else those of two tasks."""
    found = np.zeros(len(e.slots.units))
    for sizes, (needed, _), axis in ((e.row, e.operands_a, 1), (e.column, e.operands_b, 0)):
        each = np.expand_dims(sizes, axis) + np.zeros_like(e.tile)
        taken = np.bincount(e.worker, np.broadcast_to(each[None, :, :, None], e.shape).ravel() / e.cut.layers)
        taken = np.pad(taken, (0, len(found) - len(taken)))
        copies = np.where(taken > needed * (1 + 1e-6), needed, np.minimum(needed, 2 * _most(e, each) / panels))
        found = np.maximum(found, copies) if is_one else found + copies
    return found
