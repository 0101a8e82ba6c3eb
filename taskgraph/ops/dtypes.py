"""The standard's functions on data types: NumPy's own, which also take tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import broadcast_shapes, finfo, iinfo, isdtype

from taskgraph.expr import DType
from taskgraph.tensor import Tensor


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether values of a type, or of a tensor's, can be cast to another by the promotion rules."""
    return bool(np.can_cast(from_.dtype if isinstance(from_, Tensor) else from_, to))


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The type to which tensors, types and numbers promote together."""
    return np.result_type(*[x.dtype if isinstance(x, Tensor) else x for x in arrays_and_dtypes])


__all__ = ["broadcast_shapes", "can_cast", "finfo", "iinfo", "isdtype", "result_type"]
