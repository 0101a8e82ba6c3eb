"""Operands that a product's tasks put together from blocks that are cut otherwise: laws, values, bytes on workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, wait
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import machine, only, plan, tags, value

import taskgraph as tg
from scheduler_plugins import report
from taskgraph.bounds import communication_bound
from taskgraph.gathering import gathered, parts_taken, spans
from taskgraph.lower import lower
from workers import backend
from workers.device_tile import DeviceTile, part_of, run
from workers.kernels import Joined, gemm_panel, streams


def lying(x: np.ndarray, *chunks: Any) -> tg.Tensor:
    return tg.from_dask(da.from_array(x, chunks=chunks))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.data(), st.booleans())
def test_pieces_cover_every_block_once(total: int, draw: st.DataObject, inner_first: bool) -> None:
    """Whatever the cuts: the pieces of an operand's block are that block, in order."""

    def cut() -> tuple[int, ...]:
        ends = sorted(draw.draw(st.sets(st.sampled_from(range(1, total + 1)))) | {total})
        return tuple(b - a for a, b in itertools.pairwise([0, *ends]))

    old, new = (cut(), cut()), (cut(), cut())
    x = np.arange(total * total).reshape(total, total)
    wanted = lying(x, *old).rechunk(new).expr
    if wanted.op.name != "rechunk":
        return
    g, blocks = gathered(wanted, inner_first), da.from_array(x, chunks=old).blocks
    rows = []
    for pieces in g.outer:
        line = []
        for k in g.k:
            taken = [part_of(np.asarray(blocks[g.index(k, o)]), g.slices(k, o) or ()) for o in pieces]
            line.append(Joined(taken, g.axis).read())
        rows.append(np.concatenate(line, -2 if inner_first else -1))
    outer = new[1] if inner_first else new[0]
    assert [r.shape[g.axis] for r in rows] == list(outer)
    np.testing.assert_array_equal(np.concatenate(rows, g.axis), x)
    assert parts_taken(old[0], new[0]) == 0 or old[0] != new[0]
    assert spans(old[0], new[0]).shape == (len(new[0]),)


LAYOUTS = ((100, 300), (300, 70), (110, 90), (300, 300))


