"""Optimizers, learning rates and losses, each against the same in NumPy, by hand or by autograd."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import logsumexp
from distributed import Client, futures_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import taskgraph as tg
from taskgraph import optim

Arrays = list[np.ndarray]
Step = Callable[[int, Arrays, Arrays], Arrays]


# -- optimizers --------------------------------------------------------------------------------------------------------


def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"layers": [{"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}], "last": (rng.normal(size=(3, 2)),)}


def objective(params: Any, xp: Any = tg) -> Any:
    """A function whose gradient is another one at every point; of the module that gives `tanh` and `sum`."""
    layer, last = params["layers"][0], params["last"][0]
    x = np.linspace(-1, 1, 20).reshape(5, 4)
    return xp.sum((xp.tanh(x @ layer["w"] + layer["b"]) @ last - 1.0) ** 2)


def gradients_of(params: Any, f: Callable[[Any], tg.Tensor] = objective) -> tuple[tg.Tensor, Any]:
    loss = f(params)
    return loss, tg.tree.unflatten(params, tg.gradients(loss, tg.tree.leaves(params)))


def train(optimizer: optim.Optimizer, params: Any, steps: int) -> tuple[Any, Any]:
    state = optimizer.init(params)
    for _ in range(steps):
        _, grads = gradients_of(params)
        updates, state = optimizer.update(grads, state, params)
        params, state = tg.tree.persist((optim.apply_updates(params, updates), state))
    return params, state


def by_hand(step: Step, steps: int) -> Arrays:
    """The parameters after some steps of `step(t, grads, params) -> updates`, with autograd's gradients."""
    like = start()
    flat = [np.array(p) for p in tg.tree.leaves(like)]
    for t in range(steps):
        g = autograd.grad(lambda p: objective(p, anp))(tg.tree.unflatten(like, flat))
        flat = [p + u for p, u in zip(flat, step(t, tg.tree.leaves(g), flat), strict=True)]
    return flat


def momentum_by_hand(rate: float, decay: float, nesterov: bool) -> Step:
    trace = [np.zeros_like(p) for p in tg.tree.leaves(start())]

    def step(t: int, grads: Arrays, params: Arrays) -> Arrays:
        trace[:] = [g + decay * m for g, m in zip(grads, trace, strict=True)]
        return [-rate * (g + decay * m if nesterov else m) for g, m in zip(grads, trace, strict=True)]

    return step


def adam_by_hand(rate: Callable[[int], float], b1: float, b2: float, eps: float, decay: float = 0.0) -> Step:
    m = [np.zeros_like(p) for p in tg.tree.leaves(start())]
    v = [np.zeros_like(p) for p in tg.tree.leaves(start())]

    def step(t: int, grads: Arrays, params: Arrays) -> Arrays:
        updates = []
        for i, (g, p) in enumerate(zip(grads, params, strict=True)):
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            direction = (m[i] / (1 - b1 ** (t + 1))) / (np.sqrt(v[i] / (1 - b2 ** (t + 1))) + eps)
            updates.append(-rate(t) * (direction + decay * p))
        return updates

    return step


def clipped_by_hand(max_norm: float, rate: float) -> Step:
    def step(t: int, grads: Arrays, params: Arrays) -> Arrays:
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        return [-rate * g * min(1.0, max_norm / norm) for g in grads]

    return step


