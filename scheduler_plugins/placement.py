"""Which ready task goes to which worker: data in, decisions out.

**Late binding.** A task of ours is bound to a worker when that worker has a place for it, not before; until
then it waits in a `ReadyQueue`. Placement, load balance, lost workers and bounded memory are then one
mechanism: whatever changes in the cluster, the next round of `assign` sees the workers that are there and
the places they have. The rules:

1. *Kind.* A task runs on workers of its kind alone. `gpu` tasks fall back to CPU workers while no GPU
   worker is alive at all; `cpu` tasks never run on a GPU worker and wait for a CPU worker if there is none.
2. *Order.* The most urgent task (smallest Dask priority, which is depth first and so keeps few results in
   memory) is served first, whether the plan gave it a slot or not; the order of the queue decides, never
   the order of arrival.
3. *Slot.* A tile waits for the worker that its slot names while that worker is alive. The tiles of a dead
   worker go the way of tasks without a slot, pinned ones too. A worker that comes back under its name gets
   those that are left.
4. *Steal.* A worker with an idle thread and nothing of its own to run takes the most urgent tile from the
   slot with the largest backlog among those whose worker has no place for them. Pinned tiles are never stolen. If
   more tiles of its own are to come (their operands have not arrived), it steals only while it has nothing
   at all in flight, and only from a backlog longer than one round of places: stealing at the start would
   throw away the locality that the plan has paid for.
5. *No slot.* A task goes where it can start first: the wait for a thread plus the time to move what is
   missing of its dependencies; then to whoever misses fewest bytes, then by name.
6. *Places.* See `places`. A long source is not sent ahead: it has nothing to fetch, and would run before what takes
   the result of the one before it (writes it to a file, say), which then lies in memory all the while.
7. *Memory.* Sources (tasks without dependencies, which can only add to memory) are not bound to a worker
   that holds more than `MEMORY_FRACTION` of its limit; if nothing of ours is in flight at all, one of them
   is let through, since then nothing else could ever free memory.

8. *Parts.* A task that only takes a part out of a block has for its slot the worker that holds the block, of
   whatever kind (`staying`), and is never stolen: to move the part is less than to move the block. It takes no time, so
   it takes no place either: a worker full of parts would look as if it had none for its tiles, and lose them.

Consequences seen from Dask: waiting tasks are in the state `no-worker` (`scheduler.unrunnable`), also while
they merely wait for a place. Adaptive scaling counts these like queued tasks (so it scales up for them), a
scheduler with an idle timeout is not idle while they are there, and dashboards show them as "no-worker".
Dask's work stealing and root-task queuing never touch them, since every one of them is restricted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Key = Hashable

KINDS = ("cpu", "gpu")

#: Above this share of its memory limit a worker gets no more sources. Derived: it is where Dask's workers
#: begin to spill (`distributed.worker.memory.target`); at 0.8 they pause.
MEMORY_FRACTION = 0.6

#: From a task's end to the next one's arrival, if none is prefetched. Derived: messages wait up to 2 ms in
#: the worker and 5 ms in the scheduler, and each end adds its own work.
ROUND_TRIP_S = 0.01

#: From so many seconds on a source waits for a free thread (derived: a round trip is then 5% of it).
LONG_S = 20 * ROUND_TRIP_S

#: Tasks in flight beyond the running ones, for each thread, at most. Measured with empty tasks on two one-thread
#: workers, 2 cores, us a task: 930 with 3, 710 with 7, 530 with 15, 420 with 31, where plain Dask queues them at
#: 1600; in chains of ten 930, 820, 750, 670, and plain Dask, which sends them all at once, 460.
PREFETCH_PER_THREAD = 31


@dataclass(frozen=True, slots=True)
class ReadyTask:
    """A task whose inputs exist. `priority` is Dask's; `source` says that it has no dependencies, `part` that it only
    takes a part out of a block."""

    key: Key
    priority: tuple[float, ...]
    kind: str
    slot: str | None = None
    pinned: bool = False
    source: bool = False
    part: bool = False


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker that may be given tasks now: running, neither paused nor closing.

    in_flight: tasks processing there, everybody's, less those that left their thread, and less parts (rule 8).
    slowest_s: the longest expected duration among them.
    room: its memory allows sources.
    parts: parts that are processing there.
    """

    name: str
    kind: str
    nthreads: int = 1
    in_flight: int = 0
    slowest_s: float = 0.0
    room: bool = True
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Binding:
    """A decision. `stolen`: from another worker's slot; `fallback`: a gpu task on a CPU worker."""

    task: ReadyTask
    worker: str
    stolen: bool = False
    fallback: bool = False


