"""The demo: the whole path on this machine, in three parts that check themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import taskgraph as tg
from deploy.measure import name_of, pins_of, run_product, size_for
from deploy.programs import console as open_console
from deploy.programs import device_table, start_cluster

#: Seconds that NumPy should take for the product where `n` is not given (chosen: long enough to be measured, and seen).
PRODUCT_SECONDS = 2.0
LEARNING_RATE = 0.5
HIDDEN = 64
WANTED_ACCURACY = 0.95
#: How far a step of training may be from the NumPy reference, relatively (float64; the sums run in another order).
STEP_TOLERANCE = 1e-5


def run_demo(cluster: Mapping[str, Any], n: int | None = None, steps: int = 300, wait: bool = False) -> int:
    """Run the three parts on a cluster started for it; gives 0 where all that they check holds, 1 otherwise."""
    console = open_console()
    with console.status("starting workers"):
        local = start_cluster(cluster)
    with local, Client(local) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        console.print(f"dashboard: [link]{client.dashboard_link}[/]")
        console.print(device_table(workers))
        emulated = any(w["taskgraph"]["emulated"] for w in workers.values())
        if emulated:
            console.print(
                "[yellow]no GPU is used here: workers gpu-* are emulated, they compute on the same CPU cores[/]"
            )
        console.rule("(a) a function and its gradient")
        passed = show_gradients(console)
        console.rule("(b) a product of two random matrices")
        passed &= show_products(console, client, n)
        console.rule("(c) a classifier of handwritten digits, trained by gradient descent")
        passed &= show_training(console, steps)
        console.print("[green]everything checked holds[/]" if passed else "[red]a check failed: see above[/]")
        if wait:
            console.input(f"the dashboard stays at {client.dashboard_link} until you press Enter ")
    return 0 if passed else 1


def check(console: Console, what: str, holds: bool) -> bool:
    """Print whether it holds, and say so."""
    console.print(f"  {'[green]ok[/]' if holds else '[red]WRONG[/]'}  {what}")
    return holds


# -- (a) ---------------------------------------------------------------------------------------------------------------


def show_gradients(console: Console) -> bool:
    """y = 3x^2 + 2x + 3 and dy/dx at [[1, 2], [3, 4]], in graph style and in define-by-run style."""
    expected = np.asarray([[8.0, 14.0], [20.0, 26.0]])

    x = tg.placeholder("float32", [2, 2], name="x")
    y = 3 * x**2 + 2 * x + 3
    g = tg.gradients(y, x)
    with tg.Session() as session:
        graph_style = session.run(g, feed_dict={x: [[1.0, 2.0], [3.0, 4.0]]})

    v = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    (3 * v**2 + 2 * v + 3).backward(tg.ones((2, 2)))
    assert v.grad is not None
    define_by_run = v.grad.compute()

    console.print("  y = 3x\u00b2 + 2x + 3 at x = [[1, 2], [3, 4]]")
    return check(
        console, f"graph style:    dy/dx = {graph_style.tolist()}", bool((graph_style == expected).all())
    ) & check(console, f"define-by-run:  dy/dx = {define_by_run.tolist()}", bool((define_by_run == expected).all()))


# -- (b) ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProductRun:
    """One way to compute the product: seconds, bytes that workers sent each other, tiles per worker, the error."""

    name: str
    seconds: float
    bytes_moved: int | None
    tiles: Mapping[str, int]
    error: float


@dataclass(frozen=True)
class ExactRows:
    """Some rows of a product in float64: a sample that meets every tile, since the whole would take twice as long."""

    rows: np.ndarray
    values: np.ndarray

    def error(self, product: np.ndarray) -> float:
        """The greatest error of a product in these rows, relative to their greatest element."""
        return float(np.abs(product[self.rows] - self.values).max() / np.abs(self.values).max())


def exact_rows(a: np.ndarray, b: np.ndarray, count: int = 64) -> ExactRows:
    """The float64 product of `count` rows of `a`, evenly spread, with `b`."""
    rows = np.unique(np.linspace(0, len(a) - 1, count).astype(int))
    return ExactRows(rows, a[rows].astype(np.float64) @ b.astype(np.float64))


def show_products(console: Console, client: Client, n: int | None) -> bool:
    """The tutorial's product on CPU workers, on GPU-pinned workers and on both, against plain NumPy."""
    machine = tg.Machine.from_client(client)
    n = n or size_for(machine, PRODUCT_SECONDS)
    console.print(
        f"  {n} x {n} float32, {2 * n**3 / 1e9:,.0f} GFLOP; the operands lie on the CPU workers when the clock starts"
    )
    rng = tg.random.default_rng(2017)
    a, b = (rng.standard_normal((n, n), "float32").persist() for _ in range(2))
    here = [t.compute() for t in (a, b)]
    exact = exact_rows(*here)
    start = time.perf_counter()
    c = here[0] @ here[1]
    runs = [ProductRun("NumPy, this process", time.perf_counter() - start, None, {}, exact.error(c))]
    del c
    pins = pins_of(machine)
    with _progress(console) as progress:
        bar = progress.add_task("products", total=len(pins))
        for pin in pins:
            progress.update(bar, description=f"product on {name_of(pin, machine)}")
            with tg.device(pin):
                ran = run_product(client, a @ b)
            error = exact.error(ran.kept.compute())
            runs.append(ProductRun(name_of(pin, machine), ran.seconds, ran.bytes_moved, ran.tiles, error))
            progress.advance(bar)
    console.print(product_table(runs, n))
    bound = np.finfo("float32").eps * np.sqrt(n)  # rounding errors of a sum of n terms grow like its root
    worst = max(r.error for r in runs)
    return check(console, f"greatest relative error {worst:.1e}, bound {bound:.1e}", bool(worst <= bound))


