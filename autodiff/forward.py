"""Forward mode: tangent expressions appended to a graph."""

from __future__ import annotations

from collections.abc import Sequence

from taskgraph.expr import Expr, gradient_label, labelled, pinned, topological
from taskgraph.ops.elementwise import fitted
from taskgraph.ops.shape import broadcast_to
from taskgraph.tensor import Tensor


def tangents(ys: Sequence[Tensor], xs: Sequence[Tensor], dxs: Sequence[Tensor]) -> list[Tensor | None]:
    """The derivative of each of `ys` in the direction in which the `xs` move by `dxs`; None where it is zero.

    dxs: tensors of the shapes of `xs`. The rules are the rows' `jvp`; NotImplementedError names one that is missing.
    """
    known: dict[Expr, Tensor] = {x.expr: dx for x, dx in zip(xs, dxs, strict=True)}
    for node in topological([y.expr for y in ys], until=frozenset(known)):
        moving = [known.get(i) for i in node.inputs]
        if node in known or node.dtype.kind not in "fc" or all(t is None for t in moving):
            continue
        if node.op.jvp is None:
            raise NotImplementedError(f"tangents: '{node.op.name}' has no rule for forward mode")
        with pinned(node.device), labelled(gradient_label(node)):
            t = node.op.jvp(moving, Tensor(node), *[Tensor(i) for i in node.inputs], **node.params)
            if t is not None:
                t = fitted(t, node.dtype)
                known[node] = t if t.shape == node.shape else broadcast_to(t, node.shape, chunks=node.chunks)
    return [known.get(y.expr) for y in ys]
