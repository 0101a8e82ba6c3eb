"""Operands that go to the device when a kernel wants them, the next ones while it works with the last.

A kernel that takes its operands so says it with `@streams`; on a GPU it then gets an `Operand` for every array. On the
host it gets arrays, as every other kernel does everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from workers.backend import Backend, Upload

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


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
            _arrived(pair)


def _begin(tile: Any) -> Upload:
    return tile.begin() if isinstance(tile, Operand) else lambda: tile


def _arrived(pair: tuple[Upload, Upload]) -> tuple[Any, Any]:
    return pair[0](), pair[1]()
