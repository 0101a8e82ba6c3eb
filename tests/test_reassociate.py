"""Rewritten products: the least flops of every chain, the same values, and what must stay as it was written."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskgraph as tg
from taskgraph import tree
from taskgraph.chains import LONGEST, Size, best_order, cost_of, product_flops, together
from taskgraph.execute import rewritten
from taskgraph.expr import Expr, topological
from taskgraph.gram import gram_flops, is_gram
from taskgraph.passes import simplify
from taskgraph.reassociate import flops, reassociate
from taskgraph.spec import problems

RNG = np.random.default_rng(0)
OFF = {"taskgraph.reassociate": False}
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


@pytest.fixture(autouse=True, scope="module")
def synchronous() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def data(*shape: int, chunks: Any = -1, dtype: str = "float64") -> tg.Tensor:
    return tg.asarray(RNG.standard_normal(shape).astype(dtype), chunks=chunks)


def after(*tensors: tg.Tensor) -> tuple[Expr, ...]:
    """The rewritten graph, after a look at its rules: shapes, types, blocks, and that a second go changes nothing."""
    before = simplify([t.expr for t in tensors])
    found = reassociate(before)
    assert [(e.shape, e.dtype, e.chunks) for e in found] == [(e.shape, e.dtype, e.chunks) for e in before]
    assert not [p for n in topological(found) for p in problems(n)]
    assert reassociate(found) == found
    assert flops(found) <= flops(before)
    return found


def work(*tensors: tg.Tensor) -> int:
    return flops(after(*tensors))


def names(*tensors: tg.Tensor) -> list[str]:
    return [n.op.name for n in topological(after(*tensors))]


def close(*tensors: tg.Tensor) -> None:
    """The values with and without."""
    after(*tensors)
    found = tg.compute(*tensors)
    with dask.config.set(OFF):
        expected = tg.compute(*tensors)
    for f, e in zip(found, expected, strict=True):
        assert np.shape(f) == np.shape(e)
        assert np.asarray(f).dtype == np.asarray(e).dtype
        np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-9)


# -- chains ------------------------------------------------------------------------------------------------------------


def brute_force(sizes: Sequence[Size]) -> int:
    """The least flops over all parenthesizations."""

    def all_of(part: tuple[Size, ...]) -> list[tuple[int, Size]]:
        if len(part) == 1:
            return [(0, part[0])]
        return [
            (x + y + product_flops(left, right), together(left, right))
            for s in range(1, len(part))
            for x, left in all_of(part[:s])
            for y, right in all_of(part[s:])
        ]

    return min(cost for cost, _ in all_of(tuple(sizes)))


Draw = st.DrawFn
DIMS = st.sampled_from([1, 2, 3, 5, 8, 13])


@st.composite
def chains(draw: Draw) -> tuple[tg.Tensor, np.ndarray, list[Size]]:
    """A chain in a drawn order, its value by NumPy, the sizes of its factors: up to seven, each as it is or transposed,
    some batched, vectors at the ends, cut in drawn blocks, scaled by numbers on the way, some inner results transposed.
    """
    n = draw(st.integers(2, 7))
    dims = [draw(DIMS) for _ in range(n + 1)]
    vectors = (draw(st.booleans()), n > 2 and draw(st.booleans()))
    batch = draw(st.sampled_from([(), (), (2,), (3, 1)]))
    parts: list[tuple[tg.Tensor, np.ndarray]] = []
    sizes = []
    for i in range(n):
        chunks = draw(st.sampled_from([-1, 1, 2, 3]))
        rows, columns = dims[i], dims[i + 1]
        if (i == 0 and vectors[0]) or (i == n - 1 and vectors[1]):
            x = RNG.standard_normal(columns if i == 0 else rows)
            parts.append((tg.asarray(x, chunks=chunks), x))
            sizes.append(Size(1, columns) if i == 0 else Size(rows, 1))
            continue
        lead = batch if draw(st.booleans()) and not any(vectors) else ()
        turned = draw(st.booleans())
        x = RNG.standard_normal((*lead, *((columns, rows) if turned else (rows, columns))))
        t = tg.asarray(x, chunks=chunks)
        parts.append((t.mT if turned else t, np.swapaxes(x, -1, -2) if turned else x))
        sizes.append(Size(rows, columns, lead))
    while len(parts) > 1:
        i = draw(st.integers(0, len(parts) - 2))
        (a, x), (b, y) = parts[i : i + 2]
        is_turned = a.ndim > 1 and b.ndim > 1 and draw(st.integers(0, 3)) == 0
        c = (b.mT @ a.mT).mT if is_turned else a @ b
        if c.ndim > 1 and draw(st.integers(0, 5)) == 0:
            s = draw(st.sampled_from([2.0, -0.5]))
            parts[i : i + 2] = [(c * s if s > 0 else -c / 2, x @ y * s)]
        else:
            parts[i : i + 2] = [(c, x @ y)]
    return *parts[0], sizes


@MANY
@given(chains())
def test_a_chain_has_the_least_flops_and_the_same_value(drawn: tuple[tg.Tensor, np.ndarray, list[Size]]) -> None:
    t, value, sizes = drawn
    assert work(t) == brute_force(sizes)
    found = t.compute()
    assert np.shape(found) == value.shape
    np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9 * (1 + np.abs(value).max()))


@MANY
@given(st.lists(DIMS, min_size=3, max_size=8), st.integers(0, 10**6))
def test_the_users_order_stays_where_no_other_costs_less(dims: list[int], seed: int) -> None:
    sizes = [Size(r, c) for r, c in itertools.pairwise(dims)]
    rng, written, stack = np.random.default_rng(seed), {}, [(0, len(sizes) - 1)]
    while stack:
        i, j = stack.pop()
        if i < j:
            written[i, j] = s = int(rng.integers(i, j))
            stack += [(i, s), (s + 1, j)]
    least, order = best_order(sizes, written)
    assert least == cost_of(sizes, order) == brute_force(sizes)
    assert (order is written) == (cost_of(sizes, written) == least)


def test_chains_that_cost_the_same_stay_to_the_bit() -> None:
    a, b, c, d = (data(32, 32, chunks=16) for _ in range(4))
    for t in (a @ b @ c @ d, a @ (b @ (c @ d)), (a @ b) @ (c @ d), (a @ b).mT @ (c @ d)):
        (found,) = after(t)
        assert found is simplify([t.expr])[0]


def test_a_transposed_product_is_one_with_flags() -> None:
    a, b = data(5, 6), data(6, 7)
    assert "permute_dims" not in names((a @ b).T)
    assert "permute_dims" not in names((b.T @ a.T).T + a @ b)
    assert names((a @ b).T, a @ b).count("matmul") == 1
    close((a @ b).T, (b.T @ a.T).T)


def test_a_vector_goes_first() -> None:
    m, v = data(64, 64, chunks=16), data(64, chunks=16)
    assert work((m @ m) @ v) == 4 * 64**2
    assert work(v @ (m @ m.T @ m)) == 6 * 64**2
    assert work(((m @ m).T @ (m @ m)) @ v) < 2 * 64**3 + 8 * 64**2
    assert work(m @ (v @ (m @ m))) == 6 * 64**2  # a row that becomes a column
    assert work(v @ (m @ (m @ v))) == 4 * 64**2 + 128
    close((m @ m) @ v, m @ (v @ (m @ m)), v @ (m @ (m @ v)), v @ (m @ m.T @ m))


def test_a_batch_counts_as_many_products_as_it_has() -> None:
    stack, a, b = data(10, 4, 4), data(4, 4), data(4, 4)
    assert work(stack @ a @ b) == 2 * 4**3 * 11  # the two plain ones first, once
    assert work((a @ b) @ stack) == 2 * 4**3 * 11
    other = data(10, 4, 1)
    assert work((stack @ stack) @ other) == 10 * 4 * 4**2
    close(stack @ a @ b, (stack @ stack) @ other, (stack @ a @ b).mT)


def test_long_chains_are_no_longer_work_to_plan_than_they_are_long() -> None:
    m, v = tg.placeholder("float64", (8, 8)), tg.placeholder("float64", (8,))
    t = m
    for _ in range(10 * LONGEST):
        t = t @ m
    assert work(t @ v) == (10 * LONGEST + 1) * 2 * 8**2
    assert work(v @ t) == (10 * LONGEST + 1) * 2 * 8**2
    assert reassociate([t.expr]) == (t.expr,)


# -- what may not be reordered -----------------------------------------------------------------------------------------


def test_what_others_need_is_kept() -> None:
    m, v = data(16, 16, chunks=8), data(16, chunks=8)
    p = m @ m
    assert after(p @ v, p)[1] is p.expr
    assert work(p @ v, p) == 2 * 16**3 + 2 * 16**2
    assert work(p @ v, tg.tanh(p)) == 2 * 16**3 + 2 * 16**2
    w = data(16, 16)
    assert work(p @ w, p @ w.T) == 3 * 2 * 16**3  # shared by two, and dearer apart
    assert work(p @ v, p @ w[0]) == 4 * 2 * 16**2  # shared by two, and cheaper apart
    close(p @ v, p @ w[0], tg.sum(p))


def test_pins_and_barriers_end_a_chain() -> None:
    m, v = data(16, 16), data(16)
    with tg.device("gpu"):
        p = m @ m
    with tg.device("cpu"):
        q = p @ v
    assert work(q) == 2 * 16**3 + 2 * 16**2
    assert {n.device for n in topological(after(q)) if n.op.kind == "product"} == {"gpu", "cpu"}
    with tg.device("gpu"):
        both = (m @ m) @ v
    assert work(both) == 4 * 16**2
    assert {n.device for n in topological(after(both)) if n.op.kind == "product"} == {"gpu"}

    f = tg.checkpoint(lambda x: tg.tanh(x @ m))
    value, g = tg.value_and_grad(lambda x: tg.sum(f(f(x)) @ v))(m)
    assert names(value, g).count("barrier") == 2
    close(value, g)


def test_products_keep_their_names() -> None:
    m, v = data(16, 16), data(16)
    g = tg.grad(lambda v: tg.sum(tg.tanh((m @ m) @ v)))(v)
    assert {n.label for n in topological(after(g)) if n.op.kind == "product"} == {"matmul", "matmul-grad"}
    assert "matmul-grad" in {n.label for n in topological(after(tg.grad(lambda m: tg.sum(m @ v))(m)))}


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_gradient_of_a_chain_costs_no_more_than_twice_the_chain(n: int) -> None:
    v = data(32)

    def loss(ms: list[tg.Tensor], v: tg.Tensor) -> tg.Tensor:
        return tg.sum(tg.tanh(functools.reduce(lambda x, y: x @ y, ms) @ v))

    ms = [data(32, 32, chunks=16) for _ in range(n)]
    value, grads = tg.value_and_grad(loss, (0, 1))(ms, v)
    every = [value, *[t for _, t in tree.with_paths(grads)]]
    assert work(value) == n * 2 * 32**2
    assert work(*every) <= 3 * work(value)  # as written, it has 3 * n products of matrices
    close(*every)


def test_second_derivatives_through_a_chain() -> None:
    ms, v = [data(8, 8) for _ in range(3)], data(8)
    f = lambda m, v: tg.sum(tg.tanh(ms[0] @ m @ ms[1] @ v))
    close(tg.hvp(f, (ms[2], v), (ms[1], v))[0], tg.jvp(f, (ms[2], v), (ms[1], v))[1])


# -- sums, means and diagonals -----------------------------------------------------------------------------------------

SUMS: dict[str, tuple[Callable[[tg.Tensor, tg.Tensor], tg.Tensor], int]] = {
    "sum": (lambda a, b: tg.sum(a @ b), 2 * 6),
    "mean": (lambda a, b: tg.mean(a @ b), 2 * 6),
    "rows": (lambda a, b: tg.sum(a @ b, axis=0), 2 * 6 * 8),
    "columns": (lambda a, b: tg.sum(a @ b, axis=1), 2 * 6 * 4),
    "mean of rows": (lambda a, b: tg.mean(a @ b, axis=0, keepdims=True), 2 * 6 * 8),
    "mean of columns": (lambda a, b: tg.mean(a @ b, axis=-1), 2 * 6 * 4),
    "both sums": (lambda a, b: tg.sum(a @ b, axis=0)[:4] + tg.sum(a @ b, axis=1), 2 * 6 * 12),
    "transposed": (lambda a, b: tg.sum((a @ b).T, axis=0), 2 * 6 * 4),
    "scaled": (lambda a, b: tg.sum(-(a @ b) / 3), 2 * 6),
    "chain": (lambda a, b: tg.sum(a @ b @ b.T @ a.T), 4 * 6 * 8 + 12),
    "trace": (lambda a, b: tg.linalg.trace(a @ b[:, :4]), 0),
    "diagonal": (lambda a, b: tg.linalg.diagonal(a @ b[:, :4]), 0),
    "trace of a chain": (lambda a, b: tg.linalg.trace(a @ (b @ b.T) @ a.T), 2 * 4 * 6 * 8),
    "batch": (lambda a, b: tg.sum(tg.stack([a, a + 1]) @ b, axis=(0, 1)), 2 * 2 * 6 * 8),
    "batch, repeated": (lambda a, b: tg.sum(tg.broadcast_to(a @ b, (3, 4, 8)) @ b.T), -1),
    "traces": (lambda a, b: tg.linalg.trace(tg.stack([a, a + 1]) @ b[:, :4]), 0),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("chunks", [-1, 3])
def test_what_is_added_up_is_not_formed(name: str, chunks: int) -> None:
    f, expected = SUMS[name]
    a, b = data(4, 6, chunks=chunks), data(6, 8, chunks=chunks)
    if expected >= 0:
        assert work(f(a, b)) == expected
    close(f(a, b))
    with_weights = lambda a, b: tg.sum(f(a, b) * f(a + 1, b))
    close(*tg.grad(lambda a, b: tg.sum(f(a, b)), (0, 1))(a, b), *tg.grad(with_weights, (0, 1))(a, b))


def test_a_sum_leaves_a_product_that_is_needed() -> None:
    a, b = data(4, 6), data(6, 8)
    p = a @ b
    assert work(tg.sum(p), p) == work(p)
    assert work(tg.sum(p), tg.tanh(p)) == work(p)


def test_sums_that_widen_or_overflow_are_left() -> None:
    for dtype in ("int32", "float16", "bool"):
        a = tg.asarray(np.ones((4, 4)), dtype=dtype)
        assert work(tg.sum(a @ a)) == 2 * 4**3
    a = tg.asarray(np.arange(16).reshape(4, 4) * 2**60)
    assert work(tg.sum(a @ a)) == 8
    close(tg.sum(a @ a), a @ tg.full((4, 4), 2**62))  # around 2**64, as they are


def test_gradients_of_sums_form_no_product() -> None:
    a, b = data(16, 24), data(24, 16)
    for f in (tg.sum, tg.mean, tg.linalg.trace):
        value, grads = tg.value_and_grad(lambda a, b: f(a @ b), (0, 1))(a, b)  # noqa: B023
        assert work(value, *grads) <= 2 * 24
        close(value, *grads)


# -- constants ---------------------------------------------------------------------------------------------------------

N = 6
CONSTANTS: dict[str, Callable[[tg.Tensor], tg.Tensor]] = {
    "identity": lambda a: tg.eye(N, chunks=4) @ a,
    "identity behind": lambda a: a @ tg.eye(N),
    "identities": lambda a: tg.eye(N) @ tg.eye(N) @ a.T,
    "identity between": lambda a: (a @ tg.eye(N)) @ tg.full((N, 2), 2.5),
    "multiple of identity": lambda a: (2 * tg.eye(N)) @ a,
    "zeros": lambda a: tg.zeros((N, N)) @ a,
    "zeros behind": lambda a: a @ tg.zeros((N, 2), chunks=1),
    "ones": lambda a: tg.ones((3, N), chunks=2) @ a.T,
    "full": lambda a: a @ tg.full((N, 9), 2.5, chunks=4),
    "full and full": lambda a: tg.full((3, N), 2.5) @ tg.full((N, 2), 3.0) + tg.sum(a),
    "full between": lambda a: a @ tg.full((N, N), 2.5) @ a,
    "full twice between": lambda a: a @ tg.full((N, 3), 2.5) @ tg.ones((3, N)) @ a,
    "repeated row": lambda a: tg.broadcast_to(a[0], (3, N)) @ a,
    "repeated column": lambda a: tg.broadcast_to(a[:, :1], (N, N)) @ a,
    "repeated row behind": lambda a: a @ tg.broadcast_to(a[:1], (N, N)).T,
    "repeated number": lambda a: tg.broadcast_to(tg.sum(a), (3, N)) @ a,
    "in a stack": lambda a: tg.ones((2, 3, N)) @ a,
    "a stack beside": lambda a: tg.ones((3, N)) @ tg.stack([a, a]),
    "sum of full": lambda a: tg.sum(tg.ones((3, N)) @ a, axis=0),
    "diagonal": lambda a: tg.where(tg.eye(N, dtype=bool), a, 0.0) @ a,
    "diagonal behind": lambda a: a[:3] @ tg.where(tg.eye(N, dtype=bool), a, 0.0),
    "trace": lambda a: tg.linalg.trace(tg.ones((N, N)) @ a) + tg.linalg.trace(tg.eye(N) @ a),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("chunks", [-1, 4])
def test_products_with_constants_are_sums(name: str, chunks: int) -> None:
    a = data(N, N, chunks=chunks)
    t = CONSTANTS[name](a)
    assert work(t) <= 2 * N * N  # no more than a product with a vector, or the outer product of two
    close(t, *tg.gradients([tg.sum(t * t)], [a]))


def test_an_identity_leaves_the_other_operand() -> None:
    a = data(N, N)
    (found,) = after(tg.eye(N) @ a)
    assert found is a.expr
    assert names(tg.eye(N, 3) @ a[:3]).count("matmul") == 1  # not square
    assert names(tg.eye(N, k=1) @ a).count("matmul") == 1
    with tg.device("gpu"):
        moved = tg.eye(N) @ a
    assert names(moved).count("matmul") == 1  # without it, nothing would run on the GPU


def test_scalings_go_to_the_smallest_array() -> None:
    a, b, s = data(40, 30), data(30, 2), tg.sum(data(3))

    def scaled_elements(t: tg.Tensor) -> list[int]:
        return [n.size for n in topological(after(t)) if n.op.name in ("multiply", "divide", "negative")]

    assert scaled_elements((s * a) @ b) == [60]
    assert scaled_elements((2 * a.T) @ (a / s)) == [30 * 30] * 2
    assert scaled_elements(a @ (-b)) == [60]
    assert scaled_elements((2 * (a @ a.T)) @ a @ b) == [60]
    scaled = 2 * a
    assert after(scaled @ b, scaled)[1] is scaled.expr  # it is made anyway
    close((s * a) @ b, (2 * a.T) @ (a / s), (2 * (a @ a.T)) @ a @ b)


# -- what is not finite ------------------------------------------------------------------------------------------------


def test_zeros_keep_what_is_not_finite_and_identities_drop_it() -> None:
    x = RNG.standard_normal((3, 3))
    x[1, 1] = np.inf
    a = tg.asarray(x)
    with np.errstate(all="ignore"):
        zeros, ones = (np.full((2, 3), c) @ x for c in (0.0, 1.0))
        np.testing.assert_array_equal((tg.zeros((2, 3)) @ a).compute(), zeros)  # 0 * inf is NaN
        np.testing.assert_allclose((tg.ones((2, 3)) @ a).compute(), ones)
        sums = tg.sum(a @ a, axis=0).compute()  # some are inf where NumPy's inf - inf is NaN
        np.testing.assert_array_equal(np.isfinite(sums), np.isfinite(np.sum(x @ x, axis=0)))
        np.testing.assert_array_equal((tg.eye(3) @ a).compute(), x)
        with dask.config.set(OFF):
            assert np.isnan((tg.eye(3) @ a).compute()).sum() == 2  # the rest of that column


def test_an_order_may_overflow_where_another_does_not() -> None:
    big, v = tg.full((2, 2), 1e200) * data(2, 2), tg.asarray([1e-200, 1e-200])
    with np.errstate(all="ignore"):
        assert np.isfinite(((big @ big) @ v).compute()).all()
        with dask.config.set(OFF):
            assert not np.isfinite(((big @ big) @ v).compute()).all()


# -- the switch --------------------------------------------------------------------------------------------------------


def test_off_keeps_every_bit() -> None:
    m, v = data(50, 50, dtype="float32"), data(50, dtype="float32")
    with dask.config.set(OFF):
        for t in ((m @ m) @ v, tg.sum(m @ m, axis=0), (2.1 * m) @ m, tg.eye(50) @ m, (m @ m.T).T):
            before = simplify([t.expr])
            assert rewritten([t.expr]) == before
        np.testing.assert_array_equal(((m @ m) @ v).compute(), (m.compute() @ m.compute()) @ v.compute())


def test_explain_says_so() -> None:
    m, v = data(200, 200), data(200)
    assert "products reassociated: 0.0161 GFLOP as written, 0.00016 to do" in ((m @ m) @ v).explain()
    assert "reassociated" not in (m @ m).explain()
    with dask.config.set(OFF):
        assert "reassociated" not in ((m @ m) @ v).explain()


# -- symmetric products ------------------------------------------------------------------------------------------------


def test_gram() -> None:
    a, b = data(5, 3), data(5, 3)
    grams = [a @ a.T, a.T @ a, (a.T @ b) @ (a.T @ b).T, (a @ a.T).T, tg.stack([a, b]) @ tg.stack([a, b]).mT]
    assert [is_gram(after(t)[0]) for t in grams] == [True] * len(grams)
    square = data(3, 3)
    others = [a @ b.T, square @ square, square.T @ square.T, a + b]
    assert [is_gram(after(t)[0]) for t in others] == [False] * len(others)
    node = after(a @ a.T)[0]
    assert gram_flops(node) == 2 * 3 * (5 * 6 // 2)  # one triangle with the diagonal
    assert node.op.flops(node) == 2 * 3 * 25
    assert gram_flops(after(tg.zeros((0, 3)) @ tg.zeros((0, 3)).T)[0]) == 0


# -- what hash-consing gives -------------------------------------------------------------------------------------------


def test_common_subexpressions_are_one_and_dead_code_is_gone() -> None:
    a, b = data(8, 8, chunks=4), data(8, 8, chunks=4)
    twice = tg.tanh(a @ b) + tg.exp(a @ b)
    assert work(twice) == work(a @ b)
    unused = (a @ b) @ a
    assert unused.expr not in topological(after(a @ b))
    assert work(tg.tanh(a @ b), tg.tanh((b.T @ a.T).T)) == work(a @ b)  # one of them transposed
    value, grads = tg.value_and_grad(lambda a: tg.sum(tg.tanh(a @ b)))(a)
    assert work(value, grads) == 2 * work(value)  # the gradient uses the forward product


@MANY
@given(st.data())
def test_random_graphs_keep_their_values(drawn: st.DataObject) -> None:
    """Sums, products and constants at random, and a gradient."""
    n = 4
    pool = [data(n, n, chunks=drawn.draw(st.sampled_from([-1, 2, 3]))) for _ in range(2)]
    leaf = pool[0]
    makers: list[Callable[[tg.Tensor, tg.Tensor], tg.Tensor]] = [
        lambda x, y: x @ y, lambda x, y: x.T @ y, lambda x, y: x @ y.T, lambda x, y: (x @ y).T, lambda x, y: x @ y / 2,
        lambda x, y: tg.eye(n) @ x, lambda x, y: x @ tg.ones((n, n)), lambda x, y: tg.broadcast_to(x[0], (n, n)) @ y,
        lambda x, y: tg.broadcast_to(tg.sum(x @ y, axis=0), (n, n)), lambda x, y: (x @ y) * tg.mean(x @ y),
        lambda x, y: tg.outer(x @ y[0], y[1] @ x), lambda x, y: tg.linalg.trace(x @ y) * x, lambda x, y: tg.tanh(x),
        lambda x, y: tg.where(tg.eye(n, dtype=bool), x, 0.0) @ y, lambda x, y: (x @ y) @ tg.sum(y, axis=1)[:, None] + x,
        lambda x, y: tg.linalg.diagonal(x @ y)[:, None] * y, lambda x, y: x + y,
    ]  # fmt: skip
    for _ in range(drawn.draw(st.integers(1, 8))):
        pick = st.sampled_from(pool)
        t = drawn.draw(st.sampled_from(makers))(drawn.draw(pick), drawn.draw(pick))
        pool.append(t * 0.5 if drawn.draw(st.booleans()) else tg.tanh(t))
    roots = pool[-drawn.draw(st.integers(1, 2)) :]
    found = [*roots, tg.sum(roots[-1], axis=drawn.draw(st.sampled_from([0, 1])))]
    close(*found, tg.gradients(tg.sum(found[-1]), leaf))
