"""The tasks of one planned product: panels, chains of them, and sums of what different workers have of a tile."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from dask._task_spec import Task, TaskRef

from taskgraph.chunks import numblocks, offsets, refine
from taskgraph.expr import Expr, digest
from taskgraph.plan import ProductPlan, TaskTag
from taskgraph.program import made
from workers.device_tile import run
from workers.kernels import Deferred, add_onto, epilogue, gemm_panel, streams, tree_add, turned

Key = Any  # (name, i, j, ...): a tuple of strings and numbers, which Dask's own type does not admit


class TaskLayer(NamedTuple):
    """Tasks under one name, the names of the layers that they take blocks of, and their annotations."""

    name: str
    tasks: dict[Key, Any]
    needs: set[str]
    tags: dict[Key, TaskTag]


class Epilogue(NamedTuple):
    """Elementwise work on a finished tile: `program(xp, *arguments)`, whose argument number `place` is the tile.

    others: the other arguments of the block at an index, in order; needs: the layers that they are blocks of.
    """

    program: Callable[..., Any]
    place: int
    others: Sequence[Callable[[tuple[int, ...]], Any]]
    needs: set[str]


def product_layers(
    node: Expr,
    planned: ProductPlan,
    name: str,
    name_a: str | None,
    name_b: str | None,
    epilogue: Epilogue | None = None,
) -> list[TaskLayer]:
    """The layers of a product whose blocks are to be (name, ..., i, j), of operands with these names; None: one that
    the tasks read themselves.

    A tile whose panels are all meant for one worker is a chain: each task adds its panel to what the one before gave.
    Otherwise every chain gives a partial tile, as a list of row strips where there are several; each strip goes by a
    key of its own to the worker that adds it up, so that only what is needed there moves. An epilogue runs in the task
    that has the tile's final sum.
    """
    stage = _Stage(node, planned, name, name_a, name_b, epilogue)
    for tile, index in enumerate(itertools.product(*map(range, stage.blocks))):
        stage.add_tile(tile, *index)
    return stage.layers()


def needed_by(node: Expr, planned: ProductPlan, side: int) -> Callable[[tuple[int, ...]], str | None]:
    """For each block of an operand (side 0 for the left one, 1 for the right), a worker whose tile needs it.

    Blocks that many tiles need are spread over them along a diagonal, so that every worker makes an equal share.
    """
    x, grid = node.inputs[side], planned.grid
    inner_first = node.params["ta"] if side == 0 else not node.params["tb"]
    runs = _runs(x.chunks[-2 if inner_first else -1], grid.k)
    panel_of = [panel for panel, run in enumerate(runs) for _ in range(run.stop - run.start)]
    batch, (gm, gn, gk) = numblocks(node.chunks[:-2]), grid.shape
    own, lead = len(batch) - (x.ndim - 2), _lead_of(x)

    def worker(index: tuple[int, ...]) -> str | None:
        outer, k = index[-1 if inner_first else -2], index[-2 if inner_first else -1]
        i, j = (outer // planned.strips, (outer + k) % gn) if side == 0 else ((outer + k) % gm, outer)
        b = 0
        for count, at in zip(batch, (*[0] * own, *_broadcast(lead, index[:-2])), strict=True):
            b = b * count + at
        return planned.slots[((b * gm + i) * gn + j) * gk + panel_of[k]]

    return worker


class _Stage:
    """The tasks as they are made, tile by tile."""

    def __init__(
        self,
        node: Expr,
        planned: ProductPlan,
        name: str,
        name_a: str | None,
        name_b: str | None,
        epilogue: Epilogue | None,
    ) -> None:
        a, b = node.inputs
        ta, tb = node.params["ta"], node.params["tb"]
        grid = planned.grid
        self.planned, self.name, self.epilogue = planned, name, epilogue
        self.blocks = (*numblocks(node.chunks[:-2]), len(grid.m), len(grid.n))
        self.lead_a, self.lead_b = _lead_of(a), _lead_of(b)
        cut_a, cut_b = (x.chunks[-2 if first else -1] for x, first in ((a, ta), (b, not tb)))
        self.lines_a = _by_panel(_lines(name_a, a, ta), _runs(cut_a, grid.k))
        self.lines_b = _by_panel(_lines(name_b, b, not tb), _runs(cut_b, grid.k))
        kernel = partial(_tile, ta=ta, tb=tb, strips=planned.strips)
        self.kernels = []
        for run_a, run_b in zip(_runs(cut_a, grid.k), _runs(cut_b, grid.k), strict=True):
            cuts = cut_a[run_a], cut_b[run_b]
            of_panel = partial(kernel, cuts=cuts, alike=cuts[0] == cuts[1])
            self.kernels.append((of_panel, partial(of_panel, chained=True)))
        self.parts, self.strips = (f"{node.label}-{what}-{digest(name)}" for what in ("partial", "strip"))
        needs = {n for n in (name_a, name_b) if n is not None}
        self.tasks = {n: TaskLayer(n, {}, set(), {}) for n in (self.parts, self.strips, name)}
        self.tasks[self.parts].needs.update(needs, {self.parts})
        self.tasks[self.strips].needs.add(self.parts)
        self.tasks[name].needs.update(needs, {self.parts, self.strips}, epilogue.needs if epilogue else ())

    def layers(self) -> list[TaskLayer]:
        """Those that have tasks, each needing only others."""
        there = {n: layer for n, layer in self.tasks.items() if layer.tasks}
        empty = self.tasks.keys() - there.keys()
        return [TaskLayer(n, x.tasks, x.needs - empty - {n}, x.tags) for n, x in there.items()]

    def put(self, key: Key, task: Task, tag: TaskTag) -> TaskRef:
        layer = self.tasks[key[0]]
        layer.tasks[key], layer.tags[key] = task, tag
        return TaskRef(key)

    def finish(self, at: tuple[int, ...], kernel: Callable[..., Any], *args: Any, tag: TaskTag) -> TaskRef:
        """The task that has the whole of a block, with the epilogue behind it."""
        key, e = (self.name, *at), self.epilogue
        if e is not None:
            then = _tile_then if kernel is not _add_up else _then
            kernel = partial(then, first=kernel, program=e.program, place=e.place, others=len(e.others))
            args = (*args, *[make(at) for make in e.others])
        return self.put(key, Task(key, run, kernel, *args), tag)

    def add_tile(self, tile: int, *index: int) -> None:
        planned, strips = self.planned, self.planned.strips
        *batch, i, j = index
        if planned.mirrored and i > j:
            above, tag = TaskRef((self.name, *batch, j, i)), planned.tag(tile, (*index, 0))
            self.put((self.name, *index), Task((self.name, *index), run, turned, above), tag)
            return
        left = [self.lines_a[_broadcast(self.lead_a, batch), i * strips + r] for r in range(strips)]
        right = self.lines_b[_broadcast(self.lead_b, batch), j]
        first = tile * planned.panels
        chains = planned.chains(tile) if planned.panels > 1 else [range(1)]
        is_whole = len(chains) == strips == 1
        ends = []
        for chain in chains:
            so_far: tuple[TaskRef, ...] = ()
            for panel in chain:
                kernel, tag = self.kernels[panel][bool(so_far)], planned.tag(first + panel, (*index, panel))
                args = (*so_far, *(ref for line in left for ref in line[panel]), *right[panel])
                if is_whole and panel == chain[-1]:
                    so_far = (self.finish(tuple(index), kernel, *args, tag=tag),)
                else:
                    key: Key = (self.parts, *index, panel)
                    so_far = (self.put(key, Task(key, run, kernel, *args), tag),)
            ends.append((first + chain[-1], so_far[0]))
        if not is_whole:
            self.add_sums(batch, i, j, ends)

    def add_sums(self, batch: Sequence[int], i: int, j: int, ends: Sequence[tuple[int, TaskRef]]) -> None:
        """The partial tiles that the chains' last tasks give, added up strip by strip."""
        planned, strips = self.planned, self.planned.strips
        for r in range(strips):
            at = (*batch, i * strips + r, j)
            pieces = []
            for number, (part, whole) in enumerate(ends):
                key: Key = (self.strips, *at, number)
                take = Task(key, operator.getitem, whole, r)
                pieces.append(self.put(key, take, planned.tag(part)) if strips > 1 else whole)
            part, _ = ends[r % len(ends)]
            self.finish(at, _add_up, *pieces, tag=planned.tag(part))


