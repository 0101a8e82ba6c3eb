"""A failure leaves nothing half done, and says what to do where something cannot run at all."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from process_cluster import ProcessCluster, until

import taskgraph as tg
from taskgraph import execute

X = tg.placeholder("float32", (2, 3), name="X")
W = tg.placeholder("float32", (4, 5), name="W")

# -- nothing half done -------------------------------------------------------------------------------------------------


class Boom(Exception):
    """An error of the user's own, with arguments of its own."""

    def __init__(self, block: int, why: str) -> None:
        super().__init__(block, why)
        self.block, self.why = block, why


def _explode(x: np.ndarray) -> np.ndarray:
    raise Boom(7, "as asked")


def exploding() -> tg.Tensor:
    return tg.from_dask(da.ones(4, chunks=2).map_blocks(_explode, dtype=float, meta=np.empty(0)))


def test_a_failed_run_changes_no_variable() -> None:
    w, v = tg.Variable([1.0, 2.0], name="w"), tg.Variable(np.zeros(4), name="v")
    with tg.Session() as session:
        with pytest.raises(Boom):
            session.run([w.assign(w + 1), v.assign(v + exploding()), w * 2])
        with pytest.raises(ValueError, match="'X'"):
            session.run([w.assign(w + 1), X])
        with pytest.raises(ValueError, match="gpu"):
            session.run([w.assign(w + 1), v.cuda()])
        with pytest.raises(ValueError, match="twice"):
            session.run([v.assign(v + 1), w.assign(w + 1), w.assign(w + 2)])
        np.testing.assert_array_equal(session.run(w), [1, 2])
        np.testing.assert_array_equal(session.run(v), np.zeros(4))
        session.run([w.assign(w + 1)])
        np.testing.assert_array_equal(session.run(w), [2, 3])


def test_a_failed_backward_changes_no_gradient() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    tg.sum(x * x).backward()
    before = x.grad
    with pytest.raises(RuntimeError):
        (x * x).backward()
    with pytest.raises(ValueError, match="cotangent"):
        (x * x).backward(tg.ones(5))
    assert x.grad is before


def test_a_failed_pin_leaves_no_pin_behind() -> None:
    with pytest.raises(ValueError, match="shapes"), tg.device("gpu"):
        X + W
    with tg.device("gpu"), pytest.raises(ValueError, match="unknown"), tg.device("tpu"):
        pass
    assert tg.ones(3).device == "auto"


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_an_error_of_a_task_arrives_as_it_was(scheduler: str) -> None:
    with pytest.raises(Boom, match="as asked") as caught:
        tg.sum(exploding() + 1).compute(scheduler=scheduler)
    assert caught.value.block == 7


@pytest.mark.logs_errors
def test_an_error_of_a_task_in_a_cluster_arrives_as_it_was() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        session, w = tg.Session(client), tg.Variable(np.zeros(4), name="w")
        with pytest.raises(Boom, match="as asked") as caught:
            session.run([w.assign(w + exploding()), w + 1])
        assert caught.value.block == 7
        np.testing.assert_array_equal(session.run(w), np.zeros(4))
        kept = exploding().persist(scheduler=client)  # which does not wait
        with pytest.raises(Boom, match="as asked"):
            (kept + 1).compute(scheduler=client)
        del caught, kept
        until(
            lambda: (gc.collect() and False) or not client.futures,
            "the client holds no results of the failed run",
            timeout=5,
        )


# -- where it cannot run at all ----------------------------------------------------------------------------------------


def test_array_expr_is_refused_at_import() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import taskgraph"],
        env={**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: dask-taskgraph")
    assert "array.query-planning" in last
    assert "DASK_ARRAY__QUERY_PLANNING=False" in last


class Told:
    """A client that tells versions, and nothing else."""

    def __init__(self, scheduler: str | None, *workers: str | None) -> None:
        self.scheduler_has, self.workers_have = scheduler, workers

    def get_versions(self, check: bool, packages: list[str]) -> dict[str, Any]:
        assert packages == ["dask-taskgraph"]

        def say(version: str | None) -> dict[str, Any]:
            return {"packages": {"python": "3", "dask-taskgraph": version}}

        return {
            "scheduler": say(self.scheduler_has),
            "workers": {f"tcp://10.0.0.{n}": say(v) for n, v in enumerate(self.workers_have)},
            "client": say(tg.__version__),
        }


OURS = tg.__version__
INSTALL = f"pip install dask-taskgraph=={OURS}"


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (Told(None), ("the scheduler lacks", INSTALL, "there")),
        (Told("0.0.1"), ("the scheduler has dask-taskgraph 0.0.1", f"the client has {OURS}", INSTALL)),
        (Told(OURS, OURS, None), ("worker tcp://10.0.0.1 lacks", INSTALL)),
        (Told(OURS, OURS, "9.9"), ("worker tcp://10.0.0.1 has dask-taskgraph 9.9", INSTALL)),
    ],
    ids=["scheduler-lacks", "scheduler-other", "worker-lacks", "worker-other"],
)
def test_versions_must_be_equal(client: Told, says: tuple[str, ...]) -> None:
    with pytest.raises(RuntimeError) as caught:
        execute._check_versions(client)
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message


def test_equal_versions_pass() -> None:
    execute._check_versions(Told(OURS, OURS, OURS))


#: A process that starts with this directory on its path has another version of our package, or none.
HIDING = """
import importlib.metadata, sys

HAVE = {version!r}
_version = importlib.metadata.version

def version(name):
    if name != "dask-taskgraph":
        return _version(name)
    if HAVE is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return HAVE

importlib.metadata.version = version

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("taskgraph", "autodiff", "workers", "scheduler_plugins", "deploy"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

if HAVE is None:
    sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize(("version", "has"), [(None, "lacks dask-taskgraph"), ("0.0.1", "has dask-taskgraph 0.0.1")])
def test_a_scheduler_that_lacks_the_package(
    version: str | None, has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDING.format(version=version))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with ProcessCluster(tmp_path) as cluster:
        client = cluster.client()
        w = tg.Variable([1.0, 2.0], name="w")
        attempts: list[Callable[[], Any]] = [
            lambda: tg.Session(client).run(w.assign(w + 1)),
            lambda: (w + 1).compute(scheduler=client),
            lambda: (w + 1).persist(),
            lambda: dask.compute(w + 1),
            lambda: (w + 1).explain(),
        ]
        with dask.config.set(scheduler=client):
            for attempt in attempts:
                with pytest.raises(RuntimeError) as caught:
                    attempt()
                assert str(caught.value) == f"the scheduler {has}, the client has {OURS}: run `{INSTALL}` there"
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0
        np.testing.assert_array_equal(w.value.compute(), [1, 2])
        cluster.assert_quiet()
