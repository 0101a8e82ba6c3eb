"""Chains of products as they stand in a graph: what one is made of, and which inner results nobody else needs.

Design note. A chain is read from its top down: a product whose value only the chain uses gives way to its two operands.
Transposes on the way turn what lies under them over, and multiplications by a number are taken out and kept apart. The
top is a product, a transposed product, a sum or a mean of one over rows or columns, or its diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from taskgraph.chains import Interval, Size, best_order
from taskgraph.expr import DType, Expr, consumers, topological

Kind = Literal["product", "transpose", "sum", "diagonal"]


@dataclass(frozen=True, slots=True)
class Factor:
    """A matrix, or a stack of them, with the last two axes swapped if `turned`."""

    node: Expr
    turned: bool

    @property
    def rows(self) -> int:
        return self.node.shape[-1 if self.turned else -2]

    @property
    def columns(self) -> int:
        return self.node.shape[-2 if self.turned else -1]

    @property
    def size(self) -> Size:
        """What it is to the order of its chain."""
        return Size(self.rows, self.columns, self.node.shape[:-2])


@dataclass(frozen=True, slots=True)
class Scaling:
    """A number by which something in a chain is multiplied or divided; or, without one, a changed sign.

    elements: of what was scaled. at: the position of the factor that was scaled, None for an inner result.
    """

    op: str
    number: Expr | None
    elements: int
    at: int | None


@dataclass(slots=True)
class Chain:
    """A chain as the user wrote it: `top` is its value, `product` the outermost product.

    splits and made: for every product in it, by the factors that it covers, the last factor of its left operand, and
    the expression. inside: what the chain goes through and the graph does not need beside it.
    """

    top: Expr
    kind: Kind
    product: Expr
    factors: list[Factor] = field(default_factory=list)
    splits: dict[Interval, int] = field(default_factory=dict)
    made: dict[Interval, Expr] = field(default_factory=dict)
    scalings: list[Scaling] = field(default_factory=list)
    inside: list[Expr] = field(default_factory=list)

    @property
    def summed(self) -> tuple[bool, bool]:
        """Whether the rows, and whether the columns, of the product are added up."""
        if self.kind != "sum":
            return False, False
        axes, ndim = self.top.params["axis"], self.product.ndim
        return ndim - 2 in axes, ndim - 1 in axes

    def sizes(self) -> list[Size]:
        """The factors' sizes, with one row for rows that are summed, one column for columns."""
        sizes = [f.size for f in self.factors]
        rows, columns = self.summed
        if rows:
            sizes[0] = Size(1, sizes[0].columns, sizes[0].lead)
        if columns:
            sizes[-1] = Size(sizes[-1].rows, 1, sizes[-1].lead)
        return sizes

    def flops(self) -> int:
        """Of its products, in the best order."""
        return best_order(self.sizes(), self.splits)[0]


# -- the steps of a chain ----------------------------------------------------------------------------------------------


def swaps(x: Expr) -> bool:
    """Whether it is its input with the last two axes swapped: a transpose, or a row reshaped to a column."""
    if x.op.name == "permute_dims":
        return bool(x.params["axes"] == (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)) and x.ndim > 1
    if x.op.name != "reshape" or x.ndim < 2 or x.ndim != x.inputs[0].ndim or 1 not in x.shape[-2:]:
        return False
    base = x.inputs[0]
    return all(now == (*was[:-2], was[-1], was[-2]) for now, was in ((x.shape, base.shape), (x.chunks, base.chunks)))


def scaled(x: Expr) -> tuple[Expr, Expr | None] | None:
    """(what, number) where the expression is something times or over a number, or (with None) minus something."""
    if x.dtype.kind not in "fc" or x.ndim < 2:
        return None
    if x.op.name == "negative":
        return x.inputs[0], None
    if x.op.name == "divide" or x.op.name == "multiply":
        base, number = x.inputs if x.inputs[1].ndim == 0 or x.op.name == "divide" else x.inputs[::-1]
        if number.ndim == 0 and base.shape == x.shape and base.dtype == x.dtype == number.dtype:
            return base, number
    return None


def sums_exactly(dtype: DType) -> bool:
    """Whether a sum has the type of its elements and about the rounding of a product: not half precision, whose range
    a sum of some thousands exceeds, and not small integers, which a sum widens."""
    return (dtype.kind in "fc" and dtype.itemsize >= 4) or dtype in (np.int64, np.uint64)


def is_reduction(x: Expr) -> bool:
    """Whether it adds up rows or columns of matrices, more than one of them."""
    if x.op.name not in ("sum", "mean") or x.dtype != x.inputs[0].dtype or not sums_exactly(x.dtype):
        return False
    base, axes = x.inputs[0], x.params["axis"]
    return base.ndim > 1 and any(base.shape[a] > 1 for a in axes if a >= base.ndim - 2)