def _runs(cut: tuple[int, ...], panels: tuple[int, ...]) -> list[slice]:
    """For every panel, which of the operand's blocks along k it takes; their borders are among those of the cut."""
    if len(panels) == 1:
        return [slice(0, len(cut))]
    ends = {end: n + 1 for n, end in enumerate(itertools.accumulate(cut))}
    at = [0, *(ends[end] for end in itertools.accumulate(panels))]
    return [slice(a, b) for a, b in itertools.pairwise(at)]


def _lines(name: str | None, x: Expr, inner_first: bool) -> Iterator[tuple[tuple[Any, int], list[Any]]]:
    """For every block row of a left operand (block column of a right one), its blocks along k: made once, used by all
    the tiles that it meets."""
    *lead, first, second = numblocks(x.chunks)
    inner, outer = (first, second) if inner_first else (second, first)
    block = _deferred(x) if name is None else lambda index: TaskRef((name, *index))
    for at in itertools.product(*map(range, lead)):
        for o in range(outer):
            yield (at, o), [block((*at, *((k, o) if inner_first else (o, k)))) for k in range(inner)]


def _deferred(x: Expr) -> Callable[[tuple[int, ...]], Deferred]:
    """For the index of a block of a source, what a task reads it by."""
    make, starts = made(x), [offsets(c) for c in x.chunks]

    def block(index: tuple[int, ...]) -> Deferred:
        shape = tuple([c[i] for c, i in zip(x.chunks, index, strict=True)])
        return Deferred(make, tuple([s[i] for s, i in zip(starts, index, strict=True)]), shape, x.dtype)

    return block


