"""Plans: which grid and which workers every product gets.

Design note. The plan walks the graph once, from the inputs up. For each product it weighs the classes of devices that
its pin allows (the CPU workers, the GPUs, both) and, for each, some grids; it predicts the seconds of each choice from
the measured rates, the cost of a task and the bytes that must move, and takes the least. There is no size threshold:
a product stays on the CPU exactly where moving and launching costs more than a GPU saves. Tiles are dealt out in
proportion to speed, in runs along rows or columns of the grid, whichever moves fewer bytes, so that the tiles of one
block row (or column) share a worker and its copy of the operand.

The result holds the graph with every product's operands cut as its grid demands (`rechunk` expressions, so that the
cost is seen), and what was decided. All of it is data, made from shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from taskgraph.chunks import numblocks
from taskgraph.expr import DType, Expr, bind, consumers, labelled, pinned, rewrite, topological, with_inputs
from taskgraph.machine import Device, Machine
from taskgraph.primitives import find

#: The Dask annotation under which every task of ours carries its `TaskTag`.
TAG = "taskgraph"

#: Both classes together must be this much faster than the better one alone: a mixed product waits for its slowest tile
#: and takes CPU workers from everything else (chosen: more than the error of the predicted rates).
MIXED_GAIN = 0.9
#: Tiles per slot at the most: more only add tasks, fewer leave unequal devices unbalanced (chosen).
TILES_PER_SLOT = 4
#: Bytes per second at which a host cuts and joins blocks (measured: NumPy copies at 3 to 6 GB/s a core).
COPY_BYTES_PER_S = 4e9
#: Share of a device's memory for the operands and the result of its tiles: the rest holds what comes next and what goes.
MEMORY_SHARE = 0.5


class TaskTag(TypedDict):
    """What the plan says of one task; it travels as the task's Dask annotation `TAG`.

    kind: the device class, "cpu" or "gpu", on whose workers alone the task may run.
    slot: the name of the worker that the plan chose for a product's tile, absent where any of the class will do.
    pinned: the user named the slot (`tg.device("gpu:1")`): no other worker of the class takes it while it is alive.
    product, grid, tile: name of the product, its grid (gm, gn, gk), and the tile's place in it (i, j, k), behind the
    blocks of leading axes where the product is batched.
    """

    kind: str
    slot: NotRequired[str]
    pinned: NotRequired[bool]
    product: NotRequired[str]
    grid: NotRequired[tuple[int, int, int]]
    tile: NotRequired[tuple[int, ...]]


@dataclass(frozen=True)
class TileGrid:
    """How a product (m, k) @ (k, n) is cut: the sizes of its blocks along each of the three.

    >>> TileGrid((3, 3), (6,), (4, 2)).shape
    (2, 1, 2)
    """

    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.m), len(self.n), len(self.k)


@dataclass(frozen=True)
class ProductPlan:
    """What was decided for one product.

    batch: blocks of leading axes (1 for a plain matrix product). panels: how many runs of k are summed apart, each in
    a task of its own. slots: for every tile, in row-major order of (batch, i, j), the worker that it is meant for, or
    None for any of its class; kinds: its class. seconds and bytes_moved are predictions: seconds for the product alone
    on an idle machine, bytes between workers.
    """

    name: str
    m: int
    n: int
    k: int
    dtype: DType
    batch: int
    grid: TileGrid
    panels: int
    slots: tuple[str | None, ...]
    kinds: tuple[str, ...]
    pinned: bool
    flops: int
    seconds: float
    bytes_moved: float

    @property
    def kind(self) -> str:
        return "+".join(sorted(set(self.kinds)))

    def tag(self, tile: int, place: tuple[int, ...]) -> TaskTag:
        """The annotation of the task that computes part `place` of the tile with that number."""
        tag = TaskTag(kind=self.kinds[tile], product=self.name, grid=(*self.grid.shape[:2], self.panels), tile=place)
        slot = self.slots[tile]
        if slot is not None:
            tag["slot"] = slot
            if self.pinned:
                tag["pinned"] = True
        return tag

    def __str__(self) -> str:
        per_slot: dict[str, int] = {}
        for s, k in zip(self.slots, self.kinds, strict=True):
            per_slot[s or f"any {k}"] = per_slot.get(s or f"any {k}", 0) + 1
        gm, gn, _ = self.grid.shape
        where = ", ".join(f"{name}: {n}" for name, n in sorted(per_slot.items()))
        lead = f"{self.batch} x " if self.batch > 1 else ""
        return (
            f"{lead}({self.m}, {self.k}) @ ({self.k}, {self.n}) {self.dtype}: grid {gm}x{gn}x{self.panels}, "
            f"{self.flops / 1e9:.3g} GFLOP in {self.seconds:.3g} s, {self.bytes_moved / 1e6:.3g} MB moved; tiles on {where}"
        )


@dataclass(frozen=True)
class Plan:
    """The graph as it will run, and for every product of it what was decided.

    makespan: predicted seconds of the products one after another. bytes_moved: predicted bytes between workers for
    their operands. tiles: tiles of products per worker ("any cpu" where the plan leaves the choice to the moment).
    """

    roots: tuple[Expr, ...]
    products: Mapping[Expr, ProductPlan]
    machine: Machine

    @property
    def makespan(self) -> float:
        return math.fsum(p.seconds for p in self.products.values())

    @property
    def bytes_moved(self) -> float:
        return math.fsum(p.bytes_moved for p in self.products.values())

    @property
    def tiles(self) -> dict[str, int]:
        count: dict[str, int] = {}
        for p in self.products.values():
            for slot, kind in zip(p.slots, p.kinds, strict=True):
                name = slot or f"any {kind}"
                count[name] = count.get(name, 0) + 1
        return count

    def kind_of(self, node: Expr) -> str:
        """The device class of an expression that is no product."""
        pin = node.device
        return "gpu" if pin is not None and pin.startswith("gpu") else "cpu" if pin == "cpu" else self.machine.home

    def summary(self) -> str:
        """The plan for people to read: the machine, a line for each product, the totals."""
        devices = ", ".join(
            f"{d.name}{' (emulated)' if d.emulated else ''}" for d in self.machine.devices[:8]
        ) + (", ..." if len(self.machine.devices) > 8 else "")
        lines = [f"plan for {len(self.machine.devices)} device(s): {devices}"]
        lines += [f"  {p}" for p in self.products.values()] or ["  no products"]
        lines.append(f"  products together: {self.makespan:.3g} s, {self.bytes_moved / 1e6:.3g} MB between workers")
        return "\n".join(lines)

    __str__ = summary


def plan(what: Any, machine: Machine) -> Plan:
    """Choose a grid and workers for every product that `what` (a tensor, an expression, or several) needs.

    Pure: nothing runs, and the machine may be made up. Raises ValueError where an expression is pinned to a device that
    the machine lacks.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0, threads=4), tg.Device("gpu", 2**34, 9000.0)])
    >>> tg.plan(tg.randn(8192, 8192) @ tg.randn(8192, 8192), m).tiles
    {'gpu-0': 1}
    """
    items = what if isinstance(what, list | tuple) else [what]
    roots = tuple(getattr(x, "expr", x) for x in items)
    order = topological(roots)
    users = consumers(order)
    for node in order:
        _check_pin(node, machine)
    products: dict[Expr, ProductPlan] = {}

    def rule(node: Expr, inputs: tuple[Expr, ...]) -> Expr:
        new = with_inputs(node, inputs)
        if node.op.kind != "product":
            return new
        decided = choose(new, machine)
        often = [len(users[i]) > 1 for i in node.inputs]
        new = _cut(new, decided.grid, often)
        products[new] = _renamed(decided, new.name)
        return new

    return Plan(rewrite(roots, rule), products, machine)


def _check_pin(node: Expr, machine: Machine) -> None:
    pin = node.device or ""
    gpus = machine.of_kind("gpu")
    if pin.startswith("gpu") and (not gpus or (":" in pin and int(pin[4:]) >= len(gpus))):
        have = f"only {len(gpus)}" if gpus else "none"
        raise ValueError(
            f"'{node.op.name}' is pinned to {pin!r}, but this machine has {have} of the GPU-pinned workers; connect to a "
            "cluster with more (tg.LocalCluster(gpus=...), or emulated_gpus=... to try it), or take the pin away"
        )
    if pin == "cpu" and not machine.of_kind("cpu"):
        raise ValueError(f"'{node.op.name}' is pinned to 'cpu', but this machine has no CPU worker")


# -- one product -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
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


def _problem(node: Expr) -> _Problem:
    a, b = node.inputs
    ta, tb = node.params["ta"], node.params["tb"]
    am, ak = (a.chunks[-1], a.chunks[-2]) if ta else (a.chunks[-2], a.chunks[-1])
    bk, bn = (b.chunks[-1], b.chunks[-2]) if tb else (b.chunks[-2], b.chunks[-1])
    k_blocks = ak if ak == bk else _refine(ak, bk)
    free = [x.op.kind == "source" for x in (a, b)]
    k = sum(ak)
    return _Problem(
        node.name, node.shape[-2], node.shape[-1], k, math.prod(numblocks(node.chunks[:-2])), node.dtype, am, bn,
        k_blocks, a.nbytes, b.nbytes, *free, flops=2 * node.size * k,
    )  # fmt: skip


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
class _Slot:
    name: str
    kind: str
    rate: float
    link: float
    memory: float


@dataclass(frozen=True)
class _Choice:
    seconds: float
    bytes_moved: float
    m: tuple[int, ...]
    n: tuple[int, ...]
    panels: int
    counts: tuple[int, ...]
    by_rows: bool


def choose(node: Expr, machine: Machine) -> ProductPlan:
    """The cheapest choice for one product: over classes of devices, and for each over grids."""
    p = _problem(node)
    pin = node.device
    home = machine.of_kind(machine.home)
    if pin is None and _is_small(p, home[0], machine):
        seconds = machine.task_seconds + p.flops / home[0].rate(p.dtype)
        return _decided(p, _Choice(seconds, 0.0, p.m_blocks, p.n_blocks, 1, (), True), (), machine.home, False)
    best: tuple[float, _Choice, tuple[_Slot, ...]] | None = None
    for devices, handicap in _classes(pin, machine):
        slots = _slots(devices, p.dtype)
        choice = _best_grid(p, slots, machine)
        if best is None or choice.seconds / handicap < best[0]:
            best = (choice.seconds / handicap, choice, slots)
    assert best is not None
    return _decided(p, best[1], best[2], machine.home, ":" in (pin or ""))


def _is_small(p: _Problem, home: Device, machine: Machine) -> bool:
    """Whether no cut can pay: one task takes less than the tasks that a cut would add."""
    one_block = p.batch == len(p.m_blocks) == len(p.n_blocks) == len(p.k_blocks) == 1
    return one_block and p.flops / home.rate(p.dtype) <= 4 * machine.task_seconds


def _classes(pin: str | None, machine: Machine) -> list[tuple[tuple[Device, ...], float]]:
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


def _slots(devices: Sequence[Device], dtype: DType) -> tuple[_Slot, ...]:
    return tuple(
        _Slot(d.name, d.kind, d.rate(dtype), d.link, d.memory_bytes / d.threads)
        for d in devices
        for _ in range(d.threads)
    )


def _best_grid(p: _Problem, slots: tuple[_Slot, ...], machine: Machine) -> _Choice:
    options = [_evaluate(p, m, n, slots, machine) for m, n in _grids(p, slots)]
    return min(options, key=lambda c: (c.seconds, len(c.m) * len(c.n), len(c.m)))


def _grids(p: _Problem, slots: Sequence[_Slot]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
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


def _near_square(p: _Problem, gm: int, gn: int) -> bool:
    side_m, side_n = p.m / gm, p.n / gn
    return max(gm, gn) <= 2 or max(side_m, side_n) <= 8 * max(1.0, min(side_m, side_n))


def _evaluate(
    p: _Problem, m: tuple[int, ...], n: tuple[int, ...], slots: tuple[_Slot, ...], machine: Machine
) -> _Choice:
    """Seconds and bytes of one cut on these slots: each computes its tiles and fetches the operands they need."""
    gm, gn = len(m), len(n)
    tiles = p.batch * gm * gn
    counts = deal(tiles, [s.rate for s in slots])
    panels = _panels(p, gm, gn, counts, slots)
    tile_flops = p.flops / tiles
    row, column = p.a_bytes / (p.batch * gm), p.b_bytes / (p.batch * gn)
    remote = {"gpu": 1.0, "cpu": 1.0 - 1.0 / max(1, len(machine.of_kind("cpu")))}
    best: _Choice | None = None
    for by_rows in (True, False):
        seconds, moved = 0.0, 0.0
        for slot, count, operands in zip(slots, counts, _operand_bytes(counts, gm, gn, row, column, by_rows), strict=True):
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
            best = _Choice(seconds, moved, m, n, panels, counts, by_rows)
    assert best is not None
    return best


def deal(tiles: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Equal tiles dealt to slots so that the last one is done first: in proportion to speed.

    >>> deal(8, [3.0, 1.0])
    (6, 2)
    """
    total = math.fsum(rates)
    counts = [int(tiles * r / total) for r in rates]
    for _ in range(tiles - sum(counts)):
        i = min(range(len(rates)), key=lambda s: ((counts[s] + 1) / rates[s], s))
        counts[i] += 1
    return tuple(counts)


