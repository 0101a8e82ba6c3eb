"""One of four workers turns three times slower in the middle: `python -m benchmarks.straggler`.

The makespan of a product's tiles on four worker processes, over the work that there is over the sum of the actual
speeds (goal: 1.25). Tiles here sleep instead of multiplying, in steps of 10 ms of which a slowed worker gets a third
done: four workers then are four however few cores there are, and the slow one is slow by exactly that. So what is
measured is the placement (the ready queue, stealing, and what is taken back), not the arithmetic.

The limit is in the tiles' size: one that the slow worker had begun before anybody could know takes three times as long.
So there is a row for each number of tiles a worker.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

from dask._task_spec import Task
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, futures_of, wait

import taskgraph as tg
from benchmarks.harness import arguments, interleaved, report, summary
from scheduler_plugins.plugin import report as placed
from taskgraph.execute import machine_of
from taskgraph.plan import TAG, TaskTag

WORKERS, SLOWED = 4, "cpu-0"
STEP_S = 0.01
NUMBERS = count()


def tile(seconds: float, slow_from: float, times: float) -> None:
    """Work for so long; on the worker that is slowed, all that is done after a moment takes so many times longer."""
    from distributed import get_worker

    is_slowed = get_worker().name == SLOWED
    done, before = 0.0, time.time()
    while done < seconds:
        time.sleep(STEP_S)
        now = time.time()
        done += (now - before) / (times if is_slowed and now > slow_from else 1.0)
        before = now


def seconds_of(client: Client, each: int, tile_s: float, times: float) -> float:
    """The makespan with so many tiles for each worker."""
    name = f"matmul-sleep-{next(NUMBERS)}"
    slots = {(name, w, i): f"cpu-{w}" for w in range(WORKERS) for i in range(each)}

    def tag(key: Any) -> TaskTag:
        return TaskTag(kind="cpu", slot=slots[key], product=name, grid=(WORKERS, each, 1), tile=(*key[1:], 0))

    start = time.time()
    slow_from = start + each * tile_s / 2
    tasks = {key: Task(key, tile, tile_s, slow_from, times) for key in slots}
    graph = HighLevelGraph({name: MaterializedLayer(tasks, annotations={TAG: tag})}, {name: set()})
    futures = futures_of(client.get(graph, list(tasks), sync=False))
    wait(futures)
    return time.time() - start


def bound(each: int, tile_s: float, times: float) -> float:
    """The work over the sum of the speeds, slowed after half of it."""
    half = each * tile_s / 2
    return half + half * WORKERS / (WORKERS - 1 + 1 / times)


def main() -> None:
    options = arguments(__doc__ or "", seconds=3, times=3, repeats=2)
    with (
        tg.LocalCluster(cpu_workers=WORKERS, threads_per_cpu_worker=1, gpus=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS)
        machine_of(client)  # makes it ready for our tasks
        measured = interleaved(
            {
                f"{each} tiles, {who}": lambda each=each, times=times: seconds_of(  # type: ignore[misc]
                    client, each, options.seconds / each, times
                )
                for each, who, times in (
                    (16, "all alike", 1.0),
                    *[(each, "one slowed", float(options.times)) for each in (4, 8, 16)],
                )
            },
            options.repeats,
        )
        errors = client.run_on_scheduler(placed)["errors"]
    assert not errors, "the placement failed; see the scheduler's log"
    rows = []
    for name, seconds in measured.items():
        times = options.times if name.endswith("slowed") else 1
        least = bound(int(name.split()[0]), options.seconds / int(name.split()[0]), times)
        rows.append((name, least, *summary(seconds), summary(seconds)[0] / least))
    columns = ("tiles a worker", "bound s", "seconds", "least", "greatest", "over bound")
    report(f"{WORKERS} workers, {SLOWED} {options.times} times slower in the middle", columns, rows, options)


if __name__ == "__main__":
    main()
