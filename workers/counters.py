"""What a worker's device has done, counted: the worker sends it with every heartbeat."""

from __future__ import annotations

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()

#: Every count that there is, so that a worker that has not met something says 0.
NAMES = (
    "cache_hits",
    "cache_misses",
    "cache_evictions",
    "bytes_uploaded",
    "results_to_host",
    "out_of_memory_received",
    "out_of_memory_freed",
    "out_of_memory_pieces",
    "out_of_memory_host",
)


def count(name: str, by: int = 1) -> int:
    """Add to a count; its value after that."""
    with _lock:
        _counts[name] += by
        return _counts[name]


def counts() -> dict[str, int]:
    """All counts of this process, by name."""
    with _lock:
        return {name: _counts[name] for name in NAMES}


def reset() -> None:
    """Begin at 0 again."""
    with _lock:
        _counts.clear()
