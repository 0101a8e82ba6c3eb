"""Whether training keeps memory: `python -m benchmarks.training_memory [--steps 500] [--cut 32]`.

The demo's classifier on a scheduler and two workers in processes of their own; resident memory of every process over
the steps. What is printed is the slope after a warm-up of 1000 steps, in which Dask's own logs fill (the last 1000
messages, graphs and transfers; `distributed.admin.low-level-log-length`). Dask remembers how every result that is
kept can be made again, so that a step that starts from the last one's result would keep the descriptions (not the
values) of all steps before it; every `--cut` steps that history is cut (0: never, to see what it costs). Between two
cuts memory rises and falls again; whatever goes beyond that is kept by mistake. Dask's statistical profiler is off: it
keeps an hour of call stacks in each worker (measured: 2.7 kB a step at 20 steps a second, until the hour is full).
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import dask
import numpy as np
import psutil
from distributed import Client, SubprocessCluster

import taskgraph as tg
from benchmarks.harness import arguments, report
from deploy.demo import LEARNING_RATE, digits, first_weights
from taskgraph.lineage import CUT_EVERY


def rss(dask_worker: Any = None) -> int:
    """Bytes of resident memory of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def everywhere(client: Client) -> dict[str, int]:
    """Bytes of resident memory of client, scheduler and workers."""
    workers = {f"worker {n}": value for n, (_, value) in enumerate(sorted(client.run(rss).items()))}
    return {"client": rss(), "scheduler": client.run_on_scheduler(rss), **workers}


def slope(values: list[int], every: int) -> float:
    """kB a step of memory that was looked at every so many steps."""
    return float(np.polyfit(np.arange(len(values)) * every, values, 1)[0]) / 1e3


def main() -> None:
    options = arguments(__doc__ or "", steps=500, warm=1000, every=10, cut=CUT_EVERY)
    x, y, _, _ = digits()
    seen: dict[str, list[int]] = {}
    seconds = []
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"  # the workers' environment
    cutting = dask.config.set({"taskgraph.lineage-steps": options.cut})
    with cutting, SubprocessCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        images, labels = tg.asarray(x).persist(), tg.asarray(y).persist()
        w = [tg.Variable(value) for value in first_weights()]
        logits = tg.tanh(images @ w[0] + w[1]) @ w[2] + w[3]
        loss = tg.mean(tg.logsumexp(logits, axis=1) - tg.sum(logits * labels, axis=1))
        updates = [v.assign(v - LEARNING_RATE * g) for v, g in zip(w, tg.gradients(loss, w), strict=True)]
        session = tg.Session()
        for step in range(options.warm + options.steps):
            start = time.perf_counter()
            session.run((loss, updates))
            seconds.append(time.perf_counter() - start)
            if step % options.every == 0:
                for who, value in everywhere(client).items():
                    seen.setdefault(who, []).append(value)
    warm = options.warm // options.every
    rows = [
        (who, kept[0] / 1e6, kept[-1] / 1e6, slope(kept, options.every))
        for who, kept in ((who, values[warm:]) for who, values in seen.items())
    ]
    columns = ("process", "MB after warm-up", "MB at the end", "kB a step")
    report(f"memory over {options.steps} steps of training, {speed(seconds, options.cut)}", columns, rows, options)


def speed(seconds: list[float], cut: int) -> str:
    """Steps a second, and what a step takes with a cut and without, as medians."""
    # the images, which are in every step, are one run old, so the first step is the second run in a row
    cutting = [s for n, s in enumerate(seconds, 2) if cut and n % cut == 0]
    others = [s for n, s in enumerate(seconds, 2) if not cut or n % cut]
    rate = f"{len(seconds) / sum(seconds):.1f} steps/s, median {1e3 * np.median(others):.1f} ms"
    return rate + (f", with a cut {1e3 * np.median(cutting):.1f} ms" if cutting else "")


if __name__ == "__main__":
    main()
