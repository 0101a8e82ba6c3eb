"""The batch script of one job as text: a pure function of what the site wants and what the user asks for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dask.utils import parse_bytes

from deploy.local import split_cores
from deploy.slurm.site import Pool, Site, is_variable

#: SLURM looks at its jobs once a minute, and so may send the warning that much early.
EARLY_S = 60

#: Workers leave so long before the limit, after the script has saved.
LIFETIME_MARGIN_S = 60

#: The warning's seconds before the limit, if nobody says otherwise. Chosen: a few GB to a shared disk, with room.
WARN_SECONDS = 120

#: Cores beside each GPU: one computes, one is for the network and for Python.
CPUS_PER_GPU = 2

#: Of a node's memory, for the scheduler and the user's script, which the first node has besides its workers. Chosen.
HEAD_FRACTION = 0.1

#: An option of `sbatch`: name and value, where None leaves it out; or one of the site's, as it is written there.
Option = tuple[str, str | int | None] | str

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})", re.ASCII)


@dataclass(frozen=True)
class JobRequest:
    """What the user asks for. What is None is the site's to say.

    script, args: the user's script. time: as `sbatch --time` takes it. nodes, cpus_per_node: nodes with CPU workers and
    cores of each that the job takes. threads: of each CPU worker. gpus, gpu_nodes: all GPUs, on so many nodes.
    one_node: the GPUs are on the node of the CPU workers, whose cores they share. folder: the run folder, an absolute
    path in which %j stands for the job's number; the log stands beside it. resume: go on in a folder that is there.
    """

    script: str
    args: tuple[str, ...] = ()
    time: str = ""
    partition: str | None = None
    gpu_partition: str | None = None
    nodes: int = 1
    cpus_per_node: int | None = None
    threads: int | None = None
    gpus: int = 0
    gpu_nodes: int = 1
    cpus_per_gpu: int = CPUS_PER_GPU
    one_node: bool = False
    name: str | None = None
    folder: str = ""
    resume: bool = False
    warn_seconds: int = WARN_SECONDS


@dataclass(frozen=True)
class Shares:
    """How the cores and bytes of the nodes are shared out among workers, one a task of a step.

    workers: CPU workers on each node, of so many threads; worker_memory, gpu_worker_memory: bytes of each, None where
    the site does not say.
    """

    one_node: bool
    workers: int
    threads: int
    gpus_per_node: int
    worker_memory: int | None
    gpu_worker_memory: int | None


def render(site: Site, request: JobRequest) -> str:
    """The text of a batch script, for `sbatch` as it is and for a person to edit.

    No text of the user's or the site's is executed but the lines of `site.shell`. Raises ValueError for what no job can
    be, such as a time limit shorter than the save warning, or a line break in an option of `sbatch`.
    """
    check_times(request)
    shares = share(site, request)
    lines = ["#!/bin/bash" + (" -l" if site.modules else "")]  # a login shell: there alone `module` is sure to be
    lines += [
        f"# {described(request, shares)}",
        "# Written by `taskgraph slurm script`; edit it, and give it to sbatch.",
    ]
    lines += ["", *_common(site, request)]
    pools = list(_pools(site, request, shares))
    for i, (title, options) in enumerate(pools):
        # A heterogeneous job's options are its components' own: those above count for the first one alone.
        own = _limits(site, request) if i else []
        lines += ["", *["#SBATCH hetjob"] * bool(i), f"# {title}", *_directives([*own, *options])]
    lines += ["", *_setup(site, request)]
    return "\n".join([*lines, *_command(site, request, shares, het=len(pools) > 1), ""])


def described(request: JobRequest, shares: Shares) -> str:
    """One sentence about the job, of numbers alone: it stands in a comment."""
    gpus = f"{request.gpus} GPU{'s' * (request.gpus != 1)}"
    if shares.one_node:
        return f"One node with {gpus}: the scheduler, the script and all workers."
    nodes = f"{request.nodes} CPU node{'s' * (request.nodes != 1)}"
    if not request.gpus:
        return f"{nodes}; the scheduler and the script run on the first."
    there = f"{request.gpu_nodes} GPU node{'s' * (request.gpu_nodes != 1)}"
    return f"{nodes}, where the scheduler and the script run on the first, and {there} with {gpus}."


def share(site: Site, request: JobRequest) -> Shares:
    """Workers, threads and bytes on each node. Raises ValueError, saying what to give, where they cannot be."""
    for name in ("nodes", "gpu_nodes", "cpus_per_gpu"):
        if getattr(request, name) < 1:
            raise ValueError(f"{option(name)} is at least 1, not {getattr(request, name)}")
    if request.gpus < 0:
        raise ValueError(f"--gpus is at least 0, not {request.gpus}")
    one_node = bool(request.gpus) and (request.one_node or not (request.gpu_partition or site.gpu.partition))
    if one_node and (request.nodes, request.gpu_nodes) != (1, 1):
        raise ValueError(
            "one node with GPUs is --nodes 1; for CPU nodes beside GPU nodes say which those are: --gpu-partition NAME"
        )
    if request.gpus % request.gpu_nodes:
        raise ValueError(f"--gpus {request.gpus} cannot be shared out among --gpu-nodes {request.gpu_nodes} alike")
    kind, pool = ("gpu", site.gpu) if one_node else ("cpu", site.cpu)
    cores = request.cpus_per_node or pool.cpus_per_node
    if cores is None:
        raise ValueError(
            f"how many cores of a node: give --cpus-per-node N, or [{kind}] cpus_per_node in the site file"
        )
    gpus_per_node = request.gpus // request.gpu_nodes
    free = cores - gpus_per_node * request.cpus_per_gpu if one_node else cores
    if free < (request.threads or 1):
        raise ValueError(
            f"--cpus-per-node {cores} leaves {max(0, free)} core(s) for CPU workers, which take {request.threads or 1}"
            + (f"; each of {gpus_per_node} GPU(s) takes {request.cpus_per_gpu} (--cpus-per-gpu)" if one_node else "")
        )
    workers, threads = split_cores(None, request.threads, cores=free)
    threads = min(threads, free // workers)  # steps never take more cores than the job has
    worker_memory = _part(pool.memory, workers + gpus_per_node * one_node)
    gpu_worker_memory = worker_memory if one_node else _part(site.gpu.memory, gpus_per_node)
    return Shares(one_node, workers, threads, gpus_per_node, worker_memory, gpu_worker_memory)


def _part(memory: str | None, workers: int) -> int | None:
    """Bytes of each of so many workers on a node."""
    return int((1 - HEAD_FRACTION) * parse_bytes(memory)) // workers if memory and workers else None


def check_times(request: JobRequest) -> None:
    """Raise ValueError where the job would be warned of its end before it could begin."""
    limit = seconds_of(request.time)
    if request.warn_seconds < 2:
        raise ValueError(f"--warn-seconds is at least 2, not {request.warn_seconds}")
    if limit < request.warn_seconds + EARLY_S:
        raise ValueError(
            f"--time {request.time} ({limit} s) is shorter than the save warning: {request.warn_seconds} s before the "
            f"limit (--warn-seconds), which SLURM sends up to {EARLY_S} s early"
        )


def seconds_of(time: str) -> int:
    """Seconds of a time limit as `sbatch` reads it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises ValueError for anything else, and for no limit at all (0, UNLIMITED): a job could not be warned of it.

    >>> seconds_of("90"), seconds_of("1:30"), seconds_of("01:00:00"), seconds_of("1-12"), seconds_of("2-0:30")
    (5400, 90, 3600, 129600, 174600)
    """
    found = _TIME.fullmatch(time)
    if not found:
        raise ValueError(
            f"a time limit is MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]], not {time!r}"
        )
    numbers = [int(n) for n in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = numbers + [0] * (3 - len(numbers))
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = (((int(found["days"] or 0) * 24) + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ValueError(f"a time limit of {time!r} means none; say how long the job may take")
    return total


def quoted(text: str) -> str:
    """The text as one word of bash, on one line, of which nothing is executed.

    Line breaks are written as escapes: sbatch reads comments for other batch systems anywhere in a script, and a line
    of an argument could be one. Raises ValueError for a NUL, which no argument may hold.

    >>> print(quoted("a b"), quoted("x$(y)"), quoted("two\\nlines"))
    'a b' 'x$(y)' $'two\\nlines'
    """
    if "\0" in text:
        raise ValueError(f"{text!r} holds a NUL, which no argument can")
    if text.isprintable():
        return shlex.quote(text)
    escapes = {"\n": r"\n", "'": r"\'", "\\": r"\\"}
    return "$'" + "".join(escapes.get(c) or (c if c.isprintable() else _octal(c)) for c in text) + "'"


def _octal(character: str) -> str:
    """Its bytes as escapes of exactly three digits, so that a digit behind them stays one of the text's."""
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def printable(text: str) -> str:
    """The text with _ for what cannot stand in an option of sbatch."""
    return "".join(c if c.isprintable() else "_" for c in text)