BY_HAND: dict[str, tuple[optim.Optimizer, Callable[[], Step]]] = {
    "sgd": (optim.sgd(0.02), lambda: lambda t, grads, params: [-0.02 * g for g in grads]),
    "scheduled": (
        optim.sgd(optim.exponential(0.02, 5, 0.5)),
        lambda: lambda t, grads, params: [-0.02 * 0.5 ** (t / 5) * g for g in grads],
    ),
    "momentum": (optim.momentum(0.01, 0.8), lambda: momentum_by_hand(0.01, 0.8, False)),
    "nesterov": (optim.nesterov(0.01, 0.8), lambda: momentum_by_hand(0.01, 0.8, True)),
    "adam": (optim.adam(0.1, 0.8, 0.99, 1e-6), lambda: adam_by_hand(lambda t: 0.1, 0.8, 0.99, 1e-6)),
    "adamw": (
        optim.adamw(optim.cosine(0.1, 8), weight_decay=0.1),
        lambda: adam_by_hand(lambda t: 0.05 * (1 + math.cos(math.pi * min(t / 8, 1))), 0.9, 0.999, 1e-8, decay=0.1),
    ),
    "clipped": (optim.chain(optim.clip_by_global_norm(2.0), optim.sgd(0.1)), lambda: clipped_by_hand(2.0, 0.1)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_ten_steps_are_those_by_hand(name: str) -> None:
    optimizer, reference = BY_HAND[name]
    params, _ = train(optimizer, tg.tree.map(tg.asarray, start()), 10)
    for ours, theirs in zip(tg.tree.leaves(tg.tree.compute(params)), by_hand(reference(), 10), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_one_submission_a_step_of_float32(name: str) -> None:
    """Nothing computes before `persist`; parameters and state keep their structure and their types."""
    optimizer, _ = BY_HAND[name]
    params = tg.tree.map(lambda p: tg.asarray(p, dtype="float32"), start())
    state = optimizer.init(params)
    with mock.patch("taskgraph.execute.run", side_effect=AssertionError("computes")):
        _, grads = gradients_of(params)
        updates, new_state = optimizer.update(grads, state, params)
        new = optim.apply_updates(params, updates)
    assert [p.dtype for p in tg.tree.leaves([updates, new])] == [np.float32] * 6
    assert [(s.shape, s.dtype) for s in tg.tree.leaves(new_state)] == [
        (s.shape, s.dtype) for s in tg.tree.leaves(state)
    ]
    assert type(tg.tree.map(lambda a, b: b, params, new)) is dict


@pytest.mark.parametrize("name", ["adamw", "clipped"])
def test_a_cluster_takes_the_same_steps_and_keeps_the_parameters(name: str, cluster: Client) -> None:
    optimizer, reference = BY_HAND[name]
    params = tg.tree.map(lambda p: tg.asarray(p, chunks=2), start())
    params, state = train(optimizer, params, 10)
    assert all(futures_of(p) for p in tg.tree.leaves((params, state)))
    for ours, theirs in zip(tg.tree.leaves(tg.tree.compute(params)), by_hand(reference(), 10), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_in_graph_style_a_step_is_described_once() -> None:
    """Parameters and state as variables: the same optimizer, the same numbers."""
    optimizer, reference = BY_HAND["adamw"]
    params = tg.tree.map(tg.Variable, start())
    state = tg.tree.map(tg.Variable, optimizer.init(params))
    _, grads = gradients_of(params)
    updates, new_state = optimizer.update(grads, state, params)
    new = tg.tree.leaves((optim.apply_updates(params, updates), new_state))
    assigns = [v.assign(t) for v, t in zip(tg.tree.leaves((params, state)), new, strict=True)]
    with tg.Session() as session:
        for _ in range(10):
            session.run(assigns)
        found = session.run(tg.tree.leaves(params))
    for ours, theirs in zip(found, by_hand(reference(), 10), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_norm_of_zero_or_below_the_bound_changes_nothing() -> None:
    clip = optim.clip_by_global_norm(5.0)
    for grads in ({"w": np.zeros(3)}, {"w": np.asarray([3.0, 0.0, 4.0])}):
        found, _ = clip.update(tg.tree.map(tg.asarray, grads), clip.init(grads))
        assert (found["w"].compute() == grads["w"]).all()
    assert optim.global_norm({}).compute() == 0
    half = tg.asarray(np.full(4, 300.0, np.float16))
    assert optim.global_norm([half]).compute() == 600  # 300**2 is no float16


def test_mistakes() -> None:
    params = {"w": tg.ones(2)}
    with pytest.raises(TypeError, match=r"int64 \(2,\)"):
        optim.adam(1e-3).init({"w": tg.asarray([1, 2])})
    with pytest.raises(TypeError, match="hold its real and imaginary parts"):
        optim.adam(1e-3).init({"w": tg.asarray([1j, 2])})
    with pytest.raises(ValueError, match="needs the parameters"):
        optim.adamw(1e-3).update(params, optim.adamw(1e-3).init(params))
    with pytest.raises(ValueError, match="1 optimizers, the state is of 0"):
        optim.chain(optim.sgd(0.1)).update(params, ())
    with pytest.raises(ValueError, match="positive"):
        optim.clip_by_global_norm(0)
    with pytest.raises(ValueError, match="positive"):
        optim.cosine(1.0, 0)
    with pytest.raises(ValueError, match=r"\['w'\] is a leaf, its counterpart is a list"):
        optim.apply_updates(params, {"w": [tg.ones(2)]})
    with pytest.raises(ValueError, match=r"the tree has the keys \['w'\], its counterpart has \['v'\]"):
        optim.apply_updates(params, {"v": tg.ones(2)})
    with pytest.raises(ValueError, match=r"\['w'\] is None, its counterpart is a leaf"):
        tg.tree.map(lambda a, b: a, {"w": None}, {"w": tg.ones(2)})
    with pytest.raises(ValueError, match="fewer values than leaves"):
        tg.tree.unflatten([0, 0], [1])


# -- learning rates ----------------------------------------------------------------------------------------------------

RATES: dict[str, tuple[optim.Schedule, Callable[[int], float]]] = {
    "constant": (optim.constant(0.3), lambda t: 0.3),
    "cosine": (optim.cosine(0.3, 10), lambda t: 0.15 * (1 + math.cos(math.pi * min(t / 10, 1)))),
    "cosine to": (optim.cosine(0.3, 10, end=0.1), lambda t: 0.1 + 0.1 * (1 + math.cos(math.pi * min(t / 10, 1)))),
    "exponential": (optim.exponential(0.3, 4, 0.5), lambda t: 0.3 * 0.5 ** (t / 4)),
    "staircase": (optim.exponential(0.3, 4, 0.5, staircase=True), lambda t: 0.3 * 0.5 ** (t // 4)),
    "warmup": (optim.warmup(4, 0.3), lambda t: 0.3 * min(t / 4, 1)),
    "warmup, exponential": (
        optim.warmup(4, optim.exponential(0.3, 4, 0.5)),
        lambda t: 0.3 * t / 4 if t < 4 else 0.3 * 0.5 ** ((t - 4) / 4),
    ),
}


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str) -> None:
    ours, theirs = RATES[name]
    count = tg.asarray(np.int64(0))
    found = tg.compute(*[tg.asarray(ours(count + t)) for t in range(13)])
    np.testing.assert_allclose(found, [theirs(t) for t in range(13)], rtol=1e-14, atol=1e-16)


# -- losses ------------------------------------------------------------------------------------------------------------

logits_of = st.one_of(st.floats(-50, 50), st.sampled_from([0.0, 700.0, -700.0, 1e4, -1e4, 1e300, -1e300]))


@settings(max_examples=20, deadline=None)
@given(st.lists(logits_of, min_size=3, max_size=3), st.integers(0, 2))
def test_softmax_cross_entropy_and_its_gradient(row: list[float], label: int) -> None:
    """Of any finite logits: the value that exact arithmetic has, the probabilities less the label."""
    z = np.asarray([row, [0.0, 1.0, 2.0]])
    x = tg.asarray(z)
    for labels in (np.asarray([label, 1]), np.eye(3)[[label, 1]]):
        loss = optim.softmax_cross_entropy(x, labels)
        value, gradient = tg.compute(loss, tg.gradients(loss, x))
        below = z - z.max(axis=1, keepdims=True)
        p = np.exp(below) / np.exp(below).sum(axis=1, keepdims=True)
        expected = np.mean(np.log(np.exp(below).sum(axis=1)) - below[[0, 1], [label, 1]])
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        np.testing.assert_allclose(gradient, (p - np.eye(3)[[label, 1]]) / 2, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.lists(logits_of, min_size=4, max_size=4), st.lists(st.sampled_from([0.0, 1.0, 0.25]), min_size=4, max_size=4))
def test_logistic_and_its_gradient(logits: list[float], labels: list[float]) -> None:
    z, y = np.asarray(logits), np.asarray(labels)
    x = tg.asarray(z)
    loss = optim.logistic(x, y)
    value, gradient = tg.compute(loss, tg.gradients(loss, x))
    np.testing.assert_allclose(value, np.mean(np.logaddexp(0, -z) * y + np.logaddexp(0, z) * (1 - y)), rtol=1e-13)
    e = np.exp(-np.abs(z))
    np.testing.assert_allclose(gradient, (np.where(z < 0, e, 1) / (1 + e) - y) / 4, atol=1e-15)


def test_losses_against_autograd() -> None:
    rng = np.random.default_rng(0)
    z, t, labels = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    p = rng.dirichlet(np.ones(4), 6)
    pairs: list[tuple[Any, Any]] = [
        (lambda x: optim.mse(x, t), lambda x: anp.mean((x - t) ** 2)),
        (lambda x: optim.logistic(x, p), lambda x: anp.mean(anp.logaddexp(0, x) - x * p)),
        (
            lambda x: optim.softmax_cross_entropy(x, labels),
            lambda x: anp.mean(logsumexp(x, axis=1) - x[np.arange(6), labels]),
        ),
        (
            lambda x: optim.softmax_cross_entropy(x, p[:4].T.repeat(2, 0)[:6], axis=0),
            lambda x: anp.mean(anp.sum(-p[:4].T.repeat(2, 0)[:6] * (x - logsumexp(x, axis=0, keepdims=True)), axis=0)),
        ),
    ]
    for chunks in (2, -1):
        x = tg.asarray(z, chunks=chunks)
        for ours, theirs in pairs:
            loss = ours(x)
            value, gradient = tg.compute(loss, tg.gradients(loss, x))
            np.testing.assert_allclose(value, theirs(z), rtol=1e-13)
            np.testing.assert_allclose(gradient, autograd.grad(theirs)(z), rtol=1e-12, atol=1e-15)


def test_a_class_that_cannot_be() -> None:
    """A logit of -inf has probability 0, and a gradient of 0 where its label is 0; no class is a loss of 0."""
    x = tg.asarray([[0.0, -np.inf, 0.0], [1.0, 2.0, 3.0]])
    loss = optim.softmax_cross_entropy(x, [0, -1])
    value, gradient = tg.compute(loss, tg.gradients(loss, x))
    assert value == pytest.approx(math.log(2) / 2)
    np.testing.assert_allclose(gradient, [[-0.25, 0, 0.25], [0, 0, 0]], atol=1e-16)


def test_float32_losses_stay_float32() -> None:
    x = tg.asarray(np.ones((2, 2), np.float32))
    for loss in (optim.mse(x, np.ones((2, 2))), optim.logistic(x, np.eye(2)), optim.softmax_cross_entropy(x, [0, 1])):
        assert (loss.dtype, loss.shape) == (np.float32, ())


def test_mistakes_with_losses() -> None:
    x = tg.ones((3, 1))
    with pytest.raises(ValueError, match=r"mse: the shapes must be equal: .*\(3, 1\) float64, .*\(3,\)"):
        optim.mse(x, tg.ones(3))
    with pytest.raises(ValueError, match="logistic: the shapes must be equal"):
        optim.logistic(x, tg.ones(3))
    with pytest.raises(TypeError, match="floating"):
        optim.logistic(tg.asarray([1, 2]), tg.ones(2))
    with pytest.raises(ValueError, match=r"integers of shape \(3,\)"):
        optim.softmax_cross_entropy(x, tg.asarray([[0], [0], [0], [0]]))
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        optim.softmax_cross_entropy(x, [0, 0, 0], axis=2)


# -- SciPy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "cluster"])
def test_lbfgs_reaches_the_solution_of_scikit_learn(where: str, request: pytest.FixtureRequest) -> None:
    if where == "cluster":
        request.getfixturevalue("cluster")
    data = load_breast_cancer()
    features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    x, y = tg.persist(tg.asarray(features), tg.asarray(data.target))

    def loss(p: Any) -> tg.Tensor:
        return optim.logistic(x @ p["w"] + p["b"], y) + tg.sum(p["w"] ** 2) / (2 * len(features))

    found = optim.minimize_scipy(
        loss, {"w": np.zeros(30), "b": 0.0}, options={"ftol": 1e-14, "gtol": 1e-8, "maxiter": 500}
    )
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(features, data.target)
    np.testing.assert_allclose(found.x["w"].compute(), reference.coef_[0], atol=1e-5)
    np.testing.assert_allclose(found.x["b"].compute(), reference.intercept_[0], atol=1e-5)
    assert found.jac["w"].shape == (30,)


def test_minimize_scipy_keeps_structure_and_types() -> None:
    params = [tg.zeros((2, 2), dtype="float32"), (tg.zeros(()),)]
    found = optim.minimize_scipy(lambda p: tg.sum((p[0] - 2) ** 2) + (p[1][0] + 1) ** 2, params, method="BFGS")
    assert type(found.x) is list
    assert type(found.x[1]) is tuple
    assert (found.x[0].dtype, found.x[0].shape, found.x[1][0].dtype) == (np.float32, (2, 2), np.float64)
    np.testing.assert_allclose(found.x[0].compute(), np.full((2, 2), 2.0), atol=1e-5)


def test_mistakes_with_scipy() -> None:
    with pytest.raises(TypeError, match=r"params at \['w'\] are int64"):
        optim.minimize_scipy(lambda p: tg.sum(p["w"]), {"w": np.arange(3)})
    with pytest.raises(ValueError, match=r"one number, it gives \(3,\)"):
        optim.minimize_scipy(lambda p: p, np.ones(3))
    with (
        mock.patch.dict(sys.modules, {"scipy.optimize": None}),
        pytest.raises(ImportError, match=r"pip install 'dask-taskgraph\[scipy\]'"),
    ):
        optim.minimize_scipy(lambda p: tg.sum(p), np.ones(3))
