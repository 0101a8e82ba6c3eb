"""What a GPU worker keeps on its device, how operands get there, and what happens where they do not fit: on the
emulated GPU, whose memory is bounded here and really counted."""

from __future__ import annotations

import functools
import gc
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from distributed import Client

from deploy.local import LocalCluster
from taskgraph import product_tasks
from workers import at_rest, backend, counters, emulated, shortage
from workers.cache import SMALLEST_BYTES, DeviceCache
from workers.device_tile import DeviceTile, run
from workers.kernels import add_onto, gemm_panel, streams, tree_add
from workers.operand import Operand, in_turn, is_streaming

MIB = 2**20
SIDE = 128  # a float64 tile of this side has 128 KiB
TILE_BYTES = SIDE * SIDE * 8
WAIT_S = 30


@pytest.fixture
def gpu():
    """The emulated GPU as this process's, with a cache and no bound on its memory; as it was before after the test."""
    here = backend.emulated_gpu()
    backend.use(here)
    here.cache.limit_bytes = 64 * MIB
    counters.reset()
    yield here
    here.cache.clear()
    here.cache.limit_bytes = 0
    emulated.memory.bound(None)
    backend.use(None)


def tile(seed=0, shape=(SIDE, SIDE), dtype="float64"):
    """Small whole numbers, so that every order of additions gives the same bits."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def uploaded():
    return counters.counts()["bytes_uploaded"]


class TestCache:
    def test_the_very_same_array_hits_and_an_equal_one_misses(self):
        cache, a = DeviceCache(64 * MIB), tile()
        cache.put(a, "copy")
        assert cache.get(a) == "copy"
        assert cache.get(a.copy()) is None
        assert cache.get(a[:]) is None

    def test_an_entry_dies_with_its_array(self):
        cache = DeviceCache(64 * MIB)
        arrays = [tile(n) for n in range(3)]
        for a in arrays:
            cache.put(a, "copy")
        assert (len(cache), cache.held_bytes) == (3, 3 * TILE_BYTES)
        del a, arrays[0]
        assert (len(cache), cache.held_bytes) == (2, 2 * TILE_BYTES)

    def test_an_id_that_is_used_again_is_no_hit(self):
        """Arrays of one size come and go at the same place in memory."""
        cache, seen = DeviceCache(64 * MIB), set()
        for n in range(50):
            a = np.full((SIDE, SIDE), float(n))
            assert cache.get(a) is None
            cache.put(a, n)
            assert cache.get(a) == n
            seen.add(id(a))
            del a
        assert len(seen) < 50, "no id was used again: the test shows nothing"
        assert len(cache) == 0

    def test_least_recently_used_leave_first(self):
        counters.reset()
        cache, (a, b, c, d, e) = DeviceCache(4 * TILE_BYTES), [tile(n) for n in range(5)]
        for array in (a, b, c, d):
            cache.put(array, "copy")
        cache.get(a)
        cache.put(e, "copy")
        assert [cache.get(array) is not None for array in (a, b, c, d, e)] == [True, False, True, True, True]
        assert cache.held_bytes == 4 * TILE_BYTES
        assert counters.counts()["cache_evictions"] == 1

    def test_put_twice_counts_once(self):
        cache, a = DeviceCache(64 * MIB), tile()
        cache.put(a, "old")
        cache.put(a, "new")
        assert (cache.get(a), cache.held_bytes) == ("new", TILE_BYTES)

    @pytest.mark.parametrize(
        ("limit", "nbytes", "is_kept"),
        [
            (0, SMALLEST_BYTES, False),
            (MIB, SMALLEST_BYTES - 1, False),
            (MIB, MIB // 4, True),
            (MIB, MIB // 4 + 1, False),
        ],
    )
    def test_what_is_kept(self, limit, nbytes, is_kept):
        cache, a = DeviceCache(limit), np.ones(nbytes, "uint8")
        cache.put(a, "copy")
        assert (cache.get(a) is not None) == is_kept

    def test_threads(self):
        """Many threads, arrays that die in the middle: bytes stay bounded and end where they began."""
        cache = DeviceCache(8 * TILE_BYTES)
        shared = [tile(n) for n in range(6)]

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(200):
                a = shared[rng.integers(6)] if rng.random() < 0.5 else np.full((SIDE, SIDE), 1.0)
                found = cache.get(a)
                assert found is None or found == id(a)
                cache.put(a, id(a))
                assert cache.held_bytes <= 8 * TILE_BYTES
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        shared.clear()
        gc.collect()
        assert (len(cache), cache.held_bytes) == (0, 0)


class TestUploads:
    def test_the_second_task_uploads_nothing_again(self, gpu):
        a, b, c = tile(0), tile(1), tile(2)
        run(gemm_panel, [a], [b])
        assert uploaded() == 2 * TILE_BYTES
        second = run(gemm_panel, [a], [c])
        assert uploaded() == 3 * TILE_BYTES
        np.testing.assert_array_equal(np.asarray(second), a @ c)
        assert counters.counts()["cache_hits"] == 1
        assert counters.counts()["cache_misses"] == 3

    def test_so_do_other_kernels(self, gpu):
        a = tile()
        for _ in range(3):
            run(lambda xp, x: x + 1, a)
        assert uploaded() == TILE_BYTES

    def test_without_a_cache_every_task_uploads(self, gpu):
        gpu.cache.limit_bytes = 0
        a = tile()
        for _ in range(3):
            run(gemm_panel, [a], [a])
        assert uploaded() == 6 * TILE_BYTES

    def test_views_of_a_kept_tile_cost_nothing(self, gpu):
        whole = Operand(tile(), gpu)
        views = [whole[:, :100], whole[:, 100:][:, 5:]]
        for view, expected in zip(views, [tile()[:, :100], tile()[:, 105:]], strict=True):
            assert view.shape == expected.shape
        np.testing.assert_array_equal(gpu.to_host(views[0].begin()()), tile()[:, :100])
        assert uploaded() == TILE_BYTES - 0
        np.testing.assert_array_equal(gpu.to_host(whole[:, 7:].begin()()), tile()[:, 7:])
        assert uploaded() == TILE_BYTES

    def test_a_view_of_what_is_not_kept_moves_alone(self, gpu):
        gpu.cache.limit_bytes = 0
        view = Operand(tile(), gpu)[:10]
        np.testing.assert_array_equal(gpu.to_host(view.begin()()), tile()[:10])
        assert uploaded() == TILE_BYTES * 10 // SIDE

    def test_the_next_pair_is_on_its_way_while_one_is_multiplied(self):
        """The order of events, on a backend that only notes them."""
        events = []

        def begin(array):
            name = int(array[0, 0])
            events.append(f"begin {name}")

            def arrived():
                events.append(f"wait {name}")
                return array

            return arrived

        here = replace(backend.emulated_gpu(), _begin_upload=begin, cache=DeviceCache(0))
        lefts, rights = ([Operand(np.full((2, 2), n + side), here) for n in range(3)] for side in (0, 10))
        for left, _ in in_turn(lefts, rights):
            events.append(f"use {int(left[0, 0])}")
        assert events == [
            *("begin 0", "begin 10", "begin 1", "begin 11", "wait 0", "wait 10", "use 0"),
            *("begin 2", "begin 12", "wait 1", "wait 11", "use 1"),
            *("wait 2", "wait 12", "use 2"),
        ]

    def test_whoever_stops_in_between_waits_for_what_has_begun(self):
        waited = []
        here = replace(
            backend.emulated_gpu(),
            _begin_upload=lambda array: lambda: waited.append(int(array[0, 0])) or array,
            cache=DeviceCache(0),
        )
        operands = [Operand(np.full((2, 2), n), here) for n in range(5)]
        for _ in in_turn(operands, operands):
            break
        gc.collect()
        assert waited == [0, 0, 1, 1]

    @pytest.mark.parametrize("transpose_a", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "bool", "complex128"])
    def test_no_more_than_two_pairs_are_on_the_device(self, gpu, dtype, transpose_a):
        gpu.cache.limit_bytes = 0
        lefts, rights = ([tile(2 * n + side, dtype=dtype) for n in range(8)] for side in range(2))
        emulated.memory.bound(2**40)
        before = emulated.memory.live
        result = run(gemm_panel, lefts, rights, transpose_a=transpose_a)
        expected = sum(
            np.matmul(a.T if transpose_a else a, b, dtype="float64" if dtype != "complex128" else None)
            for a, b in zip(lefts, rights, strict=True)
        )
        np.testing.assert_array_equal(np.asarray(result), expected.astype(dtype))
        one = SIDE * SIDE * np.dtype("float32" if dtype == "bool" else dtype).itemsize
        # Two pairs, the sum and, where a namespace has no `out=`, what is added to it; booleans also as float32.
        assert emulated.memory.peak - before <= (8 if dtype == "bool" else 6) * one

    def test_kernels_say_that_they_stream(self):
        assert is_streaming(gemm_panel)
        assert is_streaming(functools.partial(gemm_panel, transpose_a=True))
        assert not is_streaming(tree_add)
        assert not is_streaming(lambda xp: None)


@pytest.mark.parametrize("tiles", [None, 2, 0.2])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_the_tasks_of_a_product_take_operands_so(gpu, tiles, ta, tb):
    """Also where the two operands are cut differently along k, so that views of the blocks are multiplied."""
    a, b = tile(0, (SIDE, 3 * SIDE)), tile(1, (3 * SIDE, SIDE))
    cuts = ((SIDE, 2 * SIDE), (2 * SIDE, SIDE // 2, SIDE // 2))
    lefts, rights = np.split(a, [SIDE], axis=1), np.split(b, [2 * SIDE, 2 * SIDE + SIDE // 2], axis=0)
    lefts, rights = [x.T if ta else x for x in lefts], [x.T if tb else x for x in rights]
    if tiles is not None:
        room(tiles)
    kernel = functools.partial(product_tasks._tile, ta=ta, tb=tb, strips=1, cuts=cuts, alike=False)
    assert is_streaming(kernel)
    result = run(kernel, *lefts, *rights)
    np.testing.assert_array_equal(np.asarray(result), a @ b)
    assert (type(result) is DeviceTile) == (tiles is None)


class TestEmulatedMemory:
    def test_live_bytes_are_counted_and_released(self, gpu):
        emulated.memory.bound(4 * TILE_BYTES)
        before = emulated.memory.live
        a = gpu.to_device(tile())
        view = a[:10, :]
        twice = a + a
        assert emulated.memory.live - before == 2 * TILE_BYTES
        del a
        assert emulated.memory.live - before == 2 * TILE_BYTES, "a view keeps it alive"
        del view, twice
        assert emulated.memory.live == before

    def test_what_does_not_fit_is_refused(self, gpu):
        emulated.memory.bound(emulated.memory.live + 2 * TILE_BYTES + 100)  # and for a number
        a = gpu.to_device(tile())
        b = a + 1
        with pytest.raises(MemoryError, match="in use"):
            a + b
        del b
        a + a
        assert emulated.memory.refused == 1

    def test_host_arrays_are_not_counted(self, gpu):
        import array_api_strict

        emulated.memory.bound(1)
        assert array_api_strict.ones(1000).shape == (1000,)

    def test_nonsense(self):
        with pytest.raises(ValueError, match="at least 1 byte"):
            emulated.memory.bound(0)


def room(tiles):
    """Bound the emulated GPU such that so many more tiles fit."""
    emulated.memory.bound(emulated.memory.live + int(tiles * TILE_BYTES))


class TestOutOfMemory:
    """Each step of the ladder, by the room there is; the value is right whatever step it takes."""

    def steps(self):
        names = ("freed", "pieces", "host")
        return {name for name in names if counters.counts()[f"out_of_memory_{name}"]}

    def test_an_upload_takes_the_caches_room_before_a_task_fails(self, gpu):
        kept = [tile(n) for n in range(4)]
        for k in kept:
            run(lambda xp, x: x[0, 0], k)
        room(1)
        np.testing.assert_array_equal(np.asarray(run(lambda xp, x, y: x, tile(7), tile(8))), tile(7))
        assert self.steps() == set()
        assert counters.counts()["cache_evictions"] >= 4

    def test_a_result_takes_it_too(self, gpu):
        a, kept = tile(0), [tile(n) for n in range(1, 5)]
        for k in (*kept, a):
            run(lambda xp, x: x[0, 0], k)
        room(1)  # for the result of one operation, not of two
        result = run(lambda xp, x: (x + 1) * 2, a)
        np.testing.assert_array_equal(np.asarray(result), (a + 1) * 2)
        assert type(result) is DeviceTile
        assert self.steps() == {"freed"}

    @pytest.mark.parametrize("transpose_a", [False, True])
    @pytest.mark.parametrize("transpose_b", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bool", "int32"])
    @pytest.mark.parametrize("tiles", [3, 1, 0.3, 0.05])
    def test_a_product_in_pieces(self, gpu, dtype, transpose_a, transpose_b, tiles):
        lefts, rights = ([tile(2 * n + side, dtype=dtype) for n in range(3)] for side in range(2))
        flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
        expected = gemm_panel(backend.host().xp, lefts, rights, **flags)
        room(tiles * np.dtype(dtype).itemsize / 8)
        before = emulated.memory.live
        result = run(gemm_panel, lefts, rights, **flags)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(result), expected)
        assert "freed" in self.steps()
        assert emulated.memory.live == before, "something was left on the device"

    @pytest.mark.parametrize("held", ["host", "device"])
    @pytest.mark.parametrize("tiles", [8, 1, 0.05])
    def test_a_panel_onto_what_the_last_one_gave(self, gpu, held, tiles):
        @streams
        def chained(xp, before, a, b):
            return add_onto(xp, gemm_panel(xp, [a], [b]), before)

        before = tile(2) if held == "host" else DeviceTile(gpu.to_device(tile(2)), gpu)
        room(tiles)
        result = np.asarray(run(chained, before, tile(0), tile(1)))
        np.testing.assert_array_equal(result, tile(0) @ tile(1) + tile(2))

    @pytest.mark.parametrize(("tiles", "steps"), [(3, {"freed", "pieces"}), (0.001, {"freed", "pieces", "host"})])
    def test_steps_of_a_product(self, gpu, tiles, steps):
        room(tiles)
        result = run(gemm_panel, [tile(0)] * 4, [tile(1)] * 4)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, 4 * (tile(0) @ tile(1)))
        assert self.steps() == steps

    def test_batched_and_of_unequal_lengths(self, gpu):
        lefts = [tile(n, (3, 40, k)) for n, k in enumerate((64, 100, 1))]
        rights = [tile(n + 9, (1, k, 70)) for n, k in enumerate((64, 100, 1))]
        expected = sum(a @ b for a, b in zip(lefts, rights, strict=True))
        room(0.2)
        np.testing.assert_array_equal(run(gemm_panel, lefts, rights), expected)
        assert self.steps() == {"freed", "pieces"}

    def test_operands_that_are_on_the_device_stay_there(self, gpu):
        a, b = (DeviceTile(gpu.to_device(tile(n))) for n in range(2))
        room(0.5)
        np.testing.assert_array_equal(np.asarray(run(gemm_panel, [a], [b])), tile(0) @ tile(1))
        assert self.steps() == {"freed", "pieces"}

    def test_another_kernel_goes_to_the_host(self, gpu):
        a, b = tile(0), DeviceTile(gpu.to_device(tile(1)))
        room(0.5)
        seen = []

        def kernel(xp, x, more):
            seen.append((xp, backend.current().kind))
            return {"sum": x + more[0]}

        result = run(kernel, a, [b])
        np.testing.assert_array_equal(result["sum"], tile(0) + tile(1))
        assert self.steps() == {"freed", "host"}
        assert seen == [(backend.host().xp, "cpu")], "a kernel begins only with its operands on the device"
        assert backend.current() is gpu

    def test_a_tile_that_arrives(self, gpu):
        """From another worker: without room it stays in host memory; an error would fail the transfer for ever."""
        sent = pickle.dumps(DeviceTile(gpu.to_device(tile())), protocol=5)
        assert type(pickle.loads(sent)) is DeviceTile
        others = [gpu.to_device(tile(n)) for n in range(4)]
        room(0.5)
        back = pickle.loads(sent)
        assert type(back) is np.ndarray
        np.testing.assert_array_equal(back, tile())
        assert counters.counts()["out_of_memory_received"] == 1
        del others

    def test_results_beyond_their_share_go_to_the_host(self, gpu):
        emulated.memory.bound(emulated.memory.live + 8 * TILE_BYTES)
        before, sent = at_rest.tiles.bytes, pickle.dumps(DeviceTile(gpu.to_device(tile()), gpu), protocol=5)
        results = [run(lambda xp, x: x + 1, tile(n)) for n in range(9)]
        share = gpu.results_bytes()
        assert {type(r) for r in results} == {DeviceTile, np.ndarray}
        assert share - TILE_BYTES < at_rest.tiles.bytes <= share
        assert type(pickle.loads(sent)) is np.ndarray
        for n, result in enumerate(results):
            np.testing.assert_array_equal(np.asarray(result), tile(n) + 1)
        assert counters.counts()["results_to_host"] >= 3
        del results, result
        assert at_rest.tiles.bytes == before

    def test_other_errors_pass(self, gpu):
        def kernel(xp, x):
            raise MemoryError("of the host")

        with pytest.raises(MemoryError, match="of the host"):
            run(kernel, tile())
        with pytest.raises(ValueError, match="not pairs"):
            run(gemm_panel, [tile()], [])
        assert self.steps() == set()

    def test_every_step_is_said_once(self, gpu, caplog):
        with caplog.at_level(logging.WARNING, "distributed.taskgraph"):
            for _ in range(3):
                room(0.001)
                run(gemm_panel, [tile(0)], [tile(1)])
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 3, said
        for message, what in zip(said, ("began anew", "in pieces", "worker's host"), strict=True):
            assert what in message
            assert "emulated GPU has" in message
        assert counters.counts()["out_of_memory_host"] == 3

    def test_threads_share_a_device_without_room(self, gpu):
        room(3)
        barrier = threading.Barrier(4)

        def work(n):
            barrier.wait(WAIT_S)
            return [np.asarray(run(gemm_panel, [tile(n)], [tile(k)])) for k in range(3)]

        with ThreadPoolExecutor(4) as pool:
            for n, results in enumerate(pool.map(work, range(4))):
                for k, result in enumerate(results):
                    np.testing.assert_array_equal(result, tile(n) @ tile(k))

    def test_cuts_stop(self):
        """An attempt that never fits is made a fixed number of times."""
        made = []

        def attempt(pieces):
            made.append(pieces)
            raise emulated.OutOfMemory("never")

        assert shortage.compute(backend.emulated_gpu(), attempt, lambda: "host", is_divisible=True) == "host"
        assert made == [1, 1, *shortage.CUTS]


def test_a_worker_tells_what_its_device_did():
    """Through the scheduler, as any client sees it; the profile tells the bound as the device's memory."""
    with (
        LocalCluster(
            cpu_workers=0, gpus=0, emulated_gpus=1, emulated_gpu_memory="24 MiB", dashboard_address=None
        ) as cluster,
        Client(cluster, timeout=WAIT_S) as client,
    ):
        client.wait_for_workers(1, timeout=WAIT_S)
        a, b = np.ones((1000, 1000)), np.ones((1000, 1000))
        futures = [client.submit(run, gemm_panel, [a] * k, [b] * k, pure=False) for k in (1, 4)]
        for k, future in zip((1, 4), futures, strict=True):
            np.testing.assert_array_equal(future.result(timeout=WAIT_S), np.full((1000, 1000), 1000.0 * k))

        def told():
            [worker] = cluster.scheduler.workers.values()
            return worker.extra["taskgraph"]["memory"], dict(worker.metrics.get("taskgraph") or {})

        def has_arrived():
            return told()[1].get("out_of_memory_pieces")

        from process_cluster import until

        until(has_arrived, "the counts come with a heartbeat")
        memory, counts = told()
        assert memory == 24 * MIB
        assert counts["bytes_uploaded"] > 0
        assert set(counts) == {*counters.NAMES, "cache_bytes", "buffer_bytes"}
