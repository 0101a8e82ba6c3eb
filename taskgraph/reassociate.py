"""Rewriting products: chains in their cheapest order, sums and diagonals without the product, constants taken out.

Design note. Every chain of the graph (factors.py) is rebuilt at once, in four steps: what is constant in it goes
(identities, numbers, what is repeated along an axis becomes a sum of its neighbour), rows and columns that are summed
are summed first, the order is found (chains.py), and the numbers that multiply it go to its smallest array. A chain
from which nothing is won stays as the user wrote it, to the bit. No rewrite adds flops.

What it changes. Another order rounds otherwise, as another grid does. Where inner results overflow in one order, they
may not in another. Infinities and NaNs of a factor: an identity drops out and leaves them where they are, though in
NumPy its zeros spread NaN over a column (0 * inf); with a factor of zeros or of one number, or under a sum, what is not
finite stays so (0 * (inf + 1) is NaN as in NumPy), but may be inf where NumPy adds inf and -inf. (XLA leaves a
program's products as they are, so JAX does none of this; its users write `jnp.linalg.multi_dot`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import numpy as np

from taskgraph.chains import Interval, Size, best_order, costs, postorder, together
from taskgraph.expr import Chunks, Expr, Shape, bind, labelled, pinned, topological, with_inputs
from taskgraph.factors import Chain, Factor, Reader, Scaling, on_diagonal, sums_exactly
from taskgraph.passes import simplify
from taskgraph.primitives import find

#: How often the graph is gone over, as long as something changes: what became a sum in one round is summed sooner in
#: the next. (Chosen: the gradient of a sum of a linear network of any depth needs three.)
ROUNDS = 4


def reassociate(roots: Sequence[Expr]) -> tuple[Expr, ...]:
    """A simplified graph with its products rewritten, of the same shapes, types and blocks; as it is where
    `dask.config.set({"taskgraph.reassociate": False})` says so, since other orders round otherwise."""
    asked = roots = tuple(roots)
    if not dask.config.get("taskgraph.reassociate", True):
        return roots
    for _ in range(ROUNDS):
        before, roots = roots, _all_rebuilt(roots)
        if roots == before:
            break
        roots = simplify(roots)
    return tuple(_cut_as(a, r) for a, r in zip(asked, roots, strict=True))


def _cut_as(asked: Expr, found: Expr) -> Expr:
    if asked.chunks == found.chunks:
        return found
    with pinned(asked.device), labelled(asked.label):
        return _bind("rechunk", found, chunks=asked.chunks)


def _all_rebuilt(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    reader = Reader(roots)
    chains = reader.chains()
    if not chains:
        return roots
    new: dict[Expr, Expr] = {}
    products: set[Expr] = set()
    for node in reader.order:
        found = _rebuilt(chains[node], new, products) if node in chains else None
        new[node] = with_inputs(node, tuple([new[i] for i in node.inputs])) if found is None else found
        if new[node].op.kind == "product" and node not in reader.inside and node not in reader.opened:
            products.add(new[node])
    return tuple(new[r] for r in roots)


def flops(roots: Iterable[Expr]) -> int:
    """Of all products that the roots need."""
    return sum(n.op.flops(n) for n in topological(roots) if n.op.kind == "product")


# -- one chain ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Work:
    """A chain on its way: what is left of its factors, what multiplies it, and whether something was done to it.

    new: what stands for the graph's expressions so far; products: those that were made so far.
    """

    chain: Chain
    new: dict[Expr, Expr]
    products: set[Expr]
    factors: list[Factor]
    kept: list[int]
    number: Any = 1
    numbers: list[Expr] = field(default_factory=list)
    changed: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.chain.product.dtype


def _rebuilt(chain: Chain, new: dict[Expr, Expr], products: set[Expr]) -> Expr | None:
    """What stands for a chain, None where it stays."""
    factors = [Factor(new[f.node], f.turned) for f in chain.factors]
    w = _Work(chain, new, products, factors, list(range(len(factors))), changed=chain.kind != "product")
    with pinned(chain.product.device), labelled(None):
        if sums_exactly(w.dtype):
            _without_diagonals(w)
            _without_repeats(w)
        sizes = [f.size for f in w.factors]
        written, made = _restricted(chain, w.kept)
        if chain.kind == "diagonal" and len(sizes) > 1:
            return _fitted(w, _diagonal(w, sizes, written, made))
        _, order = best_order(sizes, written) if len(sizes) > 1 else (0, written)
        places = _places(w, sizes, order, is_same=not w.changed and order is written)
        if places is None:
            return None
        y = _multiplied(w, order, made, places, (0, len(sizes) - 1))
        if chain.kind == "diagonal":
            y = Factor(with_inputs(chain.top, (_off_zeros(w, _upright(y)),)), False)
        return _fitted(w, _upright(y))


def _off_zeros(w: _Work, y: Expr) -> Expr:
    """The operand of a diagonal with other values, and zeros off them."""
    where = w.chain.top.inputs[0]
    condition, _, zero = where.inputs
    return with_inputs(where, (w.new[condition], _repeated(y, where.shape, where.chunks), w.new[zero]))


def _restricted(chain: Chain, kept: Sequence[int]) -> tuple[dict[Interval, int], dict[Interval, Expr]]:
    """The user's order of the factors that are left, and the products that cover them."""
    if len(kept) == len(chain.factors):
        return chain.splits, chain.made
    splits: dict[Interval, int] = {}
    made: dict[Interval, Expr] = {}
    for (i, j), s in chain.splits.items():
        left = [at for at, k in enumerate(kept) if i <= k <= s]
        right = [at for at, k in enumerate(kept) if s < k <= j]
        if left and right:
            splits[left[0], right[-1]] = left[-1]
            made.setdefault((left[0], right[-1]), chain.made[i, j])
    return splits, made


