"""What building a graph costs in the client: `python -m benchmarks.build_cost`.

An expression by itself, its gradient, and a product of 10^4 tiles from `a @ b` to the Dask graph (goal: 50 us a tile).
Limits: Dask's own `Task` takes 1 us and more, so a tile with its operands cannot cost less than about 5 us.
"""

from __future__ import annotations

import time

import taskgraph as tg
from benchmarks.harness import arguments, interleaved, report, summary
from taskgraph import execute

TILES = 100  # a side: 10^4 tiles
DEVICES = 2500  # for which the plan makes a grid of so many tiles


def product_of_many_tiles() -> float:
    machine = tg.Machine(devices=[tg.Device("cpu", 2**40, 50.0, threads=4) for _ in range(DEVICES)])
    k = TILES * 100  # ten blocks a line
    a, b = (tg.randn((TILES * 1000,) * 2, chunks=c) for c in ((1000, k), (k, 1000)))
    start = time.perf_counter()
    graph = execute.lowered(((a @ b).expr,), machine)
    seconds = time.perf_counter() - start
    (planned,) = graph.plan.products.values()
    assert len(planned.slots) == TILES**2, planned.grid.shape
    return seconds / TILES**2


def expression(count: int) -> float:
    x = tg.zeros((10, 10))
    start = time.perf_counter()
    for n in range(count):
        x = x * 1.5 + n
    return (time.perf_counter() - start) / (2 * count)


def gradient(count: int) -> float:
    x = y = tg.asarray(1.0)
    for _ in range(count):
        y = tg.sin(y)
    start = time.perf_counter()
    tg.gradients(y, x)
    return (time.perf_counter() - start) / count


def main() -> None:
    options = arguments(__doc__ or "", repeats=5, expressions=10_000)
    seconds = interleaved(
        {
            "an expression (with its constant)": lambda: expression(options.expressions),
            "gradient, per expression of a chain": lambda: gradient(options.expressions),
            "a tile, from the expression to the Dask graph": product_of_many_tiles,
        },
        options.repeats,
    )
    rows = [(name, *[s * 1e6 for s in summary(values)]) for name, values in seconds.items()]
    report("building graphs, us each", ("what", "median", "least", "greatest"), rows, options)


if __name__ == "__main__":
    main()
