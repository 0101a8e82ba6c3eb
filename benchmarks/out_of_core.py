"""A product of matrices larger than the memory of all workers, from file to file: `python -m benchmarks.out_of_core`.

Two one-thread workers with a memory limit each; A, B and C lie in Zarr arrays. The limit of the time is the cores' GEMM
rate; of the memory, the workers' limit: a worker that Dask pauses (at 0.8 of it) computes nothing. Printed are seconds
beside those of the operations alone, the greatest resident memory of a worker, the share of the time in which a worker
was paused, bytes that were spilled, and the error of some rows against float64.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from distributed import Client

import taskgraph as tg
from benchmarks.harness import arguments, report

ROWS = 64  # of A's in a block of writing, and of C's that are checked
PERIOD_S = 0.1


class Watch:
    """Samples what workers hold and whether they are paused, until it is stopped."""

    def __init__(self, cluster: Any) -> None:
        self._scheduler, self._over = cluster.scheduler, threading.Event()
        self.greatest_bytes, self.spilled_bytes, self.samples, self.paused = 0, 0, 0, 0
        self._pids = [w.process.pid for w in cluster.workers.values()]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        processes = [psutil.Process(pid) for pid in self._pids]
        while not self._over.wait(PERIOD_S):
            self.greatest_bytes = max([self.greatest_bytes, *[p.memory_info().rss for p in processes]])
            workers = list(self._scheduler.workers.values())
            self.samples += 1
            self.paused += any(w.status.name == "paused" for w in workers)
            spilled = sum(w.metrics.get("spilled_bytes", {}).get("disk", 0) for w in workers)
            self.spilled_bytes = max(self.spilled_bytes, spilled)


def matrix(path: Path, n: int, block: int, seed: int) -> Path:
    """A Zarr array of random numbers, written by rows, so that this process stays small, too."""
    array = zarr.create_array(
        str(path), shape=(n, n), chunks=(block, block), dtype="float32", compressors=None, overwrite=True
    )
    rng = np.random.default_rng(seed)
    for at in range(0, n, block):
        array[at : at + block] = rng.standard_normal((min(block, n - at), n), np.float32)
    return path


def error_of(folder: Path, n: int) -> float:
    """The greatest relative error of some rows of C against float64."""
    a, b, c = (zarr.open_array(str(folder / name), mode="r") for name in "abc")
    rows = np.sort(np.random.default_rng(0).choice(n, min(ROWS, n), replace=False))
    left = np.asarray(a.oindex[rows]).astype(float)
    exact = np.zeros((len(rows), n))
    for at in range(0, n, b.chunks[0]):
        part = slice(at, at + b.chunks[0])
        exact += left[:, part] @ np.asarray(b[part]).astype(float)
    found = np.asarray(c.oindex[rows])
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def main() -> None:
    options = arguments(__doc__ or "", n=19365, limit_mb=1000, block=1024)
    n, limit = options.n, options.limit_mb * 10**6
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for seed, which in enumerate("ab"):
            matrix(folder / which, n, options.block, seed)
        with (
            tg.LocalCluster(
                cpu_workers=2, threads_per_cpu_worker=1, gpus=0, memory_limit=limit, dashboard_address=None
            ) as cluster,
            Client(cluster),
        ):
            product = tg.from_zarr(folder / "a") @ tg.from_zarr(folder / "b")
            print(product.explain())
            with Watch(cluster) as watch:
                start = time.perf_counter()
                product.to_zarr(folder / "c")
                seconds = time.perf_counter() - start
        error = error_of(folder, n)
    rows = [
        ("seconds", seconds),
        ("GFLOP/s", 2 * n**3 / seconds / 1e9),
        ("bytes of A, B and C over all workers' memory", 3 * 4 * n * n / (2 * limit)),
        ("greatest resident MB of a worker", watch.greatest_bytes / 1e6),
        ("its share of the limit", watch.greatest_bytes / limit),
        ("share of the time with a paused worker", watch.paused / max(1, watch.samples)),
        ("MB spilled", watch.spilled_bytes / 1e6),
        ("relative error of some rows", error),
    ]
    title = f"{n} x {n} float32 from file to file, 2 workers of {options.limit_mb} MB"
    report(title, ("what", "measured"), rows, options)


if __name__ == "__main__":
    main()
