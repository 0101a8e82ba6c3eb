"""Plans: which grid and which workers every product gets.

Design note. The plan walks the graph once, from the inputs up. For each product it weighs the classes of devices that
its pin allows (the CPU workers, the GPUs, both) and, for each, some grids; it predicts the seconds of each choice from
the measured rates, the cost of a task and the bytes that must move, and takes the least (cost.py). Tiles are dealt out
in proportion to speed, in runs along rows or columns of the grid, whichever moves fewer bytes, so that the tiles of one
block row (or column) share a worker and its copy of the operand.

The result holds the graph with every product's operands cut as its grid demands (`rechunk` expressions, so that the
cost is seen), and what was decided. All of it is data, made from shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from taskgraph.cost import Choice, Problem, best_grid, classes, even, is_small, problem_of, slots_of
from taskgraph.expr import DType, Expr, bind, consumers, labelled, pinned, rewrite, topological, with_inputs
from taskgraph.machine import Machine
from taskgraph.primitives import find

#: The Dask annotation under which every task of ours carries its `TaskTag`.
TAG = "taskgraph"

#: The span of `distributed.span` to which all our tasks belong that their user gave no other. Dask would make one for
#: every run, and keep it, and the workers' statistics of it, for ever (measured: 7 kB a step of training).
SPAN = {"name": ("taskgraph",), "ids": ("taskgraph",)}


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

    def __repr__(self) -> str:
        return f"ProductPlan({self})"

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
            f"{self.flops / 1e9:.3g} GFLOP in {self.seconds:.3g} s, {self.bytes_moved / 1e6:.3g} MB moved; "
            f"tiles on {where}"
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
        lines.append(f"  products together: {self.makespan:.3g} s, {self.bytes_moved / 1e6:.3g} MB between workers")
        return "\n".join(lines)

    __str__ = summary


def plan(roots: Sequence[Expr], machine: Machine) -> Plan:
    """Choose a grid and workers for every product that the roots need: pure, nothing runs.

    Raises ValueError where an expression is pinned to a device that the machine lacks.
    """
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
        new = _cut(new, decided, often)
        products[new] = replace(decided, name=new.name)
        return new

    return Plan(rewrite(roots, rule), products, machine)


def _check_pin(node: Expr, machine: Machine) -> None:
    pin = node.device or ""
    gpus = machine.of_kind("gpu")
    if pin.startswith("gpu") and (not gpus or (":" in pin and int(pin[4:]) >= len(gpus))):
        have = f"only {len(gpus)} GPU-pinned worker(s)" if gpus else "no GPU-pinned worker"
        raise ValueError(
            f"'{node.op.name}' is pinned to {pin!r}, but this machine has {have}; connect to a cluster that has it "
            "(tg.LocalCluster(gpus=...), or emulated_gpus=... to try it), or take the pin away"
        )
    if pin == "cpu" and not machine.of_kind("cpu"):
        raise ValueError(f"'{node.op.name}' is pinned to 'cpu', but this machine has no CPU worker")


# -- one product -------------------------------------------------------------------------------------------------------


def choose(node: Expr, machine: Machine) -> ProductPlan:
    """The cheapest choice for one product: over classes of devices, and for each over grids."""
    p = problem_of(node)
    home = machine.of_kind(machine.home)
    if node.device in (None, machine.home) and is_small(p, home[0], machine):
        seconds = machine.task_seconds + p.flops / home[0].rate(p.dtype)
        alone = Choice(0.0, seconds, 0.0, p.m_blocks, p.n_blocks, 1, (1,), True)
        return _decided(p, alone, (None,), (machine.home,), False)
    options = []
    for order, (devices, handicap) in enumerate(classes(node.device, machine, p.dtype)):
        slots = slots_of(devices, p.dtype)
        choice = best_grid(p, slots, machine)
        options.append((choice.bytes_over, choice.seconds / handicap, order, choice, slots))
    *_, choice, slots = min(options, key=lambda o: o[:3])
    is_pinned = ":" in (node.device or "")
    if sum(choice.counts) == 1 and set(slots.kinds) == {machine.home} and not is_pinned:
        return _decided(p, choice, (None,) * len(slots), slots.kinds, False)  # let the moment decide
    return _decided(p, choice, slots.names, slots.kinds, is_pinned)


def _decided(p: Problem, c: Choice, names: Sequence[str | None], kinds: Sequence[str], is_pinned: bool) -> ProductPlan:
    """The choice with its tiles handed out: each slot's run of them, along rows or columns of the grid."""
    gm, gn = len(c.m), len(c.n)
    run = [slot for slot, count in enumerate(c.counts) for _ in range(count)]
    order = range(len(run)) if c.by_rows else _by_columns(p.batch, gm, gn)
    placed = dict(zip(order, run, strict=True))
    return ProductPlan(
        name=p.name,
        m=p.m,
        n=p.n,
        k=p.k,
        dtype=p.dtype,
        batch=p.batch,
        grid=TileGrid(tuple(c.m), tuple(c.n), _k_blocks(p, c.panels)),
        panels=c.panels,
        slots=tuple(names[placed[t]] for t in range(len(run))),
        kinds=tuple(kinds[placed[t]] for t in range(len(run))),
        pinned=is_pinned,
        flops=p.flops,
        seconds=c.seconds,
        bytes_moved=c.bytes_moved,
    )


def _k_blocks(p: Problem, panels: int) -> tuple[int, ...]:
    return p.k_blocks if len(p.k_blocks) >= panels else even(p.k, panels)


def _by_columns(batch: int, gm: int, gn: int) -> list[int]:
    return [b * gm * gn + i * gn + j for b in range(batch) for j in range(gn) for i in range(gm)]


# -- operands cut as the grid wants them -------------------------------------------------------------------------------


def _cut(node: Expr, planned: ProductPlan, often: Sequence[bool]) -> Expr:
    """The product with its operands cut along m and n as the grid wants them. Along k they stay as they lie (a tile's
    task takes views where the cuts of the two differ), unless k runs in panels apart."""
    grid, flags = planned.grid, (node.params["ta"], not node.params["tb"])
    operands = []
    for x, outer, inner_first, dear in zip(node.inputs, (grid.m, grid.n), flags, often, strict=True):
        lead = node.chunks[node.ndim - x.ndim : -2]
        lead = tuple((1,) if s == 1 else o for s, o in zip(x.shape[:-2], lead, strict=True))
        k = grid.k if planned.panels > 1 or x.op.kind == "source" else x.chunks[-2 if inner_first else -1]
        operands.append(relayout(x, (*lead, *((k, outer) if inner_first else (outer, k))), dear))
    return with_inputs(node, tuple(operands))


def relayout(x: Expr, chunks: tuple[tuple[int, ...], ...], used_often: bool = False) -> Expr:
    """`x` in those blocks: made so where it is a source (a dear one that others use, too, is made once), else cut."""
    if x.chunks == chunks:
        return x
    with pinned(x.device), labelled(x.label):
        if x.op.kind == "source" and not (used_often and x.op.name == "random"):
            return bind(x.op, **{**x.params, "chunks": chunks})
        base = x.inputs[0] if x.op.name == "rechunk" else x
        return base if base.chunks == chunks else bind(find("rechunk"), base, chunks=chunks)
