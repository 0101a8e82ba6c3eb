"""Execution: from expressions to values, on a cluster or on Dask's local scheduler."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import dask.array as da
import dask.threaded
import numpy as np
from dask.array.core import concatenate3
from dask.base import get_scheduler

from taskgraph import connection, lineage, returning
from taskgraph.expr import Chunks, Expr, bind, pinned, serial, substitute, topological
from taskgraph.lineage import Behind, Kept
from taskgraph.lower import Lowered, Output, host_copies, lower
from taskgraph.lying import lying
from taskgraph.machine import Machine
from taskgraph.passes import simplify
from taskgraph.plan import Plan
from taskgraph.plan import plan as plan_products
from taskgraph.prediction import Prediction
from taskgraph.primitives import find
from taskgraph.provenance import provenance
from taskgraph.reassociate import flops, reassociate
from taskgraph.simulate import simulate as predict
from taskgraph.spec import validate
from taskgraph.trial import soonest
from taskgraph.upward import resolve

#: What runs a collection of ours where no client is in force.
local_get = dask.threaded.get


# -- from expressions to a Dask graph ----------------------------------------------------------------------------------


def with_values(exprs: Sequence[Expr], fed: Mapping[Expr, Expr] | None = None) -> tuple[Expr, ...]:
    """The expressions with the values of placeholders (`fed`), of variables and of checkpoints in their places.

    Raises ValueError, naming it, for a placeholder that is needed and not fed, and for a checkpoint of another value.
    """
    values, has_marks = dict(fed or {}), False
    for node in topological(exprs, until=values):
        if node in values:
            continue
        has_marks = has_marks or node.op.name == "saved"
        if node.op.name == "variable":
            values[node] = node.params["state"].value.expr
        elif node.op.name == "placeholder":
            name = node.params["name"]
            raise ValueError(
                f"placeholder {name!r} ({node.dtype}, {node.shape}) was not fed; "
                f"pass its value to Session.run(..., feed_dict={{{name}: ...}})"
            )
    found = substitute(exprs, values) if values else tuple(exprs)
    return resolve("from_files")(found) if has_marks else found


def planned(exprs: Sequence[Expr], machine: Machine) -> Plan:
    """The plan of some expressions on a machine: what a run follows."""
    return plan_products(rewritten(exprs), machine, soonest)


def rewritten(exprs: Sequence[Expr]) -> tuple[Expr, ...]:
    """The expressions with all that is done to them before the plan."""
    return validate(reassociate(validate(simplify(validate(exprs)))))


def planned_chunks(expr: Expr, scheduler: Any = None) -> Chunks:
    """The blocks in which a run would make an expression: its plan may cut a product otherwise."""
    return planned(with_values((expr,)), machine_of(client_of(scheduler))).roots[0].chunks


def plan(what: Any, machine: Machine) -> Plan:
    """The plan of a tensor, or of a list of them: grid and workers of every product, predicted seconds and bytes.

    Nothing runs, and the machine may be made up. A run on that machine follows the same plan. Raises TypeError for what
    is no tensor, ValueError where one is pinned to a device that the machine lacks.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0, threads=4), tg.Device("gpu", 2**34, 9000.0)])
    >>> list(tg.plan(tg.randn(8192, 8192) @ tg.randn(8192, 8192), m).tiles)
    ['gpu-0']
    """
    items = what if isinstance(what, list | tuple) else [what]
    for x in items:
        if not isinstance(getattr(x, "expr", None), Expr):
            raise TypeError(f"plan: needs a tensor or a list of tensors, got {type(x).__name__}")
    return planned([x.expr for x in items], machine)


def simulate(what: Any, machine: Machine | None = None) -> Prediction:
    """Predict a run of a tensor, of a list of them, or of a plan: makespan, bytes, memory, timeline, and their bounds.

    Nothing runs. machine: made up, or read from a file; None for the plan's own, or else for the machine that a run now
    would use. Kept data lie where they are, if that is the cluster of the client in force, and otherwise in equal
    shares. Raises what `plan` raises.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0, threads=4), tg.Device("gpu", 2**34, 9000.0)])
    >>> tg.simulate(tg.randn(8192, 8192) @ tg.randn(8192, 8192), m).jobs["gpu-0"] > 0
    True
    """
    if isinstance(what, Plan) and machine is not None:
        raise TypeError("simulate: a plan is for its own machine; give the tensor to plan it for another")
    client = client_of()
    found = what if isinstance(what, Plan) else plan(what, machine or machine_of(client))
    return predict(found, lying(found.roots, client, found.machine))


def lowered(exprs: Sequence[Expr], machine: Machine, keep: Sequence[bool] = ()) -> Lowered:
    """The Dask graph of some expressions on a machine; see `lower.lower` for `keep`."""
    found = planned(exprs, machine)
    validate(found.roots)
    return lower(found, keep)


def lowered_for_dask(expr: Expr, known: Lowered | None = None) -> Lowered:
    """The Dask graph that Dask gets when it computes a tensor as a collection: for the client in force.

    known: what this function gave for the expression before; given again unless a variable has another value now, or
    another client is in force. (Dask asks several times for one run, and must get one answer.)
    """
    (now,) = with_values((expr,))
    client = client_of()
    where = None
    if client:
        connection.check(client)
        where = client.scheduler.address
    if known is not None and known.origin == (now, where):
        return known
    return replace(lowered((now,), machine_of(client)), origin=(now, where))


# -- where it runs -----------------------------------------------------------------------------------------------------


def client_of(scheduler: Any = None) -> Any:
    """The `distributed.Client` that Dask would use now, or for what a user gave it as `scheduler`; None where that is a
    local scheduler."""
    client = getattr(get_scheduler(scheduler=scheduler), "__self__", None)
    return client if client is not None and hasattr(client, "scheduler_info") else None


_ready: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


#: Plans are made with the rates that this machine has, where its devices are there (`plans_as_on`).
_before: ContextVar[Machine | None] = ContextVar("taskgraph_machine", default=None)


def plans_as_on(machine: Machine | None) -> Machine | None:
    """From now on plan with the rates of that machine's devices, measured anew or not; gives what was in force.

    A worker that comes again, on a machine that is busy, measures other rates, and another plan may round otherwise.
    """
    before = _before.get()
    _before.set(machine)
    return before


def machine_of(client: Any) -> Machine:
    """The machine behind a client (this process where None), made ready for our tasks on first use.

    Ready means: scheduler and workers have this package in this version, and the scheduler has our plugins.
    Raises RuntimeError with what to install where that is not so, LostScheduler without a connection.
    """
    before, found = _before.get(), Machine.local() if client is None else _machine_behind(client)
    return found if before is None else found.as_known(before)


def _machine_behind(client: Any) -> Machine:
    if client.asynchronous:
        raise TypeError("an asynchronous client cannot be asked for its machine here; use a synchronous one")
    with connection.losses_named(client):
        if _ready.get(client) != client.scheduler.address:
            _check_versions(client)
            client.register_plugin(resolve("TilePlacement")())
            client.register_plugin(resolve("KeptValues")())
            _ready[client] = client.scheduler.address
        return returning.machine_behind(client)


def _check_versions(client: Any) -> None:
    from taskgraph import __version__ as ours

    found = client.get_versions(check=False, packages=["dask-taskgraph"])
    nodes = {"the scheduler": found["scheduler"], **{f"worker {a}": v for a, v in found["workers"].items()}}
    for who, versions in nodes.items():
        theirs = versions["packages"].get("dask-taskgraph") if versions else None
        if theirs != ours:
            has = f"has dask-taskgraph {theirs}" if theirs else "lacks dask-taskgraph"
            raise RuntimeError(f"{who} {has}, the client has {ours}: run `pip install dask-taskgraph=={ours}` there")


# -- values ------------------------------------------------------------------------------------------------------------


def assemble(blocks: Any, ndim: int) -> Any:
    """One array of its nested blocks, which is the caller's to change; a NumPy scalar where it has no dimensions."""
    if ndim == 0:
        return np.asarray(blocks[0])[()]
    only: Any = blocks
    for _ in range(ndim):
        if len(only) > 1:
            return concatenate3(blocks)
        only = only[0]
    return _own(np.asarray(only))


