"""The tasks of one planned product: panels, chains of them, and sums of what different workers have of a tile."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from dask._task_spec import Task, TaskRef

from taskgraph.chunks import numblocks, offsets, refine
from taskgraph.expr import Expr, digest
from taskgraph.gathering import Gathered, gathered, stretches
from taskgraph.plan import ProductPlan, TaskTag
from taskgraph.program import made
from workers.device_tile import part_of, run
from workers.kernels import Deferred, Joined, Operand, add_onto, epilogue, gemm_panel, streams, tree_add, turned

Key = Any  # (name, i, j, ...): a tuple of strings and numbers, which Dask's own type does not admit


class TaskLayer(NamedTuple):
    """Tasks under one name, the names of the layers that they take blocks of, and their annotations.

    is_urgent: they take no time and no memory, and others wait for them.
    """

    name: str
    tasks: dict[Key, Any]
    needs: set[str]
    tags: dict[Key, TaskTag]
    is_urgent: bool = False


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
    home: str = "cpu",
) -> list[TaskLayer]:
    """The layers of a product whose blocks are to be (name, ..., i, j), of operands with these names; None: one that
    the tasks read themselves. Of an operand that the tasks put together, the name is that of what it is made of.

    A tile whose panels are all meant for one worker is a chain: each task adds its panel to what the one before gave.
    Otherwise every chain gives a partial tile, as a list of row strips where there are several; each strip goes by a
    key of its own to the worker that adds it up, so that only what is needed there moves. An epilogue runs in the task
    that has the tile's final sum. home: the class of the workers for what is no tile.
    """
    stage = _Stage(node, planned, name, name_a, name_b, epilogue, home)
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
        home: str,
    ) -> None:
        a, b = node.inputs
        ta, tb = node.params["ta"], node.params["tb"]
        self.planned, self.name, self.epilogue = planned, name, epilogue
        self.blocks = (*numblocks(node.chunks[:-2]), len(planned.grid.m), len(planned.grid.n))
        self.lead_a, self.lead_b = _lead_of(a), _lead_of(b)
        self.a, self.b = (
            _side(x, first, operand, planned.grid.k, gathers, home)
            for x, first, operand, gathers in zip((a, b), (ta, not tb), (name_a, name_b), planned.gathers, strict=True)
        )
        self.kernel = partial(_tile, ta=ta, tb=tb, strips=planned.strips)
        self.kernel_of = cache(self._kernel_of)
        self.uses = self._uses()
        self.parts, self.strips = (f"{node.label}-{what}-{digest(name)}" for what in ("partial", "strip"))
        needs = self.a.needs | self.b.needs
        self.tasks = {n: TaskLayer(n, {}, set(), {}) for n in (self.parts, self.strips, name)}
        self.tasks[self.parts].needs.update(needs, {self.parts})
        self.tasks[self.strips].needs.add(self.parts)
        self.tasks[name].needs.update(needs, {self.parts, self.strips}, epilogue.needs if epilogue else ())

    def _uses(self) -> Counter[Any]:
        """How many tiles of a GPU take what was cut of an operand for this product, by side, line, panel and slot."""
        planned, found = self.planned, Counter[Any]()
        if "gpu" in planned.kinds and (self.a.is_cut or self.b.is_cut):
            for tile, index in enumerate(itertools.product(*map(range, self.blocks))):
                for panel in range(planned.panels):
                    found.update(self._lines(tile, index, panel))
        return found

    def _lines(self, tile: int, index: Sequence[int], panel: int) -> list[Any]:
        *batch, i, j = index
        slot = self.planned.slots[tile * self.planned.panels + panel]
        return [
            (side, _broadcast(lead, batch), line, panel, slot)
            for side, lead, line in ((0, self.lead_a, i), (1, self.lead_b, j))
        ]

    def _brief(self, tile: int, index: Sequence[int], panel: int) -> tuple[bool, bool]:
        """Whether no other tile of a task's GPU takes the left operand, and the right one, which were cut for this
        product: then copies of them need not stay on the device."""
        if self.planned.kinds[tile * self.planned.panels + panel] != "gpu":
            return False, False
        of_a, of_b = (self.uses[line] == 1 for line in self._lines(tile, index, panel))
        return self.a.is_cut and of_a, self.b.is_cut and of_b

    def _kernel_of(
        self,
        panel: int,
        is_chained: bool,
        pieces: tuple[tuple[int, ...], tuple[int, ...]],
        brief: tuple[bool, bool],
    ) -> Callable[..., Any]:
        """What a task of a panel calls. pieces: of how many every strip of the left line, and the right one, is joined;
        made once for all alike, so that they travel once. brief: see `_brief`."""
        cuts = self.a.cut[self.a.runs[panel]], self.b.cut[self.b.runs[panel]]
        more: dict[str, Any] = {"chained": True} if is_chained else {}
        if any(n > 1 for side in pieces for n in side):
            more["pieces"] = pieces
        if any(brief):
            more["brief"] = brief
        return partial(self.kernel, cuts=cuts, alike=cuts[0] == cuts[1], **more)

    def layers(self) -> list[TaskLayer]:
        """Those that have tasks, each needing only others."""
        there = {n: layer for n, layer in self.tasks.items() if layer.tasks}
        empty = self.tasks.keys() - there.keys()
        sliced = {s.name: s for s in (self.a.slices, self.b.slices) if s is not None}
        return [*sliced.values(), *(TaskLayer(n, x.tasks, x.needs - empty - {n}, x.tags) for n, x in there.items())]

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
        rows = [i * strips + r for r in range(strips)]
        left = [self.a.lines[_broadcast(self.lead_a, batch), row] for row in rows]
        right = self.b.lines[_broadcast(self.lead_b, batch), j]
        pieces = tuple([self.a.pieces[row] for row in rows]), (self.b.pieces[j],)
        first = tile * planned.panels
        chains = planned.chains(tile) if planned.panels > 1 else [range(1)]
        is_whole = len(chains) == strips == 1
        ends = []
        for chain in chains:
            so_far: tuple[TaskRef, ...] = ()
            for panel in chain:
                kernel = self.kernel_of(panel, bool(so_far), pieces, self._brief(tile, index, panel))
                tag = planned.tag(first + panel, (*index, panel))
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


@dataclass(frozen=True)
class _Side:
    """An operand as the tasks take it.

    cut: along k; runs: for every panel, which of those stretches. lines: for every block row of a left operand (block
    column of a right one), what a task takes of it, a list for every panel; made once, for all the tiles that it meets.
    pieces: for every line, of how many pieces each stretch of k is joined. slices: the tasks that take parts of blocks;
    is_cut: nothing but such parts is taken.
    """

    cut: tuple[int, ...]
    runs: list[slice]
    lines: dict[tuple[Any, int], list[list[Any]]]
    pieces: Sequence[int]
    needs: set[str]
    slices: TaskLayer | None = None
    is_cut: bool = False


def _side(x: Expr, inner_first: bool, name: str | None, panels: tuple[int, ...], gathers: bool, home: str) -> _Side:
    if gathers and name is not None:
        return _gathered_side(x, gathered(x, inner_first), name, panels, home)
    cut = x.chunks[-2 if inner_first else -1]
    runs = _runs(cut, panels)
    *lead, first, second = numblocks(x.chunks)
    inner, outer = (first, second) if inner_first else (second, first)
    block = _deferred(x) if name is None else lambda index: TaskRef((name, *index))
    lines = {}
    for at in itertools.product(*map(range, lead)):
        for o in range(outer):
            line = [block((*at, *((k, o) if inner_first else (o, k)))) for k in range(inner)]
            lines[at, o] = [line[run] for run in runs]
    return _Side(cut, runs, lines, [1] * outer, set() if name is None else {name})


def _gathered_side(x: Expr, g: Gathered, name: str, panels: tuple[int, ...], home: str) -> _Side:
    """Of blocks that lie under that name: those of which all is taken themselves, parts of others by tasks."""
    sliced = TaskLayer(f"rechunk-split-{digest(name, x.chunks)}", {}, {name}, {}, is_urgent=True)

    def take(lead: tuple[int, ...], k: Any, outer: Any) -> TaskRef:
        whole, part = TaskRef((name, *lead, *g.index(k, outer))), g.slices(k, outer)
        if part is None:
            return whole
        key: Key = (sliced.name, *lead, *[n for p in (k, outer) for n in (p.block, *(p.part or ()))])
        sliced.tasks[key], sliced.tags[key] = Task(key, part_of, whole, (..., *part)), TaskTag(kind=home, stays=True)
        return TaskRef(key)

    runs, lines = _runs(g.cut, panels), {}
    for lead in itertools.product(*map(range, numblocks(x.chunks[:-2]))):
        for o, pieces in enumerate(g.outer):
            lines[lead, o] = [[take(lead, k, piece) for k in g.k[run] for piece in pieces] for run in runs]
    needs = {name, sliced.name} if sliced.tasks else {name}
    is_cut = all(p.part for p in g.k) or all(p.part for outer in g.outer for p in outer)
    return _Side(g.cut, runs, lines, [len(o) for o in g.outer], needs, sliced if sliced.tasks else None, is_cut)


def _deferred(x: Expr) -> Callable[[tuple[int, ...]], Deferred]:
    """For the index of a block of a source, what a task reads it by."""
    make, starts = made(x), [offsets(c) for c in x.chunks]

    def block(index: tuple[int, ...]) -> Deferred:
        shape = tuple([c[i] for c, i in zip(x.chunks, index, strict=True)])
        return Deferred(make, tuple([s[i] for s, i in zip(starts, index, strict=True)]), shape, x.dtype)

    return block


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
    pieces: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    brief: tuple[bool, bool] = (False, False),
) -> Any:
    """A panel of a tile: the blocks of a's line along k, for every strip, then those of b's.

    cuts: how the two are cut along k; where they are not alike, each is looked at through views between all boundaries
    of both. chained: the first argument is what the panels before gave, to which this one is added. strips: where there
    are several, the result is a list of them. pieces: for every strip of a, and for b, of how many arguments each of
    its blocks is to be joined. brief: whether the device may forget a's blocks, and b's, when they are used.
    """
    before, tiles = (args[0], args[1:]) if chained else (None, args)
    of_a, of_b = cuts
    of_rows, (of_columns,) = pieces or ((1,) * strips, (1,))
    left = iter(tiles)
    if any(brief):
        of_a_line = sum(of_rows) * len(of_a)
        left = iter([_passing(x) if brief[n >= of_a_line] else x for n, x in enumerate(tiles)])
    lefts: list[Any] = [_joined(left, n, len(of_a), -1 if ta else -2) for n in of_rows]
    rights: Any = _joined(left, of_columns, len(of_b), -2 if tb else -1)
    both = refine(of_a, of_b)
    if pieces:
        both = _short(both, [(x, -2 if ta else -1) for x in lefts] + [(rights, -1 if tb else -2)])
    if not alike or len(both) > len(of_a):
        lefts = [_views(x, of_a, both, along_rows=ta) for x in lefts]
        rights = _views(rights, of_b, both, along_rows=not tb)
    found = [gemm_panel(xp, x, rights, transpose_a=ta, transpose_b=tb) for x in lefts]
    if chained:
        so_far: Any = before if strips > 1 else [before]
        found = [add_onto(xp, new, old) for new, old in zip(found, so_far, strict=True)]
    return found if strips > 1 else found[0]


def _passing(x: Any) -> Any:
    """An operand of which no copy stays on the device."""
    return x.in_one() if isinstance(x, Operand) and x.pieces == 1 else x


def _joined(args: Iterator[Any], pieces: int, blocks: int, axis: int) -> list[Any]:
    """The next blocks of a line, each of so many arguments side by side."""
    groups = [[next(args) for _ in range(pieces)] for _ in range(blocks)]
    return [Joined(group, axis) if pieces > 1 else group[0] for group in groups]


def _short(cut: tuple[int, ...], lines: Sequence[tuple[Sequence[Any], int]]) -> tuple[int, ...]:
    """A cut along k so fine that what is joined takes little memory at a time. lines: blocks, and which axis is k."""
    each = [
        math.prod(x.shape) // max(1, x.shape[axis]) * x.dtype.itemsize
        for line, axis in lines
        for x in line[:1]
        if isinstance(x, Joined)
    ]
    return stretches(cut, each)


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
