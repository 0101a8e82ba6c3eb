"""What docs/faults.md promises, process by process: what is lost, what is made again, what the user sees, how soon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.core import flatten
from distributed import Client
from distributed.core import Server
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError
from process_cluster import DEATH, ProcessCluster, runs, until, workers

import taskgraph as tg
from benchmarks import faults
from deploy import local
from taskgraph import io, machine
from workers import peers

TWO = ("cpu-0", "cpu-1")
X = np.arange(64.0).reshape(8, 8)


def taking(seconds: float) -> Callable[[np.ndarray], np.ndarray]:
    """x + 1 after so many seconds; a closure, so that it travels by value to workers that do not know this file."""

    def slowly(block: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return block + 1

    return slowly


def slow(x: tg.Tensor, seconds: float) -> tg.Tensor:
    """x + 1, so many seconds a block of 4 x 4."""
    made = x.to_dask().rechunk(4).map_blocks(taking(seconds), dtype=float, meta=np.empty((0, 0)))
    return tg.from_dask(made)


class Attempt:
    """A call in a thread of its own: what it raised or gave, and how long it took."""

    def __init__(self, call: Callable[[], Any]) -> None:
        import threading

        self.error: BaseException | None = None
        self.value: Any = None

        def run() -> None:
            try:
                self.value = call()
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def ends(self, within: float) -> Any:
        self._thread.join(within)
        assert not self._thread.is_alive(), f"it hangs: no end within {within} s"
        if self.error is not None:
            raise self.error
        return self.value


def executing(client: Client, prefix: str) -> list[Any]:
    """Keys of that prefix that workers are asked to compute."""
    return client.run_on_scheduler(
        lambda dask_scheduler: [
            key for key, ts in dask_scheduler.tasks.items() if ts.state == "processing" and prefix in str(key)
        ]
    )


# -- the scheduler, and the client -------------------------------------------------------------------------------------


def script(folder: Path, seconds: float) -> tg.Tensor:
    """A long run with a checkpoint in the middle; after it, blocks that take so many seconds."""
    product = tg.asarray(X, chunks=4) @ tg.asarray(X.T, chunks=4)
    middle = tg.exp(product / 1e5).checkpoint(folder / "middle")
    return tg.from_dask(da.from_delayed(dask.delayed(taking(seconds))(np.zeros(())), (), float)) + tg.sum(middle)


@pytest.mark.logs_errors
def test_a_scheduler_is_killed_and_a_new_cluster_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    expected = np.exp(X @ X.T / 1e5).sum() + 1
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with ProcessCluster(tmp_path / "one") as cluster:
        for name in TWO:
            cluster.start_worker(name)
        client = cluster.client()
        cluster.wait_for(client, *TWO)
        session, w = tg.Session(client), tg.Variable(X, name="w")
        session.run(w.assign(w + 1))
        attempt = Attempt(lambda: session.run(script(tmp_path, seconds=4)))
        until(lambda: io.described(tmp_path / "middle"), "the checkpoint is written")
        until(lambda: executing(client, "slowly"), "what follows runs")
        before = time.monotonic()
        cluster.kill("scheduler")
        with pytest.raises(tg.LostScheduler, match=r"no connection to the scheduler at tcp://127.*run the script"):
            attempt.ends(within=5)
        for again in (
            lambda: session.run(w.assign(w + 1)),
            lambda: tg.ones(3).compute(scheduler=client),
            lambda: w.value.persist(scheduler=client),
        ):
            with pytest.raises(tg.LostScheduler):
                Attempt(again).ends(within=2)
        print(f"noticed by all calls in {time.monotonic() - before:.1f} s")
        ended = [cluster.processes.pop(name) for name in TWO]
        until(lambda: all(p.poll() is not None for p in ended), "its workers have ended, too", timeout=40)
    with ProcessCluster(tmp_path / "two") as cluster:
        cluster.start_worker("cpu-0")
        client = cluster.client()
        cluster.wait_for(client, "cpu-0")
        found = Attempt(lambda: tg.Session(client).run(script(tmp_path, seconds=0))).ends(within=20)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        prefixes = Counter(str(r.key).strip("('").split("-")[0] for r in runs(client))
        assert not prefixes.keys() & {"matmul", "exp", "write"}, prefixes


CLIENT = """
import sys, numpy as np, taskgraph as tg
sys.path.insert(0, {tests!r})
from distributed import Client
from test_faults import X, slow
client = Client(scheduler_file=sys.argv[1])
kept = tg.asarray(X, chunks=4).persist()
print("kept", float(tg.sum(kept)), flush=True)
slow(tg.asarray(X, chunks=4), 3).compute()
"""


def test_a_client_is_killed_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path) as cluster:
        cluster.start_worker("cpu-0")
        client = cluster.client()
        cluster.wait_for(client, "cpu-0")
        code = CLIENT.format(tests=str(Path(__file__).parent))
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(cluster.scheduler_file)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout is not None
            assert other.stdout.readline().startswith("kept")
            until(lambda: executing(client, "slowly"), "its tasks run")
        finally:
            other.kill()
            other.wait(10)
        tasks = lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        until(lambda: tasks() == 0, "the scheduler has forgotten all of it", timeout=10)
        until(lambda: not any(client.has_what().values()), "the worker holds nothing", timeout=10)
        assert tg.sum(tg.ones(3)).compute(scheduler=client) == 3
        cluster.assert_quiet()


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.kills_workers
def test_only_what_was_lost_is_computed_again(tmp_path: Path) -> None:
    names = ("cpu-0", "cpu-1", "cpu-2")
    with ProcessCluster(tmp_path) as cluster:
        for name in names:
            cluster.start_worker(name)
        client = cluster.client()
        cluster.wait_for(client, *names)
        with client.as_current():
            x = slow(tg.random.default_rng(0).normal(size=(16, 16), chunks=4), 0.05).persist()
            total = tg.sum(x).compute()
            held = Counter(next(iter(names)) for names in holders(client, x) if len(names) == 1)
            victim, lost = held.most_common(1)[0]
            before = len(runs(client, "('slowly"))
            cluster.kill(victim)
            assert tg.sum(x).compute() == total  # the same bits
            assert (before, len(runs(client, "('slowly")) - before) == (16, lost)
        cluster.assert_quiet(allowed=DEATH)


def holders(client: Client, x: tg.Tensor) -> list[set[str]]:
    """The workers that hold each block."""
    names, who_has = {address: name for name, address in workers(client).items()}, client.who_has()
    return [{names[address] for address in who_has[key]} for key in flatten(x.__dask_keys__())]


@pytest.mark.logs_errors
def test_a_nanny_is_killed_and_no_worker_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "START_SECONDS", 1)
    with ProcessCluster(tmp_path, config={"distributed.scheduler.no-workers-timeout": "2s"}) as cluster:
        cluster.start_worker("cpu-0", nanny=True)
        client = cluster.client()
        cluster.wait_for(client, "cpu-0")
        (pid,) = client.run(os.getpid).values()
        x = slow(tg.asarray(X, chunks=4), 1)
        attempt = Attempt(lambda: x.compute(scheduler=client))
        until(lambda: executing(client, "slowly"), "its tasks run")
        cluster.kill("cpu-0")
        until(lambda: not workers(client), "the worker is gone with its nanny", timeout=10)
        until(lambda: not Path(f"/proc/{pid}").exists(), "and so is its process", timeout=10)
        with pytest.raises((NoWorkerError, NoValidWorkerError), match=r"(?s)after 2.00 s waiting.*a cpu worker"):
            attempt.ends(within=10)
        with pytest.raises(ValueError, match="no worker to plan for"):
            Attempt(lambda: tg.ones(3).compute(scheduler=client)).ends(within=5)
        cluster.start_worker("cpu-1")
        cluster.wait_for(client, "cpu-1")
        np.testing.assert_array_equal(x.compute(scheduler=client), X + 1)


def test_a_connection_to_a_dead_peer_is_given_up_also_if_it_begins_after_the_news() -> None:
    heard, peer = [], "tcp://127.0.0.1:1"  # where nobody listens

    async def connect() -> float:
        async with Server({}) as worker:
            worker.stream_handlers["remove-worker"] = lambda **news: heard.append(news)
            peers.give_up_at_once(worker)
            worker.stream_handlers["remove-worker"](worker=peer, stimulus_id="s")
            before = time.monotonic()
            with pytest.raises(OSError, match="removed"):
                await worker.rpc.connect(peer)
            return time.monotonic() - before

    with dask.config.set({"distributed.comm.timeouts.connect": "20s"}):
        assert asyncio.run(connect()) < 5
    assert heard == [{"worker": peer, "stimulus_id": "s"}]


# -- workers whose nannies bring them back -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Iterator[faults.Bench]:
    with faults.bench(scale=2) as found:
        yield found


@pytest.mark.kills_workers
@pytest.mark.timeout(300)  # every run waits for a new worker, which is long where others use the cores
def test_kills_at_random_moments(bench: faults.Bench) -> None:
    for seed in range(10):
        trial = bench.trial(seed)
        print(trial)
        assert (trial.right, trial.error, trial.hung) == (True, "", False), trial
    assert bench.client.run_on_scheduler(placement_errors) == []


def placement_errors(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.plugins["taskgraph-placement"].report()["last_errors"])


@pytest.mark.kills_workers
def test_only_lost_tiles_of_a_gpu_are_computed_again(bench: faults.Bench) -> None:
    client, scheduler, watch = bench.client, bench.cluster.scheduler, bench.watch
    rng = tg.random.default_rng(1)
    a, b = (rng.standard_normal((512, 512), "float32", chunks=128) for _ in range(2))
    watch.begin()
    with client.as_current(), tg.device("gpu"):
        x = (a @ b).persist()
        expected = x.compute()
        tiles = set(flatten(x.__dask_keys__()))
        held = {key: {str(ws.name) for ws in scheduler.tasks[key].who_has} for key in tiles}
        lost = {key for key, names in held.items() if names == {"gpu-1"}}
        assert lost, held
        address, pid = bench.pids()["gpu-1"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: address not in scheduler.workers, "it is gone")
        assert x.compute().tobytes() == expected.tobytes()
    assert {key for key in tiles if len(watch.runs[key]) > 1} == lost
    until(lambda: "gpu-1" in bench.pids(), "it came again")


@pytest.mark.kills_workers
def test_a_worker_that_hangs_is_replaced(bench: faults.Bench) -> None:
    scheduler = bench.cluster.scheduler
    ttl, scheduler.worker_ttl = scheduler.worker_ttl, 1  # 5 s: never less than ten heartbeats
    x = slow(tg.asarray(X, chunks=4), 0.5)
    pids = bench.client.run(os.getpid)
    attempt = Attempt(lambda: x.compute(scheduler=bench.client))
    address = until(lambda: next((w for w, ws in scheduler.workers.items() if ws.processing), None), "tasks run")
    os.kill(pids[address], signal.SIGSTOP)
    try:
        until(lambda: time.time() - scheduler.workers[address].last_seen > 6, "it is not heard of")
        bench.cluster.sync(scheduler.check_worker_ttl)
        np.testing.assert_array_equal(attempt.ends(within=40), X + 1)
    finally:
        scheduler.worker_ttl = ttl
    until(lambda: not Path(f"/proc/{pids[address]}").exists(), "its process is gone")


@pytest.mark.logs_errors
def test_a_task_that_kills_its_workers_is_an_error_that_names_it(bench: faults.Bench) -> None:
    def deadly(block: np.ndarray) -> np.ndarray:
        os._exit(1)

    scheduler, before = bench.cluster.scheduler, len(bench.cluster.workers)
    allowed, scheduler.allowed_failures = scheduler.allowed_failures, 1
    try:
        x = tg.from_dask(da.zeros((2, 2)).map_blocks(deadly, dtype=float, meta=np.empty((0, 0))))
        with pytest.raises(KilledWorker, match="deadly"):
            Attempt(lambda: x.compute(scheduler=bench.client)).ends(within=40)
    finally:
        scheduler.allowed_failures = allowed
    until(lambda: len(scheduler.workers) == before, "all workers are back")


@pytest.mark.kills_workers
def test_a_worker_that_dies_twice_is_not_given_up(bench: faults.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, looks = bench.cluster, []
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.01)
    monkeypatch.setattr(cluster, "_give_up", lambda *of: looks.append(of))
    for _ in range(2):
        address, pid = until(lambda: bench.pids().get("cpu-0"), "it is there")
        os.kill(pid, signal.SIGKILL)
        until(lambda address=address: address not in cluster.scheduler.workers, "it is gone")
    until(lambda: len(looks) == 2, "it is looked at after each loss")
    monkeypatch.undo()

    async def look_as_after_the_first() -> None:
        cluster._give_up(*looks[0])

    cluster.sync(look_as_after_the_first)
    assert "cpu-0" in cluster.workers
    until(lambda: bench.pids().get("cpu-0"), "it came again")


def test_no_worker_for_a_task_is_an_error_by_default(bench: faults.Bench) -> None:
    assert bench.cluster.scheduler.no_workers_timeout == local.NO_WORKERS_TIMEOUT_S
