"""Plans on trial: of some ways to compute a product, the one that is done first in simulation.

The cost model (cost.py) counts what each worker has to do; the simulation knows besides in which order blocks arrive,
and who waits for whom. It takes longer, so it is asked about few ways of a product, and its answers are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from taskgraph.plan import Plan
from taskgraph.simulate import seconds_at_least

#: Answers that are remembered (chosen: more products than a graph has).
ANSWERS_KEPT = 1024

#: One that moves so many times fewer bytes is preferred, if it takes so many times as long at the most (chosen: less
#: than real runs vary by, for bytes that somebody else may want to move meanwhile).
FEWER_BYTES, AS_SOON = 1.2, 1.01

_answers: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()


def soonest(key: Hashable, ways: Sequence[Callable[[], Plan]]) -> tuple[int, float]:
    """The number of the way that is done first, and its seconds; a judge for `taskgraph.plan.plan`."""
    known = _answers.get(key)
    if known is None:
        known = _answers[key] = _soonest([_tried(way()) for way in ways])
        if len(_answers) > ANSWERS_KEPT:
            _answers.popitem(last=False)
    return known


def _tried(plan: Plan) -> tuple[float, float]:
    """Seconds of a plan, and the bytes that it moves."""
    return seconds_at_least(plan), plan.bytes_moved


def _soonest(tried: Sequence[tuple[float, float]]) -> tuple[int, float]:
    """The number of the best, and its seconds.

    >>> _soonest([(2.0, 10.0), (1.0, 90.0), (1.005, 20.0)])
    (2, 1.005)
    """
    first = min(range(len(tried)), key=lambda n: tried[n])
    seconds, moved = tried[first]
    frugal = [n for n, (s, b) in enumerate(tried) if s <= AS_SOON * seconds and FEWER_BYTES * b <= moved]
    best = min(frugal, key=lambda n: tried[n]) if frugal else first
    return best, tried[best][0]
