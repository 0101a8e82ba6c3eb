"""Memory of large arrays, used again for the next ones.

The memory of a large array comes from the system and goes back to it, and every page of the next array is handed out
and cleared anew at its first touch. On a virtual machine that gives free memory back to its host this takes 2 to 3 ms a
megabyte (measured: 0.4 s of the 5.9 s of a tile of 4096 x 8192 x 8192 in float32), elsewhere about a tenth of one.
Products make arrays of few sizes again and again: results, what products of panels are added up through, pieces joined,
operands received. So this process keeps a little of what it freed last.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: Smaller arrays are not worth it: malloc has their pages already, or it takes less than starting a task.
LEAST_BYTES = 2**20

#: Of the worker's memory limit, that free buffers may take. Chosen: less than Dask's own margins (it spills at 60 %,
#: and pauses at 80 %), yet the results of a few tiles.
SHARE = 1 / 16

#: What has not been used for so long goes back to the system. Chosen: longer than a step between two products takes.
IDLE_S = 60.0

#: An array may lie in a buffer that is longer by this share. Chosen: uneven tiles of one product differ by less.
SLACK = 0.25


class Buffers:
    """Free memory of this process, up to a limit in bytes; 0, as it begins, keeps none.

    >>> buffers = Buffers(limit_bytes=2**22)
    >>> first = buffers.empty((512, 512), np.dtype("float64"))
    >>> at = first.ctypes.data
    >>> del first
    >>> buffers.free_bytes, buffers.empty((1024, 512), np.dtype("float32")).ctypes.data == at
    (2097152, True)
    """

    def __init__(self, limit_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_bytes = limit_bytes
        self._clock = clock
        self._free: list[tuple[float, np.ndarray[Any, Any]]] = []  # when it was used last, bytes; the newest last
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """What is kept now."""
        return sum(memory.nbytes for _, memory in self._free)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An array in C order with any values in it, whose memory comes back here when nobody has a view of it."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < LEAST_BYTES or nbytes > self.limit_bytes or dtype.hasobject:
            return np.empty(shape, dtype)
        lent = np.asarray(_Lent(self, self._take(nbytes)))
        return lent[:nbytes].view(dtype).reshape(shape)

    def trim(self, idle_s: float = IDLE_S) -> None:
        """Give back to the system what has not been used for so long."""
        until = self._clock() - idle_s
        with self._lock:
            self._free = [(used, memory) for used, memory in self._free if used > until]

    def _take(self, nbytes: int) -> np.ndarray[Any, Any]:
        with self._lock:
            fits = [n for n, (_, memory) in enumerate(self._free) if nbytes <= memory.nbytes <= (1 + SLACK) * nbytes]
            if fits:
                # Of the best fitting ones the one that was used last: it is the warmest.
                return self._free.pop(min(fits, key=lambda n: (self._free[n][1].nbytes, -n)))[1]
        return np.empty(nbytes, np.uint8)

    def _take_back(self, memory: np.ndarray[Any, Any]) -> None:
        """Called where an array dies, which may be anywhere, also in this thread while it holds the lock."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            free = self.free_bytes + memory.nbytes
            while self._free and free > self.limit_bytes:
                free -= self._free.pop(0)[1].nbytes
            if free <= self.limit_bytes:
                self._free.append((self._clock(), memory))
        finally:
            self._lock.release()


class _Lent:
    """What stands behind every view of a buffer; it dies with the last one."""

    def __init__(self, buffers: Buffers, memory: np.ndarray[Any, Any]) -> None:
        self._buffers, self._memory = buffers, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._buffers._take_back(self._memory)


#: This process's. A worker sets its limit.
buffers = Buffers()


def receive_into_buffers() -> None:
    """Have distributed read messages from other processes into buffers, too.

    It has no setting for that: the function that makes room for a message is a name in its module for TCP and TLS.
    """
    from distributed.comm import tcp

    if not callable(getattr(tcp, "host_array", None)):
        raise RuntimeError(
            "this version of distributed has no distributed.comm.tcp.host_array: use one of those listed"
        )
    tcp.host_array = room_for_message  # type: ignore[assignment]  # its parameter has another name


def room_for_message(nbytes: int) -> memoryview:
    """Writable bytes, as distributed's own function gives them.

    >>> room_for_message(3).nbytes
    3
    """
    return buffers.empty((nbytes,), np.dtype(np.uint8)).data
