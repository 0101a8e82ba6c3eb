"""Predicted over measured peak memory of 20 products: `python -m benchmarks.peak_memory`. Goal: 1.00 to 1.25.

Three clusters: two CPU workers of one thread, one of two threads, and two emulated GPUs of 256 MiB beside a CPU worker.
"kept" operands are there before; "made" ones are random numbers of the graph, which tasks may read a piece at a time.
The result stays where it is made. Every product runs three times: which task runs when, and so what is held beside it,
differs by run. The figures are of the run whose ratio is in the middle, with the lowest and the highest ratio.

Measured of a CPU worker: its process's resident memory at the highest (VmHWM, which the kernel forgets on request)
above what it held idle, when nothing was left of the run before. (Idle after a product of the same kind with a quarter
of the sides, which imports what such a product needs, and one of NumPy alone, which has BLAS make its buffers. Workers
keep no free memory to use it again, as they do otherwise: that comes beside, up to a share of their limit.)
Of an emulated GPU: the bytes of the device's arrays at the highest, as the emulation counts them. Predicted: what
`tg.simulate` says; beside it stands `tg.plan`, which knows a product's shape alone, not where operands lie. Of like
workers the greatest.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distributed import Client, futures_of, wait

import taskgraph as tg
from benchmarks.harness import arguments, as_they_come, report

LOW, HIGH = 1.0, 1.25

#: Of every product; which task runs when, and so what is held beside it, differs by run.
RUNS = 3

#: Until workers have let go of a run's data.
PATIENCE_S = 30

CLUSTERS: dict[str, dict[str, Any]] = {
    "2 x 1": {"cpu_workers": 2, "threads_per_cpu_worker": 1},
    "1 x 2": {"cpu_workers": 1, "threads_per_cpu_worker": 2},
    "2 GPUs": {"cpu_workers": 1, "threads_per_cpu_worker": 1, "emulated_gpus": 2, "emulated_gpu_memory": 2**28},
}

#: Gives an operand of a shape.
Operand = Callable[..., tg.Tensor]


class Case(NamedTuple):
    """A product: what it is, where it runs, whether its operands are there before, its dtype, and how it is written,
    with a size that scales all of its sides."""

    name: str
    cluster: str
    kept: bool
    dtype: str
    written: Callable[[Operand, int], tg.Tensor]


def square(x: Operand, s: int) -> tg.Tensor:
    return x(4 * s, 4 * s) @ x(4 * s, 4 * s)


def tall(x: Operand, s: int) -> tg.Tensor:
    return x(128 * s, s // 2) @ x(s // 2, s // 2)


def outer(x: Operand, s: int) -> tg.Tensor:
    return x(5 * s, s // 4) @ x(s // 4, 5 * s)


def inner(x: Operand, s: int) -> tg.Tensor:
    return x(s // 2, 100 * s) @ x(100 * s, s // 2)


def batched(x: Operand, s: int) -> tg.Tensor:
    return x(16, s, s) @ x(16, s, s)


def transposed(x: Operand, s: int) -> tg.Tensor:
    return x(4 * s, 3 * s).mT @ x(5 * s, 4 * s).mT


def biased(x: Operand, s: int) -> tg.Tensor:
    return tg.tanh(x(4 * s, 3 * s) @ x(3 * s, 4 * s) + x(4 * s))


def residual(x: Operand, s: int) -> tg.Tensor:
    return x(4 * s, 2 * s) @ x(2 * s, 4 * s) + x(4 * s, 4 * s)


def gram(x: Operand, s: int) -> tg.Tensor:
    a = x(10 * s, 2 * s)
    return a.mT @ a


def chain(x: Operand, s: int) -> tg.Tensor:
    return x(4 * s, 3 * s) @ x(3 * s, 4 * s) @ x(4 * s, 2 * s)


CASES = tuple(
    Case(f.__name__, cluster, kept, dtype, f)
    for f, cluster, kept, dtype in (
        (square, "2 x 1", True, "float32"), (square, "2 x 1", False, "float64"), (square, "1 x 2", True, "float64"),
        (tall, "2 x 1", True, "float32"), (tall, "2 x 1", False, "float32"), (outer, "2 x 1", True, "float64"),
        (outer, "1 x 2", False, "float32"), (inner, "2 x 1", True, "float32"), (inner, "2 x 1", False, "float64"),
        (batched, "2 x 1", True, "float32"), (transposed, "2 x 1", True, "float64"), (biased, "2 x 1", True, "float32"),
        (residual, "2 x 1", True, "float64"), (gram, "2 x 1", True, "float32"), (chain, "2 x 1", True, "float32"),
        (square, "2 GPUs", True, "float32"), (square, "2 GPUs", True, "float64"), (inner, "2 GPUs", True, "float32"),
        (biased, "2 GPUs", True, "float32"), (batched, "2 GPUs", True, "float32"),
    )
)  # fmt: skip


def operand(kept: list[tg.Tensor] | None, dtype: str) -> Operand:
    """Random operands of that dtype; where there is a list, they are made now and noted there."""
    seeds = iter(range(100))

    def make(*shape: int) -> tg.Tensor:
        if kept is None:
            return tg.randn(*shape, seed=next(seeds), dtype=dtype)
        with tg.device("cpu"):
            kept.append(tg.randn(*shape, seed=next(seeds), dtype=dtype).persist())
        wait(futures_of(kept[-1]))
        return kept[-1]

    return make


# -- what runs on the workers ------------------------------------------------------------------------------------------


def _status(name: str) -> int:
    """Bytes of this process that the kernel gives under that name."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def warm(seed: int) -> None:
    """Have BLAS make its buffers, which it never gives back (measured: OpenBLAS 18 MB a thread)."""
    for dtype in ("float32", "float64"):
        for m, k, n in ((2048, 2048, 2048), (32768, 512, 512)):
            x = np.full((m, k), seed, dtype)
            x @ np.ones((k, n), dtype)
            x.T @ x


