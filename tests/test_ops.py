"""Every row of the table: values, types and blocks against NumPy, both derivative rules against differences."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from ops_table import CASES, EDGES, WITHOUT_CASES, Case, complexes

import taskgraph as tg
from autodiff.forward import tangents
from taskgraph.primitives import TABLE, no_gradient, no_inputs

CHUNKINGS = ("one block", 3, 2)


def seeded(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def tensors(arrays: list[np.ndarray], chunks: object) -> list[tg.Tensor]:
    return [tg.asarray(a, chunks="auto" if chunks == "one block" else chunks) for a in arrays]


def drawn_like(x: Any, rng: np.random.Generator) -> np.ndarray:
    return complexes(rng, x.shape) if x.dtype.kind == "c" else np.asarray(rng.standard_normal(x.shape))


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
    moves = [drawn_like(a, rng) if a.dtype.kind in "fc" else None for a in arrays]
    xs = tensors(arrays, 3)
    moving = [(x, tg.asarray(d, chunks=3)) for x, d in zip(xs, moves, strict=True) if d is not None]
    t = tangents([case.ours(*xs)], [x for x, _ in moving], [d for _, d in moving])[0]
    h = 1e-6

    def at(step: float) -> np.ndarray:
        return case.numpys(*[a if d is None else a + step * d for a, d in zip(arrays, moves, strict=True)])

    after, before = at(h), at(-h)
    expected = np.zeros(after.shape) if after.dtype.kind not in "fc" else (after - before) / (2 * h)
    found = np.zeros_like(expected) if t is None else t.compute(scheduler="synchronous")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_reverse_rule_is_the_transpose_of_the_forward_rule(case: Case) -> None:
    """<ct, J dx> = <J' ct, dx>: the adjoint identity, at any ct and dx; of complex numbers Re(sum(ct * J dx)), with no
    conjugate."""
    rng = seeded(case)
    arrays = case.inputs(rng)
    xs = tensors(arrays, 3)
    y = case.ours(*xs)
    if y.dtype.kind not in "fc":
        return
    moving = [x for x in xs if x.dtype.kind in "fc"]
    dxs = [tg.asarray(drawn_like(x, rng), chunks=3) for x in moving]
    ct = tg.asarray(drawn_like(y, rng), chunks=3)
    dy = tangents([y], moving, dxs)[0]
    back = tg.gradients(y, moving, [ct])
    assert [(g.shape, g.dtype) for g in back] == [(x.shape, x.dtype) for x in moving]
    left = 0.0 if dy is None else tg.real(tg.sum(ct * dy))
    right = sum(tg.real(tg.sum(g * dx)) for g, dx in zip(back, dxs, strict=True))
    assert dy is None or (dy.shape, dy.dtype) == (y.shape, y.dtype)
    lv, rv = (float(np.asarray(tg.asarray(v).compute(scheduler="synchronous"))) for v in (left, right))
    np.testing.assert_allclose(lv, rv, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in SMOOTH if max(map(len, c.shapes)) == 2], ids=str)
def test_second_order(case: Case) -> None:
    """The gradient of a directional derivative against differences of the gradient."""
    rng = seeded(case)
    arrays = case.inputs(rng)
    floats = [i for i, a in enumerate(arrays) if a.dtype.kind in "fc"]
    weights = drawn_like(np.asarray(case.numpys(*arrays)), rng)
    moves = [drawn_like(arrays[i], rng) for i in floats]

    def first(values: list[np.ndarray]) -> tuple[list[tg.Tensor], list[tg.Tensor]]:
        xs = tensors(values, 3)
        y = case.ours(*xs)
        weighted = tg.sum(tg.asarray(weights) * y) if y.dtype.kind in "fc" else tg.sum(xs[floats[0]] * 0)
        return [xs[i] for i in floats], tg.gradients(weighted, [xs[i] for i in floats])

    xs, grads = first(arrays)
    along = sum(tg.real(tg.sum(g * tg.asarray(d))) for g, d in zip(grads, moves, strict=True))
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
    for row in TABLE.values():
        assert row.vjp is not None, row.name
        assert row.jvp is not None, row.name
        for without in (no_gradient, no_inputs):
            assert (row.vjp is without) == (row.jvp is without), row.name


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


@pytest.mark.parametrize("chunks", [-1, 2])
@pytest.mark.parametrize(("ours", "expected"), [e[1:] for e in EDGES], ids=[e[0] for e in EDGES])
def test_edges(ours: Callable[[Any], Any], expected: Callable[[], Any], chunks: int) -> None:
    t, wanted = ours(lambda x: tg.asarray(x, chunks=chunks)), np.asarray(expected())
    with dask.config.set({"array.chunk-size": "64B"}):
        found = np.asarray(t.compute(scheduler="synchronous"))
    assert (t.shape, t.dtype) == (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found, wanted)


def test_the_smallest_chunk_size_cuts_nothing_of_no_size() -> None:
    with dask.config.set({"array.chunk-size": "64B"}):
        assert tg.zeros((10**9, 0)).chunks == ((10**9,), (0,))
        assert tg.zeros((0, 1000, 1000)).compute(scheduler="synchronous").shape == (0, 1000, 1000)


def test_a_product_has_its_second_derivatives_where_elements_are_zero() -> None:
    x = tg.asarray([0.0, 2.0, 3.0])
    first = tg.gradients(tg.prod(x), x)
    hessian = [tg.gradients(first[i], x).compute(scheduler="synchronous") for i in range(3)]
    np.testing.assert_array_equal(hessian, [[0, 3, 2], [3, 0, 0], [2, 0, 0]])
    y = tg.asarray([[0.0, 2.0], [0.0, 3.0]], chunks=1)
    second = tg.gradients(tg.gradients(tg.prod(y), y)[0, 0], y)
    np.testing.assert_array_equal(second.compute(scheduler="synchronous"), [[0, 0], [6, 0]])
    third = tg.gradients(tg.gradients(tg.gradients(tg.prod(y), y)[0, 0], y)[1, 0], y)
    np.testing.assert_array_equal(third.compute(scheduler="synchronous"), [[0, 3], [0, 2]])


def test_gradients_of_moments_at_their_edges() -> None:
    x = tg.asarray(np.ones(70000, "f2"), chunks=10000)  # its size is beyond half precision
    np.testing.assert_array_equal(tg.gradients(tg.mean(x), x)[:2].compute(), np.full(2, 1 / 70000, "f2"))
    y = tg.asarray([1.0, 2.0, 4.0])
    assert not np.isfinite(tg.gradients(tg.var(y, correction=3), y).compute()).any()  # NumPy's variance is infinite


def test_vectors_of_equal_values_have_no_derivative() -> None:
    x, weights = tg.asarray(np.eye(3)), tg.asarray(np.arange(9.0).reshape(3, 3))
    of_values = tg.gradients(tg.sum(tg.linalg.eigvalsh(x)), x)
    np.testing.assert_array_equal(of_values.compute(scheduler="synchronous"), np.eye(3))
    for vectors in (tg.linalg.eigh(x).eigenvectors, tg.linalg.svd(x).U):
        with np.errstate(all="ignore"):
            found = tg.gradients(tg.sum(weights * vectors), x).compute(scheduler="synchronous")
        assert not np.isfinite(found).all()


def test_a_factorization_runs_once() -> None:
    x = tg.asarray(np.diag([3.0, 2.0, 1.0]), chunks=2)
    u, s, vh = tg.linalg.svd(x)
    graph = {n for t in (u, s, vh) for n in tg.expr.topological([t.expr]) if n.op.name == "svd"}
    assert len(graph) == 1


def test_a_factorization_takes_whole_matrices_and_leaves_the_batch_as_it_is_cut() -> None:
    t = tg.linalg.cholesky(tg.asarray(np.stack([np.eye(4, dtype="f4")] * 3), chunks=(2, 2, 2)))
    assert t.chunks == ((2, 1), (4,), (4,))
    assert [i.op.name for i in t.expr.inputs] == ["rechunk"]


def test_derivatives_of_factorizations_keep_single_precision() -> None:
    x = tg.asarray(np.diag(np.arange(1, 4, dtype="f4")))
    results = [*tg.linalg.qr(x), *tg.linalg.eigh(x), *tg.linalg.svd(x), *tg.linalg.slogdet(x), tg.linalg.solve(x, x)]
    for t in (*results, tg.linalg.cholesky(x), tg.linalg.inv(x), tg.linalg.det(x), tg.linalg.matrix_norm(x)):
        first = tg.gradients(t, x)
        assert {t.dtype, first.dtype, tangents([t], [x], [x])[0].dtype} == {np.dtype("f4")}
        assert first.compute(scheduler="synchronous").dtype == np.dtype("f4")


def test_a_matrix_that_is_not_what_it_must_be_is_found_at_run() -> None:
    x = tg.asarray(np.zeros((4, 4)), chunks=2)
    for f in (tg.linalg.inv, lambda t: tg.linalg.cholesky(t - 1.0), lambda t: tg.linalg.solve(t, tg.ones(4))):
        t = f(x)
        with pytest.raises(np.linalg.LinAlgError):
            t.compute(scheduler="synchronous")


REDUCTIONS: dict[str, Callable[[tg.Tensor], tg.Tensor]] = {
    "sum": tg.sum,
    "mean": tg.mean,
    "sum of squares of sums": lambda t: tg.sum(tg.sum(t, axis=0) ** 2),
    "max": tg.max,
    "deviation": lambda t: tg.sum(tg.std(t, axis=1)),
    "logsumexp": lambda t: tg.sum(tg.logsumexp(t, axis=1)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_gradient_of_a_reduction_keeps_the_blocks(name: str) -> None:
    x, p = tg.zeros((200, 20), chunks=(10, 20)), tg.zeros(20)
    g = tg.gradients(REDUCTIONS[name](tg.tanh(x + p)), x)
    keys = [k[0] if isinstance(k, tuple) else k for k in g.__dask_graph__()]
    assert g.chunks == x.chunks
    assert not [k for k in keys if "rechunk" in k]
    if name in ("sum", "mean"):  # the cotangent is one number: every block is made by one task
        assert len(keys) <= 21


def test_numbers_of_numpy_are_no_data() -> None:
    t = tg.zeros((4, 4), chunks=2)
    for _ in range(10):
        t = t * np.float64(2.0) + np.array(1.0)
    assert len(t.__dask_graph__()) == 4


def test_from_dask_in_another_byte_order() -> None:
    t = tg.from_dask(da.from_array(np.arange(3, dtype=">f4"), chunks=2))
    assert t.dtype.isnative
    np.testing.assert_array_equal((t * 2).compute(scheduler="synchronous"), [0, 2, 4])


def test_einsum_has_one_name_in_every_process() -> None:
    text = (
        "import taskgraph as tg; x = tg.placeholder('f8', (3, 3, 4, 4, 3), name='x'); "
        "print(tg.einsum('iikkj,ij,kj->k', x, x[:, :, 0, 0, 0], x[0, 0, 0]).expr.token)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        for seed in ("1", "2", "3")
    ]
    assert len({r.stdout for r in runs}) == 1
    assert runs[0].stdout.strip(), runs[0].stderr


def test_functions_say_what_they_take() -> None:
    assert str(inspect.signature(tg.add)).startswith("(x1, x2, /)")
    assert str(inspect.signature(tg.sin)).startswith("(x, /)")
    for name in ("add", "sin", "max", "argmax", "real", "sum"):
        f = getattr(tg, name)
        assert (f.__name__, f.__qualname__, f.__module__.split(".")[0]) == (name, name, "taskgraph")
