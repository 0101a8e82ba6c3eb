"""The cluster of SLURM jobs on a real SLURM: up, a product on both pools, scaled apart, healed, closed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client
from process_cluster import until
from slurm_site import SlurmSite

import taskgraph as tg
from deploy import tls
from deploy.slurm import MixedSlurmCluster, Pool
from deploy.slurm.queue import SlurmError
from scheduler_plugins import report

pytestmark = [pytest.mark.slurm, pytest.mark.kills_workers]

WAIT_S = 60

CPU = Pool(partition="cpu", cores=2, memory="800 MiB", walltime="10", workers=1)
#: The site's GPUs are device files that CUDA knows nothing of, so workers emulate theirs.
GPU = Pool(partition="gpu", gpus=1, emulated=True, memory="500 MiB", walltime="10", options=("--gres=gpu:1",))


@pytest.fixture(scope="module")
def folder(slurm: SlurmSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where clusters put their files; SLURM's commands mean the tests' SLURM meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("SLURM_", "SBATCH_"))]:
            patch.delenv(key)
        patch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
        yield tmp_path_factory.mktemp("with space")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[MixedSlurmCluster]:
    with MixedSlurmCluster(
        cpu=CPU, gpu={**vars(GPU), "workers": 1}, folder=folder, interface="lo", poll=0.2, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: MixedSlurmCluster) -> Iterator[Client]:
    with Client(cluster, timeout=WAIT_S) as client:
        client.wait_for_workers(2, timeout=WAIT_S)
        yield client


def visible_gpus(client: Client) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of each worker, by name."""
    seen = client.run(lambda dask_worker: (str(dask_worker.name), os.environ["CUDA_VISIBLE_DEVICES"]))
    return dict(seen.values())


