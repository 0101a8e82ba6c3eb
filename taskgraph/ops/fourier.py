"""Fourier transforms: the array API's extension of that name (2024.12).

Design note. Three rows do all of it: complex to complex along any axes, real to the half spectrum and back along one;
shorter and longer transforms are slices and zeros around them, the Hermitian ones conjugates. The matrix of a transform
is symmetric, so the row of complex ones is its own transpose; those of half spectra are each other's, but for the
elements that stand for two. An axis is one block where it is transformed: where it is cut, a `rechunk` expression makes
it whole and cuts another one instead, so that a block stays as large as it was. So a transform along several axes goes
axis by axis where no block holds them all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import Axes, array, axes_of, axis_of, integers
from taskgraph.ops.create import ARANGE, FULL, arange
from taskgraph.ops.elementwise import cast, conj, conjugate, equal, remainder, where
from taskgraph.ops.indexing import roll
from taskgraph.ops.shape import concat, rechunk, reshape
from taskgraph.primitives import is_dask, primitive
from taskgraph.tensor import Tensor, apply

#: Each scaling, and that with which the transform in the other direction is the transpose of the one.
TRANSPOSED = {"backward": "forward", "ortho": "ortho", "forward": "backward"}

# -- how rows are inferred and lowered ---------------------------------------------------------------------------------


def _put(of: Sequence[Any], axis: int, item: Any) -> tuple[Any, ...]:
    return (*of[:axis], item, *of[axis + 1 :])


def _along(x: Any, axes: Axes, sizes: Sequence[int]) -> tuple[Shape, Chunks]:
    """Shape and blocks of `x` with axes of those sizes, each in one block."""
    shape, chunks = x.shape, x.chunks
    for a, n in zip(axes, sizes, strict=True):
        shape, chunks = _put(shape, a, n), _put(chunks, a, (n,))
    return shape, chunks


def _on_block(block: Any, name: str, **how: Any) -> Any:
    return getattr(np.fft, name)(block, **how)


def _lower(xp: Any, x: Any, along: Axes, sizes: Sequence[int], dtype: DType, name: str, **how: Any) -> Any:
    """NumPy's transform of that name, block by block: the axes are whole in each."""
    if not is_dask(xp):
        return getattr(xp.fft, name)(x, **how)
    x = x.rechunk(dict.fromkeys(along, -1))  # a pass may have cut it otherwise than it was when it became an operand
    shape, chunks = _along(x, along, sizes)
    meta = np.empty((0,) * len(shape), dtype)
    return xp.map_blocks(functools.partial(_on_block, name=name, **how), x, chunks=chunks, dtype=dtype, meta=meta)


def _complex_type(dtype: DType) -> DType:
    return np.result_type(dtype, np.complex64)


def _real_type(dtype: DType) -> DType:
    return np.finfo(dtype).dtype


def _work(per_element: float, axes: Axes, node: Expr, whole: Any) -> int:
    """Operations of a radix-2 transform: 5 n log2(n), of real numbers half of it (Van Loan, 1992)."""
    return int(per_element * node.size * math.log2(max(math.prod(whole.shape[a] for a in axes), 2)))


# -- rows --------------------------------------------------------------------------------------------------------------


def _lower_fft(xp: Any, x: Any, axes: Axes, inverse: bool, norm: str) -> Any:
    name = "ifftn" if inverse else "fftn"
    return _lower(xp, x, axes, [x.shape[a] for a in axes], x.dtype, name, axes=axes, norm=norm)


FFT = primitive(
    "fft",
    kind="array",
    infer=lambda x, axes, **_: (x.shape, x.dtype, _along(x, axes, [x.shape[a] for a in axes])[1]),
    lower=_lower_fft,
    vjp=lambda ct, out, x, **how: (_transform(ct, **how),),
    jvp=lambda ts, out, x, **how: _transform(ts[0], **how),
    flops=lambda node: _work(5, node.params["axes"], node, node),
)


