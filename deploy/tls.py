"""Keys of a cluster: one certificate that all its processes show each other, in a folder that only its owner can read.

Whoever can read the key can run code on the cluster as its owner, and nobody else can: a process without it is refused
by the scheduler, the workers and the nannies alike, and refuses them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from distributed.security import Security

CERTIFICATE, KEY = "cert.pem", "key.pem"

#: Chosen: longer than any batch system lets a job run. An expired certificate ends no connection, but lets none begin.
VALID_DAYS = 90

#: Machines of one cluster disagree about the time; by more than this their owners notice.
CLOCKS_DIFFER = timedelta(hours=1)

_PART = ".part"
_FILES = (KEY, CERTIFICATE, KEY + _PART, CERTIFICATE + _PART)


def make_keys(folder: Path, valid_days: float = VALID_DAYS) -> Security:
    """Make a new key and its certificate in `folder`, and what a cluster and its clients need to use them.

    folder: is made, with mode 0700; must not exist, be it empty or a link. Its files appear whole, the key
    first, with mode 0600.
    valid_days: how long new connections can be made; a process that starts later is refused.

    Raises FileExistsError where the folder exists, ValueError where valid_days is not above 0; nothing is left
    where writing fails.

    >>> security = make_keys(Path("tls"))  # doctest: +SKIP
    >>> cluster = LocalCluster(host="10.0.0.7", security=security)  # doctest: +SKIP
    """
    if not valid_days > 0:
        raise ValueError(f"a certificate is valid for more than 0 days, not {valid_days}")
    folder = folder.absolute()
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        raise FileExistsError(
            f"keys are made in a new folder, and {folder} exists: name another, or remove it"
        ) from None
    try:
        key, certificate = _new_pair(valid_days)
        with _opened(folder) as descriptor:
            _write(descriptor, KEY, key)
            _write(descriptor, CERTIFICATE, certificate)
    except BaseException:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
        raise
    return _security(folder)


def load_keys(folder: Path) -> Security:
    """What `make_keys(folder)` gave, in another process of the same user.

    Raises FileNotFoundError where the folder or a file of it is missing, PermissionError where this user does not own
    them, others may read or write them, or one of them is a link.
    """
    folder = folder.absolute()
    with _opened(folder) as descriptor:
        for name in (KEY, CERTIFICATE):
            _check(folder / name, os.stat(name, dir_fd=descriptor, follow_symlinks=False), stat.S_ISREG)
    return _security(folder)


def remove_keys(folder: Path) -> None:
    """Remove the keys and their folder; nothing happens where they are gone.

    Raises PermissionError where the folder is a link or another user's, OSError where it holds anything else.
    """
    folder = folder.absolute()
    try:
        with _opened(folder) as descriptor:
            for name in _FILES:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=descriptor)
    except FileNotFoundError:
        return
    os.rmdir(folder)


def _security(folder: Path) -> Security:
    """By paths, not contents: command lines and batch scripts can name them, and stay without secrets."""
    certificate, key = str(folder / CERTIFICATE), str(folder / KEY)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{f"tls_{role}_cert": certificate for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    )


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder: what is reached through it lies in the folder that was checked."""
    _check(folder, folder.lstat(), stat.S_ISDIR)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check(folder, os.fstat(descriptor), stat.S_ISDIR)
        yield descriptor
    finally:
        os.close(descriptor)


def _check(path: Path, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise PermissionError, saying what to do, unless this is the user's own and no one else's."""
    if not is_kind(found.st_mode):
        kind = "folder" if is_kind is stat.S_ISDIR else "file"
        raise PermissionError(
            f"{path} is not a {kind} of its own, perhaps a link: keys are used from where they were made"
        )
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()}): make keys of your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise PermissionError(
            f"{path} is open to others (mode {mode:04o}): whoever read the key can run code as you. "
            "Make new keys, in a new folder on a file system that keeps modes"
        )


def _write(folder: int, name: str, content: bytes) -> None:
    """A file of mode 0600 that is there whole or not at all."""
    part = os.open(name + _PART, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(part)  # another machine may read it next
    os.rename(name + _PART, name, src_dir_fd=folder, dst_dir_fd=folder)


def _new_pair(valid_days: float) -> tuple[bytes, bytes]:
    """A P-256 key and the certificate that it signs itself, both in PEM: its own authority, and good for both sides."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask-taskgraph")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=valid_days))
        # What OpenSSL's strict rules, on by default since Python 3.13, want to see in an authority's certificate.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret, certificate.public_bytes(serialization.Encoding.PEM)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--days", type=float, default=VALID_DAYS, show_default=True, help="How long new connections can be made.")
def main(folder: Path, days: float) -> None:
    """Make a key and its certificate in FOLDER, which must not exist, for the processes of one cluster."""
    try:
        make_keys(folder, days)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder / CERTIFICATE}\n{folder / KEY}")


if __name__ == "__main__":
    main()
