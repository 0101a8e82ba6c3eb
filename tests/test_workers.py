"""Kernels, device tiles, backends and a worker's setup, without a cluster of processes."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
import types

import array_api_compat.numpy
import array_api_strict
import msgpack
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed import Scheduler, Status, Worker

from workers import backend, memory
from workers import profile as profile_module
from workers.device_tile import DeviceTile, run, to_host
from workers.kernels import gemm_panel, tree_add
from workers.plugin import PROFILE, DeviceSetup, QuietHeartbeat, dask_setup, detect_kind, parse_cpulist, stay_near_gpu

DTYPES = ["bool", "int32", "uint8", "float32", "float64", "complex64", "complex128"]
#: left and right tile shapes before transposition, for the k steps of a panel
PANELS = {
    "one step": [((3, 4), (4, 5))],
    "three steps of unequal length": [((3, 4), (4, 5)), ((3, 1), (1, 5)), ((3, 7), (7, 5))],
    "batch": [((2, 3, 4), (2, 4, 5)), ((2, 3, 2), (2, 2, 5))],
    "broadcast batch": [((2, 1, 3, 4), (6, 4, 5)), ((2, 1, 3, 2), (6, 2, 5))],
    "row times column": [((1, 6), (6, 1)), ((1, 2), (2, 1))],
    "empty inner": [((3, 0), (0, 5)), ((3, 2), (2, 5))],
    "empty output": [((0, 4), (4, 5))],
}


@pytest.fixture(autouse=True)
def _own_backend():
    """Every test begins and ends with the host's NumPy."""
    backend.use(None)
    yield
    backend.use(None)


@pytest.fixture(params=["numpy", "array_api_strict"])
def space(request):
    """The backend whose namespace the kernels run in."""
    return backend.host() if request.param == "numpy" else backend.emulated_gpu()


