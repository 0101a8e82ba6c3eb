"""Operands that go to the device when a kernel wants them, the next ones while it works with the last.

A kernel that takes its operands so says it with `@streams`; on a GPU it then gets an `Operand` for every array. On the
host it gets arrays, as every other kernel does everywhere.

What is not there at all before it is wanted is a `Deferred`: a rectangle of a file or of random numbers, which the task
that multiplies it reads, and forgets. What lies in several pieces is a `Joined`, put together a stretch at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from workers.aligned import aligned
from workers.backend import Backend, Upload
from workers.buffers import buffers

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Deferred:
    """A rectangle of an array that a kernel reads, or makes, when it wants it: nothing but numbers travels before.

    make: `make(start, shape)` gives any rectangle of the array, NumPy's.

    >>> x = Deferred(lambda start, shape: np.arange(10)[start[0] : start[0] + shape[0]], (2,), (6,), np.dtype(int))
    >>> x[1:4], x[1:4].read()
    (Deferred(shape=(3,), dtype=int64), array([3, 4, 5]))
    """

    make: Callable[[tuple[int, ...], tuple[int, ...]], np.ndarray[Any, Any]]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Deferred:
        """A smaller rectangle, of which alone is read; slices of step 1 and an ellipsis say which."""
        items = list(index) if isinstance(index, tuple) else [index]
        missing = [slice(None)] * (self.ndim - sum(item is not Ellipsis for item in items))
        at = items.index(Ellipsis) if Ellipsis in items else len(items)
        items[at : at + 1] = missing
        ranges = [range(size)[item] for item, size in zip(items, self.shape, strict=True)]
        start = tuple(s + r.start for s, r in zip(self.start, ranges, strict=True))
        return Deferred(self.make, start, tuple(map(len, ranges)), self.dtype)

    def read(self) -> np.ndarray[Any, Any]:
        """The array, in host memory, that nobody else has; of what BLAS takes as it lies."""
        return aligned(np.asarray(self.make(self.start, self.shape)))

    def __repr__(self) -> str:
        return f"Deferred(shape={self.shape}, dtype={self.dtype})"


class Operand:
    """An array in host memory, or on the device already, that a kernel takes to the device when it needs it.

    pieces: into how many parts each axis of the kernel's result is to be cut; 1 for a result in one piece. More than
    one is asked for where memory is short: then nothing but the part in view is uploaded, and nothing kept.

    >>> from workers.backend import host
    >>> Operand(np.ones((4, 6)), host())[:, 1:3]
    Operand(shape=(4, 2), dtype=float64)
    """

    __slots__ = ("_index", "_view", "_whole", "here", "pieces")

    def __init__(self, whole: Any, here: Backend, pieces: int = 1, index: Any = None) -> None:
        self._whole, self._index = whole, index
        self._view = whole if index is None else whole[index]
        self.here, self.pieces = here, pieces

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._view.shape)

    @property
    def ndim(self) -> int:
        return len(self._view.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the same name, whatever the namespace calls it."""
        return numpy_dtype(self._view)

    def __getitem__(self, index: Any) -> Operand:
        """A view of it; it is not read before it is wanted, as the whole is not."""
        if self._index is not None:
            return Operand(self._view, self.here, self.pieces, index)
        return Operand(self._whole, self.here, self.pieces, index)

    def in_one(self) -> Operand:
        """The same for a kernel that makes one part of the result; still nothing of it is kept."""
        return Operand(self._view, self.here, -1)

    def begin(self) -> Upload:
        """Start to bring it to the device; what is given back waits for it."""
        if isinstance(self._view, Deferred):
            return self.here.begin_upload(self._view.read())
        if self.here.owns(self._view):
            view = self._view
            return lambda: view
        if self.pieces != 1:
            return self.here.begin_upload(self._view)
        if self._index is None:
            return self.here.begin_upload(self._whole, keep=True)
        if self.here.cache.admits(self._whole.nbytes):
            # The whole is kept, so that the other views of it, here and in later tasks, cost nothing.
            upload, index = self.here.begin_upload(self._whole, keep=True), self._index
            return lambda: upload()[index]
        return self.here.begin_upload(self._view)

    def beside(self, other: Any) -> Any:
        """The array where another one is: on the device, or in host memory (NumPy's)."""
        if isinstance(other, np.ndarray):
            return self.here.to_host(self._view) if self.here.owns(self._view) else self._view
        return self.begin()()

    def __repr__(self) -> str:
        return f"Operand(shape={self.shape}, dtype={self.dtype})"


