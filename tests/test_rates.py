"""Rates that are kept between runs: what is noted, what the file holds, and that no file ever fails a worker."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from distributed import Scheduler, Worker

from workers import backend, rates
from workers import profile as profile_module
from workers.device_tile import run
from workers.kernels import epilogue, gemm_panel, streams
from workers.plugin import PROFILE, DeviceSetup
from workers.rates import FRESH_S, WEIGHT, Rate, RateBook, folder, open_book


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for the files, of this test alone."""
    where = tmp_path / "cache"
    monkeypatch.setenv("TASKGRAPH_CACHE", str(where))
    yield where
    rates.use(None)
    backend.use(None)


@pytest.fixture
def book(cache):
    """This process's book of its CPU."""
    opened = open_book(backend.host())
    rates.use(opened)
    return opened


def square(n, dtype="float32"):
    return np.ones((n, n), dtype)


class TestWhatIsNoted:
    def test_a_large_product(self, book):
        start = time.perf_counter()
        run(gemm_panel, [square(700)] * 2, [square(700)] * 2)
        seconds = time.perf_counter() - start
        rate = book.known("float32")
        assert rate.tiles == 1
        assert rate.gflops >= 2 * 700 * 1400 * 700 / seconds / 1e9

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (square(400), square(400)),
            (np.ones((200, 4000), "float32"), np.ones((4000, 2000), "float32")),
            (np.ones((2000, 200), "float32"), np.ones((200, 2000), "float32")),
            (square(520, "bool"), square(520, "bool")),
            (square(520, "int32"), square(520, "int32")),
        ],
        ids=["small", "thin", "short", "bool", "int"],
    )
    def test_what_does_not_speak_for_others(self, book, a, b):
        run(gemm_panel, [a], [b])
        assert all(book.known(dtype) is None for dtype in ("float32", "float64", "bool", "int32"))

    def test_a_task_that_fails_or_uploads(self, book):
        def failing(xp, a):
            gemm_panel(xp, [a], [a])
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            run(failing, square(700))
        gpu = backend.emulated_gpu()
        backend.use(gpu)
        run(gemm_panel, [square(700)], [square(700)])
        assert book.known("float32") is None
        on_device = run(lambda xp, a: a + 1, square(700))
        run(gemm_panel, [on_device], [on_device])
        assert book.known("float32").tiles == 1

    def test_other_work_behind_a_product_does_not_count(self, book):
        def program(xp, tile, row):
            time.sleep(0.5)
            return tile + row

        gpu = backend.emulated_gpu()
        backend.use(gpu)
        on_device = run(lambda xp, a: a + 1, square(700))
        row = np.ones(700, "float32")  # uploaded for the epilogue, when the product is done

        @streams
        def kernel(xp, a, row):
            return epilogue(xp, program, [], gemm_panel(xp, [a], [a]), [row])

        run(kernel, on_device, row)
        assert book.known("float32").gflops > 2 * 700**3 / 0.5 / 1e9

    def test_each_thread_its_own(self, book):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: run(gemm_panel, [square(600)], [square(600)]), range(12)))
        assert book.known("float32").tiles >= 1

    def test_without_a_book_nothing(self):
        run(gemm_panel, [square(700)], [square(700)])


class TestBook:
    def test_a_tile_moves_the_mean(self):
        book = RateBook(None)
        book.measured("float32", 100.0)
        book.tile("float32", 50.0)
        assert book.known("float32").gflops == pytest.approx(100 - WEIGHT * 50)
        for _ in range(100):
            book.tile("float32", 50.0)
        assert book.known("float32").gflops == pytest.approx(50, rel=0.01)
        assert book.known("float64") is None

    def test_between_runs(self, cache):
        first = open_book(backend.host(), blas_threads=2)
        first.tile("float64", 40.0)
        first.save()
        again = open_book(backend.host(), blas_threads=2).known("float64")
        assert (again.gflops, again.tiles) == (40.0, 1)
        assert open_book(backend.host(), blas_threads=1).known("float64") is None
        assert open_book(backend.emulated_gpu(), blas_threads=2).known("float64") is None
        [file] = cache.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700

    def test_two_workers_write_one_file(self, cache):
        one, other = open_book(backend.host()), open_book(backend.host())
        one.tile("float32", 10.0)
        other.tile("float64", 20.0)
        one.save()
        other.save()
        third = open_book(backend.host())
        assert (third.known("float32").gflops, third.known("float64").gflops) == (10.0, 20.0)

    def test_many_at_once_leave_a_whole_file(self, cache):
        def work(n):
            book = open_book(backend.host())
            for _ in range(20):
                book.tile("float32", float(n + 1))
                book.save()
                assert open_book(backend.host()).known("float32").gflops > 0

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert len(list(cache.iterdir())) == 1, "temporary files were left"

    @pytest.mark.parametrize("age", [FRESH_S + 60, -FRESH_S - 60])
    def test_what_is_old_is_not_known(self, cache, age):
        book = open_book(backend.host())
        book._note("float32/1", Rate(5.0, 3, time.time() - age))
        book.save()
        assert open_book(backend.host()).known("float32") is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "3",
            '{"rates": {}}',
            json.dumps({"versions": rates._versions(), "rates": {"float32/1": {"gflops": "fast"}}}),
            json.dumps({"versions": rates._versions(), "rates": {"float32/1": {"gflops": -1, "tiles": 1, "at": 1}}}),
            json.dumps({"versions": {"numpy": "0"}, "rates": {"float32/1": {"gflops": 1, "tiles": 1, "at": 1e9}}}),
            "\0" * 100,
        ],
    )
    def test_a_broken_or_foreign_file_is_none(self, cache, text):
        path = open_book(backend.host()).path
        path.parent.mkdir()
        path.write_text(text)
        book = open_book(backend.host())
        assert book.known("float32") is None
        book.tile("float32", 7.0)
        book.save()
        assert open_book(backend.host()).known("float32").gflops == 7.0

    def test_a_folder_that_cannot_be_written(self, cache):
        cache.write_text("a file where the folder should be")
        book = open_book(backend.host())
        book.tile("float32", 7.0)
        book.save()
        assert book.known("float32").gflops == 7.0