def _by_panel(lines: Iterator[tuple[Any, list[Any]]], runs: Sequence[slice]) -> dict[Any, list[list[Any]]]:
    return {place: [line[run] for run in runs] for place, line in lines}


def _lead_of(x: Expr) -> list[bool]:
    """For each leading axis of an operand, whether it has several blocks."""
    return [len(c) > 1 for c in x.chunks[:-2]]


def _broadcast(lead: Sequence[bool], batch: Sequence[int]) -> tuple[int, ...]:
    own = batch[len(batch) - len(lead) :]
    return tuple([i if several else 0 for i, several in zip(own, lead, strict=True)])


# -- what the tasks compute --------------------------------------------------------------------------------------------


@streams
def _tile(
    xp: Any,
    *args: Any,
    ta: bool,
    tb: bool,
    strips: int,
    cuts: tuple[tuple[int, ...], tuple[int, ...]],
    alike: bool,
    chained: bool = False,
) -> Any:
    """A panel of a tile: the blocks of a's line along k, for every strip, then those of b's.

    cuts: how the two are cut along k; where they are not alike, each is looked at through views between all boundaries
    of both. chained: the first argument is what the panels before gave, to which this one is added. strips: where there
    are several, the result is a list of them.
    """
    before, tiles = (args[0], args[1:]) if chained else (None, args)
    of_a, of_b = cuts
    lefts: list[Any] = [tiles[r * len(of_a) : (r + 1) * len(of_a)] for r in range(strips)]
    rights: Any = tiles[strips * len(of_a) :]
    if not alike:
        both = refine(of_a, of_b)
        lefts = [_views(left, of_a, both, along_rows=ta) for left in lefts]
        rights = _views(rights, of_b, both, along_rows=not tb)
    found = [gemm_panel(xp, left, rights, transpose_a=ta, transpose_b=tb) for left in lefts]
    if chained:
        so_far: Any = before if strips > 1 else [before]
        found = [add_onto(xp, new, old) for new, old in zip(found, so_far, strict=True)]
    return found if strips > 1 else found[0]


def _views(tiles: Any, sizes: tuple[int, ...], finer: tuple[int, ...], *, along_rows: bool) -> list[Any]:
    """The tiles, cut along k further; a tile's boundaries are among those of the finer cut."""
    views, at, tile = [], 0, 0
    for size in finer:
        while at == sizes[tile] and size:  # this one is used up, or was empty from the start
            at, tile = 0, tile + 1
        part = slice(at, at + size)
        views.append(tiles[tile][(..., part, slice(None)) if along_rows else (..., part)])
        at += size
    return views


def _add_up(xp: Any, *parts: Any) -> Any:
    return tree_add(xp, parts)


def _then(xp: Any, *args: Any, first: Callable[..., Any], program: Callable[..., Any], place: int, others: int) -> Any:
    """What `first` makes of all arguments but the last `others`, and the program of it and of those."""
    split = len(args) - others
    before, behind = args[split : split + place], args[split + place :]
    return epilogue(xp, program, before, first(xp, *args[:split]), behind)


@streams
def _tile_then(xp: Any, *args: Any, **what: Any) -> Any:
    return _then(xp, *args, **what)
