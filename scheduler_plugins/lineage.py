"""`KeptValues`: values that need no history, because two workers hold them.

Dask keeps the task of everything that a kept result was ever computed from, so that the result can be made again when
its worker dies. A training loop's parameters are made of those of the step before: their history is all steps (with all
batches that were fed), and it grows for ever. So from time to time the client asks this plugin for a *cut*.

**A cut** enters the values that lie in the workers' memory under new keys, without a copy, as data without history:
what `Client.scatter` makes, by the same two calls (`Worker.update_data`, `Scheduler.update_data`). The client goes on
with the new keys and drops the old ones, and Dask forgets all that was behind them by itself. The order is such that a
worker may die at any moment: first a second worker gets a copy of the *old* values (which can still be made again),
then both enter them, then the scheduler learns the new keys. Whatever fails before that, fails the cut alone: the
client goes on with its history and asks again later.

**Durability.** Data without history are lost with the last worker that holds them. So there are two: Dask's
`ReduceReplicas` is replaced by one that leaves the second copy alone, and a policy of ours makes another when a holder
is gone. In a cluster of one worker there is one copy until another worker joins.

Why not sever the tasks' dependencies in the scheduler, under the same keys and without the client? Workers keep a
history of their own, by the same rule, and it has no message that severs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask.typing import Key
from distributed.active_memory_manager import (
    ActiveMemoryManagerExtension,
    ActiveMemoryManagerPolicy,
    ReduceReplicas,
    Suggestion,
)
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from taskgraph.plan import SPAN, TAG

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

logger = logging.getLogger(__name__)

NAME = "taskgraph-lineage"

#: How many copies there are of a value that cannot be computed again. Chosen: one worker may die.
COPIES = 2

#: Values that are gone, of which is remembered who held them, for the error message. Chosen: more than one model has.
GONE_KEPT = 4096

#: Graphs between two trims of the span. Chosen: a trim looks at a few hundred groups of tasks, in well under 1 ms.
TRIM_EVERY = 64


# -- decisions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A worker that may take a copy: its address, host and kind, and the bytes that it holds."""

    address: str
    host: str
    kind: str
    nbytes: int


def preferred(holders: Sequence[Place], places: Sequence[Place]) -> list[Place]:
    """The workers where another copy is best, all equally good.

    On another host, for a host may die; on a CPU worker, whose memory is the larger and spills to disk.

    >>> gpu, cpu, far = Place("a", "h", "gpu", 0), Place("b", "h", "cpu", 0), Place("c", "i", "cpu", 0)
    >>> [p.address for p in preferred([gpu], [gpu, cpu])], [p.address for p in preferred([gpu], [gpu, cpu, far])]
    (['b'], ['c'])
    """
    holding = {p.address for p in holders}
    hosts = {p.host for p in holders}
    ranked = [((p.host in hosts, p.kind == "gpu"), p) for p in places if p.address not in holding]
    best = min((rank for rank, _ in ranked), default=None)
    return [p for rank, p in ranked if rank == best]


def second_holders(held: Mapping[Key, tuple[int, Sequence[Place]]], places: Sequence[Place]) -> dict[Key, str]:
    """The address of the worker that shall copy each value of which there is one copy; none where there is no other.

    held: bytes and holders of each value. The copies are spread by bytes.

    >>> a, b, c = (Place(name, "h", "cpu", 0) for name in "abc")
    >>> second_holders({"x": (8, [a]), "y": (8, [a]), "z": (8, [a, b])}, [a, b, c])
    {'x': 'b', 'y': 'c'}
    """
    load = {p.address: p.nbytes for p in places}
    found: dict[Key, str] = {}
    for key, (nbytes, holders) in held.items():
        candidates = preferred(holders, places) if len(holders) < COPIES else []
        if candidates:
            chosen = min(candidates, key=lambda p: (load[p.address], p.address)).address
            load[chosen] += nbytes
            found[key] = chosen
    return found


# -- on a worker -------------------------------------------------------------------------------------------------------


