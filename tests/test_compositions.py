"""Derivatives of random compositions against those of another implementation: HIPS autograd.

Value, gradients with respect to every input, the derivative in forward mode and, for two of five, second derivatives in
one of both orders.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from compositions import STEPS, Composition, compositions, ours, theirs
from hypothesis import HealthCheck, Phase, given, seed, settings
from reference_table import OPS, Op

import taskgraph as tg
from taskgraph.expr import topological
from taskgraph.primitives import TABLE, no_gradient, no_inputs

#: 1,000 in `make test`; TASKGRAPH_EXAMPLES may ask for more.
EXAMPLES = max(1000, int(os.environ.get("TASKGRAPH_EXAMPLES", "0")))

#: Of the largest number among those compared. Measured over 1,000: 2e-14, and 2e-7 with single precision on the way.
TOLERANCE, WEAK_TOLERANCE = 1e-11, 1e-5

#: Rows that nobody has to compose: markers, whose rules hand on what they get (of `saved` see test_saved.py).
NOT_COMPOSED = {"leaf", "saved"}


def try_compositions(
    run: Callable[[Composition], Any], count: int, ops: Sequence[Op] = OPS, most: int = STEPS, shrink: bool = True
) -> None:
    """Call `run` with `count` compositions, the same ones every time; a failure prints the shortest that fails.

    By tens: behind its first ten examples, Hypothesis makes most of them from earlier ones.
    """

    def example(c: Composition) -> None:
        run(c)

    for part in range(count // 10):
        wanted = settings(
            max_examples=10,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
            suppress_health_check=list(HealthCheck),
        )
        wanted(seed(part)(given(compositions(ops, most, turn=7 * part))(example)))()


def check(c: Composition) -> list[tg.Tensor]:
    """Compare; gives the tensors that were computed, in one call."""
    expected, graph = theirs(c), ours(c)
    pairs = [
        ("value", [graph.value], [expected.value]),
        ("gradient", graph.gradients, expected.gradients),
        ("derivative in forward mode", [graph.tangent], [expected.tangent]),
        (f"second derivative, {c.order}", graph.second, expected.second),
    ]
    tensors = [t for _, found, _ in pairs for t in found]
    with np.errstate(all="ignore"):  # a branch that is not taken may be anything
        values = iter(tg.compute(*tensors, scheduler="synchronous"))
    for what, found, wanted in pairs:
        compare(what, [next(values) for _ in found], wanted, WEAK_TOLERANCE if c.weak else TOLERANCE)
    return tensors


def compare(what: str, found: Any, wanted: Any, tolerance: float) -> None:
    scale = max(1.0, *[float(np.max(np.abs(w), initial=0.0)) for w in wanted]) if len(wanted) else 1.0
    for n, (f, w) in enumerate(zip(found, wanted, strict=True)):
        assert (np.shape(f), np.asarray(f).dtype) == (np.shape(w), np.float64), (what, n)
        np.testing.assert_allclose(f, w, rtol=0, atol=tolerance * scale, err_msg=f"{what} {n}")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_one_operation(op: Op) -> None:
    """Each alone, so that a wrong rule is named at once."""
    tried: Counter[str] = Counter()

    def run(c: Composition) -> None:
        check(c)
        tried.update([s.op.name for s in c.steps])

    try_compositions(run, 10, [op], 1)
    assert tried[op.name] >= 4


@pytest.mark.timeout(60 + EXAMPLES)
def test_compositions(capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    times: Counter[str] = Counter({op.name: 0 for op in OPS})
    rows: set[str] = set()

    def run(c: Composition) -> None:
        tensors = check(c)
        rows.update(n.op.name for n in topological([t.expr for t in tensors]))
        times.update(s.op.name for s in c.steps)
        total.update(["examples", c.order])
        total["operations"] += len(c.steps)
        total[f"of {STEPS} operations"] += len(c.steps) == STEPS
        total["in several blocks"] += any(t.expr.chunks != tuple((s,) for s in t.shape) for t in tensors)

    before = time.monotonic()
    try_compositions(run, EXAMPLES)
    least = times.most_common()[-1]
    with capsys.disabled():
        print(f"\n  compositions: {dict(total)}, least {least}, {time.monotonic() - before:.0f} s")
    # What was meant to be tried has been tried.
    assert total["examples"] >= EXAMPLES
    assert total["operations"] >= 4 * EXAMPLES
    for name in (f"of {STEPS} operations", "in several blocks", "forward over reverse", "reverse over reverse"):
        assert total[name] >= EXAMPLES / 25, (name, total)
    assert least[1] >= EXAMPLES / 100, least
    ruled = {row.name for row in TABLE.values() if row.vjp not in (None, no_gradient, no_inputs)}
    missing = ruled - rows - NOT_COMPOSED
    assert not missing, f"no line of tests/reference_table.py reaches these rows that have rules: {sorted(missing)}"


def _forgets_to_turn_back(ct: Any, out: Any, x: Any, axis: int) -> tuple[Any]:
    return (tg.cumulative_sum(ct, axis=axis),)


@pytest.mark.parametrize(
    ("row", "rule", "wrong"),
    [
        ("cumulative_prod", "vjp", lambda ct, out, x, axis: (tg.cumulative_sum(ct * out, axis=axis) / x,)),
        ("cumulative_prod", "jvp", lambda ts, out, x, axis: ts[0] * out / x),
        ("cumulative_sum", "vjp", _forgets_to_turn_back),
        ("solve", "vjp", lambda ct, out, a, b: (-(ct @ tg.matrix_transpose(out)), tg.linalg.solve(a, ct))),
        ("tanh", "jvp", lambda ts, out, x: ts[0] * (1 - out)),
    ],
)
def test_a_wrong_rule_is_found(row: str, rule: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE[row].__dict__, rule, wrong)
    few = [op for op in OPS if op.name in (row, "sin", "where", "matmul", "getitem")]
    with pytest.raises(AssertionError, match=r"gradient|derivative"):
        try_compositions(check, 200, few, shrink=False)
