"""Arrays that come through the network, laid where NumPy's fast loops take them.

A message is one buffer, in which an array begins at any byte; NumPy then takes other loops, slower ones and with other
bits. So a received array is copied once, where it is unpacked, instead of in every task that takes it; with it Dask's
own tasks, too, get the same bits whatever was moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.buffers import buffers

Array = np.ndarray[Any, Any]


def aligned(array: Array) -> Array:
    """The array itself, or, where it begins at a byte that its type does not allow, a copy of the same layout, as
    writable as it was. An axis of stride 0 stays one.

    >>> received = np.ndarray(2, buffer=b"?" + np.arange(2.0).tobytes(), offset=1)
    >>> received.flags.aligned, aligned(received).flags.aligned, aligned(received).flags.writeable
    (False, True, False)
    """
    if array.flags.aligned:
        return array
    if 0 in array.strides and array.size:
        part = array[tuple(slice(None) if stride else slice(1) for stride in array.strides)].copy("K")
        copied = np.lib.stride_tricks.as_strided(
            part,
            array.shape,
            tuple(new if old else 0 for old, new in zip(array.strides, part.strides, strict=True)),
            subok=True,
            writeable=array.flags.writeable,
        )
    elif array.flags.c_contiguous and type(array) is np.ndarray:
        copied = buffers.empty(array.shape, array.dtype)
        copied[...] = array
    else:
        copied = array.copy("K")
    if not array.flags.writeable:  # not otherwise: NumPy refuses to say again of a strided view that it is writable
        copied.flags.writeable = False
    return copied


def register() -> None:
    """Have distributed unpack NumPy arrays aligned in this process. The wire's format stays."""
    from distributed.protocol import numpy as theirs  # whose own registration must not come after ours
    from distributed.protocol.serialize import dask_deserialize

    def deserialize(header: Any, frames: Any) -> Any:
        return aligned(theirs.deserialize_numpy_ndarray(header, frames))

    def deserialize_masked(header: Any, frames: Any) -> Any:
        masked = theirs.deserialize_numpy_maskedarray(header, frames)
        return masked if masked.data.flags.aligned and np.ma.getmaskarray(masked).flags.aligned else masked.copy()

    dask_deserialize.register(np.ndarray)(deserialize)
    dask_deserialize.register(np.ma.core.MaskedArray)(deserialize_masked)
