"""Blocks of a product's operands as its grid wants them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from taskgraph.chunks import refine
from taskgraph.expr import Expr, Opaque, bind, labelled, pinned, with_inputs
from taskgraph.gathering import can_be_gathered
from taskgraph.primitives import find
from taskgraph.problem import even, problem_of

if TYPE_CHECKING:
    from taskgraph.plan import ProductPlan

#: A source that several workers need is cut along k, so that not one of them makes and sends all of it: in so many
#: parts at the most, none shorter (chosen: each costs a task and a pass over the tile; see cost.HALF_RATE_SIDE).
MOST_SHARES, SHORTEST_SHARE = 4, 512

#: Sources that are not made but there already.
LYING = ("placeholder", "variable", "constant", "dask", "part")
#: The `id` of what stands for a source that the graph makes, near the tiles that need it, and of what stands for one
#: that lies (a placeholder of the user's has a number of its own).
MADE, LAID = "made", "laid"


def cut_operands(node: Expr, planned: ProductPlan, often: Sequence[bool]) -> Expr:
    """The product with its operands cut along m and n as the grid wants them. Along k they stay as they lie (a tile's
    task takes views where the cuts of the two differ) but for the panels' borders; the left one has the strips."""
    grid, flags = planned.grid, (node.params["ta"], not node.params["tb"])
    strips = tuple(s for size in grid.m for s in even(size, planned.strips))
    operands = []
    across = len(grid.n), len(grid.m)
    for x, outer, users, inner_first, dear, read in zip(
        node.inputs, (strips, grid.n), across, flags, often, planned.streamed, strict=True
    ):
        lead = node.chunks[node.ndim - x.ndim : -2]
        lead = tuple((1,) if s == 1 else o for s, o in zip(x.shape[:-2], lead, strict=True))
        k = x.chunks[-2 if inner_first else -1]
        if read:
            k = planned.pieces
        elif x.op.kind == "source":
            k = _source_blocks(problem_of(node).k_blocks, users) if len(grid.k) == 1 else grid.k
        elif len(grid.k) > 1 and not {*itertools.accumulate(grid.k)} <= {*itertools.accumulate(k)}:
            k = refine(k, grid.k)
        operands.append(relayout(x, (*lead, *((k, outer) if inner_first else (outer, k))), dear))
    return with_inputs(node, tuple(operands))


def gathering(node: Expr, planned: ProductPlan) -> tuple[bool, bool]:
    """Whether the tasks of a product put its operands, cut as the grid wants them, together themselves."""
    flags, across = (node.params["ta"], not node.params["tb"]), (len(planned.grid.n), len(planned.grid.m))
    a, b = (
        not read and can_be_gathered(x, first, users * planned.batch)
        for x, first, users, read in zip(node.inputs, flags, across, planned.streamed, strict=True)
    )
    return a, b


def _source_blocks(k_blocks: tuple[int, ...], users: int) -> tuple[int, ...]:
    """A source's blocks along k: as the other operand's, or so many that those who use them make equal shares."""
    k, pieces = sum(k_blocks), min(users, MOST_SHARES)
    return even(k, pieces) if len(k_blocks) < pieces and k >= pieces * SHORTEST_SHARE else k_blocks


def lying(x: Expr) -> Expr:
    """Data in the place of an operand, in its blocks or, where it is a source, in any."""
    with pinned(x.device), labelled(x.label):
        if x.op.kind == "source":
            which = LAID if x.op.name in LYING else MADE
            return bind(find("placeholder"), shape=x.shape, dtype=x.dtype, chunks=x.chunks, id=which, name=x.token)
        return bind(find("dask"), array=Opaque(SimpleNamespace(shape=x.shape, dtype=x.dtype, chunks=x.chunks), x.token))


def relayout(x: Expr, chunks: tuple[tuple[int, ...], ...], used_often: bool = False) -> Expr:
    """`x` in those blocks: made so where it is a source (a dear one that others use, too, is made once), else cut."""
    if x.chunks == chunks:
        return x
    with pinned(x.device), labelled(x.label):
        if x.op.kind == "source" and not (used_often and x.op.name == "random"):
            return bind(x.op, **{**x.params, "chunks": chunks})
        base = x.inputs[0] if x.op.name == "rechunk" else x
        return base if base.chunks == chunks else bind(find("rechunk"), base, chunks=chunks)
