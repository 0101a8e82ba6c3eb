"""What every benchmark here shares: interleaved runs, medians, the machine they ran on, a table and a JSON file."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from rich.console import Console
from rich.table import Table


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """Options of a benchmark: `--json PATH`, and a number for each keyword."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the results there, too")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default {value})")
    return parser.parse_args()


def interleaved(candidates: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every candidate in runs that take turns, after one run of each that is not counted.

    A candidate gives its own seconds, so that what it prepares is not timed.
    """
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            seconds[name].append(run())
    return seconds


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """A candidate of which everything is timed."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    packages = ("dask-taskgraph", "dask", "distributed", "numpy", "torch", "jax", "cupy-cuda12x", "cupy-cuda13x")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cores": CPU_COUNT, "processor": _processor(), "python": platform.python_version(), **versions}


def _processor() -> str:
    from workers.backend import host

    return host().name


def as_they_come(rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """All rows, each written to stderr when it is there: what is cut short has shown something."""
    found = []
    for row in rows:
        print(*row, sep=", ", file=sys.stderr, flush=True)
        found.append(row)
    return found


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], options: argparse.Namespace) -> None:
    """Print a table and where it was measured; write the same as JSON where asked."""
    table = Table(title=title, title_justify="left")
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row])
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), style="dim")
    if options.json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        options.json.write_text(json.dumps({"title": title, "machine": machine(), "results": found}, indent=1) + "\n")


def summary(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(seconds), min(seconds), max(seconds)
