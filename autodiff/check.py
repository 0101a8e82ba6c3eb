"""The numerical check of derivatives: both modes against differences, to any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autodiff.functional import jvp, vjp
from taskgraph import tree
from taskgraph.ops.create import asarray
from taskgraph.tensor import Tensor, as_tensor, compute

Function = Callable[..., Any]
Arrays = list[np.ndarray[Any, Any]]

#: Tolerances by bytes of a real number. Chosen: differences of float64 are good to about 1e-10, of float32 to 1e-5, and
#: a wrong rule is off by far more.
TOLERANCE = {2: 0.2, 4: 2e-2, 8: 1e-5}


def check_grads(
    f: Function,
    args: Sequence[Any],
    order: int = 2,
    modes: Sequence[str] = ("forward", "reverse"),
    tolerance: float | None = None,
    step: float | None = None,
) -> None:
    """Compare the derivatives of `f` at `args` with differences of its values, along random directions.

    f: a function of trees of floating point arrays, real or complex, smooth at `args` (a tuple, one item an argument).
    order: 2 checks the derivatives of the first derivatives as well, and so on. tolerance: the error allowed, relative
    to values above 1 and absolute below (1e-5 for float64, 2e-2 for float32, where None). step: of the differences (the
    cube root of the type's precision where None).

    Raises AssertionError naming mode, order and error where they differ. Everything is computed.

    >>> import taskgraph as tg
    >>> check_grads(lambda x: tg.sin(x) * x, (tg.asarray([0.5, 1.0]),))
    """
    if unknown := set(modes) - {"forward", "reverse"}:
        raise ValueError(f"check_grads: modes are 'forward' and 'reverse', not {sorted(unknown)}")
    if order < 1:
        raise ValueError(f"check_grads: order is 1 or more, not {order}")
    _check(f, tuple(args), order, tuple(modes), tolerance, step, np.random.default_rng(0), ())


def _check(
    f: Function,
    args: tuple[Any, ...],
    order: int,
    modes: Sequence[str],
    tolerance: float | None,
    step: float | None,
    rng: np.random.Generator,
    trail: tuple[str, ...],
) -> None:
    moves = _random_like(args, rng)
    expected, ct = _differences(f, args, moves, step, rng)
    derivatives = {mode: _forward(f, moves) if mode == "forward" else _reverse(f, ct) for mode in modes}
    for mode, derivative in derivatives.items():
        found = _arrays(derivative(*args))
        if mode == "forward":
            _compare(found, expected, tolerance, (*trail, mode))
        else:  # <ct, J dx> = <J' ct, dx>, of complex numbers the real parts
            pulled, pushed = _dot(found, _arrays(moves)), _dot(_arrays(ct), expected)
            least = _least(found)
            _compare([np.asarray(pulled, least)], [np.asarray(pushed)], tolerance, (*trail, mode))
    for mode, derivative in derivatives.items() if order > 1 else ():
        _check(derivative, args, order - 1, modes, tolerance, step, rng, (*trail, mode))


def _forward(f: Function, moves: Any) -> Function:
    return lambda *args: jvp(f, args, moves)[1]


def _reverse(f: Function, ct: Any) -> Function:
    return lambda *args: vjp(f, *args)[1](ct)


def _differences(
    f: Function, args: tuple[Any, ...], moves: Any, step: float | None, rng: np.random.Generator
) -> tuple[Arrays, Any]:
    """The derivative along `moves` by central differences, and a random cotangent of the result."""
    least = _least(_tensors(args))
    h = step or float(np.finfo(least).eps) ** (1 / 3)

    def at(by: float) -> Any:
        pairs = zip(_tensors(args), tree.with_paths(moves), strict=True)
        return f(*tree.unflatten(args, [x + asarray(d * x.dtype.type(by)) for x, (_, d) in pairs]))

    after = at(h)
    with np.errstate(all="ignore"):
        differences = [
            np.asarray((_wide(a) - _wide(b)) / (2 * h)) for a, b in zip(_arrays(after), _arrays(at(-h)), strict=True)
        ]
    return differences, _random_like(after, rng)


def _least(of: Sequence[Tensor | np.ndarray[Any, Any]]) -> np.dtype[Any]:
    """The real type of the least precision among those of some arrays."""
    return min((np.finfo(t.dtype).dtype for t in of), key=lambda d: d.itemsize, default=np.dtype(float))


def _wide(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.astype(complex if x.dtype.kind == "c" else float)


def _tensors(of: Any) -> list[Tensor]:
    return [as_tensor(leaf) for _, leaf in tree.with_paths(of)]


def _arrays(of: Any) -> Arrays:
    return [np.asarray(a) for a in compute(*_tensors(of))]


def _random_like(of: Any, rng: np.random.Generator) -> Any:
    return tree.unflatten(of, [_random(t, rng) for t in _tensors(of)])


def _random(t: Tensor, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    drawn = np.asarray(rng.standard_normal(t.shape))
    if t.dtype.kind == "c":
        drawn = drawn + 1j * rng.standard_normal(t.shape)
    return np.asarray(drawn).astype(t.dtype)


def _dot(xs: Arrays, ys: Arrays) -> float:
    return float(sum(np.sum(_wide(x) * _wide(y)).real for x, y in zip(xs, ys, strict=True)))


def _compare(found: Arrays, expected: Arrays, tolerance: float | None, trail: tuple[str, ...]) -> None:
    for f, e in zip(found, expected, strict=True):
        allowed = TOLERANCE[np.finfo(f.dtype).dtype.itemsize] if tolerance is None else tolerance
        error = np.max(np.abs(f - e) / np.maximum(1.0, np.abs(e)), initial=0.0)
        if not error <= allowed:  # NaN is an error, too
            modes = " of ".join(reversed(trail))
            raise AssertionError(
                f"check_grads: {modes} mode, order {len(trail)}: the derivative is off by {error:.2g}, "
                f"more than {allowed:.2g}: {_shown(f)} where differences give {_shown(e)}"
            )


def _shown(x: np.ndarray[Any, Any]) -> str:
    return np.array2string(x, precision=6, threshold=6)
