"""Pools of SLURM jobs without SLURM: what a job's script says, which jobs are lost, how many workers a pool wants."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Nanny
from distributed.security import Security

from deploy import tls
from deploy.slurm.adaptivity import Load, wanted_workers, workers_in_jobs
from deploy.slurm.cluster import MixedSlurmCluster
from deploy.slurm.healing import ABSENT_S, STEADY_S, Action, JobView, parse_squeue, passes, reconcile
from deploy.slurm.jobs import PoolJob
from deploy.slurm.keys import cluster_keys
from deploy.slurm.pools import Pool, as_pool, job_keywords, lifetime, on_site, worker_names
from deploy.slurm.preload import dask_setup
from deploy.slurm.queue import Job, NoAnswer, SlurmError
from deploy.slurm.script import seconds_of
from deploy.slurm.site import parse_site

TLS = {"tls-ca-file": "/project/me/run 1/tls/cert.pem", "tls-key": "/project/me/run 1/tls/key.pem"}


SITE = """
account = "p1"
qos = "night"
modules = ["my python"]
shell = ["ulimit -c 0"]
memory_flag = "none"
[environment]
A = "b c"
[gpu]
partition = "a100"
cpus_per_node = 32
memory = "250GB"
gpu_type = "a100"
sbatch = ["--exclusive"]
"""


def script(pool: Pool, kind: str = "cpu", folder: Path = Path("/project/me/run 1"), **kwargs: str) -> str:
    keywords = job_keywords(pool, job_name="taskgraph-1", folder=folder, tls=TLS, python="/opt/my env/python", **kwargs)
    return PoolJob("tls://10.0.0.1:4000", f"{kind}-3", pool=pool, keywords=keywords, folder=folder).job_script()


class TestScript:
    def test_the_whole_text(self) -> None:
        pool = Pool(
            partition="a100",
            account="p1",
            cores=8,
            memory="60 GiB",
            walltime="2:00:00",
            gpus=2,
            gpu_type="a100",
            options=("--qos=night",),
            prologue=("module load cuda",),
        )
        assert script(pool, "gpu", interface="ib0") == (
            """\
#!/bin/bash

#SBATCH -J taskgraph-1
#SBATCH -p a100
#SBATCH -A p1
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=61440M
#SBATCH -t 2:00:00
#SBATCH --nodes=1
#SBATCH --gres=gpu:a100:2
#SBATCH --no-requeue
#SBATCH --output="/project/me/run 1/%j.log"
#SBATCH --qos=night
module load cuda
export TASKGRAPH_DEVICE=gpu
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
scratch=${TMPDIR:-/tmp}/dask-taskgraph-$UID
mkdir -m 700 "$scratch" 2>/dev/null ||
    { [ -O "$scratch" ] && [ ! -L "$scratch" ] && chmod 700 "$scratch"; } ||
    scratch=$(mktemp -d "$scratch-XXXXXX") || exit