def _bind(name: str, *inputs: Expr, **params: Any) -> Expr:
    return bind(find(name), *inputs, **params)


# -- constants ---------------------------------------------------------------------------------------------------------


def _number_in(x: Expr) -> Expr | None:
    """The one number that an array repeats, 0-d, None where it does not."""
    if x.op.name == "full":
        return _bind("full", shape=(), dtype=x.dtype, chunks=(), fill_value=x.params["fill_value"])
    if x.op.name == "broadcast_to" and x.inputs[0].size == 1:
        return _bind("reshape", x.inputs[0], shape=()) if x.inputs[0].ndim else x.inputs[0]
    return None


def _without_diagonals(w: _Work) -> None:
    """Identities go, multiples of them become numbers, other diagonal matrices scale what stands beside them."""
    at = 0
    while at < len(w.factors):
        x = w.factors[at].node
        beside = [i for i in (at + 1, at - 1) if 0 <= i < len(w.factors)]
        value = on_diagonal(x)
        is_eye = x.op.name == "eye" and x.params["k"] == 0 and x.shape[0] == x.shape[1]
        last = len(w.factors) == 2 and w.factors[beside[0]].node.device != w.chain.product.device if beside else True
        if last or not (is_eye or value is not None):
            at += 1
            continue
        number = None if value is None else _number_in(value)
        if number is not None:
            w.numbers.append(number)
        elif not is_eye:
            i = min(beside, key=lambda i: w.factors[i].node.size)
            w.factors[i] = _diagonal_times(x, w.factors[i], is_left=i > at)
        del w.factors[at], w.kept[at]
        w.changed = True


def _diagonal_times(d: Expr, f: Factor, is_left: bool) -> Factor:
    """A matrix with its rows (its columns, where the diagonal matrix stands behind it) multiplied by a diagonal."""
    of_rows = is_left != f.turned
    line = _bind("sum", d, axis=(d.ndim - 1 if of_rows else d.ndim - 2,), keepdims=True)
    return Factor(_bind("multiply", line, f.node), f.turned)


def _repeats(f: Factor) -> tuple[bool, bool]:
    """Whether all rows, and all columns, of a factor are one and the same: more than one, and known to be."""
    x = f.node
    if x.op.name == "full":
        own: Shape = (1, 1)
    elif x.op.name == "broadcast_to":
        own = (1, 1, *x.inputs[0].shape)[-2:]
    else:
        return False, False
    same = tuple(s > o for s, o in zip(x.shape[-2:], own, strict=True))
    return (same[1], same[0]) if f.turned else (same[0], same[1])


