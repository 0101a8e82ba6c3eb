"""What no plan can beat: the fewest bytes that a product moves between workers, and the least time that it takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


def communication_bound(m: int, n: int, k: int, itemsize: int, workers: int, memory_bytes: float = math.inf) -> float:
    """The least bytes that workers must get from each other for (m, k) @ (k, n), over all of them together.

    Each does an equal part of the work and owns an equal part of both operands and of the result, kept once. The
    greater of two bounds:

    - Whatever the memory (Al Daas, Ballard, Grigori, Kumar & Rouse, "Tight memory-independent parallel matrix
      multiplication communication lower bounds", SPAA 2022, theorem 3). With the sizes sorted, d1 >= d2 >= d3, a worker
      needs D words, less the (d1 d2 + d1 d3 + d2 d3) / p that it owns::

          D = (d1 d2 + d1 d3) / p + d2 d3             where         p <= d1 / d2         (one axis is cut)
          D = d1 d2 / p + 2 sqrt(d1 d2 d3^2 / p)      where d1 / d2 <= p <= d1 d2 / d3^2 (two are)
          D = 3 (d1 d2 d3 / p)^(2/3)                  where         p >= d1 d2 / d3^2    (all three)

    - With room for S words on each: 2 m n k / (p sqrt(S)), less what it owns. The order is Irony, Toledo & Tiskin's
      (JPDC 2004), the constant 2 is tight (Smith et al., "A tight I/O lower bound for matrix multiplication", 2019;
      Kwasniewski et al., "Red-blue pebbling revisited", SC'19, whose COSMA reaches it); the terms of lower order are
      left out.

    >>> round(communication_bound(8192, 8192, 8192, 4, 2) / (8192 * 8192 * 4), 2)  # a block row each needs 1.0
    0.78
    >>> communication_bound(1000, 1000, 1000, 8, 64) / 8e6  # a 4 x 4 x 4 grid: three times each of the three
    9.0
    >>> communication_bound(10_000, 100, 100, 4, 4) / (100 * 100 * 4)  # the small operand goes to the other three
    3.0
    >>> communication_bound(1000, 1000, 1000, 8, 1)
    0.0
    """
    return bound_of_shares(m, n, k, itemsize, [1 / max(1, workers)] * workers, memory_bytes)


def bound_of_shares(
    m: int, n: int, k: int, itemsize: int, shares: Sequence[float], memory_bytes: float = math.inf
) -> float:
    """The same for workers that do unequal shares of the work, whoever owns what: a worker with a share s needs as many
    words as one of 1 / s equal ones, and all of them together own everything once.

    >>> bound_of_shares(1000, 1000, 1000, 8, [1.0])
    0.0
    """
    if not m * n * k:
        return 0.0
    words = sum(count * _words(m, n, k, share, memory_bytes / itemsize) for share, count in Counter(shares).items())
    owned = m * n + m * k + k * n
    # rounded: in the one-axis case the difference of two like numbers is all there is
    return max(0.0, round((words - owned) * itemsize, 3))


def _words(m: int, n: int, k: int, share: float, memory: float) -> float:
    """Words of all three matrices that a worker needs for its share of the operations."""
    d3, d2, d1 = sorted(map(float, (m, n, k)))
    p = 1 / share
    if p <= d1 / d2:
        needed = (d1 * d2 + d1 * d3) / p + d2 * d3
    elif p <= d1 * d2 / d3**2:
        needed = d1 * d2 / p + 2 * math.sqrt(d1 * d2 * d3**2 / p)
    else:
        needed = 3 * (d1 * d2 * d3 / p) ** (2 / 3)
    return max(needed, 2 * d1 * d2 * d3 / (p * math.sqrt(memory)))


def area_bound(operations: float, rates: Iterable[float]) -> float:
    """The least seconds for so many operations: all devices at work all the time, at these operations per second.

    >>> area_bound(12e9, [1e9, 5e9])
    2.0
    """
    return operations / math.fsum(rates)