def _operand_bytes(
    counts: Sequence[int], gm: int, gn: int, row: float, column: float, by_rows: bool
) -> list[float]:
    """Bytes of the operands that each slot's run of tiles needs; a run goes along block rows, or along block columns."""
    lines, along, line_bytes, along_bytes = (gm, gn, row, column) if by_rows else (gn, gm, column, row)
    result, at = [], 0
    for count in counts:
        if count:
            spanned = (at + count - 1) // along - at // along + 1
            result.append(spanned * line_bytes + min(along, count) * along_bytes)
        else:
            result.append(0.0)
        at += count
    return result


def _panels(p: _Problem, gm: int, gn: int, counts: Sequence[int], slots: Sequence[_Slot]) -> int:
    """Runs of k that are summed apart, so that a task's operands and result fit in a device; 1 where all of k fits."""
    room = MEMORY_SHARE * min(s.memory for s, c in zip(slots, counts, strict=True) if c)
    operands = p.a_bytes / (p.batch * gm) + p.b_bytes / (p.batch * gn)
    result = 2 * p.itemsize * p.m * p.n / (gm * gn)
    return min(len(p.k_blocks) if len(p.k_blocks) > 1 else max(1, p.k), max(1, math.ceil(operands / max(room - result, room / 4))))


def _cutting(p: _Problem, m: Sequence[int], n: Sequence[int], slots: int, machine: Machine) -> float:
    """Seconds to cut operands that lie otherwise; a source is made as it is wanted."""
    seconds = 0.0
    for blocks, wanted, size, free in ((p.m_blocks, m, p.a_bytes, p.free_a), (p.n_blocks, n, p.b_bytes, p.free_b)):
        if tuple(blocks) != tuple(wanted) and not free:
            seconds += (size / COPY_BYTES_PER_S + len(wanted) * len(p.k_blocks) * machine.task_seconds) / slots
    return seconds


