"""The machine: devices and links as data, measured, read from a cluster or a file, or made up."""

from __future__ import annotations

import functools
import json
import math
import statistics
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT

from taskgraph.expr import DType

KINDS = ("cpu", "gpu")

#: Seconds that a task costs end to end (measured, 2 workers of one host: 0.5 ms).
TASK_SECONDS = 0.5e-3
#: Seconds to wait for a cluster's first worker (chosen: importing CuPy from a network's disk takes so long).
START_SECONDS = 30
#: Bytes per second between two processes of one host through Dask (measured: about 1 GB/s).
LINK_BYTES_PER_S = 1e9
#: Pairs of hosts between which the network is measured (chosen: enough for a median that one odd host does not move).
PROBED_PAIRS = 5
#: Bytes per second between a host and its GPU where it was not measured (PCIe 3 x16 in practice).
HOST_DEVICE_BYTES_PER_S = 12e9


@dataclass(frozen=True)
class Device:
    """One worker's device.

    kind: "cpu" or "gpu". memory_bytes: what it may hold. gflops: GEMM rate in 1e9 operations per second with all its
    threads at work, a number or one per dtype name. name: the worker's name. threads: tasks that it runs at once.
    emulated: stands for a GPU, computes on the CPU.
    """

    kind: str
    memory_bytes: int
    gflops: float | Mapping[str, float]
    name: str = ""
    threads: int = 1
    host_device_bytes_per_s: float | None = None
    emulated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Device: kind is one of {KINDS}, not {self.kind!r}")
        if self.memory_bytes <= 0 or self.threads <= 0:
            raise ValueError(f"Device {self.name!r}: memory_bytes and threads must be positive")
        rates = self.gflops.values() if isinstance(self.gflops, Mapping) else [self.gflops]
        if not rates or min(rates) <= 0:
            raise ValueError(f"Device {self.name!r}: gflops must be positive, got {self.gflops!r}")

    def rate(self, dtype: DType) -> float:
        """Operations per second of one of its tasks on products of that dtype.

        A dtype that was not measured is taken to cost what float64 costs: so does BLAS treat what it promotes.
        """
        known = self.gflops
        if isinstance(known, Mapping):
            known = known.get(dtype.name) or known.get("float64") or max(known.values())
        return float(known) * 1e9 / self.threads

    @property
    def identity(self) -> tuple[str, str, int, bool]:
        """What stays when a device is measured again."""
        return self.name, self.kind, self.threads, self.emulated

    def computes(self, dtype: DType) -> bool:
        """Whether it has arithmetic of that dtype: an emulated GPU has the array API's types, not float16."""
        return not self.emulated or dtype != "float16"

    @property
    def link(self) -> float:
        """Bytes per second between the host's memory and the device's; infinite for a CPU."""
        if self.kind == "cpu":
            return float("inf")
        return self.host_device_bytes_per_s or HOST_DEVICE_BYTES_PER_S


