"""Optimizers, learning rates, losses: what training needs beside gradients.

    optimizer = tg.optim.adam(1e-3)
    state = optimizer.init(params)
    for batch in batches:
        loss, grads = ...
        updates, state = optimizer.update(grads, state, params)
        params = tg.optim.apply_updates(params, updates)
        params, state, loss = tg.tree.persist((params, state, loss))

Design note. The form is optax's (DeepMind, 2020): an optimizer is a pair of pure functions, `init(params) -> state` and
`update(grads, state, params) -> (updates, state)`, and every optimizer here is a chain of a few small ones. Params,
gradients, updates are trees of tensors of one structure (see `taskgraph.tree`), a state is a tree of tensors, too: so
one `persist` computes a whole step where the parameters lie, `tg.save` writes a state like any tree, and a step that is
described once (its parameters variables or placeholders) can run again and again. Nothing computes before that.

What counts steps is a tensor of one int64. Learning rates and Adam's corrections are made of it in float64 and rounded
once, to the type of what they multiply, which keeps its type: float32 parameters stay float32.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskgraph import tree
from taskgraph.losses import logistic, mse, softmax_cross_entropy
from taskgraph.minimize import minimize_scipy
from taskgraph.ops.create import asarray, zeros_like
from taskgraph.ops.elementwise import cast, cos, floor, minimum, sqrt, square, where
from taskgraph.ops.reduce import sum
from taskgraph.tensor import Tensor, as_tensor

#: A learning rate by the number of steps done before, a tensor of one integer.
Schedule = Callable[[Any], Any]


@dataclass(frozen=True)
class Optimizer:
    """Two pure functions on trees of tensors.

    init(params): the state before the first step. update(grads, state, params): what to add to the parameters, and the
    next state; `params` may be left out where no part of the optimizer looks at them.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def apply_updates(params: Any, updates: Any) -> Any:
    """The parameters with the updates added: trees of one structure; every parameter keeps its type.

    >>> import taskgraph as tg
    >>> tg.tree.compute(apply_updates({"w": tg.asarray([1.0])}, {"w": tg.asarray([-0.5])}))
    {'w': array([0.5])}
    """
    return tree.map(lambda p, u: as_tensor(p) + cast(as_tensor(u), as_tensor(p).dtype), params, updates)


# -- optimizers --------------------------------------------------------------------------------------------------------


def sgd(learning_rate: float | Schedule) -> Optimizer:
    """Gradient descent: the update is -rate * g.

    learning_rate: a number or a schedule, here and in the other optimizers.

    >>> import taskgraph as tg
    >>> w = tg.asarray([1.0, -2.0])
    >>> optimizer = sgd(0.25)
    >>> state = optimizer.init(w)
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(tg.gradients(tg.sum(w * w), w), state)
    ...     w = apply_updates(w, updates)
    >>> w.compute()
    array([ 0.25, -0.5 ])
    """
    return _downhill(learning_rate)


def momentum(learning_rate: float | Schedule, decay: float = 0.9) -> Optimizer:
    """Gradient descent with momentum (Polyak, 1964): t = g + decay * t, the update is -rate * t."""
    return chain(_trace(decay, nesterov=False), _downhill(learning_rate))


def nesterov(learning_rate: float | Schedule, decay: float = 0.9) -> Optimizer:
    """Nesterov's momentum (Sutskever et al., 2013): t = g + decay * t, the update is -rate * (g + decay * t)."""
    return chain(_trace(decay, nesterov=True), _downhill(learning_rate))


def adam(learning_rate: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma & Ba, 2015): -rate * m / (sqrt(v) + eps), m and v the running means of g and g**2, corrected for
    their start at zero."""
    return chain(_moments(b1, b2, eps), _downhill(learning_rate))


def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): -rate * (Adam's direction + weight_decay * p)."""
    return chain(_moments(b1, b2, eps), _decay_weights(weight_decay), _downhill(learning_rate))


def clip_by_global_norm(max_norm: float) -> Optimizer:
    """Gradients scaled down together, where their common Euclidean norm exceeds `max_norm`, to that norm.

    To be chained before an optimizer: `chain(clip_by_global_norm(1.0), adam(1e-3))`. ValueError unless positive.

    >>> import taskgraph as tg
    >>> updates, _ = clip_by_global_norm(1.0).update({"w": tg.asarray([3.0]), "b": tg.asarray([4.0])}, ())
    >>> tg.tree.compute(updates)
    {'w': array([0.6]), 'b': array([0.8])}
    """
    if not max_norm > 0:
        raise ValueError(f"clip_by_global_norm: the norm must be positive, got {max_norm}")

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        norm = global_norm(grads)
        # the norm of zeros is never divided by
        factor = where(norm > max_norm, max_norm / where(norm > max_norm, norm, 1), 1)
        return tree.map(lambda g: g * cast(factor, g.dtype), grads), state

    return Optimizer(lambda params: (), update)


def global_norm(grads: Any) -> Tensor:
    """The Euclidean norm of all elements of a tree of tensors, as one number; added up in float32 at least.

    >>> import taskgraph as tg
    >>> global_norm([tg.asarray([3.0]), tg.asarray([4.0])]).compute()
    np.float64(5.0)
    """
    squares = [sum(square(cast(g, np.result_type(g.dtype, np.float32)))) for g in tree.leaves(grads)]
    return sqrt(functools.reduce(operator.add, squares)) if squares else asarray(0.0)


