"""A GPU's memory, emulated: the live bytes of array_api_strict's second device, counted and bounded.

What is counted is real: every buffer that an array of that device owns, from its creation to its release, whoever
makes it (operators and functions alike), views once. What is emulated is the refusal: the buffers lie in host
memory, and beyond the limit `OutOfMemory` is raised where CuPy raises its own.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

#: Where an emulated GPU keeps its arrays: array_api_strict's second device refuses `np.asarray`, and refuses to mix
#: with arrays of another device, as a GPU does.
EMULATED_DEVICE = "device1"


class OutOfMemory(MemoryError):
    """An emulated GPU has no room; a MemoryError, as CuPy's OutOfMemoryError is."""


class EmulatedMemory:
    """The memory of this process's emulated GPU.

    limit: bytes, None for as many as the host has; counting begins with the first limit. live: bytes counted now;
    peak: the most there were since the last limit; refused: how many allocations were.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.live = self.peak = self.refused = 0
        self._owners: set[int] = set()
        # A finalizer may run in the thread that holds it, in the middle of a collection.
        self._lock = threading.RLock()
        self._is_watching = False

    def bound(self, limit: int | None) -> None:
        """Set the limit, in bytes. Raises ValueError for one below 1."""
        if limit is not None and limit < 1:
            raise ValueError(f"an emulated GPU has at least 1 byte of memory, not {limit}")
        if limit is not None and not self._is_watching:
            self._watch()
        self.limit, self.peak, self.refused = limit, self.live, 0

    def _watch(self) -> None:
        """Have every new array of the device counted: all are made by this one constructor, results of operators too,
        which a wrapped namespace would not see."""
        from array_api_strict import Device
        from array_api_strict._array_object import Array

        device, make = Device(EMULATED_DEVICE), Array._new

        def counted(cls: type, x: Any, /, device_: Any = None, **kwargs: Any) -> Any:
            array = make(x, kwargs.get("device", device_))
            if array._device == device:
                self._count(array._array)
            return array

        setattr(Array, "_new", classmethod(counted))  # noqa: B010  # not an assignment, which mypy refuses
        self._is_watching = True

    def _count(self, array: np.ndarray[Any, Any]) -> None:
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        with self._lock:
            if id(owner) in self._owners:
                return
            nbytes = int(owner.nbytes)
            if self.limit is not None and self.live + nbytes > self.limit:
                self.refused += 1
                raise OutOfMemory(
                    f"the emulated GPU has {self.limit} bytes, {self.live} are in use, {nbytes} more were wanted"
                )
            self.live += nbytes
            self.peak = max(self.peak, self.live)
            self._owners.add(id(owner))
            weakref.finalize(owner, self._release, id(owner), nbytes).atexit = False

    def _release(self, owner: int, nbytes: int) -> None:
        with self._lock:
            self._owners.discard(owner)
            self.live -= nbytes


memory = EmulatedMemory()
