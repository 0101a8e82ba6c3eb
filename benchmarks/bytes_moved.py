"""Bytes between workers over the least that any plan needs: `python -m benchmarks.bytes_moved`. Goal: at most 1.2.

Square products, 100:1 and 1:100 ones, on 4, 16 and 64 workers of one thread. The workers are Dask workers of their own
(own address, own memory, own counters) which talk TCP, but up to eight of them share a process, so that 64 start on a
few cores; what one gets from another crosses the loopback device also where both are in one process. Measured are the
workers' own counters of what they sent. "made" operands are random numbers of the graph; "rows" are kept in blocks of
rows, one for each worker, before the count begins. The result stays where it is made.

There are two bounds, with their sources in the code, both for the workers that the plan uses, at equal shares of the
work. "any" is `taskgraph.bounds.communication_bound`: each owns an equal share of all three matrices, as is best. Of
"made" operands, which nobody has to get, less may move; of "rows" that are the wrong share more must: 1:100 is cut
along k, of which a row of the left one has all. So of kept operands the greater one of that and "kept" counts,
`taskgraph.owned.bound_of_kept`: the least for what each worker holds of them. (With rows of the left operand, m / p for
each of p workers, and rows of the right one, every l of k costs at least the lesser of m / p and n for each worker that
has not its row of the right one: for 1:100 nearly all of the left operand moves, whatever the plan.)
`--workers` is the most workers to start, `--seconds` how long a run may take (what does not end counts as a NO).
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, Worker, futures_of, wait

import taskgraph as tg
from benchmarks.harness import arguments, as_they_come, report
from taskgraph.bounds import communication_bound
from taskgraph.execute import machine_of
from taskgraph.lying import homes, lying
from taskgraph.owned import Stretch, bound_of_kept
from workers.plugin import DeviceSetup

GOAL = 1.2
SHAPES = {"square": (4096, 4096, 4096), "100:1": (51200, 512, 512), "1:100": (512, 51200, 512)}  # m, k, n
WORKERS = (4, 16, 64)
#: Workers of one process, at the most.
TOGETHER = 8
#: Of each worker. Chosen: more than any of the products needs.
MEMORY_BYTES = 2**31
START_S = 120


def serve(scheduler: str, names: list[str], over: Any) -> None:
    """Run workers with these names in this process until that event is set."""

    async def run() -> None:
        workers = [
            Worker(
                scheduler, name=name, nthreads=1, host="127.0.0.1", dashboard=False, memory_limit=MEMORY_BYTES,
                plugins=[DeviceSetup("cpu")],
            )
            for name in names
        ]  # fmt: skip
        for w in workers:
            await w
        await asyncio.get_running_loop().run_in_executor(None, over.wait)
        await asyncio.gather(*[w.close() for w in workers])

    logging.getLogger("distributed").setLevel(logging.WARNING)
    # a worker would take what all those of its process hold for its own
    thresholds = dict.fromkeys((f"distributed.worker.memory.{what}" for what in ("target", "spill", "pause")), False)
    with dask.config.set(thresholds):
        asyncio.run(run())


@contextmanager
def cluster(workers: int) -> Iterator[Client]:
    """A client of so many workers."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    names = [f"cpu-{n}" for n in range(workers)]
    with (
        tg.LocalCluster(cpu_workers=0, gpus=0, dashboard_address=None) as scheduler,
        Client(scheduler) as client,
    ):
        shares = [names[n : n + TOGETHER] for n in range(0, workers, TOGETHER)]
        processes = [context.Process(target=serve, args=(scheduler.scheduler_address, s, over)) for s in shares]
        try:
            for p in processes:
                p.start()
            client.wait_for_workers(workers, timeout=START_S)
            yield client
        finally:
            over.set()
            for p in processes:
                p.join(START_S)


def sent(client: Client) -> int:
    """Bytes that all workers have sent to each other so far."""
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


def kept_rows(rows: int, columns: int, seed: int, chunks: tuple[int, int], seconds: float) -> tg.Tensor:
    """Random numbers that are there."""
    x = tg.randn(rows, columns, seed=seed, chunks=chunks).persist()
    wait(futures_of(x), timeout=seconds)
    return x


def held(client: Client, a: tg.Tensor, b: tg.Tensor, workers: list[str]) -> list[list[Stretch]]:
    """What these workers hold of two operands in blocks of rows."""
    where = lying([a.expr, b.expr], client, machine_of(client))
    rows: dict[str, list[int]] = {}
    for side, x in enumerate((a, b)):
        for size, worker in zip(x.chunks[0], homes(x.expr, where) or (), strict=True):
            rows.setdefault(worker, [0, 0])[side] += size
    found = (rows.get(worker, (0, 0)) for worker in workers)
    return [[Stretch(of_b, of_a, b.shape[1]), Stretch(b.shape[0] - of_b, of_a, 0)] for of_a, of_b in found]


def row(client: Client, shape: str, workers: int, kept: bool, seconds: float) -> tuple[Any, ...]:
    m, k, n = SHAPES[shape]
    sizes = (m, k), (k, n)
    if kept:
        rows = [(-(-height // workers), width) for height, width in sizes]
        a, b = (kept_rows(*s, seed, c, seconds) for seed, (s, c) in enumerate(zip(sizes, rows, strict=True)))
    else:
        a, b = (tg.randn(*s, seed=n) for n, s in enumerate(sizes))
    product = a @ b
    predicted = tg.simulate(product)
    before, start = sent(client), time.perf_counter()
    result = product.persist()
    try:
        wait(futures_of(result), timeout=seconds)
        took = time.perf_counter() - start
    except TimeoutError:
        took = float("inf")
    moved = sent(client) - before
    used = list(predicted.plan.tiles)
    bound = communication_bound(m, n, k, 4, len(used), MEMORY_BYTES)
    of_kept = bound_of_kept(m, n, k, 4, [1 / len(used)] * len(used), held(client, a, b, used)) if kept else 0.0
    least = max(bound, of_kept)
    ratio = moved / least if least else float(moved > 0)
    name = f"{shape}, {workers} workers, {'rows' if kept else 'made'}"
    figures = [round(x / 1e6, 1) for x in (bound, of_kept, predicted.plan.bytes_moved, predicted.bytes_moved, moved)]
    verdict = "yes" if ratio <= GOAL and took < float("inf") else "NO"
    return name, len(used), *figures, round(ratio, 3), verdict, round(took, 1)


def all_rows(most: int, seconds: float) -> Iterator[tuple[Any, ...]]:
    for workers in [n for n in WORKERS if n <= most]:
        with cluster(workers) as client:
            for shape in SHAPES:
                for kept in (False, True):
                    yield row(client, shape, workers, kept, seconds)


def main() -> None:
    options = arguments(__doc__ or "", workers=WORKERS[-1], seconds=60)
    rows = as_they_come(all_rows(options.workers, options.seconds))
    columns = ("product", "used", "any MB", "kept MB", "planned", "simulated", "measured", "over", "<= 1.2", "s")
    report("bytes between workers", columns, rows, options)


if __name__ == "__main__":
    main()
