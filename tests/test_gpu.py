"""CuPy on a real GPU: kernels, tiles between processes, the pool's limit and the profile."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from distributed import Client

import taskgraph as tg
from deploy.demo import exact_rows
from deploy.local import LocalCluster
from deploy.measure import run_product
from workers import backend, counters, memory
from workers.device_tile import DeviceTile, run
from workers.kernels import gemm_panel, tree_add
from workers.profile import profile

TOKENS, WHY_NONE = backend.probe_gpus()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not TOKENS, reason=f"no GPU: {WHY_NONE}"),
]

#: A GPU worker imports CuPy and makes a CUDA context before it joins.
WAIT_S = 100

#: relative error of a product of 512 terms: a few units in the last place times sqrt(512)
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "complex64": 1e-5, "complex128": 1e-13}


@pytest.fixture
def gpu():
    """CuPy as this process's backend, and the host's NumPy again after the test."""
    here = backend.cupy_gpu()
    backend.use(here)
    yield here
    backend.use(None)
    memory.bound_device_pool(1.0)


def random_tiles(shape, dtype, count):
    rng = np.random.default_rng(1)
    tiles = [rng.standard_normal(shape) for _ in range(count)]
    if np.dtype(dtype).kind == "c":
        tiles = [tile + 1j * rng.standard_normal(shape) for tile in tiles]
    return [tile.astype(dtype) for tile in tiles]


class TestKernels:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("transpose_a", [False, True])
    @pytest.mark.parametrize("transpose_b", [False, True])
    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_gemm_panel(self, gpu, dtype, transpose_a, transpose_b, batch):
        lefts = random_tiles((*batch, *((128, 96) if transpose_a else (96, 128))), dtype, 4)
        rights = random_tiles((*batch, *((64, 128) if transpose_b else (128, 64))), dtype, 4)
        on_device = [[gpu.to_device(tile) for tile in tiles] for tiles in (lefts, rights)]
        result = gpu.to_host(gemm_panel(gpu.xp, *on_device, transpose_a=transpose_a, transpose_b=transpose_b))
        expected = sum(
            (np.matrix_transpose(a) if transpose_a else a) @ (np.matrix_transpose(b) if transpose_b else b)
            for a, b in zip(lefts, rights, strict=True)
        )
        assert result.dtype == expected.dtype
        assert np.abs(result - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()
        for tile, before in zip(on_device[0] + on_device[1], lefts + rights, strict=True):
            np.testing.assert_array_equal(gpu.to_host(tile), before)

    @pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "uint8"])
    def test_gemm_panel_of_whole_numbers(self, gpu, dtype):
        a = np.random.default_rng(2).integers(0, 2, (40, 30)).astype(dtype)
        result = gemm_panel(gpu.xp, [gpu.to_device(a)] * 2, [gpu.to_device(a)] * 2, transpose_b=True)
        np.testing.assert_array_equal(gpu.to_host(result), a @ a.T + a @ a.T)

    @pytest.mark.parametrize("count", [1, 2, 5, 8])
    def test_tree_add(self, gpu, count):
        parts = random_tiles((64, 64), "float32", count)
        on_device = [gpu.to_device(part) for part in parts]
        result = gpu.to_host(tree_add(gpu.xp, on_device))
        # Additions are IEEE's on both: the same order gives the same bits.
        np.testing.assert_array_equal(result, tree_add(np, parts))
        for tile, before in zip(on_device, parts, strict=True):
            np.testing.assert_array_equal(gpu.to_host(tile), before)

    def test_a_long_panel_needs_one_scratch_buffer(self, gpu):
        import cupy

        side = 1024
        tile = gpu.to_device(np.ones((side, side), "float32"))
        pool = cupy.get_default_memory_pool()
        gemm_panel(gpu.xp, [tile], [tile])  # cuBLAS's workspace
        gpu.synchronize()
        pool.free_all_blocks()
        before = pool.total_bytes()
        result = gemm_panel(gpu.xp, [tile] * 16, [tile] * 16)
        gpu.synchronize()
        assert pool.total_bytes() - before <= 2 * result.nbytes + 2**20
        assert float(result[0, 0]) == 16 * side


class TestTiles:
    def test_run_keeps_results_on_the_device(self, gpu):
        import cupy

        a = np.arange(6.0).reshape(2, 3)
        tile = run(gemm_panel, [a], [a], transpose_b=True)
        assert type(tile) is DeviceTile
        assert type(tile.array) is cupy.ndarray
        assert (tile.shape, tile.dtype, tile.nbytes) == ((2, 2), np.dtype("float64"), 32)
        np.testing.assert_array_equal(np.asarray(tile), a @ a.T)
        assert gpu.name in repr(tile)
        again = run(lambda xp, x, scale: x * scale, tile, 2.0)
        np.testing.assert_array_equal(np.asarray(again), 2 * (a @ a.T))

    def test_a_bare_array_is_refused_by_numpy(self, gpu):
        with pytest.raises(TypeError):
            np.asarray(gpu.to_device(np.ones(2)))

    @pytest.mark.parametrize("on_gpu", [True, False])
    def test_pickle(self, gpu, on_gpu):
        tile = DeviceTile(gpu.to_device(np.arange(1000.0)))
        buffers = []
        in_band = pickle.dumps(tile, protocol=5, buffer_callback=buffers.append)
        assert len(in_band) < 1000
        backend.use(gpu if on_gpu else None)
        back = pickle.loads(in_band, buffers=buffers)
        assert type(back) is (DeviceTile if on_gpu else np.ndarray)
        np.testing.assert_array_equal(np.asarray(back), np.arange(1000.0))

    @pytest.mark.parametrize("make", [np.asfortranarray, lambda a: a[::2, ::3], lambda a: a[:, ::-1]])
    def test_any_layout_reaches_the_device(self, gpu, make):
        host = make(np.arange(60.0).reshape(6, 10))
        host.flags.writeable = False  # as what arrives from another worker may be
        np.testing.assert_array_equal(gpu.to_host(gpu.to_device(host)), host)


class TestMemory:
    def test_the_pool_keeps_its_limit(self, gpu):
        import cupy

        limit = 64 * 2**20
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        assert memory.bound_device_pool(limit) == limit
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(limit + 2**20, dtype=cupy.uint8)
        fits = cupy.empty(limit // 2, dtype=cupy.uint8)
        assert pool.total_bytes() <= limit
        del fits

    def test_a_fraction_of_the_device(self, gpu):
        import cupy

        total = cupy.cuda.runtime.memGetInfo()[1]
        assert memory.bound_device_pool(0.5) == int(0.5 * total)
        assert cupy.get_default_memory_pool().get_limit() == int(0.5 * total)

    def test_pinned_memory_is_given_back(self, gpu):
        import cupy

        pool = cupy.get_default_pinned_memory_pool()
        for power in range(10, 24):
            gpu.to_device(np.zeros(2**power, dtype=np.uint8))
            gpu.synchronize()
        memory.trim_pinned_pool(0)
        assert pool.n_free_blocks() == 0


def test_profile(gpu):
    told = profile(gpu)
    assert (told["kind"], told["emulated"], told["name"]) == ("gpu", False, gpu.name)
    assert told["memory"] > 2**30
    assert 0 < told["pool_limit"] < told["memory"]
    assert told["gflops"]["float32"] > 100
    assert 0 < told["gflops"]["float64"] <= 1.5 * told["gflops"]["float32"]
    assert told["host_to_device_bytes_per_s"] > 1e8
    assert told["pci_bus_id"].count(":") == 2
    assert told["uuid"] is None or told["uuid"].startswith("GPU-")


def test_counting_takes_no_device_memory():
    """In a process of its own, because this one has a context already."""
    # A primary context that is active would hold some hundred MB of the device.
    program = (
        "import ctypes; from workers.backend import visible_gpus; tokens = visible_gpus(); "
        "flags, active = ctypes.c_uint(), ctypes.c_int(); cuda = ctypes.CDLL('libcuda.so.1'); "
        "assert cuda.cuInit(0) == 0; "
        "assert cuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0; "
        "print(len(tokens), active.value)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S)
    assert answer.stdout.split() == [str(len(TOKENS)), "0"], answer.stderr


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        cpu_workers=1, threads_per_cpu_worker=1, gpus=min(2, len(TOKENS)), dashboard_address=":0"
    ) as started:
        yield started


@pytest.fixture
def client(cluster):
    with Client(cluster, timeout=WAIT_S) as connected:
        connected.wait_for_workers(len(cluster.worker_spec), timeout=WAIT_S)
        yield connected


def type_name(value):
    return type(value).__name__


class TestCluster:
    def test_a_worker_a_gpu(self, client):
        told = {w["name"]: w["taskgraph"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}
        names = [f"gpu-{i}" for i in range(min(2, len(TOKENS)))]
        assert set(told) == {"cpu-0", *names}
        assert all(told[name]["kind"] == "gpu" and not told[name]["emulated"] for name in names)
        assert len({told[name]["pci_bus_id"] for name in names}) == len(names), "two workers share a GPU"
        listed = client.run(lambda dask_worker: (dask_worker.name, os.environ["CUDA_VISIBLE_DEVICES"]))
        assert dict(listed.values()) == {"cpu-0": "", **dict(zip(names, TOKENS, strict=False))}

    def test_the_pool_is_bounded(self, client):
        def limit_and_total():
            import cupy

            return cupy.get_default_memory_pool().get_limit(), cupy.cuda.runtime.memGetInfo()[1]

        limit, total = client.submit(limit_and_total, workers=["gpu-0"], pure=False).result(timeout=WAIT_S)
        assert limit == int(memory.DEVICE_FRACTION * total)

    @pytest.mark.parametrize(
        ("to", "expected"), [("gpu-0", "DeviceTile"), ("gpu-1", "DeviceTile"), ("cpu-0", "ndarray")]
    )
    def test_a_tile_crosses(self, client, to, expected):
        if to == "gpu-1" and len(TOKENS) < 2:
            pytest.skip("no GPU peer: this machine has one GPU")
        a = np.random.default_rng(0).standard_normal((700, 500)).astype("float32")
        tile = client.submit(run, gemm_panel, [a], [a.T], workers=["gpu-0"], pure=False)
        assert client.submit(type_name, tile, workers=[to], pure=False).result(timeout=WAIT_S) == expected
        product = client.submit(run, gemm_panel, [tile], [tile], workers=[to], pure=False)
        value = (a @ a.T) @ (a @ a.T)
        error = np.abs(product.result(timeout=WAIT_S) - value).max() / np.abs(value).max()
        assert error < 1e-5

    def test_a_tile_reaches_the_client(self, client):
        a = np.ones((300, 300))
        back = client.submit(run, gemm_panel, [a], [a], workers=["gpu-0"], pure=False).result(timeout=WAIT_S)
        assert type(back) is np.ndarray
        np.testing.assert_array_equal(back, a @ a)

    def test_a_tile_comes_from_a_cpu_worker(self, client):
        a = client.submit(np.ones, (300, 300), workers=["cpu-0"], pure=False)
        tile = client.submit(run, gemm_panel, [a], [a], workers=["gpu-0"], pure=False)
        np.testing.assert_array_equal(tile.result(timeout=WAIT_S), np.full((300, 300), 300.0))

    @pytest.mark.parametrize("pin", ["cpu", "gpu", "cpu+gpu"])
    def test_the_demos_product(self, client, pin):
        """The tutorial's product under each pin of the demo: right, and its tiles on workers of the pin's kinds."""
        n = 2048
        a, b = (tg.random.default_rng(seed).standard_normal((n, n), "float32").persist() for seed in range(2))
        with tg.device(pin):
            done = run_product(client, a @ b)
        assert exact_rows(a.compute(), b.compute()).error(done.kept.compute()) < 1e-5
        assert {name.partition("-")[0] for name in done.tiles} == set(pin.split("+"))

    def test_a_graph_with_pins_and_its_gradient(self, client):
        x = tg.random.default_rng(0).standard_normal((300, 200), chunks=100)
        with tg.device("gpu"):
            y = tg.tanh(x @ x.T / 10)
        loss = tg.sum(y * y)
        value, gradient = tg.compute(loss, tg.gradients(loss, x))
        here = x.compute(scheduler="synchronous")
        t = np.tanh(here @ here.T / 10)
        inner = 2 * t * (1 - t * t) / 10
        np.testing.assert_allclose(value, (t * t).sum(), rtol=1e-9)
        np.testing.assert_allclose(gradient, (inner + inner.T) @ here, rtol=1e-8, atol=1e-9)

    def test_the_workers_stay_near_their_gpus(self, client):
        """Every thread of a GPU worker may run on the same cores: none was left behind."""

        def affinities():
            return {tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in os.listdir("/proc/self/task")}

        assert len(client.submit(affinities, workers=["gpu-0"], pure=False).result(timeout=WAIT_S)) == 1


class TestStreams:
    """Uploads beside the work, the cache, and what is done without room: the same as on the emulated GPU."""

    @pytest.fixture
    def bounded(self, gpu):
        """Bound the pool to so many bytes beyond what it holds; without a bound again after the test."""
        import cupy

        counters.reset()

        def bound(nbytes):
            gpu.free()
            pool = cupy.get_default_memory_pool()
            pool.set_limit(size=pool.total_bytes() + nbytes)

        yield bound
        gpu.free()
        memory.bound_device_pool(1.0)

    def test_uploads_of_every_layout(self, gpu):
        rng = np.random.default_rng(0)
        for host in (
            rng.random((3000, 2000)),
            np.asfortranarray(rng.random((3000, 2000))),
            rng.random((3000, 4000))[::2, ::3],
            rng.random((3000, 2000)) > 0.5,
            rng.random((300, 200)).astype(">f8"),
        ):
            host.flags.writeable = False
            np.testing.assert_array_equal(gpu.to_host(gpu.to_device(host)), host)

    def test_many_uploads_beside_products(self, gpu):
        """Memory that a product still reads is not written by the next upload."""
        gpu.cache.limit_bytes = 0
        tiles = [np.full((1024, 1024), float(n), "float32") for n in range(24)]
        eye = np.eye(1024, dtype="float32")
        for _ in range(3):
            result = np.asarray(run(gemm_panel, tiles, [eye] * len(tiles)))
            np.testing.assert_array_equal(result, np.full((1024, 1024), float(sum(range(24)))))

    def test_the_second_task_uploads_nothing_again(self, gpu):
        counters.reset()
        a, b = (np.ones((1024, 1024), "float32") for _ in range(2))
        for _ in range(3):
            run(gemm_panel, [a, b], [b, a])
        assert counters.counts()["bytes_uploaded"] == a.nbytes + b.nbytes
        del a
        assert gpu.cache.held_bytes == b.nbytes

    @pytest.mark.parametrize(("room", "step"), [(9, "freed"), (2, "pieces"), (0.01, "host")])
    def test_without_room(self, gpu, bounded, room, step):
        side = 2048
        a, b = (np.full((side, side), x, "float32") for x in (1, 2))
        run(gemm_panel, [a[:8, :8]], [b[:8, :8]])  # cuBLAS's workspace
        bounded(int(room * a.nbytes))
        if step == "freed":
            kept = [np.zeros((side, side), "float32") for _ in range(5)]
            gpu.cache.limit_bytes = 20 * a.nbytes
            for k in kept:
                run(lambda xp, x: xp.sum(x), k)
        np.testing.assert_array_equal(np.asarray(run(gemm_panel, [a] * 3, [b] * 3)), np.full((side, side), 6.0 * side))
        if step != "freed":
            assert counters.counts()[f"out_of_memory_{step}"] == 1
