"""The command line: `taskgraph demo | run | plan | info | bench | rules | slurm` (also `python -m taskgraph`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from taskgraph import __version__
from taskgraph.upward import resolve


def _cluster_options(command: Any) -> Any:
    options: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("--memory-limit", {"default": "auto", "show_default": True}, "Host memory of each worker."),
        (
            "--emulated-gpus",
            {"type": click.IntRange(0), "metavar": "N"},
            "Workers that stand for GPUs and use the CPU.",
        ),
        ("--gpus", {"default": "auto", "show_default": True, "metavar": "N"}, "GPU-pinned workers, or 'auto'."),
        ("--cpus", {"type": click.IntRange(0), "metavar": "N"}, "CPU workers (by default the cores, shared out)."),
    )
    for name, settings, text in options:
        command = click.option(name, **settings, help=text)(command)
    return command


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    """For `_connection`, which all commands with these options call."""
    context.meta[f"{__name__}.{option.name}"] = value


def _scheduler_options(command: Any) -> Any:
    command = click.option(
        "--tls",
        type=click.Path(exists=True, file_okay=False),
        metavar="FOLDER",
        expose_value=False,
        callback=_keep,
        help="The folder of that cluster's keys.",
    )(command)
    command = click.option(
        "--scheduler-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Use the cluster whose scheduler wrote this file.",
    )(command)
    return click.option("--scheduler", metavar="ADDRESS", help="Use the cluster at this address (tcp://host:port).")(
        command
    )


def _machine_options(command: Any) -> Any:
    """Options of a machine that is made up; None where not given."""
    options: tuple[tuple[str, Any, str], ...] = (
        ("--task-seconds", click.FloatRange(0), "Seconds a task [default: 0.0005]."),
        ("--gpu-link", str, "Bytes a second between a GPU and its host [default: 12GB/s]."),
        ("--link", str, "Bytes a second between workers [default: 1GB/s]."),
        ("--gpu-memory", str, "Memory of each GPU [default: 16 GiB]."),
        ("--gpu-gflops", click.FloatRange(0, min_open=True), "Of each GPU [default: 10000]."),
        ("--cpu-memory", str, "Memory of each CPU worker [default: 16 GiB]."),
        ("--cpu-gflops", click.FloatRange(0, min_open=True), "Of each CPU worker, all its threads [default: 50]."),
        ("--threads", click.IntRange(1), "Of each CPU worker [default: 1]."),
        ("--gpus", click.IntRange(0), "GPU-pinned workers of a made-up machine."),
        ("--cpus", click.IntRange(0), "CPU workers of a made-up machine [default: 1 beside GPUs]."),
    )
    for name, kind, text in options:
        command = click.option(name, type=kind, help=text)(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="taskgraph")
def main() -> None:
    """Matrix expressions as Dask task graphs, with gradients, on clusters that mix CPUs and GPUs."""


@main.command()
@click.option(
    "--n",
    type=click.IntRange(2),
    default=None,
    help="Size of the matrices (by default sized to the machine; the tutorial's is 30000).",
)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Steps of the training.")
@click.option("--wait", is_flag=True, help="Keep the cluster, and its dashboard, up at the end until Enter is pressed.")
@_cluster_options
def demo(
    n: int | None,
    steps: int,
    wait: bool,
    cpus: int | None,
    gpus: str,
    emulated_gpus: int | None,
    memory_limit: str,
) -> None:
    """Show the whole path on this machine: gradients, a placed product, a training run.

    Where there is no GPU, two workers stand for GPUs and compute on the CPU (--emulated-gpus chooses how many);
    everything they do is labelled emulated.
    """
    raise SystemExit(
        resolve("run_demo")(_cluster(cpus, gpus, emulated_gpus, memory_limit), n=n, steps=steps, wait=wait)
    )


@main.command(
    short_help="Run a script on a cluster.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@_scheduler_options
@_cluster_options
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    script: str, args: tuple[str, ...], scheduler: str | None, scheduler_file: str | None,
    cpus: int | None, gpus: str, emulated_gpus: int | None, memory_limit: str,
) -> None:  # fmt: skip
    """Run SCRIPT with ARGS: its tensors compute on a cluster without a line about it in the script.

    On the cluster named by --scheduler or --scheduler-file, or else on one started on this machine for the script.
    """
    connection = _connection(scheduler, scheduler_file)
    cluster = None if connection else _cluster(cpus, gpus, emulated_gpus or 0, memory_limit)
    raise SystemExit(resolve("run_script")(script, args, connection, cluster))


@main.command(name="plan", short_help="Predict a product on a machine that need not exist.")
@_scheduler_options
@_machine_options
@click.option("--machine", "file", type=click.Path(exists=True, dir_okay=False), help="Use the machine of this file.")
@click.option("--json", "as_json", type=click.Path(dir_okay=False), help="Write the figures to this file.")
@click.option("--html", type=click.Path(dir_okay=False), help="Draw the timeline to this file.")
@click.option("--dtype", default="float32", show_default=True, help="Of all operands.")
@click.argument("expression")
def plan_command(
    expression: str, dtype: str, html: str | None, as_json: str | None, file: str | None, scheduler: str | None,
    scheduler_file: str | None, **options: Any,
) -> None:  # fmt: skip
    """Predict EXPRESSION, such as "30000x30000 @ 30000x30000", on a machine, before anything runs.

    Sizes are joined by x; @ multiplies, + adds, .T transposes; parentheses group. The machine is made up by the options
    (--cpus, --gpus, ...), read from a file, or that of a running cluster; without any of these it is this one, as one
    process uses it.
    """
    from taskgraph.whatif import described, show_plan

    given = {name: value for name, value in options.items() if value is not None}
    connection = _connection(scheduler, scheduler_file)
    if bool(given) + bool(file) + bool(connection) > 1:
        raise click.UsageError("the machine is made up by options, or --machine's, or a cluster's: give one of them")
    if given and not (given.get("cpus") or given.get("gpus")):
        raise click.UsageError("a machine needs workers: give --cpus or --gpus")
    try:
        show_plan(expression, dtype, described(connection, file, given), html, as_json)
    except (TypeError, ValueError) as e:
        raise click.ClickException(str(e)) from e


@main.command(short_help="Show devices and their measured rates.")
@_scheduler_options
@_cluster_options
@click.option(
    "--json", "as_json", type=click.Path(dir_okay=False), help="Describe it in this file, for `plan --machine`."
)
def info(
    scheduler: str | None, scheduler_file: str | None, cpus: int | None, gpus: str, emulated_gpus: int | None,
    memory_limit: str, as_json: str | None,
) -> None:  # fmt: skip
    """Show the devices of this machine, or of a cluster, and their measured rates."""
    connection = _connection(scheduler, scheduler_file)
    cluster = None if connection else _cluster(cpus, gpus, emulated_gpus or 0, memory_limit)
    raise SystemExit(resolve("show_info")(connection, cluster, as_json))


@main.command(short_help="Measure products on a cluster, beside their predictions.")
@_scheduler_options
@_cluster_options
@click.option("--n", type=click.IntRange(2), help="Size of the matrices (by default sized to the machine).")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs, of which medians count.")
@click.option("--json", "as_json", type=click.Path(dir_okay=False), help="Write the figures to this file, too.")
def bench(
    n: int | None, repeats: int, as_json: str | None, scheduler: str | None, scheduler_file: str | None,
    cpus: int | None, gpus: str, emulated_gpus: int | None, memory_limit: str,
) -> None:  # fmt: skip
    """Measure products of square matrices on each kind of worker, and what a task costs.

    Each stands beside what its plan predicts and what the devices' rates allow. Operands lie on the CPU workers when
    the clock starts, results stay where they are made.
    """
    connection = _connection(scheduler, scheduler_file)
    cluster = None if connection else _cluster(cpus, gpus, emulated_gpus or 0, memory_limit)
    raise SystemExit(resolve("run_bench")(connection, cluster, n, repeats, as_json))


@main.command(short_help="Show which operations have derivative rules.")
def rules() -> None:
    """Show, as Markdown, which operations have derivative rules, and what they do at ties and singularities."""
    from taskgraph.rules import rules as page

    click.echo(page(), nl=False)


@main.command(
    add_help_option=False,
    short_help="Batch jobs of a SLURM cluster.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def slurm(args: tuple[str, ...]) -> None:
    """Print batch scripts, submit them, follow jobs and use their clusters: see `taskgraph slurm --help`."""
    resolve("slurm_commands")(args, prog_name="taskgraph slurm")


def _cluster(cpus: int | None, gpus: str, emulated_gpus: int | None, memory_limit: str) -> dict[str, Any]:
    """Arguments of `tg.LocalCluster`; `emulated_gpus` None means: two, where there is no real one."""
    if gpus != "auto" and not gpus.isdigit():
        raise click.BadParameter(f"a number or 'auto', not {gpus!r}", param_hint="--gpus")
    return {
        "cpu_workers": cpus,
        "gpus": gpus if gpus == "auto" else int(gpus),
        "emulated_gpus": emulated_gpus,
        "memory_limit": memory_limit,
    }


def _connection(scheduler: str | None, scheduler_file: str | None) -> dict[str, Any]:
    """Arguments of `distributed.Client`, none where no cluster is named."""
    if scheduler and scheduler_file:
        raise click.UsageError("give --scheduler or --scheduler-file, not both")
    found: dict[str, Any] = {"address": scheduler} if scheduler else {}
    found |= {"scheduler_file": scheduler_file} if scheduler_file else {}
    context = click.get_current_context()
    if tls := context.meta.get(f"{__name__}.tls"):
        if not found:
            raise click.UsageError("--tls is for the cluster that --scheduler or --scheduler-file names")
        try:
            found["security"] = resolve("load_keys")(Path(tls))
        except OSError as e:
            raise click.ClickException(str(e)) from e
    for name in ("cpus", "gpus", "emulated_gpus", "memory_limit"):
        if found and context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT):
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{option} is for a cluster started here; the one that you named has its own workers"
            )
    return found


if __name__ == "__main__":
    main()
