"""Creation: arrays from numbers, from data, from Dask; and the expressions that stand for what comes later.

Design note. A source computes any block of itself from the block's position alone, so its blocks can be cut as a
consumer wants them, at no cost. Every call of a creation function makes an expression of its own (`serial`), even for
equal contents: the gradient with respect to one array is not the gradient with respect to another that looks the same.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from taskgraph.chunks import normalize, single
from taskgraph.device import parse_device
from taskgraph.expr import Chunks, DType, Expr, Opaque, Shape, bind, pinned, serial
from taskgraph.ops.arguments import integers, numeric
from taskgraph.ops.elementwise import cast, where
from taskgraph.primitives import Primitive, no_gradient, no_inputs, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Result = tuple[Shape, DType, Chunks]


def _declared(shape: Shape, dtype: DType, chunks: Chunks, **_: Any) -> Result:
    return shape, dtype, chunks


def source(name: str, lower: Any) -> Primitive:
    """Enter a source: `lower(start, block_shape, shape=, dtype=, chunks=, ...)` makes a block as a NumPy array."""
    return primitive(name, kind="source", infer=_declared, lower=lower, vjp=no_inputs, jvp=no_inputs)


def sizes(name: str, shape: Any) -> Shape:
    """A shape, from an integer or a sequence of them; ValueError where one is negative."""
    found = integers(f"{name}: shape", shape)
    if any(s < 0 for s in found):
        raise ValueError(f"{name}: a shape has no negative sizes: {found}")
    return found


def make(row: Primitive, shape: Any, dtype: Any, chunks: Any, device: str | None, **params: Any) -> Tensor:
    """A tensor of a source row, in the blocks and on the device that the user asked for."""
    shape, dtype = sizes(row.name, shape), numeric(dtype, row.name)
    cut = normalize(chunks, shape, dtype)
    if device is None:
        return apply(row, shape=shape, dtype=dtype, chunks=cut, id=serial(), **params)
    where = parse_device(device)
    with pinned(where):
        made = apply(row, shape=shape, dtype=dtype, chunks=cut, id=serial(), **params)
    return Tensor(made.expr, placed=where)


# -- numbers -----------------------------------------------------------------------------------------------------------

FULL = source("full", lambda start, block, *, dtype, fill_value, **_: np.full(block, fill_value, dtype))


def _arange_block(start: Shape, block: Shape, *, dtype: DType, first: Any, step: Any, **_: Any) -> Any:
    if dtype.kind in "iu" and isinstance(first, int) and isinstance(step, int):
        # modulo 2**64, in which every step is exact: neither int64 nor a float holds all of uint64
        first, step = (v % 2**64 for v in (first + step * start[0], step))
        return (np.uint64(first) + np.uint64(step) * np.arange(block[0], dtype=np.uint64)).astype(dtype)
    return (first + step * np.arange(start[0], start[0] + block[0], dtype=float)).astype(dtype)


ARANGE = source("arange", _arange_block)
EYE = source(
    "eye", lambda start, block, *, dtype, k, **_: np.eye(block[0], block[1], k=k + start[0] - start[1], dtype=dtype)
)
TRI = source(
    "tri", lambda start, block, *, dtype, k, **_: np.tri(block[0], block[1], k=k + start[0] - start[1], dtype=bool)
)


def _linspace_block(start: Shape, block: Shape, *, dtype: DType, first: Any, last: Any, steps: int, **_: Any) -> Any:
    at = np.arange(start[0], start[0] + block[0])
    values = first + at * ((last - first) / steps if steps else 0.0)
    values = np.where((at == steps) & (steps > 0), last, values)
    return (np.floor(values) if dtype.kind in "iu" else values).astype(dtype)


LINSPACE = source("linspace", _linspace_block)


def scalar(value: Any, dtype: DType) -> Tensor:
    """A number inside an expression; equal ones are one expression."""
    if isinstance(value, complex) and dtype.kind not in "bc":
        raise TypeError(f"a complex number has no value of {dtype}")
    number = dtype.type(value).item()  # OverflowError where an integer does not fit, as in NumPy
    return apply(FULL, shape=(), dtype=dtype, chunks=(), fill_value=number)


def filled(x: Tensor, value: Any, dtype: DType | None = None) -> Tensor:
    """A number at every place of an array like `x`; equal ones are one expression, unlike those of `full_like`."""
    dtype = x.dtype if dtype is None else dtype
    return apply(FULL, shape=x.shape, dtype=dtype, chunks=x.chunks, fill_value=dtype.type(value).item())


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: str | None = None, chunks: Any = "auto") -> Tensor:
    """An array of one number; its dtype is that of NumPy for `fill_value` where none is given."""
    if isinstance(fill_value, Tensor) or np.ndim(fill_value):
        raise TypeError("full: fill_value must be a number; broadcast_to spreads an array")
    dtype = np.asarray(fill_value).dtype if dtype is None else np.dtype(dtype)
    number = numeric(dtype, "full").type(fill_value).item()
    return make(FULL, shape, dtype, chunks, device, fill_value=number)


def zeros(shape: Any, *, dtype: Any = float, device: str | None = None, chunks: Any = "auto") -> Tensor:
    """An array of zeros (float64 where no dtype is given)."""
    return full(sizes("zeros", shape), 0, dtype=dtype or float, device=device, chunks=chunks)


def ones(shape: Any, *, dtype: Any = float, device: str | None = None, chunks: Any = "auto") -> Tensor:
    """An array of ones (float64 where no dtype is given)."""
    return full(sizes("ones", shape), 1, dtype=dtype or float, device=device, chunks=chunks)


def empty(shape: Any, *, dtype: Any = float, device: str | None = None, chunks: Any = "auto") -> Tensor:
    """An array whose contents do not matter; here, zeros: tensors are immutable, nobody could fill it."""
    return zeros(sizes("empty", shape), dtype=dtype, device=device, chunks=chunks)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """An array of one number in the shape, type and blocks of `x`."""
    x = as_tensor(x)
    return full(x.shape, fill_value, dtype=dtype or x.dtype, device=device, chunks=x.chunks)


def zeros_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros in the shape, type and blocks of `x`."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones in the shape, type and blocks of `x`."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """As `zeros_like`: see `empty`."""
    return zeros_like(x, dtype=dtype, device=device)


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: str | None = None,
    chunks: Any = "auto",
) -> Tensor:
    """The numbers start, start + step, ... below `stop` (0, 1, ... below `start` where only one number is given)."""
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ValueError("arange: step must not be 0")
    if dtype is None:
        dtype = np.result_type(*[np.asarray(v).dtype for v in (first, last, step)])
    if all(isinstance(v, int | np.integer) for v in (first, last, step)):
        first, last, step = int(first), int(last), int(step)
        size = len(range(first, last, step))  # exact: a quotient of floats is not
    else:
        size = max(0, math.ceil((last - first) / step))
    return make(ARANGE, (size,), dtype, chunks, device, first=first, step=step)


def linspace(
    start: Any,
    stop: Any,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: str | None = None,
    endpoint: bool = True,
    chunks: Any = "auto",
) -> Tensor:
    """`num` numbers evenly spaced from `start` to `stop`, which is the last of them where `endpoint`."""
    (num,) = integers("linspace: num", num)
    if num < 0:
        raise ValueError(f"linspace: num must not be negative, got {num}")
    wide = complex if isinstance(start, complex) or isinstance(stop, complex) else float
    steps = num - 1 if endpoint else num
    dtype = np.dtype(wide if dtype is None else dtype)
    return make(LINSPACE, (num,), dtype, chunks, device, first=wide(start), last=wide(stop), steps=steps)


def eye(
    n_rows: int,
    n_cols: int | None = None,
    /,
    *,
    k: int = 0,
    dtype: Any = float,
    device: str | None = None,
    chunks: Any = "auto",
) -> Tensor:
    """Ones on the k-th diagonal of a matrix of zeros."""
    return make(EYE, (n_rows, n_rows if n_cols is None else n_cols), dtype or float, chunks, device, k=int(k))


def _triangle(name: str, x: Any, k: int, lower: bool) -> Tensor:
    x = as_tensor(x)
    if x.ndim < 2:
        raise ValueError(f"{name}: needs two axes, this array is {x.shape}")
    cut = x.chunks[-2:]
    below = apply(TRI, shape=x.shape[-2:], dtype=np.dtype(bool), chunks=cut, k=int(k) if lower else int(k) - 1)
    zero = scalar(0, x.dtype)
    return where(below, x, zero) if lower else where(below, zero, x)


def tril(x: Any, /, *, k: int = 0) -> Tensor:
    """The elements on and below the k-th diagonal, zeros above, of a matrix or a stack of them."""
    return _triangle("tril", x, k, lower=True)


def triu(x: Any, /, *, k: int = 0) -> Tensor:
    """The elements on and above the k-th diagonal, zeros below, of a matrix or a stack of them."""
    return _triangle("triu", x, k, lower=False)


# -- data --------------------------------------------------------------------------------------------------------------


def _constant_block(start: Shape, block: Shape, *, value: Opaque, **_: Any) -> np.ndarray:
    return value.value[tuple(slice(s, s + n) for s, n in zip(start, block, strict=True))]


CONSTANT = source("constant", _constant_block)


def asarray(
    x: Any,
    /,
    dtype: Any = None,
    device: str | None = None,
    chunks: Any = "auto",
    requires_grad: bool = False,
    *,
    copy: bool | None = None,
) -> Tensor:
    """A tensor of numbers, (nested) lists, a NumPy array, a Dask array or another tensor.

    dtype: the element type (kept where None); TypeError unless it is numeric. device: a pin (see `tg.device`).
    chunks: blocks, as Dask takes them. requires_grad: whether `backward` fills this tensor's `.grad`. The values are a
    snapshot: changing the NumPy array afterwards does not change the tensor.

    Data of more than a few megabytes are better read by the workers (`tg.from_dask`) or kept there (`.persist()`): they
    travel to the cluster with every graph that uses them.

    >>> import taskgraph as tg
    >>> tg.asarray([[1, 2], [3, 4]], dtype="float32")
    tg.Tensor(constant, shape=(2, 2), dtype=float32, chunks=(2, 2), device=auto)
    """
    if copy is False and not isinstance(x, da.Array | Tensor):
        raise ValueError("asarray: a tensor keeps values of its own, so copy=False cannot be had here")
    if isinstance(x, da.Array):
        t = from_dask(x)
    elif isinstance(x, Tensor):
        t = Tensor(x.expr, x.requires_grad)
    else:
        t = _from_numpy(x, dtype, chunks, device)
    if dtype is not None:
        t = cast(t, numeric(dtype, "asarray"))
    if isinstance(x, da.Array | Tensor):
        t = t if chunks == "auto" else t.rechunk(chunks)
        t = t if device is None else t.to(device)
    if requires_grad:
        t = Tensor(t.expr)
        t.requires_grad = True
    return t


tensor = asarray


def _from_numpy(x: Any, dtype: Any, chunks: Any, device: str | None) -> Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("asarray: a masked array has no values where it is masked; x.filled(...) gives it some")
    value = np.array(x, dtype=dtype, order="C")
    value = value.astype(numeric(value.dtype, "asarray"), copy=False)
    value.flags.writeable = False
    return make(CONSTANT, value.shape, value.dtype, chunks, device, value=Opaque(value, tokenize(value)))


def from_dlpack(x: Any, /, *, device: str | None = None, copy: bool | None = None) -> Tensor:
    """A tensor of an array of another library, through DLPack, from the host's memory."""
    return asarray(np.from_dlpack(x), device=device)


