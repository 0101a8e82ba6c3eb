"""The operations of random compositions, ours beside HIPS autograd's: one line each.

`f(xp, *operands, **how)` is one text for both libraries where it can be (`xp` is ours, or autograd's under the array
API's names); an entry for every operand says which arrays it may be, `how` draws what else the operation takes, and
`when` is a condition on the values: no ties where there is a kink, no singular matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autograd.numpy as anp
import numpy as np
from hypothesis import strategies as st
from theirs import THEIRS, diagonal

import taskgraph as tg

Draw = Callable[[st.SearchStrategy[Any]], Any]
Function = Callable[..., Any]
Shape = tuple[int, ...]

SIZES = (1, 2, 2, 3, 3, 4, 5)
LARGEST = 200  # elements of a value: what is tested are rules, not sizes
#: How near to a kink or a tie a value may be: rounding must not take it to the other side.
NEAR = 1e-5


# -- which arrays an operation takes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """`fits(value, *earlier)`: whether a value may be the next operand, behind the earlier ones.
    `shape(draw, *earlier)`: that of a new array which fits."""

    fits: Callable[..., Any]
    shape: Callable[..., Shape]


def _sizes(draw: Draw, count: int) -> Shape:
    return tuple(draw(st.sampled_from(SIZES)) for _ in range(count))


def _of_ndim(*ndims: int) -> Operand:
    return Operand(lambda x, *_: x.ndim in ndims, lambda draw, *_: _sizes(draw, draw(st.sampled_from(ndims))))


def _broadcasts(x: np.ndarray, *earlier: np.ndarray) -> bool:
    try:
        return math.prod(np.broadcast_shapes(x.shape, *[e.shape for e in earlier])) <= LARGEST
    except ValueError:
        return False


def _shape_beside(draw: Draw, *earlier: np.ndarray) -> Shape:
    """The shape of the others, some axes of it left out or of length 1; or one that repeats them."""
    shape = np.broadcast_shapes(*[e.shape for e in earlier])
    wanted = tuple(draw(st.sampled_from(SIZES)) if s == 1 else draw(st.sampled_from((s, s, 1))) for s in shape)
    how = draw(st.sampled_from(("same", "shorter", "longer")))
    if how == "longer" and len(shape) < 3:
        return (2, *wanted)
    return wanted[1:] if how == "shorter" else wanted


def _product_shape(draw: Draw, a: np.ndarray) -> Shape:
    """A right operand of a product with `a`, in one of the forms that broadcast."""
    n = draw(st.sampled_from(SIZES))
    lead = [(2,), (2, 1)] if a.ndim < 3 else [a.shape[:-2], (1,) * (a.ndim - 2), (2, *a.shape[:-2])]
    forms = [(a.shape[-1],), (a.shape[-1], n), *[(*b, a.shape[-1], n) for b in lead]]
    return draw(st.sampled_from(forms))


def _multiplies(b: np.ndarray, a: np.ndarray) -> bool:
    try:
        return 0 < np.matmul(a, b).size <= LARGEST
    except ValueError:
        return False


def _square_shape(draw: Draw) -> Shape:
    n = draw(st.integers(1, 4))
    return (*draw(st.sampled_from(((), (), (2,)))), n, n)


any_ = Operand(lambda x: True, lambda draw: _sizes(draw, draw(st.sampled_from((0, 1, 2, 2, 3)))))
array = _of_ndim(1, 2, 2, 3)
vector = _of_ndim(1)
matrix = _of_ndim(2)
matrices = _of_ndim(2, 2, 3)
square = Operand(lambda x: x.ndim >= 2 and x.shape[-1] == x.shape[-2], _square_shape)
beside = Operand(_broadcasts, _shape_beside)
alike = Operand(lambda x, *e: x.shape == e[0].shape, lambda draw, *e: e[0].shape)
times = Operand(_multiplies, _product_shape)
longer = Operand(
    lambda x, e: x.ndim == e.ndim and x.shape[1:] == e.shape[1:],
    lambda draw, e: (draw(st.sampled_from(SIZES)), *e.shape[1:]),
)


def shaped(f: Callable[..., Shape | None]) -> Operand:
    """An operand whose shape follows from the earlier ones', but for sizes that stand as None."""

    def fits(x: np.ndarray, *earlier: np.ndarray) -> bool:
        wanted = f(*[e.shape for e in earlier])
        return x.ndim == len(wanted) and all(w in (None, s) for w, s in zip(wanted, x.shape, strict=True))

    def shape(draw: Draw, *earlier: np.ndarray) -> Shape:
        wanted = f(*[e.shape for e in earlier])
        return tuple(draw(st.sampled_from(SIZES)) if w is None else w for w in wanted)

    return Operand(fits, shape)


