"""A cluster with keys in processes of its own, for `test_strangers`: `guarded_cluster.py KEYS` says what it consists of
in one line of JSON, and ends with its standard input."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import dask
import psutil
from distributed import Client

from deploy.local import LocalCluster
from deploy.tls import make_keys


def main(keys: Path) -> None:
    os.umask(0)  # so that what nobody else can read was meant so
    # Data go to disk at once, where others might read them.
    with (
        dask.config.set({"distributed.worker.memory.target": 1e-5, "distributed.worker.memory.spill": False}),
        LocalCluster(cpu_workers=1, gpus=0, memory_limit="2 GiB", security=make_keys(keys)) as cluster,
        Client(cluster) as client,
    ):
        kept = client.map(lambda i: bytes([i]) * 2**20, range(4))
        assert client.gather([client.submit(len, data) for data in kept]) == [2**20] * 4
        here = psutil.Process()
        told = {
            "scheduler": cluster.scheduler_address,
            "worker": next(iter(client.scheduler_info(n_workers=-1)["workers"])),
            "nanny": next(iter(cluster.workers.values())).address,
            "processes": [process.pid for process in (here, *here.children(recursive=True))],
            "spilled": sum(client.run(lambda dask_worker: len(dask_worker.data.slow)).values()),
        }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
        # Whoever came meanwhile has broken nothing.
        print(client.submit(sum, [1, 2], pure=False).result(timeout=30), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
