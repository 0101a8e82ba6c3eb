"""A cluster on this machine that mixes CPU workers and GPU-pinned workers."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import math
import multiprocessing
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Nanny, Scheduler, SpecCluster, Worker
from distributed.security import Security
from distributed.utils import format_dashboard_link
from distributed.worker_memory import parse_memory_limit

from deploy.scratch import scratch_folder
from deploy.secured import secured
from scheduler_plugins.plugin import TilePlacement
from workers import aligned
from workers.backend import probe_gpus
from workers.listening import is_loopback
from workers.memory import DEVICE_FRACTION
from workers.plugin import DeviceSetup

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

ANY_HOST = ("0.0.0.0", "::", "[::]")

OPEN_DASHBOARD = (
    "everyone who reaches {address} sees this cluster's dashboard, with names of tasks and lines of code: leave the "
    "host out, and use `ssh -L`"
)

#: A worker that did not come up after so long never will. Importing CuPy from a network's disk and making the
#: first CUDA context have taken most of a minute.
START_TIMEOUT_S = 120

#: Task threads of a CPU worker, if nobody says otherwise. Measured on 2 cores, one process of 2 threads against two of
#: one, medians in seconds: a product of 8192 x 8192 float32 8.4 against 10.1 (403 MB moved), elementwise chains over
#: blocks of 1000 x 1000 0.76 against 0.75, dask.array's std 0.48 against 0.64, 400 blocks of 100 x 100 1.0 against 1.1.
#: Chosen: eight; with more, what a task does in Python would hold up too many others.
THREADS_A_PROCESS = 8

#: So long a worker tries to reach a peer that does not answer before its data count as lost. Dask's 30 s are for
#: networks; on one machine a dead process refuses at once, and a graph would stand still for the rest (measured: 30 s
#: after some kills, 3 s with 3 s).
CONNECT_TIMEOUT = "5s"

#: So long tasks wait for a worker that may take them, then they fail: for ever by default in Dask. A worker that comes
#: back needs no longer than one that starts.
NO_WORKERS_TIMEOUT_S = float(START_TIMEOUT_S)

#: dask-cuda's part of a spec is asked of a process of its own; it imports dask-cuda and makes a CUDA context.
DASK_CUDA_TIMEOUT_S = 60

#: What distributed's LocalCluster calls the same things.
_OUR_NAME_FOR = {
    "n_workers": "cpu_workers",
    "threads_per_worker": "threads_per_cpu_worker",
    "nthreads": "threads_per_cpu_worker",
}


class ImpatientScheduler(Scheduler):
    """Dask's, but tasks wait for a worker only so long where Dask's `no-workers-timeout` says nothing.

    (It takes the time from the settings alone, and those are of the whole process.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.no_workers_timeout is None:
            self.no_workers_timeout = NO_WORKERS_TIMEOUT_S


class LocalCluster(SpecCluster):
    """CPU workers and GPU-pinned workers on this machine, each a process with a nanny that brings it back.

    Workers are named "cpu-0", "cpu-1", ... and "gpu-0", ...; a worker that dies comes back under its name, at
    a new address. Each publishes its measured profile as `WorkerState.extra["taskgraph"]` before it
    registers.

    cpu_workers, threads_per_cpu_worker: by default few processes of several threads, one for each eight cores (4
    cores: 1 of 4; 64 cores: 8 of 8), since what threads of one process share need not be moved. BLAS has one thread
    a task thread (`blas_threads`), so that all tasks together use every core. Work in pure Python, which holds the
    interpreter's lock, wants `threads_per_cpu_worker=1`.
    gpus: "auto" for all that are visible here (CUDA_VISIBLE_DEVICES counts), or how many of them. Each has a
    worker of its own, with one thread and CUDA_VISIBLE_DEVICES naming it alone; CPU workers see no GPU.
    emulated_gpus: workers that stand in for GPUs where there are none, named after the real ones. They
    compute on the CPU's cores, which they share with the CPU workers, and say so in their profile.
    emulated_gpu_memory: of each, in bytes or as "2 GiB": device memory that is counted and runs out as a real one's.
    By default it does not.
    memory_limit: of each worker's host memory, in bytes, as "4 GiB", or as a fraction of the machine's;
    "auto" shares the machine's among all workers alike, None sets no limit.
    memory_fraction: of each GPU's memory, that CuPy's pool may take.
    security: a `distributed.Security` (`deploy.tls.make_keys` gives one that other processes can load), True for
    temporary keys that this process alone has, or False for none: then whoever reaches the cluster runs code as you.
    By default there are temporary keys where `host` is beyond the loopback device, and none on it: on a machine that
    other people use, say True.
    host: where scheduler, workers and nannies listen: on the loopback device alone unless you say otherwise.
    dashboard_address: ":8787" by default, on the loopback device where it names no host, since it asks nobody who
    they are; another port where that one is taken; None for no dashboard.
    kwargs: `name`, `asynchronous`, `loop`, `silence_logs`, `scheduler_port`, `protocol`, `scheduler_kwargs`
    and `scheduler_sync_interval` are SpecCluster's and the scheduler's, as in distributed; the others are
    every worker's (`local_directory`, `env`, `plugins`, `resources`, ...).

    `scale` and `adapt` count all workers, and add or take CPU workers.

    Raises ValueError for counts below 0, other values of gpus, and more GPUs than there are; TypeError for
    keywords that neither the cluster nor a worker knows; RuntimeError where a worker cannot start. Warns where
    strangers can reach what they should not.

    >>> with LocalCluster(cpu_workers=1, emulated_gpus=1) as cluster:  # doctest: +SKIP
    ...     print(sorted(cluster.workers))
    ['cpu-0', 'gpu-0']
    """

    def __init__(
        self,
        cpu_workers: int | None = None,
        threads_per_cpu_worker: int | None = None,
        gpus: int | str = "auto",
        emulated_gpus: int = 0,
        memory_limit: float | str | None = "auto",
        security: Security | bool | None = None,
        *,
        memory_fraction: float = DEVICE_FRACTION,
        blas_threads: int = 1,
        emulated_gpu_memory: int | str | None = None,
        host: str = LOOPBACK,
        dashboard_address: str | int | None = ":8787",
        scheduler_port: int = 0,
        protocol: str | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        silence_logs: int | bool = logging.WARNING,
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        scheduler_sync_interval: float = 1,
        **worker_kwargs: Any,
    ) -> None:
        check_worker_keywords(worker_kwargs)
        aligned.register()  # what the client receives
        n_cpu, cpu_threads = split_cores(cpu_workers, threads_per_cpu_worker)
        tokens = choose_gpus(gpus)
        if not _is_count(emulated_gpus):
            raise ValueError(f"emulated_gpus is a number of workers, at least 0, not {emulated_gpus!r}")

        scheduler_kwargs = dict(scheduler_kwargs or {})
        hosts = {host, scheduler_kwargs.get("host") or host}
        security, protocol = secured(security, protocol, hosts)
        dashboard = free_dashboard_address(dashboard_address, LOOPBACK)
        self._http_host = dashboard.rpartition(":")[0]
        if not is_loopback(self._http_host):
            warnings.warn(OPEN_DASHBOARD.format(address=dashboard), stacklevel=2)
        scratch = str(scratch_folder())
        common = {
            "host": host,
            "protocol": protocol,
            "security": security,
            "silence_logs": silence_logs,
            "memory_limit": parse_memory_limit(
                memory_limit, 1, max(1, n_cpu + len(tokens) + emulated_gpus), logger=logger
            ),
            # Without an address of its own a worker's HTTP server listens on every interface.
            "dashboard_address": f"{LOOPBACK}:0",
            "dashboard": False,
            "death_timeout": START_TIMEOUT_S,
            "config": worker_config(),
            "local_directory": scratch,
        } | worker_kwargs
        settings = {
            "memory_fraction": memory_fraction,
            "blas_threads": blas_threads,
            "emulated_memory": None if emulated_gpu_memory is None else parse_bytes(emulated_gpu_memory),
        }
        gpus_of = gpu_options(tokens, protocol)
        workers, cpu_spec = worker_specs(common, settings, (n_cpu, cpu_threads), gpus_of, emulated_gpus)
        scheduler = {
            "cls": ImpatientScheduler,
            "options": {
                "host": host,
                "port": scheduler_port,
                "protocol": protocol,
                "security": security,
                "dashboard": dashboard_address is not None,
                "dashboard_address": dashboard,
                "local_directory": scratch,
                "plugins": (TilePlacement(),),
            }
            | scheduler_kwargs,
        }
        self._losses: dict[str, int] = {}  # by a worker's name
        super().__init__(
            workers=workers,
            scheduler=scheduler,
            worker=cpu_spec,
            security=security,
            silence_logs=silence_logs,
            name=name,
            asynchronous=asynchronous,
            loop=loop,
            scheduler_sync_interval=scheduler_sync_interval,
        )

    def _new_worker_name(self, worker_number: int) -> str:
        return f"cpu-{worker_number}"

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """Dask's hook. A nanny that does not bring its lost worker back within START_TIMEOUT_S is given up.

        Dask gives it 15 s, less than a GPU's worker may need; and it counts from the first loss where there were two,
        so that a worker which died twice was gone for good.
        """
        if op == "remove":
            name = self.scheduler_info["workers"][msg]["name"]
            loss = self._losses[name] = self._losses.get(name, 0) + 1
            asyncio.get_running_loop().call_later(START_TIMEOUT_S, self._give_up, name, loss)
        super(SpecCluster, self)._update_worker_status(op, msg)

    def _give_up(self, name: str, loss: int) -> None:
        alive = {w["name"] for w in self.scheduler_info["workers"].values()}
        if name in self.workers and name not in alive and self._losses[name] == loss:
            self._futures.add(asyncio.ensure_future(self.workers.pop(name).close()))

    @property
    def dashboard_link(self) -> str:
        """Where the dashboard is, as `distributed.dashboard.link` has it (a proxy's address, say); "" without one."""
        # Dask takes the scheduler's host, at which the dashboard does not listen.
        port = self.scheduler_info.get("services", {}).get("dashboard")
        if port is None or self._http_host in ANY_HOST:
            return str(super().dashboard_link)
        return str(format_dashboard_link(self._http_host, port))


def worker_specs(
    common: Mapping[str, Any],
    settings: Mapping[str, Any],
    cpu: tuple[int, int],
    gpus: Sequence[Mapping[str, Any]],
    emulated_gpus: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What SpecCluster starts: each worker's nanny by the worker's name, and the spec of one more CPU worker.

    common: options of all workers. settings: of `DeviceSetup`. cpu: how many workers of how many threads. gpus: what
    sets each GPU's worker apart.
    """

    def spec(kind: str, nthreads: int, device: Mapping[str, Any]) -> dict[str, Any]:
        return {"cls": Nanny, "options": worker_options(common, DeviceSetup(kind, **settings), nthreads, device)}

    # An empty list: a CUDA library in a CPU task would otherwise take device memory from the GPUs' own workers.
    no_gpu = {"env": {"CUDA_VISIBLE_DEVICES": ""}}
    n_cpu, cpu_threads = cpu
    cpu_spec = spec("cpu", cpu_threads, no_gpu)
    gpu_specs = [spec("gpu", 1, device) for device in gpus]
    gpu_specs += [spec("emulated-gpu", 1, no_gpu) for _ in range(emulated_gpus)]
    # GPU workers first: scaling down takes the last ones.
    workers = {f"gpu-{i}": gpu_spec for i, gpu_spec in enumerate(gpu_specs)}
    return workers | {f"cpu-{i}": cpu_spec for i in range(n_cpu)}, cpu_spec


def worker_config() -> dict[str, Any]:
    """Dask settings of the workers: ours, unless the user has changed Dask's own."""
    key = "distributed.comm.timeouts.connect"
    return {key: CONNECT_TIMEOUT} if dask.config.get(key) == "30s" else {}


def split_cores(cpu_workers: int | None, threads_per_cpu_worker: int | None, cores: int = CPU_COUNT) -> tuple[int, int]:
    """Processes and threads of each, such that together they use the cores; what is given stays.

    Raises ValueError for fewer than 0 processes or 1 thread.

    >>> split_cores(None, None, cores=16), split_cores(3, None, cores=16), split_cores(None, 4, cores=16)
    ((2, 8), (3, 6), (4, 4))
    """
    if cpu_workers is not None and not _is_count(cpu_workers):
        raise ValueError(f"cpu_workers is a number of workers, at least 0, not {cpu_workers!r}")
    if threads_per_cpu_worker is not None and not (_is_count(threads_per_cpu_worker) and threads_per_cpu_worker):
        raise ValueError(f"threads_per_cpu_worker is a number of threads, at least 1, not {threads_per_cpu_worker!r}")
    if cpu_workers is None and threads_per_cpu_worker is None:
        fewest = math.ceil(cores / THREADS_A_PROCESS)
        # A few more where the cores divide evenly so; otherwise some threads are more than the cores.
        cpu_workers = next((n for n in range(fewest, 2 * fewest + 1) if cores % n == 0), fewest)
    if cpu_workers is None:
        assert threads_per_cpu_worker is not None
        return max(1, cores // threads_per_cpu_worker), threads_per_cpu_worker
    return cpu_workers, threads_per_cpu_worker or max(1, math.ceil(cores / max(1, cpu_workers)))


def choose_gpus(gpus: int | str) -> tuple[str, ...]:
    """The device tokens of so many visible GPUs, or of all for "auto".

    Raises ValueError for another word or a count below 0, and, saying what is there, for more GPUs than there
    are.
    """
    if gpus != "auto" and not _is_count(gpus):
        raise ValueError(f"gpus is 'auto' or a number of GPUs, at least 0, not {gpus!r}")
    if gpus == 0:
        return ()
    tokens, reason = probe_gpus()
    if isinstance(gpus, str):
        return tokens
    if gpus > len(tokens):
        there = (
            f"{len(tokens)} can be used here ({', '.join(tokens)})" if tokens else f"none can be used here: {reason}"
        )
        raise ValueError(
            f"gpus={gpus}: {there}. Ask for gpus='auto', or have the missing ones emulated: "
            f"emulated_gpus={gpus - len(tokens)}"
        )
    return tokens[:gpus]


def gpu_options(tokens: Sequence[str], protocol: str) -> list[dict[str, Any]]:
    """What sets the worker of each GPU apart: its environment, and what dask-cuda adds where installed.

    Data stay in a plain dict, as dask-cuda has it: Dask's spilling counts a tile's device bytes against the
    host's memory, and would write tiles to disk while the GPU has room.
    """
    ours = [{"env": {"CUDA_VISIBLE_DEVICES": token}, "data": dict} for token in tokens]
    if not tokens or importlib.util.find_spec("dask_cuda") is None:
        return ours
    if not all(token.isdigit() for token in tokens):
        # its worker_spec takes indices only
        logger.info("dask-cuda's worker spec is not used: %s are not all indices", ", ".join(tokens))
        return ours
    # worker_spec makes a CUDA context in the process that calls it. In this one that would hold device memory
    # of the first GPU for as long as the client lives, and could not be had at all in exclusive-process mode.
    try:
        theirs = in_another_process(dask_cuda_options, tokens, protocol, timeout_s=DASK_CUDA_TIMEOUT_S)
    except Exception as error:
        warnings.warn(f"GPU workers start without dask-cuda, whose worker spec failed: {error!r}", stacklevel=3)
        return ours
    return [their | our for their, our in zip(theirs, ours, strict=True)]


def dask_cuda_options(tokens: Sequence[str], protocol: str) -> list[dict[str, Any]]:
    """dask-cuda's part of each GPU's worker options: affinity, and a preload that makes the CUDA context.

    One call a GPU, because a call for several names all of them in every worker's CUDA_VISIBLE_DEVICES.
    Addresses, threads, logs and memory are the cluster's to say.
    """
    from dask_cuda.worker_spec import worker_spec

    specs = [worker_spec(protocol=protocol, CUDA_VISIBLE_DEVICES=[int(token)]) for token in tokens]
    theirs = [options["options"] for [options] in (spec.values() for spec in specs)]
    # Lists: Dask takes a bare string of arguments letter by letter, and the preload then fails (dask-cuda
    # 26.6, 26.10).
    return [
        {"plugins": list(options.get("plugins", ()))}
        | {key: _listed(options[key]) for key in ("preload", "preload_argv") if options.get(key)}
        for options in theirs
    ]


def in_another_process(function: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
    """The function's result from a new process, which ends with the call.

    Raises the function's own error, EOFError where the process died, TimeoutError after so many seconds.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()  # so that the child's end is the only one, and its death ends the wait
    try:
        if not receiver.poll(timeout_s):
            raise TimeoutError(f"no answer from another process after {timeout_s} s")
        result, error = receiver.recv()
    finally:
        process.kill()
        process.join(timeout_s)
        receiver.close()
    if error is not None:
        raise error
    return result


def _send_result(sender: Any, function: Callable[..., Any], args: Sequence[Any]) -> None:
    try:
        result, failure = function(*args), None
    except Exception as error:
        result, failure = None, error
    sender.send((result, failure))


def worker_options(
    common: Mapping[str, Any], setup: DeviceSetup, nthreads: int, device: Mapping[str, Any]
) -> dict[str, Any]:
    """A nanny's options: what all workers share and what its device needs; environments and plugins add up.

    The device's setup comes last, so that its affinity holds and its profile is measured on what the others
    left.
    """
    plugins = (*common.get("plugins", ()), *device.get("plugins", ()), setup)
    env = {**(common.get("env") or {}), **device.get("env", {})}
    own = {"nthreads": nthreads, "plugins": plugins, "env": env}
    if common.get("preload"):  # the user's, whose arguments could not be told from another's
        own |= {key: common[key] for key in ("preload", "preload_argv") if key in common}
    return {**common, **device, **own}


def free_dashboard_address(address: str | int | None, host: str) -> str:
    """An address for the scheduler's HTTP server: on `host` where `address` names none, at a free port.

    Dask serves on every interface where the address names none, and warns where the port is taken; another
    cluster on this machine is nothing to be warned of.

    >>> free_dashboard_address(None, "127.0.0.1")
    '127.0.0.1:0'
    """
    given_host, _, port_text = str(0 if address is None else address).rpartition(":")
    given_host = given_host or host
    try:
        port = int(port_text)
    except ValueError:
        raise ValueError(f"dashboard_address is a port or HOST:PORT, not {address!r}") from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind((given_host, port))
        except OSError:
            port = 0
    return f"{given_host}:{port}"


def check_worker_keywords(keywords: Mapping[str, Any]) -> None:
    """Raise TypeError for a keyword that no worker takes; in a worker's process its start would fail."""
    known = {*inspect.signature(Nanny.__init__).parameters, *inspect.signature(Worker.__init__).parameters}
    for keyword in keywords:
        if keyword in known - {"self", "scheduler_ip", "nthreads", "name", "worker_kwargs", "kwargs"}:
            continue
        hint = f"; it is called {_OUR_NAME_FOR[keyword]} here" if keyword in _OUR_NAME_FOR else ""
        raise TypeError(f"LocalCluster got an unexpected keyword argument {keyword!r}{hint}")


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _is_count(value: object) -> bool:
    """Whether this is a whole number, 0 or more. A bool is not: gpus=True would mean one GPU."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