def product_table(runs: list[ProductRun], n: int) -> Table:
    """What each run of an n x n product took, against NumPy's."""
    table = Table()
    for column in ("where", "seconds", "GFLOP/s", "of NumPy", "MB moved", "relative error"):
        table.add_column(column, justify="left" if column == "where" else "right")
    table.add_column("tiles per worker")
    for r in runs:
        table.add_row(
            r.name,
            f"{r.seconds:.2f}",
            f"{2 * n**3 / r.seconds / 1e9:,.0f}",
            f"{runs[0].seconds / r.seconds:.2f}",
            "-" if r.bytes_moved is None else f"{r.bytes_moved / 1e6:,.0f}",
            f"{r.error:.1e}",
            ", ".join(f"{name}: {count}" for name, count in r.tiles.items()) or "-",
        )
    return table


# -- (c) ---------------------------------------------------------------------------------------------------------------


def show_training(console: Console, steps: int) -> bool:
    """Two layers on scikit-learn's digits: the loss falls, held-out accuracy is 0.95 at least, and every step's loss is
    that of a NumPy program that does the same by hand."""
    x, y, x_test, y_test = digits()
    ours = train(x, y, steps, console)
    theirs = reference_losses(x, y, steps)
    difference = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs, strict=True))
    w = ours.weights
    found = np.tanh(x_test @ w[0] + w[1]) @ w[2] + w[3]
    accuracy = float((found.argmax(1) == y_test.argmax(1)).mean())
    rate = steps / ours.seconds
    console.print(f"  {x.shape[0]} digits, {x_test.shape[0]} held out, {steps} steps, {rate:.0f} steps/s")
    passed = check(
        console,
        f"loss fell from {ours.losses[0]:.3f} to {ours.losses[-1]:.3f}",
        ours.losses[-1] < ours.losses[0],
    )
    passed &= check(console, f"held-out accuracy {accuracy:.3f}", accuracy >= WANTED_ACCURACY)
    return passed & check(
        console,
        f"greatest relative difference of a step's loss from NumPy's {difference:.1e}",
        difference <= STEP_TOLERANCE,
    )


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 64) in [0, 1] and one-hot labels (n, 10): four fifths to train on, one fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise SystemExit("the demo's part (c) needs scikit-learn: pip install 'dask-taskgraph[demo]'") from e
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = data.data[order] / 16.0, np.eye(10)[data.target[order]]
    cut = len(x) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def first_weights() -> list[np.ndarray]:
    """W1, b1, W2, b2 as both trainings start."""
    rng = np.random.default_rng(1)
    return [
        rng.normal(0, 64**-0.5, (64, HIDDEN)),
        np.zeros(HIDDEN),
        rng.normal(0, HIDDEN**-0.5, (HIDDEN, 10)),
        np.zeros(10),
    ]


@dataclass(frozen=True)
class Training:
    """The loss before every step, the weights after the last one, and the seconds of all."""

    losses: list[float]
    weights: list[np.ndarray]
    seconds: float


def train(x: np.ndarray, y: np.ndarray, steps: int, console: Console) -> Training:
    """Gradient descent in graph style: the loss, its gradients and the assignments are one graph, run once a step."""
    images, labels = tg.asarray(x).persist(), tg.asarray(y).persist()
    w = [tg.Variable(value, name=name) for value, name in zip(first_weights(), ("W1", "b1", "W2", "b2"), strict=True)]
    logits = tg.tanh(images @ w[0] + w[1]) @ w[2] + w[3]
    loss = tg.mean(tg.logsumexp(logits, axis=1) - tg.sum(logits * labels, axis=1))
    updates = [v.assign(v - LEARNING_RATE * g) for v, g in zip(w, tg.gradients(loss, w), strict=True)]
    session = tg.Session()
    losses = []
    start = time.perf_counter()
    with _progress(console) as progress:
        bar = progress.add_task("training", total=steps)
        for _ in range(steps):
            value, _ = session.run((loss, updates))
            losses.append(float(value))
            progress.update(bar, advance=1, description=f"training, loss {value:.3f}")
    return Training(losses, session.run(list(w)), time.perf_counter() - start)


def reference_losses(x: np.ndarray, y: np.ndarray, steps: int) -> list[float]:
    """The same training in NumPy, gradients by hand."""
    w1, b1, w2, b2 = first_weights()
    losses = []
    for _ in range(steps):
        h = np.tanh(x @ w1 + b1)
        z = h @ w2 + b2
        top = z.max(1, keepdims=True)
        log_sum = np.log(np.exp(z - top).sum(1, keepdims=True)) + top
        losses.append(float(np.mean(log_sum[:, 0] - (z * y).sum(1))))
        dz = (np.exp(z - log_sum) - y) / len(x)
        dh = dz @ w2.T * (1 - h * h)
        w1, b1 = w1 - LEARNING_RATE * (x.T @ dh), b1 - LEARNING_RATE * dh.sum(0)
        w2, b2 = w2 - LEARNING_RATE * (h.T @ dz), b2 - LEARNING_RATE * dz.sum(0)
    return losses


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        transient=True,
    )  # fmt: skip
