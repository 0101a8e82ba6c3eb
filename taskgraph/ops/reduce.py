"""Reductions: sums, extremes, moments and the position of extremes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from taskgraph.expr import Chunks, DType, Expr, Shape
from taskgraph.ops.arguments import Axes, array, axes_of, numeric
from taskgraph.ops.create import FULL, filled, stop_gradient
from taskgraph.ops.cumulative import product_of_others, wide
from taskgraph.ops.elementwise import cast, conjugate, equal, exp, fitted, isfinite, log, real, sqrt, where
from taskgraph.ops.shape import broadcast_to, reshape
from taskgraph.primitives import Primitive, is_dask, no_gradient, primitive
from taskgraph.tensor import Tensor, apply

Axis = int | tuple[int, ...] | None


def _reduced(x: Expr, axis: Axes, keepdims: bool) -> tuple[Shape, Chunks]:
    kept = [(1, (1,)) if a in axis else (s, c) for a, (s, c) in enumerate(zip(x.shape, x.chunks, strict=True))]
    if not keepdims:
        kept = [k for a, k in enumerate(kept) if a not in axis]
    return tuple(s for s, _ in kept), tuple(c for _, c in kept)


def _infer(dtype_of: Callable[[DType], DType]) -> Callable[..., tuple[Shape, DType, Chunks]]:
    def infer(x: Expr, axis: Axes, keepdims: bool, **_: Any) -> tuple[Shape, DType, Chunks]:
        shape, chunks = _reduced(x, axis, keepdims)
        return shape, dtype_of(x.dtype), chunks

    return infer


def _beside(t: Tensor, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    """A reduced value in a shape that broadcasts with what it was made of."""
    return t if keepdims else reshape(t, _reduced(x.expr, axis, True)[0])


def _spread(t: Tensor, x: Tensor, axis: Axes, keepdims: bool, factor: float = 1.0) -> Tensor:
    """A multiple of a reduced value at the place of every element that it was made of, in the same blocks."""
    if t.expr.op is FULL and "id" not in t.expr.params:  # a number of the graph's own, not an array of the user's
        return filled(x, t.expr.params["fill_value"] * factor)
    t = t if factor == 1.0 else t * factor
    return broadcast_to(_beside(t, x, axis, keepdims), x.shape, chunks=x.chunks)


def _one_over(count: float) -> float:
    return 1 / count if count > 0 else math.inf


def _count(x: Tensor, axis: Axes) -> int:
    return math.prod(x.shape[a] for a in axis)


def _row(name: str, dtype_of: Callable[[DType], DType], **rules: Any) -> Primitive:
    return primitive(
        name,
        kind="array",
        infer=_infer(dtype_of),
        lower=rules.pop("lower", lambda xp, x, axis, keepdims: getattr(xp, name)(x, axis=axis, keepdims=keepdims)),
        flops=lambda node: node.inputs[0].size,
        vjp=rules.get("vjp", no_gradient),
        jvp=rules.get("jvp", no_gradient),
    )


def _reduce(row: Primitive, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    x = array(row.name, x)
    axes = axes_of(row.name, axis, x.ndim)
    if row.name in ("max", "min") and 0 in [x.shape[a] for a in axes]:
        raise ValueError(f"{row.name}: no {row.name} of no elements (shape {x.shape}, axis {axis})")
    return apply(row, x, axis=axes, keepdims=bool(keepdims)) if axes else _of_nothing(row, x)


def _public(row: Primitive, doc: str) -> Callable[..., Tensor]:
    def call(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return _reduce(row, x, axis, keepdims)

    call.__name__ = call.__qualname__ = row.name
    call.__doc__ = (
        f"{doc}\n\n{row.name}(x, axis=None, keepdims=False): over `axis` (all where None), as `numpy.{row.name}`."
    )
    return call


def _of_nothing(row: Primitive, x: Tensor) -> Tensor:
    """Reduction over no axis (a 0-d array, or axis=()): every element is reduced by itself."""
    y = reshape(x, (*x.shape, 1))
    return apply(row, y, axis=(x.ndim,), keepdims=False)


# -- sums and products -------------------------------------------------------------------------------------------------


def _floating(dtype: DType) -> DType:
    return np.zeros(1, dtype).mean().dtype


def _variance(dtype: DType) -> DType:
    return np.zeros(1, dtype).var().dtype  # real where the elements are complex


def _same(dtype: DType) -> DType:
    return dtype


SUM = _row(
    "sum",
    wide,
    lower=lambda xp, x, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims, dtype=wide(x.dtype)),
    vjp=lambda ct, out, x, axis, keepdims: (_spread(ct, x, axis, keepdims),),
    jvp=lambda ts, out, x, axis, keepdims: apply(SUM, ts[0], axis=axis, keepdims=keepdims),
)
MEAN = _row(
    "mean",
    _floating,
    vjp=lambda ct, out, x, axis, keepdims: (_spread(ct, x, axis, keepdims, _one_over(_count(x, axis))),),
    jvp=lambda ts, out, x, axis, keepdims: apply(MEAN, ts[0], axis=axis, keepdims=keepdims),
)


def _prod_of_others(x: Tensor, axis: Axes) -> Tensor:
    """Product of all other elements along the axes, without a division: right where elements are zero, to any order."""
    first, *rest = axis
    others = product_of_others(x, first)
    if not rest:
        return others
    return others * _prod_of_others(apply(PROD, x, axis=(first,), keepdims=True), tuple(rest))


PROD = _row(
    "prod",
    wide,
    lower=lambda xp, x, axis, keepdims: xp.prod(x, axis=axis, keepdims=keepdims, dtype=wide(x.dtype)),
    vjp=lambda ct, out, x, axis, keepdims: (_beside(ct, x, axis, keepdims) * _prod_of_others(x, axis),),
    jvp=lambda ts, out, x, axis, keepdims: apply(SUM, ts[0] * _prod_of_others(x, axis), axis=axis, keepdims=keepdims),
)

# -- extremes ----------------------------------------------------------------------------------------------------------


def _share(out: Tensor, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    """Share of every element in the extreme: elements that tie share equally."""
    taken = cast(equal(x, _beside(out, x, axis, keepdims)), x.dtype)
    return taken / apply(SUM, taken, axis=axis, keepdims=True)


def _extreme(name: str) -> Primitive:
    def lower(xp: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
        if is_dask(xp) and x.size == 0:  # Dask looks at every block, and one of no elements has no extreme
            shape, chunks = _reduced(x, axis, keepdims)
            return xp.zeros(shape, dtype=x.dtype, chunks=chunks)
        return getattr(xp, name)(x, axis=axis, keepdims=keepdims)

    return _row(
        name,
        _same,
        lower=lower,
        vjp=lambda ct, out, x, axis, keepdims: (_beside(ct, x, axis, keepdims) * _share(out, x, axis, keepdims),),
        jvp=lambda ts, out, x, axis, keepdims: apply(
            SUM, ts[0] * _share(out, x, axis, keepdims), axis=axis, keepdims=keepdims
        ),
    )


MAX, MIN = _extreme("max"), _extreme("min")

max = _public(MAX, "Greatest of the elements; elements that tie share the gradient.")
min = _public(MIN, "Least of the elements; elements that tie share the gradient.")
all = _public(_row("all", lambda d: np.dtype(bool)), "Whether all elements are true.")
any = _public(_row("any", lambda d: np.dtype(bool)), "Whether any element is true.")


def _reduce_as(row: Primitive, x: Any, axis: Axis, dtype: Any, keepdims: bool) -> Tensor:
    if dtype is None:
        return _reduce(row, x, axis, keepdims)
    wanted = numeric(dtype, row.name)
    return cast(_reduce(row, cast(array(row.name, x), wanted), axis, keepdims), wanted)


def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Sum of the elements.

    sum(x, axis=None, dtype=None, keepdims=False): over `axis` (all where None), as `numpy.sum`.
    """
    return _reduce_as(SUM, x, axis, dtype, keepdims)


