"""What makes a graph valid: rules that hold between passes.

`validate` is cheap to skip and dear to miss: tests switch it on everywhere, users with
`dask.config.set({"taskgraph.validate": True})`. A pass that breaks a rule is named by what it left behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import dask

from taskgraph.expr import Expr, topological
from taskgraph.primitives import TABLE


class InvalidGraph(AssertionError):
    """An expression breaks a rule of the graph: a mistake of ours, not of the user's."""


def validate(roots: Sequence[Expr]) -> tuple[Expr, ...]:
    """The roots as they are, after a look at every expression where `taskgraph.validate` is on."""
    if dask.config.get("taskgraph.validate", False):
        for node in topological(roots):
            for problem in problems(node):
                raise InvalidGraph(f"{node!r}: {problem}")
    return tuple(roots)


def problems(node: Expr) -> list[str]:
    """Every rule that the expression breaks, in words."""
    found = []
    if TABLE.get(node.op.name) is not node.op:
        found.append("its primitive is not in the table")
    if len(node.chunks) != len(node.shape):
        found.append(f"chunks {node.chunks} for shape {node.shape}")
    for axis, (size, blocks) in enumerate(zip(node.shape, node.chunks, strict=False)):
        if sum(blocks) != size or not blocks or min(blocks) < 0:
            found.append(f"blocks {blocks} do not fill axis {axis} of size {size}")
    if node.dtype.kind not in "biufc":
        found.append(f"dtype {node.dtype} is not numeric")
    if node.op.kind == "elementwise" and any(i.ndim > node.ndim for i in node.inputs):
        found.append("an input has more dimensions than the result")
    if node.op.kind == "source" and node.inputs:
        found.append("a source has inputs")
    inferred = node.op.infer(*node.inputs, **node.params)
    if inferred != (node.shape, node.dtype, node.chunks):
        found.append(f"its shape rule says {inferred}")
    return found
