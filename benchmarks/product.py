"""A product on this machine's cores, against what else one would use: `python -m benchmarks.product [--n 4096]`.

NumPy with all BLAS threads is the limit here: 2 n^3 operations at the cores' rate. Ours pays 0.5 ms a task and the
bytes of one operand for each worker (about 1 GB/s between processes). dask.array runs on the same two workers with the
best of three chunk sizes. PyTorch takes part where it is installed. Operands exist before the clock starts; the result
stays where it is made.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, wait

import taskgraph as tg
from benchmarks.harness import arguments, interleaved, report, summary, timed


def ours(client: Client, a: np.ndarray, b: np.ndarray) -> Callable[[], float]:
    x, y = (tg.asarray(m, chunks=(len(m) // 2, len(m))).persist() for m in (a, b))
    wait(client.futures_of([x, y]))

    def run() -> float:
        start = time.perf_counter()
        c = (x @ y).persist()
        wait(client.futures_of(c))
        return time.perf_counter() - start

    return run


def dasks(client: Client, a: np.ndarray, b: np.ndarray, chunk: int) -> Callable[[], float]:
    x, y = (client.persist(da.from_array(m, chunks=chunk)) for m in (a, b))
    wait([x, y])

    def run() -> float:
        start = time.perf_counter()
        wait(client.persist(x @ y))
        return time.perf_counter() - start

    return run


def main() -> None:
    options = arguments(__doc__ or "", n=4096, repeats=3)
    n = options.n
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    with tg.LocalCluster(gpus=0, dashboard_address=None) as cluster, Client(cluster) as client:
        candidates: dict[str, Callable[[], float]] = {
            "NumPy, all BLAS threads": timed(lambda: a @ b),
            "dask-taskgraph": ours(client, a, b),
            **{f"dask.array, chunks {n // s}": dasks(client, a, b, n // s) for s in (2, 4, 8)},
        }
        if importlib.util.find_spec("torch"):
            candidates["PyTorch"] = timed(_torch(a, b))
        seconds = interleaved(candidates, options.repeats)
    numpys = summary(seconds["NumPy, all BLAS threads"])[0]
    rows = []
    for name, values in seconds.items():
        median, least, greatest = summary(values)
        rows.append((name, median, least, greatest, 2 * n**3 / median / 1e9, numpys / median))
    columns = ("who", "seconds", "least", "greatest", "GFLOP/s", "of NumPy")
    report(f"{n} x {n} float32", columns, rows, options)


def _torch(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    import torch

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: x @ y


if __name__ == "__main__":
    main()
