"""A GPU without room for a task: what is tried, in order, until the task is done.

1. What is only kept in case it is wanted again (the cache, the pools' free blocks) is given back, and the task begins
   anew.
2. A product is computed in pieces of its result, fewer bytes at a time, and put together in host memory.
3. The task is computed by NumPy on the worker's host.

Every step is counted (`workers.counters`), and logged once a process. A product in pieces, or on the host, may differ
from the whole one in its last bits: BLAS adds up in another order for other shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from workers.backend import Backend
from workers.counters import count

logger = logging.getLogger("distributed.taskgraph")

#: Cuts of each axis of a result that are tried, one after another: 16 pieces, 64, 256. Beyond that the device has next
#: to nothing free, and its many small products and repeated uploads are no faster than the host.
CUTS = (4, 8, 16)

Attempt = Callable[[int], Any]


def compute(here: Backend, attempt: Attempt, on_host: Callable[[], Any], *, is_divisible: bool) -> Any:
    """The result of `attempt(1)`, or, where the device has no room for it, of the first step above that works.

    attempt: does the task on the device, its result in so many pieces along each axis; on_host: on the host.
    is_divisible: the task can be done in pieces.
    """
    done, result = _try(here, attempt, 1)
    if done:
        return result
    here.free()
    _tell("freed", "the cache and the pools were freed and the task began anew", result)
    done, result = _try(here, attempt, 1)
    if done:
        return result
    if is_divisible:
        _tell("pieces", "the product is computed in pieces", result)
        for cuts in CUTS:
            here.free()
            done, result = _try(here, attempt, cuts)
            if done:
                return result
    here.free()
    _tell("host", "the task is computed on the worker's host", result)
    return on_host()


def _try(here: Backend, attempt: Attempt, pieces: int) -> tuple[bool, Any]:
    """Whether there was room, and the result or what the device said.

    A function of its own: the error's traceback holds the arrays of the attempt, and goes with the `except` block.
    """
    try:
        return True, attempt(pieces)
    except Exception as error:
        if not here.is_out_of_memory(error):
            raise
        return False, str(error)


def _tell(step: str, what: str, why: str) -> None:
    if count(f"out_of_memory_{step}") == 1:
        logger.warning("Out of device memory: %s (%s). Further times are only counted.", what, why)
