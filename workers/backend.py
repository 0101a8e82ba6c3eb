"""The array namespace of this process's device, and the way to it and back.

A process has one backend: the host's NumPy, unless a worker's setup chose a GPU. Kernels never ask which one
it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np

from workers import at_rest, emulated, memory
from workers.cache import KEPT_AT_LEAST, SHARE, SMALLEST_BYTES, DeviceCache
from workers.counters import count
from workers.emulated import EMULATED_DEVICE

#: An upload that has begun: called, it gives the array, which this thread's further work on the device may use.
Upload = Callable[[], Any]


@dataclass(frozen=True)
class Shares:
    """What of a GPU's memory is not for the task at work: bytes for results, for copies of operands, and how large a
    copy is that is kept."""

    results: int
    copies: int
    smallest_copy: int
    largest_copy: int


def shares_of(memory_bytes: int) -> Shares:
    """How the memory of a GPU is shared out.

    >>> shares_of(2**20).results
    524288
    """
    copies = int(SHARE * memory_bytes)
    return Shares(int(at_rest.SHARE * memory_bytes), copies, SMALLEST_BYTES, copies // KEPT_AT_LEAST)


@dataclass(frozen=True)
class Backend:
    """A device class of this process: its array namespace and the copies to and from it.

    kind: "cpu" or "gpu"; name: what a person calls the device; emulated: whether it only stands in for a GPU;
    xp: the array API namespace of its arrays; array_type: the class of its arrays; cache: copies of host arrays that
    stay on the device, nothing at first.

    >>> host().kind, host().emulated
    ('cpu', False)
    """

    kind: str
    name: str
    emulated: bool
    xp: Any = field(repr=False)
    array_type: type = field(repr=False)
    _begin_upload: Callable[[np.ndarray], Upload] = field(repr=False)
    _to_host: Callable[[Any], np.ndarray] = field(repr=False)
    _synchronize: Callable[[], None] = field(repr=False)
    _free_pools: Callable[[], None] = field(default=lambda: None, repr=False)
    _is_out_of_memory: Callable[[BaseException], bool] = field(default=lambda error: False, repr=False)
    _memory_bytes: Callable[[], float] = field(default=lambda: math.inf, repr=False)
    cache: DeviceCache = field(default_factory=lambda: DeviceCache(0), repr=False, compare=False)

    def to_device(self, host: np.ndarray, *, keep: bool = False) -> Any:
        """The array on this device: a copy on a GPU, the array itself on the host. keep: as of `begin_upload`."""
        return self.begin_upload(host, keep=keep)()

    def begin_upload(self, host: np.ndarray, *, keep: bool = False) -> Upload:
        """Start to copy the array to the device; what is given back waits for it.

        keep: take the copy from the cache, and leave it there for others, as long as nobody changes the array.
        """
        known: Upload | None = self.cache.get(host) if keep else None
        if known is not None:
            return known
        upload = self._begin_or_none(host)
        if upload is None:  # the cache is the first to give, before a task has to be done again
            self.free()
            upload = self._begin_upload(host)
        if self.kind == "gpu":
            count("bytes_uploaded", host.nbytes)
        if keep:
            self.cache.put(host, upload)
        return upload

    def _begin_or_none(self, host: np.ndarray) -> Upload | None:
        """None where there is no room, but would be some without the cache."""
        try:
            return self._begin_upload(host)
        except Exception as error:
            if not self.cache.held_bytes or not self.is_out_of_memory(error):
                raise
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error says that this device (not the host) had no room."""
        return self._is_out_of_memory(error)

    def results_bytes(self) -> float:
        """How much of this device results may take between tasks."""
        return at_rest.SHARE * self._memory_bytes()

    def free(self) -> None:
        """Give back what is only kept in case it is wanted again: the cache, and what the pools hold."""
        self.cache.clear()
        self._free_pools()

    def to_host(self, array: Any) -> np.ndarray:
        """The array as NumPy's: a copy from a GPU, the array itself on the host."""
        return self._to_host(array)

    def synchronize(self) -> None:
        """Wait until the device has done what this thread asked of it."""
        self._synchronize()

    def owns(self, value: Any) -> bool:
        """Whether `value` is an array of this device."""
        return isinstance(value, self.array_type)


_current: Backend | None = None

#: The backend that this thread works on for a while, instead of its process's.
_meanwhile = threading.local()


def current() -> Backend:
    """The backend of this process (of this thread, inside `within`); the host's NumPy unless `use` said otherwise."""
    here: Backend | None = getattr(_meanwhile, "backend", None) or _current
    return host() if here is None else here


@contextlib.contextmanager
def within(backend: Backend) -> Iterator[None]:
    """This thread works on `backend` inside the block."""
    before = getattr(_meanwhile, "backend", None)
    _meanwhile.backend = backend
    try:
        yield
    finally:
        _meanwhile.backend = before


def use(backend: Backend | None) -> None:
    """Make `backend` this process's; None goes back to the host's NumPy."""
    global _current
    _current = backend


