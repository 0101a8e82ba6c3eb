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


def _binary(
    name: str, draws: Sequence[Draw] = (normal, normal), numpys: Any = None, smooth: bool = True
) -> list[Case]:
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

CASES: list[Case] = [
    *[c for name, draw in UNARY_SMOOTH.items() for c in _unary(name, draw)],
    *_unary("abs"),
    *[c for n in ("ceil", "floor", "trunc", "sign", "signbit", "isfinite", "isinf", "isnan") for c in _unary(n)],
    *_unary("round", numpys=np.rint),
    *_unary("bitwise_invert", integers, smooth=False),
    *_unary("logical_not", booleans, smooth=False),
    *_unary("conj", complexes, smooth=False),
    *_unary("conj"),
    *_unary("real", complexes, smooth=False),
    *_unary("imag", complexes, smooth=False),
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
    *_reduce("prod", positive),
    *_reduce("all", booleans, smooth=False), *_reduce("any", booleans, smooth=False),
    *_reduce("argmax", smooth=False), *_reduce("argmin", smooth=False),
    *_of("sum", tg.count_nonzero, np.count_nonzero, (7, 5), draw=integers, smooth=False),
    *_of("sum", tg.logsumexp, lambda x: np.log(np.exp(x).sum()), (7, 5)),
    *_of("sum", lambda x: tg.logsumexp(x, axis=1), lambda x: np.log(np.exp(x).sum(1)), (7, 5)),
    *_of("var", lambda x: tg.var(x, axis=0, correction=1), lambda x: np.var(x, axis=0, ddof=1), (7, 5)),
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
      )],
    # -- markers and creation
    *_of("stop_gradient", tg.stop_gradient, lambda x: x, (7, 5), smooth=False),
    *_of("move", lambda x: x.cpu(), lambda x: x, (7, 5)),
    *_of("full", lambda x: x + tg.full((7, 5), 2.5, chunks=3), lambda x: x + 2.5, (7, 5)),
    *_of("arange", lambda x: x + tg.arange(1, 11, 2), lambda x: x + np.arange(1, 11, 2), (7, 5)),
    *_of("linspace", lambda x: x + tg.linspace(0, 1, 5), lambda x: x + np.linspace(0, 1, 5), (7, 5)),
    *_of("eye", lambda x: x + tg.eye(7, 5, k=1), lambda x: x + np.eye(7, 5, k=1), (7, 5)),
]  # fmt: skip

#: Rows that have no function of arrays to try: data and what stands for it; they have tests of their own.
WITHOUT_CASES = {"constant", "dask", "leaf", "part", "placeholder", "random", "scatter", "variable"}
