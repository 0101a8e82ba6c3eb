"""Keys that workers in other jobs can read, and other people cannot."""

from __future__ import annotations

from pathlib import Path

from distributed.security import Security

from deploy import tls


def cluster_keys(security: Security | str | Path | None, new: Path) -> tuple[Security, dict[str, str]]:
    """A cluster's security, and the paths of its keys by option of `dask worker` ("tls-key").

    new: the folder that keys are made in where none are given.

    Raises TypeError for anything else and for True; ValueError where encryption is not required, or keys are not in
    files; PermissionError where others can read them.
    """
    if security is None:
        security = tls.make_keys(new)
    elif isinstance(security, str | Path):
        security = tls.load_keys(Path(security))
    elif not isinstance(security, Security):
        raise TypeError(
            "security is None for keys of the cluster's own, a folder of keys or a distributed.Security, "
            f"not {type(security).__name__}"
        )
    if not security.require_encryption:
        raise ValueError("a cluster on SLURM requires encryption: anyone on its network could run code as you")
    paths = {key: path for key, path in security.get_tls_config_for_role("worker").items() if key != "ciphers"}
    for name, path in paths.items():
        if not path or "\n" in path or not Path(path).is_file():
            raise ValueError(
                f"workers in jobs read keys from files, and {name} is none: give security=None for new ones"
            )
    if Path(paths["key"]).stat().st_mode & 0o077:
        raise PermissionError(f"others can read the key {paths['key']}, and then run code as you: chmod 600 it")
    return security, {f"tls-{key.replace('_', '-')}": str(Path(path).absolute()) for key, path in paths.items()}
