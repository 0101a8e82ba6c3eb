"""A worker in a step of a batch job: `dask worker` with what the job's folder and the node say.

It listens at the address that faces the scheduler, and its HTTP server on loopback; what it spills is its user's
alone.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

#: On a network's disk a file may be seen so much later than it was written.
FILE_TIMEOUT_S = 60.0

#: A worker without a scheduler ends after so long; its step is then started again, if the job is still there.
DEATH_TIMEOUT_S = 60

#: A worker that is started again when others leave is there for so long, so that it can leave like them.
LEAST_LIFE_S = 5.0

LOOPBACK = "127.0.0.1"


def worker_name(name: str, environment: Mapping[str, str]) -> str:
    """A name of its own for each task of a step: of several, by the task's number.

    >>> worker_name("cpu", {"SLURM_PROCID": "3"}), worker_name("gpu-1", {"SLURM_PROCID": "0"})
    ('cpu-3', 'gpu-1')
    """
    return name if name[-1].isdigit() else f"{name}-{environment.get('SLURM_PROCID', '0')}"


def device_environment(kind: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What tells a worker its device: the GPU that SLURM pinned, and none for a CPU worker.

    TASKGRAPH_DEVICE=emulated-gpu in the job's environment stands for GPUs where there are none.

    >>> device_environment("cpu", {"CUDA_VISIBLE_DEVICES": "0"})
    {'TASKGRAPH_DEVICE': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    """
    if kind == "cpu":
        return {"TASKGRAPH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    emulated = environment.get("TASKGRAPH_DEVICE") == "emulated-gpu"
    return {"TASKGRAPH_DEVICE": "emulated-gpu" if emulated else "gpu"}


def memory_of_task(environment: Mapping[str, str]) -> str | None:
    """The host memory that SLURM gave a task of this step, in bytes; None where it does not tell.

    Dask would share out the limit of one task by the node's cores once more.

    >>> memory_of_task({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_PER_TASK": "4"}) == str(2000 * 2**20)
    True
    """
    per_cpu, per_node = (int(environment.get(f"SLURM_MEM_PER_{of}") or 0) for of in ("CPU", "NODE"))
    if per_cpu:
        return str(per_cpu * int(environment.get("SLURM_CPUS_PER_TASK") or 1) * 2**20)
    tasks = [
        int(number) for number in re.findall(r"(\d+)(?:\(|,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    ]
    return str(per_node * 2**20 // max(tasks)) if per_node else None


def dask_arguments(
    folder: Path, name: str, host: str, threads: int, memory_limit: str | None, lifetime: tuple[float, float] | None
) -> list[str]:
    """Arguments of `dask worker`. lifetime: seconds until it retires, and by how many that varies."""
    tls = folder / "tls"
    given = {
        "scheduler-file": folder / "scheduler.json",
        "protocol": "tls",
        "tls-ca-file": tls / "cert.pem",
        "tls-cert": tls / "cert.pem",
        "tls-key": tls / "key.pem",
        "host": host,
        # Without an address its HTTP server, which knows no TLS, listens on every interface.
        "dashboard-address": f"{LOOPBACK}:0",
        "name": name,
        "nthreads": threads,
        "death-timeout": DEATH_TIMEOUT_S,
        "preload": "workers.plugin",
    }
    if memory_limit is not None:
        given["memory-limit"] = memory_limit
    if lifetime is not None:
        given |= {"lifetime": f"{lifetime[0]:.1f}s", "lifetime-stagger": f"{lifetime[1]:.1f}s"}
    return ["--no-dashboard", *(f"--{option}={value}" for option, value in given.items())]


def read_scheduler(file: Path, timeout_s: float = 0.0) -> dict[str, Any] | None:
    """What the scheduler wrote of itself, or None where it is not there, whole, after so many seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return dict(json.loads(file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):  # not yet, not all of it yet
            if time.monotonic() >= deadline:
                return None
        time.sleep(0.05)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--kind", type=click.Choice(["cpu", "gpu"]), required=True)
@click.option("--name", required=True)
@click.option("--threads", type=click.IntRange(1), required=True)
@click.option("--memory-limit")
@click.option("--interface")
@click.option("--retire-at", type=float, help="Seconds since 1970.")
@click.option("--stagger", type=float, default=0.0, help="Seconds.")
def main(
    folder: Path, kind: str, name: str, threads: int, memory_limit: str | None, interface: str | None,
    retire_at: float | None, stagger: float,
) -> None:  # fmt: skip
    """Run one worker until the job stops it, its scheduler is gone, or its time is up."""
    os.umask(0o077)
    os.environ.update(device_environment(kind, os.environ))
    scheduler = read_scheduler(folder / "scheduler.json", FILE_TIMEOUT_S)
    if scheduler is None:
        sys.exit(f"no {folder / 'scheduler.json'} here after {FILE_TIMEOUT_S:.0f} s: is the folder on a shared disk?")
    # Not before the environment is set: it is read at the import.
    from distributed.cli.dask_worker import main as dask_worker
    from distributed.utils import get_ip, get_ip_interface

    from deploy.scratch import scratch_folder

    host = get_ip_interface(interface) if interface else get_ip(str(urlsplit(scheduler["address"]).hostname))
    lifetime = None if retire_at is None else (max(retire_at - time.time(), LEAST_LIFE_S), stagger)
    name = worker_name(name, os.environ)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    where = f"{name} on {socket.gethostname()} at {host}"
    print(f"taskgraph - INFO - {where}: {os.environ['TASKGRAPH_DEVICE']}, CUDA_VISIBLE_DEVICES={seen}", flush=True)
    limit = memory_limit or memory_of_task(os.environ)
    arguments = dask_arguments(folder, name, host, threads, limit, lifetime)
    dask_worker([*arguments, f"--local-directory={scratch_folder()}"])


if __name__ == "__main__":
    main()
