"""Passes: graph to graph, exact, before the plan and behind it; and the grouping of elementwise work into tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from taskgraph.chunks import aligned, broadcast, is_single
from taskgraph.expr import Expr, bind, consumers, labelled, pinned, rewrite, topological, with_inputs
from taskgraph.gathering import lies_within
from taskgraph.layout import relayout
from taskgraph.plan import Plan, ProductPlan

# -- simplify ----------------------------------------------------------------------------------------------------------


def simplify(roots: Sequence[Expr]) -> tuple[Expr, ...]:
    """Drop what does nothing (markers, factors of one, reshapes of reshapes) and turn transposes of a product's
    operands into its flags. Values keep every bit."""
    return rewrite(roots, _simpler)


def _simpler(node: Expr, inputs: tuple[Expr, ...]) -> Expr:
    if node.op.kind == "elementwise":
        inputs = _unspread(node, inputs)
    rule = _RULES.get(node.op.name)
    found = rule(node, inputs) if rule else None
    return with_inputs(node, inputs) if found is None else found


def _unspread(node: Expr, inputs: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Inputs that were broadcast to a shape which the other inputs have anyway, as they were before."""
    plain = tuple(i.inputs[0] if i.op.name == "broadcast_to" and i.device == node.device else i for i in inputs)
    return plain if plain != inputs and broadcast([i.shape for i in plain]) == node.shape else inputs