def _without_repeats(w: _Work) -> None:
    """x @ y with all rows of y one and the same: the sums of x's rows times that one row; and so on for every edge
    between two factors, and for both ends, where rows may be summed or stay to be repeated in the end."""
    n = len(w.factors)
    repeats = [_repeats(f) for f in w.factors]
    first, last = w.chain.summed
    single, summed = set(), set()  # (factor, 0 for its rows, 1 for its columns)
    edges = [(None, (0, 0), first), *[((i - 1, 1), (i, 0), True) for i in range(1, n)], ((n - 1, 1), None, last)]
    for left, right, adds_up in edges:
        sides = [s for s in (left, right) if s is not None]
        repeated = [s for s in sides if repeats[s[0]][s[1]]]
        others = [s for s in sides if s not in repeated]
        length = w.factors[sides[0][0]].columns if sides[0][1] else w.factors[sides[0][0]].rows
        single |= set(repeated)
        if repeated and not others:
            w.number *= length if adds_up else 1
        elif others and adds_up and (repeated or len(sides) == 1) and length > 1:
            summed.add(others[0])
    if not single and not summed:
        return
    w.changed = True
    for i, f in enumerate(w.factors):
        if repeats[i] != (False, False):
            f = Factor(_once(f.node), f.turned)
        for axis in (0, 1):
            if (i, axis) in summed:
                at = f.node.ndim - (1 if (axis == 1) != f.turned else 2)
                f = Factor(_bind("sum", f.node, axis=(at,), keepdims=True), f.turned)
        w.factors[i] = f
    for i in reversed(range(n)):
        if len(w.factors) > 1 and w.factors[i].node.size == 1 and w.factors[i].node.ndim == 2 and any(repeats[i]):
            w.numbers.append(_number_in(w.factors[i].node) or _bind("reshape", w.factors[i].node, shape=()))
            del w.factors[i], w.kept[i]


def _once(x: Expr) -> Expr:
    """A repeated matrix without its repetition: one row, one column, or one number."""
    if x.op.name == "full":
        return _bind("full", shape=(1, 1), dtype=x.dtype, chunks=((1,), (1,)), fill_value=x.params["fill_value"])
    base = x.inputs[0]
    return base if base.ndim > 1 else _bind("reshape", base, shape=(1, 1, *base.shape)[-2:])


# -- what multiplies a chain -------------------------------------------------------------------------------------------

_Places = dict[Interval, list[Scaling]]


def _places(w: _Work, sizes: Sequence[Size], order: Any, is_same: bool) -> _Places | None:
    """For factors and inner results, which numbers multiply them: the smallest of all; None where nothing changes."""
    n = len(sizes)
    covered: dict[Interval, Size] = {(i, i): s for i, s in enumerate(sizes)}
    for i, j in postorder(n, order) if n > 1 else []:
        covered[i, j] = together(covered[i, order[i, j]], covered[order[i, j] + 1, j])
    scalings = w.chain.scalings
    if is_same and not scalings:
        return None
    elements = {at: math.prod(s.lead) * s.rows * s.columns for at, s in covered.items()}
    least = min(elements.values())
    if is_same and all(s.elements <= least for s in scalings):
        return None
    smallest = (0, n - 1) if elements[0, n - 1] == least else next(at for at, e in elements.items() if e == least)
    places: _Places = {}
    for s in [*scalings, *_constants(w)]:
        own = (w.kept.index(s.at),) * 2 if s.at in w.kept else None
        at = own if own is not None and elements[own] == least else smallest
        places.setdefault(at, []).append(s)
    return places


def _constants(w: _Work) -> list[Scaling]:
    """The numbers that came out of constant factors."""
    value = w.number
    if w.chain.top.op.name == "mean":
        value = value / math.prod(w.chain.top.inputs[0].shape[a] for a in w.chain.top.params["axis"])
    if w.dtype.kind in "iu":
        value = np.asarray(value % 2**64, np.uint64).astype(w.dtype)  # as the product itself wraps around
    number = w.dtype.type(value).item()
    own = [] if value == 1 else [_bind("full", shape=(), dtype=w.dtype, chunks=(), fill_value=number)]
    is_one = lambda x: x.op.name == "full" and x.params["fill_value"] == 1
    return [Scaling("multiply", x, 0, None) for x in [*w.numbers, *own] if not is_one(x)]


def _scaled(w: _Work, y: Factor, scalings: Sequence[Scaling]) -> Factor:
    x = y.node
    for s in scalings:
        x = _bind(s.op, x) if s.number is None else _bind(s.op, x, w.new.get(s.number, s.number))
    return Factor(x, y.turned)


# -- the products ------------------------------------------------------------------------------------------------------


