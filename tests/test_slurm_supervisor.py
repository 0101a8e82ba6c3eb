"""What the supervisor of a batch job decides, starts and reads, without SLURM."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from deploy.slurm import commands, decisions, job, worker
from deploy.slurm.commands import Options
from deploy.slurm.decisions import (
    Asked,
    Ended,
    Event,
    Job,
    Say,
    SchedulerUp,
    Started,
    StartScript,
    StartStep,
    Step,
    Stop,
    TellScript,
    Waited,
    decide,
)  # fmt: skip
from deploy.tls import load_keys

LIMIT = 3600.0


def fresh(*steps: str, retire_at: float = LIMIT) -> Job:
    return Job({name: Step() for name in steps or ("cpu", "gpu-0", "gpu-1")}, retire_at, up_by=120.0)


def running(*steps: str, retire_at: float = LIMIT) -> Job:
    job = fresh(*steps, retire_at=retire_at)
    return after(job, [(0.0, SchedulerUp()), *((1.0, Started(name)) for name in job.steps)])[0]


def after(job: Job, events: Sequence[tuple[float, Event]]) -> tuple[Job, list]:
    """The job after events, and what was to be done for the last of them."""
    actions: list = []
    for now, event in events:
        job, actions = decide(job, event, now)
    return job, actions


def test_the_steps_and_the_script_start_when_the_scheduler_is_up():
    job, actions = decide(fresh(), SchedulerUp(), 3.0)
    assert actions == [StartStep("cpu"), StartStep("gpu-0"), StartStep("gpu-1"), StartScript()]
    assert decide(job, Waited(), 1000.0) == (job, [])


ENDS = {
    "the script is done": ([(100.0, Ended("script", 0))], 0, "end", "exit code 0"),
    "the script fails": ([(2.0, Ended("script", 3))], 3, "end", "exit code 3"),
    "the script is killed": ([(2.0, Ended("script", 137))], 137, "end", "137"),
    "the script has saved": ([(9.0, Asked(signal.SIGUSR1)), (12.0, Ended("script", 75))], 75, "requeue", "go on later"),
    "the script ends as if it had been warned": ([(9.0, Ended("script", 75))], 75, "end", "exit code 75"),
    "the scheduler dies": ([(9.0, Ended("scheduler", 137, "MemoryError"))], 1, "end", "137: MemoryError"),
    "the script closes the cluster and ends": (
        [(9.0, Ended("scheduler", 0)), (9.5, Ended("cpu", 0)), (11.0, Ended("script", 4))], 4, "end", "exit code 4",
    ),
    "the script closes the cluster and hangs": (
        [(9.0, Ended("scheduler", 0)), (18.0, Waited()), (19.5, Waited())], 1, "end", "does not end",
    ),
    "cancelled": ([(5.0, Asked(signal.SIGTERM))], 143, "end", "SIGTERM"),
    "interrupted": ([(5.0, Asked(signal.SIGINT))], 130, "end", "SIGINT"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_how_a_job_ends(case):
    events, code, outcome, reason = ENDS[case]
    ended, [end] = after(running(), events)
    assert isinstance(end, Stop)
    assert (end.code, end.outcome) == (code, outcome)
    assert reason in end.reason
    for event in (Ended("gpu-0", 1), Ended("script", 0), Asked(signal.SIGTERM), Waited(), SchedulerUp()):
        assert decide(ended, event, 50.0) == (ended, []), "once"


STARTS_THAT_FAIL = {
    "it dies": (Ended("scheduler", 1, "port in use"), 2.0, "port in use"),
    "it closes": (Ended("scheduler", 0, ""), 2.0, "exit code 0"),
    "it hangs": (Waited(), 120.5, "did not come up"),
}


@pytest.mark.parametrize("case", STARTS_THAT_FAIL)
def test_a_scheduler_that_does_not_come_up_ends_the_job(case):
    event, now, reason = STARTS_THAT_FAIL[case]
    _, [end] = decide(fresh(), event, now)
    assert isinstance(end, Stop)
    assert (end.code, end.outcome) == (1, "end")
    assert reason in end.reason


def test_the_warning_before_the_limit_is_passed_on():
    job, actions = decide(running(), Asked(signal.SIGUSR1), 10.0)
    assert actions[-1] == TellScript(signal.SIGUSR1)
    assert not job.stopping


def test_a_warning_before_the_script_began_requeues_the_job():
    _, [end] = decide(fresh(), Asked(signal.SIGUSR1), 2.0)
    assert isinstance(end, Stop)
    assert end.outcome == "requeue"


class TestAStepThatEnds:
    def test_it_is_started_again_at_once(self):
        job, actions = decide(running(), Ended("gpu-1", 137, "Killed"), 500.0)
        assert actions[-1] == StartStep("gpu-1")
        assert "gpu-1 ended with exit code 137: Killed" in actions[0].text
        assert job.steps["gpu-0"] == Step(started=1.0)

    def test_it_is_given_up_after_short_lives_and_the_others_go_on(self):
        job, now, delays = running(), 1.0, []
        while True:
            now += 3.0
            job, actions = decide(job, Ended("gpu-0", 1, "no CUDA device"), now)
            if len(actions) == 1:
                break
            delays.append(actions[-1].delay_s)
            now += actions[-1].delay_s
            job, _ = decide(job, Started("gpu-0"), now)
        assert delays == [0.0, 2.0, 4.0, 8.0]
        assert now < 60
        [said] = actions
        assert isinstance(said, Say)
        assert "no CUDA device; it is given up after 5 short lives" in said.text
        assert job.steps["gpu-0"].given_up
        assert not job.stopping

    def test_a_long_life_forgives_the_short_ones(self):
        job = running()
        for k in range(20):
            job, actions = after(job, [(100.0 * k + 99, Ended("cpu", 1)), (100.0 * k + 100, Started("cpu"))][:1])
            assert actions[-1] == StartStep("cpu")
            job, _ = decide(job, Started("cpu"), 100.0 * k + 100)

    def test_the_job_ends_when_the_last_is_given_up(self):
        job = running("gpu-0")
        for k in range(4):
            job, _ = after(job, [(10.0 * k, Ended("gpu-0", 1)), (10.0 * k + 1, Started("gpu-0"))])
        _, [end] = decide(job, Ended("gpu-0", 1, "ImportError: cupy"), 42.0)
        assert isinstance(end, Stop)
        assert end.code == 1
        assert "no step is left: step gpu-0" in end.reason
        assert "ImportError: cupy" in end.reason

    def test_its_program_that_is_not_there_is_a_short_life_too(self):
        job, actions = decide(fresh(), SchedulerUp(), 0.0)
        _, actions = decide(job, Ended("cpu", 127, "srun: no such file"), 0.1)
        assert actions[-1] == StartStep("cpu")

    def test_near_the_jobs_limit_its_workers_have_left(self):
        job, actions = decide(running(retire_at=100.0), Ended("cpu", 0), 101.0)
        assert actions == []
        assert job.steps["cpu"] == Step()


def test_every_order_of_events_ends_a_job_at_most_once():
    seed = 20260
    choose = random.Random(seed)
    print("seed", seed)
    names = ("cpu", "gpu-0", "gpu-1")
    kinds = [
        lambda: Started(choose.choice(names)),
        lambda: Ended(choose.choice((*names, "script", "scheduler")), choose.choice((0, 1, 75, 137))),
        lambda: Asked(choose.choice((signal.SIGUSR1, signal.SIGTERM))),
        Waited,
        SchedulerUp,
    ]
    for _ in range(300):
        job, stops = fresh(*names), 0
        for now in range(40):
            job, actions = decide(job, choose.choice(kinds)(), float(now))
            stops += sum(isinstance(action, Stop) for action in actions)
            assert stops == job.stopping <= 1


class TestCommands:
    OPTIONS = Options(
        Path("/run folder"),
        ("my script.py", "--lr", "0.1; rm -rf /"),
        cpu_step=("srun", "--het-group=0", "--nodes=2", "--ntasks=4"),
        gpu_step=("srun", "--het-group=1", "--gpus-per-task=1"),
        gpu_steps=2,
        threads=8,
        memory_limit="12GB",
        interface="ib0",
    )

    def test_a_step_for_all_cpu_workers_and_one_a_gpu(self):
        assert commands.step_names(self.OPTIONS) == ["cpu", "gpu-0", "gpu-1"]
        assert commands.step_names(Options(Path("f"), ("s.py",), gpu_step=("srun",), gpu_steps=1)) == ["gpu-0"]

    def test_a_step_is_its_prefix_and_a_worker(self):
        command = commands.step_command(self.OPTIONS, "gpu-1", retire_at=1000.0)
        assert command[:3] == ["srun", "--het-group=1", "--gpus-per-task=1"]
        assert {"--kind=gpu", "--name=gpu-1", "--threads=1", "--retire-at=1000", "--stagger=15.0"} < set(command)
        command = commands.step_command(self.OPTIONS, "cpu", retire_at=math.inf)
        assert {"--kind=cpu", "--name=cpu", "--threads=8", "--interface=ib0", "--memory-limit=12GB"} < set(command)
        assert not any("retire" in argument for argument in command)

    def test_the_scripts_arguments_stay_what_they_are(self):
        command = commands.script_command(self.OPTIONS)
        assert command[command.index("--") + 1 :] == ["my script.py", "--lr", "0.1; rm -rf /"]
        assert "--workers=6" in command

    def test_nobody_listens_without_tls_or_beyond_its_address(self):
        scheduler = commands.scheduler_command(Path("/f"), "10.0.0.7")
        dask = worker.dask_arguments(Path("/f"), "cpu-0", "10.0.0.7", 2, None, (60.0, 15.0))
        for command in (scheduler, dask):
            assert {"--protocol=tls", "--host=10.0.0.7", "--dashboard-address=127.0.0.1:0"} < set(command)
            assert {"--tls-ca-file=/f/tls/cert.pem", "--tls-key=/f/tls/key.pem"} < set(command)
        assert {"--lifetime=60.0s", "--lifetime-stagger=15.0s"} < set(dask)

    def test_the_users_settings_hold_but_for_encryption(self):
        given = {
            "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "9s",
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "",
        }
        made = commands.environment_of(Path("/f"), given)
        assert made["DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT"] == "9s"
        assert made["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
        assert commands.environment_of(Path("/f"), {})["DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT"] == "120s"

    @pytest.mark.parametrize(
        ("line", "tasks"),
        [("srun --ntasks=4 --nodes=2", 4), ("srun -n4", 4), ("srun -n 3 -N 2", 3), ("srun -N2", 2), ("srun -c 8", 1)],
    )
    def test_how_many_workers_a_step_has(self, line, tasks):
        assert commands.tasks_of(line.split()) == tasks


class TestWhatSlurmSays:
    def test_when_the_job_ends(self):
        shown = "JobId=7 StartTime=2026-11-24T14:10:41 EndTime=2026-11-24T14:15:41 Deadline=N/A"
        assert commands.end_of(shown) == datetime(2026, 11, 24, 14, 15, 41).timestamp()
        assert commands.end_of("JobId=7 EndTime=Unknown") is None
        assert commands.end_of("") is None

    @pytest.mark.parametrize(
        ("environment", "megabytes"),
        [
            ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_PER_TASK": "4"}, 2000),
            ({"SLURM_MEM_PER_CPU": "500"}, 500),
            ({"SLURM_MEM_PER_NODE": "8000", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 4000),
            ({"SLURM_MEM_PER_NODE": "8000"}, 8000),
            ({"SLURM_MEM_PER_NODE": "0"}, None),
            ({}, None),
        ],
    )
    def test_the_memory_of_a_worker(self, environment, megabytes):
        found = worker.memory_of_task(environment)
        assert found == (None if megabytes is None else str(megabytes * 2**20))

    def test_why_a_step_ended(self):
        log = "Traceback (most recent call last):\nRuntimeError: no GPU here\n... - INFO - End worker\n\n"
        assert commands.last_words(log) == "RuntimeError: no GPU here"
        assert commands.last_words("one\ntwo\nsrun: error: Exited with exit code 9\n") == "two"
        assert commands.last_words("srun: error: node gone\n") == "srun: error: node gone"
        assert commands.last_words("... - distributed.nanny - INFO - Worker closed\n") == ""
        assert commands.last_words("") == ""


class TestTheRunFolder:
    def test_it_is_the_owners_alone(self, tmp_path):
        folder = tmp_path / "runs" / "one"
        job.open_folder(folder, again=False)
        for path in (folder, *folder.rglob("*")):
            assert not path.stat().st_mode & 0o077, path
        assert load_keys(folder / "tls").require_encryption

    def test_one_that_exists_is_used_only_to_go_on(self, tmp_path):
        job.open_folder(tmp_path / "run", again=False)
        key = (tmp_path / "run" / "tls" / "key.pem").read_bytes()
        (tmp_path / "run" / "scheduler.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"run exists: name another with --folder, or .* --resume"):
            job.open_folder(tmp_path / "run", again=False)
        job.open_folder(tmp_path / "run", again=True)
        assert not (tmp_path / "run" / "scheduler.json").exists()
        assert (tmp_path / "run" / "tls" / "key.pem").read_bytes() != key

    @pytest.mark.parametrize(
        ("status", "state", "other"),
        [
            ({"job_id": "7", "phase": "running"}, "RUNNING", "7"),
            ({"job_id": "7", "phase": "running"}, "NODE_FAIL", None),
            ({"job_id": "7", "phase": "ended"}, "RUNNING", None),
            ({"job_id": "8", "phase": "running"}, "RUNNING", None),
            ({}, "RUNNING", None),
        ],
    )
    def test_two_jobs_do_not_share_it(self, tmp_path, monkeypatch, status, state, other):
        job.write_status(tmp_path, status)
        monkeypatch.setattr(job, "show", lambda kind, name: f"JobId={name} JobState={state} Reason=None")
        assert job.other_job(tmp_path, "8") == other

    def test_others_must_not_write_to_it(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o770)
        with pytest.raises(PermissionError, match="not yours alone"):
            job.open_folder(tmp_path / "run", again=True)


BAD = {
    "no workers": ([], "a job needs workers"),
    "a step of no GPUs": (["--gpu-step", "srun"], "--gpu-steps go together"),
    "a warning too late": (["--cpu-step", "srun", "--warn-seconds", "60"], "by then workers have left"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_refused(case, tmp_path, capsys):
    arguments, message = BAD[case]
    with pytest.raises(SystemExit) as end:
        job.main(["--folder", str(tmp_path / "run"), *arguments, "script.py"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_exit_codes_are_a_shells():
    assert [decisions.exit_code(code) for code in (0, 3, -9, -15)] == [0, 3, 137, 143]
