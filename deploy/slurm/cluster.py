"""A cluster whose workers are SLURM jobs, in a CPU pool and a GPU pool that scale apart and are kept at their sizes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed import Scheduler, SpecCluster, Status
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from distributed.utils import NoOpAwaitable, format_dashboard_link, get_ip, get_ip_interface
from tornado.ioloop import PeriodicCallback

from deploy.local import LOOPBACK, OPEN_DASHBOARD, free_dashboard_address
from deploy.scratch import scratch_folder
from deploy.slurm.adaptivity import PoolsAdaptive
from deploy.slurm.healer import Healer
from deploy.slurm.jobs import PoolJob, call_slurm, jobs_named
from deploy.slurm.keys import cluster_keys
from deploy.slurm.pools import (
    RETIRE_S,
    Pool,
    as_pool,
    cheapest,
    job_keywords,
    job_of,
    kind_of,
    new_names,
    on_site,
    split_workers,
)
from deploy.slurm.queue import SlurmError
from deploy.slurm.site import Site, read_site
from scheduler_plugins.plugin import TilePlacement
from workers import aligned
from workers.listening import is_loopback

logger = logging.getLogger(__name__)

#: So long closing waits for SLURM to end the jobs. What does not stop by itself it kills after KillWait, by default
#: 30 s.
END_TIMEOUT_S = 60

#: How often what is waited for is looked at.
POLL_S = 0.5


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """A job of the cluster: its name, SLURM's number, state and reason for it, its nodes, its workers that are there.

    Without a number it is "NOT SUBMITTED" yet (again), or "REFUSED" for the reason.
    """

    name: str
    job_id: str | None
    state: str
    reason: str
    nodes: str
    workers: tuple[str, ...]


class MixedSlurmCluster(SpecCluster):
    """CPU workers and GPU workers in jobs of SLURM; the scheduler runs here, such as on the login node.

    Workers are named "cpu-0", "gpu-0", ..., and "gpu-0-0", "gpu-0-1" where a job has several. A job that is lost
    (cancelled, failed, preempted, its node down, its time over) is submitted again under its name. SLURM is asked for
    the state of jobs only while one of them has no worker.

    cpu, gpu: a `Pool`, or a mapping of its fields; at least one of them.
    site: a TOML file of what the site wants in every job (docs/slurm.md), or the `Site` read; by default the file that
    TASKGRAPH_SITE in the environment names, if any. What pools say comes before it.
    security: None for keys of this cluster's own, which are removed with it; a folder that `deploy.tls.make_keys` made;
    or a `distributed.Security` that names files. All processes speak TLS.
    folder: in which a folder of the cluster's own (mode 0700) is made for keys and the jobs' logs, and removed when the
    cluster is closed. All nodes must see it. The current one by default.
    interface: the network by which nodes and this machine reach each other ("ib0"). host: this machine's address there,
    where the interface has another name here.
    heal: so often in a row a job is submitted again that ended by its own fault, or came up to nothing; a job that had
    a worker for ten minutes, and one that was preempted or whose time was over, begins a new row.
    poll: how often jobs without workers are looked at.
    dashboard_address: on the loopback device where it names no host, as the workers' HTTP servers are.
    The other keywords are LocalCluster's.

    Raises ValueError and TypeError for what no job can be made of; PermissionError for keys that others can read;
    SlurmError, with SLURM's own words, where it refuses the first jobs.

    >>> with MixedSlurmCluster(cpu=Pool(cores=16), gpu=Pool(partition="a100", cores=8, gpus=1)) as c:  # doctest: +SKIP
    ...     c.scale(cpu=4, gpu=2)
    """

    scheduler: Any
    workers: dict[str, PoolJob]

    def __init__(
        self,
        cpu: Pool | Mapping[str, Any] | None = None,
        gpu: Pool | Mapping[str, Any] | None = None,
        security: Security | str | Path | None = None,
        *,
        site: Site | str | Path | None = None,
        folder: str | Path | None = None,
        interface: str | None = None,
        host: str | None = None,
        heal: int = 5,
        poll: str | float = "10s",
        dashboard_address: str | int | None = ":8787",
        scheduler_port: int = 0,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        silence_logs: int | bool = logging.WARNING,
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        scheduler_sync_interval: float = 1,
    ) -> None:
        site = as_site(site)
        given = {kind: pool for kind, pool in {"cpu": cpu, "gpu": gpu}.items() if pool is not None}
        self.pools = {kind: on_site(kind, as_pool(kind, pool), site) for kind, pool in given.items()}
        if not self.pools:
            raise ValueError("a cluster has a cpu pool, a gpu pool, or both: cpu=Pool(...)")
        if heal < 0:
            raise ValueError(f"heal is a number of times, at least 0, not {heal!r}")
        self.healer = Healer(self, heal)
        self._poll_s = parse_timedelta(poll)
        self._came_up = False
        dashboard = free_dashboard_address(dashboard_address, LOOPBACK)
        self._http_host = dashboard.rpartition(":")[0]
        if not is_loopback(self._http_host):
            warnings.warn(OPEN_DASHBOARD.format(address=dashboard), stacklevel=2)
        interface = _interface(interface or site.interface)
        host = host or (get_ip_interface(interface) if interface else get_ip())
        aligned.register()  # what the client receives
        self.job_name = f"taskgraph-{secrets.token_hex(4)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.job_name}-", dir=Path(folder or ".").absolute()))
        try:
            security, paths = cluster_keys(security, self.folder / "tls")
            self._keywords = {
                kind: job_keywords(
                    pool,
                    job_name=self.job_name,
                    folder=self.folder,
                    tls=paths,
                    interface=interface,
                    python=site.python or sys.executable,
                )
                for kind, pool in self.pools.items()
            }
            scheduler = {
                "host": host,
                "port": scheduler_port,
                "protocol": "tls://",
                "security": security,
                "dashboard": dashboard_address is not None,
                "dashboard_address": dashboard,
                "local_directory": str(scratch_folder()),
                "plugins": (TilePlacement(),),
            }
            starting = {kind: pool.jobs_for(pool.workers) for kind, pool in self.pools.items()}
            names = [f"{kind}-{i}" for kind, jobs in starting.items() for i in range(jobs)]
            super().__init__(
                workers={job: self._spec(job) for job in names},
                scheduler={"cls": Scheduler, "options": scheduler | dict(scheduler_kwargs or {})},
                worker=self._spec(next(iter(self.pools))),
                security=security,
                silence_logs=silence_logs,
                name=name,
                asynchronous=asynchronous,
                loop=loop,
                scheduler_sync_interval=scheduler_sync_interval,
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._came_up = not asynchronous

    # -- sizes

    def sizes(self) -> dict[str, int]:
        """Workers of each pool, those included that are still to come."""
        jobs = Counter(map(kind_of, self.worker_spec))
        return {kind: jobs[kind] * pool.processes for kind, pool in self.pools.items()}

    def scale(  # type: ignore[override]
        self, n: int | None = None, *, cpu: int | None = None, gpu: int | None = None
    ) -> Any:
        """Have so many workers in the pools that are named; a job with several of them is not cut.

        n: of all together; CPU workers come and go first. What is taken away first has no worker yet, or the least to
        do and to hold; workers hand over what they hold.

        Raises ValueError for a pool that is not there and for fewer than 0, TypeError for n with one of the others.

        >>> cluster.scale(cpu=4, gpu=2)  # doctest: +SKIP
        """
        named = {kind: count for kind, count in {"cpu": cpu, "gpu": gpu}.items() if count is not None}
        if (n is not None and named) or (n is None and not named):
            raise TypeError("scale(n) is for all workers, scale(cpu=..., gpu=...) for each pool; give one of the two")
        wanted = named if n is None else split_workers(n, self.sizes())
        for kind, count in wanted.items():
            self._check_kind(kind)
            if count < 0:
                raise ValueError(f"{kind}: {count} workers; at least 0 can be had")
        for kind in wanted:
            self.healer.forget(kind)
        self.resize(wanted)
        return NoOpAwaitable() if self.asynchronous else None

    def adapt(  # type: ignore[override]
        self,
        *,
        cpu: tuple[int, float] | None = None,
        gpu: tuple[int, float] | None = None,
        minimum: int | None = None,
        maximum: float | None = None,
        **kwargs: Any,
    ) -> PoolsAdaptive:
        """Scale each pool that is named between a least and a most number of workers, with what it has to do.

        minimum, maximum: of all workers, where no pool is named: then CPU workers come and go beside the GPU workers
        of now. kwargs: Dask's `interval`, `wait_count`, `target_duration`. `scale` sizes pools that are not named.

        Tasks go to a GPU pool by their plan, and plans are made for the workers that are there: a least of 1 keeps the
        GPU pool in them.

        >>> cluster.adapt(cpu=(1, 20), gpu=(1, 4), interval="10s")  # doctest: +SKIP
        """
        ranges = {kind: limits for kind, limits in {"cpu": cpu, "gpu": gpu}.items() if limits is not None}
        if not ranges:
            kind = next(iter(self.pools))
            others = sum(size for other, size in self.sizes().items() if other != kind)
            most = math.inf if maximum is None else maximum
            ranges[kind] = max(0, (minimum or 0) - others), max(0, most - others)
        for kind, (least, most) in ranges.items():
            self._check_kind(kind)
            if not 0 <= least <= most:
                raise ValueError(f"{kind}: from {least} to {most} workers is no range")
        if self._adaptive is not None:
            self._adaptive.stop()
        self._adaptive = PoolsAdaptive(self, ranges, **kwargs)
        return self._adaptive

    def _check_kind(self, kind: str) -> None:
        if kind not in self.pools:
            raise ValueError(f"this cluster has no {kind} pool; it was made with {', '.join(self.pools)}")

    def resize(self, workers: Mapping[str, int]) -> None:
        """Have so many workers of each kind that is named."""
        for kind, count in workers.items():
            self._want(kind, self.pools[kind].jobs_for(count))
        self._soon(self._correct_state)

    def _want(self, kind: str, jobs: int) -> None:
        names = [name for name in self.worker_spec if kind_of(name) == kind]
        for name in cheapest(names, self.loads(), len(names) - jobs):
            del self.worker_spec[name]
        if self.status in (Status.closing, Status.closed) or jobs <= len(names):
            return
        # A job that is being closed keeps its name until then: the scheduler refuses a second worker of one name.
        taken = {*self.worker_spec, *self.workers, *self.loads()}
        for name in new_names(kind, jobs - len(names), taken):
            self.healer.losses.pop(name, None)
            self.worker_spec[name] = self._spec(name)

    def _spec(self, name: str) -> dict[str, Any]:
        kind = kind_of(name)
        pool = self.pools[kind]
        options = {
            "pool": pool,
            "keywords": self._keywords[kind],
            "folder": self.folder,
            "losses": self.healer.losses[name],
        }
        spec = {"cls": PoolJob, "options": options}
        return spec if pool.processes == 1 else spec | {"group": [f"-{i}" for i in range(pool.processes)]}

    def loads(self) -> dict[str, tuple[int, int]]:
        """Tasks and bytes of each job whose workers are there."""
        loads: dict[str, tuple[int, int]] = {}
        for ws in list(self.scheduler.workers.values()) if self.scheduler is not None else ():
            job = job_of(str(ws.name))
            tasks, size = loads.get(job, (0, 0))
            loads[job] = tasks + len(ws.processing), size + ws.nbytes
        return loads

    # -- what is there

    @property
    def given_up(self) -> dict[str, str]:
        """Why each job that is not submitted again is not, by its name; `scale` tries anew."""
        return dict(self.healer.given_up)

    def jobs(self) -> Any:
        """The jobs of the cluster, as SLURM has them now: a list of `JobStatus`; awaitable in an asynchronous cluster.

        Raises SlurmError where SLURM does not answer.
        """
        return self.sync(self._jobs)

    async def _jobs(self) -> list[JobStatus]:
        seen = await jobs_named(self.job_name)
        workers = sorted(str(ws.name) for ws in self.scheduler.workers.values())
        found = []
        for name in sorted({*self.worker_spec, *self.workers}):
            job = self.workers.get(name)
            there = tuple(worker for worker in workers if job_of(worker) == name)
            if job is None or job.job_id is None:
                told = ("NOT SUBMITTED", "", "") if job is None else ("REFUSED", job.refusal, "")
                found.append(JobStatus(name, None, *told, workers=there))
            else:
                state = seen.get(job.job_id)
                told = (state.state, state.reason, state.nodes) if state else ("UNKNOWN", "", "")
                found.append(JobStatus(name, job.job_id, *told, workers=there))
        return found

    def job_script(self, kind: str) -> str:
        """The batch script of a pool's first job, as sbatch gets it."""
        self._check_kind(kind)
        options = self._spec(f"{kind}-0")["options"]
        return PoolJob(self.scheduler_address, f"{kind}-0", **options).job_script()

    @property
    def dashboard_link(self) -> str:
        """Where the dashboard is, as `distributed.dashboard.link` has it; "" without one."""
        port = self.scheduler_info.get("services", {}).get("dashboard")
        return str(format_dashboard_link(self._http_host, port)) if port else ""

    async def _wait_for_workers(self, n_workers: int = 0, timeout: float | None = None) -> None:
        """Without waiting for ever for those that will not come."""
        waiting = asyncio.ensure_future(super()._wait_for_workers(n_workers, timeout))
        try:
            while not (await asyncio.wait([waiting], timeout=POLL_S))[0]:
                if self.given_up and sum(self.sizes().values()) < n_workers:
                    causes = "\n".join(self.given_up.values())
                    raise RuntimeError(f"{n_workers} workers will not come:\n{causes}")
            waiting.result()
        finally:
            waiting.cancel()

    # -- healing

    async def _start(self) -> None:
        self.periodic_callbacks.setdefault("jobs", PeriodicCallback(self.healer.look, self._poll_s * 1000))
        await super()._start()

    def __await__(self) -> Any:
        yield from super().__await__()
        self._came_up = True
        return self

    async def _correct_state_internal(self) -> None:
        try:
            if self.status == Status.running:
                await self._retire(set(self.workers) - set(self.worker_spec))
        finally:
            self._correct_state_waiting = None
        try:
            await super()._correct_state_internal()
        except (SlurmError, OSError):
            if not self._came_up:
                raise
            self._soon(self.healer.look)  # it finds the jobs that were refused

    async def _retire(self, jobs: Iterable[str]) -> None:
        """Have workers hand over what they hold. SpecCluster asks for it by names, which the scheduler does not know as
        addresses, and then cancels their jobs."""
        jobs = set(jobs)
        names = [str(ws.name) for ws in self.scheduler.workers.values() if job_of(str(ws.name)) in jobs]
        if not names:
            return
        try:
            async with asyncio.timeout(RETIRE_S):
                await self.scheduler.retire_workers(names=names, close_workers=True, remove=True)
        except TimeoutError:
            logger.warning("%s did not hand over all they hold in %d s; it is lost", ", ".join(names), RETIRE_S)

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """Note who came. SpecCluster would cancel the job of a worker that left for `lost-worker-timeout`, also while
        its nanny starts it again."""
        if op == "add":
            for worker in msg["workers"].values():
                job = self.workers.get(job_of(str(worker["name"])))
                if job is not None:
                    job.came()
        Cluster._update_worker_status(self, op, msg)

    def submit_again(self, name: str, delay_s: float) -> None:
        """Submit a job that is gone once more, unless it is not wanted any longer."""
        if name in self.worker_spec:
            self.worker_spec[name] = self._spec(name)
            self._soon(self._submit, delay_s)

    def _submit(self) -> None:
        if self.status == Status.running:
            self._correct_state()

    def _soon(self, function: Callable[[], Any], delay_s: float = 0.0) -> None:
        """Call it on the cluster's loop, from any thread."""
        loop: Any = self.loop
        if delay_s:
            loop.call_later(delay_s, function)
        else:
            loop.add_callback(function)

    # -- the end

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        try:
            if self.status == Status.running:
                await self._end_jobs()
            await super()._close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _end_jobs(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
        self.worker_spec.clear()  # so that nothing is healed
        async with self._lock:  # none is just being submitted
            await self._cancel()
        await self._until_jobs_ended()
        for job in self.workers.values():
            job.ended = True
        await self._until_workers_left()

    async def _cancel(self) -> None:
        """All jobs, also those that nobody knows, such as those that SLURM took while sbatch gave up."""
        try:
            await call_slurm("scancel", "--me", f"--name={self.job_name}")
        except SlurmError as error:
            if any(job.job_id or job.passing for job in self.workers.values()):
                logger.warning("jobs named %s may be left: %s", self.job_name, error)

    async def _until_workers_left(self) -> None:
        """A scheduler that closes before their connections logs an error for each."""
        deadline = monotonic() + END_TIMEOUT_S
        while self.scheduler is not None and self.scheduler.workers and monotonic() < deadline:
            await asyncio.sleep(POLL_S / 10)

    async def _until_jobs_ended(self) -> None:
        """Where files lie on NFS, a folder with an open log cannot be removed."""
        deadline = monotonic() + END_TIMEOUT_S
        while True:
            try:
                seen = await jobs_named(self.job_name)
            except SlurmError:
                return  # told by _cancel
            left = [job for job, state in seen.items() if not state.ended]
            if not left:
                return
            if monotonic() > deadline:
                logger.warning("SLURM has not ended the jobs %s within %d s", ", ".join(left), END_TIMEOUT_S)
                return
            await asyncio.sleep(POLL_S)


def as_site(given: Site | str | Path | None) -> Site:
    """The site that is given, or that TASKGRAPH_SITE names, or one that wants nothing."""
    if isinstance(given, Site):
        return given
    path = given or os.environ.get("TASKGRAPH_SITE")
    return read_site(path) if path else Site()


def _interface(given: str | None) -> str | None:
    """The interface of workers, the user's jobqueue.yaml's where none is given. It stands in a job's script."""
    interface = given or dask.config.get("jobqueue.slurm.interface", None)
    if interface is not None and not re.fullmatch(r"[\w.:@-]+", interface, re.ASCII):
        raise ValueError(f"interface is a network device, such as 'ib0', not {interface!r}")
    return interface
