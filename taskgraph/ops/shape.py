"""Shape: what moves elements without computing on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from dask.array.reshape import reshape_rechunk
from dask.array.slicing import new_blockdim

from taskgraph.chunks import is_single, normalize
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.primitives import primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Result = tuple[Shape, DType, Chunks]


def _no_flops(node: Expr) -> int:
    return 0


def _axis(name: str, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} is out of bounds for {ndim} dimensions")
    return int(axis) % ndim


def _as_axes(axis: int | Sequence[int]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int | np.integer) else tuple(axis)


# -- reshape -----------------------------------------------------------------------------------------------------------


def _reshape_chunks(old: Shape, new: Shape, chunks: Chunks) -> Chunks | None:
    """Blocks of Dask's reshape; None where it cannot go from one shape to the other but by way of a flat array."""
    if is_single(chunks):
        return tuple((s,) for s in new)
    try:
        return tuple(tuple(c) for c in reshape_rechunk(old, new, chunks)[1])
    except NotImplementedError:
        return None


def _infer_reshape(x: Expr, shape: Shape) -> Result:
    chunks = _reshape_chunks(x.shape, shape, x.chunks)
    if chunks is None:
        flat = _reshape_chunks(x.shape, (x.size,), x.chunks)
        assert flat is not None
        chunks = _reshape_chunks((x.size,), shape, flat)
        assert chunks is not None
    return shape, x.dtype, chunks


def _lower_reshape(xp: Any, x: Any, shape: Shape) -> Any:
    if xp.__name__ == "dask.array" and _reshape_chunks(x.shape, shape, x.chunks) is None:
        x = xp.reshape(x, (x.size,))
    return xp.reshape(x, shape)


RESHAPE = primitive(
    "reshape",
    kind="array",
    infer=_infer_reshape,
    lower=_lower_reshape,
    vjp=lambda ct, out, x, shape: (reshape(ct, x.shape),),
    jvp=lambda ts, out, x, shape: reshape(ts[0], shape),
    flops=_no_flops,
)


