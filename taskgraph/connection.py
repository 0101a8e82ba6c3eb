"""A scheduler that is gone, said as such: Dask itself speaks of cancelled futures, of timeouts, or of missing keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any


class LostScheduler(ConnectionError):
    """The scheduler does not answer any more, and what a client kept there is lost with it."""


def check(client: Any) -> None:
    """Raise LostScheduler where the client has no connection (now, or any more)."""
    if not _is_connected(client):
        raise LostScheduler(_lost(client))


@contextlib.contextmanager
def losses_named(client: Any) -> Iterator[None]:
    """Raise LostScheduler where something inside fails because the connection to the scheduler is gone.

    A process that ended is noticed at once, or by the next call within `distributed.comm.timeouts.connect`; a machine
    that is gone within `distributed.comm.timeouts.tcp` (30 s each where nobody says otherwise).
    """
    check(client)
    try:
        yield
    except (CancelledError, OSError, TimeoutError) as error:
        if _is_connected(client):
            raise
        raise LostScheduler(_lost(client)) from error


def _is_connected(client: Any) -> bool:
    comm = client.scheduler_comm  # None while it connects again
    return client.status == "running" and comm is not None and not comm.closed()


def _lost(client: Any) -> str:
    address = client.scheduler.address if client.scheduler is not None else "it had"
    return (
        f"the client has no connection to the scheduler at {address} (status: {client.status}): one of them was "
        "closed, or that process or its machine is gone. What ran there is cancelled; variables and persisted tensors "
        "are lost. Connect to another cluster and run the script again: it goes on from what tg.save, tg.resumable or "
        "t.checkpoint wrote"
    )
