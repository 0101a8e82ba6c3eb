"""Lower bounds: continuous where their cases meet, monotone, and below what known algorithms move."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskgraph.bounds import area_bound, communication_bound, least_elements

sizes = st.integers(1, 10**6)


@given(sizes, sizes, sizes, st.integers(1, 4096), st.floats(1e3, 1e12))
def test_laws_of_the_bound(m: int, n: int, k: int, workers: int, memory: float) -> None:
    found = communication_bound(m, n, k, 4, workers, memory)
    for a, b, c in itertools.permutations((m, n, k)):
        assert communication_bound(a, b, c, 4, workers, memory) == found
    assert found >= communication_bound(m, n, k, 4, workers) >= 0
    assert communication_bound(m, n, k, 8, workers, 2 * memory) == pytest.approx(2 * found, abs=0.01)


@given(sizes, sizes, sizes, st.integers(2, 64))
def test_no_grid_moves_less(m: int, n: int, k: int, workers: int) -> None:
    """Every grid of as many blocks as workers, whose blocks of equal size are owned by some that use them."""
    bound = communication_bound(m, n, k, 1, workers)
    for gm, gn in itertools.product(range(1, workers + 1), repeat=2):
        if workers % (gm * gn) == 0:
            gk = workers // (gm * gn)
            moved = m * k * (gn - 1) + k * n * (gm - 1) + m * n * (gk - 1)
            assert moved >= bound * (1 - 1e-9) - 0.01


def test_the_cases_meet() -> None:
    m, n, k = 6400, 400, 100  # 16 workers where one axis ends, 256 where three begin
    for p in (16, 256):
        before, after = (communication_bound(m, n, k, 4, q) / q for q in (p, p + 1))
        assert after == pytest.approx(before, rel=0.1)


def test_little_memory_raises_the_bound() -> None:
    n = 8192
    bounds = [communication_bound(n, n, n, 4, 16, memory) for memory in (2**40, 2**30, 2**24, 2**22)]
    assert bounds[0] == bounds[1] < bounds[2] < bounds[3]
    assert bounds[3] == pytest.approx(2 * n**3 / math.sqrt(2**20) * 4, rel=0.2)


def test_the_least_elements() -> None:
    cube = (1e6, 1e6, 1e6)
    assert least_elements(0.0, cube, (False,) * 3) == 0
    assert least_elements(1e9, cube, (False,) * 3) == pytest.approx(3e6)
    assert least_elements(1e9 / 64, cube, (False,) * 3) == pytest.approx(3e6 / 16)
    assert least_elements(1e9, cube, (True, True, False)) == pytest.approx(1e6)
    flat = (1e4, 1e8, 1e8)  # a small matrix is used whole by everybody
    assert least_elements(1e10 / 4, flat, (False,) * 3) == pytest.approx(1e4 + 2 * 1e8 / 4)


def test_area() -> None:
    assert area_bound(100, [20, 30]) == 2
