"""Gradients of random compositions against those of another implementation: HIPS autograd.

A composition is a list of steps on a growing list of matrices; the same list is run with our functions and with
autograd's. Every step bounds its values, so that no composition overflows or loses the digits that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autograd
import autograd.numpy as anp
import autograd.scipy.special as asp
import dask
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskgraph as tg

N = 3  # every value is an (N, N) matrix between steps


@dataclass(frozen=True)
class Step:
    """One operation of one to three matrices, in both libraries; the result is an (N, N) matrix of bounded values."""

    name: str
    arity: int
    ours: Callable[..., Any]
    theirs: Callable[..., Any]


def step(name: str, arity: int, f: Callable[..., Any], theirs: Callable[..., Any] | None = None) -> Step:
    """`f(xp, *arrays)` where one text serves both, or one function for each."""
    if theirs is not None:
        return Step(name, arity, lambda *x: f(*x), lambda *x: theirs(*x))
    return Step(name, arity, lambda *x: f(tg, *x), lambda *x: f(anp, *x))


def _square(x: Any) -> Any:
    return 0.6 + x * x


STEPS = [
    *[
        step(n, 1, lambda xp, x, n=n: getattr(xp, n)(x))
        for n in ("sin", "cos", "tanh", "abs", "negative", "expm1", "sinh", "cosh")
    ],
    step("asin", 1, lambda x: tg.asin(0.5 * tg.tanh(x)), lambda x: anp.arcsin(0.5 * anp.tanh(x))),
    step("atan2", 2, lambda x, y: tg.atan2(x, _square(y)), lambda x, y: anp.arctan2(x, _square(y))),
    step("log", 1, lambda xp, x: xp.log(_square(x))),
    step("log1p", 1, lambda xp, x: xp.log1p(x * x)),
    step("sqrt", 1, lambda xp, x: xp.sqrt(_square(x))),
    step("reciprocal", 1, lambda xp, x: 1 / _square(x)),
    step("square", 1, lambda xp, x: x**2),
    step("cube", 1, lambda xp, x: x**3),
    step("add", 2, lambda xp, x, y: x + y),
    step("subtract", 2, lambda xp, x, y: x - y),
    step("multiply", 2, lambda xp, x, y: x * y),
    step("divide", 2, lambda xp, x, y: x / _square(y)),
    step("pow", 2, lambda x, y: tg.pow(_square(x), y), lambda x, y: anp.power(_square(x), y)),
    step("maximum", 2, lambda xp, x, y: xp.maximum(x, y + 0.01)),
    step("minimum", 2, lambda xp, x, y: xp.minimum(x, y + 0.01)),
    step("logaddexp", 2, lambda xp, x, y: xp.logaddexp(x, y)),
    step("where", 3, lambda xp, x, y, z: xp.where(x > 0.1, y, z)),
    step("clip", 1, lambda xp, x: xp.clip(x, -0.5, 0.5)),
    step("broadcast a row", 2, lambda xp, x, y: x * y[0]),
    step("broadcast a column", 2, lambda xp, x, y: x - y[:, 1:2]),
    step("broadcast a number", 2, lambda xp, x, y: x * y[0, 1]),
    step("outer", 2, lambda xp, x, y: xp.outer(x[0], y[:, 2])),
    step("matmul", 2, lambda xp, x, y: xp.matmul(x, y)),
    step("matmul transposed", 2, lambda xp, x, y: xp.matmul(x.T, y)),
    step("matmul both transposed", 2, lambda xp, x, y: xp.matmul(x.T, y.T)),
    step("matmul with itself", 1, lambda xp, x: xp.matmul(x, x.T)),
    step("matrix vector", 2, lambda xp, x, y: x + xp.matmul(x, y[0])),
    step("vector matrix", 2, lambda xp, x, y: x + xp.matmul(y[0], x)),
    step("inner", 2, lambda xp, x, y: x * xp.matmul(y[0], x[1])),
    step(
        "batched",
        2,
        lambda x, y: tg.sum(tg.matmul(tg.stack([x, y]), y), axis=0),
        lambda x, y: anp.sum(anp.matmul(anp.stack([x, y]), y), axis=0),
    ),
    step("tensordot", 2, lambda xp, x, y: x * xp.tensordot(x, y, axes=((0, 1), (1, 0)))),
    step("einsum", 2, lambda xp, x, y: xp.einsum("ij,kj->ki", x, y)),
    step("einsum of three", 3, lambda xp, x, y, z: xp.einsum("ij,jk,lk->il", x, y, z)),
    step("einsum hadamard", 2, lambda xp, x, y: xp.einsum("ij,ij->j", x, y) + x),
    step("transpose", 1, lambda xp, x: x.T),
    step(
        "reshape",
        1,
        lambda x: tg.reshape(tg.reshape(x, (N * N,))[::-1], (N, N)),
        lambda x: anp.reshape(anp.reshape(x, (N * N,))[::-1], (N, N)),
    ),
    step(
        "slices",
        2,
        lambda x, y: tg.concat([x[1:], y[:1]], axis=0),
        lambda x, y: anp.concatenate([x[1:], y[:1]], axis=0),
    ),
    step(
        "columns",
        2,
        lambda x, y: tg.concat([y[:, ::2], x[:, 1:2]], axis=1),
        lambda x, y: anp.concatenate([y[:, ::2], x[:, 1:2]], axis=1),
    ),
    step("roll", 1, lambda x: tg.roll(x, 1, axis=1), lambda x: anp.roll(x, 1, 1)),
    step("tril", 1, lambda xp, x: xp.tril(x)),
    step("cumulative", 1, lambda x: tg.cumulative_sum(x, axis=0), lambda x: anp.cumsum(x, axis=0)),
    step("sum", 1, lambda xp, x: x - xp.sum(x, axis=0)),
    step("sum keepdims", 1, lambda xp, x: x * xp.sum(x, axis=1, keepdims=True)),
    step("mean", 1, lambda xp, x: x - xp.mean(x)),
    step("var", 1, lambda xp, x: x * xp.var(x, axis=0)),
    step("std", 1, lambda xp, x: x / (0.5 + xp.std(x + _distinct(xp), axis=1, keepdims=True))),
    step("max", 1, lambda xp, x: x - xp.max(x + _distinct(xp), axis=1, keepdims=True)),
    step("min", 1, lambda xp, x: x * xp.min(x + _distinct(xp))),
    step("prod", 1, lambda xp, x: x + xp.prod(x, axis=0)),
    step(
        "logsumexp",
        1,
        lambda x: tg.exp(x - tg.logsumexp(x, axis=1, keepdims=True)),
        lambda x: anp.exp(x - asp.logsumexp(x, axis=1, keepdims=True)),
    ),
]


def _distinct(xp: Any) -> Any:
    """Different numbers everywhere, so that no two elements of a sum with it tie by construction."""
    values = 0.01 * np.arange(N * N).reshape(N, N) ** 1.5
    return tg.asarray(values) if xp is tg else values


Composition = list[tuple[Step, tuple[int, ...]]]


@st.composite
def compositions(draw: st.DrawFn, inputs: int = 2, most: int = 7) -> Composition:
    steps: Composition = []
    for count in range(inputs, inputs + draw(st.integers(1, most))):
        chosen = draw(st.sampled_from(STEPS))
        at = tuple(draw(st.integers(max(0, count - 3), count - 1)) for _ in range(chosen.arity))
        steps.append((chosen, at))
    return steps


def run(steps: Composition, inputs: list[Any], weights: np.ndarray, ours: bool) -> Any:
    """The weighted sum of the last value."""
    xp: Any = tg if ours else anp
    values = list(inputs)
    for chosen, at in steps:
        value = (chosen.ours if ours else chosen.theirs)(*[values[i] for i in at])
        values.append(1.5 * xp.tanh(value))
    return xp.sum(values[-1] * (tg.asarray(weights) if ours else weights))


ARRAYS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(-1.5, 1.5, (3, N, N)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(compositions(), ARRAYS, st.sampled_from(["auto", 2]))
def test_gradients_are_those_of_autograd(steps: Composition, arrays: np.ndarray, chunks: Any) -> None:
    *inputs, weights = arrays

    def theirs(*xs: Any) -> Any:
        return run(steps, list(xs), weights, ours=False)

    value, expected = theirs(*inputs), autograd.grad(theirs, tuple(range(len(inputs))))(*inputs)
    xs = [tg.asarray(a, chunks=chunks) for a in inputs]
    y = run(steps, xs, weights, ours=True)
    with dask.config.set(scheduler="synchronous"):
        found = dask.compute(y, *tg.gradients(y, xs))
    np.testing.assert_allclose(found[0], value, rtol=1e-10, atol=1e-10)
    for f, e in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-7, atol=1e-8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(compositions(inputs=1, most=3), ARRAYS)
def test_hessian_vector_products_are_those_of_autograd(steps: Composition, arrays: np.ndarray) -> None:
    x, v, weights = arrays

    def theirs(a: Any) -> Any:
        return run(steps, [a], weights, ours=False)

    with np.errstate(all="ignore"):
        expected = autograd.grad(lambda a: anp.sum(autograd.grad(theirs)(a) * v))(x)
    t = tg.asarray(x)
    first = tg.gradients(run(steps, [t], weights, ours=True), t)
    found = tg.gradients(tg.sum(first * tg.asarray(v)), t).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_every_step_is_bounded_and_smooth_enough_to_compare() -> None:
    """Each step alone: value and gradient, so that a wrong rule is named at once."""
    rng = np.random.default_rng(5)
    for chosen in STEPS:
        inputs = list(rng.uniform(-1.5, 1.5, (chosen.arity, N, N)))
        weights = rng.standard_normal((N, N))
        steps: Composition = [(chosen, tuple(range(chosen.arity)))]
        expected = autograd.grad(
            lambda *xs, s=steps, w=weights: run(s, list(xs), w, ours=False), tuple(range(len(inputs)))
        )(*inputs)
        xs = [tg.asarray(a) for a in inputs]
        found = dask.compute(*tg.gradients(run(steps, xs, weights, ours=True), xs), scheduler="synchronous")
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-10, err_msg=chosen.name)