def chain(*optimizers: Optimizer) -> Optimizer:
    """One optimizer after another: each gets the updates of the one before as its gradients; the state is a tuple.

    >>> chain(clip_by_global_norm(1.0), sgd(0.1)).init({})
    ((), ())
    """

    def init(params: Any) -> Any:
        return tuple(o.init(params) for o in optimizers)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if len(state) != len(optimizers):
            raise ValueError(f"chain: {len(optimizers)} optimizers, the state is of {len(state)}")
        states = []
        for o, s in zip(optimizers, state, strict=True):
            grads, s = o.update(grads, s, params)
            states.append(s)
        return grads, tuple(states)

    return Optimizer(init, update)


# -- what they are made of ---------------------------------------------------------------------------------------------


def _zeros(params: Any) -> Any:
    return tree.map(lambda p: zeros_like(_parameter(p)), params)


def _parameter(p: Any) -> Tensor:
    p = as_tensor(p)
    if p.dtype.kind == "c":  # a step along the gradient would go uphill in the imaginary part (tg.gradients says why)
        raise TypeError(f"optim: parameters are real, one is {p.dtype} {p.shape}; hold its real and imaginary parts")
    if not np.issubdtype(p.dtype, np.floating):
        raise TypeError(f"optim: parameters are floating point tensors, one is {p.dtype} {p.shape}")
    return p


def _count() -> Tensor:
    return asarray(np.int64(0))


def _downhill(learning_rate: float | Schedule) -> Optimizer:
    """-rate * g; the state counts the steps where the rate depends on them."""
    if not callable(learning_rate):
        return Optimizer(lambda params: (), lambda grads, state, params=None: (_scaled(grads, -learning_rate), state))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rate = as_tensor(learning_rate(state["count"]))
        return _scaled(grads, -rate), {"count": state["count"] + 1}

    return Optimizer(lambda params: {"count": _count()}, update)


def _scaled(grads: Any, factor: Any) -> Any:
    return tree.map(lambda g: g * (cast(factor, g.dtype) if isinstance(factor, Tensor) else factor), grads)


def _trace(decay: float, nesterov: bool) -> Optimizer:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        trace = tree.map(lambda g, t: g + decay * t, grads, state["trace"])
        return (tree.map(lambda g, t: g + decay * t, grads, trace) if nesterov else trace), {"trace": trace}

    return Optimizer(lambda params: {"trace": _zeros(params)}, update)


def _moments(b1: float, b2: float, eps: float) -> Optimizer:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state["count"] + 1
        m = tree.map(lambda g, m: b1 * m + (1 - b1) * g, grads, state["m"])
        v = tree.map(lambda g, v: b2 * v + (1 - b2) * square(g), grads, state["v"])
        first, second = 1 - b1**count, 1 - b2**count

        def direction(m: Tensor, v: Tensor) -> Tensor:
            return (m / cast(first, m.dtype)) / (sqrt(v / cast(second, v.dtype)) + eps)

        return tree.map(direction, m, v), {"count": count, "m": m, "v": v}

    return Optimizer(lambda params: {"count": _count(), "m": _zeros(params), "v": _zeros(params)}, update)


def _decay_weights(weight_decay: float) -> Optimizer:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("adamw: update(grads, state, params) needs the parameters, whose weights it decays")
        return tree.map(lambda g, p: g + weight_decay * p, grads, params), state

    return Optimizer(lambda params: (), update)


# -- learning rates ----------------------------------------------------------------------------------------------------


def constant(value: float) -> Schedule:
    """The same rate at every step."""
    return lambda count: value


def cosine(value: float, steps: int, end: float = 0.0) -> Schedule:
    """From `value` to `end` in `steps` steps along half a cosine, then `end` (Loshchilov & Hutter, 2017).

    >>> float(cosine(1.0, steps=10)(5))
    0.5
    """
    _check_steps("cosine", steps)

    def rate(count: Any) -> Tensor:
        done = minimum(as_tensor(count) / steps, 1.0)
        return end + (value - end) * 0.5 * (1 + cos(math.pi * done))

    return rate


def exponential(value: float, steps: int, decay: float, staircase: bool = False) -> Schedule:
    """value * decay**(count / steps); the exponent rounded down where `staircase`.

    >>> float(exponential(1.0, steps=10, decay=0.25)(5)), float(exponential(1.0, 10, 0.25, staircase=True)(5))
    (0.5, 1.0)
    """
    _check_steps("exponential", steps)

    def rate(count: Any) -> Tensor:
        exponent = as_tensor(count) / steps
        return value * decay ** (floor(exponent) if staircase else exponent)

    return rate


def warmup(steps: int, then: float | Schedule) -> Schedule:
    """From 0 in `steps` equal steps to the first rate of `then`, which follows (Goyal et al., 2017).

    >>> rate = warmup(4, cosine(1.0, steps=10))
    >>> [float(rate(n)) for n in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 0.5]
    """
    _check_steps("warmup", steps)
    after: Schedule = then if callable(then) else constant(then)

    def rate(count: Any) -> Tensor:
        count = as_tensor(count)
        return where(count < steps, after(0) * (count / steps), after(count - steps))

    return rate


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name}: steps must be positive, got {steps}")


__all__ = [
    "Optimizer", "adam", "adamw", "apply_updates", "chain", "clip_by_global_norm", "constant", "cosine", "exponential",
    "global_norm", "logistic", "minimize_scipy", "momentum", "mse", "nesterov", "sgd", "softmax_cross_entropy",
    "warmup",
]  # fmt: skip
