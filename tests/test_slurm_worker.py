"""The scheduler and the workers of a batch job, started as its supervisor starts them, without SLURM."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, wait
from process_cluster import until

from deploy.slurm.commands import Options, environment_of, scheduler_command, step_command
from deploy.slurm.job import open_folder
from deploy.slurm.worker import LOOPBACK, read_scheduler
from deploy.tls import load_keys


@contextmanager
def process(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Ended behind the block."""
    with subprocess.Popen(command, env=environment_of(folder, os.environ)) as started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(15)
            except subprocess.TimeoutExpired:
                started.kill()


def names(client: Client) -> set[str]:
    return {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


@pytest.mark.logs_errors  # a nanny, of how its worker ended
def test_a_worker_leaves_when_its_time_is_up_and_its_data_move(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    open_folder(folder, again=False)

    def worker(number: int, retire_at: float) -> list[str]:
        step = ("env", f"SLURM_PROCID={number}")
        return step_command(Options(folder, (), cpu_step=step, lifetime_margin=1.0), "cpu", retire_at)

    with (
        process(scheduler_command(folder, LOOPBACK), folder),
        process(worker(1, time.time() + 3600), folder),
    ):
        until(lambda: read_scheduler(folder / "scheduler.json"), "the scheduler is up")
        with Client(scheduler_file=str(folder / "scheduler.json"), security=load_keys(folder / "tls")) as client:
            until(lambda: names(client) == {"cpu-1"}, "the worker that stays")
            with process(worker(0, time.time()), folder) as leaving:
                until(lambda: names(client) == {"cpu-0", "cpu-1"}, "the worker that leaves")
                # It can be computed there alone, so it is not computed again.
                held = client.submit(os.getpid, workers="cpu-0")
                wait(held, timeout=30)
                [holder] = client.who_has(held)[held.key]
                until(lambda: names(client) == {"cpu-1"}, "it has left")
                assert leaving.wait(30) == 0
            [now] = client.who_has(held)[held.key]
            assert now != holder
            assert held.result(timeout=30) > 0
