"""The jobs of a plan: what will run, on which device class, from which blocks and for which blocks, made from shapes.

Design note. Jobs are read off the planned expressions and the `ProductPlan`s, not off the Dask graph: a made-up problem
has placeholders, which cannot be lowered; expressions know operations and bytes of everything, tasks only know their
keys; and it costs microseconds a job. The price is that this file must group and cut as `lower` does: it calls the same
passes (`align`, `group`, `is_small`), and a test compares the counts. What is lowered onto dask.array is drawn with a
coarser pen: reductions as a step a block and one that combines, rechunks by the exact overlap of the blocks, anything
else as a step a block that takes the blocks at its relative place.

Data that exist before the run (placeholders, variables, arrays of the user's) lie in equal shares on the CPU workers,
as the cost model assumes.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from taskgraph.chunks import numblocks, offsets
from taskgraph.cost import COPY_BYTES_PER_S
from taskgraph.expr import Chunks, DType, Expr, topological
from taskgraph.gathering import Gathered, Piece, gathered
from taskgraph.passes import ELEMENTWISE_PER_S, Group, align, group, is_number, is_small
from taskgraph.plan import Plan, ProductPlan
from taskgraph.problem import PIECE_BYTES, reading_rate
from workers.kernels import SCRATCH_BYTES

#: Sources that are not made but there already.
LYING = ("placeholder", "variable", "constant", "dask", "part")

Index = tuple[int, ...]
#: The number of the job whose result is taken, and how many bytes of it.
Need = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """One task, or (where `home` names a worker) a block that lies there from the start.

    kind: the device class that it may run on; slot, pinned, stays: as in the tag; product: of a tile, the name of its
    product. needs: the results that it takes, each once. flops: operations of a product, at the device's rate for that dtype; work: other operations, an element each.
    nbytes: of the result; scratch: bytes held only while it runs.
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


