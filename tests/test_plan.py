"""Plans of made-up machines: laws that hold for all of them, and what a person reads."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from dask.utils import format_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning import data, machine, only, plan, tags, value, with_zeros

import taskgraph as tg
from taskgraph.bounds import communication_bound
from taskgraph.cost import COPY_BYTES_PER_S
from taskgraph.grids import MIXED_S
from taskgraph.lower import lower
from taskgraph.machine import from_workers
from taskgraph.partition import deal
from taskgraph.plan import ProductPlan
from taskgraph.problem import even
from taskgraph.slots import MEMORY_SHARE

GPU_GFLOPS = 9000.0


def square(n: int, m: tg.Machine, parts: int = 1, dtype: str = "float32") -> ProductPlan:
    """The plan of a product of two n x n matrices that lie in parts x parts blocks."""
    cut = max(1, n // parts)
    return only(plan(data(n, n, chunks=cut, dtype=dtype) @ data(n, n, chunks=cut, dtype=dtype), m))


# -- laws --------------------------------------------------------------------------------------------------------------

machines = st.builds(
    machine,
    cpus=st.lists(st.tuples(st.sampled_from([1.0, 30.0, 200.0]), st.integers(1, 4)), min_size=1, max_size=3),
    gpus=st.lists(st.sampled_from([20.0, 1000.0, 30000.0]), max_size=3),
    memory=st.sampled_from([2**18, 2**24, 2**34]),
    gpu_memory=st.sampled_from([2**18, 2**24, 2**34]),
    link_bytes_per_s=st.sampled_from([1e8, 1e9, 1e11]),
    task_seconds=st.sampled_from([1e-6, 5e-4]),
)
gpu_machines = machines.filter(lambda m: bool(m.of_kind("gpu")))
sizes = st.sampled_from([1, 2, 7, 64, 100, 513])
cuts = st.sampled_from([-1, 1000, 50, 33])


@st.composite
def products(draw: st.DrawFn) -> tg.Tensor:
    """A product, plain or batched, of operands that lie as they are or transposed, data or made where they are used."""
    m, n, k = draw(sizes), draw(sizes), draw(sizes)
    batch = draw(st.sampled_from([(), (3,), (2, 1)]))

    def operand(*shape: int) -> tg.Tensor:
        lead = batch if draw(st.booleans()) else ()
        flipped = draw(st.booleans())
        whole = (*lead, *(shape[::-1] if flipped else shape))
        cut = draw(cuts)
        made = tg.randn(whole, chunks=cut, seed=1) if draw(st.booleans()) else data(*whole, chunks=cut)
        return made.mT if flipped else made

    a, b = operand(m, k), operand(k, n)
    with tg.device(draw(st.sampled_from([None, None, "cpu"]))):
        return a @ b


def check_product(p: ProductPlan, m: tg.Machine) -> None:
    """Every part of every output tile once, on a device that is there, of the class that the tag says."""
    named = {d.name: d for d in m.devices}
    assert (sum(p.grid.m), sum(p.grid.n), sum(p.grid.k)) == (p.m, p.n, p.k)
    assert min(p.grid.m + p.grid.n + p.grid.k) > 0
    gm, gn, gk = p.grid.shape
    assert len(p.slots) == len(p.kinds) == p.batch * gm * gn * gk
    assert 1 <= p.strips <= gk
    for tile in range(p.batch * gm * gn):
        assert [panel for chain in p.chains(tile) for panel in chain] == list(range(gk))
    assert p.peak_bytes.keys() >= {s for s in p.slots if s}
    assert min(p.peak_bytes.values()) > 0
    for slot, kind in zip(p.slots, p.kinds, strict=True):
        assert slot is None or named[slot].kind == kind
        assert m.of_kind(kind)
    assert p.seconds > 0
    assert p.bytes_moved >= 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(products(), machines)
def test_every_tile_is_placed_once(t: tg.Tensor, m: tg.Machine) -> None:
    planned = plan(t, m)
    p = only(planned)
    check_product(p, m)
    assert sum(planned.tiles.values()) == len(p.slots)
    assert planned.makespan == p.seconds
    again = plan(t, m)
    assert (again.products, again.roots) == (planned.products, planned.roots)  # the same for the same input
    (node,) = planned.products
    assert node.chunks[-2:] == (tuple(s for size in p.grid.m for s in even(size, p.strips)), p.grid.n)
    assert math.prod(len(c) for c in node.chunks) * p.panels == len(p.slots) * p.strips


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(products(), machines)
def test_lowered_tiles_cover_the_product(t: tg.Tensor, m: tg.Machine) -> None:
    """The tags of the tasks: each place of the grid once, in the class and on the worker of the plan."""
    planned = plan(with_zeros(t), m)
    lowered = lower(planned)
    p, tagged = only(lowered.plan), tags(lowered)
    if len(tagged) == 1:
        return  # all of it was one small task
    places = Counter(tag["tile"] for tag in tagged.values() if "tile" in tag)
    assert set(places.values()) == {1}
    assert Counter(place[-3:] for place in places) == dict.fromkeys(
        itertools.product(*map(range, p.grid.shape)), p.batch
    )
    assert len(places) == len(p.slots)
    for tag in tagged.values():
        assert m.of_kind(tag["kind"])
        if "slot" in tag:
            assert tag["slot"] in {d.name for d in m.of_kind(tag["kind"])}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(products(), gpu_machines, st.sampled_from([None, "cpu", "gpu", "gpu:0", "cpu+gpu"]))
def test_every_plan_gives_the_same_value(t: tg.Tensor, m: tg.Machine, pin: str | None) -> None:
    rng = np.random.default_rng(0)
    values = {
        n: tg.asarray(rng.standard_normal(n.shape).astype("float32"), chunks=n.chunks).expr
        for n in tg.expr.topological([t.expr])
        if n.op.name == "placeholder"
    }
    product = tg.Tensor(tg.expr.substitute([t.expr], values)[0])
    a, b = (tg.Tensor(i) for i in product.expr.inputs)
    ta, tb = product.expr.params["ta"], product.expr.params["tb"]
    with tg.device(pin):
        c = tg.ops.product.product(a, b, ta, tb)
    graph = lower(plan([c.expr], m))
    found = value(graph, c.ndim)
    left, right = (x.compute(scheduler="synchronous").astype(float) for x in (a, b))
    expected = np.matmul(left.swapaxes(-1, -2) if ta else left, right.swapaxes(-1, -2) if tb else right)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 500), st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40))
def test_deal(tiles: int, rates: list[float]) -> None:
    counts = [int(c) for c in deal(tiles, rates)]
    assert sum(counts) == tiles
    assert min(counts) >= 0
    greedy = [0] * len(rates)
    for _ in range(tiles):
        greedy[min(range(len(rates)), key=lambda s: (greedy[s] + 1) / rates[s])] += 1
    last = max(c / r for c, r in zip(counts, rates, strict=True))
    best = max(c / r for c, r in zip(greedy, rates, strict=True))
    assert last <= best * (1 + 1e-6)  # no deal of equal tiles is done earlier


@given(st.integers(0, 1000), st.integers(1, 50))
def test_even(size: int, parts: int) -> None:
    cut = even(size, parts)
    assert (sum(cut), len(cut)) == (size, parts)
    assert max(cut) - min(cut) <= 1


# -- what goes to a GPU ------------------------------------------------------------------------------------------------


def goes_to(n: int, m: tg.Machine, parts: int = 1) -> set[str]:
    return set(square(n, m, parts).kinds)


def crossover(m: tg.Machine) -> float:
    """The smallest power of two whose product goes to the GPU; infinite where none does."""
    return next((2.0**e for e in range(4, 17) if "gpu" in goes_to(2**e, m)), math.inf)


def test_a_fast_gpu_takes_large_products_and_no_small_ones() -> None:
    m = machine(gpus=[GPU_GFLOPS])
    for n in (1, 10, 100, 256):
        assert goes_to(n, m) == {"cpu"}, n
    for n in (8192, 16384, 40000):
        assert goes_to(n, m) == {"gpu"}, n
    kinds = ["gpu" in goes_to(2**e, m) for e in range(4, 17)]
    assert kinds == sorted(kinds)  # once it pays it keeps paying


def test_the_threshold_is_a_cost() -> None:
    usual = crossover(machine(gpus=[GPU_GFLOPS]))
    assert 256 < usual < 8192
    assert crossover(machine(gpus=[GPU_GFLOPS], link_bytes_per_s=1e7)) > usual  # dear to move
    assert crossover(machine(gpus=[GPU_GFLOPS], link_bytes_per_s=1e11)) <= usual
    assert crossover(machine(cpus=[(5.0, 1)], gpus=[GPU_GFLOPS])) < usual  # slow CPUs
    assert crossover(machine(cpus=[(3000.0, 4)], gpus=[GPU_GFLOPS])) > usual
    assert crossover(machine(gpus=[150.0])) >= usual  # a slow GPU
    assert crossover(machine(gpus=[1.0])) == math.inf
    crossings = [crossover(machine(gpus=[GPU_GFLOPS], link_bytes_per_s=b)) for b in (1e6, 1e7, 1e8, 1e9, 1e10, 1e11)]
    assert crossings == sorted(crossings, reverse=True)
    assert len(set(crossings)) > 2
    slow_pcie = tg.Machine(
        devices=[tg.Device("cpu", 2**35, 100.0), tg.Device("gpu", 2**34, GPU_GFLOPS, host_device_bytes_per_s=1e7)]
    )
    assert crossover(slow_pcie) > usual


def test_devices_near_in_speed_share_a_product() -> None:
    m = machine(cpus=[(100.0, 1)] * 2, gpus=[100.0, 100.0], link_bytes_per_s=1e11)
    p = square(8192, m, 4)
    assert set(p.kinds) == {"cpu", "gpu"}
    assert p.kind == "cpu+gpu"
    counts = Counter(p.slots)
    assert len(counts) == 4
    assert max(counts.values()) <= 2 * min(counts.values())


def test_unequal_devices_get_unequal_shares() -> None:
    with tg.device("cpu+gpu"):
        t = data(16384, 16384, chunks=2048) @ data(16384, 16384, chunks=2048)
    p = only(plan(t, machine(cpus=[(100.0, 1)], gpus=[300.0], link_bytes_per_s=1e11)))
    area: Counter[Any] = Counter()
    for (m_size, n_size), tile in zip(itertools.product(p.grid.m, p.grid.n), p.slots[:: p.panels], strict=True):
        area[tile] += m_size * n_size
    assert 2 <= area["gpu-0"] / area["cpu-0"] <= 4


def test_pins() -> None:
    m = machine(cpus=[(100.0, 2)] * 2, gpus=[GPU_GFLOPS, GPU_GFLOPS])
    for pin, slots in {
        "cpu": {"cpu-0", "cpu-1"},
        "gpu": {"gpu-0", "gpu-1"},
        "gpu:0": {"gpu-0"},
        "gpu:1": {"gpu-1"},
        "cpu+gpu": {"cpu-0", "cpu-1", "gpu-0", "gpu-1"},
    }.items():
        for n in (8, 8192):
            with tg.device(pin):
                p = only(plan(data(n, n) @ data(n, n), m))
            check_product(p, m)
            assert {s for s in p.slots if s} <= slots, pin
            assert set(p.kinds) <= {s.split("-")[0] for s in slots}
            assert p.pinned == (":" in pin)
            assert all(("pinned" in p.tag(0, (0, 0, 0))) == p.pinned for _ in p.slots)


def test_a_pin_to_what_is_not_there_lists_what_is() -> None:
    m = machine(cpus=[(100.0, 2)] * 2, gpus=[GPU_GFLOPS])
    for pin, there, message in [
        ("gpu:1", m, r"pinned to 'gpu:1'.*only 1 GPU-pinned worker\(s\) \(it has cpu-0, cpu-1, gpu-0\)"),
        ("gpu", machine(cpus=[(1.0, 1)] * 20), r"no GPU-pinned worker \(it has cpu-0, .*, \.\.\., cpu-19\)"),
        ("cpu", machine(cpus=[], gpus=[1.0]), r"pinned to 'cpu'.*no CPU worker \(it has gpu-0\)"),
    ]:
        with tg.device(pin), pytest.raises(ValueError, match=message):
            plan(data(9, 9) @ data(9, 9), there)


def test_without_a_gpu_all_is_on_cpus_and_the_other_way_round() -> None:
    for n in (10, 5000):
        assert goes_to(n, machine(cpus=[(100.0, 2)] * 3)) == {"cpu"}
        gpus_only = machine(cpus=[], gpus=[GPU_GFLOPS])
        assert goes_to(n, gpus_only) == {"gpu"}
        assert gpus_only.home == "gpu"
    t = tg.sum(tg.exp(data(10, 10)))
    assert plan(t, gpus_only).kind_of(t.expr) == "gpu"


# -- more devices ------------------------------------------------------------------------------------------------------

BASES = {"one cpu": ((100.0, 1),), "four threads": ((100.0, 4),), "four cpus": ((100.0, 2),) * 4}
GROWN = list(
    itertools.product((256, 1024, 2048, 4096, 16384), (1, 4), BASES, ((), (1000.0,), (GPU_GFLOPS, GPU_GFLOPS)))
)


def makespans(extra_cpus: Any = (), extra_gpus: Any = ()) -> list[tuple[Any, float, float]]:
    """The predicted seconds of every problem before and after the machine has grown."""
    found = []
    for n, parts, base, gpus in GROWN:
        before = square(n, machine(BASES[base], gpus), parts).seconds
        after = square(n, machine((*BASES[base], *extra_cpus), (*gpus, *extra_gpus)), parts).seconds
        found.append(((n, parts, base, gpus), before, after))
    return found


@pytest.mark.parametrize("gflops", [1.0, 20.0, GPU_GFLOPS])
def test_another_gpu_makes_nothing_slower(gflops: float) -> None:
    for problem, before, after in makespans(extra_gpus=[gflops]):
        assert after <= (1.01 if before > 0.01 else 1.05) * before, problem  # below, a task more or less shows


def test_another_cpu_makes_nothing_slower() -> None:
    for problem, before, after in makespans(extra_cpus=[(100.0, 2)]):
        if before > 1e-3:  # below, a second worker's share of the bytes shows: 3% of a task
            assert after <= (1.01 if before > 0.01 else 1.05) * before, problem  # below, a task more or less shows


@pytest.mark.parametrize(
    "more", [{"extra_cpus": [(5.0, 1)]}, {"extra_gpus": [60000.0]}], ids=["slow-cpu", "faster-gpu"]
)
def test_a_device_unlike_its_neighbours_makes_nothing_slower(more: dict[str, Any]) -> None:
    """A CPU twenty times slower than the others, a GPU six times faster: what slows a product down is left out."""
    for problem, before, after in makespans(**more):
        assert after <= (1.01 if before > 0.01 else 1.05) * before, problem  # below, a task more or less shows


# derandomized: the search is a heuristic, and one machine in thousands may lose a tenth by another number of tiles
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([1.0, 30.0, 45.0, 200.0]), min_size=1, max_size=6),
    st.lists(st.sampled_from([20.0, 1000.0, 9000.0]), max_size=3),
    st.sampled_from([("cpu", 1.0), ("cpu", 30.0), ("cpu", 200.0), ("gpu", 20.0), ("gpu", 1000.0), ("gpu", 30000.0)]),
    st.sampled_from([300, 1024, 2048, 4096, 20_000]),
    st.sampled_from([1e8, 1e9, 1e10]),
)
def test_a_device_more_makes_no_plan_slower(
    cpus: list[float], gpus: list[float], more: tuple[str, float], n: int, link: float
) -> None:
    kind, rate = more
    grown = ([*cpus, rate], gpus) if kind == "cpu" else (cpus, [*gpus, rate])
    before, after = (
        square(n, machine([(r, 1) for r in c], g, link_bytes_per_s=link), 4).seconds for c, g in ((cpus, gpus), grown)
    )
    # of short ones all numbers of slots are tried; of longer ones not every pair of numbers of both classes
    assert after <= (1 + 1e-9 if before < MIXED_S else 1.05) * before


# -- memory ------------------------------------------------------------------------------------------------------------


def panel_bytes(p: ProductPlan) -> float:
    """Operands of the largest task and its result, as the plan counts them."""
    m, n, k = max(p.grid.m), max(p.grid.n), max(p.grid.k)
    return p.dtype.itemsize * (m * k + k * n + m * n)


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_small_memory_means_small_tasks(parts: int) -> None:
    n = 8192
    plenty = square(n, machine(cpus=[(100.0, 1)], memory=2**36), parts)
    assert plenty.panels == 1
    seen = []
    for memory in (2**31, 2**30, 2**29, 2**28):
        p = square(n, machine(cpus=[(100.0, 1)], memory=memory), parts)
        check_product(p, machine(cpus=[(100.0, 1)]))
        assert panel_bytes(p) <= MEMORY_SHARE * memory
        assert max(p.peak_bytes.values()) <= memory
        seen.append(math.prod(p.grid.shape))
    assert seen == sorted(seen)
    assert seen[-1] > 4


@pytest.mark.parametrize("memory", [2**29, 2**28])
def test_tasks_keep_to_their_share_of_the_memory(memory: int) -> None:
    p = square(8192, machine(cpus=[(100.0, 1)], memory=memory), 16)
    assert panel_bytes(p) <= MEMORY_SHARE * memory


def test_a_gpu_of_small_memory_gets_panels() -> None:
    m = machine(gpus=[GPU_GFLOPS], gpu_memory=2**29)
    p = square(16384, m, 8)
    assert set(p.kinds) == {"gpu"}
    assert p.panels * len(p.grid.m) * len(p.grid.n) > 1


def named(name: str, n: int) -> tg.Tensor:
    return tg.placeholder("float32", (n, n), name=name)


def test_what_fits_nowhere_is_refused() -> None:
    a, b = named("A", 30_000), named("B", 30_000)
    start = time.perf_counter()
    with pytest.raises(
        tg.InfeasiblePlan,
        match=r"^'A @ B' needs .* on cpu-0 for one panel of a .* grid, cpu-0 allows 1.00 kiB; "
        r"smallest machine that fits: a CPU worker with ",
    ) as error:
        plan(a @ b, machine(cpus=[(100.0, 1)], memory=2**10))
    assert isinstance(error.value, ValueError)
    with tg.device("gpu"), pytest.raises(tg.InfeasiblePlan, match=r"on gpu-0 .*smallest machine that fits: a GPU with"):
        plan(a @ b, machine(cpus=[(100.0, 1)], gpus=[GPU_GFLOPS], gpu_memory=2**10))
    assert time.perf_counter() - start < 2  # 1 s each
    # a GPU without room leaves it to the CPUs, and of two workers the one with room does it
    assert only(plan(a @ b, machine(cpus=[(100.0, 1)], gpus=[GPU_GFLOPS], gpu_memory=2**10))).kind == "cpu"
    uneven = tg.Machine(devices=[tg.Device("cpu", 2**10, 100.0), tg.Device("cpu", 2**33, 50.0)])
    assert set(only(plan(a @ b, uneven)).peak_bytes) == {"cpu-1"}


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_grids_follow_shapes() -> None:
    m = machine(cpus=[(100.0, 1)] * 4)
    tall = only(plan(data(100_000, 100, chunks=(10_000, 100)) @ data(100, 100), m))
    assert len(tall.grid.m) > 1
    assert len(tall.grid.n) == 1
    wide = only(plan(data(100, 100) @ data(100, 100_000, chunks=(100, 10_000)), m))
    assert (len(wide.grid.m), len(wide.grid.n) > 1) == (1, True)
    whole = square(8192, m, 4)
    assert len(set(whole.slots)) == 4


@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("chunks", [-1, 70, (33, 100)])
@pytest.mark.parametrize(("strips", "link"), [(4, 1e6), (1, 1e9)])
def test_a_small_output_is_summed_from_parts_of_k(flags: Any, chunks: Any, strips: int, link: float) -> None:
    """Parts of k on all workers, summed in strips where moving is dear; the same bits every time."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((12, 20_000)), rng.standard_normal((20_000, 8))
    m = machine(cpus=[(0.1, 1)] * 4, link_bytes_per_s=link, task_seconds=1e-5)
    x, y = (tg.asarray(v.T if t else v, chunks=chunks) for v, t in zip((a, b), flags, strict=True))
    planned = plan(tg.ops.product.product(x, y, *flags), m)
    p = only(planned)
    assert (p.grid.shape[2], p.strips, len(set(p.slots))) == (4, strips, 4)
    graph = lower(planned)
    found = [value(graph, 2) for _ in range(2)]
    np.testing.assert_allclose(found[0], a @ b)
    np.testing.assert_array_equal(*found)
    taken = [k for k in graph.graph.to_dict() if "-strip-" in k[0]]
    assert len(taken) == (16 if strips > 1 else 0)  # every worker takes each strip out of its part, and adds up one