# -- what a Dask array or the cluster holds ----------------------------------------------------------------------------


def _infer_dask(array: Opaque) -> Result:
    x = array.value
    return x.shape, x.dtype, x.chunks


DASK = primitive(
    "dask",
    kind="array",
    infer=_infer_dask,
    lower=lambda xp, array: array.value,
    vjp=no_inputs,
    jvp=no_inputs,
    flops=lambda node: 0,
)


def from_dask(x: da.Array, /) -> Tensor:
    """The values of a Dask array; its tasks run on CPU workers as part of our graph.

    Raises TypeError for what is no Dask array or no numeric one, ValueError where its shape is not known.
    """
    if not isinstance(x, da.Array):
        raise TypeError(f"from_dask: needs a dask.array.Array, got {type(x).__name__}")
    if any(math.isnan(s) for s in x.shape):
        raise ValueError(f"from_dask: the shape must be known, this one is {x.shape}; see compute_chunk_sizes()")
    if isinstance(x._meta, np.ma.MaskedArray):
        raise TypeError("from_dask: a masked array has no values where it is masked; da.ma.filled gives it some")
    native = numeric(x.dtype, "from_dask")
    x = x if x.dtype.isnative else x.astype(native)
    return apply(DASK, array=Opaque(x.copy(), f"{x.name}-{serial()}"))  # the user may assign into `x`


