"""Jobs of a SLURM cluster: batch scripts, what runs inside them, and clusters that scale by jobs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Looked up when first used: a batch script needs neither Dask nor dask-jobqueue.
_WHERE = {
    "MixedSlurmCluster": "deploy.slurm.cluster",
    "Pool": "deploy.slurm.pools",
    "connect": "deploy.slurm.follow",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