def directive(name: str, value: str | int) -> str:
    """One option of `sbatch` as a line, its value quoted in the way that sbatch itself undoes.

    Raises ValueError for line breaks and other control characters.

    >>> print(directive("job-name", "a b"), directive("output", "/scratch/my#hetjob.log"))
    #SBATCH --job-name="a b" #SBATCH --output="/scratch/my#het\\job.log"
    """
    text = str(value)
    if not text.isprintable():
        raise ValueError(f"--{name}={text!r} holds a line break or another control character, which sbatch cannot read")
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII) and not re.search("(?:het|pack)job", text, re.IGNORECASE):
        return f"#SBATCH --{name}={text}"
    text = re.sub(r'(["\\])', r"\\\1", text)
    # sbatch takes every line that has this word anywhere for the border of two components
    text = re.sub("(het|pack)(job)", r"\1\\\2", text, flags=re.IGNORECASE)
    return f'#SBATCH --{name}="{text}"'


def option(name: str) -> str:
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")


def _directives(options: Sequence[Option]) -> list[str]:
    """Lines for sbatch; None says nothing. A text alone is the site's own option, as `--NAME=VALUE` or `--NAME`."""
    lines = []
    for item in options:
        if not isinstance(item, str):
            name, value = item
            lines += [] if value is None else [directive(name, value)]
            continue
        found = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.*))?", item, re.DOTALL)
        if not found:
            raise ValueError(f"an option for sbatch is --NAME=VALUE or --NAME, not {item!r}")
        lines.append(f"#SBATCH --{found[1]}" if found[2] is None else directive(found[1], found[2]))
    return lines


