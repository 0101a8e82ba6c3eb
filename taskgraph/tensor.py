"""Tensor: the user's array, a lazy value that a graph of expressions describes.

A tensor is a handle on an expression with what belongs to the user and not to the graph: whether a gradient is wanted,
the gradient once `backward` has made it. It is a Dask collection, speaks the array API and NumPy's protocols, and
computes nothing before `compute()` (or something that needs values: `float(t)`, `np.asarray(t)`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from taskgraph import execute, show
from taskgraph.device import parse_device
from taskgraph.expr import Chunks, DType, Expr, Opaque, Shape, bind, pin_in_force, pinned, serial
from taskgraph.operators import Operators
from taskgraph.primitives import Primitive
from taskgraph.upward import resolve

if TYPE_CHECKING:
    import dask.array as da

Scalar = bool | int | float | complex | np.generic

#: Whether what is made now passes gradients on (`no_grad`).
_tracking: ContextVar[bool] = ContextVar("taskgraph_tracking", default=True)


@contextmanager
def tracking(on: bool) -> Iterator[None]:
    """Whether the tensors made inside the block pass gradients on to what they are made of."""
    before = _tracking.set(on)
    try:
        yield
    finally:
        _tracking.reset(before)


def no_grad() -> AbstractContextManager[None]:
    """A block (or, as `@tg.no_grad()`, a function) whose results are constants to every derivative, as in PyTorch.

    `tg.grad` and the like, called inside, differentiate their function all the same.

    >>> import taskgraph as tg
    >>> w = tg.tensor([1.0, 2.0], requires_grad=True)
    >>> with tg.no_grad():
    ...     w2 = w - 0.1 * w
    >>> w2.requires_grad
    False
    """
    return tracking(False)


def untracked(t: Tensor) -> Tensor:
    """`t`, as a constant where `no_grad` is in force."""
    return t if _tracking.get() else t.detach()


def apply(op: Primitive, *inputs: Tensor, **params: Any) -> Tensor:
    """A tensor of `op(*inputs, **params)`: it wants a gradient where an input does, and stays where they were put.

    Where no pin is in force (`tg.device`), the device to which inputs were moved (`t.cuda()`) decides, as in PyTorch;
    ValueError where they were moved to different ones.
    """
    placed = {t._placed for t in inputs if t._placed is not None}
    if not placed or pin_in_force() is not None:
        where, expr = None, bind(op, *[t.expr for t in inputs], **params)
    elif len(placed) == 1:
        (where,) = placed
        with pinned(where):
            expr = bind(op, *[t.expr for t in inputs], **params)
    else:
        raise ValueError(
            f"{op.name}: its operands were put on {' and '.join(sorted(placed))}; move them to one: t.to(...)"
        )
    if inputs and not _tracking.get():
        return Tensor(_constant(expr), placed=where)
    return Tensor(expr, expr.dtype.kind in "fc" and any(t.requires_grad for t in inputs), where)


def _constant(expr: Expr) -> Expr:
    from taskgraph.ops.create import STOP

    with pinned(expr.device):
        return bind(STOP, expr)


def compute(*tensors: Tensor, **kwargs: Any) -> tuple[Any, ...]:
    """The values of several tensors in one run: what they share, as a result and its gradient do, is computed once.

    >>> import taskgraph as tg
    >>> x = tg.asarray([1.0, 2.0])
    >>> y = tg.sum(x * x)
    >>> tg.compute(y, tg.gradients(y, x))
    (np.float64(5.0), array([2., 4.]))
    """
    return tuple(execute.compute([t.expr for t in tensors], **kwargs))


def persist(*tensors: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
    """Several tensors with their blocks computed in one run and kept; see `Tensor.persist`."""
    return tuple(
        _like(t, expr) for t, expr in zip(tensors, execute.persist([t.expr for t in tensors], **kwargs), strict=True)
    )


def _like(t: Tensor, expr: Expr) -> Tensor:
    """The tensor of other blocks with the same values: a leaf stays a leaf, what was put somewhere stays there."""
    kept = Tensor(expr, placed=t._placed)
    kept.requires_grad = t.is_leaf
    return kept


def as_tensor(x: Any) -> Tensor:
    """The tensor `x` is, or one made of it (anything `tg.asarray` takes)."""
    if isinstance(x, Tensor):
        return x
    from taskgraph.ops.create import asarray

    return asarray(x)


class Tensor(Operators):
    """An n-dimensional array that is described, not yet computed.

    Made by the functions of the facade (`tg.asarray`, `tg.randn`, `tg.zeros`, ...), not by this class.

    >>> import taskgraph as tg
    >>> x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> y = 3 * x**2 + 2 * x + 3
    >>> y
    tg.Tensor(add, shape=(2, 2), dtype=float64, chunks=(2, 2), device=auto, requires_grad=True)
    >>> y.backward(tg.ones((2, 2)))
    >>> x.grad.compute()
    array([[ 8., 14.],
           [20., 26.]])
    """

    __slots__ = ("__weakref__", "_lowered", "_placed", "_requires_grad", "expr", "grad")
    __array_priority__ = 1000

    def __init__(self, expr: Expr, requires_grad: bool = False, placed: str | None = None):
        self.expr = expr
        self.grad: Tensor | None = None
        self._requires_grad = requires_grad
        self._placed = placed
        self._lowered: execute.Lowered | None = None

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        return self.expr.shape

    @property
    def dtype(self) -> DType:
        return self.expr.dtype

    @property
    def ndim(self) -> int:
        return self.expr.ndim

    @property
    def size(self) -> int:
        return self.expr.size

    @property
    def nbytes(self) -> int:
        """Bytes of the values once computed."""
        return self.expr.nbytes

    @property
    def chunks(self) -> Chunks:
        """Block sizes along every axis, as in Dask.

        The plan may cut a product (and what is computed from it) otherwise; a persisted tensor has the blocks that it
        was computed in.
        """
        return self.expr.chunks

    @property
    def device(self) -> str:
        """The pin under which this tensor was made ("cpu", "gpu", "gpu:1"), or "auto": the plan is free to choose."""
        return self.expr.device or "auto"

    @property
    def pins(self) -> tuple[str | None, str | None]:
        """The pin under which this tensor was made, and where it was put (`to`), None where it is free."""
        return self.expr.device, self._placed

    def repinned(self, made: str | None, placed: str | None) -> Tensor:
        """The same values with the pins that another tensor had (`pins`); a leaf stays a leaf."""
        with pinned(made):
            same = Tensor(bind(self.expr.op, *self.expr.inputs, **self.expr.params), placed=placed)
        same.requires_grad = self.is_leaf
        return same

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` of what depends on this tensor reaches it; set it on a tensor to make it a leaf."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted and not np.issubdtype(self.dtype, np.inexact):
            raise TypeError(f"requires_grad: only floating point tensors have gradients, this one is {self.dtype}")
        if wanted and not self._is_marked:
            from taskgraph.ops.create import LEAF

            me = Opaque(weakref.ref(self), f"leaf-{serial()}")
            with pinned(self.expr.device):
                self.expr = bind(LEAF, self.expr, tensor=me)
        self._requires_grad = wanted

    @property
    def is_leaf(self) -> bool:
        """Whether this is a tensor whose `.grad` a `backward` fills."""
        return self._requires_grad and self._is_marked

    @property
    def _is_marked(self) -> bool:
        return self.expr.op.name == "leaf" and self.expr.params["tensor"].value() is self

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix (ndim 2)."""
        if self.ndim != 2:
            raise ValueError(f"T: only a matrix has a transpose, this tensor is {self.shape}; see mT, permute_dims")
        return self.mT

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        from taskgraph import ops

        return ops.matrix_transpose(self)

    def __repr__(self) -> str:
        return show.text(self)

    def _repr_html_(self) -> str:
        return show.html(self)

    # -- values --------------------------------------------------------------------------------------------------

    def compute(self, **kwargs: Any) -> Any:
        """The values as a NumPy array (a NumPy scalar where ndim is 0).

        On the client in force (`distributed.Client`), or on Dask's local scheduler where there is none; `scheduler=`
        chooses as it does for Dask's own collections.
        """
        return execute.compute((self.expr,), **kwargs)[0]

    def persist(self, **kwargs: Any) -> Tensor:
        """The same tensor with its blocks computed and kept: on the workers with a client, in memory without one.

        What it was computed from is forgotten, so `backward` does not reach behind it; a leaf stays a leaf.
        """
        return persist(self, **kwargs)[0]

    def explain(self, machine: Any = None) -> str:
        """What a run would do: the plan of every product, tasks and bytes; nothing runs."""
        return execute.explain((self.expr,), machine)

    def visualize(self, filename: str = "taskgraph", **kwargs: Any) -> Any:
        """Draw the Dask tasks, as `dask.visualize` does (needs graphviz)."""
        from dask.base import visualize

        return visualize(self, filename=filename, **kwargs)

    def to_dask(self) -> da.Array:
        """This tensor as a `dask.array.Array` with the same tasks; what follows is Dask's, unplaced."""
        return execute.to_dask(self.expr)

    def to_zarr(self, path: Any, *, overwrite: bool = False, **kwargs: Any) -> None:
        """Compute this tensor and write it to a Zarr array, where its blocks are made; see `ops.files.to_zarr`.

        FileExistsError where there is something at `path`, unless `overwrite`.
        """
        from taskgraph.ops.files import to_zarr

        to_zarr(self, path, overwrite=overwrite, **kwargs)

    def checkpoint(self, path: Any) -> Tensor:
        """The same values, written to the folder `path` when they are first computed, and read from there ever after.

        What stands behind them is then neither computed again nor remembered: not after the loss of workers, and not in
        another process that makes the same expression, for instance the same script when its cluster was lost. Blocks
        are written by the workers, which must see the same disk as the client; a kill leaves the folder whole or
        without a value. Derivatives pass. (`tg.checkpoint(f)` is about memory: it computes again instead of keeping.)

        The values are written by `compute`, `persist` and `Session.run`, before the rest of the run. What Dask itself
        computes (`dask.compute(t)`, `t.to_dask()`) reads them where they are, and does not write.

        Raises ImportError without Zarr; when it runs ValueError where `path` has the value of another expression,
        FileExistsError where it is something else, OSError where files cannot be written, or are damaged.

        >>> import tempfile, taskgraph as tg
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     y = tg.exp(tg.asarray([0.0, 1.0])).checkpoint(f"{folder}/y")
        ...     float(tg.sum(y) + tg.sum(y))
        7.43656365691809
        """
        from taskgraph.saved import checkpoint

        return checkpoint(self, path)

    def numpy(self) -> Any:
        """`compute()`, under the name that PyTorch users know."""
        return self.compute()

    def item(self) -> Any:
        """The one element of a tensor of size 1, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: only one element can be a Python scalar, this tensor is {self.shape}")
        return np.asarray(self.compute()).item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute(), dtype=dtype)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    __hash__ = object.__hash__

    def __copy__(self) -> Tensor:
        return Tensor(self.expr, self._requires_grad, self._placed)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.__copy__()  # expressions never change

    def __reduce__(self) -> Any:
        raise TypeError("a tensor describes a computation of this process; pickle the values of t.compute() instead")

    # -- where it runs -------------------------------------------------------------------------------------------

    def to(self, device: str) -> Tensor:
        """The same values, held on a device: "cpu", "gpu", "gpu:1" (see `tg.device`).

        What is computed from the result stays there, too, as in PyTorch, until it is moved again.
        """
        from taskgraph.ops.create import MOVE

        where = parse_device(device)
        with pinned(where):
            return untracked(Tensor(bind(MOVE, self.expr), self.requires_grad, where))

    def cuda(self, index: int | None = None) -> Tensor:
        """`to("gpu")`, or `to("gpu:index")`."""
        return self.to("gpu" if index is None else f"gpu:{index}")

    def cpu(self) -> Tensor:
        """`to("cpu")`."""
        return self.to("cpu")

    def rechunk(self, chunks: Any) -> Tensor:
        """The same values in other blocks; `chunks` as Dask takes it."""
        from taskgraph.ops.shape import rechunk

        return rechunk(self, chunks)

    # -- derivatives ---------------------------------------------------------------------------------------------

    def backward(self, gradient: Tensor | None = None) -> None:
        """Add to every leaf's `.grad` the gradient of this tensor with respect to it.

        gradient: the cotangent, of this tensor's shape; it may be left out where the tensor is one real number (then
        1). A leaf is a tensor with `requires_grad=True`. The gradients are expressions like any other: nothing runs
        yet. Complex ones are `tg.gradients`', the conjugates of PyTorch's.

        Raises RuntimeError where the tensor is no real number and no gradient is given, or depends on no leaf.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward: this tensor depends on none that requires a gradient; "
                "make one with tg.tensor(..., requires_grad=True)"
            )
        if gradient is None and (self.size != 1 or self.dtype.kind == "c"):
            raise RuntimeError(
                f"backward: a gradient can be left out only for a real number, this is {self.shape} {self.dtype}; "
                f"pass the cotangent, for instance t.backward(tg.ones({self.shape}))"
            )
        from taskgraph.expr import topological

        live = [n.params["tensor"].value() for n in topological([self.expr]) if n.op.name == "leaf"]
        if not live:
            raise RuntimeError("backward: this tensor depends on none that requires a gradient")
        leaves = [t for t in live if t is not None and t.requires_grad]
        found = resolve("gradients")(self, leaves, None if gradient is None else [gradient])
        for leaf, g in zip(leaves, found, strict=True):
            leaf.grad = g if leaf.grad is None else leaf.grad + g

    def detach(self) -> Tensor:
        """The same values, as a constant to `backward` and `gradients`."""
        return Tensor(_constant(self.expr), placed=self._placed)

    def zero_grad(self) -> None:
        """Forget `.grad`: the next `backward` starts from nothing."""
        self.grad = None

    # -- protocols -----------------------------------------------------------------------------------------------

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        import taskgraph

        return taskgraph

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from taskgraph.numpy_protocol import call_ufunc

        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from taskgraph.numpy_protocol import call_function

        return call_function(func, args, kwargs)

    def __dask_graph__(self) -> Any:
        return self.__lower().graph

    def __dask_keys__(self) -> list[Any]:
        return self.__lower().keys[0]

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(self.__lower().graph.layers)

    def __dask_tokenize__(self) -> str:
        return self.expr.token

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return execute.assemble, (self.ndim,)

    def __dask_postpersist__(self) -> tuple[Any, tuple[Any, ...]]:
        return _from_persisted, execute.persisted_from(self.__lower(), self.expr.device)

    #: FACTS: any optimizer of Dask's would drop the placement annotations.
    __dask_optimize__ = None
    __dask_scheduler__ = staticmethod(execute.local_get)

    def __lower(self) -> execute.Lowered:
        self._lowered = execute.lowered_for_dask(self.expr, self._lowered)
        return self._lowered


def _from_persisted(graph: Any, *known: Any, rename: Any = None) -> Tensor:
    return Tensor(execute.persisted(graph, *known))
