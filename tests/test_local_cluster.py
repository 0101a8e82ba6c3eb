"""The mixed cluster on this machine: processes, names, profiles, listeners, and tiles between processes."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import traceback
import warnings

import numpy as np
import psutil
import pytest
from distributed import Client, Event, get_worker
from distributed.diagnostics.plugin import SchedulerPlugin

import deploy.local
from deploy.local import (
    LocalCluster,
    check_worker_keywords,
    choose_gpus,
    free_dashboard_address,
    gpu_options,
    in_another_process,
    split_cores,
    worker_options,
)
from workers.device_tile import run
from workers.kernels import gemm_panel
from workers.plugin import DeviceSetup

WAIT_S = 30


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        cpu_workers=1, threads_per_cpu_worker=2, gpus=0, emulated_gpus=2, dashboard_address=":0"
    ) as started:
        yield started


@pytest.fixture
def client(cluster):
    with Client(cluster, timeout=WAIT_S) as connected:
        connected.wait_for_workers(3, timeout=WAIT_S)
        yield connected


def workers_of(client):
    """What the scheduler tells of each worker, by name."""
    told = client.scheduler_info(n_workers=-1)["workers"]
    return {worker["name"]: worker | {"address": address} for address, worker in told.items()}


class TestWorkers:
    def test_names_threads_and_profiles(self, client):
        told = workers_of(client)
        assert set(told) == {"cpu-0", "gpu-0", "gpu-1"}
        assert {name: worker["nthreads"] for name, worker in told.items()} == {
            "cpu-0": 2,
            "gpu-0": 1,
            "gpu-1": 1,
        }
        for name, worker in told.items():
            profile = worker["taskgraph"]
            assert profile["kind"] == name[:3]
            assert profile["emulated"] == (name != "cpu-0")
            assert profile["nthreads"] == worker["nthreads"]
            assert profile["memory"] == worker["memory_limit"]
            assert profile["gflops"]["float32"] > 0
        assert told["gpu-0"]["taskgraph"]["name"] == "emulated GPU"

    def test_memory_is_shared_out(self, client):
        from distributed.system import MEMORY_LIMIT

        limits = [worker["memory_limit"] for worker in workers_of(client).values()]
        assert limits == [int(MEMORY_LIMIT / 3)] * 3

    def test_no_worker_sees_a_gpu_that_is_not_its_own(self, client):
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert set(seen.values()) == {""}

    def test_one_blas_thread_a_task_thread(self, client):
        def blas_threads():
            import threadpoolctl

            np.ones((2, 2)) @ np.ones((2, 2))
            return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

        for counts in client.run(blas_threads).values():
            assert set(counts) == {1}

    def test_everything_listens_on_the_loopback_alone(self, cluster):
        here = psutil.Process()
        processes = [here, *here.children(recursive=True)]
        listening = [
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        # scheduler and dashboard, three nannies, and a comm and an HTTP server of each of three workers
        assert len(listening) >= 2 + 3 + 6
        assert set(listening) == {"127.0.0.1"}

    def test_dashboard_and_repr(self, cluster):
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        assert "LocalCluster" in repr(cluster)
        assert "workers=3" in repr(cluster)
        assert "LocalCluster" in cluster._repr_html_()

    def test_get_client(self, cluster):
        with cluster.get_client() as connected:
            assert connected.submit(lambda: 1, workers=["cpu-0"]).result(timeout=WAIT_S) == 1


def type_name(value):
    return type(value).__name__


class TestTilesBetweenProcesses:
    """A tile is a DeviceTile where there is a GPU and NumPy's everywhere else, and nobody hangs."""

    @pytest.fixture
    def tile(self, client):
        a = np.arange(12.0, dtype="float32").reshape(3, 4)
        future = client.submit(run, gemm_panel, [a], [a.T], workers=["gpu-0"], pure=False)
        return future, a @ a.T

    @pytest.mark.parametrize(
        ("worker", "expected"), [("gpu-0", "DeviceTile"), ("gpu-1", "DeviceTile"), ("cpu-0", "ndarray")]
    )
    def test_gpu_to_worker(self, client, tile, worker, expected):
        future, value = tile
        assert client.submit(type_name, future, workers=[worker], pure=False).result(timeout=WAIT_S) == expected
        back = client.submit(np.asarray, future, workers=[worker], pure=False).result(timeout=WAIT_S)
        np.testing.assert_array_equal(back, value)

    def test_gpu_to_client(self, tile):
        future, value = tile
        back = future.result(timeout=WAIT_S)
        assert type(back) is np.ndarray
        np.testing.assert_array_equal(back, value)

    @pytest.mark.parametrize("worker", ["gpu-1", "cpu-0"])
    def test_a_product_of_tiles_from_another_process(self, client, tile, worker):
        future, value = tile
        product = client.submit(run, gemm_panel, [future, future], [future, future], workers=[worker], pure=False)
        np.testing.assert_array_equal(product.result(timeout=WAIT_S), 2 * value @ value)

    def test_cpu_to_gpu(self, client):
        future = client.submit(np.ones, (3, 3), workers=["cpu-0"], pure=False)
        product = client.submit(run, gemm_panel, [future], [future], workers=["gpu-1"], pure=False)
        np.testing.assert_array_equal(product.result(timeout=WAIT_S), np.full((3, 3), 3.0))

    def test_the_scheduler_counts_a_tiles_bytes(self, client, cluster):
        a = np.ones((500, 500))
        future = client.submit(run, gemm_panel, [a], [a], workers=["gpu-0"], pure=False)
        future.result(timeout=WAIT_S)
        assert cluster.scheduler.tasks[future.key].nbytes >= a.nbytes

    def test_a_large_tile_both_ways(self, client):
        # Larger than one frame (64 MiB), so that it travels in parts.
        columns = 3 * 2**20
        tile = client.submit(run, lambda xp, a: a + 1, np.zeros((8, 1), "int32"), workers=["gpu-0"], pure=False)
        wide = client.submit(run, lambda xp, a: xp.tile(a, (1, columns)), tile, workers=["gpu-1"], pure=False)
        total = client.submit(lambda a: int(np.asarray(a).sum()), wide, workers=["cpu-0"], pure=False)
        assert total.result(timeout=WAIT_S) == 8 * columns


