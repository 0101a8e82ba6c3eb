"""What a worker tells of itself before it registers: a plan is made from these figures."""

from __future__ import annotations

import importlib.metadata
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl
from dask.system import CPU_COUNT

from workers import emulated
from workers.backend import Backend
from workers.rates import DTYPES as KEPT_DTYPES
from workers.rates import WIDTH as WIDEST
from workers.rates import Rate, RateBook

DTYPES = ("float32", "float64")

#: The first gemm is this wide; it doubles while one takes less than `ENOUGH_S`, up to the limit of the kind.
#: At 256 even a slow core needs only 5 ms.
FIRST_WIDTH = 256

#: A run of so many seconds is far above a clock's and a launch's own cost (microseconds).
ENOUGH_S = 0.01

#: Timed runs of the last width; the best counts.
REPEATS = 3

#: One dtype's measurement ends after so many seconds of the wall clock, however slow the machine.
BUDGET_S = 0.1

#: The copy whose rate is taken: long enough for the link to reach its rate, short enough not to be felt.
COPY_BYTES = 16 * 2**20


def profile(
    backend: Backend,
    *,
    memory_limit_bytes: int | None = None,
    nthreads: int = 1,
    blas_threads: int = 1,
    book: RateBook | None = None,
) -> dict[str, Any]:
    """The device of this process as a plan needs it: plain values only, as msgpack takes them.

    backend: whose device; memory_limit_bytes: the worker's own limit of host memory; nthreads: its task
    threads; blas_threads: of each task; book: rates that earlier runs have kept, and where what is measured now goes.

    kind "cpu" or "gpu", emulated, name;
    memory: bytes of the GPU, or of host memory that the worker may use (so also for an emulated
    GPU whose memory is not bounded);
    gflops: {"float32": x, "float64": y, ...} in GFLOP/s of a gemm, of the worker as a whole;
    gflops_from: for each dtype, where the figure is from: "measured at this start", or what was kept;
    host_to_device_bytes_per_s: of a copy from pageable memory, None on a CPU;
    nthreads;
    pci_bus_id, uuid, pool_limit (bytes that CuPy's pool may take): None but for a real GPU;
    version: of dask-taskgraph in this process, None where it is not installed.
    """
    on_host = backend.kind == "cpu" or backend.emulated
    # Of a core one thread's rate is taken and multiplied: gemm scales well over the cores that a worker has
    # to itself, while threads that wait for each other beside other starting workers measured 2 GFLOP/s
    # instead of 200.
    threads = min(nthreads * blas_threads, CPU_COUNT) if on_host else blas_threads
    rates, sources = {}, {}
    for dtype in KEPT_DTYPES:
        known = book.known(dtype) if book else None
        if known is None and dtype not in DTYPES:
            continue
        if known is None:
            known = Rate(blas_threads * gemm_gflops(backend, dtype) if on_host else gemm_gflops(backend, dtype), 0, 0.0)
            if book:
                book.measured(dtype, known.gflops)
        sources[dtype] = str(known) if known.at else "measured at this start"
        rates[dtype] = known.gflops * threads / blas_threads
    return {
        "kind": backend.kind,
        "emulated": backend.emulated,
        "name": backend.name,
        "memory": _memory_bytes(backend, memory_limit_bytes),
        "gflops": rates,
        "gflops_from": sources,
        "host_to_device_bytes_per_s": _link_bytes_per_s(backend, book) if backend.kind == "gpu" else None,
        "nthreads": nthreads,
        **_cuda_identity(backend),
        "version": _version(),
    }


def _link_bytes_per_s(backend: Backend, book: RateBook | None) -> float:
    known = book.known("link") if book else None
    if known is not None:
        return known.gflops * 1e9
    measured = copy_bytes_per_s(backend)
    if book:
        book.measured("link", measured / 1e9)
    return measured


def gemm_gflops(backend: Backend, dtype: str) -> float:
    """The best rate of a square product in GFLOP/s (2 n^3 operations), of a GPU or of one core."""
    deadline = time.perf_counter() + BUDGET_S
    widest = WIDEST["cpu" if backend.emulated else backend.kind]
    # Random: on constant operands a GPU draws less power and clocks higher than in real work.
    block = backend.to_device(np.random.default_rng(0).random((FIRST_WIDTH, FIRST_WIDTH)).astype(dtype))
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        _gemm_seconds(backend, block)  # the first one loads and starts the library
        operand, best = block, _gemm_seconds(backend, block)
        # Twice as wide is eight times the work: where that would end after the deadline, this width has to
        # do.
        while best < ENOUGH_S and operand.shape[0] < widest and time.perf_counter() + 8 * best < deadline:
            operand = backend.xp.tile(operand, (2, 2))
            best = _gemm_seconds(backend, operand)
        for _ in range(REPEATS):
            if time.perf_counter() + best > deadline:
                break
            best = min(best, _gemm_seconds(backend, operand))
    return float(2 * operand.shape[0] ** 3 / best / 1e9)


def copy_bytes_per_s(backend: Backend) -> float:
    """The best rate of a copy from pageable host memory to the device, in bytes a second."""
    limit = emulated.memory.limit if backend.emulated else None
    source = np.ones(COPY_BYTES if limit is None else min(COPY_BYTES, limit // 4), dtype=np.uint8)
    backend.to_device(source)  # the first one makes room in the pools
    return source.nbytes / min(_seconds(backend, lambda: backend.to_device(source)) for _ in range(REPEATS))


def _gemm_seconds(backend: Backend, operand: Any) -> float:
    # One BLAS thread works in this thread, whose own time does not count what others take of the core
    # meanwhile.
    clock = time.thread_time if backend.kind == "cpu" or backend.emulated else time.perf_counter
    return _seconds(backend, lambda: backend.xp.matmul(operand, operand), clock)


def _seconds(backend: Backend, work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    backend.synchronize()
    start = clock()
    work()
    backend.synchronize()
    return clock() - start


def _memory_bytes(backend: Backend, memory_limit_bytes: int | None) -> int:
    if backend.kind == "gpu" and not backend.emulated:
        from workers.memory import device_bytes

        return device_bytes()
    if backend.kind == "gpu" and emulated.memory.limit is not None:
        return emulated.memory.limit
    from distributed.system import MEMORY_LIMIT

    return int(memory_limit_bytes or MEMORY_LIMIT)


def _cuda_identity(backend: Backend) -> dict[str, Any]:
    """Which GPU of the machine this is, and what its pool may take; None for each where there is none."""
    if backend.kind != "gpu" or backend.emulated:
        return {"pci_bus_id": None, "uuid": None, "pool_limit": None}
    import cupy

    raw = cupy.cuda.runtime.getDeviceProperties(0).get("uuid")
    return {
        "pci_bus_id": cupy.cuda.runtime.deviceGetPCIBusId(0),
        "uuid": f"GPU-{uuid.UUID(bytes=raw)}" if isinstance(raw, bytes) and len(raw) == 16 else None,
        "pool_limit": int(cupy.get_default_memory_pool().get_limit()),
    }


def _version() -> str | None:
    try:
        return importlib.metadata.version("dask-taskgraph")
    except importlib.metadata.PackageNotFoundError:
        return None
