"""Expressions: an immutable, hash-consed graph of primitives.

Design note. Two expressions that are equal are one object: `bind` looks the token of what it is asked for up before it
makes anything, so common subexpressions are shared for free and identity is equality. The token is a digest of the
primitive's name, its parameters, the tokens of its inputs and the device pin; it is the same in every process, so it
also names the Dask keys. The interning cache holds its values weakly and its keys are strings: an expression lives as
long as somebody uses it, and a long chain is freed without recursion.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from taskgraph.primitives import Primitive

Shape = tuple[int, ...]
Chunks = tuple[tuple[int, ...], ...]
DType = np.dtype[Any]

#: Where new expressions are pinned (`tg.device`), and what they are called in Dask's keys where not by their primitive.
_pin: ContextVar[str | None] = ContextVar("taskgraph_device", default=None)
_label: ContextVar[str | None] = ContextVar("taskgraph_label", default=None)

_interned: weakref.WeakValueDictionary[str, Expr] = weakref.WeakValueDictionary()
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Opaque:
    """A parameter that is compared by a token of its own instead of by its text: data, a Dask array, shared state."""

    value: Any
    token: str

    def __repr__(self) -> str:
        return f"<{self.token}>"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True, repr=False)
class Expr:
    """One application of a primitive: `op(*inputs, **params)`; made by `bind` alone.

    shape, dtype and chunks (block sizes per axis, as in Dask) are those of the result. `device` is the pin under which
    it was made, None where the plan is free. `label` is the readable part of its Dask keys and no part of its identity.
    """

    op: Primitive
    inputs: tuple[Expr, ...]
    params: Mapping[str, Any]
    shape: Shape
    dtype: DType
    chunks: Chunks
    device: str | None
    token: str
    label: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def name(self) -> str:
        """The first part of this expression's Dask keys."""
        return f"{self.label}-{self.token}"

    def __repr__(self) -> str:
        return f"Expr({self.op.name}, shape={self.shape}, dtype={self.dtype}, inputs={len(self.inputs)})"


def bind(op: Primitive, *inputs: Expr, **params: Any) -> Expr:
    """The expression `op(*inputs, **params)`, pinned to the device in force; the existing one where there is one.

    Raises what the primitive's shape rule raises (ValueError for shapes and axes, TypeError for dtypes), so that a
    mistake shows where it is made, not when the graph runs.
    """
    device = _pin.get()
    token = digest(op.name, device, sorted(params.items()), [i.token for i in inputs])
    known = _interned.get(token)
    if known is not None:
        return known
    shape, dtype, chunks = op.infer(*inputs, **params)
    node = Expr(op, inputs, MappingProxyType(params), shape, dtype, chunks, device, token, _label.get() or op.name)
    _interned[token] = node
    return node


def digest(*parts: Any) -> str:
    """Twenty-four hexadecimal digits that stand for what the parts' representations say."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def with_inputs(node: Expr, inputs: tuple[Expr, ...]) -> Expr:
    """The same operation on other inputs, under the pin and the label it had."""
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    with pinned(node.device), labelled(node.label):
        return bind(node.op, *inputs, **node.params)


@contextmanager
def pinned(device: str | None) -> Iterator[None]:
    """Pin the expressions made inside the block; None leaves them to the plan."""
    before = _pin.set(device)
    try:
        yield
    finally:
        _pin.reset(before)


def pin_in_force() -> str | None:
    """The device to which expressions made now are pinned."""
    return _pin.get()


@contextmanager
def labelled(label: str | None) -> Iterator[None]:
    """Name the Dask keys of the expressions made inside the block; None names them by their primitives."""
    before = _label.set(label)
    try:
        yield
    finally:
        _label.reset(before)


def gradient_label(node: Expr) -> str:
    """What the gradient of `node` is called; the gradient of a gradient keeps the name of what it differentiates."""
    return node.label if node.label.endswith("-grad") else f"{node.label}-grad"


def serial() -> int:
    """A number that no other source of this process has: two arrays that a user made are two expressions, even when
    their contents are equal, since a gradient with respect to one is not a gradient with respect to the other."""
    return next(_serial)


def topological(roots: Iterable[Expr], until: Collection[Expr] = ()) -> list[Expr]:
    """Every expression that the roots need, inputs before consumers; each once. No recursion: chains may be long.

    What lies behind the expressions `until` is left out.
    """
    order: list[Expr] = []
    done: set[Expr] = set()
    stack = list(roots)[::-1]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        missing = [] if node in until else [i for i in node.inputs if i not in done]
        if missing:
            stack.extend(reversed(missing))
        else:
            done.add(node)
            order.append(node)
            stack.pop()
    return order


def rewrite(roots: Sequence[Expr], rule: Callable[[Expr, tuple[Expr, ...]], Expr]) -> tuple[Expr, ...]:
    """Rebuild a graph from the inputs up: `rule(node, new_inputs)` says what stands in a node's place.

    The frame of every pass: a rule that has nothing to say returns `with_inputs(node, new_inputs)`.
    """
    new: dict[Expr, Expr] = {}
    for node in topological(roots):
        new[node] = rule(node, tuple([new[i] for i in node.inputs]))
    return tuple(new[r] for r in roots)


def substitute(roots: Sequence[Expr], values: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    """The roots with other expressions in some places; what only those places needed is not looked at."""
    new = dict(values)
    for node in topological(roots, until=values):
        if node not in new:
            new[node] = with_inputs(node, tuple([new[i] for i in node.inputs]))
    return tuple(new[r] for r in roots)


def consumers(order: Iterable[Expr]) -> dict[Expr, list[Expr]]:
    """Who uses each expression of `order` directly."""
    users: dict[Expr, list[Expr]] = {}
    for node in order:
        users.setdefault(node, [])
        for i in node.inputs:
            users[i].append(node)
    return users


def describe(node: Expr) -> str:
    """How an error message speaks of an operand: by the user's name for it where there is one.

    >>> import taskgraph as tg
    >>> describe(tg.placeholder("float32", (2, 3), name="X").expr)
    "'X' is (2, 3) float32"
    """
    named = node
    while named.op.name in ("astype", "leaf", "move", "rechunk", "stop_gradient"):  # the same thing to the user
        named = named.inputs[0]
    if name := named.params.get("name"):
        return f"'{name}' is {named.shape} {named.dtype}"
    what = f"{node.op.name} is " if node.inputs else ""
    return f"{what}{node.shape} {node.dtype}"