def numbers(shape, dtype, seed=0):
    """Small whole numbers, so that every sum is exact in every dtype."""
    values = np.random.default_rng(seed).integers(0, 4, shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * np.random.default_rng(seed + 1).integers(0, 4, shape)
    return (values > 2 if dtype == "bool" else values).astype(dtype)


def panel_of(shapes, dtype, transpose_a=False, transpose_b=False):
    lefts = [numbers(left, dtype, 2 * i) for i, (left, _) in enumerate(shapes)]
    rights = [numbers(right, dtype, 2 * i + 1) for i, (_, right) in enumerate(shapes)]
    if transpose_a:
        lefts = [np.ascontiguousarray(np.matrix_transpose(tile)) for tile in lefts]
    if transpose_b:
        rights = [np.ascontiguousarray(np.matrix_transpose(tile)) for tile in rights]
    return lefts, rights


def expected_product(lefts, rights, transpose_a=False, transpose_b=False):
    total = None
    for left, right in zip(lefts, rights, strict=True):
        part = np.matmul(
            np.matrix_transpose(left) if transpose_a else left,
            np.matrix_transpose(right) if transpose_b else right,
        )
        total = part if total is None else total + part
    return total


class TestGemmPanel:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shapes", PANELS.values(), ids=PANELS.keys())
    def test_value(self, space, shapes, dtype):
        lefts, rights = panel_of(shapes, dtype)
        result = space.to_host(
            gemm_panel(space.xp, [space.to_device(x) for x in lefts], [space.to_device(x) for x in rights])
        )
        expected = expected_product(lefts, rights)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)

    @pytest.mark.parametrize("transpose_a", [False, True])
    @pytest.mark.parametrize("transpose_b", [False, True])
    @pytest.mark.parametrize("shapes", [PANELS["three steps of unequal length"], PANELS["broadcast batch"]])
    def test_transposes(self, space, shapes, transpose_a, transpose_b):
        lefts, rights = panel_of(shapes, "float64", transpose_a, transpose_b)
        result = gemm_panel(
            space.xp,
            [space.to_device(x) for x in lefts],
            [space.to_device(x) for x in rights],
            transpose_a=transpose_a,
            transpose_b=transpose_b,
        )
        expected = expected_product(lefts, rights, transpose_a, transpose_b)
        np.testing.assert_array_equal(space.to_host(result), expected)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_inputs_stay_as_they_were(self, space, dtype):
        lefts, rights = panel_of(PANELS["three steps of unequal length"], dtype)
        on_device = [[space.to_device(x) for x in tiles] for tiles in (lefts, rights)]
        before = [x.copy() for x in lefts + rights]
        gemm_panel(space.xp, *on_device)
        after = [space.to_host(x) for tiles in on_device for x in tiles]
        for was, now in zip(before, after, strict=True):
            np.testing.assert_array_equal(was, now)

    def test_read_only_inputs_and_result_of_its_own(self):
        a, b = np.ones((2, 2)), np.ones((2, 2))
        a.flags.writeable = b.flags.writeable = False
        result = gemm_panel(array_api_compat.numpy, [a], [b])
        assert not np.shares_memory(result, a)
        assert not np.shares_memory(result, b)
        assert result.flags.writeable

    def test_dtypes_of_the_steps_promote(self):
        panel = [np.ones((2, 2), "float32"), np.ones((2, 2), "float64")]
        result = gemm_panel(array_api_compat.numpy, panel, panel)
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, np.full((2, 2), 4.0))

    def test_same_order_same_bits(self):
        rng = np.random.default_rng(3)
        lefts = [rng.standard_normal((5, 7)).astype("float32") for _ in range(9)]
        rights = [rng.standard_normal((7, 5)).astype("float32") for _ in range(9)]
        first, second = (gemm_panel(array_api_compat.numpy, lefts, rights) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        in_order = lefts[0] @ rights[0]
        for left, right in zip(lefts[1:], rights[1:], strict=True):
            in_order = in_order + left @ right
        np.testing.assert_array_equal(first, in_order)

    @pytest.mark.parametrize(
        ("lefts", "rights", "message"),
        [
            ([], [], "0 left"),
            ([np.ones((2, 2))], [], "1 left and 0 right"),
            ([np.ones(2)], [np.ones((2, 2))], r"not shape \(2,\)"),
            ([np.ones((2, 3))], [np.ones((2, 2))], "matmul"),
        ],
    )
    def test_bad_panels(self, lefts, rights, message):
        with pytest.raises(ValueError, match=message):
            gemm_panel(array_api_compat.numpy, lefts, rights)


class TestTreeAdd:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
    def test_value_and_inputs(self, space, count, dtype):
        parts = [numbers((2, 3), dtype, seed) for seed in range(count)]
        before = [part.copy() for part in parts]
        on_device = [space.to_device(part) for part in parts]
        result = space.to_host(tree_add(space.xp, on_device))
        expected = before[0]
        for part in before[1:]:
            expected = expected + part
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
        for was, now in zip(before, on_device, strict=True):
            np.testing.assert_array_equal(was, space.to_host(now))

    def test_pairs_in_fixed_order(self):
        # In float32 these sums differ with their order.
        a, b, c, d, e = (np.float32(x) * np.ones(1, "float32") for x in (1e8, 1.0, -1e8, 1.0, 3.0))
        result = tree_add(array_api_compat.numpy, [a, b, c, d, e])
        np.testing.assert_array_equal(result, ((a + b) + (c + d)) + e)

    def test_mixed_dtypes_and_shapes(self):
        parts = [np.ones(3, "float32"), np.ones(3, "float32"), np.ones((2, 3)), np.ones(3, "float32")]
        np.testing.assert_array_equal(tree_add(array_api_compat.numpy, parts), np.full((2, 3), 4.0))

    def test_nothing(self):
        with pytest.raises(ValueError, match="no parts"):
            tree_add(array_api_compat.numpy, [])


class TestDeviceTile:
    @pytest.mark.parametrize("dtype", [*DTYPES, "int64"])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
    def test_attributes_are_the_arrays(self, shape, dtype):
        host = numbers(shape, dtype)
        tile = DeviceTile(backend.emulated_gpu().to_device(host))
        assert (tile.shape, tile.ndim, tile.dtype, tile.nbytes) == (
            shape,
            len(shape),
            host.dtype,
            host.nbytes,
        )
        np.testing.assert_array_equal(np.asarray(tile), host)
        np.testing.assert_array_equal(to_host(tile), host)

    def test_size_counts_the_device_bytes(self):
        tile = DeviceTile(backend.emulated_gpu().to_device(np.ones(10_000)))
        assert 80_000 <= sizeof(tile) < 81_000
        assert 80_000 <= sys.getsizeof(tile) < 81_000

    def test_array_protocol(self):
        tile = DeviceTile(backend.emulated_gpu().to_device(np.arange(3)))
        assert np.asarray(tile, dtype="float32").dtype == np.float32
        with pytest.raises(ValueError, match="only by a copy"):
            np.asarray(tile, copy=False)

    def test_a_bare_device_array_is_refused_by_numpy(self):
        # What makes the emulation honest: code that forgets the copy fails as it would on a GPU.
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            np.asarray(backend.emulated_gpu().to_device(np.ones(2)))

    @pytest.mark.parametrize("array", [np.ones(2), 3.0])
    def test_only_device_arrays(self, array):
        with pytest.raises(TypeError, match="array of this process's GPU"):
            DeviceTile(array)

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("on_gpu", [False, True])
    def test_pickle_is_out_of_band_and_becomes_what_the_process_has(self, on_gpu, order):
        host = np.asarray(np.random.default_rng(0).random((300, 200)), order=order)
        tile = DeviceTile(backend.emulated_gpu().to_device(host))
        buffers = []
        in_band = pickle.dumps(tile, protocol=5, buffer_callback=buffers.append)
        assert len(in_band) < 1000
        assert sum(buffer.raw().nbytes for buffer in buffers) == host.nbytes
        backend.use(backend.emulated_gpu() if on_gpu else None)
        back = pickle.loads(in_band, buffers=buffers)
        assert type(back) is (DeviceTile if on_gpu else np.ndarray)
        np.testing.assert_array_equal(np.asarray(back), host)


class TestRun:
    def test_on_the_host_arrays_stay_numpys(self):
        a = np.ones((2, 2))
        seen = []

        def kernel(xp, array, number, word):
            seen.append((xp, array is a, number, word))
            return array * number

        result = run(kernel, a, 3, "word")
        assert seen == [(array_api_compat.numpy, True, 3, "word")]
        assert type(result) is np.ndarray

    def test_on_the_host_a_tile_becomes_numpys(self):
        tile = DeviceTile(backend.emulated_gpu().to_device(np.ones(2)))
        assert type(run(lambda xp, a: a, tile)) is np.ndarray

    @pytest.mark.parametrize(
        "argument",
        [
            np.ones((2, 2)),
            np.float64(1.0),
            DeviceTile(backend.emulated_gpu().to_device(np.ones((2, 2)))),
        ],
        ids=["ndarray", "scalar", "tile"],
    )
    @pytest.mark.parametrize(
        "wrap",
        [lambda x: x, lambda x: [x, x], lambda x: (x, [x]), lambda x: {"a": x}],
        ids=["x", "[x]", "(x,)", "{x}"],
    )
    def test_on_a_gpu_arrays_go_there_and_come_back_as_tiles(self, argument, wrap):
        backend.use(backend.emulated_gpu())

        def kernel(xp, value):
            assert xp is array_api_strict
            leaf = value
            while not isinstance(leaf, array_api_strict.empty(0).__class__):
                leaf = leaf["a"] if isinstance(leaf, dict) else leaf[0]
            assert leaf.device == array_api_strict.Device(backend.EMULATED_DEVICE)
            return value

        result = run(kernel, wrap(argument))
        assert type(result) is type(wrap(DeviceTile.__new__(DeviceTile)))
        leaf = result["a"] if isinstance(result, dict) else result
        leaf = leaf[0] if isinstance(leaf, list | tuple) else leaf
        assert type(leaf) is DeviceTile

    def test_keywords_and_what_is_no_array_pass(self):
        backend.use(backend.emulated_gpu())
        a = np.arange(6.0).reshape(2, 3)
        tile = run(gemm_panel, [a], [a], transpose_b=True)
        np.testing.assert_array_equal(np.asarray(tile), a @ a.T)
        assert run(lambda xp, x, y: (x, y), None, "word") == (None, "word")

    def test_an_array_that_the_device_cannot_hold_fails_clearly(self):
        backend.use(backend.emulated_gpu())
        with pytest.raises(TypeError):
            run(lambda xp, a: a, np.asarray(["word"]))


class TestVisibleGpus:
    @pytest.mark.parametrize(
        ("listed", "count", "tokens", "kind"),
        [
            (None, 2, ("0", "1"), "cpu"),
            (None, 1, ("0",), "cpu"),
            ("GPU-8932f937", 1, ("GPU-8932f937",), "gpu"),
            ("3", 1, ("3",), "gpu"),
            ("3, 1", 2, ("3", "1"), "cpu"),
            ("1,-1,0", 1, ("1",), "gpu"),
            ("NoDevFiles", 0, (), "cpu"),
            ("1,9", 1, ("1",), "cpu"),
            ("0", 0, (), "cpu"),
            ("", 0, (), "cpu"),
        ],
    )
    def test_with_so_many_devices(self, monkeypatch, fake_cupy, listed, count, tokens, kind):
        fake_cupy(count)
        if listed is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert backend.visible_gpus() == tokens
        assert (backend.probe_gpus()[1] == "") == bool(tokens)
        assert detect_kind() == kind

    @pytest.fixture
    def fake_cupy(self, monkeypatch):
        """A module `cupy` that only counts devices, as CUDA counts those that CUDA_VISIBLE_DEVICES leaves."""

        def install(count):
            class CUDARuntimeError(RuntimeError):
                pass

            def get_device_count():
                if count == 0:
                    raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
                return count

            cupy = types.ModuleType("cupy")
            cupy.__spec__ = types.SimpleNamespace()
            runtime = types.SimpleNamespace(getDeviceCount=get_device_count, CUDARuntimeError=CUDARuntimeError)
            cupy.cuda = types.SimpleNamespace(runtime=runtime)
            monkeypatch.setitem(sys.modules, "cupy", cupy)

        return install


class TestProfile:
    @pytest.mark.parametrize("which", ["host", "emulated_gpu"])
    def test_plain_values(self, which):
        here = getattr(backend, which)()
        told = profile_module.profile(here, memory_limit_bytes=2**30, nthreads=1)
        assert msgpack.unpackb(msgpack.packb(told)) == told
        assert told["kind"] == ("cpu" if which == "host" else "gpu")
        assert told["emulated"] == (which == "emulated_gpu")
        assert told["name"] == here.name
        assert told["memory"] == 2**30
        assert set(told["gflops"]) == {"float32", "float64"}
        assert all(rate > 0.05 for rate in told["gflops"].values())
        assert (told["host_to_device_bytes_per_s"] is None) == (which == "host")
        assert (told["pci_bus_id"], told["uuid"], told["pool_limit"]) == (None, None, None)

    def test_without_a_limit_the_memory_is_the_hosts(self):
        from distributed.system import MEMORY_LIMIT

        assert profile_module.profile(backend.host())["memory"] == MEMORY_LIMIT


class TestPoolLimit:
    @pytest.mark.parametrize(("limit", "expected"), [(0.25, 250), (1.0, 1000), (1, 1), (1000, 1000)])
    def test_value(self, limit, expected):
        assert memory.pool_limit_bytes(limit, 1000) == expected

    @pytest.mark.parametrize("limit", [0.0, -0.5, 1.5, 0, -1, 1001])
    def test_nonsense(self, limit):
        with pytest.raises(ValueError, match="device"):
            memory.pool_limit_bytes(limit, 1000)


class TestAffinity:
    @pytest.mark.parametrize(
        ("text", "cpus"),
        [
            ("0-3\n", {0, 1, 2, 3}),
            ("5", {5}),
            ("0-1,8-9", {0, 1, 8, 9}),
            ("", set()),
            ("\n", set()),
            ("0, 2", {0, 2}),
        ],
    )
    def test_parse(self, text, cpus):
        assert parse_cpulist(text) == cpus

    @pytest.mark.parametrize("text", ["a", "0-", "1-2-3", "0x3"])
    def test_parse_nonsense(self, text):
        with pytest.raises(ValueError, match="invalid literal"):
            parse_cpulist(text)

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
    def test_all_threads_move_to_the_cores_that_are_there(self, tmp_path, monkeypatch):
        before = os.sched_getaffinity(0)
        core = min(before)
        moved = {}
        monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: moved.setdefault(thread, cpus))
        (tmp_path / "0000:3b:00.0").mkdir()
        (tmp_path / "0000:3b:00.0" / "local_cpulist").write_text(f"{core},99999\n")
        assert stay_near_gpu("0000:3B:00.0", tmp_path) == {core}
        assert moved[os.getpid()] == {core}
        assert set(moved) == {int(thread) for thread in os.listdir("/proc/self/task")}

    @pytest.mark.parametrize("cpulist", [None, "99999", ""])
    def test_nothing_changes_without_such_cores(self, tmp_path, monkeypatch, cpulist):
        monkeypatch.setattr(os, "sched_setaffinity", lambda *args: pytest.fail("changed"), raising=False)
        if cpulist is not None:
            (tmp_path / "0000:3b:00.0").mkdir()
            (tmp_path / "0000:3b:00.0" / "local_cpulist").write_text(cpulist)
        assert stay_near_gpu("0000:3b:00.0", tmp_path) is None


