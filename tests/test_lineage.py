"""Training that goes on for ever: history is cut, memory stays, and dead workers cost nothing or say what they cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, wait
from process_cluster import ProcessCluster, until, workers

import taskgraph as tg
from scheduler_plugins.lineage import report
from taskgraph import lineage

STEPS = 200
THREE = ("cpu-0", "cpu-1", "cpu-2")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), RNG.normal(size=30)


class Cluster(ProcessCluster):
    """With a client in force."""

    def __init__(self, directory: Path, *names: str, **kwargs: Any) -> None:
        super().__init__(directory, config={"distributed.scheduler.validate": True}, **kwargs)
        self.names = names

    def __enter__(self) -> Cluster:
        super().__enter__()
        for name in self.names:
            self.start_worker(name)
        self.default = Client(scheduler_file=str(self.scheduler_file))
        self.clients.append(self.default)
        self.wait_for(self.default, *self.names)
        return self


class Model:
    """Least squares by gradient descent, in graph style, beside the same in NumPy."""

    def __init__(self) -> None:
        self.w, self.b = tg.Variable(np.zeros(4), name="w"), tg.Variable(0.0, name="b")
        x, y = tg.asarray(X), tg.asarray(Y)
        error = x @ self.w + self.b - y
        self.updates = [self.w.assign(self.w - 0.1 * (error @ x)), self.b.assign(self.b - 0.1 * tg.sum(error))]
        self.here = [np.zeros(4), np.float64(0.0)]
        self.session = tg.Session()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.session.run(self.updates)
            w, b = self.here
            error = X @ w + b - Y
            self.here = [w - 0.1 * (error @ X), b - 0.1 * np.sum(error)]

    def check(self) -> None:
        """Bit for bit."""
        found = self.session.run([self.w, self.b])
        assert [np.asarray(f).tobytes() for f in found] == [np.asarray(h).tobytes() for h in self.here]


def count(client: Client) -> int:
    """How many tasks the scheduler remembers."""
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def holders(client: Client) -> set[str]:
    """The workers that hold what has no history, as the scheduler knows it now."""

    def look(dask_scheduler: Any) -> set[str]:
        kept = dask_scheduler.plugins["taskgraph-lineage"].kept
        return {str(ws.name) for key in kept for ws in dask_scheduler.tasks[key].who_has or ()}

    return client.run_on_scheduler(look)


def errors(client: Client) -> list[str]:
    plugins = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
    return client.run_on_scheduler(report)["last_errors"] if "taskgraph-lineage" in plugins else []


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, *THREE) as found:
        yield found
        assert errors(found.default) == []


def test_training_is_numpys_and_the_scheduler_remembers_few_tasks(cluster: Cluster) -> None:
    model, seen = Model(), []
    for _ in range(STEPS // 8):
        model.train(8)
        seen.append(count(cluster.default))
    model.check()
    assert max(seen) < 4 * lineage.CUT_EVERY
    assert cluster.default.run_on_scheduler(report)["cuts"] == STEPS // lineage.CUT_EVERY
    remembered = cluster.default.run(lambda dask_worker: len(dask_worker.state.tasks))
    assert max(remembered.values()) < 4 * lineage.CUT_EVERY
    del model
    until(lambda: count(cluster.default) == 0, "nothing is left behind")
    until(lambda: not any(cluster.default.has_what().values()), "no data are left on workers")
    assert cluster.default.run_on_scheduler(report)["kept"] == {}
    cluster.assert_quiet()


def test_without_cuts_it_remembers_all(cluster: Cluster) -> None:
    with dask.config.set({"taskgraph.lineage-steps": 0}):
        model = Model()
        model.train(3 * lineage.CUT_EVERY)
        model.check()
    assert count(cluster.default) > 3 * lineage.CUT_EVERY


def test_of_several_copies_the_one_that_was_made_stays(cluster: Cluster) -> None:
    kept = tg.asarray(np.ones((6, 40)), chunks=(1, 40)).persist()
    blocks = cluster.default.futures_of(kept)
    wait(blocks, timeout=30)
    made_on = cluster.default.who_has(blocks)
    cluster.default.replicate(blocks)
    assert all(len(found) == len(THREE) for found in cluster.default.who_has(blocks).values())
    cluster.default.amm.run_once()
    until(lambda: cluster.default.who_has(blocks) == made_on, "the copies are gone, all blocks where they were made")


@pytest.mark.kills_workers
def test_loops_of_persists_are_cut_too_and_older_tensors_stay(cluster: Cluster) -> None:
    p, here, old = tg.asarray(X), X, {}
    for step in range(3 * lineage.CUT_EVERY):
        p, here = (p * 0.5 + 1.0).persist(), here * 0.5 + 1.0
        if step % 20 == 5:
            old[step] = (p, here)
    assert cluster.default.run_on_scheduler(report)["cuts"] == 3
    (victim,) = list(holders(cluster.default))[:1]
    cluster.kill(victim)
    cluster.wait_for(cluster.default, *[name for name in THREE if name != victim])
    for tensor, expected in [*old.values(), (p, here)]:
        np.testing.assert_array_equal(tensor.compute(), expected)


@pytest.mark.kills_workers
def test_a_dead_holder_costs_nothing(cluster: Cluster) -> None:
    client, model = cluster.default, Model()
    model.train(lineage.CUT_EVERY + 5)
    before = holders(client)
    assert len(before) == 2
    time.sleep(2.5)  # Dask's own policy, which drops second copies, runs every 2 s
    assert holders(client) == before
    victim = sorted(before)[0]
    cluster.kill(victim)
    until(lambda: victim not in workers(client) and len(holders(client)) == 2, "there is a second copy again")
    model.train(10)
    model.check()
    victim = sorted(before)[1]  # the one that held everything else
    cluster.kill(victim)
    model.train(2 * lineage.CUT_EVERY)
    model.check()


@pytest.mark.logs_errors
def test_both_holders_dead_is_an_error_that_says_so(cluster: Cluster, tmp_path: Path) -> None:
    client, model = cluster.default, Model()
    model.train(lineage.CUT_EVERY - 4)
    tg.save(tmp_path / "model", {"w": model.w, "b": model.b})
    model.train(4)  # to a cut: a later step's values might lie on the third worker
    names = sorted(holders(client))
    for name in names:  # at once, or the third worker has a copy before the second one dies
        cluster.processes[name].kill()
    for name in names:
        cluster.kill(name)
    until(lambda: len(workers(client)) == 1, "one worker is left")
    for failing in (
        lambda: model.train(1),
        lambda: model.session.run(model.w),
        lambda: tg.save(tmp_path / "other", {"w": model.w}),
    ):
        with pytest.raises(tg.LostValues, match=f"'w'.*{names[0]}.*{names[1]}.*tg.load"):
            within(failing)
    saved = tg.load(tmp_path / "model")
    model.session.run([model.w.assign(saved["w"]), model.b.assign(saved["b"])])
    model.here = [saved["w"].compute(), saved["b"].compute()]
    model.train(lineage.CUT_EVERY)
    model.check()


def within(function: Any, seconds: float = 20) -> None:
    """Raise what the function raises; AssertionError where it hangs."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]


