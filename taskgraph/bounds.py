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
    m: int,
    n: int,
    k: int,
    itemsize: int,
    shares: Sequence[float],
    memory_bytes: float = math.inf,
    free: tuple[bool, bool] = (False, False),
) -> float:
    """The same for workers that do unequal shares of the work, whoever owns what; all of them together own everything
    once. free: whether the left and the right operand can be had anywhere, as random numbers can.

    >>> bound_of_shares(1000, 1000, 1000, 8, [1.0])
    0.0
    >>> bound_of_shares(1000, 1000, 1000, 8, [0.5, 0.5], free=(True, True))
    0.0
    """
    if not m * n * k:
        return 0.0
    sizes, made, operations = (m * k, k * n, m * n), (*free, False), m * n * k

    def words(share: float) -> float:
        needed = least_elements(share * operations, sizes, made)
        return needed if any(free) else max(needed, 2 * share * operations / math.sqrt(memory_bytes / itemsize))

    total = sum(count * words(share) for share, count in Counter(shares).items())
    owned = sum(size for size, at_hand in zip(sizes, made, strict=True) if not at_hand)
    # rounded: in the one-axis case the difference of two like numbers is all there is
    return max(0.0, round((total - owned) * itemsize, 3))


def least_elements(operations: float, sizes: Sequence[float], free: Sequence[bool]) -> float:
    """The least elements x + y + z of the three matrices for so many multiplications: x y z is at least their square
    (Loomis & Whitney, 1949), each is at most its size, and what is free is used whole and not counted.

    >>> round(least_elements(1000.0, (100.0, 100.0, 100.0), (False,) * 3), 9)  # all of it needs everything
    300.0
    >>> round(least_elements(125.0, (100.0, 100.0, 100.0), (False,) * 3), 9)  # an eighth: a cube of half the side
    75.0
    """
    if operations <= 0:
        return 0.0
    total, left = 0.0, operations**2 / math.prod(s for s, f in zip(sizes, free, strict=True) if f)
    counted = sorted(size for size, f in zip(sizes, free, strict=True) if not f)
    while counted:
        each = math.pow(left, 1 / len(counted))
        if each <= counted[0]:
            return total + each * len(counted)
        total, left = total + counted[0], left / counted[0]
        counted = counted[1:]
    return total


def area_bound(operations: float, rates: Iterable[float]) -> float:
    """The least seconds for so many operations: all devices at work all the time, at these operations per second.

    >>> area_bound(12e9, [1e9, 5e9])
    2.0
    """
    return operations / math.fsum(rates)