def on_diagonal(x: Expr) -> Expr | None:
    """What stands on the diagonal where the expression is zeros off it: the pattern of `diagonal` and its gradient."""
    if x.op.name != "where" or x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        return None
    condition, value, other = x.inputs
    eye = condition.inputs[0] if condition.op.name == "reshape" else condition
    if eye.op.name != "eye" or eye.params["k"] != 0 or eye.ndim != 2 or condition.shape[-2:] != x.shape[-2:]:
        return None
    is_zero = other.op.name == "full" and other.params["fill_value"] == 0
    return value if is_zero and eye.shape == x.shape[-2:] == value.shape[-2:] else None


def _top(x: Expr) -> tuple[Kind, Expr] | None:
    """What kind of a chain an expression may be the value of, and where to start reading it."""
    if x.op.kind == "product":
        return "product", x
    if swaps(x):
        return "transpose", x
    if x.op.name == "sum" and x.params["axis"] == (x.ndim,) and not x.params["keepdims"] and sums_exactly(x.dtype):
        base = on_diagonal(x.inputs[0])
        if base is not None and base.shape == x.inputs[0].shape:
            return "diagonal", base
    return ("sum", x.inputs[0]) if is_reduction(x) else None


# -- reading them ------------------------------------------------------------------------------------------------------


