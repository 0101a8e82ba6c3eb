"""Strangers at a cluster with keys: refused by the scheduler, the workers and the nannies; and nothing of the keys, or
of the data, is where another user could read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dask
import psutil
import pytest
from click.testing import CliRunner
from distributed import Client
from distributed.utils import get_ip
from process_cluster import until

from deploy.local import LocalCluster
from taskgraph.__main__ import main
from workers.listening import is_loopback

HERE = Path(__file__).parent
NOBODY = 65534
WAIT_S = 60
TARGETS = {"scheduler": "ImpatientScheduler", "worker": "Worker", "nanny": "Nanny"}
STRANGERS = ("plain TCP", "no certificate", "another authority")
IS_ROOT = os.geteuid() == 0


class Guarded(NamedTuple):
    """The cluster: what it said of itself, its processes' logs, lines of its key, and the folder of all that."""

    told: dict[str, Any]
    log: Path
    secrets: list[str]
    folder: Path


def secret_lines(key: str) -> list[str]:
    return [line for line in key.splitlines() if not line.startswith("-----")]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with tempfile.TemporaryDirectory(prefix="strangers-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that each file has to be safe by itself
        temporary = folder / "tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        keys, log = folder / "tls", folder / "log"
        environment = os.environ | {"TMPDIR": str(temporary), "DASK_LOGGING__DISTRIBUTED": "debug"}
        environment |= {"TASKGRAPH_CACHE": str(folder / "cache")}
        environment.pop("DASK_LOGGING", None)
        log.touch(mode=0o600)
        with log.open("w") as written:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "guarded_cluster.py"), str(keys)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, text=True, env=environment,
            )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()  # ends with the process, which gives up where workers do not start
            assert line, log.read_text()
            told = json.loads(line) | {"keys": str(keys), "folders": [str(folder)]}
            yield Guarded(told, log, secret_lines((keys / "key.pem").read_text()), folder)
            after, _ = process.communicate(timeout=WAIT_S)
            assert (after, process.returncode) == ("3\n", 0), log.read_text()
        finally:
            process.kill()
            process.wait(WAIT_S)


@pytest.fixture(scope="module")
def tried(guarded: Guarded) -> dict[str, Any]:
    """What strangers could do, as another user where this one can become one."""
    command = [sys.executable, str(HERE / "stranger.py"), str(NOBODY if IS_ROOT else os.geteuid())]
    done = subprocess.run(
        command,
        input=json.dumps(guarded.told) + "\n",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=os.environ | {"TMPDIR": str(guarded.folder / "tmp")},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_owner_comes_in(tried: dict[str, Any]) -> None:
    """Without this the others would show nothing."""
    assert tried["owner"] == TARGETS


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused(tried: dict[str, Any], stranger: str, target: str) -> None:
    assert tried["strangers"][stranger][target].startswith("refused: ")


def test_another_user_reads_nothing(guarded: Guarded, tried: dict[str, Any]) -> None:
    """Keys, spilled data, the rates, and what the kernel tells of the processes."""
    if not IS_ROOT:
        pytest.skip("only root can become another user")
    assert guarded.told["spilled"] >= 3
    temporary = guarded.folder / "tmp"
    assert len([path for path in temporary.rglob("storage/*") if path.is_file()]) >= 3
    assert tried["readable"] == [f"{temporary} can be written"]  # as /tmp can, and nothing in it
    assert tried["opened"] == []


def test_the_command_line_comes_in_with_the_folder(guarded: Guarded) -> None:
    keys = Path(guarded.told["keys"])
    arguments = ["info", "--scheduler", guarded.told["scheduler"], "--tls", str(keys)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "cpu-0" in done.output) == (0, True), done.output
    keys.chmod(0o755)
    try:
        done = CliRunner().invoke(main, arguments)
    finally:
        keys.chmod(0o700)
    assert (done.exit_code, "open to others (mode 0755)" in done.output) == (1, True), done.output


def processes(guarded: Guarded) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in guarded.told["processes"]]


