"""Predicted makespans beside their bounds, and beside real runs: `python -m benchmarks.makespan [--repeats 3]`.

First part, in simulation, with the task cost and the network of one host through Dask (0.5 ms, 1 GB/s; machines with
more than 100 workers get 10 GB/s a worker): over pairs of a product and a machine, the makespan over max(area bound,
critical path, link bound), goal 1.10. The last two of these are bounds for the plan's own cut and placement, so beside
it stand the makespan over the area bound, which no plan can beat, and the bytes over their lower bound. Then, for the
same pairs, whether one more CPU worker or GPU makes the plan slower: it never should (one more CPU worker holds a share
of the data, too, which then has to be moved: that may show as 1%; and the search may end at a plan that is 5% off).

Second part, run for real on two CPU workers and two emulated GPUs: predicted over measured seconds, goal 0.8 to 1.2. A
product on each kind of worker calibrates the rates and the network; operands exist before the clock starts, the results
stay where they are made; of `--repeats` runs the quickest counts, in the calibration, too; `--repeats 0` leaves it out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distributed import Client, get_task_stream, wait

import taskgraph as tg
from benchmarks.harness import arguments, report

GOAL = 1.10
#: Smaller transfers say more of latency than of bandwidth.
LARGE_BYTES = 4 * 10**6

SHAPES = {  # m, k, n
    "square 4096": (4096, 4096, 4096),
    "square 16384": (16384, 16384, 16384),
    "square 65536": (65536, 65536, 65536),
    "tall-skinny": (1_000_000, 1000, 1000),
    "outer": (32768, 256, 32768),
    "inner": (1024, 1_000_000, 1024),
}


def machine(cpus: int, gpus: int = 0, *, uneven: bool = False, threads: int = 1) -> tg.Machine:
    """CPU workers of 50 GFLOP/s a thread, GPUs of 9 TFLOP/s (uneven: 3 to 15) on PCIe."""
    rates = [3000.0 + 3000.0 * (g % 5) if uneven else 9000.0 for g in range(gpus)]
    return tg.Machine(
        devices=(
            *[tg.Device("cpu", 2**35 * threads, 50.0 * threads, threads=threads) for _ in range(cpus)],
            *[tg.Device("gpu", 2**35, rate) for rate in rates],
        ),
        link_bytes_per_s=1e10 if cpus + gpus > 100 else 1e9,
    )


MACHINES = {
    "2 CPU": machine(2),
    "4 CPU": machine(4),
    "16 CPU": machine(16),
    "64 CPU": machine(64),
    "1 GPU + 16 cores": machine(16, 1),
    "1 GPU + 2 workers of 8": machine(2, 1, threads=8),
    "8 GPUs + 128 cores": machine(128, 8),
    "64 uneven GPUs + 512 cores": machine(512, 64, uneven=True),
}

PAIRS = (
    ("square 4096", "2 CPU"), ("square 16384", "2 CPU"), ("square 16384", "4 CPU"), ("square 16384", "16 CPU"),
    ("square 65536", "64 CPU"), ("square 4096", "1 GPU + 16 cores"), ("square 16384", "1 GPU + 16 cores"),
    ("square 16384", "1 GPU + 2 workers of 8"), ("square 16384", "8 GPUs + 128 cores"),
    ("square 65536", "8 GPUs + 128 cores"), ("square 65536", "64 uneven GPUs + 512 cores"),
    ("tall-skinny", "4 CPU"), ("tall-skinny", "16 CPU"), ("tall-skinny", "8 GPUs + 128 cores"), ("outer", "4 CPU"),
    ("outer", "16 CPU"), ("outer", "1 GPU + 16 cores"), ("inner", "2 CPU"), ("inner", "16 CPU"),
    ("inner", "8 GPUs + 128 cores"), ("inner", "64 uneven GPUs + 512 cores"),
)  # fmt: skip


def predicted(shape: str, m: tg.Machine) -> tg.Prediction:
    rows, inner, columns = SHAPES[shape]
    a, b = tg.placeholder("float32", (rows, inner)), tg.placeholder("float32", (inner, columns))
    return tg.simulate(a @ b, m)


def grown(m: tg.Machine) -> Iterator[tuple[str, tg.Machine]]:
    """The machine with one more device of each kind that it has."""
    for kind in ("cpu", "gpu"):
        known = m.of_kind(kind)
        if known:
            yield f"+1 {kind}", replace(m, devices=(*m.devices, replace(known[-1], name=f"{kind}-{len(known)}")))


def in_simulation() -> Iterator[tuple[Any, ...]]:
    """A row for each pair."""
    for shape, name in PAIRS:
        m = MACHINES[name]
        p = predicted(shape, m)
        more = {what: predicted(shape, larger).makespan / p.makespan for what, larger in grown(m)}
        slower = ", ".join(f"{what}: {ratio:.2f}" for what, ratio in more.items() if ratio > 1.001)
        moved = p.bytes_moved / p.bytes_bound if p.bytes_bound else 1.0
        ratios = [p.makespan / p.bound, p.makespan / p.area_bound, moved]
        verdict = "yes" if p.makespan <= GOAL * p.bound else "NO"
        yield f"{shape}, {name}", p.makespan, *[round(r, 3) for r in ratios], verdict, slower or "never"


# -- run for real ------------------------------------------------------------------------------------------------------

REAL = (
    ("cpu", (4096, 4096, 4096), "float32"), ("cpu", (3000, 3000, 3000), "float64"),
    ("cpu", (60000, 600, 600), "float32"), ("cpu", (6000, 500, 6000), "float32"),
    ("gpu", (4096, 4096, 4096), "float32"), ("gpu", (1500, 12000, 1500), "float32"),
)  # fmt: skip


def operands(client: Client, size: tuple[int, int, int], dtype: str, pin: str) -> tg.Tensor:
    """A product of operands that lie on the CPU workers, pinned to a kind of worker."""
    rows, inner, columns = size
    made = [tg.randn(*shape, chunks="auto", seed=1).astype(dtype) for shape in ((rows, inner), (inner, columns))]
    a, b = (x.persist() for x in made)
    wait(client.futures_of([a, b]))
    with tg.device(pin):
        return a @ b


def seconds(client: Client, product: tg.Tensor) -> float:
    start = time.perf_counter()
    kept = product.persist()
    wait(client.futures_of(kept))
    return time.perf_counter() - start


def busy(client: Client, product: tg.Tensor) -> float:
    """Seconds of a run for which the workers compute its tiles, together."""
    with get_task_stream(client) as stream:
        seconds(client, product)
    of_tiles = [t["startstops"] for t in stream.data if str(t["key"][0]).startswith("matmul")]
    return sum(part["stop"] - part["start"] for parts in of_tiles for part in parts if part["action"] == "compute")


def calibrated(client: Client, m: tg.Machine, repeats: int) -> tg.Machine:
    """The machine with the rates that a product reached on each kind of worker in each dtype, and the network's."""
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for kind in ("cpu", "gpu"):
        for dtype in ("float32", "float64"):
            product = operands(client, (3000, 3000, 3000), dtype, kind)
            flops = sum(p.flops for p in tg.plan(product, m).products.values())
            rates[kind][dtype] = max(flops / busy(client, product) / 1e9 for _ in range(repeats))
    devices = tuple(replace(d, gflops={k: r * d.threads for k, r in rates[d.kind].items()}) for d in m.devices)
    return replace(m, devices=devices, link_bytes_per_s=bandwidth(client))