def test_sources_are_made_near_the_tiles_that_need_them() -> None:
    """Every worker makes an equal share of what the product needs, and of the rows all that only it needs."""
    m = machine(cpus=[(50.0, 1)] * 4)
    planned = tg.execute.planned([(tg.randn(4096, 2048, seed=1) @ tg.randn(2048, 4096, seed=2)).expr], m)
    p = only(planned)
    made = Counter(tag["near"] for tag in tags(lower(planned)).values() if "near" in tag)
    assert set(made) == {f"cpu-{n}" for n in range(4)}
    assert max(made.values()) == min(made.values())
    assert p.bytes_moved <= 1.2 * p.bytes_bound


def test_sources_that_are_kept_lie_in_order() -> None:
    """Each worker has its share, a thread as much as another; fewer blocks than workers go wherever there is room."""
    m = machine(cpus=[(50.0, 1), (50.0, 1), (50.0, 2)])

    def near(*blocks: int) -> list[str | None]:
        x = tg.randn(8 * blocks[0], 8 * blocks[1], chunks=8)
        return [tag.get("near") for tag in tags(lower(tg.execute.planned([x.expr], m))).values()]

    assert near(4, 1) == near(2, 2) == ["cpu-0", "cpu-1", "cpu-2", "cpu-2"]
    assert near(2, 1) == [None] * 2


