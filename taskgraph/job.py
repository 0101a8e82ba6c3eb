"""Jobs as data: one task each, or a block that lies somewhere from the start."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from taskgraph.chunks import numblocks
from taskgraph.expr import Chunks, DType, Expr
from taskgraph.layout import LYING, MADE
from taskgraph.lying import Lying, homes
from taskgraph.passes import Group, is_number
from taskgraph.plan import Plan

Index = tuple[int, ...]
#: The number of the job whose result is taken, and how many bytes of it.
Need = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """One task, or (where `home` names a worker) a block that lies there from the start.

    kind: the device class that it may run on; slot, pinned, stays: as in the tag; product: of a tile, the name of its
    product. needs: the results that it takes, each once. flops: operations of a product, at the device's rate for that
    dtype; work: other operations, an element each. nbytes: of the result; scratch: bytes held only while it runs.
    is_view: the result is a part of what it takes, not a copy of it; is_strided: one that is not in one piece. pairs:
    operands come to a device in so many pairs, of which it has two at a time; 0: all at once.
    """

    label: str
    kind: str
    nbytes: int
    dtype: DType
    needs: tuple[Need, ...] = ()
    slot: str | None = None
    pinned: bool = False
    flops: float = 0.0
    work: float = 0.0
    scratch: int = 0
    home: str | None = None
    stays: bool = False
    product: str = ""
    is_view: bool = False
    is_strided: bool = False
    pairs: int = 0


@dataclass
class Jobs:
    """All jobs of a plan, needs before those who need them, and the numbers of those that hold its results."""

    plan: Plan
    where: Lying = field(default_factory=dict)
    near: dict[Expr, Callable[[Index], str | None]] = field(default_factory=dict)  # of operands' blocks
    in_place: set[Expr] = field(default_factory=set)  # `rechunk`s that take parts of blocks where these lie
    items: list[Job] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    first: dict[Expr, int] = field(default_factory=dict)
    numbers: dict[Expr, list[int]] = field(default_factory=dict)  # where blocks are not in a row behind `first`
    parts: dict[tuple[Expr, bool, Chunks], dict[Index, int]] = field(default_factory=dict)  # taken out of blocks
    _dealt: int = 0
    _names: dict[Expr, str] = field(default_factory=dict)
    _alike: Counter[str] = field(default_factory=Counter)

    def label(self, x: Expr, index: Iterable[int], more: str = "") -> str:
        """What people call the job of a block: "matmul[0,1]"; "matmul#2[0,1]" in the next expression of that name."""
        if x not in self._names:
            name = (x.params.get("name") if lies(x) else None) or x.label
            self._alike[name] += 1
            self._names[x] = name if self._alike[name] == 1 else f"{name}#{self._alike[name]}"
        return f"{self._names[x]}[{','.join(map(str, index))}]{more}"

    def add(self, job: Job) -> int:
        """Append a job; gives its number."""
        self.items.append(job)
        return len(self.items) - 1

    def whole(self, number: int) -> Need:
        """All of a job's result."""
        return number, self.items[number].nbytes

    def block(self, x: Expr, index: Index) -> int:
        """The job whose result is that block."""
        at = 0
        for i, blocks in zip(index, x.chunks, strict=True):
            at = at * len(blocks) + i
        return self.at(x, at)

    def at(self, x: Expr, place: int) -> int:
        """The job of the block at that place in row-major order."""
        return self.numbers[x][place] if x in self.numbers else self.first[x] + place

    def lay(self, x: Expr) -> None:
        """Blocks that are there already: where they lie, or dealt to the workers that hold data; those that stand for
        what the graph makes, where tiles need them."""
        holders = self.plan.machine.of_kind("cpu") or self.plan.machine.devices
        count, many = math.prod(numblocks(x.chunks)), len(holders)
        self.first[x] = len(self.items)
        dealt = [holders[(self._dealt + i * many // count) % many].name for i in range(count)]
        known = homes(x, self.where)
        kinds = {d.name: d.kind for d in self.plan.machine.devices}
        if x.params.get("id") == MADE and (near := self.near.get(x)):
            wanted = [near(index) or "" for index, _ in blocks_of(x.chunks)]
            dealt = [w if kinds.get(w) == kinds[d] else d for w, d in zip(wanted, dealt, strict=True)]
        for (index, size), home in zip(blocks_of(x.chunks), known or dealt, strict=True):
            self.add(Job(self.label(x, index), kinds[home], size * x.dtype.itemsize, x.dtype, home=home))
        self._dealt += count if count < many and known is None else 0


def blocks_of(chunks: Chunks) -> Iterator[tuple[Index, int]]:
    """Index and number of elements of every block, row-major."""
    for index in itertools.product(*[range(len(c)) for c in chunks]):
        yield index, math.prod([c[i] for c, i in zip(chunks, index, strict=True)])


def lies(x: Expr) -> bool:
    """Whether it is data that exist before the run."""
    return x.op.name in LYING


def outside(g: Group) -> list[Expr]:
    """Whose blocks the elementwise work of a group takes, in order, each once."""
    members = set(g.nodes)
    found = dict.fromkeys(i for n in g.behind for i in n.inputs if (i not in members or lies(i)) and not is_number(i))
    found.update(dict.fromkeys(n for n in g.nodes if lies(n)))
    return list(found)


def work(g: Group) -> float:
    """Operations of a group's elementwise work, an element of its result."""
    return sum(n.op.flops(n) for n in g.behind if not lies(n)) / max(1, g.result.size)


def between(g: Group) -> float:
    """Bytes that a group's elementwise work holds beyond its result, an element of that: each value from where it is
    made to its last use."""
    made = [n for n in g.behind if not lies(n)]
    last = {i: at for at, n in enumerate(made) for i in n.inputs}
    held = most = 0
    for at, n in enumerate(made):
        held += n.nbytes
        most = max(most, held)
        held -= sum(i.nbytes for i in made[:at] if last.get(i) == at)
    return max(0, most - g.result.nbytes) / max(1, g.result.size)


def broadcast(x: Expr, index: Index) -> Index:
    """The block of `x` that meets the block at an index of what `x` is broadcast to."""
    own = index[len(index) - x.ndim :]
    return tuple([i if len(c) > 1 else 0 for i, c in zip(own, x.chunks, strict=True)])
