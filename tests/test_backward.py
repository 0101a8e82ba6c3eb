"""Define-by-run: `requires_grad`, `backward` and `.grad`, as PyTorch has them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from same import same

import taskgraph as tg

pytestmark = pytest.mark.usefixtures("one_thread")

A = np.array([[1.5, 2.0, -3.0], [4.0, 0.5, 6.0]])
B = np.array([[2.0, 1.0, 3.0], [0.5, 2.0, 1.5]])


def test_backward_fills_leaves_and_accumulates() -> None:
    x, w = tg.tensor(A, requires_grad=True), tg.tensor(B, requires_grad=True)
    constant = tg.asarray(B)
    y = tg.sum(x * w + constant)
    assert (y.requires_grad, x.is_leaf, y.is_leaf, constant.requires_grad) == (True, True, False, False)
    y.backward()
    same(x.grad, B)
    same(w.grad, A)
    assert (constant.grad, y.grad) == (None, None)
    y.backward()
    same(x.grad, 2 * B)
    x.grad = None
    tg.sum(x).backward()
    same(x.grad, np.ones_like(A))
    same(w.grad, 2 * A)


def test_backward_with_a_cotangent() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    (x * x).backward(tg.asarray([1.0, 10.0]))
    same(x.grad, [2.0, 40.0])
    x.grad = None
    (x * x).backward(np.array([1.0, 10.0]))
    same(x.grad, [2.0, 40.0])
    x.grad = None
    tg.reshape(tg.sum(x * x), (1, 1)).backward()
    same(x.grad, [2.0, 4.0])


def test_equal_leaves_keep_separate_gradients() -> None:
    x, y = tg.tensor([1.0, 2.0], requires_grad=True), tg.tensor([1.0, 2.0], requires_grad=True)
    tg.sum(3 * x + 5 * y * y).backward()
    same(x.grad, [3.0, 3.0])
    same(y.grad, [10.0, 20.0])
    shared = tg.asarray([1.0, 2.0])
    u, v = tg.asarray(shared, requires_grad=True), tg.asarray(shared, requires_grad=True)
    tg.sum(u * v).backward()
    same(u.grad, [1.0, 2.0])
    assert v.grad is not u.grad


def test_detach_and_stop_gradient() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    d = x.detach()
    assert not d.requires_grad
    same(d, [1.0, 2.0])
    tg.sum(x * d).backward()
    same(x.grad, [1.0, 2.0])
    assert not tg.stop_gradient(x).requires_grad


def test_requires_grad_may_be_switched() -> None:
    x = tg.asarray([1.0, 2.0])
    assert not (x * 2).requires_grad
    x.requires_grad = True
    x.requires_grad = False
    assert not (x * 2).requires_grad
    x.requires_grad = True
    x.requires_grad = True
    tg.sum(3 * x).backward()
    same(x.grad, [3.0, 3.0])
    assert not (x > 0).requires_grad  # booleans and integers have no gradient
    assert not tg.argmax(x).requires_grad
    same(x, [1.0, 2.0])


def test_a_leaf_is_not_kept_alive_by_its_graph() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    w = tg.tensor([3.0, 4.0], requires_grad=True)
    y = tg.sum(x * w)
    del w
    gc.collect()
    y.backward()
    same(x.grad, [3.0, 4.0])


def test_a_training_step() -> None:
    rng = np.random.default_rng(0)
    data, target = rng.standard_normal((8, 3)), rng.standard_normal(8)
    weights = np.zeros(3)
    w = tg.tensor(weights, requires_grad=True)
    for _ in range(3):
        loss = tg.mean((tg.asarray(data) @ w - target) ** 2)
        loss.backward()
        w = tg.asarray((w - 0.1 * w.grad).compute(), requires_grad=True)
        weights = weights - 0.1 * 2 / 8 * data.T @ (data @ weights - target)
    same(w, weights)
