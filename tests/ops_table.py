"""Examples for every primitive: they drive the tests of values, types, blocks and derivatives for all of them.

A case is a function of tensors, the same function of NumPy arrays, and how to draw its inputs. `smooth` says that
derivatives may be checked by differences at the drawn points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import taskgraph as tg

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape)


def with_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A third of the elements zero, and often two in one row."""
    return np.where(rng.uniform(size=shape) < 0.34, 0.0, rng.standard_normal(shape))


def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-0.8, 0.8, shape)


def above_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(1.2, 3.0, shape)


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-4, 5, shape)


def small_counts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 5, shape)


def booleans(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(bool)


def complexes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def off_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Complex numbers in a ring around zero."""
    return rng.uniform(0.5, 2.0, shape) * np.exp(1j * rng.uniform(-np.pi, np.pi, shape))


@dataclass(frozen=True)
class Case:
    primitive: str
    ours: Callable[..., Any]
    numpys: Callable[..., Any]
    draws: tuple[Draw, ...]
    shapes: tuple[tuple[int, ...], ...]
    smooth: bool = True

    def __str__(self) -> str:
        return f"{self.primitive}{list(self.shapes)}"

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        return [np.asarray(draw(rng, shape)) for draw, shape in zip(self.draws, self.shapes, strict=True)]


def _unary(name: str, draw: Draw = normal, numpys: Any = None, smooth: bool = True) -> list[Case]:
    f = numpys or getattr(np, name)
    return [Case(name, getattr(tg, name), f, (draw,), (s,), smooth) for s in ((7, 5), (), (4,))]


def _binary(name: str, draws: Sequence[Draw] = (normal, normal), numpys: Any = None, smooth: bool = True) -> list[Case]:
    f = numpys or getattr(np, name)
    shapes = (((7, 5), (7, 5)), ((7, 5), (5,)), ((7, 1), (1, 5)), ((), (4,)))
    return [Case(name, getattr(tg, name), f, tuple(draws), s, smooth) for s in shapes]


def _reduce(name: str, draw: Draw = normal, smooth: bool = True, **more: Any) -> list[Case]:
    ours, numpys = getattr(tg, name), getattr(np, name)

    def case(shape: tuple[int, ...], axis: Any, keepdims: bool) -> Case:
        return Case(
            "var" if name == "std" else name,
            lambda x: ours(x, axis=axis, keepdims=keepdims, **more),
            lambda x: numpys(x, axis=axis, keepdims=keepdims, **more),
            (draw,),
            (shape,),
            smooth,
        )

    tries = [((7, 5), None, False), ((7, 5), 0, True), ((7, 5), -1, False), ((3, 4, 5), 1, False)]
    return [case(*t) for t in tries] + ([] if "arg" in name else [case((3, 4, 5), (0, 2), False)])


def _of(
    name: str, ours: Any, numpys: Any, *shapes: tuple[int, ...], draw: Draw = normal, smooth: bool = True
) -> list[Case]:
    return [Case(name, ours, numpys, (draw,) * len(shapes), shapes, smooth)]


UNARY_SMOOTH = {
    "acos": unit, "acosh": above_one, "asin": unit, "asinh": normal, "atan": normal, "atanh": unit, "cos": normal,
    "cosh": normal, "exp": normal, "expm1": normal, "log": positive, "log10": positive, "log1p": positive,
    "log2": positive,
    "negative": normal, "positive": normal, "reciprocal": positive, "sin": normal, "sinh": normal, "sqrt": positive,
    "square": normal, "tan": unit, "tanh": normal,
}  # fmt: skip


def definite(xp: Any, x: Any) -> Any:
    """A symmetric matrix (or a stack) far from singular, made of any."""
    return x @ xp.matrix_transpose(x) + x.shape[-2] * xp.eye(x.shape[-2])


def mixed(xp: Any, x: Any) -> Any:
    """A square matrix (or a stack) far from singular, with no symmetry."""
    return x + 2 * x.shape[-1] * xp.eye(x.shape[-1])


def _linalg(name: str, f: Callable[..., Any], *shapes: tuple[int, ...], smooth: bool = True) -> list[Case]:
    """`f(xp, *inputs)` with our namespace and with NumPy's."""
    return _of(name, lambda *xs: f(tg, *xs), lambda *xs: f(np, *xs), *shapes, smooth=smooth)


def _of_eigen(xp: Any, x: Any) -> Any:
    """A function of a symmetric matrix by way of its eigenvalues: the signs of the vectors do not matter."""
    w, v = xp.linalg.eigh(definite(xp, x))
    return (v * xp.sqrt(w)[..., None, :]) @ xp.matrix_transpose(v)


def _of_singular(xp: Any, x: Any) -> Any:
    """The same by way of singular values, with a function of them that is no polynomial of the matrix."""
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    return (u * xp.exp(-s)[..., None, :]) @ vh


def _pulled_back(f: Callable[..., Any]) -> Callable[..., Any]:
    """The transpose of `f`, which is linear but for positions: of its input (for the shape) and a cotangent."""
    return lambda x, ct: tg.gradients(f(x), x, [ct])


def _transposed(x: np.ndarray, index: Any, ct: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    np.add.at(out, index, ct)
    return out


def _ordered(f: Callable[..., Any], x: np.ndarray, axis: int | None, descending: bool) -> np.ndarray:
    """NumPy's sort or argsort, which keep the order of equal elements."""
    if not descending:
        return f(x, axis=axis, kind="stable")
    order = np.argsort(-x, axis=axis, kind="stable")
    return order if f is np.argsort else np.take_along_axis(x, order, axis=axis)


def _indexed(index: Any, shape: tuple[int, ...]) -> Case:
    index = index if isinstance(index, tuple) else (index,)
    return _of("take", lambda x: x[index], lambda x: x[index], shape)[0]


SQUARES = ((5, 5), (3, 4, 4))
LINALG = [
    *[c for s in ((4, 5), (3, 3, 4)) for name, f in {
        "cholesky": lambda xp, x: xp.linalg.cholesky(definite(xp, x)),
        "eigh": _of_eigen,
    }.items() for c in _linalg(name, f, s)],
    *_linalg("cholesky", lambda xp, x: xp.linalg.cholesky(definite(xp, x), upper=True), (4, 3)),
    *[c for s in SQUARES for name, f in {
        "inv": lambda xp, x: xp.linalg.inv(mixed(xp, x)),
        "det": lambda xp, x: xp.linalg.det(mixed(xp, x) / 8),
        "slogdet": lambda xp, x: xp.linalg.slogdet(-mixed(xp, x)).logabsdet,
        "eigh": lambda xp, x: xp.linalg.eigvalsh(definite(xp, x)),
    }.items() for c in _linalg(name, f, s)],
    *_linalg("slogdet", lambda xp, x: xp.linalg.slogdet(-mixed(xp, x)).sign, (5, 5)),
    *[c for shapes in (((5, 5), (5, 3)), ((5, 5), (5,)), ((3, 4, 4), (4, 2)), ((4, 4), (3, 4, 2)), ((3, 4, 4), (4,)))
      for c in _linalg("solve", lambda xp, a, b: xp.linalg.solve(mixed(xp, a), b), *shapes)],
    *[c for s in ((7, 4), (4, 4), (3, 6), (2, 5, 3)) for f in (
        lambda xp, x: xp.abs(xp.linalg.qr(x)[0]), lambda xp, x: xp.abs(xp.linalg.qr(x)[1]),
        lambda xp, x: xp.multiply(*[xp.sum(t, axis=(-2, -1)) for t in xp.linalg.qr(x)]),
    ) for c in _linalg("qr", f, s)],
    *_linalg("eigh", lambda xp, x: xp.abs(xp.linalg.eigh(definite(xp, x))[1]), (4, 6)),
    *[c for s in ((6, 4), (4, 4), (3, 5), (2, 5, 3)) for f in (
        _of_singular, lambda xp, x: xp.linalg.svdvals(x),
        lambda xp, x: xp.abs(xp.linalg.svd(x, full_matrices=False)[0]),
        lambda xp, x: xp.abs(xp.linalg.svd(x, full_matrices=False)[2]),
    ) for c in _linalg("svd", f, s)],
    *[c for k in (0, 2, -1) for s in ((4, 6), (6, 4), (2, 5, 4)) for f in (
        lambda xp, x, k=k: xp.linalg.diagonal(x, offset=k), lambda xp, x, k=k: xp.linalg.trace(x, offset=k),
    ) for c in _linalg("eye", f, s)],
    *[c for p in (2, 1, 3, 0.5, 0, np.inf, -np.inf) for how in ({}, {"axis": -1}, {"axis": (0, 1), "keepdims": True})
      for c in _linalg("abs" if p not in (0, 2) else "sum",
                       lambda xp, x, p=p, how=how: xp.linalg.vector_norm(x, ord=p, **how), (5, 4))],
    *[c for p in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf) for s in ((5, 4), (2, 3, 4))
      for c in _linalg("svd" if p in ("nuc", 2, -2) else "sum",
                       lambda xp, x, p=p: xp.linalg.matrix_norm(x, ord=p, keepdims=True), s)],
]  # fmt: skip


def _fft(row: str, name: str, shape: tuple[int, ...], draw: Draw = complexes, **how: Any) -> list[Case]:
    ours, numpys = getattr(tg.fft, name), getattr(np.fft, name)
    return _of(row, lambda x: ours(x, **how), lambda x: numpys(x, **how), shape, draw=draw)


NORMS = ("backward", "ortho", "forward")
FOURIER = [
    *[c for name in ("fft", "ifft") for norm in NORMS for n in (None, 3, 8)
      for c in _fft("fft", name, (4, 5), n=n, axis=-1, norm=norm)],
    *_fft("fft", "fft", (4, 5), normal, axis=0), *_fft("fft", "fft", (6,)), *_fft("fft", "ifft", (1, 3), axis=0),
    *[c for name in ("fftn", "ifftn") for how in ({}, {"axes": (1,)}, {"s": (3, 6), "axes": (1, 0), "norm": "ortho"})
      for c in _fft("fft", name, (4, 5), **how)],
    *_fft("fft", "fftn", (3, 4, 5), axes=(0, 2)),
    *[c for norm in NORMS for n in (None, 3, 6, 1)
      for name in ("rfft", "ihfft") for c in _fft("rfft", name, (5, 4), normal, n=n, norm=norm)],
    *_fft("rfft", "rfft", (5, 4), normal, axis=0),
    *[c for norm in NORMS for n in (None, 3, 4, 9, 1)
      for name in ("irfft", "hfft") for c in _fft("irfft", name, (5, 4), n=n, norm=norm)],
    *_fft("irfft", "irfft", (5, 4), n=9, axis=0), *_fft("irfft", "irfft", (5,), normal),
    *_fft("rfft", "rfftn", (4, 5), normal), *_fft("rfft", "rfftn", (3, 4, 5), normal, s=(4, 3), axes=(2, 0)),
    *_fft("irfft", "irfftn", (4, 5)), *_fft("irfft", "irfftn", (3, 4, 5), s=(4, 3), axes=(2, 0), norm="forward"),
    *_fft("concat", "fftshift", (4, 5)), *_fft("concat", "ifftshift", (4, 5), axes=1),
]  # fmt: skip

#: Everything that takes complex numbers, on them; `normal` beside `complexes` is a real operand of a complex operation.
HOLOMORPHIC = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "expm1", "log", "log10", "log1p", "log2",
    "negative", "positive", "reciprocal", "sin", "sinh", "sqrt", "square", "tan", "tanh",
)  # fmt: skip
ALIKE = {"acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
         "atanh": "arctanh", "pow": "power"}  # fmt: skip
