"""A product on this machine's cores, against what else one would use: `python -m benchmarks.product [--n 8192]`.

NumPy with all BLAS threads is the limit here: 2 n^3 operations at the cores' rate. Ours pays 0.5 ms a task and the
bytes of operands that lie on another worker (about 1 GB/s between processes). It runs on the default local cluster
(goal: 0.98 of NumPy) and on two single-thread workers (0.95); dask.array on the same two with the best of three chunk
sizes; PyTorch, and JAX on two devices of the host (a process of its own, which must be told before it starts), where
they are installed: ours should be ahead of all three. Everything is there before the clock starts; the result stays
where it is made. Runs take turns, medians count; float32 and then float64 (`--float64 0` leaves it out).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, wait

import taskgraph as tg
from benchmarks.harness import arguments, interleaved, report, summary, timed

NUMPY = "NumPy, all BLAS threads"
OURS_SMALL, OURS_DEFAULT = "dask-taskgraph, 2 single-thread workers", "dask-taskgraph, default cluster"
GOALS = {OURS_SMALL: ">= 0.95", OURS_DEFAULT: ">= 0.98"}
JAX_DEVICES = 2


def settle(client: Client, *kept: Any) -> None:
    """Wait for what was left on a cluster's workers; what failed there fails here."""
    with client.as_current():
        failed = [f for f in wait(client.futures_of(list(kept))).done if f.status == "error"]
        client.gather(failed)


def ours(client: Client, a: np.ndarray, b: np.ndarray) -> Callable[[], float]:
    x, y = (tg.asarray(m, chunks=(len(m) // 2, len(m))).persist(scheduler=client) for m in (a, b))
    settle(client, x, y)
    return timed(lambda: settle(client, (x @ y).persist(scheduler=client)))


def dasks(client: Client, a: np.ndarray, b: np.ndarray, chunk: int) -> Callable[[], float]:
    x, y = (client.persist(da.from_array(m, chunks=chunk)) for m in (a, b))
    settle(client, x, y)
    return timed(lambda: settle(client, client.persist(x @ y)))


def torchs(a: np.ndarray, b: np.ndarray) -> Callable[[], float]:
    import torch

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return timed(lambda: x @ y)


#: What the other process does: rows of the left operand on each device, the right one on both; a line in, seconds out.
JAX = """
import sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
n, dtype, devices = int(sys.argv[1]), sys.argv[2], jax.devices()
mesh = Mesh(np.array(devices), ("rows",))
rng = np.random.default_rng(0)
place = lambda spec: jax.device_put(rng.standard_normal((n, n), dtype), NamedSharding(mesh, PartitionSpec(*spec)))
a, b = place(("rows", None)), place((None, None))
product = jax.jit(lambda a, b: a @ b)
for _ in sys.stdin:
    start = time.perf_counter()
    product(a, b).block_until_ready()
    print(time.perf_counter() - start, flush=True)
"""


@contextlib.contextmanager
def jaxs(n: int, dtype: str) -> Iterator[Callable[[], float]]:
    """A run on two devices of the host, in a process that lives as long as the context."""
    flags = f"--xla_force_host_platform_device_count={JAX_DEVICES}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", JAX, str(n), dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        send, receive = process.stdin, process.stdout

        def run() -> float:
            print(file=send, flush=True)
            return float(receive.readline())

        try:
            yield run
        finally:
            send.close()  # it ends where its input does


def rows_of(
    n: int, dtype: str, repeats: int, default: Client, small: Client
) -> Iterator[tuple[str, str, float, float, float, float, float, str]]:
    """A row for everybody, of products of that dtype."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.dtype(dtype)) for _ in range(2))
    with contextlib.ExitStack() as open_ones:
        candidates: dict[str, Callable[[], float]] = {
            NUMPY: timed(lambda: a @ b),
            OURS_SMALL: ours(small, a, b),
            OURS_DEFAULT: ours(default, a, b),
            **{f"dask.array, chunks {n // s}": dasks(small, a, b, n // s) for s in (2, 4, 8)},
        }
        if importlib.util.find_spec("torch"):
            candidates["PyTorch"] = torchs(a, b)
        if importlib.util.find_spec("jax"):
            candidates[f"JAX, {JAX_DEVICES} devices"] = open_ones.enter_context(jaxs(n, dtype))
        seconds = interleaved(candidates, repeats)
    numpys = summary(seconds[NUMPY])[0]
    for name, values in seconds.items():
        median, least, greatest = summary(values)
        yield name, dtype, median, least, greatest, 2 * n**3 / median / 1e9, numpys / median, GOALS.get(name, "")


def measured(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """The rows of all dtypes, on two clusters of which one at a time is at work."""
    quiet: dict[str, Any] = {"gpus": 0, "dashboard_address": None}
    with (
        tg.LocalCluster(**quiet) as default_cluster,
        tg.LocalCluster(cpu_workers=2, threads_per_cpu_worker=1, **quiet) as small_cluster,
        Client(default_cluster, set_as_default=False) as default,
        Client(small_cluster, set_as_default=False) as small,
    ):
        dtypes = ("float32", "float64") if options.float64 else ("float32",)
        return [row for dtype in dtypes for row in rows_of(options.n, dtype, options.repeats, default, small)]


def main() -> None:
    options = arguments(__doc__ or "", n=4096, repeats=3, float64=1)
    rows = measured(options)
    columns = ("who", "dtype", "seconds", "least", "greatest", "GFLOP/s", "of NumPy", "goal")
    report(f"{options.n} x {options.n}", columns, rows, options)


if __name__ == "__main__":
    main()
