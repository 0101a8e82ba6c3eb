"""Bounds on what CuPy's pools take."""

from __future__ import annotations

#: The part of a device's memory that the pool may take. The rest is for the CUDA context, cuBLAS's workspace
#: and what the pool loses to fragments; dask-cuda keeps as much free.
DEVICE_FRACTION = 0.8

#: Free blocks that CuPy's pinned pool may keep. It never shrinks by itself, and one block a staging buffer in
#: flight is all that transfers of equal tiles reuse.
PINNED_FREE_BLOCKS = 8


def pool_limit_bytes(limit: float | int, device_bytes: int) -> int:
    """The pool's limit in bytes: a float in (0, 1] is a fraction of the device, an integer a number of bytes.

    Raises ValueError for a limit of nothing, a fraction above 1, or more bytes than the device has.

    >>> pool_limit_bytes(0.5, 1000), pool_limit_bytes(800, 1000)
    (500, 800)
    """
    if isinstance(limit, float):
        if not 0 < limit <= 1:
            raise ValueError(f"a fraction of the device's memory is above 0 and at most 1, not {limit}")
        return int(limit * device_bytes)
    if not 0 < limit <= device_bytes:
        raise ValueError(f"a pool of {limit} bytes does not fit a device of {device_bytes} bytes")
    return limit


def bound_device_pool(limit: float | int = DEVICE_FRACTION) -> int:
    """Bound CuPy's device pool on the current device, by a fraction or in bytes; the limit in bytes.

    An allocation beyond it raises cupy.cuda.memory.OutOfMemoryError, after the pool gave back what was free.
    """
    import cupy

    limit_bytes = pool_limit_bytes(limit, device_bytes())
    cupy.get_default_memory_pool().set_limit(size=limit_bytes)
    return limit_bytes


def device_bytes() -> int:
    """All the memory of the current CUDA device, in bytes."""
    import cupy

    _free, total = cupy.cuda.runtime.memGetInfo()
    return int(total)


def trim_pinned_pool(max_free_blocks: int = PINNED_FREE_BLOCKS) -> None:
    """Give pinned host memory back once CuPy keeps more than so many free blocks of it."""
    import cupy

    pool = cupy.get_default_pinned_memory_pool()
    if pool.n_free_blocks() > max_free_blocks:
        pool.free_all_blocks()
