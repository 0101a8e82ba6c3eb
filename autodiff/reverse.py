"""Reverse mode: gradient expressions appended to a graph.

Design note. The pass walks the graph once, from the results to the inputs, and adds up cotangents; the rules stand in
the rows of the primitive table. A rule gives cotangents of the result's (broadcast) shape; they are summed to the
input's shape here, once for everybody, and a real input gets the real part of a complex one. Cotangents are ordinary
expressions that refer to the forward pass's own, so one submission computes both and nothing twice. Each rule runs
under the pin of the expression that it differentiates, and what it makes is named after it in Dask's keys. A
checkpointed call is pulled back as a whole: see checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from autodiff.checkpoint import again, in_turn, segments
from taskgraph.expr import Expr, gradient_label, labelled, pinned, topological
from taskgraph.ops.create import filled
from taskgraph.ops.elementwise import fitted
from taskgraph.ops.reduce import sum as sum_
from taskgraph.ops.shape import reshape
from taskgraph.tensor import Tensor, as_tensor


def gradients(ys: Any, xs: Any, grad_ys: Any = None) -> Any:
    """The gradient of the sum of all elements of `ys` with respect to each of `xs`, as tensors of the shapes of `xs`.

    ys, xs: a tensor or a list of them; xs may be any tensors of the graph, inputs or intermediate ones. grad_ys: the
    cotangents that stand for the derivative of something further with respect to each of `ys` (ones where None), of
    their shapes. Gives a list, or one tensor where `xs` is one. With respect to what `ys` does not depend on, the
    gradient is zeros.

    Equal expressions are one expression: the gradient with respect to `2 * x` covers every `2 * x` of the graph.

    Complex numbers follow JAX's convention: by `x` the gradient is that g for which the real part of the sum moves by
    Re(sum(g * dx)) as `x` moves by dx. That is dL/da - i dL/db of a real L by x = a + ib, so that L falls along
    -conj(g), and f'(x) of a holomorphic f; a cotangent pairs with its tensor in the same way.

    Raises TypeError for a tensor of integers or booleans, or a complex cotangent of a real one, NotImplementedError for
    an operation that has no rule, ValueError where a cotangent has another shape than its tensor.

    >>> import taskgraph as tg
    >>> x = tg.asarray([1.0, 2.0])
    >>> tg.gradients(3 * x**2, x).compute()
    array([ 6., 12.])
    """
    many = isinstance(xs, list | tuple)
    targets = [as_tensor(x) for x in (xs if many else [xs])]
    results = [as_tensor(y) for y in (ys if isinstance(ys, list | tuple) else [ys])]
    for role, tensors in (("ys", results), ("xs", targets)):
        for n, t in enumerate(tensors):
            _check_floating(f"{role}[{n}]", t)
    known = _propagate([y.expr for y in results], _seeds(results, grad_ys), {x.expr for x in targets})
    found = [known[x.expr] if x.expr in known else filled(x, 0.0) for x in targets]
    return found if many else found[0]


def _check_floating(name: str, t: Tensor) -> None:
    if t.dtype.kind not in "fc":
        raise TypeError(
            f"gradients: {name} ('{t.expr.op.name}') is {t.dtype}; only floating point tensors have gradients"
        )


def _seeds(ys: Sequence[Tensor], grad_ys: Any) -> list[Tensor]:
    if grad_ys is None:
        return [filled(y, 1.0) for y in ys]
    given = list(grad_ys) if isinstance(grad_ys, list | tuple) else [grad_ys]
    if len(given) != len(ys):
        raise ValueError(f"gradients: {len(given)} cotangents for {len(ys)} results")
    seeds = []
    for n, (y, g) in enumerate(zip(ys, given, strict=True)):
        ct = filled(y, 1.0) if g is None else as_tensor(g)
        if ct.shape != y.shape:
            raise ValueError(f"gradients: ys[{n}] is {y.shape}, its cotangent is {ct.shape}")
        if ct.dtype.kind == "c" and y.dtype.kind != "c":
            raise TypeError(f"gradients: ys[{n}] is {y.dtype}, its cotangent is {ct.dtype}; take real(cotangent)")
        seeds.append(ct if ct.dtype == y.dtype else ct.astype(y.dtype))
    return seeds


def pull_back(ys: Sequence[Tensor], cts: Sequence[Tensor], xs: Sequence[Tensor]) -> list[Tensor]:
    """The cotangents of `xs` from those of `ys`, zeros where they do not depend on them; no checks.

    xs: the pass stops at them, so none may be made of another.
    """
    stops = frozenset(x.expr for x in xs)
    found = _propagate([y.expr for y in ys], cts, stops, stops)
    return [found[x.expr] if x.expr in found else filled(x, 0.0) for x in xs]


def _propagate(
    ys: Sequence[Expr], cts: Sequence[Tensor], xs: Collection[Expr], until: Collection[Expr] = ()
) -> dict[Expr, Tensor]:
    """The cotangents of all that lies between `xs` and `ys`; what lies behind `until` is not looked at."""
    order = topological(ys, until)
    needed = _depending_on(xs, order)
    calls = segments(order, xs, until)
    cotangents: dict[Expr, Tensor] = {}
    for y, ct in zip(ys, cts, strict=True):
        _accumulate(cotangents, y, ct)
    for node in reversed(order):
        if node in until or node not in needed or not any(i in needed for i in node.inputs):
            continue
        if node in calls:
            results = [r for r in calls[node] if r in cotangents]
            if results:
                _recompute(results, cotangents, needed)
        elif node in cotangents:
            with pinned(node.device), labelled(gradient_label(node)):
                for i, t in zip(node.inputs, _pull_back(node, cotangents[node]), strict=True):
                    if t is not None and i in needed:
                        _accumulate(cotangents, i, _summed_to(fitted(t, i.dtype), i.shape))
    return cotangents


def _recompute(results: Sequence[Expr], cotangents: dict[Expr, Tensor], needed: set[Expr]) -> None:
    """Pull the cotangents of a checkpointed call's results back through a copy of what is inside it."""
    cts = [cotangents[r] for r in results]
    made_of = frozenset(results[0].inputs[1:])
    found = _propagate(again(results, cts[0]), cts, made_of & needed, made_of)
    wanted = {m: found[m] for m in results[0].inputs[1:] if m in found and m in needed}
    for source, ct in in_turn(results, wanted, needed).items():
        with pinned(source.device), labelled(gradient_label(source)):
            _accumulate(cotangents, source, ct)


