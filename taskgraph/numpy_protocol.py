"""NumPy's protocols: `np.sin(t)` and `np.concatenate([t, u])` become expressions of ours."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

#: NumPy's names of functions that the array API calls otherwise.
ALIASES = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "invert": "bitwise_invert", "left_shift": "bitwise_left_shift",
    "right_shift": "bitwise_right_shift", "power": "pow", "true_divide": "divide", "conjugate": "conj",
    "amax": "max", "amin": "min", "concatenate": "concat", "transpose": "permute_dims",
}  # fmt: skip


def _ours(name: str, home: Any = np) -> Any:
    from taskgraph import ops

    found = getattr(ops.fourier if home is np.fft else ops, ALIASES.get(name, name), None)
    return found if callable(found) else None  # `ops.shape` and others are modules


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_ufunc__`: plain calls of ufuncs that we have."""
    from taskgraph.ops.elementwise import rint

    found = (
        rint if ufunc is np.rint else _ours(ufunc.__name__)
    )  # NumPy's gives floats, the standard's round keeps integers
    if method != "__call__" or kwargs or found is None:
        return NotImplemented
    return found(*inputs)


def call_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Tensor.__array_function__`: functions that we have, with positional axes as NumPy allows."""
    name: str = func.__name__
    if func in (np.shape, np.ndim, np.size) and len(args) == 1:
        return getattr(args[0], name)
    home = np.fft if func.__module__ == "numpy.fft" else np
    found = _ours(name, home)
    if found is None or getattr(home, name, None) is not func:
        return NotImplemented
    positional, more = _arguments(func, found, args, kwargs)
    if "ddof" in more:
        more["correction"] = more.pop("ddof")
    if name == "transpose":
        positional, axes = positional[:1], [*positional[1:], more.get("axes")][0]
        return found(*positional, tuple(reversed(range(positional[0].ndim))) if axes is None else axes)
    return found(*positional, **more)


def _arguments(func: Any, ours: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call of NumPy's as one of ours: what NumPy takes by position, the array API often takes by name."""
    parameters = inspect.signature(ours).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return list(args), dict(kwargs)
    names = list(inspect.signature(func).parameters)
    given = dict(zip(names, args, strict=False)) | kwargs
    first = names[: sum(p.kind is not p.KEYWORD_ONLY for p in parameters)]
    return [given.pop(n) for n in first if n in given], given
