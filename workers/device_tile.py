"""Device arrays between tasks: the only form in which one crosses a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from dask.sizeof import sizeof

from workers import backend


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

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        return len(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the same name, whatever the namespace calls it."""
        dtype = self.array.dtype
        return dtype if isinstance(dtype, np.dtype) else np.dtype(str(dtype).rpartition(".")[2])

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
    """What a pickled tile becomes here: a DeviceTile where this process has a GPU, else the host's array."""
    here = backend.current()
    return DeviceTile(here.to_device(host), here) if here.kind == "gpu" else host


def to_host(value: Any) -> Any:
    """The NumPy array of a DeviceTile; anything else as it is."""
    return value.to_host() if isinstance(value, DeviceTile) else value


def run(kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `kernel(xp, *args, **kwargs)` on this process's device: what every task of ours does.

    Arrays among the arguments (NumPy's and DeviceTiles, also in lists, tuples and dicts) go to the device
    first; everything else passes as it is. On a GPU the task waits for the device, so that its duration is
    the kernel's, and resulting arrays (also in lists, tuples and dicts) come back as DeviceTiles; on the host
    they are NumPy's.

    >>> run(lambda xp, a: xp.sum(a, axis=0), np.ones((2, 2)))
    array([2., 2.])
    """
    here = backend.current()
    result = kernel(
        here.xp,
        *(_to_here(arg, here) for arg in args),
        **{name: _to_here(arg, here) for name, arg in kwargs.items()},
    )
    if here.kind != "gpu":
        return result
    here.synchronize()
    return _wrapped(result, here)


def _to_here(value: Any, here: backend.Backend) -> Any:
    """An argument with the arrays in it on this process's device."""
    if isinstance(value, DeviceTile):
        return value.array if here.owns(value.array) else here.to_device(value.to_host())
    if here.kind == "gpu" and isinstance(value, np.ndarray | np.generic):
        # np.generic: a reduction's block to a single number is a NumPy scalar, and it is data like any other.
        return here.to_device(np.asarray(value))
    if isinstance(value, np.ndarray) and not value.flags.aligned:
        # What came through the network begins at any byte, and NumPy has other loops for such arrays: without a copy a
        # product would have other bits where an operand was moved (measured: a (25, 5) tile, transposed, by (25, 3)).
        return value.copy("K")
    return _mapped(_to_here, value, here)


def _wrapped(value: Any, here: backend.Backend) -> Any:
    """A result with the device arrays in it as DeviceTiles."""
    return DeviceTile(value, here) if here.owns(value) else _mapped(_wrapped, value, here)


def _mapped(function: Callable[[Any, backend.Backend], Any], value: Any, here: backend.Backend) -> Any:
    """`function` over the items of a plain list, tuple or dict; anything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(function(item, here) for item in value)
    if type(value) is dict:
        return {key: function(item, here) for key, item in value.items()}
    return value


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
