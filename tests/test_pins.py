"""Pins, moved tensors, and results that belong to the caller: what the plan and the layers make of them, no cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest

import taskgraph as tg
from taskgraph import execute
from taskgraph.plan import TAG

MIXED = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0), *[tg.Device("gpu", 2**34, 50.0) for _ in range(2)]])


def square(n: int = 4, **kwargs: Any) -> tg.Tensor:
    return tg.random.default_rng(0).standard_normal((n, n), **kwargs)


def tags(*tensors: tg.Tensor) -> list[dict[str, set[tuple[str, str]]]]:
    """For each tensor, which (kind, slot) the tasks of its own last layer are tagged with."""
    graph = execute.lowered([t.expr for t in tensors], MIXED)
    found = []
    for out in graph.outputs:
        layer = next(layer for layer in graph.graph.layers.values() if any(k[0] == out.name for k in layer))
        tag = layer.annotations[TAG]
        found.append({(t["kind"], t.get("slot", "")) for t in ([tag(k) for k in layer] if callable(tag) else [tag])})
    return found


MOVES: list[tuple[str, Callable[[], tg.Tensor], tuple[str, str]]] = [
    ("a product of moved operands", lambda: tg.mm(square().cuda(), square().cuda()), ("gpu", "")),
    ("of one moved operand", lambda: square().cuda() @ square(), ("gpu", "")),
    ("to one GPU", lambda: square().to("gpu:1") @ square(), ("gpu", "gpu-1")),
    ("back again", lambda: square(200).cuda().cpu() + 1, ("cpu", "")),
    ("elementwise work", lambda: tg.exp(square().cuda()) * 2, ("gpu", "")),
    ("a number beside it", lambda: 1 - square().cuda(), ("gpu", "")),
    ("made there", lambda: tg.randn(4, 4, device="cuda") @ tg.randn(4, 4), ("gpu", "")),
]


@pytest.mark.parametrize(("make", "where"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_where_operands_were_put_decides(make: Callable[[], tg.Tensor], where: tuple[str, str]) -> None:
    (found,) = tags(make())
    assert {kind for kind, _ in found} == {where[0]}
    assert where[1] in ("", *[slot for _, slot in found])


def test_a_pin_in_force_goes_before_where_operands_were_put() -> None:
    with tg.device("cpu"):
        t = square().cuda() @ square().cuda()
    assert t.device == "cpu"


def test_operands_on_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add: its operands were put on cpu and gpu; move them to one"):
        square().cpu() + square().cuda()


def test_a_kept_or_detached_tensor_stays_where_it_was_put() -> None:
    x = square().cpu()
    assert (x.persist() + 1).device == (x.detach() + 1).device == "cpu"


def test_two_pins_of_one_operation_of_dasks_are_two_sets_of_tasks() -> None:
    r = tg.flip(tg.from_dask(da.arange(10, chunks=3)) * 1.0, axis=0)
    with tg.device("cpu"):
        on_cpu = r.sum()
    with tg.device("gpu:1"):
        on_gpu = r.sum()
    assert tags(on_cpu, on_gpu) == [{("cpu", "")}, {("gpu", "gpu-1")}]
    np.testing.assert_array_equal(tg.compute(on_cpu, r.sum()), [45.0, 45.0])


def test_a_chain_that_names_two_gpus_is_two_tasks() -> None:
    x = square(chunks=2)
    with tg.device("gpu:0"):
        y = tg.exp(x)
    with tg.device("gpu:1"):
        z = tg.sin(y)
    assert tags(z) == [{("gpu", "gpu-1")}]
    graph = execute.lowered([z.expr], MIXED)
    slots = {layer.annotations[TAG].get("slot") for layer in graph.graph.layers.values()}
    assert slots >= {"gpu-0", "gpu-1"}


# -- results are the caller's own --------------------------------------------------------------------------------------


def test_a_result_may_be_changed() -> None:
    v = tg.Variable(np.zeros(3))
    session = tg.Session()
    session.run(v.assign(v + 1))
    value = session.run(v)
    value += 100
    np.testing.assert_array_equal(session.run(v), np.ones(3))
    kept = (tg.asarray(np.zeros(4)) + 1).persist()
    kept.compute()[:] = -1
    np.testing.assert_array_equal(kept.compute(), np.ones(4))
    for t in (tg.asarray(np.zeros(3)), tg.broadcast_to(tg.asarray(0.0), (3,))):
        value = t.compute()
        value[0] = 1
        np.testing.assert_array_equal(t.compute(), np.zeros(3))


def test_a_dask_array_that_changes_does_not_change_the_tensor() -> None:
    d = da.ones(5, chunks=2)
    t = tg.from_dask(d)
    d[0] = 5
    np.testing.assert_array_equal(t.compute(), np.ones(5))


# -- odd cuts of products ----------------------------------------------------------------------------------------------


def test_products_of_no_matrices_and_of_empty_blocks() -> None:
    assert (tg.zeros((0, 3, 4)) @ tg.zeros((0, 4, 5))).compute().shape == (0, 3, 5)
    a, b = np.arange(12.0).reshape(3, 4), np.arange(8.0).reshape(4, 2)
    empty_first = da.Array({("x", 0, 0): a[:, :0], ("x", 0, 1): a}, "x", ((3,), (0, 4)), dtype=float)
    left, right = tg.from_dask(empty_first), tg.asarray(b, chunks=(2, 2))
    np.testing.assert_allclose((left @ right).compute(), a @ b)


def test_forward_and_gradient_in_one_run_share_what_they_compute() -> None:
    x = square(300, chunks=100)
    y = tg.exp(x) @ x
    apart = sum(len(execute.lowered([t.expr], MIXED).graph) for t in (y, tg.gradients(y, x)))
    together = len(execute.lowered([y.expr, tg.gradients(y, x).expr], MIXED).graph)
    assert together < apart


def test_an_emulated_gpu_is_planned_nothing_that_it_cannot_compute() -> None:
    emulated = tg.Device("gpu", 2**34, 9000.0, emulated=True)
    m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0), emulated])
    for dtype, kind in (("float16", "cpu"), ("float32", "gpu")):
        a = tg.placeholder(dtype, (2048, 2048))
        (planned,) = tg.plan(a @ a, m).products.values()
        assert ("gpu" in planned.kind) == (kind == "gpu")
