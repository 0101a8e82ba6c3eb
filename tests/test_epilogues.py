"""Elementwise work behind a product runs in the tasks of its tiles: with the same bits, and only where it belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import dask
import numpy as np
import pytest
from distributed import Client, wait
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning import plan, tags, value

import taskgraph as tg
from deploy.local import LocalCluster
from taskgraph import passes
from taskgraph.execute import assemble
from taskgraph.jobs import jobs_of
from taskgraph.lower import lower
from taskgraph.machine import Machine
from taskgraph.passes import align, group
from taskgraph.plan import plan as plan_roots
from workers import backend, counters, emulated
from workers.device_tile import DeviceTile, run
from workers.kernels import epilogue, gemm_panel

Made = Callable[..., tg.Tensor]


def machine(cpus: int = 2, gpus: int = 0, memory: int = 2**34, **more: Any) -> Machine:
    """Devices so slow that nothing is small, so fast between them that k is cut."""
    devices = [tg.Device("cpu", memory, 1e-3) for _ in range(cpus)]
    devices += [tg.Device("gpu", memory, 1e-3, **more) for _ in range(gpus)]
    return tg.Machine(devices=devices, task_seconds=1e-6)


CPUS, MIXED = machine(), machine(1, 2)
ONE_GPU = tg.Machine(devices=[tg.Device("cpu", 2**34, 1e-3), tg.Device("gpu", 2**34, 1.0)], task_seconds=1e-6)


def apart() -> Any:
    """Products without epilogues."""
    return mock.patch.object(passes, "_epilogues", return_value={})


def data(*shape: int, seed: int = 0, chunks: Any = -1, dtype: str = "float64") -> tg.Tensor:
    return tg.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype), chunks=chunks)


def joined(t: tg.Tensor, m: Machine) -> list[str]:
    """What runs behind each product."""
    groups = group(align(plan(t, m)))
    return [" ".join(n.op.name for n in g.behind) for g in groups if g.product is not None]


# -- values ------------------------------------------------------------------------------------------------------------

#: What may stand behind a product `p`, given a row, a column and a whole of its shape.
BEHIND: dict[str, Callable[..., Any]] = {
    "bias": lambda xp, p, row, column, whole: xp.tanh(p + row),
    "scaled": lambda xp, p, row, column, whole: 0.5 * p * column - 1,
    "residual": lambda xp, p, row, column, whole: whole + p / 3,
    "gate": lambda xp, p, row, column, whole: xp.where(p > row, p, whole),
    "twice": lambda xp, p, row, column, whole: p * (1 - p * p),
    "mask": lambda xp, p, row, column, whole: (p + row) > 0,
}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(
    what=st.sampled_from(sorted(BEHIND)),
    shape=st.tuples(*[st.sampled_from([1, 5, 24, 60])] * 3),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    cut=st.sampled_from([-1, 7, 20]),
    turned=st.booleans(),
    pin=st.sampled_from([None, "cpu", "gpu", "gpu:1", "cpu+gpu"]),
    m=st.sampled_from([CPUS, MIXED, machine(3, 2, 2**14)]),
)
def test_values_and_bits(
    what: str, shape: Any, batch: Any, cut: int, turned: bool, pin: str | None, m: Machine
) -> None:
    rows, k, columns = shape
    if not m.of_kind("gpu") and pin is not None:
        pin = "cpu"
    a = data(*batch, *((k, rows) if turned else (rows, k)), seed=1, chunks=cut)
    b = data(k, columns, seed=2, chunks=cut)
    others = data(columns, seed=3), data(rows, 1, seed=4, chunks=cut), data(*batch, rows, columns, seed=5, chunks=cut)
    with tg.device(pin):
        p = (a.mT if turned else a) @ b
    t = BEHIND[what](tg, p, *others)
    a_, b_, *others_ = [np.asarray(x.compute(scheduler="synchronous")) for x in (a, b, *others)]
    expected = BEHIND[what](np, (a_.swapaxes(-1, -2) if turned else a_) @ b_, *others_)
    planned = plan(t, m)
    behind = lower(planned)
    with apart():
        before = lower(plan(t, m))
    found = value(behind, t.ndim)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(found, value(before, t.ndim))
    if len(before.graph) > 1:  # else all of it was one small task: it is smaller where it has more groups
        assert len(behind.graph) <= len(before.graph)


def test_panels_are_finished_once() -> None:
    """A tile whose panels are summed elsewhere, or in a chain, gets its bias behind the last sum."""
    m = machine(4)
    t = tg.tanh(data(8, 4096, chunks=(8, 256)) @ data(4096, 8, chunks=(256, 8)) + data(8))
    g = lower(plan(t, m))
    (p,) = g.plan.products.values()
    assert p.panels > 1
    with apart():
        before = lower(plan(t, m))
    np.testing.assert_array_equal(value(g, t.ndim), value(before, t.ndim))
    assert len(before.graph.to_dict()) - len(g.graph.to_dict()) == p.strips


def test_chains_of_panels_on_one_worker() -> None:
    m = tg.Machine(devices=[tg.Device("cpu", 600_000, 1e-3)], task_seconds=1e-6)
    a, b = data(150, 600, chunks=(150, 50)), data(600, 150, chunks=(50, 150))
    t = tg.tanh(a @ b + data(150))
    g = lower(plan(t, m))
    (p,) = g.plan.products.values()
    assert p.panels > 1
    assert all(len(p.chains(tile)) == 1 for tile in range(len(p.slots) // p.panels))
    with apart():
        before = lower(plan(t, m))
    np.testing.assert_array_equal(value(g, t.ndim), value(before, t.ndim))


# -- tasks -------------------------------------------------------------------------------------------------------------


def layer(m: int = 512, k: int = 256, n: int = 384) -> tg.Tensor:
    return tg.tanh(tg.randn(m, k, seed=1) @ tg.randn(k, n, seed=2) + tg.randn(n, seed=3))


@pytest.mark.parametrize("m", [CPUS, MIXED, ONE_GPU], ids=["cpus", "mixed", "gpu"])
def test_a_layer_is_one_task_a_tile(m: Machine) -> None:
    g = lower(plan(layer(), m))
    (p,) = g.plan.products.values()
    named = {key: tag for key, tag in tags(g).items() if "product" in tag}
    assert sorted(g.keys[0][i][j] for i in range(p.grid.shape[0]) for j in range(p.grid.shape[1])) == sorted(named)
    assert len(named) == len(p.slots)
    for (name, *index), tag in named.items():
        assert name.startswith("matmul-")
        assert dask.utils.key_split(name) == "matmul"
        assert (tag["product"], tag["grid"], tag["tile"]) == (name, p.grid.shape, (*index, 0))
        at = index[0] * p.grid.shape[1] + index[1]
        assert (tag["kind"], tag.get("slot")) == (p.kinds[at], p.slots[at])


def test_the_simulation_has_the_same_tasks() -> None:
    for m in (CPUS, MIXED, machine(3, 2, 2**16)):
        g, jobs = lower(plan(layer(), m)), jobs_of(plan(layer(), m))
        of_products = Counter((t["kind"], t.get("slot")) for t in tags(g).values() if "product" in t)
        assert Counter((j.kind, j.slot) for j in jobs.items if j.label.startswith("matmul")) == of_products
        assert not [j.label for j in jobs.items if j.label.startswith("tanh")]
        assert sum(jobs.items[n].nbytes for n in jobs.results) == layer().nbytes


def test_another_epilogue_is_another_key() -> None:
    """Dask would take the one for the other where a key is still alive."""
    a, b, row = data(64, 64), data(64, 64, seed=1), data(64, seed=2)
    ts = [tg.tanh(a @ b + row), tg.sin(a @ b + row), tg.tanh(a @ b - row), a @ b, tg.tanh(a @ b + 2 * row)]
    with apart():
        names = [lower(plan(ts[0], CPUS)).outputs[0].name]
    names += [lower(plan(t, CPUS)).outputs[0].name for t in ts]
    assert len(set(names)) == len(names)


def test_a_step_of_training_has_no_more_tasks() -> None:
    x, y = tg.randn(256, 64, chunks=(64, 64), seed=1), tg.randn(256, 8, chunks=(64, 8), seed=2)
    w1, w2 = (tg.randn(*s, seed=n).detach() for n, s in enumerate([(64, 128), (128, 8)]))
    loss = tg.mean((tg.tanh(x @ w1) @ w2 - y) ** 2)
    roots = [loss, *tg.gradients(loss, [w1, w2])]
    with_them = lower(plan_roots([t.expr for t in roots], CPUS))
    with apart():
        without = lower(plan_roots([t.expr for t in roots], CPUS))
    assert len(with_them.graph.to_dict()) < len(without.graph.to_dict())
    for i, t in enumerate(roots):
        one, other = (dask.get(g.graph.to_dict(), g.keys)[i] for g in (with_them, without))
        np.testing.assert_array_equal(assemble(one, t.ndim), assemble(other, t.ndim))


# -- what joins --------------------------------------------------------------------------------------------------------


def test_what_joins() -> None:
    a, b, row = data(96, 96), data(96, 96, seed=1), data(96, seed=2)
    p = a @ b
    assert joined(tg.tanh(p + row), CPUS) == ["add tanh"]
    assert joined(p * 2 + data(96, 96), CPUS) == ["multiply constant add"]
    assert joined(p.sum(axis=0) + tg.tanh(p), CPUS) == [""]  # another needs it, too
    assert joined(tg.sum(p, axis=0, keepdims=True) + row, CPUS)[0] == ""  # no elementwise work behind it
    assert joined(p + data(3, 96, 96), CPUS) == [""]  # more than a tile comes out
    one, other = (tg.cumulative_sum(data(96, 96, seed=s), axis=0) for s in (4, 5))
    assert joined(p + one, CPUS) == ["add"]
    assert joined((p + one) * other, CPUS) == [""]  # those two are more than the product


def test_products_side_by_side_stay_so() -> None:
    """Each would have to wait for the other."""
    a, b = data(96, 96), data(96, 96, seed=1)
    assert joined(a @ b + b @ a, CPUS) == ["", ""]
    assert joined(a @ b + tg.tanh(b @ a), CPUS) == ["", ""]
    h = tg.tanh(a @ b)
    assert joined(h + h @ a, CPUS) == ["tanh", "add"]  # this one waits for that one anyway


def test_a_root_is_what_it_is() -> None:
    p = data(96, 96) @ data(96, 96, seed=1)
    groups = group(align(plan_roots([p.expr, tg.tanh(p).expr], CPUS)))
    assert [g.behind for g in groups if g.product] == [()]


@pytest.mark.parametrize(
    ("of_product", "of_work", "joins"),
    [
        ("gpu", None, True),
        ("gpu", "gpu", True),
        ("gpu:1", None, True),
        ("gpu:1", "gpu:1", True),
        ("cpu", "cpu", True),
        ("cpu+gpu", None, True),
        ("gpu", "cpu", False),
        ("cpu", "gpu", False),
        ("gpu:1", "gpu:0", False),
        ("gpu", "gpu:0", False),
    ],
)
def test_pins(of_product: str, of_work: str | None, joins: bool) -> None:
    a, b, row = data(96, 96), data(96, 96, seed=1), data(96, seed=2)
    with tg.device(of_product):
        p = a @ b
    with tg.device(of_work):
        t = tg.tanh(p + row)
    assert (joined(t, MIXED) == ["add tanh"]) is joins
    work = {tag["kind"] for key, tag in tags(lower(plan(t, MIXED))).items() if "product" in tag}
    assert work <= set(of_product.split(":")[0].split("+"))


def test_random_numbers_of_a_gpus_tile_are_made_on_cpus() -> None:
    noise = tg.randn(96, 96, seed=3, dtype="float64", chunks=96)
    with tg.device("cpu"):
        on_cpu = data(96, 96) @ data(96, 96, seed=1)
    with tg.device("gpu"):
        on_gpu = data(96, 96) @ data(96, 96, seed=1)
    one = machine(1, 1)
    assert joined(on_cpu + noise, one) == ["random add"]
    assert joined(on_gpu + noise, one) == [""]


def test_an_emulated_gpu_has_no_float16() -> None:
    m = machine(1, 1, emulated=True)
    with tg.device("gpu"):
        p = data(96, 96, dtype="float32") @ data(96, 96, seed=1, dtype="float32")
    assert joined(tg.astype(p, "float16"), m) == [""]
    assert joined(tg.astype(p, "float64"), m) == ["astype"]


# -- on a device -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[backend.Backend]:
    here = backend.emulated_gpu()
    backend.use(here)
    counters.reset()
    yield here
    emulated.memory.bound(None)
    backend.use(None)


@pytest.mark.parametrize("memory", [None, 3 * 2**15, 2**10], ids=["roomy", "pieces", "none"])
def test_a_device_with_and_without_room(gpu: backend.Backend, memory: int | None) -> None:
    """The tasks as a GPU worker runs them: on the device, in pieces put together on the host, all on the host."""
    with tg.device("gpu"):
        t = tg.tanh(data(64, 64) @ data(64, 64, seed=1) + data(64, seed=2)) - data(64, 64, seed=3)
    g = lower(plan(t, machine(1, 1)))
    emulated.memory.bound(memory)
    ((result,),) = dask.get(g.graph.to_dict(), g.keys)[0]
    emulated.memory.bound(None)
    assert isinstance(result, DeviceTile) is (memory is None)
    a, b, row, whole = (
        np.random.default_rng(s).standard_normal(n) for s, n in enumerate([(64, 64), (64, 64), 64, (64, 64)])
    )
    np.testing.assert_allclose(np.asarray(result), np.tanh(a @ b + row) - whole, rtol=1e-12, atol=1e-12)


def test_the_kernel_takes_operands_where_the_tile_is() -> None:
    """A tile in host memory gets its epilogue there, whatever namespace the task has."""
    import array_api_strict

    found = epilogue(array_api_strict, lambda xp, x, y: xp.add(x, y), [np.ones(2)], np.ones(2), [])
    np.testing.assert_array_equal(found, [2.0, 2.0])
    assert type(run(lambda xp, a: epilogue(xp, lambda xp, x: -x, [], gemm_panel(xp, [a], [a]), []), np.eye(2)))


def test_on_workers() -> None:
    """On a cluster with an emulated GPU, the whole layer runs where its product does."""
    with (
        LocalCluster(cpu_workers=1, gpus=0, emulated_gpus=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        x, w, b = data(200, 100, seed=1), data(100, 80, seed=2), data(80, seed=3)
        with tg.device("gpu"):
            p = x @ w
        t = tg.tanh(p + b).persist()
        wait(client.futures_of(t))
        names = {key: set(where) for key, where in client.who_has().items() if str(key).startswith("('matmul")}
        gpu_workers = {
            address
            for address, info in client.scheduler_info()["workers"].items()
            if str(info["name"]).startswith("gpu")
        }
        assert names
        assert all(where <= gpu_workers for where in names.values())
        x_, w_, b_ = (
            np.random.default_rng(s).standard_normal(n) for s, n in ((1, (200, 100)), (2, (100, 80)), (3, 80))
        )
        np.testing.assert_allclose(t.compute(), np.tanh(x_ @ w_ + b_), rtol=1e-12)
