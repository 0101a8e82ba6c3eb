"""NumPy-like expressions that become Dask task graphs, with gradients, on clusters that mix CPUs and GPUs.

    import taskgraph as tg

    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = 3 * x**2 + 2 * x + 3
    y.backward(tg.ones((2, 2)))
    x.grad.compute()

The array functions are those of the array API standard (2024.12).
"""

import dask

__version__ = "0.1.0"
__array_api_version__ = "2024.12"

if dask.config.get("array.query-planning", False):
    raise ImportError(
        "dask-taskgraph cannot run on dask.array's query planning (array-expr): set the Dask option "
        "'array.query-planning' to False (DASK_ARRAY__QUERY_PLANNING=False) before importing taskgraph"
    )

from math import e, inf, nan, pi
from typing import Any

from numpy import (
    bool_ as bool,
)
from numpy import (
    complex64,
    complex128,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    newaxis,
    uint8,
    uint16,
    uint32,
    uint64,
)

from taskgraph import fft, linalg, optim, random, tree
from taskgraph.connection import LostScheduler
from taskgraph.device import device
from taskgraph.execute import plan, simulate
from taskgraph.io import load, save
from taskgraph.lineage import LostValues
from taskgraph.machine import Device, Machine
from taskgraph.ops import *  # noqa: F403
from taskgraph.plan import InfeasiblePlan, Plan
from taskgraph.prediction import Prediction
from taskgraph.random import randn
from taskgraph.resume import StateSaved, resumable
from taskgraph.session import Session, Variable, placeholder
from taskgraph.tensor import Tensor, compute, no_grad, persist

#: Names of the layers above, resolved when they are first used.
_LAZY = (
    "gradients", "grad", "value_and_grad", "vjp", "jvp", "jacobian", "hessian", "hvp", "checkpoint", "check_grads",
    "LocalCluster", "TilePlacement",
)  # fmt: skip

#: Functions of the standard whose results have a shape that depends on values, which no graph knows.
_OF_UNKNOWN_SHAPE = ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from taskgraph.upward import resolve

        return resolve(name)
    if name in _OF_UNKNOWN_SHAPE:
        raise AttributeError(
            f"module 'taskgraph' has no {name!r}: the shape of its result depends on values, which are not known "
            f"before a run; compute them first, for instance np.{name}(t.compute())"
        )
    raise AttributeError(f"module 'taskgraph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
