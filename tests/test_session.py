"""Graph style: placeholders, variables and sessions, as TensorFlow 1 has them."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from same import same

import taskgraph as tg

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_tutorial() -> None:
    """The examples of the text that the project was founded on."""
    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = 3 * x**2 + 2 * x + 3
    y.backward(tg.ones((2, 2)))
    expected = np.array([[8.0, 14.0], [20.0, 26.0]])
    same(x.grad, expected)
    same((6 * x + 2) * tg.ones((2, 2)), expected)

    p = tg.placeholder(tg.float32, [2, 2])
    g = tg.gradients(3 * p**2 + 2 * p + 3, p)
    with tg.Session() as sess:
        found = sess.run(g, feed_dict={p: [[1.0, 2.0], [3.0, 4.0]]})
    same(found, expected.astype("float32"))

    n = 30
    with tg.device("/cpu:0"):
        c = tg.matmul(tg.randn(n, n), tg.randn(n, n))
    assert c.device == "cpu"
    assert (c.shape, c.dtype) == ((n, n), np.float32)
    assert tg.Session().run(c).shape == (n, n)
    with tg.device("/device:GPU:0"):
        z = tg.matmul(tg.randn(n, n), tg.randn(n, n))
    assert z.device == "gpu:0"
    a, b = tg.randn(n, n, seed=1), tg.randn(n, n, seed=2)
    np.testing.assert_allclose(tg.mm(a, b).compute(), a.compute() @ b.compute(), rtol=1e-4, atol=1e-4)
    assert tg.mm(tg.randn(n, n).cuda(), tg.randn(n, n).cuda()).shape == (n, n)


Pair = namedtuple("Pair", "left right")


def test_fetches_nest() -> None:
    x = tg.placeholder("float64", (2,), name="x")
    w = tg.Variable([1.0, 1.0], name="w")
    with tg.Session() as session:
        feed = {x: [1.0, 2.0]}
        same(session.run(x * 2, feed), [2.0, 4.0])
        found = session.run({"a": [x, (x + 1,)], "b": Pair(x * 3, w.assign(x)), "c": []}, feed)
        assert set(found) == {"a", "b", "c"}
        same(found["a"][0], [1.0, 2.0])
        same(found["a"][1][0], [2.0, 3.0])
        assert isinstance(found["b"], Pair)
        same(found["b"].left, [3.0, 6.0])
        assert (found["b"].right, found["c"]) == (None, [])
        same(session.run(w), [1.0, 2.0])
        assert session.run([]) == []
        assert session.run(w.assign([5.0, 6.0])) is None
        one, two = session.run([x, x], feed)
        same(one, two)


def test_only_what_is_fetched_runs() -> None:
    ran: list[str] = []

    def noted(name: str) -> tg.Tensor:
        def note(x: Any) -> Any:
            ran.append(name)
            return x

        return tg.from_dask(da.ones(2).map_blocks(note, name=name, dtype=float, meta=np.empty(0)))

    x = tg.placeholder("float64", (2,), name="x")
    a, b = noted("a"), noted("b")
    middle = a + x
    last = middle * 2 + b
    with tg.Session() as session:
        same(session.run(b + 1), [2.0, 2.0])  # nothing is fed: x is not needed
        assert ran == ["b"]
        ran.clear()
        same(session.run(last, {middle: [5.0, 6.0]}), [11.0, 13.0])  # what lies behind it is not run, nor needs feeding
        assert ran == ["b"]
        ran.clear()
        session.run([middle, middle * 2, middle + a], {x: [0.0, 1.0]})
        assert ran == ["a"]  # once for all who use it


def test_feeding() -> None:
    x = tg.placeholder("float32", (2,), name="x")
    w = tg.Variable([1.0, 2.0], name="w")
    with tg.Session() as session:
        same(session.run(x, {x: np.array([1, 2])}), np.array([1, 2], "float32"))
        same(session.run(x, {x: tg.asarray([1.0, 2.0])}), np.array([1, 2], "float32"))
        same(session.run(x + 0, {x: tg.astype(w * 2, "float32")}), np.array([2, 4], "float32"))
        same(session.run(w * 2, {w: [5.0, 6.0]}), [10.0, 12.0])
        same(session.run(w), [1.0, 2.0])
        chunked = tg.placeholder("float64", (6,), chunks=2)
        same(session.run(tg.sum(chunked), {chunked: range(6)}), 15.0)
        y = tg.sum(x * x)
        same(session.run(tg.gradients(y, x), {x: [3.0, 4.0]}), np.array([6, 8], "float32"))


def test_variables() -> None:
    a, b = tg.Variable([1.0, 2.0], name="a"), tg.Variable([10.0, 20.0], name="b")
    with tg.Session() as session:
        session.run([a.assign(b), b.assign(a)])  # every assignment sees the values from before the run
        same(session.run(a), [10.0, 20.0])
        same(session.run(b), [1.0, 2.0])
        found, _ = session.run([a, a.assign(a * 2)])
        same(found, [10.0, 20.0])
        same(a, [20.0, 40.0])  # compute() and dask see the present value, too
        same(dask.compute(a + 1)[0], [21.0, 41.0])
        before = a.value
        step = a.assign(a + 1)
        for _ in range(3):
            session.run(step)
        same(session.run(a), [23.0, 43.0])
        same(before, [20.0, 40.0])
        same(tg.Session().run(a), [23.0, 43.0])  # the value is the variable's, not the session's
        of_another = tg.Variable(a + 1, name="c")
        session.run(a.assign([0.0, 0.0]))
        same(session.run(of_another), [24.0, 44.0])
        with pytest.raises(ValueError, match="'p'"):
            tg.Variable(tg.placeholder("float64", (2,), name="p"))
    whole = tg.Variable(np.ones((4, 4)), name="whole")
    session.run(whole.assign(tg.asarray(np.eye(4), chunks=2) @ whole + 1))  # other blocks than it had
    same(session.run(tg.sum(whole, axis=0) + whole[1]), [10.0, 10.0, 10.0, 10.0])


def test_training_in_graph_style_equals_define_by_run() -> None:
    rng = np.random.default_rng(1)
    data, target = rng.standard_normal((6, 3)), rng.standard_normal(6)
    x, t = tg.placeholder("float64", (6, 3), name="x"), tg.placeholder("float64", (6,), name="t")
    w = tg.Variable(np.zeros(3), name="w")
    loss = tg.mean((x @ w - t) ** 2)
    step = w.assign(w - 0.1 * tg.gradients(loss, w))
    losses, weights, expected = [], np.zeros(3), []
    with tg.Session() as session:
        for _ in range(4):
            value, _ = session.run((loss, step), {x: data, t: target})
            losses.append(value)
            expected.append(np.mean((data @ weights - target) ** 2))
            weights = weights - 0.1 * 2 / 6 * data.T @ (data @ weights - target)
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        same(session.run(w), weights)
