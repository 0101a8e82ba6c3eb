"""How many workers each pool should have: from what it has to do and to hold, on dask.distributed's own clock."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distributed.deploy.adaptive import Adaptive

from deploy.slurm.pools import Pool, kind_of
from taskgraph.plan import TAG

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, TaskState

    from deploy.slurm.cluster import MixedSlurmCluster

#: A task of a kind that never ran yet is taken to last so long, as Dask does.
UNKNOWN_S = 0.5


@dataclasses.dataclass(frozen=True)
class Load:
    """What a pool has to do and to hold.

    tasks: on its workers, or waiting for one of them. seconds: that they take, on one thread.
    held_bytes: of results on its workers. memory_bytes, threads: of each worker.
    """

    tasks: int
    seconds: float
    held_bytes: int
    memory_bytes: int
    threads: int


def wanted_workers(load: Load, target_duration_s: float) -> int:
    """Workers that get the pool's tasks done within the target, and hold its results in 60% of their memory.

    One task keeps one thread busy, so more threads than tasks are of no use. The 60% are Dask's.

    >>> wanted_workers(Load(tasks=100, seconds=60.0, held_bytes=0, memory_bytes=2**30, threads=4), 5.0)
    3
    >>> wanted_workers(Load(tasks=0, seconds=0.0, held_bytes=2**30, memory_bytes=2**30, threads=4), 5.0)
    2
    """
    threads = min(load.tasks, max(math.ceil(load.seconds / target_duration_s), load.tasks > 0))
    holding = math.ceil(load.held_bytes / (0.6 * load.memory_bytes)) if load.memory_bytes else 0
    return max(math.ceil(threads / load.threads), holding)


def pool_load(scheduler: Scheduler, kind: str, pool: Pool, alone: bool) -> Load:
    """What a scheduler has for the workers of a kind.

    alone: there is no other pool, so everything is theirs.
    """
    workers = [ws for ws in list(scheduler.workers.values()) if kind_of(str(ws.name)) == kind]
    waiting = [ts for ts in (*scheduler.queued, *scheduler.unrunnable) if alone or kind_of_task(ts) == kind]
    return Load(
        tasks=len(waiting) + sum(len(ws.processing) for ws in workers),
        seconds=sum(ws.occupancy for ws in workers) + sum(map(_duration, waiting)),
        held_bytes=sum(ws.nbytes for ws in workers),
        memory_bytes=pool.workers_bytes // pool.processes,
        threads=pool.threads,
    )


def kind_of_task(ts: TaskState) -> str:
    """The pool whose workers a task waits for: its plan's, and CPU workers for what has none."""
    tag: Mapping[str, Any] = (ts.annotations or {}).get(TAG) or {}
    return str(tag.get("kind", "cpu"))


def _duration(ts: TaskState) -> float:
    average = ts.prefix.duration_average
    return UNKNOWN_S if average < 0 else average


class PoolsAdaptive(Adaptive):
    """Scales each pool of a cluster within its range; `cluster.adapt` makes it, `stop()` ends it.

    ranges: least and most workers by kind. kwargs: `interval`, `wait_count` (so many times in a row a pool must be
    found too large before it shrinks) and `target_duration` are Dask's, with its defaults.
    """

    cluster: MixedSlurmCluster

    def __init__(self, cluster: MixedSlurmCluster, ranges: Mapping[str, tuple[int, float]], **kwargs: Any) -> None:
        self.ranges = dict(ranges)
        self._too_large: Counter[str] = Counter()
        least, most = (sum(limits) for limits in zip(*self.ranges.values(), strict=True))
        super().__init__(cluster, minimum=int(least), maximum=most, **kwargs)

    async def adapt(self) -> None:
        """Look once, and scale what needs it."""
        sizes = {}
        for kind, limits in self.ranges.items():
            pool = self.cluster.pools[kind]
            load = pool_load(self.cluster.scheduler, kind, pool, alone=len(self.cluster.pools) == 1)
            wanted = workers_in_jobs(limits, wanted_workers(load, self.target_duration), pool.processes)
            have = self.cluster.sizes()[kind]
            self._too_large[kind] = self._too_large[kind] + 1 if wanted < have else 0
            if wanted > have and any(kind_of(name) == kind for name in self.cluster.given_up):
                continue  # SLURM or the jobs themselves fail: a person has to look
            if wanted > have or self._too_large[kind] >= self.wait_count:
                sizes[kind] = wanted
                self._too_large[kind] = 0
        if sizes:
            self.cluster.resize(sizes)


def workers_in_jobs(limits: tuple[int, float], wanted: int, per_job: int) -> int:
    """The workers of whole jobs that come closest to what is wanted, at least and at most `limits`.

    >>> [workers_in_jobs((1, 5), wanted, per_job=2) for wanted in (0, 3, 9)]
    [2, 4, 4]
    """
    least, most = limits
    jobs = math.ceil(max(least, min(most, wanted)) / per_job)
    return per_job * (jobs if jobs * per_job <= most else int(most // per_job))