def _own(x: np.ndarray) -> np.ndarray:
    """The array itself where nobody else can see its values; a copy where it is a view or must not change."""
    base: Any = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    # what came through the network stands on a buffer of its own
    alone = base is x or base.base is not None
    return x if x.flags.writeable and alone else x.copy()


def compute(exprs: Sequence[Expr], scheduler: Any = None, **kwargs: Any) -> list[Any]:
    """The values of some expressions, as NumPy arrays, in one run: what they share is computed once."""
    return run(with_values(exprs), [False] * len(exprs), scheduler, **kwargs)


def persist(exprs: Sequence[Expr], scheduler: Any = None, **kwargs: Any) -> list[Expr]:
    """The same expressions with their blocks computed and kept where they were computed."""
    return run(with_values(exprs), [True] * len(exprs), scheduler, **kwargs)


def run(
    exprs: Sequence[Expr],
    keep: Sequence[bool],
    scheduler: Any = None,
    settle: bool = False,
    names: Sequence[str | None] = (),
    **kwargs: Any,
) -> list[Any]:
    """Run some expressions at once: each gives its values or, where `keep`, an expression of blocks left in place.

    settle: wait for blocks that are left on a cluster's workers, too, and raise what any of them raised. names: of the
    variables that get the results, for error messages.

    What is marked by `Tensor.checkpoint` is written before, in runs of its own. Raises LostValues where kept values
    that the expressions need are lost, LostScheduler where the scheduler is.
    """
    if not exprs:
        return []
    if any(node.op.name == "saved" for node in topological(exprs)):
        exprs = resolve("through_files")(exprs, scheduler, **kwargs)
    get: Any = get_scheduler(scheduler=scheduler) or local_get
    client = client_of(scheduler)
    machine = machine_of(client)
    graph = lowered(exprs, machine, keep if machine.is_cluster else ())
    outputs: Sequence[Output] = graph.outputs
    behind = Behind()
    if not machine.is_cluster:
        found = get(graph.graph.to_dict(), graph.keys, **kwargs)
    else:
        behind = lineage.behind(exprs)
        with connection.losses_named(client), lineage.losses_named(client, exprs):
            futures = client.get(graph.graph, graph.keys, sync=False, **kwargs)
            found = _collected(client, futures, keep, settle)
            del futures
            if behind.is_due and any(keep):
                found, outputs, behind = _cut(client, found, outputs, exprs, keep, behind)
    results = _results(found, outputs, exprs, keep, behind, names)
    for e, value in zip(exprs, results, strict=True):
        if np.shape(value) != e.shape and not isinstance(value, Expr):
            raise AssertionError(f"{e!r} gave an array of shape {np.shape(value)}; please report this")
    return results


