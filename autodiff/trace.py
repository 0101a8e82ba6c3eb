"""What a function of trees makes of arguments of its own: the frame of every transformation.

Design note. Nothing is recorded: a function is called once, on tensors, and what it gives back is a graph of
expressions. Equal expressions are one expression, so every argument goes in under an identity of its own
(`ops.create.argument`): the two arguments of `f(x, x)` are told apart, and a pass stops at them. The marks are gone
before anything is planned.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from taskgraph import tree
from taskgraph.ops.create import argument, result, scalar
from taskgraph.tensor import Tensor, as_tensor, tracking, untracked


@dataclass(frozen=True)
class Traced:
    """One call of a function.

    inputs: the fresh tensors, one for every leaf of the chosen arguments; model: those arguments, as the caller's
    trees. out: the result, a tree of the tensors `outputs`; aux: what the function gave besides.
    """

    name: str
    inputs: list[Tensor]
    model: tuple[Any, ...]
    out: Any
    outputs: list[Tensor]
    aux: Any

    def given(self, t: Tensor, beside: Tensor | None = None) -> Tensor:
        """A result as the caller gets it: it passes gradients on where what it was made of does, stays where `beside`
        was put, and is a constant where `tg.no_grad` is in force around the call."""
        wants = any(x.requires_grad for x in (*self.inputs, *self.outputs))
        return untracked(result(t, wants, t if beside is None else beside))


def trace(
    name: str,
    f: Callable[..., Any],
    args: Sequence[Any],
    chosen: Sequence[int],
    kwargs: dict[str, Any],
    has_aux: bool = False,
) -> Traced:
    """Call `f` with the leaves of the chosen arguments replaced by tensors of their own; the others go in as they are.

    Raises TypeError, naming the argument or the result, for what is no floating point array, real or complex.
    """
    inputs: list[Tensor] = []

    def fresh(path: str, leaf: Any) -> Tensor:
        inputs.append(argument(_floating(name, path, leaf)))
        return inputs[-1]

    full = list(args)
    for n in chosen:
        full[n] = tree.map_with_paths(fresh, args[n], f"argument {n}")
    with tracking(True):
        out, aux = _called(name, f, full, kwargs, has_aux)
    out = tree.map_with_paths(lambda path, leaf: _floating(name, path, leaf), out, "the result")
    outputs = [t for _, t in tree.with_paths(out)]
    return Traced(name, inputs, tuple(args[n] for n in chosen), out, outputs, aux)


def _called(name: str, f: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], has_aux: bool) -> Any:
    found = f(*args, **kwargs)
    if not has_aux:
        return found, None
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"{name}: with has_aux the function returns a pair (result, aux), not {type(found).__name__}")
    return found


def _floating(name: str, path: str, leaf: Any) -> Tensor:
    try:
        t = as_tensor(leaf)
    except (TypeError, ValueError) as e:
        raise TypeError(f"{name}: {path} is a {type(leaf).__name__}, which is no array of numbers ({e})") from None
    if t.dtype.kind not in "fc":
        raise TypeError(f"{name}: {path} is {t.dtype}; only floating point arrays have derivatives")
    return t


def positions(name: str, argnums: Any, args: Sequence[Any]) -> list[int]:
    """The places that `argnums` names among the arguments; TypeError where one is not there, or no integer."""
    try:
        found = [operator.index(n) for n in (argnums if isinstance(argnums, list | tuple) else (argnums,))]
    except TypeError:
        raise TypeError(f"{name}: argnums is an integer or a tuple of them, not {argnums!r}") from None
    for n in found:
        if not -len(args) <= n < len(args):
            raise TypeError(f"{name}: argnums={argnums} with {len(args)} positional argument(s)")
    found = [n % len(args) for n in found]
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: argnums={argnums} names an argument twice")
    return found


def directions(name: str, role: str, model: Any, ts: Sequence[Tensor], given: Any, path: str) -> list[Tensor]:
    """The leaves of `given`, a tree like `model`, as tensors of the shapes and types of `ts`; Python's numbers take any
    floating point type. ValueError, naming the place, where structure, shape or type differ."""
    try:
        pairs = tree.against(model, given, role, path)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
    return [_direction(name, role, place, t, d) for (place, _, d), t in zip(pairs, ts, strict=True)]


def _direction(name: str, role: str, place: str, t: Tensor, given: Any) -> Tensor:
    numbers = (int, float, complex) if t.dtype.kind == "c" else (int, float)
    d = scalar(given, t.dtype) if type(given) in numbers else as_tensor(given)
    if d.shape != t.shape:
        raise ValueError(f"{name}: {place} has shape {t.shape}, its {role} {d.shape}")
    if d.dtype != t.dtype:
        raise ValueError(f"{name}: {place} is {t.dtype}, its {role} {d.dtype}")
    return d
