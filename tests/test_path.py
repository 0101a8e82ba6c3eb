"""The whole path on real processes: values, who ran what, lost and new workers, every way in.

The scheduler of these clusters is a process of its own: what its process would do to a graph of ours (FACTS: dropped
annotations) shows only there. Who ran a task, and what its annotation said, is read from a recorder in the
scheduler, and compared with the plan.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import dask
import distributed
import numpy as np
import pytest
from dask._task_spec import convert_legacy_graph
from dask.core import flatten
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from process_cluster import DEATH, ProcessCluster, until, workers
from random_graphs import Graph, graphs, tolerance

import taskgraph as tg
from deploy.local import LocalCluster
from scheduler_plugins import report
from taskgraph import execute, lower
from taskgraph.expr import topological
from taskgraph.lower import Lowered
from taskgraph.machine import Machine
from taskgraph.plan import Plan

#: 200 in `make test`; TASKGRAPH_EXAMPLES=2000 for as many as the project promises.
EXAMPLES = int(os.environ.get("TASKGRAPH_EXAMPLES", "200"))

#: Nothing here takes more than a few seconds: what takes so long hangs.
PATIENCE_S = 60

FOUR = ("cpu-0", "cpu-1", "gpu-0", "gpu-1")

# -- clusters ----------------------------------------------------------------------------------------------------------


class DeviceCluster(ProcessCluster):
    """Workers that are set up as a user sets them up, from the command line, GPUs emulated."""

    def start_worker(self, name: str, *, nthreads: int = 1, memory_limit: str = "2 GiB") -> None:
        """Start the worker `name`, whose kind is what stands before the dash; `wait_for` waits for it."""
        # With a scheduler file alone, Dask takes the first argument of a preload for the scheduler's address.
        address = json.loads(self.scheduler_file.read_text())["address"]
        self._start(
            name,
            "worker",
            address,
            *("--name", name, "--nthreads", str(nthreads), "--memory-limit", memory_limit, "--no-nanny"),
            *("--host", "127.0.0.1", "--local-directory", str(self.directory)),
            *("--preload", "workers.plugin", "--device", "cpu" if name.startswith("cpu") else "emulated-gpu"),
        )

    def default_client(self, *names: str) -> Client:
        """A client in force everywhere in this process, once these workers are there; closed with the cluster."""
        client = Client(scheduler_file=str(self.scheduler_file))
        self.clients.append(client)
        self.wait_for(client, *names)
        client.register_plugin(recorder())
        return client

    def assert_quiet(self, *, allowed: tuple[str, ...] = ()) -> None:
        """Neither a traceback nor a line of the level ERROR in what the processes have written.

        Where some exceptions are `allowed` (a worker dies), so are lines of that level: Dask has one for them.
        """
        super().assert_quiet(allowed=allowed)
        for path in sorted(self.directory.glob("*.log")):
            for line in path.read_text(errors="replace").splitlines():
                assert allowed or not re.search(r" - (ERROR|CRITICAL) - ", line), f"{path.name}: {line}"


class Ran(NamedTuple):
    """One task that came to memory: where, and what its annotation said."""

    key: Any
    worker: str
    kind: str
    tag: dict[str, Any] | None


def recorder() -> SchedulerPlugin:
    """A scheduler plugin that notes who ran each task; made here, so that it travels by value."""

    class Witness(SchedulerPlugin):
        name = "witness"
        idempotent = True

        def __init__(self) -> None:
            self.ran: list[Any] = []

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            if start == "processing" and finish == "memory":
                ws = self.scheduler.workers[kwargs["worker"]]
                kind = (ws.extra.get("taskgraph") or {}).get("kind", "cpu")
                tag = (self.scheduler.tasks[key].annotations or {}).get("taskgraph")
                self.ran.append((key, str(ws.name), kind, tag))

    return Witness()


def ran(client: Client, *, clear: bool = False) -> list[Ran]:
    """Who ran each task since the last call that cleared, in order."""

    def read(dask_scheduler: Any, clear: bool) -> list[Any]:
        witness = dask_scheduler.plugins["witness"]
        found = list(witness.ran)
        if clear:
            witness.ran.clear()
        return found

    return [Ran(*r) for r in client.run_on_scheduler(read, clear=clear)]


def there(client: Client) -> set[Any]:
    """The keys that the scheduler has now, results of earlier work that are about to go."""
    return set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))


def at_work(client: Client, prefix: str) -> dict[str, int]:
    """How many tasks of that key prefix each worker has been given and not finished."""

    def read(dask_scheduler: Any, prefix: str) -> dict[str, int]:
        return {
            str(w.name): sum(str(t.prefix.name) == prefix for t in w.processing)
            for w in dask_scheduler.workers.values()
        }

    return client.run_on_scheduler(read, prefix=prefix)


def placement_errors(client: Client) -> int:
    return int(client.run_on_scheduler(report)["errors"])


def started(function: Callable[[], Any]) -> Future[Any]:
    """The function in a thread that no hang of it can keep this process waiting for."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def within(function: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The function's result; TimeoutError where it hangs."""
    return started(function).result(seconds)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceCluster]:
    """Two CPU workers and two emulated GPUs, with the scheduler in a process of its own."""
    with DeviceCluster(tmp_path_factory.mktemp("path")) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        yield cluster
        cluster.assert_quiet()