def _cut(
    client: Any,
    found: Sequence[Any],
    outputs: Sequence[Output],
    exprs: Sequence[Expr],
    keep: Sequence[bool],
    behind: Behind,
) -> tuple[Sequence[Any], Sequence[Output], Behind]:
    """What a run has left in place, without its history; everything as it was where that cannot be done.

    What was kept before the run, and is kept again, has its own history.
    """
    grown = [kept and lineage.kept(e) is None for kept, e in zip(keep, exprs, strict=True)]
    old = {k: f for blocks, o, g in zip(found, outputs, grown, strict=True) if g for k, f in _pairs(o.keys, blocks)}
    fresh = lineage.cut(client, old)
    if not fresh:
        return found, outputs, behind
    names = {key[0]: future.key[0] for key, future in fresh.items()}
    return (
        [_each(o.keys, fresh.__getitem__) if g else b for b, o, g in zip(found, outputs, grown, strict=True)],
        [replace(o, name=names[o.name]) if g else o for o, g in zip(outputs, grown, strict=True)],
        lineage.CUT,
    )


def _results(
    found: Sequence[Any],
    outputs: Sequence[Output],
    exprs: Sequence[Expr],
    keep: Sequence[bool],
    behind: Behind,
    names: Sequence[str | None],
) -> list[Any]:
    made: dict[str, dict[int | None, str]] = {}
    digests = provenance(e for e, kept in zip(exprs, keep, strict=True) if kept)
    for out, e, kept in zip(outputs, exprs, keep, strict=True):
        if kept:
            made.setdefault(out.name, {})[out.part] = digests[e]
    called: dict[str, tuple[str, ...]] = {}
    for out, name in zip(outputs, names or [None] * len(outputs), strict=True):
        if name is not None:
            called[out.name] = (*called.get(out.name, ()), name)
    steps: dict[str, Expr] = {}
    results: list[Any] = []
    for blocks, out, e, kept in zip(found, outputs, exprs, keep, strict=True):
        about = steps, behind, called.get(out.name, ()), made.get(out.name, {})
        results.append(_kept(blocks, out, e, *about) if kept else assemble(blocks, e.ndim))
    return results


