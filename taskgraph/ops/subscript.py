"""`x[index]`: NumPy's indexing, basic and by arrays.

Design note. An index is brought to one item an axis: a slice, or positions (an array, a tensor, a number beside them).
The slices are taken first. Where every index array has axes of the result of its own (one array alone, `numpy.ix_`),
elements are taken along one axis after the other; otherwise the axes that they index are made one and elements are
taken from it once. Where the result's axes stand is NumPy's rule: in the place of the arrays where these are
neighbours, else in front.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import dask.array as da
import numpy as np

from taskgraph.expr import Shape, describe
from taskgraph.ops.gather import INDEX, Positions, known_values, positions, take_flat
from taskgraph.ops.indexing import basic_item, take_basic
from taskgraph.ops.shape import permute_dims, reshape
from taskgraph.tensor import Tensor, as_tensor

Item = Any  # of an index: a slice, None, Ellipsis, a number, an array or a tensor


def getitem(x: Any, index: Any) -> Tensor:
    """`x[index]` for numbers, slices, None, one Ellipsis, arrays of integers and known masks, as in NumPy.

    Integers may be known or computed; a mask must be known (a NumPy array or a tensor of data), since how many elements
    a computed one selects no graph can tell. Raises IndexError for positions out of bounds (at run where they are
    computed), too many indices, masks and arrays that do not fit; TypeError for what is no index.
    """
    x = as_tensor(x)
    items = [_item(i, x) for i in (index if isinstance(index, tuple) else (index,))]
    items = _filled_up(items, x)
    if not any(_is_array(i) for i in items):
        basic = [i for i in items if i is not None and i is not Ellipsis]
        taken = take_basic(x, tuple(basic_item(i, x, axis) for axis, i in enumerate(basic)))
        return reshape(taken, _dims(items, iter(taken.shape)))
    return _by_arrays(x, _without_masks(items, x))


# -- items -------------------------------------------------------------------------------------------------------------


def _item(item: Item, x: Tensor) -> Item:
    """An item of an index, lists and masks as arrays of NumPy's; TypeError for what is none."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return int(item)
    given = type(item).__name__
    if isinstance(item, list | tuple | range):
        if any(isinstance(i, Tensor) for i in item):
            raise TypeError("a list of tensors is no index; tg.stack makes one tensor of them")
        item = np.asarray(item, None if len(item) else INDEX)
    if isinstance(item, np.ndarray | da.Array | Tensor):
        if item.dtype.kind in "iu" or (item.dtype == bool and item.ndim):
            return _array(as_tensor(item), x)
        given = f"{given} of {item.ndim} dimensions and type {item.dtype}"
    raise TypeError(
        f"a tensor takes integers, slices, None, Ellipsis, arrays of integers and known masks as indices, not {given}; "
        "tg.where selects by a condition"
    )


def _array(t: Tensor, x: Tensor) -> int | np.ndarray | Tensor:
    """What is known of an array, a number where it has no dimensions; IndexError for a mask of which nothing is."""
    known = known_values(t)
    if known is None and t.dtype == bool:
        raise IndexError(
            f"how many elements of {describe(x.expr)} a computed mask selects is not known before it runs; "
            "tg.where(mask, x, 0) keeps the shape, x[mask.compute()] computes the mask first"
        )
    if known is None:
        return t
    return known if known.ndim else int(known)


def _is_array(item: Item) -> bool:
    return isinstance(item, np.ndarray | Tensor)


def _axes(item: Item) -> int:
    """How many axes an item indexes."""
    if item is None or item is Ellipsis:
        return 0
    return int(item.ndim) if isinstance(item, np.ndarray) and item.dtype == bool else 1


def _filled_up(items: list[Item], x: Tensor) -> list[Item]:
    """The items with slices for the axes that they leave out, behind the Ellipsis, which stays: it parts arrays."""
    if sum(1 for i in items if i is Ellipsis) > 1:
        raise IndexError("an index can have only one Ellipsis")
    used = sum(_axes(i) for i in items)
    if used > x.ndim:
        raise IndexError(f"too many indices, {used}: {describe(x.expr)}")
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    return [*items[: at + 1], *[slice(None)] * (x.ndim - used), *items[at + 1 :]]


