"""The bound for operands that lie as they lie: nothing that can be done moves less."""

from __future__ import annotations

import numpy as np
import pytest

from taskgraph.bounds import communication_bound
from taskgraph.owned import Stretch, bound_of_kept


def moved(owner_a: np.ndarray, owner_b: np.ndarray, does: np.ndarray, workers: int) -> int:
    """Elements that cross if worker does[i, l, j] multiplies A[i, l] by B[l, j]: each operand's to whoever needs it and
    has it not, each result's from all but one of those who have a part of it."""
    found = -does.shape[0] * does.shape[2]
    for w in range(workers):
        mine = does == w
        found += int((mine.any(axis=2) & (owner_a != w)).sum() + (mine.any(axis=0) & (owner_b != w)).sum())
        found += int(mine.any(axis=1).sum())
    return found


def stretches(owner_a: np.ndarray, owner_b: np.ndarray, worker: int) -> list[Stretch]:
    """One for each l."""
    of_a, of_b = (owner_a == worker).sum(axis=0), (owner_b == worker).sum(axis=1)
    return [Stretch(1, int(p), int(q)) for p, q in zip(of_a, of_b, strict=True)]


def blocks(size: int, parts: int) -> np.ndarray:
    return np.arange(size) * parts // size


@pytest.mark.parametrize("seed", range(10))
def test_no_assignment_moves_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    workers = int(rng.integers(1, 5))
    m, k, n = (int(x) for x in rng.integers(workers, 13, 3))
    layouts = rng.integers(0, 4, 2)  # rows, columns, squares, anything
    owners = []
    for (rows, columns), layout in zip(((m, k), (k, n)), layouts, strict=True):
        by_row, by_column = blocks(rows, workers)[:, None], blocks(columns, workers)[None]
        grid = (blocks(rows, 2)[:, None] * 2 + blocks(columns, 2)[None]) % workers
        spread = rng.integers(0, workers, (rows, columns))
        owners.append([by_row + 0 * by_column, by_column + 0 * by_row, grid, spread][layout])
    i, at, j = np.indices((m, k, n))
    pr, pk, pc = blocks(m, workers)[i], blocks(k, workers)[at], blocks(n, workers)[j]
    ways = [pr, pk, pc, (pr + pk) % workers, (pr * 2 + pc) % workers]
    for does in ways:
        shares = [float((does == w).mean()) for w in range(workers)]
        held = [stretches(*owners, w) for w in range(workers)]
        least = bound_of_kept(m, n, k, 1, shares, held)
        assert least <= moved(*owners, does, workers) + 1e-6, (m, k, n, workers, layouts)


@pytest.mark.parametrize("shape", [(4096, 4096, 4096), (51200, 512, 512), (512, 51200, 512)])
@pytest.mark.parametrize("workers", [4, 16])
def test_what_plans_of_rows_move_is_near_it(shape: tuple[int, int, int], workers: int) -> None:
    m, k, n = shape
    rows, deep = m // workers, k // workers
    held = [[Stretch(deep, rows, n), Stretch(k - deep, rows, 0)]] * workers
    least = bound_of_kept(m, n, k, 1, [1 / workers] * workers, held)
    half = int(workers**0.5)
    a, b, others = m * k, k * n, workers - 1
    plans = [  # rows stay and the right one goes to all; k is cut, and parts are summed; a square grid
        others * b,
        a * others / workers + others * m * n,
        (half - 1) * a + (half - 1 / half) * b,
    ]
    assert least <= min(plans) <= 1.25 * least
    assert least >= communication_bound(m, n, k, 1, workers) * 0.999


def test_less_is_held_more_moves() -> None:
    found = [bound_of_kept(64, 64, 64, 1, [0.5, 0.5], [[Stretch(64, held, held)]] * 2) for held in (32, 24, 8, 0)]
    assert found == sorted(found)
    assert found[-1] > found[0]
