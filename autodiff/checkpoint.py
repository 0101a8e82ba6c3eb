"""Rematerialisation: values that the backward pass makes again instead of keeping.

Design note. A call of a checkpointed function is traced on marks of its arguments (`argument`), and each of its results
goes through a `checkpoint` expression, which holds the marks and whatever else the function took from around it. The
reverse pass, when it comes to that expression, does not follow the value. It copies the part of the graph between the
marks and the value, with barriers where the copy starts, and goes back through the copy. A barrier gives its argument
once an element of the cotangent is there: so Dask cannot make the copy before the backward pass has come that far, and
since a barrier has an identity of its own, the copy is never taken for the original. What the original made inside has
then no consumer in the backward pass, and Dask frees it as the forward pass goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from taskgraph import tree
from taskgraph.expr import Expr, pinned, serial, topological, with_inputs
from taskgraph.ops.create import ARGUMENT, BARRIER, CHECKPOINT, argument, marked, scalar
from taskgraph.ops.elementwise import add
from taskgraph.passes import is_number
from taskgraph.tensor import Tensor


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, whose inner values are computed again for the gradient instead of being kept from the forward pass.

    It costs `f` once more in the backward pass and saves the memory of all that `f` makes between its arguments and its
    results; the values are the same. Arguments and results are trees. What `f` makes from the tensors among its
    arguments is made again; what it takes from around it is kept. A gradient of a gradient keeps what the first one
    recomputed. (What shall survive a cluster is written to files by `Tensor.checkpoint(path)`.)

    >>> import taskgraph as tg
    >>> layer = tg.checkpoint(lambda h, w: tg.tanh(tg.tanh(h @ w) @ w))
    >>> loss = lambda w: tg.sum(layer(layer(tg.ones((2, 2)), w), w))
    >>> tg.grad(loss)(0.5 * tg.eye(2)).shape
    (2, 2)
    """

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        marks: list[Tensor] = []

        def mark(_: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            marks.append(argument(leaf))
            return marks[-1]

        inner_args, inner_kwargs = tree.map_with_paths(mark, (args, kwargs))
        out = f(*inner_args, **inner_kwargs)
        values = [t.expr for _, t in tree.with_paths(out) if isinstance(t, Tensor)]
        inside = _made_from([m.expr for m in marks], values)
        made_of = [*marks, *[Tensor(e) for e in _taken(inside, [m.expr for m in marks])]]
        call_id = serial()

        def held(_: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dtype.kind not in "fc" or leaf.expr not in inside:
                return leaf
            return marked(CHECKPOINT, leaf, *made_of, id=call_id, marks=len(marks))

        return tree.map_with_paths(held, out)

    return call


def _made_from(marks: Sequence[Expr], values: Sequence[Expr]) -> dict[Expr, None]:
    """The expressions of `values` that depend on a mark, in order, the marks among them."""
    found = dict.fromkeys(marks)
    for node in topological(values, until=frozenset(marks)):
        if node not in found and any(i in found for i in node.inputs):
            found[node] = None
    return found


def _taken(inside: dict[Expr, None], marks: Sequence[Expr]) -> list[Expr]:
    """What expressions inside use from outside, as far as a gradient can go there."""
    ends = set(marks)
    used = dict.fromkeys(i for node in inside if node not in ends for i in node.inputs if i not in inside)
    return [i for i in used if i.dtype.kind in "fc" and not is_number(i)]


# -- for the reverse pass ----------------------------------------------------------------------------------------------


def segments(
    order: Sequence[Expr], targets: Collection[Expr], until: Collection[Expr] = ()
) -> dict[Expr, Sequence[Expr]]:
    """The results of every checkpointed call in the order: all of them under the first, none under the others.

    What they were made of comes before the first, so when the pass has come down to it, all their cotangents are known.
    A call that has a target of the gradient inside is left out: the gradient must then pass through the values.
    """
    calls: dict[Any, list[Expr]] = {}
    for node in order:
        if node.op is CHECKPOINT and node not in until:
            calls.setdefault((node.params["id"], node.inputs[1:]), []).append(node)
    found: dict[Expr, Sequence[Expr]] = {}
    for results in calls.values():
        if not _holds(results, targets):
            found |= dict.fromkeys(results, ())
            found[results[0]] = results
    return found


def _holds(results: Sequence[Expr], targets: Collection[Expr]) -> bool:
    made_of = frozenset(results[0].inputs[1:])
    inside = topological([r.inputs[0] for r in results], until=made_of)
    return any(node in targets and node not in made_of for node in inside)


def again(results: Sequence[Expr], ct: Tensor) -> list[Expr]:
    """The values of a call made anew, from what they were made of, once `ct` is there."""
    made_of = results[0].inputs[1:]
    marks = frozenset(made_of[: results[0].params["marks"]])
    signal = _signal([ct], results[0].device)
    copies: dict[Expr, Expr] = {}
    barriers: dict[Expr, Expr] = {}
    for node in topological([r.inputs[0] for r in results], until=frozenset(made_of)):
        entered = [] if node in made_of else [i for i in node.inputs if i in marks]
        if entered and not any(i in copies for i in node.inputs):
            late = _cheapest(node, entered)
            if late not in barriers:
                barriers[late] = marked(BARRIER, Tensor(late), signal, id=serial()).expr
            copies[node] = with_inputs(node, tuple([barriers[i] if i is late else i for i in node.inputs]))
        elif node not in made_of and any(i in copies for i in node.inputs):
            copies[node] = with_inputs(node, tuple([copies.get(i, i) for i in node.inputs]))
    return [copies.get(r.inputs[0], r.inputs[0]) for r in results]


def _cheapest(node: Expr, entered: Sequence[Expr]) -> Expr:
    """Which of the arguments that an expression takes to hold back, for one is enough: where the expression works
    element by element, one of its own shape, which costs no task; else the smallest."""
    return min(entered, key=lambda i: (node.op.kind == "elementwise" and i.shape != node.shape, i.nbytes))


def in_turn(results: Sequence[Expr], cts: dict[Expr, Tensor], needed: Collection[Expr]) -> dict[Expr, Tensor]:
    """The cotangents of what a call was made of; those through which the pass goes on wait for those where it ends.

    Otherwise Dask may go all the way down first and leave the gradients of parameters for the end, with all that they
    need, which is what was made again.
    """
    going = {m for m in cts if any(i in needed for x in (m, *m.inputs) if x.op is not ARGUMENT for i in x.inputs)}
    ends = [ct for m, ct in cts.items() if m not in going]
    if not ends or not going:
        return cts
    signal = _signal(ends, results[0].device)
    return {m: marked(BARRIER, ct, signal, id=serial()) if m in going else ct for m, ct in cts.items()}


def _signal(cts: Sequence[Tensor], device: str | None) -> Tensor:
    """A number that is there once an element of each is."""
    with pinned(device):
        parts = [ct[(0,) * ct.ndim] if ct.size else scalar(0.0, ct.dtype) for ct in cts]
        return functools.reduce(add, parts)