def test_on_trial_sources_are_near_their_tiles() -> None:
    """As they will be: elsewhere, cutting k would seem to move more than it does, and lose to a plan that does."""
    m = machine(cpus=[(96.0, 1)] * 16)
    p = only(tg.execute.planned([(tg.randn(4096, 4096, seed=1) @ tg.randn(4096, 4096, seed=2)).expr], m))
    assert p.bytes_moved <= 1.1 * p.bytes_bound


def test_transposed_operands_cost_no_transpose() -> None:
    a, b = data(4096, 2048, chunks=1024), data(4096, 1024, chunks=1024)
    m = machine()
    (root,) = tg.execute.planned([(a.T @ b).expr], m).roots
    names = [n.op.name for n in tg.expr.topological([root])]
    assert "permute_dims" not in names
    assert (root.params["ta"], root.params["tb"]) == (True, False)
    p = only(tg.execute.planned([(a.T @ b).expr], m))
    assert (p.m, p.n, p.k) == (2048, 1024, 4096)


def test_batched() -> None:
    t = data(6, 512, 256, chunks=(2, 512, 256)) @ data(256, 512)
    p = only(plan(t, machine(cpus=[(100.0, 2)] * 2)))
    assert p.batch == 3
    assert len(p.slots) == 3 * len(p.grid.m) * len(p.grid.n)
    assert str(p).startswith("3 x (512, 256) @ (256, 512)")


