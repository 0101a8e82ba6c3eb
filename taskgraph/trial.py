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

_answers: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()


def soonest(key: Hashable, ways: Sequence[Callable[[], Plan]]) -> tuple[int, float]:
    """The number of the way that is done first, and its seconds; a judge for `taskgraph.plan.plan`."""
    known = _answers.get(key)
    if known is None:
        seconds = [seconds_at_least(way()) for way in ways]
        best = min(range(len(ways)), key=lambda n: seconds[n])
        known = _answers[key] = best, seconds[best]
        if len(_answers) > ANSWERS_KEPT:
            _answers.popitem(last=False)
    return known
