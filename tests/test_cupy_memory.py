"""The order of copies and events that `workers.cupy_memory` asks of CUDA, on a made-up CuPy that does everything as
late as CUDA may: only when somebody waits. Tests with a real one are in test_gpu.py."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pytest

from workers import cupy_memory


class Event:
    """A place in a stream."""

    def __init__(self, disable_timing=False):
        self.stream, self.at = None, 0

    def synchronize(self):
        self.stream.run_to(self.at)


class Stream:
    """Work that is done in order, when it is waited for and not before."""

    def __init__(self, non_blocking=False):
        self.work, self.done = [], 0

    def record(self, event):
        event.stream, event.at = self, len(self.work)
        return event

    def wait_event(self, event):
        self.work.append(event.synchronize)

    def synchronize(self):
        self.run_to(len(self.work))

    def run_to(self, end):
        while self.done < end:
            self.done += 1
            self.work[self.done - 1]()


class Pinned:
    """Pinned memory with the buffer's protocol and an address."""

    def __new__(cls, size):
        buffer = np.zeros(size, np.uint8).view(PinnedArray)
        buffer.ptr = buffer.ctypes.data
        return buffer


class PinnedArray(np.ndarray):
    ptr = 0


class Pointer:
    def __init__(self, address, owner):
        self.address, self.owner = address, owner

    def __add__(self, offset):
        return Pointer(self.address + offset, self.owner)

    def copy_from_host_async(self, source, size, stream):
        stream.work.append(lambda: ctypes.memmove(self.address, source, size))


class OnDevice:
    def __init__(self, shape, dtype, order="C"):
        self.array = np.zeros(shape, dtype, order=order)
        self.data = Pointer(self.array.ctypes.data, self.array)


@pytest.fixture
def compute(monkeypatch):
    """The made-up CuPy's current stream."""
    current = Stream()
    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.asarray = OnDevice, lambda host: ("by CuPy itself", host)

    class OutOfMemoryError(MemoryError):
        pass

    cupy.cuda = types.SimpleNamespace(
        Stream=Stream,
        Event=Event,
        get_current_stream=lambda: current,
        alloc_pinned_memory=Pinned,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cupy_memory.memory, "trim_pinned_pool", lambda: None)
    monkeypatch.setattr(cupy_memory, "PIECE_BYTES", 2**17)
    monkeypatch.setattr(cupy_memory, "_thread", types.SimpleNamespace())
    return current


@pytest.mark.parametrize(
    "host",
    [
        np.random.default_rng(0).random((300, 200)),  # several pieces, the last one short
        np.random.default_rng(0).random((128, 128)),  # one piece exactly
        np.asfortranarray(np.random.default_rng(0).random((300, 200))),
        np.random.default_rng(0).random((300, 600))[::2, ::3],
        np.random.default_rng(0).random((300, 200)).astype("complex64").T,
        np.random.default_rng(0).random((2, 300, 300)) > 0.5,
    ],
)
def test_every_byte_arrives_before_it_is_used(compute, host):
    host.flags.writeable = False
    seen = []
    for n in range(3):
        on_device = cupy_memory.begin_upload(host + n if n else host)()
        compute.work.append(lambda on_device=on_device: seen.append(on_device.array.copy()))
    compute.synchronize()
    for n, array in enumerate(seen):
        np.testing.assert_array_equal(array, host + n if n else host)


def test_nothing_is_waited_for_by_the_thread_but_a_buffer(compute):
    a = np.random.default_rng(0).random((100, 200))  # 160,000 bytes: two pieces
    arrived = cupy_memory.begin_upload(a)
    stream = cupy_memory._thread.uploads.stream
    assert stream.done == 0
    assert compute.work == []
    arrived()
    assert stream.done == 0
    compute.synchronize()
    assert stream.done > 0


def test_memory_that_is_still_read_is_not_written(compute):
    """The pool gives a block again as soon as nobody refers to it, though work that was launched before reads it."""
    order = []
    compute.work.append(lambda: order.append("read"))
    cupy_memory.begin_upload(np.ones((100, 100)))
    uploads = cupy_memory._thread.uploads
    uploads.stream.work.insert(1, lambda: order.append("write"))
    uploads.stream.synchronize()
    assert order == ["read", "write"]


@pytest.mark.parametrize("host", [np.ones(10), np.ones((300, 300), ">f8"), np.zeros((0, 5))])
def test_what_cupy_does_itself(compute, host):
    assert cupy_memory.begin_upload(host)()[0] == "by CuPy itself"


def test_who_has_no_room(compute):
    import cupy

    class CUDARuntimeError(RuntimeError):
        def __init__(self, status):
            self.status = status

    assert cupy_memory.is_out_of_memory(cupy.cuda.memory.OutOfMemoryError("none"))
    assert cupy_memory.is_out_of_memory(CUDARuntimeError(2))
    assert not cupy_memory.is_out_of_memory(CUDARuntimeError(700))
    assert not cupy_memory.is_out_of_memory(MemoryError("of the host"))