class Joined(SchedulerPlugin):
    """Set an event once a worker of this name joins at another address than the one given."""

    def __init__(self, name, old_address, event):
        self.watched, self.old_address, self.event = name, old_address, event
        self.name = f"joined-{event}"

    def add_worker(self, scheduler, worker):
        if scheduler.workers[worker].name == self.watched and worker != self.old_address:
            scheduler.extensions["events"].event_set(name=self.event)


@pytest.mark.kills_workers
@pytest.mark.parametrize("name", ["gpu-1", "cpu-0"])
def test_a_killed_worker_comes_back_under_its_name_with_its_profile(client, name):
    before = workers_of(client)[name]
    client.register_plugin(Joined(name, before["address"], f"{name} is back"))
    pid = client.run(os.getpid, workers=[before["address"]])[before["address"]]
    os.kill(pid, signal.SIGKILL)
    assert Event(f"{name} is back", client=client).wait(timeout=WAIT_S)
    client.wait_for_workers(3, timeout=WAIT_S)
    after = workers_of(client)[name]
    assert after["address"] != before["address"]
    assert {key: after["taskgraph"][key] for key in ("kind", "emulated", "name", "memory")} == {
        key: before["taskgraph"][key] for key in ("kind", "emulated", "name", "memory")
    }
    assert client.submit(lambda: get_worker().name, workers=[name], pure=False).result(timeout=WAIT_S) == name


