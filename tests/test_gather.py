"""Taking by position, and what is made of it: indexing by arrays, sorting, searching, padding; and what runs for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskgraph as tg
from autodiff.forward import tangents


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
