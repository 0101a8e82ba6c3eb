"""Bad input gets a clear error where it is made: the right type, in words that name the operation, the shapes and the
user's own names; and nothing is left half done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import taskgraph as tg

X = tg.placeholder("float32", (2, 3), name="X")
W = tg.placeholder("float32", (4, 5), name="W")
V = tg.asarray([1.0, 2.0, 3.0])
INTS = tg.asarray([1, 2, 3])
BOOLS = tg.asarray([True, False, True])
COMPLEX = tg.asarray([1j, 2j])
ONE_CPU = tg.Machine(devices=[tg.Device("cpu", 2**30, 10.0)])
ONE_GPU = tg.Machine(devices=[tg.Device("gpu", 2**30, 10.0)])
BOTH = tg.Machine(devices=[*ONE_CPU.devices, *ONE_GPU.devices])


@dataclass(frozen=True)
class Bad:
    """A mistake, and the error that it must get: the type and what the message contains."""

    what: str
    make: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return self.what.replace(" ", "-")


def bad(what: str, make: Callable[[], Any], error: type[Exception], *says: str) -> Bad:
    return Bad(what, make, error, says)


NAMED = ("'X'", "(2, 3)", "'W'", "(4, 5)")


def both(name: str, make: Callable[[], Any]) -> Bad:
    """An operation on X and W, whose shapes do not fit."""
    return bad(f"{name} of X and W", make, ValueError, name, *NAMED)


SHAPES = [
    *[
        both(n, lambda n=n: getattr(tg, n)(X, W))
        for n in (
            "add",
            "subtract",
            "multiply",
            "divide",
            "pow",
            "maximum",
            "minimum",
            "remainder",
            "floor_divide",
            "atan2",
            "hypot",
            "logaddexp",
            "copysign",
            "nextafter",
            "equal",
            "less",
            "greater_equal",
            "logical_and",
        )
    ],
    both("add", lambda: X + W),
    both("subtract", lambda: X - W),
    both("less", lambda: X < W),
    both("matmul", lambda: X @ W),
    both("where", lambda: tg.where(X > 0, X, W)),
    both("maximum", lambda: tg.clip(X, W)),
    both("matmul", lambda: tg.matmul(X, W)),
    both("matmul", lambda: tg.mm(X, W)),
    both("tensordot", lambda: tg.tensordot(X, W)),
    both("tensordot", lambda: tg.tensordot(X, W, axes=1)),
    both("tensordot", lambda: tg.tensordot(X, W, axes=3)),
    both("tensordot", lambda: tg.tensordot(X, W, axes=-1)),
    both("tensordot", lambda: tg.tensordot(X, W, axes=((0,), (1,)))),
    both("vecdot", lambda: tg.vecdot(X, W)),
    both("outer", lambda: tg.outer(X, W)),
    both("einsum", lambda: tg.einsum("ij,jk->ik", X, W)),
    both("concat", lambda: tg.concat([X, W])),
    both("stack", lambda: tg.stack([X, W])),
    both("broadcast_arrays", lambda: tg.broadcast_arrays(X, W)),
    bad("matmul, inner sizes", lambda: X @ W, ValueError, "3 != 4"),
    bad("matmul of a vector", lambda: V @ W, ValueError, "matmul", "'W'", "3 != 4"),
    bad(
        "matmul, leading axes",
        lambda: tg.zeros((2, 3, 4)) @ tg.zeros((3, 4, 5)),
        ValueError,
        "matmul",
        "leading",
        "(2, 3, 4)",
        "(3, 4, 5)",
    ),
    bad("matmul of a number", lambda: X @ tg.asarray(2.0), ValueError, "matmul", "'X'", "one dimension"),
    bad("mm of a vector", lambda: tg.mm(V, X), ValueError, "mm", "(3,)", "'X' is (2, 3) float32", "matmul"),
    bad(
        "tensordot, equal sizes otherwise",
        lambda: tg.tensordot(X, tg.reshape(X, (3, 2)), axes=2),
        ValueError,
        "tensordot",
        "'X'",
        "(3, 2)",
    ),
    bad(
        "tensordot, no such axis",
        lambda: tg.tensordot(X, W, axes=((0,), (7,))),
        ValueError,
        "tensordot",
        "axis 7",
        "'W'",
    ),
    bad(
        "tensordot, an axis twice", lambda: tg.tensordot(X, X, axes=((0, 0), (0, 0))), ValueError, "tensordot", "twice"
    ),
    bad("tensordot, three axes", lambda: tg.tensordot(X, W, axes=(0, 1, 2)), ValueError, "tensordot", "pair"),
    bad("vecdot, leading axes", lambda: tg.vecdot(X, tg.zeros((4, 3))), ValueError, "(2, 3)", "(4, 3)"),
    bad("vecdot, axis", lambda: tg.vecdot(X, X, axis=0), ValueError, "vecdot", "axis"),
    bad("einsum, letters", lambda: tg.einsum("ij,jk->iz", X, X.T), ValueError, "einsum", "ij,jk->iz", "'X'"),
    bad("einsum, operands", lambda: tg.einsum("ij,jk->ik", X), ValueError, "einsum", "'X'"),
    bad("einsum, dimensions", lambda: tg.einsum("ijk->i", X), ValueError, "einsum", "ijk->i", "(2, 3)"),
    bad("einsum, diagonal", lambda: tg.einsum("ii->i", X), ValueError, "einsum", "(2, 3)"),
    bad("einsum of nothing", lambda: tg.einsum("ij"), ValueError, "einsum", "array"),
    *[
        bad(f"{n}, axis", lambda n=n: getattr(tg, n)(X, axis=5), ValueError, "axis 5", "2 dimensions")
        for n in (
            "sum",
            "prod",
            "mean",
            "max",
            "min",
            "all",
            "any",
            "argmax",
            "argmin",
            "std",
            "var",
            "logsumexp",
            "count_nonzero",
            "cumulative_sum",
            "flip",
            "squeeze",
            "unstack",
        )
    ],
    *[
        bad(f"{n}, axis twice", lambda n=n: getattr(tg, n)(X, axis=(1, -1)), ValueError, n, "twice")
        for n in ("sum", "prod", "mean", "max", "min", "all", "any", "var")
    ],
    *[
        bad(f"{n}, axis {a!r}", lambda n=n, a=a: getattr(tg, n)(X, axis=a), TypeError, f"{n}: axis", repr(a))
        for n in ("sum", "mean", "max", "std", "logsumexp", "count_nonzero", "flip", "cumulative_prod", "diff")
        for a in (1.5, "a")
    ],
    bad("zeros of a number", lambda: tg.zeros(2.5), TypeError, "zeros: shape", "2.5"),
    bad("ones of a word", lambda: tg.ones("a"), TypeError, "ones: shape", "'a'"),
    bad("roll by a fraction", lambda: tg.roll(X, 1.5), TypeError, "roll: shift", "1.5"),
    bad("tile by a fraction", lambda: tg.tile(X, 1.5), TypeError, "tile", "1.5"),
    bad("linspace of a fraction", lambda: tg.linspace(0, 1, 2.5), TypeError, "linspace: num", "2.5"),
    bad("diff, how often", lambda: tg.diff(X, n=-1), ValueError, "diff", "-1"),
    bad("argmax along what is empty", lambda: tg.argmax(tg.zeros((0, 3)), axis=0), ValueError, "argmax", "(0, 3)"),
    bad("einsum, a diagonal of one", lambda: tg.einsum("ii->i", tg.ones((1, 3))), ValueError, "einsum", "(1, 3)"),
    bad("argmax, two axes", lambda: tg.argmax(X, axis=(0, 1)), TypeError, "argmax", "(0, 1)"),
    *[
        bad(f"{n} of nothing", lambda n=n: getattr(tg, n)(tg.zeros((0, 3))), ValueError, n, "(0, 3)")
        for n in ("max", "min", "argmax", "argmin")
    ],
    bad("cumulative_sum without an axis", lambda: tg.cumulative_sum(X), ValueError, "cumulative_sum", "axis", "2 dim"),
    *[
        bad(
            f"reshape to {s}",
            lambda s=s: tg.reshape(X, s),
            ValueError,
            "reshape",
            "'X'",
            "(2, 3)",
            re.sub(r"\s", "", str(s))[:2],
        )
        for s in ((4, 2), (-1, -1), (4, -1), (-6,))
    ],
    bad("reshape to a fraction", lambda: tg.reshape(X, (2.0, 3.0)), TypeError, "reshape: shape", "(2.0, 3.0)"),
    bad("expand_dims", lambda: tg.expand_dims(X, axis=5), ValueError, "expand_dims", "axis 5"),
    bad("squeeze", lambda: tg.squeeze(X, 0), ValueError, "squeeze", "axis 0", "'X'", "length 2"),
    bad("permute_dims, an axis twice", lambda: tg.permute_dims(X, (0, 0)), ValueError, "permute_dims", "(0, 0)", "'X'"),
    bad("permute_dims, too few", lambda: tg.permute_dims(X, (0,)), ValueError, "permute_dims", "'X'"),
    bad("moveaxis", lambda: tg.moveaxis(X, (0, 1), 0), ValueError, "moveaxis", "2 axes to 1"),
    bad("mT of a vector", lambda: V.mT, ValueError, "matrix_transpose", "(3,)"),
    bad("T of a vector", lambda: V.T, ValueError, "T:", "(3,)", "permute_dims"),
    bad("T of a stack", lambda: tg.zeros((2, 3, 4)).T, ValueError, "(2, 3, 4)", "mT"),
    bad("broadcast_to", lambda: tg.broadcast_to(X, (4, 3)), ValueError, "broadcast_to", "'X'", "(2, 3)", "(4, 3)"),
    bad("broadcast_to fewer axes", lambda: tg.broadcast_to(X, (3,)), ValueError, "broadcast_to", "'X'", "(3,)"),
    bad(
        "broadcast_to negative",
        lambda: tg.broadcast_to(tg.ones((1, 3)), (-1, 3)),
        ValueError,
        "broadcast_to",
        "(-1, 3)",
    ),
    bad("concat, axis", lambda: tg.concat([X, X], axis=2), ValueError, "concat", "axis 2"),
    bad("concat of nothing", lambda: tg.concat([]), ValueError, "concat"),
    bad("stack of nothing", lambda: tg.stack([]), ValueError, "stack"),
    bad("stack, axis", lambda: tg.stack([X, X], axis=4), ValueError, "stack", "axis 4"),
    bad("roll, shifts", lambda: tg.roll(X, (1, 2), axis=0), ValueError, "roll", "2 shifts for 1"),
    bad("roll, axis", lambda: tg.roll(X, 1, axis=7), ValueError, "roll", "axis 7"),
    bad("roll flattened by two", lambda: tg.roll(X, (1, 2)), ValueError, "roll", "shifts"),
    bad("tile", lambda: tg.tile(X, (-1,)), ValueError, "tile", "-1"),
    bad("tril of a vector", lambda: tg.tril(V), ValueError, "tril", "(3,)"),
    bad("triu of a vector", lambda: tg.triu(V), ValueError, "triu", "(3,)"),
    bad("meshgrid of a matrix", lambda: tg.meshgrid(X, V), ValueError, "meshgrid", "(2, 3)"),
    bad("meshgrid, indexing", lambda: tg.meshgrid(V, V, indexing="yx"), ValueError, "meshgrid", "'yx'"),
    bad("rechunk, dimensions", lambda: X.rechunk((5, 5, 5)), ValueError, "(5, 5, 5)", "(2, 3)"),
    bad("rechunk, sizes", lambda: X.rechunk(((1, 2), (3,))), ValueError, "((1, 2), (3,))", "(2, 3)"),
    bad("zeros of a negative size", lambda: tg.zeros((2, -1)), ValueError, "(2, -1)"),
    bad("zeros of a fraction", lambda: tg.zeros((2.5,)), TypeError, "zeros: shape", "2.5"),
    bad("eye of a fraction", lambda: tg.eye(2.5), TypeError, "eye: shape", "2.5"),
    bad("randn of a negative size", lambda: tg.randn(2, -1), ValueError, "(2, -1)"),
    bad("randn of a fraction", lambda: tg.randn(2.5), TypeError, "randn: shape", "2.5"),
    bad("linspace", lambda: tg.linspace(0, 1, -1), ValueError, "linspace", "-1"),
    bad("arange", lambda: tg.arange(0, 1, 0), ValueError, "arange", "step"),
    bad("a ragged list", lambda: tg.asarray([[1], [1, 2]]), ValueError, "inhomogeneous"),
    bad("placeholder of unknown size", lambda: tg.placeholder("float32", (None, 2)), ValueError, "placeholder", "None"),
    bad("placeholder of negative size", lambda: tg.placeholder("float32", (-1, 2)), ValueError, "placeholder", "-1"),
]

SQUARE = tg.placeholder("float64", (3, 3), name="S")
LINALG = [
    *[
        bad(
            f"{n} of what is not square", lambda n=n: getattr(tg.linalg, n)(X), ValueError, n, "square", "'X'", "(2, 3)"
        )
        for n in ("cholesky", "inv", "det", "slogdet", "eigh", "eigvalsh")
    ],
    *[
        bad(f"{n} of a vector", lambda n=n: getattr(tg.linalg, n)(V), ValueError, n, "two axes", "(3,)")
        for n in ("cholesky", "inv", "eigvalsh", "eigh", "qr", "svd", "svdvals", "diagonal", "trace", "matrix_norm")
    ],
    *[
        bad(f"{n} of complex numbers", lambda n=n: getattr(tg.linalg, n)(COMPLEX), TypeError, n, "complex128")
        for n in ("cholesky", "slogdet", "eigh", "eigvalsh", "qr", "svd", "svdvals")
    ],
    bad(
        "nuclear norm of complex numbers",
        lambda: tg.linalg.matrix_norm(tg.eye(2) * 1j, ord="nuc"),
        TypeError,
        "complex128",
    ),
    bad("inv of half precision", lambda: tg.linalg.inv(tg.eye(3, dtype="f2")), TypeError, "inv", "float16"),
    # -- Fourier transforms
    *[
        bad(f"{n} of complex numbers", lambda n=n: getattr(tg.fft, n)(COMPLEX), TypeError, n, "real", "complex128")
        for n in ("rfft", "rfftn", "ihfft")
    ],
    *[
        bad(f"{n} of a number", lambda n=n: getattr(tg.fft, n)(1.0), ValueError, n)
        for n in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "rfftn", "irfftn")
    ],
    bad("fft along no such axis", lambda: tg.fft.fft(X, axis=2), ValueError, "fft", "axis 2", "2 dimensions"),
    bad("fft of no length", lambda: tg.fft.fft(X, n=0), ValueError, "fft", "length", "0"),
    bad("fft of half a length", lambda: tg.fft.fft(X, n=2.5), TypeError, "fft: n", "2.5"),
    bad("fft of nothing", lambda: tg.fft.fft(tg.zeros((3, 0))), ValueError, "fft", "length", "0"),
    bad("irfft of one", lambda: tg.fft.irfft(tg.zeros((3, 1))), ValueError, "irfft", "length", "0"),
    bad("fft in no norm", lambda: tg.fft.fft(X, norm="unitary"), ValueError, "fft", "norm", "ortho", "'unitary'"),
    bad("hfft in no norm", lambda: tg.fft.hfft(X, norm="unitary"), ValueError, "hfft", "norm", "'unitary'"),
    bad("fftn along an axis twice", lambda: tg.fft.fftn(X, axes=(0, -2)), ValueError, "fftn", "twice"),
    bad("fftn, sizes and axes", lambda: tg.fft.fftn(X, s=(4, 4), axes=(0,)), ValueError, "fftn", "2 sizes", "1 axes"),
    bad("fftn, sizes", lambda: tg.fft.fftn(X, s=(4, 4, 4)), ValueError, "fftn", "3 sizes", "'X'"),
    bad("fftn of no size", lambda: tg.fft.fftn(X, s=(4, 0)), ValueError, "fftn", "length", "0"),
    bad("rfftn along no axis", lambda: tg.fft.rfftn(X, axes=()), ValueError, "rfftn", "one axis", "'X'"),
    bad("fftfreq of integers", lambda: tg.fft.fftfreq(4, dtype=int), TypeError, "fftfreq", "floating", "int64"),
    bad("rfftfreq of no distance", lambda: tg.fft.rfftfreq(4, d=0), ValueError, "rfftfreq", "0"),
    bad("fftfreq of none", lambda: tg.fft.fftfreq(0), ValueError, "fftfreq", "0"),
    bad("fftshift along no such axis", lambda: tg.fft.fftshift(X, axes=2), ValueError, "fftshift", "axis 2"),
    bad("cholesky of half precision", lambda: tg.linalg.cholesky(tg.eye(3, dtype="f2")), TypeError, "float16"),
    bad("solve, sizes", lambda: tg.linalg.solve(SQUARE, X), ValueError, "solve", "'S'", "(3, 3)", "'X'", "3 != 2"),
    bad("solve, not square", lambda: tg.linalg.solve(X, W), ValueError, "solve", "square", *NAMED),
    bad("solve, a number", lambda: tg.linalg.solve(SQUARE, 1.0), ValueError, "solve", "'S'"),
    bad(
        "solve, leading axes",
        lambda: tg.linalg.solve(tg.zeros((2, 3, 3)), tg.zeros((4, 3, 1))),
        ValueError,
        "leading",
        "(2, 3, 3)",
        "(4, 3, 1)",
    ),
    bad("qr, mode", lambda: tg.linalg.qr(X, mode="complete"), ValueError, "qr", "'complete'"),
    bad("svd, all vectors", lambda: tg.linalg.svd(X, full_matrices=True), ValueError, "svd", "full_matrices"),
    bad("vector_norm, ord", lambda: tg.linalg.vector_norm(V, ord="fro"), ValueError, "vector_norm", "'fro'"),
    bad("vector_norm, axis", lambda: tg.linalg.vector_norm(V, axis=1), ValueError, "vector_norm", "axis 1"),
    bad("matrix_norm, ord", lambda: tg.linalg.matrix_norm(X, ord=3), ValueError, "matrix_norm", "not 3"),
    bad("diagonal, offset", lambda: tg.linalg.diagonal(X, offset=0.5), TypeError, "diagonal: offset", "0.5"),
    bad("trace in objects", lambda: tg.linalg.trace(X, dtype="O"), TypeError, "trace", "object"),
]

NOT_NUMERIC: list[Any] = [["a"], [object()], np.array(["2020"], "M8[D]"), np.zeros(2, [("a", int)]), [None], [b"x"]]

DTYPES = [
    *[
        bad(f"asarray of {np.asarray(x).dtype}", lambda x=x: tg.asarray(x), TypeError, "asarray", "numeric")
        for x in NOT_NUMERIC
    ],
    *[
        bad(f"Variable of {np.asarray(x).dtype}", lambda x=x: tg.Variable(x), TypeError, "numeric")
        for x in NOT_NUMERIC[:2]
    ],
    *[
        bad(f"{name} of {d}", lambda f=f, d=d: f(d), TypeError, "numeric", str(np.dtype(d)))
        for d in ("O", "U3", "M8[s]", "m8[s]")
        for name, f in {
            "asarray": lambda d: tg.asarray([1], dtype=d),
            "astype": lambda d: tg.astype(X, d),
            "zeros": lambda d: tg.zeros(3, dtype=d),
            "placeholder": lambda d: tg.placeholder(d, (2,)),
            "eye": lambda d: tg.eye(3, dtype=d),
        }.items()
    ],
    bad(
        "from_dask of objects",
        lambda: tg.from_dask(da.from_array(np.array(["a"]), chunks=1)),
        TypeError,
        "from_dask",
        "<U1",
    ),
    bad("from_dask of a list", lambda: tg.from_dask([1]), TypeError, "from_dask", "list"),
    bad("sin of a string", lambda: tg.sin("a"), TypeError, "sin", "numeric"),
    bad("where of a string", lambda: tg.where(X > 0, "a", 1), TypeError, "where", "numeric"),
    bad("clip by a string", lambda: tg.clip(X, "a"), TypeError, "clip", "numeric"),
    bad("matmul with a string", lambda: tg.matmul(X, "a"), TypeError, "matmul", "numeric"),
    bad("sum of a string", lambda: tg.sum("a"), TypeError, "sum", "numeric"),
    bad("var, correction", lambda: tg.var(X, correction="a"), TypeError, "var", "correction", "'a'"),
    bad("std, correction", lambda: tg.std(X, correction=None), TypeError, "std", "correction", "None"),
    bad("a masked array", lambda: tg.asarray(np.ma.array([1, 2], mask=[0, 1])), TypeError, "masked", "filled"),
    bad("a masked operand", lambda: V * np.ma.masked, TypeError, "multiply", "masked"),
    bad("a masked Dask array", lambda: tg.from_dask(da.ma.masked_equal(da.arange(3), 1)), TypeError, "masked"),
    *[bad(f"X + {x!r}", lambda x=x: X + x, TypeError, "+") for x in ("a", None, {})],
    bad("complex to real", lambda: tg.astype(COMPLEX, "float64"), TypeError, "astype", "complex", "real(x)"),
    bad("complex asarray real", lambda: tg.asarray(COMPLEX, dtype=float), TypeError, "complex", "real(x)"),
    bad("full of an array", lambda: tg.full((2,), [1, 2]), TypeError, "full", "number"),
    bad("full of a string", lambda: tg.full(3, "a"), TypeError, "full", "numeric"),
    bad("bitwise_and of floats", lambda: V & V, TypeError, "bitwise_and", "float64"),
    bad("invert of floats", lambda: ~V, TypeError, "bitwise_invert", "float64"),
    bad(
        "shift by unsigned",
        lambda: tg.asarray([1], dtype="uint64") << INTS[0],
        TypeError,
        "bitwise_left_shift",
        "uint64",
    ),
    bad("negative of booleans", lambda: -BOOLS, TypeError, "negative", "bool"),
    bad("difference of booleans", lambda: BOOLS - BOOLS, TypeError, "subtract", "bool"),
    bad("floor of complex", lambda: tg.floor(COMPLEX), TypeError, "floor", "complex128"),
    bad("a number too big", lambda: tg.asarray([1], dtype="int8") + 300, OverflowError, "300", "int8"),
    bad("too few arguments", lambda: tg.add(X), TypeError, "add", "2"),
    bad("by name", lambda: tg.add(X, x2=X), TypeError, "add()", "'x2'"),
    bad("random integers", lambda: tg.random.default_rng(0).random(3, dtype=int), TypeError, "random", "int64"),
    bad("integers of floats", lambda: tg.random.default_rng(0).integers(3, size=3, dtype=float), TypeError, "float64"),
    bad(
        "integers beyond dtype", lambda: tg.random.default_rng(0).integers(0, 300, 3, dtype="int8"), ValueError, "int8"
    ),
    bad("integers of no range", lambda: tg.random.default_rng(0).integers(5, 5, 3), ValueError, "integers", "5"),
    bad("normal", lambda: tg.random.default_rng(0).normal(0, -1, 3), ValueError, "normal", "-1"),
    bad("exponential", lambda: tg.random.default_rng(0).exponential(-1.0, 3), ValueError, "exponential", "-1"),
    bad("seed", lambda: tg.random.default_rng(-1), ValueError),
]

KNOWN = ('"cpu"', '"gpu"', '"gpu:1"', '"cuda"', '"/cpu:0"', '"/device:GPU:0"')


def _in_block(name: Any) -> None:
    with tg.device(name):
        pass


DEVICES = [
    *[
        bad(f"device {d!r}", lambda d=d: _in_block(d), ValueError, repr(d), *KNOWN)
        for d in ("tpu", "gpu:x", "gpu:-1", "gpu 1", "", "/job:w/gpu:0", "cpugpu", 3)
    ],
    bad("to", lambda: X.to("tpu"), ValueError, "'tpu'", *KNOWN),
    bad("cuda", lambda: X.cuda(-1), ValueError, "'gpu:-1'", *KNOWN),
    *[
        bad(f"{n} on a device", lambda f=f: f("xpu"), ValueError, "'xpu'", *KNOWN)
        for n, f in {
            "zeros": lambda d: tg.zeros(3, device=d),
            "asarray": lambda d: tg.asarray([1.0], device=d),
            "asarray of a tensor": lambda d: tg.asarray(V, device=d),
            "randn": lambda d: tg.randn(3, device=d),
        }.items()
    ],
    bad("no GPU here", lambda: V.cuda().compute(), ValueError, "'gpu'", "no GPU-pinned worker", "LocalCluster"),
    bad("no GPU to plan for", lambda: tg.plan(X.cuda(), ONE_CPU), ValueError, "'gpu'", "no GPU-pinned worker"),
    bad("too few GPUs", lambda: tg.plan(X.cuda(3), BOTH), ValueError, "'gpu:3'", "only 1"),
    bad("no CPU worker", lambda: tg.plan(X.cpu(), ONE_GPU), ValueError, "'cpu'", "no CPU worker"),
    bad("a machine of nothing", lambda: tg.Machine(devices=[]), ValueError, "Machine", "device"),
    bad("a kind of device", lambda: tg.Device("tpu", 2**30, 1.0), ValueError, "'tpu'", "cpu", "gpu"),
    bad("a device without memory", lambda: tg.Device("cpu", 0, 1.0), ValueError, "memory_bytes"),
    bad("a device that does nothing", lambda: tg.Device("cpu", 2**30, 0.0), ValueError, "gflops"),
]

INDICES = [
    bad("out of bounds", lambda: X[2], IndexError, "index 2", "axis 0", "'X'", "(2, 3)"),
    bad("below bounds", lambda: X[0, -4], IndexError, "index -4", "axis 1", "'X'"),
    bad("too many", lambda: X[0, 0, 0], IndexError, "too many indices, 3", "'X'"),
    bad("two ellipses", lambda: X[..., ...], IndexError, "Ellipsis"),
    *[
        bad(f"by {type(i).__name__}", lambda i=i: X[i], TypeError, type(i).__name__, "tg.where")
        for i in (1.5, True, [0.5], np.array([0.0]), np.array(True), "a", X, {0})
    ],
    bad("by a list of tensors", lambda: X[[INTS[0]]], TypeError, "list of tensors", "tg.stack"),
    bad(
        "array out of bounds", lambda: X[[0, 2]], IndexError, "getitem", "index 2", "axis 0", "size 2", "'X' is (2, 3)"
    ),
    bad("array below bounds", lambda: X[:, [-4]], IndexError, "getitem", "index -4", "axis 1", "size 3", "'X'"),
    bad("tensor out of bounds", lambda: X[INTS], IndexError, "index 2", "axis 0", "'X' is (2, 3)"),
    bad("number beside an array", lambda: X[[0], 3], IndexError, "index 3", "axis 1", "'X'"),
    bad("arrays that do not fit", lambda: X[[0, 1], [0, 1, 2]], IndexError, "(2,)", "(3,)", "broadcast", "'X'"),
    bad("too many arrays", lambda: X[[0], [0], [0]], IndexError, "too many indices, 3", "'X'"),
    bad("too large a mask", lambda: X[np.ones((2, 3, 1), bool)], IndexError, "too many indices, 3", "'X'"),
    bad("a mask that does not fit", lambda: X[BOOLS], IndexError, "mask", "(3,)", "(2,)", "'X' is (2, 3)"),
    bad("a computed mask", lambda: X[X > 0], IndexError, "'X'", "not known", "tg.where(mask, x, 0)", "compute()"),
    bad("a mask that is fed", lambda: V[tg.placeholder("bool", (3,))], IndexError, "not known", "tg.where"),
    bad("take by fractions", lambda: tg.take(X, [0.5], axis=0), TypeError, "take", "integers", "float64", "'X'"),
    bad("take by a mask", lambda: tg.take(V, BOOLS), TypeError, "take", "integers", "bool"),
    bad("a masked index", lambda: X[np.ma.array([0, 1], mask=[0, 1])], TypeError, "masked", "filled"),
    bad("take by a masked index", lambda: tg.take(V, np.ma.array([0], mask=[1])), TypeError, "take", "masked"),
    bad("take, axis", lambda: tg.take(X, [0], axis=2), ValueError, "take", "axis 2", "2 dimensions"),
    bad(
        "take out of bounds", lambda: tg.take(X, [[0], [3]], axis=1), IndexError, "take", "index 3", "axis 1", "size 3"
    ),
    bad("take of nothing", lambda: tg.take(tg.zeros(0), [0]), IndexError, "take", "index 0", "size 0"),
    bad("take at run", lambda: tg.take(V, INTS + 1).compute(), IndexError, "take", "axis 0", "index 4", "size 3"),
    bad("index at run", lambda: V[INTS - 9].compute(), IndexError, "getitem", "axis 0", "index -8", "size 3"),
    bad("take_along_axis, axes", lambda: tg.take_along_axis(X, INTS - 1), ValueError, "take_along_axis", "'X'", "(3,)"),
    bad(
        "take_along_axis, sizes",
        lambda: tg.take_along_axis(X, np.zeros((3, 2), int), axis=1),
        ValueError,
        "take_along_axis",
        "axis 1",
        "'X' is (2, 3)",
        "(3, 2)",
    ),
    bad("take_along_axis by fractions", lambda: tg.take_along_axis(X, X), TypeError, "take_along_axis", "float32"),
    bad(
        "take_along_axis, bounds",
        lambda: tg.take_along_axis(X, [[3]]),
        IndexError,
        "index 3",
        "axis 1",
        "size 3",
        "'X'",
    ),
    *[bad(f"{n}, axis", lambda n=n: getattr(tg, n)(X, axis=2), ValueError, n, "axis 2") for n in ("sort", "argsort")],
    *[
        bad(f"{n} of complex", lambda n=n: getattr(tg, n)(COMPLEX), TypeError, n, "order", "complex128")
        for n in ("sort", "argsort")
    ],
    bad("searchsorted in a matrix", lambda: tg.searchsorted(X, V), ValueError, "searchsorted", "one dimension", "'X'"),
    bad("searchsorted, side", lambda: tg.searchsorted(V, V, side="middle"), ValueError, "searchsorted", "'middle'"),
    bad("searchsorted of complex", lambda: tg.searchsorted(V, COMPLEX), TypeError, "searchsorted", "complex128"),
    bad("searchsorted, sorter", lambda: tg.searchsorted(V, V, sorter=[0, 1]), ValueError, "sorter", "(2,)", "(3,)"),
    bad("searchsorted, sorter of floats", lambda: tg.searchsorted(V, V, sorter=V), TypeError, "sorter", "float64"),
    bad("pad, mode", lambda: tg.pad(X, 1, "mean"), ValueError, "pad", "'mean'", "'reflect'"),
    bad("pad, widths", lambda: tg.pad(X, ((1, 2), (3, 4), (5, 6))), ValueError, "pad", "2 axes", "'X'"),
    bad("pad, ragged widths", lambda: tg.pad(X, ((1, 2), (3,))), ValueError, "pad", "2 axes", "'X'"),
    bad("pad, negative", lambda: tg.pad(X, (-1, 1)), ValueError, "pad", "negative", "(-1, 1)"),
    bad("pad by fractions", lambda: tg.pad(X, 1.5), TypeError, "pad", "integers", "1.5"),
    bad("pad, no such axis", lambda: tg.pad(X, {2: 1}), ValueError, "pad", "axis 2"),
    bad(
        "pad of nothing", lambda: tg.pad(tg.zeros((0, 3)), 1, "edge"), ValueError, "pad", "axis 0", "(0, 3)", "constant"
    ),
    bad("pad, constants", lambda: tg.pad(X, 1, constant_values=(1, 2, 3)), ValueError, "constant_values", "'X'"),
    *[
        bad(f"{n}: no such function", lambda n=n: getattr(tg, n), AttributeError, n, "depends on values", "compute")
        for n in ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values")
    ],
    bad("slice by words", lambda: X["a":], TypeError, "slice"),
    bad("slice by no step", lambda: X[::0], ValueError, "step"),
    bad("assignment", lambda: X.__setitem__(0, 1), AttributeError),
    bad("len of a number", lambda: len(tg.asarray(1.0)), TypeError, "0-d"),
    bad("iteration over a number", lambda: iter(tg.asarray(1.0)), TypeError, "0-d"),
    *[
        bad(f"{f.__name__} of three", lambda f=f: f(V), ValueError, "(3,)", "one element")
        for f in (bool, float, int, complex)
    ],
    bad("item of three", lambda: V.item(), ValueError, "item", "(3,)"),
]


def _leaf() -> tg.Tensor:
    return tg.tensor([1.0, 2.0], requires_grad=True)


GRADIENTS = [
    bad("requires_grad of integers", lambda: tg.asarray([1], requires_grad=True), TypeError, "floating", "int64"),
    bad("requires_grad of booleans", lambda: setattr(V > 0, "requires_grad", True), TypeError, "floating", "bool"),
    bad("backward of two", lambda: (_leaf() * 2).backward(), RuntimeError, "(2,)", "tg.ones((2,))"),
    bad("backward without a leaf", lambda: tg.sum(V).backward(), RuntimeError, "requires_grad=True"),
    bad("backward from detached", lambda: tg.sum(_leaf().detach()).backward(), RuntimeError, "requires"),
    bad("backward of integers", lambda: tg.argmax(_leaf()).backward(), RuntimeError, "requires"),
    bad("backward through what is kept", lambda: tg.sum((_leaf() * 2).persist()).backward(), RuntimeError, "requires"),
    bad("backward, cotangent", lambda: (_leaf() * 2).backward(tg.ones(3)), ValueError, "(2,)", "(3,)"),
    bad("gradients of integers", lambda: tg.gradients(INTS * 2, V), TypeError, "ys[0]", "multiply", "int64"),
    bad("gradients by integers", lambda: tg.gradients(tg.sum(V), [V, INTS]), TypeError, "xs[1]", "int64"),
    bad("gradients of booleans", lambda: tg.gradients(V > 1, V), TypeError, "ys[0]", "bool"),
    bad(
        "gradients, a complex cotangent",
        lambda: tg.gradients(V, V, V * 1j),
        TypeError,
        "ys[0]",
        "float64",
        "complex128",
    ),
    bad("backward of a complex number", lambda: tg.sum(_leaf() * 1j).backward(), RuntimeError, "real", "complex128"),
    bad("gradients, cotangents", lambda: tg.gradients([V], V, [V, V]), ValueError, "2 cotangents for 1"),
    bad(
        "gradients, a cotangent", lambda: tg.gradients([V, V], V, [V, tg.ones(4)]), ValueError, "ys[1]", "(3,)", "(4,)"
    ),
]


def _variable() -> tg.Variable:
    return tg.Variable([1.0, 2.0], name="w")


def _assign_twice() -> Any:
    w = _variable()
    return tg.Session().run([w.assign(w + 1), w.assign(w + 2)])


FEEDS = [
    bad("not fed", lambda: tg.Session().run(X + 1), ValueError, "'X'", "float32", "(2, 3)", "feed_dict"),
    bad("not fed to compute", lambda: (X + 1).compute(), ValueError, "'X'", "not fed"),
    bad("not fed to dask", lambda: dask.compute(X + 1), ValueError, "'X'", "not fed"),
    bad("not fed to persist", lambda: (X + 1).persist(), ValueError, "'X'", "not fed"),
    bad("one of two not fed", lambda: tg.Session().run([X, W], {X: np.ones((2, 3))}), ValueError, "'W'", "not fed"),
    bad("fed a shape", lambda: tg.Session().run(X, {X: [1.0]}), ValueError, "'X'", "(2, 3)", "(1,)"),
    bad("fed what would broadcast", lambda: tg.Session().run(X, {X: 1.0}), ValueError, "'X'", "(2, 3)", "()"),
    bad(
        "fed complex",
        lambda: tg.Session().run(X, {X: np.ones((2, 3)) * 1j}),
        ValueError,
        "'X'",
        "float32",
        "complex128",
    ),
    bad("fed words", lambda: tg.Session().run(X, {X: np.full((2, 3), "a")}), ValueError, "'X'", "float32", "<U1"),
    bad("fed a tensor", lambda: tg.Session().run(X, {X: tg.ones((3, 2))}), ValueError, "'X'", "(2, 3)", "(3, 2)"),
    bad("fed to a name", lambda: tg.Session().run(X, {"X": 1.0}), TypeError, "feed_dict", "'X'"),
    bad("fed though not used", lambda: tg.Session().run(V, {X: [1.0]}), ValueError, "'X'"),
    bad(
        "fed an unfed one",
        lambda: tg.Session().run(X, {X: tg.reshape(W, (20,))[:6].reshape(2, 3)}),
        ValueError,
        "'W'",
        "not fed",
    ),
    bad(
        "fractions to integers",
        lambda: tg.Session().run(X, {tg.placeholder("int32", (1,), "n"): [1.5]}),
        ValueError,
        "'n'",
        "int32",
    ),
    bad("fetch a number", lambda: tg.Session().run(3), TypeError, "int"),
    bad("fetch a word", lambda: tg.Session().run([V, "a"]), TypeError, "str"),
    bad("assign a shape", lambda: _variable().assign([1.0]), ValueError, "assign", "'w'", "(2,)", "(1,)"),
    bad("assign what would broadcast", lambda: _variable().assign(1.0), ValueError, "'w'", "(2,)", "()"),
    bad("assign a dtype", lambda: _variable().assign(INTS[:2]), ValueError, "'w'", "float64", "int64"),
    bad("assign complex", lambda: _variable().assign([1j, 2.0]), ValueError, "'w'", "float64", "complex128"),
    bad(
        "assign fractions",
        lambda: tg.Variable([1, 2], name="n").assign([1.5, 2.5]),
        ValueError,
        "'n'",
        "int64",
        "float64",
    ),
    bad("assign words", lambda: _variable().assign("a"), TypeError, "numeric"),
    bad("assign twice", _assign_twice, ValueError, "'w'", "twice"),
]


def check(case: Bad) -> None:
    with pytest.raises(case.error) as caught:
        case.make()
    message = str(caught.value)
    for words in case.says:
        assert words in message, f"{words!r} is not in {message!r}"


@pytest.mark.parametrize("case", [*SHAPES, *LINALG], ids=str)
def test_shapes_and_axes(case: Bad) -> None:
    check(case)


@pytest.mark.parametrize("case", DTYPES, ids=str)
def test_dtypes(case: Bad) -> None:
    check(case)


@pytest.mark.parametrize("case", DEVICES, ids=str)
def test_devices(case: Bad) -> None:
    check(case)


@pytest.mark.parametrize("case", INDICES, ids=str)
def test_indices(case: Bad) -> None:
    check(case)


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients(case: Bad) -> None:
    check(case)


@pytest.mark.parametrize("case", FEEDS, ids=str)
def test_feeds_and_variables(case: Bad) -> None:
    check(case)


def test_the_check_itself_can_fail() -> None:
    with pytest.raises(AssertionError, match="is not in"):
        check(bad("", lambda: X @ W, ValueError, "'Y'"))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(bad("", lambda: X @ X.T, ValueError))


# -- zeros where nothing depends ---------------------------------------------------------------------------------------

Y = tg.asarray(np.ones((2, 3), "float32"), chunks=2)
INDEPENDENT: dict[str, tg.Tensor] = {
    "another array": tg.sum(V * V),
    "floor": tg.sum(tg.floor(Y)),
    "comparison": tg.sum(tg.astype(Y > 0, float)),
    "integers": tg.sum(tg.astype(tg.astype(Y, int), float)),
    "stop_gradient": tg.sum(tg.stop_gradient(Y) * 2),
    "argmax": tg.astype(tg.argmax(Y), float),
    "an equal array": tg.sum(tg.asarray(np.ones((2, 3), "float32"))),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_gradient_of_what_does_not_depend_is_zeros(name: str) -> None:
    g = tg.gradients(INDEPENDENT[name], Y)
    assert (g.shape, g.dtype) == (Y.shape, Y.dtype)
    np.testing.assert_array_equal(g.compute(scheduler="synchronous"), np.zeros((2, 3), "float32"))
