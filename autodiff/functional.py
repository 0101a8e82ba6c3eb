"""Transformations of functions: their derivatives as functions again, in both modes and in any order.

A function takes and gives trees (nested dicts, lists, tuples) of tensors, arrays and numbers. What a transformation
gives is made of expressions like any other: nothing runs before `compute()`, and it can be transformed again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from autodiff.forward import tangents as push_forward
from autodiff.reverse import pull_back
from autodiff.trace import Traced, directions, positions, trace
from taskgraph import tree
from taskgraph.ops.create import filled
from taskgraph.tensor import Tensor, tracking

Function = Callable[..., Any]


def grad(f: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Function:
    """The function that gives the gradient of `f`, which must have one number as its result.

    argnums: with respect to which positional arguments; the result is a tree of the shapes of that argument, a tuple of
    such trees where it is a tuple. has_aux: `f` gives (result, aux), the gradient function (gradient, aux). What the
    other arguments and the keyword arguments hold is handed on untouched.

    Of a complex argument a + ib the gradient is dL/da - i dL/db, as in JAX: L falls along minus its conjugate (which is
    what PyTorch calls the gradient). The derivative of a holomorphic function is `vjp`'s.

    The function raises TypeError where a result is no real scalar, or where it or a chosen argument is no floating
    point array, naming which; NotImplementedError, naming it, where an operation has no rule for reverse mode.

    >>> import taskgraph as tg
    >>> tg.grad(tg.sin)(0.0).compute()
    np.float64(1.0)
    >>> loss = lambda p, x: tg.sum((x @ p["w"] + p["b"]) ** 2)
    >>> tg.grad(loss)({"w": tg.ones(2), "b": 0.5}, tg.asarray([[1.0, 2.0]]))["b"].compute()
    np.float64(7.0)
    """
    both = _value_and_grad("grad", f, argnums, has_aux)

    @functools.wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient


def value_and_grad(f: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Function:
    """The function that gives `f`'s result and its gradient, which share what they have in common; see `grad`.

    has_aux: it gives ((result, aux), gradient).

    >>> import taskgraph as tg
    >>> tg.compute(*tg.value_and_grad(lambda x: tg.sum(x**2))(tg.asarray([1.0, 2.0])))
    (np.float64(5.0), array([2., 4.]))
    """
    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def _value_and_grad(name: str, f: Function, argnums: Any, has_aux: bool) -> Function:
    @functools.wraps(f)
    def both(*args: Any, **kwargs: Any) -> Any:
        chosen = positions(name, argnums, args)
        found = trace(name, f, args, chosen, kwargs, has_aux)
        y = _scalar(name, found.out)
        with tracking(True):
            gs = pull_back([y], [filled(y, 1.0)], found.inputs)
        grads = tree.unflatten(found.model, [found.given(g, x) for g, x in zip(gs, found.inputs, strict=True)])
        value = found.given(y)
        return (value, found.aux) if has_aux else value, grads if isinstance(argnums, list | tuple) else grads[0]

    return both


def _scalar(name: str, out: Any) -> Tensor:
    what = f"it gave {_shown(out)}" if not isinstance(out, Tensor) else f"its result has shape {out.shape}"
    if not isinstance(out, Tensor) or out.shape != ():
        raise TypeError(f"{name}: only a function with one number as its result has a gradient; {what}")
    if out.dtype.kind == "c":
        raise TypeError(
            f"{name}: grad requires real-valued outputs (output dtype that is a sub-dtype of floating), the result is "
            f"{out.dtype}; a loss is real(...) or abs(...), and a holomorphic function has its derivative by tg.vjp"
        )
    return out


def _shown(out: Any) -> str:
    return "None" if out is None else f"a {type(out).__name__}"


def vjp(f: Function, *primals: Any, has_aux: bool = False) -> Any:
    """(out, pullback) of `f(*primals)`: the result, and the function from cotangents to cotangents of the primals.

    `pullback(ct)` takes a tree like `out` and gives a tuple, a tree like it for each primal. has_aux: `f` gives
    (out, aux), and this (out, pullback, aux). Of complex numbers it is the transpose, as in JAX, not the conjugate
    transpose: Re(sum(ct * dout)) is Re(sum(pullback(ct) * dx)), and ct * f'(x) where `f` is holomorphic.

    Raises TypeError, naming it, where a leaf of the primals or of the result is no floating point array; `pullback`
    raises ValueError, naming the place, where structure, shapes or types of its argument are not the result's.

    >>> import taskgraph as tg
    >>> out, pullback = tg.vjp(lambda a, b: {"product": a * b}, 3.0, tg.asarray([1.0, 2.0]))
    >>> tg.compute(*pullback({"product": tg.asarray([1.0, 10.0])}))
    (np.float64(21.0), array([ 3., 30.]))
    >>> tg.vjp(lambda z: z**2, 1 + 2j)[1](1.0)[0].compute()
    np.complex128(2+4j)
    """
    found = trace("vjp", f, primals, range(len(primals)), {}, has_aux)

    def pullback(ct: Any) -> tuple[Any, ...]:
        cts = directions("vjp", "cotangent", found.out, found.outputs, ct, "the result")
        with tracking(True):
            gs = pull_back(found.outputs, cts, found.inputs)
        shown = [found.given(g, x) for g, x in zip(gs, found.inputs, strict=True)]
        return tuple(tree.unflatten(found.model, shown))

    out = _out(found)
    return (out, pullback, found.aux) if has_aux else (out, pullback)


def jvp(f: Function, primals: Any, tangents: Any, has_aux: bool = False) -> Any:
    """(out, tangent) of `f(*primals)`: the result, and how it moves where the primals move by `tangents`.

    primals, tangents: tuples (or lists) of trees of one structure, with leaves of the same shapes and types. has_aux:
    `f` gives (out, aux), and this (out, tangent, aux).

    Raises ValueError, naming the place, where the two differ in structure, shape or type; TypeError, naming it, for a
    leaf that is no floating point array; NotImplementedError, naming it, where an operation has no forward rule.

    >>> import taskgraph as tg
    >>> tg.compute(*tg.jvp(lambda x: x**3, (2.0,), (1.0,)))
    (np.float64(8.0), np.float64(12.0))
    """
    moved = forward("jvp", f, primals, tangents, has_aux)
    return moved if has_aux else moved[:2]


def forward(name: str, f: Function, primals: Any, tangents: Any, has_aux: bool = False) -> tuple[Any, Any, Any]:
    """(out, tangent, aux), under the name of the transformation that asks."""
    for role, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, list | tuple):
            raise TypeError(f"{name}: {role} is a tuple with an item for each argument, not a {type(given).__name__}")
    if len(primals) != len(tangents):
        raise ValueError(f"{name}: {len(primals)} primal(s), {len(tangents)} tangent(s)")
    found = trace(name, f, primals, range(len(primals)), {}, has_aux)
    moves: list[Tensor] = []
    rest = iter(found.inputs)
    for n, (p, t) in enumerate(zip(found.model, tangents, strict=True)):
        xs = [next(rest) for _ in tree.with_paths(p)]
        moves += directions(name, "tangent", p, xs, t, f"argument {n}")
    with tracking(True):
        dys = push_forward(found.outputs, found.inputs, moves)
        filled_in = [filled(y, 0.0) if dy is None else dy for y, dy in zip(found.outputs, dys, strict=True)]
    shown = [found.given(dy, y) for y, dy in zip(found.outputs, filled_in, strict=True)]
    return _out(found), tree.unflatten(found.out, shown), found.aux


def _out(found: Traced) -> Any:
    return tree.unflatten(found.out, [found.given(y) for y in found.outputs])
