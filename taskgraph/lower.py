"""Lowering: a planned graph becomes Dask layers; the only file that knows HighLevelGraph.

Design note. Products and groups of elementwise work become tasks of ours; everything else is lowered onto dask.array,
one operation at a time: the operation gets stand-ins for its inputs (arrays of the right name, blocks and type whose
graph is empty), and what it adds to their graphs are its layers. So a chain of n operations costs n, not n^2, and every
layer is known to belong to one expression and gets that expression's annotation. After each operation, Dask's shape,
type and blocks are compared with ours: where they differ, one of the two rules is wrong, and that must not run.

No optimizer of Dask's may see these layers: fusing drops annotations, and with them the placement.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask
import dask.array as da
from dask._task_spec import Task, TaskRef, convert_legacy_graph
from dask.base import get_annotations
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from taskgraph.chunks import numblocks, offsets
from taskgraph.expr import Chunks, DType, Expr, digest, topological
from taskgraph.gathering import parts_of
from taskgraph.machine import Machine
from taskgraph.passes import Group, align, cut_in_place, group, is_number, is_small
from taskgraph.plan import SPAN, TAG, Plan, ProductPlan, TaskTag
from taskgraph.product_tasks import Epilogue, Key, needed_by, product_layers
from taskgraph.program import compile_nodes, number
from workers.device_tile import part_of, run, to_host


@dataclass(frozen=True)
class Output:
    """Where the blocks of a root are: their keys are (name, i, j, ...).

    part: the root is this item of the tuple that the one key (name,) holds.
    """

    name: str
    chunks: Chunks
    dtype: DType
    part: int | None = None

    @property
    def keys(self) -> list[Any]:
        """The keys as Dask nests them, one list an axis."""
        return _nested(self.name, numblocks(self.chunks) if self.part is None else ())


@dataclass(frozen=True)
class Lowered:
    """The Dask graph of some expressions, where their blocks are in it, and the plan that it follows.

    origin: what it was made for, where somebody keeps it.
    """

    graph: HighLevelGraph
    outputs: tuple[Output, ...]
    plan: Plan
    origin: Any = None

    @property
    def keys(self) -> list[list[Any]]:
        return [o.keys for o in self.outputs]


def _nested(name: str, counts: tuple[int, ...], at: tuple[int, ...] = ()) -> list[Any]:
    if not counts:
        return [(name, *at)]
    if len(counts) == 1:
        return [(name, *at, i) for i in range(counts[0])]
    return [_nested(name, counts[1:], (*at, i)) for i in range(counts[0])]


@dataclass
class _Layers:
    """The layers made so far, and the name under which every expression's blocks are found."""

    plan: Plan
    layers: dict[str, Any] = field(default_factory=dict)
    dependencies: dict[str, set[str]] = field(default_factory=dict)
    names: dict[Expr, str] = field(default_factory=dict)
    near: dict[Expr, Callable[[tuple[int, ...]], str | None]] = field(default_factory=dict)
    in_place: set[Expr] = field(default_factory=set)

    def add(
        self,
        name: str,
        tasks: dict[Key, Any],
        needs: set[str],
        tag: TaskTag | Callable[[Key], TaskTag],
        is_urgent: bool = False,
    ) -> None:
        first = {"priority": 1} if is_urgent else {}
        self.layers[name] = MaterializedLayer(tasks, annotations={**_span(), **first, TAG: tag})
        self.dependencies[name] = needs

    def name(self, node: Expr, *made_of: Any) -> str:
        """The first part of the keys of `node`'s blocks, which nothing but the very same tasks may bear: what a task
        computes itself and what it takes from others depends on the graph around it (grouping, panels, one task for
        all), and Dask would mix the two up where a key of that name is still alive."""
        self.names[node] = name = f"{node.label}-{digest(node.token, *made_of)}"
        return name

    def ref(self, node: Expr, index: tuple[int, ...]) -> TaskRef:
        return TaskRef((self.names[node], *index))


def lower(plan: Plan, keep: Sequence[bool] = ()) -> Lowered:
    """The Dask graph of a planned graph; every task carries its `TaskTag` as the annotation `TAG`.

    keep: for each root, whether it stays on the workers. One that does may be left as a part of its task's result,
    where one task makes several: to take it out would cost a task of its own.
    """
    plan = align(plan)
    groups = group(plan)
    done = _Layers(plan, near=near_tiles(plan), in_place=cut_in_place(plan))
    # Dask's peer-to-peer rechunking places its outputs itself; as plain tasks they are placed like all others.
    with dask.config.set({"array.rechunk.method": "tasks"}):
        if is_small(plan, groups):
            parts = _one_task(done)
        else:
            parts = {}
            for g in groups:
                _lower_group(done, g)
    outputs = []
    for root, kept in zip(plan.roots, keep or [False] * len(plan.roots), strict=True):
        part = parts.get(root) if kept else None
        outputs.append(part or Output(done.names[root], root.chunks, root.dtype))
    graph = HighLevelGraph(done.layers, done.dependencies)
    return Lowered(graph.cull(set(flatten([o.keys for o in outputs]))), tuple(outputs), plan)


