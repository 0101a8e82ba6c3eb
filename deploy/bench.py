"""`taskgraph bench`: what a cluster does, beside what its plans say that it does."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, wait
from rich.console import Console
from rich.table import Table

import taskgraph as tg
from deploy.measure import name_of, pins_of, run_product, size_for
from deploy.programs import connected, device_table
from deploy.programs import console as open_console
from taskgraph.execute import machine_of

#: Seconds that the CPU workers should take for a float32 product where `n` is not given (chosen: what starting and
#: ending a run costs is small beside it).
PRODUCT_SECONDS = 4.0

DTYPES = ("float32", "float64")

#: Tasks that do nothing, of which one's cost is taken (chosen: a second of them).
EMPTY_TASKS = 2000


@dataclass(frozen=True)
class Row:
    """One product: medians of what was measured, beside what was predicted before it ran."""

    devices: str
    dtype: str
    predicted_seconds: float
    seconds: float
    gflops: float
    of_area_bound: float
    predicted_bytes: int
    bytes_moved: int


def run_bench(
    connection: Mapping[str, Any], cluster: Mapping[str, Any] | None, n: int | None, repeats: int, path: str | None
) -> int:
    """Measure products of (n, n) matrices on each kind of worker, and what a task costs; print a table.

    path: a file for the same figures as JSON, beside the description of the machine.
    """
    console = open_console()
    with connected(connection, cluster) as client:
        machine = machine_of(client)
        console.print(device_table(client.scheduler_info(n_workers=-1)["workers"]))
        n = n or size_for(machine, PRODUCT_SECONDS)
        task_seconds = seconds_a_task(client)
        rows = []
        with console.status("products") as status:
            for dtype in DTYPES:
                for pin in pins_of(machine):
                    status.update(f"{n} x {n} {dtype} on {name_of(pin, machine)}")
                    rows.append(measured(client, machine, n, dtype, pin, repeats))
        show(console, rows, n, repeats)
        console.print(f"an empty task costs {task_seconds * 1e3:.2f} ms, in plans {machine.task_seconds * 1e3:.2f} ms")
    if path:
        found = {"n": n, "repeats": repeats, "task_seconds": task_seconds, "products": [asdict(row) for row in rows]}
        Path(path).write_text(json.dumps({**found, "machine": asdict(machine)}, indent=1) + "\n")
    return 0


def measured(client: Client, machine: tg.Machine, n: int, dtype: str, pin: str, repeats: int) -> Row:
    """Products of fresh operands, which lie on the CPU workers when the clock starts.

    Fresh, since what was moved to a worker for one product must not be there for the next.
    """
    seconds, moved, predicted = [], [], None
    for repeat in range(repeats):
        rng = tg.random.default_rng(repeat)
        a, b = (rng.standard_normal((n, n), dtype).persist() for _ in range(2))
        wait(client.futures_of([a, b]))
        with tg.device(pin):
            product = a @ b
        predicted = tg.simulate(product, machine)
        ran = run_product(client, product)
        seconds.append(ran.seconds)
        moved.append(ran.bytes_moved)
    assert predicted is not None
    median = statistics.median(seconds)
    used = [device for device in machine.devices if device.kind in pin.split("+")]
    area_bound = 2 * n**3 / sum(d.rate(np.dtype(dtype)) * d.threads for d in used)
    return Row(
        devices=name_of(pin, machine),
        dtype=dtype,
        predicted_seconds=predicted.makespan,
        seconds=median,
        gflops=2 * n**3 / median / 1e9,
        of_area_bound=area_bound / median,
        predicted_bytes=predicted.bytes_moved,
        bytes_moved=int(statistics.median(moved)),
    )


def seconds_a_task(client: Client) -> float:
    """What a task that does nothing costs, in a graph of many."""
    start = time.perf_counter()
    wait(client.map(_nothing, range(EMPTY_TASKS), pure=False))
    return (time.perf_counter() - start) / EMPTY_TASKS


def _nothing(_: int) -> None:
    pass


def show(console: Console, rows: list[Row], n: int, repeats: int) -> None:
    """The products' table."""
    table = Table(title=f"{n} x {n} @ {n} x {n}, median of {repeats}", title_justify="left")
    for column in ("devices", "dtype"):
        table.add_column(column)
    for column in ("seconds", "predicted", "GFLOP/s", "of the devices' rates", "MB moved", "predicted"):
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            r.devices, r.dtype, f"{r.seconds:.3f}", f"{r.predicted_seconds:.3f}", f"{r.gflops:,.0f}",
            f"{r.of_area_bound:.0%}", f"{r.bytes_moved / 1e6:,.0f}", f"{r.predicted_bytes / 1e6:,.0f}",
        )  # fmt: skip
    console.print(table)
