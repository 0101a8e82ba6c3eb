"""Predictions: laws that hold for every plan and machine, products written as text, the command line, the page."""

from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning import data, machine, tags, with_zeros

import taskgraph as tg
from taskgraph.__main__ import main
from taskgraph.chunks import overlaps
from taskgraph.execute import planned
from taskgraph.expr import with_inputs
from taskgraph.holding import Holding
from taskgraph.jobs import Jobs, jobs_of
from taskgraph.layout import lying
from taskgraph.lower import lower
from taskgraph.simulate import _Run, seconds_of
from taskgraph.timeline import WORKERS, to_html
from taskgraph.trial import soonest
from taskgraph.whatif import made_up, parse

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

# -- what is predicted -------------------------------------------------------------------------------------------------


machines = st.builds(
    machine,
    cpus=st.lists(st.tuples(st.sampled_from([1.0, 50.0, 200.0]), st.integers(1, 3)), min_size=1, max_size=5),
    gpus=st.lists(st.sampled_from([20.0, 1000.0, 30000.0]), max_size=4),
    link_bytes_per_s=st.sampled_from([1e7, 1e9, 1e12]),
    task_seconds=st.sampled_from([1e-6, 5e-4]),
    is_cluster=st.sampled_from([True, True, True, False]),
)
sizes = st.sampled_from([1, 7, 300, 1024, 3000])
cuts = st.sampled_from([-1, 1500, 400])


@st.composite
def tensors(draw: st.DrawFn) -> tg.Tensor:
    """Products, chains, gradients, reductions, elementwise work around them; of data and of what is made."""

    def operand(*shape: int) -> tg.Tensor:
        cut = draw(cuts)
        return tg.zeros(shape, dtype="float32", chunks=cut) + 0 if draw(st.booleans()) else data(*shape, chunks=cut)

    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    with tg.device(draw(st.sampled_from([None, None, "cpu"]))):
        c = operand(m, k) @ operand(k, n)
    kind = draw(st.sampled_from(["plain", "chain", "transposed", "epilogue", "sum", "rechunk", "batch", "reshape"]))
    made = {
        "plain": lambda: c,
        "chain": lambda: c @ operand(n, 64),
        "transposed": lambda: c.T @ operand(m, 32),
        "epilogue": lambda: tg.exp(c + operand(m, n)) * 2,
        "sum": lambda: tg.sum(c, axis=draw(st.sampled_from([None, 0, 1]))),
        "rechunk": lambda: tg.tanh(operand(m, n)) + c,
        "batch": lambda: operand(3, 64, m) @ c,
        "reshape": lambda: tg.reshape(c, (n, m)) @ operand(m, 16),
    }
    return made[kind]()


def run_of(jobs: Jobs) -> _Run:
    run = _Run(jobs)
    run.go()
    return run


@MANY
@given(tensors(), machines)
def test_no_prediction_beats_its_bounds(t: tg.Tensor, m: tg.Machine) -> None:
    p = tg.simulate(t, m)
    for bound in (p.area_bound, p.critical_path, p.link_bound):
        assert 0 <= bound <= p.makespan * (1 + 1e-9)
    assert p.bound == max(p.area_bound, p.critical_path, p.link_bound)
    assert p.makespan > 0
    assert all(0 <= r.start <= r.stop <= p.makespan for r in p.timeline)
    assert tg.simulate(t, m).timeline == p.timeline  # the same for the same input
    assert sum(p.jobs.values()) == sum(r.kind == "compute" for r in p.timeline)


@MANY
@given(tensors(), machines)
def test_the_time_that_workers_compute_is_the_work(t: tg.Tensor, m: tg.Machine) -> None:
    plan = tg.plan(t, m)
    p = tg.simulate(plan)
    jobs = jobs_of(plan)
    by_name = {d.name: d for d in m.devices}
    labels: dict[str, list[Any]] = defaultdict(list)
    for job in jobs.items:
        labels[job.label].append(job)
    for row in p.timeline:
        if row.kind == "compute":
            job = labels[row.label].pop()  # every job once: a second time there is none left
            assert row.stop - row.start == pytest.approx(seconds_of(job, by_name[row.worker], m), rel=1e-6)
            assert by_name[row.worker].kind == job.kind
    assert all(job.home is not None for left in labels.values() for job in left)
    work = math.fsum(r.stop - r.start for r in p.timeline if r.kind == "compute")
    assert sum(p.busy_seconds.values()) == pytest.approx(work)
    flops = sum(job.flops for job in jobs.items)
    assert flops == pytest.approx(sum(q.flops for q in plan.products.values()))


