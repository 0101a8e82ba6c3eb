"""Which block goes over the network next, where every worker sends one at a time and receives one at a time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

#: Requests that are looked at for one that can begin now (chosen: a few rows of a large grid; to look at all would cost
#: the square of what waits).
LOOKAHEAD = 32
#: How many of the workers that hold a block are asked for it: the first, and the last to get a copy (chosen alike).
SENDERS = 8
#: One of so many links is under way, at the most, when all that waits is looked at (chosen: with more, they will be).
IDLE = 8


@dataclass(eq=False, slots=True)
class Transfer:
    """A block on its way to a worker, or waiting for its turn. of: which block; job: the only job that a part of it is
    for, None for all of a block, which is kept for others."""

    of: int
    nbytes: int
    to: int
    job: int | None = None
    sender: int = -1


class Links:
    """Requests and the links that they wait for; nothing idles while something could go over it.

    holders: for every block, the workers that have it; the caller appends to it.

    >>> links = Links(3, [[0], [0], [1]])
    >>> first = links.ask(Transfer(0, 10, to=2))
    >>> links.ask(Transfer(1, 10, to=1)), links.ask(Transfer(2, 10, to=2))  # worker 0 sends, worker 2 receives
    ([], [])
    >>> [(t.of, t.sender, t.to) for t in links.done(first[0])]
    [(2, 1, 2), (1, 0, 1)]
    """

    def __init__(self, workers: int, holders: Sequence[list[int]]) -> None:
        self.holders = holders
        self.sends, self.receives = [False] * workers, [False] * workers
        self.incoming: list[deque[Transfer]] = [deque() for _ in range(workers)]
        self.outgoing: list[deque[Transfer]] = [deque() for _ in range(workers)]
        self.waiting: dict[int, list[Transfer]] = {}
        self.under_way = self.left = 0  # transfers; requests that wait for their turn

    def ask(self, t: Transfer) -> list[Transfer]:
        """A new request; gives it back where it begins now."""
        if self._begin(t):
            return [t]
        self.left += 1
        self.incoming[t.to].append(t)
        self.waiting.setdefault(t.of, []).append(t)
        for w in self._holders(t.of):
            self.outgoing[w].append(t)
        return []

    def done(self, t: Transfer) -> list[Transfer]:
        """A transfer has ended; gives those that begin now."""
        self.sends[t.sender] = self.receives[t.to] = False
        self.under_way -= 1
        begun = [self._next(self.incoming[t.to], lambda r: self._begin(r))]
        begun.append(self._next(self.outgoing[t.sender], lambda r: self._begin(r, t.sender)))
        found = [b for b in begun if b is not None]
        self.left -= len(found)
        if not found and self.left and IDLE * self.under_way <= len(self.sends):
            return self._all_that_can()
        return found

    def _all_that_can(self) -> list[Transfer]:
        """What begins now, whoever waits for it: a sender whose first requests went to others, or to receivers that
        were busy, is told of no later one."""
        found = [self._next(queue, self._begin) for queue in self.incoming if queue]
        begun = [b for b in found if b is not None]
        self.left -= len(begun)
        return begun

    def waiting_for(self, sender: int) -> Iterator[Transfer]:
        """The first requests that a worker could begin with, were it free."""
        return (t for t in itertools.islice(self.outgoing[sender], LOOKAHEAD) if t.sender < 0)

    def copied(self, of: int, worker: int) -> list[Transfer]:
        """A worker has got a copy of a block: it may send it on; gives what begins now."""
        others = [r for r in self.waiting.pop(of, ()) if r.sender < 0]
        if others:
            self.waiting[of] = others
            self.outgoing[worker].extend(others[:LOOKAHEAD])
        if self.sends[worker]:
            return []
        begun = self._next(self.outgoing[worker], lambda r: self._begin(r, worker))
        self.left -= begun is not None
        return [begun] if begun is not None else []

    def _begin(self, t: Transfer, sender: int | None = None) -> bool:
        if self.receives[t.to]:
            return False
        for w in self._holders(t.of) if sender is None else (sender,):
            if not self.sends[w]:
                t.sender = w
                self.sends[w] = self.receives[t.to] = True
                self.under_way += 1
                return True
        return False

    def _holders(self, of: int) -> Iterator[int]:
        known = self.holders[of]
        yield from known[:1]
        yield from known[1:][-SENDERS + 1 :][::-1]

    @staticmethod
    def _next(queue: deque[Transfer], begin: Callable[[Transfer], bool]) -> Transfer | None:
        """The first request of a queue that can begin, taken out of it with those that began elsewhere."""
        put_back: list[Transfer] = []
        found = None
        for _ in range(LOOKAHEAD):
            if not queue:
                break
            t = queue.popleft()
            if t.sender >= 0:
                continue
            if begin(t):
                found = t
                break
            put_back.append(t)
        queue.extendleft(reversed(put_back))
        return found
