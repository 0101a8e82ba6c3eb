"""The adapter to scipy.optimize: somebody else's optimizer with our values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from taskgraph import tree
from taskgraph.session import Session, placeholder
from taskgraph.tensor import Tensor, as_tensor
from taskgraph.upward import resolve


def minimize_scipy(f: Callable[[Any], Tensor], params: Any, method: str = "L-BFGS-B", **kwargs: Any) -> Any:
    """Minimize `f(params)` with `scipy.optimize.minimize`, which gets the value and its gradient from one run.

    f: gives one real number as a tensor; it is called once, to describe the graph, which then runs for every point that
    SciPy tries. params: where to start, a tree of floating point tensors or arrays. method, kwargs (`tol`, `options`,
    `bounds` for the flattened parameters, ...): SciPy's own; methods that need second derivatives are not for this. The
    parameters are a vector of the client's and travel with every run; what else `f` uses stays on the workers where it
    was persisted.

    Gives SciPy's result (`fun`, `success`, `nit`, ...), with `x`, and `jac` where there is one, as trees like `params`
    (tensors, arrays).

    Raises ImportError where SciPy is not installed, TypeError for parameters that are not real floating point numbers,
    ValueError where `f` gives more than one number.

    >>> import taskgraph as tg
    >>> found = minimize_scipy(lambda p: tg.sum((p["x"] - 3.0) ** 2), {"x": tg.zeros(2)})
    >>> found.success, found.x["x"].compute().round(6).tolist()
    (True, [3.0, 3.0])
    """
    try:
        from scipy.optimize import minimize
    except ImportError as e:
        raise ImportError("minimize_scipy needs SciPy: pip install 'dask-taskgraph[scipy]'") from e
    start = tree.map(as_tensor, params)
    for path, t in tree.with_paths(start):
        if t.dtype.kind != "f":
            raise TypeError(f"minimize_scipy: params at {path or 'the top'} are {t.dtype}, not real floating")
    inputs = tree.map(lambda t: placeholder(t.dtype, t.shape, chunks=t.chunks), start)
    places = tree.leaves(inputs)
    value = as_tensor(f(inputs))
    if value.size != 1:
        raise ValueError(f"minimize_scipy: f must give one number, it gives {value.shape}")
    fetches = [value, *resolve("gradients")(value, places)]
    session = Session()

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, *gradients = session.run(fetches, dict(zip(places, _split(x, places), strict=True)))
        return np.asarray(loss).item(), _joined(gradients)

    first = _joined(tree.leaves(tree.compute(start)))
    result = minimize(value_and_gradient, first, method=method, jac=True, **kwargs)
    result.x = tree.unflatten(start, [as_tensor(part) for part in _split(result.x, places)])
    if "jac" in result:
        result.jac = tree.unflatten(start, _split(result.jac, places))
    return result


def _joined(parts: list[Any]) -> np.ndarray:
    """Arrays as one vector of float64, which is what SciPy works in."""
    return np.concatenate([np.ravel(p).astype(np.float64) for p in parts]) if parts else np.empty(0)


def _split(x: np.ndarray, like: list[Tensor]) -> list[np.ndarray]:
    """The vector as arrays of the shapes and types of some tensors."""
    ends = np.cumsum([t.size for t in like])
    parts = zip(np.split(x, ends[:-1]), like, strict=True)
    return [part.reshape(t.shape).astype(t.dtype) for part, t in parts]
