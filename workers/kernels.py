"""What a tile's task computes, on arrays of any namespace. No kernel changes its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import is_cupy_namespace, is_numpy_namespace


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
    The result is (..., m, n). Transposes are views, which BLAS takes as flags. For booleans the product is
    the logical one, as NumPy's (some k with both true).

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
    lefts = [_operand(xp, tile, transpose_a) for tile in a_tiles]
    rights = [_operand(xp, tile, transpose_b) for tile in b_tiles]
    dtype = xp.result_type(*lefts, *rights)
    if dtype == xp.bool:
        return _boolean_product(xp, lefts, rights)
    total = xp.matmul(lefts[0], rights[0])
    if total.dtype != dtype:
        total = xp.astype(total, dtype)
    products = zip(lefts[1:], rights[1:], strict=True)
    # The standard has no `out=`. Where there is one, a panel of any length needs one scratch buffer, not one
    # a step.
    if is_numpy_namespace(xp) or is_cupy_namespace(xp):
        return _accumulate_with_scratch(xp, total, products)
    for left, right in products:
        total += xp.matmul(left, right)
    return total


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
    level = [(part, False) for part in parts]
    while len(level) > 1:
        paired = [_add_pair(xp, *level[i], *level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) - len(level) % 2 :]
    return level[0][0]


def _operand(xp: Any, tile: Any, transpose: bool) -> Any:
    """A tile as the product takes it."""
    if tile.ndim < 2:
        raise ValueError(f"gemm_panel: a tile has at least two axes, not shape {tuple(tile.shape)}")
    return xp.matrix_transpose(tile) if transpose else tile


def _accumulate_with_scratch(xp: Any, total: Any, products: Any) -> Any:
    """Add products into `total`, which this panel owns, through one scratch buffer."""
    scratch = None
    for left, right in products:
        if scratch is None:
            scratch = xp.empty_like(total)
        xp.matmul(left, right, out=scratch)
        total += scratch
    return total


def _boolean_product(xp: Any, lefts: Sequence[Any], rights: Sequence[Any]) -> Any:
    """The logical product through float32, whose gemm is BLAS's: a sum of ones is 0 only of no ones."""
    as_numbers = [[xp.astype(tile, xp.float32) for tile in tiles] for tiles in (lefts, rights)]
    return gemm_panel(xp, *as_numbers) != 0


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