class TestLifeOfACluster:
    def test_closing_ends_every_process(self):
        with LocalCluster(cpu_workers=1, gpus=0, emulated_gpus=1, dashboard_address=None) as cluster:
            pids = [nanny.process.pid for nanny in cluster.workers.values()]
            assert len(pids) == 2
            assert all(psutil.pid_exists(pid) for pid in pids)
        _gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
        assert alive == []

    def test_options_reach_the_workers(self, tmp_path):
        with (
            LocalCluster(
                cpu_workers=1,
                threads_per_cpu_worker=1,
                gpus=0,
                dashboard_address=None,
                memory_limit="1 GiB",
                blas_threads=2,
                env={"TASKGRAPH_TEST": "yes"},
                local_directory=str(tmp_path),
                resources={"licence": 1},
                name="mixed",
                scheduler_kwargs={"allowed_failures": 7},
            ) as cluster,
            Client(cluster, timeout=WAIT_S) as client,
        ):
            assert cluster.name == "mixed"
            assert cluster.scheduler.allowed_failures == 7
            worker = workers_of(client)["cpu-0"]
            assert (worker["memory_limit"], worker["resources"]) == (2**30, {"licence": 1})
            assert worker["local_directory"].startswith(str(tmp_path))

            def told():
                import threadpoolctl

                pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
                return os.environ["TASKGRAPH_TEST"], {pool["num_threads"] for pool in pools}

            [(variable, blas)] = client.run(told).values()
            assert variable == "yes"
            assert blas <= {2}

    def test_scaling_adds_and_takes_cpu_workers(self, cluster):
        # Specs only: nothing has to start for this.
        assert list(cluster.worker_spec) == ["gpu-0", "gpu-1", "cpu-0"]
        assert set(cluster.new_worker_spec()) == {"cpu-1"}

    @pytest.mark.logs_errors
    def test_a_worker_that_cannot_start_fails_the_cluster(self, monkeypatch):
        monkeypatch.setattr(deploy.local, "probe_gpus", lambda: (("no-such-device",), ""))
        # In the worker's process there is no CuPy, or no device of that name.
        with pytest.raises(RuntimeError) as raised:
            LocalCluster(cpu_workers=1, gpus=1, dashboard_address=None)
        assert "no GPU can be used in this process" in "".join(traceback.format_exception(raised.value))

    def test_asynchronous(self):
        async def names():
            async with (
                LocalCluster(
                    cpu_workers=1, gpus=0, emulated_gpus=0, dashboard_address=None, asynchronous=True
                ) as cluster,
                Client(cluster, asynchronous=True, timeout=WAIT_S) as client,
            ):
                return await client.submit(lambda: get_worker().name)

        assert asyncio.run(asyncio.wait_for(names(), WAIT_S)) == "cpu-0"

    def test_a_taken_dashboard_port_is_no_warning(self):
        with socket.socket() as taken, warnings.catch_warnings():
            warnings.simplefilter("error")
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert free_dashboard_address(f":{port}", "127.0.0.1") == "127.0.0.1:0"
            with LocalCluster(cpu_workers=0, gpus=0, dashboard_address=f":{port}") as cluster:
                assert cluster.dashboard_link != f"http://127.0.0.1:{port}/status"

    @pytest.mark.parametrize(
        ("address", "expected"), [(None, "127.0.0.1:0"), (0, "127.0.0.1:0"), ("localhost:0", "localhost:0")]
    )
    def test_dashboard_address(self, address, expected):
        assert free_dashboard_address(address, "127.0.0.1") == expected