class Reader:
    """A graph, read for chains.

    opened: products that have several users and which each of these makes for itself; see `_with_opened`.
    """

    def __init__(self, roots: Sequence[Expr]) -> None:
        self.order = topological(roots)
        self.ends = set(roots)
        self.has_products = any(n.op.kind == "product" for n in self.order)
        self.users = consumers(self.order) if self.has_products else {}
        self.opened: set[Expr] = set()
        self.inside: set[Expr] = set()

    def is_alone(self, x: Expr) -> bool:
        """Whether one other expression uses it, once, and nobody asked for it."""
        return len(self.users[x]) == 1 and x not in self.ends

    def chains(self) -> dict[Expr, Chain]:
        """Every chain of the graph, longest possible, by its top; but for single products in which nothing is to do."""
        found: dict[Expr, Chain] = {}
        if not self.has_products:
            return found
        for node in reversed(self.order):
            if node.op.name not in TOPS or node in self.inside or (node.op.kind == "product" and self._is_plain(node)):
                continue
            chain = self.chain(node)
            if chain is not None:
                found[node] = chain
                self.inside.update(chain.inside)
        return self._with_opened(found)

    def _is_plain(self, node: Expr) -> bool:
        """Whether it is a product of what is no step of a chain, nor a constant."""
        return not any(i.op.name in STEPS and self._is_step(i) for i in node.inputs)

    def _is_step(self, x: Expr) -> bool:
        if x.op.name in ("eye", "full", "broadcast_to"):
            return True
        if swaps(x) or on_diagonal(x) is not None:
            return True
        return self.is_alone(x) and (x.op.kind == "product" or scaled(x) is not None)

    def chain(self, top: Expr) -> Chain | None:
        """The chain under an expression, None where it is no top of one."""
        found = _top(top)
        if found is None:
            return None
        kind, start = found
        if kind == "diagonal" and not (top.inputs[0].device == top.device and self.is_alone(top.inputs[0])):
            return None
        product = top if kind == "product" else self._under(top.inputs[0] if kind == "transpose" else start, top)
        if product is None or 0 in product.shape or 0 in product.inputs[0].shape:
            return None
        chain = Chain(top, kind, product)
        self._read(chain, start)
        return chain

    def _under(self, x: Expr, top: Expr) -> Expr | None:
        """The product that only `top` uses, maybe through transposes and factors; or whose users are all reductions."""
        while x.op.kind != "product" and self.is_alone(x) and x.device == top.device:
            scaling = scaled(x)
            if scaling is None and not swaps(x):
                return None
            x = scaling[0] if scaling else x.inputs[0]
        if x.op.kind != "product" or x.device != top.device or x in self.ends:
            return None
        if self.is_alone(x) or x in self.opened:
            return x
        return x if all(is_reduction(u) and u.device == x.device for u in self.users[x]) else None

    def _read(self, chain: Chain, start: Expr) -> None:
        """Fill in what the chain is made of, left to right; no recursion, chains may be long."""
        halves: list[tuple[int, int, Expr]] = []
        stack: list[tuple[str, Expr, bool]] = [("visit", start, False)]
        while stack:
            what, x, turned = stack.pop()
            if what == "middle":
                at, _, product = halves.pop()
                halves.append((at, len(chain.factors) - 1, product))
            elif what == "end":
                at, middle, product = halves.pop()
                chain.splits[at, len(chain.factors) - 1] = middle
                chain.made[at, len(chain.factors) - 1] = product
            else:
                x, turned, opens = self._look(chain, x, turned)
                if not opens:
                    chain.factors.append(Factor(x, turned))
                    continue
                (a, b), ta, tb = x.inputs, x.params["ta"], x.params["tb"]
                left, right = ((b, not tb), (a, not ta)) if turned else ((a, ta), (b, tb))
                halves.append((len(chain.factors), -1, x))
                stack += [("end", x, False), ("visit", *right), ("middle", x, False), ("visit", *left)]

    def _look(self, chain: Chain, x: Expr, turned: bool) -> tuple[Expr, bool, bool]:
        """Through transposes and factors to a product that the chain may open, or to what is a factor of it."""
        alone, device = True, chain.product.device
        scalings: list[tuple[Expr, Expr | None]] = []
        while x.op.kind != "product":
            only = x is chain.top or (alone and self.is_alone(x) and x.device == device)
            if swaps(x):
                alone = only
                turned = not turned
                inner = x.inputs[0]
            elif only and (found := scaled(x)):
                inner = found[0]
                scalings.append((x, found[1]))
            else:
                break
            if only:
                chain.inside.append(x)
            x = inner
        opens = x is chain.product or (
            x.op.kind == "product" and x.device == device and (x in self.opened or (alone and self.is_alone(x)))
        )
        if opens and x is not chain.top and (x is chain.product or (alone and self.is_alone(x))):
            chain.inside.append(x)
        for node, number in reversed(scalings):
            chain.scalings.append(Scaling(node.op.name, number, node.size, None if opens else len(chain.factors)))
        return x, turned, opens

    # -- shared results ------------------------------------------------------------------------------------------------

    def _with_opened(self, chains: dict[Expr, Chain]) -> dict[Expr, Chain]:
        """Chains in which a product that several of them need is not formed, where each of them costs less without.

        So in the gradient of (A @ B) @ v: the outer product of a cotangent and v is multiplied there by A.T and by B.T,
        and two products with vectors each cost far less. A product opens where the sum of all flops falls by it; the
        others are then looked at again, until nothing changes.
        """
        candidates = [n for n in reversed(self.order) if n.op.kind == "product" and self._is_shared(n)]
        flops = {top: chain.flops() for top, chain in chains.items()} if candidates else {}
        for _ in range(ROUNDS):
            before = len(self.opened)
            for node in candidates:
                if node not in self.opened and not self._is_hopeless(node, chains):
                    self._try(node, chains, flops)
            if len(self.opened) == before:
                break
        return chains

    def _is_shared(self, node: Expr) -> bool:
        users = self.users[node]
        if node in self.ends or len(users) < 2:
            return False
        return all((u.op.kind == "product" or is_reduction(u)) and u.device == node.device for u in users)

    def _is_hopeless(self, node: Expr, chains: dict[Expr, Chain]) -> bool:
        """Whether it and its users are single products of square matrices of one size: the common case, seen sooner."""
        sizes: set[int] = set()
        for x in (node, *self.users[node]):
            if x in chains or x in self.inside or x.op.kind != "product" or x.ndim > 2:
                return False
            sizes.update(x.shape, x.inputs[0].shape)
        return len(sizes) == 1

    def _try(self, node: Expr, chains: dict[Expr, Chain], flops: dict[Expr, int]) -> None:
        tops = self._tops(node, chains)
        for x in (node, *tops):
            if x not in flops:  # a single product
                flops[x] = x.op.flops(x) if x.op.kind == "product" else 0
        self.opened.add(node)
        changed = {t: chain for t in tops if (chain := self.chain(t)) is not None}
        if len(changed) == len(tops) and max(len(c.factors) for c in changed.values()) <= LONGEST_OPENED:
            then = {t: c.flops() for t, c in changed.items()}
            if sum(then.values()) < flops[node] + sum(flops[t] for t in tops):
                flops |= then
                chains |= changed
                chains.pop(node, None)
                return
        self.opened.remove(node)

    def _tops(self, node: Expr, chains: dict[Expr, Chain]) -> list[Expr]:
        """The tops of the chains that take the product as a factor, and the reductions of it."""
        found: dict[Expr, None] = {}
        seen: set[Expr] = set()
        stack = list(self.users[node])
        while stack:
            x = stack.pop()
            is_top = x.op.kind == "product" and x not in self.inside and x not in self.opened
            if is_top or x in chains or is_reduction(x):
                found[x] = None
            elif x not in seen:
                seen.add(x)
                stack += self.users[x]
        return list(found)


#: What a chain may be the value of, and what it may go through or take apart.
TOPS = frozenset({"matmul", "permute_dims", "reshape", "sum", "mean"})
STEPS = TOPS | {"multiply", "divide", "negative", "eye", "full", "broadcast_to", "where"}

#: How often all shared products are looked at, and how long a chain may become by opening them (chosen: a gradient
#: needs a round for every product that lies between two of its own; the cost of an order grows with the third power).
ROUNDS = 8
LONGEST_OPENED = 24
