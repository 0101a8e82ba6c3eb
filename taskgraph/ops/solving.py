"""Cholesky's factor, linear systems, inverses and determinants.

The rules are those of Giles, Collected matrix derivative results for forward and reverse mode AD (2008). They call
public operations, so they hold to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from taskgraph.chunks import unify
from taskgraph.expr import Chunks, Shape, describe
from taskgraph.ops.create import eye, filled, tril
from taskgraph.ops.elementwise import cast
from taskgraph.ops.matrices import (
    cost_of,
    floating,
    infer_by_matrix,
    lower_by_matrix,
    numpys,
    of_each,
    real,
    square,
    whole,
)
from taskgraph.ops.reduce import sum as sum_
from taskgraph.ops.shape import broadcast_to, expand_dims, rechunk, squeeze, stack
from taskgraph.ops.shape import matrix_transpose as mt
from taskgraph.primitives import primitive
from taskgraph.tensor import Tensor, apply


class SlogdetResult(NamedTuple):
    """The sign of a determinant and the logarithm of its absolute value."""

    sign: Tensor
    logabsdet: Tensor


def symmetric(x: Tensor) -> Tensor:
    """The symmetric part."""
    return (x + mt(x)) * 0.5


def on_diagonal(n: int) -> Tensor:
    """Truth on the diagonal of a matrix in one block."""
    return eye(n, dtype=bool, chunks=-1)


def half_lower(x: Tensor) -> Tensor:
    """The lower triangle with half the diagonal: X + X' of the result is the symmetric X."""
    return tril(x) * cast(1 - 0.5 * cast(on_diagonal(x.shape[-1]), x.dtype), x.dtype)


# -- rows --------------------------------------------------------------------------------------------------------------


def _cholesky_vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    s = half_lower(mt(out) @ ct)
    return (symmetric(mt(solve(mt(out), mt(solve(mt(out), s))))),)


def _cholesky_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor:
    return out @ half_lower(solve(out, mt(solve(out, symmetric(ts[0])))))


#: The lower factor; it is made of the lower triangle, and its derivative is that along symmetric matrices.
CHOLESKY = primitive(
    "cholesky",
    kind="array",
    infer=infer_by_matrix(lambda x: x),
    lower=lower_by_matrix(partial(numpys, "cholesky"), lambda x: x),
    vjp=_cholesky_vjp,
    jvp=_cholesky_jvp,
    flops=cost_of(lambda n, _: n**3 / 3),
)