class TestArguments:
    @pytest.mark.parametrize(
        ("workers", "threads", "cores", "expected"),
        [
            (None, None, 1, (1, 1)),
            (None, None, 2, (1, 2)),
            (None, None, 8, (1, 8)),
            (None, None, 9, (3, 3)),
            (None, None, 11, (2, 6)),
            (None, None, 12, (2, 6)),
            (None, None, 16, (2, 8)),
            (None, None, 64, (8, 8)),
            (2, None, 16, (2, 8)),
            (5, None, 16, (5, 4)),
            (32, None, 16, (32, 1)),
            (None, 16, 4, (1, 16)),
            (None, 3, 16, (5, 3)),
            (3, 2, 64, (3, 2)),
            (0, None, 4, (0, 4)),
        ],
    )
    def test_cores(self, workers, threads, cores, expected):
        assert split_cores(workers, threads, cores) == expected

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"cpu_workers": -1}, ValueError, "cpu_workers is a number of workers, at least 0, not -1"),
            ({"cpu_workers": 1.5}, ValueError, "not 1.5"),
            ({"threads_per_cpu_worker": 0}, ValueError, "at least 1, not 0"),
            ({"emulated_gpus": -2}, ValueError, "emulated_gpus is a number of workers, at least 0, not -2"),
            ({"gpus": -1}, ValueError, "gpus is 'auto' or a number of GPUs"),
            ({"gpus": "all"}, ValueError, "not 'all'"),
            ({"gpus": True}, ValueError, "not True"),
            ({"n_workers": 2}, TypeError, "it is called cpu_workers here"),
            ({"threads_per_worker": 2}, TypeError, "it is called threads_per_cpu_worker here"),
            ({"colour": "red"}, TypeError, "unexpected keyword argument 'colour'"),
            ({"security": "tls"}, TypeError, "security is a distributed.Security"),
            ({"dashboard_address": "here"}, ValueError, "a port or HOST:PORT"),
            ({"blas_threads": 0}, ValueError, "at least 1"),
        ],
    )
    def test_bad_arguments_start_nothing(self, arguments, error, message):
        children = psutil.Process().children(recursive=True)
        with pytest.raises(error, match=message):
            LocalCluster(**{"gpus": 0, "cpu_workers": 1} | arguments)
        assert len(psutil.Process().children(recursive=True)) <= len(children)

    @pytest.mark.parametrize("keyword", ["local_directory", "env", "plugins", "resources", "preload", "death_timeout"])
    def test_worker_keywords(self, keyword):
        check_worker_keywords({keyword: None})

    @pytest.mark.parametrize(
        ("tokens", "reason", "asked", "expected"),
        [
            ((), "CuPy is not installed", "auto", ()),
            ((), "CuPy is not installed", 0, ()),
            (
                (),
                "CuPy is not installed",
                1,
                "gpus=1: none can be used here: CuPy is not installed.*emulated_gpus=1",
            ),
            (("2", "0"), "", "auto", ("2", "0")),
            (("2", "0"), "", 1, ("2",)),
            (("2", "0"), "", 3, r"gpus=3: 2 can be used here \(2, 0\).*emulated_gpus=1"),
        ],
    )
    def test_gpus(self, monkeypatch, tokens, reason, asked, expected):
        monkeypatch.setattr(deploy.local, "probe_gpus", lambda: (tokens, reason))
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                choose_gpus(asked)
        else:
            assert choose_gpus(asked) == expected

    def test_options_add_up(self):
        setup = DeviceSetup("gpu")
        common = {"host": "127.0.0.1", "env": {"A": "1", "CUDA_VISIBLE_DEVICES": "7"}, "plugins": ["mine"]}
        device = {"env": {"CUDA_VISIBLE_DEVICES": "0"}, "plugins": ["theirs"], "data": dict}
        assert worker_options(common, setup, 1, device) == {
            "host": "127.0.0.1",
            "env": {"A": "1", "CUDA_VISIBLE_DEVICES": "0"},
            "plugins": ("mine", "theirs", setup),
            "data": dict,
            "nthreads": 1,
        }

    def test_a_users_preload_comes_before_dask_cudas(self):
        device = {"preload": ["dask_cuda.initialize"], "preload_argv": ["--create-cuda-context"]}
        common = {"preload": "mine", "preload_argv": ["--mine"]}
        options = worker_options(common, DeviceSetup("gpu"), 1, device)
        assert (options["preload"], options["preload_argv"]) == ("mine", ["--mine"])
        assert worker_options({}, DeviceSetup("gpu"), 1, device)["preload"] == ["dask_cuda.initialize"]


class TestAnotherProcess:
    def test_result_and_error(self):
        assert in_another_process(os.path.join, "a", "b", timeout_s=WAIT_S) == os.path.join("a", "b")
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            in_another_process(math.sqrt, -1, timeout_s=WAIT_S)

    @pytest.mark.parametrize(
        ("function", "argument", "timeout_s", "error"),
        [(time.sleep, WAIT_S, 0.2, TimeoutError), (os._exit, 3, WAIT_S, EOFError)],
        ids=["too long", "dead"],
    )
    def test_the_wait_is_bounded(self, function, argument, timeout_s, error):
        with pytest.raises(error):
            in_another_process(function, argument, timeout_s=timeout_s)