def _lower_group(done: _Layers, g: Group) -> None:
    node = g.result
    if g.product is not None:
        _lower_product(done, g, g.product, done.plan.products[g.product])
    elif node.op.name == "part":
        _lower_part(done, node)
    elif node in done.in_place:
        _lower_in_place(done, node)
    elif node.op.kind == "array":
        _lower_onto_dask(done, node)
    elif len(g.nodes) == 1 and node.op.name == "constant":
        _lower_constant(done, node)
    else:
        _lower_blocks(done, g)


def _span() -> dict[str, Any]:
    return {} if "span" in get_annotations() else {"span": SPAN}


def _tag(done: _Layers, node: Expr) -> TaskTag:
    tag = TaskTag(kind=done.plan.kind_of(node))
    if node.op.name != "dask" and node.device is not None and ":" in node.device:
        tag["slot"], tag["pinned"] = done.plan.machine.of_kind("gpu")[int(node.device[4:])].name, True
    return tag


def near_tiles(plan: Plan) -> dict[Expr, Callable[[tuple[int, ...]], str | None]]:
    """For every operand of a product, the worker whose tile needs a block; of several products, the first. For every
    other result, its worker if it is made of nothing: each holds a share of it, in order, so that two that are cut
    alike lie alike, and a product of them moves no more than it must."""
    found: dict[Expr, Callable[[tuple[int, ...]], str | None]] = {}
    for node, planned in plan.products.items():
        for side, x in enumerate(node.inputs):
            if x not in found and len(set(planned.slots)) > 1:
                found[x] = needed_by(node, planned, side)
    for root in plan.roots:
        if root not in found and (worker := _in_order(root, plan.machine)):
            found[root] = worker
    return found


def _in_order(x: Expr, machine: Machine) -> Callable[[tuple[int, ...]], str | None] | None:
    """The worker of a block where every thread has an equal share of them; None where there are fewer than workers."""
    homes, blocks = machine.of_kind(machine.home), numblocks(x.chunks)
    count = math.prod(blocks)
    if len(homes) < 2 or count < len(homes):
        return None
    threads = [d.name for d in homes for _ in range(d.threads)]

    def worker(index: tuple[int, ...]) -> str:
        at = 0
        for i, n in zip(index, blocks, strict=True):
            at = at * n + i
        return threads[at * len(threads) // count]

    return worker


def _made_near(done: _Layers, node: Expr) -> TaskTag | Callable[[Key], TaskTag]:
    """The tags of tasks that need nothing: they may as well run where a tile needs what they make. (A hint: another
    worker without work of its own takes them, as it takes tiles.)"""
    tag, near = _tag(done, node), done.near.get(node)
    kinds = {d.name: d.kind for d in done.plan.machine.devices}
    if near is None or "slot" in tag:
        return tag

    def of(key: Key) -> TaskTag:
        worker = near(key[1:])
        return TaskTag(**tag, near=worker) if worker is not None and kinds.get(worker) == tag["kind"] else tag

    return of


# -- elementwise groups and sources ------------------------------------------------------------------------------------


def _blocks(chunks: Chunks) -> Iterator[tuple[int, ...]]:
    return itertools.product(*[range(len(c)) for c in chunks])


def _place(chunks: Chunks) -> Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]:
    starts = [offsets(c) for c in chunks]
    return lambda index: (
        tuple([s[i] for s, i in zip(starts, index, strict=True)]),
        tuple([c[i] for c, i in zip(chunks, index, strict=True)]),
    )


def _lower_blocks(done: _Layers, g: Group) -> None:
    """One task a block: the group's program on the blocks that it takes from elsewhere."""
    node = g.result
    program, arguments = compile_nodes(node.label, g.nodes, [node])
    makers = [_argument(done, a) for a in arguments]
    needs = _needs(done, arguments)
    name = done.name(node, [n.token for n in g.nodes], sorted(needs))
    tasks: dict[Key, Any] = {}
    for index in _blocks(node.chunks):
        key = (name, *index)
        tasks[key] = Task(key, run, program, *[make(index) for make in makers])
    done.add(name, tasks, needs, _tag(done, node) if needs else _made_near(done, node))


def _argument(done: _Layers, a: Expr | Chunks) -> Callable[[tuple[int, ...]], Any]:
    """What a program's argument is for the block at an index."""
    if not isinstance(a, Expr):
        return _place(a)
    if is_number(a):
        value = number(a)
        return lambda index: value
    return lambda index: done.ref(a, _broadcast_index(a, index))


