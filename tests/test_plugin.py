"""`TilePlacement` on real clusters: the scheduler in another process, the workers named and of a kind."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import pytest
from dask._task_spec import Task, TaskRef
from distributed import Client, Event, get_worker
from distributed.scheduler import NoValidWorkerError
from process_cluster import DEATH, ProcessCluster, runs, tagged, until, workers

from scheduler_plugins import TilePlacement, report
from scheduler_plugins.facts import SchedulerFacts
from scheduler_plugins.placement import places

FOUR = ("cpu-0", "cpu-1", "gpu-0", "gpu-1")

#: Every assertion that Dask's scheduler can make on its own state.
VALIDATE = {"distributed.scheduler.validate": True}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    """Four workers and the plugin, for tests that leave them as they were."""
    with ProcessCluster(tmp_path_factory.mktemp("shared"), config=VALIDATE) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        client = cluster.client()
        client.register_plugin(TilePlacement())
        cluster.wait_for(client, *FOUR)
        yield cluster
        cluster.assert_quiet()


@pytest.fixture
def client(shared: ProcessCluster) -> Iterator[Client]:
    """A client whose tasks are gone from the scheduler, and from the plugin, when the test ends."""
    client = shared.client()
    yield client
    client.close()
    observer = shared.clients[0]
    until(lambda: is_empty(observer), "the plugin has forgotten all tasks")
    assert observer.run_on_scheduler(report)["errors"] == 0


def is_busy(client: Client) -> bool:
    # The function travels by value: a lambda, since the scheduler cannot import this module.
    return client.run_on_scheduler(lambda dask_scheduler: any(w.processing for w in dask_scheduler.workers.values()))


def is_empty(client: Client) -> bool:
    def look(dask_scheduler: Any) -> bool:
        plugin = dask_scheduler.plugins["taskgraph-placement"]
        return not (plugin._tags or len(plugin._ready) or plugin._processing or any(plugin._waiting.values()))

    return client.run_on_scheduler(look)


def names(count: int, prefix: str = "matmul") -> list[tuple[str, int]]:
    """Keys that no other test uses."""
    name = f"{prefix}-{random.getrandbits(48):012x}"
    return [(name, number) for number in range(count)]


def tiles(keys: list[Any], seconds: float, *slots: str, gate: Path | None = None, **tag: Any) -> Any:
    """A graph of independent tiles dealt to slots in turn; each takes a while and is its number.

    gate: on a CPU worker all but its first wait, a minute at the most, until the file is there.
    """

    def work(number: int) -> int:
        worker, deadline = get_worker(), time.monotonic() + 60
        waits = gate and str(worker.name).startswith("cpu") and hasattr(worker, "has_passed")
        worker.has_passed = True
        while waits and not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        return number

    tags = {key: {"kind": "gpu", "product": key[0], "tile": (key[1], 0, 0)} | tag for key in keys}
    for key in keys if slots else ():
        tags[key]["slot"] = slots[key[1] % len(slots)]
    return tagged({key: Task(key, work, key[1]) for key in keys}, tags, keys[0][0])


def who(client: Client, keys: list[Any]) -> Counter[str]:
    """How many of these tasks each worker has run."""
    return Counter(run.worker for run in runs(client) if run.key in set(keys))


def progress(client: Client, keys: list[Any], count: int, what: str = "tiles are computed") -> None:
    until(lambda: who(client, keys).total() >= count, f"{count} {what}")


# -- placement


@pytest.mark.parametrize("seed", [0, 1])
def test_random_graphs_run_where_their_tags_say(client: Client, seed: int) -> None:
    dice = random.Random(seed)
    keys = names(1500)
    graph, tags, value = {}, {}, {}
    for number, key in enumerate(keys):
        inputs = dice.sample(keys[max(0, number - 50) : number], min(number, dice.randint(0, 3)))
        graph[key] = Task(key, lambda *args: (sum(args) + 1) % 1009, *[TaskRef(other) for other in inputs])
        value[key] = (sum(value[other] for other in inputs) + 1) % 1009
        kind = dice.choice(["cpu", "gpu"])
        tags[key] = {"kind": kind}
        if dice.random() < 0.6:
            tags[key] |= {"slot": f"{kind}-{dice.randint(0, 1)}", "pinned": dice.random() < 0.3}
    assert client.get(tagged(graph, tags, keys[0][0]), keys) == [value[key] for key in keys]
    ran = {run.key: run for run in runs(client) if run.key in tags}
    assert len(ran) == len(keys)
    assert [key for key in keys if ran[key].kind != tags[key]["kind"]] == []
    assert [key for key in keys if tags[key].get("pinned") and ran[key].worker != tags[key]["slot"]] == []


def test_the_report_counts_tiles_of_a_product_by_worker(client: Client) -> None:
    keys = names(20)
    client.get(tiles(keys, 0.0, "gpu-0", "gpu-1", pinned=True), keys)
    seen = client.run_on_scheduler(report)
    assert seen["tiles"][keys[0][0]] == {"gpu-0": 10, "gpu-1": 10}
    assert seen["workers"] == {name: name[:3] for name in FOUR}
    assert (seen["ready"], seen["held"], seen["errors"]) == (0, 0, 0)


class Collection:
    """The least that is a Dask collection."""

    __dask_optimize__ = None
    __dask_scheduler__ = staticmethod(dask.threaded.get)

    def __init__(self, graph: Any, keys: list[Any]) -> None:
        self.graph, self.keys = graph, keys

    def __dask_graph__(self) -> Any:
        return self.graph

    def __dask_keys__(self) -> list[Any]:
        return self.keys

    def __dask_tokenize__(self) -> Any:
        return self.keys

    def __dask_postcompute__(self) -> Any:
        return sum, ()


def test_what_compute_adds_behind_gpu_tasks_runs_on_a_cpu_worker(client: Client) -> None:
    keys = names(10)
    assert client.compute(Collection(tiles(keys, 0.0), keys)).result() == sum(range(10))
    assert {run.kind for run in runs(client, "finalize")} == {"cpu"}
    # And untagged tasks behind those.
    more = names(3, "plain")
    graph = {
        more[0]: Task(more[0], int, TaskRef(keys[0])),
        more[1]: Task(more[1], int, TaskRef(more[0])),
        more[2]: Task(more[2], lambda a, b: a + b, TaskRef(more[1]), TaskRef(keys[1])),
    }
    graph |= dict(tiles(keys, 0.0))
    tags = {key: {"kind": "gpu"} for key in keys}
    assert client.get(tagged(graph, tags, "both" + more[0][0]), more[2]) == 1
    assert {run.kind for run in runs(client) if run.key in more} == {"cpu"}


def test_tasks_that_their_user_restricted_are_left_alone(client: Client) -> None:
    keys = names(6)
    address = workers(client)["gpu-1"]
    graph = tiles(keys, 0.0, kind="cpu")
    (layer,) = graph.layers.values()
    layer.annotations["workers"] = [address]
    assert client.get(graph, keys) == list(range(6))
    assert who(client, keys) == {"gpu-1": 6}


def test_other_peoples_tasks_are_not_ours(client: Client) -> None:
    future = client.submit(lambda: 1, pure=False)
    assert future.result() == 1
    key = future.key
    restrictions = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks[key].worker_restrictions)
    assert restrictions is None


def test_failing_tasks_fail_as_they_do_without_us(client: Client) -> None:
    def failing() -> None:
        raise ZeroDivisionError

    keys = names(2)
    graph = {keys[0]: Task(keys[0], failing), keys[1]: Task(keys[1], int, TaskRef(keys[0]))}
    with pytest.raises(ZeroDivisionError):
        client.get(tagged(graph, {key: {"kind": "gpu"} for key in keys}, keys[0][0]), keys[1])


def test_a_second_registration_and_cancelling_lose_nothing(client: Client) -> None:
    keys = names(200)
    futures = client.get(tiles(keys, 0.01, "gpu-0"), keys, sync=False)
    progress(client, keys, 5)
    client.register_plugin(TilePlacement())
    assert client.run_on_scheduler(report)["ready"] > 0
    client.cancel(futures)
    until(lambda: is_empty(client), "cancelled tasks are forgotten")


def test_a_paused_worker_gets_nothing_until_it_runs_again(client: Client) -> None:
    addresses = [workers(client)[name] for name in ("gpu-0", "gpu-1")]

    def become(status: str) -> None:
        def change(dask_worker: Any) -> None:
            dask_worker.status = type(dask_worker.status)[status]

        client.run(change, workers=addresses)

    def running(dask_scheduler: Any) -> int:
        return sum(ws.address in addresses for ws in dask_scheduler.running)

    become("paused")
    try:
        until(lambda: client.run_on_scheduler(running) == 0, "both GPU workers are paused")
        keys, others = names(6), names(6)
        futures = client.get(tiles(keys, 0.0, "gpu-0"), keys, sync=False)
        assert client.get(tiles(others, 0.0, kind="cpu"), others) == list(range(6))
        assert client.run_on_scheduler(report)["ready"] == 6
        assert who(client, keys).total() == 0
    finally:
        become("running")
    assert client.gather(futures) == list(range(6))


def test_p2p_rechunking_works_under_a_tag(client: Client) -> None:
    with dask.annotate(taskgraph={"kind": "cpu"}), dask.config.set({"optimization.fuse.active": False}):
        x = da.arange(400, chunks=20).reshape(20, 20).rechunk((20, 5)).rechunk((4, 20), method="p2p")
        total = client.compute((x * 2).sum(), optimize_graph=False).result()
    assert total == 2 * sum(range(400))
    assert {run.kind for run in runs(client, "shuffle-barrier")} == {"cpu"}
    assert {run.kind for run in runs(client, "('rechunk-p2p")} == {"cpu"}


def test_small_products_do_not_speak_for_large_ones_of_their_prefix() -> None:
    prefix = SimpleNamespace(duration_average=1e-4)
    tasks = {name: SimpleNamespace(group=SimpleNamespace(name=name, prefix=prefix)) for name in ("small", "large")}
    facts = SchedulerFacts(SimpleNamespace(tasks=tasks, UNKNOWN_TASK_DURATION=0.5))
    facts.observe(tasks["small"].group, "w", [{"action": "compute", "start": 1.0, "stop": 1.0001}])
    assert places(1, facts.duration_s("small")) == 32
    assert places(1, facts.duration_s("large")) == 4
    facts.observe(tasks["large"].group, "w", [{"action": "compute", "start": 1.0, "stop": 3.0}])
    assert places(1, facts.duration_s("large")) == 2
    prefix.duration_average = -1
    assert facts.duration_s("large") == 2.0


# -- workers that come and go


@pytest.mark.kills_workers
def test_lost_workers_and_returning_ones(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path, config=VALIDATE, scheduler_args=("--preload", "scheduler_plugins")) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        client = cluster.client()
        client.register_plugin(TilePlacement())  # beside the preloaded one
        cluster.wait_for(client, *FOUR)

        keys = names(40)
        futures = client.get(tiles(keys, 0.03, "gpu-0", "gpu-1"), keys, sync=False)
        progress(client, keys, 10)
        cluster.kill("gpu-0")
        assert client.gather(futures) == list(range(40))
        assert {run.kind for run in runs(client) if run.key in set(keys)} == {"gpu"}

        keys = names(80)
        gate = tmp_path / "gate"
        futures = client.get(tiles(keys, 0.03, "gpu-0", "gpu-1", gate=gate), keys, sync=False)
        progress(client, keys, 10)
        cluster.kill("gpu-1")
        until(lambda: who(client, keys)["cpu-0"] and who(client, keys)["cpu-1"], "CPU workers take over")
        cluster.start_worker("gpu-0")
        cluster.wait_for(client, "cpu-0", "cpu-1", "gpu-0")
        gate.touch()
        assert client.gather(futures) == list(range(80))
        assert who(client, keys)["gpu-0"] > 0
        # Its own tiles, and what CPU workers had left of the other's, but nothing after it came went to them.
        last = [run for run in runs(client) if run.key in set(keys)][-10:]
        assert {run.worker for run in last} == {"gpu-0"}

        seen = client.run_on_scheduler(report)
        assert (seen["errors"], seen["ready"], seen["held"]) == (0, 0, 0)
        assert seen["fallbacks"] > 0
        events = [event["action"] for _, event in client.get_events("taskgraph-placement")]
        assert events == ["fallback"]
        cluster.assert_quiet(allowed=DEATH)


@pytest.mark.kills_workers
def test_results_lost_with_a_worker_are_computed_again_on_their_kind(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path, config=VALIDATE) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        client = cluster.client()
        client.register_plugin(TilePlacement())
        cluster.wait_for(client, *FOUR)
        keys, sums = names(30), names(30, "sum")
        futures = client.get(tiles(keys, 0.0, "gpu-0", "gpu-1"), keys, sync=False)
        assert client.gather(futures) == list(range(30))
        cluster.kill("gpu-1")
        graph = {s: Task(s, lambda a: a + 1, TaskRef(key)) for s, key in zip(sums, keys, strict=True)}
        both = tagged(
            graph | dict(tiles(keys, 0.0, "gpu-0", "gpu-1")),
            {s: {"kind": "cpu"} for s in sums},
            "sums" + keys[0][0],
        )
        assert client.get(both, sums) == list(range(1, 31))
        assert {run.kind for run in runs(client) if run.key in set(keys)} == {"gpu"}
        assert {run.kind for run in runs(client, "('sum")} == {"cpu"}
        cluster.assert_quiet(allowed=DEATH)


def test_a_worker_that_joins_gets_work_and_timeouts_spare_what_merely_waits(tmp_path: Path) -> None:
    config = VALIDATE | {"distributed.scheduler.no-workers-timeout": "700ms"}
    with ProcessCluster(tmp_path, config=config) as cluster:
        cluster.start_worker("gpu-0")
        client = cluster.client()
        client.register_plugin(TilePlacement())
        cluster.wait_for(client, "gpu-0")
        # More than three timeouts of work for one worker, and then some for two.
        keys = names(120)
        futures = client.get(tiles(keys, 0.03, "gpu-0"), keys, sync=False)
        progress(client, keys, 75)
        cluster.start_worker("gpu-1")
        assert client.gather(futures) == list(range(120))
        assert who(client, keys)["gpu-1"] > 0
        assert client.run_on_scheduler(report)["steals"] > 0
        # What nobody can take still fails with Dask's own error.
        others = names(3)
        with pytest.raises(NoValidWorkerError, match="a cpu worker"):
            client.get(tiles(others, 0.0, kind="cpu"), others)
        cluster.assert_quiet()


# -- the plugin's own life


def test_tasks_that_were_there_before_the_plugin_and_after_it(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path, config=VALIDATE) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        client = cluster.client()
        cluster.wait_for(client, *FOUR)

        def behind_a_gate(event: str) -> tuple[list[Any], Any, Any]:
            keys = names(40)
            gate = keys[0]
            graph = {key: Task(key, lambda a: a, TaskRef(gate)) for key in keys[1:]}
            graph[gate] = Task(gate, lambda: Event(event).wait(30))
            tags = {key: {"kind": "gpu" if key[1] % 2 else "cpu"} for key in keys}
            return keys, tags, client.get(tagged(graph, tags, gate[0]), keys, sync=False)

        keys, tags, futures = behind_a_gate("adopted")
        until(lambda: is_busy(client), "the gate's task runs")
        client.register_plugin(TilePlacement())
        Event("adopted", client=client).set()
        assert all(client.gather(futures))
        ran = {run.key: run.kind for run in runs(client)}
        assert [key for key in keys[1:] if ran[key] != tags[key]["kind"]] == []

        keys, tags, futures = behind_a_gate("released")
        until(lambda: is_busy(client), "the gate's task runs")
        client.unregister_scheduler_plugin("taskgraph-placement")
        Event("released", client=client).set()
        assert all(client.gather(futures))
        cluster.assert_quiet()


def test_its_own_failures_are_counted_and_hang_nothing(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path) as cluster:
        for name in ("cpu-0", "gpu-0"):
            cluster.start_worker(name)
        client = cluster.client()
        client.register_plugin(TilePlacement())
        cluster.wait_for(client, "cpu-0", "gpu-0")

        keys = names(3)
        assert client.get(tiles(keys, 0.0, kind="tpu"), keys) == [0, 1, 2]
        seen = client.run_on_scheduler(report)
        assert seen["errors"] == 3
        assert "known: cpu, gpu" in seen["last_errors"][0]

        def sabotage(dask_scheduler: Any, victim: str) -> None:
            from scheduler_plugins import plugin

            def fail(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError("sabotage")

            if victim == "assign":
                plugin.assign = fail
            else:
                setattr(dask_scheduler.plugins["taskgraph-placement"], victim, fail)

        for function in ("assign", "_enqueue"):
            client.run_on_scheduler(sabotage, victim=function)
            keys = names(30)
            assert client.get(tiles(keys, 0.0), keys) == list(range(30))
            # The kind is kept even so.
            assert {run.kind for run in runs(client) if run.key in set(keys)} == {"gpu"}
            assert client.run_on_scheduler(report)["errors"] > seen["errors"]
        assert "Placement failed in" in cluster.log("scheduler")
