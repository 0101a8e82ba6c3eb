"""What a prediction counts as held: kept blocks where they lie, parts of blocks, values between, a GPU's memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask
import numpy as np
import pytest
from dask._task_spec import DataNode
from planning import data, machine, tags

import taskgraph as tg
from taskgraph.dealing import relocated
from taskgraph.execute import persisted
from taskgraph.holding import Holding
from taskgraph.jobs import jobs_of
from taskgraph.layout import cut_operands, gathering
from taskgraph.lower import Output, lower
from taskgraph.passes import group
from taskgraph.plan import Plan, TileGrid
from taskgraph.problem import even
from taskgraph.program import compile_nodes
from taskgraph.simulate import simulate
from taskgraph.tensor import Tensor
from workers.kernels import tree_add

MIB = 2**20
N = 512
TWO = machine(cpus=((100.0, 1), (100.0, 1)))


def kept(name: str, chunks: tuple[tuple[int, ...], ...]) -> Tensor:
    """A matrix of ones that was kept, in those blocks."""
    blocks = {
        (name, i, j): np.ones((m, n), "float32") for i, m in enumerate(chunks[0]) for j, n in enumerate(chunks[1])
    }
    return Tensor(persisted(blocks, Output(name, chunks, np.dtype("float32"))))


def most_traced(call: Callable[..., Any], *args: Any) -> int:
    """The most bytes that are held at once while it runs, beside what was there."""
    tracemalloc.start()
    try:
        call(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
    assert job.nbytes + job.scratch == pytest.approx(most_traced(program, np, value), rel=0.05)


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


SIDE = 256


def blocks_of_task(graph, key):
    """What a task takes, computed; the task itself."""
    task = graph[key]
    return task, {d: dask.get(graph, d) for d in task.dependencies}


@pytest.mark.parametrize(("of_a", "of_b"), [
    (((SIDE,), (SIDE,)), ((SIDE,), (SIDE,))),  # one pair
    (((2 * SIDE,), (SIDE // 2, SIDE // 2)), ((SIDE // 2, SIDE // 2), (SIDE,))),  # two pairs
    (((SIDE // 4,) * 4, (SIDE,)), ((SIDE,), (SIDE,))),  # rows of tiles of several blocks, joined
    (((SIDE // 4,) * 4, (SIDE,)), ((SIDE,), (SIDE // 4,) * 4)),  # both
    (((SIDE,), (SIDE // 2, SIDE // 2)), ((SIDE,), (SIDE,))),  # k cut otherwise on the right
], ids=str)  # fmt: skip
def test_a_task_needs_what_is_predicted(of_a, of_b):
    """Of a tile: its result, the buffer through which products are added up, what it joins."""
    scale = 4
    of_a, of_b = ([[scale * n for n in axis] for axis in chunks] for chunks in (of_a, of_b))
    a, b = (kept(name, tuple(map(tuple, chunks))) for name, chunks in (("a", of_a), ("b", of_b)))
    p = tg.plan(a @ b, TWO)
    jobs = {job.label: job for job in jobs_of(p).items if job.flops}
    graph = lower(p).graph.to_dict()
    # the user's arrays are in no graph of ours
    ones = {(n, i, j): np.ones((r, c), "float32") for n, (rs, cs) in (("a", of_a), ("b", of_b))
            for i, r in enumerate(rs) for j, c in enumerate(cs)}  # fmt: skip
    graph |= {k: DataNode(k, v) for k, v in ones.items()}
    for key in [k for k in graph if str(k[0]).startswith("matmul-") and "-partial-" not in k[0]]:
        task, taken = blocks_of_task(graph, key)
        task(taken)  # what is made once
        most = most_traced(task, taken)
        job = jobs[f"matmul[{key[1]},{key[2]}]"]
        assert most <= (job.nbytes + job.scratch) * 1.02 <= 1.1 * most


def test_what_an_epilogue_takes_of_a_kept_block_is_a_view_of_it():
    a, b, c = kept("a", ((N, N), (N,))), kept("b", ((N,), (2 * N,))), kept("c", ((2 * N,), (2 * N,)))
    p = tg.plan(a @ b + c, TWO)
    parts = [job for job in jobs_of(p).items if job.stays]
    assert parts
    assert all(job.is_view and not job.is_strided for job in parts)
    graph = lower(p).graph.to_dict()
    block = np.ones((2 * N, 2 * N), "float32")
    graph["c", 0, 0] = DataNode(("c", 0, 0), block)
    taken = [dask.get(graph, k) for k, t in graph.items() if ("c", 0, 0) in getattr(t, "dependencies", ())]
    assert len(taken) == len(parts)
    assert all(np.shares_memory(x, block) for x in taken)
    # one that the user keeps would keep all of its block
    assert not [job for job in jobs_of(tg.plan(tg.exp(c).rechunk(((N, N), (2 * N,))), TWO)).items if job.stays]


def test_who_sends_a_part_that_is_not_in_one_piece_has_a_copy_of_it():
    """Columns of a block; rows of one are sent from where they are."""
    where = {("a", 0, 0): "cpu-0", ("b", 0, 0): "cpu-0"}
    held = {}
    for name, a, b in (
        ("columns", kept("a", ((N,), (64 * N,))), kept("b", ((64 * N,), (N,)))),
        ("rows", kept("a", ((64 * N,), (N,))), kept("b", ((N,), (N,)))),
    ):
        p = tg.plan(a @ b, TWO)
        assert len(only_slots(p)) == 2
        held[name] = simulate(p, where).peak_bytes["cpu-0"] - a.expr.nbytes - b.expr.nbytes
    half = 32 * N * N * 4
    assert held["columns"] >= half
    assert held["rows"] <= half + 3 * N * N * 4  # a tile at work, 1 of 11


def only_slots(p):
    (planned,) = p.products.values()
    return set(planned.slots)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_a_sum_holds_few_sums_at_a_time(count):
    parts = [np.ones(MIB) for _ in range(count)]
    tree_add(np, parts[:2])
    assert most_traced(tree_add, np, parts) <= (count.bit_length() - 1) * parts[0].nbytes * 1.01 + 1000


WRITTEN = {
    "square": lambda x: x("a", 4, 4) @ x("b", 4, 4),
    "tall": lambda x: x("a", 64, 1) @ x("b", 1, 1),
    "inner": lambda x: x("a", 1, 64) @ x("b", 64, 1),
    "transposed": lambda x: x("a", 4, 3).mT @ x("b", 5, 4).mT,
    "gram": lambda x: (lambda a: a.mT @ a)(x("a", 10, 4)),
    "biased": lambda x: tg.tanh(x("a", 4, 3) @ x("b", 3, 4) + tg.ones(4 * N)),
    "residual": lambda x: x("a", 4, 2) @ x("b", 2, 4) + x("c", 4, 4),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_plan_says_no_less_than_its_simulation(written):
    """All operands in one block each, on one worker, of which the plan knows nothing."""
    product = WRITTEN[written](lambda name, m, n: kept(name, ((m * N,), (n * N,))))
    p = tg.plan(product, TWO)
    found = simulate(p, {(name, 0, 0): "cpu-0" for name in "abc"}).peak_bytes
    assert max(found.values()) <= 1.01 * max(p.peak_bytes.values())


@pytest.mark.parametrize(("grid", "stay"), [
    ((1, 1), (False, False)), ((1, 2), (True, False)), ((2, 1), (False, True)), ((2, 2), (True, True)),
])  # fmt: skip
def test_a_gpu_keeps_copies_of_parts_that_several_of_its_tiles_take(grid, stay):
    """Operands in one block each: parts of it are cut for each tile, and panel."""
    m, (rows, columns) = machine(cpus=((1.0, 1),), gpus=(1e3,), gpu_memory=2**30), grid
    with tg.device("gpu"):
        a, b = (kept(name, ((4 * N,), (4 * N,))) for name in "ab")
        p = tg.plan(a @ b, m)
    (node, planned), at = *p.products.items(), TileGrid(even(4 * N, rows), even(4 * N, columns), (2 * N, 2 * N))
    parts = rows * columns * 2
    planned = replace(planned, grid=at, slots=("gpu-0",) * parts, kinds=("gpu",) * parts, streamed=(False, False))
    new = cut_operands(node, planned, (False, False))
    planned = replace(planned, name=new.name, gathers=gathering(new, planned))
    tasks = lower(Plan((new,), {new: planned}, m)).graph.to_dict()
    said = {t.args[0].keywords.get("brief", (False, False)) for k, t in tasks.items() if str(k[0]).startswith("matmul")}
    assert said == {(not stay[0], not stay[1])}
