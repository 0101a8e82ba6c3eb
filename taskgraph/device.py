"""Device pins: the strings that name a device, and the block in which they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from taskgraph.expr import pinned

_PIN = re.compile(r"^(?:/device:|/)?(cpu|gpu|cuda)(?::(\d+))?$", re.IGNORECASE)
KNOWN = '"cpu", "gpu", "gpu:1", "cpu+gpu", "cuda", "cuda:1", "/cpu:0", "/gpu:0", "/device:CPU:0", "/device:GPU:0"'


def parse_device(name: str | None) -> str | None:
    """The canonical pin: "cpu" (the CPU workers), "gpu" (any GPU), "gpu:N" (the N-th), "cpu+gpu" (products on both).

    Raises ValueError, listing the known strings, for any other.

    >>> parse_device("/device:GPU:0"), parse_device("cuda"), parse_device("/cpu:0")
    ('gpu:0', 'gpu', 'cpu')
    """
    if name is None or name == "cpu+gpu":
        return name
    found = _PIN.match(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"unknown device {name!r}; known are {KNOWN}")
    kind, index = found[1].lower(), found[2]
    if kind == "cpu":
        return "cpu"
    return "gpu" if index is None else f"gpu:{int(index)}"


@contextmanager
def device(name: str | None) -> Iterator[None]:
    """Pin the operations of the block to a device; their gradients are pinned with them.

    name: "cpu" for the CPU workers, "gpu" for the GPU-pinned workers, "gpu:1" for one of them, "cpu+gpu" to divide the
    tiles of products among both, None to leave the choice to the plan (within a block that pins). TensorFlow's
    "/device:GPU:0" and PyTorch's "cuda" are understood. Raises ValueError for any other string.

    On a GPU-pinned worker products and elementwise work run on the device itself, everything else in that worker's
    host memory.

    >>> import taskgraph as tg
    >>> with tg.device("/device:GPU:0"):
    ...     c = tg.mm(tg.randn(4, 4), tg.randn(4, 4))
    >>> c.device
    'gpu:0'
    """
    with pinned(parse_device(name)):
        yield
