"""A prediction: what a plan will do on its machine, as data and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dask.utils import format_bytes

from taskgraph.machine import Device
from taskgraph.plan import Plan, ProductPlan


class Row(NamedTuple):
    """A bar of the timeline. kind: "compute" or "transfer" (to this worker); thread: which of the worker's threads
    computes, its number of threads for a transfer."""

    worker: str
    thread: int
    label: str
    kind: str
    start: float
    stop: float


@dataclass(frozen=True)
class Prediction:
    """What will happen. Times in seconds from the start.

    makespan: until the last job is done. bytes_moved: between workers. peak_bytes: the most that each worker holds at
    any time. timeline: everything that is computed or moved. area_bound: products over the sum of all rates.
    critical_path: the longest chain of jobs, moving aside. link_bound: how long the busiest link is busy with what the
    plan moves. bytes_bound: see `bounds.communication_bound`. jobs, busy_seconds: what each worker computes, and how
    long, its threads together.
    """

    plan: Plan
    makespan: float
    bytes_moved: int
    bytes_bound: float
    peak_bytes: Mapping[str, int]
    timeline: tuple[Row, ...]
    area_bound: float
    critical_path: float
    link_bound: float
    jobs: Mapping[str, int]
    busy_seconds: Mapping[str, float]

    @property
    def bound(self) -> float:
        """What this plan's makespan cannot be below."""
        return max(self.area_bound, self.critical_path, self.link_bound)

    def figures(self) -> dict[str, Any]:
        """The figures by name, as plain data."""
        names = ("makespan", "bound", "area_bound", "critical_path", "link_bound", "bytes_moved", "bytes_bound")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**found, "peak_bytes": dict(self.peak_bytes), "tiles": self.plan.tiles, "jobs": dict(self.jobs)}

    def summary(self) -> str:
        """The plan's products, and the figures beside their bounds, for people to read."""
        first = self.plan.summary().splitlines()[0]
        products = [f"  {product_text(p)}" for p in self.plan.products.values()] or ["  no products"]
        return "\n".join([first, *products, *_figures(self), *_devices(self)])

    __str__ = summary

    def __repr__(self) -> str:
        return f"Prediction(makespan={self.makespan:.3g} s, bound={self.bound:.3g} s, {len(self.timeline)} bars)"


def product_text(p: ProductPlan) -> str:
    """What was decided for a product, less the tiles of every device, which a prediction shows in a table."""
    return str(p).partition("; tiles on ")[0]


def _figures(p: Prediction) -> list[str]:
    over = f"{p.makespan / p.area_bound:.2f} of it" if p.area_bound else "no products"
    moved = f"{p.bytes_moved / p.bytes_bound:.2f} of it" if p.bytes_bound >= 1 else "nothing has to move"
    bytes_bound = format_bytes(int(p.bytes_bound))
    return [
        f"  makespan {time_text(p.makespan)}; area bound {time_text(p.area_bound)} ({over}), "
        f"critical path {time_text(p.critical_path)}, busiest link {time_text(p.link_bound)}",
        f"  moved between workers {format_bytes(p.bytes_moved)}; lower bound {bytes_bound} ({moved})",
    ]


#: Devices that are listed one by one.
LISTED = 16


def _devices(p: Prediction) -> list[str]:
    """A line for every device, or, where they are many, for every kind."""
    devices, tiles, busy = p.plan.machine.devices, p.plan.tiles, p.busy_seconds
    if len(devices) <= LISTED:
        rows: list[tuple[str, tuple[Device, ...]]] = [(d.name, (d,)) for d in devices]
    else:
        kinds = [(kind, p.plan.machine.of_kind(kind)) for kind in ("cpu", "gpu")]
        rows = [(f"{len(ds)} {kind} workers", ds) for kind, ds in kinds if ds]
    lines = []
    for name, ds in rows:
        share = math.fsum(busy[d.name] / d.threads for d in ds) / len(ds) / p.makespan if p.makespan else 0.0
        peak = max(ds, key=lambda d: p.peak_bytes[d.name] / d.memory_bytes)
        lines.append(
            f"  {name}: {sum(tiles.get(d.name, 0) for d in ds)} tiles, {sum(p.jobs[d.name] for d in ds)} jobs, "
            f"computes {share:.0%} of the time, peak {format_bytes(p.peak_bytes[peak.name])} "
            f"of {format_bytes(peak.memory_bytes)}"
        )
    return lines


def time_text(seconds: float) -> str:
    """Seconds for people to read."""
    return f"{seconds:.3g} s" if seconds >= 1 or not seconds else f"{seconds * 1e3:.3g} ms"
