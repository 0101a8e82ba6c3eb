"""NumPy's protocols: `np.sin(t)` and `np.concatenate([t, u])` become expressions of ours."""

from __future__ import annotations

from typing import Any

import numpy as np

#: NumPy's names of functions that the array API calls otherwise.
ALIASES = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "invert": "bitwise_invert", "left_shift": "bitwise_left_shift",
    "right_shift": "bitwise_right_shift", "power": "pow", "rint": "round", "true_divide": "divide", "conjugate": "conj",
    "amax": "max", "amin": "min", "concatenate": "concat", "transpose": "permute_dims",
}  # fmt: skip


def _ours(name: str) -> Any:
    from taskgraph import ops

    found = getattr(ops, ALIASES.get(name, name), None)
    return found if callable(found) else None  # `ops.shape` and others are modules


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_ufunc__`: plain calls of ufuncs that we have."""
    found = _ours(ufunc.__name__)
    if method != "__call__" or kwargs or found is None:
        return NotImplemented
    return found(*inputs)


def call_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_function__`: functions that we have, with positional axes as NumPy allows."""
    name: str = func.__name__
    if func in (np.shape, np.ndim, np.size) and len(args) == 1:
        return getattr(args[0], name)
    found = _ours(name)
    if found is None or getattr(np, name, None) is not func:
        return NotImplemented
    more = dict(kwargs)
    if "ddof" in more:
        more["correction"] = more.pop("ddof")
    first, *rest = args
    if name in ("roll", "tril", "triu") and len(rest) == (name == "roll") + 1:
        more["axis" if name == "roll" else "k"] = rest.pop()
    if name == "transpose":
        axes = rest[0] if rest else more.get("axes")
        return found(first, tuple(reversed(range(first.ndim))) if axes is None else axes)
    if name in _AXIS_SECOND and len(rest) == 1:
        more["axis"], rest = rest[0], []
    if name == "tensordot" and len(rest) == 2:
        more["axes"], rest = rest[1], rest[:1]
    return found(first, *rest, **more)


_AXIS_SECOND = {
    "sum", "prod", "max", "min", "amax", "amin", "mean", "std", "var", "any", "all", "argmax", "argmin", "concatenate",
    "stack", "expand_dims", "flip", "count_nonzero",
}  # fmt: skip
