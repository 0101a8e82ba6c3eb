"""Which jobs are lost and what to do about it: decided from what the cluster knows and what SLURM says of its jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from deploy.local import START_TIMEOUT_S
from deploy.slurm import queue
from deploy.slurm.queue import Job, never

#: What squeue is asked of each job: its id, state, nodes, time limit, partition, start, reason for waiting.
SQUEUE = "%i|%T|%N|%l|%P|%S|%r"

#: Ends that say nothing against the job: after them it is submitted again as often as it takes.
NOT_ITS_FAULT = frozenset(["COMPLETED", "PREEMPTED", "NODE_FAIL", "TIMEOUT"])

#: A worker that has been there so long shows that its job works; then earlier losses are forgotten. Chosen.
STEADY_S = 600

#: A running job without a worker for so long is replaced. `dask worker` itself gives up before (`--death-timeout`).
ABSENT_S = START_TIMEOUT_S + 60

#: Before the second try, doubled for each further one. Chosen: sites mind who submits a broken job in a loop.
BACKOFF_S = 5

#: Reasons for which jobs wait everywhere; the user is told of others.
_USUAL = ("None", "", "Priority", "Resources", "BeginTime")


@dataclasses.dataclass(frozen=True)
class JobView:
    """What the cluster knows of a job that has no worker now.

    job_id: None where SLURM refused it; `refusal` says why, passing that it may take the same job a moment later.
    losses: jobs lost in a row before it. joined_s: how long ago its first worker came, None if none ever has.
    absent_s: since when it runs without one.
    """

    job_id: str | None
    refusal: str = ""
    passing: bool = False
    losses: int = 0
    joined_s: float | None = None
    absent_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Action:
    """What to do about a job: submit it again after `delay_s` seconds, give it up, or only tell of it.

    losses: of this name in a row, this job included. why: a sentence's end, such as "was cancelled".
    """

    name: str
    verb: Literal["submit", "give up", "tell"]
    why: str
    losses: int = 0
    delay_s: float = 0.0


def parse_squeue(text: str) -> dict[str, Job]:
    """Jobs by id from lines in squeue's format SQUEUE.

    >>> parse_squeue("12|PENDING||1:00:00|cpu|N/A|Nodes required for job are DOWN")["12"].reason
    'Nodes_required_for_job_are_DOWN'
    """
    jobs = {}
    for line in text.splitlines():
        number, state, nodes, limit, partition, start, reason = line.split("|", 6)
        jobs[number] = Job(
            int(number), state, reason.replace(" ", "_"), 0, 0, None if start == "N/A" else start, limit, partition,
            nodes, "", "",
        )  # fmt: skip
    return jobs


def reconcile(missing: Mapping[str, JobView], seen: Mapping[str, Job], heal: int) -> list[Action]:
    """What to do about jobs without workers.

    missing: the jobs, by name. seen: what SLURM said of them, asked after they were looked up. heal: how often in a row
    a job is submitted again that its own fault may have ended.
    """
    found = [_action(name, job, seen.get(job.job_id or ""), heal) for name, job in missing.items()]
    return [action for action in found if action is not None]


def _action(name: str, job: JobView, state: Job | None, heal: int) -> Action | None:
    why, its_fault = _lost(job, state)
    if why:
        return _after_loss(name, job, why, its_fault, heal)
    if state is None or not state.waits or state.reason in _USUAL:
        return None
    if never(state):
        return Action(name, "give up", f"(job {job.job_id}) waits in vain: {queue.why(state)}", job.losses + 1)
    return Action(name, "tell", f"(job {job.job_id}) waits: {queue.why(state)}")


def _lost(job: JobView, state: Job | None) -> tuple[str, bool]:
    """How the job was lost, "" if it was not, and whether it may be its own fault."""
    if job.job_id is None:
        return job.refusal, True
    if state is None:
        return f"(job {job.job_id}) is not known to SLURM any more", True
    if state.ended:
        joined = job.joined_s is not None
        return f"(job {job.job_id}) {_ended(state, joined)}", not (joined and state.state in NOT_ITS_FAULT)
    if state.state == "RUNNING" and job.absent_s > ABSENT_S:
        return f"(job {job.job_id}) runs on {state.nodes}, but its worker is not there", True
    return "", False


def _ended(state: Job, joined: bool) -> str:
    how = {"COMPLETED": "has ended", "TIMEOUT": "ran into its time limit", "OUT_OF_MEMORY": "ran out of memory"}
    others = {"CANCELLED": "was cancelled", "PREEMPTED": "was preempted", "NODE_FAIL": "lost its node"}
    said = (how | others).get(state.state, f"failed ({state.state})")
    return said if joined else f"{said} before a worker of it reached the scheduler"


def _after_loss(name: str, job: JobView, why: str, its_fault: bool, heal: int) -> Action:
    if not its_fault:
        return Action(name, "submit", why)
    before = 0 if job.joined_s is not None and job.joined_s >= STEADY_S else job.losses
    losses = before + 1
    if losses > heal or (job.job_id is None and not job.passing):
        return Action(name, "give up", why, losses)
    return Action(name, "submit", why, losses, 0.0 if losses == 1 else BACKOFF_S * 2.0 ** (losses - 2))


def passes(error: Exception) -> bool:
    """Whether SLURM may take the job, which it refused with this error, a moment later.

    >>> passes(queue.NoAnswer("SLURM does not answer")), passes(queue.SlurmError("Invalid partition name specified"))
    (True, False)
    """
    may_pass = ("temporarily", "try again", "submit limit")
    return isinstance(error, queue.NoAnswer) or any(sign in str(error) for sign in may_pass)