def _solve_vjp(ct: Tensor, out: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    of_b = solve(mt(a), ct)
    return -(of_b @ mt(out)), of_b


def _solve_jvp(ts: Sequence[Tensor | None], out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    da, db = ts
    right = -(da @ out) if da is not None else None
    right = db if right is None else right if db is None else right + db
    return solve(a, right)


SOLVE = primitive(
    "solve",
    kind="array",
    infer=infer_by_matrix(lambda a, b: b),
    lower=lower_by_matrix(partial(numpys, "solve"), lambda a, b: b),
    vjp=_solve_vjp,
    jvp=_solve_jvp,
    flops=lambda node: int(node.inputs[0].size * (2 * node.inputs[0].shape[-1] / 3 + 2 * node.shape[-1])),
)


INV = primitive(
    "inv",
    kind="array",
    infer=infer_by_matrix(lambda x: x),
    lower=lower_by_matrix(partial(numpys, "inv"), lambda x: x),
    vjp=lambda ct, out, x: (-(mt(out) @ ct @ mt(out)),),
    jvp=lambda ts, out, x: -(out @ ts[0] @ out),
    flops=cost_of(lambda n, _: 2 * n**3),
)


def _growth(x: Tensor, dx: Tensor) -> Tensor:
    """The derivative of log det x: trace(x^-1 dx)."""
    return sum_(mt(inv(x)) * dx, axis=(-2, -1))


DET = primitive(
    "det",
    kind="array",
    infer=infer_by_matrix(lambda x: ()),
    lower=lower_by_matrix(partial(numpys, "det"), lambda x: ()),
    vjp=lambda ct, out, x: (of_each(ct * out) * mt(inv(x)),),
    jvp=lambda ts, out, x: out * _growth(x, ts[0]),
    flops=cost_of(lambda n, _: 2 * n**3 / 3),
)


def _slogdet_kernel(xp: Any, x: Any) -> Any:
    return xp.stack(tuple(xp.linalg.slogdet(x)), axis=-1)


def _slogdet_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor:
    growth = _growth(x, ts[0])
    return stack([filled(growth, 0), growth], axis=-1)


#: Sign and logarithm in a row of two.
SLOGDET = primitive(
    "slogdet",
    kind="array",
    infer=infer_by_matrix(lambda x: (2,)),
    lower=lower_by_matrix(_slogdet_kernel, lambda x: (2,)),
    vjp=lambda ct, out, x: (of_each(ct[..., 1]) * mt(inv(x)),),
    jvp=_slogdet_jvp,
    flops=cost_of(lambda n, _: 2 * n**3 / 3),
)


# -- public ------------------------------------------------------------------------------------------------------------


def cholesky(x: Any, /, *, upper: bool = False) -> Tensor:
    """The lower factor L of x = L L' (the upper one of x = U' U), for symmetric positive definite x (..., n, n).

    Only the triangle asked for is read; the derivative is that along symmetric matrices. Raises ValueError where x is
    not square, at run LinAlgError where a matrix is not positive definite.

    >>> import taskgraph as tg
    >>> tg.linalg.cholesky(tg.asarray([[4.0, 2.0], [2.0, 5.0]])).compute()
    array([[2., 0.],
           [1., 2.]])
    """
    x = square("cholesky", real("cholesky", x))
    return mt(apply(CHOLESKY, mt(x))) if upper else apply(CHOLESKY, x)


def solve(x1: Any, x2: Any, /) -> Tensor:
    """The X of x1 @ X = x2, for x1 (..., n, n) and x2 (..., n, k) or a vector (n,); leading axes broadcast.

    Raises ValueError, naming both, where the shapes do not fit, at run LinAlgError where a matrix is singular.

    >>> import taskgraph as tg
    >>> tg.linalg.solve(tg.asarray([[2.0, 0.0], [0.0, 4.0]]), tg.asarray([2.0, 2.0])).compute()
    array([1. , 0.5])
    """
    a, b = floating("solve", x1), floating("solve", x2)
    both = f"{describe(a.expr)}, {describe(b.expr)}"
    if a.ndim < 2 or b.ndim < 1 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"solve: needs square matrices and vectors or matrices: {both}")
    right = expand_dims(b, axis=-1) if b.ndim == 1 else b
    if a.shape[-1] != right.shape[-2]:
        raise ValueError(f"solve: sizes differ: {both}; {a.shape[-1]} != {right.shape[-2]}")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], right.shape[:-2])
    except ValueError:
        raise ValueError(f"solve: leading shapes do not broadcast: {both}") from None
    dtype = np.result_type(a.dtype, b.dtype)
    lead = unify(batch, [(x.shape[:-2], x.chunks[:-2]) for x in (a, right)])
    a, right = (_on_batch(whole("solve", cast(x, dtype)), batch, lead) for x in (a, right))
    found = apply(SOLVE, a, right)
    return squeeze(found, axis=-1) if b.ndim == 1 else found


def _on_batch(x: Tensor, batch: Shape, lead: Chunks) -> Tensor:
    chunks = (*lead, *x.chunks[-2:])
    return rechunk(broadcast_to(x, (*batch, *x.shape[-2:]), chunks=chunks), chunks)


def inv(x: Any, /) -> Tensor:
    """The inverses of the matrices x (..., n, n); `solve` is cheaper and more accurate than a product with one.

    Raises ValueError where x is not square, at run LinAlgError where a matrix is singular.
    """
    return apply(INV, square("inv", floating("inv", x)))


def det(x: Any, /) -> Tensor:
    """The determinants (...) of the matrices x (..., n, n); ValueError where they are not square.

    Its derivative is made with the inverse: at a singular matrix it raises LinAlgError at run.
    """
    return apply(DET, square("det", floating("det", x)))


def slogdet(x: Any, /) -> SlogdetResult:
    """Signs and logarithms of the absolute determinants (...) of x (..., n, n), from one factorization.

    Raises ValueError where x is not square. Its derivative is made with the inverse, as that of `det`.

    >>> import taskgraph as tg
    >>> sign, logabsdet = tg.linalg.slogdet(-tg.eye(3))
    >>> float(sign), float(logabsdet)
    (-1.0, 0.0)
    """
    packed = apply(SLOGDET, square("slogdet", real("slogdet", x)))
    return SlogdetResult(packed[..., 0], packed[..., 1])