def test_several_products_of_one_graph() -> None:
    a, b = data(2048, 2048, chunks=512), data(2048, 2048, chunks=512)
    c = a @ b
    planned = plan([c @ a, tg.sum(c)], machine())
    assert len(planned.products) == 2  # the shared one is planned once
    assert planned.makespan == pytest.approx(sum(p.seconds for p in planned.products.values()))
    assert plan(tg.sum(a + b), machine()).products == {}
    assert plan(tg.sum(a + b), machine()).makespan == 0


def test_rates_by_dtype() -> None:
    d = tg.Device("gpu", 2**34, {"float32": 9000.0, "float64": 200.0, "float16": 60000.0})
    assert [d.rate(np.dtype(t)) for t in ("float16", "float32", "float64", "int64")] == [6e13, 9e12, 2e11, 2e11]
    m = tg.Machine(devices=[tg.Device("cpu", 2**34, {"float32": 400.0, "float64": 200.0}), d])
    assert "gpu" in square(8192, m, dtype="float32").kinds
    assert square(8192, m, dtype="float64").seconds > square(8192, m, dtype="float32").seconds
    assert tg.Device("cpu", 1, 80.0, threads=4).rate(np.dtype("float32")) == 2e10  # one of four tasks at once


# -- cost of planning, and what a person reads -------------------------------------------------------------------------