def reshape(x: Any, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The same elements, in C order, in another shape; one size may be -1. ValueError where the sizes do not fit."""
    x = as_tensor(x)
    wanted = [operator.index(s) for s in _as_axes(shape)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = x.size // rest if rest > 0 and x.size % rest == 0 else -1
    if any(s < 0 for s in wanted) or math.prod(wanted) != x.size:
        raise ValueError(f"reshape: {describe(x.expr)}; its {x.size} elements do not fill {tuple(_as_axes(shape))}")
    return x if tuple(wanted) == x.shape else apply(RESHAPE, x, shape=tuple(wanted))


def expand_dims(x: Any, /, *, axis: int | Sequence[int] = 0) -> Tensor:
    """`x` with axes of length 1 put in at the positions `axis` of the result."""
    x = as_tensor(x)
    axes = _as_axes(axis)
    ndim = x.ndim + len(axes)
    at = {_axis("expand_dims", a, ndim) for a in axes}
    if len(at) != len(axes):
        raise ValueError(f"expand_dims: a position stands twice in {axes}")
    rest = iter(x.shape)
    return reshape(x, tuple(1 if a in at else next(rest) for a in range(ndim)))


def squeeze(x: Any, /, axis: int | Sequence[int] | None = None) -> Tensor:
    """`x` without the axes `axis`, which must have length 1 (all such axes where None)."""
    x = as_tensor(x)
    ones = [a for a, s in enumerate(x.shape) if s == 1]
    at = ones if axis is None else [_axis("squeeze", a, x.ndim) for a in _as_axes(axis)]
    for a in at:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: {describe(x.expr)}; its axis {a} has length {x.shape[a]}, not 1")
    return reshape(x, tuple(s for a, s in enumerate(x.shape) if a not in at))


# -- permute -----------------------------------------------------------------------------------------------------------

PERMUTE = primitive(
    "permute_dims",
    kind="array",
    infer=lambda x, axes: (tuple(x.shape[a] for a in axes), x.dtype, tuple(x.chunks[a] for a in axes)),
    lower=lambda xp, x, axes: (xp.transpose if xp.__name__ == "dask.array" else xp.permute_dims)(x, axes),
    vjp=lambda ct, out, x, axes: (permute_dims(ct, tuple(int(a) for a in np.argsort(axes))),),
    jvp=lambda ts, out, x, axes: permute_dims(ts[0], axes),
    flops=_no_flops,
)


def permute_dims(x: Any, /, axes: Sequence[int]) -> Tensor:
    """The axes in another order. ValueError where `axes` is no permutation of them."""
    x = as_tensor(x)
    order = tuple(_axis("permute_dims", a, x.ndim) for a in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"permute_dims: {describe(x.expr)}; {tuple(axes)} is no permutation of its {x.ndim} axes")
    return x if order == tuple(range(x.ndim)) else apply(PERMUTE, x, axes=order)


def matrix_transpose(x: Any, /) -> Tensor:
    """The last two axes swapped."""
    x = as_tensor(x)
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose: needs two axes, {describe(x.expr)} has {x.ndim}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """The axes `source` moved to the positions `destination`, the others keeping their order."""
    x = as_tensor(x)
    src = [_axis("moveaxis", a, x.ndim) for a in _as_axes(source)]
    dst = [_axis("moveaxis", a, x.ndim) for a in _as_axes(destination)]
    if len(src) != len(dst):
        raise ValueError(f"moveaxis: {len(src)} axes to {len(dst)} positions")
    order = [a for a in range(x.ndim) if a not in src]
    for to, a in sorted(zip(dst, src, strict=True)):
        order.insert(to, a)
    return permute_dims(x, order)


# -- broadcast ---------------------------------------------------------------------------------------------------------


def _infer_broadcast(x: Expr, shape: Shape, chunks: Chunks) -> Result:
    lead = len(shape) - len(x.shape)
    if lead < 0 or any(s not in (1, t) for s, t in zip(x.shape, shape[lead:], strict=True)):
        raise ValueError(f"broadcast_to: {describe(x)} does not broadcast to {shape}")
    own = tuple(x.chunks[a - lead] if a >= lead and x.shape[a - lead] == s else chunks[a] for a, s in enumerate(shape))
    return shape, x.dtype, own


def _lower_broadcast(xp: Any, x: Any, shape: Shape, chunks: Chunks) -> Any:
    if xp.__name__ != "dask.array":
        return xp.broadcast_to(x, shape)
    lead = len(shape) - x.ndim
    own = tuple(x.chunks[a - lead] if a >= lead and x.shape[a - lead] == s else chunks[a] for a, s in enumerate(shape))
    return xp.broadcast_to(x, shape, chunks=own)


BROADCAST = primitive(
    "broadcast_to",
    kind="array",
    infer=_infer_broadcast,
    lower=_lower_broadcast,
    vjp=lambda ct, out, x, shape, chunks: (ct,),  # the reverse pass sums it to the input's shape
    jvp=lambda ts, out, x, shape, chunks: broadcast_to(ts[0], shape),
    flops=_no_flops,
)


def broadcast_to(x: Any, /, shape: Sequence[int], *, chunks: Any = "auto") -> Tensor:
    """`x` repeated along new axes and axes of length 1; ValueError where the shapes do not fit."""
    x = as_tensor(x)
    wanted = tuple(operator.index(s) for s in _as_axes(shape))
    if wanted == x.shape:
        return x
    if any(s < 0 for s in wanted):
        raise ValueError(f"broadcast_to: a shape has no negative sizes: {wanted}")
    return apply(BROADCAST, x, shape=wanted, chunks=normalize(chunks, wanted, x.dtype))


def broadcast_arrays(*arrays: Any) -> list[Tensor]:
    """All arrays broadcast to their common shape."""
    ts = [as_tensor(a) for a in arrays]
    try:
        shape = np.broadcast_shapes(*[t.shape for t in ts])
    except ValueError:
        raise ValueError(
            f"broadcast_arrays: shapes do not broadcast: {', '.join(describe(t.expr) for t in ts)}"
        ) from None
    return [broadcast_to(t, shape) for t in ts]


# -- join --------------------------------------------------------------------------------------------------------------


def _infer_concat(*xs: Expr, axis: int) -> Result:
    first = xs[0]
    for x in xs:
        if x.ndim != first.ndim or any(
            a != axis and s != t for a, (s, t) in enumerate(zip(x.shape, first.shape, strict=True))
        ):
            raise ValueError(f"concat: shapes differ beyond axis {axis}: {', '.join(describe(i) for i in xs)}")
    from taskgraph.chunks import unify

    line = tuple(1 if a == axis else s for a, s in enumerate(first.shape))
    flat = [(line, tuple((1,) if a == axis else c for a, c in enumerate(x.chunks))) for x in xs]
    across = unify(line, flat)
    along = tuple(c for x in xs for c in x.chunks[axis])
    shape = tuple(sum(along) if a == axis else s for a, s in enumerate(first.shape))
    return shape, first.dtype, tuple(along if a == axis else c for a, c in enumerate(across))


def _lower_concat(xp: Any, *xs: Any, axis: int) -> Any:
    return xp.concatenate(xs, axis=axis) if xp.__name__ == "dask.array" else xp.concat(xs, axis=axis)


def _split(ct: Tensor, xs: Sequence[Tensor], axis: int) -> tuple[Tensor, ...]:
    parts, at = [], 0
    for x in xs:
        parts.append(ct[(slice(None),) * axis + (slice(at, at + x.shape[axis]),)])
        at += x.shape[axis]
    return tuple(parts)


def _join_tangents(ts: Sequence[Tensor | None], xs: Sequence[Tensor], axis: int) -> Tensor:
    return concat([x * 0 if t is None else t for t, x in zip(ts, xs, strict=True)], axis=axis)


CONCAT = primitive(
    "concat",
    kind="array",
    infer=_infer_concat,
    lower=_lower_concat,
    vjp=lambda ct, out, *xs, axis: _split(ct, xs, axis),
    jvp=lambda ts, out, *xs, axis: _join_tangents(ts, xs, axis),
    flops=_no_flops,
)


def _common_type(arrays: Sequence[Any]) -> list[Tensor]:
    from taskgraph.ops.elementwise import cast

    ts = [as_tensor(a) for a in arrays]
    dtype = np.result_type(*[t.dtype for t in ts])
    return [cast(t, dtype) for t in ts]


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Tensor:
    """Arrays joined along an axis that they have; flattened first where axis is None."""
    if not len(arrays):
        raise ValueError("concat: needs at least one array")
    ts = _common_type(arrays)
    if axis is None:
        ts, axis = [reshape(t, (t.size,)) for t in ts], 0
    along = _axis("concat", axis, ts[0].ndim)
    return ts[0] if len(ts) == 1 else apply(CONCAT, *ts, axis=along)


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis."""
    if not len(arrays):
        raise ValueError("stack: needs at least one array")
    ts = _common_type(arrays)
    if any(t.shape != ts[0].shape for t in ts):
        raise ValueError(f"stack: shapes differ: {', '.join(describe(t.expr) for t in ts)}")
    along = _axis("stack", axis, ts[0].ndim + 1)
    return concat([expand_dims(t, axis=along) for t in ts], axis=along)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along an axis, without it."""
    x = as_tensor(x)
    along = _axis("unstack", axis, x.ndim)
    return tuple(x[(slice(None),) * along + (i,)] for i in range(x.shape[along]))


# -- indexing ----------------------------------------------------------------------------------------------------------

Index = tuple[slice | int, ...]


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
    lower=lambda xp, x, index: x[index].rechunk(_index_shape(x, index)[1]) if xp.__name__ == "dask.array" else x[index],
    vjp=lambda ct, out, x, index: (apply(SCATTER, ct, index=index, shape=x.shape, chunks=x.chunks),),
    jvp=lambda ts, out, x, index: apply(GETITEM, ts[0], index=index),
    flops=_no_flops,
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
    return x.rechunk(chunks) if xp.__name__ == "dask.array" else x


def _zeros(xp: Any, x: Any, axis: int, size: int) -> Any:
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    cut = {"chunks": (*x.chunks[:axis], (size,), *x.chunks[axis + 1 :])} if xp.__name__ == "dask.array" else {}
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
    flops=_no_flops,
)


def getitem(x: Any, index: Any) -> Tensor:
    """`x[index]` for numbers, slices, None and one Ellipsis, as in NumPy.

    Raises IndexError for a number out of bounds or too many indices, TypeError for what is no such index.
    """
    x = as_tensor(x)
    items = list(index) if isinstance(index, tuple) else [index]
    if sum(1 for i in items if i is Ellipsis) > 1:
        raise IndexError("an index can have only one Ellipsis")
    used = sum(1 for i in items if i is not None and i is not Ellipsis)
    if used > x.ndim:
        raise IndexError(f"too many indices, {used}: {describe(x.expr)}")
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    items[at : at + 1] = [slice(None)] * (x.ndim - used)
    basic = tuple(_basic(i, x, axis) for axis, i in enumerate(i for i in items if i is not None))
    taken = x if all(i == slice(None) for i in basic) else apply(GETITEM, x, index=basic)
    rest = iter(taken.shape)
    shape = [1 if i is None else next(rest) for i in items if i is None or isinstance(i, slice)]
    return reshape(taken, shape)


def _basic(item: Any, x: Tensor, axis: int) -> slice | int:
    size = x.shape[axis]
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        if (start, stop, step) == (0, size, 1):
            return slice(None)
        return slice(start, None if step < 0 and stop < 0 else stop, step)
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        if not -size <= item < size:
            raise IndexError(f"index {item} is out of bounds for axis {axis}: {describe(x.expr)}")
        return int(item) % size
    raise TypeError(
        f"a tensor takes numbers, slices, None and Ellipsis as indices, not {type(item).__name__}; "
        "tg.where selects by a condition"
    )


# -- flip and roll -----------------------------------------------------------------------------------------------------


def flip(x: Any, /, *, axis: int | Sequence[int] | None = None) -> Tensor:
    """The elements in reverse order along `axis` (all axes where None)."""
    x = as_tensor(x)
    axes = range(x.ndim) if axis is None else [_axis("flip", a, x.ndim) for a in _as_axes(axis)]
    return x[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(x.ndim))]


def roll(x: Any, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved by `shift` along `axis`, those beyond the end coming in at the start; flattened where None."""
    x = as_tensor(x)
    if axis is None:
        if not isinstance(shift, int | np.integer):
            raise ValueError("roll: several shifts need as many axes")
        return reshape(roll(reshape(x, (x.size,)), shift, axis=0), x.shape)
    shifts, axes = _as_axes(shift), _as_axes(axis)
    if len(shifts) != len(axes):
        shifts = shifts * len(axes) if len(shifts) == 1 else shifts
    if len(shifts) != len(axes):
        raise ValueError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for s, a in zip(shifts, (_axis("roll", a, x.ndim) for a in axes), strict=True):
        by = s % x.shape[a] if x.shape[a] else 0
        if by:
            lead = (slice(None),) * a
            x = concat([x[(*lead, slice(-by, None))], x[(*lead, slice(None, -by))]], axis=a)
    return x


def tile(x: Any, repetitions: Sequence[int], /) -> Tensor:
    """`x` repeated as a whole, so many times along every axis."""
    x = as_tensor(x)
    times = tuple(_as_axes(repetitions))
    if any(t < 0 for t in times):
        raise ValueError(f"tile: nothing repeats a negative number of times: {times}")
    shape = (1,) * (len(times) - x.ndim) + x.shape
    times = (1,) * (len(shape) - len(times)) + times
    y = reshape(x, tuple(n for s in shape for n in (1, s)))
    y = broadcast_to(y, tuple(n for t, s in zip(times, shape, strict=True) for n in (t, s)))
    return reshape(y, tuple(t * s for t, s in zip(times, shape, strict=True)))


def repeat(x: Any, repeats: int, /, *, axis: int | None = None) -> Tensor:
    """Every element repeated that many times, one beside the other, along `axis` (of the flat array where None).

    Raises TypeError for a count for each element: the shape would depend on values.
    """
    x = as_tensor(x)
    if not isinstance(repeats, int | np.integer):
        raise TypeError(f"repeat: one number of repeats for all elements, not {type(repeats).__name__}")
    if repeats < 0:
        raise ValueError(f"repeat: the number of repeats must not be negative, got {repeats}")
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    along = _axis("repeat", axis, x.ndim)
    wide = (*x.shape[: along + 1], int(repeats), *x.shape[along + 1 :])
    spread = broadcast_to(expand_dims(x, axis=along + 1), wide)
    return reshape(spread, (*x.shape[:along], x.shape[along] * int(repeats), *x.shape[along + 1 :]))


# -- blocks ------------------------------------------------------------------------------------------------------------


def _infer_rechunk(x: Expr, chunks: Chunks) -> Result:
    return x.shape, x.dtype, chunks


RECHUNK = primitive(
    "rechunk",
    kind="array",
    infer=_infer_rechunk,
    lower=lambda xp, x, chunks: x.rechunk(chunks) if xp.__name__ == "dask.array" else x,
    vjp=lambda ct, out, x, chunks: (ct,),
    jvp=lambda ts, out, x, chunks: apply(RECHUNK, ts[0], chunks=chunks),
    flops=_no_flops,
)


def rechunk(x: Any, chunks: Any) -> Tensor:
    """The same values in other blocks; `chunks` as Dask takes it. ValueError where they do not fit the shape."""
    x = as_tensor(x)
    wanted = normalize(chunks, x.shape, x.dtype)
    return x if wanted == x.chunks else apply(RECHUNK, x, chunks=wanted)


__all__ = [
    "broadcast_arrays", "broadcast_to", "concat", "expand_dims", "flip", "matrix_transpose", "moveaxis", "permute_dims",
    "repeat", "reshape", "roll", "squeeze", "stack", "tile", "unstack",
]  # fmt: skip
