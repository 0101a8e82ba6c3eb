"""Rendered scripts in a real SLURM: taken as they are, refused with SLURM's own words, followed and connected to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_site import SlurmSite

import deploy.slurm
from deploy.slurm import queue
from deploy.slurm.queue import SlurmError, described, look
from deploy.slurm.script import JobRequest, render
from deploy.slurm.site import Pool, Site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SITE = Site(cpu=Pool(partition="cpu", memory="1.5GiB", cpus_per_node=4), gpu=Pool(memory="2GiB", cpus_per_node=4))

BASE = JobRequest("/x/train.py", time="5", folder="/tmp/none-%j")

#: The three kinds of job, as large as the tests' SLURM is.
JOBS = {
    "cpu_and_gpu_nodes": replace(BASE, gpu_partition="gpu", nodes=2, gpus=2, threads=2),
    "one_node": replace(BASE, partition="gpu", gpus=2, cpus_per_gpu=1, threads=1),
    "cpu_nodes": replace(BASE, nodes=2),
}


@pytest.fixture(autouse=True)
def this_slurm(slurm: SlurmSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process asks is answered by the tests' SLURM."""
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])


@pytest.fixture
def cancelled(slurm: SlurmSite) -> Iterator[Callable[[int], int]]:
    """Takes the number of a job, which is cancelled behind the test."""
    numbers: list[int] = []

    def note(number: int) -> int:
        numbers.append(number)
        return number

    yield note
    if numbers:
        slurm.run("scancel", *numbers, check=False)


def until(true: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Poll, in a test that no SLURM would tell of what it waits for."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("name", JOBS)
def test_sbatch_takes_the_script_as_it_is(name: str, slurm: SlurmSite) -> None:
    done = slurm.run("sbatch", "--test-only", input=render(SITE, JOBS[name]))
    assert "to start at" in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    "name", ["my $(touch canary) `x`", "a 'b' \"c\" #1", "hetjob \\n #SBATCH -p none", "ü; exit 1"]
)
def test_names_and_paths_reach_slurm_as_they_are(
    name: str, slurm: SlurmSite, cancelled: Callable[[int], int], tmp_path: Path
) -> None:
    folder = f"{tmp_path}/{name.replace(chr(92), '')}-%j"
    text = render(SITE, replace(BASE, name=name, folder=folder))
    number = cancelled(slurm.submit(text, "--hold"))
    assert slurm.run("squeue", "--noheader", "--format=%j", f"--jobs={number}").stdout == name + "\n"
    assert look(number).output == folder.replace("%j", str(number)) + ".log"