@MANY
@given(tensors(), machines)
def test_dependencies_threads_and_links_are_respected(t: tg.Tensor, m: tg.Machine) -> None:
    run = run_of(jobs_of(tg.plan(t, m)))
    threads = {d.name: d.threads for d in m.devices}
    spans: dict[tuple[str, str], tuple[float, float]] = {}
    lanes: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in run.timeline:
        if row.kind == "compute":
            spans[row.label, row.worker] = (row.start, row.stop)
            assert row.thread < threads[row.worker]
            lanes[row.worker, row.thread].append((row.start, row.stop))
        elif " from cpu" in row.label or " from gpu" in row.label:
            lanes[row.worker, -1].append((row.start, row.stop))  # a worker receives one block at a time
            lanes[row.label.rpartition(" from ")[2], -2].append((row.start, row.stop))  # and sends one
    for lane in lanes.values():
        lane.sort()
        assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(lane))
    ended = {label: stop for (label, _), (_, stop) in spans.items()}
    begun = {label: start for (label, _), (start, _) in spans.items()}
    for number, job in enumerate(run.jobs):
        if job.home is None and run.priority[number] >= 0:
            assert all(ended.get(run.jobs[n].label, 0.0) <= begun[job.label] + 1e-9 for n, _ in job.needs)


@MANY
@given(tensors(), machines)
def test_memory_is_never_negative_and_ends_with_inputs_and_results(t: tg.Tensor, m: tg.Machine) -> None:
    jobs = jobs_of(tg.plan(t, m))
    least = 0
    with pytest.MonkeyPatch.context() as patch:
        usual = Holding._add

        def add(holding: Holding, nbytes: int) -> None:
            nonlocal least
            usual(holding, nbytes)
            least = min(least, holding.held, holding._rest, holding._copies, holding._work)

        patch.setattr(Holding, "_add", add)
        run = run_of(jobs)
    assert least >= 0
    stays = {n for n, job in enumerate(jobs.items) if job.home is not None} | set(jobs.results)
    assert sum(w.memory.held for w in run.workers) == sum(jobs.items[n].nbytes for n in stays - run.views)
    assert all(w.memory.peak >= w.memory.held for w in run.workers if w.device.kind == "cpu")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(tensors(), machines)
def test_jobs_of_products_are_the_tasks_that_would_run(t: tg.Tensor, m: tg.Machine) -> None:
    plan = planned(with_zeros(t), m)
    # a view of a partial tile is a task, but no work
    found = [tag for key, tag in tags(lower(plan)).items() if "-strip-" not in str(key[0])]
    of_product = [tag for tag in found if "product" in tag]
    jobs = jobs_of(plan)
    ours = [job for job in jobs.items if job.flops or job.label.endswith((" sum", " turned"))]
    if of_product:  # else all of it is one small task
        runs = Counter((job.kind, job.slot) for job in ours)
        assert runs == Counter((tag["kind"], tag.get("slot")) for tag in of_product)
        assert len(jobs.items) <= 3 * len(found) + 10  # the rest is drawn coarser, not finer


@pytest.mark.parametrize(("cpus", "gpus", "n"), [(1, 1, 8192), (16, 4, 30000), (32, 1, 16384)])
def test_bytes_are_the_plans_where_whole_operands_move(cpus: int, gpus: int, n: int) -> None:
    plan = tg.plan(data(n, n) @ data(n, n), machine([(50.0, 1)] * cpus, [9000.0] * gpus))
    p = tg.simulate(plan)
    assert p.bytes_moved == pytest.approx(plan.bytes_moved, rel=0.05)
    assert p.bytes_bound <= p.bytes_moved


@MANY
@given(sizes, sizes, sizes, machines)
def test_no_run_moves_fewer_bytes_than_its_bound(m: int, k: int, n: int, where: tg.Machine) -> None:
    """For one product of data whose tiles all run on the slots that the plan names."""
    p = tg.simulate(data(m, k, chunks=500) @ data(k, n, chunks=500), where)
    (planned_product,) = p.plan.products.values()
    ran = Counter(r.worker for r in p.timeline if r.label.startswith("matmul") and r.kind == "compute")
    if None not in planned_product.slots and ran == Counter(
        s for s in planned_product.slots for _ in range(planned_product.panels)
    ):
        # data lie in whole blocks, not in exactly equal shares
        slack = max(m * k, k * n) * 4 / max(1, len(where.of_kind("cpu")))
        assert p.bytes_moved >= p.bytes_bound - 2 * slack * len(where.devices)


