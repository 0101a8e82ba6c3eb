"""Matrices of derivatives, and products with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from autodiff.forward import tangents as push_forward
from autodiff.functional import forward, grad
from autodiff.reverse import pull_back
from autodiff.trace import positions, trace
from taskgraph import tree
from taskgraph.ops.create import EYE, filled, scalar, zeros
from taskgraph.ops.shape import rechunk, reshape, stack
from taskgraph.tensor import Tensor, apply, tracking

Function = Callable[..., Any]


def jacobian(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """The function that gives the derivative of every element of `f`'s result by every element of an argument.

    It gives a tree like the result whose leaves are trees like the argument (tuples of them where argnums is a tuple)
    of tensors of shape `result.shape + argument.shape`. It takes one pass for every element of the argument (forward
    mode) or of the result (reverse mode), whichever are fewer, and forward mode where the result is complex; `jvp` and
    `vjp` give products with it in one.

    Raises TypeError, naming it, where a chosen argument or the result is no floating point array, NotImplementedError
    where a chosen argument is complex.

    >>> import taskgraph as tg
    >>> tg.jacobian(lambda x: x**2)(tg.asarray([1.0, 2.0])).compute()
    array([[2., 0.],
           [0., 4.]])
    """

    @functools.wraps(f)
    def matrix(*args: Any, **kwargs: Any) -> Any:
        chosen = positions("jacobian", argnums, args)
        found = trace("jacobian", f, args, chosen, kwargs)
        ys, xs = found.outputs, found.inputs
        _check_real(xs)
        by_columns = _any_complex(ys) or sum(x.size for x in xs) <= sum(y.size for y in ys)
        with tracking(True):
            rows = (_columns if by_columns else _rows)(ys, xs)
        model = found.model if isinstance(argnums, list | tuple) else found.model[0]
        shown = [
            tree.unflatten(model, [found.given(j, x) for j, x in zip(row, xs, strict=True)]) if xs else model
            for row in rows
        ]
        return tree.unflatten(found.out, shown)

    return matrix


def _any_complex(ts: Sequence[Tensor]) -> bool:
    return any(t.dtype.kind == "c" for t in ts)


def _check_real(xs: Sequence[Tensor]) -> None:
    if _any_complex(xs):
        raise NotImplementedError(
            "jacobian: an argument is complex; a function of complex numbers has no one matrix of derivatives unless "
            "it is holomorphic: jvp, vjp and hvp give products with them"
        )


def _columns(ys: Sequence[Tensor], xs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Forward mode: one pass for every element of the inputs."""
    blocks: list[list[Tensor]] = [[] for _ in ys]
    for x in xs:
        columns: list[list[Tensor]] = [[] for _ in ys]
        for e in range(x.size):
            for column, y, dy in zip(columns, ys, push_forward(ys, [x], [_basis(x, e)]), strict=True):
                column.append(filled(y, 0.0) if dy is None else dy)
        for block, y, column in zip(blocks, ys, columns, strict=True):
            block.append(_assembled(column, y, x, axis=-1))
    return blocks


def _rows(ys: Sequence[Tensor], xs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Reverse mode: one pass for every element of the results."""
    blocks = []
    for y in ys:
        passes = [pull_back([y], [_basis(y, e)], xs) for e in range(y.size)]
        blocks.append([_assembled([p[n] for p in passes], y, x, axis=0) for n, x in enumerate(xs)])
    return blocks


def _basis(t: Tensor, element: int) -> Tensor:
    """Zeros like `t` with a one in the place of one element."""
    if t.shape == ():
        return scalar(1.0, t.dtype)
    row = apply(EYE, shape=(1, t.size), dtype=t.dtype, chunks=((1,), (t.size,)), k=element)
    return reshape(row, t.shape)


def _assembled(parts: list[Tensor], y: Tensor, x: Tensor, axis: int) -> Tensor:
    shape = y.shape + x.shape
    if not parts:
        return zeros(shape, dtype=y.dtype)
    if len(parts) == 1:
        return reshape(parts[0], shape)
    return reshape(rechunk(stack(parts, axis=axis), "auto"), shape)


def hessian(f: Function, argnums: int | tuple[int, ...] = 0) -> Function:
    """The function that gives the second derivatives of `f`: forward mode over reverse mode, for a scalar result.

    The Jacobian of the Jacobian: shape `result.shape + argument.shape + argument.shape`, and a tree in a tree where the
    argument is a tree. For products with it, `hvp` takes one pass. Raises as `jacobian` does.

    >>> import taskgraph as tg
    >>> tg.hessian(lambda x: tg.prod(x))(tg.asarray([1.0, 2.0, 3.0])).compute()
    array([[0., 3., 2.],
           [3., 0., 1.],
           [2., 1., 0.]])
    """
    return jacobian(jacobian(f, argnums), argnums)


def hvp(f: Function, primals: Any, tangents: Any) -> Any:
    """The product of `f`'s Hessian with `tangents`, by forward mode over reverse mode: some gradients' work, no matrix.

    f: a function with one number as its result. primals, tangents: tuples (or lists) of trees with the same structure,
    shapes and types. Gives a tree like the primal where there is one, a tuple of such trees where there are several. Of
    complex numbers, too, it is how `grad` moves where the primals move by `tangents`.

    Raises as `grad` and `jvp` do.

    >>> import taskgraph as tg
    >>> tg.hvp(lambda x: tg.sum(x**3), (tg.asarray([1.0, 2.0]),), (tg.asarray([1.0, 10.0]),)).compute()
    array([  6., 120.])
    """
    many = isinstance(primals, list | tuple) and len(primals) != 1
    return forward("hvp", grad(f, tuple(range(len(primals))) if many else 0), primals, tangents)[1]