# -- conditions on the values ------------------------------------------------------------------------------------------


def away(x: Any, *points: float) -> bool:
    """Whether no element is near one of the points."""
    return all(np.min(np.abs(x - p), initial=1.0) > NEAR for p in points)


def apart(x: np.ndarray, **_: Any) -> bool:
    """Whether no two elements are near each other."""
    return bool(np.min(np.diff(np.sort(x, axis=None)), initial=1.0) > NEAR)


def spread(x: np.ndarray, axis: Any = None, **_: Any) -> bool:
    """Whether the deviation along the axes is well above zero."""
    return bool(np.min(np.std(x, axis=axis)) > 0.05)


def well_apart(x: np.ndarray) -> bool:
    """Whether singular values are so far from each other, and from zero, that their vectors are well defined."""
    s = np.linalg.svd(x, compute_uv=False)
    return bool(s.min() > 0.2 and np.min(-np.diff(s, axis=-1), initial=1.0) > 0.2)


# -- what goes with an operation besides arrays ------------------------------------------------------------------------


def reduction(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    axes = [None, *range(-x.ndim, x.ndim), *itertools.combinations(range(x.ndim), 2)]
    return {"axis": draw(st.sampled_from(axes)), "keepdims": draw(st.booleans())}


def moment(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    how = reduction(draw, x)
    axes = range(x.ndim) if how["axis"] is None else np.atleast_1d(how["axis"])
    return how | {"correction": draw(st.sampled_from((0, 1) if math.prod(x.shape[a] for a in axes) > 1 else (0,)))}


def an_axis(draw: Draw, x: np.ndarray, *_: Any) -> dict[str, Any]:
    return {"axis": draw(st.integers(0, x.ndim - 1))}


def a_new_axis(draw: Draw, x: np.ndarray, *_: Any) -> dict[str, Any]:
    return {"axis": draw(st.integers(-x.ndim - 1, x.ndim))}


def an_offset(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"k": draw(st.integers(-2, 2))}


def an_index(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    """Slices with steps of both signs, numbers, new axes and one Ellipsis."""
    items: list[Any] = []
    for size in x.shape:
        start, end = sorted((draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))))
        step = draw(st.integers(1, 3))
        kinds = (
            slice(None),
            slice(start, end + 1, step),
            slice(None, None, -step),
            slice(end, None, -step),
            end - size,
        )
        items.append(draw(st.sampled_from(kinds)))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, x.ndim)), None)
    if items[-1] == slice(None):
        items[-1] = Ellipsis
    return {"index": tuple(items)}


def places(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    """Positions along an axis, some of them twice."""
    axis = draw(st.integers(0, x.ndim - 1))
    return {"index": _integers(draw, x.shape[axis], (draw(st.integers(1, 5)),)), "axis": axis}


def places_for_each(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    axis = draw(st.integers(0, x.ndim - 1))
    shape = tuple(draw(st.integers(1, 4)) if a == axis else n for a, n in enumerate(x.shape))
    return {"index": _integers(draw, x.shape[axis], shape), "axis": axis}


def _integers(draw: Draw, end: int, shape: Shape) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 2**16))).integers(0, end, shape)


