"""Operands that the tasks of a product read themselves: when, what of them, and that the values are the same."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from planning import data, machine, only, plan

import taskgraph as tg
from taskgraph.execute import machine_of
from taskgraph.jobs import jobs_of
from taskgraph.lower import lower
from taskgraph.problem import PIECE_BYTES, SHORTEST_PIECE
from taskgraph.slots import MEMORY_SHARE
from workers import backend, kernels
from workers.device_tile import run
from workers.kernels import gemm_panel
from workers.operand import Deferred

FLAGS = list(itertools.product([False, True], repeat=2))
SMALL = machine(cpus=[(90.0, 1)] * 2, memory=2**22, is_cluster=True)
"""Two workers, in which 300 x 2000 float64 numbers do not fit."""


class Reads:
    """Any rectangle of an array, and how many elements were asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.elements = array, 0

    def __call__(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        found = self.array[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
        self.elements += found.size
        return found


def deferred(array: np.ndarray) -> Deferred:
    return Deferred(Reads(array), (0,) * array.ndim, array.shape, array.dtype)


# -- what a task reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        slice(2, 5),
        (slice(2, 5), slice(1, None)),
        (..., slice(3, 4)),
        (slice(1, 4), ..., slice(None, 6)),
        (..., slice(2, 2), slice(None)),
        ...,
        (slice(-3, -1), slice(0, 99)),
    ],
)
def test_a_slice_reads_itself_alone(index: Any) -> None:
    array = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    part = deferred(array)[index]
    assert (part.shape, part.dtype, part.nbytes, part.ndim) == (array[index].shape, array.dtype, array[index].nbytes, 3)
    assert part.make.elements == 0
    np.testing.assert_array_equal(part.read(), array[index])
    assert part.make.elements == array[index].size
    again = part[1:]
    np.testing.assert_array_equal(again.read(), array[index][1:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).read(), again.read())


@pytest.mark.parametrize("where", ["host", "gpu"])
@pytest.mark.parametrize(("ta", "tb"), FLAGS)
def test_a_panel_of_deferred_tiles(where: str, ta: bool, tb: bool) -> None:
    rng = np.random.default_rng(0)
    lefts = [rng.integers(0, 9, (4, k) if not ta else (k, 4)).astype("float64") for k in (3, 5, 2)]
    rights = [rng.integers(0, 9, (k, 6) if not tb else (6, k)).astype("float64") for k in (3, 5, 2)]
    backend.use(backend.emulated_gpu() if where == "gpu" else None)
    try:
        lazy = [[deferred(x) for x in lefts], [deferred(x) for x in rights]]
        expected = np.asarray(run(gemm_panel, lefts, rights, transpose_a=ta, transpose_b=tb))
        for of_a, of_b in [(lazy[0], lazy[1]), (lefts, lazy[1]), (lazy[0], rights)]:
            found = run(gemm_panel, of_a, of_b, transpose_a=ta, transpose_b=tb)
            np.testing.assert_array_equal(np.asarray(found), expected)
        assert [x.make.elements for side in lazy for x in side] == [2 * x.size for x in (*lefts, *rights)]
        # a kernel that knows nothing of them gets arrays
        np.testing.assert_array_equal(np.asarray(run(lambda xp, x: x + 1, lazy[0][0])), lefts[0] + 1)
    finally:
        backend.use(None)


def test_one_pair_at_a_time_and_none_after_an_error() -> None:
    made: list[int] = []

    def make(start: Any, shape: Any) -> np.ndarray:
        made.append(start[0])
        if start[0] == 4:
            raise OSError("no such file")
        return np.ones(shape)

    tiles = [Deferred(make, (n, 0), (2, 2), np.dtype(float)) for n in (0, 2, 4, 6)]
    with pytest.raises(OSError, match="no such file"):
        gemm_panel(np, tiles, [np.ones((2, 2))] * 4)
    assert made == [0, 2, 4]