class TestFolder:
    def test_by_default_the_users(self, monkeypatch, tmp_path):
        monkeypatch.delenv("TASKGRAPH_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert str(folder()) == "/somewhere/dask-taskgraph"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert folder() == tmp_path / ".cache" / "dask-taskgraph"

    def test_dasks_setting(self, monkeypatch):
        import dask

        monkeypatch.delenv("TASKGRAPH_CACHE")
        with dask.config.set({"taskgraph.cache": "/elsewhere"}):
            assert str(folder()) == "/elsewhere"
        with dask.config.set({"taskgraph.cache": False}):
            assert folder() is None

    @pytest.mark.parametrize("word", ["off", "OFF", "0", "false"])
    def test_off(self, monkeypatch, word):
        monkeypatch.setenv("TASKGRAPH_CACHE", word)
        assert folder() is None
        book = open_book(backend.host())
        book.tile("float32", 1.0)
        book.save()


class TestProfile:
    def test_a_second_worker_does_not_measure(self, cache, monkeypatch):
        for gpu in (backend.host(), backend.emulated_gpu()):
            book = open_book(gpu)
            first = profile_module.profile(gpu, book=book, nthreads=1)
            book.save()
            assert set(first["gflops_from"].values()) == {"measured at this start"}
            with monkeypatch.context() as patched:
                for name in ("gemm_gflops", "copy_bytes_per_s"):
                    patched.setattr(profile_module, name, lambda *_: pytest.fail("measured again"))
                second = profile_module.profile(gpu, book=open_book(gpu), nthreads=1)
            for key in ("gflops", "host_to_device_bytes_per_s"):
                assert second[key] == pytest.approx(first[key])
            assert all(told.startswith("measured at a start on 20") for told in second["gflops_from"].values())

    def test_the_worker_as_a_whole(self, cache, monkeypatch):
        monkeypatch.setattr(profile_module, "CPU_COUNT", 8)
        book = open_book(backend.host(), blas_threads=2)
        for dtype in ("float32", "float64", "complex64"):
            book.tile(dtype, 30.0)
        told = profile_module.profile(backend.host(), book=book, nthreads=3, blas_threads=2)
        assert told["gflops"] == {"float32": 90.0, "float64": 90.0, "complex64": 90.0}
        assert told["gflops_from"]["complex64"].startswith("1 tiles until 20")
        # Eight cores are what there is, however many threads.
        crowded = profile_module.profile(backend.host(), book=book, nthreads=8, blas_threads=2)
        assert crowded["gflops"]["float32"] == 120.0

    def test_a_worker_refines_and_the_next_begins_with_it(self, cache):
        async def worker():
            async with (
                Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler,
                Worker(
                    scheduler.address,
                    nthreads=1,
                    dashboard_address="127.0.0.1:0",
                    plugins=(DeviceSetup("cpu"),),
                ),
            ):
                [state] = scheduler.workers.values()
                for _ in range(3):
                    run(gemm_panel, [square(600, "complex64")], [square(600, "complex64")])
                return state.extra[PROFILE]

        first = asyncio.run(asyncio.wait_for(worker(), 30))
        assert set(first["gflops"]) == {"float32", "float64"}
        second = asyncio.run(asyncio.wait_for(worker(), 30))
        assert set(second["gflops"]) == {"float32", "float64", "complex64"}
        assert second["gflops_from"]["complex64"].startswith("3 tiles")
        assert second["gflops_from"]["float32"].startswith("measured at a start")
        assert len(os.listdir(cache)) == 1
