"""Tiles dealt to unequal slots: how many each gets, and which, so that few bytes of the operands move.

Design note. A slot that computes h x w tiles of the output needs h block rows of one operand and w block columns of the
other, so near-square rectangles are best. The column-based partition (Beaumont, Boudet, Rastello & Robert, "Matrix
multiplication on heterogeneous platforms", IEEE TPDS 2001) divides the output in columns, each shared by some slots one
above the other, and finds the best columns by dynamic programming over the slots sorted by speed. Here the output is a
grid, so shares are whole tiles: the columns' borders are rounded to it, and every slot takes its tiles in a run down a
column, which is a rectangle but for ragged ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

#: The dynamic programme takes the square of the slots. Beyond so many (chosen: 2 ms), columns are taken of equal area.
MOST_SLOTS_EXACT = 64


def deal(tiles: int, rates: Floats | Sequence[float]) -> Counts:
    """Equal tiles dealt to slots so that the last one is done as early as can be.

    Within a time T a slot does floor(T * rate) tiles; T is found by bisection, and tiles beyond the wanted number are
    taken from the slots that would end last.

    >>> deal(8, [3.0, 1.0])
    array([6, 2])
    """
    r = np.asarray(rates, dtype=float) / np.sum(rates)
    if tiles % len(r) == 0 and r.max() == r.min():
        return np.full(len(r), tiles // len(r))
    low, high = 0.0, float(tiles + len(r))  # at `high` even rounding down leaves enough
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if np.floor(middle * r).sum() >= tiles else (middle, high)
    counts = np.floor(high * r * (1 + 1e-12)).astype(np.int64)
    excess = int(counts.sum()) - tiles
    if excess:
        last = np.argsort(-counts / r, kind="stable")
        counts[last[counts[last] > 0][:excess]] -= 1
    return counts


def rectangles(gm: int, gn: int, counts: Counts, row: float = 1.0, column: float = 1.0) -> Counts:
    """The slot of every tile of a gm x gn grid, in row-major order: near-rectangles of `counts[slot]` tiles.

    row, column: what a block row and a block column cost a slot that has tiles in it.

    >>> rectangles(2, 4, np.array([4, 4])).reshape(2, 4)
    array([[0, 0, 1, 1],
           [0, 0, 1, 1]])
    >>> rectangles(3, 3, np.array([6, 2, 1])).reshape(3, 3)
    array([[0, 0, 2],
           [0, 0, 1],
           [0, 0, 1]])
    """
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    share = np.cumsum(counts[order]) / (gm * gn)
    borders = np.unique(np.rint(share[_columns(share, gm, gn, row, column)] * gn).astype(int))
    path = np.concatenate([_down(gm, gn, a, b, up=n % 2 == 1) for n, (a, b) in enumerate(_pairs(borders))])
    owner = np.empty(gm * gn, dtype=np.int64)
    owner[path] = np.repeat(order, counts[order])
    return owner


def _pairs(borders: Counts) -> list[tuple[int, int]]:
    inner = [int(b) for b in borders if b > 0]
    return list(zip([0, *inner[:-1]], inner, strict=True))


def _down(gm: int, gn: int, start: int, stop: int, up: bool) -> Counts:
    """The tiles of some columns, row by row; every other time upwards, so that a run around the end stays together."""
    rows = np.arange(gm)[::-1] if up else np.arange(gm)
    return (rows[:, None] * gn + np.arange(start, stop)).ravel()


def _columns(share: Floats, gm: int, gn: int, row: float, column: float) -> Counts:
    """Which slots (sorted by area) are the last of their column; `share`: areas summed up, the last is 1.

    A column of k slots and width w costs gm block rows, once, and k times its w * gn block columns.
    """
    if len(share) > MOST_SLOTS_EXACT:
        return _equal_columns(share, gm, gn, row, column)
    before = np.concatenate([[0.0], share])
    least = np.zeros(len(before))
    start = np.zeros(len(before), dtype=np.int64)
    for end in range(1, len(before)):
        width = before[end] - before[:end]
        cost = least[:end] + row * gm + column * gn * width * (end - np.arange(end))
        start[end] = int(np.argmin(cost))
        least[end] = cost[start[end]]
    ends, end = [], len(share)
    while end:
        ends.append(end - 1)
        end = int(start[end])
    return np.asarray(ends[::-1])


def _equal_columns(share: Floats, gm: int, gn: int, row: float, column: float) -> Counts:
    """As many columns of about equal area as are best for slots of about equal speed."""
    slots = len(share)
    best = math.sqrt(column * gn * slots / max(row * gm, 1e-300))
    number = min(max(1, round(best)), slots, gn)
    ends = np.searchsorted(share, np.arange(1, number + 1) / number - 1e-9)
    return np.unique(np.minimum(ends, slots - 1))
