"""What a plan will do on its machine: an event simulation, pure; nothing runs.

Design note. The simulated scheduler asks the placement plugin's own `assign` which worker gets which job, so late
binding, slots, stealing, places in flight and the memory rule are the plugin's by construction, not a copy that drifts.
Around it is a model of the machine:

- A worker computes as many jobs at once as it has threads. A job takes the machine's seconds a task, its operations at
  the device's rate, and for other work an element a nanosecond on a CPU thread.
- A job that is bound to a worker fetches what it lacks at once, while earlier ones compute. A worker sends one block at
  a time and receives one at a time, at the machine's link speed. A block is fetched by a worker once and kept until its
  last use; what a rechunk takes of a block is fetched for it alone.
- A GPU has a link to its host on which one block moves at a time: operands that come from elsewhere go up before the
  job starts (while others compute), results go down before another worker gets them.
- A result is freed, copies too, when its last user is done; data that lay there from the start and the results stay.
  The memory of a worker is counted with what is on its way to it, and with the scratch space of what it computes; most
  of a block on the same worker is a view, and takes none. Of a GPU the device's memory is counted (holding.py).

Jobs run in the order of a depth-first walk from the results, as Dask's own order nearly is.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskgraph.dealing import depth_first, relocated
from taskgraph.expr import DType
from taskgraph.holding import Holding, Messages
from taskgraph.jobs import Job, Jobs, jobs_of
from taskgraph.links import Links, Transfer
from taskgraph.lying import Lying
from taskgraph.machine import KINDS, Device, Machine
from taskgraph.passes import ELEMENTWISE_PER_S
from taskgraph.plan import Plan
from taskgraph.prediction import Prediction, Row
from taskgraph.upward import resolve

#: Elements per second of elementwise work on a GPU (chosen: three passes of 4 bytes over memory of 1 TB/s).
GPU_ELEMENTWISE_PER_S = 8e10


def simulate(plan: Plan, where: Lying | None = None) -> Prediction:
    """Predict what a run of the plan does: when each job runs where, what moves, how much memory it takes.

    where: the workers on which kept blocks lie, as far as they are known.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0), tg.Device("cpu", 2**34, 50.0)])
    >>> a, b = (tg.placeholder("float32", (4096, 4096)) for _ in range(2))
    >>> p = simulate(tg.plan(a @ b, m))
    >>> p.makespan >= p.bound >= p.area_bound == 2 * 4096**3 / 100e9
    True
    """
    jobs = jobs_of(plan, where)
    run = _Run(jobs)
    run.go()
    machine = plan.machine
    return Prediction(
        plan=plan,
        makespan=run.now,
        bytes_moved=run.bytes_moved,
        bytes_bound=plan.bytes_bound,
        peak_bytes={w.device.name: w.memory.peak for w in run.workers},
        timeline=tuple(run.timeline),
        area_bound=plan.area_bound,
        critical_path=critical_path(jobs, _fastest(machine)),
        link_bound=max(w.link_seconds for w in run.workers),
        jobs={w.device.name: w.done for w in run.workers},
        busy_seconds={w.device.name: w.busy_s for w in run.workers},
    )


def tried(plan: Plan) -> tuple[float, float]:
    """Predicted seconds of a plan, where no CPU worker computes while it receives, and the bytes that it moves.

    Other than in `simulate`, which hides there what can be hidden: plans are compared by this, so that one that moves
    more bytes is not preferred for what a machine without cores to spare does not give.
    """
    run = _Run(jobs_of(plan))
    run.go()
    of_cpus = [w.busy_s / w.device.threads + w.received_s for w in run.workers if w.device.kind == "cpu"]
    return max(run.now, *of_cpus, 0.0), float(run.bytes_moved)


def critical_path(jobs: Jobs, seconds: Callable[[Job], float]) -> float:
    """Seconds of the longest chain of jobs that need each other, with nothing to wait for or to move between them.

    seconds: of a job on the fastest device that may run it. A bound for this plan's cut, not for every cut.
    """
    ends: list[float] = []
    for job in jobs.items:
        own = 0.0 if job.home is not None else seconds(job)
        ends.append(own + max((ends[n] for n, _ in job.needs), default=0.0))
    return max(ends, default=0.0)


def _fastest(machine: Machine) -> Callable[[Job], float]:
    """Seconds of a job on the device of its class that takes least."""

    @functools.cache
    def devices(kind: str, dtype: DType) -> list[Device]:
        known = machine.of_kind(kind) or machine.devices
        groups = [[d for d in known if d.emulated == emulated] for emulated in (True, False)]
        return [max(g, key=lambda d: d.rate(dtype)) for g in groups if g]

    return lambda job: min([seconds_of(job, d, machine) for d in devices(job.kind, job.dtype)])


def seconds_of(job: Job, device: Device, machine: Machine) -> float:
    """Seconds for which a job keeps one of the device's threads."""
    per_s = GPU_ELEMENTWISE_PER_S if device.kind == "gpu" and not device.emulated else ELEMENTWISE_PER_S
    flops = job.flops / device.rate(job.dtype) if job.flops else 0.0
    return machine.task_seconds + flops + job.work / per_s