def equip(dask_worker: Any) -> None:
    """Teach a worker, whoever started it, to enter values that it holds under new keys.

    A handler instead of a function that is sent every time: a worker logs each of those.
    """

    def taskgraph_enter(pairs: Sequence[tuple[Key, Key]]) -> dict[Key, int]:
        """Bytes of the values that were here, by their new keys."""
        data = {new: dask_worker.data[old] for old, new in pairs if old in dask_worker.data}
        nbytes: dict[Key, int] = dask_worker.update_data(data)["nbytes"]
        return nbytes

    dask_worker.handlers["taskgraph_enter"] = taskgraph_enter


# -- policies of Dask's memory manager ---------------------------------------------------------------------------------


class ReduceOtherReplicas(ReduceReplicas):
    """Dask's policy, which would leave one copy of everything, but for the second copy of our values.

    Of a block of ours the copy that goes is not the one on the worker that made it. Dask drops where most memory is
    taken, and of two workers that have each other's blocks one may be left with both: kept operands would come to lie
    as no plan laid them, and the next product would move twice as much to one worker (seen at 8192 x 8192).
    """

    def __init__(self, plugin: KeptValues) -> None:
        self.plugin = plugin

    def run(self) -> Any:
        """Dask's suggestions without the first one to drop a copy of each of our values."""
        spared = set()
        for suggestion in super().run():
            key = suggestion.ts.key
            ours = key in self.plugin.kept or key in self.plugin.cutting
            if ours and key not in spared:
                spared.add(key)
            else:
                yield Suggestion("drop", suggestion.ts, self._elsewhere(suggestion.ts))

    def _elsewhere(self, ts: Any) -> set[Any] | None:
        """The workers whose copy may go, None for any."""
        made_on = self.plugin.made_on.get(ts.key)
        return {ws for ws in ts.who_has if ws.address != made_on} if made_on else None


class SecondCopies(ActiveMemoryManagerPolicy):
    """Make another copy of those of our values of which there is one."""

    def __init__(self, plugin: KeptValues) -> None:
        self.plugin = plugin

    def run(self) -> Any:
        """A suggestion for each of them."""
        scheduler = self.manager.scheduler
        places = self.plugin.places()
        for key, names in list(self.plugin.kept.items()):
            ts = scheduler.tasks[key]
            if not ts.who_has or len(ts.who_has) >= COPIES:
                continue
            best = preferred([self.plugin.place(ws) for ws in ts.who_has], places)
            chosen = yield Suggestion("replicate", ts, {scheduler.workers[p.address] for p in best})
            if chosen is not None:
                names.append(str(chosen.name))


def trim(scheduler: Any) -> None:
    """Take out of our tasks' span what Dask has forgotten elsewhere: groups of tasks, and a note of every graph."""
    span = scheduler.extensions["spans"].spans.get(SPAN["ids"][-1])
    if span is not None:
        span.groups = {group for group in span.groups if scheduler.task_groups.get(group.name) is group}
        if span.metadata:
            del span.metadata["collections"][1:]


# -- the plugin --------------------------------------------------------------------------------------------------------


