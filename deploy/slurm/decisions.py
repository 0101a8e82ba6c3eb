"""What the supervisor of a batch job does when something happens in it: a pure function of events.

`decide(job, event, now)` gives the job as it is then and what is to be done. Nothing here starts, waits or signals;
`deploy.slurm.job` does, and brings back what happened as the next event. The outcomes:

- the scheduler is up: the steps and the script are started;
- the script ends: the job ends with its code at once; with 75 (EX_TEMPFAIL) behind a warning it is requeued instead (so
  that a script which always ends so does not run for ever);
- the scheduler ends: the job ends with code 1, unless the script itself had ended the cluster: then with the script's;
- a step ends: it is started again, later each time in a row, and given up when it never lives; the job ends with
  code 1 where the last step was given up;
- SIGTERM (scancel, the time limit, preemption): the job ends with 143; SIGUSR1, the warning before the limit: the
  script is told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

SCRIPT, SCHEDULER = "script", "scheduler"

#: The script's exit code that asks for the job to be requeued: it has saved its state.
REQUEUE = os.EX_TEMPFAIL

#: A step that lived less than this has failed at its start: Python's imports and the measurement of a GPU's rates, from
#: a network's disk, take less (measured: 3 s from a local one).
SHORT_LIFE_S = 60.0

#: So many short lives in a row, and a step is given up: with 2 + 4 + 8 s of waiting between them, so that a disk that
#: is away for a moment comes back in time.
SHORT_LIVES = 5

FIRST_DELAY_S = 2.0

#: A scheduler that is not up after so long never will be: it imports Python from a network's disk, and no more.
UP_TIMEOUT_S = 120.0

#: So long a script may go on after it has ended the cluster itself (`client.shutdown()`).
AFTERWARDS_S = 10.0


@dataclass(frozen=True)
class Step:
    """A step of the job that holds workers. started: when, or None while it is down. short: its short lives in a
    row."""

    started: float | None = None
    short: int = 0
    given_up: bool = False


@dataclass(frozen=True)
class Job:
    """A running job.

    steps: by name. retire_at: when its workers leave by themselves, before the job's time limit; math.inf for never.
    end_by: the script must have ended by then, its scheduler has. warned: the limit, or a preemption, is near.
    """

    steps: Mapping[str, Step]
    retire_at: float
    up_by: float | None = None
    end_by: float | None = None
    warned: bool = False
    stopping: bool = False


@dataclass(frozen=True)
class SchedulerUp:
    """The scheduler can be reached."""


@dataclass(frozen=True)
class Started:
    """A step's process was started."""

    step: str


@dataclass(frozen=True)
class Ended:
    """A process ended: the script, the scheduler or a step, with an exit code as a shell has it.

    last_words: the end of its log, to say why.
    """

    process: str
    code: int
    last_words: str = ""


@dataclass(frozen=True)
class Asked:
    """A signal arrived."""

    signal: signal.Signals


@dataclass(frozen=True)
class Waited:
    """Time went by."""


Event = SchedulerUp | Started | Ended | Asked | Waited


@dataclass(frozen=True)
class StartStep:
    """Start a step, in so many seconds."""

    step: str
    delay_s: float = 0.0


@dataclass(frozen=True)
class StartScript:
    """Start the user's script."""


@dataclass(frozen=True)
class TellScript:
    """Send the script a signal."""

    signal: signal.Signals


@dataclass(frozen=True)
class Say:
    """Tell the user."""

    text: str


@dataclass(frozen=True)
class Stop:
    """End everything; then the job has this exit code, or is requeued."""

    code: int
    reason: str
    outcome: Literal["end", "requeue"] = field(default="end")


Action = StartStep | StartScript | TellScript | Say | Stop


def decide(job: Job, event: Event, now: float) -> tuple[Job, list[Action]]:
    """The job after an event, and what is to be done, in order.

    now: seconds of any clock, the same for all calls and for `Job.retire_at`.

    >>> job = Job({"gpu-0": Step(started=0.0)}, retire_at=3600.0)
    >>> decide(job, Ended("script", 3), now=10.0)[1]
    [Stop(code=3, reason='the script ended with exit code 3', outcome='end')]
    """
    if job.stopping:
        return job, []
    match event:
        case SchedulerUp():
            return replace(job, up_by=None), [*map(StartStep, job.steps), StartScript()]
        case Started(step):
            return with_step(job, step, replace(job.steps[step], started=now)), []
        case Asked(signal.SIGUSR1) if job.up_by is not None:
            return stop(job, REQUEUE, "the time limit or a preemption is near before the script began", "requeue")
        case Asked(signal.SIGUSR1):
            return replace(job, warned=True), [
                Say("the time limit or a preemption is near: the script is told"),
                TellScript(signal.SIGUSR1),
            ]
        case Asked(signum):
            return stop(job, 128 + signum, f"asked to stop by {signum.name} (scancel, the time limit or preemption)")
        case Ended("script", code) if code == REQUEUE and job.warned:
            return stop(job, code, "the script saved its state and asks to go on later", "requeue")
        case Ended("script", code):
            return stop(job, code, f"the script ended with exit code {code}")
        case Ended("scheduler", 0) if job.up_by is None:
            return replace(job, end_by=now + AFTERWARDS_S), []
        case Ended("scheduler", code, last_words):
            return stop(job, 1, because(f"the scheduler died with exit code {code}", last_words))
        case Ended(step, code, last_words):
            return step_ended(job, step, code, last_words, now)
        case Waited() if job.up_by is not None and now >= job.up_by:
            return stop(job, 1, "the scheduler did not come up in time")
        case Waited() if job.end_by is not None and now >= job.end_by:
            return stop(job, 1, "the scheduler has closed, and the script does not end")
    return job, []


def stop(job: Job, code: int, reason: str, outcome: Literal["end", "requeue"] = "end") -> tuple[Job, list[Action]]:
    """Once and for all."""
    return replace(job, stopping=True), [Stop(code, reason, outcome)]


def with_step(job: Job, name: str, step: Step) -> Job:
    """The job with one step changed."""
    return replace(job, steps={**job.steps, name: step})


def step_ended(job: Job, name: str, code: int, last_words: str, now: float) -> tuple[Job, list[Action]]:
    """A step is started again unless the job's end is near, the cluster has closed or it never lives."""
    step = job.steps[name]
    if job.end_by is not None or now >= job.retire_at:
        return with_step(job, name, replace(step, started=None)), []
    lived = now - (now if step.started is None else step.started)
    short = step.short + 1 if lived < SHORT_LIFE_S else 0
    why = because(f"step {name} ended with exit code {code}", last_words)
    if short < SHORT_LIVES:
        delay = FIRST_DELAY_S * 2 ** (short - 2) if short > 1 else 0.0
        again = f"{why}; it is started again" + (f" in {delay:.0f} s" if delay else "")
        return with_step(job, name, Step(short=short)), [Say(again), StartStep(name, delay)]
    job = with_step(job, name, Step(short=short, given_up=True))
    why = f"{why}; it is given up after {short} short lives"
    if all(step.given_up for step in job.steps.values()):
        return stop(job, 1, f"no step is left: {why}")
    return job, [Say(f"{why}, the others go on")]


def because(what: str, last_words: str) -> str:
    """What happened, and why, where that is known."""
    return f"{what}: {last_words}" if last_words else what


def exit_code(returncode: int) -> int:
    """A process's exit code as a shell has it.

    >>> exit_code(3), exit_code(-9)
    (3, 137)
    """
    return 128 - returncode if returncode < 0 else returncode