@pytest.fixture
def client(shared: DeviceCluster) -> Iterator[Client]:
    """The client in force, its recorder empty; the plugin has counted no error when the test ends."""
    client = shared.default_client(*FOUR)
    ran(client, clear=True)
    yield client
    if "taskgraph-placement" in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins)):
        assert placement_errors(client) == 0
    client.close()


# -- what the plan says of every task ----------------------------------------------------------------------------------


class Said(NamedTuple):
    """What the plan says of a task: on which kind of worker, and where the user named one, on which."""

    kind: str
    pinned: str | None = None


@contextlib.contextmanager
def watched_lowering() -> Iterator[tuple[list[Lowered], dict[Any, Said]]]:
    """Every graph that is lowered in the block, and what its plan says of every task.

    The plan speaks of expressions, Dask of keys. Which layers belong to which expression is noted as they are made;
    what is expected of them is then read from the plan, not from the tags that the lowering made.
    """
    graphs: list[Lowered] = []
    expected: dict[Any, Said] = {}
    real_group, real_one, real_lower = lower._lower_group, lower._one_task, execute.lower

    def noted(done: Any, make: Callable[[], Any], said: Callable[[Any], Said]) -> Any:
        before = set(done.layers)
        made = make()
        for name in done.layers.keys() - before:
            for key in done.layers[name]:
                expected.setdefault(key, said(key))  # once persisted, a key is there under another plan, too
        return made

    def group(done: Any, g: Any, *args: Any) -> Any:
        plan: Plan = done.plan
        first = g.product or g.result
        said = said_of(plan, first, None)
        for node in g.nodes:  # what is fused must be of one mind
            follows = g.product is not None and node.device in (None, "cpu+gpu", first.device)
            assert node in plan.products or follows or plan.kind_of(node) == said.kind, node
        in_place = Said(plan.machine.home)  # parts of blocks, where these lie
        return noted(
            done,
            lambda: real_group(done, g, *args),
            lambda key: in_place if first in done.in_place else said_of(plan, first, key),
        )

    def one_task(done: Any, *args: Any) -> Any:
        plan: Plan = done.plan
        for node in topological(plan.roots):
            kinds = plan.products[node].kinds if node in plan.products else [plan.kind_of(node)]
            assert set(kinds) == {plan.machine.home}, f"{node} of a graph that is one task is planned for {kinds}"
        return noted(done, lambda: real_one(done, *args), lambda key: Said(plan.machine.home))

    def whole(*args: Any) -> Lowered:
        graphs.append(real_lower(*args))
        return graphs[-1]

    with (
        mock.patch.object(lower, "_lower_group", group),
        mock.patch.object(lower, "_one_task", one_task),
        mock.patch.object(execute, "lower", whole),
    ):
        yield graphs, expected


