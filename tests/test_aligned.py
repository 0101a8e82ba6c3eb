"""Arrays that were received: aligned, and otherwise as they were sent."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from distributed.protocol import deserialize, serialize
from distributed.protocol import numpy as theirs
from distributed.protocol.serialize import dask_deserialize

import taskgraph as tg
from deploy.local import LocalCluster
from workers.aligned import aligned, register

WAIT_S = 30


@pytest.fixture
def registered():
    """Our way to unpack arrays in this process; Dask's again after the test."""
    register()
    yield
    dask_deserialize.register(np.ndarray, theirs.deserialize_numpy_ndarray)
    dask_deserialize.register(np.ma.core.MaskedArray, theirs.deserialize_numpy_maskedarray)


def read_only(array):
    array.flags.writeable = False
    return array


RNG = np.random.default_rng(0)
SENT = {
    "C": RNG.random((25, 5)),
    "F": np.asfortranarray(RNG.random((25, 5))),
    "strided": RNG.random((50, 10))[::2, ::-2],
    "0-d": np.asarray(3.5),
    "empty": np.empty((0, 3)),
    "read-only": read_only(RNG.random((4, 4))),
    "broadcast": np.broadcast_to(RNG.random((1, 5)), (25, 5)),
    "broadcast twice": np.broadcast_to(np.asarray(2.5), (25, 5)),
    "broadcast of F": np.broadcast_to(np.asfortranarray(RNG.random((4, 1, 5))), (4, 3, 5)),
    "a summed axis kept": np.sum(RNG.random((4, 3, 5)), axis=1, keepdims=True),
    "stride 0, writable": np.lib.stride_tricks.as_strided(RNG.random(4), (4, 1), (8, 0)),
    "complex": RNG.random((3, 3)) + 1j,
    "dates": np.arange(0, 5).astype("datetime64[s]"),
    "bytes": np.arange(7, dtype="uint8"),
    "big-endian": np.arange(7, dtype=">f8"),
    "words": np.asarray(["a", "bcd"]),
    "records": np.asarray([(1, 2.5)], dtype=[("n", "i4"), ("x", "f8")]),
    "aligned records": np.zeros(3, np.dtype([("n", "i1"), ("x", "f8")], align=True)),
    "objects": np.asarray([{}, None], dtype=object),
    "matrix": np.asmatrix(RNG.random((3, 3))),
    "masked": np.ma.masked_array(RNG.random((3, 3)), mask=RNG.random((3, 3)) > 0.5, fill_value=7.0),
    "masked, no mask": np.ma.masked_array(RNG.random((3, 3))),
}


def received(sent, shift=5):
    """What the other side gets, each frame `shift` bytes behind an address that suits every type."""
    header, frames = serialize(sent)
    moved = []
    for frame in frames:
        room = bytearray(memoryview(frame).nbytes + 64)
        start = -np.frombuffer(room, np.uint8).ctypes.data % 32 + shift
        room[start : start + memoryview(frame).nbytes] = bytes(frame)
        part = memoryview(room)[start : start + memoryview(frame).nbytes]
        moved.append(part.toreadonly() if memoryview(frame).readonly and shift == 0 else part)
    return deserialize(header, moved)


@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("name", SENT)
def test_as_it_was_sent(registered, name, shift):
    sent = SENT[name]
    back = received(sent, shift)
    assert type(back) is type(sent)
    assert (back.dtype, back.shape, back.flags.writeable) == (sent.dtype, sent.shape, sent.flags.writeable)
    assert back.flags.aligned
    np.testing.assert_array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(sent))
    np.testing.assert_array_equal(back, sent)
    if name.startswith("masked"):
        assert back.data.flags.aligned
        assert back.fill_value == sent.fill_value
    elif 0 in sent.strides and sent.size:
        assert [stride == 0 for stride in back.strides] == [stride == 0 for stride in sent.strides]
    elif sent.flags.contiguous or sent.flags.f_contiguous:
        assert back.strides == sent.strides


def test_without_ours_they_are_not_aligned():
    """What the rest is for: it can be dropped when this fails."""
    assert not received(SENT["C"]).flags.aligned


def test_inside_collections(registered):
    back = received({"a": [SENT["C"], "word"], "b": (SENT["F"],)})
    assert back["a"][0].flags.aligned
    assert back["b"][0].flags.aligned
    np.testing.assert_array_equal(back["b"][0], SENT["F"])


def test_what_is_aligned_is_not_copied(registered):
    header, frames = serialize(SENT["C"])
    assert np.shares_memory(deserialize(header, frames), SENT["C"])
    assert aligned(SENT["strided"]) is SENT["strided"]


def test_dasks_own_tasks_give_the_same_bits_whatever_was_moved():
    """Blocks made on one worker, computed on with dask.array on the other, against the same in one place."""
    sizes = (25, 31, 7)
    blocks = [RNG.random((n, 5)) for n in sizes]

    def results(arrays):
        x = da.concatenate(arrays)
        return da.std(x, axis=0), da.sum(x * 3.7, axis=1), x.T @ da.exp(x), da.cumsum(x, axis=0)

    expected = da.compute(*results([da.from_array(b, chunks=b.shape) for b in blocks]), scheduler="synchronous")

    def flags(*arrays):
        return [a.flags.aligned for a in arrays]

    with (
        LocalCluster(cpu_workers=2, threads_per_cpu_worker=1, gpus=0, dashboard_address=None) as cluster,
        Client(cluster, timeout=WAIT_S) as client,
    ):
        client.wait_for_workers(2, timeout=WAIT_S)
        # Small things of odd lengths in the same message shift what follows.
        odd = [client.submit(bytes, n, workers=["cpu-0"], pure=False) for n in (1, 3)]
        made = [client.submit(np.array, b, workers=["cpu-0"], pure=False) for b in blocks]
        assert all(client.submit(flags, *made, workers=["cpu-1"], pure=False).result(timeout=WAIT_S))
        kept = tg.asarray(np.concatenate(blocks), chunks=(sizes, 5)).persist(scheduler=client)  # travels in the graph
        assert all(all(client.submit(flags, f, pure=False).result(timeout=WAIT_S)) for f in client.futures_of(kept))
        arrays = [da.from_delayed(f, b.shape, b.dtype) for f, b in zip(made, blocks, strict=True)]
        futures = client.compute(list(results(arrays)), workers=["cpu-1"], allow_other_workers=False)
        for got, value in zip(client.gather(futures), expected, strict=True):
            assert got.tobytes() == value.tobytes()
        del odd