@dataclass
class Jobs:
    """All jobs of a plan, needs before those who need them, and the numbers of those that hold its results."""

    plan: Plan
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
        """Blocks that are there already, dealt to the workers that hold data."""
        holders = self.plan.machine.of_kind("cpu") or self.plan.machine.devices
        count, many = math.prod(numblocks(x.chunks)), len(holders)
        self.first[x] = len(self.items)
        for i, (index, size) in enumerate(blocks_of(x.chunks)):
            home = holders[(self._dealt + i * many // count) % many]
            self.add(Job(self.label(x, index), home.kind, size * x.dtype.itemsize, x.dtype, home=home.name))
        self._dealt += count if count < many else 0


def jobs_of(plan: Plan) -> Jobs:
    """Every job of a planned graph.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0), tg.Device("cpu", 2**34, 50.0)])
    >>> x = tg.placeholder("float32", (4096, 4096), name="X")
    >>> [job.label for job in jobs_of(tg.plan(x @ x, m)).items if job.flops]
    ['matmul[0,0]', 'matmul[1,0]']
    """
    plan = align(plan)
    jobs = Jobs(plan)
    groups = group(plan)
    if is_small(plan, groups):
        _one_job(jobs)
    else:
        for g in groups:
            _add_group(jobs, g)
    for root in dict.fromkeys(plan.roots):
        jobs.results += [jobs.at(root, n) for n in range(math.prod(numblocks(root.chunks)))]
    return jobs


def blocks_of(chunks: Chunks) -> Iterator[tuple[Index, int]]:
    """Index and number of elements of every block, row-major."""
    for index in itertools.product(*[range(len(c)) for c in chunks]):
        yield index, math.prod([c[i] for c, i in zip(chunks, index, strict=True)])


def lies(x: Expr) -> bool:
    """Whether it is data that exist before the run."""
    return x.op.name in LYING


def _slot(jobs: Jobs, x: Expr) -> tuple[str | None, bool]:
    if x.device is None or ":" not in x.device or x.op.name == "dask":
        return None, False
    return jobs.plan.machine.of_kind("gpu")[int(x.device[4:])].name, True


def _one_job(jobs: Jobs) -> None:
    """A graph of little work is one task; its results are counted as one."""
    nodes = topological(jobs.plan.roots)
    for n in nodes:
        if lies(n):
            jobs.lay(n)
    rest = [n for n in nodes if not lies(n)]
    if rest:
        roots = [r for r in dict.fromkeys(jobs.plan.roots) if not lies(r)]
        made = jobs.add(
            Job(
                f"{roots[0].label}-step",
                jobs.plan.machine.home,
                sum(r.nbytes for r in roots),
                roots[0].dtype,
                tuple([jobs.whole(jobs.first[n]) for n in nodes if lies(n)]),
                flops=sum(n.op.flops(n) for n in rest if n.op.kind == "product"),
                work=sum(n.op.flops(n) for n in rest if n.op.kind != "product"),
            )
        )
        jobs.first.update(dict.fromkeys(roots, made))


def _add_group(jobs: Jobs, g: Group) -> None:
    for n in g.nodes:
        if lies(n):
            jobs.lay(n)
    node = g.result
    if lies(node):
        return
    if g.product is not None:
        add_product(jobs, g, g.product, jobs.plan.products[g.product])
    elif node.op.kind == "array":
        _add_array(jobs, node)
    else:
        _add_blocks(jobs, g)


# -- products ----------------------------------------------------------------------------------------------------------


def add_product(jobs: Jobs, g: Group, node: Expr, planned: ProductPlan) -> None:
    """The jobs of a product: the one place that knows how a `ProductPlan` hands out tiles, panels and strips.

    A chain of panels is a job each, which takes what the one before gave; where a tile has several chains, or strips, a
    job for each strip adds up its part of what they gave. The last job of a tile does the epilogue.
    """
    a, b = node.inputs
    ta, tb = node.params["ta"], node.params["tb"]
    left, right = (_side(jobs, planned, side, x, first) for side, (x, first) in enumerate(((a, ta), (b, not tb))))
    runs_a, runs_b = left.runs, right.runs
    rows, strips, item = len(planned.grid.m), planned.strips, node.dtype.itemsize
    lead = tuple(range(n) for n in numblocks(node.chunks[:-2]))
    where: dict[Index, int] = {}
    finished = _finisher(jobs, g, node)
    heights, widths = node.chunks[-2], node.chunks[-1]
    for tile, (*batch, i, j) in enumerate(itertools.product(*lead, range(rows), range(len(widths)))):
        first = tile * planned.panels
        if planned.mirrored and i > j:
            above = where[*batch, j, i]
            nbytes = jobs.items[above].nbytes
            label = jobs.label(node, (*batch, i, j), " turned")
            work, whole, of = float(nbytes // item), jobs.whole(above), _of_tile(planned, first)
            made = Job(label, nbytes=nbytes, dtype=node.dtype, needs=(whole,), work=work, **of)
            where[*batch, i, j] = jobs.add(made)
            continue
        of_batch = math.prod([c[n] for c, n in zip(node.chunks[:-2], batch, strict=True)])
        line_a = [left.line((*_lead(a, batch), i * strips + r)) for r in range(strips)]
        line_b = right.line((*_lead(b, batch), j))
        size = of_batch * planned.grid.m[i] * widths[j]
        chains, ends = planned.chains(tile), []
        for chain in chains:
            before: list[int] = []
            for panel in chain:
                operands = [n for line in (*line_a, line_b) if line for n in line[panel]]
                many = before or any(run[panel].stop - run[panel].start > 1 for run in (runs_a, runs_b))
                read, piece = _read_by(node, planned, (*batch, i, j), runs_a[panel], runs_b[panel])
                where_it_runs = _of_tile(planned, first + panel)
                joined = (left.joined(i * strips, first + panel) + right.joined(j, first + panel)) * of_batch
                job = Job(
                    jobs.label(node, (*batch, i, j), f" panel {panel}" if planned.panels > 1 else ""),
                    nbytes=size * item,
                    dtype=node.dtype,
                    needs=tuple([jobs.whole(n) for n in dict.fromkeys([*before, *operands])]),
                    flops=2.0 * size * planned.grid.k[panel],
                    work=(read + joined / COPY_BYTES_PER_S) * ELEMENTWISE_PER_S,
                    scratch=_scratch(planned, first + panel, size * item, bool(before)) * bool(many)
                    + max(piece, min(int(joined), 2 * PIECE_BYTES)),
                    **where_it_runs,
                )
                before = [jobs.add(job)]
            ends.append((first + chain[-1], before[0]))
        if len(chains) == strips == 1:
            where[*batch, i, j] = last = ends[0][1]
            jobs.items[last] = finished(jobs.items[last], (*batch, i, j), size)
            continue
        for r in range(strips):
            at, part = (*batch, i * strips + r, j), ends[r % len(ends)][0]
            size_r = of_batch * heights[i * strips + r] * widths[j]
            needs = tuple([(n, size_r * item) for _, n in ends])
            work = float(size_r * (len(ends) - 1))
            label = jobs.label(node, at, " sum")
            made = Job(label, nbytes=size_r * item, dtype=node.dtype, needs=needs, work=work, **_of_part(planned, part))
            where[at] = jobs.add(finished(made, at, size_r))
    jobs.numbers[g.result] = [where[index] for index, _ in blocks_of(node.chunks)]


def _finisher(jobs: Jobs, g: Group, product: Expr) -> Callable[[Job, Index, int], Job]:
    """Gives the last job of a tile of that size with the epilogue: what it takes besides, and gives instead."""
    if not g.behind:
        return lambda job, index, size: job
    outside, each = _outside(g), _work(g)

    def finished(job: Job, index: Index, size: int) -> Job:
        more = [jobs.whole(jobs.block(x, _broadcast(x, index))) for x in outside]
        return replace(
            job,
            nbytes=size * g.result.dtype.itemsize,
            needs=tuple(dict.fromkeys([*job.needs, *more])),
            work=job.work + each * size,
            scratch=max(job.scratch, size * product.dtype.itemsize),
        )

    return finished


def _scratch(planned: ProductPlan, part: int, nbytes: int, is_chained: bool) -> int:
    """Bytes of the buffer in which a task makes what it adds to its result."""
    return nbytes if is_chained or planned.kinds[part] == "gpu" else min(nbytes, SCRATCH_BYTES)


def _read_by(node: Expr, planned: ProductPlan, at: Index, run_a: slice, run_b: slice) -> tuple[float, int]:
    """Seconds in which a part's task reads operands itself, and bytes of the largest pieces that it then has."""
    seconds, held, (*batch, i, j) = 0.0, 0, at
    flags, outer = (node.params["ta"], not node.params["tb"]), (planned.grid.m[i], planned.grid.n[j])
    for x, inner_first, size, run, read in zip(
        node.inputs, flags, outer, (run_a, run_b), planned.streamed, strict=True
    ):
        if read:
            lead = math.prod([c[n] for c, n in zip(x.chunks[:-2], _lead(x, batch), strict=True)])
            along_k = x.chunks[-2 if inner_first else -1][run]
            seconds += lead * size * sum(along_k) * x.dtype.itemsize / reading_rate(x)
            held += lead * size * max(along_k) * x.dtype.itemsize
    return seconds, held


def _of_part(planned: ProductPlan, part: int) -> dict[str, Any]:
    slot = planned.slots[part]
    return {"kind": planned.kinds[part], "slot": slot, "pinned": planned.pinned and slot is not None}


def _of_tile(planned: ProductPlan, part: int) -> dict[str, Any]:
    return {**_of_part(planned, part), "product": planned.name}


@dataclass(frozen=True)
class _Side:
    """An operand as a product's jobs take it.

    runs: for every panel, which of the stretches of k. line: for a block row of the left operand (block column of the
    right one) the jobs, a list for each panel; None where the tasks read it. joined: bytes that a part's task copies to
    join the pieces of which such a line is made.
    """

    runs: list[slice]
    line: Callable[[Index], list[list[int]] | None]
    joined: Callable[[int, int], float]


def _side(jobs: Jobs, planned: ProductPlan, side: int, x: Expr, inner_first: bool) -> _Side:
    k_axis, panels = -2 if inner_first else -1, planned.grid.k
    if planned.gathers[side]:
        return _gathered_side(jobs, planned, gathered(x, inner_first), x)
    runs, inner = _runs(x.chunks[k_axis], panels), range(len(x.chunks[k_axis]))
    read = planned.streamed[side]

    @functools.cache
    def line(at: Index) -> list[list[int]] | None:
        *lead, o = at
        if read:
            return None
        blocks = [jobs.block(x, (*lead, *((k, o) if inner_first else (o, k)))) for k in inner]
        return [blocks[run] for run in runs]

    return _Side(runs, line, lambda outer, part: 0.0)


def _gathered_side(jobs: Jobs, planned: ProductPlan, g: Gathered, x: Expr) -> _Side:
    runs, item = _runs(g.cut, planned.grid.k), x.dtype.itemsize
    parts = jobs.parts.setdefault((g.base, g.inner_first, x.chunks), {})

    def take(lead: Index, k: Piece, outer: Piece) -> int:
        index = (*lead, *g.index(k, outer))
        block = jobs.block(g.base, index)
        if g.slices(k, outer) is None:
            return block
        key = (*index, *(k.part or ()), -1, *(outer.part or ()))
        if key not in parts:
            of_lead = math.prod([c[n] for c, n in zip(x.chunks[:-2], lead, strict=True)])
            whole, nbytes = jobs.whole(block), of_lead * k.size * outer.size * item
            job = Job(jobs.label(x, index, " part"), jobs.items[block].kind, nbytes, x.dtype, (whole,), stays=True)
            parts[key] = jobs.add(job)
        return parts[key]

    @functools.cache
    def line(at: Index) -> list[list[int]]:
        *lead, o = at
        return [[take(tuple(lead), k, piece) for k in g.k[run] for piece in g.outer[o]] for run in runs]

    def joined(outer: int, part: int) -> float:
        """(A GPU joins in its own memory, in no time.)"""
        if len(g.outer[outer]) == 1 or planned.kinds[part] == "gpu":
            return 0.0
        panel = planned.grid.k[part % planned.panels]
        return float(planned.strips if not g.inner_first else 1) * sum(p.size for p in g.outer[outer]) * panel * item

    return _Side(runs, line, joined)


def _runs(cut: Sequence[int], panels: Sequence[int]) -> list[slice]:
    """For every panel, which of the operand's blocks along k it takes."""
    if len(panels) == 1:
        return [slice(0, len(cut))]
    ends = {end: n + 1 for n, end in enumerate(itertools.accumulate(cut))}
    at = [0, *(ends[end] for end in itertools.accumulate(panels))]
    return [slice(x, y) for x, y in itertools.pairwise(at)]


def _lead(x: Expr, batch: Sequence[int]) -> Index:
    own = batch[len(batch) - (x.ndim - 2) :] if x.ndim > 2 else []
    return tuple([i if len(c) > 1 else 0 for i, c in zip(own, x.chunks[:-2], strict=True)])


# -- everything else ---------------------------------------------------------------------------------------------------


def _add_blocks(jobs: Jobs, g: Group) -> None:
    """An elementwise group: a job a block."""
    node, outside, each = g.result, _outside(g), _work(g)
    slot, pinned = _slot(jobs, node)
    kind = jobs.plan.kind_of(node)
    start = len(jobs.items)
    for index, size in blocks_of(node.chunks):
        needs = tuple([jobs.whole(jobs.block(x, _broadcast(x, index))) for x in outside])
        nbytes = size * node.dtype.itemsize
        jobs.add(Job(jobs.label(node, index), kind, nbytes, node.dtype, needs, slot, pinned, work=each * size))
    jobs.first[node] = start


def _outside(g: Group) -> list[Expr]:
    """Whose blocks the elementwise work of a group takes, in order, each once."""
    members = set(g.nodes)
    found = dict.fromkeys(i for n in g.behind for i in n.inputs if (i not in members or lies(i)) and not is_number(i))
    found.update(dict.fromkeys(n for n in g.nodes if lies(n)))
    return list(found)


def _work(g: Group) -> float:
    """Operations of a group's elementwise work, an element of its result."""
    return sum(n.op.flops(n) for n in g.behind if not lies(n)) / max(1, g.result.size)


def _broadcast(x: Expr, index: Index) -> Index:
    own = index[len(index) - x.ndim :]
    return tuple([i if len(c) > 1 else 0 for i, c in zip(own, x.chunks, strict=True)])


def _add_array(jobs: Jobs, node: Expr) -> None:
    """An operation on dask.array: a job a block, on the blocks of its inputs that meet it."""
    taken = _TAKES.get(node.op.name)
    if taken is None and len(node.inputs) == 1 and "keepdims" in node.params and "axis" in node.params:
        return _add_reduction(jobs, node)
    slot, pinned = _slot(jobs, node)
    kind, count = jobs.plan.kind_of(node), math.prod(numblocks(node.chunks))
    each = node.op.flops(node) / max(1, node.size)
    needs_of = taken(jobs, node) if taken else _relative(jobs, node, count)
    made = []
    for at, (index, size) in enumerate(blocks_of(node.chunks)):
        nbytes = size * node.dtype.itemsize
        needs = tuple(needs_of(at, index))
        made.append(Job(jobs.label(node, index), kind, nbytes, node.dtype, needs, slot, pinned, work=each * size))
    jobs.first[node] = len(jobs.items)
    jobs.items += made
    return None


Needs = Callable[[int, Index], Iterable[Need]]


def _relative(jobs: Jobs, node: Expr, count: int) -> Needs:
    """The blocks at the same relative place in each input: whatever is not known better."""
    inputs = [(x, math.prod(numblocks(x.chunks))) for x in dict.fromkeys(node.inputs)]

    def needs(at: int, index: Index) -> Iterator[Need]:
        for x, blocks in inputs:
            for i in range(at * blocks // count, max(at * blocks // count + 1, -(-(at + 1) * blocks // count))):
                yield jobs.whole(jobs.at(x, i))

    return needs


def _permuted(jobs: Jobs, node: Expr) -> Needs:
    (x,), axes = node.inputs, node.params["axes"]
    return lambda at, index: [jobs.whole(jobs.block(x, tuple([index[axes.index(a)] for a in range(x.ndim)])))]


def _spread(jobs: Jobs, node: Expr) -> Needs:
    (x,) = node.inputs
    if any(len(c) > 1 and c != w for c, w in zip(x.chunks, node.chunks[node.ndim - x.ndim :], strict=True)):
        return _relative(jobs, node, math.prod(numblocks(node.chunks)))
    return lambda at, index: [jobs.whole(jobs.block(x, _broadcast(x, index)))]


def _overlapping(jobs: Jobs, node: Expr) -> Needs:
    """What a rechunk takes: of every block that it meets, the part that it meets."""
    (x,) = node.inputs
    meets = [_overlaps(old, new) for old, new in zip(x.chunks, node.chunks, strict=True)]

    def needs(at: int, index: Index) -> Iterator[Need]:
        for pieces in itertools.product(*[m[i] for m, i in zip(meets, index, strict=True)]):
            part = math.prod([length for _, length in pieces]) * x.dtype.itemsize
            yield jobs.block(x, tuple([i for i, _ in pieces])), part

    return needs


def _overlaps(old: Sequence[int], new: Sequence[int]) -> list[list[tuple[int, int]]]:
    """For every new block, the old ones that it meets and the length of the overlap.

    >>> _overlaps((4, 4), (3, 5))
    [[(0, 3)], [(0, 1), (1, 4)]]
    """
    starts, found = offsets(old), []
    for low, size in zip(offsets(new), new, strict=True):
        mine, i = [], max(0, bisect.bisect_right(starts, low) - 1)
        while i < len(old) and starts[i] < low + size:
            length = min(low + size, starts[i] + old[i]) - max(low, starts[i])
            if length > 0:
                mine.append((i, length))
            i += 1
        found.append(mine)
    return found


_TAKES: dict[str, Callable[[Jobs, Expr], Needs]] = {
    "rechunk": _overlapping,
    "permute_dims": _permuted,
    "broadcast_to": _spread,
}


def _add_reduction(jobs: Jobs, node: Expr) -> None:
    """A job a block of the input, and one a block of the result that combines what they gave."""
    (x,), axes, keepdims = node.inputs, node.params["axis"], node.params["keepdims"]
    axes = {a % x.ndim for a in ((axes,) if isinstance(axes, int) else axes if axes is not None else range(x.ndim))}
    slot, pinned = _slot(jobs, node)
    kind, item = jobs.plan.kind_of(node), node.dtype.itemsize
    gathered: dict[Index, list[int]] = {}
    for index, size in blocks_of(x.chunks):
        at = tuple([0 if a in axes else i for a, i in enumerate(index) if keepdims or a not in axes])
        kept = size // max(1, math.prod([x.chunks[a][index[a]] for a in axes]))
        job = Job(
            jobs.label(node, index, " part"),
            kind,
            kept * item,
            node.dtype,
            (jobs.whole(jobs.block(x, index)),),
            slot,
            pinned,
            work=float(size),
        )
        gathered.setdefault(at, []).append(jobs.add(job))
    jobs.first[node] = len(jobs.items)
    for index, size in blocks_of(node.chunks):
        mine = gathered.get(index, [])
        needs = tuple([jobs.whole(p) for p in mine])
        work = float(size * len(mine))
        jobs.add(Job(jobs.label(node, index), kind, size * item, node.dtype, needs, slot, pinned, work=work))