def a_shape(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    whole = x.size
    shapes = [(whole,), (1, whole), x.shape[::-1]]
    shapes += [(a, whole // a) for a in range(1, whole + 1) if whole % a == 0]
    shapes += [(a, b, whole // (a * b)) for a in (1, 2, 3) for b in (2, 3) if whole % (a * b) == 0]
    return {"shape": draw(st.sampled_from(shapes))}


def a_permutation(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"axes": tuple(draw(st.permutations(range(x.ndim))))}


def a_wider_shape(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    wide = tuple(draw(st.sampled_from(SIZES)) if s == 1 else s for s in x.shape)
    return {"shape": (*draw(st.sampled_from(((), (2,), (3, 1)))), *wide)}


def two_axes(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"a": draw(st.integers(-x.ndim, x.ndim - 1)), "b": draw(st.integers(-x.ndim, x.ndim - 1))}


def shifts(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"shift": draw(st.integers(-3, 3)), "axis": draw(st.sampled_from((None, *range(x.ndim))))}
    return {"shift": tuple(draw(st.integers(-3, 3)) for _ in x.shape), "axis": tuple(range(x.ndim))}


def times_each(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"times": tuple(draw(st.integers(1, 2)) for _ in range(x.ndim + draw(st.integers(0, 1))))}


def a_count(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"count": draw(st.integers(1, 3)), "axis": draw(st.sampled_from((None, *range(x.ndim))))}


def blocks(draw: Draw, x: np.ndarray) -> dict[str, Any]:
    return {"chunks": draw(st.integers(1, 3))}


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One line of the table.

    operands: which arrays it takes. how(draw, *values): what goes with them. when(*values, **how): a condition on the
    values. weak: the number of digits is that of single precision.
    """

    name: str
    ours: Function
    theirs: Function
    operands: tuple[Operand, ...]
    how: Function
    when: Function
    weak: bool = False


def op(
    name: str,
    *operands: Operand,
    f: Function | None = None,
    ours: Function | None = None,
    theirs: Function | None = None,
    how: Function = lambda draw, *values: {},
    when: Function = lambda *values, **how: True,
    weak: bool = False,
) -> Op:
    """A line: `f(xp, *operands, **how)` for both libraries, or `ours` or `theirs` (without the `xp`) in its place."""
    both = f or (lambda xp, *xs, **how: getattr(xp, name)(*xs, **how))
    return Op(
        name,
        ours or (lambda *xs, **how: both(tg, *xs, **how)),
        theirs or (lambda *xs, **how: both(THEIRS, *xs, **how)),
        operands,
        how,
        when,
        weak,
    )


def _positive(x: Any) -> Any:
    return 0.6 + x * x


def _bump(xp: Any, x: Any) -> Any:
    return xp.tanh(x) * x


def _slope(xp: Any, x: Any) -> Any:
    return xp.tanh(x) + x * (1 - xp.tanh(x) ** 2)


def _definite(xp: Any, x: Any) -> Any:
    return xp.matmul(x, xp.matrix_transpose(x)) + x.shape[-2] * xp.eye(x.shape[-2])


def _regular(xp: Any, x: Any) -> Any:
    return x + 2.5 * x.shape[-1] * xp.eye(x.shape[-1])


def _their_qr(x: Any) -> tuple[Any, Any]:
    """By Cholesky's factor; the signs are such that the diagonal of R is positive."""
    r = THEIRS.matrix_transpose(anp.linalg.cholesky(anp.matmul(THEIRS.matrix_transpose(x), x)))
    return anp.matmul(x, anp.linalg.inv(r)), r


def _tall(x: np.ndarray, **_: Any) -> bool:
    return x.shape[-2] >= x.shape[-1] and bool(np.linalg.svd(x, compute_uv=False).min() > 0.3)


def _of_eigen(xp: Any, x: Any) -> Any:
    w, v = xp.linalg.eigh(_definite(xp, x))
    return xp.matmul(v * xp.exp(-w)[..., None, :], xp.matrix_transpose(v))


def _of_singular(xp: Any, x: Any, **how: Any) -> Any:
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    return xp.matmul(u * xp.exp(-s)[..., None, :], vh)


ELEMENTWISE = [
    *[op(n, any_) for n in ("sin", "cos", "tanh", "sinh", "cosh", "exp", "expm1", "asinh", "atan", "negative",
                            "positive", "square")],
    op("abs", any_, when=lambda x: away(x, 0)),
    *[op(n, any_, f=lambda xp, x, n=n: getattr(xp, n)(0.45 * x)) for n in ("asin", "acos", "atanh", "tan")],
    op("acosh", any_, f=lambda xp, x: xp.acosh(0.6 + _positive(x))),
    *[op(n, any_, f=lambda xp, x, n=n: getattr(xp, n)(_positive(x))) for n in ("log", "log2", "log10", "sqrt")],
    op("log1p", any_, f=lambda xp, x: xp.log1p(x * x)),
    op("reciprocal", any_, f=lambda xp, x: xp.reciprocal(_positive(x))),
    op("power with a number", any_, f=lambda xp, x, e: _positive(x) ** e,
       how=lambda draw, x: {"e": draw(st.sampled_from((2, 3, 0.5, -1.5, 1)))}),
    *[op(n, any_, f=lambda xp, x, n=n: x * getattr(xp, n)(x), when=lambda x: away(np.abs(x), 0, 0.5, 1, 1.5, 2))
      for n in ("floor", "ceil", "trunc", "round", "sign")],
    *[op(n, any_, beside) for n in ("add", "subtract", "multiply", "logaddexp")],
    op("divide", any_, beside, f=lambda xp, x, y: x / _positive(y)),
    op("pow", any_, beside, f=lambda xp, x, y: xp.pow(_positive(x), y)),
    op("atan2", any_, beside, f=lambda xp, x, y: xp.atan2(x, _positive(y))),
    op("hypot", any_, beside, theirs=lambda x, y: anp.sqrt(x * x + y * y),
       when=lambda x, y: np.min(x * x + y * y) > 0.01),
    *[op(n, any_, beside, f=lambda xp, x, y, n=n: getattr(xp, n)(x, y + 0.01), when=lambda x, y: away(x - y, 0.01))
      for n in ("maximum", "minimum")],
    op("copysign", any_, beside, theirs=lambda x, y: anp.abs(x) * anp.sign(y),
       when=lambda x, y: away(x, 0) and away(y, 0)),
    op("remainder", any_, beside, f=lambda xp, x, y: xp.remainder(x, _positive(y)),
       when=lambda x, y: away(x / _positive(y), *range(-4, 5))),
    op("where", any_, beside, beside, f=lambda xp, x, y, z: xp.where(x > 0.1, y, z),
       when=lambda x, *_: away(x, 0.1)),
    op("where, guarded", any_, f=lambda xp, x: xp.where(x > 0.1, xp.log(xp.where(x > 0.1, x, 1.0)), 0.5 * x),
       when=lambda x: away(x, 0.1)),
    op("clip", any_, f=lambda xp, x: xp.clip(x, -0.5, 0.5), when=lambda x: away(np.abs(x), 0.5)),
    op("clip between arrays", any_, beside, f=lambda xp, x, y: xp.clip(x, y - 0.4, y + 0.4),
       theirs=lambda x, y: anp.minimum(anp.maximum(x, y - 0.4), y + 0.4), when=lambda x, y: away(np.abs(x - y), 0.4)),
    op("astype", any_, f=lambda xp, x: x.astype("float32").astype("float64"), weak=True),
    op("stop_gradient", any_, beside, f=lambda xp, x, y: x * xp.stop_gradient(y)),
    op("conj", any_, theirs=lambda x: x),
    op("gradients", any_, ours=lambda x: tg.gradients(_bump(tg, x), x), theirs=lambda x: _slope(anp, x)),
    op("grad", any_, ours=tg.grad(lambda x: tg.sum(_bump(tg, x))), theirs=lambda x: _slope(anp, x)),
    op("jvp", any_, ours=lambda x: tg.jvp(lambda t: _bump(tg, t), (x,), (x,))[1], theirs=lambda x: _slope(anp, x) * x),
    op("checkpoint", any_, ours=tg.checkpoint(lambda x: _bump(tg, x)), theirs=lambda x: _bump(anp, x)),
    op("cpu", any_, ours=lambda x: x.cpu(), theirs=lambda x: x),
]  # fmt: skip

REDUCTIONS = [
    *[op(n, any_, how=reduction) for n in ("sum", "mean", "logsumexp")],
    *[op(n, any_, how=reduction, when=apart) for n in ("max", "min")],
    op("prod", any_, how=reduction, when=lambda x, **_: away(x, 0)),
    op("var", array, how=moment), op("std", array, how=moment, when=spread),
    *[op(n, array, how=an_axis) for n in ("cumulative_sum", "cumulative_prod")],
    op("diff", array, how=lambda draw, x: an_axis(draw, x) | {"n": draw(st.integers(1, 2))},
       when=lambda x, axis, n: x.shape[axis] > n),
    op("2-norm", array, ours=lambda x, **how: tg.linalg.vector_norm(x, **how), how=reduction,
       theirs=lambda x, **how: anp.sqrt(anp.sum(x * x, **how)),
       when=lambda x, **how: np.min(np.sum(x * x, **how)) > 0.01),
    op("3-norm", array, ours=lambda x, **how: tg.linalg.vector_norm(x, ord=3, **how), how=reduction,
       theirs=lambda x, **how: anp.sum(anp.abs(x) ** 3, **how) ** (1 / 3), when=lambda x, **_: away(x, 0)),
    op("infinity norm", array, ours=lambda x, **how: tg.linalg.vector_norm(x, ord=math.inf, **how), how=reduction,
       theirs=lambda x, **how: anp.max(anp.abs(x), **how), when=lambda x, **_: away(x, 0) and apart(np.abs(x))),
]  # fmt: skip

SHAPES = [
    op("reshape", any_, how=a_shape), op("permute_dims", any_, how=a_permutation),
    op("matrix_transpose", matrices), op("expand_dims", any_, how=a_new_axis),
    op("squeeze", any_, f=lambda xp, x: xp.squeeze(x)),
    op("moveaxis", array, f=lambda xp, x, a, b: xp.moveaxis(x, a, b), how=two_axes),
    op("broadcast_to", any_, how=a_wider_shape), op("getitem", array, f=lambda xp, x, index: x[index], how=an_index),
    op("flip", array, how=an_axis), op("roll", array, how=shifts),
    op("tile", array, f=lambda xp, x, times: xp.tile(x, times), how=times_each),
    op("repeat", array, f=lambda xp, x, count, axis: xp.repeat(x, count, axis=axis), how=a_count),
    op("concat", array, longer, f=lambda xp, x, y: xp.concat([y, x], axis=0)),
    op("concat of three", array, alike, alike, f=lambda xp, x, y, z, axis: xp.concat([x, y, z], axis=axis),
       how=an_axis),
    op("stack", any_, alike, f=lambda xp, x, y, axis: xp.stack([x, y], axis=axis), how=a_new_axis),
    op("meshgrid", vector, vector, f=lambda xp, x, y: xp.multiply(*xp.meshgrid(x, y)),
       theirs=lambda x, y: x[None, :] * y[:, None]),
    op("unstack", array, ours=lambda x, axis: tg.unstack(x, axis=axis)[-1], how=an_axis,
       theirs=lambda x, axis: x[(slice(None),) * axis + (-1,)]),
    op("rechunk", array, ours=lambda x, chunks: x.rechunk(chunks), theirs=lambda x, chunks: x, how=blocks),
    op("tril", matrices, f=lambda xp, x, k: xp.tril(x, k=k), how=an_offset),
    op("triu", matrices, f=lambda xp, x, k: xp.triu(x, k=k), how=an_offset),
]  # fmt: skip

#: Those that are there: `take` and what goes with it came later than the table.
PLACES = [
    o for o in (
        op("take", array, f=lambda xp, x, index, axis: xp.take(x, index, axis=axis), how=places),
        op("take_along_axis", array, f=lambda xp, x, index, axis: xp.take_along_axis(x, index, axis=axis),
           how=places_for_each),
        op("sort", array, how=lambda draw, x: an_axis(draw, x) | {"descending": draw(st.booleans())}, when=apart),
        op("pad", array, f=lambda xp, x, width: xp.pad(x, width, mode="constant"),
           how=lambda draw, x: {"width": [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in x.shape]}),
    ) if hasattr(tg, o.name)
]  # fmt: skip

PRODUCTS = [
    op("matmul", array, times),
    op("matmul, transposed left", matrices, shaped(lambda a: (a[-2], None)),
       f=lambda xp, a, b: xp.matmul(xp.matrix_transpose(a), b)),
    op("matmul, transposed right", matrices, shaped(lambda a: (None, a[-1])),
       f=lambda xp, a, b: xp.matmul(a, xp.matrix_transpose(b))),
    op("matmul, both transposed", matrices, shaped(lambda a: (None, a[-2])),
       f=lambda xp, a, b: xp.matmul(xp.matrix_transpose(a), xp.matrix_transpose(b))),
    op("matmul with itself", matrices, f=lambda xp, a: xp.matmul(a, xp.matrix_transpose(a))),
    op("vector times matrices", vector, shaped(lambda a: (None, a[0], None)), f=lambda xp, a, b: xp.matmul(a, b)),
    op("mm", matrix, shaped(lambda a: (a[1], None)), theirs=lambda a, b: anp.matmul(a, b)),
    op("tensordot over one", array, shaped(lambda a: (a[-1], None)), f=lambda xp, a, b: xp.tensordot(a, b, axes=1)),
    op("tensordot over two", matrices, shaped(lambda a: (a[-1], None, a[-2])),
       f=lambda xp, a, b: xp.tensordot(a, b, axes=((-1, -2), (0, 2)))),
    op("einsum of a pair", matrix, shaped(lambda a: (None, a[1])), f=lambda xp, a, b: xp.einsum("ij,kj->ki", a, b)),
    op("einsum of three", matrix, shaped(lambda a: (a[1], None)), shaped(lambda a, b: (None, b[1])),
       f=lambda xp, a, b, c: xp.einsum("ij,jk,lk->il", a, b, c)),
    op("einsum with a batch", matrices, shaped(lambda a: (*a[:-2], a[-1], None)),
       f=lambda xp, a, b: xp.einsum("...ij,...jk->...ki", a, b)),
    op("einsum, elementwise", matrix, alike, f=lambda xp, a, b: xp.einsum("ij,ij->j", a, b)),
    op("outer", vector, vector), op("vecdot", array, shaped(lambda a: (a[-1],))),
]  # fmt: skip

LINALG = [
    *[op(n, matrices, ours=lambda x, k, n=n: getattr(tg.linalg, n)(x, offset=k), how=an_offset, theirs=f,
         when=lambda x, k: -x.shape[-2] < k < x.shape[-1])
      for n, f in (("diagonal", diagonal), ("trace", lambda x, k: anp.sum(diagonal(x, k), axis=-1)))],
    op("cholesky", square, f=lambda xp, x: xp.linalg.cholesky(_definite(xp, x))),
    op("solve", square, shaped(lambda a: (*a[:-1], None)), f=lambda xp, a, b: xp.linalg.solve(_regular(xp, a), b)),
    op("inv", square, f=lambda xp, x: xp.linalg.inv(_regular(xp, x))),
    op("det", square, f=lambda xp, x: xp.linalg.det(_regular(xp, x) / 8)),
    op("slogdet", square, f=lambda xp, x: xp.linalg.slogdet(_regular(xp, x))[1]),
    op("eigh", square, f=_of_eigen, when=lambda x: well_apart(_definite(np, x))),
    op("eigvalsh", square, ours=lambda x: tg.linalg.eigvalsh(_definite(tg, x)),
       theirs=lambda x: anp.linalg.eigh(_definite(THEIRS, x))[0], when=lambda x: well_apart(_definite(np, x))),
    op("svd", matrices, f=_of_singular, when=well_apart),
    op("svdvals", matrices, ours=lambda x: tg.linalg.svdvals(x), when=well_apart,
       theirs=lambda x: anp.linalg.svd(x, full_matrices=False)[1]),
    op("q of qr", matrices, ours=lambda x: tg.abs(tg.linalg.qr(x)[0]), theirs=lambda x: anp.abs(_their_qr(x)[0]),
       when=lambda x: _tall(x) and away(np.linalg.qr(x)[0], 0)),
    op("r of qr", matrices, ours=lambda x: tg.square(tg.linalg.qr(x)[1]), theirs=lambda x: _their_qr(x)[1] ** 2,
       when=_tall),
]  # fmt: skip

#: By way of complex numbers, which came later than the table.
COMPLEX = [
    op("convolution", array, alike, f=lambda xp, x, y: xp.real(xp.fft.ifft(xp.fft.fft(x) * xp.fft.fft(y)))),
    op("convolution of real numbers", array, alike, when=lambda x, y: x.shape[-1] % 2 == 0,
       f=lambda xp, x, y: xp.fft.irfft(xp.fft.rfft(x) * xp.fft.rfft(y), n=x.shape[-1])),
    op("imaginary part", array, alike, f=lambda xp, x, y: xp.imag(xp.exp(x + 1j * y))),
    op("power spectrum", array, f=lambda xp, x: xp.abs(xp.fft.fft(x) + 0.3j) ** 2),
    op("conj of complex", array, alike, f=lambda xp, x, y: xp.real(xp.conj(x + 1j * y) * (y + 1j * x * x))),
] if hasattr(tg, "fft") else []  # fmt: skip

OPS = [*ELEMENTWISE, *REDUCTIONS, *SHAPES, *PLACES, *PRODUCTS, *LINALG, *COMPLEX]