class Facts(Protocol):
    """What is asked of a task only when its turn has come: most of the queue is not looked at in a round."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second between workers."""

    def duration_s(self, key: Key) -> float:
        """Expected duration of the task."""

    def held_bytes(self, key: Key) -> Mapping[str, int]:
        """Bytes of the task's dependencies that each worker holds, by worker name."""


def places(nthreads: int, duration_s: float) -> int:
    """How many tasks of this duration may be in flight on a worker.

    One for each thread, and as many more as hide a round trip: at least one, so that a long tile's successor
    fetches its operands meanwhile, but not more, so that few tiles are stuck behind a straggler at the end.

    >>> places(1, 10.0), places(1, 0.0), places(8, 10.0), places(8, 0.005)
    (2, 32, 9, 24)
    """
    wanted = nthreads * ROUND_TRIP_S / duration_s if duration_s > 0 else math.inf
    return nthreads + int(min(max(1, math.ceil(min(wanted, 1e9))), PREFETCH_PER_THREAD * nthreads))


def has_room(held_bytes: float, limit_bytes: float) -> bool:
    """Rule 7: whether a worker that holds so many bytes may be given sources; a limit of 0 is none.

    >>> has_room(5e9, 10e9), has_room(7e9, 10e9), has_room(7e9, 0)
    (True, False, True)
    """
    return not limit_bytes or held_bytes <= MEMORY_FRACTION * limit_bytes


def serving_kind(kind: str, alive: Mapping[str, str]) -> str | None:
    """The kind of the workers that run tasks of `kind`, given the kind of every worker alive; None: wait.

    >>> serving_kind("gpu", {"cpu-0": "cpu"}), serving_kind("cpu", {"gpu-0": "gpu"})
    ('cpu', None)
    """
    kinds = set(alive.values())
    if kind in kinds:
        return kind
    return "cpu" if kind == "gpu" and "cpu" in kinds else None


def staying(held: Mapping[str, int], alive: Mapping[str, str]) -> str | None:
    """Rule 8: the worker where a task that takes parts of blocks runs; None where no worker holds any.

    >>> staying({"cpu-1": 10, "cpu-0": 10, "cpu-2": 5}, dict.fromkeys(["cpu-0", "cpu-1", "cpu-2"], "cpu"))
    'cpu-0'
    """
    return min((name for name in held if name in alive), key=lambda name: (-held[name], name), default=None)


class LaneId(NamedTuple):
    """Tasks that are served alike wait in one lane, so that a round looks at heads of lanes alone.

    slot: "" without one, so that lanes can be sorted.
    """

    kind: str
    slot: str
    pinned: bool
    source: bool


def _lane(task: ReadyTask) -> LaneId:
    return LaneId(task.kind, task.slot or "", task.pinned, task.source)