def _needs(done: _Layers, arguments: list[Expr | Chunks]) -> set[str]:
    return {done.names[a] for a in arguments if isinstance(a, Expr) and not is_number(a)}


def _broadcast_index(x: Expr, index: tuple[int, ...]) -> tuple[int, ...]:
    own = index[len(index) - x.ndim :]
    return tuple([i if len(c) > 1 else 0 for i, c in zip(own, x.chunks, strict=True)])


def _lower_in_place(done: _Layers, node: Expr) -> None:
    """Parts of blocks, each taken where its block lies."""
    (base,) = node.inputs
    name, tag = done.name(node, done.names[base]), TaskTag(kind=done.plan.machine.home, stays=True)
    tasks = {
        (name, *index): Task((name, *index), part_of, done.ref(base, block), part)
        for index, block, part, _ in parts_of(node)
    }
    done.add(name, tasks, {done.names[base]}, tag, is_urgent=True)


def _lower_constant(done: _Layers, node: Expr) -> None:
    """Data of the user's, which travel with the graph: a block each."""
    place, value = _place(node.chunks), node.params["value"].value
    name = done.name(node)
    tasks: dict[Key, Any] = {}
    for index in _blocks(node.chunks):
        start, shape = place(index)
        block = value[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
        key = (name, *index)
        # A task also on a CPU, not bare data: these lie in the graph's message at any byte, and every product of them
        # would copy them to where BLAS takes them as they lie (0.4 s of 6 s at n = 8192).
        tasks[key] = Task(key, run, _held, block)
    done.add(name, tasks, set(), _made_near(done, node))


def _held(xp: Any, block: Any) -> Any:
    return block


def _one_task(done: _Layers) -> dict[Expr, Output]:
    """A graph of little work as one task and, where it has several roots, one to take each out of the task's result.

    Gives, where there are several, which part of that result each is.
    """
    nodes = topological(done.plan.roots)
    for n in nodes:
        if n.op.name == "dask":
            _lower_onto_dask(done, n)
    roots = [r for r in dict.fromkeys(done.plan.roots) if r.op.name != "dask"]
    if not roots:
        return {}
    program, arguments = compile_nodes(roots[0].label, [n for n in nodes if n.op.name != "dask"], roots)
    origin = (0,) * max((n.ndim for n in nodes), default=0)
    args = [_argument(done, a)(origin[: a.ndim if isinstance(a, Expr) else len(a)]) for a in arguments]
    tag = TaskTag(kind=done.plan.machine.home)
    needs = _needs(done, arguments)
    step = f"{roots[0].label}-step-{digest([r.token for r in roots], sorted(needs))}"
    keys: dict[Expr, Key] = {r: (done.name(r, step), *(0,) * r.ndim) for r in roots}
    if len(roots) == 1:
        key = keys[roots[0]]
        done.add(key[0], {key: Task(key, run, program, *args)}, needs, tag)
        return {}
    done.add(step, {(step,): Task((step,), run, program, *args)}, needs, tag)
    for at, key in enumerate(keys.values()):
        done.add(key[0], {key: Task(key, operator.getitem, TaskRef((step,)), at)}, {step}, tag)
    return {r: Output(step, r.chunks, r.dtype, part=at) for at, r in enumerate(roots)}


def _lower_part(done: _Layers, node: Expr) -> None:
    """A root that was left as a part of a task's result, taken out."""
    (step,) = node.inputs
    name = done.name(node)
    key = (name, *(0,) * node.ndim)
    task = Task(key, operator.getitem, done.ref(step, ()), node.params["index"])
    done.add(name, {key: task}, {done.names[step]}, _tag(done, node))


# -- products ----------------------------------------------------------------------------------------------------------


def _lower_product(done: _Layers, g: Group, node: Expr, planned: ProductPlan) -> None:
    """The tasks of a product and its epilogue, under a name that says how it is cut, summed and finished."""
    a, b = node.inputs
    operands = [
        None if read else done.names[x.inputs[0] if gathers else x]
        for x, read, gathers in zip((a, b), planned.streamed, planned.gathers, strict=True)
    ]
    needs = [n for n in operands if n is not None]
    sums = [planned.chains(tile) for tile in range(len(planned.slots) // planned.panels)] if planned.panels > 1 else []
    how = planned.streamed, planned.gathers
    cut: list[Any] = [sorted(set(needs)), how, planned.grid.k, planned.strips, sums]
    epilogue = _epilogue(done, g, node) if g.behind else None
    if epilogue is None:
        name = done.name(node, *cut)
    else:  # named after the product, for Dask's pages
        own = digest(g.result.token, [n.token for n in g.nodes], sorted(epilogue.needs), *cut)
        name = done.names[g.result] = f"{node.label}-{own}"
    home = done.plan.machine.home
    for layer in product_layers(node, replace(planned, name=name), name, operands[0], operands[1], epilogue, home):
        done.add(layer.name, layer.tasks, layer.needs, layer.tags.__getitem__, layer.is_urgent)


def _epilogue(done: _Layers, g: Group, product: Expr) -> Epilogue:
    program, arguments = compile_nodes(g.result.label, g.behind, [g.result])
    others = [a for a in arguments if a is not product]
    makers = [_argument(done, a) for a in others]
    return Epilogue(program, arguments.index(product), makers, _needs(done, others))


# -- everything else: dask.array ---------------------------------------------------------------------------------------


def _stand_in(name: str, x: Expr) -> da.Array:
    empty = HighLevelGraph({name: MaterializedLayer({})}, {name: set()})
    return da.Array(empty, name, x.chunks, dtype=x.dtype)


def _lower_onto_dask(done: _Layers, node: Expr) -> None:
    tag = _tag(done, node)
    inputs = []
    for x in node.inputs:
        name = done.names[x]
        if tag["kind"] == "gpu" and (x.op.kind != "array" or x.op.name == "dask"):
            name = _on_host(done, x, tag)
        inputs.append(_stand_in(name, x))
    assert node.op.lower is not None, node
    result = node.op.lower(da, *inputs, **node.params)
    _check(node, result)
    stand_ins = {x.name for x in inputs}
    added = {name: layer for name, layer in result.dask.layers.items() if name not in stand_ins}
    needs = {name: set(result.dask.dependencies[name]) for name in added}
    done.names[node] = result.name
    if node.device is not None and node.op.name != "dask" and result.name in added:
        suffix = digest(node.device)
        added, needs = _renamed(added, needs, suffix, [k for x in inputs for k in flatten(x.__dask_keys__())])
        done.names[node] = f"{result.name}-{suffix}"
    for name, layer in added.items():
        layer = copy.copy(layer)  # it may be the user's own, in `from_dask`
        layer.annotations = {**_span(), **(layer.annotations or {}), TAG: tag}
        done.layers[name] = layer
    done.dependencies.update(needs)


def _renamed(
    layers: Mapping[str, Any], needs: Mapping[str, set[str]], suffix: str, outside: Sequence[Key]
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """The layers under other names: Dask names them by what they compute, and the same under another pin is another
    task, which must run elsewhere. `outside`: the keys of blocks that they take."""
    legacy = {k: t for layer in layers.values() for k, t in dict(layer).items()}
    tasks = convert_legacy_graph(legacy, {*legacy, *outside})

    def new(key: Key) -> Key:
        return (f"{key[0]}-{suffix}", *key[1:]) if isinstance(key, tuple) else f"{key}-{suffix}"

    keys = {k: new(k) for k in tasks}
    renamed: dict[str, Any] = {}
    for name, layer in layers.items():
        own = {keys[k]: tasks[k].substitute(keys, key=keys[k]) for k in dict(layer)}
        renamed[f"{name}-{suffix}"] = MaterializedLayer(own)
    return renamed, {
        f"{name}-{suffix}": {f"{n}-{suffix}" if n in layers else n for n in of} for name, of in needs.items()
    }


def _on_host(done: _Layers, x: Expr, tag: TaskTag) -> str:
    """The blocks of `x` in the host memory of the GPU-pinned worker where a dask.array operation will use them."""
    source = done.names[x]
    name = f"host-{digest(source, tag)}"
    done.add(name, host_copies(name, source, x.chunks), {source}, tag)
    return name


def host_copies(name: str, source: str, chunks: Chunks) -> dict[Key, Any]:
    """A task for each block, which gives it as a NumPy array, from whatever device it is on."""
    return {(name, *i): Task((name, *i), to_host, TaskRef((source, *i))) for i in _blocks(chunks)}


def _check(node: Expr, result: da.Array) -> None:
    ours, dasks = (node.shape, node.dtype, node.chunks), (result.shape, result.dtype, result.chunks)
    if ours != dasks:
        raise AssertionError(
            f"{node.op.name}: the shape rule says {ours}, Dask made {dasks}; please report this with the expression"
        )


def array_of_tasks(
    name: str, tasks: Mapping[Key, Any], inputs: Sequence[Any], chunks: Chunks, dtype: DType
) -> da.Array:
    """A Dask array of tasks that take blocks of `inputs`: for a row's lowering that `dask.array` has no operation for.

    tasks: one at (name, i, j, ...) for every block, and whatever these need besides.
    """
    graph = HighLevelGraph.from_collections(name, MaterializedLayer(dict(tasks)), dependencies=list(inputs))
    return da.Array(graph, name, chunks, dtype=dtype)
