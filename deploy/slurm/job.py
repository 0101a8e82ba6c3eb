"""What runs inside a batch job, on its first node: the supervisor of the job's processes.

It makes the job's keys, starts the scheduler, the steps that hold the workers and the user's script, and ends them all
again within a bounded time, whatever happens. `deploy.slurm.decisions` decides what is done when; here it is done.

The job's folder, which only its owner can enter:

    scheduler.json  the scheduler's address, for clients of the same user (`taskgraph slurm connect`)
    tls/            the job's keys; removed at its end
    logs/           one file a process
    state/          what the script saves to go on later
    status.json     job_id, phase (starting, running, stopping, requeued, ended), host, scheduler, dashboard, restarts,
                    exit_code, reason
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from distributed.utils import get_ip, get_ip_interface

from deploy.scratch import scratch_folder
from deploy.slurm import decisions
from deploy.slurm.commands import (
    Options,
    end_of,
    environment_of,
    last_words,
    retirement,
    scheduler_command,
    script_command,
    step_command,
    step_names,
)  # fmt: skip
from deploy.slurm.decisions import SCHEDULER, SCRIPT, Asked, Ended, Job, Step
from deploy.slurm.worker import LOOPBACK, read_scheduler
from deploy.tls import make_keys, remove_keys

#: How often it is looked whether the scheduler is up, and whether time has run out.
TICK_S = 0.1

#: A script that was told to end has this long for it.
SCRIPT_GRACE_S = 3.0

#: The scheduler closes its workers, and their steps end (measured: 2-3 s).
CLOSE_S = 8.0

#: From a signal that a process might ignore to the one that it cannot.
KILL_S = 2.0

SLURM_TIMEOUT_S = 30

#: Of a log, in which the reason for a process's end is looked for.
LAST_BYTES = 20_000

# -- the folder, and what is asked of SLURM


def open_folder(folder: Path, again: bool) -> None:
    """Make the job's folder and keys; one that is there only to go on in it.

    Raises FileExistsError where it is there and `again` is False, PermissionError where it is not this user's alone.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not again:
            raise FileExistsError(
                f"the run folder {folder} exists: name another with --folder, or go on with that run by --resume"
            ) from None
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"the run folder {folder} is not yours alone: whoever can write to it can run code as you; chmod it to 700"
        )
    for name in ("logs", "state"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    # What an earlier start left that was killed.
    (folder / "scheduler.json").unlink(missing_ok=True)
    remove_keys(folder / "tls")
    make_keys(folder / "tls")


def show(kind: str, name: str) -> str:
    """What SLURM says of a job or a node; empty, with a message, where it says nothing."""
    command = ["scontrol", "--oneliner", "show", kind, name]
    environment = {key: value for key, value in os.environ.items() if key != "SLURM_TIME_FORMAT"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"{shlex.join(command)}: {error}")
        return ""
    if done.returncode:
        say(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout.partition("\n")[0]


def other_job(folder: Path, job_id: str) -> str | None:
    """The job that runs in a folder that this one was to go on in, by its own account and by SLURM's."""
    status = read_scheduler(folder / "status.json") or {}
    other = str(status.get("job_id", ""))
    if other in ("", job_id) or status.get("phase") in ("ended", "requeued"):
        return None
    return other if re.search(r"(?:^| )JobState=RUNNING(?: |$)", show("job", other)) else None


def own_address(interface: str | None, node: str | None) -> str:
    """Where the workers of other nodes reach this one: at the interface, or where SLURM's nodes do."""
    if interface:
        return get_ip_interface(interface)
    shown = re.search(r"(?:^| )NodeAddr=(\S+)", show("node", node)) if node else None
    try:
        address = socket.gethostbyname(shown[1]) if shown else LOOPBACK
    except OSError as error:
        say(f"the address of node {node} is unknown: {error}")
        address = LOOPBACK
    # A node may know itself by its loopback device.
    return get_ip() if address.startswith("127.") else address


def say(text: str) -> None:
    """To the job's output."""
    print(f"taskgraph: {text}", file=sys.stderr, flush=True)


# -- processes


class Supervisor:
    """The processes of one job, and the events that they make."""

    def __init__(self, options: Options, host: str, retire_at: float, status: dict[str, Any]) -> None:
        self.options = options
        self.host = host
        self.retire_at = retire_at
        self.status = status
        self._environment = environment_of(options.folder, os.environ)
        self._events: asyncio.Queue[decisions.Event] = asyncio.Queue()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._users_umask = os.umask(0o077)

    async def run(self) -> decisions.Stop:
        """Until everything has ended; why it did."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            loop.add_signal_handler(signum, self._events.put_nowait, Asked(signum))
        try:
            self._note(phase="starting")
            here = {"DASK_TEMPORARY_DIRECTORY": str(scratch_folder())}  # a folder of this node
            await self._start(SCHEDULER, scheduler_command(self.options.folder, self.host), here)
            end = await self._until_stop()
            self._note(phase="stopping", reason=end.reason)
        finally:
            await self._close()
        return end

    async def _until_stop(self) -> decisions.Stop:
        now = time.time()
        steps = {name: Step() for name in step_names(self.options)}
        job = Job(steps, self.retire_at, up_by=now + decisions.UP_TIMEOUT_S)
        while True:
            event = await self._next_event(starting=job.up_by is not None)
            job, actions = decisions.decide(job, event, time.time())
            for action in actions:
                match action:
                    case decisions.StartStep(step, delay_s):
                        self._spawn(self._start_step(step, delay_s))
                    case decisions.StartScript():
                        await self._start(SCRIPT, script_command(self.options))
                    case decisions.TellScript(signum):
                        self._send(SCRIPT, signum)
                    case decisions.Say(text):
                        say(text)
                    case decisions.Stop():
                        return action

    async def _next_event(self, starting: bool) -> decisions.Event:
        if starting and (found := read_scheduler(self.options.folder / "scheduler.json")):
            dashboard = f"{LOOPBACK}:{found['services']['dashboard']}" if found.get("services") else None
            self._note(phase="running", scheduler=found["address"], dashboard=dashboard)
            say(f"scheduler at {found['address']}, dashboard at http://{dashboard} of {self.status['host']}")
            return decisions.SchedulerUp()
        try:
            return await asyncio.wait_for(self._events.get(), TICK_S)
        except TimeoutError:
            return decisions.Waited()

    def _note(self, **changes: Any) -> None:
        """Write status.json anew; whoever reads it finds all of it."""
        self.status.update(changes)
        write_status(self.options.folder, self.status)

    # -- start

    async def _start_step(self, step: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if self._closing:
            return
        await self._start(step, step_command(self.options, step, self.retire_at))
        self._events.put_nowait(decisions.Started(step))

    async def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str] = {}) -> None:
        log = None if name == SCRIPT else self.options.folder / "logs" / f"{name}.log"
        given: dict[str, Any] = {"env": {**self._environment, **environment}}
        if name == SCRIPT:
            given["umask"] = self._users_umask
        try:
            with log.open("ab") if log else contextlib.nullcontext() as output, warnings_kept(name == SCRIPT):
                written = output.tell() if output else 0
                nothing = asyncio.subprocess.DEVNULL
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=nothing, stdout=output, stderr=output, **given
                )
        except OSError as error:
            self._events.put_nowait(Ended(name, 127, f"{shlex.join(command)}: {error}"))
            return
        self._processes[name] = process
        self._spawn(self._watch(name, process, log, written))

    async def _watch(self, name: str, process: asyncio.subprocess.Process, log: Path | None, written: int) -> None:
        code = decisions.exit_code(await process.wait())
        self._events.put_nowait(Ended(name, code, last_words(text_of(log, written)) if log else ""))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    # -- stop

    async def _close(self) -> None:
        """End every process: the script, then the scheduler, which closes the workers, then the steps."""
        self._closing = True
        await self._end([SCRIPT], SCRIPT_GRACE_S)
        self._send(SCHEDULER, signal.SIGTERM)
        # Before the wait: a job that is cancelled may be killed in it. Connections that stand need no keys.
        try:
            remove_keys(self.options.folder / "tls")
        except OSError as error:
            say(f"the keys stay: {error}")
        await self._wait(self._processes, CLOSE_S)
        await self._end(self._processes, KILL_S)
        (self.options.folder / "scheduler.json").unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()

    async def _end(self, names: Collection[str], grace_s: float) -> None:
        for signum, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_S)):
            for name in names:
                self._send(name, signum)
            await self._wait(names, patience)

    async def _wait(self, names: Collection[str], timeout_s: float) -> None:
        waits = [asyncio.create_task(process.wait()) for process in self._running(names)]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for one in late:
                one.cancel()

    def _send(self, name: str, signum: int) -> None:
        for process in self._running([name]):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                process.send_signal(signum)

    def _running(self, names: Collection[str]) -> list[asyncio.subprocess.Process]:
        found = [self._processes[name] for name in names if name in self._processes]
        return [process for process in found if process.returncode is None]


@contextlib.contextmanager
def warnings_kept(wanted: bool) -> Iterator[None]:
    """A process started inside gets SIGUSR1 only when it unblocks that: before, it would die of it."""
    if not wanted:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def text_of(log: Path, start: int) -> str:
    """What was written to a log from `start` on, at most its end; nothing where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - LAST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """status.json, whole or not at all."""
    new = folder / "status.json.new"
    new.write_text(json.dumps(status, indent=1) + "\n")
    new.rename(folder / "status.json")


def requeue(job_id: str) -> bool:
    """Ask SLURM to start this job anew later; whether it will."""
    command = ["scontrol", "requeue", job_id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    else:
        why = done.stderr.strip() if done.returncode else ""
    if why:
        say(f"the job cannot be requeued, submit it again with --resume: {why}")
    return not why


def supervise(options: Options, environment: Mapping[str, str]) -> int:
    """Run the job to its end; its exit code.

    environment: of the batch script, with SLURM's variables.
    """
    job_id = environment.get("SLURM_JOB_ID", "")
    restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
    try:
        if other := other_job(options.folder, job_id):
            raise FileExistsError(
                f"job {other} runs in {options.folder}: `scancel {other}` first, or name another folder"
            )
        open_folder(options.folder, again=options.resume or restarts > 0)
    except OSError as error:
        say(str(error))
        return os.EX_CANTCREAT
    end = end_of(show("job", job_id)) if job_id else None
    retire_at = retirement(time.time(), end, options.lifetime_margin)
    host = own_address(options.interface, environment.get("SLURMD_NODENAME"))
    status = {"job_id": job_id, "phase": "starting", "host": socket.gethostname(), "restarts": restarts}
    status |= {"scheduler": None, "dashboard": None, "exit_code": None, "reason": None}
    again = f", restart {restarts}: it goes on" if restarts else ""
    say(f"job {job_id} on {status['host']} in {options.folder}{again}")
    stop = asyncio.run(Supervisor(options, host, retire_at, status).run())
    say(stop.reason)
    status["exit_code"] = stop.code
    if stop.outcome == "requeue":
        # Before it is true: SLURM kills what asks it to requeue.
        write_status(options.folder, status | {"phase": "requeued"})
    if stop.outcome == "end" or not requeue(job_id):
        write_status(options.folder, status | {"phase": "ended"})
    return stop.code


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="The run's; made by the job.")
@click.option("--cpu-step", default="", help="What starts the step of the CPU workers.")
@click.option("--gpu-step", default="", help="What starts the step of one GPU's worker.")
@click.option("--gpu-steps", type=click.IntRange(0), default=0, help="How many of those.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each CPU worker.")
@click.option("--memory-limit", help="Host memory of each worker.")
@click.option("--gpu-memory-limit", help="Host memory of each GPU's worker, where it differs.")
@click.option("--interface", help="The network interface at which everything listens, such as ib0.")
@click.option("--warn-seconds", type=click.FloatRange(0), help="So long before its limit SLURM warns the job.")
@click.option("--lifetime-margin", type=click.FloatRange(1), default=60.0, show_default=True,
              help="So many seconds before the job's limit workers leave.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on in a run folder that exists.")
@click.argument("script", nargs=-1, type=click.UNPROCESSED, required=True)
def main(
    folder: Path, cpu_step: str, gpu_step: str, warn_seconds: float | None, lifetime_margin: float, **given: Any
) -> None:
    """Run SCRIPT [ARG]... on a cluster of this batch job's steps; its exit code is the job's.

    With exit code 75, after the warning, the script asks to go on later: the job is requeued.
    """
    if bool(gpu_step) != bool(given["gpu_steps"]):
        raise click.UsageError("--gpu-step and --gpu-steps go together")
    if not (cpu_step or gpu_step):
        raise click.UsageError("a job needs workers: give --cpu-step, or --gpu-step and --gpu-steps")
    if warn_seconds is not None and warn_seconds <= lifetime_margin:
        raise click.UsageError(
            f"--warn-seconds {warn_seconds:g}: by then workers have left (--lifetime-margin {lifetime_margin:g}), "
            "and the script could not save its state"
        )
    given |= {"cpu_step": tuple(shlex.split(cpu_step)), "gpu_step": tuple(shlex.split(gpu_step))}
    options = Options(folder=folder.absolute(), lifetime_margin=lifetime_margin, **given)
    sys.exit(supervise(options, os.environ))


if __name__ == "__main__":
    main()