PAIRS = ((complexes, complexes), (normal, complexes), (complexes, normal))
COMPLEX = [
    *[c for n in HOLOMORPHIC for c in _unary(n, complexes, getattr(np, ALIKE.get(n, n)))],
    *[c for n in ("abs", "conj", "imag", "real", "sign") for c in _unary(n, complexes)],
    *_unary("round", complexes, np.rint),
    *[c for n in ("isfinite", "isnan", "isinf") for c in _unary(n, complexes)],
    *[c for n in ("add", "subtract", "multiply", "maximum", "minimum") for draws in PAIRS
      for c in _binary(n, draws, getattr(np, ALIKE.get(n, n)))],
    *[c for n in ("divide", "pow") for draws in ((complexes, off_zero), (normal, off_zero), (complexes, positive))
      for c in _binary(n, draws if n == "divide" else draws[::-1], getattr(np, ALIKE.get(n, n)))],
    *[c for n in ("equal", "not_equal") for c in _binary(n, PAIRS[1], smooth=False)],
    *_of("astype", lambda x: tg.astype(x, complex), lambda x: x.astype(complex), (7, 5)),
    *_of("astype", lambda x: tg.astype(x, "c8"), lambda x: x.astype("c8"), (7, 5), draw=complexes, smooth=False),
    *[Case("where", tg.where, np.where, (booleans, *draws), ((7, 5), (7, 1), (5,))) for draws in PAIRS],
    *[c for n in ("sum", "mean", "prod", "max", "min", "var", "std") for c in _reduce(n, complexes)],
    *[c for n in ("argmax", "argmin") for c in _reduce(n, complexes, smooth=False)],
    *_of("var", lambda x: tg.var(x, axis=0, correction=1), lambda x: np.var(x, axis=0, ddof=1), (7, 5), draw=complexes),
    *_of("sum", lambda x: tg.logsumexp(x, axis=1), lambda x: np.log(np.exp(x).sum(1)), (7, 5), draw=complexes),
    *_of("cumulative_sum", lambda x: tg.cumulative_sum(x, axis=1), lambda x: np.cumsum(x, axis=1), (7, 5),
         draw=complexes),
    *_of("cumulative_prod", lambda x: tg.cumulative_prod(x, axis=1), lambda x: np.cumprod(x, axis=1), (4, 5),
         draw=complexes),
    *[c for row, ours, numpys, *shapes in (
        ("reshape", lambda x: tg.reshape(x, (5, -1)), lambda x: x.reshape(5, -1), (7, 5)),
        ("permute_dims", lambda x: x.T, lambda x: x.T, (7, 5)),
        ("broadcast_to", lambda x: tg.broadcast_to(x, (3, 7, 5)), lambda x: np.broadcast_to(x, (3, 7, 5)), (7, 1)),
        ("concat", lambda x: tg.roll(x, 2, axis=0), lambda x: np.roll(x, 2, 0), (7, 5)),
        ("getitem", lambda x: x[5:1:-2, 1], lambda x: x[5:1:-2, 1], (7, 5)),
        ("rechunk", lambda x: x.rechunk((4, 1)), lambda x: x, (7, 5)),
        ("move", lambda x: x.cpu(), lambda x: x, (7, 5)),
        ("tri", tg.tril, np.tril, (6, 5)),
        ("subtract", tg.diff, np.diff, (7, 5)),
        ("matmul", lambda a, b: a.T @ b.T, lambda a, b: a.T @ b.T, (5, 7), (4, 5)),
        ("matmul", lambda a: a @ tg.conj(a.T), lambda a: a @ np.conj(a.T), (4, 6)),
        ("sum", tg.vecdot, np.vecdot, (7, 5), (5,)),
        ("matmul", lambda a, b: tg.tensordot(a, b, axes=2), lambda a, b: np.tensordot(a, b, 2), (3, 4, 5), (4, 5, 2)),
      ) for c in _of(row, ours, numpys, *shapes, draw=complexes)],
    *[Case("concat", lambda x, y: tg.concat([x, y]), lambda x, y: np.concatenate([x, y]), draws, ((3, 5), (2, 5)))
      for draws in PAIRS],
    *[Case("matmul", tg.matmul, np.matmul, draws, shapes) for draws in PAIRS
      for shapes in (((7, 5), (5, 4)), ((5,), (5, 4)), ((2, 7, 5), (5, 4)))],
    *[Case(row, lambda *x, s=s: tg.einsum(s, *x), lambda *x, s=s: np.einsum(s, *x), draws, shapes) for draws in PAIRS
      for row, s, shapes in (("matmul", "ij,kj->ki", ((3, 4), (5, 4))), ("multiply", "i,j->ij", ((3,), (4,))),
                             ("eye", "ii,ij->j", ((4, 4), (4, 3))))],
    *[c for s in SQUARES for row, ours, numpys in (
        ("inv", lambda x: tg.linalg.inv(mixed(tg, x)), lambda x: np.linalg.inv(mixed(np, x))),
        ("det", lambda x: tg.linalg.det(mixed(tg, x) / 8), lambda x: np.linalg.det(mixed(np, x) / 8)),
      ) for c in _of(row, ours, numpys, s, draw=complexes)],
    *[Case("solve", lambda a, b: tg.linalg.solve(mixed(tg, a), b), lambda a, b: np.linalg.solve(mixed(np, a), b), draws,
           shapes) for draws in PAIRS for shapes in (((5, 5), (5, 3)), ((4, 4), (4,)))],
    *[c for p in (2, 1, 3, 0, np.inf) for c in _of(
        "abs" if p not in (0, 2) else "sum", lambda x, p=p: tg.linalg.vector_norm(x, ord=p, axis=0),
        lambda x, p=p: np.linalg.vector_norm(x, ord=p, axis=0), (5, 4), draw=complexes)],
    *[c for p in ("fro", 1, np.inf) for c in _of("sum", lambda x, p=p: tg.linalg.matrix_norm(x, ord=p),
                                                 lambda x, p=p: np.linalg.matrix_norm(x, ord=p), (5, 4),
                                                 draw=complexes)],
]  # fmt: skip

