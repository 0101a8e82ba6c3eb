"""A worker that turns slow in the middle: the placement and its facts, on a made-up scheduler and a made-up clock."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dask._task_spec import Task
from distributed import get_worker
from process_cluster import ProcessCluster, runs, tagged

from scheduler_plugins.facts import SchedulerFacts
from scheduler_plugins.placement import ReadyQueue, ReadyTask, assign
from scheduler_plugins.plugin import TICK_S, TilePlacement, report
from scheduler_plugins.recall import PLANNED_WEIGHT, Ahead, Free, Move, Recalls, Waiting, choose
from taskgraph.plan import TaskTag


class Thing(SimpleNamespace):
    """Attributes, compared by identity, as Dask's states are."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Simulation:
    """Workers of one thread and speed 1 that compute equal tiles of one product, `each` per worker, `seconds` long.

    Only the clock and the workers are made up: views, durations and decisions are those of the plugin.
    slow: how many times slower worker w-0 is after `at` seconds.
    """

    def __init__(self, workers: int, each: int, seconds: float, slow: float, at: float) -> None:
        self.seconds, self.slow, self.at, self.now = seconds, slow, at, 0.0
        group = Thing(name="matmul-1", prefix=Thing(duration_average=-1))
        self.states = [
            Thing(
                name=f"w-{w}",
                address=f"w-{w}",
                processing={},
                long_running=set(),
                nthreads=1,
                memory_limit=0,
                nbytes=0,
            )
            for w in range(workers)
        ]
        names = [f"w-{w}" for w in range(workers) for _ in range(each)]
        tasks = {key: Thing(key=key, group=group, dependencies=(), annotations=None) for key in range(len(names))}
        stealing = Thing(in_flight={}, move_task_request=self.move)
        scheduler = Thing(tasks=tasks, bandwidth=1e9, UNKNOWN_TASK_DURATION=0.5, aliases={})
        scheduler.running, scheduler.extensions = self.states, {"stealing": stealing}
        scheduler.workers = {state.address: state for state in self.states}
        self.tags = {key: TaskTag(kind="cpu", slot=slot) for key, slot in enumerate(names)}
        self.tasks, self.facts, self.queue = tasks, SchedulerFacts(scheduler), ReadyQueue()
        self.recalls = Recalls(scheduler, self.facts, clock=lambda: self.now)
        self.running: list[tuple[float, int, float, int]] = []  # end, worker, start, task
        for key, slot in enumerate(names):
            self.queue.add(ReadyTask(key, (0, 1, key % each), "cpu", slot))
        self.alive = {state.name: "cpu" for state in self.states}
        self.ran: dict[str, list[int]] = {name: [] for name in self.alive}

    def end_of(self, worker: str, start: float) -> float:
        """When a tile that this worker begins now is done."""
        if worker != "w-0" or start + self.seconds <= self.at:
            return start + self.seconds
        done = max(0.0, self.at - start)
        return max(start, self.at) + (self.seconds - done) * self.slow

    def move(self, ts: Any, victim: Any, thief: Any) -> None:
        """Dask's request: the victim gives up what it has not begun."""
        assert ts.key not in {key for *_, key in self.running}, "asked for a task that runs"
        del victim.processing[ts]
        thief.processing[ts] = None

    def makespan(self) -> float:
        """Run it to the end."""
        while True:
            self.decide()
            busy = {worker for _, worker, _, _ in self.running}
            for number, state in enumerate(self.states):
                if state.processing and number not in busy:
                    task = next(iter(state.processing))
                    heapq.heappush(self.running, (self.end_of(state.name, self.now), number, self.now, task.key))
            if not self.running:
                assert not len(self.queue)
                return self.now
            if self.running[0][0] - self.now > TICK_S and not all(state.processing for state in self.states):
                self.now += TICK_S
                continue
            self.now, number, start, key = heapq.heappop(self.running)
            state = self.states[number]
            del state.processing[self.tasks[key]]
            self.ran[state.name].append(key)
            step = {"action": "compute", "start": start, "stop": self.now}
            self.facts.observe(self.tasks[key].group, state.name, [step])
            self.recalls.ended(state)

    def decide(self) -> None:
        """What the plugin's pump does."""
        views = [view for state in self.states if (view := self.facts.view(state, "cpu")) is not None]
        idle = not any(state.processing for state in self.states)
        bindings = assign(self.queue, views, alive=self.alive, coming={}, facts=self.facts, idle=idle)
        for b in bindings:
            self.states[int(b.worker[2:])].processing[self.tasks[b.task.key]] = None
        self.recalls.bound(bindings, {state.name: state.address for state in self.states})
        if len(self.queue) <= len(self.alive):
            self.recalls.ask(self.alive, self.tags, Waiting())

    def bound(self, workers: int, each: int) -> float:
        """Work over the sum of the actual speeds."""
        work = workers * each * self.seconds
        if work <= workers * self.at:
            return work / workers
        return self.at + (work - workers * self.at) / (workers - 1 + 1 / self.slow)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("each", [4, 6, 8, 12, 16, 40])
def test_one_of_four_turns_slow_in_the_middle(each: int, seconds: float) -> None:
    run = Simulation(4, each, seconds, slow=3, at=each * seconds / 2)
    assert run.makespan() <= 1.25 * run.bound(4, each)
    assert sorted(key for keys in run.ran.values() for key in keys) == list(range(4 * each)), "each tile once"


