"""Where kept data lie, for a prediction: asked of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskgraph.expr import Expr, topological
from taskgraph.lineage import Kept
from taskgraph.machine import Machine

#: Worker name by the key of a kept block.
Lying = Mapping[Any, str]


def lying(roots: Iterable[Expr], client: Any, machine: Machine) -> dict[Any, str]:
    """The worker of every kept block that the expressions need; nothing where the machine is not the client's cluster,
    whose workers' names then mean others."""
    kept = [x.params["array"] for x in topological(roots) if x.op.name == "dask"]
    keys = [key for array in kept if isinstance(array, Kept) for key in array.keys]
    if client is None or not keys:
        return {}
    names = {a: str(w["name"]) for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
    if set(names.values()) != {d.name for d in machine.devices}:
        return {}
    futures = {f.key: f for array in kept if isinstance(array, Kept) for f in array.value.dask.values()}
    where = client.who_has([f for f in futures.values() if hasattr(f, "key")])
    return {key: names[holders[0]] for key, holders in where.items() if holders and holders[0] in names}


def homes(x: Expr, where: Lying) -> list[str] | None:
    """The workers of a kept expression's blocks, in row-major order; None where they are not all known."""
    array = x.params.get("array")
    found = [where.get(key) for key in array.keys] if isinstance(array, Kept) else []
    known = [name for name in found if name is not None]
    return known if found and len(known) == len(found) else None
