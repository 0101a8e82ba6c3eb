"""Reductions: sums, extremes, moments and the position of extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from taskgraph.expr import Chunks, DType, Expr, Shape
from taskgraph.ops.elementwise import (
    cast,
    equal,
    exp,
    isfinite,
    log,
    where,
)
from taskgraph.ops.shape import broadcast_to, flip, reshape
from taskgraph.primitives import Primitive, no_gradient, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Axes = tuple[int, ...]
Axis = int | tuple[int, ...] | None


def normalize_axis(name: str, axis: Axis, ndim: int) -> Axes:
    """The axes as sorted non-negative numbers; ValueError for one that is not there or stands twice."""
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"{name}: axis {a} is out of bounds for an array of {ndim} dimensions")
    found = tuple(sorted(int(a) % ndim for a in axes))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: an axis stands twice in {axes}")
    return found


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


def _spread(t: Tensor, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    """A reduced value beside every element that it was made of."""
    if not keepdims:
        t = reshape(t, tuple(1 if a in axis else s for a, s in enumerate(x.shape)))
    return broadcast_to(t, x.shape)


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


def _public(row: Primitive, doc: str) -> Callable[..., Tensor]:
    def call(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
        x = as_tensor(x)
        axes = normalize_axis(row.name, axis, x.ndim)
        if row.name in ("max", "min") and 0 in [x.shape[a] for a in axes]:
            raise ValueError(f"{row.name}: no {row.name} of no elements (shape {x.shape}, axis {axis})")
        return apply(row, x, axis=axes, keepdims=bool(keepdims)) if axes else _of_nothing(row, x)

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


def _wide(dtype: DType) -> DType:
    return np.empty(0, dtype).sum().dtype  # NumPy widens small integers to the platform's


def _floating(dtype: DType) -> DType:
    return np.zeros(1, dtype).mean().dtype


def _variance(dtype: DType) -> DType:
    return np.zeros(1, dtype).var().dtype  # real where the elements are complex


def _same(dtype: DType) -> DType:
    return dtype


SUM = _row(
    "sum",
    _wide,
    lower=lambda xp, x, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims, dtype=_wide(x.dtype)),
    vjp=lambda ct, out, x, axis, keepdims: (_spread(ct, x, axis, keepdims),),
    jvp=lambda ts, out, x, axis, keepdims: apply(SUM, ts[0], axis=axis, keepdims=keepdims),
)
MEAN = _row(
    "mean",
    _floating,
    vjp=lambda ct, out, x, axis, keepdims: (_spread(ct / _count(x, axis), x, axis, keepdims),),
    jvp=lambda ts, out, x, axis, keepdims: apply(MEAN, ts[0], axis=axis, keepdims=keepdims),
)


def _prod_of_others(x: Tensor, axis: Axes) -> Tensor:
    """Product of all other elements along the axes; where zeros are among them, without dividing by zero."""
    zero = equal(x, 0)
    zeros = apply(SUM, cast(zero, x.dtype), axis=axis, keepdims=True)
    of_nonzero = apply(PROD, where(zero, 1, x), axis=axis, keepdims=True)
    others = of_nonzero / where(zero, 1, x)
    none_else = equal(zeros, cast(zero, x.dtype))  # no zero but, at most, the element itself
    return where(none_else, others, 0)


PROD = _row(
    "prod",
    _wide,
    lower=lambda xp, x, axis, keepdims: xp.prod(x, axis=axis, keepdims=keepdims, dtype=_wide(x.dtype)),
    vjp=lambda ct, out, x, axis, keepdims: (_spread(ct, x, axis, keepdims) * _prod_of_others(x, axis),),
    jvp=lambda ts, out, x, axis, keepdims: apply(SUM, ts[0] * _prod_of_others(x, axis), axis=axis, keepdims=keepdims),
)

# -- extremes ----------------------------------------------------------------------------------------------------------


def _share(out: Tensor, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    """Share of every element in the extreme: elements that tie share equally."""
    taken = cast(equal(x, _spread(out, x, axis, keepdims)), x.dtype)
    return taken / apply(SUM, taken, axis=axis, keepdims=True)


def _extreme(name: str) -> Primitive:
    return _row(
        name,
        _same,
        vjp=lambda ct, out, x, axis, keepdims: (_spread(ct, x, axis, keepdims) * _share(out, x, axis, keepdims),),
        jvp=lambda ts, out, x, axis, keepdims: apply(
            SUM, ts[0] * _share(out, x, axis, keepdims), axis=axis, keepdims=keepdims
        ),
    )


MAX, MIN = _extreme("max"), _extreme("min")

sum_ = _public(SUM, "Sum of the elements.")
prod_ = _public(PROD, "Product of the elements.")
max_ = _public(MAX, "Greatest of the elements; elements that tie share the gradient.")
min_ = _public(MIN, "Least of the elements; elements that tie share the gradient.")
mean_ = _public(MEAN, "Mean of the elements.")
all_ = _public(_row("all", lambda d: np.dtype(bool)), "Whether all elements are true.")
any_ = _public(_row("any", lambda d: np.dtype(bool)), "Whether any element is true.")


def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Sum of the elements.

    sum(x, axis=None, dtype=None, keepdims=False): over `axis` (all where None), as `numpy.sum`.
    """
    return sum_(x if dtype is None else cast(as_tensor(x), np.dtype(dtype)), axis=axis, keepdims=keepdims)


