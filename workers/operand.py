"""Operands that go to the device when a kernel wants them, the next ones while it works with the last.

A kernel that takes its operands so says it with `@streams`; on a GPU it then gets an `Operand` for every array. On the
host it gets arrays, as every other kernel does everywhere.

What is not there at all before it is wanted is a `Deferred`: a rectangle of a file or of random numbers, which the task
that multiplies it reads, and forgets.
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
                if not _is_reading(upload):
                    upload()


def _begin(tile: Any) -> Upload:
    if isinstance(tile, Deferred):
        return tile.read
    return tile.begin() if isinstance(tile, Operand) else lambda: tile


def _is_reading(upload: Upload) -> bool:
    return isinstance(getattr(upload, "__self__", None), Deferred)


def _arrived(pair: tuple[Upload, Upload]) -> tuple[Any, Any]:
    return pair[0](), pair[1]()
