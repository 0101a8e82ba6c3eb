"""Shape: what moves elements without computing on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from dask.array.reshape import reshape_rechunk

from taskgraph.chunks import is_single, normalize, single, unify
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import axis_of, integers
from taskgraph.ops.create import filled
from taskgraph.ops.elementwise import cast
from taskgraph.primitives import is_dask, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Result = tuple[Shape, DType, Chunks]


def no_flops(node: Expr) -> int:
    """The work of what only moves elements."""
    return 0


def _nothing(xp: Any, x: Any, shape: Shape) -> Any:
    """An array of no elements, for which Dask's own operations on several blocks have no answer: in one block."""
    return xp.zeros(shape, dtype=x.dtype, chunks=single(shape))


# -- reshape -----------------------------------------------------------------------------------------------------------


def _reshape_chunks(old: Shape, new: Shape, chunks: Chunks) -> Chunks | None:
    """Blocks of Dask's reshape; None where it cannot go from one shape to the other but by way of a flat array."""
    if is_single(chunks) or 0 in new:
        return single(new)
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
    if is_dask(xp) and 0 in shape:
        return _nothing(xp, x, shape)
    if is_dask(xp) and _reshape_chunks(x.shape, shape, x.chunks) is None:
        x = xp.reshape(x, (x.size,))
    return xp.reshape(x, shape)


RESHAPE = primitive(
    "reshape",
    kind="array",
    infer=_infer_reshape,
    lower=_lower_reshape,
    vjp=lambda ct, out, x, shape: (reshape(ct, x.shape),),
    jvp=lambda ts, out, x, shape: reshape(ts[0], shape),
    flops=no_flops,
)


