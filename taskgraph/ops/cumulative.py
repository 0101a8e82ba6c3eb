"""Running sums and products, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from taskgraph.expr import DType
from taskgraph.ops.arguments import array, axis_of, numeric
from taskgraph.ops.create import filled, ones, zeros
from taskgraph.ops.elementwise import cast, not_equal, subtract
from taskgraph.ops.indexing import flip
from taskgraph.ops.shape import concat
from taskgraph.primitives import Primitive, primitive
from taskgraph.tensor import Tensor, apply


def wide(dtype: DType) -> DType:
    """The type of sums and products: NumPy widens small integers to the platform's."""
    return np.empty(0, dtype).sum().dtype


def _row(name: str, numpys: str, **rules: Any) -> Primitive:
    return primitive(
        name,
        kind="array",
        infer=lambda x, axis: (x.shape, wide(x.dtype), x.chunks),
        lower=lambda xp, x, axis: getattr(xp, numpys)(x, axis=axis),
        **rules,
    )


CUMULATIVE_SUM = _row(
    "cumulative_sum",
    "cumsum",
    vjp=lambda ct, out, x, axis: (flip(apply(CUMULATIVE_SUM, flip(ct, axis=axis), axis=axis), axis=axis),),
    jvp=lambda ts, out, x, axis: apply(CUMULATIVE_SUM, ts[0], axis=axis),
)

#: Its rules never divide by an element, so that they hold, to any order, where elements are zero.
CUMULATIVE_PROD = _row(
    "cumulative_prod",
    "cumprod",
    vjp=lambda ct, out, x, axis: (_moved(out, 1, axis, 1) * _weighted_ends(ct, x, axis),),
    jvp=lambda ts, out, x, axis: _recurrence(x, ts[0] * _moved(out, 1, axis, 1), axis),
)


def _part(axis: int, start: int | None, stop: int | None) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))


def _moved(x: Tensor, by: int, axis: int, fill: float) -> Tensor:
    """Elements moved towards the end of an axis, `fill` coming in at its start."""
    first = filled(x[_part(axis, None, by)], fill)
    return concat([first, x[_part(axis, None, -by)]], axis=axis).rechunk(x.chunks)


def _recurrence(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """y[i] = a[i] * y[i-1] + b[i], with y[-1] = 0, along an axis: in log2(n) steps, each of which doubles how many
    elements every y[i] has taken in (Hillis & Steele, 1986)."""
    by = 1
    while by < a.shape[axis]:
        b, a = b + a * _moved(b, by, axis, 0), a * _moved(a, by, axis, 1)
        by *= 2
    return b


def _weighted_ends(ct: Tensor, x: Tensor, axis: int) -> Tensor:
    """For every i the sum over k >= i of ct[k] times the product of x behind i up to k."""
    return flip(_recurrence(_moved(flip(x, axis=axis), 1, axis, 1), flip(ct, axis=axis), axis), axis=axis)


def product_of_others(x: Tensor, axis: int) -> Tensor:
    """The product of all other elements along an axis."""

    def before(t: Tensor) -> Tensor:
        return _moved(apply(CUMULATIVE_PROD, t, axis=axis), 1, axis, 1)

    return before(x) * flip(before(flip(x, axis=axis)), axis=axis)


def _running(row: Primitive, start: Any, x: Any, axis: int | None, dtype: Any, include_initial: bool) -> Tensor:
    x = array(row.name, x)
    if dtype is not None:
        x = cast(x, numeric(dtype, row.name))
    if axis is None and x.ndim != 1:
        raise ValueError(f"{row.name}: axis is needed for an array of {x.ndim} dimensions")
    along = axis_of(row.name, 0 if axis is None else axis, x.ndim)
    found = apply(row, x, axis=along)
    if dtype is not None:
        found = cast(found, x.dtype)
    if not include_initial:
        return found
    first = tuple(1 if a == along else s for a, s in enumerate(x.shape))
    return concat([start(first, dtype=found.dtype), found], axis=along)


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running sums along an axis, which may be left out for one dimension only, as `numpy.cumulative_sum`."""
    return _running(CUMULATIVE_SUM, zeros, x, axis, dtype, include_initial)


def cumulative_prod(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running products along an axis, which may be left out for one dimension only, as `numpy.cumulative_prod`."""
    return _running(CUMULATIVE_PROD, ones, x, axis, dtype, include_initial)


def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    """Differences of neighbours along an axis, taken n times, as `numpy.diff`: of booleans, whether they differ.

    prepend, append: arrays joined to `x` along the axis first.
    """
    x = array("diff", x)
    along = axis_of("diff", axis, x.ndim)
    if n < 0:
        raise ValueError(f"diff: n must not be negative, got {n}")
    parts = [t for t in (prepend, x, append) if t is not None]
    x = x if len(parts) == 1 else concat(parts, axis=along)
    difference = not_equal if x.dtype == bool else subtract
    for _ in range(n):
        x = difference(x[_part(along, 1, None)], x[_part(along, None, -1)])
    return x


__all__ = ["cumulative_prod", "cumulative_sum", "diff"]