def _limits(site: Site, request: JobRequest) -> list[Option]:
    """What every component of a job is told."""
    return [("account", site.account), ("qos", site.qos), ("time", request.time)]


def _common(site: Site, request: JobRequest) -> list[str]:
    options: list[Option] = [
        ("job-name", request.name or printable(PurePosixPath(request.script).stem)),
        ("output", _checked_folder(request.folder) + ".log"),
        ("open-mode", "append"),
        *_limits(site, request),
    ]
    return [
        *_directives(options),
        "# So long before the limit the job is told to save; it then goes back into the queue, and goes on from there.",
        *_directives([("signal", f"B:USR1@{request.warn_seconds}"), "--requeue"]),
    ]


def _checked_folder(folder: str) -> str:
    """The folder, in which sbatch shall replace nothing but %j, and we the same."""
    if not folder.startswith("/"):
        raise ValueError(f"the run folder is an absolute path, not {folder!r}")
    if "\\" in folder or "%" in folder.replace("%j", ""):
        raise ValueError(f"in the run folder {folder!r}, %j stands for the job's number; no other % and no \\ can be")
    return folder


def _pools(site: Site, request: JobRequest, shares: Shares) -> Iterator[tuple[str, list[Option]]]:
    """A title and sbatch's options for each component of the job."""
    # `--gres`, not `--gpus-per-node`: every step would take all GPUs, for srun reads that one from its environment.
    gres = ":".join(["gpu", *([site.gpu.gpu_type] if site.gpu.gpu_type else []), str(shares.gpus_per_node)])
    gpu_partition = request.gpu_partition or site.gpu.partition
    node: list[Option]
    if shares.one_node:
        cores = shares.workers * shares.threads + shares.gpus_per_node * request.cpus_per_gpu
        partition = request.gpu_partition or request.partition or site.gpu.partition or site.cpu.partition
        node = [("partition", partition), ("nodes", 1), ("ntasks", 1), ("cpus-per-task", cores), ("gres", gres)]
        yield "The node.", [*node, *_memory(site, site.gpu, cores), *site.gpu.sbatch]
        return
    node = [("partition", request.partition or site.cpu.partition), ("nodes", request.nodes)]
    node += [("ntasks-per-node", shares.workers), ("cpus-per-task", shares.threads)]
    yield "CPU nodes.", [*node, *_memory(site, site.cpu, shares.workers * shares.threads), *site.cpu.sbatch]
    if request.gpus:
        node = [("partition", gpu_partition), ("nodes", request.gpu_nodes), ("ntasks-per-node", shares.gpus_per_node)]
        node += [("cpus-per-task", request.cpus_per_gpu), ("gres", gres)]
        cores = shares.gpus_per_node * request.cpus_per_gpu
        yield "GPU nodes.", [*node, *_memory(site, site.gpu, cores), *site.gpu.sbatch]