def reshape(x: Any, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The same elements, in C order, in another shape; one size may be -1. ValueError where the sizes do not fit."""
    x, given = as_tensor(x), integers("reshape: shape", shape)
    wanted = list(given)
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = x.size // rest if rest > 0 and x.size % rest == 0 else -1
    if any(s < 0 for s in wanted) or math.prod(wanted) != x.size:
        raise ValueError(f"reshape: {describe(x.expr)}; its {x.size} elements do not fill {given}")
    return x if tuple(wanted) == x.shape else apply(RESHAPE, x, shape=tuple(wanted))


def expand_dims(x: Any, /, *, axis: int | Sequence[int] = 0) -> Tensor:
    """`x` with axes of length 1 put in at the positions `axis` of the result."""
    x = as_tensor(x)
    axes = integers("expand_dims: axis", axis)
    ndim = x.ndim + len(axes)
    at = {axis_of("expand_dims", a, ndim) for a in axes}
    if len(at) != len(axes):
        raise ValueError(f"expand_dims: a position stands twice in {axes}")
    rest = iter(x.shape)
    return reshape(x, tuple(1 if a in at else next(rest) for a in range(ndim)))


def squeeze(x: Any, /, axis: int | Sequence[int] | None = None) -> Tensor:
    """`x` without the axes `axis`, which must have length 1 (all such axes where None)."""
    x = as_tensor(x)
    ones = [a for a, s in enumerate(x.shape) if s == 1]
    at = ones if axis is None else [axis_of("squeeze", a, x.ndim) for a in integers("squeeze: axis", axis)]
    for a in at:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: {describe(x.expr)}; its axis {a} has length {x.shape[a]}, not 1")
    return reshape(x, tuple(s for a, s in enumerate(x.shape) if a not in at))


# -- permute -----------------------------------------------------------------------------------------------------------

PERMUTE = primitive(
    "permute_dims",
    kind="array",
    infer=lambda x, axes: (tuple(x.shape[a] for a in axes), x.dtype, tuple(x.chunks[a] for a in axes)),
    lower=lambda xp, x, axes: (xp.transpose if is_dask(xp) else xp.permute_dims)(x, axes),
    vjp=lambda ct, out, x, axes: (permute_dims(ct, tuple(int(a) for a in np.argsort(axes))),),
    jvp=lambda ts, out, x, axes: permute_dims(ts[0], axes),
    flops=no_flops,
)


def permute_dims(x: Any, /, axes: Sequence[int]) -> Tensor:
    """The axes in another order. ValueError where `axes` is no permutation of them."""
    x = as_tensor(x)
    order = tuple(axis_of("permute_dims", a, x.ndim) for a in integers("permute_dims: axes", axes))
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
    src = [axis_of("moveaxis", a, x.ndim) for a in integers("moveaxis: source", source)]
    dst = [axis_of("moveaxis", a, x.ndim) for a in integers("moveaxis: destination", destination)]
    if len(src) != len(dst):
        raise ValueError(f"moveaxis: {len(src)} axes to {len(dst)} positions")
    order = [a for a in range(x.ndim) if a not in src]
    for to, a in sorted(zip(dst, src, strict=True)):
        order.insert(to, a)
    return permute_dims(x, order)


# -- broadcast ---------------------------------------------------------------------------------------------------------


def _broadcast_chunks(x: Any, shape: Shape, chunks: Chunks) -> Chunks:
    """The blocks of `x` along the axes that it has, those asked for along the axes that it is repeated on."""
    lead = len(shape) - x.ndim
    return tuple(x.chunks[a - lead] if a >= lead and x.shape[a - lead] == s else chunks[a] for a, s in enumerate(shape))


def _infer_broadcast(x: Expr, shape: Shape, chunks: Chunks) -> Result:
    lead = len(shape) - len(x.shape)
    if lead < 0 or any(s not in (1, t) for s, t in zip(x.shape, shape[lead:], strict=True)):
        raise ValueError(f"broadcast_to: {describe(x)} does not broadcast to {shape}")
    return shape, x.dtype, _broadcast_chunks(x, shape, chunks)


def _lower_broadcast(xp: Any, x: Any, shape: Shape, chunks: Chunks) -> Any:
    return xp.broadcast_to(x, shape, **({"chunks": _broadcast_chunks(x, shape, chunks)} if is_dask(xp) else {}))


BROADCAST = primitive(
    "broadcast_to",
    kind="array",
    infer=_infer_broadcast,
    lower=_lower_broadcast,
    vjp=lambda ct, out, x, shape, chunks: (ct,),  # the reverse pass sums it to the input's shape
    jvp=lambda ts, out, x, shape, chunks: broadcast_to(ts[0], shape, chunks=chunks),
    flops=no_flops,
)


def broadcast_to(x: Any, /, shape: Sequence[int], *, chunks: Any = "auto") -> Tensor:
    """`x` repeated along new axes and axes of length 1; ValueError where the shapes do not fit."""
    x = as_tensor(x)
    wanted = integers("broadcast_to: shape", shape)
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
    chunks = unify(shape, [(t.shape, t.chunks) for t in ts])
    return [broadcast_to(t, shape, chunks=chunks) for t in ts]


def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinate arrays of a grid from its axes, in Cartesian ("xy") or matrix ("ij") order."""
    ts = [as_tensor(a) for a in arrays]
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing is "xy" or "ij", not {indexing!r}')
    for t in ts:
        if t.ndim != 1:
            raise ValueError(f"meshgrid: needs arrays of one dimension, got {t.shape}")
    n = len(ts)
    grid = broadcast_arrays(*[reshape(t, (1,) * i + (t.size,) + (1,) * (n - 1 - i)) for i, t in enumerate(ts)])
    swap = (1, 0, *range(2, n))
    return [permute_dims(g, swap) for g in grid] if indexing == "xy" and n > 1 else grid


# -- join --------------------------------------------------------------------------------------------------------------


def _infer_concat(*xs: Expr, axis: int) -> Result:
    first = xs[0]
    for x in xs:
        if x.ndim != first.ndim or any(
            a != axis and s != t for a, (s, t) in enumerate(zip(x.shape, first.shape, strict=True))
        ):
            raise ValueError(f"concat: shapes differ beyond axis {axis}: {', '.join(describe(i) for i in xs)}")
    shape = _joined(xs, axis)
    if 0 in shape:
        return shape, first.dtype, single(shape)
    solid = [x for x in xs if x.size]  # Dask leaves the others out
    line = tuple(1 if a == axis else s for a, s in enumerate(first.shape))
    across = unify(line, [(line, tuple((1,) if a == axis else c for a, c in enumerate(x.chunks))) for x in solid])
    along = tuple(c for x in solid for c in x.chunks[axis])
    return shape, first.dtype, tuple(along if a == axis else c for a, c in enumerate(across))


def _joined(xs: Sequence[Any], axis: int) -> Shape:
    return (*xs[0].shape[:axis], sum(x.shape[axis] for x in xs), *xs[0].shape[axis + 1 :])


def _lower_concat(xp: Any, *xs: Any, axis: int) -> Any:
    if not is_dask(xp):
        return xp.concat(xs, axis=axis)
    shape = _joined(xs, axis)
    return _nothing(xp, xs[0], shape) if 0 in shape else xp.concatenate(xs, axis=axis)


def _split(ct: Tensor, xs: Sequence[Tensor], axis: int) -> tuple[Tensor, ...]:
    parts, at = [], 0
    for x in xs:
        parts.append(ct[(slice(None),) * axis + (slice(at, at + x.shape[axis]),)])
        at += x.shape[axis]
    return tuple(parts)


def _join_tangents(ts: Sequence[Tensor | None], xs: Sequence[Tensor], axis: int) -> Tensor:
    return concat([filled(x, 0) if t is None else t for t, x in zip(ts, xs, strict=True)], axis=axis)


CONCAT = primitive(
    "concat",
    kind="array",
    infer=_infer_concat,
    lower=_lower_concat,
    vjp=lambda ct, out, *xs, axis: _split(ct, xs, axis),
    jvp=lambda ts, out, *xs, axis: _join_tangents(ts, xs, axis),
    flops=no_flops,
)


def _common_type(arrays: Sequence[Any]) -> list[Tensor]:
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
    along = axis_of("concat", axis, ts[0].ndim)
    return ts[0] if len(ts) == 1 else apply(CONCAT, *ts, axis=along)


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis."""
    if not len(arrays):
        raise ValueError("stack: needs at least one array")
    ts = _common_type(arrays)
    if any(t.shape != ts[0].shape for t in ts):
        raise ValueError(f"stack: shapes differ: {', '.join(describe(t.expr) for t in ts)}")
    along = axis_of("stack", axis, ts[0].ndim + 1)
    return concat([expand_dims(t, axis=along) for t in ts], axis=along)


# -- repeat ------------------------------------------------------------------------------------------------------------


def tile(x: Any, repetitions: Sequence[int], /) -> Tensor:
    """`x` repeated as a whole, so many times along every axis."""
    x = as_tensor(x)
    times = integers("tile: repetitions", repetitions)
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
    along = axis_of("repeat", axis, x.ndim)
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
    lower=lambda xp, x, chunks: x.rechunk(chunks) if is_dask(xp) else x,
    vjp=lambda ct, out, x, chunks: (ct,),
    jvp=lambda ts, out, x, chunks: apply(RECHUNK, ts[0], chunks=chunks),
    flops=no_flops,
)


def rechunk(x: Any, chunks: Any) -> Tensor:
    """The same values in other blocks; `chunks` as Dask takes it. ValueError where they do not fit the shape."""
    x = as_tensor(x)
    wanted = normalize(chunks, x.shape, x.dtype)
    return x if wanted == x.chunks else apply(RECHUNK, x, chunks=wanted)


__all__ = [
    "broadcast_arrays", "broadcast_to", "concat", "expand_dims", "matrix_transpose", "meshgrid", "moveaxis",
    "permute_dims", "repeat", "reshape", "squeeze", "stack", "tile",
]  # fmt: skip
