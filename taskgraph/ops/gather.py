"""Taking elements by position, and its transpose, which adds them up where they came from.

Design note. Positions are known when the graph is built (data of the user's) or computed with it. Known ones are
checked at once and stand in the row's parameters, so that a run touches no block that nobody asked for; computed ones
are an input, checked when they are there (`bounded`). Either way they are counted from the start from then on.
`take` goes along one axis with the same positions for all others; `take_along_axis` has positions for each. Each row's
transpose is the other row of its pair, so both rules hold to any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from dask.base import tokenize

from taskgraph.chunks import normalize, single, unify
from taskgraph.expr import Chunks, DType, Opaque, Shape, describe
from taskgraph.ops.arguments import array, axis_of
from taskgraph.ops.elementwise import cast
from taskgraph.ops.exchange import add_lines, add_rows, gather, replaced, scatter_add, take_rows
from taskgraph.ops.shape import broadcast_to, no_flops, rechunk, reshape
from taskgraph.primitives import is_dask, no_gradient, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Result = tuple[Shape, DType, Chunks]
#: Known, or computed with the graph.
Positions = np.ndarray | Tensor
INDEX = np.dtype(np.int64)


# -- positions ---------------------------------------------------------------------------------------------------------


def known_values(x: Tensor) -> np.ndarray | None:
    """What is known of a tensor before anything runs: its values where it is data, None where they are computed."""
    node = x.expr
    while node.op.name in ("argument", "leaf", "move", "rechunk", "stop_gradient"):
        node = node.inputs[0]
    if node.op.name not in ("arange", "constant", "full"):
        return None
    assert node.op.lower is not None
    params = {k: v for k, v in node.params.items() if k != "id"}
    return np.asarray(node.op.lower((0,) * node.ndim, node.shape, **params))


def _lower_bounded(xp: Any, index: Any, size: int, what: str) -> Any:
    if 0 not in index.shape:
        for extreme in (xp.min(index), xp.max(index)):
            if not -size <= int(extreme) < size:
                raise IndexError(f"{what}: index {int(extreme)} is out of bounds for size {size}")
    return xp.where(index < 0, index + size, index)


#: Computed positions on an axis of that size, negative ones counted from the start; IndexError at run where one is out
#: of bounds.
BOUNDED = primitive(
    "bounded",
    kind="elementwise",
    infer=lambda index, size, what: (index.shape, index.dtype, index.chunks),
    lower=_lower_bounded,
    vjp=no_gradient,
    jvp=no_gradient,
)


def positions(name: str, index: Any, x: Tensor, axis: int) -> Positions:
    """Positions on an axis of `x`, checked, none of them negative.

    Raises TypeError for what is not of integers, IndexError for a known one out of bounds.
    """
    if isinstance(index, list | tuple) and not np.size(index):
        index = np.asarray(index, INDEX)  # a list of nothing has no type of its own
    t, size = array(name, index), x.shape[axis]
    if t.dtype.kind not in "iu":
        raise TypeError(f"{name}: positions are integers, not {t.dtype}: {describe(x.expr)}")
    known = known_values(t)
    if known is None:
        return apply(BOUNDED, cast(t, INDEX), size=size, what=f"{name}: axis {axis} of {describe(x.expr)}")
    for bad in known[(known < -size) | (known >= size)].flat:
        raise IndexError(f"{name}: index {bad} is out of bounds for axis {axis} of size {size}: {describe(x.expr)}")
    known = known.astype(INDEX)
    return np.where(known < 0, known + size, known)


# -- the same positions for all ----------------------------------------------------------------------------------------


def _at(x: Any, axis: int, size: int, cut: tuple[int, ...]) -> Result:
    shape = replaced(x.shape, axis, size)
    return shape, x.dtype, single(shape) if 0 in shape else replaced(x.chunks, axis, cut)


def _infer_rows(x: Any, *at: Any, axis: int, cut: tuple[int, ...], known: Opaque | None) -> Result:
    return _at(x, axis, sum(cut), cut)


def _lower_take(xp: Any, x: Any, *at: Any, axis: int, cut: tuple[int, ...], known: Opaque | None) -> Any:
    index = at[0] if known is None else known.value
    if not is_dask(xp):
        return take_rows(x, index, axis)
    shape, dtype, chunks = _at(x, axis, sum(cut), cut)
    if 0 in shape:
        return xp.zeros(shape, dtype=dtype, chunks=chunks)
    return gather(x, index if known else index.rechunk((cut,)), axis, chunks)


def _lower_scatter_add(xp: Any, x: Any, *at: Any, axis: int, cut: tuple[int, ...], known: Opaque | None) -> Any:
    index = at[0] if known is None else known.value
    if not is_dask(xp):
        return add_rows(axis, (0, sum(cut)), index, x)
    shape, dtype, chunks = _at(x, axis, sum(cut), cut)
    if 0 in shape or 0 in x.shape:
        return xp.zeros(shape, dtype=dtype, chunks=chunks)
    return scatter_add(x, index if known else index.rechunk((x.chunks[axis],)), axis, chunks)


TAKE = primitive(
    "take",
    kind="array",
    infer=_infer_rows,
    lower=_lower_take,
    vjp=lambda ct, out, x, *at, axis, cut, known: (_add_up(ct, at, axis, x.chunks[axis], known), *[None] * len(at)),
    jvp=lambda ts, out, x, *at, axis, cut, known: apply(TAKE, ts[0], *at, axis=axis, cut=cut, known=known),
    flops=no_flops,
)

#: The transpose of take: zeros to which the elements of the input are added at the positions, in their order.
SCATTER_ADD = primitive(
    "scatter_add",
    kind="array",
    infer=_infer_rows,
    lower=_lower_scatter_add,
    vjp=lambda ct, out, x, *at, axis, cut, known: (
        apply(TAKE, ct, *at, axis=axis, cut=x.chunks[axis], known=known),
        *[None] * len(at),
    ),
    jvp=lambda ts, out, x, *at, axis, cut, known: _add_up(ts[0], at, axis, cut, known),
    flops=lambda node: node.inputs[0].size,
)


def _add_up(u: Tensor, at: Sequence[Tensor], axis: int, cut: tuple[int, ...], known: Opaque | None) -> Tensor:
    index = [rechunk(t, (u.chunks[axis],)) for t in at]
    return apply(SCATTER_ADD, u, *index, axis=axis, cut=cut, known=known)


def _cut(x: Tensor, axis: int, size: int) -> tuple[int, ...]:
    """Blocks along an axis of what is taken: no larger than those that the user chose, or Dask's where it is one."""
    shape = replaced(x.shape, axis, size)
    if 0 in shape:
        return (size,)
    wanted = "auto" if len(x.chunks[axis]) == 1 else max(x.chunks[axis])
    return normalize(replaced(x.chunks, axis, wanted), shape, x.dtype)[axis]


