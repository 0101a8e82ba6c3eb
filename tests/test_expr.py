"""Expressions: equal ones are one object, everywhere and cheaply; passes keep the value; broken nodes are found."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskgraph as tg
from taskgraph import expr as expressions
from taskgraph.execute import assemble
from taskgraph.expr import Expr, consumers, describe, rewrite, substitute, topological, with_inputs
from taskgraph.lower import lower
from taskgraph.passes import simplify
from taskgraph.plan import plan
from taskgraph.spec import InvalidGraph, problems, validate

CPU = tg.Machine(devices=[tg.Device("cpu", 2**33, 50.0)])
X = tg.placeholder("float64", (4, 6), name="X")
Y = tg.placeholder("float64", (4, 6), name="Y")


def values_of(roots: tuple[Expr, ...]) -> list[Any]:
    """The values of expressions as they stand: no pass but the plan's own."""
    graph = lower(plan(list(roots), CPU))
    found = dask.get(graph.graph.to_dict(), graph.keys)
    return [assemble(blocks, r.ndim) for blocks, r in zip(found, roots, strict=True)]


# -- one object for equal expressions ----------------------------------------------------------------------------------

EQUAL: dict[str, Callable[[], tg.Tensor]] = {
    "elementwise": lambda: tg.sin(X) + 2 * Y,
    "number": lambda: X * 2.5,
    "reduction": lambda: tg.sum(X, axis=-1, keepdims=True),
    "negative axis": lambda: tg.flip(X, axis=-1),
    "product": lambda: X.T @ Y,
    "index": lambda: X[1:, ::-2],
    "reshape": lambda: tg.reshape(X, (-1,)),
    "gradient": lambda: tg.gradients(tg.sum(tg.exp(X) * Y), X),
    "cast": lambda: tg.astype(X, "float32"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_expressions_are_one_object(name: str) -> None:
    first, second = EQUAL[name](), EQUAL[name]()
    assert first.expr is second.expr
    assert first is not second  # a tensor is the user's, an expression the graph's


def test_different_expressions_are_two() -> None:
    made = [
        X + Y,
        Y + X,
        X - Y,
        X * 2,
        X * 2.5,
        X * -0.0,
        X * 0.0,
        tg.sum(X),
        tg.sum(X, axis=0),
        tg.sum(X, axis=1),
        tg.sum(X, axis=0, keepdims=True),
        X[0],
        X[1],
        X[0:1],
        X[::2],
        X.T,
        tg.astype(X, "float32"),
        X.cpu(),
        X.cuda(),
        X.cuda(1),
        tg.reshape(X, (24,)),
        tg.reshape(X, (6, 4)),
        X @ Y.T,
        X.T @ Y,
        tg.var(X),
        tg.var(X, correction=1),
        X.rechunk(2),
        X.rechunk(3),
        X > 0,
        X > 0.5,
        X >= 0,
    ]
    with tg.device("gpu"):
        made.append(X + Y)
    assert len({t.expr for t in made}) == len(made)
    assert len({t.expr.token for t in made}) == len(made)


def test_sources_are_never_equal_and_numbers_always() -> None:
    for make in (
        lambda: tg.asarray([1.0, 2.0]),
        lambda: tg.zeros(3),
        lambda: tg.arange(4),
        lambda: tg.randn(2, 2, seed=1),
    ):
        assert make().expr is not make().expr
    assert (X + 1).expr.inputs[1] is (Y + 1).expr.inputs[1]
    assert (X + 1).expr.inputs[1] is not (tg.astype(tg.asarray(1), "float32") < X).expr.inputs[1]


def test_common_subexpressions_are_shared() -> None:
    y = (X + Y) * tg.sin(X + Y) + tg.exp(X + Y)
    assert [n.op.name for n in topological([y.expr])].count("add") == 2
    g = tg.gradients(tg.sum(tg.exp(X) * Y), X)
    forward = tg.exp(X).expr
    assert forward in topological([g.expr])  # the gradient uses the forward pass's own


def test_the_cache_keeps_nothing_alive() -> None:
    def make() -> weakref.ref[Expr]:
        t = tg.sin(tg.cos(X) + 12345.678)
        assert tg.sin(tg.cos(X) + 12345.678).expr is t.expr
        return weakref.ref(t.expr)

    gc.collect()
    before = len(expressions._interned)
    gone = make()
    gc.collect()
    assert gone() is None
    assert len(expressions._interned) <= before


def test_expressions_do_not_change() -> None:
    e = (X + Y).expr
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.shape = (1,)
    with pytest.raises(TypeError):
        e.params["a"] = 1
    assert with_inputs(e, e.inputs) is e
    assert with_inputs(e, (e.inputs[1], e.inputs[0])) is (Y + X).expr


TOKENS = """
import taskgraph as tg
x = tg.placeholder("float64", (4, 6), name="X", chunks=3)
c = tg.asarray([[1.5, 2.0]] * 4)
w = tg.random.default_rng(3).standard_normal((6, 5), chunks=2)
with tg.device("gpu:1"):
    p = x @ w
y = tg.sum(tg.where(x > 0, x[..., ::-1], 2.5)) + tg.mean(p) + tg.logsumexp(c)
print(y.expr.token, tg.gradients(y, x).expr.name, tg.eye(3, k=1).expr.token, p.expr.name, sep="\\n")
"""


def test_tokens_are_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", TOKENS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    lines = found.pop().split()
    assert len(lines) == 4
    assert lines[3].startswith("matmul-")


def test_names_read_well() -> None:
    a, b = tg.ones((4, 6)), tg.ones((6, 3))
    c = a @ b
    assert c.expr.name == f"matmul-{c.expr.token}"
    g = tg.gradients(tg.sum(tg.tanh(c)), a)
    assert g.expr.name.startswith("matmul-grad-")
    again = tg.gradients(tg.sum(g * g), a)
    assert "grad-grad" not in "".join(n.name for n in topological([again.expr]))


def test_descriptions_use_the_users_names() -> None:
    assert describe(X.expr) == "'X' is (4, 6) float64"
    assert describe(tg.astype(X, "float32").expr) == "'X' is (4, 6) float64"
    assert describe((X + Y).expr) == "add is (4, 6) float64"
    assert describe(tg.asarray([1, 2]).expr) == "(2,) int64"


# -- walks -------------------------------------------------------------------------------------------------------------


def test_topological_order() -> None:
    y = tg.sum((X + Y) * X + tg.exp(X + Y))
    order = topological([y.expr, (X + Y).expr])
    assert len(order) == len(set(order))
    at = {n: i for i, n in enumerate(order)}
    assert all(at[i] < at[n] for n in order for i in n.inputs)
    middle = (X + Y).expr
    assert X.expr not in topological([tg.exp(X + Y).expr], until=[middle])
    users = consumers(order)
    assert {u.op.name for u in users[middle]} == {"multiply", "exp"}


def test_rewrite_and_substitute() -> None:
    y = tg.sum((X + Y) * X)
    assert rewrite([y.expr], with_inputs)[0] is y.expr
    assert substitute([y.expr], {X.expr: Y.expr})[0] is tg.sum((Y + Y) * Y).expr
    assert substitute([X.expr], {X.expr: Y.expr})[0] is Y.expr
    assert substitute([y.expr], {})[0] is y.expr


# -- long chains -------------------------------------------------------------------------------------------------------

LONG = 20_000


def test_long_chains() -> None:
    """Build, differentiate, simplify, plan and forget 20,000 operations in a row: no recursion, no quadratic cost."""
    start = time.perf_counter()
    x = tg.asarray(np.full(3, 0.5), requires_grad=True)
    y = x
    for n in range(LONG):
        y = tg.sin(y) if n % 2 else y * 1.0001
    gone = weakref.ref(y.expr.inputs[0])
    assert len(topological([y.expr])) > LONG
    tg.sum(y).backward()
    assert x.grad is not None
    roots = simplify([y.expr, x.grad.expr])
    planned = plan(list(roots), CPU)
    assert len(topological(planned.roots)) > 2 * LONG
    del y, roots, planned
    x.grad = None
    gc.collect()
    assert gone() is None
    assert time.perf_counter() - start < 30  # 4 s here


def test_long_sums_of_products() -> None:
    """The same through products: the graph of a recurrent step repeated."""
    h, w = tg.asarray(np.eye(2)), tg.asarray(np.eye(2) * 0.999, requires_grad=True)
    for _ in range(1000):
        h = h @ w
    loss = tg.sum(h)
    loss.backward()
    value, g = dask.compute(loss, w.grad, scheduler="synchronous")
    np.testing.assert_allclose(value, 2 * 0.999**1000)
    np.testing.assert_allclose(np.diag(g), 1000 * 0.999**999)


def test_a_chain_of_elementwise_operations_is_one_task_a_block() -> None:
    for chunks, blocks in (("auto", 1), (2, 2)):
        x = tg.asarray([0.1, 0.2, 0.3], chunks=chunks)
        y = x
        for _ in range(3000):
            y = y * 0.5 + x
        graph = lower(plan(list(simplify([y.expr])), CPU))
        tasks = [k for k in graph.graph.to_dict() if "constant" not in str(k[0])]
        assert len(tasks) == blocks
        (found,) = values_of((y.expr,))
        np.testing.assert_allclose(found, np.array([0.2, 0.4, 0.6]))


def test_what_is_needed_twice_ends_a_chain() -> None:
    x = tg.asarray(np.ones(8), chunks=4)
    y = tg.exp(x) + 1
    graph = lower(plan([tg.sum(y).expr, (y * 2).expr, y.expr], CPU))
    names = {str(k[0]) for k in graph.graph.to_dict()}
    assert graph.outputs[2].name in names
    assert not any(n.startswith("exp-") for n in names)


# -- passes keep the value ---------------------------------------------------------------------------------------------

SIZES = (1, 2, 3, 6)


def _arrays(draw: st.DrawFn) -> tg.Tensor:
    shape = (draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES)))
    values = np.random.default_rng(draw(st.integers(0, 9))).uniform(-1, 1, shape)
    kind = draw(st.sampled_from(["data", "ones", "leaf", "pinned", "random"]))
    chunks = draw(st.sampled_from(["auto", 1, 2]))
    if kind == "ones":
        return tg.ones(shape, chunks=chunks)
    if kind == "random":
        return tg.random.default_rng(draw(st.integers(0, 9))).random(shape, chunks=chunks)
    t = tg.asarray(values, chunks=chunks, requires_grad=kind == "leaf")
    return t.cpu() if kind == "pinned" else t