@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("of_a", "of_b"), [*zip(LAYOUTS, LAYOUTS, strict=True), ((100, 300), (300, 70))])
def test_gathered_products_have_the_same_value(flags: Any, of_a: Any, of_b: Any) -> None:
    """On CPU workers that share a product of kept blocks; nothing is joined by a task of its own."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 300, 300))
    c = tg.ops.product.product(lying(a, *of_a), lying(b, *of_b), *flags)
    planned = plan(tg.tanh(c), machine(cpus=[(0.01, 1)] * 4, link_bytes_per_s=1e8))
    graph = lower(planned)
    assert len(set(only(planned).slots)) > 1
    assert not [k for k in graph.graph.to_dict() if "rechunk-merge" in str(k)]
    expected = np.tanh((a.T if flags[0] else a) @ (b.T if flags[1] else b))
    np.testing.assert_allclose(value(graph, 2), expected, atol=1e-12)
    split = {key: tag for key, tag in tags(graph).items() if str(key[0]).startswith("rechunk-split")}
    assert all(tag == {"kind": "cpu", "stays": True} for tag in split.values())
    assert bool(split) <= any(only(planned).gathers)


def test_batched_and_layered() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((4, 60, 90)), rng.standard_normal((90, 80))
    m = machine(cpus=[(0.001, 1)] * 6, link_bytes_per_s=1e8)
    c = lying(a, 2, 11, 45) @ lying(b, 17, 80)
    np.testing.assert_allclose(value(lower(plan(c, m)), 3), a @ b, atol=1e-12)
    long, tall = rng.standard_normal((12, 9000)), rng.standard_normal((9000, 8))
    inner = lying(long, 5, 2000) @ lying(tall, 2500, 8)
    planned = plan(inner, m)
    assert only(planned).panels > 1
    np.testing.assert_allclose(value(lower(planned), 2), long @ tall, atol=1e-10)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("flags", [(False, False), (True, True)])
def test_joined_on_a_device(flags: tuple[bool, bool], pieces: int) -> None:
    """Pieces in host memory and on the device, joined there; also where the result is made in pieces."""
    rng = np.random.default_rng(2)
    left, right = rng.standard_normal((7, 6)), rng.standard_normal((6, 5))
    here = backend.emulated_gpu()
    a, b = (x.T.copy() if flag else x for x, flag in zip((left, right), flags, strict=True))
    axis_a, axis_b = -1 if flags[0] else -2, -2 if flags[1] else -1
    of_a, of_b = np.split(a, [2, 3], axis_a), np.split(b, [4], axis_b)

    @streams
    def kernel(xp: Any, *args: Any) -> Any:
        assert all(x.here is here for x in args)
        for x in args:
            x.pieces = pieces
        joined = Joined(args[:3], axis_a), Joined(args[3:], axis_b)
        assert "parts" in repr(joined[0])
        return gemm_panel(xp, [joined[0]], [joined[1]], transpose_a=flags[0], transpose_b=flags[1])

    with backend.within(here):
        first, *rest = of_a
        found = run(kernel, DeviceTile(here.to_device(first), here), *rest, *of_b)
    np.testing.assert_allclose(np.asarray(found), left @ right)


def test_a_part_of_a_tile_on_a_device_stays_there() -> None:
    here = backend.emulated_gpu()
    tile = DeviceTile(here.to_device(np.arange(6.0).reshape(2, 3)), here)
    part = part_of(tile, (..., slice(1), slice(1, 3)))
    assert isinstance(part, DeviceTile)
    np.testing.assert_array_equal(np.asarray(part), [[1.0, 2.0]])


# -- on workers --------------------------------------------------------------------------------------------------------

WORKERS = 4


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        tg.LocalCluster(cpu_workers=WORKERS, threads_per_cpu_worker=1, gpus=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client
        assert client.run_on_scheduler(report)["errors"] == 0


def sent(client: Client) -> int:
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


def away(client: Client) -> int:
    """Tiles that did not run where they were meant to."""
    counts = client.run_on_scheduler(report)
    return int(counts["steals"] + counts["recalls"])


N = 2048
#: How the operands are kept, and the bytes that a plan moves beside the least for operands that lie best: of blocks of
#: rows on both sides, each worker holds a quarter of the right one's k, of which its tiles need a half or all.
KEPT = {
    "rows, columns": ((N // 4, N), (N, N // 4), 1.75),
    "rows, rows": ((N // 4, N), (N // 4, N), 1.75),
    "columns, rows": ((N, N // 4), (N // 4, N), 1.75),
    "squares": ((N // 2, N // 2), (N // 2, N // 2), 1.75),
}


@pytest.mark.parametrize("kept", KEPT)
def test_kept_blocks_cross_once_to_each_worker_that_needs_them(client: Client, kept: str) -> None:
    *chunks, times = KEPT[kept]
    bound = communication_bound(N, N, N, 4, WORKERS)
    devices = [tg.Device("cpu", 2**33, 10.0, name=f"cpu-{n}") for n in range(WORKERS)]
    a, b = (
        tg.random.default_rng(s).standard_normal((N, N), dtype="float32", chunks=c).persist()
        for s, c in zip((0, 10), chunks, strict=True)
    )
    wait(client.futures_of([a, b]))
    planned = only(tg.plan(a @ b, tg.Machine.from_client(client)))
    before, taken = sent(client), away(client)
    c = (a @ b).persist()
    wait(client.futures_of(c))
    # What idle workers take from busy ones depends on the machine's other load: a tile needs its operands there, a part
    # of a block all of it. And of what both operands hold, no exchange of workers suits both best.
    of_tile = 2 * 4 * N * (max(planned.grid.m) + max(planned.grid.n))
    assert sent(client) - before <= 1.3 * planned.bytes_moved + (away(client) - taken) * of_tile
    p = tg.simulate(a @ b, tg.Machine(devices=devices))
    assert p.plan.bytes_moved <= times * bound
    assert p.bytes_moved == pytest.approx(p.plan.bytes_moved, rel=0.3)
    np.testing.assert_allclose(c.compute(), a.compute() @ b.compute(), rtol=1e-3, atol=1e-2)
