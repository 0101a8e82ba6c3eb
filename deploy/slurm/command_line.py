"""The command line of batch jobs: `taskgraph slurm script | submit | status | follow | connect`."""

from __future__ import annotations

import code
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from deploy.slurm import follow, queue
from deploy.slurm.script import CPUS_PER_GPU, WARN_SECONDS, JobRequest, render
from deploy.slurm.site import Site, read_site

#: Where jobs run, in the folder in which they are submitted.
FOLDER = "taskgraph-%j"

_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("--site", {"type": click.Path(exists=True, dir_okay=False), "envvar": "TASKGRAPH_SITE", "show_envvar": True},
     "The file that says what this cluster wants (docs/slurm.md)."),
    ("--partition", {"metavar": "NAME"}, "Of the CPU nodes, or of the one node."),
    ("--nodes", {"type": int, "default": 1, "show_default": True}, "Nodes with CPU workers."),
    ("--cpus-per-node", {"type": int}, "Cores of each that the job takes."),
    ("--threads", {"type": click.IntRange(1)}, "Of each CPU worker [default: at most 8]."),
    ("--gpu-partition", {"metavar": "NAME"}, "Of the GPU nodes."),
    ("--gpus", {"type": int, "default": 0, "show_default": True}, "Each has a worker of its own."),
    ("--gpu-nodes", {"type": int, "default": 1, "show_default": True}, "Nodes that have them, each as many."),
    ("--cpus-per-gpu", {"type": int, "default": CPUS_PER_GPU, "show_default": True}, "Cores beside each."),
    ("--one-node", {"is_flag": True}, "CPU workers on the node of the GPUs, and no other node."),
    ("--time", {"required": True}, "Limit: MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS."),
    ("--warn-seconds", {"type": int, "default": WARN_SECONDS, "show_default": True},
     "So long before the limit the script is told to save."),
    ("--name", {}, "Of the job [default: the script's]."),
    ("--folder", {"type": click.Path()}, f"The run folder; %j is the job's number [default: {FOLDER}]."),
    ("--resume", {"is_flag": True}, "Go on in a run folder that is there."),
)  # fmt: skip


@click.group("slurm", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def slurm_commands() -> None:
    """Batch jobs of a SLURM cluster: a script's tensors compute on the nodes of its job."""


def _job(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a job, and its script."""
    command = click.argument("args", nargs=-1, type=click.UNPROCESSED)(command)
    command = click.argument("script", type=click.Path(exists=True, dir_okay=False))(command)
    for name, settings, text in reversed(_OPTIONS):
        command = click.option(name, help=text, **settings)(command)
    return command


#: What follows SCRIPT is the script's own.
_SCRIPTS_OWN = {"allow_interspersed_args": False}


@slurm_commands.command("script", short_help="Print a batch script.", context_settings=_SCRIPTS_OWN)
@_job
def script_command(**given: Any) -> None:
    """Print a batch script that runs SCRIPT with ARGS, for `sbatch` as it is or after your own changes."""
    click.echo(_rendered(given)[0], nl=False)


@slurm_commands.command("submit", short_help="Submit a script as a job, and follow it.", context_settings=_SCRIPTS_OWN)
@_job
def submit_command(**given: Any) -> None:
    """Submit a job that runs SCRIPT with ARGS, and follow it: why it waits, what it logs. Its exit code is the job's.

    Ctrl-C leaves the job running.
    """
    text, folder = _rendered(given)
    raise SystemExit(_in_words(lambda: follow.submit(text, folder, _say)))


@slurm_commands.command("status", short_help="Say in a sentence how a job stands.")
@click.argument("jobid", type=click.IntRange(1))
def status_command(jobid: int) -> None:
    """Say how job JOBID stands, and why it waits."""
    click.echo(_in_words(lambda: queue.described(queue.look(jobid))))


@slurm_commands.command("follow", short_help="Follow a job that was submitted.")
@click.argument("jobid", type=click.IntRange(1))
def follow_command(jobid: int) -> None:
    """Follow job JOBID to its end, as `submit` does."""
    raise SystemExit(_in_words(lambda: follow.follow(jobid, _say)))


@slurm_commands.command("connect", short_help="Use the cluster of a running job.", context_settings=_SCRIPTS_OWN)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The job's run folder.")
@click.argument("jobid", type=click.IntRange(1))
@click.argument("script", required=False, type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def connect_command(jobid: int, folder: Path | None, script: str | None, args: tuple[str, ...]) -> None:
    """Run SCRIPT with ARGS on the cluster of the running job JOBID, or Python with its `client` in force.

    Says how to see the dashboard, too.
    """
    raise SystemExit(_in_words(lambda: _connected(jobid, folder, script, args)))


def _connected(jobid: int, folder: Path | None, script: str | None, args: Sequence[str]) -> int:
    with follow.connect(jobid, folder) as client:
        port = follow.dashboard_port(client)
        if port:
            _say(f"the dashboard, at http://127.0.0.1:{port}/status after: {follow.tunnel(queue.look(jobid), port)}")
        if script:
            from deploy.programs import run_here

            return run_here(script, args)
        import taskgraph

        banner = f"{client}\n`client` is in force; taskgraph is `tg`. Ctrl-D leaves; the job goes on."
        code.interact(banner, local={"client": client, "tg": taskgraph}, exitmsg="")
    return 0


def _rendered(given: dict[str, Any]) -> tuple[str, str]:
    """The batch script for what was given on the command line, and its run folder."""
    try:
        site = read_site(path) if (path := given.pop("site")) else Site()
        folder = checked_folder(given.pop("folder"), given["resume"])
        script = os.path.abspath(given.pop("script"))
        request = JobRequest(**given | {"script": script, "folder": folder})
        return render(replace(site, python=site.python or sys.executable), request), folder
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def checked_folder(folder: str | None, resume: bool) -> str:
    """The run folder as an absolute path; with %j, no two jobs have the same.

    Raises ValueError where it is there without `resume`, or is not there with it.
    """
    if folder is None:
        if resume:
            raise ValueError("--resume goes on in a run folder that is there: name it with --folder")
        return os.path.abspath(FOLDER)
    path = os.path.abspath(folder)
    if resume and not os.path.isdir(path):
        raise ValueError(f"--resume: there is no run folder {path}")
    if not resume and os.path.lexists(path):
        raise ValueError(f"the run folder {path} exists: name another with --folder, or go on in it with --resume")
    if not os.path.isdir(os.path.dirname(path)):
        raise ValueError(f"there is no folder {os.path.dirname(path)}, in which the run folder and the log would be")
    return path


def _in_words(action: Callable[[], Any]) -> Any:
    """What the action gives; what SLURM or the keys' folder refuse is shown without a traceback."""
    try:
        return action()
    except (queue.SlurmError, PermissionError) as error:
        raise click.ClickException(str(error)) from error


def _say(text: str) -> None:
    """Of the job, besides what it logs."""
    click.echo(f"taskgraph: {text}", err=True)
