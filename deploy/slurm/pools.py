"""What the jobs of a pool are: their description, and the words of the batch script that dask-jobqueue makes of it."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from dask.utils import parse_bytes

from deploy.local import LOOPBACK, START_TIMEOUT_S, split_cores
from deploy.slurm.script import directive, quoted, seconds_of
from deploy.slurm.site import MemoryFlag, Site

KINDS = ("cpu", "gpu")

MEMORY_FLAGS: tuple[MemoryFlag, ...] = get_args(MemoryFlag)

#: So long before its job's end a worker retires at the latest, if the job is long enough. Chosen: a worker hands over
#: some 100 GB in it at 1 GB/s. Shorter jobs give a quarter of their time.
RETIRE_S = 120

#: Of a job, where nobody says otherwise.
DEFAULT_MEMORY = "4 GiB"

#: Of a job's memory; the rest is for nannies, and for what Python takes beyond a worker's limit before that is noticed.
#: SLURM would end the whole job. Chosen.
WORKERS_SHARE = 0.9

#: What SLURM's names of partitions, accounts and kinds of GPU are made of; nothing of it means anything to a shell.
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Jobs of one kind: what each asks SLURM for, and which workers run in it. What is None is the site's to say.

    partition, account: SLURM's; after the site, the user's jobqueue.yaml may name them.
    cores, memory: of each job; memory in bytes or as "16 GiB". Without a site a core for each worker, and 4 GiB.
    walltime: of each job in SLURM's form ("30" minutes, "1:30:00", "2-12"). Workers retire before it and hand over
    what they hold.
    workers: how many the cluster starts with.
    workers_per_job: processes that share a job's cores; None for one for each eight cores or so. A GPU pool has one a
    GPU, with one thread.
    gpus: of each job. gpu_type: as the site calls it, "a100".
    emulated: the GPU pool's workers stand in for GPUs where there are none (and say so); `gpus` then only counts them.
    memory_flag: how SLURM is asked for the memory: "mem", "mem-per-cpu", or "none" where the site refuses both.
    options: more options of sbatch, such as "--qos=night".
    prologue: lines of bash that run in the job before its workers, such as "module load python".
    local_directory: a fast disk of the node, for what workers spill; $TMPDIR or /tmp by default.

    Raises ValueError for what no job can be made of, naming the field.

    >>> Pool(partition="batch", cores=16, memory="64 GiB", walltime="2-12").walltime_s
    216000
    """

    partition: str | None = None
    cores: int | None = None
    memory: int | str | None = None
    walltime: str = "1:00:00"
    workers: int = 0
    workers_per_job: int | None = None
    gpus: int = 0
    gpu_type: str | None = None
    emulated: bool = False
    account: str | None = None
    memory_flag: MemoryFlag | None = None
    options: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    local_directory: str | None = None

    def __post_init__(self) -> None:
        for field, least in {"cores": 1, "workers": 0, "workers_per_job": 1, "gpus": 0}.items():
            value = getattr(self, field)
            if value is None and field in ("cores", "workers_per_job"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field} is a number, at least {least}, not {value!r}")
        if self.gpus and self.workers_per_job not in (None, self.gpus):
            raise ValueError(f"a job of {self.gpus} GPUs has a worker for each, not {self.workers_per_job}")
        for field in ("partition", "account", "gpu_type"):
            value = getattr(self, field)
            if value is not None and not _WORD.fullmatch(value):
                raise ValueError(f"{field} is a name of letters, digits and _.,:@+-, not {value!r}")
        for field in ("options", "prologue"):
            lines = getattr(self, field)
            if isinstance(lines, str) or any("\n" in line for line in lines):
                raise ValueError(f"{field} is a list of single lines, not {lines!r}")
            object.__setattr__(self, field, tuple(lines))
        if self.memory_flag not in (None, *MEMORY_FLAGS):
            raise ValueError(f"memory_flag is one of {', '.join(MEMORY_FLAGS)}, not {self.memory_flag!r}")
        if not all(option.startswith("-") for option in self.options):
            raise ValueError(f"options are sbatch's, as '--qos=night', not {self.options!r}")
        self.memory_bytes, self.walltime_s  # noqa: B018  they raise what a job would be refused for

    @property
    def job_cores(self) -> int:
        """Cores of each job."""
        return self.cores or self.gpus or self.workers_per_job or 1

    @property
    def processes(self) -> int:
        """Workers of each job."""
        return self.gpus or self.workers_per_job or split_cores(None, None, cores=self.job_cores)[0]

    @property
    def threads(self) -> int:
        """Task threads of each worker."""
        return 1 if self.gpus else self.job_cores // self.processes

    @property
    def memory_bytes(self) -> int:
        """Of each job."""
        return int(parse_bytes(DEFAULT_MEMORY if self.memory is None else self.memory))

    @property
    def workers_bytes(self) -> int:
        """Of all workers of a job together."""
        return int(WORKERS_SHARE * self.memory_bytes)

    @property
    def walltime_s(self) -> int:
        """Of each job."""
        return seconds_of(self.walltime)

    def jobs_for(self, workers: int) -> int:
        """How many jobs hold so many workers."""
        return math.ceil(workers / self.processes)


