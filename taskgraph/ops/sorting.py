"""Order: sorting, and searching in what is sorted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from taskgraph.chunks import single
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import array, axis_of
from taskgraph.ops.elementwise import cast, logical_not
from taskgraph.ops.gather import INDEX, along_axis, by_blocks, infer_along, positions, take_flat, whole
from taskgraph.ops.shape import rechunk, reshape
from taskgraph.primitives import Primitive, is_dask, no_gradient, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

# -- sorting -----------------------------------------------------------------------------------------------------------


def argsort_kernel(x: Any, axis: int, descending: bool) -> Any:
    """A block of `argsort`; in descending order, too, equal elements keep theirs."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(backwards, axis)


def _infer_argsort(x: Any, axis: int, descending: bool) -> tuple[Shape, DType, Chunks]:
    shape, _, chunks = infer_along(x, axis=axis, size=x.shape[axis])
    return shape, INDEX, chunks


ARGSORT = primitive(
    "argsort",
    kind="array",
    infer=_infer_argsort,
    lower=by_blocks(argsort_kernel, _infer_argsort),
    vjp=no_gradient,
    jvp=no_gradient,
    flops=lambda node: int(node.size * math.log2(max(2, node.size))),
)


def _real(name: str, x: Any) -> Tensor:
    x = array(name, x)
    if x.dtype.kind == "c":
        raise TypeError(f"{name}: complex numbers have no order: {describe(x.expr)}")
    return x


def _order(name: str, x: Any, axis: int | None, descending: bool) -> tuple[Tensor, Tensor, int]:
    """The array in one block along the axis, the positions of its elements in order, and the axis."""
    x = _real(name, x)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    along = axis_of(name, axis, x.ndim)
    x = whole(x, along)
    return x, apply(ARGSORT, x, axis=along, descending=bool(descending)), along


def argsort(x: Any, /, *, axis: int | None = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The positions that sort `x` along an axis (flattened where None), as int64.

    Equal elements keep their order, whatever `stable` says; NaN is the greatest. The axis becomes one block. Raises
    TypeError for complex numbers, ValueError for an axis that is not there.

    >>> import taskgraph as tg
    >>> tg.argsort(tg.asarray([2.0, 3.0, 1.0]), descending=True).compute()
    array([1, 0, 2])
    """
    return _order("argsort", x, axis, descending)[1]


def sort(x: Any, /, *, axis: int | None = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """`x` sorted along an axis (flattened where None); see `argsort`. The gradient goes back to where elements were.

    >>> import taskgraph as tg
    >>> x = tg.asarray([2.0, 3.0, 1.0])
    >>> tg.sort(x).compute()
    array([1., 2., 3.])
    >>> tg.gradients(tg.sum(tg.sort(x) * tg.asarray([10.0, 20.0, 30.0])), x).compute()
    array([20., 30., 10.])
    """
    return along_axis(*_order("sort", x, axis, descending))


# -- searching ---------------------------------------------------------------------------------------------------------


def search_kernel(x: Any, among: Any, side: str) -> Any:
    """A block of `searchsorted`."""
    return np.searchsorted(among, x, side=side)  # type: ignore[call-overload]


def isin_kernel(x: Any, among: Any) -> Any:
    """A block of `isin`."""
    return np.isin(x, among)


def _against_all(name: str, dtype: DType, kernel: Any) -> Primitive:
    """A row of two arrays: every element of the first against all of the second, which has one dimension."""

    def infer(x: Expr, among: Expr, **_: Any) -> tuple[Shape, DType, Chunks]:
        return x.shape, dtype, single(x.shape) if 0 in x.shape else x.chunks

    def lower(xp: Any, x: Any, among: Any, **params: Any) -> Any:
        if not is_dask(xp):
            return np.asarray(kernel(x, among, **params), dtype)
        if 0 in x.shape:
            return xp.zeros(x.shape, dtype=dtype, chunks=single(x.shape))
        axes, line = tuple(range(x.ndim)), (x.ndim,)
        meta, among = np.empty((0,) * x.ndim, dtype), among.rechunk(-1)
        return xp.blockwise(kernel, axes, x, axes, among, line, concatenate=True, dtype=dtype, meta=meta, **params)

    return primitive(
        name,
        kind="array",
        infer=infer,
        lower=lower,
        vjp=no_gradient,
        jvp=no_gradient,
        flops=lambda node: int(node.size * math.log2(max(2, node.inputs[1].size))),
    )


SEARCH = _against_all("searchsorted", INDEX, search_kernel)
ISIN = _against_all("isin", np.dtype(bool), isin_kernel)


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Tensor:
    """Where the elements of `x2` belong in the sorted `x1`, as `numpy.searchsorted`: int64 in the shape of `x2`.

    x1: of one dimension, sorted (or by the positions `sorter`); it becomes one block. side: before ("left") or behind
    ("right") equal elements. Raises ValueError for an x1 of another number of dimensions and for another side,
    TypeError for complex numbers and for a sorter that is not of integers.

    >>> import taskgraph as tg
    >>> tg.searchsorted(tg.asarray([1.0, 2.0, 3.0]), tg.asarray([2.0, 2.5])).compute()
    array([1, 2])
    """
    x1, x2 = _real("searchsorted", x1), _real("searchsorted", x2)
    if x1.ndim != 1:
        raise ValueError(f"searchsorted: x1 must have one dimension: {describe(x1.expr)}")
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side is "left" or "right", not {side!r}')
    if sorter is not None:
        at = positions("searchsorted: sorter", sorter, x1, 0)
        if at.shape != x1.shape:
            raise ValueError(f"searchsorted: the sorter is {at.shape}, x1 is {x1.shape}")
        x1 = take_flat(x1, at, 0)
    dtype = np.result_type(x1.dtype, x2.dtype)
    return apply(SEARCH, cast(x2, dtype), rechunk(cast(x1, dtype), -1), side=side)


def isin(x1: Any, x2: Any, /, *, invert: bool = False) -> Tensor:
    """Whether each element of `x1` is among those of `x2`, which become one block, as `numpy.isin`.

    >>> import taskgraph as tg
    >>> tg.isin(tg.asarray([1, 2, 3]), [3, 1]).compute()
    array([ True, False,  True])
    """
    x1, x2 = array("isin", x1), as_tensor(x2)
    dtype = np.result_type(x1.dtype, x2.dtype)
    found = apply(ISIN, cast(x1, dtype), rechunk(reshape(cast(x2, dtype), (x2.size,)), -1))
    return logical_not(found) if invert else found


__all__ = ["argsort", "isin", "searchsorted", "sort"]