def _fitting(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
    return y if x.shape == y.shape else tg.broadcast_to(tg.sum(y), x.shape)


ONE: dict[str, Callable[[tg.Tensor], tg.Tensor]] = {
    "times one": lambda x: x * 1,
    "one times": lambda x: 1 * x,
    "over one": lambda x: x / 1,
    "times ones": lambda x: tg.ones(x.shape, chunks=1) * x,
    "times a one": lambda x: x * tg.ones((1, 1)),
    "one over": lambda x: 1 / (x * x + 1),
    "transpose": lambda x: x.T,
    "twice": lambda x: x.T.T,
    "reshape": lambda x: tg.reshape(x, x.shape[::-1]),
    "flat": lambda x: tg.reshape(tg.reshape(x, (-1,)), x.shape),
    "rechunk": lambda x: x.rechunk(1),
    "rechunk again": lambda x: x.rechunk(1).rechunk(2),
    "stop": tg.stop_gradient,
    "move": lambda x: x.cpu(),
    "tanh": tg.tanh,
    "gram": lambda x: x @ x.T,
    "gram of columns": lambda x: x.T @ x,
    "flip": lambda x: tg.flip(x, axis=0),
    "half": lambda x: x[: max(1, x.shape[0] // 2)],
    "centre": lambda x: x - tg.mean(x, axis=0),
    "gradient": lambda x: tg.gradients(tg.sum(tg.tanh(x) ** 2), x),
    "product gradient": lambda x: tg.gradients(tg.sum((x @ x.T) ** 2), x),
    "single": lambda x: tg.astype(tg.astype(x, "float32"), float),
}
TWO: dict[str, Callable[[tg.Tensor, tg.Tensor], tg.Tensor]] = {
    "add": lambda x, y: x + _fitting(x, y),
    "multiply": lambda x, y: x * _fitting(x, y),
    "product": lambda x, y: x @ y if x.shape[1] == y.shape[0] else x @ tg.ones((x.shape[1], 2)),
    "left transposed": lambda x, y: x.T @ y if x.shape[0] == y.shape[0] else x.T @ x,
    "right transposed": lambda x, y: x @ y.T if x.shape[1] == y.shape[1] else x @ x.T,
    "both transposed": lambda x, y: x.T @ y.T if x.shape[0] == y.shape[1] else x.T @ x,
    "stacked": lambda x, y: tg.sum(tg.stack([x, _fitting(x, y)]) @ tg.matrix_transpose(tg.stack([x, x])), axis=0),
    "where": lambda x, y: tg.where(x > 0, x, _fitting(x, y)),
}


@st.composite
def graphs(draw: st.DrawFn) -> list[tg.Tensor]:
    """One to three roots of a random graph of matrices."""
    found = [_arrays(draw) for _ in range(2)]
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            t = ONE[draw(st.sampled_from(sorted(ONE)))](draw(st.sampled_from(found)))
        else:
            pick = st.sampled_from(found)
            t = TWO[draw(st.sampled_from(sorted(TWO)))](draw(pick), draw(pick))
        scale = 1.0 if t.size == 0 else 0.5
        found.append(tg.tanh(t * scale) if draw(st.booleans()) else t)
    return found[-draw(st.integers(1, 3)) :]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(graphs())
def test_simplify_keeps_the_value(roots: list[tg.Tensor]) -> None:
    before = tuple(t.expr for t in roots)
    after = simplify(before)
    assert [(e.shape, e.dtype) for e in after] == [(e.shape, e.dtype) for e in before]
    assert simplify(after) == after  # once is enough
    assert len(topological(after)) <= len(topological(before))
    assert all(not problems(n) for n in topological(after))
    for found, expected in zip(values_of(after), values_of(before), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_what_simplify_drops() -> None:
    a, b = tg.asarray(np.ones((4, 6))), tg.asarray(np.ones((6, 3)))
    gone = {
        "factor": ((a * 1).expr, a.expr),
        "ones": ((tg.ones((4, 6)) * a).expr, a.expr),
        "divisor": ((a / 1).expr, a.expr),
        "marker": (tg.stop_gradient(a).expr, a.expr),
        "transposes": (a.T.T.expr, a.expr),
        "reshapes": (tg.reshape(tg.reshape(a, (24,)), (4, 6)).expr, a.expr),
        "product": ((b.T @ a.T).expr, tg.ops.product.product(b, a, True, True).expr),
    }
    for name, (before, after) in gone.items():
        assert simplify([before])[0] is after, name
    grown = (tg.asarray(np.ones(6)) * tg.ones((4, 6))).expr
    assert simplify([grown])[0] is grown  # here the ones broadcast
    pinned = (a.cuda() * 1).expr
    assert simplify([pinned])[0].shape == (4, 6)


# -- what is broken is found -------------------------------------------------------------------------------------------

GOOD = (tg.asarray(np.ones((4, 6)), chunks=(2, 3)) + 1).expr
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"shape": (4, 7)}, "do not fill axis 1 of size 7"),
    "chunks": ({"chunks": ((2, 2), (3, 2))}, "do not fill axis 1"),
    "empty blocks": ({"chunks": ((2, 2), ())}, "do not fill"),
    "negative block": ({"chunks": ((6, -2), (3, 3))}, "do not fill"),
    "fewer chunks": ({"chunks": ((2, 2),)}, "chunks ((2, 2),) for shape (4, 6)"),
    "dtype": ({"dtype": np.dtype("float32")}, "shape rule says"),
    "not numeric": ({"dtype": np.dtype("O")}, "not numeric"),
    "inputs": ({"inputs": GOOD.inputs[:1]}, ""),
    "other blocks": ({"chunks": ((4,), (6,))}, "shape rule says"),
    "primitive": ({"op": dataclasses.replace(GOOD.op, name="made-up")}, "not in the table"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_node_is_found(name: str) -> None:
    changes, says = BROKEN[name]
    node = dataclasses.replace(GOOD, **changes)
    with dask.config.set({"taskgraph.validate": True}):
        validate([GOOD])
        with pytest.raises((InvalidGraph, TypeError)) as caught:
            validate([node])
        assert says in str(caught.value)
    with dask.config.set({"taskgraph.validate": False}):
        validate([node])
