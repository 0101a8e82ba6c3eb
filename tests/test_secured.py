"""What is decided about reachable clusters, without one: keys by default, warnings, and folders of one's own."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed.security import Security

from deploy.scratch import scratch_folder
from deploy.secured import secured
from deploy.tls import make_keys
from workers.listening import is_loopback, is_others, warning, warning_of

NOBODY = 65534
BEYOND = ["10.0.0.7"]
HERE = ["127.0.0.1", "localhost"]


def has_keys(security: Security) -> bool:
    return security.get_listen_args("scheduler")["ssl_context"] is not None


@pytest.mark.parametrize(
    ("security", "protocol", "hosts", "expected"),
    [
        (None, None, HERE, "tcp://"),
        (None, "tcp", HERE, "tcp://"),
        (None, "tls", HERE, "tls://"),
        (None, None, BEYOND, "tls://"),
        (None, None, ["0.0.0.0"], "tls://"),
        (None, None, ["::"], "tls://"),
        (None, None, [""], "tls://"),
        (None, None, [*HERE, *BEYOND], "tls://"),
        (None, "wss://", BEYOND, "wss://"),
        (True, None, HERE, "tls://"),
        (False, None, HERE, "tcp://"),
    ],
)
def test_keys_wherever_strangers_could_come(
    security: Any, protocol: str | None, hosts: list[str], expected: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen, said = secured(security, protocol, hosts)
    assert said == expected
    assert has_keys(chosen) == bool(chosen.require_encryption) == (expected != "tcp://")


@pytest.mark.parametrize("security", [False, Security(require_encryption=False)])
def test_going_without_is_said_aloud(security: Any) -> None:
    with pytest.warns(UserWarning, match=r"reaches this cluster at 10\.0\.0\.7 can run code as you"):
        chosen, protocol = secured(security, None, BEYOND)
    assert (chosen.require_encryption, protocol) == (False, "tcp://")


@pytest.mark.parametrize("security", [None, True])
def test_a_protocol_without_encryption_is_not_taken_for_one_with(security: Any) -> None:
    with pytest.raises(ValueError, match=r"'tcp' does not encrypt.*security=False"):
        secured(security, "tcp://", BEYOND)


def test_configured_keys_are_used(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "tls").get_tls_config_for_role("client")
    tls = "distributed.comm.tls"
    roles = ("scheduler", "worker", "client")
    config = {f"{tls}.ca-file": keys["ca_file"]}
    config |= {f"{tls}.{role}.{what}": keys[what] for role in roles for what in ("cert", "key")}
    with dask.config.set(config):
        chosen, protocol = secured(None, None, BEYOND)
    assert (chosen.tls_worker_key, chosen.require_encryption, protocol) == (keys["key"], True, "tls://")
    with dask.config.set({f"{tls}.ca-file": keys["ca_file"]}):  # half of it is nothing
        assert has_keys(secured(None, None, BEYOND)[0])


# -- what preloads say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.7", False), ("fe80::1%eth0", False),
        ("no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("listening", "http", "says"),
    [
        (["tls://10.0.0.7:1"], ["127.0.0.1:2"], []),
        (["wss://0.0.0.0:1", "inproc://10.0.0.7/12/3"], ["::1:2"], []),
        (["tcp://127.0.0.1:1", "ws://[::1]:1"], [], []),
        (["tcp://10.0.0.7:1"], [], ["run code as you", "tcp://10.0.0.7:1", "--tls-key"]),
        (["tls://10.0.0.7:1", "ws://10.0.0.7:3"], [], ["at ws://10.0.0.7:3 can"]),
        (["tls://10.0.0.7:1"], ["0.0.0.0:8787", ":::8787"], ["0.0.0.0:8787, :::8787", "--dashboard-address"]),
        (["tcp://0.0.0.0:1"], ["0.0.0.0:2"], ["run code", "; everyone can read"]),
    ],
)
def test_a_preload_warns_in_one_line(listening: list[str], http: list[str], says: list[str]) -> None:
    told = warning("scheduler", listening, http)
    assert (told is None) == (not says)
    assert all(part in str(told) for part in says)
    assert "\n" not in str(told)


def test_a_server_is_asked_where_it_listens(tmp_path: Path) -> None:
    bound = SimpleNamespace(getsockname=lambda: ("::", 8787, 0, 0))
    server: Any = SimpleNamespace(
        listeners=[SimpleNamespace(listen_address="tcp://0.0.0.0:8786")],
        http_server=SimpleNamespace(_sockets={3: bound}),
        local_directory=str(tmp_path / "dask-scratch-space" / "worker-1"),
    )
    (tmp_path / "dask-scratch-space").mkdir()
    (tmp_path / "dask-scratch-space").chmod(0o777)
    told = str(warning_of("worker", server))
    assert "tcp://0.0.0.0:8786" in told
    assert ":::8787" in told
    assert f"reads in {tmp_path / 'dask-scratch-space'}: name a folder of your own" in told


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o700, False), (0o755, False), (0o775, True), (0o777, True), (0o1777, False)]
)
def test_whose_folder_it_is(tmp_path: Path, mode: int, expected: bool) -> None:
    tmp_path.chmod(mode)
    assert is_others(tmp_path) is expected


def test_the_folder_of_another_is_another_s(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path, NOBODY, -1)
    assert is_others(tmp_path)


def as_made(folder: Path) -> None:
    pass


def made_by_us(folder: Path) -> None:
    folder.mkdir(mode=0o700)


def made_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def made_a_link(folder: Path) -> None:
    folder.with_name("theirs").mkdir()
    folder.symlink_to(folder.with_name("theirs"))


def made_by_another(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, -1)
    else:
        folder.chmod(0o750)


@pytest.mark.parametrize(
    ("before", "taken"),
    [(as_made, True), (made_by_us, True), (made_open, False), (made_a_link, False), (made_by_another, False)],
)
def test_a_folder_that_a_neighbour_prepared_is_not_used(tmp_path: Path, before: Any, taken: bool) -> None:
    expected = tmp_path / f"dask-taskgraph-{os.geteuid()}"
    before(expected)
    umask = os.umask(0)
    try:
        with dask.config.set({"temporary-directory": str(tmp_path)}):
            folder = scratch_folder()
    finally:
        os.umask(umask)
    assert (folder == expected) is taken
    assert folder.parent == tmp_path
    found = folder.lstat()
    assert (stat.S_ISDIR(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid) == (True, 0o700, os.geteuid())
