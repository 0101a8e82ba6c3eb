"""The examples and the command line, run as a user runs them: in processes of their own."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import logsumexp

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GRADIENT = r"\[\[\s*8\.\s+14\.\]\s*\[20\.\s+26\.\]\]"
TUTORIAL = ("graph_style.py", "define_by_run.py", "product_define_by_run.py", "product_graph_style.py")
EXPECTED = {
    "graph_style.py": GRADIENT,
    "define_by_run.py": GRADIENT + r"\s*" + GRADIENT,
    "product_define_by_run.py": r"using CPUs: [\d.e-]+ seconds\s+Time Elapsed using GPUs: [\d.e-]+ seconds",
    "product_graph_style.py": r"using CPU: [\d.e-]+ seconds\s+Time Elapsed using GPU: [\d.e-]+ seconds",
}

#: Examples of training: the arguments of a small run, what it prints, and what the printed numbers must be.
TRAINING: dict[str, tuple[list[str], str, Callable[..., bool]]] = {
    "logistic_regression.py": (
        [],
        r"accuracy (0\.\d+)\s.*scikit-learn's: (\S+)\s",
        lambda accuracy, difference: accuracy > 0.98 and difference < 1e-4,
    ),
    "mlp.py": (
        ["100"],
        r"loss (\S+) -> (\S+), accuracy on 361 held-out digits: (\S+)\s",
        lambda first, last, accuracy: last < first / 20 and accuracy >= 0.96,
    ),
    "gaussian_process.py": (
        [],
        r"likelihood (\S+), .*differs by (\S+)\s.*finds: (\S+)\s",
        lambda found, difference, greatest: difference < 1e-6 and abs(found - greatest) < 1e-3,
    ),
    "matrix_factorization.py": (["150"], r"ratio (\S+)\s", lambda ratio: 1 <= ratio < 1.02),
}


def command(*args: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # this tree, also where another one is installed
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_every_example_is_tried() -> None:
    assert {p.name for p in EXAMPLES} == {*EXPECTED, *TRAINING}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < (25 if path.name in TUTORIAL else 66)


@pytest.mark.parametrize("name", ["graph_style.py", "define_by_run.py"])
def test_alone(name: str) -> None:
    done = command(f"examples/{name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(EXPECTED[name], done.stdout), done.stdout


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_on_a_cluster(name: str) -> None:
    run = ("-m", "taskgraph", "run", "--cpus", "1", "--gpus", "0", "--emulated-gpus", "1")
    done = command(*run, f"examples/{name}", "300")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(EXPECTED[name], done.stdout), done.stdout


def reaches_its_reference(name: str, out: str) -> bool:
    _, pattern, holds = TRAINING[name]
    found = re.search(pattern, out, re.DOTALL)
    return found is not None and holds(*map(float, found.groups()))


@pytest.mark.parametrize("name", TRAINING)
def test_training_alone(name: str) -> None:
    done = command(f"examples/{name}", *TRAINING[name][0])
    assert (done.returncode, done.stderr) == (0, "")
    assert reaches_its_reference(name, done.stdout), done.stdout


@pytest.mark.parametrize("name", ["mlp.py"])
def test_training_on_a_cluster(name: str) -> None:
    run = ("-m", "taskgraph", "run", "--cpus", "2", "--gpus", "0")
    done = command(*run, f"examples/{name}", *TRAINING[name][0])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert reaches_its_reference(name, done.stdout), done.stdout


def test_the_network_is_that_of_autograd() -> None:
    """Ten steps of examples/mlp.py: every loss is that of the same training on autograd's gradients."""
    mlp = runpy.run_path(str(ROOT / "examples" / "mlp.py"))
    losses, _ = mlp["train"](10)
    np.testing.assert_allclose(losses, losses_by_autograd(mlp, 10), rtol=1e-9)


def losses_by_autograd(mlp: dict[str, Any], steps: int) -> list[float]:
    images, labels, *_ = mlp["digits"]()
    first = mlp["first_params"]()
    p = [a for layer in first for a in (layer["w"], layer["b"])]
    m, v = [np.zeros_like(a) for a in p], [np.zeros_like(a) for a in p]

    def loss(p: list[Any], x: Any, y: Any) -> Any:
        z = anp.dot(anp.tanh(anp.dot(x, p[0]) + p[1]), p[2]) + p[3]
        return anp.mean(logsumexp(z, axis=1) - z[np.arange(len(y)), y])

    losses = []
    for t in range(steps):
        x, y = np.split(images, 4)[t % 4], np.split(labels, 4)[t % 4]
        losses.append(float(loss(p, x, y)))
        g = autograd.grad(loss)(p, x, y)
        norm = np.sqrt(sum((a**2).sum() for a in g))
        g = [a * min(1.0, 1.0 / norm) for a in g]
        rate = 0.02 * t / 10
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b**2 for a, b in zip(v, g, strict=True)]
        towards = [
            (a / (1 - 0.9 ** (t + 1))) / (np.sqrt(b / (1 - 0.999 ** (t + 1))) + 1e-8) for a, b in zip(m, v, strict=True)
        ]
        p = [a - rate * (s + 1e-4 * a) for a, s in zip(p, towards, strict=True)]
    return losses


def test_run_gives_the_exit_code_of_the_script(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys\nassert sys.argv[1:] == ['--flag', 'x']\nsys.exit(7)\n")
    done = command("-m", "taskgraph", "run", "--cpus", "1", "--gpus", "0", str(script), "--flag", "x")
    assert done.returncode == 7, done.stderr


def test_info_names_what_is_emulated() -> None:
    done = command("-m", "taskgraph", "info", "--cpus", "1", "--gpus", "0", "--emulated-gpus", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"cpu-0 .* cpu ", done.stdout)
    assert re.search(r"gpu-0 .*emulated", done.stdout)
    assert "network: 1 GB/s" in done.stdout


def test_bench(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = command(
        *("-m", "taskgraph", "bench", "--n", "256", "--repeats", "1", "--json", str(path)),
        *("--cpus", "1", "--gpus", "0", "--emulated-gpus", "1"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    products = {(row["devices"], row["dtype"]): row for row in found["products"]}
    kinds = "CPU workers", "GPU-pinned workers (emulated)", "both (emulated)"
    assert set(products) == {(kind, dtype) for kind in kinds for dtype in ("float32", "float64")}
    assert products["CPU workers", "float64"]["bytes_moved"] == 0
    assert products["GPU-pinned workers (emulated)", "float64"]["bytes_moved"] >= 2 * 256 * 256 * 8
    assert all(row["seconds"] > 0 and row["predicted_seconds"] > 0 for row in found["products"])
    assert found["task_seconds"] > 0
    assert "an empty task costs" in done.stdout


def test_demo() -> None:
    done = command("-m", "taskgraph", "demo", "--n", "512", "--steps", "300", "--gpus", "0", "--emulated-gpus", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert "emulated" in done.stdout
    assert "everything checked holds" in done.stdout
    assert "http://127.0.0.1" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "nowhere.py"], "nowhere.py"),
        (
            ["run", "--scheduler", "tcp://127.0.0.1:1", "--scheduler-file", "pyproject.toml", "setup.py"],
            "setup.py",
        ),
        (["info", "--gpus", "many"], "a number or 'auto'"),
        (["info", "--scheduler", "a", "--scheduler-file", "pyproject.toml"], "not both"),
        (["info", "--tls", "docs"], "--tls is for the cluster"),
    ],
)
def test_bad_options(args: list[str], says: str) -> None:
    done = command("-m", "taskgraph", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
