"""Like slots exchanged, so that tiles run where their operands lie: data in, decisions out.

The plan knows how much every worker is to do, not which blocks it holds; the scheduler does. Workers that the plan gave
the same work, in every product of a graph, may stand for each other: neither seconds nor balance change, only what has
to be moved. One exchange holds for the whole graph, so that products which follow each other still meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any


def exchange(loads: Mapping[str, Hashable], held: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Which worker stands for every slot: a permutation among slots of equal load.

    loads: what the plan gave each slot. held: for each slot, the bytes of its tiles' operands on each worker.

    The pair with most bytes goes first; whatever is not helped stays where the plan put it, and so does all of a group
    where that would hold no more.

    >>> exchange({"a": 2, "b": 2, "c": 5}, {"a": {"b": 100, "c": 300}, "b": {"b": 10}})
    {'a': 'b', 'b': 'a', 'c': 'c'}
    """
    groups: dict[Hashable, list[str]] = {}
    for slot in sorted(loads):
        groups.setdefault(loads[slot], []).append(slot)
    found = {slot: slot for slot in sorted(loads)}
    for group in groups.values():
        pairs = _greedy(group, held)
        if _bytes(pairs, held) > _bytes({slot: slot for slot in group}, held):
            found.update(pairs)
    return found


def relocated(tags: Mapping[Any, Any], held: Mapping[str, Mapping[str, float]]) -> dict[Any, Any]:
    """A graph's tags (`taskgraph.plan.TaskTag`) with like slots exchanged; what the user pinned stays.

    held: for each slot, the bytes of its tiles' operands on each worker.
    """
    if not any(held.values()):
        return dict(tags)
    loads: dict[str, Counter[Hashable]] = {}
    for tag in tags.values():
        if "slot" in tag and "tile" in tag:
            work = (tag["kind"], tag.get("product"))
            loads.setdefault(tag["slot"], Counter())[(tag["slot"] if tag.get("pinned") else "", *work)] += 1
    places = exchange({slot: frozenset(load.items()) for slot, load in loads.items()}, held)

    def moved(tag: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**tag, **{word: places.get(tag[word], tag[word]) for word in ("slot", "near") if word in tag}}

    return {key: tag if tag.get("pinned") else moved(tag) for key, tag in tags.items()}


def _greedy(group: list[str], held: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    members = set(group)
    wishes = sorted(
        (-size, slot, worker)
        for slot in group
        for worker, size in held.get(slot, {}).items()
        if worker in members and size > 0
    )
    taken: dict[str, str] = {}
    free = set(group)
    for _, slot, worker in wishes:
        if slot not in taken and worker in free:
            taken[slot] = worker
            free.discard(worker)
    for slot in group:  # who wished nothing, or in vain: its own place, if nobody else has it
        if slot not in taken and slot in free:
            taken[slot] = slot
            free.discard(slot)
    left = iter(sorted(free))
    return {slot: taken.get(slot) or next(left) for slot in group}


def _bytes(pairs: Mapping[str, str], held: Mapping[str, Mapping[str, float]]) -> float:
    return sum(held.get(slot, {}).get(worker, 0) for slot, worker in pairs.items())
