"""A cluster of real processes for tests: a scheduler that shares no memory with the client, named workers.

What an in-process cluster hides shows here: annotations that an optimizer in the scheduler's process drops,
classes that do not pickle, workers that die. Who ran what is read from a recorder in the scheduler, never
from the code under test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dask._task_spec import Task
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from deploy.slurm.worker import read_scheduler

TAG = "taskgraph"

TRACEBACK = "Traceback (most recent call last):\n"

#: What workers log when a peer is killed, whatever plugins there are.
DEATH = ("CommClosedError", "StreamClosedError", "ConnectionRefusedError", "ConnectionResetError", "OSError")

#: How a worker of a kind says what it is, before it registers.
PRELOAD = """
def dask_setup(worker):
    profile = {{"kind": {kind!r}, "emulated": True, "name": worker.name}}
    worker.startup_information["taskgraph"] = lambda _: profile
"""


def raised(log: str) -> str:
    """The name of the exception of the last traceback in a log."""
    trace = log.split(TRACEBACK)[-1]
    # The first line that is neither code nor a place in it: "package.SomeError: what it says".
    line = next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")
    return line.split(":")[0].rpartition(".")[2]


def until(condition: Callable[[], Any], what: str, timeout: float = 30) -> Any:
    """Poll until the condition holds and return its value; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")


class Run(NamedTuple):
    """One task that came to memory: by which worker, of which kind."""

    key: Any
    worker: str
    kind: str


def recorder() -> SchedulerPlugin:
    """A scheduler plugin that notes who ran each task; made here, so that it travels by value."""

    class Recorder(SchedulerPlugin):
        name = "recorder"
        idempotent = True

        def __init__(self) -> None:
            self.runs: list[tuple[Any, str, str]] = []

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            if start == "processing" and finish == "memory":
                ws = self.scheduler.workers[kwargs["worker"]]
                self.runs.append((key, str(ws.name), ws.extra.get("taskgraph", {}).get("kind", "cpu")))

    return Recorder()


class ProcessCluster:
    """Scheduler and workers as processes of their own; a context manager that leaves none of them behind.

    directory: for the scheduler file and the logs.  config: Dask settings of every process, by dotted name.
    scheduler_args: more arguments of `dask scheduler`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, Any] | None = None,
        scheduler_args: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.scheduler_file = directory / "scheduler.json"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clients: list[Client] = []
        self.env = dict(os.environ)
        # Logged exceptions must reach the log files whatever the caller's environment says.
        self.env["DASK_DISTRIBUTED__ADMIN__PDB_ON_ERR"] = "False"
        # A peer that was killed is otherwise tried for 30 s before its data are given up.
        config = {"distributed.comm.timeouts.connect": "3s"} | dict(config or {})
        for name, value in config.items():
            self.env["DASK_" + name.upper().replace(".", "__").replace("-", "_")] = str(value)
        self._start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", *scheduler_args)

    def __enter__(self) -> Self:
        try:
            until(self._scheduler_is_up, "the scheduler is up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scheduler_is_up(self) -> bool:
        assert self.processes["scheduler"].poll() is None, self.log("scheduler")
        # Whole, not only there: Dask opens the file, then fills it.
        return read_scheduler(self.scheduler_file) is not None

    def _start(self, name: str, command: str, *args: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "dask", command, "--no-dashboard"),
                    *("--scheduler-file", str(self.scheduler_file)),
                    *args,
                ],
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )

    # -- workers

    def start_worker(
        self, name: str, *, nthreads: int = 1, memory_limit: str = "0", host: str = "127.0.0.1", nanny: bool = False
    ) -> None:
        """Start the worker `name`, whose kind is what stands before the dash; `wait_for` waits for it.

        host: 127.0.0.2 and so on are other hosts as far as Dask can tell.
        """
        preload = self.directory / f"{name}_profile.py"
        preload.write_text(PRELOAD.format(kind=name.split("-")[0]))
        self._start(
            name,
            "worker",
            *("--name", name, "--nthreads", str(nthreads), "--memory-limit", memory_limit),
            "--nanny" if nanny else "--no-nanny",
            *("--preload", str(preload), "--host", host, "--local-directory", str(self.directory)),
        )

    def wait_for(self, client: Client, *names: str) -> None:
        """Wait until exactly these workers are registered."""
        until(lambda: set(workers(client)) == set(names), f"the workers are {names}")

    def kill(self, name: str) -> None:
        """SIGKILL, as the kernel's out-of-memory killer does."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """The worker stands still meanwhile, so that nothing that needs it can be finished."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    # -- clients and logs

    def client(self) -> Client:
        """A client of the cluster with a recorder on its scheduler; the cluster closes it."""
        client = Client(scheduler_file=str(self.scheduler_file), set_as_default=False)
        self.clients.append(client)
        client.register_plugin(recorder())
        return client

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def assert_quiet(self, *, allowed: tuple[str, ...] = ()) -> None:
        """No process has logged an exception, but those of the names `allowed`."""
        for path in sorted(self.directory.glob("*.log")):
            for number, trace in enumerate(path.read_text(errors="replace").split(TRACEBACK)[1:], 1):
                if raised(trace) not in allowed:
                    raise AssertionError(f"{path.name}, traceback {number}:\n{trace[:3000]}")

    def close(self) -> None:
        """Close the clients and end every process: politely at first, the scheduler last."""
        for client in self.clients:
            client.close()
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def workers(client: Client) -> dict[str, str]:
    """Address by worker name, as the scheduler has them now."""
    return client.run_on_scheduler(
        lambda dask_scheduler: {str(w.name): w.address for w in dask_scheduler.workers.values()}
    )


def runs(client: Client, prefix: str = "") -> list[Run]:
    """Who ran each task whose key begins with `prefix`, in order, reruns included."""
    found = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins["recorder"].runs))
    return [Run(*run) for run in found if str(run[0]).startswith(prefix)]


def tagged(tasks: Mapping[Any, Task], tags: Mapping[Any, Any], name: str) -> HighLevelGraph:
    """A graph of one layer whose annotations survive: a tag for each key that has one."""
    layer = MaterializedLayer(dict(tasks), annotations={TAG: dict(tags).get})
    return HighLevelGraph({name: layer}, {name: set()})