@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5), (0, 5), (7, 0), (1, 1)])
def test_a_small_scratch_buffer_gives_the_same(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    *lead, m, n = shape
    rng = np.random.default_rng(0)
    lefts = [rng.integers(0, 9, (*lead, m, 4)).astype("float64") for _ in range(3)]
    rights = [rng.integers(0, 9, (*lead, 4, n)).astype("float64") for _ in range(3)]
    whole = gemm_panel(np, lefts, rights)
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 48)
    np.testing.assert_array_equal(gemm_panel(np, lefts, rights), whole)


# -- what the plan decides ---------------------------------------------------------------------------------------------


def test_what_fits_is_made_once_and_what_does_not_is_read() -> None:
    n = 19365
    rng = tg.random.default_rng(0)
    product = rng.random((n, n), dtype="float32") @ rng.random((n, n), dtype="float32")
    small = only(plan(product, machine(cpus=[(90.0, 1)] * 2, memory=10**9, is_cluster=True)))
    assert small.streamed == (True, True)
    assert small.bytes_moved == small.bytes_bound == 0  # what tasks make themselves need not move
    assert small.panels == 1
    assert small.seconds < 1.4 * small.area_seconds  # random numbers are made for every tile
    assert max(small.peak_bytes.values()) <= 10**9
    large = only(plan(product, machine(cpus=[(90.0, 1)] * 64, memory=2**36, is_cluster=True)))
    assert False in large.streamed  # made by 64, else by each again


def test_a_block_of_one_tile_is_read_by_it() -> None:
    """Nothing is gained by a task of its own: of a tall matrix times a small one, the tall one."""
    tall, slim = tg.random.default_rng(0).random((200_000, 512), dtype="float32"), data(512, 512)
    p = only(plan(tall @ slim, machine(cpus=[(90.0, 1)] * 4, is_cluster=True)))
    assert p.streamed == (True, False)
    assert p.grid.shape[1] == 1


def test_only_what_can_be_made_anywhere_is_read() -> None:
    for x in (
        data(300, 2000, dtype="float64"),
        tg.random.default_rng(0).random((300, 2000)) + 1,
        tg.random.default_rng(0).random((300, 2000), device="cpu"),
        tg.asarray(np.ones((300, 2000))),
    ):
        assert only(plan(x @ tg.ones((2000, 500)), SMALL)).streamed[0] is False


def test_random_numbers_that_others_need_are_made_once() -> None:
    x = tg.random.default_rng(0).random((300, 2000))
    p = plan([x @ tg.ones((2000, 500)), tg.exp(x)], SMALL)
    assert only(p).streamed[0] is False


@pytest.mark.parametrize("flags", FLAGS)
def test_pieces_are_small_and_not_thin(flags: tuple[bool, bool]) -> None:
    n = 19365
    rng = tg.random.default_rng(0)
    a, b = (rng.random((n, n), dtype="float32", chunks=1024) for _ in range(2))
    p = tg.plan((a.mT if flags[0] else a) @ (b.mT if flags[1] else b), machine(cpus=[(90.0, 1)] * 2, memory=10**9))
    (node,) = p.products
    for x, inner_first in zip(node.inputs, (flags[0], not flags[1]), strict=True):
        k, outer = (x.chunks[-2], x.chunks[-1]) if inner_first else (x.chunks[-1], x.chunks[-2])
        assert max(k) * max(outer) * 4 <= max(PIECE_BYTES, SHORTEST_PIECE * max(outer) * 4)
        assert min(k[:-1]) >= SHORTEST_PIECE
        assert all(size % 1024 == 0 for size in k[:-1])  # as the array lies: no chunk is read twice


@pytest.mark.parametrize("memory", [2**24, 2**26, 2**28])
def test_tasks_keep_to_their_share(memory: int) -> None:
    n = 8192
    rng = tg.random.default_rng(0)
    p = plan(rng.random((n, n), dtype="float32") @ rng.random((n, n), dtype="float32"), machine(memory=memory))
    (node,) = p.products
    found = only(p)
    assert found.streamed == (True, True)
    a, b = node.inputs
    tile = max(found.grid.m) * max(found.grid.n) * 4
    pieces = 4 * (max(found.grid.m) * max(a.chunks[1]) + max(found.grid.n) * max(b.chunks[0]))
    assert tile + min(tile, kernels.SCRATCH_BYTES) + pieces <= MEMORY_SHARE * memory / 4  # four threads
    assert max(found.peak_bytes.values()) <= memory