class ReadyQueue:
    """Ready tasks, most urgent first in each lane. Adding and taking cost O(log n); discarding is lazy."""

    def __init__(self) -> None:
        self._tasks: dict[Key, tuple[int, ReadyTask]] = {}
        self._heaps: dict[LaneId, list[tuple[tuple[float, ...], int, ReadyTask]]] = {}
        self._sizes: dict[LaneId, int] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: Key) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[ReadyTask]:
        return (task for _, task in self._tasks.values())

    def add(self, task: ReadyTask) -> None:
        """Queue a task; one that is there already stays where it is."""
        if task.key in self._tasks:
            return
        lane = _lane(task)
        # The number breaks ties, and keeps keys of unlike types from being compared.
        self._arrivals += 1
        heapq.heappush(self._heaps.setdefault(lane, []), (task.priority, self._arrivals, task))
        self._tasks[task.key] = (self._arrivals, task)
        self._sizes[lane] = self._sizes.get(lane, 0) + 1

    def discard(self, key: Key) -> None:
        """Forget a task, if it is there."""
        entry = self._tasks.pop(key, None)
        if entry is not None:
            task = entry[1]
            lane = _lane(task)
            self._sizes[lane] -= 1
            if not self._sizes[lane]:
                del self._sizes[lane], self._heaps[lane]

    def clear(self) -> None:
        """Forget everything."""
        self._tasks.clear()
        self._heaps.clear()
        self._sizes.clear()

    def lanes(self) -> dict[LaneId, int]:
        """The lanes in which something waits, and how much."""
        return self._sizes

    def head(self, lane: LaneId) -> ReadyTask | None:
        """The most urgent task of a lane."""
        heap = self._heaps.get(lane)
        while heap:
            _, number, task = heap[0]
            entry = self._tasks.get(task.key)
            if entry is not None and entry[0] == number:
                return task
            heapq.heappop(heap)
        return None


def assign(
    queue: ReadyQueue,
    workers: Sequence[WorkerView],
    *,
    alive: Mapping[str, str],
    coming: Mapping[str, int],
    facts: Facts,
    idle: bool,
) -> list[Binding]:
    """Take out of `queue` what can be bound now, and say where each task goes.

    workers: those that may be given tasks; full ones may be left out.
    alive: kind of every worker of the cluster by name, paused and full ones included.
    coming: for each slot, its tiles whose operands do not exist yet.
    idle: nothing of ours is in flight anywhere.
    """
    if not len(queue) or not workers:
        return []
    turn = _Round(queue, workers, alive, coming, facts)
    turn.serve_lanes()
    turn.steal()
    if idle and not turn.bindings:
        turn.let_one_source_through()
    return turn.bindings