def _multiplied(w: _Work, order: Any, made: dict[Interval, Expr], places: _Places, whole: Interval) -> Factor:
    """The product of the factors of an interval, in an order, each product named after the least of the user's own
    that covers it."""
    first, last = whole
    n = last - first + 1
    results = {(i, i): _scaled(w, w.factors[i], places.get((i, i), ())) for i in range(first, last + 1)}
    todo = postorder(n, {(i - first, j - first): s - first for (i, j), s in order.items() if first <= i and j <= last})
    for i, j in ((i + first, j + first) for i, j in (todo if n > 1 else [])):
        left, right = results.pop((i, order[i, j])), results.pop((order[i, j] + 1, j))
        owner = min((at for at in made if at[0] <= i and j <= at[1]), key=lambda at: at[1] - at[0], default=None)
        label = w.chain.product.label if owner is None else made[owner].label
        with labelled(label):
            y = _product(w, left, right, is_inner=(i, j) != whole)
        results[i, j] = _scaled(w, y, places.get((i, j), ()))
    return results[whole]


def _product(w: _Work, a: Factor, b: Factor, is_inner: bool) -> Factor:
    """a @ b, or the transpose of b.T @ a.T where that is there already; an inner row of one as a column, too, so that
    a vector which several chains make is one."""
    plain, turned = (
        bind(find("matmul"), *nodes, ta=ta, tb=tb)
        for nodes, ta, tb in (
            ((a.node, b.node), a.turned, b.turned),
            ((b.node, a.node), not b.turned, not a.turned),
        )
    )
    is_turned = plain not in w.products and (turned in w.products or (is_inner and a.rows == 1 < b.columns))
    w.products.add(turned if is_turned else plain)
    return Factor(turned, True) if is_turned else Factor(plain, False)


def _upright(f: Factor) -> Expr:
    if not f.turned:
        return f.node
    ndim = f.node.ndim
    return _bind("permute_dims", f.node, axes=(*range(ndim - 2), ndim - 1, ndim - 2))


def _diagonal(w: _Work, sizes: Sequence[Size], written: Any, made: dict[Interval, Expr]) -> Expr:
    """The diagonal of a chain: the elements of its one half times those of the other, transposed, summed."""
    n = len(sizes)
    table, splits = costs(sizes, written)
    # in the middle, where all are alike: then trace(x @ x.T) makes x once
    s = min(range(n - 1), key=lambda s: (table[0][s] + table[s + 1][n - 1], abs(2 * s + 2 - n)))
    left = _multiplied(w, splits, made, {}, (0, s))
    right = _multiplied(w, splits, made, {}, (s + 1, n - 1))
    if left.turned == right.turned:  # one is (n, k), the other (k, n)
        right = Factor(_upright(Factor(right.node, True)), not right.turned)
    both = _bind("multiply", left.node, right.node)
    y = _bind("sum", both, axis=(both.ndim - (2 if left.turned else 1),), keepdims=False)
    return _scaled(w, Factor(y, False), [*w.chain.scalings, *_constants(w)]).node


# -- as it was ---------------------------------------------------------------------------------------------------------


def _fitted(w: _Work, y: Expr) -> Expr:
    """What was made, in the shape and the blocks of what it stands for."""
    top, product = w.chain.top, w.chain.product
    shape, chunks = top.shape, top.chunks
    if w.chain.kind == "sum":
        axes = top.params["axis"]
        base = top.inputs[0]
        lead = tuple(a for a in axes if a < base.ndim - 2)
        if lead:
            y = _repeated(y, (*product.shape[:-2], *y.shape[-2:]), (*product.chunks[:-2], *y.chunks[-2:]))
            y = _bind("sum", y, axis=lead, keepdims=True)
        shape = tuple(1 if a in axes else s for a, s in enumerate(base.shape))
        rest = iter(top.chunks)
        chunks = (
            top.chunks if top.params["keepdims"] else tuple((1,) if a in axes else next(rest) for a in range(base.ndim))
        )
    with labelled(top.label):
        y = _repeated(y, shape, chunks)
        y = y if y.shape == top.shape else _bind("reshape", y, shape=top.shape)
        return y if y.chunks == top.chunks else _bind("rechunk", y, chunks=top.chunks)


def _repeated(y: Expr, shape: Shape, chunks: Chunks) -> Expr:
    return y if y.shape == shape else _bind("broadcast_to", y, shape=shape, chunks=chunks)
