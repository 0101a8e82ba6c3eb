"""The jobs of one product: panels, chains of them, and sums of what different workers have of a tile."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskgraph.chunks import numblocks, refine
from taskgraph.cost import COPY_BYTES_PER_S
from taskgraph.expr import Expr
from taskgraph.gathering import Gathered, Piece, gathered, stretches
from taskgraph.job import Index, Job, Jobs, between, blocks_of, broadcast, outside, work
from taskgraph.passes import ELEMENTWISE_PER_S, Group
from taskgraph.plan import ProductPlan
from taskgraph.problem import reading_rate
from workers.kernels import SCRATCH_BYTES

#: Beside a piece that a task reads, what it is read through (two cells of random numbers, say).
READ_THROUGH_BYTES = 2**20


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

    @functools.cache
    def cut_of(panel: int, joined: tuple[int, ...]) -> tuple[int, ...]:
        """The stretches of k whose products a task adds up."""
        return stretches(refine(left.cut[runs_a[panel]], right.cut[runs_b[panel]]), joined)

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
        joined_a = [left.joined((*_lead(a, batch), i * strips + r)) for r in range(strips)]
        joined_b = right.joined((*_lead(b, batch), j))
        size = of_batch * planned.grid.m[i] * widths[j]
        chains, ends = planned.chains(tile), []
        for chain in chains:
            before: list[int] = []
            for panel in chain:
                operands = [n for line in (*line_a, line_b) if line for n in line[panel]]
                read, piece = _read_by(node, planned, (*batch, i, j), runs_a[panel], runs_b[panel])
                where_it_runs = _of_tile(planned, first + panel)
                is_gpu = where_it_runs["kind"] == "gpu"
                cut = cut_of(panel, tuple([n for n in (*joined_a, joined_b) if n]))
                copied = (sum(joined_a) + joined_b * strips) * planned.grid.k[panel]
                job = Job(
                    jobs.label(node, (*batch, i, j), f" panel {panel}" if planned.panels > 1 else ""),
                    nbytes=size * item,
                    dtype=node.dtype,
                    needs=tuple([jobs.whole(n) for n in dict.fromkeys([*before, *operands])]),
                    flops=2.0 * size * planned.grid.k[panel],
                    work=(read + (0 if is_gpu else copied) / COPY_BYTES_PER_S) * ELEMENTWISE_PER_S,
                    scratch=_scratch(is_gpu, size * item // strips) * (len(cut) > 1)
                    + piece * (2 if is_gpu else 1)
                    + (max(joined_a) + joined_b) * max(cut),
                    pairs=len(cut),
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
            adding = float(size_r * (len(ends) - 1))
            label = jobs.label(node, at, " sum")
            held = (len(ends).bit_length() - 2) * size_r * item  # sums of halves, as `tree_add` makes them
            made = Job(
                label,
                nbytes=size_r * item,
                dtype=node.dtype,
                needs=needs,
                work=adding,
                scratch=max(0, held),
                **_of_part(planned, part),
            )
            where[at] = jobs.add(finished(made, at, size_r))
    jobs.numbers[g.result] = [where[index] for index, _ in blocks_of(node.chunks)]


def _finisher(jobs: Jobs, g: Group, product: Expr) -> Callable[[Job, Index, int], Job]:
    """Gives the last job of a tile of that size with the epilogue: what it takes besides, and gives instead."""
    if not g.behind:
        return lambda job, index, size: job
    others, each, passing = outside(g), work(g), between(g)

    def finished(job: Job, index: Index, size: int) -> Job:
        more = [jobs.whole(jobs.block(x, broadcast(x, index))) for x in others]
        return replace(
            job,
            nbytes=size * g.result.dtype.itemsize,
            needs=tuple(dict.fromkeys([*job.needs, *more])),
            work=job.work + each * size,
            scratch=max(job.scratch, size * product.dtype.itemsize + int(passing * size)),
        )

    return finished


def _scratch(is_gpu: bool, nbytes: int) -> int:
    """Bytes of the buffer in which a task makes the products that it adds to its first."""
    return nbytes if is_gpu else min(nbytes, SCRATCH_BYTES)


def _read_by(node: Expr, planned: ProductPlan, at: Index, run_a: slice, run_b: slice) -> tuple[float, int]:
    """Seconds in which a part's task reads operands itself, and bytes of the largest pieces that it then has. Of a tile
    in strips it reads the left operand strip by strip, and for each all of the right one."""
    seconds, held, (*batch, i, j) = 0.0, 0, at
    flags, outer = (node.params["ta"], not node.params["tb"]), (planned.grid.m[i], planned.grid.n[j])
    strips = planned.strips
    for x, inner_first, size, run, read, parts, times in zip(
        node.inputs, flags, outer, (run_a, run_b), planned.streamed, (strips, 1), (1, strips), strict=True
    ):
        if read:
            lead = math.prod([c[n] for c, n in zip(x.chunks[:-2], _lead(x, batch), strict=True)])
            along_k = x.chunks[-2 if inner_first else -1][run]
            seconds += times * lead * size * sum(along_k) * x.dtype.itemsize / reading_rate(x)
            held += lead * -(-size // parts) * max(along_k) * x.dtype.itemsize + READ_THROUGH_BYTES
    return seconds, held


def _of_part(planned: ProductPlan, part: int) -> dict[str, Any]:
    slot = planned.slots[part]
    return {"kind": planned.kinds[part], "slot": slot, "pinned": planned.pinned and slot is not None}


def _of_tile(planned: ProductPlan, part: int) -> dict[str, Any]:
    return {**_of_part(planned, part), "product": planned.name}


@dataclass(frozen=True)
class _Side:
    """An operand as a product's jobs take it.

    cut: the stretches of k; runs: for every panel, which of them. line: for a block row of the left operand (block
    column of the right one) the jobs, a list for each panel; None where the tasks read it. joined: bytes, for each of
    k, that a task joins of the pieces of which such a line is made.
    """

    cut: tuple[int, ...]
    runs: list[slice]
    line: Callable[[Index], list[list[int]] | None]
    joined: Callable[[Index], int]


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

    return _Side(x.chunks[k_axis], runs, line, lambda at: 0)


def _gathered_side(jobs: Jobs, planned: ProductPlan, g: Gathered, x: Expr) -> _Side:
    runs, item = _runs(g.cut, planned.grid.k), x.dtype.itemsize
    parts = jobs.parts.setdefault((g.base, g.inner_first, x.chunks), {})

    def of_lead(lead: Sequence[int]) -> int:
        return math.prod([c[n] for c, n in zip(x.chunks[:-2], lead, strict=True)])

    def take(lead: Index, k: Piece, outer: Piece) -> int:
        index = (*lead, *g.index(k, outer))
        block = jobs.block(g.base, index)
        if g.slices(k, outer) is None:
            return block
        key = (*index, *(k.part or ()), -1, *(outer.part or ()))
        if key not in parts:
            parts[key] = jobs.add(
                Job(
                    jobs.label(x, index, f" part {len(parts)}"),
                    jobs.items[block].kind,
                    of_lead(lead) * k.size * outer.size * item,
                    x.dtype,
                    (jobs.whole(block),),
                    stays=True,
                    is_view=True,
                    is_strided=g.is_strided(k, outer, of_lead(lead)),
                )
            )
        return parts[key]

    @functools.cache
    def line(at: Index) -> list[list[int]]:
        *lead, o = at
        return [[take(tuple(lead), k, piece) for k in g.k[run] for piece in g.outer[o]] for run in runs]

    def joined(at: Index) -> int:
        *lead, o = at
        return of_lead(lead) * sum(p.size for p in g.outer[o]) * item if len(g.outer[o]) > 1 else 0

    return _Side(g.cut, runs, line, joined)


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
