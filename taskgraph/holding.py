"""What a worker holds in a simulation: of a CPU worker its process's memory, of a GPU the device's."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from taskgraph.machine import Device
from workers.backend import shares_of

#: How long a worker still holds what no task needs any more, and how much later than another a request for a block may
#: come to go in one message with it (measured: messages wait up to 2 ms in a worker, 5 in the scheduler).
RELEASE_S = 0.007
#: What goes in one message between workers, unless one block is more (Dask's own limit).
MESSAGE_BYTES = 50 * 10**6


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
        self._late: deque[tuple[float, int]] = deque()

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

    def forgotten(self, nbytes: int, now: float) -> None:
        """No task needs such a copy any more; it goes when the worker has heard of it, a little later."""
        self._late.append((now + RELEASE_S, nbytes))

    def settle(self, now: float) -> None:
        """What was forgotten long enough ago goes; to be called before anything comes to a device."""
        while self._late and self._late[0][0] <= now:
            self.uploaded(-self._late.popleft()[1])

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


class Messages:
    """Copies that a worker makes to send parts of blocks that are not in one piece in memory; they go when the message
    is sent.

    >>> cpu = Holding(Device("cpu", 1000, 1.0))
    >>> messages = Messages(cpu)
    >>> messages.begin(0.0, [(1, 100), (2, 50)])
    >>> messages.more(0.001, 1, 100)
    >>> messages.end()
    >>> cpu.held, cpu.peak
    (0, 250)
    """

    def __init__(self, holding: Holding) -> None:
        self.holding, self.held, self.begun = holding, 0, 0.0
        self.room: dict[int, int] = {}

    def begin(self, now: float, asked: Sequence[tuple[int, int]]) -> None:
        """The first of these goes now, and beside it what fits in a message with it, and messages to other workers.

        asked: number of the worker, bytes of the copy; none of what is in one piece.
        """
        self.begun, self.room = now, {}
        for to, nbytes in asked:
            self._add(to, nbytes)

    def more(self, now: float, to: int, nbytes: int) -> None:
        """Another request, of a moment later."""
        if self.held and now <= self.begun + RELEASE_S:
            self._add(to, nbytes)

    def end(self) -> None:
        """The message was sent."""
        self.holding.at_work(-self.held)
        self.held = 0

    def _add(self, to: int, nbytes: int) -> None:
        room = self.room.get(to)
        if room is None or nbytes <= room:
            self.room[to] = (MESSAGE_BYTES if room is None else room) - nbytes
            self.held += nbytes
            self.holding.at_work(nbytes)