def prod(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Product of the elements; its derivatives of every order are right where elements are zero.

    prod(x, axis=None, dtype=None, keepdims=False): over `axis` (all where None), as `numpy.prod`.
    """
    return _reduce_as(PROD, x, axis, dtype, keepdims)


def count_nonzero(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements are not zero, over `axis` (all where None)."""
    x = cast(array("count_nonzero", x), np.dtype(bool))
    return sum(x, axis=axes_of("count_nonzero", axis, x.ndim), keepdims=keepdims)


# -- moments and what is composed ----------------------------------------------------------------------------------


def _single(x: Tensor) -> Tensor:
    """Half precision widened: a sum of a few thousand elements is beyond its range."""
    return cast(x, np.dtype(np.float32)) if x.dtype == np.float16 else x


def mean(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean of the elements.

    mean(x, axis=None, keepdims=False): over `axis` (all where None), as `numpy.mean`.
    """
    x = array("mean", x)
    return cast(_reduce(MEAN, _single(x), axis, keepdims), _floating(x.dtype))


def _center(x: Tensor, axis: Axes) -> Tensor:
    return x - apply(MEAN, x, axis=axis, keepdims=True)


VAR = primitive(
    "var",
    kind="array",
    infer=_infer(_variance),
    lower=lambda xp, x, axis, keepdims, correction: xp.var(x, axis=axis, keepdims=keepdims, **_ddof(xp, correction)),
    flops=lambda node: 4 * node.inputs[0].size,
    vjp=lambda ct, out, x, axis, keepdims, correction: (
        _beside(ct, x, axis, keepdims) * (2 * _one_over(_count(x, axis) - correction)) * conjugate(_center(x, axis)),
    ),
    jvp=lambda ts, out, x, axis, keepdims, correction: apply(
        SUM,
        fitted(ts[0] * conjugate(_center(x, axis)), out.dtype) * (2 * _one_over(_count(x, axis) - correction)),
        axis=axis,
        keepdims=keepdims,
    ),
)


def _ddof(xp: Any, correction: float) -> dict[str, float]:
    return {"ddof": correction} if is_dask(xp) else {"correction": correction}


def _moment(name: str, x: Tensor, axis: Axis, correction: float, keepdims: bool) -> Tensor:
    """The variance, in the type that it is computed in."""
    if not isinstance(correction, numbers.Real):
        raise TypeError(f"{name}: correction is a number, not {correction!r}")
    axes = axes_of(name, axis, x.ndim)
    x = _single(x) if np.issubdtype(x.dtype, np.inexact) else cast(x, np.dtype(float))
    if not axes:
        x, axes, keepdims = reshape(x, (*x.shape, 1)), (x.ndim,), False
    return apply(VAR, x, axis=axes, keepdims=bool(keepdims), correction=correction)


def var(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Variance of the elements over `axis` (all where None), divided by n - correction, as `numpy.var`."""
    x = array("var", x)
    return cast(_moment("var", x, axis, correction, keepdims), _variance(x.dtype))


def std(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Standard deviation of the elements over `axis` (all where None), as `numpy.std`."""
    x = array("std", x)
    return cast(sqrt(_moment("std", x, axis, correction, keepdims)), _variance(x.dtype))


def logsumexp(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) without overflow; the maximum (of real parts) is taken out first, and is a constant to the
    gradient."""
    x = array("logsumexp", x)
    axes = axes_of("logsumexp", axis, x.ndim)
    top = stop_gradient(max(real(x), axis=axes, keepdims=True))
    top = where(isfinite(top), top, 0)
    total = log(sum(exp(x - top), axis=axes, keepdims=True)) + top
    return total if keepdims else reshape(total, _reduced(x.expr, axes, False)[0])


# -- positions ---------------------------------------------------------------------------------------------------------


def _position_row(name: str) -> Primitive:
    def lower(xp: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
        return getattr(xp, name)(x, axis=axis[0], keepdims=keepdims)

    return _row(name, lambda d: np.dtype(np.int64), lower=lower)


def _position(row: Primitive, doc: str) -> Callable[..., Tensor]:
    def call(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
        x = array(row.name, x)
        if not (axis is None or isinstance(axis, int | np.integer)):
            raise TypeError(f"{row.name}: axis is one axis or None, not {axis!r}")
        axes = axes_of(row.name, axis, x.ndim)
        if 0 in [x.shape[a] for a in axes]:
            raise ValueError(f"{row.name}: no position in an array of no elements (shape {x.shape}, axis {axis})")
        if axis is not None:
            return apply(row, x, axis=axes, keepdims=bool(keepdims))
        found = apply(row, reshape(x, (x.size,)), axis=(0,), keepdims=False)
        return reshape(found, (1,) * x.ndim) if keepdims else found

    call.__name__ = call.__qualname__ = row.name
    call.__doc__ = f"{doc}\n\n{row.name}(x, axis=None, keepdims=False): of the flattened array where axis is None."
    return call


argmax = _position(_position_row("argmax"), "Index of the first greatest element.")
argmin = _position(_position_row("argmin"), "Index of the first least element.")

__all__ = [
    "all", "any", "argmax", "argmin", "count_nonzero", "logsumexp", "max", "mean", "min", "prod",
    "std", "sum", "var",
]  # fmt: skip