def test_on_one_process_nothing_moves() -> None:
    p = tg.simulate(data(5000, 5000) @ data(5000, 5000), tg.Machine.local())
    assert (p.bytes_moved, p.bytes_bound, p.link_bound) == (0, 0, 0)
    assert {r.kind for r in p.timeline} == {"compute"}


def test_a_plan_is_simulated_as_it_is() -> None:
    m = machine([(50.0, 1)] * 2)
    plan = tg.plan(data(4096, 4096) @ data(4096, 4096), m)
    assert tg.simulate(plan).plan is plan
    assert tg.simulate(plan).makespan == pytest.approx(plan.makespan, rel=0.1)
    with pytest.raises(TypeError, match="a plan is for its own machine"):
        tg.simulate(plan, m)
    assert tg.simulate(data(8, 8) + 1).makespan > 0  # this machine, where nothing is said


def test_work_that_computes_beside_what_arrives() -> None:
    """Operands of a worker's next tile come while it computes."""
    p = tg.simulate(data(16384, 16384, chunks=4096) @ data(16384, 16384, chunks=4096), machine([(50.0, 1)] * 4))
    computing = [r for r in p.timeline if r.kind == "compute"]
    moving = [r for r in p.timeline if r.kind == "transfer"]
    assert any(c.worker == t.worker and c.start < t.start and t.stop < c.stop for c in computing for t in moving) or (
        len(computing) == 4
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((4, 4), (3, 5), [[(0, 3)], [(0, 1), (1, 4)]]),
        ((8,), (4, 4), [[(0, 4)], [(0, 4)]]),
        ((2, 0, 2), (4,), [[(0, 2), (2, 2)]]),
        ((3, 3), (3, 3), [[(0, 3)], [(1, 3)]]),
    ],
)
def testoverlaps(old: Any, new: Any, expected: Any) -> None:
    assert overlaps(old, new) == expected


def test_a_large_simulation_is_quick() -> None:
    import time

    x = data(100_000, 100_000, chunks=1000)
    plan = tg.plan(tg.exp(x) * 2, machine([(50.0, 4)] * 16))
    start = time.perf_counter()
    assert len(tg.simulate(plan).timeline) >= 10_000
    assert time.perf_counter() - start < 10  # 0.6 s here


# -- machines in files -------------------------------------------------------------------------------------------------


def test_machines_in_files(tmp_path: Path) -> None:
    m = machine([(50.0, 2)], [9000.0], link_bytes_per_s=5e9)
    m.to_file(tmp_path / "m.json")
    assert tg.Machine.from_file(tmp_path / "m.json") == m
    by_hand = {"devices": [{"kind": "cpu", "memory_bytes": 2**30, "gflops": {"float32": 50.0}}]}
    (tmp_path / "hand.json").write_text(json.dumps(by_hand))
    assert tg.Machine.from_file(tmp_path / "hand.json").devices[0].name == "cpu-0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "it lacks 'devices'"),
        ("[1]", "describes no machine"),
        ("not json", "describes no machine"),
        ('{"devices": []}', "needs at least one device"),
        ('{"devices": [{"kind": "tpu", "memory_bytes": 1, "gflops": 1}]}', "kind is one of"),
        ('{"devices": [{"kind": "cpu", "memory_bytes": 1, "gflops": 1, "colour": "red"}]}', "colour"),
    ],
)
def test_files_that_describe_no_machine(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as e:
        tg.Machine.from_file(path)
    assert str(path) in str(e.value)


# -- products as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("30x20 @ 20x10", (30, 10)),
        ("30x20@20x10", (30, 10)),
        ("  30x20  @  20x10  ", (30, 10)),
        ("20x30.T @ 20x10", (30, 10)),
        ("20x30.T.T @ 30x1", (20, 1)),
        ("1000x20 @ 20x1000 @ 1000x1", (1000, 1)),
        ("1000x20 @ (20x1000 @ 1000x1)", (1000, 1)),
        ("8x512x256 @ 256x128", (8, 512, 128)),
        ("8x256x512.T @ 8x256x16", (8, 512, 16)),
        ("(30x20 + 30x20) @ 20x10 + 30x10", (30, 10)),
        ("(30x20 @ 20x10).T", (10, 30)),
        ("30x20 @ 20", (30,)),
        ("30x20", (30, 20)),
    ],
)
def test_products_as_text(text: str, shape: tuple[int, ...]) -> None:
    found = parse(text, "float64")
    assert found.shape == shape
    assert found.dtype == "float64"


