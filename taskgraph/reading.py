"""Which operands of a product its tasks read themselves: each way is solved, the cheapest that fits is taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from taskgraph.cost import Choice, Evaluation
from taskgraph.expr import Expr
from taskgraph.grids import ranked
from taskgraph.problem import PIECE_BYTES, PIECE_SHARE, Problem, reading_rate
from taskgraph.slots import MEMORY_SHARE, Setting, Unit


def best_reading(
    node: Expr, p: Problem, groups: Sequence[Sequence[Unit]], setting: Setting, often: Sequence[bool]
) -> tuple[Problem, tuple[Choice, ...]]:
    """The problem with the operands that tasks are to read themselves, and its cheapest cuts, the best first. Sources
    that are made once must fit into the memory of those who need them, beside the results."""
    # random numbers that others need, too, are made once: see layout.relayout
    rates = [0.0 if o and x.op.name == "random" else reading_rate(x) for x, o in zip(node.inputs, often, strict=True)]
    to_make = [0.0 if o else rate for rate, o in zip(rates, often, strict=True)]
    room = max(MEMORY_SHARE * u.memory / u.threads for units in groups for u in units)
    piece = min(PIECE_BYTES, max(1, int(PIECE_SHARE * room)))
    found = []
    for a_read, b_read in itertools.product(*[dict.fromkeys((0.0, rate)) for rate in rates]):
        q = replace(p, a_read=a_read, b_read=b_read, piece_bytes=piece)
        choices = ranked(q, tuple(map(tuple, groups)), setting)
        if choices[0].bytes_over:
            choices = ranked(q, tuple(tuple(_roomy(units)) for units in groups), setting)
        choice = choices[0]
        seen = Evaluation(q, choice.cut, choice.slots, setting)
        crowds = [a_read, b_read] != rates and not seen.fits_at_rest()
        seconds = choice.seconds + seen.making(to_make)
        found.append(((choice.bytes_over, crowds, seconds), q, choices))
    _, q, choices = min(found, key=lambda f: f[0])
    return q, choices


def _roomy(units: Sequence[Unit]) -> list[Unit]:
    """Those with most memory for a task, of each class."""
    most = {kind: max(u.memory / u.threads for u in units if u.kind == kind) for kind in {u.kind for u in units}}
    return [u for u in units if u.memory / u.threads == most[u.kind]]