def as_pool(kind: str, given: Pool | Mapping[str, Any]) -> Pool:
    """The pool of a kind, "cpu" or "gpu", from its description or a mapping of its fields.

    Raises TypeError for fields that no pool has; ValueError where a CPU pool asks for GPUs or a GPU pool for none.
    """
    if isinstance(given, Mapping):
        known = [field.name for field in dataclasses.fields(Pool)]
        if unknown := sorted(given.keys() - known):
            raise TypeError(f"{kind}: a pool has no {', '.join(unknown)}; it has {', '.join(known)}")
        given = Pool(**given)
    if not isinstance(given, Pool):
        raise TypeError(f"{kind} is a deploy.slurm.Pool or a mapping of its fields, not {type(given).__name__}")
    if kind == "gpu" and not given.gpus:
        raise ValueError("gpu: its jobs ask for no GPU; say gpus=1")
    if kind == "cpu" and (given.gpus or given.gpu_type or given.emulated):
        raise ValueError("cpu: its jobs ask for GPUs; those are the gpu pool's")
    return given


def on_site(kind: str, pool: Pool, site: Site) -> Pool:
    """The pool with what the site wants of jobs of its kind, where the pool itself says nothing.

    >>> on_site("cpu", Pool(cores=2), Site(qos="night")).options
    ('--qos=night',)
    """
    nodes = site.gpu if kind == "gpu" else site.cpu
    theirs = {
        "account": site.account,
        "partition": nodes.partition,
        "cores": nodes.cpus_per_node,
        "memory": nodes.memory,
        "gpu_type": nodes.gpu_type if kind == "gpu" else None,
        "memory_flag": site.memory_flag,
    }
    options = [f"--qos={site.qos}"] if site.qos else []
    changes: dict[str, Any] = {name: value for name, value in theirs.items() if getattr(pool, name) is None}
    changes["options"] = (*options, *nodes.sbatch, *pool.options)
    changes["prologue"] = (*setup(site), *pool.prologue)
    return dataclasses.replace(pool, **changes)


def setup(site: Site) -> list[str]:
    """Lines of bash that the site wants in every job: its own, modules, variables.

    >>> setup(Site(modules=("python/3.12",), environment={"GREETING": "hello world"}))
    ['module load python/3.12 || exit', "export GREETING='hello world'"]
    """
    lines = [line for text in site.shell for line in text.splitlines()]
    lines += [f"module load {quoted(module)} || exit" for module in site.modules]
    return lines + [f"export {name}={quoted(value)}" for name, value in site.environment.items()]


