"""What every test gets: graphs validated between passes, no exception that only a log tells of, in CI no skips."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dask
import pytest

if TYPE_CHECKING:
    from distributed import Client
    from slurm_site import SlurmSite

    from deploy.local import LocalCluster

#: Where every process that a test starts writes the errors that Dask logs, besides its stderr.
ERRORS = Path(tempfile.gettempdir()) / f"taskgraph-test-errors-{os.getpid()}.log"


def pytest_configure(config: pytest.Config) -> None:
    dask.config.set({"taskgraph.validate": True})
    os.environ["DASK_TASKGRAPH__VALIDATE"] = "True"  # for the processes that tests start
    os.environ["TASKGRAPH_CACHE"] = "off"  # no rates from the user's folder, nor into it: a plan would depend on them
    formats = {"plain": {"format": "%(asctime)s - %(name)s - %(levelname)s - %(message)s"}}
    handlers = {
        "stderr": {"class": "logging.StreamHandler", "formatter": "plain"},
        "errors": {"class": "logging.FileHandler", "filename": str(ERRORS), "level": "ERROR", "formatter": "plain"},
    }
    loggers = {"distributed": {"level": "INFO", "handlers": list(handlers)}}
    style = {"version": 1, "disable_existing_loggers": False, "formatters": formats}
    os.environ["DASK_LOGGING"] = repr({**style, "handlers": handlers, "loggers": loggers})


def pytest_unconfigure(config: pytest.Config) -> None:
    ERRORS.unlink(missing_ok=True)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


#: In records of a heartbeat that a worker, or its scheduler, cuts off when it closes: Dask's own noise.
CUT_OFF = ("ConnectionPool closing", "ConnectionPool.heartbeat_worker")


def _exceptions(log: str) -> list[str]:
    """The records of a log that tell of an exception, less the heartbeats of those that close."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d )", log, flags=re.MULTILINE)
    traced = [r for r in records if "Traceback (most recent call last)" in r]
    return [r for r in traced if not any(what in r for what in CUT_OFF)]


@pytest.fixture(autouse=True)
def no_logged_exception(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in whose course a scheduler or a worker, of this process or one that it started, logged an exception:
    Dask only logs what goes wrong in a plugin's hook, and tasks are then misplaced in silence.
    `@pytest.mark.logs_errors` says that errors are what the test is about, `@pytest.mark.kills_workers` that others may
    find a connection broken."""
    before = ERRORS.stat().st_size if ERRORS.exists() else 0
    kept = _Kept()
    root = logging.getLogger("distributed")
    root.addHandler(kept)
    try:
        yield
    finally:
        root.removeHandler(kept)
    elsewhere = _exceptions(ERRORS.read_text()[before:]) if ERRORS.exists() else []
    if request.node.get_closest_marker("kills_workers"):
        from process_cluster import DEATH, raised

        elsewhere = [record for record in elsewhere if raised(record) not in DEATH]
        # the client asked a worker that died meanwhile, and asks again
        kept.records = [r for r in kept.records if not r.getMessage().startswith("Couldn't gather keys")]
    if elsewhere and not request.node.get_closest_marker("logs_errors"):
        pytest.fail("exceptions were logged in other processes:\n" + "\n".join(elsewhere), pytrace=False)
    if kept.records and not request.node.get_closest_marker("logs_errors"):
        pytest.fail("errors were logged:\n" + "\n".join(r.getMessage() for r in kept.records), pytrace=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Without a cluster, in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    """Two CPU workers, for all tests of a file."""
    from deploy.local import LocalCluster

    with LocalCluster(cpu_workers=2, gpus=0, dashboard_address=None) as local:
        yield local


@pytest.fixture
def cluster(workers: LocalCluster) -> Iterator[Client]:
    """A client of theirs, in force for one test: the others run on the local scheduler."""
    from distributed import Client

    with Client(workers) as client:
        yield client


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmSite]:
    """A real SLURM of three virtual nodes, for all tests with the marker of this name."""
    from slurm_site import SlurmSite, missing

    if reason := missing():
        pytest.skip(reason)
    with SlurmSite() as site:
        yield site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skip is a failure: what was not tried was not shown. Only a test that needs a GPU may be skipped."""
    report = yield
    if os.environ.get("CI") and report.skipped and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report