CASES: list[Case] = [
    *[c for name, draw in UNARY_SMOOTH.items() for c in _unary(name, draw)],
    *_unary("abs"),
    *[c for n in ("ceil", "floor", "trunc", "sign", "signbit", "isfinite", "isinf", "isnan") for c in _unary(n)],
    *_unary("round", numpys=np.rint),
    *_unary("bitwise_invert", integers, smooth=False),
    *_unary("logical_not", booleans, smooth=False),
    *_unary("conj"),
    *[c for n in ("add", "subtract", "multiply", "maximum", "minimum", "hypot", "logaddexp", "copysign")
      for c in _binary(n)],
    *_binary("divide", (normal, positive)),
    *_binary("atan2", (positive, normal), np.arctan2),
    *_binary("pow", (positive, normal)),
    *_binary("remainder", (normal, positive)),
    *_binary("floor_divide", (normal, positive)),
    *_binary("nextafter", smooth=False),
    *[c for n in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
      for c in _binary(n, (integers, integers), smooth=False)],
    *[c for n in ("logical_and", "logical_or", "logical_xor") for c in _binary(n, (booleans, booleans), smooth=False)],
    *[c for n in ("bitwise_and", "bitwise_or", "bitwise_xor") for c in _binary(n, (integers, integers), smooth=False)],
    *[c for n in ("bitwise_left_shift", "bitwise_right_shift")
      for c in _binary(n, (integers, small_counts), smooth=False)],
    *_of("astype", lambda x: tg.astype(x, "float32"), lambda x: x.astype("float32"), (7, 5), smooth=False),
    *_of("astype", lambda x: tg.astype(x, "int16"), lambda x: x.astype("int16"), (7, 5), draw=integers, smooth=False),
    *[Case("where", tg.where, np.where, (booleans, normal, normal), s)
      for s in (((7, 5), (7, 5), (5,)), ((5,), (7, 1), ()))],
    *_of("maximum", lambda x: tg.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), (7, 5)),
    # -- reductions
    *[c for n in ("sum", "mean", "max", "min", "var", "std") for c in _reduce(n)],
    *_reduce("prod", positive), *_reduce("prod", with_zeros),
    *_reduce("all", booleans, smooth=False), *_reduce("any", booleans, smooth=False),
    *_reduce("argmax", smooth=False), *_reduce("argmin", smooth=False),
    *_of("sum", tg.count_nonzero, np.count_nonzero, (7, 5), draw=integers, smooth=False),
    *_of("sum", tg.logsumexp, lambda x: np.log(np.exp(x).sum()), (7, 5)),
    *_of("sum", lambda x: tg.logsumexp(x, axis=1), lambda x: np.log(np.exp(x).sum(1)), (7, 5)),
    *_of("var", lambda x: tg.var(x, axis=0, correction=1), lambda x: np.var(x, axis=0, ddof=1), (7, 5)),
    *[c for draw in (positive, with_zeros)
      for c in _of("cumulative_prod", lambda x: tg.cumulative_prod(x, axis=1), lambda x: np.cumprod(x, axis=1), (4, 5),
                   draw=draw)],
    *_of("cumulative_prod", lambda x: tg.cumulative_prod(x, include_initial=True),
         lambda x: np.concatenate([[1], np.cumprod(x)]), (7,)),
    *_of("subtract", tg.diff, np.diff, (7, 5)),
    *_of("subtract", lambda x, y: tg.diff(x, axis=0, n=2, prepend=y), lambda x, y: np.diff(x, axis=0, n=2, prepend=y),
         (7, 5), (2, 5)),
    *_of("not_equal", tg.diff, np.diff, (7, 5), draw=booleans, smooth=False),
    *_of("cumulative_sum", lambda x: tg.cumulative_sum(x, axis=1), lambda x: np.cumsum(x, axis=1), (7, 5)),
    *_of("cumulative_sum", lambda x: tg.cumulative_sum(x, include_initial=True),
         lambda x: np.concatenate([[0], np.cumsum(x)]), (7,)),
    # -- shape
    *_of("reshape", lambda x: tg.reshape(x, (5, -1)), lambda x: x.reshape(5, -1), (7, 5)),
    *_of("reshape", lambda x: tg.reshape(x, (2, 3, 20)), lambda x: x.reshape(2, 3, 20), (6, 4, 5)),
    *_of("reshape", lambda x: tg.expand_dims(x, axis=1), lambda x: np.expand_dims(x, 1), (7, 5)),
    *_of("reshape", lambda x: tg.squeeze(x, 1), lambda x: np.squeeze(x, 1), (7, 1)),
    *_of("permute_dims", lambda x: tg.permute_dims(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), (3, 4, 5)),
    *_of("permute_dims", lambda x: tg.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), (3, 4, 5)),
    *_of("broadcast_to", lambda x: tg.broadcast_to(x, (3, 7, 5)), lambda x: np.broadcast_to(x, (3, 7, 5)), (7, 1)),
    *_of("concat", lambda x, y: tg.concat([x, y], axis=1), lambda x, y: np.concatenate([x, y], 1), (7, 5), (7, 3)),
    *_of("concat", lambda x, y: tg.concat([x, y], axis=None), lambda x, y: np.concatenate([x, y], None), (7, 5), (3,)),
    *_of("concat", lambda x, y: tg.stack([x, y], axis=1), lambda x, y: np.stack([x, y], 1), (7, 5), (7, 5)),
    *_of("getitem", lambda x: x[2:6:2, -1], lambda x: x[2:6:2, -1], (7, 5)),
    *_of("getitem", lambda x: x[..., ::-1, None], lambda x: x[..., ::-1, None], (7, 5)),
    *_of("getitem", lambda x: x[5:1:-2], lambda x: x[5:1:-2], (7, 5)),
    *_of("getitem", lambda x: tg.max(x[3:7:4, 3:4][None], axis=2), lambda x: x[3:7:4, 3:4][None].max(2), (7, 5)),
    *_of("getitem", lambda x: tg.flip(x, axis=0), lambda x: np.flip(x, 0), (7, 5)),
    *_of("getitem", lambda x: tg.unstack(x, axis=1)[2], lambda x: x[:, 2], (7, 5)),
    *_of("concat", lambda x: tg.roll(x, 2, axis=0), lambda x: np.roll(x, 2, 0), (7, 5)),
    *_of("concat", lambda x: tg.roll(x, (1, -2), axis=(0, 1)), lambda x: np.roll(x, (1, -2), (0, 1)), (7, 5)),
    *_of("broadcast_to", lambda x: tg.tile(x, (2, 3)), lambda x: np.tile(x, (2, 3)), (3, 4)),
    *_of("broadcast_to", lambda x: tg.repeat(x, 3, axis=1), lambda x: np.repeat(x, 3, 1), (3, 4)),
    *_of("rechunk", lambda x: x.rechunk((4, 1)), lambda x: x, (7, 5)),
    *_of("tri", tg.tril, np.tril, (6, 5)), *_of("tri", lambda x: tg.triu(x, k=1), lambda x: np.triu(x, 1), (3, 6, 5)),
    # -- positions
    *[c for axis in (0, 1, -1, None) for at in ([4, 0, 4, -1, 2], np.array([[1, 1], [0, 3]]), [2])
      for how in (lambda i: i, lambda i: tg.asarray(i, chunks=2), lambda i: tg.asarray(i, chunks=2) + 0)
      for c in _of("take", lambda x, at=at, axis=axis, how=how: tg.take(x, how(at), axis=axis),
                   lambda x, at=at, axis=axis: np.take(x, at, axis=axis), (7, 5))],
    *_of("bounded", lambda x: tg.take(x, tg.argsort(x[0]), axis=1), lambda x: x[:, np.argsort(x[0])], (7, 5)),
    *_of("scatter_add", _pulled_back(lambda x: tg.take(x, [1, 1, 0], axis=1)),
         lambda x, ct: _transposed(x, (slice(None), [1, 1, 0]), ct), (4, 5), (4, 3)),
    *_of("scatter_add", _pulled_back(lambda x: tg.take(x, tg.argmax(x, axis=1), axis=0)),
         lambda x, ct: _transposed(x, np.argmax(x, axis=1), ct), (4, 4), (4, 4)),
    *[c for i in ([[0, 2], [3, -1], [1, 1]], [[0, 2, 2]])
      for how in (lambda i: i, lambda i: tg.asarray(i, chunks=1) + 0)
      for c in _of("take_along_axis", lambda x, i=i, how=how: tg.take_along_axis(x, how(i), axis=1),
                   lambda x, i=i: np.take_along_axis(x, np.array(i), 1), (3, 5))],
    *_of("take_along_axis", lambda x: tg.take_along_axis(x, tg.argmax(x, axis=1, keepdims=True), axis=1),
         lambda x: x.max(1, keepdims=True), (3, 4, 5)),
    *_of("scatter_add_along_axis", _pulled_back(lambda x: tg.take_along_axis(x, np.array([[1, 1, 0]]), axis=1)),
         lambda x, ct: _transposed(x, (np.arange(4)[:, None], np.array([[1, 1, 0]])), ct), (4, 5), (4, 3)),
    *[c for axis in (0, -1, None) for down in (False, True) for draw, smooth in ((normal, True), (small_counts, False))
      for name, f in (("take_along_axis", np.sort), ("argsort", np.argsort))
      for c in _of(name, lambda x, f=f, axis=axis, down=down: getattr(tg, f.__name__)(x, axis=axis, descending=down),
                   lambda x, f=f, axis=axis, down=down: _ordered(f, x, axis, down), (7, 5), draw=draw,
                   smooth=smooth and f is np.sort)],
    *_of("argsort", lambda x: tg.sum(tg.sort(x, axis=0)[-3:] ** 2), lambda x: np.sum(np.sort(x, 0)[-3:] ** 2), (7, 5)),
    *[c for side in ("left", "right") for c in _of(
        "searchsorted", lambda x, y, side=side: tg.searchsorted(tg.sort(x), y, side=side),
        lambda x, y, side=side: np.searchsorted(np.sort(x), y, side), (7,), (4, 5), draw=integers, smooth=False)],
    *_of("searchsorted", lambda x, y: tg.searchsorted(x, y, sorter=tg.argsort(x)),
         lambda x, y: np.searchsorted(x, y, sorter=np.argsort(x)), (7,), (3,), smooth=False),
    *_of("isin", tg.isin, np.isin, (7, 5), (3,), draw=integers, smooth=False),
    *_of("isin", lambda x, y: tg.isin(x, y, invert=True), lambda x, y: np.isin(x, y, invert=True), (7, 5), (2, 3),
         draw=integers, smooth=False),
    # -- indexing by arrays
    *[_indexed(index, shape) for shape, *indices in (
        ((7, 5), ([4, 0, 4],), ([[1, 1], [0, -1]], slice(1, 4)), ([0, 2, 6], [1, 1, -1]), (2, [1, 1, 3]),
         (slice(None, None, 2), None, [0, 2]), np.ix_([6, 0, 3], [1, 4]), (np.arange(35).reshape(7, 5) % 3 == 0,)),
        ((3, 4, 5), (..., [0, 2]), ([0, 2], slice(None), [1, 1]), (1, slice(None), [4, 0]),
         ([[0], [2]], [1, 0, 3], slice(None, None, -2)), ([True, False, True], [0, 3]), ([2, 0], [1, 3], [0, 4]),
         (slice(None), np.arange(20).reshape(4, 5) % 2 == 0), ([0, 1], None, [3, 3])),
    ) for index in indices],
    *_of("take", lambda x: x[tg.argmax(x, axis=0), tg.arange(5)], lambda x: x.max(0), (7, 5)),
    *_of("take", lambda x: x[tg.argmax(x[:, 0])], lambda x: x[np.argmax(x[:, 0])], (7, 5)),
    # -- borders
    *[c for mode, name in (("constant", "concat"), ("edge", "take"), ("reflect", "take"), ("symmetric", "take"),
                           ("wrap", "take"))
      for width in (2, ((1, 0), (0, 3)), (9, 1))
      for c in _of(name, lambda x, width=width, mode=mode: tg.pad(x, width, mode),
                   lambda x, width=width, mode=mode: np.pad(x, width, mode), (4, 5))],
    *_of("concat", lambda x: tg.pad(x, {1: (1, 2)}, constant_values=((0, 0), (3, 4))),
         lambda x: np.pad(x, ((0, 0), (1, 2)), constant_values=((0, 0), (3, 4))), (4, 5)),
    # -- products
    *_of("matmul", tg.matmul, np.matmul, (7, 5), (5, 4)), *_of("matmul", tg.matmul, np.matmul, (5,), (5, 4)),
    *_of("matmul", tg.matmul, np.matmul, (7, 5), (5,)), *_of("matmul", tg.matmul, np.matmul, (5,), (5,)),
    *_of("matmul", tg.matmul, np.matmul, (3, 7, 5), (5, 4)),
    *_of("matmul", tg.matmul, np.matmul, (2, 1, 7, 5), (3, 5, 4)),
    *_of("matmul", lambda a, b: a.T @ b.T, lambda a, b: a.T @ b.T, (5, 7), (4, 5)),
    *_of("matmul", lambda a: a @ a.T, lambda a: a @ a.T, (4, 6)),
    *_of("matmul", tg.mm, np.matmul, (7, 5), (5, 4)),
    *_of("matmul", lambda a, b: tg.tensordot(a, b, axes=2), lambda a, b: np.tensordot(a, b, 2), (3, 4, 5), (4, 5, 2)),
    *_of("matmul", lambda a, b: tg.tensordot(a, b, axes=((0, 2), (1, 0))),
         lambda a, b: np.tensordot(a, b, ((0, 2), (1, 0))), (3, 4, 5), (5, 3, 2)),
    *_of("sum", tg.vecdot, lambda a, b: np.sum(a * b, -1), (7, 5), (5,)),
    *_of("multiply", tg.outer, np.outer, (7,), (5,)),
    *[Case(name, lambda *x, s=s: tg.einsum(s, *x), lambda *x, s=s: np.einsum(s, *x), (normal,) * len(shapes),
           tuple(shapes))
      for name, s, *shapes in (
          ("matmul", "ij,jk->ik", (7, 5), (5, 4)), ("matmul", "ij,jk,kl->il", (3, 5), (5, 4), (4, 6)),
          ("matmul", "bij,bjk->bik", (3, 4, 5), (3, 5, 2)), ("permute_dims", "ij->ji", (3, 4)), ("sum", "ij->", (3, 4)),
          ("eye", "ii->i", (4, 4)), ("eye", "ii", (4, 4)), ("multiply", "i,j->ij", (3,), (4,)),
          ("matmul", "ij,ij->i", (3, 4), (3, 4)), ("matmul", "ijk,kl,jm->ilm", (3, 4, 5), (5, 2), (4, 3)),
          ("matmul", "...ij,jk", (2, 3, 4), (4, 5)), ("multiply", "ij,k->i", (3, 4), (5,)),
          ("multiply", "ij,ij->ij", (3, 4), (1, 4)), ("matmul", "...ij,...jk", (1, 2, 3), (2, 3, 4)),
          ("multiply", "ij,ij->i", (3, 4), (3, 1)), ("eye", "iijj->ji", (3, 3, 2, 2)),
      )],
    *LINALG, *COMPLEX, *FOURIER,
    # -- markers and creation
    *_of("stop_gradient", tg.stop_gradient, lambda x: x, (7, 5), smooth=False),
    *_of("move", lambda x: x.cpu(), lambda x: x, (7, 5)),
    *_of("full", lambda x: x + tg.full((7, 5), 2.5, chunks=3), lambda x: x + 2.5, (7, 5)),
    *_of("arange", lambda x: x + tg.arange(1, 11, 2), lambda x: x + np.arange(1, 11, 2), (7, 5)),
    *_of("linspace", lambda x: x + tg.linspace(0, 1, 5), lambda x: x + np.linspace(0, 1, 5), (7, 5)),
    *_of("eye", lambda x: x + tg.eye(7, 5, k=1), lambda x: x + np.eye(7, 5, k=1), (7, 5)),
]  # fmt: skip

