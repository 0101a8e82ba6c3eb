"""A matrix times its own transpose: one triangle of tiles is computed, and only where that is sooner."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning import value

import taskgraph as tg
from taskgraph.gram import gram_flops, is_gram
from taskgraph.jobs import jobs_of
from taskgraph.lower import lower
from taskgraph.passes import simplify
from taskgraph.plan import TAG, Plan, ProductPlan
from taskgraph.plan import plan as plan_roots


def machine(cpus: int = 2, gpus: int = 0, gflops: float = 1e-3, memory: int = 2**34) -> tg.Machine:
    devices = [tg.Device("cpu", memory, gflops) for _ in range(cpus)]
    return tg.Machine(devices=[*devices, *(tg.Device("gpu", memory, gflops) for _ in range(gpus))], task_seconds=1e-6)


def planned(t: tg.Tensor, m: tg.Machine) -> tuple[Plan, ProductPlan]:
    found = plan_roots(simplify([t.expr]), m)
    (p,) = found.products.values()
    return found, p


def data(*shape: int, seed: int = 0, chunks: Any = -1, dtype: str = "float64") -> tg.Tensor:
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(shape)
    return tg.asarray(
        (made + 1j * rng.standard_normal(shape) if dtype[0] == "c" else made).astype(dtype), chunks=chunks
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(
    shape=st.tuples(st.sampled_from([2, 31, 80]), st.sampled_from([1, 50, 300])),
    chunks=st.sampled_from([-1, 17, 40]),
    turned=st.booleans(),
    dtype=st.sampled_from(["float32", "float64", "complex128", "int64"]),
    lead=st.sampled_from([(), (1,), (2,)]),
    source=st.booleans(),
    pin=st.sampled_from([None, "cpu", "gpu", "cpu+gpu"]),
    m=st.sampled_from([machine(2, 1), machine(5, 2), machine(3, 1, memory=2**17)]),
)
def test_values(
    shape: Any, chunks: int, turned: bool, dtype: str, lead: Any, source: bool, pin: str | None, m: tg.Machine
) -> None:
    is_made = source and dtype[0] == "f"
    x = (
        tg.randn(*lead, *shape, seed=3, dtype=dtype, chunks=chunks)
        if is_made
        else data(*lead, *shape, chunks=chunks, dtype=dtype)
    )
    with tg.device(pin):
        t = x.mT @ x if turned else x @ x.mT
    plan, p = planned(t, m)
    found = value(lower(plan), t.ndim)
    x_ = np.asarray(x.compute(scheduler="synchronous"))
    expected = x_.swapaxes(-1, -2) @ x_ if turned else x_ @ x_.swapaxes(-1, -2)
    scale = {"float32": 1e-3}.get(dtype, 1e-9)
    np.testing.assert_allclose(found, expected, rtol=scale, atol=scale)
    if p.mirrored:
        assert p.grid.m == p.grid.n
        at = np.cumsum([0, *p.grid.m])
        for i in range(1, len(p.grid.m)):  # the very bits, but within the tiles of the diagonal
            below = found[..., at[i] : at[i + 1], : at[i]]
            np.testing.assert_array_equal(below, found[..., : at[i], at[i] : at[i + 1]].swapaxes(-1, -2))


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 0), (4, 0), (16, 0), (0, 2), (0, 1)])
def test_a_triangle_is_computed(cpus: int, gpus: int) -> None:
    m = machine(cpus, gpus)
    n = 20_000 if gpus else 800  # a GPU is slow with small tiles
    x = tg.placeholder("float64", (n, 900), chunks=-1)
    _, p = planned(x @ x.T, m)
    _, full = planned(x @ tg.placeholder("float64", (900, n), chunks=-1), m)
    assert p.mirrored
    assert not full.mirrored
    assert p.flops == gram_flops(*simplify([(x @ x.T).expr])) < 0.51 * full.flops
    assert 0.5 * full.seconds < p.seconds < 0.85 * full.seconds
    assert p.seconds >= p.area_seconds
    g = len(p.grid.m)
    owner = np.asarray(p.slots).reshape(g, g)
    assert (owner == owner.T).all()


def test_its_tasks() -> None:
    x = tg.randn(600, 900, seed=1)
    plan, p = planned(x @ x.T, machine(4))
    assert p.mirrored
    g = len(p.grid.m)
    tasks, kernels = lower(plan).graph, Counter[str]()
    for layer in tasks.layers.values():
        for key, task in dict(layer).items():
            tag = layer.annotations[TAG](key) if callable(layer.annotations[TAG]) else layer.annotations[TAG]
            if "product" in tag:
                kernel = task.args[0]
                kernels[getattr(kernel, "__name__", "") or kernel.func.__name__] += 1
                assert tag["tile"] == (*key[1:], 0)
                assert tag["slot"] == p.slots[key[1] * g + key[2]]
    assert kernels == {"_tile": g * (g + 1) // 2, "turned": g * (g - 1) // 2}
    jobs = [j for j in jobs_of(plan).items if j.label.startswith("matmul")]
    assert Counter(bool(j.flops) for j in jobs) == {True: g * (g + 1) // 2, False: g * (g - 1) // 2}


def test_what_is_no_gain_stays_as_it_is() -> None:
    fast = machine(2, gflops=50.0)
    thin, wide = (tg.placeholder("float64", (4000, k), chunks=(1000, k), name="X") for k in (1, 4000))
    assert not planned(thin @ thin.T, fast)[1].mirrored  # to turn a tile takes longer than to multiply it
    assert planned(wide @ wide.T, fast)[1].mirrored
    assert not planned(wide @ wide.T, machine(1))[1].mirrored  # NumPy does the same inside one task
    other = tg.placeholder("float64", (4000, 4000), chunks=1000)
    assert not planned(wide @ other.T, fast)[1].mirrored


def test_work_behind_it_is_apart() -> None:
    """A tile is turned before its bias is added."""
    x, row = data(60, 300, seed=1), data(60, seed=2)
    plan, p = planned(tg.tanh(x @ x.T / 300 + row), machine(4))
    assert p.mirrored
    x_, row_ = np.asarray(x.compute()), np.asarray(row.compute())
    np.testing.assert_allclose(value(lower(plan), 2), np.tanh(x_ @ x_.T / 300 + row_), rtol=1e-12)


def test_the_gradient() -> None:
    x = tg.randn(60, 80, seed=1, dtype="float64")
    assert is_gram(*simplify([(x @ x.T).expr]))
    w = data(60, 60, seed=2)
    (g,) = tg.gradients(tg.sum(w * (x @ x.T)), [x])
    w_, x_ = np.asarray(w.compute()), np.asarray(x.compute())
    np.testing.assert_allclose(g.compute(), (w_ + w_.T) @ x_, rtol=1e-10, atol=1e-10)