@pytest.mark.parametrize(
    ("text", "said", "at"),
    [
        ("30x20 @ 30x10", "'A' is (30, 20) float32, 'B' is (30, 10) float32; 20 != 30", 6),
        ("30x20 + 30x21", "30x20 + 30x21", 6),
        ("30x20 @", "expected sizes like 1000x20 here", 7),
        ("", "expected sizes like 1000x20 here", 0),
        ("@ 30x20", "expected sizes like 1000x20 here", 0),
        ("30x20 30x20", "expected '@', '+' or the end here", 6),
        ("(30x20 @ 20x10", "expected ')' here", 14),
        ("30x20) @ 20x10", "expected '@', '+' or the end here", 5),
        ("30x20 * 20x10", "no size, '@', '+', '.T' or parenthesis: '*'", 6),
        ("30xx20", "no size, '@', '+', '.T' or parenthesis: 'x'", 2),
        ("30x-1 @ 3x3", "no size, '@', '+', '.T' or parenthesis: 'x'", 2),
        ("30x20 @ 20.T", ".T needs two axes", 10),
        ("30x0 @ 0x20", "a size of 0", 0),
        ("A @ B", "no size", 0),
    ],
)
def test_texts_that_describe_no_product(text: str, said: str, at: int) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as e:
        parse(text)
    message = str(e.value).splitlines()
    assert message[-1] == "  " + " " * at + "^"
    assert message[-2] == "  " + text


def test_an_unknown_dtype() -> None:
    with pytest.raises(TypeError):
        parse("3x3", "float33")


# -- the command line --------------------------------------------------------------------------------------------------


def invoke(*args: str) -> Any:
    return CliRunner().invoke(main, ["plan", *args])


def test_plan_on_the_command_line(tmp_path: Path) -> None:
    html, figures = tmp_path / "plan.html", tmp_path / "plan.json"
    options = ["--gpus=4", "--cpus=32", "--gpu-memory=80GB", "--gpu-gflops=50000", "--cpu-gflops=100", "--link=10GB/s"]
    found = invoke("30000x30000 @ 30000x30000", *options, "--html", str(html), "--json", str(figures))
    assert found.exit_code == 0, found.output
    for word in ("makespan", "area bound", "lower bound", "4 gpu workers", "32 cpu workers", "peak", "tiles"):
        assert word in found.output
    known = json.loads(figures.read_text())
    assert known["makespan"] >= known["bound"] >= known["area_bound"] > 0
    assert known["peak_bytes"]["gpu-0"] < 80e9
    assert sum(known["tiles"].values()) > 0
    check_page(html.read_text())


def test_options_that_make_a_machine() -> None:
    m = made_up(2, 1, 10.0, 20.0, "1GB", "2GB", 3, "4GB/s", "5GB/s", 0.25)
    cpu, _, gpu = m.devices
    assert (cpu.memory_bytes, cpu.gflops, cpu.threads) == (10**9, 10.0, 3)
    assert (gpu.memory_bytes, gpu.gflops, gpu.link) == (2 * 10**9, 20.0, 5e9)
    assert (m.link_bytes_per_s, m.task_seconds) == (4e9, 0.25)
    assert [d.name for d in made_up(gpus=1).devices] == ["cpu-0", "gpu-0"]
    assert [d.name for d in made_up(cpus=0, gpus=1).devices] == ["gpu-0"]


def test_plan_for_this_machine_and_for_a_files(tmp_path: Path) -> None:
    here = invoke("500x500 @ 500x500")
    assert here.exit_code == 0, here.output
    assert "plan for 1 device(s): local" in here.output
    machine([(50.0, 1)] * 3).to_file(tmp_path / "m.json")
    there = invoke("500x500 @ 500x500", "--machine", str(tmp_path / "m.json"))
    assert "plan for 3 device(s)" in there.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["3x3 @ 4x4", "--cpus", "1"], "3 != 4"),
        (["3x3", "--cpus", "0", "--gpus", "0"], "a machine needs workers"),
        (["3x3", "--gpu-gflops", "5"], "a machine needs workers"),
        (["3x3", "--cpus", "1", "--scheduler", "tcp://nowhere:1"], "cluster"),
        (["3x3", "--cpus", "1", "--cpu-memory", "lots"], "lots"),
        (["3x3", "--cpus", "1", "--link", "0"], "needs more than 0"),
        (["3x3", "--cpus", "-1"], "--cpus"),
        (["3x3", "--cpus", "1", "--dtype", "float33"], "float33"),
        (["3x3", "--machine", "nowhere.json"], "nowhere.json"),
        ([], "EXPRESSION"),
    ],
)
def test_plan_refuses(args: list[str], said: str) -> None:
    found = invoke(*args)
    assert found.exit_code != 0
    assert said in found.output, found.output
    assert "Traceback" not in found.output


# -- the page ----------------------------------------------------------------------------------------------------------


