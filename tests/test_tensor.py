"""The tensor as users of NumPy, PyTorch, TensorFlow or Dask meet it: operators, protocols, gradients, sessions."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable
from typing import Any

import array_api_strict
import dask
import dask.array as da
import numpy as np
import pytest
from dask.base import is_dask_collection, tokenize
from same import same

import taskgraph as tg

pytestmark = pytest.mark.usefixtures("one_thread")

A = np.array([[1.5, 2.0, -3.0], [4.0, 0.5, 6.0]])
B = np.array([[2.0, 1.0, 3.0], [0.5, 2.0, 1.5]])
I = np.array([[1, 2, 3], [4, 5, 6]])  # noqa: E741
M = np.array([[1, 0, 1], [0, 1, 1]], dtype=bool)


# -- operators ---------------------------------------------------------------------------------------------------------

FLOAT_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne")
INT_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
    "eq",
    "lt",
)


@pytest.mark.parametrize("name", FLOAT_OPERATORS)
def test_operators_of_floats(name: str) -> None:
    f = getattr(operator, name)
    positive = np.abs(A)
    t = tg.asarray(positive, chunks=2)
    for other in (B, B[0], 2, 1.5, np.float64(2.5), np.float32(1.5), np.int64(3), np.asarray(2.0)):
        same(f(t, other), f(positive, other))
        same(f(other, t), f(other, positive))
        if isinstance(other, np.ndarray):
            same(f(t, tg.asarray(other)), f(positive, other))
    single = tg.asarray(positive, dtype="float32")
    for weak in (2, 1.5, np.float32(3), np.float64(3)):  # Python's numbers are weak, NumPy's are not
        same(f(single, weak), f(positive.astype("float32"), weak))
        same(f(weak, single), f(weak, positive.astype("float32")))


@pytest.mark.parametrize("name", INT_OPERATORS)
def test_operators_of_integers(name: str) -> None:
    f = getattr(operator, name)
    t = tg.asarray(I, chunks=2)
    for other in (I[::-1].copy(), 3, np.int8(2), np.asarray(1)):
        same(f(t, other), f(I, other))
        same(f(other, t), f(other, I))


@pytest.mark.parametrize("name", ["and_", "or_", "xor", "eq"])
def test_operators_of_booleans(name: str) -> None:
    f = getattr(operator, name)
    same(f(tg.asarray(M), True), f(M, True))
    same(f(tg.asarray(M), tg.asarray(~M)), f(M, ~M))


def test_unary_operators_and_products() -> None:
    t = tg.asarray(A)
    for f in (operator.neg, operator.pos, operator.abs):
        same(f(t), f(A))
    same(~tg.asarray(M), ~M)
    same(~tg.asarray(I), ~I)
    same(t @ B.T, A @ B.T)
    same(B.T @ t, B.T @ A)
    same(t @ tg.asarray(B).T, A @ B.T)
    t += 1  # rebinds: tensors are immutable
    same(t, A + 1)


def test_an_operand_of_another_kind_gets_its_say() -> None:
    class Other:
        def __radd__(self, t: Any) -> str:
            return "mine"

    assert tg.asarray(A) + Other() == "mine"
    with pytest.raises(TypeError):
        tg.asarray(A) + object()


METHODS: dict[str, Callable[[Any], Any]] = {
    **{
        n: operator.methodcaller(n)
        for n in ("sum", "prod", "mean", "max", "min", "std", "var", "argmax", "argmin", "any", "all")
    },
    **{f"{n} of axis": operator.methodcaller(n, 1) for n in ("sum", "mean", "max", "std", "argmin")},
    "keepdims": operator.methodcaller("sum", axis=0, keepdims=True),
    "reshape": operator.methodcaller("reshape", 3, 2),
    "reshape tuple": operator.methodcaller("reshape", (3, -1)),
    "reshape flat": operator.methodcaller("reshape", -1),
    "astype": operator.methodcaller("astype", "float32"),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "index": lambda x: x[1],
    "slice": lambda x: x[:, ::-1],
    "new": lambda x: x[None, ..., 0],
    "empty": lambda x: x[:, 3:],
    "numpy index": lambda x: x[np.int64(0), np.int8(-1)],
    "list": lambda x: x[[1, 0, 1]],
    "arrays": lambda x: x[[0, 1, 1], np.array([2, 0, 0])],
    "number of NumPy's": lambda x: x[:, np.array(1)],
    "mask": lambda x: x[A > 1],
    "mask of an axis": lambda x: x[:, [True, False, True]],
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    same(METHODS[name](tg.asarray(A, chunks=2)), METHODS[name](A))


# -- NumPy's protocols -------------------------------------------------------------------------------------------------

NUMPY: dict[str, Callable[[Any], Any]] = {
    **{
        n: getattr(np, n)
        for n in (
            "sin",
            "absolute",
            "exp",
            "arctan",
            "negative",
            "square",
            "rint",
            "sign",
            "isnan",
            "conjugate",
            "sum",
            "mean",
            "max",
            "amin",
            "prod",
            "any",
            "all",
            "argmax",
            "count_nonzero",
            "std",
            "var",
            "transpose",
            "flip",
            "squeeze",
            "zeros_like",
            "ones_like",
            "tril",
            "real",
            "shape",
            "ndim",
            "size",
        )
    },
    "add": lambda x: np.add(x, B),
    "add from the left": lambda x: np.add(B, x),
    "power": lambda x: np.power(np.abs(x), 2.0),
    "arctan2": lambda x: np.arctan2(B, x),
    "matmul": lambda x: np.matmul(B.T, x),
    "maximum": lambda x: np.maximum(x, 1),
    "vecdot": lambda x: np.vecdot(x, B),
    "clip": lambda x: np.clip(x, -1, 1),
    "where": lambda x: np.where(x > 1, x, 0),
    "sum of axis": lambda x: np.sum(x, 0),
    "sum keepdims": lambda x: np.sum(x, axis=1, keepdims=True),
    "std ddof": lambda x: np.std(x, 0, ddof=1),
    "var ddof": lambda x: np.var(x, ddof=1),
    "concatenate": lambda x: np.concatenate([x, B]),
    "concatenate axis": lambda x: np.concatenate([x, B], 1),
    "stack": lambda x: np.stack([x, x], 1),
    "reshape": lambda x: np.reshape(x, (3, 2)),
    "roll": lambda x: np.roll(x, 1, 0),
    "tril k": lambda x: np.tril(x, 1),
    "triu k": lambda x: np.triu(x, k=1),
    "transpose axes": lambda x: np.transpose(x, (1, 0)),
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "broadcast_to": lambda x: np.broadcast_to(x, (2, 2, 3)),
    "tensordot": lambda x: np.tensordot(x, B, 2),
    "einsum": lambda x: np.einsum("ij,kj->ik", x, B),
    "outer": lambda x: np.outer(x[0], x[1]),
    "full_like": lambda x: np.full_like(x, 3),
    "tile": lambda x: np.tile(x, (2, 1)),
    "sort": lambda x: np.sort(x),
    "argsort": lambda x: np.argsort(x, axis=0),
    "take": lambda x: np.take(x, [0, 2, 0], axis=1),
    "take flat": lambda x: np.take(x, [[0, 5]]),
    "take_along_axis": lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1),
    "searchsorted": lambda x: np.searchsorted([0.0, 1.5, 4.0], x),
    "isin": lambda x: np.isin(x, [2.0, 6.0]),
    "pad": lambda x: np.pad(x, 1, "reflect"),
}


@pytest.mark.parametrize("name", NUMPY)
def test_functions_of_numpy(name: str) -> None:
    found = NUMPY[name](tg.asarray(A, chunks=2))
    assert isinstance(found, tg.Tensor) or name in ("shape", "ndim", "size")
    same(found, NUMPY[name](A))


NOT_OURS: dict[str, Callable[[tg.Tensor], Any]] = {
    "reduce": lambda t: np.add.reduce(t),
    "accumulate": lambda t: np.add.accumulate(t),
    "linalg": lambda t: np.linalg.inv(t),
    "fft": lambda t: np.fft.fft2(t),
    "unique": lambda t: np.unique(t),
    "take by mode": lambda t: np.take(t, [9], mode="wrap"),
    "out": lambda t: np.add(t, t, out=np.zeros((2, 3))),
    "where": lambda t: np.add(t, t, where=M),
    "initial": lambda t: np.max(t, initial=3.0),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_functions_of_numpy_that_are_not_ours_say_so(name: str) -> None:
    with pytest.raises(TypeError):
        NOT_OURS[name](tg.asarray(A))


def test_numpy_takes_the_values() -> None:
    t = tg.asarray(A)
    same(np.asarray(t), A)
    same(np.asarray(t, dtype="float32"), A.astype("float32"))
    np.testing.assert_allclose(t, A)
    same(np.array([1.0, 2.0]) * tg.asarray(2.0), [2.0, 4.0])


# -- the array API -----------------------------------------------------------------------------------------------------

#: Functions of the standard (2024.12) that the facade lacks; the list can only shrink.
MISSING = {
    "nonzero",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
    "__array_namespace_info__",
}
NOT_STANDARD = {"fft", "linalg", "ArrayAPIStrictFlags", "Device"}
STANDARD = {n for n in array_api_strict.__all__ if not n.endswith("_array_api_strict_flags")} - NOT_STANDARD
#: Parameters of the standard that ours lack.
MISSING_PARAMETERS = {("astype", "device")}


def test_which_functions_of_the_standard_are_missing() -> None:
    assert {n for n in STANDARD if not hasattr(tg, n)} <= MISSING


def _signature(f: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(f)
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize("name", sorted(n for n in STANDARD if hasattr(tg, n)))
def test_signatures_are_those_of_the_standard(name: str) -> None:
    theirs, ours = _signature(getattr(array_api_strict, name)), _signature(getattr(tg, name))
    if theirs is None or ours is None or isinstance(getattr(tg, name), type):
        return  # a dtype, a constant, or a class of NumPy's
    arrays = [p for p in theirs.parameters.values() if p.kind is p.POSITIONAL_ONLY]
    named = [p for p in theirs.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = {p.name: p.default for p in named if (name, p.name) not in MISSING_PARAMETERS}
    ours.bind(*arrays, **given)  # TypeError where ours could not be called like theirs
    for p in named:
        if p.default is not p.empty and p.name in given and p.default is not None and not isinstance(p.default, bool):
            mine = ours.parameters[p.name].default
            assert mine == p.default or repr(p.default).startswith("<"), (p.name, mine, p.default)


def test_the_namespace_of_a_tensor() -> None:
    xp = tg.asarray(A).__array_namespace__()
    assert xp is tg
    assert xp.__array_api_version__ == "2024.12"
    same(xp.sum(xp.asarray(I, dtype=xp.float32)), np.float32(21))
    assert (xp.float32, xp.newaxis, xp.pi) == (np.float32, None, np.pi)
    assert set(xp.__dir__()) >= {"gradients", "LocalCluster", "asarray", "Session"}
    with pytest.raises(AttributeError, match="nope"):
        xp.nope  # noqa: B018
    for name in ("nonzero", "unique_values"):
        assert not hasattr(xp, name)
        with pytest.raises(AttributeError, match=f"{name}.*depends on values.*compute"):
            getattr(xp, name)


# -- how it looks ------------------------------------------------------------------------------------------------------


def test_repr() -> None:
    x = tg.placeholder("float32", (4, 6), name="x", chunks=(2, 4))
    assert repr(x) == "tg.Tensor('x', placeholder, shape=(4, 6), dtype=float32, chunks=(2, 4), device=auto)"
    assert repr(x.cuda(1)) == "tg.Tensor(move, shape=(4, 6), dtype=float32, chunks=(2, 4), device=gpu:1)"
    assert repr(tg.tensor([1.0], requires_grad=True)).endswith("device=auto, requires_grad=True)")
    assert repr(tg.Variable([1.0], name="w")).startswith("tg.Variable('w', variable, shape=(1,)")
    assert "chunks=()" in repr(tg.sum(x))
    assert "shape=(0, 3)" in repr(tg.zeros((0, 3)))


def test_repr_computes_nothing() -> None:
    t = tg.from_dask(da.ones(4).map_blocks(_fail, dtype=float, meta=np.empty(0)))
    for text in (repr(t), t._repr_html_(), str(t)):
        assert "(4,)" in text


def _fail(x: Any) -> Any:
    raise AssertionError("it ran")


def test_html() -> None:
    html = (tg.ones((40, 60), chunks=20) * 2)._repr_html_()
    assert "<b>tg.Tensor</b>: multiply, 3 expressions, device auto" in html
    assert "18.75 kiB" in html
    assert "<svg" in html


# -- values ------------------------------------------------------------------------------------------------------------


def test_python_takes_the_values() -> None:
    t = tg.asarray([[2.5]])
    assert (float(t), int(t), complex(t), bool(t), t.item()) == (2.5, 2, 2.5 + 0j, True, 2.5)
    assert type(tg.asarray(3).item()) is int
    assert not tg.asarray(0.0)
    assert len(tg.asarray(A)) == 2
    rows = list(tg.asarray(A))
    assert all(isinstance(r, tg.Tensor) for r in rows)
    same(rows[1], A[1])
    assert isinstance(tg.sum(tg.asarray(A)).compute(), np.float64)
    same(tg.asarray(A).numpy(), A)
    assert (tg.asarray(A).nbytes, tg.asarray(A).size, tg.asarray(A).ndim) == (48, 6, 2)


def test_computed_values_are_the_users_own() -> None:
    t = tg.asarray(A)
    for make in (lambda: t, lambda: t + 1, lambda: tg.reshape(t, (6,)), lambda: t.T, lambda: tg.ones(3), lambda: t[0]):
        first = make().compute()
        kept = first.copy()
        with contextlib.suppress(ValueError):  # read-only is as safe
            first[...] = -1
        same(make(), kept)


def test_persist() -> None:
    ran: list[int] = []

    def note(x: Any) -> Any:
        ran.append(1)
        return x

    t = tg.from_dask(da.ones(6, chunks=2).map_blocks(note, dtype=float, meta=np.empty(0))) + 1
    kept = t.persist()
    assert len(ran) == 3
    assert isinstance(kept, tg.Tensor)
    assert (kept.shape, kept.dtype, kept.chunks) == (t.shape, t.dtype, t.chunks)
    same(kept * 2, np.full(6, 4.0))
    same(tg.sum(kept), 12.0)
    assert len(ran) == 3
    assert not (tg.tensor([1.0], requires_grad=True) * 2).persist().requires_grad
    x = tg.tensor([1.0, 2.0], requires_grad=True).persist()
    x.requires_grad = True
    tg.sum(x * x).backward()
    same(x.grad, [2.0, 4.0])


def test_explain_says_what_would_run_and_runs_nothing() -> None:
    t = tg.from_dask(da.ones((8, 8), chunks=4).map_blocks(_fail, dtype=float, meta=np.empty((0, 0))))
    text = (t @ t).explain(tg.Machine(devices=[tg.Device("cpu", 2**30, 10.0)]))
    assert "(8, 8) @ (8, 8) float64" in text
    assert "on cpu workers" in text


# -- asarray -----------------------------------------------------------------------------------------------------------


def test_asarray_is_a_snapshot() -> None:
    values = A.copy()
    t = tg.asarray(values)
    values[...] = 0
    same(t, A)


@pytest.mark.parametrize(
    "what", [3, 2.5, 1j, True, [1, 2], (1.0, 2.0), [[1], [2]], np.float32(2), range(4), [np.int8(1)], []]
)
def test_asarray_has_numpys_types(what: Any) -> None:
    same(tg.asarray(what), np.asarray(what))
    same(
        tg.tensor(what, dtype="float32") if np.asarray(what).dtype.kind != "c" else tg.asarray(what),
        np.asarray(what, dtype="float32") if np.asarray(what).dtype.kind != "c" else np.asarray(what),
    )


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4"])
def test_asarray_of_any_layout(dtype: str) -> None:
    base = (np.arange(24) % 2).astype(dtype).reshape(4, 6)
    for values in (base, base[::2, ::-1], np.asfortranarray(base), base.T):
        t = tg.asarray(values, chunks=2)
        np.testing.assert_array_equal(t.compute(), values)
        np.testing.assert_array_equal((t + t).compute(), values + values)


def test_asarray_of_others() -> None:
    t = tg.asarray(A, chunks=(1, 2))
    assert t.chunks == ((1, 1), (2, 1))
    assert tg.asarray(t).expr is t.expr
    assert tg.asarray(t, chunks=(2, 3)).chunks == ((2,), (3,))
    assert tg.asarray(t, dtype="float32").dtype == np.float32
    d = da.from_array(A, chunks=(2, 1))
    assert tg.asarray(d).chunks == d.chunks
    same(tg.asarray(d, dtype="float32", chunks=1), A.astype("float32"))
    same(tg.from_dlpack(A), A)
    x = tg.asarray(A, requires_grad=True)
    assert x.is_leaf
    assert tg.asarray(x, requires_grad=True) is not x
    assert tg.asarray([1.0], device="cpu").device == "cpu"


def test_creation_matches_numpy() -> None:
    for chunks in ("auto", 2):
        same(tg.arange(5, chunks=chunks), np.arange(5))
        same(tg.arange(5, 0, -2, chunks=chunks), np.arange(5, 0, -2))
        same(tg.arange(0, 1, 0.3, chunks=chunks), np.arange(0, 1, 0.3))
        same(tg.arange(3, dtype="float32", chunks=chunks), np.arange(3, dtype="float32"))
        for n, endpoint in ((5, True), (5, False), (1, True), (1, False), (0, True)):
            same(tg.linspace(1, 2, n, endpoint=endpoint, chunks=chunks), np.linspace(1, 2, n, endpoint=endpoint))
        same(tg.eye(4, 5, k=-1, chunks=chunks), np.eye(4, 5, k=-1))
        same(tg.full((3, 3), 7, chunks=chunks), np.full((3, 3), 7))
        same(tg.empty((2, 2), chunks=chunks), np.zeros((2, 2)))
    for k in (-1, 0, 1):
        same(tg.triu(tg.asarray(A, chunks=2), k=k), np.triu(A, k))
    for ours, theirs in zip(tg.meshgrid([1, 2], [3, 4, 5]), np.meshgrid([1, 2], [3, 4, 5]), strict=True):
        same(ours, theirs)
    same(tg.zeros_like(tg.asarray(I)), np.zeros_like(I))
    same(tg.ones_like(A, dtype="int8"), np.ones_like(A, dtype="int8"))


# -- where it runs -----------------------------------------------------------------------------------------------------


def test_pins() -> None:
    t = tg.asarray(A)
    assert t.device == "auto"
    assert [t.cuda().device, t.cuda(1).device, t.cpu().device, t.to("cuda:2").device] == [
        "gpu",
        "gpu:1",
        "cpu",
        "gpu:2",
    ]
    with tg.device("/device:GPU:0"):
        c = t @ B.T
        with tg.device(None):
            assert (t + 1).device == "auto"
        assert (t + 1).device == "gpu:0"
    assert c.device == "gpu:0"
    assert (c + 1).device == "auto"
    assert (t + 1).device == "auto"
    same((t.cpu() + 1).cpu(), A + 1)
    with tg.device("cpu"):
        assert tg.randn(2, 2).device == "cpu"
    assert tg.zeros(3, device="gpu").device == "gpu"
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    with tg.device("gpu"):
        y = tg.sum(tg.sin(x))
    g = tg.gradients(y, x)
    assert g.device == "gpu"  # a gradient runs where its operation does


# -- Dask --------------------------------------------------------------------------------------------------------------


def test_to_and_from_dask() -> None:
    d = da.from_array(A, chunks=(1, 2))
    t = tg.from_dask(d)
    assert (t.shape, t.dtype, t.chunks) == (d.shape, d.dtype, d.chunks)
    same(t, A)
    back = (t * 2).to_dask()
    assert isinstance(back, da.Array)
    assert back.chunks == d.chunks
    same((back + 1).compute(), A * 2 + 1)
    same(tg.from_dask(back) @ tg.from_dask(back).T, (2 * A) @ (2 * A).T)
    same(tg.from_dask((tg.from_dask(d) + 1).to_dask()[0]), A[0] + 1)
    with pytest.raises(ValueError, match="shape must be known"):
        tg.from_dask(d[d > 0])


def test_a_tensor_is_a_dask_collection() -> None:
    t = tg.asarray(A, chunks=2)
    u = t @ t.T
    assert is_dask_collection(t)
    first, second, plain = dask.compute(u, {"a": [t + 1]}, 3)
    same(first, A @ A.T)
    same(second["a"][0], A + 1)
    assert plain == 3
    kept, mixed = dask.persist(u, da.ones(3))
    assert isinstance(kept, tg.Tensor)
    assert isinstance(mixed, da.Array)
    assert (kept.shape, kept.dtype, kept.chunks) == (u.shape, u.dtype, u.chunks)
    same(kept, A @ A.T)
    same(tg.sum(kept) * 2, 2 * (A @ A.T).sum())
    same(dask.delayed(np.sum)(t).compute(), A.sum())
    (optimized,) = dask.optimize(t)
    same(optimized.compute(), A)
    same(dask.compute(tg.sum(t))[0], A.sum())


def test_tokens() -> None:
    t = tg.asarray(A)
    assert tokenize(t + 1) == tokenize(t + 1)
    assert tokenize(t + 1) != tokenize(t + 2)
    assert tokenize(t) != tokenize(tg.asarray(A))
    assert hash(t) == hash(t)
    assert len({t, t, t + 1}) == 2
