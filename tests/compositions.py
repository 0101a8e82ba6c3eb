"""Random compositions of the operations of reference_table.py, with ours and with HIPS autograd.

A composition is a list of nodes: arrays that are there, and steps, each an operation on nodes before it. It is drawn
together with its values, so that an operation gets what it can take. A result that has grown is scaled by a power of
two, which changes no digit, so that no composition overflows or loses the digits that are compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import make_vjp
from hypothesis import strategies as st
from reference_table import LARGEST, OPS, Draw, Op, Operand, Shape

import taskgraph as tg
from autodiff.forward import tangents

STEPS = 12
#: Above this a value is scaled.
GROWN = 2.0


@dataclass(frozen=True)
class Leaf:
    """An array that is there."""

    shape: Shape
    chunks: Any


@dataclass(frozen=True)
class Step:
    """`op` on the nodes `at`, scaled."""

    op: Op
    at: tuple[int, ...]
    how: dict[str, Any]
    scale: float


@dataclass
class Composition:
    """Nodes in order; `seed` draws the arrays, the weights of the results and the directions of derivatives."""

    nodes: list[Leaf | Step]
    seed: int
    order: str

    def __repr__(self) -> str:
        lines = []
        for n, node in enumerate(self.nodes):
            if isinstance(node, Leaf):
                lines.append(f"  n{n} = array{list(node.shape)}, chunks={node.chunks}")
            else:
                what = [*[f"n{i}" for i in node.at], *[f"{k}={v}" for k, v in node.how.items()]]
                lines.append(f"  n{n} = {node.scale:g} * {node.op.name}({', '.join(what)})")
        return "\n".join(["", *lines, f"  seed {self.seed}, {self.order}"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # how Hypothesis prints it
        printer.text(repr(self))

    @property
    def steps(self) -> list[Step]:
        return [n for n in self.nodes if isinstance(n, Step)]

    @property
    def leaves(self) -> list[Leaf]:
        return [n for n in self.nodes if isinstance(n, Leaf)]

    @property
    def weak(self) -> bool:
        return any(s.op.weak for s in self.steps)

    def inputs(self) -> list[np.ndarray]:
        return [_numbers(self.seed, n, node.shape) for n, node in enumerate(self.nodes) if isinstance(node, Leaf)]

    def directions(self) -> list[np.ndarray]:
        return [_numbers(self.seed + 1, n, leaf.shape) for n, leaf in enumerate(self.leaves)]

    def loss(self, inputs: Sequence[Any], ours: bool) -> Any:
        """The weighted sum of all results that no other step took."""
        values: list[Any] = []
        rest = iter(inputs)
        for node in self.nodes:
            if isinstance(node, Leaf):
                values.append(next(rest))
            else:
                f = node.op.ours if ours else node.op.theirs
                value = f(*[values[i] for i in node.at], **node.how)
                values.append(value if node.scale == 1 else value * node.scale)
        used = {i for s in self.steps for i in s.at}
        total: Any = 0.0
        for n, value in enumerate(values):
            if n not in used:
                weights = _numbers(self.seed + 2, n, value.shape)
                total = total + (tg.sum(value * tg.asarray(weights)) if ours else anp.sum(value * weights))
        return total


def _numbers(seed: int, n: int, shape: Shape) -> np.ndarray:
    return np.random.default_rng((seed, n)).uniform(-1.5, 1.5, shape)


@dataclass
class _Builder:
    draw: Draw
    seed: int
    nodes: list[Leaf | Step]
    values: list[np.ndarray]

    def leaf(self, shape: Shape) -> int:
        self.nodes.append(Leaf(shape, self.draw(st.sampled_from(("auto", "auto", 2, 3)))))
        self.values.append(_numbers(self.seed, len(self.nodes) - 1, shape))
        return len(self.nodes) - 1

    def operands(self, wanted: Sequence[Operand]) -> tuple[int, ...]:
        """Nodes that fit, late ones more often; a new array where none does, and now and then."""
        chosen: list[int] = []
        for operand in wanted:
            earlier = [self.values[i] for i in chosen]
            fit = [i for i, v in enumerate(self.values) if operand.fits(v, *earlier)]
            if fit and self.draw(st.integers(0, 7)) < 7:
                chosen.append(self.draw(st.sampled_from([*fit[:-4:-1], *fit[::-1]])))
            else:
                chosen.append(self.leaf(operand.shape(self.draw, *earlier)))
        return tuple(chosen)

    def step(self, new: Op) -> bool:
        """Append a step; False where what was drawn is not to be had."""
        before = len(self.nodes)
        at = self.operands(new.operands)
        values = [self.values[i] for i in at]
        how = new.how(self.draw, *values)
        if new.when(*values, **how):
            value = np.asarray(new.theirs(*values, **how))
            if 0 < value.size <= LARGEST and value.ndim <= 4:
                most = float(np.max(np.abs(value)))
                scale = 2.0 ** -math.ceil(math.log2(most / GROWN)) if most > GROWN else 1.0
                self.nodes.append(Step(new, at, how, scale))
                self.values.append(value * scale)
                return True
        del self.nodes[before:], self.values[before:]
        return False


ORDERS = ("first", "first", "first", "forward over reverse", "reverse over reverse")


@st.composite
def compositions(draw: Draw, ops: Sequence[Op] = OPS, most: int = STEPS, turn: int = 0) -> Composition:
    """Of `most` operations at most. turn: which of `ops` is the first: Hypothesis tries it more often."""
    builder = _Builder(draw, draw(st.integers(0, 2**32)), [], [])
    order = draw(st.sampled_from(ORDERS))
    most = most if order == "first" else math.ceil(2 / 3 * most)
    for _ in range(max(draw(st.integers(1, most)), draw(st.integers(1, most)))):
        for _ in range(5):
            if builder.step(ops[(draw(st.integers(0, len(ops) - 1)) + turn) % len(ops)]):
                break
    if not builder.nodes:
        builder.leaf((2,))
    return Composition(builder.nodes, builder.seed, order)


# -- what is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derivatives:
    """Of a composition's loss: its value, its gradients, its derivative along the directions, and (where the order asks
    for it) the product of its Hessian with them. Tensors or arrays."""

    value: Any
    gradients: Sequence[Any]
    tangent: Any
    second: Sequence[Any] = ()


def ours(c: Composition) -> Derivatives:
    xs, moves = (
        [tg.asarray(a, chunks=leaf.chunks) for a, leaf in zip(arrays, c.leaves, strict=True)]
        for arrays in (c.inputs(), c.directions())
    )
    y = c.loss(xs, ours=True)
    grads = tg.gradients(y, xs)
    second: list[Any] = []
    if c.order == "forward over reverse":
        second = [tg.zeros(x.shape) if t is None else t for x, t in zip(xs, tangents(grads, xs, moves), strict=True)]
    elif c.order == "reverse over reverse":
        second = tg.gradients(_along(tg, grads, moves), xs)
    tangent = tangents([y], xs, moves)[0]
    return Derivatives(y, grads, tg.asarray(0.0) if tangent is None else tangent, second)


def theirs(c: Composition) -> Derivatives:
    inputs, moves = c.inputs(), c.directions()

    def loss(xs: Any) -> Any:
        return c.loss(list(xs), ours=False)

    def along(xs: Any) -> Any:
        return _along(anp, make_vjp(loss, xs)[0](1.0), moves)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pull, value = make_vjp(loss, inputs)
        grads = pull(1.0)
        second = [] if c.order == "first" else make_vjp(along, inputs)[0](1.0)
    return Derivatives(value, grads, _along(np, grads, moves), second)


def _along(xp: Any, grads: Any, moves: Sequence[Any]) -> Any:
    return sum(xp.sum(g * d) for g, d in zip(grads, moves, strict=True))
