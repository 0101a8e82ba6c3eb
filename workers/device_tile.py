"""Device arrays between tasks: the only form in which one crosses a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from dask.sizeof import sizeof

from workers import at_rest, backend, operand, rates, shortage
from workers.aligned import aligned
from workers.counters import count

#: Brings a value of a task's arguments to where the kernel runs.
Mover = Callable[[Any, backend.Backend], Any]


class DeviceTile:
    """An array on this process's GPU, safe to be a task's result.

    Between tasks of one GPU worker the array stays on the device. In a pickle it goes through host memory
    (protocol 5, out of band): a GPU process gets a DeviceTile again, any other a plain NumPy array. A bare
    CuPy array would need RMM or Numba on the way and leaves the peer that wants it hanging without them.

    >>> from workers.backend import emulated_gpu
    >>> tile = DeviceTile(emulated_gpu().to_device(np.ones((2, 3), "float32")))
    >>> tile
    DeviceTile(shape=(2, 3), dtype=float32, emulated GPU)
    >>> tile.nbytes
    24
    """

    __slots__ = ("__weakref__", "_owner", "array")

    array: Any
    _owner: backend.Backend

    def __init__(self, array: Any, owner: backend.Backend | None = None) -> None:
        """array: of the device of `owner`, by default of whichever backend owns such arrays here."""
        self.array = array
        self._owner = _owner_of(array) if owner is None else owner
        at_rest.tiles.enter(self, self.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        return len(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the same name, whatever the namespace calls it."""
        return operand.numpy_dtype(self.array)

    @property
    def nbytes(self) -> int:
        """The elements' size on the device, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def to_host(self) -> np.ndarray[Any, Any]:
        """A copy in host memory."""
        return self._owner.to_host(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """For `np.asarray`; ValueError with copy=False, because from a device there is no other way."""
        if copy is False:
            raise ValueError("a DeviceTile is not in host memory: it becomes a NumPy array only by a copy")
        host = self.to_host()
        return host if dtype is None else host.astype(dtype, copy=False)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.nbytes

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return rebuild, (self.to_host(),)

    def __repr__(self) -> str:
        return f"DeviceTile(shape={self.shape}, dtype={self.dtype}, {self._owner.name})"


@sizeof.register(DeviceTile)  # type: ignore[untyped-decorator]
def _sizeof_device_tile(tile: DeviceTile) -> int:
    # Dask would count only the wrapper: workers would look empty, and moving a tile would look free.
    return tile.__sizeof__()


def rebuild(host: np.ndarray[Any, Any]) -> DeviceTile | np.ndarray[Any, Any]:
    """What a pickled tile becomes here: a DeviceTile where this process has a GPU with room, else the host's array."""
    here = backend.current()
    if here.kind == "gpu" and at_rest.tiles.bytes + host.nbytes <= here.results_bytes():
        try:
            return DeviceTile(here.to_device(host), here)
        except Exception as error:
            # An error here would fail the transfer, again and again; every consumer takes a NumPy array as well.
            if not here.is_out_of_memory(error):
                raise
        count("out_of_memory_received")
    return aligned(host)


def to_host(value: Any) -> Any:
    """The NumPy array of a DeviceTile; anything else as it is."""
    return value.to_host() if isinstance(value, DeviceTile) else value


def part_of(value: Any, index: tuple[slice, ...]) -> Any:
    """A part of a block, where the block is: a view of it, also on a device.

    >>> part_of(np.arange(6).reshape(2, 3), (slice(1), slice(1, 3)))
    array([[1, 2]])
    """
    if isinstance(value, DeviceTile):
        return DeviceTile(value.array[index], value._owner)
    return value[index]