Build = Callable[[Any], Any]


def both(name: str, f: Callable[[Any, Any], Any]) -> tuple[str, Build, Callable[[], Any]]:
    """`f(xp, array)` with our namespace and with NumPy's; `array` makes an input, ours in some blocks."""
    return name, lambda array: f(tg, array), lambda: f(np, np.asarray)


def edge(name: str, ours: Build, expected: Any) -> tuple[str, Build, Callable[[], Any]]:
    return name, ours, lambda: expected


BYTES = np.array([[100, 100, 100], [1, 2, 3]], "i1")
TRUTHS = BYTES > 1
EMPTY = np.zeros((0, 4))
ODD = np.array([[1, np.inf], [np.nan, 3]])
UNSIGNED = np.array([1, 255], "u1")

#: Calls at the edges of what an operation takes, with what NumPy answers: types, no elements, ends of ranges.
EDGES: list[tuple[str, Build, Callable[[], Any]]] = [
    *[both(f"slice {s}", lambda xp, array, s=s: array(np.arange(10))[s])
      for s in (slice(-100, None, -1), slice(3, 5, -1), slice(100, None, -3), slice(None, -100, -1), slice(5, 2))],
    both("mean of halves", lambda xp, array: xp.mean(array(np.full(1000, 300, "f2")))),
    edge("var of halves", lambda array: tg.var(array(np.full(1000, 300, "f2"))), np.float16(0)),
    edge("std of halves", lambda array: tg.std(array(np.array([-2e4, 2e4], "f2"))), np.float16(2e4)),
    *[both(f"einsum {s} of {ops[0].dtype}", lambda xp, array, s=s, ops=ops: xp.einsum(s, *[array(o) for o in ops]))
      for s, *ops in (
          ("ij->i", BYTES), ("ij,kj", BYTES, BYTES), ("ij,kj->i", BYTES, BYTES), ("ii", BYTES[:, :2]),
          ("ij->j", TRUTHS), ("ii->i", TRUTHS[:, :2]), ("i,ij->j", BYTES[:, 0], TRUTHS),
          ("ij,jk,kl->il", BYTES, BYTES.T.astype("i2"), BYTES),
          ("i,i->i", np.ones(1), np.ones(1)), ("i,i", np.ones(0), np.ones(1)),
      )],
    edge("einsum of a trace beside inf and nan", lambda array: tg.einsum("ii", array(ODD)), np.float64(4)),
    *[both(f"vecdot of {x.dtype}", lambda xp, array, x=x: xp.vecdot(array(x), array(x))) for x in (BYTES, TRUTHS)],
    # -- linear algebra
    *[both(f"{f.__name__} of integers", lambda xp, array, f=f: getattr(xp.linalg, f.__name__)(array([[4, 1], [1, 3]])))
      for f in (np.linalg.cholesky, np.linalg.inv, np.linalg.det, np.linalg.svdvals, np.linalg.vector_norm)],
    both("solve of singles and doubles",
         lambda xp, array: xp.linalg.solve(array(np.eye(3, dtype="f4")), array([1, 2, 3]))),
    both("inv of singles", lambda xp, array: xp.linalg.inv(array(np.eye(3, dtype="f4") * 2))),
    both("trace of small integers", lambda xp, array: xp.linalg.trace(array(BYTES))),
    both("trace in a small type", lambda xp, array: xp.linalg.trace(array(BYTES), dtype="i1")),
    both("diagonal of booleans", lambda xp, array: xp.linalg.diagonal(array(TRUTHS), offset=1)),
    both("diagonal beyond the matrix", lambda xp, array: xp.linalg.diagonal(array(BYTES), offset=3)),
    both("det of no matrices", lambda xp, array: xp.linalg.det(array(np.zeros((0, 3, 3))))),
    edge("the gradient of a norm at zero", lambda array: (lambda z: tg.gradients(tg.linalg.vector_norm(z), z))(
        array(np.zeros(3))), np.zeros(3)),
    edge("the gradient of equal singular values",
         lambda array: (lambda z: tg.gradients(tg.linalg.matrix_norm(z, ord="nuc"), z))(array(np.eye(3))), np.eye(3)),
    # -- complex numbers and transforms
    *[both(f"fft of {t}", lambda xp, array, t=t: xp.fft.fft(array(np.ones(4, t))))
      for t in ("f2", "f4", "c8", "i4", "?")],
    both("irfft of singles", lambda xp, array: xp.fft.irfft(array(np.ones(4, "c8")))),
    both("rfft of halves", lambda xp, array: xp.fft.rfft(array(np.ones(4, "f2")))),
    both("fft of nothing", lambda xp, array: xp.fft.fft(array(EMPTY))),
    both("fftn along no axis", lambda xp, array: xp.fft.fftn(array(np.ones((3, 2), complex)), axes=())),
    *[both(f"{name} of {n}", lambda xp, array, name=name, n=n: getattr(xp.fft, name)(n, d=0.3))
      for name in ("fftfreq", "rfftfreq") for n in (1, 4, 5)],
    edge("fftfreq of singles", lambda array: tg.fft.fftfreq(3, dtype="f4"), np.fft.fftfreq(3).astype("f4")),
    *[edge(f"the gradient of {name} at zero", lambda array, f=f: (lambda z: tg.gradients(f(z), z))(
        array(np.zeros(3, complex))), np.zeros(3, complex)) for name, f in {"abs": tg.abs, "sign": tg.sign,
        "vector_norm": tg.linalg.vector_norm}.items()],
    edge("the gradient of a holomorphic function", lambda array: (lambda z: tg.gradients(z**3, z))(
        array(np.array([1j, 2 + 1j]))), 3 * np.array([1j, 2 + 1j]) ** 2),
    edge("the gradient of real singles by way of complex ones",
         lambda array: (lambda x: tg.gradients(tg.real(x * 1j * x * 1j), x))(array(np.array([1, 3], "f4"))),
         np.array([-2, -6], "f4")),
    # -- no elements
    edge("concat with nothing", lambda array: tg.concat([array(EMPTY), array(np.ones((5, 4))), array(EMPTY)]),
         np.ones((5, 4))),
    *[edge(f"concat of nothing along {a}", lambda array, a=a: tg.concat([array(EMPTY), array(EMPTY)], axis=a),
           np.zeros(s)) for a, s in ((0, (0, 4)), (1, (0, 8)))],
    edge("cumulative_sum of nothing", lambda array: tg.cumulative_sum(array(np.zeros(0)), include_initial=True),
         np.zeros(1)),
    *[edge(f"{name} of nothing", lambda array, f=f: f(array(EMPTY)), expected) for name, f, expected in (
        ("reshape", lambda z: tg.reshape(z, (2, 0)), np.zeros((2, 0))), ("roll", lambda z: tg.roll(z, 1), EMPTY),
        ("roll along 1", lambda z: tg.roll(z, 1, axis=1), EMPTY), ("flip", tg.flip, EMPTY),
        ("tile", lambda z: tg.tile(z, (2, 3)), np.zeros((0, 12))), ("repeat", lambda z: tg.repeat(z, 2), np.zeros(0)),
        ("outer", lambda z: tg.outer(z[:, 0], tg.zeros(4, chunks=2)), np.zeros((0, 4))),
        ("tensordot", lambda z: tg.tensordot(z, tg.zeros((4, 3), chunks=2), axes=1), np.zeros((0, 3))),
        ("tensordot over it", lambda z: tg.tensordot(z.T, z, axes=1), np.zeros((4, 4))),
        ("stack", lambda z: tg.stack([z, z], axis=1), np.zeros((0, 2, 4))),
        ("max", lambda z: tg.max(z, axis=1), np.zeros(0)), ("argmax", lambda z: tg.argmax(z, axis=1), np.zeros(0, int)),
        ("sum", lambda z: tg.sum(z, axis=0), np.zeros(4)), ("triu", tg.triu, EMPTY), ("diff", tg.diff, EMPTY[:, 1:]),
        ("the gradient of a product", lambda z: tg.gradients(tg.prod(z), z), EMPTY),
    )],
    # -- types
    both("linspace of integers", lambda xp, array: xp.linspace(-1, 1, 4, dtype=int)),
    both("tril of booleans", lambda xp, array: xp.tril(array(np.ones((3, 3), bool)))),
    both("triu of booleans", lambda xp, array: xp.triu(array(np.ones((3, 3), bool)), k=1)),
    both("imag of inf", lambda xp, array: xp.imag(array(np.array([np.inf, 1])))),
    both("imag of booleans", lambda xp, array: xp.imag(array(np.array([True])))),
    *[both(f"{name} of complex", lambda xp, array, f=f: f(xp, array(np.array([1j, 0, 2])))) for name, f in {
        "logical_and": lambda xp, t: xp.logical_and(t, 1j), "logical_not": lambda xp, t: xp.logical_not(t),
        "count_nonzero": lambda xp, t: xp.count_nonzero(t, axis=0), "where": lambda xp, t: xp.where(t, 1, 0),
        "astype": lambda xp, t: xp.astype(t, bool),
    }.items()],
    *[both(f"{name} a number beyond the type", lambda xp, array, f=f: f(array(UNSIGNED))) for name, f in {
        "==": lambda t: t == 300, "!=": lambda t: t != 300, "<": lambda t: t < -1, ">": lambda t: t > -1,
        ">=": lambda t: t >= 2**70, "<=": lambda t: t <= 2**70,
    }.items()],
    both("300 > uint8", lambda xp, array: xp.greater(300, array(UNSIGNED))),
    both("int64 < 2**70", lambda xp, array: array(np.array([1, 2])) < 2**70),
    both("clip promotes all", lambda xp, array: xp.clip(array(np.array([True])), 1, array(np.array([2], "f4")))),
    both("clip from above", lambda xp, array: xp.clip(array(np.array([1, 5, 9])), None, 6)),
    both("sum in a small type", lambda xp, array: xp.sum(array(BYTES), dtype="i1")),
    *[both(f"arange{args} {kw}", lambda xp, array, args=args, kw=kw: xp.arange(*args, **kw)) for args, kw in (
        ((2**63, 2**63 + 3), {"dtype": "u8"}), ((5, 0, -2), {"dtype": "u8"}), ((2**63, 2**63 + 5, 2), {}),
        ((-3, 3), {"dtype": "i1"}), ((10, 0, -3), {}), ((0, 1, 0.25), {}), ((1.5, 4), {}), ((5,), {"dtype": "f4"}),
    )],
    both("zeros of no size", lambda xp, array: xp.zeros((10**9, 0))),
    both("numbers of NumPy", lambda xp, array: np.float64(2) * array(np.ones(3, "f4")) * np.array(3, "f8")),
    both("where of NumPy's numbers", lambda xp, array: xp.where(array([True]), np.float32(1), np.array(2, "f2"))),
    edge("another byte order", lambda array: array(np.arange(3, dtype=">f4")) + np.array(1, ">i2"),
         np.arange(1, 4, dtype="f4")),
    *[both(f"{f.__name__} of integers", lambda xp, array, f=f: f(array(np.array([1, 2], "i1"))))
      for f in (np.rint, np.ceil, np.round)],
    # -- positions
    *[both(f"{name} of nothing", lambda xp, array, f=f: f(xp, array)) for name, f in {
        "take": lambda xp, array: xp.take(array(EMPTY), array(np.zeros(0, int)), axis=0),
        "take for nothing": lambda xp, array: xp.take(array(np.ones((3, 4))), array(np.zeros(0, int)), axis=1),
        "a list": lambda xp, array: array(np.ones((3, 4)))[[]],
        "a mask": lambda xp, array: array(np.ones((3, 4)))[np.zeros((3, 4), bool)],
        "take_along_axis": lambda xp, array: xp.take_along_axis(array(EMPTY), array(np.zeros((0, 2), int)), axis=1),
        "sort": lambda xp, array: xp.sort(array(EMPTY), axis=0),
        "argsort": lambda xp, array: xp.argsort(array(EMPTY), axis=1),
        "searchsorted": lambda xp, array: xp.searchsorted(array(np.ones(3)), array(EMPTY)),
        "searchsorted in nothing": lambda xp, array: xp.searchsorted(array(np.zeros(0)), array(np.ones((2, 3)))),
        "isin": lambda xp, array: xp.isin(array(np.ones((2, 3))), array(EMPTY)),
        "pad": lambda xp, array: xp.pad(array(EMPTY), 1),
    }.items()],
    *[edge(f"the gradient of {name} of nothing", lambda array, f=f: (lambda z: tg.gradients(f(z), z))(
        array(np.ones((3, 4)))), np.zeros((3, 4))) for name, f in {
            "take": lambda z: tg.take(z, np.zeros(0, int), axis=1),
            "take_along_axis": lambda z: tg.take_along_axis(z, np.zeros((3, 0), int), axis=1)}.items()],
    *[both(f"sort of {x.dtype}", lambda xp, array, x=x: xp.sort(array(x))) for x in (BYTES, TRUTHS, ODD, UNSIGNED)],
    both("searchsorted of other types", lambda xp, array: xp.searchsorted(array([1, 5]), array(np.array([2.5], "f4")))),
    both("take by small integers", lambda xp, array: xp.take(array(BYTES), array(np.array([1, -1], "i1")), axis=1)),
    both("take by unsigned integers", lambda xp, array: xp.take(array(np.arange(300)), array(UNSIGNED))),
    both("pad of booleans", lambda xp, array: xp.pad(array(TRUTHS), 1, constant_values=True)),
    both("pad of integers by a fraction", lambda xp, array: xp.pad(array(BYTES), 1, constant_values=2.7)),
    both("pad, no border", lambda xp, array: xp.pad(array(BYTES), ((0, 0), (0, 0)), "reflect")),
    both("sort by position", lambda xp, array: np.sort(array(BYTES), 0)),
    both("sort by name", lambda xp, array: np.sort(array(BYTES), axis=0, stable=True)),
    both("take by position", lambda xp, array: np.take(array(BYTES), [0, 2], 1)),
    both("pad by name", lambda xp, array: np.pad(array(BYTES), pad_width=1, mode="edge")),
    both("pad with constants", lambda xp, array: np.pad(array(BYTES), ((0, 1), (2, 0)), constant_values=7)),
    both("searchsorted by position", lambda xp, array: np.searchsorted(array([1, 2, 3]), array([2, 3]), "right")),
    both("isin by name", lambda xp, array: np.isin(array(BYTES), [1, 100], invert=True)),
    both("repeat by position", lambda xp, array: np.repeat(array(BYTES), 2, 0)),
    both("repeat by name", lambda xp, array: np.repeat(array(BYTES), repeats=2, axis=1)),
    both("clip by name", lambda xp, array: np.clip(array(BYTES), a_min=2, a_max=3)),
    both("transpose by name", lambda xp, array: np.transpose(array(BYTES), axes=(1, 0))),
    both("concatenate by position", lambda xp, array: np.concatenate([array(BYTES), array(BYTES)], 1)),
    *[both(f"NumPy's {f.__name__}", lambda xp, array, f=f, how=how: f(array(BYTES), *how)) for f, *how in (
        (np.fft.fft,), (np.fft.ifft, 4, 0), (np.fft.rfft, 5), (np.fft.irfft,), (np.fft.fftn, (3, 2), (1, 0), "ortho"),
        (np.fft.hfft, None, -1, None), (np.fft.fftshift, 1), (np.real,), (np.conj,),
    )],
    both("diff by position", lambda xp, array: np.diff(array(BYTES), 1, 0)),
]  # fmt: skip

#: Rows that have no function of arrays to try: data and what stands for it; they have tests of their own.
WITHOUT_CASES = {
    "argument", "barrier", "checkpoint", "constant", "dask", "leaf", "part", "placeholder", "random", "read", "saved",
    "scatter", "variable", "write",
}  # fmt: skip