exec '/opt/my env/python' -P -m distributed.cli.dask_worker tls://10.0.0.1:4000 --name gpu-3 --nthreads 1 \
--memory-limit 27.00GiB --nworkers 2 --nanny --death-timeout 120 --local-directory "$scratch" \
--preload workers.plugin --preload-nanny deploy.slurm.preload --protocol tls \
--tls-ca-file '/project/me/run 1/tls/cert.pem' --tls-key '/project/me/run 1/tls/key.pem' \
--no-dashboard --dashboard-address 127.0.0.1:0 --lifetime 6297s --lifetime-stagger 15s --interface ib0
"""
        )

    @pytest.mark.parametrize(
        ("pool", "has", "has_not"),
        [
            (Pool(), ["export TASKGRAPH_DEVICE=cpu", "export CUDA_VISIBLE_DEVICES=\n"], ["--gres", "SBATCH -A"]),
            (Pool(cores=32), ["--nthreads 8", "--nworkers 4", "--cpus-per-task=32"], []),
            (Pool(cores=8, workers_per_job=2), ["--nthreads 4", "--nworkers 2", "--cpus-per-task=8"], []),
            (
                Pool(gpus=1, emulated=True),
                ["TASKGRAPH_DEVICE=emulated-gpu", "deploy.slurm.preload"],
                ["--gres", "nworkers"],
            ),
            (Pool(memory_flag="none"), ["--memory-limit 3.60GiB"], ["--mem="]),
            (Pool(cores=3, memory_flag="mem-per-cpu"), ["#SBATCH --mem-per-cpu=1366M"], ["--mem="]),
            (Pool(local_directory="/fast disk/$x"), ["scratch='/fast disk/$x'/dask"], ["TMPDIR"]),
        ],
    )
    def test_lines(self, pool: Pool, has: list[str], has_not: list[str]) -> None:
        text = script(pool)
        assert [part for part in has if part not in text] == []
        assert [part for part in has_not if part in text] == []

    def test_the_folder_for_spilled_data_is_the_users_own(self, tmp_path: Path) -> None:
        """A folder that a neighbour made first, here as a link, is not used."""
        keywords = job_keywords(Pool(), job_name="j", folder=tmp_path, tls={})
        lines = [*keywords["job_script_prologue"], 'stat -c "%a %n" "$scratch"']
        own = tmp_path / f"dask-taskgraph-{os.getuid()}"

        def made() -> str:
            done = subprocess.run(
                ["bash"],
                input="\n".join(lines),
                env={"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            return done.stdout.strip()

        assert made() == made() == f"700 {own}"
        own.chmod(0o777)
        assert made() == f"700 {own}"
        own.rmdir()
        own.symlink_to(tmp_path)
        assert made().startswith(f"700 {own}-")

    @pytest.mark.parametrize("folder", ["/home/50%", "/home/a\\b", "/home/a\nb"])
    def test_folders_that_sbatch_reads_otherwise(self, folder: str) -> None:
        with pytest.raises(ValueError, match="sbatch"):
            script(Pool(), folder=Path(folder))

    def test_workers_without_cores(self) -> None:
        with pytest.raises(ValueError, match="2 workers need a core each, and it has cores=1"):
            script(Pool(gpus=2, cores=1))


class TestPool:
    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"cores": 0}, "cores is a number, at least 1, not 0"),
            ({"workers": True}, "workers is a number, at least 0"),
            ({"gpus": 2, "cores": 4, "workers_per_job": 3}, "a job of 2 GPUs has a worker for each, not 3"),
            ({"partition": "a; rm -rf x"}, "partition is a name"),
            ({"partition": "-x"}, "partition is a name"),
            ({"account": "a\n#SBATCH x"}, "account is a name"),
            ({"options": ("--qos=a\nrm x",)}, "options is a list of single lines"),
            ({"options": "--qos=a"}, "options is a list"),
            ({"options": ["qos=a"]}, "options are sbatch's"),
            ({"memory_flag": "gib"}, "memory_flag is one of mem, mem-per-cpu, none"),
            ({"memory": "much"}, "much"),
            ({"walltime": "soon"}, "a time limit is MINUTES"),
            ({"walltime": "0"}, "means none"),
        ],
    )
    def test_what_no_job_can_be_made_of(self, fields: dict[str, object], error: str) -> None:
        with pytest.raises(ValueError, match=error):
            Pool(**fields)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("kind", "given", "error", "message"),
        [
            ("cpu", {"partion": "x"}, TypeError, "cpu: a pool has no partion; it has partition, cores"),
            ("gpu", 2, TypeError, "gpu is a deploy.slurm.Pool or a mapping of its fields, not int"),
            ("gpu", {"cores": 2}, ValueError, "gpu: its jobs ask for no GPU; say gpus=1"),
            ("cpu", Pool(gpus=1), ValueError, "cpu: its jobs ask for GPUs"),
        ],
    )
    def test_pools_as_given(self, kind: str, given: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            as_pool(kind, given)  # type: ignore[arg-type]

    def test_a_mapping_is_a_pool(self) -> None:
        assert as_pool("cpu", {"cores": 2, "options": ["--qos=a"]}) == Pool(cores=2, options=("--qos=a",))

    def test_what_a_pool_does_not_say_is_the_sites_to_say(self) -> None:
        site = parse_site(SITE)
        assert on_site("gpu", Pool(gpus=4, account="mine", options=("--nice",), prologue=("date",)), site) == Pool(
            partition="a100",
            cores=32,
            memory="250GB",
            gpus=4,
            gpu_type="a100",
            account="mine",
            memory_flag="none",
            options=("--qos=night", "--exclusive", "--nice"),
            prologue=("ulimit -c 0", "module load 'my python' || exit", "export A='b c'", "date"),
        )
        assert on_site("gpu", Pool(gpus=2, cores=2, memory="1 GB", partition="small", memory_flag="mem"), site) == Pool(
            partition="small",
            cores=2,
            memory="1 GB",
            gpus=2,
            gpu_type="a100",
            account="p1",
            memory_flag="mem",
            options=("--qos=night", "--exclusive"),
            prologue=("ulimit -c 0", "module load 'my python' || exit", "export A='b c'"),
        )
        assert on_site("cpu", Pool(), site).gpu_type is None

    @pytest.mark.parametrize("walltime", ["1", "5", "1:00:00", "2-12"])
    def test_workers_retire_in_time(self, walltime: str) -> None:
        seconds = seconds_of(walltime)
        ends = sorted(lifetime(seconds, index) for index in range(8))
        assert all(retire - stagger > seconds // 2 for retire, stagger in ends)
        assert all(seconds - (retire + stagger) >= min(120, seconds // 4) for retire, stagger in ends)
        apart = [later[0] - sooner[0] for sooner, later in itertools.pairwise(ends)]
        assert min(apart) >= seconds // 8 // 14, "eight jobs do not retire at the same moment"

    @pytest.mark.parametrize(("workers", "jobs"), [(0, 0), (1, 1), (4, 1), (5, 2)])
    def test_jobs_are_whole(self, workers: int, jobs: int) -> None:
        pool = Pool(cores=4, gpus=4)
        assert pool.jobs_for(workers) == jobs
        assert (pool.processes, pool.threads, len(worker_names("gpu-0", 4))) == (4, 1, 4)


def job(state: str, reason: str = "None", nodes: str = "") -> Job:
    """Job 7 as squeue shows it."""
    return parse_squeue(f"7|{state}|{nodes}|1:00:00|batch|N/A|{reason}")["7"]


def refused(error: SlurmError, losses: int = 0) -> JobView:
    return JobView(None, refusal=str(error), passing=passes(error), losses=losses)


class TestReconcile:
    """Rows of: the job, SLURM's state of it (None: not known), what is done, losses in a row, delay, words of why."""

    @pytest.mark.parametrize(
        ("lost", "state", "verb", "losses", "delay_s", "words"),
        [
            (JobView("7"), job("PENDING", "Priority"), None, 0, 0, ""),
            (JobView("7"), job("COMPLETING"), None, 0, 0, ""),
            (JobView("7", absent_s=ABSENT_S - 1), job("RUNNING"), None, 0, 0, ""),
            (JobView("7", absent_s=ABSENT_S + 1), job("RUNNING", nodes="n4"), "submit", 1, 0, "runs on n4, but"),
            (
                JobView("7"),
                job("PENDING", "PartitionTimeLimit"),
                "give up",
                1,
                0,
                "waits in vain: it asks for more time",
            ),
            (JobView("7"), job("PENDING", "JobHeldUser"), "tell", 0, 0, "scontrol release 7"),
            (JobView("7"), None, "submit", 1, 0, r"\(job 7\) is not known"),
            (JobView("7", joined_s=9), job("CANCELLED"), "submit", 1, 0, r"\(job 7\) was cancelled$"),
            (JobView("7", losses=1), job("FAILED"), "submit", 2, 5, "before a worker of it reached"),
            (JobView("7", losses=2), job("FAILED"), "submit", 3, 10, "failed"),
            (JobView("7", losses=3), job("OUT_OF_MEMORY"), "give up", 4, 0, "ran out of memory"),
            (JobView("7", losses=3, joined_s=STEADY_S), job("FAILED"), "submit", 1, 0, "failed"),
            (JobView("7", losses=3, joined_s=9), job("FAILED"), "give up", 4, 0, "failed"),
            (JobView("7", losses=3, joined_s=9), job("PREEMPTED"), "submit", 0, 0, "was preempted"),
            (JobView("7", losses=3, joined_s=9), job("TIMEOUT"), "submit", 0, 0, "time limit"),
            (JobView("7", losses=3), job("TIMEOUT"), "give up", 4, 0, "time limit before a worker"),
            (refused(SlurmError("Invalid account")), None, "give up", 1, 0, "Invalid account"),
            (refused(NoAnswer("Unable to contact slurm controller")), None, "submit", 1, 0, "Unable"),
            (refused(NoAnswer("Unable to contact slurm controller"), losses=3), None, "give up", 4, 0, "Unable"),
        ],
    )
    def test_rows(
        self, lost: JobView, state: Job | None, verb: str | None, losses: int, delay_s: float, words: str
    ) -> None:
        actions = reconcile({"cpu-0": lost}, {} if state is None else {"7": state}, heal=3)
        if verb is None:
            assert actions == []
            return
        [action] = actions
        assert action == Action("cpu-0", verb, action.why, losses, delay_s)  # type: ignore[arg-type]
        assert re.search(words, action.why)


