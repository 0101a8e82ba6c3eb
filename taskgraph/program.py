"""Programs: a few primitives in a row, run by one task on blocks in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskgraph.expr import Chunks, Expr
from taskgraph.passes import is_number
from taskgraph.primitives import Primitive
from workers import backend
from workers.kernels import gemm_panel


@dataclass(frozen=True, slots=True, repr=False)
class Program:
    """Steps on a list of values: the arguments first, then the result of every step.

    A step is (primitive, params, positions of its inputs). A source's input is the place of the block that it makes,
    a pair (start, shape). Called with an array namespace and the arguments; gives the values at `outputs`, as a tuple
    where there are several. A program holds no arrays, so that a thousand tasks may share one.
    """

    name: str
    steps: tuple[tuple[Primitive, dict[str, Any], tuple[int, ...]], ...]
    outputs: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Program({self.name}: {' '.join(op.name for op, _, _ in self.steps)})"

    def __call__(self, xp: Any, *args: Any) -> Any:
        values = list(args)
        last = {i: n for n, (_, _, at) in enumerate(self.steps) for i in at}
        for n, (op, params, at) in enumerate(self.steps):
            values.append(_step(xp, op, params, [values[i] for i in at]))
            for i in at:  # what nobody needs any more makes room
                if last[i] == n and i not in self.outputs:
                    values[i] = None
        found = [values[i] for i in self.outputs]
        return found[0] if len(found) == 1 else tuple(found)


def _step(xp: Any, op: Primitive, params: dict[str, Any], inputs: list[Any]) -> Any:
    if op.kind == "product":
        a, b = inputs
        return gemm_panel(xp, [a], [b], transpose_a=params["ta"], transpose_b=params["tb"])
    assert op.lower is not None, op
    if op.kind == "source":
        start, shape = inputs[0]
        return backend.current().to_device(op.lower(start, shape, **params))
    return op.lower(xp, *inputs, **params)


@dataclass(frozen=True, slots=True)
class Made:
    """A source as a function of the place and the shape of a block: what a task needs to make any part of it."""

    op: Primitive
    params: dict[str, Any]

    def __call__(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        assert self.op.lower is not None, self.op
        return self.op.lower(start, shape, **self.params)


def made(node: Expr) -> Made:
    """The function of a source."""
    return Made(node.op, _wire(node))


def compile_nodes(name: str, nodes: Sequence[Expr], outputs: Sequence[Expr]) -> tuple[Program, list[Expr | Chunks]]:
    """The program of some expressions, and its arguments.

    An argument is an expression from elsewhere whose block the program takes (numbers among them) or, for a source of
    its own, the blocks in which that is cut: they stand for the place of the one to make.
    """
    inside = set(nodes)
    at: dict[Expr | Chunks, int] = {}
    for node in nodes:
        for i in [node.chunks] if node.op.kind == "source" else node.inputs:
            if i not in inside:
                at.setdefault(i, len(at))
    arguments = list(at)
    steps = []
    for n, node in enumerate(nodes):
        taken = (at[node.chunks],) if node.op.kind == "source" else tuple(at[i] for i in node.inputs)
        steps.append((node.op, _wire(node), taken))
        at[node] = len(arguments) + n
    return Program(name, tuple(steps), tuple(at[o] for o in outputs)), arguments


def _wire(node: Expr) -> dict[str, Any]:
    """The parameters as they travel to a worker."""
    return {k: v for k, v in node.params.items() if k not in ("id", "tensor")}


def number(node: Expr) -> Any:
    """A number of an expression as the 0-d array that a task gets."""
    assert is_number(node)
    return np.asarray(node.params["fill_value"], dtype=node.dtype)
