"""Submit a job, follow it to its end, and reach into it while it runs: what is behind `taskgraph slurm`."""

from __future__ import annotations

import codecs
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Client

from deploy.slurm import queue
from deploy.slurm.queue import Job, SlurmError
from deploy.slurm.worker import read_scheduler
from deploy.tls import load_keys

#: Between two questions to SLURM, whose controller all users share. Chosen: what `watch squeue` of one user costs.
POLL_S = 3.0

#: So long SLURM may be away (it is restarted, say) before following ends. The job goes on without.
AWAY_S = 600.0

#: So long a job that runs may take until its scheduler can be reached.
CONNECT_S = 60.0

#: Of the log, for one who begins to follow a job that runs.
LAST_BYTES = 4000


class Log:
    """A file that grows, maybe one that is not there yet; `more()` is what was added since."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self.path, self._offset = path, offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @classmethod
    def end_of(cls, path: str, last: int = 0) -> Log:
        """From its last bytes on."""
        try:
            return cls(path, max(0, os.path.getsize(path) - last))
        except OSError:
            return cls(path)

    def more(self) -> str:
        """What was written since the last time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return ""
        self._offset += len(added)
        return self._decoder.decode(added)


def submit(script: str, folder: str, say: Callable[[str], object]) -> int:
    """Submit a batch script and follow the job; its exit code. Ctrl-C leaves the job where it is.

    folder: its run folder, with %j for the job's number. say: is told what happens, a line at a time.
    """
    number = queue.submit(script)
    where = folder.replace("%j", str(number))
    say(f"job {number} is submitted; its run folder is {where}, its log {where}.log")
    return follow(number, say, Log.end_of(f"{where}.log"))


def follow(
    number: int,
    say: Callable[[str], object],
    log: Log | None = None,
    write: Callable[[str], object] | None = None,
    poll_s: float = POLL_S,
) -> int:
    """Tell how a job stands whenever that changes, and what it logs, until it ends; its exit code.

    write: takes what is logged; by default it is printed. A job that can never start is an error. Where the user
    interrupts, the job goes on, and what to do is said: 130.
    """
    try:
        return _until_end(number, say, log, write or _print, poll_s)
    except KeyboardInterrupt:
        say(
            f"job {number} goes on without you: `taskgraph slurm follow {number}` follows it again, "
            f"`scancel {number}` ends it"
        )
        return 130


def _until_end(
    number: int, say: Callable[[str], object], log: Log | None, write: Callable[[str], object], poll_s: float
) -> int:
    told: object = None
    while True:
        job = patiently(number, say, poll_s)
        log = log or Log.end_of(job.output, LAST_BYTES)
        stand = (job.state, job.reason if job.waits else "", job.restarts, phase := _phase(job))
        # What was logged before the end comes before the news of it.
        write(log.more())
        if stand != told:
            say(queue.described(job) + (f": {phase}" if phase else ""))
            told = stand
        if job.ended:
            return ended_with(job)
        if queue.never(job):
            raise SlurmError(f"job {number} is queued in vain; `scancel {number}` removes it")
        time.sleep(poll_s)


def _print(text: str) -> None:
    print(text, end="", flush=True)


def patiently(number: int, say: Callable[[str], object], poll_s: float = POLL_S) -> Job:
    """The job as it is, asked for again where SLURM is away for some time. Raises NoAnswer after AWAY_S seconds."""
    deadline = time.monotonic() + AWAY_S
    told = False
    while True:
        try:
            return queue.look(number)
        except queue.NoAnswer as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"{error}; asked again until it does")
            told = True
        time.sleep(poll_s)


def ended_with(job: Job) -> int:
    """The exit code for a job that ended: its own, or 1 where SLURM gives none for what was no success."""
    return job.exit_code if job.exit_code or job.state == "COMPLETED" else 1


def run_folder(job: Job) -> Path:
    """A job's run folder, which lies beside its log. Raises SlurmError for jobs of others' scripts."""
    if not job.output.endswith(".log"):
        raise SlurmError(
            f"job {job.number} is no job of a script of ours, by its log {job.output!r}: name its run folder"
        )
    return Path(job.output.removesuffix(".log"))


def status(folder: Path) -> dict[str, Any]:
    """What the job says of itself; nothing where it has not begun, or is just writing."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _phase(job: Job) -> str:
    """What a running job is doing, in its own words."""
    if job.state != "RUNNING" or not job.output.endswith(".log"):
        return ""
    return str(status(run_folder(job)).get("phase", ""))


def connection(number: int, folder: Path | None = None, timeout_s: float = CONNECT_S) -> tuple[Job, dict[str, Any]]:
    """A running job, and the arguments of `distributed.Client` for its scheduler.

    Raises SlurmError where it does not run or its scheduler does not come up; PermissionError where others can read its
    keys, or they are another user's.
    """
    job = queue.look(number)
    if job.state != "RUNNING":
        raise SlurmError(f"only a running job has a cluster, and {queue.described(job)}")
    folder = folder or run_folder(job)
    scheduler = read_scheduler(folder / "scheduler.json", timeout_s)
    if scheduler is None:
        raise SlurmError(f"job {number} runs, but its {folder}/scheduler.json is not there after {timeout_s:.0f} s")
    return job, {"address": scheduler["address"], "security": load_keys(folder / "tls"), "timeout": timeout_s}


def connect(number: int, folder: Path | None = None, timeout_s: float = CONNECT_S) -> Client:
    """A client of a running job's cluster, from any machine that shares its files and its network.

    number: the job's. folder: its run folder, where that is not beside the log.

    Raises SlurmError where the job does not run or cannot be reached, PermissionError where others can read its keys.

    >>> client = connect(17)  # doctest: +SKIP
    """
    job, arguments = connection(number, folder, timeout_s)
    try:
        return Client(**arguments)
    except OSError as error:
        raise unreachable(job, arguments["address"]) from error


def unreachable(job: Job, address: str) -> SlurmError:
    """The error where a job's scheduler does not answer."""
    return SlurmError(
        f"the scheduler of job {job.number} at {address} cannot be reached from {socket.gethostname()}: `interface` in "
        f"the site file names a network that both have, or go inside: `srun --jobid={job.number} --overlap --pty bash`"
    )


def tunnel(job: Job, port: int) -> str:
    """The command that makes a job's dashboard one of the machine on which it is given.

    port: on the job's first node, whose loopback device alone has the dashboard.
    """
    return f"ssh -N -L {port}:127.0.0.1:{port} {job.batch_host}"


def dashboard_port(client: Client) -> int | None:
    """The port of the scheduler's dashboard, if it has one."""
    return client.scheduler_info().get("services", {}).get("dashboard")
