"""Trees: nested dicts, lists, tuples and named tuples, whose leaves are everything else; None is a tree without leaves.

Models' parameters and optimizers' states are trees of tensors.

A leaf is spoken of by its path, written as Python would reach it: `['layers'][0].weight`. One tree is the model (its
order and its types count), others are held against it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from taskgraph import tensor
from taskgraph.tensor import Tensor, as_tensor


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, in order (a dict's is that of its items).

    >>> leaves({"w": [1, 2], "b": None, "c": 3})
    [1, 2, 3]
    """
    return [leaf for _, leaf in _walk(tree, "")]


def with_paths(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every leaf behind its path.

    >>> with_paths({"w": [1, 2], "b": None, "c": 3}, "x")
    [("x['w'][0]", 1), ("x['w'][1]", 2), ("x['c']", 3)]
    """
    return list(_walk(tree, path))


def map(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree of `f(leaf, ...)`, of the leaves of one tree or of those in the same place of several.

    Raises ValueError, naming the place, where another tree has not the structure of the first.

    >>> map(lambda a, b: a + b, {"w": [1, 2]}, {"w": [10, 20]})
    {'w': [11, 22]}
    """
    beside = [[theirs for _, _, theirs in against(tree, other, "counterpart")] for other in others]
    return unflatten(tree, [f(*group) for group in zip(leaves(tree), *beside, strict=True)])


def map_with_paths(f: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """The tree with `f(path, leaf)` in the place of every leaf.

    >>> map_with_paths(lambda path, x: path, {"w": (1, 2)}, "x")
    {'w': ("x['w'][0]", "x['w'][1]")}
    """
    return unflatten(tree, [f(at, leaf) for at, leaf in _walk(tree, path)])


def unflatten(like: Any, values: Iterable[Any]) -> Any:
    """The tree `like` with other leaves, taken in order; they may be trees themselves. ValueError unless as many.

    >>> unflatten([0, {"a": 0}], "xy")
    ['x', {'a': 'y'}]
    """
    return _filled(like, iter(list(values)), top=True)


def against(model: Any, other: Any, name: str, path: str = "") -> list[tuple[str, Any, Any]]:
    """Every leaf of `model` with its path and the leaf of `other` in the same place.

    Raises ValueError where the structures differ: it names the place and calls `other` by `name`.

    >>> against([1, (2,)], [3, (4,)], "tangent")
    [('[0]', 1, 3), ('[1][0]', 2, 4)]
    >>> against({"w": 1}, {"v": 1}, "tangent", "argument 0")
    Traceback (most recent call last):
    ValueError: argument 0 has the keys ['w'], its tangent has ['v']
    """
    return list(_pairs(model, other, name, path))


def compute(tree: Any, **kwargs: Any) -> Any:
    """The tree of the tensors' values, all computed in one run (`tg.compute`); its leaves are what `tg.asarray` takes.

    >>> import taskgraph as tg
    >>> compute({"a": tg.asarray(1.0) + 1, "b": [tg.asarray(3.0) * 2]})
    {'a': np.float64(2.0), 'b': [np.float64(6.0)]}
    """
    return unflatten(tree, tensor.compute(*_tensors(tree), **kwargs))


def persist(tree: Any, **kwargs: Any) -> Any:
    """The tree of the tensors with their blocks computed in one run and kept (`tg.persist`): on the workers with a
    client, in memory without one.

    What ends a step of training: the next one starts from these blocks, and the graph that made them is forgotten.

    >>> import taskgraph as tg
    >>> w, loss = persist((tg.asarray([1.0, 2.0]) * 2, tg.asarray(0.5)))
    >>> w
    tg.Tensor(dask, shape=(2,), dtype=float64, chunks=(2,), device=auto)
    """
    return unflatten(tree, tensor.persist(*_tensors(tree), **kwargs))


def _tensors(tree: Any) -> list[Tensor]:
    return [as_tensor(leaf) for leaf in leaves(tree)]


def is_leaf(x: Any) -> bool:
    """Whether it is no container, and not None."""
    return x is not None and not isinstance(x, dict | list | tuple)


def _children(tree: Any) -> Iterator[tuple[str, Any]]:
    """The children of a container, each behind what is written to reach it."""
    if tree is None:
        return
    if isinstance(tree, dict):
        yield from ((f"[{key!r}]", child) for key, child in tree.items())
    elif hasattr(tree, "_fields"):
        yield from ((f".{field}", getattr(tree, field)) for field in tree._fields)
    else:
        yield from ((f"[{i}]", child) for i, child in enumerate(tree))


def _walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_leaf(tree):
        yield path, tree
        return
    for step, child in _children(tree):
        yield from _walk(child, path + step)


def _filled(like: Any, values: Iterator[Any], top: bool = False) -> Any:
    if is_leaf(like):
        new = next(values, values)
        if new is values:
            raise ValueError("unflatten: fewer values than leaves")
    elif like is None:
        new = None
    else:
        children = [_filled(child, values) for _, child in _children(like)]
        new = _made(like, children)
    if top and next(values, values) is not values:
        raise ValueError("unflatten: more values than leaves")
    return new


def _made(like: Any, children: list[Any]) -> Any:
    """A container of the same type around other children."""
    if isinstance(like, dict):
        new = copy.copy(like)  # which keeps a defaultdict one
        new.update(zip(like, children, strict=True))
        return new
    return type(like)(*children) if hasattr(like, "_fields") else type(like)(children)


def _pairs(model: Any, other: Any, name: str, path: str) -> Iterator[tuple[str, Any, Any]]:
    if is_leaf(model) and is_leaf(other):
        yield path, model, other
        return
    place = path or "the tree"
    if is_leaf(model) or is_leaf(other) or type(model) is not type(other):
        raise ValueError(f"{place} is {_kind(model)}, its {name} is {_kind(other)}")
    if isinstance(model, dict):
        if model.keys() != other.keys():
            raise ValueError(f"{place} has the keys {list(model)}, its {name} has {list(other)}")
        for key, child in model.items():
            yield from _pairs(child, other[key], name, f"{path}[{key!r}]")
    elif model is not None:
        if len(model) != len(other):
            raise ValueError(f"{place} has {len(model)} items, its {name} has {len(other)}")
        for (step, child), theirs in zip(_children(model), other, strict=True):
            yield from _pairs(child, theirs, name, path + step)


def _kind(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}" if not is_leaf(x) else "a leaf"
