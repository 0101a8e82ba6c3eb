"""Transformations of functions: identities between them, other implementations' values, errors, memory, placement."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import autograd
import autograd.numpy as anp
import dask
import numpy as np
import pytest
from dask.callbacks import Callback

import taskgraph as tg
from taskgraph import tree
from taskgraph.execute import planned, rewritten
from taskgraph.expr import Expr, topological
from taskgraph.machine import Device, Machine
from taskgraph.primitives import TABLE

Pair = namedtuple("Pair", "w b")
RNG = np.random.default_rng(11)
A, B = RNG.standard_normal((4, 4)), RNG.standard_normal((4, 4))
V, U = RNG.standard_normal(4), RNG.standard_normal(4)


@pytest.fixture(autouse=True)
def synchronous() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def values(of: Any) -> Any:
    """The tree with NumPy arrays in the places of tensors, computed in one run."""
    return tree.unflatten(of, [np.asarray(a) for a in tg.compute(*[t for _, t in tree.with_paths(of)])])


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    for path, f, e in tree.against(values(found), expected, "expected"):
        assert f.shape == np.shape(e), path
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance, err_msg=path)


def nodes(*tensors: tg.Tensor) -> list[Expr]:
    return topological(rewritten([t.expr for t in tensors]))


# -- values against autograd -------------------------------------------------------------------------------------------

#: Functions of an array namespace and a vector of 4, each with one number as its result.
SCALARS: dict[str, Callable[[Any, Any], Any]] = {
    "quadratic": lambda xp, x: xp.sum(xp.matmul(_at(xp, A), x) * x),
    "cubic": lambda xp, x: xp.sum(x**3),
    "network": lambda xp, x: xp.sum(xp.tanh(xp.matmul(_at(xp, B), xp.tanh(xp.matmul(_at(xp, A), x)))) ** 2),
    "product": lambda xp, x: xp.prod(x),
    "ratio": lambda xp, x: xp.sum(xp.exp(x) / (1 + xp.sum(x * x))),
    "indexed": lambda xp, x: x[0] * x[1] ** 2 + xp.sin(x[2]) * x[3],
    "linear": lambda xp, x: xp.sum(2 * x),
    "constant": lambda xp, x: xp.sum(0 * x),
}
VECTORS: dict[str, Callable[[Any, Any], Any]] = {
    "same size": lambda xp, x: xp.sin(xp.matmul(_at(xp, A), x)),
    "wide": lambda xp, x: xp.sum(x * x, keepdims=True) * x[:2],
    "tall": lambda xp, x: xp.outer(x, x[1:3] ** 2),
    "number": lambda xp, x: xp.sum(x**2),
}


def _at(xp: Any, a: np.ndarray) -> Any:
    return tg.asarray(a, chunks=3) if xp is tg else a


@pytest.mark.filterwarnings("ignore:Output seems independent")  # autograd, of derivatives that are zero
@pytest.mark.parametrize("name", SCALARS)
def test_first_and_second_derivatives_are_those_of_autograd(name: str) -> None:
    f = SCALARS[name]

    def ours(x: Any) -> Any:
        return f(tg, x)

    def theirs(x: Any) -> Any:
        return f(anp, x)

    x = tg.asarray(V, chunks=3)
    hessian = autograd.hessian(theirs)(V)
    value, gradient = tg.value_and_grad(ours)(x)
    close([value, gradient, tg.grad(ours)(x)], [theirs(V), autograd.grad(theirs)(V), autograd.grad(theirs)(V)])
    close(tg.hessian(ours)(x), hessian)
    close(tg.hvp(ours, (x,), (tg.asarray(U),)), hessian @ U)
    close(tg.grad(lambda x: tg.sum(tg.grad(ours)(x) * U))(x), hessian @ U)  # reverse over reverse
    close(tg.vjp(lambda x: tg.jvp(ours, (x,), (U,))[1], x)[1](1.0)[0], hessian @ U)  # reverse over forward
    close(tg.jvp(lambda x: tg.jvp(ours, (x,), (U,))[1], (x,), (U,))[1], U @ hessian @ U)  # forward over forward
    tg.check_grads(ours, (x,))


@pytest.mark.parametrize("name", VECTORS)
def test_jacobians_are_those_of_autograd(name: str) -> None:
    f = VECTORS[name]
    x = tg.asarray(V, chunks=3)
    close(tg.jacobian(lambda x: f(tg, x))(x), autograd.jacobian(lambda x: f(anp, x))(V))
    close(tg.hessian(lambda x: f(tg, x))(x), autograd.jacobian(autograd.jacobian(lambda x: f(anp, x)))(V))


@pytest.mark.parametrize("name", VECTORS)
def test_forward_and_reverse_mode_are_each_others_transpose(name: str) -> None:
    def f(x: Any) -> Any:
        return VECTORS[name](tg, x)

    out, tangent = tg.jvp(f, (V,), (U,))
    out2, pullback = tg.vjp(f, V)
    ct = RNG.standard_normal(out.shape)
    (back,) = pullback(ct)
    close([out2, tg.sum(back * U)], [values(out), np.sum(ct * values(tangent))])


def test_any_order() -> None:
    f: Any = lambda x: x**5
    for expected in (5 * 16.0, 20 * 8.0, 60 * 4.0, 120 * 2.0, 120.0, 0.0):
        f = tg.grad(f)
        close(f(2.0), expected)
    g: Any = tg.sin
    for _ in range(4):
        g = (lambda h: lambda x: tg.jvp(h, (x,), (1.0,))[1])(g)
    close(g(0.7), np.sin(0.7))


def test_nested_derivatives_are_not_confused() -> None:
    """The known trap: d/dx (x * d/dy (x + y)) is 1, in every mix of modes."""

    def forward(f: Any) -> Any:
        return lambda x: tg.jvp(f, (x,), (1.0,))[1]

    for outer in (tg.grad, forward):
        for inner in (tg.grad, forward):
            close(outer(lambda x, d=inner: x * d(lambda y: x + y)(2.0))(3.0), 1.0)
            close(outer(lambda x, d=inner: x * d(lambda y: x * y * y)(x))(3.0), 6 * 3.0**2)


# -- arguments and results ---------------------------------------------------------------------------------------------


def test_trees_in_and_out() -> None:
    def loss(p: Any, x: Any, scale: float = 1.0) -> Any:
        first, (second, _) = p["layers"]
        return scale * tg.sum((tg.tanh(x @ first.w + first.b) @ second) ** 2)

    p = {"layers": [Pair(tg.asarray(A), V), (B, None)]}
    value, g = tg.value_and_grad(loss)(p, tg.asarray(U), scale=2.0)
    assert value.shape == ()
    assert isinstance(g["layers"], list)
    assert isinstance(g["layers"][0], Pair)
    assert g["layers"][1][1] is None

    def theirs(w: Any, b: Any, s: Any) -> Any:
        return 2.0 * anp.sum((anp.tanh(U @ w + b) @ s) ** 2)

    expected = autograd.grad(theirs, (0, 1, 2))(A, V, B)
    close(g, {"layers": [Pair(*expected[:2]), (expected[2], None)]})
    by_all = tg.grad(loss, argnums=(1, 0))(p, tg.asarray(U), scale=2.0)
    assert isinstance(by_all, tuple)
    close(by_all[1], {"layers": [Pair(*expected[:2]), (expected[2], None)]})


def test_jacobian_of_trees() -> None:
    j = tg.jacobian(lambda p: {"sum": p[0] + p[1], "product": p[0] * p[1]})((V, 2.0))
    eye = np.eye(4)
    close(j, {"sum": (eye, np.ones(4)), "product": (2 * eye, V)})
    h = tg.hessian(lambda a, b: tg.sum(a * a) * b, argnums=(0, 1))(V, 3.0)
    close(h, ((6 * eye, 2 * V), (2 * V, np.zeros(()))))


def test_argnums() -> None:
    f = lambda a, b, c: tg.sum(a * b**2) * c
    for argnums in (0, 1, 2, -1, (0,), (2, 0), [1]):
        found = tg.grad(f, argnums)(V, U, 3.0)
        each = [3 * U**2, 6 * V * U, np.sum(V * U**2)]
        close(found, tuple(each[n] for n in argnums) if isinstance(argnums, tuple | list) else each[argnums])


def test_equal_arguments_are_told_apart() -> None:
    x = tg.asarray(V)
    close(tg.grad(lambda a, b: tg.sum(a * a * b), (0, 1))(x, x), (2 * V * V, V * V))
    close(tg.jvp(lambda a, b: a - b, (x, x), (U, V))[1], U - V)
    close(tg.grad(lambda p: tg.sum(p[0] * x) + tg.sum(p[1] ** 2 * x))([x, x]), [V, 2 * V * V])


def test_numpy_functions_and_arrays() -> None:
    def f(x: Any) -> Any:
        return np.sum(np.sin(x) * np.matmul(A, x)) + np.mean(np.maximum(x, 0.0))

    close(tg.grad(f)(V), autograd.grad(lambda x: anp.sum(anp.sin(x) * (A @ x)) + anp.mean(anp.maximum(x, 0.0)))(V))


def test_aux_and_constant_results() -> None:
    g, aux = tg.grad(lambda x: (tg.sum(x**2), {"n": 4, "x": x}), has_aux=True)(V)
    assert aux["n"] == 4
    close([g, aux["x"]], [2 * V, V])
    (value, _), g = tg.value_and_grad(lambda x: (tg.sum(x), None), has_aux=True)(V)
    close([value, g], [np.sum(V), np.ones(4)])
    out, pullback, extra = tg.vjp(lambda x: (2 * x, "kept"), V, has_aux=True)
    assert extra == "kept"
    close([out, *pullback(U)], [2 * V, 2 * U])
    assert tg.jvp(lambda x: (x, 1), (V,), (U,), has_aux=True)[2] == 1
    close(tg.grad(lambda x: 3.0)(V), np.zeros(4))
    close(tg.jvp(lambda x: 3.0, (V,), (U,)), (3.0, 0.0))


def test_float32_stays() -> None:
    x = tg.asarray(V, dtype="float32")
    for t in tree.with_paths(
        [tg.value_and_grad(lambda x: tg.sum(x**2))(x), tg.hvp(lambda x: tg.sum(x**3), (x,), (x,))]
    ):
        assert t[1].dtype == np.float32
    close(tg.vjp(lambda x: tg.sum(x), x)[1](2)[0], np.full(4, 2.0))  # a Python number takes any type
    tg.check_grads(lambda x: tg.sum(tg.sin(x)), (x,))


def test_empty_arrays() -> None:
    x = tg.zeros((0, 3))
    close(tg.grad(tg.sum)(x), np.zeros((0, 3)))
    close(tg.jacobian(lambda x: 2 * x)(x), np.zeros((0, 3, 0, 3)))
    close(tg.jacobian(lambda x: tg.sum(x))(x), np.zeros((0, 3)))
    close(tg.grad(lambda x: tg.sum(tg.checkpoint(tg.sin)(x)))(x), np.zeros((0, 3)))


# -- long and deep -----------------------------------------------------------------------------------------------------


def test_a_chain_of_2000_operations() -> None:
    def chain(x: Any) -> Any:
        for _ in range(1000):
            x = tg.sin(x) + 0.1
        return x

    def theirs(x: Any) -> Any:
        for _ in range(1000):
            x = anp.sin(x) + 0.1
        return x

    close(tg.grad(chain)(0.5), autograd.grad(theirs)(0.5))
    close(tg.jvp(chain, (0.5,), (1.0,))[1], autograd.grad(theirs)(0.5))
    close(tg.grad(tg.checkpoint(chain))(0.5), autograd.grad(theirs)(0.5))


def test_a_network_of_200_layers() -> None:
    weights = [A / 4 + 0.001 * n for n in range(200)]

    def network(ws: Any, xp: Any) -> Any:
        h = xp.ones((2, 4))
        for w in ws:
            h = xp.tanh(xp.matmul(h, w)) + 0.1
        return xp.sum(h)

    expected = autograd.grad(lambda ws: network(ws, anp))(weights)
    close(tg.grad(lambda ws: network(ws, tg))(weights), expected, 1e-9)
    close(tg.grad(tg.checkpoint(lambda ws: network(ws, tg)))(weights), expected, 1e-9)
    moves = [A / (1 + n) for n in range(200)]
    along = sum(np.sum(e * d) for e, d in zip(expected, moves, strict=True))
    close(tg.jvp(lambda ws: network(ws, tg), (weights,), (moves,))[1], along, 1e-9)


# -- define by run -----------------------------------------------------------------------------------------------------


def test_zero_grad() -> None:
    w = tg.tensor(V, requires_grad=True)
    for factor in (1, 2):
        tg.sum(w * w).backward()
        close(w.grad, 2 * factor * V)
    w.zero_grad()
    assert w.grad is None
    tg.sum(3 * w).backward()
    close(w.grad, np.full(4, 3.0))


def test_what_is_made_in_no_grad_is_constant() -> None:
    w = tg.tensor(V, requires_grad=True)
    with tg.no_grad():
        c = w * w + 1
        assert not c.requires_grad
        assert not w.cpu().requires_grad
        with pytest.raises(RuntimeError, match="requires"):
            tg.sum(c).backward()
    assert w.requires_grad
    tg.sum(w * c).backward()
    close([w.grad, c], [V * V + 1, V * V + 1])
    close(tg.gradients(tg.sum(w * c), w), V * V + 1)

    @tg.no_grad()
    def constant(x: Any) -> Any:
        return x * x

    close(tg.grad(lambda x: tg.sum(x * constant(x)))(V), V * V)  # inside the function: as in torch.func
    with tg.no_grad():  # around the transformation: the function is differentiated all the same, to any order
        close(tg.grad(tg.grad(lambda x: x**3))(2.0), 12.0)
        assert not tg.grad(lambda w: tg.sum(w * w))(w).requires_grad
    with pytest.raises(ZeroDivisionError), tg.no_grad():
        raise ZeroDivisionError
    assert (w * 1).requires_grad


def test_gradients_of_functions_inside_define_by_run() -> None:
    """What a transformation gives passes gradients on to the leaves."""
    w = tg.tensor(V, requires_grad=True)
    g = tg.grad(lambda x: tg.sum(x**3))(w)
    assert g.requires_grad
    tg.sum(g).backward()
    close(w.grad, 6 * V)
    x = tg.tensor(U, requires_grad=True)
    tg.sum(tg.checkpoint(lambda a: tg.sin(a) * w)(x)).backward()
    close(x.grad, np.cos(U) * V)


# -- checkpoint --------------------------------------------------------------------------------------------------------


def layers(h: Any, ws: Any) -> Any:
    for w in ws:
        h = tg.tanh(h @ w)
    return h


class Peak(Callback):
    """The most bytes of results that the scheduler held at once, data apart."""

    def __init__(self) -> None:
        super().__init__(posttask=self.look)
        self.bytes = 0

    def look(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        live = {id(a): a.nbytes for a in state["cache"].values() if isinstance(a, np.ndarray) and a.flags.owndata}
        self.bytes = max(self.bytes, sum(live.values()))


def test_checkpoint_lowers_the_peak_and_keeps_the_gradient() -> None:
    rng = np.random.default_rng(0)
    x = tg.asarray(rng.standard_normal((16384, 64)), chunks=(4096, 64))
    ws = [tg.asarray(rng.standard_normal((64, 64)) / 8) for _ in range(16)]
    peaks, found = [], []
    for segment in (layers, tg.checkpoint(layers)):

        def loss(ws: Any, segment: Any = segment) -> Any:
            h = x
            for first in range(0, 16, 4):
                h = segment(h, ws[first : first + 4])
            return tg.sum(h * h)

        value, grads = tg.value_and_grad(loss)(ws)
        with Peak() as peak:
            found.append(tg.compute(value, *grads))
        peaks.append(peak.bytes)
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-9, atol=1e-7)
    activation = x.nbytes
    assert peaks[0] > 16 * activation  # sixteen layers' results
    assert peaks[1] < 0.4 * peaks[0], [p / activation for p in peaks]


def test_the_copy_is_apart_and_waits_for_the_cotangent() -> None:
    ws = [tg.asarray(A), tg.asarray(B)]
    value, grads = tg.value_and_grad(lambda h: tg.sum(tg.checkpoint(layers)(h, ws) ** 2))(A)
    graph = nodes(value, grads)
    assert [n.op.name for n in graph].count("matmul") == 2 + 2 + 2  # forward, again, backward
    assert [n.op.name for n in graph].count("barrier") == 1
    assert not {"checkpoint", "argument", "leaf"} & {n.op.name for n in graph}
    (barrier,) = [n for n in graph if n.op.name == "barrier"]
    forward = [n for n in nodes(value) if n.op.name == "tanh"]
    assert forward[-1] in topological([barrier.inputs[1]])  # the cotangent of tanh(...)**2 needs the last layer
    alone = [n.op.name for n in nodes(value)]
    assert "barrier" not in alone
    assert alone.count("matmul") == 2


def _leaky(x: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
    kept: list[Any] = []

    def f(a: Any) -> Any:
        kept.append(tg.sin(a))
        return kept[0] * a, tg.cos(kept[0])

    y, z = tg.checkpoint(f)(x)
    return tg.sum(y * y) + tg.sum(z), kept[0]


#: Functions of a vector and of what makes a function a checkpointed one, or leaves it as it is.
CHECKPOINTED: dict[str, Callable[[Any, Any], Any]] = {
    "one call": lambda x, ck: tg.sum(ck(lambda a: tg.sin(a) * a)(x)),
    "two calls": lambda x, ck: tg.sum(ck(tg.sin)(ck(tg.exp)(x))),
    "closure": lambda x, ck: tg.sum(ck(lambda a: tg.sin(a) * tg.cos(x))(x * x)),
    "closure alone": lambda x, ck: tg.sum(ck(lambda: tg.sin(x))()),
    "several results": lambda x, ck: _several(*ck(lambda a: (tg.sin(a), {"c": tg.cos(a)}))(x)),
    "a result of a result": lambda x, ck: _several(*ck(lambda a: (tg.sin(a), {"c": tg.cos(tg.sin(a))}))(x)),
    "one of several": lambda x, ck: tg.sum(ck(lambda a: (tg.sin(a), tg.cos(a), 7))(x)[1]),
    "identity": lambda x, ck: tg.sum(ck(lambda a: a)(x) ** 2),
    "nested": lambda x, ck: tg.sum(ck(lambda a: ck(lambda b: tg.sin(b) * x)(a * a))(x)),
    "nested twice": lambda x, ck: tg.sum(ck(lambda a: ck(ck(lambda b: tg.sin(b) ** 2))(a) * a)(x)),
    "same twice": lambda x, ck: tg.sum(ck(lambda a, b: tg.sin(a * b))(x, x)),
    "keywords": lambda x, ck: tg.sum(ck(lambda a, *, p: tg.sin(a * p["k"]) * p["n"])(x, p={"k": x, "n": 3})),
    "integers": lambda x, ck: tg.sum(ck(lambda a, n: tg.sin(a * n))(x, tg.asarray([1, 2, 3, 4]))),
    "product": lambda x, ck: tg.sum(ck(lambda a: tg.tanh(A @ tg.tanh(A @ a)))(x)),
    "grad inside": lambda x, ck: tg.sum(ck(lambda a: tg.grad(lambda b: tg.sum(tg.sin(b) * a))(a))(x)),
    "stopped": lambda x, ck: tg.sum(ck(lambda a: a * tg.stop_gradient(tg.sin(a)))(x)),
}


def _several(s: Any, c: Any) -> Any:
    return tg.sum(s * c["c"]) + tg.sum(c["c"] ** 2)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed_functions_have_the_same_derivatives(name: str) -> None:
    f = CHECKPOINTED[name]
    plain, held = (lambda x, ck=ck: f(x, ck) for ck in (lambda g: g, tg.checkpoint))
    x = tg.asarray(V, chunks=3)
    assert any(n.op.name == "checkpoint" for n in topological([held(x).expr])) != (name == "closure alone")
    close(tg.value_and_grad(held)(x), values(tg.value_and_grad(plain)(x)))
    close(tg.gradients(held(x), x), values(tg.grad(plain)(x)))
    close(tg.hvp(held, (x,), (U,)), values(tg.hvp(plain, (x,), (U,))))
    close(tg.hessian(held)(x), values(tg.hessian(plain)(x)))
    close(tg.jvp(held, (x,), (U,)), values(tg.jvp(plain, (x,), (U,))))
    close(
        tg.grad(lambda x: tg.sum(tg.grad(held)(x) ** 2))(x),
        values(tg.grad(lambda x: tg.sum(tg.grad(plain)(x) ** 2))(x)),
    )


def test_gradient_with_respect_to_a_value_inside_a_checkpoint() -> None:
    """Never a silent zero: the pass goes through the values themselves then."""
    x = tg.asarray(V)
    y, inner = _leaky(x)
    s = np.sin(V)
    by_inner, by_x = tg.gradients(y, [inner, x])
    close([by_inner, by_x], [2 * s * V * V - np.sin(s), (2 * s * V * V - np.sin(s)) * np.cos(V) + 2 * s * s * V])


# -- placement ---------------------------------------------------------------------------------------------------------

MACHINE = Machine(devices=[Device("cpu", 2**34, 50.0, threads=4), Device("gpu", 2**34, 9000.0)])


def products(*tensors: tg.Tensor) -> list[Expr]:
    return [n for n in topological(planned([t.expr for t in tensors], MACHINE).roots) if n.op.kind == "product"]


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_the_gradient_of_a_product_is_two_products_with_flags(transposed: tuple[bool, bool]) -> None:
    ta, tb = transposed
    a, b = tg.randn(64, 64), tg.randn(64, 64)
    f = lambda a, b: tg.sum((a.T if ta else a) @ (b.T if tb else b) * tg.randn(64, 64))
    grads = tg.grad(f, (0, 1))(a, b)
    found = products(*grads)
    assert len(found) == 2
    assert not any(n.op.name == "permute_dims" for n in nodes(*grads))
    assert all(n.name.startswith("matmul-grad-") for n in found)
    assert {(n.params["ta"], n.params["tb"]) for n in found} <= {(x, y) for x in (True, False) for y in (True, False)}
    assert any(n.params["ta"] or n.params["tb"] for n in found)
    plain = [g.compute() for g in grads]
    assert [g.shape for g in plain] == [(64, 64)] * 2


def test_hessian_products_are_labelled_and_flagged_too() -> None:
    w = tg.randn(64, 64)
    f = lambda w: tg.sum(tg.tanh(tg.tanh(tg.ones((64, 64)) @ w) @ w))
    h = tg.hvp(f, (w,), (w,))
    assert not any(n.op.name == "permute_dims" for n in nodes(h))
    assert {n.label for n in products(h)} == {"matmul", "matmul-grad"}


def test_a_pin_covers_the_gradient() -> None:
    weights = tg.randn(64, 64)

    def f(a: Any, b: Any) -> Any:
        with tg.device("gpu"):
            c = tg.tanh(a @ b)
        with tg.device("cpu"):
            return tg.sum(c @ b * weights)

    value, grads = tg.value_and_grad(f, (0, 1))(tg.randn(64, 64), tg.randn(64, 64))
    made = [n for n in products(value, *grads) if n.label == "matmul-grad"]
    assert sorted(n.device or "" for n in made) == ["cpu", "cpu", "gpu", "gpu"]
    again = products(*tg.grad(tg.checkpoint(f), (0, 1))(tg.randn(64, 64), tg.randn(64, 64)))
    assert sorted((n.label, n.device) for n in again) == [
        ("matmul", "gpu"),
        *[("matmul-grad", device) for device in ("cpu", "cpu", "gpu", "gpu")],
    ]


def test_what_was_put_on_a_device_has_its_gradient_there() -> None:
    x = tg.asarray(V).to("gpu")
    g = tg.grad(lambda x: tg.sum(x * x))(x)
    assert (g * 2).device == "gpu"
    out, pullback = tg.vjp(lambda x: x * x, x)
    assert [(t + 1).device for t in (out, pullback(tg.asarray(U).to("gpu"))[0])] == ["gpu", "gpu"]


@pytest.mark.parametrize("is_sum", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_flops_of_value_and_gradient_are_three_times_those_of_the_value(depth: int, is_sum: bool) -> None:
    weights = tg.randn(48, 64)

    def chain(x: Any, ws: Any) -> Any:
        for w in ws:
            x = x @ w
        return tg.sum(x if is_sum else x * weights)

    args = tg.randn(48, 64), [tg.randn(64, 64) for _ in range(depth)]
    value, grads = tg.value_and_grad(chain, (0, 1))(*args)

    def flops(*tensors: tg.Tensor) -> int:
        return sum(n.op.flops(n) for n in products(*tensors))

    ratio = flops(value, *[g for _, g in tree.with_paths(grads)]) / flops(value)
    if is_sum:  # no product of matrices is formed
        assert ratio <= 3.0
        return
    assert ratio == 3.0
    held, grads = tg.value_and_grad(tg.checkpoint(chain), (0, 1))(*args)
    counted = flops(held, *[g for _, g in tree.with_paths(grads)]) / flops(value)
    assert counted == 4.0 - 1.0 / depth  # once more, but for the last product, which no gradient needs


# -- check_grads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "wrong", "said"),
    [
        ("jvp", lambda ts, out, x: ts[0] * tg.sin(x), "forward mode, order 1"),
        ("vjp", lambda ct, out, x: (ct * 2 * tg.cos(x),), "reverse mode, order 1"),
        ("jvp", lambda ts, out, x: ts[0] * tg.stop_gradient(tg.cos(x)), "forward of forward mode, order 2"),
        ("vjp", lambda ct, out, x: (ct * tg.stop_gradient(tg.cos(x)),), "of reverse mode, order 2"),
    ],
)
def test_check_grads_rejects_a_wrong_rule(monkeypatch: pytest.MonkeyPatch, rule: str, wrong: Any, said: str) -> None:
    monkeypatch.setitem(TABLE["sin"].__dict__, rule, wrong)
    with pytest.raises(AssertionError, match=said):
        tg.check_grads(lambda x: tg.sin(x) * x, (V,))
    if "order 2" in said:
        tg.check_grads(lambda x: tg.sin(x) * x, (V,), order=1)
    tg.check_grads(lambda x: tg.cosh(x) * x, (V,))


def test_check_grads_takes_trees_and_refuses_nan() -> None:
    tg.check_grads(lambda p, s: {"y": p["a"] @ p["b"] * s, "z": [tg.sum(p["a"])]}, ({"a": A, "b": V}, 2.0))
    with pytest.raises(AssertionError, match="forward mode, order 1"):
        tg.check_grads(lambda x: x * float("nan"), (V,))


# -- errors ------------------------------------------------------------------------------------------------------------

TREE = {"w": V, "n": [1.0]}
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "integer argument": (lambda: tg.grad(tg.sum)(tg.asarray([1, 2])), TypeError, r"grad: argument 0 is int64"),
    "integer number": (lambda: tg.grad(lambda x: x * 2.0)(3), TypeError, r"grad: argument 0 is int64"),
    "boolean in a tree": (
        lambda: tg.grad(lambda a, p: a, argnums=1)(1.0, {"w": [V, np.array([True])]}),
        TypeError,
        r"grad: argument 1\['w'\]\[1\] is bool",
    ),
    "integer in a named tuple": (lambda: tg.vjp(lambda p: p.w, Pair(1.0, 2)), TypeError, r"argument 0\.b is int64"),
    "text": (lambda: tg.grad(lambda p: p["a"])({"a": 1.0, "b": "x"}), TypeError, r"argument 0\['b'\] is"),
    "complex result": (
        lambda: tg.grad(tg.sum)(1j * V), TypeError, r"grad requires real-valued outputs .* is complex128.*tg\.vjp",
    ),
    "complex value": (lambda: tg.value_and_grad(tg.sum)(1j * V), TypeError, r"value_and_grad: .*complex128"),
    "vector result": (lambda: tg.grad(lambda x: x)(V), TypeError, r"grad: .*result has shape \(4,\)"),
    "result of one element": (lambda: tg.value_and_grad(lambda x: x[:1])(V), TypeError, r"shape \(1,\)"),
    "tuple result": (lambda: tg.grad(lambda x: (x[0], x[1]))(V), TypeError, r"it gave a tuple"),
    "no result": (lambda: tg.grad(lambda x: None)(V), TypeError, r"it gave None"),
    "integer result": (lambda: tg.grad(lambda x: tg.argmax(x))(V), TypeError, r"the result is int64"),
    "integer in a result": (
        lambda: tg.jvp(lambda x: {"y": (x, tg.argmax(x))}, (V,), (U,)),
        TypeError,
        r"the result\['y'\]\[1\] is int64",
    ),
    "complex tangent of a real": (
        lambda: tg.jvp(tg.sin, (V,), (U * 1j,)), ValueError, r"argument 0 is float64, its tangent complex128",
    ),
    "complex number as a tangent": (
        lambda: tg.jvp(tg.sin, (1.0,), (1j,)), ValueError, r"argument 0 is float64, its tangent complex128",
    ),
    "real cotangent of a complex": (
        lambda: tg.vjp(lambda x: x * 1j, V)[1](U), ValueError, r"the result is complex128, its cotangent float64",
    ),
    "jacobian by complex": (lambda: tg.jacobian(tg.abs)(V * 1j), NotImplementedError, r"jacobian: .* complex.*vjp"),
    "hessian by complex": (
        lambda: tg.hessian(lambda z: tg.sum(tg.abs(z)))(V * 1j), NotImplementedError, r"jacobian: .* complex",
    ),
    "no such argument": (lambda: tg.grad(tg.sum, argnums=2)(V), TypeError, r"argnums=2 with 1 positional"),
    "argnums no integer": (lambda: tg.grad(tg.sum, argnums=0.5)(V), TypeError, r"argnums is an integer"),
    "argument twice": (lambda: tg.grad(lambda a, b: a, (1, -1))(1.0, 2.0), ValueError, r"twice"),
    "aux missing": (lambda: tg.grad(tg.sum, has_aux=True)(V), TypeError, r"has_aux .* pair"),
    "tangent of another shape": (
        lambda: tg.jvp(lambda p: p["w"], (TREE,), ({"w": U[:3], "n": [1.0]},)),
        ValueError,
        r"jvp: argument 0\['w'\] has shape \(4,\), its tangent \(3,\)",
    ),
    "tangent of another type": (
        lambda: tg.jvp(tg.sin, (V,), (U.astype("float32"),)),
        ValueError,
        r"jvp: argument 0 is float64, its tangent float32",
    ),
    "tangent with other keys": (
        lambda: tg.jvp(lambda p: p["w"], (TREE,), ({"w": U, "m": [1.0]},)),
        ValueError,
        r"jvp: argument 0 has the keys \['w', 'n'\], its tangent has \['w', 'm'\]",
    ),
    "tangent of another length": (
        lambda: tg.jvp(lambda p: p["w"], (TREE,), ({"w": U, "n": [1.0, 2.0]},)),
        ValueError,
        r"argument 0\['n'\] has 1 items, its tangent has 2",
    ),
    "tangent of another kind": (
        lambda: tg.jvp(lambda p: p["w"], (TREE,), ({"w": U, "n": (1.0,)},)),
        ValueError,
        r"argument 0\['n'\] is a list, its tangent is a tuple",
    ),
    "tangent is a leaf": (lambda: tg.jvp(lambda p: p["w"], (TREE,), (U,)), ValueError, r"argument 0 is a dict"),
    "tangents too few": (lambda: tg.jvp(lambda a, b: a, (V, V), (U,)), ValueError, r"2 primal\(s\), 1 tangent"),
    "primals no tuple": (lambda: tg.jvp(tg.sin, V, U), TypeError, r"jvp: primals is a tuple"),
    "hvp mismatch": (lambda: tg.hvp(tg.sum, (V,), (U[:1],)), ValueError, r"hvp: argument 0 has shape"),
    "cotangent of another shape": (
        lambda: tg.vjp(lambda x: [x, x[:2]], V)[1]([U, U]),
        ValueError,
        r"vjp: the result\[1\] has shape \(2,\), its cotangent \(4,\)",
    ),
    "cotangent of another type": (lambda: tg.vjp(tg.sin, V)[1](U.astype(int)), ValueError, r"its cotangent int64"),
    "cotangent of another structure": (
        lambda: tg.vjp(lambda x: {"y": x}, V)[1](U), ValueError, r"the result is a dict, its cotangent is a leaf",
    ),
    "jacobian of integers": (lambda: tg.jacobian(tg.sin)(np.arange(3)), TypeError, r"jacobian: argument 0 is int64"),
    "check of no order": (lambda: tg.check_grads(tg.sin, (V,), order=0), ValueError, r"order is 1 or more"),
    "check of no mode": (lambda: tg.check_grads(tg.sin, (V,), modes=("fwd",)), ValueError, r"'fwd'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, kind, said = ERRORS[name]
    with pytest.raises(kind, match=said):
        call()


@pytest.mark.parametrize(
    ("rule", "use"), [("vjp", lambda: tg.grad(tg.sin)(1.0)), ("jvp", lambda: tg.jvp(tg.sin, (1.0,), (1.0,)))]
)
def test_a_missing_rule_is_named(monkeypatch: pytest.MonkeyPatch, rule: str, use: Any) -> None:
    monkeypatch.setitem(TABLE["sin"].__dict__, rule, None)
    with pytest.raises(NotImplementedError, match="'sin' has no rule"):
        use()


# -- trees -------------------------------------------------------------------------------------------------------------


def test_trees() -> None:
    t = {"b": [1, (2, None)], "a": Pair(3, {})}
    assert tree.with_paths(t) == [("['b'][0]", 1), ("['b'][1][0]", 2), ("['a'].w", 3)]
    assert tree.map_with_paths(lambda path, x: x * 10, t) == {"b": [10, (20, None)], "a": Pair(30, {})}
    assert tree.unflatten(5, [7]) == 7
    for count in (2, 4):
        with pytest.raises(ValueError, match="values than leaves"):
            tree.unflatten(t, range(count))
    assert [x for *_, x in tree.against({"a": 1, "b": 2}, {"b": 20, "a": 10}, "other")] == [10, 20]