def _decided(p: _Problem, c: _Choice, slots: Sequence[_Slot], home: str, is_pinned: bool) -> ProductPlan:
    grid = TileGrid(tuple(c.m), tuple(c.n), _k_blocks(p, c.panels))
    tiles = p.batch * len(c.m) * len(c.n)
    if not slots or (tiles == 1 and all(s.kind == home for s in slots) and not is_pinned):
        names: list[str | None] = [None] * tiles
        kinds = [slots[0].kind if slots else home] * tiles
    else:
        run = [s for s, count in zip(slots, c.counts, strict=True) for _ in range(count)]
        order = _by_columns(p.batch, len(c.m), len(c.n)) if not c.by_rows else range(tiles)
        placed = dict(zip(order, run, strict=True))
        names = [placed[t].name for t in range(tiles)]
        kinds = [placed[t].kind for t in range(tiles)]
    return ProductPlan(
        p.name, p.m, p.n, p.k, p.dtype, p.batch, grid, c.panels, tuple(names), tuple(kinds), is_pinned, p.flops,
        c.seconds, c.bytes_moved,
    )  # fmt: skip


def _by_columns(batch: int, gm: int, gn: int) -> list[int]:
    return [b * gm * gn + i * gn + j for b in range(batch) for j in range(gn) for i in range(gm)]