#: An array that lies, with others, in the result of a task that ran: item `index` of that tuple, in one block.
PART = primitive(
    "part",
    kind="array",
    infer=lambda step, index, shape, dtype: (shape, dtype, single(shape)),
    lower=lambda xp, step, index, **_: step[index],
    vjp=no_inputs,
    jvp=no_inputs,
    flops=lambda node: 0,
)


# -- what comes later, and markers -------------------------------------------------------------------------------------

PLACEHOLDER = source("placeholder", lower=None)
VARIABLE = source("variable", lower=None)


def _identity(x: Expr, **_: Any) -> Result:
    return x.shape, x.dtype, x.chunks


def _marker(name: str, passes_gradient: bool) -> Primitive:
    return primitive(
        name,
        kind="elementwise",
        infer=_identity,
        lower=lambda xp, x, **_: x,
        vjp=(lambda ct, out, x, **_: (ct,)) if passes_gradient else no_gradient,
        jvp=(lambda ts, out, x, **_: ts[0]) if passes_gradient else no_gradient,
        flops=lambda node: 0,
    )


LEAF = _marker("leaf", passes_gradient=True)
MOVE = _marker("move", passes_gradient=True)
STOP = _marker("stop_gradient", passes_gradient=False)


ARGUMENT = _marker("argument", passes_gradient=True)

