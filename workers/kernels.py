"""What a tile's task computes, on arrays of any namespace. No kernel changes its inputs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_api_compat import is_cupy_namespace, is_numpy_namespace

from workers import backend
from workers.buffers import buffers
from workers.operand import Deferred, Joined, Operand, in_turn, numpy_dtype, streams
from workers.rates import note, rest

#: Of the buffer through which products on the host are added up (chosen: a share of the smallest worker's memory that
#: nobody misses; measured on strips of 4096 x 8192 x 4096 in float32, 64 MB to 8 MB take the same time).
SCRATCH_BYTES = 32 * 2**20

__all__ = ["Deferred", "Joined", "Operand", "add_onto", "epilogue", "gemm_panel", "streams", "tree_add", "turned"]


@streams
def gemm_panel(
    xp: Any,
    a_tiles: Sequence[Any],
    b_tiles: Sequence[Any],
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Any:
    """The sum over k of `op(a_k) @ op(b_k)`, in the order of the tiles, in a buffer of its own.

    xp: the array namespace of the tiles; a_tiles: (..., m, k_i) each, or (..., k_i, m) with `transpose_a`;
    b_tiles: (..., k_i, n) each, or (..., n, k_i) with `transpose_b`. Leading axes broadcast as matmul's do.
    Tiles that are Operands go to the device in turn, the next pair while one is multiplied. The result is (..., m, n),
    NumPy's where the operands ask for pieces. Transposes are views, which BLAS takes as flags. For booleans the product
    is the logical one, as NumPy's (some k with both true).

    Raises ValueError for no tiles, unequal numbers of tiles, a tile of fewer than two axes, or unequal
    shapes.

    >>> import numpy as np
    >>> a, b = np.ones((2, 3)), np.ones((3, 2))
    >>> gemm_panel(np, [a, a], [b, b])
    array([[6., 6.],
           [6., 6.]])
    """
    if not a_tiles or len(a_tiles) != len(b_tiles):
        raise ValueError(f"gemm_panel: {len(a_tiles)} left and {len(b_tiles)} right tiles: not pairs")
    for tile in (*a_tiles, *b_tiles):
        if tile.ndim < 2:
            raise ValueError(f"gemm_panel: a tile has at least two axes, not shape {tuple(tile.shape)}")
    if isinstance(a_tiles[0], Operand | Joined) and a_tiles[0].pieces > 1:
        return _in_pieces(xp, a_tiles, b_tiles, transpose_a, transpose_b)
    dtype = xp.result_type(*_dtypes((*a_tiles, *b_tiles)))
    # For booleans through float32, whose gemm is BLAS's: a sum of ones is 0 only of no ones.
    as_dtype = xp.float32 if dtype == xp.bool else None

    def factors(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return _factor(xp, pair[0], transpose_a, as_dtype), _factor(xp, pair[1], transpose_b, as_dtype)

    # `map` keeps no pair, which a generator's variables would: two pairs fit where three might not.
    pairs, start = map(factors, in_turn(a_tiles, b_tiles)), time.thread_time()
    total = _sum_of_products(xp, pairs, as_dtype or dtype)
    if as_dtype:
        return total != 0
    k = sum(tile.shape[-2 if transpose_a else -1] for tile in a_tiles)
    if not any(isinstance(tile, Deferred | Joined) for tile in (*a_tiles, *b_tiles)):  # that is no rate of products
        note(total.shape, k, numpy_dtype(total).name, time.thread_time() - start)
    return total


def add_onto(xp: Any, new: Any, before: Any) -> Any:
    """The sum of both, in the buffer of the new one, which is the caller's; of booleans the logical or.

    before: an array, or an Operand, which comes to where the new one is.

    >>> import numpy as np
    >>> add_onto(np, np.asarray([1.0]), np.asarray([2.0]))
    array([3.])
    """
    before = before.beside(new) if isinstance(before, Operand) else before
    if new.dtype == xp.bool:
        return xp.logical_or(new, before)
    new += before
    return new


def epilogue(xp: Any, program: Callable[..., Any], before: Sequence[Any], tile: Any, behind: Sequence[Any]) -> Any:
    """`program(xp, *before, tile, *behind)`, with the Operands among the arguments brought to where the tile is.

    A tile that had to be put together in host memory gets its epilogue there.

    >>> import numpy as np
    >>> epilogue(np, lambda xp, x, y: xp.tanh(x + y), [], np.asarray([0.0]), [0.0])
    array([0.])
    """
    rest(backend.current())
    before, behind = ([x.beside(tile) if isinstance(x, Operand) else x for x in some] for some in (before, behind))
    if not isinstance(tile, np.ndarray):
        return program(xp, *before, tile, *behind)
    with backend.within(backend.host()):
        return program(backend.host().xp, *before, tile, *behind)


def tree_add(xp: Any, parts: Sequence[Any]) -> Any:
    """The sum of equal-shaped arrays, added in pairs, then pairs of pairs: always in one order.

    parts: arrays of one shape, at least one. Of a single part it is that part itself. For booleans the sum is
    the logical or, as NumPy's. The rounding error grows with the logarithm of the number of parts, not with
    the number.

    Raises ValueError for no parts.

    >>> import numpy as np
    >>> tree_add(np, [np.asarray([1.0]), np.asarray([2.0]), np.asarray([4.0])])
    array([7.])
    """
    if not parts:
        raise ValueError("tree_add: no parts to add")
    return _sum_of(xp, parts)[0]


def _sum_of(xp: Any, parts: Sequence[Any]) -> tuple[Any, bool]:
    """The sum, and whether it is ours; one half after the other, so that of 2^d parts no more than d sums are held."""
    if len(parts) == 1:
        return parts[0], False
    half = 1 << (len(parts) - 1).bit_length() - 1  # pairs, and pairs of pairs: what is left over comes last
    return _add_pair(xp, *_sum_of(xp, parts[:half]), *_sum_of(xp, parts[half:]))


def turned(xp: Any, tile: Any) -> Any:
    """The transpose of a tile, laid out as other tiles are.

    >>> turned(np, np.asarray([[1, 2], [3, 4]]))
    array([[1, 3],
           [2, 4]])
    """
    view = xp.matrix_transpose(tile)
    return xp.ascontiguousarray(view) if is_numpy_namespace(xp) or is_cupy_namespace(xp) else view


def _dtypes(tiles: Sequence[Any]) -> set[Any]:
    """The dtypes of the tiles as their device has them: of one that it lacks, this is where it says so."""
    here = getattr(tiles[0], "here", None)
    if here is None:
        return {tile.dtype for tile in tiles}
    return {here.to_device(np.empty(0, dtype)).dtype for dtype in {tile.dtype for tile in tiles}}


def _factor(xp: Any, tile: Any, transpose: bool, as_dtype: Any) -> Any:
    tile = xp.matrix_transpose(tile) if transpose else tile
    return xp.astype(tile, as_dtype) if as_dtype else tile


def _sum_of_products(xp: Any, pairs: Iterator[tuple[Any, Any]], dtype: Any) -> Any:
    """The products added up in order, in a buffer of this sum's own."""
    left, right = next(pairs)
    total = _product(xp, left, right)
    if total.dtype != dtype:
        total = xp.astype(total, dtype)
    # The standard has no `out=`. Where there is one, a panel of any length needs one scratch buffer, not one
    # a step; on the host a small one, through which the product goes in strips of rows.
    has_out, scratch = is_numpy_namespace(xp) or is_cupy_namespace(xp), None
    height = total.shape[-2]
    strips = _cut(height, max(1, -(-total.nbytes // SCRATCH_BYTES)) if is_numpy_namespace(xp) else 1)
    tallest = max((s.stop - s.start for s in strips), default=0)
    del left, right  # before the next but one begins to come
    for left, right in pairs:
        if not has_out:
            total += xp.matmul(left, right)
        else:
            for rows in strips:
                part = total[..., rows, :]
                scratch = _strip(xp, total, tallest) if scratch is None else scratch
                fresh = scratch[..., : part.shape[-2], :]
                xp.matmul(left[..., rows, :], right, out=fresh)
                part += fresh
        del left, right
    return total


def _product(xp: Any, left: Any, right: Any) -> Any:
    if not is_numpy_namespace(xp):
        return xp.matmul(left, right)
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*lead, left.shape[-2], right.shape[-1])
    return np.matmul(left, right, out=buffers.empty(shape, np.result_type(left, right)))


def _strip(xp: Any, total: Any, height: int) -> Any:
    """Room for so many rows of an array."""
    shape = (*total.shape[:-2], height, total.shape[-1])
    return buffers.empty(shape, total.dtype) if is_numpy_namespace(xp) else xp.empty(shape, dtype=total.dtype)


def _in_pieces(xp: Any, lefts: Sequence[Any], rights: Sequence[Any], transpose_a: bool, transpose_b: bool) -> Any:
    """The product for a device that has no room for it: pieces of the result one after another, each from its own parts
    of the operands, put together in host memory."""
    here, cuts = lefts[0].here, lefts[0].pieces
    m, n = lefts[0].shape[-1 if transpose_a else -2], rights[0].shape[-2 if transpose_b else -1]
    lead = np.broadcast_shapes(*(tile.shape[:-2] for tile in (*lefts, *rights)))
    result = np.empty((*lead, m, n), np.result_type(*(tile.dtype for tile in (*lefts, *rights))))
    for rows in _cut(m, cuts):
        strip = [tile[(..., rows) if transpose_a else (..., rows, slice(None))].in_one() for tile in lefts]
        for columns in _cut(n, cuts):
            part = [tile[(..., columns, slice(None)) if transpose_b else (..., columns)].in_one() for tile in rights]
            piece = gemm_panel(xp, strip, part, transpose_a=transpose_a, transpose_b=transpose_b)
            result[..., rows, columns] = here.to_host(piece)
            del piece
    return result


def _cut(length: int, parts: int) -> list[slice]:
    """As many slices of about equal length, fewer where there are not so many items."""
    ends = [length * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends) if end > start]


def _add_pair(xp: Any, left: Any, left_is_ours: bool, right: Any, right_is_ours: bool) -> tuple[Any, bool]:
    """The sum of two arrays and that it is ours, written into one that is ours already where there is one."""
    if left.dtype == xp.bool and right.dtype == xp.bool:
        return xp.logical_or(left, right), True
    if left.dtype == right.dtype and left.shape == right.shape:
        # Addition commutes bit for bit, so either side may hold the sum.
        if left_is_ours:
            left += right
            return left, True
        if right_is_ours:
            right += left
            return right, True
    return left + right, True
