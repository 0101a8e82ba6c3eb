"""Matrices and stacks of them: how a row that works on whole matrices is inferred and lowered, and their diagonals.

Design note. A factorization is one NumPy call on one matrix: the public function cuts the operand so that the last two
axes are one block (a `rechunk` expression, which the plan sees) and leaves the leading axes, the batch, as they are
cut. One row gives one array: the several results of a factorization are packed below each other, q over r, and are
slices of it, so that it runs once whatever of it is used. NumPy's LinAlgError reaches the user when the graph runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskgraph.chunks import unify
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import array, integers, numeric
from taskgraph.ops.elementwise import cast
from taskgraph.ops.product import einsum
from taskgraph.ops.reduce import sum as sum_
from taskgraph.ops.shape import rechunk, reshape
from taskgraph.primitives import is_dask
from taskgraph.tensor import Tensor

#: The shape of a result without the batch from those of the operands.
Core = Callable[..., Shape]


def lead_chunks(xs: Sequence[Any]) -> Chunks:
    """The blocks of the batch that all operands have."""
    return unify(xs[0].shape[:-2], [(x.shape[:-2], x.chunks[:-2]) for x in xs])


def infer_by_matrix(core: Core) -> Callable[..., tuple[Shape, DType, Chunks]]:
    """The shape rule of a row whose operands have one batch; `core` says what becomes of their matrices."""

    def infer(*xs: Expr) -> tuple[Shape, DType, Chunks]:
        new = core(*[x.shape[-2:] for x in xs])
        return (*xs[0].shape[:-2], *new), xs[0].dtype, (*lead_chunks(xs), *[(s,) for s in new])

    return infer


def lower_by_matrix(kernel: Callable[..., Any], core: Core) -> Callable[..., Any]:
    """`kernel(xp, *matrices)` on the whole, or on dask.array once for every block of the batch."""

    def lower(xp: Any, *xs: Any) -> Any:
        if not is_dask(xp):
            return kernel(xp, *xs)
        batch, lead = tuple(range(xs[0].ndim - 2)), lead_chunks(xs)
        new = {1000 + i: s for i, s in enumerate(core(*[x.shape[-2:] for x in xs]))}  # 1000: beyond any axis of NumPy's
        pairs: list[Any] = []
        for n, x in enumerate(xs):  # a pass may have cut it otherwise than it was when it became an operand
            pairs += [x.rechunk((*lead, *[(s,) for s in x.shape[-2:]])), (*batch, 100 + 2 * n, 101 + 2 * n)]
        index, meta = (*batch, *new), np.empty((0,) * (len(batch) + len(new)), xs[0].dtype)
        return xp.blockwise(
            _on_host, index, kernel, None, *pairs, new_axes=new, dtype=xs[0].dtype, concatenate=True, meta=meta
        )

    return lower


def numpys(name: str, xp: Any, *xs: Any) -> Any:
    """A kernel: the namespace's function of that name, for `functools.partial` (a lambda has no name to travel by)."""
    return getattr(xp.linalg, name)(*xs)


def _on_host(kernel: Callable[..., Any], *blocks: Any) -> Any:
    return kernel(np, *blocks)


def _matrices(node: Expr) -> int:
    return math.prod(node.inputs[0].shape[:-2])


def cost_of(of: Callable[[int, int], float]) -> Callable[[Expr], int]:
    """Operations from those of one matrix of (m, n): Golub & Van Loan, Matrix Computations, 4th edition."""
    return lambda node: int(_matrices(node) * of(*node.inputs[0].shape[-2:]))


# -- operands ----------------------------------------------------------------------------------------------------------


def floating(name: str, x: Any) -> Tensor:
    """A floating point operand, real or complex; TypeError for half precision."""
    x = array(name, x)
    if x.dtype.kind in "biu":
        return cast(x, np.dtype(float))
    if x.dtype == np.float16:
        raise TypeError(f"{name}: no half precision: {describe(x.expr)}")
    return x


def real(name: str, x: Any) -> Tensor:
    """A real floating point operand; TypeError for complex and half precision numbers."""
    x = floating(name, x)
    if x.dtype.kind == "c":
        raise TypeError(f"{name}: only float32, float64 and integers, which become float64: {describe(x.expr)}")
    return x


def has_matrices(name: str, x: Tensor) -> Tensor:
    """The operand, if it has two axes; ValueError otherwise."""
    if x.ndim < 2:
        raise ValueError(f"{name}: needs two axes, {describe(x.expr)} has {x.ndim}")
    return x


def whole(name: str, x: Tensor, square: bool = False) -> Tensor:
    """A stack of matrices, each in one block."""
    has_matrices(name, x)
    if square and x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name}: needs square matrices: {describe(x.expr)}")
    return rechunk(x, (*x.chunks[:-2], (x.shape[-2],), (x.shape[-1],)))


def square(name: str, x: Tensor) -> Tensor:
    """An operand as a stack of square matrices, each in one block."""
    return whole(name, x, square=True)


def of_each(t: Tensor) -> Tensor:
    """A number for each matrix, as what multiplies the matrix."""
    return reshape(t, (*t.shape, 1, 1))


# -- diagonals ---------------------------------------------------------------------------------------------------------


def diagonal(x: Any, /, *, offset: int = 0) -> Tensor:
    """The elements x[..., i, i + offset] as the last axis; ValueError for less than two axes.

    >>> import taskgraph as tg
    >>> tg.linalg.diagonal(tg.asarray([[1, 2], [3, 4]]), offset=1).compute()
    array([2])
    """
    x = has_matrices("diagonal", array("diagonal", x))
    (k,) = integers("diagonal: offset", offset)
    first, second = max(-k, 0), max(k, 0)
    n = max(min(x.shape[-2] - first, x.shape[-1] - second), 0)
    return einsum("...ii->...i", x[..., first : first + n, second : second + n])


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of a diagonal, summed as `sum` does; ValueError for less than two axes."""
    x = has_matrices("trace", array("trace", x))
    return sum_(diagonal(x, offset=offset), axis=-1, dtype=None if dtype is None else numeric(dtype, "trace"))