class KeptValues(SchedulerPlugin):
    """Cuts the history of values on a client's request, and keeps two copies of what has none.

    Register with `client.register_plugin(KeptValues())`, as often as you like: a second one is ignored.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.kept: dict[Key, list[str]] = {}  # values without history -> names of workers that were given a copy
        self.made_on: dict[Key, str] = {}  # blocks of ours that are in memory -> the worker that made them
        self.cutting: set[Key] = set()  # old keys, of which there are two copies until the new ones are known
        self._gone: OrderedDict[Key, list[str]] = OrderedDict()
        self._equipped: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._last_errors: deque[str] = deque(maxlen=10)
        self._scheduler: Any = None

    # -- life

    async def start(self, scheduler: Scheduler) -> None:
        """Offer the client's two requests, and take the memory manager's policy in hand. Twice is harmless."""
        if self._scheduler is scheduler:
            return
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        scheduler.handlers["taskgraph_cut"] = self.cut
        scheduler.handlers["taskgraph_gone"] = self.gone
        self._replace(ReduceReplicas, ReduceOtherReplicas(self))
        self._guard = ActiveMemoryManagerExtension(scheduler, {SecondCopies(self)}, register=False, start=True)

    async def close(self) -> None:
        """Give Dask its policy back."""
        self._guard.stop()
        self._replace(ReduceOtherReplicas, ReduceReplicas())

    def _replace(self, kind: type, policy: ActiveMemoryManagerPolicy) -> None:
        manager = self._scheduler.extensions.get("amm")
        for other in [p for p in manager.policies if type(p) is kind] if manager is not None else []:
            manager.policies.remove(other)
            manager.add_policy(policy)

    # -- hooks

    def update_graph(self, scheduler: Scheduler, **kwargs: Any) -> None:
        """Dask's hook: count graphs."""
        self._counts["graphs"] += 1
        if self._counts["graphs"] % TRIM_EVERY == 0:
            try:
                trim(scheduler)
            except Exception as error:
                self._failed("trim", error)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Dask's hook: there may be a place for second copies."""
        self._restore_soon()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """Dask's hook: of what the worker held may be one copy left."""
        self._equipped.discard(worker)
        self._restore_soon()

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Dask's hook: a block is made; a value is gone, released by its client or lost."""
        if finish == "memory":
            if start == "processing" and TAG in (self._scheduler.tasks[key].annotations or ()):
                self.made_on[key] = kwargs["worker"]
        elif start == "memory":
            self.made_on.pop(key, None)
        if finish == "forgotten" and key in self.kept:
            self._gone[key] = self.kept.pop(key)
            if len(self._gone) > GONE_KEPT:
                self._gone.popitem(last=False)

    def restart(self, scheduler: Scheduler) -> None:
        """Every task has been forgotten, not all of them by a transition."""
        self._gone.update(self.kept)
        self.kept.clear()
        self.made_on.clear()

    def _restore_soon(self) -> None:
        if self.kept:
            self._loop.call_soon(self._restore)  # Dask forbids transitions inside a hook

    def _restore(self) -> None:
        try:
            self._guard.run_once()
        except Exception as error:
            self._failed("restore", error)

    def place(self, ws: Any) -> Place:
        """A worker as the decisions see it."""
        kind = ((ws.extra or {}).get(TAG) or {}).get("kind", "cpu")
        return Place(ws.address, ws.host, kind, ws.nbytes)

    def places(self) -> list[Place]:
        """The workers that may take copies."""
        return [self.place(ws) for ws in self._scheduler.running]

    # -- the client's requests

    async def cut(self, pairs: Sequence[tuple[Key, Key]], wanted_by: str) -> str:
        """Enter the value of each old key under its new one, wanted by that client, which has let go of neither.

        Gives "", or why nothing was done.
        """
        if self._scheduler.plugins.get(NAME) is not self:  # Dask does not tell a plugin that it was unregistered
            return "the plugin was unregistered"
        old_keys = {old for old, _ in pairs}
        self.cutting |= old_keys
        try:
            why = await self._cut(pairs, wanted_by)
        except Exception as error:
            self._failed("cut", error)
            why = repr(error)
        finally:
            self.cutting -= old_keys
        self._counts["declined" if why else "cuts"] += 1
        return why

    async def gone(self, keys: Sequence[Key]) -> list[tuple[Key, list[str]]]:
        """Those of the keys that exist no more, and the dead workers that had a copy, as far as they are known."""
        alive = {str(ws.name) for ws in self._scheduler.workers.values()}  # one of them may have been asked for a copy
        names = {key: [n for n in self._gone.get(key, ()) if n not in alive] for key in keys}
        return [(key, names[key]) for key in keys if key not in self._scheduler.tasks]

    async def _cut(self, pairs: Sequence[tuple[Key, Key]], wanted_by: str) -> str:
        old_keys = [old for old, _ in pairs]
        if not self._in_memory(old_keys):
            return "not all values are in memory"
        await self._copy(old_keys)
        if not self._in_memory(old_keys):
            return "a worker has died meanwhile"
        on_worker: dict[str, list[tuple[Key, Key]]] = {}
        for pair in pairs:
            for ws in self._scheduler.tasks[pair[0]].who_has:
                on_worker.setdefault(ws.address, []).append(pair)
        entered = await asyncio.gather(*(self._enter(address, part) for address, part in on_worker.items()))
        why = self._learn([new for _, new in pairs], dict(zip(on_worker, entered, strict=True)), wanted_by)
        if why:
            for address, nbytes in zip(on_worker, entered, strict=True):
                self._take_back(address, list(nbytes))
        return why

    def _in_memory(self, keys: Sequence[Key]) -> bool:
        tasks = self._scheduler.tasks
        return all(key in tasks and tasks[key].state == "memory" for key in keys)

    async def _copy(self, keys: Sequence[Key]) -> None:
        """A second copy of each value, if there is a worker to take it."""
        tasks = self._scheduler.tasks
        held = {key: (tasks[key].get_nbytes(), [self.place(ws) for ws in tasks[key].who_has]) for key in keys}
        copies: dict[str, dict[Key, list[str]]] = {}
        for key, address in second_holders(held, self.places()).items():
            copies.setdefault(address, {})[key] = [p.address for p in held[key][1]]
        await asyncio.gather(*(self._scheduler.gather_on_worker(a, who_has) for a, who_has in copies.items()))

    async def _enter(self, address: str, pairs: Sequence[tuple[Key, Key]]) -> Mapping[Key, int]:
        """Bytes of what this worker has entered, by new key; nothing where it is gone."""
        worker = self._scheduler.rpc(address)
        try:
            if address not in self._equipped:
                reply = await worker.run(function=dumps(equip))
                if reply["status"] != "OK":
                    raise RuntimeError(f"worker {address} could not be equipped: {reply.get('text')}")
                self._equipped.add(address)
            nbytes: Mapping[Key, int] = await worker.taskgraph_enter(pairs=pairs)
        except OSError as error:
            logger.info("Worker %s was lost in a cut: %r", address, error)
            return {}
        return nbytes

    def _learn(self, keys: Sequence[Key], entered: Mapping[str, Mapping[Key, int]], wanted_by: str) -> str:
        """Tell the scheduler of the new keys, if there are copies enough; "", or why not."""
        scheduler = self._scheduler
        alive = {address: nbytes for address, nbytes in entered.items() if address in scheduler.workers}
        who_has = {key: [address for address, nbytes in alive.items() if key in nbytes] for key in keys}
        fewest = min((len(addresses) for addresses in who_has.values()), default=0)
        if fewest < min(COPIES, len(scheduler.running)) or not fewest:
            return "a worker that was to hold a copy is gone"
        if wanted_by not in scheduler.clients:
            return "the client is gone"
        nbytes = {key: n for of_worker in alive.values() for key, n in of_worker.items()}
        scheduler.update_data(who_has=who_has, nbytes=nbytes, client=wanted_by)
        for key, addresses in who_has.items():
            scheduler.tasks[key].annotations = {"span": SPAN}  # Dask would make a span for it
            self.kept[key] = [str(scheduler.workers[a].name) for a in addresses]
        return ""

    def _take_back(self, address: str, keys: list[Key]) -> None:
        if keys and address in self._scheduler.workers:
            message = {"op": "free-keys", "keys": keys, "stimulus_id": f"{NAME}-declined"}
            self._scheduler.worker_send(address, message)

    # -- report

    def _failed(self, where: str, error: Exception) -> None:
        """The one place for errors of this plugin: counted, and logged."""
        self._counts["errors"] += 1
        self._last_errors.append(f"{where}: {error!r}")
        logger.exception("Keeping values failed in %s", where)
        self._scheduler.log_event(NAME, {"action": "error", "message": f"{where}: {error!r}"})

    def report(self) -> dict[str, Any]:
        """What happened so far, as plain data.

        kept: names of workers by value without history. cuts, declined: requests. errors: failures of this plugin;
        last_errors: the last ten in words.
        """
        counts = {what: self._counts[what] for what in ("cuts", "declined", "errors")}
        return {"kept": {key: list(names) for key, names in self.kept.items()}, **counts} | {
            "last_errors": list(self._last_errors)
        }


def report(dask_scheduler: Any) -> dict[str, Any]:
    """The report of a scheduler's `KeptValues`: `client.run_on_scheduler(report)`.

    Raises KeyError if it is not registered there.
    """
    counts: dict[str, Any] = dask_scheduler.plugins[NAME].report()
    return counts
