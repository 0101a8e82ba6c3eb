"""Primitives: what an operation is, and the one table of them.

A row holds everything that the system knows of an operation; the rows stand in `taskgraph/ops`, one line or a few each.
There are four kinds, by how a row is lowered:

source       `lower(start, shape, **params)` makes the block of that shape that begins at `start`, on the host.
elementwise  `lower(xp, *blocks, **params)` computes a block of the result from the same blocks of its inputs.
product      a matrix product; lowered by the plan, tile by tile.
array        `lower(xp, *arrays, **params)` computes the whole from the whole: `xp` is `dask.array` for arrays of many
             blocks and a NumPy namespace where everything is one block.

`infer(*inputs, **params)` gives (shape, dtype, chunks) or raises. `vjp(ct, out, *inputs, **params)` gives the
cotangents of the inputs (None for zero), `jvp(tangents, out, *inputs, **params)` the tangent of the result from the
inputs' tangents (None for zero); both get and give tensors and call public operations, so they are themselves
differentiable. A rule never sums a cotangent to its input's shape: the reverse pass does that once, for everybody.

Complex numbers (JAX's convention): tangents move as numbers do, cotangents pair with them as Re(ct * dx), so the
reverse rule of a holomorphic operation multiplies by its derivative, with no conjugate, and what a real operation's
rules give may be complex: the passes take the real part once, for everybody (`ops.elementwise.fitted`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from taskgraph.expr import Chunks, DType, Expr, Shape

Kind = Literal["source", "elementwise", "product", "array"]


def _per_element(node: Expr) -> int:
    return node.size


def no_gradient(*_: Any, **__: Any) -> None:
    """The rule of an operation that is constant almost everywhere (comparisons, floor, argmax): an explicit zero."""


def no_inputs(*_: Any, **__: Any) -> tuple[()]:
    """The rule of what is made of no tensor: no pass has anything to hand on to it."""
    return ()


@dataclass(frozen=True, eq=False)
class Primitive:
    """A row of the table; see the module's note for the meaning of its columns."""

    name: str
    kind: Kind
    infer: Callable[..., tuple[Shape, DType, Chunks]]
    lower: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    flops: Callable[[Expr], int] = _per_element

    def __repr__(self) -> str:
        return f"Primitive({self.name})"

    def __reduce__(self) -> tuple[Callable[[str], Primitive], tuple[str]]:
        return find, (self.name,)


#: The one table: name -> row. Filled when `taskgraph.ops` is imported, read-only afterwards.
TABLE: dict[str, Primitive] = {}


def primitive(name: str, **columns: Any) -> Primitive:
    """Enter a row in the table; a name stands for one row only."""
    if name in TABLE:
        raise ValueError(f"primitive {name!r} is in the table already")
    TABLE[name] = Primitive(name, **columns)
    return TABLE[name]


def is_dask(xp: Any) -> bool:
    """Whether the namespace that an "array" row is lowered onto is `dask.array`, whose names are NumPy's older ones."""
    return bool(xp.__name__ == "dask.array")


def find(name: str) -> Primitive:
    """The row of that name; a worker that gets a task calls this, so it makes sure that the rows are there."""
    import taskgraph.ops  # noqa: F401  (the rows enter the table)

    return TABLE[name]