def _infer_rfft(x: Expr, axis: int, norm: str) -> tuple[Shape, DType, Chunks]:
    shape, chunks = _along(x, (axis,), [x.shape[axis] // 2 + 1])
    return shape, _complex_type(x.dtype), chunks


def _lower_rfft(xp: Any, x: Any, axis: int, norm: str) -> Any:
    half = [x.shape[axis] // 2 + 1]
    return _lower(xp, x, (axis,), half, _complex_type(x.dtype), "rfft", axis=axis, norm=norm)


#: Real numbers to the first half of their spectrum, n // 2 + 1 numbers; the others are conjugates of these.
RFFT = primitive(
    "rfft",
    kind="array",
    infer=_infer_rfft,
    lower=_lower_rfft,
    vjp=lambda ct, out, x, axis, norm: (
        _from_half(conj(ct) * _weights(x.shape[axis], axis, ct, 0.5), x.shape[axis], axis, TRANSPOSED[norm]),
    ),
    jvp=lambda ts, out, x, axis, norm: _to_half(ts[0], axis, norm),
    flops=lambda node: _work(2.5, (node.params["axis"],), node.inputs[0], node.inputs[0]),
)


def _infer_irfft(x: Expr, n: int, axis: int, norm: str) -> tuple[Shape, DType, Chunks]:
    shape, chunks = _along(x, (axis,), [n])
    return shape, _real_type(x.dtype), chunks


def _lower_irfft(xp: Any, x: Any, n: int, axis: int, norm: str) -> Any:
    return _lower(xp, x, (axis,), [n], _real_type(x.dtype), "irfft", n=n, axis=axis, norm=norm)


#: Half a spectrum, n // 2 + 1 numbers, to the n real numbers that it is of; the imaginary parts of what is its own
#: conjugate (the first and, of an even n, the last) do not count.
IRFFT = primitive(
    "irfft",
    kind="array",
    infer=_infer_irfft,
    lower=_lower_irfft,
    vjp=lambda ct, out, x, n, axis, norm: (conj(_to_half(ct, axis, TRANSPOSED[norm])) * _weights(n, axis, x, 2.0),),
    jvp=lambda ts, out, x, n, axis, norm: _from_half(ts[0], n, axis, norm),
    flops=lambda node: _work(2.5, (node.params["axis"],), node, node),
)


def _weights(n: int, axis: int, half: Tensor, of_doubled: float) -> Tensor:
    """Beside half a spectrum of n numbers: ones for what stands for itself, the weight for what stands for two."""
    m = half.shape[axis]
    k = apply(ARANGE, shape=(m,), dtype=np.dtype(np.int64), chunks=((m,),), first=0, step=1)
    weights = cast(where(equal(remainder(2 * k, n), 0), 1.0, of_doubled), _real_type(half.dtype))
    return reshape(weights, (m, *[1] * (half.ndim - axis - 1)))


# -- rows on operands in any blocks ------------------------------------------------------------------------------------


def _whole(x: Tensor, axis: int) -> Tensor:
    """`x` with an axis in one block, and where it was not, the longest blocks of the other axes cut instead."""
    pieces = len(x.chunks[axis])
    if pieces == 1:
        return x
    chunks: list[Any] = list(_put(x.chunks, axis, (x.shape[axis],)))
    longest = max((a for a in range(x.ndim) if a != axis), key=lambda a: max(x.chunks[a]), default=None)
    if longest is not None and x.shape[longest]:
        chunks[longest] = -(-max(x.chunks[longest]) // pieces)
    return rechunk(x, tuple(chunks))


def _transform(x: Tensor, axes: Axes, inverse: bool, norm: str) -> Tensor:
    """The row of complex numbers: along the axes that are whole at once, along each other one apart."""
    whole = tuple(a for a in axes if len(x.chunks[a]) == 1)
    if whole:
        x = apply(FFT, x, axes=whole, inverse=inverse, norm=norm)
    for a in axes:
        if a not in whole:
            x = apply(FFT, _whole(x, a), axes=(a,), inverse=inverse, norm=norm)
    return x


def _to_half(x: Tensor, axis: int, norm: str) -> Tensor:
    return apply(RFFT, _whole(x, axis), axis=axis, norm=norm)


def _from_half(x: Tensor, n: int, axis: int, norm: str) -> Tensor:
    return apply(IRFFT, _whole(x, axis), n=n, axis=axis, norm=norm)


def _resized(x: Tensor, axis: int, n: int) -> Tensor:
    """The first n elements along an axis, zeros where there are not so many."""
    size = x.shape[axis]
    if n <= size:
        return x if n == size else x[(slice(None),) * axis + (slice(0, n),)]
    shape, chunks = _along(x, (axis,), [n - size])
    nothing = apply(FULL, shape=shape, dtype=x.dtype, chunks=chunks, fill_value=x.dtype.type(0).item())
    longer = concat([x, nothing], axis=axis)
    return rechunk(longer, _put(longer.chunks, axis, (n,))) if len(x.chunks[axis]) == 1 else longer


# -- what users pass ---------------------------------------------------------------------------------------------------


def _real(name: str, x: Any) -> Tensor:
    x = array(name, x)
    if x.dtype.kind == "c":
        raise TypeError(f"{name}: needs real numbers, {describe(x.expr)}; fft takes complex ones")
    return x if x.dtype.kind == "f" and x.dtype != np.float16 else cast(x, np.dtype(_wide(x.dtype)))


def _complex(name: str, x: Any) -> Tensor:
    x = array(name, x)
    return cast(x, _complex_type(_wide(x.dtype)))


def _wide(dtype: DType) -> DType:
    """The type in which numbers of a type are transformed: NumPy has no half precision, integers become doubles."""
    return np.result_type(dtype, np.float32) if dtype.kind in "fc" else np.dtype(float)


def _norm(name: str, norm: Any) -> str:
    known = "backward" if norm is None else norm
    if known not in TRANSPOSED:
        raise ValueError(f'{name}: norm is "backward", "ortho" or "forward", not {norm!r}')
    return str(known)


def _length(name: str, n: Any, default: int) -> int:
    (found,) = (default,) if n is None else integers(f"{name}: n", n)
    if found < 1:
        raise ValueError(f"{name}: the length of a transform is 1 or more, not {found}")
    return found


def _axes(name: str, x: Tensor, s: Any, axes: Any) -> tuple[tuple[int | None, ...], Axes]:
    """Lengths, None where one is the axis', and axes in the order given."""
    given = None if s is None else integers(f"{name}: s", s)
    if axes is None:
        first = 0 if given is None else x.ndim - len(given)
        if first < 0:
            raise ValueError(f"{name}: {len(given or ())} sizes in s for {describe(x.expr)}")
        axes = range(first, x.ndim)
    found = tuple(axis_of(name, a, x.ndim) for a in integers(f"{name}: axes", axes))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: an axis stands twice in {tuple(axes)}")
    if given is not None and len(given) != len(found):
        raise ValueError(f"{name}: {len(given)} sizes in s for {len(found)} axes")
    return tuple([None if n == -1 else n for n in given or [-1] * len(found)]), found


def _complex_to_complex(name: str, x: Tensor, s: Sequence[Any], axes: Axes, inverse: bool, norm: Any) -> Tensor:
    scaling = _norm(name, norm)
    for n, a in zip(s, axes, strict=True):
        x = _resized(x, a, _length(name, n, x.shape[a]))
    return _transform(x, axes, inverse, scaling)


def _real_to_half(name: str, x: Tensor, n: Any, axis: int, norm: Any) -> Tensor:
    return _to_half(_resized(x, axis, _length(name, n, x.shape[axis])), axis, _norm(name, norm))


def _half_to_real(name: str, x: Tensor, n: Any, axis: int, norm: Any) -> Tensor:
    n = _length(name, n, 2 * (x.shape[axis] - 1))
    return _from_half(_resized(x, axis, n // 2 + 1), n, axis, _norm(name, norm))


# -- public ------------------------------------------------------------------------------------------------------------


def fft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The discrete Fourier transform along an axis, as `numpy.fft.fft`; real numbers become complex.

    n: its length: the axis is cut, or filled up with zeros, to it. norm: "backward" scales the inverse by 1/n,
    "forward" this one, "ortho" both by the root. Raises ValueError for another norm, length or axis.

    >>> import taskgraph as tg
    >>> tg.fft.fft(tg.asarray([1.0, 0.0, 0.0])).compute()
    array([1.+0.j, 1.+0.j, 1.+0.j])
    """
    x = _complex("fft", x)
    return _complex_to_complex("fft", x, [n], (axis_of("fft", axis, x.ndim),), False, norm)


def ifft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The inverse of `fft`, as `numpy.fft.ifft`."""
    x = _complex("ifft", x)
    return _complex_to_complex("ifft", x, [n], (axis_of("ifft", axis, x.ndim),), True, norm)


def fftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Tensor:
    """The transform along several axes (all where None), as `numpy.fft.fftn`; s: its lengths, -1 for the axis' own.

    Where the array is cut along several of them, it goes through one axis after the other, in blocks of their size.

    >>> import taskgraph as tg
    >>> tg.fft.fftn(tg.ones((8, 8), chunks=4)).chunks
    ((2, 2, 2, 2), (8,))
    """
    x = _complex("fftn", x)
    return _complex_to_complex("fftn", x, *_axes("fftn", x, s, axes), False, norm)


def ifftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Tensor:
    """The inverse of `fftn`, as `numpy.fft.ifftn`."""
    x = _complex("ifftn", x)
    return _complex_to_complex("ifftn", x, *_axes("ifftn", x, s, axes), True, norm)


def rfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The first n // 2 + 1 elements of the transform of real numbers, as `numpy.fft.rfft`; TypeError for complex ones.

    >>> import taskgraph as tg
    >>> tg.fft.rfft(tg.asarray([1.0, 0.0, 0.0])).compute()
    array([1.+0.j, 1.+0.j])
    """
    x = _real("rfft", x)
    return _real_to_half("rfft", x, n, axis_of("rfft", axis, x.ndim), norm)


def irfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The inverse of `rfft`, as `numpy.fft.irfft`; n: how many real numbers it gives (an even number where None)."""
    x = _complex("irfft", x)
    return _half_to_real("irfft", x, n, axis_of("irfft", axis, x.ndim), norm)


def rfftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Tensor:
    """`rfft` along the last of the axes, then `fftn` along the others, as `numpy.fft.rfftn`."""
    x = _real("rfftn", x)
    sizes, found = _several("rfftn", x, s, axes)
    half = _real_to_half("rfftn", x, sizes[-1], found[-1], norm)
    return _complex_to_complex("rfftn", half, sizes[:-1], found[:-1], False, norm)


def irfftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Tensor:
    """The inverse of `rfftn`, as `numpy.fft.irfftn`; s: the lengths of the result."""
    x = _complex("irfftn", x)
    sizes, found = _several("irfftn", x, s, axes)
    half = _complex_to_complex("irfftn", x, sizes[:-1], found[:-1], True, norm)
    return _half_to_real("irfftn", half, sizes[-1], found[-1], norm)


def _several(name: str, x: Tensor, s: Any, axes: Any) -> tuple[tuple[int | None, ...], Axes]:
    sizes, found = _axes(name, x, s, axes)
    if not found:
        raise ValueError(f"{name}: needs at least one axis, {describe(x.expr)}")
    return sizes, found


def hfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The transform, which is real, of n numbers of which the second half are conjugates of the first, `x`."""
    x = conjugate(_complex("hfft", x))
    return _half_to_real("hfft", x, n, axis_of("hfft", axis, x.ndim), TRANSPOSED[_norm("hfft", norm)])


def ihfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
    """The inverse of `hfft`: half of a Hermitian array, from real numbers."""
    x = _real("ihfft", x)
    return conj(_real_to_half("ihfft", x, n, axis_of("ihfft", axis, x.ndim), TRANSPOSED[_norm("ihfft", norm)]))


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: str | None = None, chunks: Any = "auto") -> Tensor:
    """The frequencies of a transform of n numbers that are `d` apart, in cycles per unit of it: from zero up, then the
    negative ones.

    >>> import taskgraph as tg
    >>> tg.fft.fftfreq(4, d=0.5).compute()
    array([ 0. ,  0.5, -1. , -0.5])
    """
    n = _length("fftfreq", n, 1)
    k = arange(n, device=device, chunks=chunks)
    return _frequencies("fftfreq", where(k < (n + 1) // 2, k, k - n), n * d, dtype)


def rfftfreq(
    n: int, /, *, d: float = 1.0, dtype: Any = None, device: str | None = None, chunks: Any = "auto"
) -> Tensor:
    """The frequencies of `rfft` of n numbers that are `d` apart, none of them negative."""
    n = _length("rfftfreq", n, 1)
    return _frequencies("rfftfreq", arange(n // 2 + 1, device=device, chunks=chunks), n * d, dtype)


def _frequencies(name: str, k: Tensor, length: float, dtype: Any) -> Tensor:
    wanted = np.dtype(float if dtype is None else dtype)
    if wanted.kind != "f":
        raise TypeError(f"{name}: needs a floating point dtype, not {wanted}")
    if not length:
        raise ValueError(f"{name}: the numbers are some distance apart, not 0")
    return cast(k * (1.0 / length), wanted)


def fftshift(x: Any, /, *, axes: Any = None) -> Tensor:
    """The elements of a spectrum moved so that the frequency zero is in the middle of the axes (all where None)."""
    return _shifted("fftshift", x, axes, 1)


def ifftshift(x: Any, /, *, axes: Any = None) -> Tensor:
    """The inverse of `fftshift`."""
    return _shifted("ifftshift", x, axes, -1)


def _shifted(name: str, x: Any, axes: Any, sign: int) -> Tensor:
    x = array(name, x)
    found = axes_of(name, axes, x.ndim)
    return roll(x, [sign * (x.shape[a] // 2) for a in found], axis=found)
