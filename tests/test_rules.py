"""The page of derivative rules: it is up to date, and what it says is what happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from ops_table import CASES, WITHOUT_CASES

import taskgraph as tg
from autodiff.forward import tangents
from taskgraph.__main__ import main
from taskgraph.primitives import TABLE
from taskgraph.rules import composed, rules, said

PAGE = Path(__file__).parents[1] / "docs" / "derivatives.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == rules(), "docs/derivatives.md is stale: `make docs` writes it anew"
    assert CliRunner().invoke(main, ["rules"]).output == rules()


def test_every_row_stands_on_the_page() -> None:
    page = rules()
    for row in TABLE.values():
        assert f"| `{row.name}` | {row.kind} | {said(row.vjp)} | {said(row.jvp)} |" in page
    assert {"clip", "logsumexp", "std", "stack", "tensordot", "trace", "vector_norm"} <= set(composed())


def derivatives(name: str) -> list[Callable[[], Any]]:
    """Reverse and forward mode through the row of that name, where it comes last; none where no case is so."""
    for case in (c for c in CASES if c.primitive == name):
        t = tg.asarray(0.5)  # the inputs depend on a floating point number that is differentiated
        arrays = case.inputs(np.random.default_rng(0))
        xs = [tg.asarray(a) + (tg.astype(t, a.dtype) if a.dtype.kind in "fc" else 0) for a in arrays]
        y = case.ours(*xs)
        if y.expr.op.name == name:
            y = y if y.dtype.kind == "f" else tg.astype(y, float)
            return [partial(tg.gradients, y, t), lambda y=y, t=t: tangents([y], [t], [tg.asarray(1.0)])[0]]
    return []


def test_what_is_refused_raises_and_names_the_primitive(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, name in enumerate(("vjp", "jvp")):
        monkeypatch.setitem(TABLE["sin"].__dict__, name, None)
        refused = [row.name for row in TABLE.values() if getattr(row, name) is None]
        assert "sin" in refused
        for row in refused:
            for derivative in derivatives(row)[mode : mode + 1]:
                with pytest.raises(NotImplementedError, match=f"'{row}'|complex"):
                    derivative()
    assert "| `sin` | elementwise | refused | refused |" in rules()


def test_what_is_zero_gives_zeros() -> None:
    zero = [row.name for row in TABLE.values() if said(row.vjp) == "zero" and row.name not in WITHOUT_CASES]
    assert {"floor", "argmax", "all", "stop_gradient"} <= set(zero)
    for reverse, forward in filter(None, map(derivatives, zero)):
        moved = forward()
        assert reverse().compute(scheduler="synchronous") == 0.0
        assert moved is None or not moved.compute(scheduler="synchronous").any()


def both_modes(f: Callable[[Any], Any], at: float) -> tuple[float, float]:
    x = tg.asarray(at)
    with np.errstate(all="ignore"):
        reverse, forward = tg.gradients(f(x), x), tg.jvp(f, (x,), (1.0,))[1]
        return float(reverse.compute(scheduler="synchronous")), float(forward.compute(scheduler="synchronous"))


def test_a_branch_that_is_not_taken_makes_nan_unless_its_argument_is_guarded() -> None:
    """In reverse mode its cotangent is 0, and 0 * inf is NaN; forward mode takes the other tangent. As in JAX."""

    def logarithm(x: Any) -> Any:
        return tg.where(x > 0, tg.log(x), 0)

    def root(x: Any) -> Any:
        return tg.where(x > 0, tg.sqrt(x), 0)

    def guarded(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: tg.where(x > 0, f(tg.where(x > 0, x, 1)), 0)

    np.testing.assert_equal(both_modes(logarithm, 0.0), (np.nan, 0.0))
    np.testing.assert_equal(both_modes(root, -1.0), (np.nan, 0.0))
    assert both_modes(logarithm, -1.0) == (0.0, 0.0)  # the value there is NaN, but its derivative 1 / x is finite
    assert both_modes(logarithm, 2.0) == both_modes(guarded(tg.log), 2.0) == (0.5, 0.5)
    for f in (tg.log, tg.sqrt):
        assert both_modes(guarded(f), 0.0) == both_modes(guarded(f), -1.0) == (0.0, 0.0)


def test_derivatives_at_kinks_and_singularities() -> None:
    assert both_modes(tg.abs, 0.0) == (0.0, 0.0)
    assert both_modes(tg.linalg.vector_norm, 0.0) == (0.0, 0.0)
    assert both_modes(tg.sqrt, 0.0) == (np.inf, np.inf)
    assert both_modes(lambda x: tg.clip(x, 0.0, 1.0), 0.0) == (0.5, 0.5)
    assert both_modes(lambda x: tg.minimum(x, x * 1.0), 3.0) == (1.0, 1.0)
    x = tg.asarray([1.0, np.nan, 2.0])
    with np.errstate(all="ignore"):
        assert np.isnan(tg.gradients(tg.max(x), x).compute(scheduler="synchronous")).all()
