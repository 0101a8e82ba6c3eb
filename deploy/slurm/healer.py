"""The healer of a cluster: looks for jobs without workers, asks SLURM about them, and does what `healing` decides."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
from distributed import Status

from deploy.slurm.healing import Action, reconcile
from deploy.slurm.jobs import PoolJob, jobs_named
from deploy.slurm.pools import kind_of
from deploy.slurm.queue import SlurmError
from scheduler_plugins.placement import serving_kind
from taskgraph.plan import TAG

if TYPE_CHECKING:
    from deploy.slurm.cluster import MixedSlurmCluster

logger = logging.getLogger(__name__)


class Healer:
    """Keeps a cluster's jobs at what `cluster.worker_spec` says.

    limit: how often in a row a job is submitted again that may have ended by its own fault.
    """

    def __init__(self, cluster: MixedSlurmCluster, limit: int) -> None:
        self.limit = limit
        #: Jobs lost in a row, by name.
        self.losses: Counter[str] = Counter()
        #: Why each job that is not submitted again is not, by name.
        self.given_up: dict[str, str] = {}
        self._cluster = cluster
        self._looking = False
        self._told: set[tuple[str, str]] = set()

    async def look(self) -> None:
        """Look once; nothing where another look is not over."""
        if self._looking or self._cluster.status != Status.running:
            return
        self._looking = True
        try:
            if self.given_up:
                self._fail_hopeless_tasks()
            await self._look_after(self._missing())
        except SlurmError as error:
            self._tell("SLURM", f"does not say how the jobs are: {error}")
        finally:
            self._looking = False

    def forget(self, kind: str) -> None:
        """Begin anew with a pool, whose user wants it to have workers after all."""
        self.given_up = {name: why for name, why in self.given_up.items() if not name.startswith(kind)}

    def _missing(self) -> dict[str, PoolJob]:
        """The jobs that should have workers and have none."""
        there = self._cluster.loads()
        wanted = self._cluster.worker_spec
        return {name: job for name, job in self._cluster.workers.items() if name in wanted and name not in there}

    async def _look_after(self, missing: dict[str, PoolJob]) -> None:
        if not missing:
            return
        seen = await jobs_named(self._cluster.job_name)
        views = {name: job.view(seen.get(job.job_id or "")) for name, job in missing.items()}
        for action in reconcile(views, seen, self.limit):
            job = missing[action.name]
            if self._missing().get(action.name) is job:  # still, after SLURM was asked
                await self._act(action, job)

    async def _act(self, action: Action, job: PoolJob) -> None:
        name = action.name
        if action.verb == "tell":
            self._tell(name, action.why)
            return
        message = f"{name} {action.why}{self._why_not_joined(job)}"
        del self._cluster.workers[name]
        self.losses[name] = action.losses
        if action.verb == "give up":
            del self._cluster.worker_spec[name]
            self.given_up[name] = message
            logger.error("%s. It is not submitted again: cluster.scale(...) tries anew", message)
            await job.close()
        else:
            count = f" ({action.losses} of {self.limit})" if action.losses else ""
            logger.warning("%s. It is submitted again%s", message, count)
            await job.close()
            self._cluster.submit_again(name, action.delay_s)

    def _why_not_joined(self, job: PoolJob) -> str:
        end = job.log_end() if job.joined is None else ""
        if not end:
            return ""
        here = ", ".join(f"{name} {address}" for name, address in addresses().items())
        return (
            f". Its output ends with:\n{end}\nIf that tells of timeouts, its node does not reach the scheduler at "
            f"{self._cluster.scheduler_address}: say with interface= which network does (there are here: {here})"
        )

    def _tell(self, name: str, what: str) -> None:
        if (name, what) not in self._told:
            self._told.add((name, what))
            logger.warning("%s %s", name, what)

    def _fail_hopeless_tasks(self) -> None:
        """No worker that may take them is there or will come: tasks end with the cause instead of waiting for ever."""
        scheduler = self._cluster.scheduler
        coming = {name: kind_of(name) for name in self._cluster.worker_spec}
        there = {str(ws.name): str((ws.extra.get(TAG) or {}).get("kind", "cpu")) for ws in scheduler.workers.values()}
        waiting = [*scheduler.unrunnable, *scheduler.queued]
        hopeless = [ts for ts in waiting if is_hopeless((ts.annotations or {}).get(TAG), coming | there)]
        causes = "\n".join(dict.fromkeys(self.given_up.values()))
        error = pickle.dumps(RuntimeError(f"no worker of the cluster can run this task, and none will come:\n{causes}"))
        stimulus = "slurm-jobs-given-up"
        recommendations: dict[Any, Any] = {}
        for ts in hopeless:
            recommendations |= scheduler.transition(
                ts.key, "erred", exception=error, cause=ts.key, stimulus_id=stimulus
            )
        scheduler.transitions(recommendations, stimulus)


def is_hopeless(tag: Mapping[str, Any] | None, kinds: Mapping[str, str]) -> bool:
    """Whether a task of this tag (None: of somebody else) waits in vain.

    kinds: of the workers that are there or to come, by name.

    >>> [is_hopeless({"kind": "cpu"}, kinds) for kinds in ({}, {"gpu-0": "gpu"}, {"cpu-0": "cpu"})]
    [True, True, False]
    """
    if tag is None:
        return not kinds
    return serving_kind(str(tag["kind"]), kinds) is None


def addresses() -> dict[str, str]:
    """This machine's IPv4 addresses by interface, such as {"ib0": "10.1.0.5"}."""
    found = psutil.net_if_addrs().items()
    return {name: one.address for name, all_of in found for one in all_of if one.family.name == "AF_INET"}