def _collected(client: Any, futures: list[Any], keep: Sequence[bool], settle: bool) -> list[Any]:
    from distributed import futures_of

    try:
        gathered = client.gather([f for f, kept in zip(futures, keep, strict=True) if not kept])
        if client.scheduler.address.startswith("inproc"):  # these are the workers' own arrays
            gathered = _copied(gathered)
        values = iter(gathered)
        found = [f if kept else next(values) for f, kept in zip(futures, keep, strict=True)]
        for f in futures_of([f for f, kept in zip(futures, keep, strict=True) if kept and settle]):
            if f.exception() is not None or f.status == "cancelled":  # waits, and moves no data
                f.result()  # raises it with the task's traceback
    except BaseException:
        # the client keeps the exception, its traceback our frames, and they the futures: without this, for ever
        for f in futures_of(futures):
            f.release()
        raise
    return found


def _copied(nested: Any) -> Any:
    return [_copied(x) for x in nested] if isinstance(nested, list) else nested.copy()


def _kept(
    blocks: Any,
    output: Output,
    expr: Expr,
    steps: dict[str, Expr],
    behind: Behind,
    names: tuple[str, ...],
    made: Mapping[int | None, str],
) -> Expr:
    """An expression of what was left in place; `steps` holds those tasks' results of which several are parts."""
    graph = dict(_pairs(output.keys, blocks))
    for block in graph.values():
        if isinstance(block, np.ndarray):
            block.flags.writeable = False  # `assemble` gives copies of it
    before = lineage.kept(expr)
    if before is not None:
        behind = Behind(before.depth, before.bases)
    if output.part is None:
        return persisted(graph, output, expr.device, behind, names, made)
    if output.name not in steps:
        steps[output.name] = persisted(graph, Output(output.name, (), np.dtype(float)), None, behind, names, made)
    return bind(find("part"), steps[output.name], index=output.part, shape=expr.shape, dtype=expr.dtype)


def _each(keys: Any, value: Any) -> Any:
    return [_each(k, value) for k in keys] if isinstance(keys, list) else value(keys)


def _pairs(keys: Any, blocks: Any) -> list[tuple[Any, Any]]:
    """Each key beside its block; keys nest in lists, blocks in whatever the scheduler gives."""
    if not isinstance(keys, list):
        return [(keys, blocks)]
    return [pair for k, b in zip(keys, blocks, strict=True) for pair in _pairs(k, b)]


def persisted(
    graph: Mapping[Any, Any],
    output: Output,
    device: str | None = None,
    behind: Behind = Behind(),  # noqa: B008 (it is frozen)
    names: tuple[str, ...] = (),
    made: Mapping[int | None, str] | None = None,
) -> Expr:
    """An expression of blocks that exist: futures of a cluster, or arrays."""
    array = da.Array(dict(graph), output.name, output.chunks, dtype=output.dtype)
    with pinned(device):
        # kept twice, in two clusters perhaps, is two expressions
        token = f"{output.name}-kept-{serial()}"
        return bind(find("dask"), array=Kept(array, token, behind.depth, behind.bases, names, made))


def persisted_from(
    graph: Lowered, device: str | None
) -> tuple[Output, str | None, Behind, tuple[str, ...], dict[int | None, str]]:
    """What `persisted` takes for a tensor that Dask persists with this graph, but for the blocks.

    (Dask gives no place to cut a history, but the next run of ours can, and so must know of it.)
    """
    (expr, _) = graph.origin
    return graph.outputs[0], device, lineage.behind((expr,)), (), {None: provenance((expr,))[expr]}


def to_dask(expr: Expr) -> da.Array:
    """A Dask array of the tasks of an expression."""
    graph = lowered_for_dask(expr)
    out = graph.outputs[0]
    name = f"host-{out.name}"  # Dask's tasks take arrays, and a tile of ours may lie on a device
    tasks = {**graph.graph.to_dict(), **host_copies(name, out.name, out.chunks)}
    return da.Array(tasks, name, out.chunks, dtype=out.dtype)


def explain(exprs: Sequence[Expr], machine: Machine | None = None) -> str:
    """What a run would do: the plan of the products, whether they stand as written, the tasks of each device class."""
    values = with_values(exprs)
    graph = lowered(values, machine or machine_of(client_of()))
    from taskgraph.show import tasks_per_kind

    counts = ", ".join(f"{n} on {kind} workers" for kind, n in sorted(tasks_per_kind(graph).items()))
    as_written, now = flops(simplify(values)), flops(graph.plan.roots)
    reordered = f"\n  products reassociated: {as_written / 1e9:.3g} GFLOP as written, {now / 1e9:.3g} to do"
    return f"{graph.plan.summary()}{reordered if now < as_written else ''}\n  tasks: {counts}"
