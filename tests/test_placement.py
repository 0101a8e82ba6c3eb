"""The placement's decisions, without a cluster: tables for the rules, laws for what holds in every state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_plugins.placement import (
    Binding,
    Key,
    ReadyQueue,
    ReadyTask,
    WorkerView,
    assign,
    places,
    serving_kind,
)

SECOND, INSTANT = 1.0, 1e-4


@dataclass
class Table:
    """Facts from a table: durations and operands by key."""

    durations: Mapping[Key, float] = field(default_factory=dict)
    held: Mapping[Key, Mapping[str, int]] = field(default_factory=dict)
    default_s: float = SECOND
    bandwidth: float = 1e9

    def duration_s(self, key: Key) -> float:
        return self.durations.get(key, self.default_s)

    def held_bytes(self, key: Key) -> Mapping[str, int]:
        return self.held.get(key, {})


def tile(key: Key, urgency: float, slot: str | None = None, *, kind: str = "gpu", **kwargs: bool) -> ReadyTask:
    return ReadyTask(key, (0, 1, urgency), kind, slot, **kwargs)


def place(
    tasks: list[ReadyTask],
    workers: list[WorkerView],
    *,
    absent: Mapping[str, str] | None = None,
    coming: Mapping[str, int] | None = None,
    facts: Table | None = None,
    idle: bool = False,
) -> dict[Key, str]:
    """Who gets what in one round. `absent`: workers alive that cannot be given tasks."""
    return {b.task.key: b.worker for b in bindings(tasks, workers, absent, coming, facts, idle)}


def bindings(
    tasks: list[ReadyTask],
    workers: list[WorkerView],
    absent: Mapping[str, str] | None = None,
    coming: Mapping[str, int] | None = None,
    facts: Table | None = None,
    idle: bool = False,
) -> list[Binding]:
    queue = ReadyQueue()
    for task in tasks:
        queue.add(task)
    alive = {view.name: view.kind for view in workers} | dict(absent or {})
    return assign(queue, workers, alive=alive, coming=coming or {}, facts=facts or Table(), idle=idle)


def gpu(number: int, **kwargs: object) -> WorkerView:
    return WorkerView(f"gpu-{number}", "gpu", **kwargs)  # type: ignore[arg-type]


def cpu(number: int, **kwargs: object) -> WorkerView:
    return WorkerView(f"cpu-{number}", "cpu", **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nthreads", "duration", "expected"),
    [(1, SECOND, 2), (1, 0.01, 2), (1, 0.005, 3), (1, INSTANT, 32), (1, 0.0, 32), (4, SECOND, 5), (4, 0.0, 128)],
)
def test_places_hide_a_round_trip_and_no_more(nthreads: int, duration: float, expected: int) -> None:
    assert places(nthreads, duration) == expected


def test_a_long_source_is_not_sent_ahead() -> None:
    """What it makes would lie in memory beside the result before, which is written meanwhile."""
    tasks = [tile("a", 0, source=True), tile("write", 1), tile("b", 2, source=True)]
    assert place(tasks, [gpu(0, in_flight=1)]) == {"write": "gpu-0"}
    assert place(tasks[::2], [gpu(0)]) == {"a": "gpu-0"}
    assert place(tasks[::2], [gpu(0)], facts=Table(default_s=0.01)) == {"a": "gpu-0", "b": "gpu-0"}


@pytest.mark.parametrize(
    ("kind", "alive", "expected"),
    [
        ("gpu", {"gpu-0": "gpu", "cpu-0": "cpu"}, "gpu"),
        ("gpu", {"cpu-0": "cpu"}, "cpu"),
        ("gpu", {}, None),
        ("cpu", {"gpu-0": "gpu", "cpu-0": "cpu"}, "cpu"),
        ("cpu", {"gpu-0": "gpu"}, None),
    ],
)
def test_who_serves_a_kind(kind: str, alive: dict[str, str], expected: str | None) -> None:
    assert serving_kind(kind, alive) == expected


def test_a_tile_goes_to_its_slot() -> None:
    tasks = [tile("a", 0, "gpu-1"), tile("b", 1, "gpu-0"), tile("c", 2, "gpu-1")]
    assert place(tasks, [gpu(0), gpu(1)]) == {"a": "gpu-1", "b": "gpu-0", "c": "gpu-1"}


def test_the_most_urgent_goes_first_with_or_without_a_slot() -> None:
    tasks = [tile("slotted", 2, "gpu-0"), tile("later", 3), tile("first", 1), tile("also", 0)]
    assert place(tasks, [gpu(0)]) == {"first": "gpu-0", "also": "gpu-0"}


@pytest.mark.parametrize("pinned", [False, True])
def test_tiles_of_a_dead_worker_go_to_others_of_the_kind(pinned: bool) -> None:
    tasks = [tile("a", 0, "gpu-9", pinned=pinned), tile("b", 1, "gpu-9", pinned=pinned)]
    assert place(tasks, [gpu(0), gpu(1), cpu(0)]) == {"a": "gpu-0", "b": "gpu-1"}


def test_without_gpu_workers_gpu_tasks_fall_back_and_cpu_tasks_wait_for_theirs() -> None:
    (bound,) = bindings([tile("a", 0, "gpu-0")], [cpu(0)])
    assert (bound.worker, bound.fallback) == ("cpu-0", True)
    # A GPU worker that is alive but paused is waited for.
    assert place([tile("a", 0)], [cpu(0)], absent={"gpu-0": "gpu"}) == {}
    assert place([tile("a", 0, kind="cpu")], [gpu(0)]) == {}
    assert place([tile("a", 0, kind="cpu")], [gpu(0)], absent={"cpu-0": "cpu"}) == {}


def test_an_idle_worker_steals_from_the_largest_backlog_of_full_owners() -> None:
    backlog = [tile(("0", n), n, "gpu-0") for n in range(3)] + [tile(("1", n), 10 + n, "gpu-1") for n in range(5)]
    placed = bindings(backlog, [gpu(0, in_flight=2), gpu(1, in_flight=2), gpu(2)])
    assert [(b.task.key, b.worker, b.stolen) for b in placed] == [(("1", 0), "gpu-2", True)]


@pytest.mark.parametrize(
    ("owner", "reason"),
    [(gpu(0, in_flight=0), "has a place"), (gpu(0, in_flight=1), "has a place")],
    ids=["idle", "one place"],
)
def test_nothing_is_stolen_from_an_owner_with_a_place(owner: WorkerView, reason: str) -> None:
    assert place([tile("a", 0, "gpu-0")], [owner, gpu(1)]) == {"a": "gpu-0"}, reason


def test_a_paused_owner_counts_as_full_but_its_pinned_tiles_wait() -> None:
    tasks = [tile("free", 0, "gpu-0"), tile("pinned", 1, "gpu-0", pinned=True)]
    assert place(tasks, [gpu(1, nthreads=8)], absent={"gpu-0": "gpu"}) == {"free": "gpu-1"}


def test_memory_counts_when_stealing_too() -> None:
    tasks = [tile("source", 0, "gpu-0", source=True), tile("consumer", 1, "gpu-0")]
    absent = {"gpu-0": "gpu"}
    assert place(tasks, [gpu(1, room=False, nthreads=8)], absent=absent) == {"consumer": "gpu-1"}
    # An owner without memory for its sources is as good as full.
    assert place(tasks[:1], [gpu(0, room=False), gpu(1)]) == {"source": "gpu-1"}


def test_a_thief_needs_an_idle_thread() -> None:
    tasks = [tile(n, n, "gpu-0") for n in range(9)]
    assert place(tasks, [gpu(0, in_flight=2), gpu(1, in_flight=1)]) == {}


def test_no_stealing_at_the_start_merely_because_operands_have_not_arrived() -> None:
    few = [tile(n, n, "gpu-0") for n in range(2)]
    many = [tile(n, n, "gpu-0") for n in range(9)]
    workers = [gpu(0, in_flight=2), gpu(1)]
    assert place(few, workers, coming={"gpu-1": 4}) == {}
    # But a worker that has nothing at all to do takes one from a long backlog, whatever is still to come.
    assert place(many, workers, coming={"gpu-1": 4}) == {0: "gpu-1"}


def test_parts_of_blocks_take_no_place() -> None:
    parts = [tile(f"part {n}", n, "gpu-0", pinned=True, part=True) for n in range(99)]
    tiles = [tile(n, 100 + n, "gpu-0") for n in range(2)]
    workers = [gpu(0), gpu(1)]
    # Both tiles are sent to their worker, so that there is none to steal, and no more parts than a worker may have.
    placed = place([*parts, *tiles], workers, facts=Table(default_s=SECOND), coming={"gpu-1": 4})
    assert {placed[0], placed[1]} == {"gpu-0"}
    assert sum(where == "gpu-0" for where in placed.values()) == 2 + 32
    assert place(parts, [gpu(0, parts=32), gpu(1)]) == {}
    assert place(tiles, [gpu(0, parts=32), gpu(1)]) == {0: "gpu-0", 1: "gpu-0"}


def test_without_a_slot_a_task_follows_its_operands_unless_waiting_costs_more() -> None:
    tasks = [tile("a", 0)]
    held = {"a": {"gpu-1": 10**9}}
    assert place(tasks, [gpu(0), gpu(1)], facts=Table(held=held)) == {"a": "gpu-1"}
    # gpu-1 is busy: for 10 s, against 1 s for moving a gigabyte; for 10 ms, against the same.
    busy = [gpu(0), gpu(1, in_flight=1, slowest_s=10 * SECOND)]
    assert place(tasks, busy, facts=Table(held=held)) == {"a": "gpu-0"}
    busy = [gpu(0), gpu(1, in_flight=1, slowest_s=0.01)]
    assert place(tasks, busy, facts=Table(held=held, default_s=0.01)) == {"a": "gpu-1"}


def test_ties_are_broken_by_name() -> None:
    assert place([tile("a", 0), tile("b", 1), tile("c", 2)], [gpu(2), gpu(1), gpu(0)]) == {
        "a": "gpu-0",
        "b": "gpu-1",
        "c": "gpu-2",
    }


def test_a_short_task_is_not_prefetched_behind_a_long_one() -> None:
    facts = Table(default_s=INSTANT)
    short = [tile(n, n) for n in range(99)]
    assert len(place(short, [gpu(0)], facts=facts)) == 32
    assert len(place(short, [gpu(0, in_flight=1, slowest_s=SECOND)], facts=facts)) == 1


def test_memory_holds_sources_back_but_not_their_consumers() -> None:
    tasks = [tile("source", 0, source=True), tile("consumer", 1)]
    assert place(tasks, [gpu(0, room=False)]) == {"consumer": "gpu-0"}
    assert place(tasks, [gpu(0, room=False), gpu(1)])["source"] == "gpu-1"


def test_with_nothing_in_flight_one_source_passes_however_full_the_memory() -> None:
    tasks = [tile(n, n, source=True) for n in range(5)]
    full = [gpu(0, room=False), gpu(1, room=False)]
    assert place(tasks, full, idle=False) == {}
    assert place(tasks, full, idle=True) == {0: "gpu-0"}


def test_a_queue_forgets_and_readmits() -> None:
    queue = ReadyQueue()
    for task in (tile("a", 2), tile("b", 1), tile("a", 0)):
        queue.add(task)
    assert len(queue) == 2
    queue.discard("b")
    queue.discard("never there")
    queue.add(tile(("b", 1), 1))  # keys of unlike types, equal in priority
    queue.add(tile("b", 1))
    placed = assign(queue, [gpu(0, nthreads=8)], alive={"gpu-0": "gpu"}, coming={}, facts=Table(), idle=True)
    assert [b.task.key for b in placed] == [("b", 1), "b", "a"]
    assert not len(queue)
    assert not queue.lanes()


# -- laws

NAMES = ["cpu-0", "cpu-1", "gpu-0", "gpu-1", "gpu-2"]


@st.composite
def states(
    draw: st.DrawFn,
) -> tuple[list[ReadyTask], list[WorkerView], dict[str, str], dict[str, int], Table, bool]:
    there = draw(st.lists(st.sampled_from(NAMES), unique=True))
    views = [
        WorkerView(
            name,
            name[:3],
            nthreads=draw(st.integers(1, 3)),
            in_flight=draw(st.sampled_from([0, 1, 2, 99])),
            slowest_s=draw(st.sampled_from([0.0, INSTANT, SECOND])),
            room=draw(st.booleans()),
        )
        for name in there
        if draw(st.booleans())
    ]
    tasks = [
        ReadyTask(
            number,
            (0, draw(st.integers(0, 3)), number),
            draw(st.sampled_from(["cpu", "gpu"])),
            draw(st.sampled_from(["gone", None, *NAMES, *there, *there])),
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    coming = {name: draw(st.integers(0, 2)) for name in there}
    durations = {task.key: draw(st.sampled_from([INSTANT, SECOND])) for task in tasks}
    held = {task.key: {name: draw(st.integers(0, 10**9)) for name in there} for task in tasks}
    return (
        tasks,
        views,
        {name: name[:3] for name in there},
        coming,
        Table(durations, held),
        draw(st.booleans()),
    )


def run_round(state: tuple) -> tuple[list[Binding], ReadyQueue]:
    tasks, views, alive, coming, facts, idle = state
    queue = ReadyQueue()
    for task in tasks:
        queue.add(task)
    return assign(queue, views, alive=alive, coming=coming, facts=facts, idle=idle), queue


@settings(max_examples=300, deadline=None)
@given(states())
def test_laws_of_a_round(state: tuple) -> None:
    tasks, views, alive, _, facts, idle = state
    placed, queue = run_round(state)
    by_name = {view.name: view for view in views}

    # Every task is either bound once or still queued.
    assert sorted([b.task.key for b in placed] + [t.key for t in queue]) == sorted(t.key for t in tasks)
    assert [(b.task.key, b.worker) for b in placed] == [(b.task.key, b.worker) for b in run_round(state)[0]]

    load = Counter({view.name: view.in_flight for view in views})
    for bound in placed:
        task, worker = bound.task, by_name[bound.worker]
        # No task on a foreign kind, but gpu tasks where no GPU worker is alive.
        assert worker.kind == task.kind or (task.kind == "gpu" and "gpu" not in alive.values() and bound.fallback)
        # Never more than places.
        assert load[worker.name] < places(worker.nthreads, max(facts.duration_s(task.key), worker.slowest_s))
        load[worker.name] += 1
        owned = task.slot is not None and alive.get(task.slot) == serving_kind(task.kind, alive)
        if owned and worker.name != task.slot:
            # Pinned waits; the rest leaves a living owner only if it has no place.
            assert bound.stolen
            assert not task.pinned
            owner = by_name.get(task.slot)
            load_of_owner = owner and owner.in_flight + sum(b.worker == owner.name for b in placed)
            assert owner is None or load_of_owner > owner.nthreads or (task.source and not owner.room)
        if task.source and not worker.room:
            assert idle
            assert len(placed) == 1


@settings(max_examples=300, deadline=None)
@given(states())
def test_no_thread_idles_beside_a_task_that_it_might_run(state: tuple) -> None:
    _, views, alive, _, _, _ = state
    placed, queue = run_round(state)
    for view in views:
        if view.in_flight + sum(b.worker == view.name for b in placed) >= view.nthreads:
            continue
        for task in queue:
            may_run = serving_kind(task.kind, alive) == view.kind and (view.room or not task.source)
            owned = task.slot is not None and alive.get(task.slot) == view.kind
            assert not may_run or (owned and task.slot != view.name)


@settings(max_examples=100, deadline=None)
@given(states())
def test_rounds_end_with_an_empty_queue_while_every_kind_has_a_worker(state: tuple) -> None:
    tasks, _, _, _, facts, _ = state
    alive = {name: name[:3] for name in NAMES}
    queue = ReadyQueue()
    for task in tasks:
        queue.add(task)
    for _ in range(len(tasks)):
        idle_workers = [WorkerView(name, kind, room=False) for name, kind in alive.items()]
        assign(queue, idle_workers, alive=alive, coming={}, facts=facts, idle=True)
    assert not len(queue)
