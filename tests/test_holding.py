"""What a prediction counts as held: kept blocks where they lie, parts of blocks, values between, a GPU's memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from planning import data, machine, tags

import taskgraph as tg
from taskgraph.dealing import relocated
from taskgraph.execute import persisted
from taskgraph.holding import Holding
from taskgraph.jobs import jobs_of
from taskgraph.lower import Output, lower
from taskgraph.passes import group
from taskgraph.program import compile_nodes
from taskgraph.simulate import simulate
from taskgraph.tensor import Tensor

MIB = 2**20
N = 512
TWO = machine(cpus=((100.0, 1), (100.0, 1)))


def kept(name: str, chunks: tuple[tuple[int, ...], ...]) -> Tensor:
    """A matrix of ones that was kept, in those blocks."""
    blocks = {
        (name, i, j): np.ones((m, n), "float32") for i, m in enumerate(chunks[0]) for j, n in enumerate(chunks[1])
    }
    return Tensor(persisted(blocks, Output(name, chunks, np.dtype("float32"))))


def test_kept_blocks_lie_where_they_are():
    x = kept("x", ((N, N), (N,)))
    where = {("x", 0, 0): "cpu-1", ("x", 1, 0): "cpu-1"}
    p = tg.plan(tg.exp(x), TWO)
    assert [job.home for job in jobs_of(p).items if job.home] == ["cpu-0", "cpu-1"]
    assert [job.home for job in jobs_of(p, where).items if job.home] == ["cpu-1", "cpu-1"]
    assert simulate(p, where).peak_bytes["cpu-1"] >= 2 * N * N * 4
    # of a block that nobody knows, nothing is taken to be known
    assert [job.home for job in jobs_of(p, {("x", 0, 0): "cpu-1"}).items if job.home] == ["cpu-0", "cpu-1"]


def test_like_slots_are_exchanged_where_operands_lie():
    """Each worker gets the tile whose operand it holds, as the placement does it."""
    a, b = kept("a", ((4 * N, 4 * N), (N,))), kept("b", ((N,), (N,)))
    p = tg.plan(a @ b, TWO)
    where = {("a", 0, 0): "cpu-1", ("a", 1, 0): "cpu-0", ("b", 0, 0): "cpu-0"}
    slots = [job.slot for job in relocated(jobs_of(p, where).items) if job.flops]
    assert slots == ["cpu-1", "cpu-0"]
    assert simulate(p, where).bytes_moved == N * N * 4


@pytest.mark.parametrize(("rows", "is_copy"), [(N // 2, True), (3 * N // 4, False)])
def test_most_of_a_block_is_a_view_of_it(rows, is_copy):
    """As dask.array does: a part of half a block or less is copied, so that the block can go."""
    x = data(N, N)
    cut = x.rechunk(((rows, N - rows), (N,)))
    (first, _) = [job for job in jobs_of(tg.plan(cut, TWO)).items if job.home is None]
    assert first.is_view != is_copy


@pytest.mark.parametrize(("written", "between"), [
    (lambda x: tg.exp(x), 0), (lambda x: tg.exp(tg.sin(x)), 1), (lambda x: tg.exp(tg.sin(tg.cos(x))), 1),
    (lambda x: tg.exp(tg.sin(x)) * tg.sin(x), 2),
])  # fmt: skip
def test_intermediate_values_go_after_their_last_use(written, between):
    """What a job is said to need is what its program takes."""
    x = data(N, N)
    p = tg.plan(written(x), TWO)
    (job,) = [job for job in jobs_of(p).items if job.home is None]
    assert job.scratch == between * N * N * 4
    nodes = [n for g in group(p) for n in g.nodes if n.op.name != "placeholder"]
    program, _ = compile_nodes("chain", nodes, nodes[-1:])
    value = np.ones((N, N), "float32")
    program(np, value)  # what is imported or made once
    tracemalloc.start()
    try:
        program(np, value)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert job.nbytes + job.scratch == pytest.approx(most, rel=0.05)


def test_a_gpu_holds_its_shares_of_results_and_copies_and_what_is_at_work():
    gpu = Holding(tg.Device("gpu", 64 * MIB, 1.0))
    for _ in range(5):
        gpu.copied(8 * MIB)
    assert gpu.peak == 0  # they are in the host's memory
    for _ in range(5):
        gpu.uploaded(8 * MIB)
    assert gpu.peak == 32 * MIB
    gpu.at_work(16 * MIB)
    assert gpu.peak == 48 * MIB
    gpu.at_work(-16 * MIB)
    gpu.at_rest(40 * MIB)
    assert (gpu.held, gpu.peak) == (80 * MIB, 64 * MIB)
    assert Holding(tg.Device("gpu", MIB, 1.0)).peak == 0


def test_on_a_gpu_no_more_than_two_pairs_of_operands_are_under_way():
    m = machine(cpus=((1.0, 1),), gpus=(1e5,), gpu_memory=2**30)
    with tg.device("gpu"):
        product = data(4 * N, 400 * N, chunks=(-1, 25 * N)) @ data(400 * N, 4 * N, chunks=(25 * N, -1))
    p = tg.simulate(product, m)
    operands = 2 * 4 * N * 400 * N * 4
    assert operands > 2**30 > p.peak_bytes["gpu-0"] > operands / 8


def test_operands_are_made_near_the_tiles_that_need_them():
    """The simulated jobs stand where the tasks' tags say, so that as many bytes move as the plan says."""
    m = machine(cpus=((50.0, 1),) * 4)
    a, b = (tg.exp(tg.randn(8 * N, 8 * N, chunks=4 * N, seed=seed)) for seed in range(2))
    p = tg.plan(a @ b, m)
    made = [job.slot for job in jobs_of(p).items if not job.needs]
    assert None not in made
    assert Counter(made) == Counter(tag["near"] for tag in tags(lower(p)).values() if "tile" not in tag)
    assert simulate(p).bytes_moved == pytest.approx(p.bytes_moved)
