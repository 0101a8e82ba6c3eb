"""What the placement plugin costs: `python -m benchmarks.plugin_cost`.

Two figures. The time that `TilePlacement.update_graph` takes for each task of a graph of 20,000 tagged tasks,
measured around the hook in a real scheduler (goal: 5 us or less). And the time of an empty task end to end on
two workers, the scheduler in a process of its own, with the plugin and with plain Dask: medians of runs that
take turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from dask._task_spec import Task, TaskRef
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, LocalCluster, wait
from distributed.deploy.subprocess import SubprocessCluster

from benchmarks.harness import arguments, report, summary
from scheduler_plugins import TilePlacement
from taskgraph.plan import TAG

NUMBERS = count()


def nothing(*inputs: Any) -> None:
    return None


def graph(tasks: int, depth: int, *, tagged: bool) -> tuple[HighLevelGraph, list[Any]]:
    """Chains of `depth` empty tasks, `tasks` in all, and the keys of their ends."""
    name = f"empty-{next(NUMBERS)}-{os.getpid()}"
    layers, ends = {}, []
    for chain in range(tasks // depth):
        for link in range(depth):
            inputs = [TaskRef((name, chain, link - 1))] if link else []
            layers[(name, chain, link)] = Task((name, chain, link), nothing, *inputs)
        ends.append((name, chain, depth - 1))
    tags = {key: {"kind": "cpu", "product": name, "tile": key[1:]} for key in layers}
    layer = MaterializedLayer(layers, annotations={TAG: tags.get} if tagged else None)
    return HighLevelGraph({name: layer}, {name: set()}), ends


class Timed(TilePlacement):
    """The plugin with a clock around its hook."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def update_graph(self, scheduler: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().update_graph(scheduler, **kwargs)
        self.seconds.append(time.perf_counter() - start)


def update_graph_us(tasks: int, repeats: int) -> list[float]:
    """Microseconds a task of the hook; no worker is there, so that nothing else runs beside it."""
    cluster = LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    with cluster, Client(cluster) as client:
        plugin = Timed()
        # Not through the client, which would send a copy.
        client.sync(cluster.scheduler.register_scheduler_plugin, plugin, idempotent=True)
        for _ in range(repeats):
            before = len(plugin.seconds)
            # Long chains, since to cancel n futures costs Dask n squared.
            futures = client.get(*graph(tasks, 100, tagged=True), sync=False)
            deadline = time.monotonic() + 60
            while len(plugin.seconds) == before:
                if time.monotonic() > deadline:
                    raise TimeoutError("the scheduler has not received the graph")
                time.sleep(0.01)
            client.cancel(futures)
            del futures
    return [seconds / tasks * 1e6 for seconds in plugin.seconds]


def end_to_end_us(tasks: int, repeats: int) -> Iterator[tuple[str, str, float]]:
    """(shape, engine, microseconds a task) for every run, the engines in turn."""
    cluster = SubprocessCluster(
        n_workers=2,
        worker_kwargs={"nthreads": 1, "dashboard": False},
        scheduler_kwargs={"dashboard": False},
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        for repeat in range(repeats + 1):
            for shape, depth in (("sources", 1), ("chains of 10", 10)):
                for engine in ("plain Dask", "plugin"):
                    if engine == "plugin":
                        client.register_plugin(TilePlacement())
                    hlg, keys = graph(tasks, depth, tagged=engine == "plugin")
                    start = time.perf_counter()
                    futures = client.get(hlg, keys, sync=False)
                    wait(futures)
                    seconds = time.perf_counter() - start
                    del futures
                    if engine == "plugin":
                        client.unregister_scheduler_plugin(TilePlacement.name)
                    # The first round warms everything up.
                    if repeat:
                        yield shape, engine, seconds / tasks * 1e6


def main() -> None:
    options = arguments(__doc__ or "", tasks=20_000, run_tasks=3_000, repeats=5)
    figures = {"update_graph": update_graph_us(options.tasks, options.repeats)}
    for shape, engine, microseconds in end_to_end_us(options.run_tasks, options.repeats):
        figures.setdefault(f"{shape}, {engine}", []).append(microseconds)
    rows = [(name, *summary(values)) for name, values in figures.items()]
    report("the placement plugin, us a task", ("what", "median", "least", "greatest"), rows, options)


if __name__ == "__main__":
    main()
