"""The setup of a worker process: its device, its cores, and the profile that it publishes.

`deploy.local.LocalCluster` passes `DeviceSetup` to its workers. Who starts Dask without it preloads this
module:

    CUDA_VISIBLE_DEVICES=0 dask worker tcp://scheduler:8786 --nthreads 1 --preload workers.plugin
    dask worker tcp://scheduler:8786 --preload workers.plugin --device cpu
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import click
import threadpoolctl
from dask.utils import parse_bytes
from distributed import Status, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import PeriodicCallback

from workers import aligned, backend, counters, emulated, memory, peers, rates
from workers.buffers import IDLE_S, buffers, receive_into_buffers
from workers.buffers import SHARE as SHARE_OF_BUFFERS
from workers.cache import EMULATED_SHARE, SHARE
from workers.listening import warning_of
from workers.profile import profile

logger = logging.getLogger(__name__)

KINDS = ("auto", "cpu", "gpu", "emulated-gpu")

#: Under this key the scheduler holds a worker's profile: `WorkerState.extra[PROFILE]`.
PROFILE = "taskgraph"

#: An emulated GPU's memory is at least this: its rates are measured in it.
LEAST_EMULATED_BYTES = 16 * 2**20


class DeviceSetup(WorkerPlugin):
    """Choose this worker's device, measure it and publish the profile, before the worker registers.

    kind: "cpu", "gpu" (CuPy on the one device that CUDA_VISIBLE_DEVICES pins), "emulated-gpu", or "auto" (a
    GPU where exactly one is pinned and usable, else the CPU);
    memory_fraction: of the GPU's memory, that CuPy's pool may take;
    emulated_memory: bytes of an emulated GPU's memory, counted and refused as a real one's; None: the host's;
    blas_threads: of each task. Task threads times BLAS threads should be the worker's share of the cores, so
    with a task thread a core it is 1.

    It has to be passed as `Worker(plugins=[...])` (or preloaded): those are set up before registration, and a
    failure stops the worker. A plugin registered by a client comes too late for `WorkerState.extra`.

    Raises ValueError for an unknown kind. In a worker: RuntimeError, saying why, where no GPU can be used.
    """

    name = "taskgraph-device"

    def __init__(
        self,
        kind: str = "auto",
        *,
        memory_fraction: float = memory.DEVICE_FRACTION,
        blas_threads: int = 1,
        emulated_memory: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown device kind {kind!r}; known: {', '.join(KINDS)}")
        if emulated_memory is not None and emulated_memory < LEAST_EMULATED_BYTES:
            raise ValueError(f"an emulated GPU has at least {LEAST_EMULATED_BYTES} bytes, not {emulated_memory}")
        if blas_threads < 1:
            raise ValueError(f"a task needs at least 1 BLAS thread, not {blas_threads}")
        self.kind = kind
        self.memory_fraction = memory_fraction
        self.blas_threads = blas_threads
        self.emulated_memory = emulated_memory
        self._book: rates.RateBook | None = None  # only once it is set up: a book does not travel

    def setup(self, worker: Worker) -> None:
        """Choose, measure, publish."""
        # All that can fail is here: Dask swallows an exception of a startup information function, and the
        # profile would just be missing.
        kind = detect_kind() if self.kind == "auto" else self.kind
        here = self._backend(kind, worker.memory_manager.memory_limit)
        backend.use(here)
        aligned.register()
        keep_buffers(worker)
        peers.give_up_at_once(worker)
        if kind == "gpu":
            stay_near_gpu(worker_pci_bus_id())
        book = rates.open_book(here, self.blas_threads)
        measured = profile(
            here,
            book=book,
            memory_limit_bytes=worker.memory_manager.memory_limit,
            nthreads=worker.state.nthreads,
            blas_threads=self.blas_threads,
        )
        if kind == "gpu":
            free_measurements()
        # Not as a context manager: it holds for the process. The environment comes too late for a loaded
        # BLAS.
        threadpoolctl.threadpool_limits(self.blas_threads, user_api="blas")
        book.save()
        rates.use(book)
        counters.reset()  # of what the measurement did
        self._book = book
        worker.startup_information[PROFILE] = lambda _worker: measured
        logging.getLogger("distributed.worker").addFilter(QuietHeartbeat(worker))
        worker.metrics[PROFILE] = lambda _worker: counters.counts() | held_bytes(here)

    def teardown(self, worker: Worker) -> None:
        """Go back to the host's NumPy: with workers in one process, the next may be another kind."""
        rates.use(None)
        if self._book is not None:
            self._book.save()
        buffers.limit_bytes = 0
        buffers.trim(0)
        here = backend.current()
        here.free()
        if here.emulated:
            emulated.memory.bound(None)
            here.cache.limit_bytes = 0
        backend.use(None)

    def _backend(self, kind: str, memory_limit_bytes: int | None) -> backend.Backend:
        if kind == "gpu":
            return backend.cupy_gpu(self.memory_fraction)
        if kind == "cpu":
            return backend.host()
        here = backend.emulated_gpu()
        emulated.memory.bound(self.emulated_memory)
        here.cache.limit_bytes = emulated_cache_bytes(memory_limit_bytes or MEMORY_LIMIT, self.emulated_memory)
        return here


