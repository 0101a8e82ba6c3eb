"""Memory that is used again: which, how much of it, for how long, and that nobody sees another's values in it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from distributed import Client
from process_cluster import until

import taskgraph as tg
from deploy.local import LocalCluster
from workers import buffers as module
from workers.buffers import LEAST_BYTES, Buffers

MB = 2**20
F8 = np.dtype("float64")


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def made_and_freed(buffers: Buffers, *sizes: int) -> list[int]:
    """Where arrays of so many bytes were, that lived at the same time; the first dies first."""
    arrays = [buffers.empty((n,), np.dtype("u1")) for n in sizes]
    found = [address(a) for a in arrays]
    while arrays:
        del arrays[0]
    return found


@pytest.mark.parametrize(
    ("freed", "wanted", "which"),
    [
        ([4 * MB], 4 * MB, 0),
        ([4 * MB, 4 * MB], 4 * MB, 1),  # the one that was used last
        ([5 * MB, 4 * MB], 4 * MB, 1),  # the one that fits best
        ([5 * MB], 4 * MB, 0),
        ([4 * MB - 1], 4 * MB, None),  # too short
        ([6 * MB], 4 * MB, None),  # too long
    ],
)
def test_what_fits_is_used_again(freed: list[int], wanted: int, which: int | None) -> None:
    buffers = Buffers(64 * MB)
    places = made_and_freed(buffers, *freed)
    kept = buffers.free_bytes
    again = buffers.empty((wanted,), np.dtype("u1"))
    assert again.nbytes == wanted
    assert buffers.free_bytes == kept - (0 if which is None else freed[which])
    if which is not None:
        assert address(again) == places[which]


@pytest.mark.parametrize(
    ("limit", "sizes", "kept"),
    [
        (0, [4 * MB], 0),
        (8 * MB, [4 * MB, 4 * MB], 8 * MB),
        (8 * MB, [2 * MB, 4 * MB, 4 * MB], 8 * MB),  # the oldest goes
        (8 * MB, [9 * MB], 0),
        (8 * MB, [LEAST_BYTES - 1], 0),
        (8 * MB, [LEAST_BYTES], LEAST_BYTES),
    ],
)
def test_no_more_is_kept_than_allowed(limit: int, sizes: list[int], kept: int) -> None:
    buffers = Buffers(limit)
    made_and_freed(buffers, *sizes)
    assert buffers.free_bytes == kept


def test_what_is_idle_goes() -> None:
    now = [0.0]
    buffers = Buffers(64 * MB, clock=lambda: now[0])
    made_and_freed(buffers, 4 * MB)
    now[0] = 50.0
    made_and_freed(buffers, 8 * MB)
    buffers.trim(60)
    assert buffers.free_bytes == 12 * MB
    now[0] = 70.0
    buffers.trim(60)
    assert buffers.free_bytes == 8 * MB
    now[0] = 200.0
    buffers.trim()
    assert buffers.free_bytes == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[100:, 3:7],
        lambda a: a.T,
        lambda a: a.view("u1").reshape(-1)[-1:],
        lambda a: memoryview(a),
        lambda a: np.frombuffer(a.data, "u1")[:1],
    ],
    ids=["part", "transpose", "other type", "memoryview", "of a memoryview"],
)
def test_while_anybody_has_a_view_it_is_not_free(view) -> None:
    buffers = Buffers(64 * MB)
    array = buffers.empty((512, 512), F8)
    array[...] = 7
    part = view(array)
    before = bytes(part)
    del array
    assert buffers.free_bytes == 0
    other = buffers.empty((512, 512), F8)
    other[...] = 1
    assert bytes(part) == before
    del part
    assert buffers.free_bytes == 2 * MB


def test_an_array_is_like_numpys() -> None:
    array = Buffers(64 * MB).empty((3, 300, 200), F8)
    assert array.shape == (3, 300, 200)
    assert array.dtype == F8
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert type(array) is np.ndarray


def test_objects_are_never_laid_over_old_bytes() -> None:
    buffers = Buffers(64 * MB)
    made_and_freed(buffers, 8 * LEAST_BYTES)
    assert buffers.empty((LEAST_BYTES,), np.dtype(object))[0] is None


def test_an_array_that_dies_while_the_lock_is_held_is_let_go() -> None:
    """As when the garbage collector runs in the middle: it must neither wait nor fail."""
    buffers = Buffers(64 * MB)
    array = buffers.empty((512, 512), F8)
    with buffers._lock:
        del array
    assert buffers.free_bytes == 0


def test_many_threads_never_share_one() -> None:
    buffers, start = Buffers(32 * MB), threading.Barrier(8)

    def work(mine: int) -> bool:
        start.wait(10)
        right = True
        for n in range(50):
            array = buffers.empty((131_072 + 1000 * (n % 3),), F8)
            array[::4096] = mine
            right = right and bool((array[::4096] == mine).all())
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert buffers.free_bytes <= 32 * MB


def test_a_worker_uses_the_memory_of_results_and_messages_again() -> None:
    def state() -> tuple[int, int]:
        return module.buffers.limit_bytes, module.buffers.free_bytes

    def trimmed() -> int:
        module.buffers.trim(0)
        return module.buffers.free_bytes

    with (
        LocalCluster(cpu_workers=2, threads_per_cpu_worker=1, gpus=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        a = np.random.default_rng(0).random((1024, 1024))
        expected = a @ a[::-1]
        for _ in range(3):
            x, y = tg.asarray(a, chunks=(512, 1024)), tg.asarray(a[::-1], chunks=(512, 1024))
            np.testing.assert_allclose((x @ y).compute(), expected, rtol=1e-12)
        until(lambda: all(0 < free <= limit for limit, free in client.run(state).values()), "free buffers are kept")
        assert set(client.run(trimmed).values()) == {0}


def test_a_distributed_without_the_place_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("distributed.comm.tcp.host_array")
    with pytest.raises(RuntimeError, match="host_array"):
        module.receive_into_buffers()
