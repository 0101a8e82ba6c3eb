"""Batch jobs under a real SLURM: what the supervisor does to real processes. GPUs are emulated, their pinning is not.

All jobs are submitted at once, since most of a job's time is the start and the end of its processes.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from process_cluster import until
from slurm_site import OTHER_USERS, Shell, SlurmSite

from deploy.slurm.script import JobRequest, render
from deploy.slurm.site import Site

ROOT = Path(__file__).parents[1]

# Nannies log as an error how their workers were ended.
pytestmark = [pytest.mark.slurm, pytest.mark.logs_errors, pytest.mark.timeout(180)]

#: An example with a known result, then a product of tiles on GPUs, which is taken again after each loss.
HETEROGENEOUS = f"""
import os, runpy, time
from pathlib import Path
import numpy as np
from distributed import get_client
import taskgraph as tg

folder = Path(os.environ["TASKGRAPH_RUN_FOLDER"])
runpy.run_path({str(ROOT / "examples" / "define_by_run.py")!r}, run_name="__main__")

numbers = np.random.default_rng(7)
a, b = numbers.random((512, 512)), numbers.random((512, 512))
with tg.device("gpu"):
    product = (tg.asarray(a, chunks=128) @ tg.asarray(b, chunks=128)).persist()
first = product.compute()
print("right", np.allclose(first, a @ b))
(folder / "held").touch()
for loss in ("a GPU", "all GPUs", "the CPUs"):
    end = time.monotonic() + 90
    while not (folder / f"lost {{loss}}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    print("without", loss, "same", np.array_equal(product.compute(), first))
    get_client().wait_for_workers(4, timeout=60)
    (folder / f"back {{loss}}").touch()
"""

#: A loop that is warned at its third step, and again without a warning.
INTERRUPTED = """
import os, sys, time
from pathlib import Path
import numpy as np
import taskgraph as tg

folder = Path(os.environ["TASKGRAPH_RUN_FOLDER"])
matrix = tg.asarray(np.random.default_rng(3).standard_normal((64, 64)) / 8, chunks=32)
state, whole = {"x": tg.ones((64, 64), chunks=32)}, {"x": tg.ones((64, 64), chunks=32)}
for step in tg.resumable(range(6), state):
    print("step", step)
    state["x"] = tg.tanh(matrix @ state["x"])
    if step == 2:
        (folder / "under way").touch()
        end = time.monotonic() + 90
        while not (folder / "warned").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
for step in tg.resumable(range(6), whole, folder=folder / "state" / "whole"):
    whole["x"] = tg.tanh(matrix @ whole["x"])
print("bits", np.array_equal(state["x"].compute(), whole["x"].compute()))
sys.exit(7)
"""

#: What a user's process finds of another's job: it has keys of its own, and the address.
STRANGER = """
import sys
from pathlib import Path
from distributed import Client
from deploy.tls import load_keys

own, other, address = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
keys = load_keys(own / "tls")
with Client(scheduler_file=str(own / "scheduler.json"), security=keys) as client:
    print("workers", len(client.scheduler_info(n_workers=-1)["workers"]))
try:
    print(list(other.iterdir()))
except PermissionError:
    print("its folder is closed")
try:
    print(Client(address, security=keys, timeout=3))
except OSError:
    print("its scheduler refuses")
"""

WAITING = """
import os, signal
from pathlib import Path
(Path(os.environ["TASKGRAPH_RUN_FOLDER"]) / "under way").touch()
signal.pause()
"""

#: A step that never lives.
BROKEN = 'sh -c "echo no module cupy; exit 9"'

ONE_CPU = JobRequest("", time="5", cpus_per_node=1, threads=1)
CPUS_AND_GPUS = replace(ONE_CPU, gpu_partition="gpu", nodes=2, cpus_per_node=2, threads=2, gpus=2, cpus_per_gpu=1)


@dataclass(frozen=True)
class Run:
    """A job that a user has submitted, in a folder of its own."""

    site: SlurmSite
    user: Shell
    name: str
    job: int

    @property
    def folder(self) -> Path:
        return self.user.folder / self.name

    @property
    def output(self) -> str:
        return (self.user.folder / f"{self.name}.log").read_text()

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text())

    def log(self, step: str) -> str:
        return (self.folder / "logs" / f"{step}.log").read_text()

    def end(self, state: str, timeout: float = 90) -> str:
        """Wait for this end of the job; its exit code."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        found = self.site.wait(self.job, final, timeout)
        assert found["JobState"] == state, f"{found}\n{self.output}"
        return found["ExitCode"].split(":")[0]

    def reach(self, mark: str) -> None:
        """Wait until the script has written a file of this name."""
        until(lambda: (self.folder / mark).exists() or self.over(), f"{self.name}: {mark}", 90)
        assert (self.folder / mark).exists(), self.output

    def over(self) -> bool:
        return self.site.job(self.job)["JobState"] not in ("PENDING", "RUNNING")

    def processes(self) -> dict[int, str]:
        """Those whose command line or environment names the run's folder."""
        return {pid: line for pid, line in self.site.processes().items() if str(self.folder) in environment(pid) + line}

    def steps(self, node: str) -> list[str]:
        """Numbers of the steps that run on a node."""
        shown = self.site.run("squeue", "--steps", "--noheader", "--format=%i %N").stdout.splitlines()
        own = {component["JobId"] for component in self.site.components(self.job)}
        found = [line.split() for line in shown if len(line.split()) == 2]
        return [step for step, where in found if where.startswith(node) and step.split(".")[0] in own
                and step.split(".")[1].isdigit()]  # fmt: skip


def environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended meanwhile


@pytest.fixture(scope="module")
def submit(slurm: SlurmSite) -> Callable[..., Run]:
    def submitted(name: str, script: str, request: JobRequest, user: Shell = slurm, options: str = "") -> Run:
        path = user.folder / f"{name}.py"
        path.write_text(script)
        emulated = {"TASKGRAPH_DEVICE": "emulated-gpu"} if request.gpus else {}
        site = Site(python=sys.executable, interface="lo", environment={"PYTHONPATH": str(ROOT), **emulated})
        text = render(site, replace(request, script=str(path), folder=str(user.folder / name)))
        if script == BROKEN:
            text = text.replace("-step 'srun", f"-step '{script}")
        return Run(slurm, user, name, user.submit(text, *options.split()))

    return submitted


@pytest.fixture(scope="module")
def runs(submit: Callable[..., Run], slurm: SlurmSite) -> dict[str, Run]:
    one, another = map(slurm.as_user, OTHER_USERS)
    spare, gpu = (replace(ONE_CPU, partition=partition) for partition in ("spare", "gpu"))
    submitted = [
        submit("het", HETEROGENEOUS, CPUS_AND_GPUS),
        submit("preempted", INTERRUPTED, spare, options="--nodelist=gpu0"),
        submit("cancelled", WAITING, ONE_CPU, one),
        submit("headless", WAITING, ONE_CPU, another),
        submit("broken", BROKEN, gpu),
    ]
    return {run.name: run for run in submitted}


def test_a_preempted_script_saves_in_its_grace_and_the_job_is_requeued(runs: dict[str, Run]) -> None:
    run = runs["preempted"]
    run.reach("under way")
    # More CPUs of the node than are free: SLURM sends the signal that it sends before a time limit, too.
    more = run.site.submit("#!/bin/sh\n", "--partition=gpu", "--ntasks=2")
    until(lambda: "the script is told" in run.output, "the supervisor passes it on", 60)
    (run.folder / "warned").touch()
    until(lambda: run.status["phase"] == "requeued", "it is requeued")
    nothing_left(run)
    run.site.wait(more, "COMPLETED", 60)
    # SLURM holds it for two minutes otherwise, and cannot start it within the second of its end.
    until(lambda: start_now(run), "SLURM starts it again")


def start_now(run: Run) -> bool:
    """Whether the job runs again; it is asked to start where it waits."""
    found = run.site.job(run.job)
    if found["JobState"] == "PENDING":
        time.sleep(1)
        run.site.run("scontrol", "update", f"JobId={run.job}", "StartTime=now", check=False)
    return found["Restarts"] == "1" and found["JobState"] not in ("PENDING", "COMPLETING")


def test_a_heterogeneous_job_survives_the_loss_of_its_steps(runs: dict[str, Run]) -> None:
    run = runs["het"]
    run.reach("held")

    # Who listens, and who could read the key.
    listeners = run.site.listeners()
    assert len(listeners) > 10
    assert all(address.startswith("127.0.0.1:") for address in listeners), listeners
    secret = (run.folder / "tls" / "key.pem").read_text().splitlines()[1]
    processes = run.processes()
    assert len(processes) > 10
    told = [line + environment(pid) for pid, line in processes.items()]
    told += [path.read_text() for path in (run.folder / "logs").iterdir()] + [run.output]
    assert not any(secret in text for text in told)
    own = [run.folder, *(run.folder / "logs").iterdir(), *(run.folder / "tls").iterdir(), *run.folder.glob("*.json")]
    assert [path for path in own if path.stat().st_mode & 0o077] == []

    # Each GPU's step sees its own.
    seen = {step: run.log(step).partition("CUDA_VISIBLE_DEVICES=")[2].split()[0] for step in ("gpu-0", "gpu-1")}
    assert set(seen.values()) == {"0", "1"}
    assert run.log("cpu").count("cpu, CUDA_VISIBLE_DEVICES=\n") == 2

    for loss, steps in (("a GPU", 1), ("all GPUs", 2), ("the CPUs", 1)):
        lost = until(lambda n=steps, on="cpu" if "CPU" in loss else "gpu": run.steps(on)[:n], "steps run")
        assert len(lost) == steps
        # Of a heterogeneous job's first component scancel does it, and fails to find the step in the others.
        run.site.run("scancel", *lost, check=False)
        until(lambda gone=set(lost): not gone & {*run.steps("gpu"), *run.steps("cpu")}, "the steps are gone")
        (run.folder / f"lost {loss}").touch()
        run.reach(f"back {loss}")
        assert f"without {loss} same True" in run.output
    assert run.end("COMPLETED") == "0"
    assert run.output.count("26.") == 2
    assert "right True" in run.output
    assert run.output.count("it is started again") == 4
    status = run.status
    assert (status["phase"], status["exit_code"], status["restarts"]) == ("ended", 0, 0)
    nothing_left(run)


def test_the_script_goes_on_where_it_was_and_its_code_is_the_jobs(runs: dict[str, Run]) -> None:
    run = runs["preempted"]
    assert run.end("FAILED") == "7"
    assert run.site.job(run.job)["Restarts"] == "1"
    assert "restart 1: it goes on" in run.output
    assert re.findall(r"^step (\d)$", run.output, re.MULTILINE) == list("012345")
    assert "goes on after 3 steps" in run.output
    assert "bits True\n" in run.output
    assert (run.status["restarts"], run.status["exit_code"]) == (1, 7)
    nothing_left(run)


def test_jobs_of_two_users_do_not_see_each_other(runs: dict[str, Run]) -> None:
    own, other = runs["headless"], runs["cancelled"]
    own.reach("under way")
    other.reach("under way")
    python = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", STRANGER)
    seen = own.user.run(*python, own.folder, other.folder, other.status["scheduler"], timeout=60)
    assert seen.stdout.splitlines() == ["workers 1", "its folder is closed", "its scheduler refuses"]
    owners = {os.stat(f"/proc/{pid}").st_uid for pid in other.processes()}
    assert owners == {pwd.getpwnam(OTHER_USERS[0]).pw_uid}


def test_a_cancelled_job_leaves_nothing(runs: dict[str, Run]) -> None:
    run = runs["cancelled"]
    run.reach("under way")
    run.site.run("scancel", run.job)
    run.end("CANCELLED", timeout=20)
    until(lambda: run.status["phase"] == "ended", "the supervisor has ended it itself", 10)
    assert run.status["exit_code"] == 128 + signal.SIGTERM
    nothing_left(run)


def test_a_dead_scheduler_ends_the_job(runs: dict[str, Run]) -> None:
    run = runs["headless"]
    run.reach("under way")
    [scheduler] = [pid for pid, line in run.processes().items() if "dask_scheduler" in line]
    os.kill(scheduler, signal.SIGKILL)
    assert run.end("FAILED", timeout=30) == "1"
    assert "the scheduler died with exit code 137" in run.status["reason"]
    nothing_left(run)


def test_a_job_whose_workers_never_live_says_why(runs: dict[str, Run]) -> None:
    run = runs["broken"]
    assert run.end("FAILED", timeout=60) == "1"
    assert "no step is left: step cpu ended with exit code 9" in run.output
    assert "no module cupy" in run.output
    assert "the script starts" not in run.output
    nothing_left(run)


def test_a_run_folder_that_exists_is_refused(submit: Callable[..., Run], slurm: SlurmSite) -> None:
    (slurm.folder / "taken").mkdir()
    run = submit("taken", WAITING, ONE_CPU)
    assert run.end("FAILED", timeout=30) == str(os.EX_CANTCREAT)
    assert f"the run folder {run.folder} exists: name another" in run.output
    assert list(run.folder.iterdir()) == []


def nothing_left(run: Run) -> None:
    """No process, no key and no address of the run."""
    until(lambda: not run.processes(), "its processes have ended", 10)
    assert not (run.folder / "tls").exists()
    assert not (run.folder / "scheduler.json").exists()
