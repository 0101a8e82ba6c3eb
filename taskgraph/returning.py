"""Workers that are away for a moment: a plan made just then would do without their whole kind.

A nanny, or the supervisor of a batch job, starts a dead worker again within seconds. Where it was the last GPU, what is
planned meanwhile would go to the CPUs, with other bits, and what is pinned would be an error. Where Dask's setting
`taskgraph.return-timeout` says so (batch jobs do), such a plan waits: once for each time that a kind goes away.
"""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any

import dask
from dask.utils import parse_timedelta

from taskgraph.machine import Machine

logger = logging.getLogger(__name__)

#: Between two looks at the workers: a request to the scheduler each.
POLL_S = 0.2

#: The kinds of worker that a client's cluster had when it was last looked at.
_kinds: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def machine_behind(client: Any) -> Machine:
    """The machine of a client's cluster, with every kind of worker that it had before, if that is back in time."""
    machine = Machine.from_client(client)
    away = _kinds.get(client, frozenset()) - _kinds_of(machine)
    timeout_s = parse_timedelta(dask.config.get("taskgraph.return-timeout", 0))
    if away and timeout_s:
        names = " and ".join(sorted(away))
        logger.warning("No %s worker is left; waiting up to %.0f s for one to come back", names, timeout_s)
        deadline = time.monotonic() + timeout_s
        while not away <= _kinds_of(machine) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            machine = Machine.from_client(client)
    _kinds[client] = _kinds_of(machine)
    return machine


def _kinds_of(machine: Machine) -> frozenset[str]:
    return frozenset(device.kind for device in machine.devices)
