"""Random arrays: the same numbers however they are cut, pinned and scheduled; and good ones."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import dask
import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import taskgraph as tg
from taskgraph import random as ours
from taskgraph.execute import assemble
from taskgraph.lower import lower
from taskgraph.plan import plan

FIRST = [-0.8025458906390128, 0.45751928097784245, -0.31455873558038694]
IN_A_LATER_CELL = [0.6917576411852918, -0.17868901818102917, -0.028358653197985646]
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
METHODS: dict[str, Any] = {
    "standard_normal": lambda rng, shape, **k: rng.standard_normal(shape, **k),
    "random": lambda rng, shape, **k: rng.random(shape, **k),
    "float32": lambda rng, shape, **k: rng.standard_normal(shape, dtype="float32", **k),
    "float16": lambda rng, shape, **k: rng.random(shape, dtype="float16", **k),
    "integers": lambda rng, shape, **k: rng.integers(-5, 100, shape, **k),
    "int8": lambda rng, shape, **k: rng.integers(0, 128, shape, dtype="int8", **k),
    "uniform": lambda rng, shape, **k: rng.uniform(-1, 3, shape, **k),
    "normal": lambda rng, shape, **k: rng.normal(2, 3, shape, **k),
    "exponential": lambda rng, shape, **k: rng.exponential(2.0, shape, **k),
}


def numbers(
    method: str, shape: tuple[int, ...], seed: int, chunks: Any = -1, scheduler: str = "synchronous"
) -> np.ndarray:
    found = METHODS[method](tg.random.default_rng(seed), shape, chunks=chunks).compute(scheduler=scheduler)
    return np.asarray(found)


@st.composite
def shapes_and_chunks(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    shape, chunks = [], []
    for _ in range(draw(st.integers(0, 3))):
        blocks = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        shape.append(sum(blocks))
        chunks.append(tuple(blocks))
    return tuple(shape), tuple(chunks)


@QUICK
@given(
    shapes_and_chunks(),
    st.sampled_from(sorted(METHODS)),
    st.integers(0, 2**64),
    st.sampled_from([(2**20, 1024), (32, 4), (5, 3)]),
)
def test_numbers_do_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch, cut: tuple[tuple[int, ...], Any], method: str, seed: int, cell: tuple[int, int]
) -> None:
    """Small cells stand for large arrays: blocks then begin and end within cells, and span several."""
    shape, chunks = cut
    monkeypatch.setattr(ours, "CELL", cell[0])
    monkeypatch.setattr(ours, "EDGE", cell[1])
    whole = numbers(method, shape, seed)
    np.testing.assert_array_equal(numbers(method, shape, seed, chunks), whole)
    assert whole.shape == shape


def test_numbers_of_several_real_cells_do_not_depend_on_the_blocks() -> None:
    whole = numbers("standard_normal", (1100, 1030), 3)
    np.testing.assert_array_equal(numbers("standard_normal", (1100, 1030), 3, (600, 700)), whole)
    assert len(np.unique(whole)) == whole.size  # no cell repeats another


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_numbers_do_not_depend_on_the_scheduler(scheduler: str) -> None:
    expected = numbers("random", (20, 30), 5)
    np.testing.assert_array_equal(numbers("random", (20, 30), 5, (7, 11), scheduler), expected)


def test_numbers_do_not_depend_on_the_process() -> None:
    made = "tg.random.default_rng(11).standard_normal((3, 4), chunks=2)"
    text = f"import taskgraph as tg; print({made}.compute().tobytes().hex())"
    found = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.strip() == numbers("standard_normal", (3, 4), 11).tobytes().hex()


def test_numbers_are_those_of_the_first_release() -> None:
    """A change here breaks every user's saved seed: raise the version and say so."""
    found = tg.random.default_rng(0).standard_normal(3).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, FIRST, rtol=1e-12)
    found = tg.random.default_rng(0).standard_normal((600, 600))[300:303, 300].compute(scheduler="synchronous")
    np.testing.assert_allclose(found, IN_A_LATER_CELL, rtol=1e-12)


def test_a_small_block_draws_little() -> None:
    """At most four cells, whatever the size of the array."""
    assert ours._cell_shape((10**6, 10**6)) == (256, 256)
    assert ours._cell_shape((10**9,)) == (2**16,)


