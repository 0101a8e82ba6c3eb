"""Taking by position, and what is made of it: indexing by arrays, sorting, searching, padding; and what runs for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskgraph as tg
from autodiff.forward import tangents
from taskgraph.ops import exchange


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set({"scheduler": "synchronous", "taskgraph.validate": True}):
        yield


# -- x[index] against NumPy --------------------------------------------------------------------------------------------


@st.composite
def cuts(draw: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    found = []
    for size in shape:
        inner = sorted(draw(st.sets(st.integers(1, size - 1), max_size=2))) if size > 1 else []
        found.append(tuple(b - a for a, b in itertools.pairwise([0, *inner, size])))
    return tuple(found)


@st.composite
def slices(draw: Any, size: int) -> slice:
    bound = st.none() | st.integers(-size - 1, size + 1)
    return slice(draw(bound), draw(bound), draw(st.sampled_from((None, 1, 2, -1, -2))))


@st.composite
def indices(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An index of NumPy's with arrays in it: integers whose shapes broadcast, or one mask."""
    common = draw(st.sampled_from(((3,), (1,), (0,), (2, 3), (2, 1), ())))
    mask = draw(st.integers(0, 5)) == 0
    items: list[Any] = []
    axis = 0
    while axis < len(shape):
        size = shape[axis]
        kinds = ["slice", "full", "stop", "number", "array", "array"] if size else ["slice", "full", "stop"]
        kind = draw(st.sampled_from((*kinds, "mask") if mask else kinds))
        if kind == "stop":
            break
        if kind == "mask":
            ndim = draw(st.integers(1, min(2, len(shape) - axis)))
            values = draw(st.lists(st.booleans(), min_size=9, max_size=9))
            items.append(np.resize(np.array(values), shape[axis : axis + ndim]))
            common, mask, axis = (1,), False, axis + ndim
            continue
        if kind == "array":
            own = common[draw(st.integers(0, len(common))) :]
            own = tuple(draw(st.sampled_from((1, n))) for n in own)
            values = draw(st.lists(st.integers(-size, size - 1), min_size=6, max_size=6))
            items.append(np.resize(np.array(values), own))
        elif kind == "number":
            items.append(draw(st.integers(-size, size - 1)))
        else:
            items.append(draw(slices(size)) if kind == "slice" else slice(None))
        axis += 1
    if axis < len(shape):
        items.append(Ellipsis)
    elif draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), Ellipsis)  # for no axis: it parts arrays all the same
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    return tuple(items)


def _given_as(draw: Any, item: Any) -> Any:
    """The array as a user may give it: NumPy's, a list, a tensor of data, a computed tensor."""
    if not isinstance(item, np.ndarray):
        return item
    how = draw(st.sampled_from(("numpy", "list", "data", "computed", "computed")))
    if how == "numpy" or item.size == 0:
        return item
    if how == "list" and item.ndim:
        return item.tolist()
    t = tg.asarray(item, chunks=draw(cuts(item.shape)))
    return t if how == "data" or item.dtype == bool else t + 0


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_index_gives_what_it_gives_numpy(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from((1, 2, 3, 5, 0)), min_size=1, max_size=4), label="shape"))
    index = data.draw(indices(shape), label="index")
    values = np.random.default_rng(0).standard_normal(shape)
    expected = np.asarray(values[index])
    x = tg.asarray(values, chunks=data.draw(cuts(shape), label="chunks"))
    t = x[tuple(_given_as(data.draw, item) for item in index)]
    found = np.asarray(t.compute())
    assert t.shape == found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    ct = np.random.default_rng(1).standard_normal(expected.shape)
    transposed = np.zeros(shape)
    np.add.at(transposed, index, ct)
    back = tg.gradients(t, x, [tg.asarray(ct)])
    np.testing.assert_allclose(back.compute(), transposed, rtol=1e-12, atol=1e-12)
    moved = tangents([t], [x], [x * 2])[0]
    assert moved is not None
    np.testing.assert_array_equal(moved.compute(), 2 * expected)
    weight = tg.asarray(ct)  # the transpose of the transpose is the index again
    back = tg.gradients(t, x, [weight])
    np.testing.assert_array_equal(tg.gradients(back, weight, [x]).compute(), expected)