def names(client: Client) -> set[str]:
    return {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


def test_a_product_is_placed_on_both_pools(cluster: MixedSlurmCluster, client: Client, slurm: SlurmSite) -> None:
    told = {w["name"]: w["taskgraph"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}
    assert {name: profile["kind"] for name, profile in told.items()} == {"cpu-0": "cpu", "gpu-0": "gpu"}
    assert {job.name: (job.state, job.nodes[:3], job.workers) for job in cluster.jobs()} == {
        "cpu-0": ("RUNNING", "cpu", ("cpu-0",)),
        "gpu-0": ("RUNNING", "gpu", ("gpu-0",)),
    }
    a, b = tg.randn(600, 400, seed=1), tg.randn(400, 500, seed=2)
    with tg.device("cpu"):
        on_cpu = tg.mm(a, b)
    with tg.device("gpu"):
        on_gpu = tg.mm(a, b)
    one, other = tg.compute(on_cpu, on_gpu)
    np.testing.assert_allclose(one, a.compute() @ b.compute(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)
    tiles = client.run_on_scheduler(report)["tiles"].values()
    assert {name for product in tiles for name in product} == {"cpu-0", "gpu-0"}


def test_strangers_find_nothing(cluster: MixedSlurmCluster, client: Client, slurm: SlurmSite, tmp_path: Path) -> None:
    """Listeners, files, arguments and environments of a running cluster."""
    assert {address.rpartition(":")[0] for address in slurm.listeners()} == {"127.0.0.1"}
    own = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
    assert own == {"127.0.0.1"}
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    assert cluster.folder.stat().st_mode & 0o777 == 0o700
    key = (cluster.folder / "tls" / "key.pem").read_text().splitlines()[1]
    for pid, line in slurm.processes().items():
        assert key not in line
        assert key not in Path(f"/proc/{pid}/environ").read_text(errors="replace")
    assert [path.name for path in cluster.folder.glob("*.log") if key in path.read_text()] == []
    with pytest.raises(OSError, match=r"reset|timed out"):
        Client(cluster.scheduler_address.replace("tls", "tcp"), timeout=1)
    with pytest.raises(OSError, match=r"certificate|unknown ca|timed out"):
        Client(cluster.scheduler_address, security=tls.make_keys(tmp_path / "keys"), timeout=1)


def test_the_pools_scale_apart(cluster: MixedSlurmCluster, client: Client) -> None:
    cluster.scale(gpu=2)
    client.wait_for_workers(3, timeout=WAIT_S)
    seen = visible_gpus(client)
    assert seen.pop("cpu-0") == ""
    assert sorted(seen) == ["gpu-0", "gpu-1"]
    assert sorted(seen.values()) == ["0", "1"]
    held = {name: client.submit(os.urandom, 1000, workers=[name], pure=False) for name in names(client)}
    before = client.gather(held)
    cluster.scale(2)  # of all: the CPU worker goes first
    until(lambda: names(client) == {"gpu-0", "gpu-1"}, "the CPU worker has left")
    cluster.scale(cpu=1, gpu=1)
    until(lambda: len(cluster.jobs()) == 2 and len(names(client)) == 2, "one worker of each pool", WAIT_S)
    assert {name[:3] for name in names(client)} == {"cpu", "gpu"}
    assert client.gather(held) == before, "what they held was handed over, not computed again"
    with pytest.raises(TypeError, match="one of the two"):
        cluster.scale(1, cpu=1)
    with pytest.raises(ValueError, match="at least 0"):
        cluster.scale(gpu=-1)


def test_a_cancelled_job_is_submitted_again(
    cluster: MixedSlurmCluster, client: Client, slurm: SlurmSite, caplog: pytest.LogCaptureFixture
) -> None:
    with tg.device("gpu"):
        product = tg.mm(tg.randn(300, 300, seed=3), tg.randn(300, 300, seed=4))
    before = product.compute()
    lost = next(job for job in cluster.jobs() if job.name.startswith("gpu"))
    slurm.run("scancel", lost.job_id)

    def healed() -> bool:
        [now] = [job for job in cluster.jobs() if job.name == lost.name]
        return now.job_id != lost.job_id and now.workers == (lost.name,)

    until(healed, "another job has the worker of the same name", WAIT_S)
    assert product.compute().tobytes() == before.tobytes()
    assert f"{lost.name} (job {lost.job_id}) was cancelled. It is submitted again (1 of 5)" in caplog.text
    assert cluster.given_up == {}


def test_a_pool_adapts_to_its_work(cluster: MixedSlurmCluster, client: Client) -> None:
    adaptive = cluster.adapt(cpu=(1, 2), interval=0.1, wait_count=2, target_duration="100ms")
    work = client.map(lambda i: time.sleep(0.2) or i, range(60))
    until(lambda: cluster.sizes() == {"cpu": 2, "gpu": 1}, "there is work for two CPU workers", WAIT_S)
    assert client.gather(work) == list(range(60))
    del work
    until(lambda: cluster.sizes() == {"cpu": 1, "gpu": 1}, "and for one again", WAIT_S)
    adaptive.stop()
    with pytest.raises(ValueError, match="from 3 to 1 workers is no range"):
        cluster.adapt(gpu=(3, 1))


def test_closing_leaves_nothing(cluster: MixedSlurmCluster, slurm: SlurmSite, folder: Path) -> None:
    assert len(list(folder.iterdir())) == 1
    cluster.close()
    assert list(folder.iterdir()) == []
    assert slurm.processes() == {}
    assert slurm.listeners() == set()
    left = slurm.run("squeue", "--noheader", f"--name={cluster.job_name}").stdout
    assert left == ""


def test_several_gpus_a_job_and_a_pool_that_never_comes_up(
    folder: Path, slurm: SlurmSite, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pool(**{**vars(GPU), "gpus": 2, "cores": 2, "workers": 1, "options": ["--gres=gpu:2"]})
    broken = Pool(**{**vars(CPU), "prologue": ["echo no such module >&2", "exit 3"]})
    with (
        MixedSlurmCluster(
            broken, pair, folder=folder, host="127.0.0.1", poll=0.2, heal=1, dashboard_address=None
        ) as cluster,
        Client(cluster, timeout=WAIT_S) as client,
    ):
        client.wait_for_workers(2, timeout=WAIT_S)
        assert visible_gpus(client) == {"gpu-0-0": "0", "gpu-0-1": "1"}
        assert {address.rpartition(":")[0] for address in slurm.listeners()} == {"127.0.0.1"}
        with pytest.raises(RuntimeError, match=r"3 workers will not come:\ncpu-0 \(job \d+\) failed"):
            client.wait_for_workers(3)
        assert cluster.sizes() == {"cpu": 0, "gpu": 2}
        assert "no such module" in cluster.given_up["cpu-0"]
        assert "before a worker of it reached the scheduler" in cluster.given_up["cpu-0"]
        hopeless = r"can run this task, and none will come:\ncpu-0 \(job \d+\) failed"
        cluster.scale(gpu=0)
        with pytest.raises(RuntimeError, match=hopeless):
            client.submit(int).result(timeout=WAIT_S)
    assert list(folder.iterdir()) == []
    assert slurm.processes() == {}


def test_what_slurm_refuses_is_said_at_once(folder: Path) -> None:
    nowhere = {"partition": "nowhere", "workers": 1}
    with pytest.raises(SlurmError, match="invalid partition specified: nowhere"):
        MixedSlurmCluster(cpu=nowhere, folder=folder, interface="lo", dashboard_address=None)
    assert list(folder.iterdir()) == []


def test_a_job_that_can_never_start_is_given_up(folder: Path) -> None:
    """SLURM takes it, unless the site says otherwise, and lets it wait for ever."""
    too_long = {"partition": "cpu", "walltime": "9-0"}
    with MixedSlurmCluster(cpu=too_long, folder=folder, interface="lo", poll=0.2, dashboard_address=None) as cluster:
        cluster.scale(1)
        until(lambda: cluster.given_up, "the job is given up", WAIT_S)
        assert re.search("waits in vain: it asks for more .*time", cluster.given_up["cpu-0"])
        assert cluster.jobs() == []
