"""Products of a matrix with its own transpose: one triangle of tiles is computed, the other is that one turned.

Design note. The output is cut alike along both sides. A tile below the diagonal belongs to the worker that computes the
one above, so it needs nothing from others: its task turns what lies there. The cost is the general model's
(cost.Evaluation) of that cut, in which both of such a pair are computed by one slot, times the share that is left of
the busiest slot's work; turned tiles are added. Where that wins nothing (thin matrices: turning takes as long as
multiplying) the product is planned as any other.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np

from taskgraph.cost import Choice, Cut, Evaluation
from taskgraph.expr import Expr
from taskgraph.problem import Problem, even
from taskgraph.slots import Floats, Ints, Setting, Slots, Unit, slots_of

#: What a tile on the diagonal takes beside another one: NumPy multiplies a matrix with its own transpose as one
#: triangle (measured: 0.4 to 0.9 of the seconds), a GPU does not.
ON_DIAGONAL = {"cpu": 0.7, "gpu": 1.0}
#: Bytes per second at which a tile is turned (measured: NumPy 0.3 to 2 GB/s a core).
TURNED_BYTES_PER_S = 5e8
#: Beyond so many slots a triangle is not dealt tile by tile: that would take as long as all other planning (chosen).
MOST_SLOTS = 256
#: It must win so much: its cut may be one for which operands have to be moved about (chosen).
LEAST_GAIN = 0.95


def is_gram(node: Expr) -> bool:
    """Whether a product is that of an expression with its own transpose, x @ x.T or x.T @ x: then the result is
    symmetric, and of its tiles, one triangle says all.

    The two operands must be one expression. An x of complex numbers counts, too: nothing is conjugated.

    >>> import taskgraph as tg
    >>> x = tg.ones((3, 4))
    >>> is_gram((x @ x.T).expr), is_gram((x.T @ (2 * x)).expr)
    (False, False)
    >>> from taskgraph.passes import simplify
    >>> is_gram(*simplify([(x @ x.T).expr]))
    True
    """
    return node.op.kind == "product" and node.inputs[0] is node.inputs[1] and node.params["ta"] != node.params["tb"]


def gram_flops(node: Expr) -> int:
    """Flops of a product of which one triangle, with the diagonal, is computed: (n + 1) / 2n of all."""
    return int(node.op.flops(node)) * (node.shape[-1] + 1) // (2 * node.shape[-1]) if node.size else 0


@functools.lru_cache(maxsize=1024)
def triangle(p: Problem, groups: tuple[tuple[Unit, ...], ...], setting: Setting, than: Choice) -> Choice | None:
    """The cheapest cut of which one triangle is computed, on any one of the groups of devices that are of one class;
    None where none is better than the choice for the product as any other. Remembered, as `grids.solve` is."""
    best: Choice | None = None
    for units in groups:
        slots = slots_of(units)
        if p.batch > 1 or len({u.kind for u in units}) > 1 or len(slots) > MOST_SLOTS:
            continue
        if len(slots) == 1 and slots.kinds[0] == "cpu":
            continue  # NumPy does the same inside one task
        for count in _counts(p.m, len(slots)):
            choice = _choice(p, count, slots, setting)
            if choice is not None and (best is None or choice.order < best.order):
                best = choice
    gains = best is not None and (than.bytes_over > 0 or best.seconds < LEAST_GAIN * than.seconds)
    return best if gains else None


def _counts(size: int, slots: int) -> list[int]:
    """Blocks along each side, so that there are some tiles of the triangle for every slot."""
    found = {math.ceil((math.sqrt(1 + 8 * slots * each) - 1) / 2) for each in (1, 2, 3, 4)}
    return sorted(n for n in found if 2 <= n <= size)


def _choice(p: Problem, count: int, slots: Slots, setting: Setting) -> Choice | None:
    """What a cut in so many blocks along each side costs; None where a task's memory has no room for its tiles."""
    owner = _owners(count, slots)
    blocks = even(p.m, count)
    full = Evaluation(p, Cut(blocks, blocks, 1, owner.ravel()), slots, setting).choice()
    if full.bytes_over or full.chain > 1:
        return None
    i, j = np.indices(owner.shape)
    weight = np.where(i == j, ON_DIAGONAL[slots.kinds[0]], np.where(i < j, 1.0, 0.0))
    busiest = [float((_per_slot(owner, w, slots) / slots.rates).max()) for w in (weight, np.ones_like(weight))]
    turned = float(_per_slot(owner, np.asarray(i > j, dtype=float), slots).max())
    each = setting.task_seconds + p.result_bytes / count**2 / TURNED_BYTES_PER_S
    seconds = full.seconds * busiest[0] / busiest[1] + turned * each
    # rows that a worker needs on the left, it needs on the right: they come once
    return replace(full, seconds=seconds, bytes_moved=full.bytes_moved / 2)


def _per_slot(owner: Ints, weight: Floats, slots: Slots) -> Floats:
    found: Floats = np.bincount(owner.ravel(), weight.ravel(), len(slots)).astype(float)
    return found


def _owners(count: int, slots: Slots) -> Ints:
    """The slot of every tile: the dear ones first, each to a slot that is done with it soonest; of like ones, to that
    whose worker has most of the rows it needs. A tile below the diagonal belongs where the one above does."""
    weight = ON_DIAGONAL[slots.kinds[0]]
    owner = np.zeros((count, count), dtype=np.int64)
    load: Floats = np.zeros(len(slots))
    has: Ints = np.zeros((len(slots.units), count), dtype=np.int64)
    above = [(i, j) for i in range(count) for j in range(i + 1, count)]
    for i, j in [*above, *((i, i) for i in range(count))]:
        done = (load + (1.0 if i != j else weight)) / slots.rates
        rows = has[slots.worker, i] + has[slots.worker, j]
        at = int(np.where(done <= done.min() * (1 + 1e-6), rows, -1).argmax())
        load[at] += 1.0 if i != j else weight
        has[slots.worker[at], [i, j]] = 1
        owner[i, j] = owner[j, i] = at
    return owner
