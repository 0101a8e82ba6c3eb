"""Every row of the table: values, types and blocks against NumPy, both derivative rules against differences."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from ops_table import CASES, WITHOUT_CASES, Case

import taskgraph as tg
from autodiff.forward import tangents
from taskgraph.primitives import TABLE, no_gradient

CHUNKINGS = ("one block", 3, 2)


def seeded(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def tensors(arrays: list[np.ndarray], chunks: object) -> list[tg.Tensor]:
    return [tg.asarray(a, chunks="auto" if chunks == "one block" else chunks) for a in arrays]


@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(case: Case, chunks: object) -> None:
    arrays = case.inputs(seeded(case))
    expected = np.asarray(case.numpys(*arrays))
    t = case.ours(*tensors(arrays, chunks))
    found = np.asarray(t.compute(scheduler="synchronous"))
    assert (t.shape, t.dtype) == (expected.shape, expected.dtype)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert case.primitive in {n.op.name for n in tg.expr.topological([t.expr])}


def test_every_row_has_a_case() -> None:
    assert {c.primitive for c in CASES} | WITHOUT_CASES >= set(TABLE)


SMOOTH = [c for c in CASES if c.smooth]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_forward_rule_against_differences(case: Case) -> None:
    rng = seeded(case)
    arrays = case.inputs(rng)
    moves = [rng.standard_normal(a.shape) if a.dtype.kind == "f" else None for a in arrays]
    xs = tensors(arrays, 3)
    moving = [(x, tg.asarray(d, chunks=3)) for x, d in zip(xs, moves, strict=True) if d is not None]
    t = tangents([case.ours(*xs)], [x for x, _ in moving], [d for _, d in moving])[0]
    h = 1e-6

    def at(step: float) -> np.ndarray:
        return case.numpys(*[a if d is None else a + step * d for a, d in zip(arrays, moves, strict=True)])

    after, before = at(h), at(-h)
    expected = np.zeros(after.shape) if after.dtype.kind != "f" else (after - before) / (2 * h)
    found = np.zeros_like(expected) if t is None else t.compute(scheduler="synchronous")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_reverse_rule_is_the_transpose_of_the_forward_rule(case: Case) -> None:
    """<ct, J dx> = <J' ct, dx>: the adjoint identity, at any ct and dx."""
    rng = seeded(case)
    arrays = case.inputs(rng)
    xs = tensors(arrays, 3)
    y = case.ours(*xs)
    if y.dtype.kind != "f":
        return
    moving = [x for x in xs if x.dtype.kind == "f"]
    dxs = [tg.asarray(rng.standard_normal(x.shape), chunks=3) for x in moving]
    ct = tg.asarray(rng.standard_normal(y.shape), chunks=3)
    dy = tangents([y], moving, dxs)[0]
    back = tg.gradients(y, moving, [ct])
    assert [(g.shape, g.dtype) for g in back] == [(x.shape, x.dtype) for x in moving]
    left = 0.0 if dy is None else tg.sum(ct * dy)
    right = sum(tg.sum(g * dx) for g, dx in zip(back, dxs, strict=True))
    lv, rv = (float(np.asarray(tg.asarray(v).compute(scheduler="synchronous"))) for v in (left, right))
    np.testing.assert_allclose(lv, rv, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in SMOOTH if max(map(len, c.shapes)) == 2], ids=str)
def test_second_order(case: Case) -> None:
    """The gradient of a directional derivative against differences of the gradient."""
    rng = seeded(case)
    arrays = case.inputs(rng)
    floats = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    weights = rng.standard_normal(np.shape(case.numpys(*arrays)))
    moves = [rng.standard_normal(arrays[i].shape) for i in floats]

    def first(values: list[np.ndarray]) -> tuple[list[tg.Tensor], list[tg.Tensor]]:
        xs = tensors(values, 3)
        y = case.ours(*xs)
        weighted = tg.sum(tg.asarray(weights) * y) if y.dtype.kind == "f" else tg.sum(xs[floats[0]] * 0)
        return [xs[i] for i in floats], tg.gradients(weighted, [xs[i] for i in floats])

    xs, grads = first(arrays)
    along = sum(tg.sum(g * tg.asarray(d)) for g, d in zip(grads, moves, strict=True))
    found = [g.compute(scheduler="synchronous") for g in tg.gradients(along, xs)]
    h = 1e-5

    def moved(step: float) -> list[np.ndarray]:
        values = list(arrays)
        for i, d in zip(floats, moves, strict=True):
            values[i] = arrays[i] + step * d
        return [np.asarray(g.compute(scheduler="synchronous")) for g in first(values)[1]]

    for f, plus, minus in zip(found, moved(h), moved(-h), strict=True):
        np.testing.assert_allclose(f, (plus - minus) / (2 * h), rtol=1e-4, atol=1e-4)


def test_the_checks_reject_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in SMOOTH if c.primitive == "sin")
    monkeypatch.setitem(TABLE["sin"].__dict__, "jvp", lambda ts, out, x: ts[0] * tg.sin(x))
    with pytest.raises(AssertionError):
        test_forward_rule_against_differences(case)
    with pytest.raises(AssertionError):
        test_reverse_rule_is_the_transpose_of_the_forward_rule(case)


def test_every_row_has_both_rules_or_says_why_not() -> None:
    exempt = {"real", "imag"}  # complex numbers, which the passes refuse
    for row in TABLE.values():
        if row.kind == "source" or row.name in exempt | {"dask", "part"}:
            continue
        assert row.vjp is not None, row.name
        assert row.jvp is not None, row.name
        assert (row.vjp is no_gradient) == (row.jvp is no_gradient), row.name


def test_ties_and_zeros() -> None:
    x = tg.asarray([1.0, 3.0, 3.0])
    np.testing.assert_array_equal(tg.gradients(tg.max(x), x).compute(), [0, 0.5, 0.5])
    np.testing.assert_array_equal(tg.gradients(tg.maximum(x, 3.0), x).compute(), [0, 0.5, 0.5])
    z = tg.asarray([0.0, 2.0, 3.0])
    np.testing.assert_array_equal(tg.gradients(tg.prod(z), z).compute(), [6, 0, 0])
    zz = tg.asarray([0.0, 0.0, 3.0])
    np.testing.assert_array_equal(tg.gradients(tg.prod(zz), zz).compute(), [0, 0, 0])
    p = tg.asarray([0.0, 1.0])
    np.testing.assert_array_equal(tg.gradients(p**3.0, p).compute(), [0, 3])
    np.testing.assert_array_equal(tg.gradients(tg.pow(p, tg.zeros(2)), p).compute(), [0, 0])
