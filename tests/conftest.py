"""What every test gets: graphs validated between passes, no exception that only a log tells of, in CI no skips."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import dask
import pytest


def pytest_configure(config: pytest.Config) -> None:
    os.environ["DASK_TASKGRAPH__VALIDATE"] = "True"  # for the processes that tests start
    dask.config.set({"taskgraph.validate": True})


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def no_logged_exception(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in whose course the scheduler or a worker of this process logged an error: Dask only logs what goes
    wrong in a plugin's hook, and tasks are then misplaced in silence. `@pytest.mark.logs_errors` says that errors are
    what the test is about."""
    kept = _Kept()
    root = logging.getLogger("distributed")
    root.addHandler(kept)
    try:
        yield
    finally:
        root.removeHandler(kept)
    if kept.records and not request.node.get_closest_marker("logs_errors"):
        pytest.fail("errors were logged:\n" + "\n".join(r.getMessage() for r in kept.records), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skip is a failure: what was not tried was not shown. Only a test that needs a GPU may be skipped."""
    report = yield
    if os.environ.get("CI") and report.skipped and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report
