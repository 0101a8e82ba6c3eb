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

    return getattr(ops, ALIASES.get(name, name), None)


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_ufunc__`: plain calls of ufuncs that we have."""
    found = _ours(ufunc.__name__)
    if method != "__call__" or kwargs or found is None:
        return NotImplemented
    return found(*inputs)


def call_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_function__`: functions of the top namespace that we have, with positional axes as NumPy allows."""
    found = _ours(func.__name__)
    if found is None or getattr(np, func.__name__, None) is not func:
        return NotImplemented
    if func.__name__ == "transpose":
        x, *rest = args
        axes = rest[0] if rest else kwargs.get("axes")
        return found(x, tuple(reversed(range(x.ndim))) if axes is None else axes)
    if "ddof" in kwargs:
        kwargs = {**{k: v for k, v in kwargs.items() if k != "ddof"}, "correction": kwargs["ddof"]}
    if func.__name__ in _AXIS_SECOND and len(args) == 2:
        args, kwargs = args[:1], {**kwargs, "axis": args[1]}
    if func.__name__ == "tensordot" and len(args) == 3:
        args, kwargs = args[:2], {**kwargs, "axes": args[2]}
    return found(*args, **kwargs)


_AXIS_SECOND = {
    "sum", "prod", "max", "min", "amax", "amin", "mean", "std", "var", "any", "all", "argmax", "argmin", "concatenate",
    "stack", "expand_dims", "flip", "count_nonzero",
}  # fmt: skip