@functools.cache
def host() -> Backend:
    """NumPy in host memory."""
    return Backend(
        kind="cpu",
        name=_cpu_model(),
        emulated=False,
        xp=numpy_namespace,
        array_type=np.ndarray,
        _begin_upload=lambda array: lambda: array,
        _to_host=lambda array: array,
        _synchronize=lambda: None,
    )


def cupy_gpu(memory_fraction: float = memory.DEVICE_FRACTION) -> Backend:
    """CuPy on this process's first device, which is the one that CUDA_VISIBLE_DEVICES pins.

    memory_fraction: the part of the device's memory that CuPy's pool may take, in (0, 1].

    Raises RuntimeError, saying why, without CuPy or without a device.
    """
    tokens, reason = probe_gpus()
    if not tokens:
        raise RuntimeError(f"no GPU can be used in this process: {reason}")
    import array_api_compat.cupy as cupy_namespace
    import cupy

    from workers import cupy_memory

    cupy.cuda.Device(0).use()
    pool_bytes = memory.bound_device_pool(memory_fraction)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return Backend(
        kind="gpu",
        name=name.decode() if isinstance(name, bytes) else str(name),
        emulated=False,
        xp=cupy_namespace,
        array_type=cupy.ndarray,
        _begin_upload=cupy_memory.begin_upload,
        _to_host=cupy.asnumpy,
        # The stream is the thread's: a task waits for what it launched itself, and for nothing else.
        _synchronize=lambda: cupy.cuda.get_current_stream().synchronize(),
        _free_pools=cupy_memory.free_pools,
        _is_out_of_memory=cupy_memory.is_out_of_memory,
        _memory_bytes=lambda: pool_bytes,
        cache=DeviceCache(int(SHARE * pool_bytes)),
    )


@functools.cache
def emulated_gpu() -> Backend:
    """A stand-in for a GPU, in host memory, for machines without one. Its `name` says what it is."""
    import array_api_strict

    device = array_api_strict.Device(EMULATED_DEVICE)
    host_device = array_api_strict.Device("CPU_DEVICE")
    return Backend(
        kind="gpu",
        name="emulated GPU",
        emulated=True,
        xp=array_api_strict,
        array_type=type(array_api_strict.empty(0)),
        _begin_upload=functools.partial(_to_emulated, device),
        _to_host=lambda array: np.asarray(array.to_device(host_device)),
        _synchronize=lambda: None,
        _is_out_of_memory=lambda error: isinstance(error, emulated.OutOfMemory),
        _memory_bytes=lambda: math.inf if emulated.memory.limit is None else emulated.memory.limit,
    )


def _to_emulated(device: Any, host: np.ndarray) -> Upload:
    import array_api_strict

    if host.dtype == np.float16:
        raise TypeError("an emulated GPU has only the array API's types, not float16: pin the work to 'cpu'")
    # copy: a real device never shares memory with the host, so neither does this one.
    array = array_api_strict.asarray(host, device=device, copy=True)
    return lambda: array


def visible_gpus() -> tuple[str, ...]:
    """The tokens of the GPUs that may be used here, each fit to be a CUDA_VISIBLE_DEVICES of its own.

    They are indices, or what CUDA_VISIBLE_DEVICES lists (indices or UUIDs). Empty without CuPy or a GPU.
    Counting initializes the driver, but makes no context, so it takes no device memory.
    """
    return probe_gpus()[0]


def probe_gpus() -> tuple[tuple[str, ...], str]:
    """`visible_gpus`, and why there is none in words: `("0", "1"), ""` or `(), "CuPy is not installed"`."""
    listed = visible_tokens(os.environ)
    if listed == ():
        return (), f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides every GPU"
    if importlib.util.find_spec("cupy") is None:
        return (), "CuPy is not installed (pip install 'dask-taskgraph[cuda12]' or '[cuda13]')"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        return (), f"CuPy is installed but cannot be imported: {error}"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return (), f"CUDA finds no GPU: {error}"
    tokens = tuple(str(index) for index in range(count)) if listed is None else listed
    # CUDA stops at the first token that names no device, so the first `count` are those that do.
    return tokens[:count], ""


def visible_tokens(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """What CUDA_VISIBLE_DEVICES lists, up to its first invalid index, as CUDA reads it; None if not set.

    >>> visible_tokens({"CUDA_VISIBLE_DEVICES": "2,GPU-8f3a,-1,0"})
    ('2', 'GPU-8f3a')
    >>> visible_tokens({"CUDA_VISIBLE_DEVICES": ""}), visible_tokens({})
    ((), None)
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    tokens: list[str] = []
    for token in (part.strip() for part in listed.split(",")):
        if not token or token == "NoDevFiles" or token.startswith("-"):
            break
        tokens.append(token)
    return tuple(tokens)


def _cpu_model() -> str:
    """The processor's name as its maker gives it, or the architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine() or "CPU"
