"""Workers killed at random moments: right results, the same bits, no hang, and no more time than what was lost.

Each run does one piece of work (a product, a reduction, or some training steps, in turn) while one worker, of each kind
in turn, is killed by SIGKILL at a random moment of it. The same without a kill runs just before. What was lost is what
the dead worker was computing and what had to be computed again, in seconds of one worker after another; what is over,
the time beyond that of the run without a kill: the median, what nine of ten stay below, and the most. Where nobody is
killed, the second of two runs stands for the one with a kill: so much do times differ by themselves.
"""

from __future__ import annotations

import contextvars
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

import taskgraph as tg
from benchmarks import harness
from taskgraph import execute

Work = Callable[[], list[Any]]

#: A run that takes so long is called a hang. (Far more than any takes; a peer that is gone is given up after 5 s.)
HANG_S = 60


def works(scale: int) -> dict[str, Work]:
    """The work by name; `scale` 8 takes about a second each on 2 cores."""
    n = 160 * scale
    rng = tg.random.default_rng(3)
    a, b = (rng.standard_normal((n, n), "float32", chunks=n // 4) for _ in range(2))
    x = rng.standard_normal((4 * n, n), "float64", chunks=(n // 2, n))
    data, target = rng.standard_normal((2 * n, 64), chunks=n // 4), rng.standard_normal((2 * n, 1), chunks=n // 4)

    def product() -> list[Any]:
        return list(tg.compute(tg.tanh(a @ b) @ a))

    def reduction() -> list[Any]:
        y = tg.exp(-(x**2)) * tg.sin(x)
        return list(tg.compute(tg.mean(y, axis=0), tg.std(y), tg.max(y)))

    def training() -> list[Any]:
        start = np.random.default_rng(4)
        w1 = tg.Variable(start.normal(size=(64, 256)) / 8, name="w1")
        w2 = tg.Variable(start.normal(size=(256, 1)) / 16, name="w2")
        loss = tg.mean((tg.tanh(data @ w1) @ w2 - target) ** 2)
        g1, g2 = tg.gradients(loss, [w1, w2])
        updates = [w1.assign(w1 - 0.1 * g1), w2.assign(w2 - 0.1 * g2)]
        session = tg.Session()
        for _ in range(4):
            session.run(updates)
        return list(session.run([w1, w2]))

    return {"product": product, "reduction": reduction, "training": training}


class Watch(SchedulerPlugin):
    """What each worker computed, and when: on the scheduler of this process."""

    name = "watch"

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self.runs: dict[Any, list[float]] = {}  # key -> seconds of each time that it was computed
        self.given: dict[str, dict[Any, float]] = {}  # worker -> key -> when it was given to it
        self.free: dict[str, float] = {}  # worker -> when it was last done with something

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Dask's hook."""
        now = time.time()
        if finish == "processing":
            ts = self.scheduler.tasks[key]
            self.given.setdefault(ts.processing_on.address, {})[key] = now
        elif start == "processing" and finish == "memory":
            seconds = [s["stop"] - s["start"] for s in kwargs.get("startstops") or () if s["action"] == "compute"]
            self.runs.setdefault(key, []).append(sum(seconds))
            self.given.get(kwargs["worker"], {}).pop(key, None)
            self.free[kwargs["worker"]] = now

    def under_way(self, address: str) -> float:
        """Seconds that a worker has been at what it has not ended."""
        given = self.given.get(address)
        return max(0.0, time.time() - max(min(given.values()), self.free.get(address, 0.0))) if given else 0.0

    def again(self) -> float:
        """Seconds of what was computed more than once."""
        return sum(sum(seconds[1:]) for seconds in self.runs.values())


@dataclass
class Trial:
    """One run with a kill."""

    seed: int
    work: str
    kind: str
    at: float  # share of the time that a run without a kill takes
    seconds: float = 0.0
    usual: float = 0.0
    lost: float = 0.0
    right: bool = False
    error: str = ""
    hung: bool = False

    @property
    def overrun(self) -> float:
        """Seconds beyond a run without a kill."""
        return self.seconds - self.usual

    @property
    def within(self) -> bool:
        """Whether the overrun is what was lost and a tenth of the usual time."""
        return self.overrun <= self.lost + 0.1 * self.usual


@dataclass
class Bench:
    """A cluster, the work, and what it gives and takes when nobody dies."""

    client: Client
    cluster: Any
    work: dict[str, Work]
    watch: Watch = field(default_factory=Watch)
    expected: dict[str, bytes] = field(default_factory=dict)

    def prepare(self) -> None:
        """Run everything without a kill."""
        self.watch.scheduler = self.cluster.scheduler
        self.cluster.scheduler.add_plugin(self.watch)
        self.expected = {name: bits(run()) for name, run in self.work.items()}

    def usual(self, work: str) -> float:
        """Seconds of a run without a kill, now: what else the machine does changes from run to run."""
        began = time.perf_counter()
        if bits(self.work[work]()) != self.expected[work]:
            raise AssertionError(f"{work}: other bits without any kill")
        return time.perf_counter() - began

    def trial(self, seed: int) -> Trial:
        """One run, in which one worker is killed; waits until as many workers are there as should be."""
        rng = random.Random(seed)
        names = list(self.work)
        kinds = sorted({name.split("-")[0] for name in self.cluster.workers})
        t = Trial(seed, names[seed % len(names)], kinds[seed // len(names) % len(kinds)], rng.random())
        t.usual = self.usual(t.work)
        pids = self.pids()
        alive = sorted(name for name in pids if name.startswith(t.kind))
        address, pid = pids[rng.choice(alive)]
        self.watch.begin()

        def kill() -> None:
            t.lost = self.watch.under_way(address)
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(t.at * t.usual, kill)
        here = contextvars.copy_context()  # whose plans it follows
        run = threading.Thread(target=here.run, args=(self._run, t), daemon=True)
        timer.start()
        run.start()
        run.join(HANG_S)
        timer.join()
        t.hung = run.is_alive()
        t.lost += self.watch.again()
        self._wait_for_all_but(address)
        return t

    def control(self, seed: int) -> Trial:
        """Two runs without a kill: by how much they differ where nothing happens."""
        work = list(self.work)[seed % len(self.work)]
        t = Trial(seed, work, "nobody", 0.0, usual=self.usual(work))
        self._run(t)
        return t

    def _wait_for_all_but(self, address: str) -> None:
        """Until the dead worker is known to be dead, and one is there in its place."""
        deadline, scheduler = time.monotonic() + HANG_S, self.cluster.scheduler
        while address in scheduler.workers or len(scheduler.workers) < len(self.cluster.workers):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the worker at {address} did not come again within {HANG_S} s")
            time.sleep(0.02)

    def _run(self, t: Trial) -> None:
        began = time.perf_counter()
        try:
            with self.client.as_current():
                t.right = bits(self.work[t.work]()) == self.expected[t.work]
        except Exception as error:
            t.error = repr(error)
        t.seconds = time.perf_counter() - began

    def pids(self) -> dict[str, tuple[str, int]]:
        """The address and the process of each worker, by name."""
        pids = self.client.run(os.getpid)
        scheduler = self.cluster.scheduler
        return {str(scheduler.workers[address].name): (address, pid) for address, pid in pids.items()}


def bits(values: Sequence[Any]) -> bytes:
    """All of them, one behind another."""
    return b"".join(np.asarray(v).tobytes() for v in values)


@contextmanager
def bench(scale: int) -> Iterator[Bench]:
    """Two CPU workers and two emulated GPUs, with all that is measured without a kill.

    The plans stay those of the whole machine, as in `tg.resumable`: a worker that comes again measures other rates.
    """
    with (
        tg.LocalCluster(
            cpu_workers=2, threads_per_cpu_worker=1, gpus=0, emulated_gpus=2, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        before = execute.plans_as_on(execute.machine_of(client))
        try:
            found = Bench(client, cluster, works(scale))
            found.prepare()
            yield found
        finally:
            execute.plans_as_on(before)


def main() -> None:
    options = harness.arguments(__doc__ or "", runs=100, controls=30, scale=8, seed=0)
    with bench(options.scale) as found:
        controls = [found.control(options.seed + n) for n in range(options.controls)]
        trials = [found.trial(options.seed + n) for n in range(options.runs)]
    rows = [row("all", "nobody", controls)]
    for work in (*found.work, "all"):
        for kind in ("cpu", "gpu", "all"):
            if (work == "all") == (kind == "all"):
                some = [t for t in trials if work in (t.work, "all") and kind in (t.kind, "all")]
                rows.append(row(work, kind, some))
    columns = ("work", "killed", "runs", "right", "hung", "usual s", "over s", "90 %", "most", "lost s", "in bound")
    harness.report(f"one worker killed at a random moment, seeds from {options.seed}", columns, rows, options)
    for t in trials:
        if not (t.right and t.within):
            what = t.error or ("the bits are right" if t.right else "other bits")
            took = f"{t.seconds:.1f} s, usually {t.usual:.1f} s, lost {t.lost:.1f} s"
            print(f"seed {t.seed}: {t.work}, a {t.kind} worker killed at {t.at:.0%}: {took}; {what}")


def row(work: str, kind: str, trials: Sequence[Trial]) -> list[Any]:
    """A line of the table."""
    over = sorted(t.overrun for t in trials)
    return [
        work,
        kind,
        len(trials),
        sum(t.right for t in trials),
        sum(t.hung for t in trials),
        statistics.median(t.usual for t in trials),
        statistics.median(over),
        over[int(0.9 * (len(over) - 1))],
        over[-1],
        statistics.median(t.lost for t in trials),
        sum(t.within for t in trials),
    ]


if __name__ == "__main__":
    main()
