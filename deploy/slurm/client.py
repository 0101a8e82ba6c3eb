"""The user's script in a batch job: it starts when the job's workers are there, with the job's cluster in force."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click
from distributed import Client

from deploy.programs import run_here
from deploy.tls import load_keys
from taskgraph.resume import listening

#: Workers that are not there after so long are not waited for: a step that is started again may bring them later.
WORKERS_TIMEOUT_S = 120


def wait_for_workers(client: Client, expected: int, timeout_s: float) -> None:
    """Wait for so many workers; after `timeout_s`, go on with fewer. SystemExit where there is none."""
    try:
        client.wait_for_workers(expected, timeout=timeout_s)
    except TimeoutError:
        here = len(client.scheduler_info(n_workers=-1)["workers"])
        missing = f"of {expected} workers {expected - here} did not come within {timeout_s:.0f} s"
        if not here:
            raise SystemExit(f"taskgraph: {missing}; the logs of their steps say why") from None
        print(f"taskgraph: {missing}; the script starts with {here}", file=sys.stderr)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--workers", type=click.IntRange(1), required=True)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def main(folder: Path, workers: int, script: str, args: tuple[str, ...]) -> None:
    """Run SCRIPT with ARGS as its own program; its exit code is this program's."""
    connection = {"scheduler_file": str(folder / "scheduler.json"), "security": load_keys(folder / "tls")}
    # The warning before the time limit would end a script that takes no notice of it; its supervisor has it wait.
    with listening(), Client(**connection) as client:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        wait_for_workers(client, workers, WORKERS_TIMEOUT_S)
        print(f"taskgraph: the script starts on {client}", file=sys.stderr)
        code = run_here(script, args)
    sys.exit(code)


if __name__ == "__main__":
    main()
