"""What a worker holds in a simulation: of a CPU worker its process's memory, of a GPU the device's."""

from __future__ import annotations

from taskgraph.machine import Device
from workers.backend import shares_of


class Holding:
    """Bytes as they come and go; `peak` is the most there ever were.

    held: everything, as the scheduler counts it. On a GPU, results stay while they are within their share of it, and
    copies of operands within theirs; what exceeds these lies in its host's memory, and `peak` counts the device alone.

    >>> gpu = Holding(Device("gpu", 1000, 1.0))
    >>> gpu.at_rest(700), gpu.at_work(100)
    (None, None)
    >>> gpu.held, gpu.peak
    (800, 600)
    """

    def __init__(self, device: Device) -> None:
        self.device, self.shares, self.held, self.peak = device, shares_of(device.memory_bytes), 0, 0
        self._rest = self._copies = self._work = 0

    def on_host(self, nbytes: int) -> None:
        """Data that lie in the process, and were never on its device."""
        self._add(nbytes)

    def at_rest(self, nbytes: int) -> None:
        """Results that others wait for, or the user, on a GPU also those that came from another one; here and below
        less than 0 when they go."""
        self._rest += nbytes
        self._add(nbytes)

    def copied(self, nbytes: int) -> None:
        """What came from elsewhere; to a GPU's host, from where its tasks take it."""
        self._add(nbytes)

    def uploaded(self, nbytes: int) -> None:
        """A copy of what lies in the host's memory, which stays on the device for later tasks."""
        self._copies += nbytes
        self._add(0)

    def at_work(self, nbytes: int) -> None:
        """What a task has for itself while it runs."""
        self._work += nbytes
        self._add(nbytes)

    def unpacked(self, nbytes: int) -> None:
        """A message of so many bytes was just unpacked: its buffer goes when the arrays in it have been copied."""
        if self.device.kind == "cpu":
            self.peak = max(self.peak, self.held + nbytes)

    def is_kept(self, nbytes: int) -> bool:
        """Whether a GPU keeps a copy of an operand of that size for later tasks; a smaller or larger one is there only
        while it is used."""
        return self.shares.smallest_copy <= abs(nbytes) <= self.shares.largest_copy

    def _add(self, nbytes: int) -> None:
        self.held += nbytes
        now, memory = self.held, self.device.memory_bytes
        if self.device.kind == "gpu":
            kept = min(self._rest, self.shares.results) + min(self._copies, self.shares.copies)
            now = min(kept + self._work, memory)  # a task that needs more is done in pieces
        self.peak = max(self.peak, now)
