"""Made-up machines and arrays for tests of plans, and what plans and their graphs are asked in several of them."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np

import taskgraph as tg
from taskgraph.execute import assemble
from taskgraph.expr import Expr, substitute, topological
from taskgraph.lower import Lowered
from taskgraph.plan import TAG, Plan, ProductPlan
from taskgraph.plan import plan as plan_roots


def machine(
    cpus: Any = ((100.0, 4),), gpus: Any = (), memory: int = 2**35, gpu_memory: int = 2**34, **more: Any
) -> tg.Machine:
    """CPUs as (gflops, threads), GPUs as gflops."""
    return tg.Machine(
        devices=[
            *[tg.Device("cpu", memory, rate, threads=threads) for rate, threads in cpus],
            *[tg.Device("gpu", gpu_memory, rate) for rate in gpus],
        ],
        **more,
    )


def data(*shape: int, chunks: Any = -1, dtype: str = "float32") -> tg.Tensor:
    """An array that lies somewhere, in its blocks."""
    return tg.placeholder(dtype, shape, chunks=chunks)


def plan(what: Any, m: tg.Machine) -> Plan:
    """The pass by itself, on tensors or expressions."""
    items = what if isinstance(what, list) else [what]
    return plan_roots([x if isinstance(x, Expr) else x.expr for x in items], m)


def only(p: Plan) -> ProductPlan:
    """The one product of a plan."""
    (found,) = p.products.values()
    return found


def with_zeros(t: tg.Tensor) -> list[Expr]:
    """The expression with zeros for its placeholders, which cannot be lowered."""
    placeholders = [n for n in topological([t.expr]) if n.op.name == "placeholder"]
    return list(substitute([t.expr], {n: tg.zeros(n.shape, dtype=n.dtype, chunks=n.chunks).expr for n in placeholders}))


def tags(lowered: Lowered) -> dict[Any, Any]:
    """The annotation of every task of ours."""
    found = {}
    for layer in lowered.graph.layers.values():
        tag = layer.annotations[TAG]
        found.update({key: tag(key) if callable(tag) else tag for key in layer})
    return found


def value(lowered: Lowered, ndim: int) -> np.ndarray:
    """The first root, computed in this thread."""
    return np.asarray(assemble(dask.get(lowered.graph.to_dict(), lowered.keys)[0], ndim))
