"""The same plan gives the same bits: run again, and with a worker that is killed in the middle."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from process_cluster import DEATH, ProcessCluster, runs, until

import taskgraph as tg
from taskgraph.execute import assemble, lowered, machine_of

WORKERS = tuple(f"cpu-{w}" for w in range(3))
SEEDS = (5, 6)


@pytest.mark.kills_workers
def test_again_and_with_a_worker_killed_in_the_middle(tmp_path: Path) -> None:
    print("seeds", SEEDS)
    machine = tg.Machine(devices=tuple(tg.Device("cpu", 2**30, 25.0, name) for name in WORKERS))
    shapes = (512, 32768), (32768, 512)
    rngs = [tg.random.default_rng(seed) for seed in SEEDS]
    a, b = (rng.standard_normal(shape, "float32") for rng, shape in zip(rngs, shapes, strict=True))
    graph = lowered(((a @ b).expr,), machine, (True,))
    (planned,) = graph.plan.products.values()
    assert planned.grid.shape[2] > 1, "k is cut across workers"
    assert planned.strips > 1, "and what they have is added up in strips"
    (out,) = graph.outputs

    with ProcessCluster(tmp_path) as cluster:
        for name in WORKERS:
            cluster.start_worker(name)
        client = cluster.client()
        cluster.wait_for(client, *WORKERS)
        machine_of(client)  # makes it ready for our tasks

        def run(kill: str | None = None) -> np.ndarray:
            before = len(runs(client, "('matmul"))
            # Every sum needs what cpu-0 is to multiply: while that stands still, no other worker's tiles are done with.
            with cluster.stopped("cpu-0") if kill else nullcontext():
                futures = client.get(graph.graph, graph.keys, sync=False)
                if kill:
                    ran_there = lambda: [r for r in runs(client, "('matmul")[before:] if r.worker == kill]
                    until(ran_there, f"{kill} has tiles")
                    cluster.kill(kill)
            value = assemble(client.gather(futures)[0], len(out.chunks))
            del futures
            until(
                lambda: client.run_on_scheduler(lambda dask_scheduler: not dask_scheduler.tasks),
                "everything is forgotten",
            )
            return np.array(value)

        first, ran = run(), len(runs(client))
        again = run()
        assert len(runs(client)) == 2 * ran, "it ran again, from the start"
        after = run(kill="cpu-2")
        assert len(runs(client)) > 3 * ran, "what the dead worker had was made again"
        assert {r.worker for r in runs(client, "('matmul")[-planned.strips :]} <= {*WORKERS} - {"cpu-2"}
        cluster.assert_quiet(allowed=DEATH)

    assert first.tobytes() == again.tobytes()
    assert first.tobytes() == after.tobytes()