class Joined:
    """An operand that lies in several pieces side by side: joined when a kernel wants it, and forgotten.

    parts: arrays of the host, or Operands. axis: -2 or -1, along which they follow each other.

    >>> rows = Joined([np.zeros((2, 3)), np.ones((1, 3))], -2)
    >>> rows.shape, rows[..., slice(1, 3), slice(None)].read()
    ((3, 3), array([[0., 0., 0.],
           [1., 1., 1.]]))
    """

    __slots__ = ("axis", "here", "parts", "pieces")

    def __init__(self, parts: Sequence[Any], axis: int) -> None:
        self.parts, self.axis = parts, axis
        self.here: Backend | None = getattr(parts[0], "here", None)
        self.pieces: int = getattr(parts[0], "pieces", 1)

    @property
    def shape(self) -> tuple[int, ...]:
        found = list(self.parts[0].shape)
        found[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(found)

    @property
    def ndim(self) -> int:
        return len(self.parts[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.parts[0])

    def __getitem__(self, index: tuple[Any, ...]) -> Joined:
        """Views of the pieces in which a rectangle lies; an ellipsis and slices of the last axes say which."""
        ranges = [slice(None)] * (3 - len(index)) + list(index[1:])
        start, stop, _ = ranges[self.axis].indices(self.shape[self.axis])
        found, at = [], 0
        for part in self.parts:
            size = part.shape[self.axis]
            low, high = max(start - at, 0), min(stop - at, size)
            if low < high:
                ranges[self.axis] = slice(low, high)
                found.append(part[(..., *ranges)])
            at += size
        if not found:
            ranges[self.axis] = slice(0, 0)
            found = [self.parts[0][(..., *ranges)]]
        return Joined(found, self.axis)

    def in_one(self) -> Joined:
        """See `Operand.in_one`."""
        return Joined([part.in_one() for part in self.parts], self.axis)

    def read(self) -> Any:
        """The array, of pieces in host memory."""
        if len(self.parts) == 1:
            return self.parts[0]
        return np.concatenate(self.parts, self.axis, out=buffers.empty(self.shape, self.dtype))

    def begin(self) -> Upload:
        """Start to bring the pieces to the device, one by one; what is given back waits for them and joins them."""
        if self.here is None:
            return self.read
        return _Arriving([part.begin() for part in self.parts], self.axis, self.here.xp)

    def __repr__(self) -> str:
        return f"Joined({len(self.parts)} parts, shape={self.shape}, dtype={self.dtype})"


@dataclass(frozen=True, slots=True)
class _Arriving:
    """Pieces on their way to the device."""

    uploads: Sequence[Upload]
    axis: int
    xp: Any

    def __call__(self) -> Any:
        there = [upload() for upload in self.uploads]
        return self.xp.concat(there, axis=self.axis) if len(there) > 1 else there[0]


def numpy_dtype(array: Any) -> np.dtype[Any]:
    """The NumPy dtype of an array of any namespace."""
    dtype = array.dtype
    return dtype if isinstance(dtype, np.dtype) else np.dtype(str(dtype).rpartition(".")[2])


def streams(kernel: Kernel) -> Kernel:
    """Mark a kernel that takes Operands in place of arrays, and hands them to `gemm_panel` or to `in_turn`."""
    kernel.streams = True  # type: ignore[attr-defined]
    return kernel


def is_streaming(kernel: Callable[..., Any]) -> bool:
    """Whether the kernel, or the function that it is a part of, is marked with `streams`."""
    return bool(getattr(getattr(kernel, "func", kernel), "streams", False))


def in_turn(lefts: Sequence[Any], rights: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The pairs as arrays on the device. While the caller works with one, the next is on its way, and no other: no more
    than two pairs are on the device if the caller forgets each before it asks for the next. Arrays pass as they are."""
    begun: deque[tuple[Upload, Upload]] = deque()
    # On the host a Deferred is read when its turn comes, so that it is alone in memory.
    try:
        for left, right in zip(lefts, rights, strict=True):
            begun.append((_begin(left), _begin(right)))
            if len(begun) > 1:
                yield _arrived(begun.popleft())
        while begun:
            yield _arrived(begun.popleft())
    finally:
        # Memory that an upload still writes must not go back to the pool: this thread's work waits for the upload.
        for pair in begun:
            for upload in pair:
                for started in upload.uploads if isinstance(upload, _Arriving) else (upload,):
                    if not _is_reading(started):
                        started()


def _begin(tile: Any) -> Upload:
    if isinstance(tile, Deferred):
        return tile.read
    return tile.begin() if isinstance(tile, Operand | Joined) else lambda: tile


def _is_reading(upload: Upload) -> bool:
    return isinstance(getattr(upload, "__self__", None), Deferred | Joined)


def _arrived(pair: tuple[Upload, Upload]) -> tuple[Any, Any]:
    return pair[0](), pair[1]()