# -- the run -----------------------------------------------------------------------------------------------------------


class _Worker:
    """A worker as the run goes on."""

    def __init__(self, number: int, device: Device) -> None:
        self.number, self.device = number, device
        self.free_threads = list(range(device.threads))  # a heap
        self.bound: dict[int, float] = {}  # jobs bound and not done -> their seconds
        self.ready: list[tuple[tuple[int, int], int]] = []  # (priority, job): everything is here, waits for a thread
        self.waited_for: dict[int, list[int]] = {}  # blocks on their way -> jobs that wait for them
        self.has: set[int] = set()  # blocks that are where its jobs can take them
        self.uploaded: set[int] = set()  # of these, what a GPU keeps a copy of
        self.done, self.busy_s = 0, 0.0
        self.memory = Holding(device)
        self.messages = Messages(self.memory)
        self.slowest = 0.0  # the longest of the jobs bound
        self.host_link_from = 0.0  # free from then on
        self.sent_s = self.received_s = self.host_s = 0.0

    @property
    def link_seconds(self) -> float:
        return max(self.sent_s, self.received_s, self.host_s)


class _Run:
    """The state of a simulated run. It is its own `placement.Facts`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.machine = relocated(jobs.items), jobs.plan.machine
        self.workers = [_Worker(n, d) for n, d in enumerate(self.machine.devices)]
        self.changed = dict.fromkeys(self.workers)  # of which the placement would see something else now
        self.open: dict[int, Any] = {}  # what the placement sees of the workers that have a place
        self.by_name = {w.device.name: w for w in self.workers}
        devices = self.machine.devices
        self.usual = {k: next((d for d in devices if d.kind == k), devices[0]) for k in KINDS}
        self.kinds = {name: w.device.kind for name, w in self.by_name.items()}
        self.priority = depth_first(jobs)
        self.users: list[list[int]] = [[] for _ in self.jobs]
        for number, job in enumerate(self.jobs):
            for need, _ in job.needs if self.priority[number] >= 0 else ():  # else nobody needs it, and it never runs
                self.users[need].append(number)
        self.uses_left = [len(u) for u in self.users]
        self.missing = [len(job.needs) for job in self.jobs]  # needs that do not exist yet
        self.kept = set(jobs.results)
        self.made_by: dict[int, _Worker] = {}  # where a result was computed, or lay from the start
        self.holders: list[list[int]] = [[] for _ in self.jobs]  # workers that can send it
        self.links = Links(len(self.workers), self.holders)
        self.works: dict[int, int] = {}  # bytes that running jobs have for themselves
        self.views: set[int] = set()  # results that are parts of others on the same worker
        self.on_host: set[int] = set()  # results of GPUs that came down to their hosts
        self.to_come: dict[int, int] = {}  # bound jobs -> blocks that have not arrived
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.timeline: list[Row] = []
        self.now, self.bytes_moved, self.in_flight, self._events = 0.0, 0, 0, 0
        self.assign, self.task, self.view = resolve("assign"), resolve("ReadyTask"), resolve("WorkerView")
        self.places, self.has_room, self.queue = resolve("places"), resolve("has_room"), resolve("ReadyQueue")()
        self.staying = resolve("staying")
        self.coming: dict[str, int] = {}
        self.bandwidth = self.machine.link_bytes_per_s

    # what the placement asks

    def duration_s(self, key: Any) -> float:
        job = self.jobs[key]
        named = self.by_name.get(job.slot or "")
        device = named.device if named else self.usual[job.kind]
        return seconds_of(job, device, self.machine)

    def held_bytes(self, key: Any) -> Mapping[str, int]:
        held: dict[str, int] = {}
        for need, nbytes in self.jobs[key].needs:
            for w in self.holders[need]:
                name = self.workers[w].device.name
                held[name] = held.get(name, 0) + nbytes
        return held

    # the loop

    def go(self) -> None:
        """Run all jobs."""
        for number, job in enumerate(self.jobs):
            if job.needs and job.slot and self.priority[number] >= 0:
                self.coming[job.slot] = self.coming.get(job.slot, 0) + 1
        for number, job in enumerate(self.jobs):
            if job.home is not None:
                home = self.by_name[job.home]
                home.memory.on_host(job.nbytes)
                if home.device.kind == "cpu":
                    home.has.add(number)
                self._made(number, home)
            elif not job.needs and self.priority[number] >= 0:
                self._enqueue(number)
        self._place()
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, _, happens, what = heapq.heappop(self.events)
                happens(*what)
            self._place()
        left = len(self.queue) + self.in_flight
        assert not left, f"{left} jobs are left that no worker may run; please report this"

    def _at(self, time: float, happens: Callable[..., None], *what: Any) -> None:
        self._events += 1
        heapq.heappush(self.events, (time, self._events, happens, what))

    def _made(self, number: int, w: _Worker) -> None:
        self.made_by[number] = w
        self.holders[number].append(w.number)
        for user in self.users[number]:
            self.missing[user] -= 1
            if not self.missing[user]:
                if (slot := self.jobs[user].slot) is not None:
                    self.coming[slot] -= 1
                self._enqueue(user)

    def _enqueue(self, number: int) -> None:
        job = self.jobs[number]
        kind, slot = job.kind, job.slot
        if job.stays:
            slot = self.staying(self.held_bytes(number), self.kinds)
            kind = self.kinds[slot]
        pinned, source = job.pinned or job.stays, not job.needs
        self.queue.add(self.task(number, self.urgency(number), kind, slot, pinned, source, job.stays))

    def urgency(self, number: int) -> tuple[int, int]:
        """As the priorities of the tasks: parts of blocks first, which cost nothing."""
        return (not self.jobs[number].stays, self.priority[number])

    def _place(self) -> None:
        """A round of the plugin: bind what finds a place."""
        if not len(self.queue):
            return
        for w in self.changed:
            self._look(w)
        self.changed.clear()
        wanted = {lane.kind for lane in self.queue.lanes()}
        views = [view for view in self.open.values() if view.kind in wanted]
        if not views:
            return
        idle = not self.in_flight
        bindings = self.assign(self.queue, views, alive=self.kinds, coming=self.coming, facts=self, idle=idle)
        for binding in bindings:
            self._bind(binding.task.key, self.by_name[binding.worker])

    def _look(self, w: _Worker) -> None:
        d = w.device
        parts = sum(self.jobs[number].stays for number in w.bound)
        in_flight = len(w.bound) - parts
        if in_flight >= self.places(d.threads, w.slowest):
            self.open.pop(w.number, None)
            return
        room = self.has_room(w.memory.held, d.memory_bytes)
        self.open[w.number] = self.view(d.name, d.kind, d.threads, in_flight, w.slowest, room, parts)

    # a job's way

    def _bind(self, number: int, w: _Worker) -> None:
        job = self.jobs[number]
        w.bound[number] = seconds = seconds_of(job, w.device, self.machine)
        w.slowest = max(w.slowest, seconds)
        self.changed[w] = None
        self.in_flight += 1
        absent = [need for need in job.needs if need[0] not in w.has] if self.machine.is_cluster else []
        self.to_come[number] = len(absent)
        for need, nbytes in absent:
            self._fetch(need, nbytes, number, w)
        if not absent:
            self._ready(number, w)

    def _arrived(self, waiting: Sequence[int], w: _Worker) -> None:
        for number in waiting:
            self.to_come[number] -= 1
            if not self.to_come[number]:
                self._ready(number, w)

    def _ready(self, number: int, w: _Worker) -> None:
        heapq.heappush(w.ready, (self.urgency(number), number))
        self._start(w)

    def _start(self, w: _Worker) -> None:
        while w.ready and w.free_threads:
            _, number = heapq.heappop(w.ready)
            thread, job = heapq.heappop(w.free_threads), self.jobs[number]
            self.works[number] = 0 if self._is_view(number, w) else job.nbytes + job.scratch + self._upload(job, w)
            w.memory.at_work(self.works[number])
            self.changed[w] = None
            end = self.now + w.bound[number]
            self.timeline.append(Row(w.device.name, thread, job.label, "compute", self.now, end))
            self._at(end, self._done, number, w, thread)
            w.done, w.busy_s = w.done + 1, w.busy_s + w.bound[number]

    def _done(self, number: int, w: _Worker, thread: int) -> None:
        job = self.jobs[number]
        heapq.heappush(w.free_threads, thread)
        w.memory.at_work(-self.works.pop(number))
        if not self._is_view(number, w):
            w.memory.at_rest(job.nbytes)
        self.changed[w] = None
        w.has.add(number)
        if w.bound.pop(number) >= w.slowest:
            w.slowest = max(w.bound.values(), default=0.0)
        self.in_flight -= 1
        for need, nbytes in job.needs:
            if nbytes != self.jobs[need].nbytes and self.machine.is_cluster and need not in w.has:
                self._came(need, w, -nbytes)  # a part, which was fetched for this job alone
            if not self._is_view(number, w):
                self._used(need)
        self._made(number, w)
        if not self.uses_left[number] and number not in self.kept:
            self._release(number)
        self._start(w)

    def _used(self, need: int) -> None:
        self.uses_left[need] -= 1
        if not self.uses_left[need]:
            self._release(need)

    def _release(self, number: int) -> None:
        job = self.jobs[number]
        stays = job.home is not None or number in self.kept
        for at, holder in enumerate(self.holders[number]):
            if at or not stays:
                w = self.workers[holder]
                if at:
                    self._came(number, w, -job.nbytes)
                elif number in self.views:
                    self._used(job.needs[0][0])
                else:
                    w.memory.at_rest(-job.nbytes)
                if number in w.uploaded:
                    w.uploaded.remove(number)
                    w.memory.forgotten(job.nbytes, self.now)
                self.changed[w] = None
                w.has.discard(number)
        self.holders[number][int(stays) :] = []

    def _is_view(self, number: int, w: _Worker) -> bool:
        """Whether a result takes no memory of its own: a part of what is there, or what was fetched for it alone."""
        job = self.jobs[number]
        if job.is_view and job.needs[0][0] in w.has and number not in self.views:
            self.views.add(number)
        return number in self.views

    def _upload(self, job: Job, w: _Worker) -> int:
        """Operands go up to a device; gives the bytes of those that it does not keep, of as many as are there at once
        while the job runs."""
        if w.device.kind == "cpu":
            return 0
        w.memory.settle(self.now)
        passing = 0
        for need, nbytes in job.needs:
            if self._is_on_device(need) or need in w.uploaded:
                continue
            whole = nbytes == self.jobs[need].nbytes
            if whole and w.memory.is_kept(nbytes) and not self._is_brief(need, job):
                w.uploaded.add(need)
                w.memory.uploaded(nbytes)
            else:
                passing += nbytes
        return passing * min(2, job.pairs) // job.pairs if job.pairs else passing

    def _is_brief(self, need: int, job: Job) -> bool:
        """Whether a part of a block is for one task of a worker alone: then no copy of it stays on the device."""
        return self.jobs[need].stays and sum(self.jobs[u].slot == job.slot for u in self.users[need]) == 1

    def _is_on_device(self, need: int) -> bool:
        """Whether a result lies on GPUs: on the one that made it, and on those that got it."""
        return self.made_by[need].device.kind == "gpu" and self.jobs[need].home is None

    def _came(self, need: int, w: _Worker, nbytes: int) -> None:
        """A copy of a result on another worker than where it was made; less than 0 when it goes."""
        if w.device.kind == "gpu" and self._is_on_device(need):
            w.memory.at_rest(nbytes)
        else:
            w.memory.copied(nbytes)

    # moving

    def _fetch(self, need: int, nbytes: int, number: int, w: _Worker) -> None:
        part = nbytes != self.jobs[need].nbytes
        if not part and need in w.waited_for:
            w.waited_for[need].append(number)
            return
        if not part:
            w.waited_for[need] = [number]
        t = Transfer(need, nbytes, w.number, number if part else None)
        if self.made_by[need] is w:  # on the host of a GPU
            self._received(t)
        else:
            begun = self.links.ask(t)
            if not begun and (copied := self._copied_for(t)):
                self.made_by[need].messages.more(self.now, w.number, copied)
            self._send(begun)

    def _send(self, begun: Sequence[Transfer]) -> None:
        for t in begun:
            sender, to = self.workers[t.sender], self.workers[t.to]
            start = self._download(t.of, sender)
            seconds = t.nbytes / self.machine.link_bytes_per_s
            sender.sent_s += seconds
            to.received_s += seconds
            self._came(t.of, to, t.nbytes)
            if copied := self._copied_for(t):
                waiting = [(other.to, self._copied_for(other)) for other in self.links.waiting_for(t.sender)]
                sender.messages.begin(self.now, [(t.to, copied), *waiting])
            self.changed[to] = self.changed[sender] = None
            self.bytes_moved += t.nbytes
            self._moved(to, t.of, f"from {sender.device.name}", start, start + seconds)
            self._at(start + seconds, self._sent, t)

    def _sent(self, t: Transfer) -> None:
        sender = self.workers[t.sender]
        sender.messages.end()
        self.changed[sender] = None
        self._send(self.links.done(t))
        if t.job is None:
            self.holders[t.of].append(t.to)
        self._received(t)
        if t.job is None:
            self._send(self.links.copied(t.of, t.to))

    def _copied_for(self, t: Transfer) -> int:
        """Bytes of the copy that a message takes of a block: none of one that is in one piece."""
        maker = self.made_by[t.of]
        is_view = t.of in self.views and self.jobs[t.of].is_strided and maker.device.kind == "cpu"
        return t.nbytes if is_view and t.sender in (-1, maker.number) else 0

    def _received(self, t: Transfer) -> None:
        """A block is in a worker's host memory; on a GPU worker it goes up."""
        w = self.workers[t.to]
        w.memory.unpacked(t.nbytes)
        if w.device.kind == "gpu":
            at = self._host_link(w, t.nbytes, t.of, "to device")
            self._at(at, self._here, t, w)
        else:
            self._here(t, w)

    def _here(self, t: Transfer, w: _Worker) -> None:
        if t.job is None:
            w.has.add(t.of)
        self._arrived(w.waited_for.pop(t.of) if t.job is None else [t.job], w)

    def _download(self, need: int, w: _Worker) -> float:
        """When a result that was computed on a GPU is in its host's memory; copies came through the host."""
        made = w.device.kind == "gpu" and self.made_by[need] is w and self.jobs[need].home is None
        if not made or need in self.on_host:
            return self.now
        self.on_host.add(need)
        return self._host_link(w, self.jobs[need].nbytes, need, "from device")

    def _host_link(self, w: _Worker, nbytes: int, need: int, way: str) -> float:
        start, seconds = max(self.now, w.host_link_from), nbytes / w.device.link
        w.host_link_from = start + seconds
        w.host_s += seconds
        self._moved(w, need, way, start, start + seconds)
        return start + seconds

    def _moved(self, w: _Worker, need: int, way: str, start: float, stop: float) -> None:
        label = f"{self.jobs[need].label} {way}"
        self.timeline.append(Row(w.device.name, w.device.threads, label, "transfer", start, stop))
