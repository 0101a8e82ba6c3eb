"""The programs behind the command line that need a cluster: `taskgraph run` and `taskgraph info`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dask.utils import format_bytes
from distributed import Client
from rich.console import Console
from rich.table import Table

from deploy.local import LocalCluster
from taskgraph.machine import Machine
from taskgraph.resume import listening
from workers.backend import visible_gpus


def start_cluster(options: Mapping[str, Any]) -> LocalCluster:
    """A cluster on this machine; where `emulated_gpus` is None, two emulated ones if there is no real GPU."""
    chosen = dict(options)
    if chosen.get("emulated_gpus") is None:
        chosen["emulated_gpus"] = 0 if chosen["gpus"] != 0 and visible_gpus() else 2
    return LocalCluster(**chosen)


@contextmanager
def connected(connection: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> Iterator[Client]:
    """A client of the cluster named, or of one started for the occasion and stopped behind it."""
    with ExitStack() as stack:
        if connection:
            yield stack.enter_context(Client(**connection))
        else:
            yield stack.enter_context(Client(stack.enter_context(start_cluster(cluster or {}))))


def run_script(
    script: str, args: Sequence[str], connection: Mapping[str, Any], cluster: Mapping[str, Any] | None
) -> int:
    """Run a Python script with a client in force; gives the script's exit code. An exception of the script's own is
    shown as Python shows it."""
    with connected(connection, cluster) as client:
        print(
            f"taskgraph: on {client}, dashboard {client.dashboard_link}",
            file=sys.stderr,
        )
        return run_here(script, args)


def run_here(script: str, args: Sequence[str]) -> int:
    """Run a Python script in this process, as its own program; its exit code. Its exceptions are shown as Python shows
    them."""
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0:0] = [script, *args], [str(Path(script).resolve().parent)]
    try:
        with listening():
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return _exit_code(end)
    finally:
        sys.argv, sys.path[:] = before
    return 0


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def show_info(connection: Mapping[str, Any], cluster: Mapping[str, Any] | None, description: str | None = None) -> int:
    """Print a table of the workers' devices: kind, name, threads, memory, measured rates.

    description: a file to which the machine is written, for `Machine.from_file`.
    """
    with connected(connection, cluster) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        console().print(device_table(workers))
        machine = Machine.from_client(client)
        hosts = len({w["host"] for w in workers.values()})
        source = f"measured between {hosts} hosts" if hosts > 1 else "all on one host"
        console().print(f"network: {machine.link_bytes_per_s / 1e9:g} GB/s between workers ({source})")
        if description:
            machine.to_file(description)
    return 0


def console() -> Console:
    """Where the programs write: as wide as the terminal, wide enough for a table in a file."""
    out = Console()
    return out if out.is_terminal else Console(width=110)


def device_table(workers: Mapping[str, Mapping[str, Any]]) -> Table:
    """The devices of a cluster as the scheduler describes its workers."""
    table = Table(title="devices", title_justify="left")
    for column in ("worker", "kind", "device"):
        table.add_column(column)
    for column in ("threads", "memory", "GFLOP/s f32", "f64", "to device"):
        table.add_column(column, justify="right")
    for w in sorted(workers.values(), key=lambda w: str(w["name"])):
        p = w.get("taskgraph", {})
        rates = p.get("gflops") or {}
        link = p.get("host_to_device_bytes_per_s")
        kind = p.get("kind", "cpu (no profile)") + (" [yellow](emulated)[/]" if p.get("emulated") else "")
        table.add_row(
            str(w["name"]),
            kind,
            p.get("name", "?"),
            str(w.get("nthreads", "?")),
            format_bytes(p.get("memory") or w.get("memory_limit") or 0),
            *[f"{rates[d]:,.0f}" if d in rates else "?" for d in ("float32", "float64")],
            f"{link / 1e9:.1f} GB/s" if link else "-",
        )
    table.caption = "rates of a worker with all its threads at work"
    return table
