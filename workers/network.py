"""How fast bytes travel between workers: measured by fetching some from a peer, over the connections of its tasks."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

#: Of one probe (chosen: a tenth of a second at 1 GB/s, where what a message costs no longer counts).
PROBE_BYTES = 2**26

#: The first fetch opens the connection; the best of the others counts, since others only ever slow a network down.
FETCHES = 3


async def bytes_per_s(source: str, dask_worker: Any) -> float:
    """The best rate at which this worker gets bytes from the worker at the address `source`.

    Neither runs a task for it, so busy workers answer, too. Raises OSError where the peer cannot be reached.
    """
    from distributed.protocol.pickle import dumps

    peer = dask_worker.rpc(source)
    seconds = []
    for _ in range(FETCHES):
        start = time.perf_counter()
        answer = await peer.run(function=dumps(_probe))
        seconds.append(time.perf_counter() - start)
        if answer["status"] != "OK":
            raise OSError(f"the worker at {source} sent no probe of the network: {answer}")
    await peer.run(function=dumps(_probe.cache_clear))
    return PROBE_BYTES / min(seconds[1:])


@functools.cache
def _probe() -> np.ndarray[Any, Any]:
    """Bytes that nothing compresses."""
    return np.random.default_rng(0).integers(0, 256, PROBE_BYTES, np.uint8)
