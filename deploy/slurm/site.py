"""The site file: what one cluster wants in every job (account, partitions, modules, memory flags), as TOML."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dask.utils import parse_bytes

MemoryFlag = Literal["mem", "mem-per-cpu", "none"]

_TABLES = ("cpu", "gpu", "environment")


@dataclass(frozen=True)
class Pool:
    """The nodes of one kind. What is None or empty is left to SLURM, or to the command line.

    cpus_per_node: cores of one node that the job takes. memory: of one node, in bytes.
    gpu_type: as in `--gres=gpu:TYPE:N`. sbatch: more options of `sbatch` for this pool. srun: of `srun` for its steps.
    """

    partition: str | None = None
    cpus_per_node: int | None = None
    memory: str | None = None
    gpu_type: str | None = None
    sbatch: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """What a cluster wants in every job.

    interface: the network's name on the nodes (`ib0`) through which workers reach the scheduler.
    python: the interpreter on the nodes; None for the one that writes the script.
    modules: loaded by `module load` before Python starts. shell: lines of bash that run, as they stand, before that.
    environment: variables of all processes of the job. memory_flag: how memory is asked for: "mem" (`--mem`),
    "mem-per-cpu", or "none" where the site refuses both.
    """

    account: str | None = None
    qos: str | None = None
    interface: str | None = None
    python: str | None = None
    modules: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    memory_flag: MemoryFlag = "mem"
    environment: Mapping[str, str] = field(default_factory=dict)
    cpu: Pool = Pool()
    gpu: Pool = Pool()


def read_site(path: str | Path) -> Site:
    """The site of a TOML file.

    Raises ValueError, naming the file, the line and the key, for a key that is not known and for a value of another
    type; FileNotFoundError where there is no such file.
    """
    path = Path(path)
    try:
        return parse_site(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_site(text: str) -> Site:
    """The site that a TOML text describes.

    >>> parse_site('account = "p1"\\n[cpu]\\nmemory = "120GB"').cpu.memory
    '120GB'
    >>> parse_site('account = "p1"\\n[cpu]\\nmemroy = "120GB"')
    Traceback (most recent call last):
    ValueError: line 3: the key 'cpu.memroy' is not known; [cpu] may have partition, cpus_per_node, memory, gpu_type,
    sbatch, srun
    """
    document = tomllib.loads(text)
    for key, value in _leaves(document):
        problem = _problem(key, value)
        if problem:
            raise ValueError(f"line {line_of(key, text)}: {problem}")
    cpu, gpu = (Pool(**_frozen(document.pop(name, {}))) for name in ("cpu", "gpu"))
    return Site(cpu=cpu, gpu=gpu, **_frozen(document))


def is_variable(name: str) -> bool:
    """Whether bash takes this as the name of an environment variable."""
    return name.isascii() and name.isidentifier()


def line_of(key: tuple[str, ...], text: str) -> int:
    """The line, from 1, at which a TOML text first says something of a key.

    The parser tells no lines, so it is asked of ever more lines: the key stands behind the last beginning that is
    whole and does not have it.
    """
    lines = text.splitlines(keepends=True)
    before = 0
    for n in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("".join(lines[:n]))
        except tomllib.TOMLDecodeError:
            continue  # amid a value of several lines
        for part in key:
            value = value.get(part, _NOTHING) if isinstance(value, dict) else _NOTHING
        if value is not _NOTHING:
            return before + 1
        before = n
    raise KeyError(".".join(key))


_NOTHING = object()


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys and values of the document; a table that may not be there is a leaf, too."""
    for name, value in table.items():
        if isinstance(value, dict) and not above and name in _TABLES:
            yield from _leaves(value, (name,))
        else:
            yield (*above, name), value


def _problem(key: tuple[str, ...], value: Any) -> str | None:
    """What is wrong with a key and its value, in words."""
    *above, name = key
    shown = ".".join(key)
    if above == ["environment"]:
        if not is_variable(name):
            return f"{name!r} is no name of an environment variable"
        return None if isinstance(value, str) else f"the value of {shown!r} is a text, not {value!r}"
    owner = Pool if above else Site
    types_of = typing.get_type_hints(owner)
    if name not in types_of:
        where = f"[{above[0]}]" if above else "a site file"
        return f"the key {shown!r} is not known; {where} may have {', '.join(types_of)}"
    wanted = _wanted(types_of[name], value) or (_wanted_bytes(value) if name == "memory" else None)
    return wanted and f"the value of {shown!r} is {wanted}, not {value!r}"


def _wanted(kind: Any, value: Any) -> str | None:
    """What the value ought to be, where it is something else."""
    if kind == tuple[str, ...]:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return None if good else "a list of texts"
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        return None if value in allowed else f"one of {', '.join(map(repr, allowed))}"
    if isinstance(kind, types.UnionType) and int in typing.get_args(kind):
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if good else "a number, at least 1"
    if isinstance(kind, types.UnionType):
        return None if isinstance(value, str) and value else "a text"
    return "a table"


def _wanted_bytes(value: str) -> str | None:
    try:
        parse_bytes(value)
    except ValueError:
        return "a number of bytes, such as '240GB'"
    return None


def _frozen(table: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass that cannot change: lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
