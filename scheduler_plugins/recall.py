"""Which task that was sent ahead is taken back for a worker that will be done with it earlier.

A long tile's successor is sent to a worker while the tile still runs, so that its operands arrive meanwhile
(`placement.places`). Where that worker turns slow, the successor is stuck behind it while others run out of work. Then
it is moved, by the request that Dask's own work stealing makes: the worker gives up what it has not begun, and nothing
else. `choose` decides, on data; `Recalls` reads the scheduler and asks.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from scheduler_plugins.facts import SchedulerFacts
from scheduler_plugins.placement import ROUND_TRIP_S, Binding, Key
from taskgraph.plan import TaskTag

#: Shorter tasks are left where they are. Derived: asking and sending take about two round trips, and the estimate of
#: what is left of a task is no better than some tenths of it.
LONG_S = 10 * ROUND_TRIP_S

#: How many times over a task's seconds count away from the worker where it was planned, with those in which operands
#: come: a tile's, a sum's, those of a source whose tile is there. Chosen: what waits behind a task that has just begun
#: waits for one and takes another one; if that is overdue by a quarter, as all are now and then where processes share
#: cores, together two and a half. So it is taken from a worker that is slow itself, and stays where it was planned if
#: others are late, too (seen on four workers that share two cores: in two of three runs a tile was taken).
PLANNED_WEIGHT = 2.5

_PINNED = TaskTag(kind="", pinned=True)


@dataclass(frozen=True, slots=True)
class Ahead:
    """A task that waits on a worker behind others.

    waits_s: until it will begin there. there_s: what it will take there.
    """

    key: Key
    worker: str
    kind: str
    waits_s: float
    there_s: float


@dataclass(frozen=True, slots=True)
class Free:
    """A worker to which nothing was sent ahead. waits_s: until one of its threads is free, 0 where one is."""

    worker: str
    kind: str
    waits_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """A decision: this task, which waits on one worker, to another."""

    key: Key
    worker: str
    to: str


def left_s(expected_s: float, elapsed_s: float) -> float:
    """What is left of a task that has run for so long. One that is overdue may be anywhere; it is taken to be in its
    middle, so that the longer it is overdue, the less it is trusted.

    >>> left_s(10.0, 4.0), left_s(10.0, 15.0)
    (6.0, 15.0)
    """
    return expected_s - elapsed_s if elapsed_s <= expected_s else elapsed_s


def choose(ahead: Sequence[Ahead], free: Sequence[Free], takes_s: Callable[[Key, str], float]) -> list[Move]:
    """For each worker, those that are free first before others, the task that would end last where it waits, if it ends
    earlier here.

    takes_s: seconds that a task takes on a worker, with the time to move what is missing there.
    """
    moves: list[Move] = []
    waiting = sorted(ahead, key=lambda a: -(a.waits_s + a.there_s))
    for thief in sorted(free, key=lambda f: (f.waits_s, f.worker)):
        for task in waiting:
            here_s = thief.waits_s + takes_s(task.key, thief.worker)
            if task.kind == thief.kind and here_s + 2 * ROUND_TRIP_S < task.waits_s + task.there_s:
                moves.append(Move(task.key, task.worker, thief.worker))
                waiting.remove(task)
                break
    return moves


class Waiting(Counter[str]):
    """How many tasks of ours wait for their inputs, by slot ("" for those without one), and which tiles are among them.

    >>> waiting = Waiting()
    >>> tile = TaskTag(kind="cpu", slot="cpu-0", product="matmul-1", tile=(0, 0, 0))
    >>> waiting.add(tile, 1)
    >>> waiting.weight(tile, "cpu-0"), waiting.weight({**tile, "product": "matmul-2"}, "cpu-0")
    (inf, 2.5)
    """

    def __init__(self, *counts: Mapping[str, int]) -> None:  # what it is unpickled with
        super().__init__(*counts)
        self.tiles: Counter[tuple[str, str]] = Counter()  # (slot, product)

    def add(self, tag: TaskTag, count: int) -> None:
        """A task has begun (1) or ceased (-1) to wait."""
        slot = tag.get("slot") or ""
        self[slot] += count
        if "tile" in tag:
            place = slot, tag.get("product", "")
            self.tiles[place] += count
            if not self.tiles[place]:
                del self.tiles[place]  # products come and go

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self.tiles.clear()

    def weight(self, tag: TaskTag, worker: str) -> float:
        """How many times over a task's seconds count on a worker that would take it from another.

        Never for what takes a part of a block, which would move all of it. Never for a tile where others of that
        product, its own, are to come: for the time that it would save now, it would give one away later, with the
        operands of both (measured: four workers exchanged their tiles in a circle, which doubled the bytes). Nor then
        for a source that was put near a tile, which waits for it where it is.
        """
        if tag.get("stays"):
            return math.inf
        if "near" in tag:
            return math.inf if self[worker] > 0 else PLANNED_WEIGHT
        if "tile" in tag and self.tiles[worker, tag.get("product", "")] > 0:
            return math.inf
        return PLANNED_WEIGHT if "slot" in tag else 1.0


class Recalls:
    """The adapter: when tasks began, as far as the scheduler can tell, and the requests to move them."""

    def __init__(self, scheduler: Any, facts: SchedulerFacts, clock: Callable[[], float] = monotonic) -> None:
        self.scheduler, self.facts, self.clock = scheduler, facts, clock
        self.asked = 0
        #: address -> when each of its running tasks began, oldest first
        self._began: dict[str, deque[float]] = {}
        #: address -> the task that was sent there last
        self._sent: dict[str, Key] = {}

    def bound(self, bindings: Iterable[Binding], addresses: Mapping[str, str]) -> None:
        """These tasks were sent to their workers: they begin at once where a thread is free."""
        sent: dict[str, list[Key]] = {}
        for binding in bindings:
            sent.setdefault(addresses[binding.worker], []).append(binding.task.key)
        for address, keys in sent.items():
            ws = self.scheduler.workers[address]
            before = len(ws.processing) - len(ws.long_running) - len(keys)
            for _ in range(min(len(keys), ws.nthreads - before)):
                self._begins(ws)
            self._sent[address] = keys[-1]

    def ended(self, ws: Any) -> bool:
        """A task of a worker has ended, so the next one begins; whether there may be something to take back now."""
        if len(ws.processing) - len(ws.long_running) >= ws.nthreads:
            self._begins(ws)
        return self._has_room(ws)

    def _begins(self, ws: Any) -> None:
        self._began.setdefault(ws.address, deque(maxlen=ws.nthreads)).append(self.clock())

    def forget(self, address: str) -> None:
        """The worker is gone."""
        self._began.pop(address, None)
        self._sent.pop(address, None)

    def ask(self, kinds: Mapping[str, str], tags: Mapping[Any, TaskTag], waiting: Waiting) -> None:
        """Request the moves that are worth it. kinds: of every worker by name. tags: of our tasks; others, and those
        that are pinned, stay. waiting: those of them whose inputs do not exist yet."""
        stealing = self.scheduler.extensions.get("stealing")
        if stealing is None:  # switched off by Dask's own setting
            return
        taking = {info["thief"] for info in stealing.in_flight.values()}
        running = {str(ws.name): ws for ws in self.scheduler.running if str(ws.name) in kinds}
        free = [self._free(ws, kinds[name]) for name, ws in running.items() if self._has_room(ws) and ws not in taking]
        if not free:
            return
        ahead = [a for name, ws in running.items() if (a := self._ahead(ws, kinds[name], tags)) is not None]

        def takes_s(key: Key, worker: str) -> float:
            return self._takes_s(key, worker) * waiting.weight(tags[key], worker)

        for move in choose(ahead, free, takes_s):
            self.asked += 1
            stealing.move_task_request(self.scheduler.tasks[move.key], running[move.worker], running[move.to])

    def _has_room(self, ws: Any) -> bool:
        return len(ws.processing) - len(ws.long_running) <= int(ws.nthreads)

    def _free(self, ws: Any, kind: str) -> Free:
        name, began = str(ws.name), self._began.get(ws.address)
        if len(ws.processing) - len(ws.long_running) < ws.nthreads or not began:
            return Free(name, kind)
        expected_s = max(self.facts.duration_on(ts.key, name) for ts in ws.processing)
        return Free(name, kind, left_s(expected_s, self.clock() - began[0]))

    def _ahead(self, ws: Any, kind: str, tags: Mapping[Any, TaskTag]) -> Ahead | None:
        """The task that was sent last to a worker where all threads are busy."""
        if self._has_room(ws):
            return None
        ts, began = self.scheduler.tasks.get(self._sent.get(ws.address)), self._began.get(ws.address)
        if ts not in ws.processing or not began:
            return None
        tag = tags.get(ts.key, _PINNED)
        is_planned = "slot" in tag or "near" in tag
        if tag.get("pinned") or (is_planned and not self.facts.is_known(ts.key)):  # a guess moves nothing
            return None
        there_s = self.facts.duration_on(ts.key, str(ws.name))
        if there_s < LONG_S:
            return None
        elapsed_s = self.clock() - began[0]
        return Ahead(ts.key, str(ws.name), kind, left_s(there_s, elapsed_s), max(there_s, elapsed_s))

    def _takes_s(self, key: Key, name: str) -> float:
        held = self.facts.held_bytes(key)
        missing = max(held.values(), default=0) - held.get(name, 0)
        return missing / self.facts.bandwidth + self.facts.duration_on(key, name)
