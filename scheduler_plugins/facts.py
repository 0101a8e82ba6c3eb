"""What the placement asks of the scheduler: durations, operands and the load of workers, as plain data."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler_plugins.placement import (
    PREFETCH_PER_THREAD,
    ROUND_TRIP_S,
    WorkerView,
    has_room,
    places,
)
from taskgraph.plan import TAG

#: Groups whose durations are remembered. Chosen: far more than are computed at once.
GROUPS_KEPT = 1024

#: Dask's estimate goes by the first word of a key, so small products would speak for large ones, and a worker
#: would be given dozens of long tiles. Until a task of the very group has ended, it is trusted no further than
#: four in flight on a one-thread worker.
GUESS_AT_LEAST_S = ROUND_TRIP_S / 3

#: Tasks between a kept block and a tile that are looked through. Chosen: a cut, a join, some work on every element.
HOPS = 8


class SchedulerFacts:
    """`placement.Facts`, read from a live scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._durations: OrderedDict[str, dict[str, float]] = OrderedDict()  # group -> worker -> seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second between workers, as Dask has measured them."""
        return max(float(self.scheduler.bandwidth), 1.0)

    def observe(self, group: Any, worker: str, startstops: Sequence[Mapping[str, Any]]) -> None:
        """Learn from a task that has ended on a worker. `startstops`: what the worker reports of it."""
        seconds = sum(part["stop"] - part["start"] for part in startstops if part["action"] == "compute")
        of_group = self._durations.setdefault(group.name, {})
        of_group[worker] = (of_group.get(worker, seconds) + seconds) / 2
        if len(self._durations) > GROUPS_KEPT:
            self._durations.popitem(last=False)

    def duration_s(self, key: Any) -> float:
        """Running average over tasks of the same group on the worker that took longest, or else an estimate from Dask's
        for the prefix. (An average over all workers would fill a slow one with the tiles of a fast one.)"""
        return self._group_s(self.scheduler.tasks[key].group)

    def duration_on(self, key: Any, worker: str) -> float:
        """The same on one worker; of a worker that has ended none of the group, the average of those that have."""
        group = self.scheduler.tasks[key].group
        known = self._durations.get(group.name)
        if not known:
            return self._group_s(group)
        return known.get(self._address(worker), sum(known.values()) / len(known))

    def is_known(self, key: Any) -> bool:
        """Whether a task of the same group has ended, so that its duration is no guess."""
        return bool(self._durations.get(self.scheduler.tasks[key].group.name))

    def _address(self, worker: str) -> str:
        aliases: Mapping[str, str] = self.scheduler.aliases
        return aliases.get(worker, worker)

    def _group_s(self, group: Any) -> float:
        known = self._durations.get(group.name)
        if known:
            return max(known.values())
        guess = float(group.prefix.duration_average)
        return max(guess, GUESS_AT_LEAST_S) if guess >= 0 else float(self.scheduler.UNKNOWN_TASK_DURATION)

    def held_bytes(self, key: Any) -> Mapping[str, int]:
        """Bytes of the task's dependencies on each worker, by worker name."""
        held: Counter[str] = Counter()
        for dependency in self.scheduler.tasks[key].dependencies:
            for worker in dependency.who_has or ():
                held[str(worker.name)] += dependency.get_nbytes()
        return held

    def view(self, ws: Any, kind: str) -> WorkerView | None:
        """A worker as a candidate; None if no task would find a place there, the usual case."""
        there = len(ws.processing) - len(ws.long_running)
        if there >= 2 * ws.nthreads * (1 + PREFETCH_PER_THREAD):
            return None
        parts = sum(is_part(ts) for ts in ws.processing)
        in_flight = there - parts
        groups = {ts.group for ts in ws.processing if not is_part(ts)}
        slowest_s = max((self._group_s(group) for group in groups), default=0.0)
        if in_flight >= places(ws.nthreads, slowest_s):
            return None
        room = has_room(ws.nbytes, ws.memory_limit)
        return WorkerView(str(ws.name), kind, ws.nthreads, in_flight, slowest_s, room, parts)


def is_part(ts: Any) -> bool:
    """Whether a task only takes a part out of a block."""
    return bool(((ts.annotations or {}).get(TAG) or {}).get("stays"))


def held_by_slot(scheduler: Any, tags: Mapping[Any, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For every slot of a graph's tiles, the bytes of their operands on each worker, by worker name.

    What a task between (a block cut from another, or joined) will hold counts as where its own operands are, shared out
    among all who use them.
    """
    known: dict[Any, Mapping[str, float]] = {}

    def holders(ts: Any, hops: int = HOPS) -> Mapping[str, float]:
        if ts.who_has:
            return {str(ws.name): float(ts.get_nbytes()) for ws in ts.who_has}
        if ts.key not in known:
            known[ts.key] = {}  # against a circle, which a graph has not
            here: dict[str, float] = {}
            if hops and "tile" not in tags.get(ts.key, {}):  # a product's tile will be where the plan says
                for d in ts.dependencies:
                    for name, size in holders(d, hops - 1).items():
                        here[name] = here.get(name, 0.0) + size / max(1, len(d.dependents))
            known[ts.key] = here
        return known[ts.key]

    needed: dict[str, dict[Any, Any]] = {}
    for key, tag in tags.items():
        if "tile" in tag and "slot" in tag:
            needed.setdefault(tag["slot"], {}).update((d.key, d) for d in scheduler.tasks[key].dependencies)
    found: dict[str, dict[str, float]] = {}
    for slot, operands in needed.items():
        here = found[slot] = {}
        for d in operands.values():
            for name, size in holders(d).items():
                here[name] = here.get(name, 0.0) + size
    return found
