"""The cost model of one product: what a cut, with every tile on its slot, takes in seconds, bytes and memory.

Design note. Seconds of a cut are those of its slowest slot (a slot is one task at a time of a worker): the operations
of its tiles over its measured rate, half a millisecond a task, the bytes that its worker must get from others over the
link, and for a GPU operands and results over its own link. What a GPU's later tiles need comes, and is uploaded, while
the first are computed; a CPU worker receives with the core that it computes with, so nothing is hidden there. There is
no size threshold anywhere: a product stays on the CPU exactly where moving and launching costs more than a GPU saves.

Where operands lie. Every block is taken to lie on one of the workers of its kind that need it: sources are put there by
hints of the lowering, kept operands by the scheduler plugin, which exchanges like slots for it. So a block that u of
them need crosses u - 1 times, and once for every other worker that needs it; of one that is taller or longer than what
a worker needs, the holder needs a part alone, and the rest crosses once more (`_kept_share`). Partial results, where k
is cut across workers, cross but for those of the worker that adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taskgraph.gathering import parts_taken, spans
from taskgraph.machine import Device, Machine
from taskgraph.problem import Problem
from taskgraph.slots import MEMORY_SHARE, Floats, Ints, Setting, Slots
from workers.kernels import SCRATCH_BYTES

#: Bytes per second at which a host cuts, joins and adds blocks (measured: NumPy copies at 3 to 6 GB/s a core).
COPY_BYTES_PER_S = 4e9
#: Room beside the result of a task that reads its operands, in results: it is likely written to a file (while Zarr
#: wrote a block of 250 MB, a worker's memory rose by 480 MB; one copy may take the room of what else is there).
COPIES_OF_WRITING = 1.5
#: The side at which a device's rate is measured, or said.
FULL_RATE_SIDE = {"cpu": 1024, "gpu": 4096}

#: Share of a GPU's memory in which operands stay for later tasks (workers/cache.py takes up to a half; the rest is for
#: what tasks work on).
CACHE_SHARE = 0.25

#: What it takes to ask for operands of a task, in costs of a task (measured: messages wait up to 2 ms in a worker, 5 in
#: the scheduler; a task costs 0.5): many small tiles hide no more than some large ones.
FETCH_TASKS = 4
#: What the scheduler, one process, spends on each task of a graph, in costs of a task (measured: 50 to 150 us beside
#: 0.5 ms): no number of workers is done sooner than it has handed all tasks out.
SCHEDULING = 0.2
#: Places of a table of flags, up to which it is quicker than sorting (chosen: 4 MB).
MOST_FLAGS = 2**22


@dataclass(frozen=True, eq=False)
class Cut:
    """A product's blocks along m and n, its parts along k for different slots (`layers`), and the slot of every part
    (`owner`, row-major over batch, m, n, layers)."""

    m: tuple[int, ...]
    n: tuple[int, ...]
    layers: int
    owner: Ints


def _tasks(cut: Cut, chain: int, strips: int) -> int:
    """Tasks of a cut: panels, strips taken out of partial tiles, and their sums."""
    tiles, taken = len(cut.owner) // cut.layers, cut.layers * strips if strips > 1 else 0
    return tiles * (cut.layers * chain + taken + (strips if cut.layers > 1 else 0))


@dataclass(frozen=True, eq=False)
class Choice:
    """A cut and what it is predicted to cost.

    bytes_over: by how much the operands and the result of a task exceed its share of a device's memory; what fits goes
    before what is fast. chain: tasks in a row, each with a part of a layer, so that they fit. strips: row strips that
    the partial results are summed in. near: gives cuts of the same kind with another number of something, where there
    are some to look at.
    """

    cut: Cut
    slots: Slots
    bytes_over: float
    seconds: float
    bytes_moved: float
    chain: int
    strips: int
    near: Callable[[], Iterator[Choice]] | None = None

    @property
    def tasks(self) -> int:
        return _tasks(self.cut, self.chain, self.strips)

    @property
    def order(self) -> tuple[float, ...]:
        """What is least is best; of like ones that with more rows of blocks, which are in one piece."""
        return (self.bytes_over, self.seconds, self.tasks, len(self.cut.n))


def is_small(p: Problem, home: Device, machine: Machine) -> bool:
    """Whether no cut can pay: one task takes less than the tasks that a cut would add."""
    one_block = p.batch == len(p.m_blocks) == len(p.n_blocks) == len(p.k_blocks) == 1
    return one_block and p.flops / home.rate(p.dtype) <= 4 * machine.task_seconds


def _distinct(values: Ints, beyond: int) -> Ints:
    """The values that occur, in order; all are below `beyond`."""
    if beyond > MOST_FLAGS:
        return np.unique(values)
    there = np.zeros(beyond, dtype=bool)
    there[values] = True
    return np.flatnonzero(there)


def _sums(places: Ints, weights: Floats, length: int) -> Floats:
    found: Floats = np.bincount(places, weights, length).astype(float)
    return found


class Evaluation:
    """One cut on some slots; `choice` is what it costs."""

    def __init__(self, p: Problem, cut: Cut, slots: Slots, setting: Setting) -> None:
        self.p, self.cut, self.slots, self.setting = p, cut, slots, setting
        self.shape = (p.batch, len(cut.m), len(cut.n), cut.layers)
        self.ms, self.ns = np.asarray(cut.m, dtype=float), np.asarray(cut.n, dtype=float)
        self.worker = slots.worker[cut.owner]
        self.slots_used = int(np.count_nonzero(np.bincount(cut.owner)))
        self.workers_used = int(np.count_nonzero(np.bincount(self.worker)))
        self.is_gpu = np.asarray([u.kind == "gpu" for u in slots.units])
        self.row = p.a_bytes / (p.batch if p.a_batched else 1) * self.ms / max(1, p.m)
        self.column = p.b_bytes / (p.batch if p.b_batched else 1) * self.ns / max(1, p.n)
        self.tile = p.result_bytes / p.batch * np.outer(self.ms, self.ns) / max(1, p.m * p.n)
        self.each_tile = np.broadcast_to(self.tile[None, :, :, None], self.shape).ravel()
        self.on_cpu = ~self.is_gpu[slots.worker]
        held_a, held_b = self.row * (p.a_read == 0), self.column * (p.b_read == 0)
        self.held = held_a[:, None] + held_b
        self.piece = self._piece(self.row, p.a_read)[:, None] + self._piece(self.column, p.b_read)
        self.operands_a = self._needs(held_a, 1, p.a_batched, p.a_at, () if p.a_free else p.m_blocks, p.a_along)
        self.operands_b = self._needs(held_b, 2, p.b_batched, p.b_at, () if p.b_free else p.n_blocks, p.b_along)

    def _needs(
        self, sizes: Floats, axis: int, batched: bool, lies_at: str, blocks: tuple[int, ...], along: int
    ) -> tuple[Floats, Floats]:
        """Bytes of one operand that every worker needs, and those of them that come from others. blocks: as it lies
        along m or n, none where it is made as it is wanted; along: how many along k."""
        batch, _, _, layers = self.shape
        b, outer, layer = (np.arange(batch) if batched else np.zeros(batch, int)), np.arange(len(sizes)), range(layers)
        block = (b[:, None, None] * len(sizes) + outer[None, :, None]) * layers + np.asarray(layer)
        every = np.broadcast_to(np.expand_dims(block, 3 - axis), self.shape).ravel()
        count, workers = int(block.max()) + 1, len(self.slots.units)
        pairs = _distinct(self.worker * count + every, count * workers)
        who, what = pairs // count, pairs % count
        at_home = self.is_gpu[who] == (lies_at == "gpu")
        users = np.maximum(1, np.bincount(what[at_home], minlength=count))
        size = np.tile(np.repeat(sizes / layers, layers), count // (len(sizes) * layers))[what]
        if not self.setting.is_cluster:
            return _sums(who, size, workers), np.zeros(workers)
        kept = self._kept_share(who[at_home], what[at_home] // layers % len(sizes), sizes, blocks, along)
        crossing = size * np.where(at_home, 1 - kept / users[what], 1.0)
        return _sums(who, size, workers), _sums(who, crossing, workers)

    def _kept_share(self, who: Ints, what: Ints, sizes: Floats, blocks: tuple[int, ...], along: int) -> float:
        """The share of a block that the worker on which it lies needs, on average: all of it, unless it is taller than
        what a worker needs, or longer than a layer. who needs which row (column) of tiles: pairs."""
        if not blocks or not len(who):
            return 1.0
        count = len(sizes)
        pairs = _distinct(who * count + what, count * len(self.slots.units))
        total = max(float(sizes.sum()), 1e-300)
        needed = float(sizes[pairs % count].sum()) / total / len(np.unique(pairs // count))
        tallest = max(blocks) / max(1, sum(blocks))
        return min(1.0, needed / max(tallest, 1e-300)) * min(1.0, along / self.cut.layers)

    def _piece(self, sizes: Floats, rate: float) -> Floats:
        """Bytes of the largest piece that a task has of an operand that it reads itself."""
        if not rate:
            return 0 * sizes
        shortest = sizes * min(1.0, self.p.shortest_piece / max(1, self.p.k))
        return np.minimum(sizes / self.cut.layers, np.maximum(shortest, self.p.piece_bytes))

    @property
    def scratch(self) -> Floats:
        """Bytes of the buffer through which a task adds up products of parts of k."""
        on_cpu = self.on_cpu[self.cut.owner].reshape(self.shape).all(axis=(0, 3))
        return np.where(on_cpu, np.minimum(self.tile, SCRATCH_BYTES), self.tile)

    @property
    def crossing(self) -> Floats:
        """Bytes of the operands that come to every worker."""
        return self.operands_a[1] + self.operands_b[1]

    def choice(self, chain: int | None = None) -> Choice:
        """What the cut costs; chains are as long as memory demands, or longer where that hides more of the fetching.
        chain: so long, if memory demands no more."""
        least, over = self._chain()
        moved, layers = float(self.crossing.sum()), self.cut.layers
        hides = moved > 0 and self.is_gpu[self.worker].any() and 4 * least * layers <= self.p.k
        options = [least * times for times in ((1, 2, 4) if hides else (1,))]
        if chain is not None:
            options = [max(least, min(chain, self.p.k // layers))]
        seconds, chain = min((float(self.slot_seconds(c).max()) + self._taking_parts(c), c) for c in options)
        strips, sum_seconds, sum_bytes = self._adding_up(seconds)
        scheduling = SCHEDULING * self.setting.task_seconds * _tasks(self.cut, chain, strips)
        seconds = max(seconds + sum_seconds, scheduling)
        return Choice(self.cut, self.slots, over, seconds, moved + sum_bytes, chain, strips)

    # -- memory

    def _chain(self) -> tuple[int, float]:
        """Tasks for each layer of a tile, so that operands and results of each fit in their slot's room, and the bytes
        by which they still exceed it."""
        layers = self.cut.layers
        operands, result = self.held / layers, self.tile
        buffers, room = self.piece + self.scratch, self._least_room()
        # who takes the result needs room for it, too
        alone = result + np.maximum(buffers, result * (COPIES_OF_WRITING if self.piece.any() else 1))
        if bool(np.all(operands + alone <= room)):
            return 1, 0.0
        # what was added up so far, the new product, and the buffer in which its parts are made
        chain = math.ceil(float(np.max(operands / np.maximum(room - buffers - 2 * result, room / 8))))
        chain = min(max(1, self.p.k // layers), max(1, chain))
        return chain, max(0.0, float(np.max(operands / chain + (alone if chain == 1 else buffers + 2 * result) - room)))

    def _least_room(self) -> Floats:
        """For every (m, n) block, the room of the slot that has least of those that compute parts of it."""
        rooms: Floats = self.slots.room[self.cut.owner].reshape(self.shape).min(axis=(0, 3))
        return rooms

    def working_bytes(self, chain: int) -> Floats:
        """Bytes of the largest task of every worker, on all of its threads at once."""
        operands = self.held / (self.cut.layers * chain) + self.piece
        each = np.broadcast_to((operands + self.tile)[None, :, :, None], self.shape).ravel()
        found = np.zeros(len(self.slots.units))
        np.maximum.at(found, self.worker, each)
        threads: Floats = found * np.asarray([u.threads for u in self.slots.units])
        return threads

    # -- seconds

    def slot_seconds(self, chain: int) -> Floats:
        """Seconds until every slot is done with its tiles, none for those that have none."""
        p, slots, owner = self.p, self.slots, self.cut.owner
        side = np.minimum(np.minimum.outer(self.ms, self.ns), max(1.0, p.k / (self.cut.layers * chain)))
        flops = np.outer(self.ms, self.ns) * (p.flops / max(1, p.m * p.n) / (p.batch * self.cut.layers))
        flops, side = (np.broadcast_to(x[None, :, :, None], self.shape).ravel() for x in (flops, side))
        half = slots.half_side[owner]
        measured = np.where(self.on_cpu[owner], *FULL_RATE_SIDE.values())
        slowing = np.maximum(1.0, (1 + half / np.maximum(side, 1)) / (1 + half / measured))
        count = np.bincount(owner, minlength=len(slots))
        computing = _sums(owner, flops * slowing / slots.rates[owner], len(slots))
        computing += count * chain * self.setting.task_seconds
        pieces = max(self._parts_of_k(), self.cut.layers * chain) / self.cut.layers
        computing += _sums(owner, self.each_tile * (pieces - 1) / COPY_BYTES_PER_S, len(slots)) * self.on_cpu
        computing += _sums(owner, self._reading(), len(slots))
        computing += _sums(owner, self._joining(), len(slots)) * self.on_cpu
        fetching, copying = self._fetching()[slots.worker], self._copying()
        tiles = np.maximum(1, count * chain)
        first = np.where(self.on_cpu, fetching, (fetching + copying) / tiles)
        waiting = FETCH_TASKS * self.setting.task_seconds * (tiles - 1) * (fetching > 0)
        rest = np.maximum(fetching, copying) * (1 - 1 / tiles) + waiting
        seconds: Floats = first + np.where(self.on_cpu, computing, np.maximum(computing, rest + computing / tiles))
        return np.where(count > 0, seconds, 0.0)

    def rates_seen(self, chain: int) -> Floats:
        """Tiles per second of every slot, bytes and all; of one that has no tiles, by its speed beside the others'."""
        seconds, rates = self.slot_seconds(chain), self.slots.rates
        count = np.bincount(self.cut.owner, minlength=len(self.slots))
        seen: Floats = count / np.maximum(seconds, 1e-300)
        idle = count == 0
        return np.where(idle, rates * (seen.sum() / rates[~idle].sum()), seen)

    def _parts_of_k(self) -> float:
        """Products that are added up to a tile."""
        if not self.piece.any():
            return len(self.p.k_blocks)
        most = max(float(self.row.max()) * (self.p.a_read > 0), float(self.column.max()) * (self.p.b_read > 0))
        pieces = math.ceil(most / self.p.piece_bytes)
        return min(pieces, max(1, self.p.k // self.p.shortest_piece))

    def _reading(self) -> Floats:
        """Seconds in which every part's task reads operands itself."""
        p, found = self.p, np.zeros((len(self.ms), len(self.ns)))
        if p.a_read:
            found += self.row[:, None] / p.a_read
        if p.b_read:
            found += self.column / p.b_read
        each: Floats = np.broadcast_to((found / self.cut.layers)[None, :, :, None], self.shape).ravel()
        return each

    def making(self, rates: Sequence[float]) -> float:
        """Seconds until the workers in use have made those operands that a task could read itself, at these rates, and
        does not."""
        p, seconds = self.p, 0.0
        for x_bytes, blocks, rate, read in (
            (p.a_bytes, len(self.cut.m), rates[0], p.a_read),
            (p.b_bytes, len(self.cut.n), rates[1], p.b_read),
        ):
            if rate and not read:
                seconds += x_bytes / rate + blocks * len(p.k_blocks) * self.setting.task_seconds
        return seconds / self.slots_used

    def fits_at_rest(self) -> bool:
        """Whether operands and results have room in the memory of every worker, in its share for them."""
        results = np.bincount(self.worker, self.each_tile, len(self.slots.units))
        there = MEMORY_SHARE * np.asarray([u.memory for u in self.slots.units])
        return bool(np.all(self.operands_a[0] + self.operands_b[0] + results <= there))

    def _fetching(self) -> Floats:
        """Seconds that each worker waits for what comes from others: its own link, or those of the senders, if few."""
        found = self.crossing / self.setting.link_bytes_per_s
        for total, kind in ((self.operands_a[1].sum(), self.p.a_at), (self.operands_b[1].sum(), self.p.b_at)):
            senders = max(1, self.setting.holding[kind])
            found = np.maximum(found, np.where(found > 0, total / senders / self.setting.link_bytes_per_s, 0.0))
        return found

    def _copying(self) -> Floats:
        """Seconds of every slot to get operands into a GPU's memory and results out, but for what lies on the device
        anyway. Where all operands of a device have room in its cache, each block goes up once, else for every task."""
        if not self.is_gpu.any():
            return np.zeros(len(self.slots))
        p, owner, layers = self.p, self.cut.owner, self.cut.layers
        rows, columns = (
            np.broadcast_to(x, self.shape).ravel() / layers
            for x in (self.row[None, :, None, None], self.column[None, None, :, None])
        )
        copied = self.each_tile.copy()
        moved_here = np.zeros(len(self.slots.units))
        memory = np.asarray([u.memory for u in self.slots.units])
        stay = self.operands_a[0] + self.operands_b[0] <= CACHE_SHARE * memory
        for each, operand, lies_at in ((rows, self.operands_a, p.a_at), (columns, self.operands_b, p.b_at)):
            if lies_at == "gpu":
                moved_here += operand[1]
            else:
                moved_here += np.where(stay, operand[0], 0.0)
                copied += np.where(stay[self.worker], 0.0, each)
        links = np.asarray([u.link for u in self.slots.units])[self.slots.worker]
        seconds: Floats = (_sums(owner, copied, len(self.slots)) + moved_here[self.slots.worker]) / links
        return seconds

    def _adding_up(self, before: float) -> tuple[int, float, float]:
        """Strips, seconds and bytes of adding up the layers: all of a tile on one worker, or strips on several.

        before: seconds of what comes before.
        """
        layers = self.cut.layers
        if layers == 1:
            return 1, 0.0, 0.0
        tiles = self.worker.reshape(-1, layers)
        apart = 1 + (np.diff(np.sort(tiles, axis=1), axis=1) > 0).sum(axis=1)
        sizes = np.broadcast_to(self.tile.ravel(), (self.p.batch, self.tile.size)).ravel()
        # whoever adds has its own parts there; a worker sends each of its parts, not their sum
        moved = float((sizes * layers * (1 - 1 / apart)).sum()) if self.setting.is_cluster else 0.0
        task, each = self.setting.task_seconds, float(sizes.mean()) * layers / COPY_BYTES_PER_S
        parts = len(tiles) * layers / self.slots_used

        def seconds(strips: int) -> float:
            summers = min(len(tiles) * strips, self.workers_used)
            receiving = moved / summers / self.setting.link_bytes_per_s
            adding = math.ceil(len(tiles) * strips / summers) * (task + each / strips)
            return receiving + adding + (strips > 1) * parts * strips * task

        def with_scheduling(strips: int) -> float:
            return max(before + seconds(strips), SCHEDULING * task * _tasks(self.cut, 1, strips))

        most = min(layers, int(self.ms.min()))
        strips = min(
            [1, *(2**e for e in range(1, most.bit_length()) if 2**e < most), max(1, most)], key=with_scheduling
        )
        return strips, seconds(strips), moved

    def _taking_parts(self, chain: int) -> float:
        """Seconds of the tasks that take parts of operands' blocks where these lie."""
        p, seconds = self.p, 0.0
        for blocks, along, wanted, at, free in (
            (p.m_blocks, p.a_along, self.cut.m, p.a_at, p.a_free),
            (p.n_blocks, p.b_along, self.cut.n, p.b_at, p.b_free),
        ):
            if free:
                continue
            panels = self.cut.layers * chain
            parts = parts_taken(blocks, wanted) * max(along, panels) if along >= panels else len(wanted) * panels
            seconds += parts * self.setting.task_seconds / max(1, self.setting.holding[at])
        return seconds

    def _joining(self) -> Floats:
        """Seconds in which every part's task joins operands that lie in several blocks; a GPU does it in no time."""
        p, each = self.p, np.zeros((len(self.ms), len(self.ns)))
        if not p.a_free:
            each += (self.row * spans(p.m_blocks, self.cut.m))[:, None]
        if not p.b_free:
            each += self.column * spans(p.n_blocks, self.cut.n)
        per_copy = self.cut.layers * COPY_BYTES_PER_S
        seconds: Floats = np.broadcast_to((each / per_copy)[None, :, :, None], self.shape).ravel()
        return seconds
