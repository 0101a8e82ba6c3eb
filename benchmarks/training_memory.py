"""Whether training keeps memory: `python -m benchmarks.training_memory [--steps 500]`.

The demo's classifier on a cluster of its own; resident memory of the client (which holds the scheduler) and of every
worker over the steps. What is printed is the slope after a warm-up of a fifth of the steps. Dask remembers how every
result that is kept can be made again, so a step that starts from the last one's result keeps the descriptions (not the
values) of all steps before it: some tens of kB a step. Whatever goes beyond that is kept by mistake.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import psutil
from distributed import Client

import taskgraph as tg
from benchmarks.harness import arguments, report
from deploy.demo import LEARNING_RATE, digits, first_weights


def rss(dask_worker: Any = None) -> int:
    """Bytes of resident memory of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    options = arguments(__doc__ or "", steps=500, every=10)
    x, y, _, _ = digits()
    seen: dict[str, list[int]] = {}
    with tg.LocalCluster(gpus=0, dashboard_address=None) as cluster, Client(cluster) as client:
        images, labels = tg.asarray(x).persist(), tg.asarray(y).persist()
        w = [tg.Variable(value) for value in first_weights()]
        logits = tg.tanh(images @ w[0] + w[1]) @ w[2] + w[3]
        loss = tg.mean(tg.logsumexp(logits, axis=1) - tg.sum(logits * labels, axis=1))
        updates = [v.assign(v - LEARNING_RATE * g) for v, g in zip(w, tg.gradients(loss, w), strict=True)]
        session = tg.Session()
        for step in range(options.steps):
            session.run((loss, updates))
            if step % options.every == 0:
                seen.setdefault("client and scheduler", []).append(rss())
                for n, value in enumerate(client.run(rss).values()):
                    seen.setdefault(f"worker {n}", []).append(value)
    warm = options.steps // 5 // options.every
    rows = []
    for who, values in seen.items():
        kept = np.asarray(values[warm:], dtype=float)
        slope = np.polyfit(np.arange(len(kept)) * options.every, kept, 1)[0]
        rows.append((who, kept[0] / 1e6, kept[-1] / 1e6, float(slope) / 1e3))
    columns = ("process", "MB after warm-up", "MB at the end", "kB a step")
    report(f"memory over {options.steps} steps of training", columns, rows, options)


if __name__ == "__main__":
    main()