@pytest.mark.parametrize("part", [0.1, 0.25, 0.4, 0.6, 0.75])
@pytest.mark.parametrize("slow", [2, 3, 10])
@pytest.mark.parametrize("each", [4, 16])
def test_at_any_time_and_however_slow(each: int, slow: float, part: float) -> None:
    """Beyond the bound there is at most one tile that the slow worker has begun before anybody knew, one that it began
    while the others were busy, and one of theirs."""
    run = Simulation(4, each, 1.0, slow=slow, at=each * part)
    assert run.makespan() <= run.bound(4, each) + slow + 1


def test_with_equal_workers_nothing_moves() -> None:
    run = Simulation(4, 8, 1.0, slow=1, at=0)
    assert run.makespan() == 8.0
    assert run.recalls.asked == 0
    assert {name: len(keys) for name, keys in run.ran.items()} == dict.fromkeys(run.alive, 8)


def test_nothing_planned_is_taken_on_a_guess() -> None:
    """Not until one of its kind has ended is it known that a worker is late."""
    run = Simulation(2, 2, 1.0, slow=1, at=0)
    for key in (2, 3):  # w-1 has nothing to do
        run.queue.discard(key)
    run.decide()
    run.now = 10.0
    run.decide()
    assert run.recalls.asked == 0
    run.facts.observe(run.tasks[0].group, "w-1", [{"action": "compute", "start": 0.0, "stop": 1.0}])
    run.decide()
    assert run.recalls.asked == 1


def test_which_task_is_taken_back() -> None:
    waiting = [Ahead("soon", "a", "cpu", 0.1, 1.0), Ahead("late", "b", "cpu", 3.0, 3.0), Ahead("gpu", "c", "gpu", 9, 9)]
    takes = lambda key, name: 1.0
    assert choose(waiting, [Free("d", "cpu")], takes) == [Move("late", "b", "d")]
    assert choose(waiting, [Free("e", "cpu"), Free("d", "cpu", 0.5)], takes) == [Move("late", "b", "e")]
    assert choose(waiting, [Free("e", "cpu"), Free("d", "cpu")], takes) == [
        Move("late", "b", "d"),
        Move("soon", "a", "e"),
    ]
    assert choose(waiting, [Free("d", "cpu")], lambda key, name: 6.0) == []
    assert choose([], [Free("d", "cpu")], takes) == []


def test_a_worker_with_tiles_of_its_own_to_come_takes_none_of_others() -> None:
    """Nor the sources that others' tiles wait for; those of another product it may take."""
    waiting = Waiting()
    tile = TaskTag(kind="cpu", slot="cpu-0", product="matmul-1", tile=(0, 0, 0))
    near, part, free = (TaskTag(kind="cpu", **more) for more in ({"near": "cpu-0"}, {"stays": True}, {}))
    tags = [tile, TaskTag(**{**tile, "product": "matmul-2"}), near, part, free]
    own = TaskTag(kind="cpu", slot="cpu-1", product="matmul-1", tile=(0, 1, 0))
    waiting.add(own, 1)
    assert [waiting.weight(tag, "cpu-1") for tag in tags] == [math.inf, PLANNED_WEIGHT, math.inf, math.inf, 1.0]
    waiting.add(own, -1)
    assert [waiting.weight(tag, "cpu-1") for tag in tags] == [PLANNED_WEIGHT] * 3 + [math.inf, 1.0]
    assert not waiting.tiles, "what has come is forgotten"


VALIDATE = {"distributed.scheduler.validate": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    """Two CPU workers and the plugin, in processes of their own; Dask checks its own state at every step."""
    with ProcessCluster(tmp_path_factory.mktemp("stragglers"), config=VALIDATE) as started:
        for name in ("cpu-0", "cpu-1"):
            started.start_worker(name)
        client = started.client()
        client.register_plugin(TilePlacement())
        started.wait_for(client, "cpu-0", "cpu-1")
        yield started
        started.assert_quiet()


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_live_worker_that_is_slow_gives_back_what_it_has_not_begun(cluster: ProcessCluster, is_pinned: bool) -> None:
    def work(number: int) -> int:
        time.sleep(1.5 if get_worker().name == "cpu-0" else 0.15)
        return number

    client, name = cluster.clients[0], f"matmul-{'pinned' if is_pinned else 'free'}"
    keys = [(name, number) for number in range(4)]
    tags = {key: {"kind": "cpu", "slot": f"cpu-{key[1] % 2}"} | ({"pinned": True} if is_pinned else {}) for key in keys}
    graph = tagged({key: Task(key, work, key[1]) for key in keys}, tags, name)
    asked = client.run_on_scheduler(report)["recalls"]
    futures = client.get(graph, keys, sync=False)
    assert client.gather(futures) == [0, 1, 2, 3]
    ran = [run.worker for run in runs(client, f"('{name}'") if run.worker == "cpu-0"]
    after = client.run_on_scheduler(report)
    assert after["errors"] == 0, after["last_errors"]
    # Both workers have a tile running and one sent ahead; the slow one's second is taken back.
    assert (len(ran), after["recalls"] - asked) == ((2, 0) if is_pinned else (1, 1))
