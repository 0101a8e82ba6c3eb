"""What the results of a GPU's tasks hold of its memory between tasks, and how much they may.

Dask knows a worker's host memory and spills what does not fit; of the device's it knows nothing. So results stay on the
device while they are within a share of it, and beyond that they are kept in host memory, where Dask's own rules hold.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

#: Results may take so much of a device's memory. The rest is for the task at work, to which a plan gives as much
#: (`taskgraph.cost.MEMORY_SHARE`); the cache of operands yields to both.
SHARE = 0.5


class AtRest:
    """Bytes of live objects that hold device memory. Safe to use from several threads."""

    def __init__(self) -> None:
        self.bytes = 0
        # A finalizer may run in the thread that holds it, in the middle of a collection.
        self._lock = threading.RLock()

    def enter(self, holder: Any, nbytes: int) -> None:
        """Count so many bytes for as long as `holder` lives."""
        self._add(nbytes)
        weakref.finalize(holder, self._add, -nbytes).atexit = False

    def _add(self, nbytes: int) -> None:
        with self._lock:
            self.bytes += nbytes


#: This process's.
tiles = AtRest()