def check_page(page: str) -> ET.Element:
    """Well-formed, whole in itself; gives its drawing."""
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    tree = ET.fromstring(page.partition("\n")[2])
    for node in tree.iter():
        for name, value in node.attrib.items():
            assert name not in ("src", "href"), (node.tag, value)
            assert "://" not in value, (node.tag, name, value)
    (drawing,) = [node for node in tree.iter() if node.tag.endswith("svg")]
    return drawing


def bars(drawing: ET.Element) -> list[ET.Element]:
    return [node for node in drawing.iter() if node.tag.endswith("rect")]


def test_the_page_draws_every_bar() -> None:
    p = tg.simulate(data(8192, 8192) @ data(8192, 8192), machine([(50.0, 1)] * 4))
    drawing = check_page(to_html(p, title="<A> & B"))
    titles = [bar[0].text or "" for bar in bars(drawing)]
    for row in p.timeline:
        if row.kind == "compute":
            assert any(title.startswith(f"{row.label}: ") for title in titles), row
    width = float(drawing.attrib["viewBox"].split()[2])
    for bar in bars(drawing):
        assert 0 <= float(bar.attrib["x"]) <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width


def test_the_page_of_many_workers_says_what_it_leaves_out() -> None:
    m = machine([(50.0, 2)] * 200, [9000.0] * 64)
    with tg.device("cpu+gpu"):
        p = tg.simulate(data(65536, 65536) @ data(65536, 65536), m)
    page = to_html(p)
    drawing = check_page(page)
    names = {bar[0].text.rpartition(" on ")[2] for bar in bars(drawing) if bar[0].text}
    assert 0 < len(names) <= WORKERS
    assert f"{WORKERS} are drawn, the busiest of each kind" in page
    assert len(page) < 6_000_000


def test_the_page_merges_what_is_too_narrow() -> None:
    p = tg.simulate(tg.exp(data(20_000, 20_000, chunks=100)), machine([(50.0, 1)] * 2))
    assert len(p.timeline) >= 40_000
    page = to_html(p)
    assert len(bars(check_page(page))) < 4000
    assert " bars, " in page


def test_the_page_says_what_is_emulated() -> None:
    devices = [tg.Device("cpu", 2**34, 50.0), tg.Device("gpu", 2**34, 50.0, emulated=True)]
    page = to_html(tg.simulate(data(64, 64) @ data(64, 64), tg.Machine(devices=devices)))
    assert "1 of the GPUs are emulated" in page
    check_page(page)


def test_summaries() -> None:
    p = tg.simulate(data(8192, 8192) @ data(8192, 8192), machine([(50.0, 1)] * 2))
    assert str(p) == p.summary()
    assert repr(p).startswith("Prediction(makespan=")
    assert "no products" in tg.simulate(data(8, 8) + 1, machine([(50.0, 1)])).summary()
    few = p.summary().splitlines()
    assert sum(line.startswith("  cpu-") for line in few) == 2
    many = tg.simulate(data(8192, 8192) @ data(8192, 8192), machine([(50.0, 1)] * 40)).summary()
    assert "  40 cpu workers: " in many


def test_plan_for_a_running_cluster_and_what_info_writes(tmp_path: Path) -> None:
    with tg.LocalCluster(cpu_workers=1, gpus=0, emulated_gpus=1, dashboard_address=None) as cluster:
        there = invoke("500x500 @ 500x500", "--scheduler", cluster.scheduler_address)
        assert there.exit_code == 0, there.output
        assert "plan for 2 device(s): cpu-0, gpu-0 (emulated)" in there.output
        path = tmp_path / "m.json"
        written = CliRunner().invoke(main, ["info", "--scheduler", cluster.scheduler_address, "--json", str(path)])
        assert written.exit_code == 0, written.output
    m = tg.Machine.from_file(path)
    assert [(d.name, d.kind, d.emulated) for d in m.devices] == [("cpu-0", "cpu", False), ("gpu-0", "gpu", True)]


def test_links_that_are_free_do_not_wait_for_ever():
    """Rows on 64 workers: some senders' first requests were met by others, and nothing told them of the later ones."""
    m = machine(cpus=((50.0, 1),) * 64, memory=2**31)
    sizes = (51200, 512), (512, 512)
    kept = tuple(lying(tg.exp(data(*size, chunks=(size[0] // 64, -1))).expr) for size in sizes)
    product = with_inputs((data(*sizes[0]) @ data(*sizes[1])).expr, kept)
    p = tg.simulate(tg.execute.plan_products([product], m, soonest))
    assert p.makespan < 0.05
    assert p.bytes_moved == pytest.approx(63 * 512 * 512 * 4)