def use_nothing_again() -> None:
    """Have this worker give back all that is freed."""
    from workers.buffers import buffers

    buffers.limit_bytes = 0
    buffers.trim(0)


def is_empty(dask_worker: Any) -> bool:
    """Whether nothing is left of the run before."""
    gc.collect()
    return not dask_worker.data


def idle() -> int:
    """Resident bytes of this worker now."""
    gc.collect()
    return _status("VmRSS")


def reset() -> None:
    """Have the kernel, and the emulated device, count the highest anew."""
    from workers.emulated import memory

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    memory.peak = memory.live


def highest() -> tuple[int, int]:
    """The most resident bytes since the reset, and the most of the device."""
    from workers.emulated import memory

    return _status("VmHWM"), memory.peak


class Peaks(NamedTuple):
    """Bytes of one run, of the worker that has most: predicted by the simulation, by the plan, and measured."""

    simulated: int
    planned: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured


def rows(cluster: str, size: int) -> Iterator[tuple[Any, ...]]:
    """A row for every product on such a cluster, one product after another."""
    is_pinned = "GPU" in cluster
    options = {"gpus": 0, "dashboard_address": None, **CLUSTERS[cluster]}
    with tg.LocalCluster(**options) as started, Client(started) as client:
        client.wait_for_workers(len(started.workers))
        names = {address: w["name"] for address, w in client.scheduler_info(n_workers=-1)["workers"].items()}
        client.run(use_nothing_again)
        wait([client.submit(warm, n, workers=[a], pure=False) for a in names for n in range(client.nthreads()[a])])
        like = {address: name for address, name in names.items() if name.startswith("gpu") == is_pinned}
        for case in CASES:
            if case.cluster == cluster:
                runs = [run(case, scale, client, like, is_pinned) for scale in (size // 4, *[size] * RUNS)]
                yield row(case, sorted(runs[1:], key=lambda p: p.ratio))


def run(case: Case, size: int, client: Client, like: Mapping[str, str], is_pinned: bool) -> Peaks:
    """One run of a product. like: the workers that are looked at, names by address."""
    until = time.monotonic() + PATIENCE_S
    while not all(client.run(is_empty).values()):
        if time.monotonic() > until:
            raise TimeoutError(f"{case.name}: workers still hold data of the run before, after {PATIENCE_S} s")
        time.sleep(0.01)
    before = client.run(idle)
    kept: list[tg.Tensor] | None = [] if case.kept else None
    with tg.device("gpu") if is_pinned else contextlib.nullcontext():
        product = case.written(operand(kept, case.dtype), size)
    predicted, plan = tg.simulate(product), tg.plan(product, tg.Machine.from_client(client))
    client.run(reset)
    result = product.persist()
    wait(futures_of(result))
    after = client.run(highest)
    held = [of_device if is_pinned else resident - before[a] for a, (resident, of_device) in after.items() if a in like]
    simulated, planned = (max(p.peak_bytes.get(name, 0) for name in like.values()) for p in (predicted, plan))
    return Peaks(simulated, planned, max(held))


def row(case: Case, runs: Sequence[Peaks]) -> tuple[Any, ...]:
    """Figures of the run in the middle, and the least and the greatest ratio. runs: in order of that."""
    middle = runs[len(runs) // 2]
    verdict = "yes" if LOW <= round(middle.ratio, 2) <= HIGH else "NO"
    name = f"{case.name}, {case.dtype}, {'kept' if case.kept else 'made'}, {case.cluster}"
    ratios = [round(r, 2) for r in (middle.ratio, runs[0].ratio, runs[-1].ratio, middle.planned / middle.measured)]
    return name, *[round(n / 1e6, 1) for n in middle], *ratios, verdict


def main() -> None:
    options = arguments(__doc__ or "", size=1024)
    found = as_they_come(row for cluster in CLUSTERS for row in rows(cluster, options.size))
    columns = ("product, on", "simulated MB", "planned MB", "measured MB", "ratio", "lowest", "highest", "of the plan")
    columns = (*columns, "1.00 to 1.25")
    report("predicted over measured peak of a worker", columns, found, options)


if __name__ == "__main__":
    main()