@pytest.mark.parametrize("pin", [None, "cpu", "gpu", "gpu:0", "cpu+gpu"])
def test_numbers_do_not_depend_on_pins_and_plans(pin: str | None) -> None:
    """A product of random matrices on made-up machines, whose plans cut the sources differently."""
    n = 64
    expected = numbers("standard_normal", (n, n), 1) @ numbers("random", (n, n), 2)
    for rate, memory in ((1e-4, 2**30), (1e-2, 2**30), (1e-3, 2**16)):
        machine = tg.Machine(
            devices=[*[tg.Device("cpu", memory, rate, threads=2)] * 2, tg.Device("gpu", memory, 5 * rate)],
            task_seconds=1e-5,
        )
        with tg.device(pin):
            a = tg.random.default_rng(1).standard_normal((n, n), chunks=24)
            c = a @ tg.random.default_rng(2).random((n, n))
        graph = lower(plan([c.expr, a.expr], machine))
        found = dask.get(graph.graph.to_dict(), graph.keys)
        np.testing.assert_allclose(np.asarray(assemble(found[0], 2)), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(np.asarray(assemble(found[1], 2)), numbers("standard_normal", (n, n), 1))


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_arrays_in_the_same_order() -> None:
    one, other = tg.random.default_rng(7), tg.random.default_rng(7)
    for _ in range(3):
        np.testing.assert_array_equal(one.random(5).compute(), other.random(5).compute())
    np.testing.assert_array_equal(tg.randn(3, 4, seed=2).compute(), tg.randn((3, 4), seed=2).compute())
    assert not np.array_equal(tg.randn(5).compute(), tg.randn(5).compute())
    t = tg.random.default_rng(None).random(5)
    np.testing.assert_array_equal(t.compute(), t.compute())  # one array is one array


@QUICK
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_streams_are_distinct(seed: int, other: int) -> None:
    assume(seed != other)
    rng = tg.random.default_rng(seed)
    streams = [rng.random(40), rng.random(40), tg.random.default_rng(other).random(40)]
    for a, b in itertools.combinations([s.compute(scheduler="synchronous") for s in streams], 2):
        assert not np.isin(a, b).any()


def test_streams_and_cells_are_not_correlated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "CELL", 64)
    rng = tg.random.default_rng(1)
    streams = np.array([rng.standard_normal(4096).compute(scheduler="synchronous") for _ in range(8)])
    limit = 5 / np.sqrt(4096)  # five deviations
    assert np.abs(np.corrcoef(streams) - np.eye(8)).max() < limit
    cells = streams[0].reshape(64, 64)
    assert np.abs(np.corrcoef(cells) - np.eye(64)).max() < 5 / np.sqrt(64)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(streams[0][:-lag], streams[0][lag:])[0, 1]) < limit


# -- statistics --------------------------------------------------------------------------------------------------------

DISTRIBUTIONS: dict[str, Any] = {
    "standard_normal": scipy.stats.norm(),
    "random": scipy.stats.uniform(),
    "uniform": scipy.stats.uniform(-1, 4),
    "normal": scipy.stats.norm(2, 3),
    "exponential": scipy.stats.expon(scale=2),
    "float32": scipy.stats.norm(),
}


@pytest.mark.parametrize("method", DISTRIBUTIONS)
def test_distributions(method: str) -> None:
    values = numbers(method, (200, 100), 12345, 30).ravel()
    assert scipy.stats.kstest(values, DISTRIBUTIONS[method].cdf).pvalue > 1e-3
    assert abs(values.mean() - DISTRIBUTIONS[method].mean()) < 5 * DISTRIBUTIONS[method].std() / np.sqrt(values.size)


def test_integers() -> None:
    values = numbers("integers", (200, 100), 3, 30)
    assert (values.min(), values.max()) == (-5, 99)
    counts = np.bincount(values.ravel() + 5)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    rng = tg.random.default_rng(1)
    assert set(rng.integers(3, size=100).compute().tolist()) == {0, 1, 2}
    assert rng.integers(0, 256, 10, dtype="uint8").dtype == np.uint8


def test_types_and_shapes() -> None:
    rng = tg.random.default_rng(1)
    for dtype in ("float16", "float32", "float64"):
        t = rng.standard_normal((3, 2), dtype=dtype)
        assert (t.dtype, t.compute().dtype) == (np.dtype(dtype), np.dtype(dtype))
    assert rng.random().shape == ()
    assert rng.random(3).shape == (3,)
    assert rng.random((2, 0)).compute().shape == (2, 0)
    assert (tg.randn(2, 3).dtype, tg.randn(2, 3).shape, tg.randn().shape) == (np.float32, (2, 3), ())
    assert rng.random((4, 4), chunks=2).chunks == ((2, 2), (2, 2))
    assert rng.random(3, device="gpu").device == "gpu"
    assert repr(tg.random.default_rng(5)).startswith("tg.random.Generator(seed=5, drawn=0)")
    values = numbers("float16", (64, 64), 1)
    assert values.min() >= 0


def test_half_precision_stays_below_one() -> None:
    """`random` promises [0, 1): rounding to a short type must not reach 1."""
    assert numbers("float16", (300, 300), 1).max() < 1
