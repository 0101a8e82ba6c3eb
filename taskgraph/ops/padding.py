"""Padding: arrays with a border of constants or of their own elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskgraph.expr import describe
from taskgraph.ops.arguments import array, axis_of
from taskgraph.ops.create import FULL
from taskgraph.ops.exchange import replaced
from taskgraph.ops.gather import INDEX, take_flat
from taskgraph.ops.shape import concat
from taskgraph.tensor import Tensor, apply

MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def pad(x: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Tensor:
    """`x` with a border along its axes, as `numpy.pad`; its own blocks stay as they are cut.

    pad_width: elements before and behind, ((before, behind), ...) for each axis, or one pair or number for all, or a
    dict of some axes. mode: "constant" (constant_values, given like pad_width), "edge", "reflect", "symmetric" or
    "wrap". Raises ValueError for another mode, widths that are negative or do not fit the axes, and for an axis of no
    elements where the mode needs some; TypeError for widths that are no integers.

    >>> import taskgraph as tg
    >>> tg.pad(tg.asarray([1, 2, 3]), (1, 2), "reflect").compute()
    array([2, 1, 2, 3, 2, 1])
    """
    x = array("pad", x)
    if mode not in MODES:
        raise ValueError(f"pad: mode is one of {', '.join(map(repr, MODES))}, not {mode!r}")
    widths = _widths(pad_width, x)
    values = _pairs("constant_values", constant_values, x) if mode == "constant" else widths
    for axis, (width, value) in enumerate(zip(widths.tolist(), values, strict=True)):
        if mode == "constant":
            borders = [_constants(x, axis, n, v) for n, v in zip(width, value, strict=True)]
        else:
            borders = _repeated(x, axis, width, mode)
        parts = [part for part, n in ((borders[0], width[0]), (x, 1), (borders[1], width[1])) if n]
        x = concat(parts, axis=axis)
    return x


def _widths(pad_width: Any, x: Tensor) -> np.ndarray:
    if isinstance(pad_width, Mapping):
        given, pad_width = pad_width, np.zeros((x.ndim, 2), INDEX)
        for axis, width in given.items():
            pad_width[axis_of("pad: pad_width", axis, x.ndim)] = width
    widths = _pairs("pad_width", pad_width, x)
    if widths.dtype.kind not in "iu":
        raise TypeError(f"pad: pad_width must be of integers, not {pad_width!r}")
    if (widths < 0).any():
        raise ValueError(f"pad: pad_width must not be negative: {pad_width!r}")
    return widths


def _pairs(name: str, given: Any, x: Tensor) -> np.ndarray:
    """Two values for every axis."""
    try:
        return np.broadcast_to(np.asarray(given), (x.ndim, 2))
    except ValueError:
        raise ValueError(
            f"pad: {name} {given!r} does not fit {x.ndim} axes, before and behind each: {describe(x.expr)}"
        ) from None


def _constants(x: Tensor, axis: int, size: int, value: Any) -> Tensor:
    shape, chunks = replaced(x.shape, axis, size), replaced(x.chunks, axis, (size,))
    number = np.asarray(value).astype(x.dtype).item()
    return apply(FULL, shape=shape, dtype=x.dtype, chunks=chunks, fill_value=number)


def _repeated(x: Tensor, axis: int, width: tuple[int, int], mode: str) -> list[Tensor]:
    """The borders along an axis: NumPy says of which elements they are made."""
    size = x.shape[axis]
    if not size and any(width):
        raise ValueError(f"pad: axis {axis} has no elements to repeat: {describe(x.expr)}; use mode 'constant'")
    at = np.pad(np.arange(size, dtype=INDEX), width, mode) if size else np.zeros(0, INDEX)  # type: ignore[call-overload]
    return [take_flat(x, part, axis, (part.size,)) for part in (at[: width[0]], at[width[0] + size :])]


__all__ = ["pad"]
