"""Graph style: placeholders, variables, and the session that runs what is fetched."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskgraph import execute
from taskgraph.chunks import normalize
from taskgraph.expr import Expr, Opaque, serial
from taskgraph.ops.create import PLACEHOLDER, VARIABLE, asarray, numeric
from taskgraph.tensor import Tensor, apply


def placeholder(dtype: Any, shape: Sequence[int], name: str | None = None, chunks: Any = "auto") -> Tensor:
    """A tensor whose value is given when the session runs.

    dtype: of the value; shape: of the value, every size known (ValueError otherwise: blocks are cut when the graph is
    made). name: for error messages; "placeholder-N" where None.

    >>> import taskgraph as tg
    >>> x = tg.placeholder("float32", [2, 2], name="x")
    >>> with tg.Session() as session:
    ...     session.run(2 * x, feed_dict={x: [[1, 2], [3, 4]]})
    array([[2., 4.],
           [6., 8.]], dtype=float32)
    """
    if any(s is None or int(s) < 0 for s in shape):
        raise ValueError(f"placeholder: every size must be known, got shape {list(shape)}")
    n = serial()
    found = tuple(int(s) for s in shape)
    kind = numeric(dtype, "placeholder")
    return apply(
        PLACEHOLDER,
        shape=found,
        dtype=kind,
        chunks=normalize(chunks, found, kind),
        id=n,
        name=name or f"placeholder-{n}",
    )


class _State:
    """The value that a variable has now."""

    def __init__(self, value: Tensor):
        self.value = value

    @property
    def expr(self) -> Expr:
        return self.value.expr


#: Every variable that somebody holds, in the order in which they were made.
_living: weakref.WeakValueDictionary[int, Variable] = weakref.WeakValueDictionary()


def variables() -> list[Variable]:
    """The variables that somebody holds, in the order in which they were made."""
    return list(_living.values())


class Variable(Tensor):
    """A tensor that keeps a value between runs of a session and changes by `assign`.

    value: the first value (anything `tg.asarray` takes). Every run sees the value that the variable had when the run
    began. With a cluster the value stays on its workers, and its history is cut from time to time (see
    docs/how-it-works.md): LostValues is raised where it is gone with all of them.

    >>> import taskgraph as tg
    >>> w = tg.Variable([1.0, 2.0], name="w")
    >>> with tg.Session() as session:
    ...     session.run(w.assign(w * 10))
    ...     session.run(w)
    array([10., 20.])
    """

    __slots__ = ("_state", "name")

    def __init__(self, value: Any, name: str | None = None):
        first = asarray(value)
        first = Tensor(execute.with_values([first.expr])[0])
        n = serial()
        self.name = name or f"variable-{n}"
        _living[n] = self
        self._state = _State(first)
        state = Opaque(self._state, f"variable-{n}")
        made = apply(
            VARIABLE,
            shape=first.shape,
            dtype=first.dtype,
            chunks=first.chunks,
            id=n,
            name=self.name,
            state=state,
        )
        super().__init__(made.expr)

    @property
    def value(self) -> Tensor:
        """The present value, as a tensor of its own that later assignments do not change."""
        return self._state.value

    def assign(self, value: Any) -> Assign:
        """What gives this variable a new value when a session runs it; ValueError for another shape or dtype."""
        new = asarray(value)
        if not isinstance(value, Tensor) and np.can_cast(new.dtype, self.dtype, "same_kind"):
            new = new.astype(self.dtype)
        if (new.shape, new.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"assign: variable '{self.name}' is {self.dtype} {self.shape}, the value is {new.dtype} {new.shape}"
            )
        return Assign(self, new)

    def _set(self, value: Expr) -> None:
        self._state.value = Tensor(value)


@dataclass(frozen=True)
class Assign:
    """A variable and the expression of its next value; it takes effect when a session runs it."""

    variable: Variable
    value: Tensor


class Session:
    """Runs what is fetched, and only what that needs, on a client or, where None, on the one in force.

    A context manager for the look of it: it holds nothing that must be closed.
    """

    def __init__(self, client: Any = None):
        self._client = client

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def run(self, fetches: Any, feed_dict: Mapping[Tensor, Any] | None = None) -> Any:
        """The values of `fetches`: a tensor, an assignment (which gives None), or lists, tuples, dicts of them.

        feed_dict: values for placeholders, or for any other tensor that the fetches use. One submission computes all of
        it; assignments take effect together, after everything is computed, and none does when anything fails.

        Raises ValueError, naming it, for a placeholder that is not fed, or fed with another shape or dtype, and for a
        variable that is assigned twice.
        """
        for t in feed_dict or {}:
            if not isinstance(t, Tensor):
                raise TypeError(f"feed_dict: its keys are tensors, not {type(t).__name__} ({t!r})")
        fed = {t.expr: _fed(t, value) for t, value in (feed_dict or {}).items()}
        items = list(_leaves(fetches))
        targets = [i.variable for i in items if isinstance(i, Assign)]
        for v in targets:
            if sum(v is other for other in targets) > 1:
                raise ValueError(f"variable '{v.name}' is assigned twice in one run")
        exprs = execute.with_values([i.value.expr if isinstance(i, Assign) else i.expr for i in items], fed)
        names = [i.variable.name if isinstance(i, Assign) else None for i in items]
        found = execute.run(exprs, [n is not None for n in names], self._client, settle=True, names=names)
        for item, value in zip(items, found, strict=True):
            if isinstance(item, Assign):
                item.variable._set(value)
        results = iter([None if isinstance(i, Assign) else v for i, v in zip(items, found, strict=True)])
        return _rebuilt(fetches, results)


def _fed(t: Tensor, value: Any) -> Expr:
    name = t.expr.params.get("name") or t.expr.op.name
    array = value if isinstance(value, Tensor) else np.asarray(value)
    if tuple(array.shape) != t.shape:
        raise ValueError(f"feed_dict: '{name}' has shape {t.shape}, the value fed has {tuple(array.shape)}")
    if array.dtype.kind not in "biufc" or not np.can_cast(array.dtype, t.dtype, "same_kind"):
        raise ValueError(f"feed_dict: '{name}' is {t.dtype}, the value fed is {array.dtype}")
    fed = asarray(array, dtype=t.dtype, chunks=t.chunks)
    return execute.with_values([fed.expr])[0]


def _leaves(fetches: Any) -> Any:
    if isinstance(fetches, Tensor | Assign):
        yield fetches
    elif isinstance(fetches, Mapping):
        for value in fetches.values():
            yield from _leaves(value)
    elif isinstance(fetches, list | tuple):
        for value in fetches:
            yield from _leaves(value)
    else:
        raise TypeError(f"Session.run: cannot fetch a {type(fetches).__name__}; fetch tensors and assignments")


def _rebuilt(fetches: Any, results: Any) -> Any:
    if isinstance(fetches, Tensor | Assign):
        return next(results)
    if isinstance(fetches, Mapping):
        return {k: _rebuilt(v, results) for k, v in fetches.items()}
    found = [_rebuilt(v, results) for v in fetches]
    return type(fetches)(*found) if hasattr(fetches, "_fields") else type(fetches)(found)  # named tuples have fields
