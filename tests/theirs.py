"""HIPS autograd's NumPy under the array API's names: the reference for derivatives.

What it names otherwise, or has no (right) rule for, is said in terms of what it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval


def _products_of_first(x: Any, axis: int) -> Any:
    lines = [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]
    return anp.stack(list(itertools.accumulate(lines, lambda a, b: a * b)), axis=axis)


def _flip(x: Any, axis: int) -> Any:
    return x[(slice(None),) * (axis % x.ndim) + (slice(None, None, -1),)]


def _roll(x: Any, shift: Any, axis: Any) -> Any:
    for s, a in zip(*map(np.atleast_1d, (shift, axis)), strict=True) if isinstance(shift, tuple) else [(shift, axis)]:
        x = anp.roll(x, s, a)
    return x


def _where(condition: Any, *branches: Any) -> Any:
    zeros = np.zeros(np.broadcast_shapes(*[np.shape(getval(x)) for x in (condition, *branches)]))
    return anp.where(condition, *[x + zeros for x in branches])  # its own rule does not undo broadcasting


def _at(x: Any, index: np.ndarray, axis: int) -> Any:
    return x[tuple(index if a == axis else i for a, i in enumerate(np.ogrid[tuple(slice(n) for n in index.shape)]))]


def _sort(x: Any, axis: int, descending: bool) -> Any:
    order = np.argsort(getval(x) * (-1 if descending else 1), axis=axis)
    return _at(x, order, axis)


def diagonal(x: Any, k: int) -> Any:
    """The elements x[..., i, i + k]."""
    i = np.arange(min(x.shape[-2] + min(k, 0), x.shape[-1] - max(k, 0)))
    return x[..., i - min(k, 0), i + max(k, 0)]


class _Theirs:
    names: ClassVar[dict[str, Callable[..., Any]]] = {
        "acos": anp.arccos, "acosh": anp.arccosh, "asin": anp.arcsin, "asinh": anp.arcsinh, "atan": anp.arctan,
        "atanh": anp.arctanh, "atan2": anp.arctan2, "pow": anp.power, "round": anp.rint, "positive": lambda x: x,
        "concat": lambda xs, axis: anp.concatenate(xs, axis=axis), "flip": _flip, "roll": _roll, "where": _where,
        "permute_dims": lambda x, axes: anp.transpose(x, axes), "matrix_transpose": lambda x: anp.swapaxes(x, -1, -2),
        "broadcast_to": lambda x, shape: x + np.zeros(shape),
        "logsumexp": lambda x, **how: anp.log(anp.sum(anp.exp(x), **how)),
        "cumulative_sum": lambda x, axis: anp.cumsum(x, axis=axis), "cumulative_prod": _products_of_first,
        "diff": lambda x, axis, n: anp.diff(x, n=n, axis=axis),
        "var": lambda x, correction, **how: anp.var(x, ddof=correction, **how),
        "std": lambda x, correction, **how: anp.std(x, ddof=correction, **how),
        "take": lambda x, index, axis: x[(slice(None),) * axis + (index,)], "take_along_axis": _at, "sort": _sort,
        "vecdot": lambda a, b: anp.sum(a * b, axis=-1), "stop_gradient": getval,
    }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return self.names[name] if name in self.names else getattr(anp, name)


THEIRS = _Theirs()
