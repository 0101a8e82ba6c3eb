"""The fewest bytes that a product of kept operands moves, given what every worker holds of them.

`bounds.communication_bound` lets operands lie however is best. Kept ones lie as they lie: where k is cut, say, while a
worker holds whole rows of the left operand, more must move, whatever the plan. The bound, for a worker that does V of
the m n k multiplications, those of a set S, and needs z elements of the result for them:

- For one l of k, S holds v(l) pairs (i, j). They are among a(l) rows times b(l) columns, so a(l) b(l) >= v(l), and they
  are elements of the result, so v(l) <= z. Of A[:, l] and B[l, :] the worker holds p(l) and q(l) elements, so it
  receives at least f(v(l)), the least a + b - p - q with a b >= v(l), p <= a <= m, q <= b <= n.
- f is 0 up to p q. From there on it is concave, so at least (v - p q) f(z) / (z - p q); or, where p > n (or q > m), of
  two straight lines, the first to where all that is held meets all of the other operand. The cheapest way to bring the
  v(l), none above z, to V in all is to take these lines in the order of their slopes.
- It gives z for the result, and all workers together keep m n. So the least over z of that sum, of every worker, less
  m n, must move. (Between two values of z that are looked at, each term is taken at its lesser end.)

The first step is Loomis & Whitney's inequality (1949) a slice at a time, as in Irony, Toledo & Tiskin (JPDC 2004),
with what the worker holds taken off slice by slice instead of in all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Between two sizes of a worker's part of the result that are looked at: the bound is too low by no more than that.
STEP = 1.002


@dataclass(frozen=True, order=True)
class Stretch:
    """What a worker holds for a stretch of k: of each of its columns of the left operand so many rows, of each of its
    rows of the right operand so many columns."""

    length: int
    rows: int
    columns: int


def bound_of_kept(
    m: int, n: int, k: int, itemsize: int, shares: Sequence[float], held: Sequence[Sequence[Stretch]]
) -> float:
    """The least bytes that workers must get from each other for (m, k) @ (k, n), over all of them together.

    shares: of the work, one for every worker, together 1. held: for each worker what it holds of the operands, its
    stretches together as long as k.

    >>> rows = [[Stretch(25, 8, 8), Stretch(75, 8, 0)]] * 4  # 32 x 100 and 100 x 8, both kept in four blocks of rows
    >>> bound_of_kept(32, 8, 100, 1, [0.25] * 4, rows) / 800  # all of the right one goes to the other three
    3.0
    >>> bound_of_kept(32, 8, 100, 1, [1.0], [[Stretch(100, 32, 8)]])
    0.0
    """
    total = 0.0
    alike = Counter((share, _merged(stretches)) for share, stretches in zip(shares, held, strict=True))
    for (share, stretches), workers in alike.items():
        total += workers * _least_elements(m, n, k, share, stretches)
    return max(0.0, round((total - m * n) * itemsize, 3))


def _merged(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """One for all that are alike."""
    lengths: Counter[tuple[int, int]] = Counter()
    for s in stretches:
        lengths[s.rows, s.columns] += s.length
    return tuple([Stretch(length, *alike) for alike, length in sorted(lengths.items())])


def _least_elements(m: int, n: int, k: int, share: float, stretches: Sequence[Stretch]) -> float:
    """What one worker receives of the operands, and has of the result."""
    operations = share * m * n * k
    least = math.inf
    for low, high in _sizes(operations / k, m * n):
        least = min(least, low + _received(m, n, operations, high, stretches))
    return least


def _sizes(least: float, most: float) -> Iterator[tuple[float, float]]:
    """Neighbours of the sizes that are looked at."""
    size = least
    while size < most:
        yield size, min(size * STEP, most)
        size *= STEP
    yield most, most


def _received(m: int, n: int, operations: float, size: float, stretches: Sequence[Stretch]) -> float:
    """Elements of the operands for so many operations, of which no l has more than `size`."""
    received, left = 0.0, operations
    for slope, room in sorted((slope, s.length * pairs) for s in stretches for slope, pairs in _slopes(m, n, size, s)):
        received += slope * max(0.0, min(left, room))
        left -= room
    return received


def _slopes(m: int, n: int, size: float, s: Stretch) -> list[tuple[float, float]]:
    """For one l: elements that are missing for each more pair, and for how many pairs, up to `size` in all."""
    held = min(size, float(s.rows * s.columns))
    more = size - held
    if more <= 0:
        return [(0.0, held)]
    for own, whole in ((s.rows, n), (s.columns, m)):
        if own > whole:  # all that is held meets all of the other operand; then more of the own one is needed
            first = min(size, float(own * whole)) - held
            return [(0.0, held), (1 / own, first), (1 / whole, more - first)]
    most = min(float(m), size / s.columns) if s.columns else float(m)
    rows = min(max(math.sqrt(size), s.rows, size / n), most)
    return [(0.0, held), ((rows + size / rows - s.rows - s.columns) / more, more)]