def test_a_plan_for_a_thousand_devices_takes_two_seconds_at_the_most() -> None:
    n = 10**6
    a, b = (data(n, n, chunks=n // 32) for _ in range(2))
    for m in (
        machine(cpus=[(50.0, 1)] * 1000, gpus=[GPU_GFLOPS] * 24),
        machine(cpus=[(50.0 + i % 7, 1) for i in range(1024)]),
    ):
        start = time.perf_counter()
        p = only(plan(a @ b, m))
        assert time.perf_counter() - start < 2  # 0.1 to 0.5 s here
        assert len(p.slots) <= 100_000
        assert p.seconds < 1.3 * p.area_seconds


# What a row-blocked product should move, beside the least that as many workers can (bounds.communication_bound).
MOVED = {
    "square": (8192, 8192, 8192),
    "tall": (819_200, 8192, 8192),
    "wide": (8192, 8192, 819_200),
    "inner": (8192, 819_200, 8192),
}


@pytest.mark.parametrize("workers", [4, 16, 64])
@pytest.mark.parametrize("shape", MOVED)
def test_few_bytes_move(shape: str, workers: int) -> None:
    m, k, n = MOVED[shape]
    a, b = data(m, k, chunks=(max(1, m // workers), k)), data(k, n, chunks=(max(1, k // workers), n))
    p = only(plan(a @ b, machine(cpus=[(50.0, 1)] * workers)))
    assert p.bytes_bound == communication_bound(m, n, k, 4, workers)
    assert p.bytes_moved <= 1.2 * p.bytes_bound
    assert p.seconds <= 1.15 * p.area_seconds


@pytest.mark.parametrize(
    ("cpus", "gpus", "more"),
    [
        (16, [GPU_GFLOPS], {}),
        (128, [GPU_GFLOPS] * 8, {}),
        (512, [4000.0 + 190 * g for g in range(64)], {"link_bytes_per_s": 1e10}),
        (16, [1000.0], {"link_bytes_per_s": 1e10}),
    ],
    ids=["1 gpu", "8 gpus", "64 uneven gpus", "slow gpu"],
)
def test_large_products_come_near_the_area_bound(cpus: int, gpus: list[float], more: dict[str, float]) -> None:
    p = square(131_072, machine(cpus=[(50.0, 1)] * cpus, gpus=gpus, gpu_memory=2**35, **more), 32)
    assert p.seconds <= 1.2 * p.area_seconds


@pytest.mark.parametrize("parts", [1, 16])
def test_planning_is_quick(parts: int) -> None:
    m = machine(cpus=[(100.0, 4)] * 56, gpus=[GPU_GFLOPS] * 8)
    a, b = (data(65536, 65536, chunks=65536 // parts) for _ in range(2))
    c = a @ b
    start = time.perf_counter()
    p = only(plan(c, m))
    assert time.perf_counter() - start < 0.5  # 15 ms here
    check_product(p, m)
    same_machine = tg.Machine(devices=m.devices)
    assert only(plan(c, same_machine)) == p


SUMMARY = """\
plan for 3 device(s): cpu-0, cpu-1, gpu-0 (emulated)
  (4096, 4096) @ (4096, 4096) float32: grid {grid}, 137 GFLOP in {seconds} s (at least 0.0151), \
134 MB moved (at least 134); tiles on gpu-0: {tiles}
  products together: {seconds} s (all devices at full speed: 0.0151), 134 MB between workers (at least 134)
  at most in memory: gpu-0: {peak}"""


def test_summary() -> None:
    m = tg.Machine(
        devices=[
            tg.Device("cpu", 2**34, 50.0),
            tg.Device("cpu", 2**34, 50.0),
            tg.Device("gpu", 2**34, 9000.0, emulated=True),
        ]
    )
    planned = plan(data(4096, 4096) @ data(4096, 4096), m)
    # two operands of 67 MB over 1 GB/s, and what is not done meanwhile: at least one tile, at most all of 137 GFLOP at
    # 9000 GFLOP/s and of three matrices over 12 GB/s
    tiles = len(only(planned).slots)
    assert 2 * 0.0671 < planned.makespan < 2 * 0.0671 + 3 * 0.0671 / 12 + 137.4 / 9000 + 0.0005
    grid = "x".join(map(str, only(planned).grid.shape))
    assert planned.summary() == SUMMARY.format(
        seconds=f"{planned.makespan:.3g}", grid=grid, tiles=tiles, peak=format_bytes(planned.peak_bytes["gpu-0"])
    )
    assert str(planned) == planned.summary()
    assert "no products" in plan(data(3, 3) + 1, m).summary()
    many = machine(cpus=[(1.0, 1)] * 20)
    assert "plan for 20 device(s): cpu-0, " in plan(data(3, 3), many).summary()
    assert plan(data(3, 3), many).summary().splitlines()[0].endswith(", ...")


def test_explain() -> None:
    t = tg.randn((512, 512), chunks=256) @ tg.randn((512, 512), chunks=256)
    text = (t + 1).explain(machine(cpus=[(10.0, 1)] * 2, link_bytes_per_s=1e11))
    assert "(512, 512) @ (512, 512) float32" in text
    assert text.splitlines()[-1].startswith("  tasks: ")
    assert text.endswith("on cpu workers")


def test_numbers_of_the_cost_model_are_documented_units() -> None:
    m = machine()
    assert (m.link_bytes_per_s, m.task_seconds, COPY_BYTES_PER_S) == (1e9, 0.5e-3, 4e9)


# -- machines ----------------------------------------------------------------------------------------------------------

WORKERS = {
    "tcp://10.0.0.3:1": {
        "name": "gpu-0",
        "nthreads": 1,
        "memory_limit": 2**34,
        "taskgraph": {
            "kind": "gpu",
            "memory": 2**33,
            "gflops": {"float32": 9000.0},
            "emulated": True,
            "host_to_device_bytes_per_s": 5e9,
        },
    },
    "tcp://10.0.0.1:1": {
        "name": "cpu-10",
        "nthreads": 4,
        "memory_limit": 2**35,
        "taskgraph": {"kind": "cpu", "memory": 2**34, "gflops": {"float32": 300.0, "float64": 150.0}},
    },
    "tcp://10.0.0.2:1": {"name": "cpu-9", "nthreads": 2, "memory_limit": 2**33},
    "tcp://10.0.0.4:1": {"name": 0, "nthreads": 1, "memory_limit": 0},
}


def test_a_machine_of_a_clusters_workers() -> None:
    asked: list[list[str]] = []

    def measure(addresses: list[str]) -> dict[str, Any]:
        asked.append(addresses)
        return {a: {"kind": "cpu", "memory": 2**32, "gflops": {"float32": 77.0}} for a in addresses}

    m = from_workers(WORKERS, measure)
    assert [d.name for d in m.devices] == ["0", "cpu-9", "cpu-10", "gpu-0"]  # as people count
    assert [sorted(a) for a in asked] == [["tcp://10.0.0.2:1", "tcp://10.0.0.4:1"]]
    by = {d.name: d for d in m.devices}
    assert (by["gpu-0"].kind, by["gpu-0"].emulated, by["gpu-0"].memory_bytes, by["gpu-0"].link) == (
        "gpu",
        True,
        2**33,
        5e9,
    )
    assert (by["cpu-10"].threads, by["cpu-10"].rate(np.dtype("float32"))) == (4, 75e9)
    assert (by["cpu-9"].kind, by["cpu-9"].gflops, by["cpu-9"].memory_bytes) == ("cpu", {"float32": 77.0}, 2**32)
    assert m.is_cluster
    assert m.home == "cpu"


def test_a_machine_of_workers_that_say_nothing() -> None:
    m = from_workers(WORKERS)
    by = {d.name: d for d in m.devices}
    assert by["cpu-9"].memory_bytes == 2**33  # its limit
    assert by["0"].memory_bytes > 0  # no limit
    assert by["0"].rate(np.dtype("float64")) > 0
    assert by["cpu-9"].link == math.inf


def test_this_process_as_a_machine() -> None:
    m = tg.Machine.local()
    assert [d.kind for d in m.devices] == ["cpu"]
    assert not m.is_cluster
    assert m.devices[0].rate(np.dtype("float32")) > 1e8
    assert plan(tg.ones((300, 300)) @ tg.ones((300, 300)), m).bytes_moved == 0
    assert tg.Machine.local() == m  # measured once