def _k_blocks(p: _Problem, panels: int) -> tuple[int, ...]:
    return p.k_blocks if len(p.k_blocks) >= panels else even(p.k, panels)


def _renamed(decided: ProductPlan, name: str) -> ProductPlan:
    return ProductPlan(**{**decided.__dict__, "name": name})


# -- operands cut as the grid wants them -------------------------------------------------------------------------------


def _cut(node: Expr, grid: TileGrid, often: Sequence[bool]) -> Expr:
    a, b = node.inputs
    ta, tb = node.params["ta"], node.params["tb"]
    lead = [
        tuple(o if s > 1 else (1,) for s, o in zip(x.shape[:-2], node.chunks[node.ndim - x.ndim : -2], strict=True))
        for x in (a, b)
    ]
    wanted_a = (*lead[0], *((grid.k, grid.m) if ta else (grid.m, grid.k)))
    wanted_b = (*lead[1], *((grid.n, grid.k) if tb else (grid.k, grid.n)))
    return with_inputs(node, (relayout(a, wanted_a, often[0]), relayout(b, wanted_b, often[1])))


def relayout(x: Expr, chunks: tuple[tuple[int, ...], ...], used_often: bool = False) -> Expr:
    """`x` in those blocks: made so where it is a source (a dear one that others use, too, is made once), else cut."""
    if x.chunks == chunks:
        return x
    with pinned(x.device), labelled(x.label):
        if x.op.kind == "source" and not (used_often and x.op.name == "random"):
            return bind(x.op, **{**x.params, "chunks": chunks})
        base = x.inputs[0] if x.op.name == "rechunk" else x
        return base if base.chunks == chunks else bind(find("rechunk"), base, chunks=chunks)
