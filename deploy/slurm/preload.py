"""What sets the workers of a job apart from others: one GPU each, and one address that they listen at.

dask worker ... --nworkers 2 --preload-nanny deploy.slurm.preload
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distributed import Nanny
from distributed.comm.addressing import unparse_host_port

from workers.backend import visible_tokens


def dask_setup(nanny: Any) -> None:
    """Give the nanny's worker the GPU at its place among those that SLURM gave the job, and the nanny's address.

    Raises TypeError in a worker without nanny; ValueError where SLURM gave too few GPUs.
    """
    if not isinstance(nanny, Nanny):
        raise TypeError(f"deploy.slurm.preload is a preload of nannies, not of a {type(nanny).__name__}")
    if not nanny.worker_kwargs.get("host") and not nanny.worker_kwargs.get("interface"):
        # By itself a worker listens on every network of its node.
        nanny.worker_kwargs["host"] = unparse_host_port(nanny.ip)
    device = os.environ.get("TASKGRAPH_DEVICE")
    if device not in ("gpu", "emulated-gpu"):
        return
    tokens = visible_tokens(os.environ) or ()
    if tokens or device == "gpu":
        nanny.env["CUDA_VISIBLE_DEVICES"] = pick_gpu(tokens, str(nanny.name))
    if device == "gpu":
        # Dask's spilling would count a tile's device bytes against the host's memory.
        nanny.worker_kwargs["data"] = dict


def pick_gpu(tokens: Sequence[str], worker: str) -> str:
    """Which of the job's GPUs is this worker's: the one at the place that its name says.

    Raises ValueError, saying what is there, where the job has none at that place.

    >>> pick_gpu(["2", "5"], "gpu-3-1"), pick_gpu(["GPU-8932f937"], "gpu-3")
    ('5', 'GPU-8932f937')
    """
    parts = worker.split("-")
    place = int(parts[2]) if len(parts) > 2 else 0
    if place >= len(tokens):
        there = f"CUDA_VISIBLE_DEVICES={','.join(tokens)}" if tokens else "no GPU (CUDA_VISIBLE_DEVICES is empty)"
        raise ValueError(f"worker {worker!r} needs GPU {place} of its job, which got {there} from SLURM")
    return tokens[place]
