"""The operators of a tensor, by the names of the functions that they call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from taskgraph.tensor import Tensor

PYTHON_SCALARS = (bool, int, float, complex)


def _unary(name: str) -> Any:
    def method(self: Any) -> Tensor:
        from taskgraph import ops

        return getattr(ops, name)(self)

    method.__doc__ = f"`tg.{name}` of this tensor, elementwise."
    return method


def _binary(name: str, swapped: bool = False) -> Any:
    def method(self: Any, other: Any) -> Tensor:
        from taskgraph import ops

        if not isinstance(other, (Operators, *PYTHON_SCALARS, np.generic, np.ndarray)):
            return NotImplemented
        return getattr(ops, name)(other, self) if swapped else getattr(ops, name)(self, other)

    method.__doc__ = f"`tg.{name}` with another tensor, array or number."
    return method


def _reduction(name: str) -> Any:
    def method(self: Any, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Tensor:
        from taskgraph import ops

        return getattr(ops, name)(self, axis=axis, keepdims=keepdims)

    method.__doc__ = f"`tg.{name}` over `axis` (all axes where None)."
    return method


class Operators:
    """What `Tensor` inherits: indexing, arithmetic, comparisons and the short forms of reductions."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Tensor:
        from taskgraph.ops.subscript import getitem

        return getitem(self, index)

    def reshape(self, *shape: Any) -> Tensor:
        """`tg.reshape`; the shape as one tuple or as numbers."""
        from taskgraph import ops

        return ops.reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape)

    def astype(self: Any, dtype: Any) -> Tensor:
        """`tg.astype`."""
        from taskgraph import ops

        found: Tensor = ops.astype(self, dtype)
        return found

    __neg__, __pos__, __abs__, __invert__ = (_unary(n) for n in ("negative", "positive", "abs", "bitwise_invert"))
    __add__, __radd__ = _binary("add"), _binary("add", swapped=True)
    __sub__, __rsub__ = _binary("subtract"), _binary("subtract", swapped=True)
    __mul__, __rmul__ = _binary("multiply"), _binary("multiply", swapped=True)
    __truediv__, __rtruediv__ = _binary("divide"), _binary("divide", swapped=True)
    __floordiv__, __rfloordiv__ = _binary("floor_divide"), _binary("floor_divide", swapped=True)
    __mod__, __rmod__ = _binary("remainder"), _binary("remainder", swapped=True)
    __pow__, __rpow__ = _binary("pow"), _binary("pow", swapped=True)
    __matmul__, __rmatmul__ = _binary("matmul"), _binary("matmul", swapped=True)
    __and__, __rand__ = _binary("bitwise_and"), _binary("bitwise_and", swapped=True)
    __or__, __ror__ = _binary("bitwise_or"), _binary("bitwise_or", swapped=True)
    __xor__, __rxor__ = _binary("bitwise_xor"), _binary("bitwise_xor", swapped=True)
    __lshift__, __rlshift__ = _binary("bitwise_left_shift"), _binary("bitwise_left_shift", swapped=True)
    __rshift__, __rrshift__ = _binary("bitwise_right_shift"), _binary("bitwise_right_shift", swapped=True)
    __eq__, __ne__ = _binary("equal"), _binary("not_equal")
    __lt__, __le__ = _binary("less"), _binary("less_equal")
    __gt__, __ge__ = _binary("greater"), _binary("greater_equal")
    sum, prod, mean, max, min = (_reduction(n) for n in ("sum", "prod", "mean", "max", "min"))
    std, var, any, all = (_reduction(n) for n in ("std", "var", "any", "all"))
    argmax, argmin = (_reduction(n) for n in ("argmax", "argmin"))


for _name, _method in list(vars(Operators).items()):
    if getattr(_method, "__name__", "") == "method":  # what the factories above made
        _method.__name__, _method.__qualname__ = _name, f"Tensor.{_name}"
