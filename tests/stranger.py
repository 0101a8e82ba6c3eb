"""What a stranger tries on a cluster: `stranger.py UID` reads a line of JSON of `guarded_cluster` and the keys' folder,
becomes that user, and writes what it could do."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed.comm.registry import get_backend

from deploy.tls import load_keys, make_keys

TARGETS = ("scheduler", "worker", "nanny")

#: No answer is expected within it: the other side says no at once.
WAIT_S = 30


async def ask(address: str, **connection: Any) -> str:
    """One attempt to have a Dask process say who it is: its kind, or what the attempt ended with."""
    protocol, _, place = address.partition("://")
    try:
        async with asyncio.timeout(WAIT_S):
            comm = await get_backend(protocol).get_connector().connect(place, deserialize=False, **connection)
            try:
                await comm.write(comm.handshake_info())
                await comm.read()  # the other side's
                await comm.write({"op": "identity", "reply": True})
                return str((await comm.read())["type"])
            finally:
                comm.abort()
    except TimeoutError:
        return "no answer"
    except (OSError, ssl.SSLError) as refusal:  # Dask's CommClosedError is an OSError
        return f"refused: {type(refusal).__name__}"


def with_certificate(folder: Path | None) -> dict[str, Any]:
    """A client's side of TLS that believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if folder is not None:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return {"ssl_context": context, "require_encryption": True}


async def attempts(told: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Every kind of stranger at every kind of process."""
    with tempfile.TemporaryDirectory() as own:
        make_keys(Path(own, "tls"))
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "plain TCP": ("tcp", {}),
            "no certificate": ("tls", with_certificate(None)),
            "another authority": ("tls", with_certificate(Path(own, "tls"))),
        }
    return {
        kind: {target: await ask(told[target].replace("tls:", f"{protocol}:"), **args) for target in TARGETS}
        for kind, (protocol, args) in kinds.items()
    }


def readable(folders: list[str]) -> Iterator[str]:
    """What this user could read or change below some folders."""
    for folder in folders:
        for parent, inner, files in os.walk(folder):
            yield from (f"{parent}/{name} can be written" for name in inner if os.access(f"{parent}/{name}", os.W_OK))
            yield from (f"{parent}/{name} can be read" for name in files if can_open(f"{parent}/{name}"))


def can_open(path: str) -> bool:
    """Some files of /proc have modes that promise more."""
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def main(uid: int) -> None:
    told = json.loads(sys.stdin.readline())
    owner = load_keys(Path(told["keys"])).get_connection_args("client")
    result: dict[str, Any] = {"owner": {t: asyncio.run(ask(told[t], **owner)) for t in TARGETS}}
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        memory = [f"/proc/{pid}/{name}" for pid in told["processes"] for name in ("environ", "maps", "mem")]
        result["opened"] = [path for path in memory if can_open(path)]
        result["readable"] = list(readable(told["folders"]))
    result["strangers"] = asyncio.run(attempts(told))
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]))
