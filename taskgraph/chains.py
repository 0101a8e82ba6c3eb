"""The order in which a chain of matrix products costs least: pure, on sizes alone.

Design note. The dynamic program over intervals (Godbole, 1973; Cormen et al., Introduction to Algorithms, 15.2), with
two things of our own: leading axes broadcast, so an interval costs as many products as its factors' batches have
matrices together; and where several orders cost the same, the one that the user wrote stays, so that no rounding
changes for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskgraph.chunks import broadcast
from taskgraph.expr import Shape

#: Factors i to j of a chain, both included.
Interval = tuple[int, int]
#: For every product of a chain, by the factors that it covers, the last factor of its left operand.
Splits = Mapping[Interval, int]

#: Beyond so many factors only the user's order and the two straight ones are compared (n**3 / 6 steps: 0.1 s for 100).
LONGEST = 100


@dataclass(frozen=True, slots=True)
class Size:
    """What a factor of a chain is to the order: a stack of `lead` matrices of `rows` x `columns`."""

    rows: int
    columns: int
    lead: Shape = ()


def product_flops(left: Size, right: Size) -> int:
    """Multiplications and additions of one product.

    >>> product_flops(Size(2, 3), Size(3, 4, (10,)))
    480
    """
    return 2 * _count(broadcast([left.lead, right.lead])) * left.rows * left.columns * right.columns


def _count(lead: Shape) -> int:
    n = 1
    for s in lead:
        n *= s
    return n


def together(left: Size, right: Size) -> Size:
    """What the product of the two is."""
    return Size(left.rows, right.columns, broadcast([left.lead, right.lead]))


def cost_of(sizes: Sequence[Size], splits: Splits) -> int:
    """Flops of a chain in the order that `splits` says."""
    total = 0
    results: dict[Interval, Size] = {(i, i): s for i, s in enumerate(sizes)}
    for i, j in postorder(len(sizes), splits):
        s = splits[i, j]
        left, right = results[i, s], results[s + 1, j]
        total += product_flops(left, right)
        results[i, j] = together(left, right)
    return total


def postorder(n: int, splits: Splits) -> list[Interval]:
    """The products of an order of n factors, operands before what is made of them; no recursion, for long chains.

    >>> postorder(3, {(0, 2): 0, (1, 2): 1})
    [(1, 2), (0, 2)]
    """
    order, stack = [], [(0, n - 1)]
    while stack:
        i, j = stack.pop()
        if i < j:
            order.append((i, j))
            s = splits[i, j]
            stack += [(i, s), (s + 1, j)]
    return order[::-1]


def best_order(sizes: Sequence[Size], written: Splits) -> tuple[int, Splits]:
    """The least flops of a chain and an order that has them: `written`, the user's own, where no other has less.

    >>> best_order([Size(9, 9), Size(9, 9), Size(9, 1)], {(0, 2): 1, (0, 1): 0})
    (324, {(0, 2): 0, (1, 2): 1})
    """
    as_written = cost_of(sizes, written)
    if len(sizes) > LONGEST:
        n = len(sizes)
        straight: list[Splits] = [{(0, j): j - 1 for j in range(1, n)}, {(i, n - 1): i for i in range(n - 1)}]
        cost, _, order = min((cost_of(sizes, o), at, o) for at, o in enumerate([written, *straight]))
        return cost, order
    table, splits = _table(sizes, written)
    least = table[0][-1]
    if least == as_written:
        return least, written
    return least, {at: splits[at] for at in reversed(postorder(len(sizes), splits))}


def costs(sizes: Sequence[Size], written: Splits) -> tuple[list[list[int]], Splits]:
    """The least flops of every interval of a chain (`costs[i][j]`), and the splits that have them."""
    return _table(sizes, written)


def _table(sizes: Sequence[Size], written: Splits) -> tuple[list[list[int]], dict[Interval, int]]:
    n = len(sizes)
    edges = [s.rows for s in sizes] + [sizes[-1].columns]
    matrices = _matrices(sizes)
    table = [[0] * n for _ in range(n)]
    splits: dict[Interval, int] = {}
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            outer = 2 * edges[i] * edges[j + 1] * (matrices[i][j] if matrices else 1)
            found = [table[i][s] + table[s + 1][j] + outer * edges[s + 1] for s in range(i, j)]
            least = min(found)
            own = written.get((i, j))
            splits[i, j] = own if own is not None and found[own - i] == least else i + found.index(least)
            table[i][j] = least
    return table, splits


def _matrices(sizes: Sequence[Size]) -> list[list[int]] | None:
    """How many matrices the factors i to j have together; None where there is no batch at all."""
    if not any(s.lead for s in sizes):
        return None
    n = len(sizes)
    counts = [[1] * n for _ in range(n)]
    for i in range(n):
        lead = sizes[i].lead
        for j in range(i, n):
            lead = broadcast([lead, sizes[j].lead])
            counts[i][j] = _count(lead)
    return counts
