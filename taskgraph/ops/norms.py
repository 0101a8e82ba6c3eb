"""Norms of vectors and matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from taskgraph.ops.arguments import axes_of
from taskgraph.ops.create import scalar
from taskgraph.ops.decomposition import svdvals
from taskgraph.ops.elementwise import abs, cast, equal, imag, not_equal, pow, real, sqrt, square, where
from taskgraph.ops.matrices import floating, has_matrices, of_each
from taskgraph.ops.reduce import max as max_
from taskgraph.ops.reduce import min as min_
from taskgraph.ops.reduce import sum as sum_
from taskgraph.tensor import Tensor


def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """(sum |x|^ord)^(1/ord) over `axis` (all where None); for inf and -inf an extreme of |x|, for 0 how many are not 0.

    The derivative of the 2-norm at zero is taken as zero. Of complex numbers |x| is the absolute value.

    >>> import taskgraph as tg
    >>> float(tg.linalg.vector_norm(tg.asarray([3.0, 4.0])))
    5.0
    """
    x = floating("vector_norm", x)
    axes = axes_of("vector_norm", axis, x.ndim)
    how: dict[str, Any] = {"axis": axes, "keepdims": keepdims}
    if not isinstance(ord, int | float):
        raise ValueError(f"vector_norm: ord is a number, not {ord!r}")
    if ord == 2:
        return _root(sum_(x * x if x.dtype.kind == "f" else square(real(x)) + square(imag(x)), **how))
    if ord in (math.inf, -math.inf):
        return (max_ if ord > 0 else min_)(abs(x), **how)
    if ord in (0, 1):
        return sum_(abs(x) if ord else cast(not_equal(x, 0), np.finfo(x.dtype).dtype), **how)
    return pow(sum_(pow(abs(x), ord), **how), 1 / ord)


def _root(squares: Tensor) -> Tensor:
    zero = equal(squares, 0)
    return where(zero, squares, sqrt(where(zero, scalar(1, squares.dtype), squares)))


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Tensor:
    """Norms (...) of the matrices x (..., m, n): "fro", "nuc", and 1, -1, 2, -2, inf, -inf as `numpy.linalg.norm`.

    Raises ValueError for another `ord` and for less than two axes.
    """
    x = has_matrices("matrix_norm", floating("matrix_norm", x))
    if ord not in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
        raise ValueError(f'matrix_norm: ord is "fro", "nuc", 1, 2, inf or one of these numbers negative, not {ord!r}')
    if ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord == "nuc":
        found = sum_(svdvals(x), axis=-1)
    else:
        sizes = svdvals(x) if ord in (2, -2) else sum_(abs(x), axis=-2 if ord in (1, -1) else -1)
        found = (max_ if ord > 0 else min_)(sizes, axis=-1)
    return of_each(found) if keepdims else found