@dataclass(frozen=True)
class Machine:
    """Devices, and what moving between them and starting a task costs.

    >>> m = Machine(devices=[Device("cpu", 2**34, 100.0, "cpu-0"), Device("gpu", 2**34, 9000.0, "gpu-0")])
    >>> [d.name for d in m.of_kind("gpu")]
    ['gpu-0']
    """

    devices: tuple[Device, ...]
    link_bytes_per_s: float = LINK_BYTES_PER_S
    task_seconds: float = TASK_SECONDS
    is_cluster: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("Machine: needs at least one device")
        count: dict[str, int] = {}
        named = []
        for d in self.devices:
            n = count[d.kind] = count.get(d.kind, -1) + 1
            named.append(d if d.name else Device(**{**d.__dict__, "name": f"{d.kind}-{n}"}))
        object.__setattr__(self, "devices", tuple(named))

    def __repr__(self) -> str:
        kinds: dict[str, list[Device]] = {}
        for d in self.devices:
            kinds.setdefault(d.kind + (" (emulated)" if d.emulated else ""), []).append(d)
        parts = [f"{len(ds)} {kind}: {ds[0].name}{' ...' if len(ds) > 1 else ''}" for kind, ds in kinds.items()]
        return f"Machine({', '.join(parts)})"

    def of_kind(self, kind: str) -> tuple[Device, ...]:
        """The devices of a kind, in order."""
        return tuple(d for d in self.devices if d.kind == kind)

    @property
    def home(self) -> str:
        """The kind of device that everything but products runs on: CPUs, unless there are none."""
        return "cpu" if self.of_kind("cpu") else "gpu"

    def to_file(self, path: str | Path) -> None:
        """Write the description as JSON, for `from_file` on any other machine."""
        Path(path).write_text(self.to_json() + "\n")

    def to_json(self) -> str:
        """The description as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_file(cls, path: str | Path) -> Machine:
        """The machine that `to_file` described, or a person: a JSON object with the fields of `Machine` and a list
        `devices` of objects with those of `Device`. ValueError, naming the file, where it describes none.

        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "machine.json")
        >>> m = Machine(devices=[Device("cpu", 2**34, 100.0), Device("gpu", 2**34, {"float32": 9000.0})])
        >>> m.to_file(path)
        >>> Machine.from_file(path) == m
        True
        """
        try:
            return cls.from_json(Path(path).read_text())
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            what = f"it lacks {e}" if isinstance(e, KeyError) else e
            raise ValueError(f"{path} describes no machine: {what}") from e

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """The machine that `to_json` described."""
        known = json.loads(text)
        return cls(**{**known, "devices": tuple(Device(**d) for d in known["devices"])})

    def as_known(self, before: Machine) -> Machine:
        """The machine to plan for so that plans stay those that were made for `before`.

        That is `before` itself where all devices of this one were there (one that is missing comes again, or others do
        its work); else this machine with the rates that `before` has of the devices that it knows. The same device has
        the same name, kind and threads, and no less memory.
        """
        known = {d.identity: d for d in before.devices}
        found = [(known.get(d.identity), d) for d in self.devices]
        same = [k if k is not None and k.memory_bytes <= d.memory_bytes else None for k, d in found]
        if all(same):
            return before
        return replace(self, devices=tuple(k or d for k, d in zip(same, self.devices, strict=True)))

    @classmethod
    def local(cls) -> Machine:
        """This process: one CPU device of all cores, whose BLAS uses them together; its rate is measured once."""
        from workers.backend import host

        profile = _own_profile()
        name = host().name
        return cls((Device("cpu", profile["memory"], profile["gflops"], f"local ({name})"),), is_cluster=False)

    @classmethod
    def from_client(cls, client: Any) -> Machine:
        """The workers of the cluster that a `distributed.Client` is connected to, by the profiles they published.

        Workers without a profile (started without our preload) are measured once, where they are; so is the network,
        where workers are on several hosts. ValueError where the cluster has no worker.
        """
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            try:
                client.wait_for_workers(1, timeout=START_SECONDS)
            except TimeoutError:
                raise ValueError(
                    f"the cluster at {client.scheduler.address} has no worker to plan for; start some"
                ) from None
            workers = client.scheduler_info(n_workers=-1)["workers"]
        found = from_workers(workers, lambda missing: _measure(client, missing))
        return replace(found, link_bytes_per_s=_link(client, workers))


@functools.cache
def _own_profile() -> dict[str, Any]:
    from taskgraph.upward import resolve
    from workers.backend import host

    found: dict[str, Any] = resolve("profile")(host(), blas_threads=CPU_COUNT)
    return found


#: Profiles of workers that published none, by the client that measured them.
_measured: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def _measure(client: Any, addresses: list[str]) -> Mapping[str, Any]:
    from taskgraph.upward import resolve
    from workers.backend import host

    known = _measured.setdefault(client, {})
    new = [a for a in addresses if a not in known]
    if new:
        known.update(client.run(lambda: resolve("profile")(host()), workers=new))
    return {a: known[a] for a in addresses}


#: Bytes per second between hosts as the scheduler has them, by the client that asked and the number of hosts.
_links: weakref.WeakKeyDictionary[Any, dict[int, float]] = weakref.WeakKeyDictionary()


def _link(client: Any, workers: Mapping[str, Mapping[str, Any]]) -> float:
    """What one worker gets from another, in bytes per second: on one host a constant, between hosts measured once.

    The scheduler remembers it, so that all clients make the same plans; anew where there are more hosts, or fewer.
    """
    hosts = {w["host"]: address for address, w in sorted(workers.items(), reverse=True)}
    if len(hosts) == 1:
        return LINK_BYTES_PER_S
    known = _links.setdefault(client, {})
    if len(hosts) not in known:
        where = ["taskgraph", "link_bytes_per_s", str(len(hosts))]
        found = client.get_metadata(where, None)
        if found is None:
            found = stepped(_probed(client, [hosts[host] for host in sorted(hosts)]))
            client.set_metadata(where, found)
        known[len(hosts)] = found
    return known[len(hosts)]


def _probed(client: Any, ring: list[str]) -> float:
    """The median rate at which workers get bytes from the one before them."""
    from taskgraph.upward import resolve

    pairs = list(zip(ring, ring[1:] + ring[:1], strict=True))[:PROBED_PAIRS]
    rates = [client.run(resolve("bytes_per_s"), source, workers=[to])[to] for source, to in pairs]
    return float(statistics.median(rates))


def stepped(bytes_per_s: float) -> float:
    """The nearest power of two times 1 GB/s: two measurements of one network should give the same plans, thus bits.

    >>> stepped(1.17e9), stepped(11.2e9), stepped(0.11e9)
    (1000000000.0, 8000000000.0, 125000000.0)
    """
    return float(2.0 ** round(math.log2(bytes_per_s / 1e9)) * 1e9)


def from_workers(workers: Mapping[str, Mapping[str, Any]], measure: Any = None) -> Machine:
    """A machine from the scheduler's description of its workers, keyed by address.

    measure: gives the profiles of a list of workers that published none; they count as CPU workers.
    """
    missing = [a for a, w in workers.items() if "taskgraph" not in w]
    found = measure(missing) if missing and measure else {}
    devices = []
    for address, w in sorted(workers.items(), key=lambda item: _natural(str(item[1]["name"]))):
        p = w.get("taskgraph") or found.get(address) or {}
        devices.append(
            Device(
                kind=p.get("kind", "cpu"),
                memory_bytes=int(p.get("memory") or w.get("memory_limit") or 2**33),
                gflops=p.get("gflops") or {"float32": 50.0, "float64": 25.0},
                name=str(w["name"]),
                threads=int(w.get("nthreads", 1)),
                host_device_bytes_per_s=p.get("host_to_device_bytes_per_s"),
                emulated=bool(p.get("emulated")),
            )
        )
    return Machine(tuple(devices))


def _natural(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)