# -- what runs for it --------------------------------------------------------------------------------------------------


def _tasks(t: tg.Tensor) -> list[str]:
    return [k[0] if isinstance(k, tuple) else k for k in t.__dask_graph__()]


def _noted(read: list[int]) -> tg.Tensor:
    """Ten blocks of ten, which note that they were read."""

    def note(block: Any, block_info: Any = None) -> Any:
        read.append(block_info[0]["chunk-location"][0])
        return block

    return tg.from_dask(da.arange(100, chunks=10).map_blocks(note, dtype=int, meta=np.empty(0, int)))


@pytest.mark.parametrize(
    ("index", "blocks"), [([3, 57, 4, -50], {0, 5}), (np.arange(100) == 25, {2}), (slice(70, 90), {7, 8})]
)
def test_what_nobody_asks_for_is_not_read(index: Any, blocks: set[int]) -> None:
    read: list[int] = []
    found = _noted(read)[index].compute()
    np.testing.assert_array_equal(found, np.arange(100)[index])
    assert set(read) == blocks


def test_blocks_that_have_nothing_for_each_other_have_no_task_between_them() -> None:
    x = tg.asarray(np.arange(1000.0), chunks=100)
    reversed_ = np.arange(1000)[::-1]
    taken = tg.take(x, reversed_)
    assert taken.chunks == x.chunks
    assert [sum(name in k for k in _tasks(taken)) for name in ("take-index-", "take-part-")] == [10, 0]
    back = tg.gradients(taken, x, [taken])
    assert sum("scatter-add-part-" in k for k in _tasks(back)) == 10
    np.testing.assert_array_equal(back.compute(), np.arange(1000.0))


