"""What no run of a plan can beat: bounds on its time, and on the bytes that its workers must exchange."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from taskgraph.expr import DType, Expr
from taskgraph.jobs import Job, Jobs, lies
from taskgraph.machine import Device, Machine
from taskgraph.plan import Plan, ProductPlan


def area_bound(plan: Plan) -> float:
    """Seconds of all products if every device that they may run on computed at its rate all the time.

    The greatest of the bounds over dtypes and pins, and of all products of a dtype together.
    """
    flops: dict[tuple[DType, str | None], float] = {}
    for node, p in plan.products.items():
        for pin in {None, node.device}:
            flops[p.dtype, pin] = flops.get((p.dtype, pin), 0.0) + p.flops
    return max((f / _rate(plan.machine, dtype, pin) for (dtype, pin), f in flops.items()), default=0.0)


def _rate(machine: Machine, dtype: DType, pin: str | None) -> float:
    """Operations per second of all devices that a pin allows."""
    allowed: Sequence[Device] = machine.devices
    if pin in ("cpu", "gpu"):
        allowed = machine.of_kind(pin)
    elif pin is not None and ":" in pin:
        allowed = (machine.of_kind("gpu")[int(pin[4:])],)
    return math.fsum(d.rate(dtype) * d.threads for d in allowed)


def critical_path(jobs: Jobs, seconds: Callable[[Job], float]) -> float:
    """Seconds of the longest chain of jobs that need each other, with nothing to wait for or to move between them.

    seconds: of a job on the fastest device that may run it. A bound for this plan's cut, not for every cut.
    """
    ends: list[float] = []
    for job in jobs.items:
        own = 0.0 if job.home is not None else seconds(job)
        ends.append(own + max((ends[n] for n, _ in job.needs), default=0.0))
    return max(ends, default=0.0)


# -- bytes -------------------------------------------------------------------------------------------------------------


def bytes_bound(plan: Plan) -> float:
    """Bytes that workers must get from each other, at least, if they do the shares of the products that the plan gives
    them: the sum over its products of `product_bytes_bound`. Nothing moves on a machine of one process."""
    if not plan.machine.is_cluster:
        return 0.0
    return math.fsum(product_bytes_bound(node, p, plan.machine) for node, p in plan.products.items())


def product_bytes_bound(node: Expr, planned: ProductPlan, machine: Machine) -> float:
    """The communication bound of one product, divided as planned.

    A worker that does the share s of the m*n*k multiplications uses x, y, z elements of the three matrices with
    x*y*z >= (s*m*n*k)^2 (Loomis and Whitney, 1949), so x + y + z is at least what `least_elements` gives; together the
    workers own one copy of each matrix, the rest was moved (memory-independent: Al Daas, Ballard, Grigori, Kumar &
    Rouse, SPAA 2022). With room for M elements a worker moves at least 2*s*m*n*k/sqrt(M) - 2*M (Smith, Lowery, Langou &
    van de Geijn, 2017), less the M that it may hold from the start. The greater of the two. What an operand is made of
    where it is used (random numbers) costs nothing; an operand that lies on the CPU workers lies there in equal shares.
    """
    if planned.mirrored:  # it computes half, and of one operand: no bound of these holds
        return 0.0
    shares = worker_shares(planned)
    lead = max(1, math.prod(node.shape[:-2]))
    a, b = node.inputs
    sizes = [a.size / lead, b.size / lead, float(planned.m * planned.n)]
    free = [x.op.kind == "source" and not lies(x) for x in (a, b)] + [False]
    mults = float(planned.m) * planned.n * planned.k
    cpus = [d.name for d in machine.of_kind("cpu")] or [d.name for d in machine.devices]
    there = sum(name in shares or name is None for name in cpus) if None not in shares else 1
    owned = lead * sizes[2]
    for x, size, made in zip((a, b), sizes, free, strict=False):
        if not made and not (x is b and a is b and owned > lead * sizes[2]):
            owned += lead * size * (there / len(cpus) if lies(x) else 1.0)
    used, small_memory = 0.0, 0.0
    memory = {d.name: d.memory_bytes / planned.dtype.itemsize for d in machine.devices}
    for name, share in shares.items():
        whole, rest = divmod(share * lead, 1.0)
        used += whole * math.fsum(s for s, f in zip(sizes, free, strict=True) if not f)
        used += least_elements(rest * mults, sizes, free)
        room = memory.get(name or "", math.inf)
        if not any(free):
            small_memory += max(0.0, 2 * share * lead * mults / math.sqrt(room) - 3 * room)
    if a is b:  # an element may serve as one of either
        used, small_memory = used / 2, small_memory / 2
    # floating-point: a share of exactly all of it must not leave a byte
    return max(0.0, used * (1 - 1e-9) - owned, small_memory) * planned.dtype.itemsize


def least_elements(mults: float, sizes: Sequence[float], free: Sequence[bool]) -> float:
    """The least x + y + z with x*y*z >= mults^2, each at most its size; what is free is used whole and not counted.

    >>> round(least_elements(1000.0, (100.0, 100.0, 100.0), (False,) * 3), 9)  # all of it needs everything
    300.0
    >>> round(least_elements(125.0, (100.0, 100.0, 100.0), (False,) * 3), 9)  # an eighth: a cube of half the side
    75.0
    """
    if mults <= 0:
        return 0.0
    left, total = mults * mults, 0.0
    for size, f in zip(sizes, free, strict=True):
        left = left / size if f else left
    open_sizes = sorted(size for size, f in zip(sizes, free, strict=True) if not f)
    while open_sizes:
        each = left ** (1.0 / len(open_sizes))
        if each <= open_sizes[0]:
            return total + each * len(open_sizes)
        smallest = open_sizes.pop(0)
        total, left = total + smallest, left / smallest
    return total


def worker_shares(planned: ProductPlan) -> dict[str | None, float]:
    """The share of a product's operations that each worker gets; None stands for whichever has time."""
    gm, gn, _ = planned.grid.shape
    per_tile = len(planned.slots) // max(1, planned.batch * gm * gn)  # slots may be given a panel each
    areas = [m * n / (planned.m * planned.n) for m in planned.grid.m for n in planned.grid.n] if planned.flops else []
    shares: dict[str | None, float] = {}
    for at, slot in enumerate(planned.slots if areas else ()):
        tile, panel = divmod(at, per_tile)
        part = planned.grid.k[panel] / planned.k if per_tile > 1 else 1.0
        shares[slot] = shares.get(slot, 0.0) + areas[tile % len(areas)] * part / planned.batch
    return shares