def said_of(plan: Plan, node: Any, key: Any) -> Said:
    """What the plan says of a task of an expression; for a product, by the tile that its key names."""
    pin = "" if node.op.name == "dask" else node.device or ""  # a Dask array's own tasks are not ours to pin
    slot = plan.machine.of_kind("gpu")[int(pin[4:])].name if pin.startswith("gpu:") else None
    if node not in plan.products:
        return Said(plan.kind_of(node), slot)
    planned = plan.products[node]
    if key is None:
        return Said(planned.kind, slot)
    gm, gn, gk = planned.grid.shape
    name, *index = key
    if name.startswith("rechunk-split"):  # a part of a block of an operand
        return Said(plan.machine.home)
    strips = 1 if "-partial-" in name else planned.strips  # the other keys count rows of blocks in strips
    *batch, i, j = index[: node.ndim]
    places = itertools.product(*[range(len(c)) for c in node.chunks[:-2]], range(gm), range(gn))
    tile = list(places).index((*batch, i // strips, j))
    of_tile = set(planned.kinds[tile * gk : (tile + 1) * gk])
    assert len(of_tile) == 1, planned
    return Said(of_tile.pop(), slot)


def needed(g: Lowered) -> set[Any]:
    """The tasks without which the graph's results cannot be: Dask's cumulative sums hold some that nobody asks for."""
    tasks = convert_legacy_graph(g.graph.to_dict())
    found: set[Any] = set()
    stack = list(flatten(g.keys))
    while stack:
        key = stack.pop()
        if key not in found and key in tasks:  # what is persisted is no task
            found.add(key)
            stack.extend(tasks[key].dependencies)
    return found


def check_placement(
    tasks: Sequence[Ran],
    graphs: Sequence[Lowered],
    expected: dict[Any, Said],
    known: Collection[Any] = (),
) -> Counter[str]:
    """Every task ran once, on a worker of the kind that plan and annotation name (those that take a part of a block:
    where the block is); none ran that is in no graph.

    The one task that `client.compute` puts behind ours, to join the blocks, may be without annotation; it belongs on
    CPU workers. known: keys whose values may have been there, and need not have run. Gives the number of tasks of each
    kind.
    """
    planned = {key for g in graphs for key in needed(g)}
    times = Counter(t.key for t in tasks)
    assert not [k for k, n in times.items() if n > 1], "a task ran twice"
    for t in tasks:
        if t.key not in planned:
            assert str(t.key).startswith("finalize"), f"{t} is in no graph that was lowered"
            assert t.kind == "cpu", t
            continue
        assert t.tag is not None, f"untagged: {t}"
        said = expected[t.key]
        kind = t.tag["kind"] if t.tag.get("stays") else t.kind  # who takes a part of a block is where the block is
        assert t.tag["kind"] == kind == said.kind, f"the plan says {said}: {t}"
        if said.pinned:
            assert (t.worker, t.tag["slot"], t.tag["pinned"]) == (said.pinned, said.pinned, True), t
    missing = planned - times.keys() - set(known)
    assert not missing, f"did not run: {sorted(map(str, missing))[:5]}"
    return Counter(t.kind for t in tasks)


# -- random graphs -----------------------------------------------------------------------------------------------------


def as_measured(machine: Machine) -> Machine:
    """The rates that the workers have measured: the default."""
    return machine


def fast_gpus(machine: Machine) -> Machine:
    """The cluster's workers by name, but GPUs a million times as fast as CPUs: what is big is not worth a CPU."""
    return _with_rates(machine, cpu=1e-3, gpu=1e3)


def slow_all(machine: Machine) -> Machine:
    """All so slow that every product is worth cutting and dividing among CPUs and GPUs."""
    return _with_rates(machine, cpu=1e-3, gpu=1e-3)


def little_memory(machine: Machine) -> Machine:
    """As `slow_all`, and so little memory that k must be summed in panels."""
    slow = slow_all(machine)
    return replace(slow, devices=tuple(replace(d, memory_bytes=2**10) for d in slow.devices))


def _with_rates(machine: Machine, cpu: float, gpu: float) -> Machine:
    rates = {"cpu": cpu, "gpu": gpu}
    return replace(machine, devices=tuple(replace(d, gflops=rates[d.kind]) for d in machine.devices))


#: Matrices of 40 x 40 are never worth a GPU, so on some examples the plan is told of other rates. The rest of the path
#: is the default's: same workers, same names, same plugin.
RATES = (as_measured, as_measured, fast_gpus, slow_all, little_memory)


def compute_together(g: Graph) -> list[Any]:
    return execute.compute([t.expr for t in g.tensors])


def compute_with_dask(g: Graph) -> list[Any]:
    return list(dask.compute(*g.tensors))


def persist_first(g: Graph) -> list[Any]:
    return [np.asarray(t.compute()) for t in dask.persist(*g.tensors)]


WAYS = (compute_together, compute_together, compute_with_dask, persist_first)


# Some thread of Dask's uses `random` meanwhile; the strategy does not.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.timeout(60 + EXAMPLES)
def test_random_graphs(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """Values are NumPy's, and every task runs where the plan says, as the scheduler saw it."""
    total: Counter[str] = Counter()
    real = Machine.from_client

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(), st.sampled_from(RATES), st.sampled_from(WAYS))
    def check(g: Graph, rates: Any, way: Any) -> None:
        event(rates.__name__)
        told = mock.patch.object(Machine, "from_client", lambda client: rates(real(client)))
        ran(client, clear=True)
        known = there(client)  # equal gradients of two examples are one expression
        with told, watched_lowering() as (lowered, expected):
            found = within(lambda: way(g))
        for value, node in zip(found, g.results, strict=True):
            wanted, value = node.value, np.asarray(value)
            assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(value, wanted, rtol=0, atol=tolerance(node))
        kinds = check_placement(ran(client, clear=True), lowered, expected, known)
        total.update({f"tasks on {k} workers": n for k, n in kinds.items()})
        total["examples"] += 1
        total["gradients"] += sum(n.second for n in g.nodes)
        free = [p for x in lowered for e, p in x.plan.products.items() if e.device is None]
        total.update(f"free products on {p.kind}" for p in free)
        total["products in panels"] += sum(p.panels > 1 for x in lowered for p in x.plan.products.values())

    before = time.monotonic()
    check()
    with capsys.disabled():
        print(f"\n  random graphs: {dict(sorted(total.items()))}, {time.monotonic() - before:.0f} s")
    # What was meant to be tried has been tried.
    assert total["examples"] >= EXAMPLES
    for name in ("tasks on gpu workers", "tasks on cpu workers", "gradients"):
        assert total[name] > EXAMPLES, (name, total)
    for kind in ("cpu", "gpu", "cpu+gpu"):
        assert total[f"free products on {kind}"] > EXAMPLES / 50, (kind, total)
    assert total["products in panels"] > 0


def test_forward_and_gradient_share_their_tasks(client: Client) -> None:
    """Together they are fewer tasks than apart, and none runs twice."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((60, 60)) / 8 for _ in "ab")
    x, w = tg.asarray(a, chunks=20), tg.asarray(b, chunks=20)
    with tg.device("gpu"):
        h = tg.tanh(x @ w)
        y = tg.sum(h @ w)
    g = tg.gradients(y, w)
    counts = []
    for tensors in ([y], [g], [y, g]):
        with watched_lowering() as (lowered, expected):
            found = within(partial(execute.compute, [t.expr for t in tensors]))
        tasks = ran(client, clear=True)
        assert check_placement(tasks, lowered, expected)["gpu"] > 0
        counts.append(len(tasks))
    hidden = np.tanh(a @ b)
    ct = np.ones((60, 60)) @ b.T * (1 - hidden**2)
    np.testing.assert_allclose(found[0], (hidden @ b).sum())
    np.testing.assert_allclose(found[1], a.T @ ct + hidden.T @ np.ones((60, 60)))
    forward, gradient, together = counts
    assert together < forward + gradient


# -- every way in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def problem() -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Two tensors that share a pinned product of 9 tiles or more, and their values."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((90, 90)) / 10 for _ in "ab")
    with tg.device("gpu"):
        c = tg.asarray(a, chunks=30) @ tg.asarray(b, chunks=30)
    t, u = tg.tanh(c), tg.sum(c, axis=0)
    return t, u, np.tanh(a @ b), (a @ b).sum(axis=0)


WAYS_IN: dict[str, Callable[[Client, Any, Any], Sequence[Any]]] = {
    "t.compute": lambda client, t, u: [t.compute(), u.compute()],
    "dask.compute": lambda client, t, u: dask.compute(t, u),
    "dask.persist": lambda client, t, u: [x.compute() for x in dask.persist(t, u)],
    "t.persist": lambda client, t, u: [t.persist().compute(), u.persist().compute()],
    "client.compute": lambda client, t, u: [f.result(PATIENCE_S) for f in client.compute([t, u])],
    "client.compute one": lambda client, t, u: [client.compute(x).result(PATIENCE_S) for x in (t, u)],
    "client.persist": lambda client, t, u: [x.compute() for x in client.persist([t, u])],
    "np.asarray": lambda client, t, u: [np.asarray(t), np.asarray(u)],
    "scheduler=": lambda client, t, u: [x.compute(scheduler=client) for x in (t, u)],
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_in_stays_placed(client: Client, problem: Any, way: str) -> None:
    t, u, *wanted = problem
    with watched_lowering() as (lowered, expected):
        found = within(lambda: WAYS_IN[way](client, t, u))
    for value, expectation in zip(found, wanted, strict=True):
        np.testing.assert_allclose(value, expectation)
    tasks = ran(client, clear=True)
    assert {r.key for r in tasks if r.kind == "gpu"} == {k for k, said in expected.items() if said.kind == "gpu"}
    assert all((r.tag or {"kind": "cpu"})["kind"] == r.kind for r in tasks)
    assert all(r.tag is not None for r in tasks if r.key in expected)
    assert any(r.kind == "gpu" for r in tasks)
    assert lowered


def test_without_a_client(problem: Any) -> None:
    """Dask's local scheduler: one device, so a pin to a GPU is an error that says what to do, and the rest works."""
    t, *_ = problem
    with pytest.raises(ValueError, match=r"pinned to 'gpu'.*emulated_gpus"):
        t.compute()
    a = np.arange(12.0).reshape(3, 4)
    x = tg.asarray(a, chunks=2)
    y = tg.sum((x @ x.T) ** 2)
    np.testing.assert_allclose(y.compute(), ((a @ a.T) ** 2).sum())
    np.testing.assert_allclose(tg.gradients(y, x).compute(), 4 * a @ a.T @ a)
    np.testing.assert_allclose(dask.compute(y, x)[1], a)


def test_dasks_own_local_cluster() -> None:
    """Workers without a profile are CPU workers; the plugin registers itself and everything runs."""
    a = np.random.default_rng(2).standard_normal((80, 80))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=False
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(recorder())
        x = tg.asarray(a, chunks=30)
        with watched_lowering() as (lowered, expected):
            found = within(lambda: tg.tanh(x @ x.T).compute())
        np.testing.assert_allclose(found, np.tanh(a @ a.T))
        kinds = check_placement(ran(client), lowered, expected)
        assert set(kinds) == {"cpu"}
        assert placement_errors(client) == 0


# -- workers that go and come ------------------------------------------------------------------------------------------


def slow_tiles(client: Client, seconds: float) -> None:
    """Make every tile of a product take so long, on workers of now and to come: there is time to act in its midst."""

    class SlowTiles(WorkerPlugin):
        name = "slow-tiles"

        def setup(self, worker: Any) -> None:
            import time

            import taskgraph.product_tasks

            real = taskgraph.product_tasks.gemm_panel

            def slow(*args: Any, **kwargs: Any) -> Any:
                time.sleep(seconds)
                return real(*args, **kwargs)

            taskgraph.product_tasks.gemm_panel = slow

    client.register_plugin(SlowTiles())


def long_product(pin: str | None, seed: int) -> tuple[Any, np.ndarray]:
    """A product of 36 tiles that stays cut as its operands lie, and its value."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((120, 60)), rng.standard_normal((60, 120))
    with tg.device(pin) if pin else contextlib.nullcontext():
        return tg.asarray(a, chunks=(20, 60)) @ tg.asarray(b, chunks=(60, 20)), a @ b


@pytest.fixture
def as_operands_lie() -> Iterator[None]:
    """Cut products as their operands lie: 36 tiles of little work are more than any plan would choose."""
    with mock.patch("taskgraph.grids.cuts", lambda p, slots: [(p.m_blocks, p.n_blocks, 1)]):
        yield


def tiles_by_worker(tasks: Sequence[Ran]) -> Counter[str]:
    return Counter(r.worker for r in tasks if str(r.key[0]).startswith("matmul"))


@pytest.mark.kills_workers
@pytest.mark.usefixtures("as_operands_lie")
def test_gpu_workers_are_killed_one_after_the_other(tmp_path: Path) -> None:
    """Without a nanny: the survivor takes over, then the CPU workers, then a worker that joins under the old name."""
    with DeviceCluster(tmp_path) as cluster:
        for name in FOUR:
            cluster.start_worker(name)
        client = cluster.default_client(*FOUR)
        slow_tiles(client, 0.1)
        t, wanted = long_product("gpu", 0)
        result = started(t.compute)
        until(lambda: tiles_by_worker(ran(client))["gpu-0"] >= 2, "gpu-0 has done tiles")
        until(lambda: at_work(client, "matmul")["gpu-0"] >= 1, "a tile is in work on gpu-0")
        cluster.kill("gpu-0")
        until(lambda: "gpu-0" not in workers(client), "the scheduler misses gpu-0")
        before = tiles_by_worker(ran(client, clear=True))
        until(lambda: tiles_by_worker(ran(client))["gpu-1"] >= 3, "the survivor goes on")
        assert tiles_by_worker(ran(client)).keys() <= {"gpu-1", "gpu-0"}
        until(lambda: at_work(client, "matmul")["gpu-1"] >= 1, "a tile is in work on gpu-1")
        cluster.kill("gpu-1")
        np.testing.assert_allclose(result.result(PATIENCE_S), wanted)
        after = tiles_by_worker(ran(client, clear=True))
        assert before["gpu-0"] >= 2
        assert after["cpu-0"] + after["cpu-1"] > 0, after

        # A worker joins in the middle of a product that no GPU is there for; from then on it is the GPU's.
        t, wanted = long_product(None, 1)
        machine = execute.machine_of(client)
        assert not machine.of_kind("gpu")
        np.testing.assert_allclose(within(t.compute), wanted)
        assert tiles_by_worker(ran(client, clear=True)).keys() <= {"cpu-0", "cpu-1"}

        cluster.start_worker("gpu-0")
        cluster.wait_for(client, "cpu-0", "cpu-1", "gpu-0")
        t, wanted = long_product("gpu", 2)
        result = started(t.compute)
        until(lambda: tiles_by_worker(ran(client))["gpu-0"] >= 1, "gpu-0 has tiles again")
        np.testing.assert_allclose(result.result(PATIENCE_S), wanted)
        assert tiles_by_worker(ran(client)).keys() == {"gpu-0"}
        assert placement_errors(client) == 0
        cluster.assert_quiet(allowed=DEATH)


@pytest.mark.usefixtures("as_operands_lie")
def test_a_worker_that_joins_gets_tiles(tmp_path: Path) -> None:
    """One of its kind was there; the new one is in no slot of the plan and still takes its share."""
    with DeviceCluster(tmp_path) as cluster:
        for name in ("cpu-0", "gpu-0"):
            cluster.start_worker(name)
        client = cluster.default_client("cpu-0", "gpu-0")
        slow_tiles(client, 0.2)
        products = [long_product(kind, 3 + n) for n, kind in enumerate(("gpu", "cpu"))]
        result = started(lambda: execute.compute([t.expr for t, _ in products]))
        until(lambda: min(at_work(client, "matmul").values()) >= 1, "both are at work")
        cluster.start_worker("cpu-1")
        cluster.start_worker("gpu-1")
        for value, (_, wanted) in zip(result.result(PATIENCE_S), products, strict=True):
            np.testing.assert_allclose(value, wanted)
        kinds = {(r.worker, (r.tag or {})["kind"]): None for r in ran(client) if str(r.key[0]).startswith("matmul")}
        assert set(kinds) == {(name, name[:3]) for name in FOUR}
        assert placement_errors(client) == 0
        cluster.assert_quiet()


@pytest.mark.logs_errors
@pytest.mark.usefixtures("as_operands_lie")
def test_a_killed_worker_of_our_local_cluster_comes_back() -> None:
    """Its nanny brings it back under its name, at a new address, and it gets tiles of the same product again."""
    with (
        LocalCluster(
            cpu_workers=1, threads_per_cpu_worker=1, gpus=0, emulated_gpus=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(recorder())
        client.wait_for_workers(3, timeout=PATIENCE_S)
        slow_tiles(client, 0.3)
        old = workers(client)["gpu-0"]
        t, wanted = long_product("gpu", 4)
        result = started(t.compute)
        until(lambda: at_work(client, "matmul")["gpu-0"] >= 1, "a tile is in work on gpu-0")
        os.kill(client.run(os.getpid, workers=[old])[old], signal.SIGKILL)
        until(lambda: workers(client).get("gpu-0", old) != old, "gpu-0 is back at another address")
        ran(client, clear=True)
        until(lambda: tiles_by_worker(ran(client))["gpu-0"] >= 1, "gpu-0 has tiles again")
        np.testing.assert_allclose(result.result(PATIENCE_S), wanted)
        assert tiles_by_worker(ran(client)).keys() <= {"gpu-0", "gpu-1"}
        assert placement_errors(client) == 0


# -- complex numbers ---------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_power_spectrum_of_a_complex_product(client: Client) -> None:
    """By Parseval it is n * sum(|c|^2) of c = a @ b; its gradient by c is 2 n conj(c), pulled back as it is."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((60, 60)) + 1j * rng.standard_normal((60, 60)) for _ in "ab")
    x, y = tg.asarray(a, chunks=20), tg.asarray(b, chunks=20)
    with tg.device("gpu"):
        c = x @ y
    loss = tg.sum(tg.abs(tg.fft.fft(c, axis=0)) ** 2)
    value, by_x, by_y = tg.compute(loss, *tg.gradients(loss, [x, y]))
    by_c = 2 * 60 * (a @ b).conj()
    np.testing.assert_allclose(value, 60 * np.sum(np.abs(a @ b) ** 2))
    np.testing.assert_allclose(by_x, by_c @ b.T)
    np.testing.assert_allclose(by_y, a.T @ by_c)
