"""Plans: which grid and which workers every product gets.

Design note. The plan walks the graph once, from the inputs up. For each product it weighs the classes of devices that
its pin allows (the CPU workers, the GPUs, both), and for each some grids on the fastest of its slots (grids.py); it
predicts the seconds of each choice from the measured rates, the cost of a task and the bytes that must move (cost.py),
and takes the least of those that fit in memory.

The result holds the graph with every product's operands cut as its grid demands (`rechunk` expressions, so that the
cost is seen), and what was decided. All of it is data, made from shapes alone.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import numpy as np
from dask.utils import format_bytes

from taskgraph.bounds import area_bound, bound_of_shares
from taskgraph.climb import Judge, climb
from taskgraph.cost import Choice, Cut, Evaluation, is_small
from taskgraph.expr import DType, Expr, consumers, describe, rewrite, topological, with_inputs
from taskgraph.gram import gram_flops, is_gram, triangle
from taskgraph.layout import cut_operands, gathering, lying
from taskgraph.machine import Device, Machine
from taskgraph.peaks import peaks, with_epilogue
from taskgraph.problem import Problem, panel_sizes, piece_sizes, problem_of
from taskgraph.reading import best_reading
from taskgraph.slots import Setting, setting_of, slots_of, unit_of

#: Workers named in one line of a summary or of an error.
MOST_SHOWN = 12

#: The Dask annotation under which every task of ours carries its `TaskTag`.
TAG = "taskgraph"

#: The span of `distributed.span` to which all our tasks belong that their user gave no other. Dask would make one for
#: every run, and keep it, and the workers' statistics of it, for ever (measured: 7 kB a step of training).
SPAN = {"name": ("taskgraph",), "ids": ("taskgraph",)}


class TaskTag(TypedDict):
    """What the plan says of one task; it travels as the task's Dask annotation `TAG`.

    kind: the device class, "cpu" or "gpu", on whose workers alone the task may run.
    slot: the name of the worker that the plan chose for a product's tile, absent where any of the class will do.
    near: for a block of an operand that has to be made anyway: the worker whose tile needs it.
    stays: it takes a part of a block, where the block is, of whatever class that worker is.
    pinned: the user named the slot (`tg.device("gpu:1")`): no other worker of the class takes it while it is alive.
    product, grid, tile: name of the product, its grid (gm, gn, gk), and the tile's place in it (i, j, k), behind the
    blocks of leading axes where the product is batched.
    """

    kind: str
    slot: NotRequired[str]
    near: NotRequired[str]
    stays: NotRequired[bool]
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

    batch: blocks of leading axes (1 for a plain matrix product). grid: `grid.k` are panels of k, each multiplied in a
    task of its own. slots: for every part (a tile's panel), in row-major order of (batch, i, j, panel), the worker that
    it is meant for, or None for any of its class; kinds: its class. Panels of a tile that follow each other on one slot
    go in a chain, each adding to what the one before gave; what different slots give is added up, always in the same
    order, in `strips` runs of rows of the tile, each on the worker that made one of the parts; so the result has blocks
    of `grid.m` cut in strips. streamed: whether the tasks read the left and the right operand themselves, in `pieces`
    of k, each time anew; such a one has no tasks of its own, moves nowhere, and is nowhere held.

    gathers: whether the tasks put the left and the right operand together from blocks that are cut otherwise.

    mirrored: of a matrix times its own transpose, tiles below the diagonal are those above, turned, on the same slots.

    seconds, bytes_moved and peak_bytes are predictions: seconds for the product alone on an idle machine, bytes between
    workers, bytes that every worker in use holds at the most. area_seconds and bytes_bound are what no plan can beat:
    all devices that it may use at full speed, and bounds.communication_bound for the workers that it uses.
    """

    name: str
    m: int
    n: int
    k: int
    dtype: DType
    batch: int
    grid: TileGrid
    strips: int
    slots: tuple[str | None, ...]
    kinds: tuple[str, ...]
    pinned: bool
    flops: int
    seconds: float
    area_seconds: float
    bytes_moved: float
    bytes_bound: float
    peak_bytes: Mapping[str, int]
    mirrored: bool = False
    streamed: tuple[bool, bool] = (False, False)
    gathers: tuple[bool, bool] = (False, False)
    pieces: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"ProductPlan({self})"

    @property
    def kind(self) -> str:
        return "+".join(sorted(set(self.kinds)))

    @property
    def panels(self) -> int:
        return len(self.grid.k)

    def chains(self, tile: int) -> list[range]:
        """The panels of a tile, numbered in row-major order of (batch, i, j), in runs on one slot."""
        first = tile * self.panels
        here = slice(first, first + self.panels)
        slots = list(zip(self.slots[here], self.kinds[here], strict=True))
        starts = [n for n in range(self.panels) if n == 0 or slots[n] != slots[n - 1]]
        return [range(a, b) for a, b in itertools.pairwise([*starts, self.panels])]

    def tag(self, part: int, place: tuple[int, ...] | None = None) -> TaskTag:
        """The annotation of a task for the worker of the part with that number. place: of the part that it computes;
        without, it takes parts of tiles, or adds them up."""
        tag = TaskTag(kind=self.kinds[part], product=self.name)
        if place is not None:
            tag["grid"], tag["tile"] = self.grid.shape, place
        slot = self.slots[part]
        if slot is not None:
            tag["slot"] = slot
            if self.pinned:
                tag["pinned"] = True
        return tag

    def __str__(self) -> str:
        per_slot = _count_by_worker(self)
        gm, gn, gk = self.grid.shape
        shown = [f"{name}: {n}" for name, n in sorted(per_slot.items(), key=lambda item: _natural(item[0]))]
        lead = f"{self.batch} x " if self.batch > 1 else ""
        return (
            f"{lead}({self.m}, {self.k}) @ ({self.k}, {self.n}) {self.dtype}: grid {gm}x{gn}x{gk}, "
            f"{self.flops / 1e9:.3g} GFLOP in {self.seconds:.3g} s (at least {self.area_seconds:.3g}), "
            f"{self.bytes_moved / 1e6:.3g} MB moved (at least {self.bytes_bound / 1e6:.3g}); "
            f"tiles on {', '.join(_shortened(shown))}"
        )