def lifetime(walltime_s: int, index: int) -> tuple[int, int]:
    """After how many seconds the workers of a job retire, and by how many each may be sooner or later.

    index: the job's number in its pool. Jobs that began together retire one after another, over an eighth of their
    time, so that others are there to take what they hold, and a new job to follow each.

    >>> [lifetime(3600, index) for index in range(3)], lifetime(240, 1)
    ([(3465, 15), (3187, 15), (3359, 15)], (155, 7))
    """
    margin = min(RETIRE_S, walltime_s // 4)
    stagger = margin // 8
    # Multiples of the golden ratio spread evenly, however many jobs there are.
    later = int(walltime_s / 8 * (index * 0.618034 % 1))
    return walltime_s - margin - stagger - later, stagger


def lifetime_arguments(pool: Pool, name: str) -> list[str]:
    """What tells `dask worker` in a job of this name to retire in time."""
    seconds, stagger = lifetime(pool.walltime_s, job_index(name))
    return ["--lifetime", f"{seconds}s", "--lifetime-stagger", f"{stagger}s"]


def worker_names(name: str, processes: int) -> tuple[str, ...]:
    """What `dask worker` calls the workers of a job.

    >>> worker_names("cpu-0", 1), worker_names("gpu-1", 2)
    (('cpu-0',), ('gpu-1-0', 'gpu-1-1'))
    """
    return (name,) if processes == 1 else tuple(f"{name}-{i}" for i in range(processes))


def job_keywords(
    pool: Pool,
    *,
    job_name: str,
    folder: Path,
    tls: Mapping[str, str],
    interface: str | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """What dask-jobqueue's `SLURMJob` is told to make a job of the pool.

    job_name: of all jobs of the cluster, so that one scancel finds them. folder: where their logs go. tls: paths by
    option of `dask worker` ("tls-key"), never keys. interface: that the workers listen on.

    Raises ValueError for a job with more workers than cores, and for a folder that sbatch would read as another.
    """
    if pool.processes > pool.job_cores:
        raise ValueError(f"a job's {pool.processes} workers need a core each, and it has cores={pool.cores}")
    return {
        "queue": pool.partition,
        "account": pool.account,
        "walltime": pool.walltime,
        "job_name": job_name,
        # `dask worker` has the threads of all processes in one number.
        "cores": pool.gpus or pool.job_cores,
        "job_cpu": pool.job_cores,
        "memory": str(pool.workers_bytes),
        "job_mem": _megabytes(pool.memory_bytes),
        "processes": pool.processes,
        "job_directives_skip": () if pool.memory_flag in (None, "mem") else ("--mem=",),
        "job_extra_directives": _directives(pool, folder),
        "job_script_prologue": _prologue(pool),
        "worker_extra_args": _worker_arguments(pool, tls),
        "interface": interface,
        # In the shell's place, so that signals to the job reach the workers and not the shell alone.
        # -P: a folder called `workers` where the job is submitted is not ours.
        "python": f"exec {quoted(python)} -P",
        "worker_command": "distributed.cli.dask_worker",
        "shebang": "#!/bin/bash",
        "death_timeout": START_TIMEOUT_S,
        "local_directory": '"$scratch"',
    }


def _directives(pool: Pool, folder: Path) -> list[str]:
    lines = ["--nodes=1"]
    if pool.memory_flag == "mem-per-cpu":
        lines.append(f"--mem-per-cpu={_megabytes(pool.memory_bytes / pool.job_cores)}")
    if pool.gpus and not pool.emulated:
        lines.append(f"--gres=gpu:{pool.gpu_type}:{pool.gpus}" if pool.gpu_type else f"--gres=gpu:{pool.gpus}")
    # The cluster submits lost jobs again; SLURM doing so as well would start two for one.
    lines += ["--no-requeue", log_option(folder)]
    return [*lines, *pool.options]


def _megabytes(size: float) -> str:
    """SLURM's M is a mebibyte, and it takes whole ones."""
    return f"{math.ceil(size / 2**20)}M"


def log_option(folder: Path) -> str:
    """The option of sbatch that has a job's output written there, by the job's id.

    Raises ValueError for a folder that sbatch would read as something else.

    >>> print(log_option(Path("/project/me/run 1")))
    --output="/project/me/run 1/%j.log"
    """
    path = str(folder)
    if "%" in path or "\\" in path:
        raise ValueError(f"sbatch replaces % and \\ in paths of logs, so the folder cannot be {path!r}: give another")
    return directive("output", f"{path}/%j.log").removeprefix("#SBATCH ")


def _prologue(pool: Pool) -> list[str]:
    kind = "gpu" if pool.gpus else "cpu"
    device = "emulated-gpu" if pool.emulated else kind
    lines = [
        f"export TASKGRAPH_DEVICE={device}",
        "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True",
    ]
    if not pool.gpus:
        # A CUDA library in a CPU task would otherwise take device memory of whoever has the GPUs of the node.
        lines.append("export CUDA_VISIBLE_DEVICES=")
    return [*pool.prologue, *lines, *_scratch(pool.local_directory)]


def _scratch(parent: str | None) -> list[str]:
    """A folder on the node that only its owner can use (`deploy.scratch`): code and data are read from it."""
    place = "${TMPDIR:-/tmp}" if parent is None else quoted(parent)
    return [
        f"scratch={place}/dask-taskgraph-$UID",
        'mkdir -m 700 "$scratch" 2>/dev/null ||',
        '    { [ -O "$scratch" ] && [ ! -L "$scratch" ] && chmod 700 "$scratch"; } ||',
        '    scratch=$(mktemp -d "$scratch-XXXXXX") || exit',
    ]


def _worker_arguments(pool: Pool, tls: Mapping[str, str]) -> list[str]:
    arguments = ["--preload", "workers.plugin", "--preload-nanny", "deploy.slurm.preload", "--protocol", "tls"]
    for option, path in tls.items():
        arguments += [f"--{option}", quoted(path)]
    return [*arguments, "--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"]


def split_workers(total: int, running: Mapping[str, int]) -> dict[str, int]:
    """Workers of each pool for so many in all: CPU workers come and go first.

    running: workers by kind, of the pools that there are.

    >>> split_workers(5, {"cpu": 1, "gpu": 2}), split_workers(1, {"cpu": 1, "gpu": 2}), split_workers(3, {"gpu": 0})
    ({'cpu': 3, 'gpu': 2}, {'cpu': 0, 'gpu': 1}, {'gpu': 3})
    """
    if "cpu" not in running:
        return {"gpu": total}
    if "gpu" not in running:
        return {"cpu": total}
    gpu = min(running["gpu"], total)
    return {"cpu": total - gpu, "gpu": gpu}


def cheapest(names: Iterable[str], load: Mapping[str, tuple[int, int]], count: int) -> list[str]:
    """Which jobs to give up first: those without workers yet, then those with the least to do, to hold, and the last.

    load: tasks and bytes, by name of the jobs whose workers have come.

    >>> cheapest(["cpu-0", "cpu-1", "cpu-2"], {"cpu-0": (0, 10), "cpu-1": (3, 0)}, 2)
    ['cpu-2', 'cpu-0']
    """

    def cost(name: str) -> tuple[bool, tuple[int, int], int]:
        return name in load, load.get(name, (0, 0)), -job_index(name)

    return sorted(names, key=cost)[:count]


def new_names(kind: str, count: int, taken: Iterable[str]) -> list[str]:
    """The first free names of a kind.

    >>> new_names("gpu", 2, ["gpu-0", "gpu-2", "cpu-1"])
    ['gpu-1', 'gpu-3']
    """
    taken = set(taken)
    free = (f"{kind}-{i}" for i in range(len(taken) + count))
    return [name for name in free if name not in taken][:count]


def job_index(name: str) -> int:
    """The number in the name of a job.

    >>> job_index("gpu-12")
    12
    """
    return int(name.rpartition("-")[2])


def job_of(worker: str) -> str:
    """The job that a worker belongs to, by its name.

    >>> job_of("gpu-12-3"), job_of("cpu-0")
    ('gpu-12', 'cpu-0')
    """
    return "-".join(worker.split("-")[:2])


def kind_of(name: str) -> str:
    """The pool that a job or a worker belongs to.

    >>> kind_of("gpu-12-3")
    'gpu'
    """
    return name.partition("-")[0]