def test_a_task_holds_no_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 blocks of a table, a block of the result gets what was picked; the same for its transpose."""
    largest: list[int] = []

    def seen(f: Any) -> Any:
        def call(*args: Any) -> Any:
            arrays = [a for a in args if isinstance(a, np.ndarray)]
            largest.append(sum(a.nbytes for a in arrays) + (out := f(*args)).nbytes)
            return out

        return call

    for name in ("take_rows", "pick_rows", "join_rows", "choose_rows", "add_rows"):
        monkeypatch.setattr(exchange, name, seen(getattr(exchange, name)))
    table = tg.asarray(np.ones((2000, 64)), chunks=(100, 64))
    at = tg.asarray(np.random.default_rng(0).integers(0, 2000, 1000), chunks=100) + 0
    tg.gradients(tg.sum(tg.take(table, at, axis=0) ** 2), table).compute()
    assert 0 < max(largest) < 4 * 100 * 64 * 8


@pytest.mark.parametrize("computed", [False, True])
def test_sums_have_the_same_bits_however_the_arrays_are_cut(computed: bool) -> None:
    rng = np.random.default_rng(0)
    values, at = rng.standard_normal((300, 4)).astype("f4"), rng.integers(0, 7, 300)
    found = set()
    for of_sum, of_parts in itertools.product((7, 3, 1), (300, 100, 17)):
        x = tg.zeros((7, 4), dtype="f4", chunks=(of_sum, 2))
        index = tg.asarray(at, chunks=of_parts)
        t = tg.take(x, index + 0 if computed else index, axis=0)
        found.add(tg.gradients(t, x, [tg.asarray(values, chunks=(of_parts, 4))]).compute().tobytes())
    expected = np.zeros((7, 4), "f4")
    np.add.at(expected, at, values)
    assert found == {expected.tobytes()}


def test_many_elements_are_added_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "AT_ONCE", 8)
    rng = np.random.default_rng(0)
    at, values = rng.integers(0, 5, 40), rng.standard_normal((3, 40))
    x = tg.zeros((3, 5))
    expected = np.zeros((3, 5))
    np.add.at(expected, (slice(None), at), values)
    np.testing.assert_array_equal(tg.gradients(x[:, at], x, [values]).compute(), expected)
    lines = np.broadcast_to(at, (3, 40))
    back = tg.gradients(tg.take_along_axis(x, lines, axis=1), x, [values])
    np.testing.assert_array_equal(back.compute(), expected)


def test_no_task_changes_what_it_is_given() -> None:
    x, at = tg.asarray(np.ones((6, 4)), chunks=2).persist(), tg.asarray([0, 0, 5], chunks=2).persist()
    for _ in range(2):
        back = tg.gradients(tg.take(x, at, axis=0), x, [tg.take(x, at, axis=0)])
        np.testing.assert_array_equal(back.compute()[:, 0], [2, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(x.compute(), np.ones((6, 4)))
    np.testing.assert_array_equal(at.compute(), [0, 0, 5])


def test_arrays_of_dask_are_computed_with_the_graph() -> None:
    x, at = tg.asarray([1.0, 2.0, 3.0]), da.from_array(np.array([2, 0, -1]), chunks=2)
    for t in (x[at], tg.take(x, at)):
        assert "dask" in {n.op.name for n in tg.expr.topological([t.expr])}
        np.testing.assert_array_equal(t.compute(), [3, 1, 3])
    with pytest.raises(IndexError, match="computed mask"):
        x[at > 0]


def test_an_index_is_a_snapshot() -> None:
    at = np.array([0, 1])
    t = tg.asarray([1.0, 2.0, 3.0])[at]
    at[...] = 2
    np.testing.assert_array_equal(t.compute(), [1, 2])
    assert tg.take(t, np.array([1])).expr is tg.take(t, [1]).expr  # equal positions, one expression


def test_sorting_makes_one_block_of_the_axis_where_the_plan_sees_it() -> None:
    x = tg.asarray(np.ones((8, 6)), chunks=(2, 3))
    t = tg.sort(x, axis=0)
    assert t.chunks == ((8,), (3, 3))
    assert [i.op.name for i in t.expr.inputs] == ["rechunk", "argsort"]
    assert tg.sort(t, axis=0).expr.inputs[0] is t.expr  # which is in one block already


def test_outer_indices_are_taken_one_after_the_other() -> None:
    x = tg.zeros((1000, 1000), chunks=100)
    t = x[np.ix_([1, 500], [2, 3, 999])]
    assert t.shape == (2, 3)
    assert [n.op.name for n in tg.expr.topological([t.expr])] == ["full", "take", "take"]


def test_blocks_of_what_is_taken() -> None:
    x = tg.zeros((100, 8), chunks=(20, 8))
    assert tg.take(x, np.arange(50), axis=0).chunks == ((20, 20, 10), (8,))
    assert tg.take(x, tg.asarray(np.arange(50), chunks=25), axis=0).chunks == ((25, 25), (8,))
    assert tg.take(x, tg.asarray(np.arange(50), chunks=25) + 0, axis=0).chunks == ((25, 25), (8,))
    assert tg.pad(x, 1, "edge").chunks == ((1, 20, 20, 20, 20, 20, 1), (1, 8, 1))
    g = tg.gradients(tg.take(x, np.arange(50), axis=0), x)
    assert g.chunks == x.chunks


def test_an_embedding_trains() -> None:
    """Rows of a table by numbers that are fed, as in graph style."""
    rng = np.random.default_rng(0)
    table, at, target = rng.standard_normal((12, 3)), rng.integers(0, 12, 20), rng.standard_normal((20, 3))
    w, ids = tg.Variable(table, name="w"), tg.placeholder("int64", (20,), name="ids")
    loss = tg.mean((tg.take(w, ids, axis=0) - target) ** 2)
    with tg.Session() as session:
        session.run(w.assign(w - 0.1 * tg.gradients(loss, w)), {ids: at})
        gradient = np.zeros_like(table)
        np.add.at(gradient, at, 2 / 60 * (table[at] - target))
        np.testing.assert_allclose(session.run(w), table - 0.1 * gradient, rtol=1e-12)
        with pytest.raises(IndexError, match=r"'w' is \(12, 3\).*index 12 .*size 12"):
            session.run(loss, {ids: at * 0 + 12})


def test_descending_order_keeps_equal_elements_as_they_are() -> None:
    x = tg.asarray([2, 1, 2, 3, 1], chunks=2)
    np.testing.assert_array_equal(tg.argsort(x, descending=True).compute(), [3, 0, 2, 1, 4])
    small = tg.asarray(np.array([0, 200, 100], "u1"))
    np.testing.assert_array_equal(tg.sort(small, descending=True).compute(), [200, 100, 0])