class _Round:
    """One round of `assign`: the loads as they grow while tasks are bound."""

    def __init__(
        self,
        queue: ReadyQueue,
        workers: Sequence[WorkerView],
        alive: Mapping[str, str],
        coming: Mapping[str, int],
        facts: Facts,
    ) -> None:
        self.queue, self.alive, self.coming, self.facts = queue, alive, coming, facts
        self.workers = {view.name: view for view in sorted(workers, key=lambda view: view.name)}
        self.load = {name: view.in_flight for name, view in self.workers.items()}
        self.parts = {name: view.parts for name, view in self.workers.items()}
        self.slowest = {name: view.slowest_s for name, view in self.workers.items()}
        self.pools: dict[str, list[str]] = {}
        for name, view in self.workers.items():
            self.pools.setdefault(view.kind, []).append(name)
        self.serving = {kind: serving_kind(kind, alive) for kind in KINDS}
        self.bindings: list[Binding] = []

    def serve_lanes(self) -> None:
        """Rules 2, 3 and 5: the most urgent head first; a lane whose head finds no place is done."""
        heads: list[tuple[tuple[float, ...], int, LaneId, ReadyTask]] = []
        for number, lane in enumerate(sorted(self.queue.lanes())):
            if self.pool(lane) and (task := self.queue.head(lane)) is not None:
                heads.append((task.priority, number, lane, task))
        heapq.heapify(heads)
        while heads:
            _, number, lane, task = heads[0]
            if (name := self.choose(task, self.pool(lane))) is None:
                heapq.heappop(heads)
                continue
            self.bind(task, name)
            if (following := self.queue.head(lane)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following.priority, number, lane, following))

    def pool(self, lane: LaneId) -> Sequence[str]:
        """The workers that may take a lane's tasks without stealing."""
        kind = self.serving.get(lane.kind)
        if lane.slot and kind is not None and self.alive.get(lane.slot) == kind:
            return (lane.slot,) if lane.slot in self.workers else ()
        return self.pools.get(kind, ()) if kind is not None else ()

    def fits(self, name: str, task: ReadyTask, duration_s: float) -> bool:
        """Rules 6 and 7. A short task behind a long one counts as long: prefetching would only delay it."""
        view, duration_s = self.workers[name], max(duration_s, self.slowest[name])
        if task.source and (not view.room or (duration_s >= LONG_S and self.load[name] >= view.nthreads)):
            return False
        if task.part and self.parts[name] >= places(view.nthreads, 0):
            return False
        return self.load[name] < places(view.nthreads, duration_s)

    def choose(self, task: ReadyTask, pool: Sequence[str]) -> str | None:
        """Rule 5 among those of the pool that have a place."""
        duration = self.facts.duration_s(task.key)
        free = [name for name in pool if self.fits(name, task, duration)]
        if len(free) < 2:
            return free[0] if free else None
        held = self.facts.held_bytes(task.key)

        def start(name: str) -> tuple[float, int, str]:
            threads = self.workers[name].nthreads
            wait = max(0, self.load[name] - threads + 1) * max(self.slowest[name], duration) / threads
            # What is missing is the same total less what is held, so the total need not be known.
            return wait - held.get(name, 0) / self.facts.bandwidth, -held.get(name, 0), name

        return min(free, key=start)

    def bind(self, task: ReadyTask, name: str, *, stolen: bool = False) -> None:
        self.queue.discard(task.key)
        self.bindings.append(Binding(task, name, stolen, fallback=self.workers[name].kind != task.kind))
        if task.part:
            self.parts[name] += 1
            return
        self.load[name] += 1
        self.slowest[name] = max(self.slowest[name], self.facts.duration_s(task.key))

    def steal(self) -> None:
        """Rule 4."""
        own = {lane.slot for lane in self.queue.lanes()}
        for name, view in self.workers.items():
            while name not in own and self.load[name] < view.nthreads:
                if (task := self.loot(name)) is None:
                    break
                self.bind(task, name, stolen=True)

    def loot(self, thief: str) -> ReadyTask | None:
        """The tile that `thief` may take: from the largest backlog of an owner without a place."""
        waits_for_own = self.coming.get(thief, 0) > 0
        if waits_for_own and self.load[thief] > 0:
            return None
        backlogs: dict[str, int] = {}
        for lane in self.lootable(thief):
            backlogs[lane.slot] = backlogs.get(lane.slot, 0) + self.queue.lanes()[lane]
        for slot in sorted(backlogs, key=lambda slot: (-backlogs[slot], slot)):
            task = self.most_urgent(slot, thief)
            if task is None:
                continue
            duration = self.facts.duration_s(task.key)
            if waits_for_own and backlogs[slot] <= places(self.workers[thief].nthreads, duration):
                return None
            # What is left here after `serve_lanes` found no place, or no memory, at its owner.
            if self.fits(thief, task, duration):
                return task
        return None

    def lootable(self, thief: str) -> list[LaneId]:
        """Lanes of other owners, alive and of the thief's kind, whose tasks the thief may run."""
        view = self.workers[thief]
        return [
            lane
            for lane in self.queue.lanes()
            if not lane.pinned
            and self.alive.get(lane.slot) == view.kind == self.serving.get(lane.kind)
            and (view.room or not lane.source)
        ]

    def most_urgent(self, slot: str, thief: str) -> ReadyTask | None:
        """The first tile of a slot that the thief may run."""
        heads = [
            task for lane in self.lootable(thief) if lane.slot == slot and (task := self.queue.head(lane)) is not None
        ]
        return min(heads, key=lambda task: task.priority, default=None)

    def let_one_source_through(self) -> None:
        """Rule 7: with nothing in flight, nothing would ever free the memory that sources wait for."""
        heads = [
            (task.priority, number, lane, task)
            for number, lane in enumerate(sorted(self.queue.lanes()))
            if self.pool(lane) and (task := self.queue.head(lane)) is not None
        ]
        for _, _, lane, task in sorted(heads, key=lambda head: head[:2]):
            pool = [name for name in self.pool(lane) if self.load[name] < self.workers[name].nthreads]
            if pool:
                self.bind(task, pool[0])
                return