def bandwidth(client: Client) -> float:
    """Bytes per second of the large transfers so far, as the workers have noted them: their median. (Dask's own figure
    begins at 100 MB/s, and takes dozens of transfers to forget that.)"""

    def rates(dask_worker: Any) -> list[float]:
        return [t["total"] / t["duration"] for t in dask_worker.transfer_incoming_log if t["total"] >= LARGE_BYTES]

    return statistics.median(rate for found in client.run(rates).values() for rate in found)


def for_real(repeats: int) -> Iterator[tuple[Any, ...]]:
    """A row for each product."""
    with (
        tg.LocalCluster(
            cpu_workers=2, threads_per_cpu_worker=1, gpus=0, emulated_gpus=2, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        tg.ones((2, 2)).compute()
        m = calibrated(client, tg.Machine.from_client(client), repeats)
        for kind, size, dtype in REAL:
            # new operands every time: workers keep copies of what moved to them. The least: what else runs here adds
            found, expected = math.inf, 0.0
            for _ in range(repeats):
                product = operands(client, size, dtype, kind)
                expected = tg.simulate(product, m).makespan
                found = min(found, seconds(client, product))
            ratio = round(expected / found, 3)
            name = f"{size[0]}x{size[1]} @ {size[1]}x{size[2]} {dtype}, {'emulated GPUs' if kind == 'gpu' else 'CPUs'}"
            yield name, expected, found, ratio, "yes" if 0.8 <= ratio <= 1.2 else "NO"


def main() -> None:
    options = arguments(__doc__ or "", repeats=3)
    rows = list(in_simulation())
    columns = ("product, machine", "makespan", "of bound", "of area", "bytes", "<= 1.1", "slower with")
    report("makespan over its bounds, simulated", columns, rows, options)
    if options.repeats:
        if options.json:
            options.json = options.json.with_stem(f"{options.json.stem}-measured")
        found = list(for_real(options.repeats))
        columns = ("product, on", "predicted s", "measured s", "ratio", "within 20%")
        report("predicted over measured", columns, found, options)


if __name__ == "__main__":
    main()