async def one_worker(**options):
    """The profile that a scheduler has of a worker in this process, and the process's backend meanwhile."""
    async with (
        Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler,
        Worker(scheduler.address, nthreads=1, dashboard_address="127.0.0.1:0", **options),
    ):
        [state] = scheduler.workers.values()
        return state.extra.get(PROFILE), backend.current()


def bounded(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


class TestSetup:
    @pytest.mark.parametrize(
        "options",
        [
            {"plugins": (DeviceSetup("emulated-gpu"),)},
            {"preload": "workers.plugin", "preload_argv": ["--device", "emulated-gpu"]},
        ],
        ids=["plugin", "preload"],
    )
    def test_the_profile_arrives_with_the_registration(self, options):
        told, during = bounded(one_worker(**options))
        assert told["kind"] == "gpu"
        assert told["emulated"]
        assert during is backend.emulated_gpu()
        assert backend.current().kind == "cpu", "a closed worker leaves the process's backend as it was"

    def test_a_preload_detects_the_cpu(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        told, during = bounded(one_worker(preload="workers.plugin"))
        assert told["kind"] == "cpu"
        assert during is backend.host()

    @pytest.mark.logs_errors
    @pytest.mark.parametrize(
        "options",
        [
            {"plugins": (DeviceSetup("gpu"),)},
            {"preload": "workers.plugin", "preload_argv": ["--device", "gpu"]},
        ],
        ids=["plugin", "preload"],
    )
    def test_a_setup_that_fails_stops_the_worker(self, monkeypatch, options):
        def no_gpu(memory_fraction):
            raise RuntimeError("no GPU can be used in this process")

        monkeypatch.setattr(backend, "cupy_gpu", no_gpu)
        with pytest.raises(RuntimeError) as raised:  # Dask wraps the setup's own error
            bounded(one_worker(**options))
        assert "no GPU can be used" in str(raised.value.__cause__)

    def test_a_missing_gpu_is_explained(self, monkeypatch):
        monkeypatch.setattr(backend, "probe_gpus", lambda: ((), "CUDA finds no GPU"))
        with pytest.raises(RuntimeError, match="no GPU can be used in this process: CUDA finds no GPU"):
            backend.cupy_gpu()

    def test_only_workers_take_the_preload(self):
        with pytest.raises(TypeError, match="not of a dict"):
            dask_setup.callback({}, "cpu", 0.5, 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"kind": "tpu"}, "known: auto, cpu, gpu"), ({"blas_threads": 0}, "at least 1")],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DeviceSetup(**arguments)

    def test_it_travels(self):
        setup = pickle.loads(pickle.dumps(DeviceSetup("gpu", memory_fraction=0.5, blas_threads=2)))
        assert (setup.kind, setup.memory_fraction, setup.blas_threads) == ("gpu", 0.5, 2)


