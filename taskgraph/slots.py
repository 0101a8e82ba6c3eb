"""Workers as the cost model sees them: places for one task at a time, their rates and links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskgraph.expr import DType
from taskgraph.machine import Device, Machine

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Workers of a class whose rates differ by no more are taken to be equally fast (chosen: less than two measurements of
#: one core differ by), so that like machines get like tiles, one a slot.
RATE_ERROR = 0.05
#: Share of a device's memory for operands and results of its tiles: the rest holds what comes next and what goes.
MEMORY_SHARE = 0.5
#: A product whose shortest side is so long runs at half the rate; at s it runs at s / (s + half). Measured on one core
#: with float32: sides of 16, 32, 64, 128 beside 1024 give 0.69, 0.83, 0.93, 0.97. For GPUs chosen: full from about 4096
#: on, where the profile is measured.
HALF_RATE_SIDE = {"cpu": 8.0, "gpu": 256.0}


@dataclass(frozen=True)
class Unit:
    """A worker as the cost model sees it: rate is operations per second of one of its slots, link bytes per second to
    its device, half_side where a product of that side runs at half the rate."""

    name: str
    kind: str
    threads: int
    rate: float
    link: float
    memory: int
    half_side: float


def unit_of(d: Device, dtype: DType) -> Unit:
    """The device for products of that dtype."""
    half = HALF_RATE_SIDE["cpu" if d.emulated else d.kind]
    return Unit(d.name, d.kind, d.threads, d.rate(dtype), d.link, d.memory_bytes, half)


@dataclass(frozen=True)
class Setting:
    """What a machine's links and tasks cost, and how many workers hold what lies on each kind."""

    is_cluster: bool
    link_bytes_per_s: float
    task_seconds: float
    holders: tuple[tuple[str, int], ...]

    @property
    def holding(self) -> dict[str, int]:
        return dict(self.holders)


def setting_of(machine: Machine) -> Setting:
    """The machine without its devices."""
    holders = tuple((kind, len(machine.of_kind(kind))) for kind in ("cpu", "gpu"))
    return Setting(machine.is_cluster, machine.link_bytes_per_s, machine.task_seconds, holders)


@dataclass(frozen=True)
class Slots:
    """Places for one task at a time, an entry each, and the workers that have them. Arrays, since a plan weighs some
    dozens of cuts on thousands of slots."""

    units: tuple[Unit, ...]
    worker: Ints
    rates: Floats
    half_side: Floats
    room: Floats

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.units[w].name for w in self.worker)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.units[w].kind for w in self.worker)

    def kinds_used(self, owner: Ints) -> tuple[tuple[str, int], ...]:
        """How many slots of each kind have parts. owner: their numbers."""
        used = np.flatnonzero(np.bincount(owner, minlength=len(self)))
        kinds = [self.units[w].kind for w in self.worker[used]]
        return tuple((kind, kinds.count(kind)) for kind in ("cpu", "gpu"))

    def between(self, start: int, stop: int) -> Slots:
        """Those from one number to another."""
        part = slice(start, stop)
        return Slots(self.units, self.worker[part], self.rates[part], self.half_side[part], self.room[part])


def slots_of(units: Sequence[Unit]) -> Slots:
    """The slots of some workers, as many for each as it runs tasks at once, the fastest first; of one class and nearly
    one speed (RATE_ERROR), of one speed."""
    units = tuple(_alike(sorted(units, key=lambda u: -u.rate)))
    worker = np.repeat(np.arange(len(units)), [u.threads for u in units])
    return Slots(
        units,
        worker,
        np.asarray([u.rate for u in units])[worker],
        np.asarray([u.half_side for u in units])[worker],
        MEMORY_SHARE * np.asarray([u.memory / u.threads for u in units])[worker],
    )


def _alike(units: Sequence[Unit]) -> list[Unit]:
    found: list[Unit] = []
    first = 0
    for n in range(len(units) + 1):
        here, fastest = units[n] if n < len(units) else None, units[first]
        if here is None or here.kind != fastest.kind or here.rate < (1 - RATE_ERROR) * fastest.rate:
            rate = math.fsum(u.rate for u in units[first:n]) / (n - first)
            found += [replace(u, rate=rate) for u in units[first:n]]
            first = n
    return found
