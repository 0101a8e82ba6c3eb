"""A peer that is gone is given up at once.

A worker that hears of a peer's death ends its connections to it, also those that are being made. One that a task starts
a moment later, because it was told of the peer in the same breath, is tried for all of `comm.timeouts.connect` (seen in
2 of 100 kills: 5 s each). So connections are ended again when those have begun.
"""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds after the news. Chosen: what was told in one breath begins at once, or when a busy event loop comes to it.
AGAIN_S = (0.1, 0.5, 1.0)


def give_up_at_once(dask_worker: Any) -> None:
    """Make a worker end its connections to a dead peer again, a little later."""
    known = dask_worker.stream_handlers["remove-worker"]

    def remove_worker(worker: str, stimulus_id: str) -> None:
        known(worker=worker, stimulus_id=stimulus_id)
        for seconds in AGAIN_S:
            asyncio.get_running_loop().call_later(seconds, dask_worker.rpc.remove, worker)

    dask_worker.stream_handlers["remove-worker"] = remove_worker
