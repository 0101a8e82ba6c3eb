"""Runs that are measured: a product under a pin, its seconds, the bytes that workers sent, the tiles that each got."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, wait

import taskgraph as tg

#: What a pin means, for people.
PINS = {"cpu": "CPU workers", "gpu": "GPU-pinned workers", "cpu+gpu": "both"}


def pins_of(machine: tg.Machine) -> list[str]:
    """The pins under which a product can run there."""
    kinds = {device.kind for device in machine.devices}
    return [pin for pin in PINS if set(pin.split("+")) <= kinds]


def name_of(pin: str, machine: tg.Machine) -> str:
    """The pin for people, who must be told where GPUs are emulated."""
    emulated = any(device.emulated for device in machine.of_kind("gpu"))
    return PINS[pin] + (" (emulated)" if emulated and "gpu" in pin else "")


def size_for(machine: tg.Machine, seconds: float) -> int:
    """The n for which a float32 product takes so long on the CPUs, within an eighth of the least memory."""
    cpus = machine.of_kind("cpu") or machine.devices
    rate = sum(d.rate(np.dtype("float32")) * d.threads for d in cpus)
    by_time = (seconds * rate / 2) ** (1 / 3)
    by_memory = (min(d.memory_bytes for d in machine.devices) / 8 / 4) ** 0.5
    return max(256, int(min(by_time, by_memory)) // 256 * 256)


@dataclass(frozen=True)
class Measured:
    """A product that ran: where it is kept, its seconds, bytes that workers sent each other, tiles per worker."""

    kept: tg.Tensor
    seconds: float
    bytes_moved: int
    tiles: Mapping[str, int]


def run_product(client: Client, product: tg.Tensor) -> Measured:
    """Run a product whose operands are kept; the result stays where it is made."""
    sent = _bytes_sent(client)
    start = time.perf_counter()
    kept = product.persist()
    wait(client.futures_of(kept))
    seconds = time.perf_counter() - start
    return Measured(kept, seconds, _bytes_sent(client) - sent, _tiles(client, kept))


def _bytes_sent(client: Client) -> int:
    return sum(client.run(_sent_by_worker).values())


def _sent_by_worker(dask_worker: Any) -> int:
    return int(dask_worker.transfer_outgoing_bytes_total)


def _tiles(client: Client, kept: tg.Tensor) -> dict[str, int]:
    """Tiles per worker, by where the scheduler says that they lie."""
    names = {a: str(w["name"]) for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
    count: dict[str, int] = {}
    for addresses in client.who_has(client.futures_of(kept)).values():
        name = names[addresses[0]]
        count[name] = count.get(name, 0) + 1
    return dict(sorted(count.items()))