def test_one_worker_alone_and_then_a_second_one(tmp_path: Path) -> None:
    with Cluster(tmp_path, "cpu-0", scheduler_args=("--preload", "scheduler_plugins")) as cluster:
        client, model = cluster.default, Model()
        model.train(lineage.CUT_EVERY + 1)
        assert holders(client) == {"cpu-0"}
        cluster.start_worker("cpu-1")
        until(lambda: holders(client) == {"cpu-0", "cpu-1"}, "there is a second copy")
        model.check()
        assert errors(client) == []
        cluster.assert_quiet()


def test_values_on_a_gpu_go_through(tmp_path: Path) -> None:
    with tg.LocalCluster(cpu_workers=1, emulated_gpus=2, dashboard_address=None) as local, Client(local) as client:
        with tg.device("gpu"):
            p, here = tg.asarray(X), X
            for _ in range(lineage.CUT_EVERY + 3):
                p, here = (p * 0.5 + 1.0).persist(), here * 0.5 + 1.0
        np.testing.assert_array_equal(p.compute(), here)
        assert sorted(holders(client))[0] == "cpu-0"  # whose memory is the larger
        assert len(holders(client)) == 2
        (gpu,) = holders(client) - {"cpu-0"}
        client.retire_workers(names=[gpu])
        with tg.device("gpu"):
            q = p * 2
        np.testing.assert_array_equal(q.compute(), here * 2)


@pytest.mark.logs_errors
def test_a_scheduler_without_the_plugin_remembers_all(cluster: Cluster) -> None:
    client, model = cluster.default, Model()
    model.train(1)
    client.unregister_scheduler_plugin("taskgraph-lineage")
    model.train(lineage.CUT_EVERY + 1)
    model.check()
    assert count(client) > lineage.CUT_EVERY