class TestDaskCuda:
    """What GPU workers take from dask-cuda, by a module of its name that answers as its worker_spec does."""

    @pytest.fixture
    def fake_dask_cuda(self, tmp_path, monkeypatch):
        def install(body):
            (tmp_path / "dask_cuda").mkdir()
            (tmp_path / "dask_cuda" / "__init__.py").touch()
            (tmp_path / "dask_cuda" / "worker_spec.py").write_text(textwrap.dedent(body))
            # On the path, not in sys.modules: another process imports it too.
            monkeypatch.syspath_prepend(str(tmp_path))

        return install

    SPEC = """
        import os

        def worker_spec(interface=None, protocol=None, dashboard_address=":8787", threads_per_worker=1,
                        silence_logs=True, CUDA_VISIBLE_DEVICES=None, **kwargs):
            [device] = CUDA_VISIBLE_DEVICES
            assert type(device) is int and protocol == "tcp://"
            options = {"env": {"CUDA_VISIBLE_DEVICES": str(device)}, "interface": interface,
                       "protocol": protocol, "nthreads": 1, "data": dict,
                       "dashboard_address": dashboard_address,
                       "plugins": [f"affinity of {device} by process {os.getpid()}"], "silence_logs": True,
                       "memory_limit": 5, "preload": "dask_cuda.initialize",
                       "preload_argv": "--create-cuda-context"}
            return {device: {"cls": None, "options": options}}
    """

    def test_without_it(self):
        assert gpu_options(("3", "GPU-8932f937"), "tcp://") == [
            {"env": {"CUDA_VISIBLE_DEVICES": "3"}, "data": dict},
            {"env": {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, "data": dict},
        ]

    def test_its_part_is_taken_in_another_process(self, fake_dask_cuda):
        fake_dask_cuda(self.SPEC)
        first, second = gpu_options(("3", "1"), "tcp://")
        [affinity] = first.pop("plugins")
        assert affinity.startswith("affinity of 3 by process")
        assert str(os.getpid()) not in affinity
        assert first == {
            "env": {"CUDA_VISIBLE_DEVICES": "3"},
            "data": dict,
            "preload": ["dask_cuda.initialize"],
            "preload_argv": ["--create-cuda-context"],
        }
        assert second["env"] == {"CUDA_VISIBLE_DEVICES": "1"}

    def test_its_failure_is_told(self, fake_dask_cuda):
        fake_dask_cuda("def worker_spec(**options):\n    raise OSError('libnvidia-ml.so.1 not found')\n")
        with pytest.warns(UserWarning, match="without dask-cuda.*libnvidia-ml"):
            assert gpu_options(("0",), "tcp://") == [{"env": {"CUDA_VISIBLE_DEVICES": "0"}, "data": dict}]

    def test_uuids_are_not_for_it(self, fake_dask_cuda):
        fake_dask_cuda("def worker_spec(**options):\n    raise AssertionError\n")
        [options] = gpu_options(("GPU-8932f937",), "tcp://")
        assert options["env"] == {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}


def test_dask_workers_own_command_line_with_the_preload(cluster, client):
    """`dask worker --preload workers.plugin`, as those start a worker who do not use the cluster class."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    command += [
        "--name",
        "by-hand",
        "--nthreads",
        "1",
        "--host",
        "127.0.0.1",
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    command += ["--no-nanny", "--preload", "workers.plugin", "--device", "emulated-gpu"]
    client.register_plugin(Joined("by-hand", "", "by-hand is there"))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            there = Event("by-hand is there", client=client).wait(timeout=WAIT_S)
            profile = workers_of(client)["by-hand"]["taskgraph"] if there else None
        finally:
            process.terminate()
            _, log = process.communicate(timeout=WAIT_S)
    assert profile is not None, log
    assert (profile["kind"], profile["emulated"]) == ("gpu", True)
