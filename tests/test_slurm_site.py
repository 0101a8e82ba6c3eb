"""The tests' own SLURM: jobs run on every kind of node, for every user, and end with the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_cluster import until
from slurm_site import OTHER_USERS, SlurmSite, address, fields, missing

TESTS = Path(__file__).parent

pytestmark = pytest.mark.slurm


def test_what_slurm_shows_is_read() -> None:
    line = "JobId=7 JobName=a=b c UserId=root(0) JobState=RUNNING Command=/x y.py --n=3 Socks/Node=* "
    line += "NtasksPerN:B:S:C=0:0 Power="
    assert fields(line) == {
        "JobId": "7",
        "JobName": "a=b c",
        "UserId": "root(0)",
        "JobState": "RUNNING",
        "Command": "/x y.py --n=3",
        "Socks/Node": "*",
        "NtasksPerN:B:S:C": "0:0",
        "Power": "",
    }
    assert address("0100007F:1F90") == "127.0.0.1:8080"
    assert address("00000000000000000000000001000000:1F90") == "[::1]:8080"


def test_each_task_of_a_step_gets_a_gpu_of_its_own(slurm: SlurmSite) -> None:
    shown = slurm.run(
        *("srun", "--partition=gpu", "--gres=gpu:2", "--ntasks=2", "--gpus-per-task=1"),
        *("bash", "-c", "echo $SLURM_PROCID:$CUDA_VISIBLE_DEVICES"),
    )
    assert sorted(shown.stdout.split()) == ["0:0", "1:1"]


@pytest.mark.parametrize("user", OTHER_USERS)
def test_another_users_job_runs_this_project(slurm: SlurmSite, user: str) -> None:
    program = "import os, taskgraph; print(os.getuid() == os.stat('.').st_uid, taskgraph.__file__)"
    done = slurm.as_user(user).run("srun", "env", f"PYTHONPATH={TESTS.parent}", sys.executable, "-c", program)
    assert done.stdout.split() == ["True", str(TESTS.parent / "taskgraph" / "__init__.py")]


def test_nothing_is_left_of_a_site_whose_tests_are_killed() -> None:
    if reason := missing():
        pytest.skip(reason)
    program = (
        "import slurm_site as s, sys; site = s.SlurmSite(); job = site.submit('#!/bin/sh\\nsrun sleep 1000\\n'); "
        "site.wait(job, 'RUNNING'); print(site.site, *site._descendants(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as harness:
        assert harness.stdout is not None
        folder, *processes = harness.stdout.readline().split()
        harness.send_signal(signal.SIGKILL)
    assert len(processes) > 6
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), "all its processes have ended", 10)
    assert not Path(folder).exists()