def run(kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `kernel(xp, *args, **kwargs)` on this process's device: what every task of ours does.

    Arrays among the arguments (NumPy's and DeviceTiles, also in lists, tuples and dicts) go to the device
    first, or when the kernel wants them if it is marked with `operand.streams`; everything else passes as it is.
    On a GPU the task waits for the device, so that its duration is the kernel's, and resulting arrays (also in
    lists, tuples and dicts) come back as DeviceTiles, or NumPy's where the GPU had no room for them
    (`workers.shortage`); on the host they are NumPy's.

    >>> run(lambda xp, a: xp.sum(a, axis=0), np.ones((2, 2)))
    array([2., 2.])
    """
    here = backend.current()
    with rates.observed(here):
        if here.kind != "gpu":
            return _call(kernel, args, kwargs, here, _to_host_here)
        return _on_gpu(kernel, args, kwargs, here)


def _on_gpu(kernel: Callable[..., Any], args: Any, kwargs: Any, here: backend.Backend) -> Any:
    is_streaming = operand.is_streaming(kernel)

    def on_device(pieces: int) -> Any:
        move = functools.partial(_as_operand, pieces=pieces) if is_streaming else _to_device
        result = _call(kernel, args, kwargs, here, move)
        here.synchronize()
        return _wrapped(result, here)

    def on_host() -> Any:
        with backend.within(backend.host()):
            return _call(kernel, args, kwargs, backend.host(), _to_host_here)

    return shortage.compute(here, on_device, on_host, is_divisible=is_streaming)


def _call(kernel: Callable[..., Any], args: Any, kwargs: Any, here: backend.Backend, move: Mover) -> Any:
    if not operand.is_streaming(kernel):
        args, kwargs = _mapped(_read, args, here), _mapped(_read, kwargs, here)
    moved = [_mapped(move, arg, here) for arg in args]
    return kernel(here.xp, *moved, **{name: _mapped(move, arg, here) for name, arg in kwargs.items()})


def _to_device(value: Any, here: backend.Backend) -> Any:
    """An array on this process's GPU; anything else as it is."""
    if isinstance(value, DeviceTile):
        return value.array if here.owns(value.array) else here.to_device(value.to_host())
    if isinstance(value, np.ndarray | np.generic):
        # np.generic: a reduction's block to a single number is a NumPy scalar, and it is data like any other.
        return here.to_device(np.asarray(value), keep=True)
    return value


def _as_operand(value: Any, here: backend.Backend, pieces: int) -> Any:
    """An array that goes to this process's GPU when the kernel wants it; anything else as it is."""
    if isinstance(value, DeviceTile):
        value = value.array if here.owns(value.array) else value.to_host()
        return operand.Operand(value, here, pieces)
    if isinstance(value, np.ndarray | np.generic):
        return operand.Operand(np.asarray(value), here, pieces)
    if isinstance(value, operand.Deferred):
        return operand.Operand(value, here, pieces)
    return value


def _read(value: Any, here: backend.Backend) -> Any:
    """For a kernel that takes arrays: the array of a Deferred."""
    return value.read() if isinstance(value, operand.Deferred) else value


def _to_host_here(value: Any, here: backend.Backend) -> Any:
    """A NumPy array that BLAS takes as it lies; anything else as it is."""
    value = to_host(value)
    # Most are aligned when they are unpacked; this is for what came inside other objects, or to a worker without our
    # setup. Without it a product would have other bits where an operand was moved (measured: a (25, 5) tile,
    # transposed, by (25, 3)).
    return aligned(value) if isinstance(value, np.ndarray) else value


def _wrapped(result: Any, here: backend.Backend) -> Any:
    """A result with the device arrays in it as DeviceTiles, or as NumPy's where results have their share already."""
    return _mapped(_at_rest, result, here)


def _at_rest(value: Any, here: backend.Backend) -> Any:
    if not here.owns(value):
        return value
    tile = DeviceTile(value, here)
    if at_rest.tiles.bytes <= here.results_bytes():  # this one counted
        return tile
    count("results_to_host")
    return tile.to_host()


def _mapped(function: Mover, value: Any, here: backend.Backend) -> Any:
    """`function` of a value, or of the items of a plain list, tuple or dict, at any depth."""
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, item, here) for item in value)
    if type(value) is dict:
        return {key: _mapped(function, item, here) for key, item in value.items()}
    return function(value, here)


def _owner_of(array: Any) -> backend.Backend:
    """The backend whose array this is. Raises TypeError for an array of none."""
    here = backend.current()
    if here.kind == "gpu" and here.owns(array):
        return here
    # Tests and in-process clusters make tiles in processes whose own backend is the host's.
    emulated = backend.emulated_gpu()
    if emulated.owns(array):
        return emulated
    raise TypeError(f"a DeviceTile holds an array of this process's GPU, not {type(array).__name__}")