def _memory(site: Site, pool: Pool, cores: int) -> list[Option]:
    """The option that asks for a node's memory, in SLURM's M of 2**20 bytes."""
    if not pool.memory or site.memory_flag == "none":
        return []
    mebibytes = parse_bytes(pool.memory) // 2**20
    if site.memory_flag == "mem-per-cpu":
        return [("mem-per-cpu", f"{mebibytes // cores}M")]
    return [("mem", f"{mebibytes}M")]


def _setup(site: Site, request: JobRequest) -> list[str]:
    """What runs before Python: the site's own lines of bash, modules, variables."""
    for module in site.modules:
        if module.startswith("-"):
            raise ValueError(f"the module {module!r} would be an option of `module load`")
    log = _folder_word(request.folder + ".log")
    lines = [f"chmod 600 {log}  # the log is its owner's alone, as all of the run folder", *site.shell]
    lines += [f"module load {quoted(module)} || exit 1" for module in site.modules]
    for name in site.environment:
        if not is_variable(name):
            raise ValueError(f"{name!r} is no name of an environment variable")
    lines += [f"export {name}={quoted(value)}" for name, value in site.environment.items()]
    return [*lines, ""]


def _command(site: Site, request: JobRequest, shares: Shares, het: bool) -> list[str]:
    """The one command of the script: the supervisor, with the steps that it starts and the user's script."""
    python = site.python or "python3"
    cpu, gpu = _steps(site, request, shares, het)
    words = [f"--folder {_folder_word(request.folder)}", f"--cpu-step {quoted(cpu)}"]
    if request.gpus:
        words += [f"--gpu-step {quoted(gpu)}", f"--gpu-steps {request.gpus}"]
    words += [f"--threads {shares.threads}"]
    if shares.worker_memory:
        words += [f"--memory-limit {shares.worker_memory}"]
    if request.gpus and shares.gpu_worker_memory:
        words += [f"--gpu-memory-limit {shares.gpu_worker_memory}"]
    if site.interface:
        words += [f"--interface {quoted(site.interface)}"]
    margin = min(LIFETIME_MARGIN_S, request.warn_seconds // 2)
    words += [f"--warn-seconds {request.warn_seconds}", f"--lifetime-margin {margin}"] + ["--resume"] * request.resume
    words += [" ".join(["--", quoted(request.script), *map(quoted, request.args)])]
    steps_say_all = [
        "# The steps say all that they need; srun would take these for them, too.",
        "unset SLURM_CPUS_PER_TASK SLURM_NTASKS_PER_NODE SLURM_TRES_PER_TASK",
        "",
    ]
    # -P: a folder called `deploy` where the job is submitted is not ours
    return steps_say_all + " \\\n    ".join([f"exec {quoted(python)} -P -m deploy.slurm.job", *words]).split("\n")


def _folder_word(folder: str) -> str:
    """The run folder as a word of bash, with the job's number for %j. A heterogeneous job's is its first component's,
    as in the log's name."""
    return '"$SLURM_JOB_ID"'.join(quoted(part) if part else "" for part in folder.split("%j"))


def _steps(site: Site, request: JobRequest, shares: Shares, het: bool) -> tuple[str, str]:
    """Commands that the supervisor puts before a worker's: one for all CPU workers, one for each GPU's.

    --mem=0: a step that says nothing takes all memory of the job, and the next one waits for it for ever.
    --gres=none: the CPU workers' step would take the GPUs. --cpus-per-task: srun does not ask sbatch's since 22.05.
    """
    n = request.nodes
    cpu = ["srun", *["--het-group=0"] * het, f"--nodes={n}", f"--ntasks={n * shares.workers}"]
    cpu += [f"--ntasks-per-node={shares.workers}", f"--cpus-per-task={shares.threads}", "--exact", "--mem=0"]
    gpu = ["srun", *["--het-group=1"] * het, "--nodes=1", "--ntasks=1", f"--cpus-per-task={request.cpus_per_gpu}"]
    gpu += ["--exact", "--mem=0", "--gpus-per-task=1"]
    cpu_pool = site.gpu if shares.one_node else site.cpu
    return (
        shlex.join([*cpu, *["--gres=none"] * shares.one_node, *cpu_pool.srun]),
        shlex.join([*gpu, *site.gpu.srun]),
    )
