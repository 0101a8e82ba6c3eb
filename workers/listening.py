"""Who can reach a Dask process that was started by hand: what its preload warns of, in one line."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Dask's protocols in which both sides show a certificate, or in which there is no network.
SAFE_PROTOCOLS = ("tls", "wss", "inproc")


def is_loopback(host: str) -> bool:
    """Whether only this machine's processes reach what listens there; a name counts as what it resolves to.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, False, False)
    """
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def host_of(address: str) -> str:
    """The host of "tcp://HOST:PORT".

    >>> host_of("tls://10.0.0.7:8786"), host_of("tcp://[::1]:80"), host_of("tcp://:8786")
    ('10.0.0.7', '::1', '')
    """
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def is_others(folder: Path) -> bool:
    """Whether another user could put files into a folder, or exchange those that are there.

    Not where the folder is sticky and root's, as /tmp is: there everyone's files are their own.
    """
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        return True
    return bool(found.st_mode & 0o022) and not found.st_mode & stat.S_ISVTX


def warning(role: str, listening: Iterable[str], http: Iterable[str], scratch: Path | None = None) -> str | None:
    """What to say of a process that strangers can reach, and what to do about it; None where they cannot.

    role: "scheduler" or "worker". listening: Dask's addresses. http: "HOST:PORT" of its HTTP server. scratch: the
    folder in which the process has its working folder.

    >>> warning("worker", ["tls://10.0.0.7:4000"], ["127.0.0.1:4001"])
    >>> warning("worker", ["tcp://127.0.0.1:4000"], ["0.0.0.0:4001"])
    'everyone can read this worker at 0.0.0.0:4001: start it with --dashboard-address 127.0.0.1:0'
    """
    parts = []
    plain = [a for a in listening if a.partition("://")[0] not in SAFE_PROTOCOLS and not is_loopback(host_of(a))]
    if plain:
        parts.append(
            f"whoever reaches this {role} at {', '.join(plain)} can run code as you: start it with --tls-ca-file, "
            "--tls-cert and --tls-key (`python -m deploy.tls FOLDER` makes the files), or with --host 127.0.0.1"
        )
    pages = [a for a in http if not is_loopback(host_of(f"http://{a}"))]
    if pages:
        parts.append(
            f"everyone can read this {role} at {', '.join(pages)}: start it with --dashboard-address 127.0.0.1:0"
        )
    if scratch is not None and is_others(scratch):
        parts.append(
            f"other users can exchange files that this {role} reads in {scratch}: name a folder "
            "of your own in DASK_TEMPORARY_DIRECTORY"
        )
    return "; ".join(parts) or None


def warning_of(role: str, server: Any) -> str | None:
    """The warning about a scheduler or a worker that listens."""
    sockets = getattr(server.http_server, "_sockets", {}).values()
    http = ["{}:{}".format(*bound.getsockname()[:2]) for bound in sockets]
    scratch = Path(server.local_directory).parent
    return warning(role, [listener.listen_address for listener in server.listeners], http, scratch)