#: What cannot be, and SLURM's own words about it.
REFUSED = [
    ({"partition": "nowhere"}, "invalid partition specified: nowhere; Invalid partition name specified"),
    ({"gpu_partition": "nowhere", "gpus": 1}, "Invalid partition name specified"),
    ({"gpu_partition": "gpu", "gpus": 9}, "Requested node configuration is not available"),
    ({"nodes": 9}, "the job is cancelled, since .*: Requested node configuration is not available"),
    ({"time": "2-0"}, "the job is cancelled, since .* SLURM says: Partition"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_is_refused_in_slurms_words(changes: dict[str, object], words: str, slurm: SlurmSite) -> None:
    before = slurm.run("squeue", "--noheader").stdout
    with pytest.raises(SlurmError, match=words):
        queue.submit(render(SITE, replace(BASE, **changes)))
    assert slurm.run("squeue", "--noheader").stdout == before


def test_a_held_job_says_what_lets_it_go(slurm: SlurmSite, cancelled: Callable[[int], int]) -> None:
    number = cancelled(slurm.submit(render(SITE, JOBS["cpu_and_gpu_nodes"]), "--hold"))
    assert described(look(number)) == f"job {number} waits: it is held: `scontrol release {number}` lets it go"


def test_a_job_that_waits_for_a_node_says_so(slurm: SlurmSite, cancelled: Callable[[int], int]) -> None:
    slurm.run("scontrol", "update", "NodeName=cpu1", "State=DOWN", "Reason=test")
    try:
        number = cancelled(queue.submit(render(SITE, JOBS["cpu_nodes"])))
        until(lambda: look(number).reason not in ("None", "Priority", "Resources"), "SLURM's reason")
        assert "down, drained or reserved" in described(look(number))
        assert not queue.never(look(number))
    finally:
        slurm.run("scontrol", "update", "NodeName=cpu1", "State=RESUME")
        until(lambda: "idle*" not in slurm.run("sinfo", "-h", "-o", "%T").stdout, "the node back")


def test_a_job_that_ended_long_ago_is_not_known() -> None:
    with pytest.raises(SlurmError, match="SLURM knows no such job"):
        look(999999)


# -- the steps of the scripts, with a supervisor that does nothing but start them

SUPERVISOR = """\
#!{python}
import os, shlex, subprocess, sys
given = dict(zip(sys.argv, sys.argv[1:]))
commands = [given["--cpu-step"]] + [given.get("--gpu-step")] * int(given.get("--gpu-steps", 0))
steps = [subprocess.Popen(shlex.split(c) + [{task!r}, {folder!r}]) for c in commands]
sys.exit(max(step.wait() for step in steps))
"""

#: Writes what it got, and ends when all tasks of the job have: they run at once.
TASK = """\
#!{python}
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
names = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_CPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "SLURMD_NODENAME")
got = {{name: os.environ.get(name, "") for name in names}}
me = folder / f"{{got['SLURMD_NODENAME']}}-{{got['SLURM_STEP_ID']}}-{{got['SLURM_PROCID']}}"
me.with_suffix(".part").write_text(json.dumps(got))
me.with_suffix(".part").rename(me.with_suffix(".json"))
end = time.monotonic() + 30
while len(list(folder.glob("*.json"))) < {tasks}:
    assert time.monotonic() < end
    time.sleep(0.05)
"""

#: Of each job: its workers on CPUs, by node, and its GPU.
TASKS = {
    "cpu_and_gpu_nodes": (["cpu0", "cpu0", "cpu1", "cpu1"], 2),
    "one_node": (["gpu0", "gpu0"], 2),
    "cpu_nodes": (["cpu0", "cpu1"], 0),
}


@pytest.mark.parametrize("name", JOBS)
def test_all_steps_run_at_once_each_gpu_with_one(name: str, slurm: SlurmSite, tmp_path: Path) -> None:
    cpus, gpus = TASKS[name]
    reports = tmp_path / "reports"
    reports.mkdir()
    supervisor, task = tmp_path / "supervisor", tmp_path / "task"
    supervisor.write_text(SUPERVISOR.format(python=sys.executable, task=str(task), folder=str(reports)))
    task.write_text(TASK.format(python=sys.executable, tasks=len(cpus) + gpus))
    for program in (supervisor, task):
        program.chmod(0o700)
    site = replace(SITE, python=str(supervisor))
    number = slurm.submit(render(site, replace(JOBS[name], folder=f"{tmp_path}/run-%j")))
    done = slurm.wait(number, queue.ENDINGS, timeout=60)
    log = Path(f"{tmp_path}/run-{number}.log")
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    got = [json.loads(report.read_text()) for report in reports.glob("*.json")]
    devices = [one["CUDA_VISIBLE_DEVICES"] for one in got]
    assert sorted(one["SLURMD_NODENAME"] for one in got if not one["CUDA_VISIBLE_DEVICES"]) == cpus
    assert sorted(filter(None, devices)) == ["0", "1"][:gpus]


# -- the whole: submitted, followed, connected to


PRODUCT = """\
import os, sys, time
from pathlib import Path
import numpy as np
import taskgraph as tg
a = np.arange(64.0).reshape(8, 8)
print("right:", np.array_equal((tg.asarray(a, chunks=4) @ tg.asarray(a.T, chunks=4)).compute(), a @ a.T), sys.argv[1:])
end = time.monotonic() + 60
while not (Path(os.environ["TASKGRAPH_RUN_FOLDER"]) / "go").exists():
    assert time.monotonic() < end
    time.sleep(0.05)
sys.exit(3)
"""

FROM_OUTSIDE = """\
import sys
from distributed import get_client
import taskgraph as tg
print(sorted(w["name"] for w in get_client().scheduler_info(n_workers=-1)["workers"].values()), sys.argv[1:])
print(tg.sum(tg.ones((4, 4))).compute())
"""

SITE_FILE = f"""\
python = {json.dumps(sys.executable)}
[environment]
TASKGRAPH_DEVICE = "emulated-gpu"
[cpu]
partition = "cpu"
cpus_per_node = 2
[gpu]
partition = "gpu"
"""


def command(*arguments: object, **given: object) -> subprocess.Popen[str]:
    """`taskgraph slurm ...`, with the environment of this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskgraph", "slurm", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given,
    )  # fmt: skip


@pytest.mark.logs_errors  # workers that are stopped while they start or speak say so
def test_submitted_followed_and_connected_to(slurm: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of CPU and GPU nodes, and a client on another machine; the script's exit code is the command's."""
    for key, value in slurm.env.items():
        monkeypatch.setenv(key, value)
    script, outside, site = tmp_path / "product.py", tmp_path / "outside.py", tmp_path / "site.toml"
    script.write_text(PRODUCT)
    outside.write_text(FROM_OUTSIDE)
    site.write_text(SITE_FILE)
    (tmp_path / "deploy").mkdir()  # of the user's, and not to be taken for ours
    run = tmp_path / "run of $(me)"
    options = ["--site", site, "--time", "5", "--gpus", 2, "--cpus-per-gpu", 1, "--folder", run]
    job = command("submit", *options, script, "it's $(me)", cwd=tmp_path)
    try:
        until(lambda: (run / "status.json").exists() and status(run)["phase"] == "running", "the job")
        number = int(status(run)["job_id"])
        with deploy.slurm.connect(number) as client:
            client.wait_for_workers(3, timeout=60)
        there = command("connect", number, outside, "--mine")
        output, errors = there.communicate(timeout=60)
        assert there.returncode == 0, errors
        assert output == "['cpu-0', 'gpu-0', 'gpu-1'] ['--mine']\n16.0\n"
        port = status(run)["dashboard"].partition(":")[2]
        assert f"ssh -N -L {port}:127.0.0.1:{port} cpu" in errors
        os.chmod(run / "tls", 0o755)
        with pytest.raises(PermissionError, match=f"{re.escape(str(run))}/tls is open to others"):
            deploy.slurm.connect(number)
        os.chmod(run / "tls", 0o700)
        (run / "go").touch()
        output, errors = job.communicate(timeout=60)
    finally:
        job.kill()
        job.wait()
    assert job.returncode == 3, errors
    assert """right: True ["it's $(me)"]""" in output
    assert f"taskgraph: job {number} is submitted; its run folder is {run}, its log {run}.log" in errors
    assert f"taskgraph: job {number} failed with exit code 3: its log says why ({run}.log)" in errors
    assert not (run / "tls").exists()
    with pytest.raises(SlurmError, match=f"only a running job has a cluster, and job {number} failed"):
        deploy.slurm.connect(number)


def status(folder: Path) -> dict[str, str]:
    """What the job says of itself."""
    return json.loads((folder / "status.json").read_text())
