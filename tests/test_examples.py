"""The examples and the command line, run as a user runs them: in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GRADIENT = r"\[\[\s*8\.\s+14\.\]\s*\[20\.\s+26\.\]\]"
EXPECTED = {
    "graph_style.py": GRADIENT,
    "define_by_run.py": GRADIENT + r"\s*" + GRADIENT,
    "product_define_by_run.py": r"using CPUs: [\d.e-]+ seconds\s+Time Elapsed using GPUs: [\d.e-]+ seconds",
    "product_graph_style.py": r"using CPU: [\d.e-]+ seconds\s+Time Elapsed using GPU: [\d.e-]+ seconds",
}


def command(*args: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_every_example_is_tried() -> None:
    assert {p.name for p in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 25


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
    ],
)
def test_bad_options(args: list[str], says: str) -> None:
    done = command("-m", "taskgraph", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
