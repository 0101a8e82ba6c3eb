"""One job of a pool: dask-jobqueue's job with a bounded, clear answer of SLURM's and no file that others can write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import dask.config
from distributed import Status
from distributed.deploy.spec import ProcessInterface

from deploy.slurm.healing import SQUEUE, JobView, parse_squeue, passes
from deploy.slurm.pools import Pool, lifetime_arguments
from deploy.slurm.queue import COMMAND_TIMEOUT_S, Job, NoAnswer, SlurmError, environment, parse_number, refusal


@contextlib.contextmanager
def _without_side_effects() -> Iterator[None]:
    """Importing dask-jobqueue writes a file into the user's folder of settings, and makes Ctrl-C a SystemExit."""
    path, handler = dask.config.PATH, signal.getsignal(signal.SIGINT)
    dask.config.PATH = os.devnull  # in which no file can be made
    try:
        yield
    finally:
        dask.config.PATH = path
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


try:
    with _without_side_effects():
        from dask_jobqueue.slurm import SLURMJob
except ImportError as error:
    raise ImportError(
        "MixedSlurmCluster is built on dask-jobqueue, which is not installed: pip install 'dask-taskgraph[slurm]'"
    ) from error


async def call_slurm(*command: str) -> str:
    """What a command of SLURM's writes.

    Raises SlurmError, with SLURM's own words, where it fails or is not there; NoAnswer where it cannot be reached.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(os.environ),
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not found: a SLURM cluster is started where SLURM's commands are, such as its login node"
        ) from None
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    except TimeoutError:
        raise NoAnswer(f"{command[0]} did not answer within {COMMAND_TIMEOUT_S} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise refusal(command[0], err.decode(errors="replace"))
    return out.decode(errors="replace")


async def jobs_named(job_name: str) -> dict[str, Job]:
    """The user's jobs of a name by id, also those that ended a short while ago."""
    which = ("--me", f"--name={job_name}", "--states=all")
    return parse_squeue(await call_slurm("squeue", "--noheader", f"--format={SQUEUE}", *which))


class PoolJob(SLURMJob):
    """One job of a pool. SpecCluster awaits it to submit it and closes it to cancel it.

    keywords: `pools.job_keywords`'. folder: where the batch script lies while it is submitted.
    losses: jobs of this name that were lost in a row before it.
    """

    submit_command = "sbatch --parsable"

    def __init__(
        self, scheduler: str, name: str, *, pool: Pool, keywords: dict[str, Any], folder: Path, losses: int = 0
    ) -> None:
        arguments = [*keywords["worker_extra_args"], *lifetime_arguments(pool, name)]
        # The user's jobqueue.yaml may send logs elsewhere, where others may read them.
        with dask.config.set({"jobqueue.slurm.log-directory": None}):
            super().__init__(scheduler=scheduler, name=name, **keywords | {"worker_extra_args": arguments})
        self.pool = pool
        self.folder = folder
        self.losses = losses
        self.refusal, self.passing = "", False
        self.ended = False
        self.joined: float | None = None  # when its first worker came
        self.absent: float | None = None  # since when it runs without one

    @contextlib.contextmanager
    def job_file(self) -> Iterator[str]:
        """The batch script in the cluster's private folder: in /tmp another user could replace it before sbatch reads
        it."""
        path = self.folder / f"{self.name}.sh"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(self.job_script())
        try:
            yield str(path)
        finally:
            path.unlink(missing_ok=True)

    async def start(self) -> None:
        """Submit the job. Raises SlurmError with SLURM's own words."""
        try:
            await super().start()
        except (SlurmError, OSError) as error:
            self.refusal, self.passing = str(error), passes(error)
            self.status = Status.failed
            raise

    def _job_id_from_submit_output(self, out: str) -> str:
        return str(parse_number(out))

    async def close(self) -> None:
        """Cancel the job, unless it has ended."""
        if self.job_id is not None and not self.ended:
            with contextlib.suppress(SlurmError):  # it has ended meanwhile
                await call_slurm("scancel", self.job_id)
        await ProcessInterface.close(self)

    @staticmethod
    async def _call(cmd: list[str], *, shell: bool = False, **kwargs: Any) -> str:
        assert not shell, "names and paths would be read as commands"
        return await call_slurm(*cmd)

    def came(self) -> None:
        """Note that a worker of it is there."""
        self.absent = None
        if self.joined is None:
            self.joined = monotonic()

    def view(self, state: Job | None) -> JobView:
        """What is known of the job, now that none of its workers is there."""
        now = monotonic()
        if state is None or state.state != "RUNNING":
            self.absent = None
        elif self.absent is None:
            self.absent = now
        return JobView(
            self.job_id,
            self.refusal,
            self.passing,
            self.losses,
            None if self.joined is None else now - self.joined,
            0.0 if self.absent is None else now - self.absent,
        )

    def log_end(self, lines: int = 5) -> str:
        """The last lines that the job wrote, "" if there are none."""
        path = self.folder / f"{self.job_id}.log"
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])
