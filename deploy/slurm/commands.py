"""What a batch job starts, and what its supervisor reads: pure functions of its command line and of text.

No secret is in a command line or an environment: keys are in files that only their owner can read.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.slurm.worker import LOOPBACK

#: A task that no worker can take fails after so long, instead of waiting for ever. A step that is started again, and
#: again, takes no longer than that.
NO_WORKERS_TIMEOUT = "120s"

#: So long a plan waits for the last GPU, or the last CPU worker, to come back before it is made without.
RETURN_TIMEOUT = "60s"


@dataclass(frozen=True)
class Options:
    """The command line of a job's supervisor.

    cpu_step, gpu_step: what starts a step (`srun` and its arguments); the worker's command follows.
    lifetime_margin: so many seconds before the job's limit workers leave.
    """

    folder: Path
    script: tuple[str, ...]
    cpu_step: tuple[str, ...] = ()
    gpu_step: tuple[str, ...] = ()
    gpu_steps: int = 0
    threads: int = 1
    memory_limit: str | None = None
    gpu_memory_limit: str | None = None
    interface: str | None = None
    lifetime_margin: float = 60.0
    resume: bool = False


def step_names(options: Options) -> list[str]:
    """The job's steps: one of all CPU workers, one a GPU."""
    return [*(["cpu"] if options.cpu_step else []), *(f"gpu-{i}" for i in range(options.gpu_steps))]


def tasks_of(step: Sequence[str]) -> int:
    """How many tasks, that is workers, a step starts.

    >>> tasks_of(["srun", "--nodes=2", "--ntasks=4"]), tasks_of(["srun", "-N", "2"]), tasks_of(["srun"])
    (4, 2, 1)
    """
    line = " ".join(step)
    for option in (r"(?:--ntasks[= ]|-n ?)", r"(?:--nodes[= ]|-N ?)"):
        if found := re.search(rf"(?:^| ){option}(\d+)(?= |$)", line):
            return int(found[1])
    return 1


def scheduler_command(folder: Path, host: str) -> list[str]:
    """The scheduler, with TLS at `host`, its HTTP server on loopback."""
    tls = folder / "tls"
    given = {
        "host": host,
        "port": 0,
        "protocol": "tls",
        "tls-ca-file": tls / "cert.pem",
        "tls-cert": tls / "cert.pem",
        "tls-key": tls / "key.pem",
        "dashboard-address": f"{LOOPBACK}:0",
        "scheduler-file": folder / "scheduler.json",
        "preload": "scheduler_plugins",
    }
    return [
        sys.executable,
        "-P",
        "-m",
        "distributed.cli.dask_scheduler",
        *(f"--{key}={value}" for key, value in given.items()),
    ]


def step_command(options: Options, step: str, retire_at: float) -> list[str]:
    """A step and the worker in it."""
    kind = step.partition("-")[0]
    prefix, threads = (options.cpu_step, options.threads) if kind == "cpu" else (options.gpu_step, 1)
    given: dict[str, Any] = {"folder": options.folder, "kind": kind, "name": step, "threads": threads}
    limit = options.memory_limit if kind == "cpu" else options.gpu_memory_limit or options.memory_limit
    given |= {"memory-limit": limit, "interface": options.interface}
    if retire_at < math.inf:
        given |= {"retire-at": f"{retire_at:.0f}", "stagger": f"{options.lifetime_margin / 4:.1f}"}
    arguments = [f"--{key}={value}" for key, value in given.items() if value is not None]
    return [*prefix, sys.executable, "-P", "-m", "deploy.slurm.worker", *arguments]


def script_command(options: Options) -> list[str]:
    """The user's script, as client of the job's cluster."""
    workers = (tasks_of(options.cpu_step) if options.cpu_step else 0) + options.gpu_steps
    own = [f"--folder={options.folder}", f"--workers={workers}"]
    return [sys.executable, "-P", "-m", "deploy.slurm.client", *own, "--", *options.script]


def environment_of(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Of all processes; what the user has set stays, but nobody talks without TLS."""
    ours = {
        "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": NO_WORKERS_TIMEOUT,
        "DASK_TASKGRAPH__RETURN_TIMEOUT": RETURN_TIMEOUT,
        "PYTHONUNBUFFERED": "1",  # so that a job's output can be followed, and its last lines are there
    }
    return ours | dict(given) | {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "TASKGRAPH_RUN_FOLDER": str(folder),
    }  # fmt: skip


def retirement(now: float, end: float | None, margin: float) -> float:
    """When workers leave: `margin` before the job's end, but not in a job that has hardly more than that.

    >>> retirement(0.0, 3600.0, 60.0), retirement(0.0, 100.0, 60.0), retirement(0.0, None, 60.0)
    (3540.0, inf, inf)
    """
    return math.inf if end is None or end - now < 2 * margin else end - margin


def end_of(shown: str) -> float | None:
    """When a job ends, in seconds since 1970, of a line of `scontrol --oneliner show job`; None where it never does.

    >>> end_of("JobId=7 EndTime=Unknown Deadline=N/A") is None
    True
    """
    found = re.search(r"(?:^| )EndTime=(\d\S*)", shown)
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def last_words(log: str) -> str:
    """The line of a log that says best why a process ended: the last with an error, else the last that is no news.

    Of its own rather than of srun, which repeats its exit code.
    """
    written = [line.strip() for line in log.splitlines() if line.strip() and " - INFO - " not in line]
    lines = [line for line in written if not line.startswith(("srun:", "slurmstepd"))] or written
    errors = [line for line in lines if re.search(r"\b\w*(?:Error|error|Exception)\b", line)]
    return (errors or lines or [""])[-1][-300:]