def prod(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Product of the elements; its gradient is finite where elements are zero.

    prod(x, axis=None, dtype=None, keepdims=False): over `axis` (all where None), as `numpy.prod`.
    """
    return prod_(x if dtype is None else cast(as_tensor(x), np.dtype(dtype)), axis=axis, keepdims=keepdims)


max, min, mean, all, any = max_, min_, mean_, all_, any_


def count_nonzero(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements are not zero, over `axis` (all where None)."""
    return sum(cast(as_tensor(x), np.dtype(bool)), axis=axis, keepdims=keepdims)


# -- moments and what is composed ----------------------------------------------------------------------------------


def _center(x: Tensor, axis: Axes) -> Tensor:
    return x - apply(MEAN, x, axis=axis, keepdims=True)


VAR = primitive(
    "var",
    kind="array",
    infer=_infer(_variance),
    lower=lambda xp, x, axis, keepdims, correction: xp.var(x, axis=axis, keepdims=keepdims, **_ddof(xp, correction)),
    flops=lambda node: 4 * node.inputs[0].size,
    vjp=lambda ct, out, x, axis, keepdims, correction: (
        _spread(ct, x, axis, keepdims) * (2 / (_count(x, axis) - correction)) * _center(x, axis),
    ),
    jvp=lambda ts, out, x, axis, keepdims, correction: apply(
        SUM, ts[0] * (2 / (_count(x, axis) - correction)) * _center(x, axis), axis=axis, keepdims=keepdims
    ),
)


def _ddof(xp: Any, correction: float) -> dict[str, float]:
    return {"ddof": correction} if xp.__name__ == "dask.array" else {"correction": correction}


def var(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Variance of the elements over `axis` (all where None), divided by n - correction, as `numpy.var`."""
    x = as_tensor(x)
    axes = normalize_axis("var", axis, x.ndim)
    if not axes:
        return _of_nothing_moment(x, correction)
    if not np.issubdtype(x.dtype, np.inexact):
        x = cast(x, np.dtype(float))
    return apply(VAR, x, axis=axes, keepdims=bool(keepdims), correction=correction)


def _of_nothing_moment(x: Tensor, correction: float) -> Tensor:
    return var(reshape(x, (*x.shape, 1)), axis=x.ndim, correction=correction)


def std(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Standard deviation of the elements over `axis` (all where None), as `numpy.std`."""
    return var(x, axis=axis, correction=correction, keepdims=keepdims) ** 0.5


def logsumexp(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) without overflow; the maximum is taken out first (and is a constant to the gradient)."""
    from taskgraph.ops.create import stop_gradient

    x = as_tensor(x)
    axes = normalize_axis("logsumexp", axis, x.ndim)
    top = stop_gradient(max(x, axis=axes, keepdims=True))
    top = where(isfinite(top), top, 0)
    total = log(sum(exp(x - top), axis=axes, keepdims=True)) + top
    return total if keepdims else reshape(total, _reduced(x.expr, axes, False)[0])


# -- cumulative ------------------------------------------------------------------------------------------------------

CUMULATIVE_SUM = primitive(
    "cumulative_sum",
    kind="array",
    infer=lambda x, axis: (x.shape, _wide(x.dtype), x.chunks),
    lower=lambda xp, x, axis: xp.cumsum(x, axis=axis),
    vjp=lambda ct, out, x, axis: (flip(apply(CUMULATIVE_SUM, flip(ct, axis=axis), axis=axis), axis=axis),),
    jvp=lambda ts, out, x, axis: apply(CUMULATIVE_SUM, ts[0], axis=axis),
)


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running sums along an axis, which may be left out for one dimension only, as `numpy.cumulative_sum`."""
    from taskgraph.ops.create import zeros
    from taskgraph.ops.shape import concat

    x = as_tensor(x) if dtype is None else cast(as_tensor(x), np.dtype(dtype))
    if axis is None and x.ndim != 1:
        raise ValueError(f"cumulative_sum: axis is needed for an array of {x.ndim} dimensions")
    (along,) = normalize_axis("cumulative_sum", 0 if axis is None else axis, x.ndim)
    sums = apply(CUMULATIVE_SUM, x, axis=along)
    if not include_initial:
        return sums
    first = tuple(1 if a == along else s for a, s in enumerate(x.shape))
    return concat([zeros(first, dtype=sums.dtype), sums], axis=along)


# -- positions ---------------------------------------------------------------------------------------------------------


def _position_row(name: str) -> Primitive:
    def lower(xp: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
        return getattr(xp, name)(x, axis=axis[0], keepdims=keepdims)

    return _row(name, lambda d: np.dtype(np.int64), lower=lower)


def _position(row: Primitive, doc: str) -> Callable[..., Tensor]:
    def call(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
        x = as_tensor(x)
        if x.size == 0:
            raise ValueError(f"{row.name}: no position in an array of no elements (shape {x.shape})")
        if not (axis is None or isinstance(axis, int | np.integer)):
            raise TypeError(f"{row.name}: axis is one axis or None, not {axis!r}")
        if axis is not None:
            return apply(row, x, axis=normalize_axis(row.name, axis, x.ndim), keepdims=bool(keepdims))
        found = apply(row, reshape(x, (x.size,)), axis=(0,), keepdims=False)
        return reshape(found, (1,) * x.ndim) if keepdims else found

    call.__name__ = call.__qualname__ = row.name
    call.__doc__ = f"{doc}\n\n{row.name}(x, axis=None, keepdims=False): of the flattened array where axis is None."
    return call


argmax = _position(_position_row("argmax"), "Index of the first greatest element.")
argmin = _position(_position_row("argmin"), "Index of the first least element.")

__all__ = [
    "all", "any", "argmax", "argmin", "count_nonzero", "cumulative_sum", "logsumexp", "max", "mean", "min", "prod",
    "std", "sum", "var",
]  # fmt: skip
