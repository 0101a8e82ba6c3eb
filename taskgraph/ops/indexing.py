"""Indexing: what takes some of the elements, and what puts them back among zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask.array.slicing import new_blockdim

from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import axes_of, axis_of, integers
from taskgraph.ops.shape import concat, no_flops, reshape
from taskgraph.primitives import is_dask, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Index = tuple[slice | int, ...]
Result = tuple[Shape, DType, Chunks]


def _index_shape(x: Expr, index: Index) -> tuple[Shape, Chunks]:
    kept = [(s, i) for s, i in enumerate(index) if isinstance(i, slice)]
    shape = tuple(len(range(*i.indices(x.shape[a]))) for a, i in kept)
    # Dask keeps blocks of which a step leaves nothing, and then fails on them (reshape, max, argmax)
    chunks = tuple(tuple(int(n) for n in new_blockdim(x.shape[a], x.chunks[a], i) if n) for a, i in kept)
    return shape, tuple(c or (0,) for c in chunks)


def _infer_getitem(x: Expr, index: Index) -> Result:
    shape, chunks = _index_shape(x, index)
    return shape, x.dtype, chunks


GETITEM = primitive(
    "getitem",
    kind="array",
    infer=_infer_getitem,
    lower=lambda xp, x, index: x[index].rechunk(_index_shape(x, index)[1]) if is_dask(xp) else x[index],
    vjp=lambda ct, out, x, index: (apply(SCATTER, ct, index=index, shape=x.shape, chunks=x.chunks),),
    jvp=lambda ts, out, x, index: apply(GETITEM, ts[0], index=index),
    flops=no_flops,
)


def _lower_scatter(xp: Any, x: Any, index: Index, shape: Shape, chunks: Chunks) -> Any:
    """Zeros around and between the elements, axis by axis (Dask's own item assignment hides its operands' graphs)."""
    for axis, (item, size) in enumerate(zip(index, shape, strict=True)):
        if not isinstance(item, slice):
            x, item = xp.expand_dims(x, axis=axis), slice(item, item + 1, 1)
        taken = range(*item.indices(size))
        if taken.step < 0:
            x, taken = xp.flip(x, axis=axis), taken[::-1]
        if len(taken) > 1 and taken.step > 1:
            x = _spaced(xp, x, axis, taken.step)
        before = taken.start if len(taken) else 0
        x = _padded(xp, x, axis, before, size - before - x.shape[axis])
    return x.rechunk(chunks) if is_dask(xp) else x


def _zeros(xp: Any, x: Any, axis: int, size: int) -> Any:
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    cut = {"chunks": (*x.chunks[:axis], (size,), *x.chunks[axis + 1 :])} if is_dask(xp) else {}
    return xp.zeros(shape, dtype=x.dtype, **cut)


def _padded(xp: Any, x: Any, axis: int, before: int, after: int) -> Any:
    parts = [
        *([_zeros(xp, x, axis, before)] if before else []),
        x,
        *([_zeros(xp, x, axis, after)] if after else []),
    ]
    return x if len(parts) == 1 else xp.concatenate(parts, axis=axis)


def _spaced(xp: Any, x: Any, axis: int, step: int) -> Any:
    """The elements along an axis with step - 1 zeros after each but the last."""
    size = x.shape[axis]
    gaps = _zeros(xp, xp.expand_dims(x, axis=axis + 1), axis + 1, step - 1)
    spaced = xp.concatenate([xp.expand_dims(x, axis=axis + 1), gaps], axis=axis + 1)
    whole = xp.reshape(spaced, (*x.shape[:axis], size * step, *x.shape[axis + 1 :]))
    return whole[(slice(None),) * axis + (slice(0, (size - 1) * step + 1),)]


#: The transpose of getitem: zeros with the elements of the input at the places that the index names.
SCATTER = primitive(
    "scatter",
    kind="array",
    infer=lambda x, index, shape, chunks: (shape, x.dtype, chunks),
    lower=_lower_scatter,
    vjp=lambda ct, out, x, index, shape, chunks: (apply(GETITEM, ct, index=index),),
    jvp=lambda ts, out, x, index, shape, chunks: apply(SCATTER, ts[0], index=index, shape=shape, chunks=chunks),
    flops=no_flops,
)


def take_basic(x: Tensor, index: Index) -> Tensor:
    """The elements at a number or a slice, as `basic_item` gives it, for each axis."""
    return x if all(i == slice(None) for i in index) else apply(GETITEM, x, index=index)


def basic_item(item: Any, x: Tensor, axis: int) -> slice | int:
    """A slice with the bounds that it has on this axis, or a number counted from the start.

    Raises IndexError for a number out of bounds.
    """
    size = x.shape[axis]
    if not isinstance(item, slice):
        if not -size <= item < size:
            raise IndexError(f"index {item} is out of bounds for axis {axis}: {describe(x.expr)}")
        return int(item) % size
    start, stop, step = item.indices(size)
    if (start, stop, step) == (0, size, 1):
        return slice(None)
    if not range(start, stop, step):
        return slice(0, 0, 1)  # -1, where a negative step stops below the axis, would be its last element
    return slice(start, None if step < 0 and stop < 0 else stop, step)


# -- flip and roll -----------------------------------------------------------------------------------------------------


def flip(x: Any, /, *, axis: int | Sequence[int] | None = None) -> Tensor:
    """The elements in reverse order along `axis` (all axes where None)."""
    x = as_tensor(x)
    axes = axes_of("flip", axis, x.ndim)
    return x[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(x.ndim))]


def roll(x: Any, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved by `shift` along `axis`, those beyond the end coming in at the start; flattened where None."""
    x, shifts = as_tensor(x), integers("roll: shift", shift)
    if axis is None:
        if len(shifts) != 1:
            raise ValueError("roll: several shifts need as many axes")
        return reshape(roll(reshape(x, (x.size,)), shifts, axis=0), x.shape)
    axes = integers("roll: axis", axis)
    shifts = shifts * len(axes) if len(shifts) == 1 else shifts
    if len(shifts) != len(axes):
        raise ValueError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for s, a in zip(shifts, (axis_of("roll", a, x.ndim) for a in axes), strict=True):
        by = s % x.shape[a] if x.shape[a] else 0
        if by:
            lead = (slice(None),) * a
            x = concat([x[(*lead, slice(-by, None))], x[(*lead, slice(None, -by))]], axis=a)
    return x


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along an axis, without it."""
    x = as_tensor(x)
    along = axis_of("unstack", axis, x.ndim)
    return tuple(x[(slice(None),) * along + (i,)] for i in range(x.shape[along]))


__all__ = ["flip", "roll", "unstack"]
