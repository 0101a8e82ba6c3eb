"""`TilePlacement`: the hooks of Dask's scheduler around the decisions of `scheduler_plugins.placement`.

How a task is held back: a restriction to a name that no worker has sends it to the state `no-worker` when
its inputs are there. There it joins the ready queue; a pump, run by the event loop (never inside a hook,
where Dask forbids transitions), asks `assign` and lets Dask transition what was bound, restricted to its
worker. A task that leaves `processing`, whatever the reason, is held again, so a recomputation after a
lost worker needs no code of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from dask.typing import Key
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from scheduler_plugins.facts import SchedulerFacts, held_by_slot
from scheduler_plugins.lineage import KeptValues
from scheduler_plugins.locality import relocated
from scheduler_plugins.placement import (
    KINDS,
    Binding,
    ReadyQueue,
    ReadyTask,
    assign,
    serving_kind,
    staying,
)
from scheduler_plugins.recall import Recalls, Waiting
from taskgraph.plan import TAG, TaskTag
from workers.listening import warning_of

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler, TaskState

logger = logging.getLogger(__name__)

NAME = "taskgraph-placement"

#: Restrictions that no worker satisfies. Dask shows them when `no-workers-timeout` fails a task, so they
#: say what it waited for.
HELD: dict[str, set[str]] = {kind: {f"a {kind} worker that {NAME} chooses"} for kind in KINDS}

#: What `distributed.shuffle` notes on an output task whose worker it has chosen itself.
SHUFFLE_OWNED = "shuffle_original_restrictions"

SHUFFLE_BARRIER = "shuffle-barrier-"

#: A worker that was paused and runs again, for one, tells no plugin. Chosen: short beside a tile, long
#: beside a pump.
TICK_S = 0.1

#: Products whose tiles are remembered for the report. Chosen: a training loop makes new ones for ever.
PRODUCTS_KEPT = 256


class TilePlacement(SchedulerPlugin):
    """Sends every task of ours to a worker of its kind when that worker has a place for it.

    Tasks are ours if they carry the annotation `taskgraph.plan.TAG`, or follow one that does in its
    graph; tasks that their user restricted (`workers=`, `resources=`) and actors are left alone. Register
    with `client.register_plugin(TilePlacement())`, as often as you like: a second one is ignored.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._tags: dict[Key, TaskTag] = {}
        self._ready = ReadyQueue()
        self._kinds: dict[str, str] = {}  # worker name -> kind
        self._addresses: dict[str, str] = {}  # worker name -> address
        self._waiting = Waiting()
        self._processing = 0
        self._barriers: dict[Key, str] = {}
        self._astray: set[Key] = set()
        self._tiles: OrderedDict[str, Counter[str]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._last_errors: deque[str] = deque(maxlen=10)
        self._announced: set[tuple[str, str]] = set()
        self._scheduler: Any = None
        self._loop: Any = None
        self._ticker: Any = None
        self._pump_pending = False
        self._pumping = False
        self._stimuli = itertools.count()

    # -- life

    async def start(self, scheduler: Scheduler) -> None:
        """Take over workers and tasks that were there before. Calling it again is harmless."""
        if self._scheduler is scheduler:
            return
        self._scheduler = scheduler
        self._facts = SchedulerFacts(scheduler)
        self._recalls = Recalls(scheduler, self._facts)
        self._loop = asyncio.get_running_loop()
        for address in scheduler.workers:
            self.add_worker(scheduler, address)
        self._adopt(scheduler)
        self._ticker = PeriodicCallback(self._tick, TICK_S * 1000)
        self._ticker.start()

    async def close(self) -> None:
        """Stop the periodic callback."""
        if self._ticker is not None:
            self._ticker.stop()

    def restart(self, scheduler: Scheduler) -> None:
        """Every task has been forgotten, not all of them by a transition."""
        self._tags.clear()
        self._ready.clear()
        self._waiting.clear()
        self._barriers.clear()
        self._astray.clear()
        self._processing = 0

    def _adopt(self, scheduler: Scheduler) -> None:
        for ts in list(scheduler.tasks.values()):
            if tag := (ts.annotations or {}).get(TAG):
                self._claim(ts, tag)
        self._claim_followers(scheduler, scheduler.tasks)

    # -- hooks

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Dask's hook: note the worker's kind."""
        ws = scheduler.workers[worker]
        profile = (ws.extra or {}).get(TAG) or {}
        self._kinds[str(ws.name)] = str(profile.get("kind", "cpu"))
        self._addresses[str(ws.name)] = worker
        self._workers_changed()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """Dask's hook: the worker is gone. Its tasks have passed through `transition` and are held again."""
        for name in [name for name, address in self._addresses.items() if address == worker]:
            del self._addresses[name], self._kinds[name]
        self._recalls.forget(worker)
        self._workers_changed()

    def _workers_changed(self) -> None:
        self._spread_barriers()
        self._wake()

    def _spread_barriers(self) -> None:
        """P2P reads its outputs' workers off its barrier's restrictions, so these must name real ones."""
        tasks = self._scheduler.tasks
        self._barriers = {key: kind for key, kind in self._barriers.items() if key in tasks}
        for key, kind in self._barriers.items():
            tasks[key].worker_restrictions = self._addresses_for(kind) or HELD[kind]

    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        tasks: list[Key],
        annotations: dict[str, dict[Key, Any]],
        **kwargs: Any,
    ) -> None:
        """Dask's hook, before any task of the graph runs: hold what is ours."""
        tags = annotations.get(TAG)
        if not tags and (not self._tags or self._tags.keys().isdisjoint(tasks)):
            return
        for key, tag in self._located(scheduler, tags or {}).items():
            try:
                self._claim(scheduler.tasks[key], tag)
            except Exception as error:
                self._failed("update_graph", key, error)
        try:
            self._claim_followers(scheduler, tasks)
        except Exception as error:
            self._failed("update_graph", None, error)

    def transition(self, key: Key, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Dask's hook: follow the states of our tasks."""
        tag = self._tags.get(key)
        if tag is None:
            # Somebody else's task has left a place.
            if start == "processing" and self._ready:
                self._wake()
            return
        try:
            self._follow(key, tag, start, finish, kwargs)
        except Exception as error:
            self._astray.add(key)
            self._failed("transition", key, error)
            self._wake()

    # -- which tasks are ours

    def _located(self, scheduler: Scheduler, tags: dict[Key, TaskTag]) -> dict[Key, TaskTag]:
        """The graph's tags with like slots exchanged, so that tiles run where their operands are."""
        try:
            return relocated(tags, held_by_slot(scheduler, tags))
        except Exception as error:
            self._failed("update_graph", None, error)
            return tags

    def _claim(self, ts: TaskState, tag: TaskTag) -> None:
        kind = tag["kind"]
        if kind not in KINDS:
            raise ValueError(f"{ts.key!r} is tagged with the kind {kind!r}; known: {', '.join(KINDS)}")
        if ts.worker_restrictions or ts.host_restrictions or ts.resource_restrictions or ts.actor:
            return
        if isinstance(ts.key, str) and ts.key.startswith(SHUFFLE_BARRIER):
            self._barriers[ts.key] = kind
            self._spread_barriers()
            return
        self._tags[ts.key] = tag
        state = ts.state
        if state == "processing":
            self._processing += 1
        elif state != "queued":  # a queued task must not be restricted; it is held after its first run
            ts.worker_restrictions = HELD[kind]
            # It would let Dask choose any worker while ours does not exist.
            ts.loose_restrictions = False
            if state == "no-worker":
                self._enqueue(ts, tag)
            elif state == "waiting":
                self._waiting.add(tag, 1)

    def _claim_followers(self, scheduler: Scheduler, keys: Collection[Key]) -> None:
        """Untagged tasks behind ours (the concatenation that `client.compute` adds, for one) run on CPU workers, or on
        GPU workers where there are no others: unrestricted ones may land anywhere."""
        tags = self._tags
        kind = serving_kind("cpu", self._kinds) or serving_kind("gpu", self._kinds) or "cpu"
        others = {key for key in keys if key not in tags}
        if not others:
            return
        stack = [key for key in others if any(d.key in tags for d in scheduler.tasks[key].dependencies)]
        while stack:
            ts = scheduler.tasks[stack.pop()]
            if ts.key not in tags and ts.run_spec is not None and ts.state in ("released", "waiting"):
                self._claim(ts, TaskTag(kind=kind))
                stack.extend(d.key for d in ts.dependents if d.key in others)

    # -- following a task

    def _follow(self, key: Key, tag: TaskTag, start: str, finish: str, details: dict[str, Any]) -> None:
        ts = self._scheduler.tasks[key]
        if start == "waiting":
            self._waiting.add(tag, -1)
        elif start == "no-worker" and finish != "no-worker":
            self._ready.discard(key)
        elif start == "processing":
            self._processing -= 1
            if finish == "memory":
                worker = details.get("worker") or ""
                self._facts.observe(ts.group, worker, details.get("startstops") or ())
                self._count_tile(tag, worker)
                ws = self._scheduler.workers.get(worker)
                self._wake(if_nothing_waits=ws is not None and self._recalls.ended(ws))
            else:
                self._wake()
        if finish == "processing":
            self._processing += 1
            return
        # P2P shuffles choose the workers of their outputs themselves.
        if not (ts.annotations and SHUFFLE_OWNED in ts.annotations):
            ts.worker_restrictions = HELD[tag["kind"]]
            if finish == "no-worker":
                self._enqueue(ts, tag)
        if finish == "waiting":
            self._waiting.add(tag, 1)
        elif finish == "forgotten":
            del self._tags[key]

    def _enqueue(self, ts: TaskState, tag: TaskTag) -> None:
        kind, slot = tag["kind"], tag.get("slot") or tag.get("near")
        pinned, source = tag.get("pinned", False), not ts.dependencies
        if tag.get("stays"):
            slot, pinned = staying(self._facts.held_bytes(ts.key), self._kinds), True
            kind = self._kinds.get(slot or "", kind)
        self._ready.add(ReadyTask(ts.key, ts.priority or (), kind, slot, pinned, source, tag.get("stays", False)))
        self._wake()

    def _count_tile(self, tag: TaskTag, worker: str) -> None:
        product = tag.get("product")
        if product is None or "tile" not in tag or worker not in self._scheduler.workers:
            return
        if product not in self._tiles:
            self._tiles[product] = Counter()
            if len(self._tiles) > PRODUCTS_KEPT:
                self._tiles.popitem(last=False)
        self._tiles[product][str(self._scheduler.workers[worker].name)] += 1

    # -- the pump

    def _wake(self, if_nothing_waits: bool = False) -> None:
        if not self._pump_pending and not self._pumping and (self._ready or self._astray or if_nothing_waits):
            self._pump_pending = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_pending = False
        self._pumping = True
        try:
            if self._astray:
                self._release(self._astray)
                self._astray.clear()
            self._bind()
        except Exception as error:
            self._failed("pump", None, error)
            self._give_up()
        finally:
            self._pumping = False
        if len(self._ready) <= len(self._kinds):  # with more that waits, there is something to steal instead
            self._recall()

    def _recall(self) -> None:
        try:
            self._recalls.ask(self._kinds, self._tags, self._waiting)
        except Exception as error:
            self._failed("recall", None, error)

    def _bind(self) -> None:
        scheduler = self._scheduler
        kinds = self._kinds
        running = ((ws, kinds.get(str(ws.name))) for ws in scheduler.running)
        views = (self._facts.view(ws, kind) for ws, kind in running if kind is not None)
        bindings = assign(
            self._ready,
            [view for view in views if view is not None],
            alive=kinds,
            coming=self._waiting,
            facts=self._facts,
            idle=self._processing == 0,
        )
        if not bindings:
            return
        for binding in bindings:
            ts = scheduler.tasks[binding.task.key]
            ts.worker_restrictions = {self._addresses[binding.worker]}
        # Dask takes the last recommendation first.
        self._transitions([binding.task.key for binding in reversed(bindings)])
        for binding in bindings:
            self._count(binding)
        self._recalls.bound(bindings, self._addresses)

    def _count(self, binding: Binding) -> None:
        self._counts["steals"] += binding.stolen
        if binding.fallback:
            self._counts["fallbacks"] += 1
            self._announce("fallback", "gpu", "tasks planned for one run on CPU workers")

    def _announce(self, action: str, kind: str, consequence: str) -> None:
        """Say once that a kind of worker is missing; again if one comes and goes."""
        if (action, kind) not in self._announced:
            self._announced.add((action, kind))
            message = f"no {kind} worker is alive: {consequence}"
            logger.warning(message)
            self._scheduler.log_event(NAME, {"action": action, "kind": kind, "message": message})

    def _transitions(self, keys: Iterable[Any]) -> None:
        stimulus_id = f"{NAME}-{next(self._stimuli)}"
        self._scheduler.transitions(dict.fromkeys(keys, "processing"), stimulus_id)

    # -- what no trigger tells

    def _tick(self) -> None:
        try:
            if self._scheduler.plugins.get(self.name) is not self:
                self._retire()
                return
            alive = set(self._kinds.values())
            self._announced = {(action, kind) for action, kind in self._announced if kind not in alive}
            if self._ready:
                for kind in {lane.kind for lane in self._ready.lanes()}:
                    if serving_kind(kind, self._kinds) is None:
                        self._announce("wait", kind, "its tasks wait for one")
                self._refresh_timeouts()
                self._wake()
            elif self._processing:
                self._recall()  # of a task that is overdue nothing tells, either
        except Exception as error:
            self._failed("tick", None, error)

    def _refresh_timeouts(self) -> None:
        """Keep `no-workers-timeout` from failing tasks that merely wait for a place.

        Those that no running worker may take are left to it.
        """
        scheduler = self._scheduler
        timeout = scheduler.no_workers_timeout
        if timeout is None:
            return
        now = monotonic()
        # Oldest first, so that only the front is looked at.
        stale = itertools.takewhile(lambda item: now - item[1] > timeout / 2, scheduler.unrunnable.items())
        running = {str(ws.name) for ws in scheduler.running}
        kinds = {self._kinds[name] for name in running}
        for ts in [ts for ts, _ in stale]:
            tag = self._tags.get(ts.key)
            if tag is None or ts.key not in self._ready:
                continue
            slot = tag.get("slot")
            pinned = tag.get("pinned") and self._kinds.get(slot or "") == tag["kind"]
            if slot in running if pinned else serving_kind(tag["kind"], self._kinds) in kinds:
                # At the end, since Dask relies on times that increase along this dict.
                del scheduler.unrunnable[ts]
                scheduler.unrunnable[ts] = now

    def _retire(self) -> None:
        """Dask does not tell a plugin that it was unregistered; nobody else would ever release its tasks."""
        self._ticker.stop()
        tasks = self._scheduler.tasks
        keys = [key for key in self._tags if key in tasks]
        for key in keys:
            tasks[key].worker_restrictions = None
        self._transitions([key for key in keys if tasks[key].state == "no-worker"])
        self.restart(self._scheduler)

    # -- failures

    def _failed(self, where: str, key: Key | None, error: Exception) -> None:
        """The one place for errors of this plugin: Dask only logs what a hook raises, and tasks then hang."""
        self._counts["errors"] += 1
        message = f"{where}, task {key!r}: {error!r}"
        self._last_errors.append(message)
        logger.exception("Placement failed in %s", message)
        self._scheduler.log_event(NAME, {"action": "error", "message": message})

    def _give_up(self) -> None:
        """Leave what is ready to Dask, so that it is computed all the same."""
        try:
            # Not only what is queued: a round that failed has taken tasks out of the queue.
            self._release([ts.key for ts in self._scheduler.unrunnable])
        except Exception as error:
            self._failed("release", None, error)

    def _release(self, keys: Iterable[Any]) -> None:
        released = []
        for key in keys:
            ts = self._scheduler.tasks.get(key)
            tag = self._tags.get(key)
            if ts is None or tag is None or ts.state != "no-worker":
                continue
            if addresses := self._addresses_for(tag["kind"]):
                ts.worker_restrictions = addresses
                released.append(key)
        self._transitions(released)

    def _addresses_for(self, kind: str) -> set[str]:
        serving = serving_kind(kind, self._kinds)
        return {self._addresses[name] for name, other in self._kinds.items() if other == serving}

    # -- report

    def report(self) -> dict[str, Any]:
        """What happened so far, as plain data.

        workers: kind by name. ready: tasks waiting for a place. held: tasks waiting for their inputs.
        bound: tasks of ours in flight by worker. tiles: product -> worker -> tiles computed. fallbacks:
        gpu tasks bound to CPU workers. steals: tiles bound to another worker than their slot's. recalls: tasks
        asked back from a worker that had not begun them, for one with nothing to do. errors:
        failures of this plugin; last_errors: the last ten in words.
        """
        return {
            "workers": dict(self._kinds),
            "ready": len(self._ready),
            "held": sum(self._waiting.values()),
            "bound": {
                str(ws.name): sum(ts.key in self._tags for ts in ws.processing)
                for ws in self._scheduler.workers.values()
            },
            "tiles": {product: dict(tiles) for product, tiles in self._tiles.items()},
            "fallbacks": self._counts["fallbacks"],
            "steals": self._counts["steals"],
            "recalls": self._recalls.asked,
            "errors": self._counts["errors"],
            "last_errors": list(self._last_errors),
        }


def report(dask_scheduler: Any) -> dict[str, Any]:
    """The report of a scheduler's `TilePlacement`: `client.run_on_scheduler(report)`.

    Raises KeyError if it is not registered there.
    """
    counts: dict[str, Any] = dask_scheduler.plugins[NAME].report()
    return counts


def dask_setup(scheduler: Scheduler) -> None:
    """Entry point of `dask scheduler --preload scheduler_plugins`; the scheduler starts the plugins itself."""
    if told := warning_of("scheduler", scheduler):
        logger.warning("%s", told)
    scheduler.add_plugin(TilePlacement(), idempotent=True)
    scheduler.add_plugin(KeptValues(), idempotent=True)