def test_a_kernel_gets_aligned_arrays_so_that_bits_do_not_depend_on_the_network() -> None:
    """What was received may begin at any byte; NumPy multiplies such arrays by other loops, with other bits."""
    values = np.random.default_rng(0).normal(size=(25, 5))
    received = np.ndarray(values.shape, buffer=bytearray(b"?????" + values.tobytes()), offset=5)
    assert not received.flags.aligned
    aligned = run(lambda xp, a, more: [x.flags.aligned for x in (a, *more)], received, [received])
    assert aligned == [True, True]
    right = np.random.default_rng(1).normal(size=(25, 3))
    product = lambda xp, a, b: xp.matmul(a.T, b)
    assert run(product, received, right).tobytes() == run(product, values, right).tobytes()


@pytest.mark.parametrize(("status", "shown"), [("running", True), ("closing", False), ("closed", False)])
def test_a_heartbeat_that_a_closing_worker_cut_off_is_no_error(status, shown):
    worker = type("Worker", (), {"status": Status[status]})()
    quiet = QuietHeartbeat(worker)
    record = logging.LogRecord("distributed.worker", logging.ERROR, "", 0, "", (), None)
    record.msg = "Failed to communicate with scheduler during heartbeat."
    assert quiet.filter(record) is shown
    record.msg = "Unexpected exception during heartbeat. Closing worker."
    assert quiet.filter(record)
