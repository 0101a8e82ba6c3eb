"""Where the processes of a local cluster keep files: a folder that other users can neither read nor write."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import dask


def scratch_folder() -> Path:
    """This user's folder for spilled data and uploaded code, under Dask's `temporary-directory` or the system's.

    Dask itself takes `dask-scratch-space` there, whoever made it, reads spilled data from it with pickle and imports
    modules from it: a neighbour who makes that folder first could have his code run. One folder for all clusters of a
    user, so that Dask finds what a killed one left behind, and removes it.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir()).absolute()
    folder = parent / f"dask-taskgraph-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=parent))
    return folder