@pytest.mark.parametrize(
    ("limits", "load", "expected"),
    [
        ((0, 8), Load(tasks=0, seconds=0, held_bytes=0, memory_bytes=100, threads=2), 0),
        ((1, 8), Load(tasks=0, seconds=0, held_bytes=0, memory_bytes=100, threads=2), 1),
        ((0, 8), Load(tasks=1, seconds=0.01, held_bytes=0, memory_bytes=100, threads=2), 1),
        ((0, 8), Load(tasks=3, seconds=600, held_bytes=0, memory_bytes=100, threads=1), 3),
        ((0, 8), Load(tasks=900, seconds=600, held_bytes=0, memory_bytes=100, threads=4), 8),
        ((0, 8), Load(tasks=900, seconds=60, held_bytes=0, memory_bytes=100, threads=4), 3),
        ((0, float("inf")), Load(tasks=0, seconds=0, held_bytes=301, memory_bytes=100, threads=4), 6),
    ],
)
def test_a_pool_is_as_large_as_its_work(limits: tuple[int, float], load: Load, expected: int) -> None:
    assert workers_in_jobs(limits, wanted_workers(load, target_duration_s=5), per_job=1) == expected


class TestKeys:
    def test_new_ones_are_the_owners_alone(self, tmp_path: Path) -> None:
        security, paths = cluster_keys(None, tmp_path / "tls")
        assert security.require_encryption
        assert set(paths) == {"tls-ca-file", "tls-cert", "tls-key"}
        assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
        again, same = cluster_keys(tmp_path / "tls", tmp_path / "unused")
        assert (again.tls_worker_key, same) == (security.tls_worker_key, paths)

    def test_what_is_refused(self, tmp_path: Path) -> None:
        files = tls.make_keys(tmp_path / "tls")
        with pytest.raises(TypeError, match="not bool"):
            cluster_keys(True, tmp_path / "new")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="requires encryption"):
            cluster_keys(Security(), tmp_path / "new")
        with pytest.raises(ValueError, match="read keys from files, and ca_file is none"):
            cluster_keys(Security.temporary(), tmp_path / "new")
        (tmp_path / "tls" / tls.KEY).chmod(0o640)
        with pytest.raises(PermissionError, match="chmod 600"):
            cluster_keys(files, tmp_path / "new")
        with pytest.raises(PermissionError, match="open to others"):
            cluster_keys(tmp_path / "tls", tmp_path / "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "a cpu pool, a gpu pool, or both"),
        ({"cpu": {"cores": 0}}, ValueError, "cores"),
        ({"cpu": {}, "heal": -1}, ValueError, "heal is a number of times"),
        ({"cpu": {}, "interface": "no such"}, ValueError, "no such"),
        ({"cpu": {}, "host": "127.0.0.1", "security": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_bad_arguments_leave_nothing(
    tmp_path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MixedSlurmCluster(**arguments, folder=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "visible", "name", "gets"),
    [
        ("gpu", "2,5", "gpu-0-1", "5"),
        ("gpu", "GPU-8932f937", "gpu-3", "GPU-8932f937"),
        ("gpu", "0", "gpu-0-1", r"'gpu-0-1' needs GPU 1 of its job, which got CUDA_VISIBLE_DEVICES=0 from SLURM"),
        ("gpu", "", "gpu-0", "no GPU"),
        ("emulated-gpu", "0,1", "gpu-0-1", "1"),
        ("emulated-gpu", "", "gpu-0-1", None),
        ("cpu", "", "cpu-0", None),
    ],
)
def test_a_nanny_gives_its_worker_one_gpu_and_one_address(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str, name: str, gets: str | None
) -> None:
    monkeypatch.setenv("TASKGRAPH_DEVICE", device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nanny = Nanny.__new__(Nanny)  # as it is when Dask calls its preloads
    nanny.name, nanny.ip, nanny.env, nanny.worker_kwargs = name, "10.0.0.7", {}, {"host": None, "interface": None}
    if gets is not None and " " in gets:
        with pytest.raises(ValueError, match=gets):
            dask_setup(nanny)
        return
    dask_setup(nanny)
    assert nanny.env.get("CUDA_VISIBLE_DEVICES") == gets
    assert nanny.worker_kwargs["host"] == "10.0.0.7"
    assert nanny.worker_kwargs.get("data") == (dict if device == "gpu" else None)


PROBE = """
import os, signal, sys
before = signal.getsignal(signal.SIGINT)
import deploy.slurm
assert "dask_jobqueue.core" not in sys.modules
sys.modules["dask_jobqueue.slurm"] = None  # as if it were not installed
try:
    deploy.slurm.MixedSlurmCluster
except ImportError as error:
    print(error)
del sys.modules["dask_jobqueue.slurm"]
deploy.slurm.MixedSlurmCluster
assert signal.getsignal(signal.SIGINT) is before
print(sorted(os.listdir(os.environ["DASK_CONFIG"])))
"""


def test_importing_changes_nothing(tmp_path: Path) -> None:
    """dask-jobqueue by itself writes into the user's settings and takes Ctrl-C."""
    env = os.environ | {"DASK_CONFIG": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "pip install 'dask-taskgraph[slurm]'" in done.stdout
