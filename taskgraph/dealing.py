"""Jobs as the plugin deals them out: which like slots are exchanged, and in which order they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from taskgraph.job import Job, Jobs
from taskgraph.upward import resolve


def relocated(jobs: list[Job]) -> list[Job]:
    """The jobs with like slots exchanged, as the plugin does, so that tiles run where their operands lie."""
    loads: dict[str, Counter[tuple[str, str]]] = {}
    users, tiles = [0] * len(jobs), []
    for number, job in enumerate(jobs):
        for need, _ in job.needs:
            users[need] += 1
        if job.product and job.slot is not None:
            loads.setdefault(job.slot, Counter())[job.slot if job.pinned else "", job.product] += 1
            tiles.append(number)
    if len(loads) < 2:
        return jobs
    held: dict[str, dict[str, float]] = {slot: {} for slot in loads}
    seen: set[tuple[str, int]] = set()
    for number in tiles:
        slot = jobs[number].slot or ""
        for need, _ in jobs[number].needs:
            if (slot, need) not in seen:
                seen.add((slot, need))
                for home, nbytes in _holders(jobs, need, users).items():
                    held[slot][home] = held[slot].get(home, 0.0) + nbytes
    places = resolve("exchange")({slot: frozenset(load.items()) for slot, load in loads.items()}, held)
    return [
        replace(job, slot=places[job.slot])
        if job.slot in places and not job.pinned and places[job.slot] != job.slot
        else job
        for job in jobs
    ]


def _holders(jobs: Sequence[Job], number: int, users: Sequence[int]) -> dict[str, float]:
    """Bytes of a block on the workers where it lies; of a part of one, its share of that."""
    job = jobs[number]
    if job.home is not None:
        return {job.home: float(job.nbytes)}
    if not job.stays:
        return {}
    ((block, nbytes),) = job.needs
    return {jobs[block].home or "": nbytes / users[block]} if jobs[block].home else {}


def depth_first(jobs: Jobs) -> list[int]:
    """The place of every job in a depth-first walk from the results: small goes first."""
    order = [-1] * len(jobs.items)
    count = 0
    stack = jobs.results[::-1]
    while stack:
        number = stack[-1]
        if order[number] >= 0:
            stack.pop()
            continue
        missing = [n for n, _ in jobs.items[number].needs if order[n] < 0]
        if missing:
            stack.extend(reversed(missing))
        else:
            order[number] = count
            count += 1
            stack.pop()
    return order
