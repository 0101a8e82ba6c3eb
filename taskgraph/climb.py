"""From a good way to compute a product to better ones: by simulation, a number changed at a time.

Design note. The cost model ranks thousands of cuts, and errs most where blocks are waited for: when a device begins,
and where its next operands take longer to arrive than its last ones to be multiplied. So of what it thinks best, cuts
alike but for one number (tiles more or fewer, longer or shorter chains, another share of the GPUs) are simulated, and
from the best of these again, until that gains no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

from taskgraph.cost import SCHEDULING, Choice

#: Looks closer at some ways to compute one product, each given by what makes a plan of the product alone: says which
#: number is best, and its seconds. The first argument stands for them, so that the answer may be remembered.
Judge = Callable[[Hashable, Sequence[Callable[[], Any]]], tuple[int, float]]

#: Products of less are not climbed for, nor those within so much of the area bound (chosen: what is looked at takes
#: about a second, once).
CLIMBED_S, NEAR_BOUND = 0.04, 1.05
#: A step has to gain so much, looks at so many cuts at the most, and all together at cuts of so many tasks (chosen: a
#: thousand take a quarter of a second).
GAIN, NEIGHBOURS, MOST_TASKS_TRIED = 0.99, 12, 10_000
#: What the cost model thinks so much dearer is not looked at.
TOO_DEAR = 1.25


def climb(
    judge: Judge,
    key: Hashable,
    ways: Sequence[Choice],
    planned: Callable[[Choice], Any],
    area_seconds: float,
    task_seconds: float,
    most_tasks: int,
) -> tuple[Choice, float]:
    """The best of some ways, or what is found from there, and its seconds.

    key: stands for the ways; planned: makes a plan of one; most_tasks: of what may be looked at.
    """
    number, seconds = judge(key, [partial(planned, c) for c in ways])
    best, left = ways[number], MOST_TASKS_TRIED
    for step in itertools.count():
        if seconds < max(CLIMBED_S, NEAR_BOUND * area_seconds):
            break
        near = []
        for c in _near(best, seconds / (SCHEDULING * task_seconds), most_tasks):
            left -= c.tasks
            if left >= 0:
                near.append(c)
        if not near:
            break
        number, found = judge((key, step), [partial(planned, c) for c in near])
        if found > GAIN * seconds:
            break
        best, seconds = near[number], found
    return best, seconds


def _near(best: Choice, handed_out: float, most_tasks: int) -> Iterator[Choice]:
    """Cuts to look at next, the likeliest first. handed_out: tasks that a scheduler can hand out in the time."""
    found = best.near() if best.near is not None else ()
    fit = [
        c
        for c in found
        if c.tasks <= min(most_tasks, handed_out)
        and c.bytes_over <= best.bytes_over
        and c.seconds <= TOO_DEAR * best.seconds
    ]
    yield from sorted(fit, key=lambda c: c.order)[:NEIGHBOURS]
