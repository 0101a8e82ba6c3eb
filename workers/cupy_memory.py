"""Copies to a CUDA device that run beside its work, and what CuPy says when there is no room.

Every thread has a stream of its own for uploads, and a ring of pinned buffers: a piece of a tile is copied into one
buffer while the other is on its way, so that pinned memory is bounded and the processor's copy hides behind the link's.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from workers import memory

if TYPE_CHECKING:
    from workers.backend import Upload

#: Of one pinned buffer. Chosen: long beside a transfer's latency (some 10 us; 16 MiB take 1 ms at 16 GB/s), and two a
#: thread are little memory.
PIECE_BYTES = 16 * 2**20

BUFFERS = 2

#: Below this an upload by CuPy itself costs as little: one launch.
SMALL_BYTES = 2**16

#: cudaErrorMemoryAllocation, and CUBLAS_STATUS_ALLOC_FAILED of cuBLAS's workspace.
CUDA_NO_MEMORY, CUBLAS_NO_MEMORY = 2, 3

_thread = threading.local()


class Uploads:
    """The upload stream of a thread, and its ring of pinned buffers."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._pinned = [cupy.cuda.alloc_pinned_memory(PIECE_BYTES) for _ in range(BUFFERS)]
        self._views = [np.frombuffer(buffer, np.uint8, PIECE_BYTES) for buffer in self._pinned]
        self._sent: list[Any] = [None] * BUFFERS
        self._turn = 0

    def begin(self, host: np.ndarray[Any, Any]) -> Upload:
        """Start to copy a contiguous array; the stream that calls the result waits for the copy, not the thread."""
        import cupy

        on_device = cupy.empty(host.shape, host.dtype, order="C" if host.flags.c_contiguous else "F")
        # The pool may have given memory that work of this thread, launched before, still reads.
        self.stream.wait_event(_record(cupy.cuda.get_current_stream()))
        flat = host.ravel(order="K").view(np.uint8)
        for start in range(0, flat.size, PIECE_BYTES):
            self._send(flat[start : start + PIECE_BYTES], on_device.data + start)
        arrived = _record(self.stream)

        def wait() -> Any:
            cupy.cuda.get_current_stream().wait_event(arrived)
            return on_device

        return wait

    def _send(self, piece: np.ndarray[Any, Any], target: Any) -> None:
        turn = self._turn
        self._turn = (turn + 1) % BUFFERS
        if self._sent[turn] is not None:
            self._sent[turn].synchronize()  # the buffer's last content has left it
        self._views[turn][: piece.size] = piece
        target.copy_from_host_async(self._pinned[turn].ptr, piece.size, self.stream)
        self._sent[turn] = _record(self.stream)


def begin_upload(host: np.ndarray[Any, Any]) -> Upload:
    """Start to copy an array of any layout to the device."""
    import cupy

    if host.nbytes < SMALL_BYTES or host.dtype.kind not in "biufc" or not host.dtype.isnative:
        on_device = cupy.asarray(host)
        memory.trim_pinned_pool()
        return lambda: on_device
    if not (host.flags.c_contiguous or host.flags.f_contiguous):
        host = np.ascontiguousarray(host)
    if not hasattr(_thread, "uploads"):
        _thread.uploads = Uploads()
    upload: Upload = _thread.uploads.begin(host)
    return upload


def free_pools() -> None:
    """Give back the device memory and the pinned memory that nothing uses."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CuPy, CUDA or cuBLAS says that the device has no room; a MemoryError of the host's is none."""
    import cupy

    if isinstance(error, cupy.cuda.memory.OutOfMemoryError):
        return True
    code = {"CUDARuntimeError": CUDA_NO_MEMORY, "CUBLASError": CUBLAS_NO_MEMORY}.get(type(error).__name__)
    return code is not None and getattr(error, "status", None) == code


def _record(stream: Any) -> Any:
    import cupy

    return stream.record(cupy.cuda.Event(disable_timing=True))