def take_flat(x: Tensor, at: Positions, axis: int, cut: tuple[int, ...] | None = None) -> Tensor:
    """`take` for positions of one dimension that were checked."""
    if isinstance(at, Tensor):
        return apply(TAKE, x, at, axis=axis, cut=at.chunks[0], known=None)
    cut = cut or _cut(x, axis, at.size)
    return apply(TAKE, x, axis=axis, cut=cut, known=Opaque(at, tokenize(at)))


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Tensor:
    """The elements of `x` at positions along an axis, as `numpy.take`.

    indices: integers of any shape, known now (a sequence, an array, a tensor of data) or computed, negative ones
    counted from the end; their shape stands in the place of the axis. axis: of the flattened array where None. The
    gradient adds up where a position stands twice, in the order of the positions, however the arrays are cut.

    Raises TypeError for indices that are no integers, IndexError for one out of bounds: at once where they are known,
    at run where they are computed.

    >>> import taskgraph as tg
    >>> x = tg.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> tg.take(x, [2, 0, -1], axis=1).compute()
    array([[3., 1., 3.],
           [6., 4., 6.]])
    """
    x = array("take", x)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    along = axis_of("take", axis, x.ndim)
    at = positions("take", indices, x, along)
    cut = (
        indices.chunks[0] if isinstance(indices, Tensor) and indices.ndim == 1 and len(indices.chunks[0]) > 1 else None
    )
    found = take_flat(x, reshape(at, (at.size,)) if isinstance(at, Tensor) else at.ravel(), along, cut)
    return reshape(found, replaced(x.shape, along, *at.shape))


# -- positions for each ------------------------------------------------------------------------------------------------


def along_kernel(x: Any, index: Any, axis: int) -> Any:
    """A block of `take_along_axis`."""
    return np.take_along_axis(x, index, axis=axis)


def add_along_kernel(x: Any, index: Any, axis: int, size: int) -> Any:
    """A block of its transpose: every element is a line of its own to `add_lines`."""
    x, index = np.moveaxis(x, axis, -1), np.moveaxis(index, axis, -1)
    lines = np.arange(math.prod(x.shape[:-1]), dtype=INDEX).reshape(*x.shape[:-1], 1)
    out = np.zeros((*x.shape[:-1], size), x.dtype)
    add_lines(out.reshape(-1), (lines * size + index).ravel(), x.ravel())
    return np.moveaxis(out, -1, axis)


