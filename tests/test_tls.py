"""Keys: who can read them, what is refused, and that both sides of a connection take them, and no others."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from distributed.security import Security

from deploy import tls
from deploy.tls import CERTIFICATE, KEY, load_keys, make_keys, remove_keys

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_what_is_made(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_keys(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {CERTIFICATE: 0o600, KEY: 0o600}


def test_the_certificate_is_for_a_while_and_for_a_curve(folder: Path) -> None:
    make_keys(folder, valid_days=2)
    certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    seconds = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()
    assert seconds == 2 * 86400 + tls.CLOCKS_DIFFER.total_seconds()
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    certificate.verify_directly_issued_by(certificate)


def test_paths_are_absolute_and_nothing_secret_is_in_the_object(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    security = make_keys(Path("tls"))
    assert security.require_encryption
    for role in ("client", "scheduler", "worker"):
        config = security.get_tls_config_for_role(role)
        assert config["ca_file"] == config["cert"] == str(folder / CERTIFICATE)
        assert config["key"] == str(folder / KEY)
    assert load_keys(Path("tls")).get_tls_config_for_role("worker") == config


# -- what is refused ---------------------------------------------------------------------------------------------------


def empty(folder: Path) -> None:
    folder.mkdir()


def link_to_nowhere(folder: Path) -> None:
    folder.symlink_to(folder.with_name("nowhere"))


@pytest.mark.parametrize("exists", [empty, link_to_nowhere, make_keys, Path.touch])
def test_keys_are_made_in_a_new_folder(folder: Path, exists: Callable[[Path], object]) -> None:
    exists(folder)
    with pytest.raises(FileExistsError, match="new folder"):
        make_keys(folder)
    assert folder.is_symlink() or folder.exists()  # and is left as it was
    assert not folder.with_name("nowhere").exists()


def folder_open(folder: Path) -> None:
    folder.chmod(0o750)


def folder_writable(folder: Path) -> None:
    folder.chmod(0o702)


def key_open(folder: Path) -> None:
    (folder / KEY).chmod(0o640)


def certificate_writable(folder: Path) -> None:
    (folder / CERTIFICATE).chmod(0o620)


def key_is_link(folder: Path) -> None:
    (folder / KEY).rename(folder.parent / "elsewhere")
    (folder / KEY).symlink_to(folder.parent / "elsewhere")


def folder_is_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def key_is_folder(folder: Path) -> None:
    (folder / KEY).unlink()
    (folder / KEY).mkdir(0o700)


def folder_of_another(folder: Path) -> None:
    os.chown(folder, NOBODY, -1)


def key_of_another(folder: Path) -> None:
    os.chown(folder / KEY, NOBODY, -1)


AS_ROOT = {folder_of_another, key_of_another}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (folder_open, "0750"),
        (folder_writable, "0702"),
        (key_open, "0640"),
        (certificate_writable, "0620"),
        (key_is_link, "link"),
        (folder_is_link, "link"),
        (key_is_folder, "not a file"),
        (folder_of_another, f"user {NOBODY}"),
        (key_of_another, f"user {NOBODY}"),
    ],
)
def test_keys_that_others_have_touched_are_refused(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    make_keys(folder)
    if spoil in AS_ROOT and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    spoil(folder)
    with pytest.raises(PermissionError, match=says):
        load_keys(folder)


@pytest.mark.parametrize("missing", [CERTIFICATE, KEY, "."])
def test_missing_keys_are_named(folder: Path, missing: str) -> None:
    make_keys(folder)
    if missing == ".":
        remove_keys(folder)
    else:
        (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match="tls" if missing == "." else missing):
        load_keys(folder)


# -- the end of them ---------------------------------------------------------------------------------------------------


def test_keys_are_removed_whole_and_twice(folder: Path) -> None:
    make_keys(folder)
    (folder / f"{KEY}.part").touch()  # of one who was killed while writing
    remove_keys(folder)
    assert not folder.exists()
    remove_keys(folder)
    make_keys(folder)  # as after a requeue


def test_removing_takes_nothing_else(folder: Path) -> None:
    make_keys(folder)
    (folder / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        remove_keys(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_removing_follows_no_link(folder: Path) -> None:
    make_keys(folder)
    folder_is_link(folder)
    with pytest.raises(PermissionError, match="link"):
        remove_keys(folder)
    assert (folder / KEY).exists()


def test_a_failure_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tls, "_new_pair", full)
    with pytest.raises(OSError, match="no space"):
        make_keys(folder)
    assert not folder.exists()
    with pytest.raises(ValueError, match="more than 0 days"):
        make_keys(folder, valid_days=0)


# -- a handshake, in memory --------------------------------------------------------------------------------------------


def handshake(server: Security, client: Security, strict: bool = False) -> None:
    """Both sides of TLS without a socket; raises ssl.SSLError where one refuses the other."""
    contexts = (
        server.get_listen_args("scheduler")["ssl_context"],
        client.get_connection_args("client")["ssl_context"],
    )
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    if strict:
        for context in contexts:
            context.verify_flags |= ssl.VERIFY_X509_STRICT
    sides = [
        contexts[0].wrap_bio(to_server, to_client, server_side=True),
        contexts[1].wrap_bio(to_client, to_server),
    ]
    done = 0
    for _ in range(6):  # three flights, and what TLS 1.3 sends behind them
        for side in sides[::-1]:
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue
    assert done >= 2, "the handshake did not end"


@pytest.mark.parametrize("strict", [False, True])
def test_both_sides_take_the_same_keys(folder: Path, strict: bool) -> None:
    handshake(make_keys(folder), load_keys(folder), strict)


def test_another_authority_is_refused(folder: Path) -> None:
    ours, theirs = make_keys(folder), make_keys(folder.with_name("theirs"))
    with pytest.raises(ssl.SSLError):
        handshake(ours, theirs)


def test_an_expired_certificate_is_refused(folder: Path) -> None:
    ours = make_keys(folder, valid_days=1e-8)  # certificates count whole seconds: until this one began
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(ours, ours)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_makes_keys_and_says_what_is_wrong(folder: Path) -> None:
    made = CliRunner().invoke(tls.main, [str(folder), "--days", "1"])
    assert (made.exit_code, made.output) == (0, f"{folder / CERTIFICATE}\n{folder / KEY}\n")
    load_keys(folder)
    again = CliRunner().invoke(tls.main, [str(folder)])
    assert again.exit_code == 1
    assert "new folder" in again.output


def test_another_user_cannot_read_the_key() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)  # so that the folder itself is what stops them
        make_keys(Path(parent, "tls"))
        become = f"import os, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
        for file in (CERTIFICATE, KEY):
            reads = [sys.executable, "-c", f"{become}; open(sys.argv[1])", f"{parent}/tls/{file}"]
            refused = subprocess.run(reads, capture_output=True, text=True, timeout=30)
            assert "PermissionError" in refused.stderr


def test_a_file_system_without_modes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def mkdir_for_all(path: Path, mode: int) -> None:
        mkdir(path)
        os.chmod(path, 0o777)

    monkeypatch.setattr(os, "mkdir", mkdir_for_all)
    with pytest.raises(PermissionError, match=r"0777.*keeps modes"):
        make_keys(folder)
    assert not folder.exists()