def _drop(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    return inputs[0]


def _drop_unpinned(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    return inputs[0] if node.device is None else None


def _is_one(x: Expr) -> bool:
    return x.op.name == "full" and bool(x.params["fill_value"] == 1)


def _factor_of_one(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    for x, other in (inputs, inputs[::-1]):
        if _is_one(other) and x.shape == node.shape and x.device == node.device:
            return x
    return None


def _divisor_of_one(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    x, y = inputs
    return x if _is_one(y) and x.shape == node.shape and x.device == node.device else None


def _of_same(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    """reshape(reshape(x)) and rechunk(rechunk(x)): the last one decides."""
    (x,) = inputs
    if x.op is not node.op or x.device != node.device:
        return None
    base = x.inputs[0]
    return base if base.shape == node.shape and base.chunks == node.chunks else with_inputs(node, (base,))


def _of_permuted(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    (x,) = inputs
    if x.op is not node.op or x.device != node.device:
        return None
    axes = tuple(x.params["axes"][a] for a in node.params["axes"])
    base = x.inputs[0]
    if axes == tuple(range(len(axes))):
        return base
    with pinned(node.device), labelled(node.label):
        return bind(node.op, base, axes=axes)


def _fold_transposes(node: Expr, inputs: tuple[Expr, ...]) -> Expr | None:
    flags = [node.params["ta"], node.params["tb"]]
    operands = list(inputs)
    for side, x in enumerate(inputs):
        if x.op.name == "permute_dims" and x.params["axes"] == (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2):
            operands[side], flags[side] = x.inputs[0], not flags[side]
    if operands == list(inputs):
        return None
    with pinned(node.device), labelled(node.label):
        return bind(node.op, *operands, ta=flags[0], tb=flags[1])


_RULES: Mapping[str, Callable[[Expr, tuple[Expr, ...]], Expr | None]] = {
    "leaf": _drop,
    "stop_gradient": _drop,
    "argument": _drop,
    "saved": _drop,  # a run has written it by now
    "checkpoint": _drop,  # what it makes again is in the graph by now, behind barriers, which stay
    "move": _drop_unpinned,
    "multiply": _factor_of_one,
    "divide": _divisor_of_one,
    "reshape": _of_same,
    "rechunk": _of_same,
    "permute_dims": _of_permuted,
    "matmul": _fold_transposes,
}

# -- align -------------------------------------------------------------------------------------------------------------


def align(plan: Plan) -> Plan:
    """Cut the inputs of elementwise expressions as their results are cut, so that block meets block."""
    users = consumers(topological(plan.roots))
    products = {}

    def rule(node: Expr, inputs: tuple[Expr, ...]) -> Expr:
        if node.op.kind == "elementwise":
            often = [len(users[i]) > 1 for i in node.inputs]
            new = with_inputs(node, inputs)
            inputs = tuple(relayout(i, aligned(new.chunks, i.shape), o) for i, o in zip(inputs, often, strict=True))
        new = with_inputs(node, inputs)
        if node in plan.products:
            products[new] = plan.products[node]
        return new

    roots = rewrite(plan.roots, rule)
    return Plan(roots, products, plan.machine)


# -- group -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Expressions that one task a block computes together; `nodes` in order, the last one is what others see.

    Where a product is among them, the others are its epilogue: the program that runs in the task which finishes a tile.
    """

    nodes: tuple[Expr, ...]

    @property
    def result(self) -> Expr:
        return self.nodes[-1]

    @property
    def product(self) -> Expr | None:
        return next((n for n in self.nodes if n.op.kind == "product"), None)

    @property
    def behind(self) -> tuple[Expr, ...]:
        """The elementwise work, and the sources that it needs alone."""
        return tuple(n for n in self.nodes if n.op.kind != "product")


def group(plan: Plan) -> list[Group]:
    """Divide the graph into groups, in an order in which they can be lowered.

    An elementwise expression or a source joins its consumer's group where all who use it are in that group and cut
    alike, on the same device; so a chain is one task a block and its intermediate values are never stored. Numbers
    (0-d sources) are repeated in every group that uses them. A product whose only user is such a group takes the group
    for its epilogue (`_is_epilogue`).
    """
    order = topological(plan.roots)
    users = consumers(order)
    roots = set(plan.roots)
    head: dict[Expr, Expr] = {}
    for node in reversed(order):
        heads = {head[u] for u in users[node] if u in head}
        joins = (
            node not in roots
            and len(heads) == 1
            and len(users[node]) > 0
            and all(_takes(u) for u in users[node])
            and _fits(node, next(iter(heads)), plan)
        )
        head[node] = next(iter(heads)) if joins else node
    members: dict[Expr, list[Expr]] = {}
    for node in order:
        members.setdefault(head[node], []).append(node)
    if epilogues := _epilogues(plan, order, users, head, members):
        head.update(epilogues)
        members = {}
        for node in order:
            members.setdefault(head[node], []).append(node)
    numbers = {n for n in order if is_number(n)}
    return [
        Group(tuple(members[node]))
        for node in order
        if head[node] is node
        and (node not in numbers or node in roots or not all(_takes(u) for u in users[node]))
        and (node in roots or not _is_made_by_users(node, users[node], plan))
    ]


def _is_made_by_users(node: Expr, users: Sequence[Expr], plan: Plan) -> bool:
    """Whether nobody needs its blocks: those who multiply it read it themselves, or put it together."""
    if not users or not all(u in plan.products for u in users):
        return False
    products = [plan.products[u] for u in users]
    sides = [(x, s or g) for u, p in zip(users, products, strict=True) for x, s, g in _sides(u, p)]
    return all(made for x, made in sides if x is node)


def _sides(product: Expr, planned: ProductPlan) -> Iterator[tuple[Expr, bool, bool]]:
    """The operands, whether each is streamed, and whether it is gathered."""
    return zip(product.inputs, planned.streamed, planned.gathers, strict=True)


def is_number(node: Expr) -> bool:
    """Whether it is one number known now, which every task that needs it repeats."""
    return node.op.kind == "source" and node.shape == () and node.op.name == "full"


def _takes(user: Expr) -> bool:
    return user.op.kind == "elementwise"


def _fits(node: Expr, head: Expr, plan: Plan) -> bool:
    return (
        node.op.kind in ("elementwise", "source")
        and node.chunks == head.chunks
        and node.shape == head.shape
        and plan.kind_of(node) == plan.kind_of(head)
        and (node.device is None or ":" not in node.device or node.device == head.device)
    )


def cut_in_place(plan: Plan) -> set[Expr]:
    """The `rechunk`s whose blocks are parts of others, taken where these lie, as views: only tasks of ours take them,
    and soon. (A part that is kept would keep all of its block.)"""
    order = topological(plan.roots)
    users, roots = consumers(order), set(plan.roots)
    return {
        x
        for x in order
        if lies_within(x)
        and x not in roots
        and x.device == x.inputs[0].device
        and all(u.op.kind in ("elementwise", "product") for u in users[x])
    }


# -- epilogues ---------------------------------------------------------------------------------------------------------


def _epilogues(
    plan: Plan,
    order: Sequence[Expr],
    users: Mapping[Expr, Sequence[Expr]],
    head: Mapping[Expr, Expr],
    members: Mapping[Expr, Sequence[Expr]],
) -> dict[Expr, Expr]:
    """The products that take the only group which uses them for their epilogue, and the last node of that group."""
    bits = {node: 1 << n for n, node in enumerate(plan.products)}
    needs: dict[Expr, int] = {}  # for each expression, the products that it needs, itself included
    for node in order:
        needs[node] = bits.get(node, 0)
        for i in node.inputs:
            needs[node] |= needs[i]
    found: dict[Expr, Expr] = {}
    roots = set(plan.roots)
    for node in plan.products:
        if node in roots or node not in head:
            continue
        lasts = {head[u] for u in users[node]}
        last = lasts.pop()
        if not lasts and last.op.kind == "elementwise" and _is_epilogue(node, last, members[last], needs, plan):
            found[node] = last
    return found


def _is_epilogue(node: Expr, last: Expr, nodes: Sequence[Expr], needs: Mapping[Expr, int], plan: Plan) -> bool:
    """Whether a group may run in the tasks of the product that it uses: it is cut alike and may run where any tile
    does, and what else it needs is no more than the product itself, and there by then.

    A tile's task waits for all that its epilogue takes. Were that to come from a product which this one does not need
    anyway, two products that might run side by side would run one behind the other.
    """
    if node.chunks != last.chunks or node.shape != last.shape or plan.products[node].mirrored:
        return False
    inside = {node, *nodes}
    taken = {i for n in nodes for i in n.inputs if i not in inside}
    return (
        all(_may_run_beside(n, node, plan) for n in nodes)
        and all(needs[i] | needs[node] == needs[node] for i in taken)
        and sum(i.nbytes for i in taken if i.size >= node.size and not is_number(i)) <= node.nbytes
        and all(_has_type(x, node, plan) for x in [*nodes, *taken])
    )


def _may_run_beside(n: Expr, product: Expr, plan: Plan) -> bool:
    """Whether the pin of an expression allows all the workers that the product's tiles are for. Random numbers of a
    GPU's tile are not made by the one thread that feeds the GPU, but by CPU workers."""
    kinds = set(plan.products[product].kinds)
    if n.op.name == "random" and kinds != {"cpu"}:
        return False
    return n.device in (None, "cpu+gpu", product.device) or {n.device} == kinds


def _has_type(x: Expr, product: Expr, plan: Plan) -> bool:
    kinds = set(plan.products[product].kinds)
    return all(d.computes(x.dtype) for d in plan.machine.devices if d.kind in kinds)


#: Operations per second of elementwise work and reductions on one core (measured: NumPy passes 1 to 2 GB/s of float64).
ELEMENTWISE_PER_S = 1e9


def is_small(plan: Plan, groups: Sequence[Group]) -> bool:
    """Whether the graph is so little work, all in single blocks, that one task does it sooner than its groups apart.

    Apart, every group costs a task (0.5 ms); in one task nothing runs side by side. Only on host memory: one task mixes
    operations that devices do not have.
    """
    if plan.machine.home != "cpu" or len(groups) < 2:
        return False
    nodes = topological(plan.roots)
    if not all(is_single(n.chunks) and _is_home(n, plan) for n in nodes):
        return False
    rate = plan.machine.of_kind("cpu")[0].rate
    seconds = sum(n.op.flops(n) / (rate(n.dtype) if n.op.kind == "product" else ELEMENTWISE_PER_S) for n in nodes)
    return seconds <= len(groups) * plan.machine.task_seconds


def _is_home(node: Expr, plan: Plan) -> bool:
    if node in plan.products:
        return plan.products[node].kind == plan.machine.home and node.device is None
    return plan.kind_of(node) == plan.machine.home
