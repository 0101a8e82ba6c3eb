"""Copies of host arrays that stay on the device, so that the next task that takes the same tile need not upload it.

Between the tiles of one block row the same panel of an operand is wanted again and again; it lies in the worker's
memory as one NumPy array, which nobody changes (no task mutates its inputs), so the array's identity is the key. An
entry dies with its array, and the cache is the first to give when memory is short.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.counters import count

#: The cache's share of what a GPU's pool may take. The other half is for what a task holds at once: its result, a
#: scratch buffer of the same size and two pairs of operands, and for results that stay for later tasks.
SHARE = 0.5

#: The same of an emulated GPU, whose copies lie in the worker's own host memory beside the originals. Derived: Dask
#: begins to spill at 0.6 of a worker's limit, and the graph's own data should have nearly all of that.
EMULATED_SHARE = 0.125

#: Smaller arrays are not kept: their upload costs about what the call costs (some ten microseconds each).
SMALLEST_BYTES = 2**16

#: Nor are arrays that would not leave room for so many of their size, this one counted.
KEPT_AT_LEAST = 4


@dataclass(frozen=True, slots=True)
class _Entry:
    source: weakref.ref[np.ndarray[Any, Any]]
    on_device: Any
    nbytes: int


class DeviceCache:
    """A bounded mapping from host arrays, by identity, to their copies on the device; least recently used leave first.

    limit_bytes: of all copies together; 0 keeps nothing. Safe to use from several threads.

    >>> cache, tile = DeviceCache(2**22), np.ones((256, 256))
    >>> cache.put(tile, "its copy"), cache.get(tile), cache.held_bytes
    (None, 'its copy', 524288)
    >>> del tile
    >>> cache.held_bytes
    0
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        # Reentrant: a collection may end an array in the thread that is inside.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def admits(self, nbytes: int) -> bool:
        """Whether an array of so many bytes would be kept: not one that would leave no room for three more."""
        return SMALLEST_BYTES <= nbytes <= self.limit_bytes // KEPT_AT_LEAST

    def get(self, host: np.ndarray[Any, Any]) -> Any | None:
        """The copy of this very array, None where there is none."""
        with self._lock:
            entry = self._entries.get(id(host))
            if entry is None or entry.source() is not host:  # an id is used again
                return None
            self._entries.move_to_end(id(host))
        count("cache_hits")
        return entry.on_device

    def put(self, host: np.ndarray[Any, Any], on_device: Any) -> None:
        """Keep a copy of this array as long as the array lives and there is room."""
        if not self.admits(host.nbytes):
            return
        count("cache_misses")
        key = id(host)
        entry = _Entry(weakref.ref(host, lambda source: self._forget(key, source)), on_device, host.nbytes)
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self.held_bytes -= old.nbytes
            self._entries[key] = entry
            self.held_bytes += entry.nbytes
            self._shrink(self.limit_bytes)

    def clear(self) -> int:
        """Give everything back; the bytes that were held."""
        with self._lock:
            held = self.held_bytes
            self._shrink(0)
        return held

    def _shrink(self, limit_bytes: int) -> None:
        while self._entries and self.held_bytes > limit_bytes:
            _, entry = self._entries.popitem(last=False)
            self.held_bytes -= entry.nbytes
            count("cache_evictions")

    def _forget(self, key: int, source: weakref.ref[np.ndarray[Any, Any]]) -> None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.source is source:
                del self._entries[key]
                self.held_bytes -= entry.nbytes
