"""What a script changes while it runs, as something that `tg.save` can write, and back into its place.

Design note. A state is a tree of dicts, lists and tuples. Some of its leaves are *places*, which keep their identity
when values come back: variables, generators and NumPy arrays are filled, and dicts and lists get their entries anew.
Every other leaf (a tensor, a number, a string, None) is a value, and stands in a dict or a list. `captured` gives the
tree with each leaf behind the word for its kind; `restored` goes down both trees together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from taskgraph.expr import Expr
from taskgraph.io import PLAIN
from taskgraph.lineage import kept
from taskgraph.random import Generator
from taskgraph.session import Variable
from taskgraph.tensor import Tensor, as_tensor, persist

#: The word for a leaf by its type; a variable is a tensor, too, so the order counts.
KINDS: dict[str, Any] = {
    "variable": Variable,
    "generator": Generator,
    "numpy generator": np.random.Generator,
    "array": np.ndarray,
    "tensor": Tensor | da.Array,
    "scalar": np.generic,
    "plain": PLAIN,
}
PLACES = ("variable", "generator", "numpy generator", "array")


def kind_of(leaf: Any, path: str = "state") -> str:
    """The word for a leaf; TypeError, naming it, for what cannot be saved."""
    for kind, types in KINDS.items():
        if isinstance(leaf, types):
            return kind
    raise TypeError(f"resumable: cannot save a {type(leaf).__name__}, at {path}")


def captured(node: Any, path: str = "state") -> dict[str, Any]:
    """The tree as `tg.save` takes it. TypeError, naming the place, for what cannot be saved."""
    if isinstance(node, dict):
        return {"dict": {key: captured(child, f"{path}[{key!r}]") for key, child in node.items()}}
    if type(node) in (list, tuple):
        return {type(node).__name__: [captured(child, f"{path}[{i}]") for i, child in enumerate(node)]}
    kind = kind_of(node, path)
    if kind == "variable":
        return {kind: captured(node.value)}
    if kind == "tensor" and (pins := as_tensor(node).pins) != (None, None):
        return {"pinned": {"pins": pins, "tensor": node}}
    if kind == "generator":
        return {kind: captured(node.state)}
    if kind == "numpy generator":
        return {kind: captured(node.bit_generator.state)}
    return {kind: node}


def restored(node: Any, saved: dict[str, Any], path: str = "state") -> Any:
    """What stands in the place of `node` once the saved values are back: itself where it is a place.

    node: what is there now, None where nothing is. Raises ValueError, naming it, where a place is missing.
    """
    ((kind, content),) = saved.items()
    if kind == "dict":
        here = node if isinstance(node, dict) else {}
        new = {key: restored(here.get(key), child, f"{path}[{key!r}]") for key, child in content.items()}
        here.clear()
        here.update(new)
        return here
    if kind in ("list", "tuple"):
        old = list(node) if isinstance(node, list | tuple) else []
        old += [None] * (len(content) - len(old))
        items = [restored(o, c, f"{path}[{i}]") for i, (o, c) in enumerate(zip(old, content, strict=False))]
        if kind == "list" and isinstance(node, list):
            node[:] = items
            return node
        return items if kind == "list" else tuple(items)
    if kind == "array":
        return _filled(node, content.compute())
    if kind in PLACES and (node is None or kind_of(node) != kind):
        raise ValueError(f"resumable: the saved state has a {kind} at {path}, where the script has none")
    if kind == "pinned":
        return content["tensor"].repinned(*content["pins"])
    if kind == "variable":
        node._set(restored(None, content).expr)
    elif kind == "generator":
        node.state = restored(None, content)
    elif kind == "numpy generator":
        node.bit_generator.state = restored(None, content)
    else:
        return content.compute()[()] if kind == "scalar" else content
    return node


def _filled(node: Any, values: np.ndarray) -> np.ndarray:
    if isinstance(node, np.ndarray) and (node.shape, node.dtype) == (values.shape, values.dtype):
        node[...] = values
        return node
    return np.asarray(values)


def described(node: Any, path: str = "state") -> list[str]:
    """A line for every leaf: what tells one script's state from another's.

    >>> described({"w": Variable([1.0, 2.0]), "count": 3})
    ["state['w']: variable float64 (2,)", "state['count']: plain"]
    """
    if isinstance(node, dict):
        return [line for key, child in node.items() for line in described(child, f"{path}[{key!r}]")]
    if type(node) in (list, tuple):
        return [line for i, child in enumerate(node) for line in described(child, f"{path}[{i}]")]
    kind = kind_of(node, path)
    return [f"{path}: {kind}" + (f" {node.dtype} {tuple(node.shape)}" if hasattr(node, "shape") else "")]


def check(node: Any, path: str = "state") -> None:
    """Raise ValueError where there is nothing to save, TypeError for a value that could not be given back."""
    if not described(node, path):
        raise ValueError(f"resumable: {path} is empty: there is nothing to save")
    for at, one in enumerate(node) if type(node) is tuple else ():
        check(one, f"{path}[{at}]")
    if not isinstance(node, dict | list | tuple) and kind_of(node, path) not in PLACES:
        raise TypeError(
            f"resumable: {path} is a {kind_of(node)}, which nothing could be put back into: give a dict, and let every "
            "step take from it and put into it: state['x'] = f(state['x'])"
        )


def each(f: Callable[[Any], Any], node: Any) -> Any:
    """Put `f(leaf)` in the place of every leaf, in the dicts and lists that are there; gives what stands at the top."""
    if isinstance(node, dict):
        for key, child in node.items():
            node[key] = each(f, child)
    elif isinstance(node, list):
        node[:] = [each(f, child) for child in node]
    elif isinstance(node, tuple):
        return tuple(each(f, child) for child in node)
    else:
        return f(node)
    return node


def values(node: Any) -> list[Any]:
    """What a step could put others in the place of; nothing where there are places, which change by themselves."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    each(note, node)
    return [] if any(isinstance(leaf, KINDS[place]) for leaf in found for place in PLACES) else found


def settle(state: Any, **kwargs: Any) -> Any:
    """Compute the tensors of a state that are not computed yet, in one run, and keep them, in place; gives the state.

    So that every step begins with blocks that exist, whether it follows another step or a restart: what a plan makes
    of an expression, and with it the bits, may depend on what stands behind it.
    """
    lazy: dict[int, Tensor] = {}

    def note(leaf: Any) -> Any:
        value = leaf.value if isinstance(leaf, Variable) else leaf
        if isinstance(value, Tensor | da.Array) and not _is_kept(as_tensor(value).expr):
            lazy[id(leaf)] = as_tensor(value)
        return leaf

    def put(leaf: Any) -> Any:
        if id(leaf) not in found:
            return leaf
        if isinstance(leaf, Variable):
            leaf._set(found[id(leaf)].expr)
            return leaf
        return found[id(leaf)]

    each(note, state)
    if not lazy:
        return state
    found = dict(zip(lazy, persist(*lazy.values(), **kwargs), strict=True))
    return each(put, state)


def _is_kept(node: Expr) -> bool:
    while node.op.name in ("leaf", "part", "stop_gradient"):
        node = node.inputs[0]
    return kept(node) is not None