#: What is written to a file when it is computed, and read from there afterwards (`Tensor.checkpoint`): see `saved`.
SAVED = _marker("saved", passes_gradient=True)

#: A result of a call that the reverse pass makes again (tg.checkpoint): the value, then what it was made of. The rules
#: here are what is true without that: it is the value.
CHECKPOINT = primitive(
    "checkpoint",
    kind="array",
    infer=lambda value, *made_of, **_: _identity(value),
    lower=lambda xp, value, *made_of, **_: value,
    vjp=lambda ct, out, value, *made_of, **_: (ct, *[None] * len(made_of)),
    jvp=lambda ts, out, *xs, **_: ts[0],
    flops=lambda node: 0,
)

#: Its first input, once the second is there: what is made of it is made again, and not before.
BARRIER = primitive(
    "barrier",
    kind="elementwise",
    infer=lambda x, signal, **_: _identity(x),
    lower=lambda xp, x, signal, **_: x,
    vjp=lambda ct, out, x, signal, **_: (ct, None),
    jvp=lambda ts, out, x, signal, **_: ts[0],
    flops=lambda node: 0,
)


def marked(row: Primitive, t: Tensor, *others: Tensor, **params: Any) -> Tensor:
    """A marker on `t`, which stays where it was put and wants the gradient that it wants, whatever the others do."""
    with pinned(t.expr.device):
        expr = bind(row, t.expr, *[o.expr for o in others], **params)
    return Tensor(expr, t.requires_grad, t._placed)


def argument(t: Tensor) -> Tensor:
    """`t` under an identity of its own: the derivative with respect to it is not that with respect to an equal one."""
    return marked(ARGUMENT, t, id=serial())


def result(t: Tensor, wants_gradient: bool, beside: Tensor) -> Tensor:
    """What a pass made, as a user gets it: what follows from it runs where `beside` was put."""
    return Tensor(t.expr, wants_gradient and t.dtype.kind in "fc", beside._placed)


def stop_gradient(x: Any, /) -> Tensor:
    """The values of `x`, as a constant to derivatives in both modes."""
    return Tensor(apply(STOP, as_tensor(x)).expr)


__all__ = [
    "arange", "asarray", "empty", "empty_like", "eye", "from_dask", "from_dlpack", "full", "full_like", "linspace",
    "ones", "ones_like", "stop_gradient", "tensor", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip
