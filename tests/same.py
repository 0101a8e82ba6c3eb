"""When a result is what NumPy gives."""

from __future__ import annotations

from typing import Any

import numpy as np

import taskgraph as tg


def same(found: Any, expected: Any) -> None:
    """Equal in value, shape and dtype."""
    values = found.compute() if isinstance(found, tg.Tensor) else found
    expected = np.asarray(expected)
    assert (np.shape(values), np.asarray(values).dtype) == (expected.shape, expected.dtype)
    if isinstance(found, tg.Tensor):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