def whole(x: Tensor, axis: int) -> Tensor:
    """`x` in one block along an axis."""
    return rechunk(x, replaced(x.chunks, axis, (x.shape[axis],)))


def by_blocks(kernel: Callable[..., Any], infer: Callable[..., Result]) -> Callable[..., Any]:
    """The lowering of a kernel of arrays that are one block along `axis` and cut alike along the others.

    Where an array has no elements, the result is of zeros.
    """

    def lower(xp: Any, *xs: Any, axis: int, **params: Any) -> Any:
        if not is_dask(xp):
            return kernel(*xs, axis=axis, **params)
        shape, dtype, chunks = infer(*xs, axis=axis, **params)
        if any(0 in x.shape for x in xs):
            return xp.zeros(shape, dtype=dtype, chunks=chunks)
        letters, adjust, meta = tuple(range(len(shape))), {axis: chunks[axis]}, np.empty((0,) * len(shape), dtype)
        # a pass may have cut one otherwise than it was when it became an operand
        pairs = [p for x in xs for p in (x.rechunk(replaced(chunks, axis, (x.shape[axis],))), letters)]
        return xp.blockwise(
            kernel, letters, *pairs, axis=axis, **params,
            adjust_chunks=adjust, align_arrays=False, dtype=dtype, meta=meta,
        )  # fmt: skip

    return lower


def infer_along(x: Any, *others: Any, axis: int, size: int) -> Result:
    """The shape rule of what `by_blocks` lowers."""
    lines = [(replaced(t.shape, axis, 1), replaced(t.chunks, axis, (1,))) for t in (x, *others)]
    shape = replaced(x.shape, axis, size)
    return shape, x.dtype, single(shape) if 0 in shape else replaced(unify(lines[0][0], lines), axis, (size,))


def _infer_take_along(x: Any, index: Any, axis: int) -> Result:
    return infer_along(x, index, axis=axis, size=index.shape[axis])


TAKE_ALONG = primitive(
    "take_along_axis",
    kind="array",
    infer=_infer_take_along,
    lower=by_blocks(along_kernel, _infer_take_along),
    vjp=lambda ct, out, x, index, axis: (_add_along(ct, index, axis, x.shape[axis]), None),
    jvp=lambda ts, out, x, index, axis: along_axis(ts[0], index, axis),
    flops=no_flops,
)

#: The transpose of take_along_axis: zeros to which the elements of the input are added at their positions.
ADD_ALONG = primitive(
    "scatter_add_along_axis",
    kind="array",
    infer=infer_along,
    lower=by_blocks(add_along_kernel, infer_along),
    vjp=lambda ct, out, x, index, axis, size: (along_axis(ct, index, axis), None),
    jvp=lambda ts, out, x, index, axis, size: _add_along(ts[0], index, axis, size),
    flops=lambda node: node.inputs[0].size,
)


def along_axis(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """`take_along_axis` for positions that were checked, in shapes that agree but for the axis."""
    return apply(TAKE_ALONG, whole(x, axis), whole(index, axis), axis=axis)


def _add_along(u: Tensor, index: Tensor, axis: int, size: int) -> Tensor:
    return apply(ADD_ALONG, whole(u, axis), whole(index, axis), axis=axis, size=size)


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Tensor:
    """The elements of `x` at positions along an axis that are given for each of its lines, as `numpy.take_along_axis`.

    indices: integers, known or computed (`tg.argsort`), in a shape that broadcasts with that of `x` but for the axis.
    Both become one block along the axis.

    Raises ValueError where the shapes do not fit, TypeError for indices that are no integers, IndexError for one out of
    bounds: at once where they are known, at run where they are computed.

    >>> import taskgraph as tg
    >>> x = tg.asarray([[3.0, 1.0, 2.0], [4.0, 6.0, 5.0]])
    >>> tg.take_along_axis(x, tg.argsort(x)).compute()
    array([[1., 2., 3.],
           [4., 5., 6.]])
    """
    x = array("take_along_axis", x)
    along = axis_of("take_along_axis", axis, x.ndim)
    at = as_tensor(positions("take_along_axis", indices, x, along))
    try:
        if at.ndim != x.ndim:
            raise ValueError
        lead = np.broadcast_shapes(*[replaced(t.shape, along, 1) for t in (x, at)])
    except ValueError:
        raise ValueError(
            f"take_along_axis: the shapes must agree but for axis {along}: {describe(x.expr)}, indices are {at.shape}"
        ) from None
    x, at = (broadcast_to(t, replaced(lead, along, t.shape[along])) for t in (x, at))
    return along_axis(x, at, along)


__all__ = ["take", "take_along_axis"]