def listeners(of: list[psutil.Process]) -> set[str]:
    return {
        connection.laddr.ip
        for process in of
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def told_to_all(process: psutil.Process) -> str:
    """A process's arguments and environment."""
    proc = Path(f"/proc/{process.pid}")
    return (proc / "cmdline").read_text(errors="replace") + (proc / "environ").read_text(errors="replace")


def test_everything_listens_on_the_loopback_alone(guarded: Guarded) -> None:
    assert listeners(processes(guarded)) == {"127.0.0.1"}


def test_no_secret_in_arguments_environments_and_logs(guarded: Guarded) -> None:
    assert len(guarded.secrets) >= 3
    for process in processes(guarded):
        text = told_to_all(process)
        assert "PATH=" in text  # it could be read
        assert not [line for line in guarded.secrets if line in text]
    log = guarded.log.read_text()
    assert "distributed" in log
    assert not [line for line in guarded.secrets if line in log]
    assert "PRIVATE KEY" not in log


@pytest.fixture
def started(guarded: Guarded) -> Iterator[Callable[..., Callable[[], str]]]:
    """Starts a `dask` command with the cluster's keys, as one does by hand; gives what reads its log."""
    running = []

    def start(command: str, *arguments: str) -> Callable[[], str]:
        log = guarded.folder / f"{command}-{len(running)}.log"
        key, certificate = f"{guarded.told['keys']}/key.pem", f"{guarded.told['keys']}/cert.pem"
        tls = ["--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key]
        with log.open("w") as written:
            by_hand = [sys.executable, "-m", "dask", command, *tls, "--host", "127.0.0.1", *arguments]
            running.append(subprocess.Popen(by_hand, stdout=written, stderr=written))
        return log.read_text

    yield start
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()


def test_preloads_warn_of_what_everyone_can_reach(guarded: Guarded, started: Callable[..., Callable[[], str]]) -> None:
    """Here by their HTTP servers alone: one line that says where, and what to do."""
    scheduler = "--protocol", "tls", "--port", "0", "--preload", "scheduler_plugins", "--dashboard-address"
    worker = guarded.told["scheduler"], "--no-nanny", "--preload", "workers.plugin", "--dashboard-address"
    logs = {"scheduler": started("scheduler", *scheduler, "0.0.0.0:0")}
    logs["worker"] = started("worker", *worker, "0.0.0.0:0")
    for role, log in logs.items():
        line = f"everyone can read this {role} at 0.0.0.0:"
        until(lambda log=log, line=line: line in log(), f"the {role} warns", WAIT_S)
        assert log().count("can run code as you") == 0


def test_a_cluster_beyond_the_loopback_has_temporary_keys(tmp_path: Path) -> None:
    """By default: Dask's messages are encrypted, HTTP stays on the loopback, and the keys in the processes' memory."""
    host = get_ip()
    host = "0.0.0.0" if is_loopback(host) else host
    with LocalCluster(cpu_workers=1, gpus=0, host=host, dashboard_address=":0") as cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result(timeout=WAIT_S) == 3
        assert cluster.scheduler_address.startswith("tls://")
        assert {address.partition("://")[0] for address in client.scheduler_info(n_workers=-1)["workers"]} == {"tls"}
        here = psutil.Process()
        children = here.children(recursive=True)
        assert listeners([here, *children]) == {"127.0.0.1", host}
        assert cluster.dashboard_link == client.dashboard_link
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        with dask.config.set({"distributed.dashboard.link": "/user/me/proxy/{port}/status"}):
            port = cluster.dashboard_link.removeprefix("/user/me/proxy/").removesuffix("/status")
        assert port.isdigit()
        secrets = secret_lines(str(cluster.security.tls_worker_key))
        assert len(secrets) > 20
        client.dump_cluster_state(str(tmp_path / "state"), format="yaml")
        told = [told_to_all(process) for process in children]
        told += [(tmp_path / "state.yaml").read_text(), repr(cluster.security), repr(client), cluster._repr_html_()]
        assert not [line for line in secrets for text in told if line in text]


def test_a_dashboard_for_everyone_is_said_aloud() -> None:
    with (
        pytest.warns(UserWarning, match=r"everyone who reaches 0\.0\.0\.0:0 sees this cluster's dashboard"),
        LocalCluster(cpu_workers=0, gpus=0, dashboard_address="0.0.0.0:0") as cluster,
    ):
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")  # which is one of all