def held_bytes(here: backend.Backend) -> dict[str, int]:
    """What is held beside results: copies on the device, and memory to be used again."""
    return {"cache_bytes": here.cache.held_bytes, "buffer_bytes": buffers.free_bytes}


def keep_buffers(worker: Worker) -> None:
    """Let this process use the memory of large arrays again, within its worker's limit, and for so long as it does."""
    limit_bytes = worker.memory_manager.memory_limit or MEMORY_LIMIT
    buffers.limit_bytes = int(SHARE_OF_BUFFERS * limit_bytes)
    receive_into_buffers()
    # The worker starts and stops it with its own.
    worker.periodic_callbacks["taskgraph-buffers"] = PeriodicCallback(buffers.trim, 1000 * IDLE_S / 4)


def emulated_cache_bytes(host_bytes: int, device_bytes: int | None) -> int:
    """What an emulated GPU's cache may hold, of its worker's host memory and of its own, where that is bounded.

    >>> emulated_cache_bytes(2**30, None) // 2**20, emulated_cache_bytes(2**30, 2**27) // 2**20
    (128, 64)
    """
    of_host = int(EMULATED_SHARE * host_bytes)
    return of_host if device_bytes is None else min(of_host, int(SHARE * device_bytes))


class QuietHeartbeat(logging.Filter):
    """Drops the traceback of a heartbeat that was under way while its worker closed.

    A worker that closes takes the connection away from its own heartbeat, which then reports an error: on a busy
    machine that is the last thing that a script shows which did all its work.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = weakref.ref(worker)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.msg != "Failed to communicate with scheduler during heartbeat.":
            return True
        worker = self._worker()
        return worker is not None and worker.status in (Status.running, Status.paused)


def detect_kind() -> str:
    """The kind "gpu" where CUDA_VISIBLE_DEVICES pins exactly one usable GPU, else "cpu".

    A machine's only GPU that nobody pinned is not taken: several workers of one machine would all take it.
    """
    listed = backend.visible_tokens(os.environ)
    tokens, reason = backend.probe_gpus()
    if len(tokens) == 1 and listed is not None and len(listed) == 1:
        return "gpu"
    if tokens:
        reason = f"of {len(tokens)} visible GPUs none is pinned; set CUDA_VISIBLE_DEVICES to one a worker"
    logger.info("This worker computes on its CPU: %s", reason)
    return "cpu"


def worker_pci_bus_id() -> str:
    """Where this process's GPU sits, such as "0000:65:00.0"."""
    import cupy

    return str(cupy.cuda.runtime.deviceGetPCIBusId(0))


def free_measurements() -> None:
    """Give back what the measurement took of the device."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def parse_cpulist(text: str) -> frozenset[int]:
    """The processors that a kernel's list names. Raises ValueError for what is none.

    >>> sorted(parse_cpulist("0-2,8,10-11"))
    [0, 1, 2, 8, 10, 11]
    >>> parse_cpulist("")
    frozenset()
    """
    cpus: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cpus)


def stay_near_gpu(pci_bus_id: str, sysfs: Path = Path("/sys/bus/pci/devices")) -> frozenset[int] | None:
    """Keep this process's threads on the cores beside the GPU; those cores, or None if nothing changed.

    Nothing is changed where the system does not tell (not Linux, a container without sysfs), or where this
    process may use none of those cores.
    """
    cpulist = sysfs / pci_bus_id.lower() / "local_cpulist"
    if not hasattr(os, "sched_setaffinity") or not cpulist.exists():
        return None
    cpus = parse_cpulist(cpulist.read_text()) & os.sched_getaffinity(0)
    if not cpus:
        logger.info("No core beside the GPU at %s may be used here; the affinity stays as it is", pci_bus_id)
        return None
    # The call takes one thread, and only its later children follow: the pools of BLAS and Dask may be there
    # already.
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cpus)
    return frozenset(cpus)


@click.command()
@click.option(
    "--device",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    # `dask worker --scheduler-file F ... --device cpu` takes the option for the scheduler's address.
    envvar="TASKGRAPH_DEVICE",
    show_envvar=True,
    help="What computes.",
)
@click.option(
    "--memory-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=memory.DEVICE_FRACTION,
    show_default=True,
    help="The part of the GPU's memory that CuPy's pool may take.",
)
@click.option("--blas-threads", type=click.IntRange(1), default=1, show_default=True, help="Of each task.")
@click.option("--emulated-memory", metavar="BYTES", help='Of an emulated GPU, such as "2 GiB".')
def dask_setup(
    worker: Any, device: str, memory_fraction: float, blas_threads: int, emulated_memory: str | None = None
) -> None:
    """Set up a worker that was started with `--preload workers.plugin`."""
    if not isinstance(worker, Worker):
        raise TypeError(f"workers.plugin is a preload of workers, not of a {type(worker).__name__}")
    if told := warning_of("worker", worker):
        logger.warning("%s", told)
    setup = DeviceSetup(
        device,
        memory_fraction=memory_fraction,
        blas_threads=blas_threads,
        emulated_memory=parse_bytes(emulated_memory) if emulated_memory else None,
    )
    # Not `plugin_add` here: a preload's exception is only logged, and the worker would register without a
    # device. The worker sets its pending plugins up next, and one that fails stops it.
    worker._pending_plugins = (*worker._pending_plugins, setup)