def test_no_memory_for_a_piece() -> None:
    rng = tg.random.default_rng(0)
    with pytest.raises(tg.InfeasiblePlan, match="smallest machine that fits"):
        plan(rng.random((4096, 2**16)) @ rng.random((2**16, 4096)), machine(cpus=[(90.0, 1)], memory=2**10))


# -- tasks and values --------------------------------------------------------------------------------------------------


def file_of(folder: Path, name: str, array: np.ndarray, chunks: Any) -> tg.Tensor:
    zarr.create_array(str(folder / name), data=array, chunks=chunks)
    return tg.from_zarr(folder / name)


def test_a_streamed_product_has_no_other_tasks(tmp_path: Path) -> None:
    a = file_of(tmp_path, "a", np.ones((300, 2000)), (100, 400))
    b = file_of(tmp_path, "b", np.ones((2000, 500)), (400, 100))
    p = plan(a @ b, SMALL)
    assert only(p).streamed == (True, True)
    graph = lower(p).graph
    assert len(graph) == len(only(p).slots) == len(jobs_of(p).items)
    assert all(not task.dependencies for task in graph.to_dict().values())
    assert all(job.work > 0 and not job.needs for job in jobs_of(p).items)


def test_an_elementwise_user_still_gets_its_blocks(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((300, 2000))
    a = file_of(tmp_path, "a", x, (100, 400))
    p = plan([a @ tg.ones((2000, 500)), a + 1], SMALL)
    found = lower(p)
    assert len(jobs_of(p).items) == len(found.graph)
    product, more = tg.compute(a @ tg.ones((2000, 500)), a + 1)
    np.testing.assert_allclose(product, x @ np.ones((2000, 500)))
    np.testing.assert_array_equal(more, x + 1)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operand fits, no product is small, and pieces are short."""
    monkeypatch.setattr("taskgraph.cost.Evaluation.fits_at_rest", lambda self: False)
    monkeypatch.setattr("taskgraph.reading.PIECE_BYTES", 2**14)
    monkeypatch.setattr("taskgraph.problem.THINNEST_PIECE", 16)
    monkeypatch.setattr(sys.modules["taskgraph.plan"], "is_small", lambda *_: False)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Client]:
    with (
        tg.LocalCluster(cpu_workers=1, emulated_gpus=1, gpus=0, dashboard_address=None) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("kind", ["cpu", "gpu", "cpu+gpu"])
def test_values(kind: str, crowded: None, mixed: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 300)), rng.standard_normal((300, 150))
    r = tg.random.default_rng(0).standard_normal((150, 40))
    products = []
    for number, (ta, tb) in enumerate(FLAGS):
        a = file_of(tmp_path, f"a{number}", np.ascontiguousarray(x.T if ta else x), (64, 50))
        np.save(tmp_path / f"b{number}.npy", np.ascontiguousarray(y.T if tb else y))
        b = tg.from_npy(tmp_path / f"b{number}.npy", chunks=70)
        with tg.device(kind):
            product = (a.mT if ta else a) @ (b.mT if tb else b)
        (planned,) = tg.plan(product, machine_of(mixed)).products.values()
        assert planned.streamed == (True, True)
        products += [product, product @ r]
    for found, expected in zip(tg.compute(*products, scheduler=mixed), [x @ y, x @ y @ r.compute()] * 4, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_batches(crowded: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 60, 90)), rng.standard_normal((1, 90, 50))
    a, b = file_of(tmp_path, "a", x, (1, 30, 30)), file_of(tmp_path, "b", y, (1, 45, 50))
    np.testing.assert_allclose((a @ b).compute(), x @ y, atol=1e-12)
    np.testing.assert_allclose((b.mT @ a.mT).compute(), np.matrix_transpose(x @ y), atol=1e-12)
