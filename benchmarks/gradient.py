"""What a gradient costs beside its value: `python -m benchmarks.gradient [--n 4096]`.

A chain of products, `sum(tanh(x @ a) @ b)`, and its gradient with respect to x, a and b. The limit is in the
operations: each product of the value has two in the gradient, so value and gradient together are 3.0 times the value
(counted by the plan); what goes beyond that in seconds is elementwise work and moving.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from distributed import Client, wait

import taskgraph as tg
from benchmarks.harness import arguments, interleaved, report, summary
from taskgraph.execute import planned


def flops(tensors: list[tg.Tensor], machine: tg.Machine) -> int:
    """Operations of the products of one run."""
    return sum(p.flops for p in planned([t.expr for t in tensors], machine).products.values())


def main() -> None:
    options = arguments(__doc__ or "", n=4096, repeats=3)
    n = options.n
    with tg.LocalCluster(gpus=0, dashboard_address=None) as cluster, Client(cluster) as client:
        rng = tg.random.default_rng(0)
        x, a, b = (rng.standard_normal((n, n), "float32", chunks=(n // 2, n)).persist() for _ in range(3))
        wait(client.futures_of([x, a, b]))
        value = tg.sum(tg.tanh(x @ a / n) @ b)
        both = [value, *tg.gradients(value, [x, a, b])]
        machine = tg.Machine.from_client(client)
        counted = flops(both, machine) / flops([value], machine)

        def run(tensors: list[tg.Tensor]) -> Callable[[], float]:
            def seconds() -> float:
                start = time.perf_counter()
                wait(client.futures_of(list(tg.persist(*tensors))))
                return time.perf_counter() - start

            return seconds

        measured = interleaved({"value": run([value]), "value and gradient": run(both)}, options.repeats)
    first = summary(measured["value"])[0]
    rows = [(who, *summary(s), summary(s)[0] / first) for who, s in measured.items()]
    rows.append(("operations of products, counted", "", "", "", counted))
    columns = ("what", "seconds", "least", "greatest", "over value")
    report(f"value and gradient of a chain of {n} x {n} products, float32", columns, rows, options)


if __name__ == "__main__":
    main()
