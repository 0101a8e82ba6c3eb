"""The jobs of a plan: what will run, on which device class, from which blocks and for which blocks, made from shapes.

Design note. Jobs are read off the planned expressions and the `ProductPlan`s, not off the Dask graph: a made-up problem
has placeholders, which cannot be lowered; expressions know operations and bytes of everything, tasks only know their
keys; and it costs microseconds a job. The price is that this file must group and cut as `lower` does: it calls the same
passes (`align`, `group`, `is_small`), and a test compares the counts. What is lowered onto dask.array is drawn with a
coarser pen: reductions as a step a block and one that combines, rechunks by the exact overlap of the blocks, anything
else as a step a block that takes the blocks at its relative place.

Data that exist before the run (placeholders, variables, arrays of the user's) lie where they are known to lie (kept
ones on a cluster), and otherwise in equal shares on the CPU workers, as the cost model assumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from taskgraph.chunks import numblocks, overlaps
from taskgraph.cost import COPY_BYTES_PER_S
from taskgraph.expr import Expr, topological
from taskgraph.gathering import parts_of
from taskgraph.job import Index, Job, Jobs, Need, between, blocks_of, broadcast, lies, outside, work
from taskgraph.lower import near_tiles
from taskgraph.lying import Lying
from taskgraph.passes import ELEMENTWISE_PER_S, Group, align, cut_in_place, group, is_small
from taskgraph.plan import Plan
from taskgraph.product_jobs import add_product

__all__ = ["Job", "Jobs", "Need", "jobs_of"]


def jobs_of(plan: Plan, where: Lying | None = None) -> Jobs:
    """Every job of a planned graph. where: the workers of kept blocks, as far as they are known.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0), tg.Device("cpu", 2**34, 50.0)])
    >>> x = tg.placeholder("float32", (4096, 4096), name="X")
    >>> [job.label for job in jobs_of(tg.plan(x @ x, m)).items if job.flops]
    ['matmul[0,0]', 'matmul[1,0]']
    """
    plan = align(plan)
    jobs = Jobs(plan, where or {}, near_tiles(plan), cut_in_place(plan))
    groups = group(plan)
    if is_small(plan, groups):
        _one_job(jobs)
    else:
        for g in groups:
            _add_group(jobs, g)
    for root in dict.fromkeys(plan.roots):
        jobs.results += [jobs.at(root, n) for n in range(math.prod(numblocks(root.chunks)))]
    return jobs


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
    elif node in jobs.in_place:
        _add_parts(jobs, node)
    elif node.op.kind == "array":
        _add_array(jobs, node)
    else:
        _add_blocks(jobs, g)


# -- everything else ---------------------------------------------------------------------------------------------------


def _add_blocks(jobs: Jobs, g: Group) -> None:
    """An elementwise group: a job a block."""
    node, others, each, passing = g.result, outside(g), work(g), between(g)
    slot, pinned = _slot(jobs, node)
    kind = jobs.plan.kind_of(node)
    start, kinds = len(jobs.items), {d.name: d.kind for d in jobs.plan.machine.devices}
    near = jobs.near.get(node) if slot is None else None
    for index, size in blocks_of(node.chunks):
        needs = tuple([jobs.whole(jobs.block(x, broadcast(x, index))) for x in others])
        nbytes = size * node.dtype.itemsize
        operations, scratch = each * size, int(passing * size)
        label, at = jobs.label(node, index), slot
        if near is not None and not needs and kinds.get(near(index) or "") == kind:
            at = near(index)
        jobs.add(Job(label, kind, nbytes, node.dtype, needs, at, pinned, work=operations, scratch=scratch))
    jobs.first[node] = start


def _add_parts(jobs: Jobs, node: Expr) -> None:
    """Parts of blocks where these lie: a job a block, which takes no time and no memory."""
    (base,) = node.inputs
    made = []
    for (_, size), (index, block, _, is_strided) in zip(blocks_of(node.chunks), parts_of(node), strict=True):
        label, whole = jobs.label(node, index), jobs.block(base, block)
        kind, nbytes, needs = jobs.items[whole].kind, size * node.dtype.itemsize, (jobs.whole(whole),)
        made.append(Job(label, kind, nbytes, node.dtype, needs, stays=True, is_view=True, is_strided=is_strided))
    jobs.first[node] = len(jobs.items)
    jobs.items += made


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
        # dask.array copies a part of half a block or less, so that the block can go
        is_view = node.op.name == "rechunk" and len(needs) == 1 and 2 * nbytes > jobs.items[needs[0][0]].nbytes
        operations = each * size
        if node.op.name == "rechunk" and not is_view:
            operations = nbytes / COPY_BYTES_PER_S * ELEMENTWISE_PER_S
        label = jobs.label(node, index)
        made.append(Job(label, kind, nbytes, node.dtype, needs, slot, pinned, work=operations, is_view=is_view))
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
    return lambda at, index: [jobs.whole(jobs.block(x, broadcast(x, index)))]


def _overlapping(jobs: Jobs, node: Expr) -> Needs:
    """What a rechunk takes: of every block that it meets, the part that it meets."""
    (x,) = node.inputs
    meets = [overlaps(old, new) for old, new in zip(x.chunks, node.chunks, strict=True)]

    def needs(at: int, index: Index) -> Iterator[Need]:
        for pieces in itertools.product(*[m[i] for m, i in zip(meets, index, strict=True)]):
            part = math.prod([length for _, length in pieces]) * x.dtype.itemsize
            yield jobs.block(x, tuple([i for i, _ in pieces])), part

    return needs


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