def _depending_on(xs: Collection[Expr], order: Sequence[Expr]) -> set[Expr]:
    """The expressions through which the gradient must pass: those that depend on an x by a floating point path."""
    found: set[Expr] = set()
    for node in order:
        if node in xs or (np.issubdtype(node.dtype, np.inexact) and any(i in found for i in node.inputs)):
            found.add(node)
    return found


def _pull_back(node: Expr, ct: Tensor) -> Sequence[Tensor | None]:
    if node.op.vjp is None:
        raise NotImplementedError(f"gradients: '{node.op.name}' has no rule for reverse mode")
    found = node.op.vjp(ct, Tensor(node), *[Tensor(i) for i in node.inputs], **node.params)
    return (None,) * len(node.inputs) if found is None else found


def _accumulate(cotangents: dict[Expr, Tensor], node: Expr, ct: Tensor) -> None:
    known = cotangents.get(node)
    cotangents[node] = ct if known is None else known + ct


def _summed_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose of broadcasting: sums over the axes along which an input of that shape was repeated."""
    if t.shape == shape:
        return t
    lead = t.ndim - len(shape)
    repeated = tuple(range(lead)) + tuple(lead + a for a, s in enumerate(shape) if s == 1 and t.shape[lead + a] != 1)
    return reshape(sum_(t, axis=repeated) if repeated else t, shape)