def _without_masks(items: list[Item], x: Tensor) -> list[Item]:
    """Every mask as the positions where it is true, one array for each of its axes."""
    found: list[Item] = []
    axis = 0
    for item in items:
        if isinstance(item, np.ndarray) and item.dtype == bool:
            fits = x.shape[axis : axis + item.ndim]
            if item.shape != fits:
                raise IndexError(f"a mask of shape {item.shape} for axes of shape {fits}: {describe(x.expr)}")
            found += item.nonzero()
        else:
            found.append(item)
        axis += _axes(item)
    return found


def _dims(items: Sequence[Item], sizes: Iterator[int]) -> Shape:
    """The lengths of what slices leave, 1 for None."""
    return tuple(1 if i is None else next(sizes) for i in items if i is None or isinstance(i, slice))


# -- arrays ------------------------------------------------------------------------------------------------------------


def _by_arrays(x: Tensor, items: list[Item]) -> Tensor:
    """The elements, for an index with at least one array and no mask; numbers are arrays beside it."""
    of_axes = [i for i in items if i is not None and i is not Ellipsis]
    inner = take_basic(x, tuple(_sliced(item, x, axis) for axis, item in enumerate(of_axes)))
    at: dict[int, Positions] = {
        axis: positions("getitem", item, x, axis) if _is_array(item) else np.zeros((), INDEX)
        for axis, item in enumerate(of_axes)
        if not isinstance(item, slice)
    }
    try:
        shape = np.broadcast_shapes(*[a.shape for a in at.values()])
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in at.values())
        raise IndexError(f"index arrays of shapes {shapes} do not broadcast: {describe(x.expr)}") from None
    places = [k for k, i in enumerate(items) if _is_array(i) or isinstance(i, int)]
    lead = items[: places[0]] if places[-1] - places[0] == len(places) - 1 else []
    sliced = [a for a in range(x.ndim) if a not in at]
    first = sum(1 for i in lead if isinstance(i, slice))
    order = (*sliced[:first], *at, *sliced[first:])
    found = (_one_by_one if _are_apart(at, len(shape)) else _at_once)(inner, at, order, first, shape)
    sizes = iter([inner.shape[a] for a in sliced])
    return reshape(found, (*_dims(lead, sizes), *shape, *_dims(items[len(lead) :], sizes)))


def _sliced(item: Item, x: Tensor, axis: int) -> slice:
    """What is taken of an axis before positions are."""
    if _is_array(item):
        return slice(None)
    found = basic_item(item, x, axis)
    return found if isinstance(found, slice) else slice(found, found + 1, 1)


def _own_dims(a: Positions, ndim: int) -> list[int]:
    """The axes of the broadcast index along which an array varies."""
    return [ndim - a.ndim + d for d, s in enumerate(a.shape) if s != 1]


def _are_apart(at: dict[int, Positions], ndim: int) -> bool:
    """Whether no two arrays vary along one axis of the result: then each is taken by itself."""
    dims = [d for a in at.values() for d in _own_dims(a, ndim)]
    return len(set(dims)) == len(dims)


def _flat(a: Positions) -> Positions:
    return reshape(a, (a.size,)) if isinstance(a, Tensor) else a.ravel()


def _one_by_one(x: Tensor, at: dict[int, Positions], order: Sequence[int], first: int, shape: Shape) -> Tensor:
    """Along one axis after the other, beginning where most is left out; then the axes as they follow in the index."""
    for axis, a in sorted(at.items(), key=lambda pair: pair[1].size / max(1, x.shape[pair[0]])):
        if not (x.shape[axis] == a.size == 1):
            x = take_flat(x, _flat(a), axis)
    x = permute_dims(x, order)
    dims = [d for a in at.values() for d in _own_dims(a, len(shape))]
    x = reshape(x, (*x.shape[:first], *[shape[d] for d in dims], *x.shape[first + len(at) :]))
    moved = [first + int(i) for i in np.argsort(dims)]
    return permute_dims(x, (*range(first), *moved, *range(first + len(dims), x.ndim)))


def _at_once(x: Tensor, at: dict[int, Positions], order: Sequence[int], first: int, shape: Shape) -> Tensor:
    """From the indexed axes as one."""
    sizes = [x.shape[axis] for axis in at]
    x = permute_dims(x, order)
    x = reshape(x, (*x.shape[:first], math.prod(sizes), *x.shape[first + len(at) :]))
    places: Any = 0
    for a, size in zip(at.values(), sizes, strict=True):
        places = places * size + a
    assert places.shape == shape
    return take_flat(x, _flat(places), first)
