"""Plans on trial: of some ways to compute a product, the one that is done first in simulation.

The cost model (cost.py) counts what each worker has to do; the simulation knows besides in which order blocks arrive,
and who waits for whom. It takes longer, so it is asked about few ways of a product, and its answers are remembered.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from taskgraph.plan import Plan
from taskgraph.simulate import tried

#: Answers that are remembered (chosen: more products than a graph has).
ANSWERS_KEPT = 1024

#: Which of two is done first is not known where their seconds differ by less than this, while their bytes are exact
#: (chosen: predictions should be, and mostly are, within 20% of real runs; this is a quarter of that).
AS_SOON = 1.05
#: Of such, to move a share fewer bytes is worth so much of that share of the seconds (chosen: few bytes less make
#: nothing slower; a fifth less, which is what lies between grids of two and of three axes, may take 4%).
WORTH = 0.2

_answers: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()


def soonest(key: Hashable, ways: Sequence[Callable[[], Plan]]) -> tuple[int, float]:
    """The number of the way that is done first, and its seconds; a judge for `taskgraph.plan.plan`."""
    known = _answers.get(key)
    if known is None:
        known = _answers[key] = _soonest([tried(way()) for way in ways])
        if len(_answers) > ANSWERS_KEPT:
            _answers.popitem(last=False)
    return known


def _soonest(found: Sequence[tuple[float, float]]) -> tuple[int, float]:
    """The number of the best, and its seconds. found: seconds and bytes of each.

    >>> _soonest([(2.0, 10.0), (1.0, 90.0), (1.005, 20.0)])
    (2, 1.005)
    >>> _soonest([(1.0, 90.0), (1.03, 85.0), (1.03, 75.0), (1.06, 10.0)])
    (2, 1.03)
    """
    least = AS_SOON * min(seconds for seconds, _ in found)
    close = [n for n, (seconds, _) in enumerate(found) if seconds <= least]
    best = min(close, key=lambda n: (math.log(found[n][0]) + WORTH * math.log(1 + found[n][1]), found[n]))
    return best, found[best][0]
