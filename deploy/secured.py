"""Which keys a cluster has that was not told: some wherever strangers could reach it."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from distributed.security import Security

from workers.listening import is_loopback

#: Dask's protocols in which both sides show a certificate.
ENCRYPTED = ("tls", "wss")

UNSECURED = (
    "whoever reaches this cluster at {where} can run code as you, and read what travels: leave `security` out for "
    "temporary keys, or give it a folder's (`deploy.tls.make_keys`)"
)


def secured(security: Security | bool | None, protocol: str | None, hosts: Collection[str]) -> tuple[Security, str]:
    """The security and the protocol ("tls://", "tcp://", ...) of a cluster that listens at `hosts`.

    security: True for temporary keys, False for none. None for keys where a host is beyond the loopback device or the
    protocol wants some: those that Dask's configuration names (`distributed.comm.tls`), or temporary ones.

    Warns where a host is beyond the loopback device without keys. Raises TypeError for another kind of security,
    ValueError where there are keys, and the protocol named has no use for them.
    """
    if not (security is None or isinstance(security, bool | Security)):
        raise TypeError(f"security is a distributed.Security, True, False or None, not {type(security).__name__}")
    reachable = [host for host in hosts if not is_loopback(host)]
    named = protocol.removesuffix("://") if protocol else None
    if security is None:
        security = _configured_or_new() if reachable or named in ENCRYPTED else Security()
    elif isinstance(security, bool):
        security = Security.temporary() if security else Security(require_encryption=False)
    encrypted = bool(security.require_encryption)
    if encrypted and named not in (None, *ENCRYPTED):
        raise ValueError(
            f"protocol {named!r} does not encrypt, and this cluster at {', '.join(hosts)} has keys: leave `protocol` "
            "out, or say security=False to let whoever reaches it run code as you"
        )
    if reachable and not encrypted:
        warnings.warn(UNSECURED.format(where=", ".join(reachable)), stacklevel=3)
    return security, f"{named or ('tls' if encrypted else 'tcp')}://"


def _configured_or_new() -> Security:
    configured = Security(require_encryption=True)
    roles = [configured.get_tls_config_for_role(role) for role in ("scheduler", "worker", "client")]
    return configured if all(role["ca_file"] and role["cert"] for role in roles) else Security.temporary()