def _shortened(items: list[str]) -> list[str]:
    return items if len(items) <= MOST_SHOWN else [*items[: MOST_SHOWN - 1], "...", items[-1]]


def _natural(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


def _count_by_worker(p: ProductPlan) -> dict[str, int]:
    count: dict[str, int] = {}
    for slot, kind in zip(p.slots, p.kinds, strict=True):
        name = slot or f"any {kind}"
        count[name] = count.get(name, 0) + 1
    return count


class InfeasiblePlan(ValueError):
    """No cut of a product fits the memory of the devices that it may use; the message says what would."""


@dataclass(frozen=True)
class Plan:
    """The graph as it will run, and for every product of it what was decided.

    makespan: predicted seconds of the products one after another; area_bound: with all devices that they may use at
    full speed all the time (the greatest of the bounds over dtypes and pins). bytes_moved: predicted bytes between
    workers for their operands and partial results; bytes_bound: the least that these workers need. peak_bytes: for each
    worker, the most that it holds while any one product is computed. tiles: tiles (and panels apart) of products per
    worker ("any cpu" where the plan leaves the choice to the moment).
    """

    roots: tuple[Expr, ...]
    products: Mapping[Expr, ProductPlan]
    machine: Machine

    @property
    def makespan(self) -> float:
        return math.fsum(p.seconds for p in self.products.values())

    @property
    def area_bound(self) -> float:
        flops: Counter[tuple[DType, str | None]] = Counter()
        for node, p in self.products.items():
            for pin in {None, node.device}:
                flops[p.dtype, pin] += p.flops
        return max((area_bound(f, _rates(pin, self.machine, d)) for (d, pin), f in flops.items()), default=0.0)

    @property
    def bytes_moved(self) -> float:
        return math.fsum(p.bytes_moved for p in self.products.values())

    @property
    def bytes_bound(self) -> float:
        return math.fsum(p.bytes_bound for p in self.products.values())

    @property
    def peak_bytes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for p in self.products.values():
            for name, size in p.peak_bytes.items():
                found[name] = max(size, found.get(name, 0))
        return found

    @property
    def tiles(self) -> dict[str, int]:
        count: dict[str, int] = {}
        for p in self.products.values():
            for name, n in _count_by_worker(p).items():
                count[name] = count.get(name, 0) + n
        return count

    def kind_of(self, node: Expr) -> str:
        """The device class of an expression that is no product; a Dask array's own tasks are not ours to pin."""
        pin = None if node.op.name == "dask" else node.device
        return "gpu" if pin is not None and pin.startswith("gpu") else "cpu" if pin == "cpu" else self.machine.home

    def summary(self) -> str:
        """The plan for people to read: the machine, a line for each product, the totals."""
        devices = ", ".join(f"{d.name}{' (emulated)' if d.emulated else ''}" for d in self.machine.devices[:8]) + (
            ", ..." if len(self.machine.devices) > 8 else ""
        )
        lines = [f"plan for {len(self.machine.devices)} device(s): {devices}"]
        lines += [f"  {p}" for p in self.products.values()] or ["  no products"]
        lines.append(
            f"  products together: {self.makespan:.3g} s (all devices at full speed: {self.area_bound:.3g}), "
            f"{self.bytes_moved / 1e6:.3g} MB between workers (at least {self.bytes_bound / 1e6:.3g})"
        )
        if peaks := self.peak_bytes:
            shown = [f"{name}: {format_bytes(n)}" for name, n in sorted(peaks.items(), key=lambda x: _natural(x[0]))]
            lines.append(f"  at most in memory: {', '.join(_shortened(shown))}")
        return "\n".join(lines)

    __str__ = summary


#: The judge is asked about products that take at least so many seconds, and about ways of at most so many tasks
#: (chosen: to simulate some ways takes no longer than some ten runs of the product; then the answer is remembered).
JUDGED_S, JUDGED_TASKS = 0.02, 2500


def plan(roots: Sequence[Expr], machine: Machine, judge: Judge | None = None) -> Plan:
    """Choose a grid and workers for every product that the roots need: pure, nothing runs.

    judge: looks closer at what the cost model thinks is best, and at what comes close to it.

    Raises ValueError where an expression is pinned to a device that the machine lacks, InfeasiblePlan where a product
    fits in no way into the memory of the devices that it may use.
    """
    order = topological(roots)
    users, kept = consumers(order), [x for x in order if x.op.name == "dask"]
    for node in order:
        _check_pin(node, machine)
    products: dict[Expr, ProductPlan] = {}

    def rule(node: Expr, inputs: tuple[Expr, ...]) -> Expr:
        new = with_inputs(node, inputs)
        if node.op.kind != "product":
            return new
        often = [len(users[i]) > 1 for i in node.inputs]
        a_at, b_at = (_lies_at(i, products, machine) for i in inputs)
        new, products_plan = _cut(new, choose(new, machine, a_at, b_at, often, judge), often)
        products[new] = replace(
            products_plan, peak_bytes=with_epilogue(products_plan, node, users, kept, machine.devices)
        )
        return new

    return Plan(rewrite(roots, rule), products, machine)


def _cut(node: Expr, decided: ProductPlan, often: Sequence[bool]) -> tuple[Expr, ProductPlan]:
    """The product with its operands cut as was decided."""
    new = cut_operands(node, decided, often)
    return new, replace(decided, name=new.name, gathers=gathering(new, decided))


def _apart(node: Expr, decided: ProductPlan, often: Sequence[bool], machine: Machine) -> Plan:
    """The product alone, of operands that are there, in that way."""
    operands = tuple(x if read else lying(x) for x, read in zip(node.inputs, decided.streamed, strict=True))
    new, planned = _cut(with_inputs(node, operands), decided, often)
    return Plan((new,), {new: planned}, machine)


def _check_pin(node: Expr, machine: Machine) -> None:
    pin = node.device or ""
    gpus = machine.of_kind("gpu")
    if pin.startswith("gpu") and (not gpus or (":" in pin and int(pin[4:]) >= len(gpus))):
        have = f"only {len(gpus)} GPU-pinned worker(s)" if gpus else "no GPU-pinned worker"
        raise ValueError(
            f"'{node.op.name}' is pinned to {pin!r}, but this machine has {have} (it has {_listed(machine)}); connect "
            "to a cluster that has it (tg.LocalCluster(gpus=...), or emulated_gpus=... to try it), or take the pin away"
        )
    if pin in ("cpu", "cpu+gpu") and not machine.of_kind("cpu"):
        raise ValueError(
            f"'{node.op.name}' is pinned to {pin!r}, but this machine has no CPU worker (it has {_listed(machine)})"
        )


def _listed(machine: Machine) -> str:
    return ", ".join(_shortened([d.name for d in machine.devices]))


def _lies_at(x: Expr, products: Mapping[Expr, ProductPlan], machine: Machine) -> str:
    """The kind of the workers on which an operand lies: where its product was planned, or where it is pinned."""
    base = x.inputs[0] if x.op.name == "rechunk" else x
    kind = products[base].kind if base in products else "gpu" if (x.device or "").startswith("gpu") else machine.home
    return kind if kind in ("cpu", "gpu") and machine.of_kind(kind) else machine.home


# -- one product -------------------------------------------------------------------------------------------------------


def choose(
    node: Expr,
    machine: Machine,
    a_at: str | None = None,
    b_at: str | None = None,
    often: Sequence[bool] = (False, False),
    judge: Judge | None = None,
) -> ProductPlan:
    """The cheapest choice for one product: over classes of devices, and for each over its slots and over grids; and
    over whether operands that can be made anywhere are made once, or read by every task that needs them.

    a_at, b_at: the kind of the workers on which the operands lie. often: whether others use them, too.
    """
    p = problem_of(node, a_at or machine.home, b_at or machine.home)
    setting = setting_of(machine)
    home = machine.of_kind(machine.home)
    is_pinned = ":" in (node.device or "")
    if node.device in (None, machine.home) and is_small(p, home[0], machine):
        cut = Cut(p.m_blocks, p.n_blocks, 1, np.zeros(1, dtype=np.int64))
        slots = slots_of([unit_of(home[0], p.dtype)])
        seconds = machine.task_seconds + p.flops / home[0].rate(p.dtype)
        choices: tuple[Choice, ...] = (Choice(cut, slots, 0.0, seconds, 0.0, 1, 1),)
    else:
        groups = [[unit_of(d, p.dtype) for d in devices] for devices in classes(node.device, machine, p.dtype)]
        held = p
        p, choices = best_reading(node, p, groups, setting, often)
        half = triangle(held, tuple(map(tuple, groups)), setting, choices[0]) if is_gram(node) else None
        if half is not None:
            whole, flops = _decided(node, held, half, machine, free=False, is_pinned=is_pinned), gram_flops(node)
            area = whole.area_seconds * flops / held.flops
            # no bound is known on the bytes
            return replace(whole, flops=flops, area_seconds=area, bytes_bound=0.0, mirrored=True)
        _check_memory(node, p, choices[0], setting)

    def decided(c: Choice) -> ProductPlan:
        free = len(c.cut.owner) == 1 and not is_pinned and c.slots.kinds[c.cut.owner[0]] == machine.home
        return _decided(node, p, c, machine, free=free, is_pinned=is_pinned)

    ways = [c for c in choices if c.tasks <= JUDGED_TASKS]
    if judge is None or len(ways) < 2 or choices[0].seconds < JUDGED_S or choices[0].tasks > JUDGED_TASKS:
        return decided(choices[0])
    lies = tuple((x.chunks, x.op.kind, x.device) for x in node.inputs)
    key = (p, setting, tuple(map(tuple, groups)), lies, node.device, node.inputs[0] is node.inputs[1], machine.home)
    area = area_bound(p.flops, _rates(node.device, machine, p.dtype))
    best, seconds = climb(
        judge, key, ways, lambda c: _apart(node, decided(c), often, machine), area, machine.task_seconds, JUDGED_TASKS
    )
    return replace(decided(best), seconds=seconds)


def classes(pin: str | None, machine: Machine, dtype: DType) -> list[tuple[Device, ...]]:
    """The sets of devices that the pin allows."""
    cpus, gpus = machine.of_kind("cpu"), machine.of_kind("gpu")
    if pin is not None and pin.startswith("gpu:"):
        return [(gpus[int(pin[4:])],)]
    if pin is not None:
        return [{"cpu": cpus, "gpu": gpus, "cpu+gpu": cpus + gpus}[pin]]
    able = tuple(d for d in gpus if d.computes(dtype))
    alone = [d for d in (cpus, able) if d] or [gpus]
    return [*alone, cpus + able] if len(alone) == 2 else alone


def _decided(node: Expr, p: Problem, c: Choice, machine: Machine, *, free: bool, is_pinned: bool) -> ProductPlan:
    """The choice as a plan. free: the moment decides which worker of its kind computes it."""
    setting = setting_of(machine)
    owner = np.repeat(c.cut.owner, c.chain)
    names, kinds = c.slots.names, c.slots.kinds
    panels = panel_sizes(p, c.cut.layers * c.chain)
    return ProductPlan(
        name=node.name,
        m=p.m,
        n=p.n,
        k=p.k,
        dtype=p.dtype,
        batch=p.batch,
        grid=TileGrid(tuple(c.cut.m), tuple(c.cut.n), panels),
        strips=c.strips,
        slots=tuple(None if free else names[o] for o in owner),
        kinds=tuple(kinds[o] for o in owner),
        pinned=is_pinned,
        flops=p.flops,
        seconds=c.seconds,
        area_seconds=area_bound(p.flops, _rates(node.device, machine, p.dtype)),
        bytes_moved=c.bytes_moved,
        bytes_bound=_bytes_bound(node, p, c) if machine.is_cluster else 0.0,
        peak_bytes=peaks(Evaluation(p, c.cut, c.slots, setting), c, node.inputs[0] is node.inputs[1]),
        streamed=(p.a_read > 0, p.b_read > 0),
        pieces=piece_sizes(p, panels, max(c.cut.m), max(c.cut.n)) if p.a_read or p.b_read else (),
    )


def _rates(pin: str | None, machine: Machine, dtype: DType) -> list[float]:
    """Operations per second of every device that a pin allows."""
    return [d.rate(dtype) * d.threads for d in classes(pin, machine, dtype)[-1]]


def _bytes_bound(node: Expr, p: Problem, c: Choice) -> float:
    """The least that these workers must move with their shares of the work; all of both operands besides, where they
    lie on others. What tasks read themselves need not move, nor need one matrix twice. Memory sets no bound here: what
    a worker has received and has no room for goes to its disk."""
    m, n = np.asarray(c.cut.m, dtype=float), np.asarray(c.cut.n, dtype=float)
    work = np.broadcast_to(np.outer(m, n)[None, :, :, None], (p.batch, len(m), len(n), c.cut.layers)).ravel()
    by_worker = np.bincount(c.slots.worker[c.cut.owner], work)
    # of a batch, every worker may do whole products, and needs nothing from others
    shares = [float(s) for s in by_worker[by_worker > 0] / max(float(work.sum()), 1e-300)]
    held_a, held_b = not p.a_read, not p.b_read and node.inputs[0] is not node.inputs[1]
    free = (not held_a, not held_b)
    bound = bound_of_shares(p.m, p.n, p.k, p.itemsize, shares, free=free) if p.batch == 1 else 0.0
    kinds = {c.slots.units[w].kind for w in np.unique(c.slots.worker[c.cut.owner])}
    return bound + (held_a and p.a_at not in kinds) * p.a_bytes + (held_b and p.b_at not in kinds) * p.b_bytes


# -- memory ------------------------------------------------------------------------------------------------------------


def _check_memory(node: Expr, p: Problem, c: Choice, setting: Setting) -> None:
    """Raise InfeasiblePlan where the tasks at work at once on some worker need more than all of its memory. (Results at
    rest may go to its disk; what a task works on cannot.)"""
    if not c.bytes_over:
        return
    needed = Evaluation(p, c.cut, c.slots, setting).working_bytes(c.chain)
    short = [(n - u.memory, n, u) for n, u in zip(needed, c.slots.units, strict=True) if n > u.memory]
    if not short:
        return
    _, need, unit = max(short, key=lambda s: s[0])
    gm, gn, gk = len(c.cut.m), len(c.cut.n), c.cut.layers * c.chain
    what = {"cpu": "a CPU worker", "gpu": "a GPU"}[unit.kind]
    raise InfeasiblePlan(
        f"{_spoken(node)} needs {format_bytes(math.ceil(need))} on {unit.name} for one panel of a {gm}x{gn}x{gk} grid, "
        f"{unit.name} allows {format_bytes(unit.memory)}; smallest machine that fits: {what} with "
        f"{format_bytes(math.ceil(need))}"
    )


def _spoken(node: Expr) -> str:
    """A product as the user wrote it, by the operands' names where they have some."""
    names = [describe(x).split(" is ")[0] for x in node.inputs]
    if all(n.startswith("'") for n in names):
        return f"'{names[0][1:-1]} @ {names[1][1:-1]}'"
    return f"'{node.op.name}' of {describe(node.inputs[0])} and {describe(node.inputs[1])}"
