"""What users pass, made regular: types, integers, axes and operands. Every error names the operation."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from taskgraph.expr import DType
from taskgraph.tensor import Tensor, as_tensor

Axes = tuple[int, ...]


def numeric(dtype: Any, name: str) -> DType:
    """`dtype` as a NumPy dtype in this machine's byte order; TypeError unless it is one of numbers or booleans."""
    found = np.dtype(dtype)
    if found.kind not in "biufc":
        raise TypeError(f"{name}: only numeric and boolean dtypes are supported, not {found}")
    return found.newbyteorder("=")


def integers(what: str, values: Any) -> tuple[int, ...]:
    """An integer or a sequence of them as a tuple; TypeError for anything else. what: "sum: axis"."""
    try:
        return tuple([operator.index(v) for v in (values if np.iterable(values) else (values,))])
    except TypeError:
        raise TypeError(f"{what} must be an integer or a sequence of integers, not {values!r}") from None


def axis_of(name: str, axis: Any, ndim: int) -> int:
    """An axis as a number that is not negative; ValueError for one that is not there."""
    try:
        found = operator.index(axis)
    except TypeError:
        raise TypeError(f"{name}: axis must be an integer, not {axis!r}") from None
    if not -ndim <= found < ndim:
        raise ValueError(f"{name}: axis {found} is out of bounds for an array of {ndim} dimensions")
    return found % ndim


def axes_of(name: str, axis: Any, ndim: int) -> Axes:
    """The axes (all where None) as sorted numbers that are not negative; ValueError for one that stands twice."""
    axes = tuple(range(ndim)) if axis is None else integers(f"{name}: axis", axis)
    found = tuple(sorted(axis_of(name, a, ndim) for a in axes))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: an axis stands twice in {axes}")
    return found


def array(name: str, x: Any) -> Tensor:
    """The tensor `x` is, or one made of it. NumPy's scalars and 0-d arrays become numbers inside the expression, with
    the type they have; what `asarray` takes becomes data."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.generic) or (type(x) is np.ndarray and x.ndim == 0):
        from taskgraph.ops.create import scalar

        return scalar(x.item(), numeric(x.dtype, name))
    try:
        return as_tensor(x)
    except (TypeError, ValueError) as e:
        kind = TypeError if isinstance(e, TypeError) else ValueError
        raise kind(f"{name}: {str(e).removeprefix('asarray: ')}") from None
