"""The one upward edge: names of the layers above this one, looked up when they are first used.

`taskgraph` is imported by `autodiff`, `scheduler_plugins` and `deploy`, so it cannot import them; the facade and the
few places that need them (a tensor's `backward`, the plugin's registration, the simulation of what the plugin does) ask
here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

WHERE = {
    "gradients": "autodiff.reverse",
    "grad": "autodiff.functional",
    "value_and_grad": "autodiff.functional",
    "vjp": "autodiff.functional",
    "jvp": "autodiff.functional",
    "jacobian": "autodiff.jacobian",
    "hessian": "autodiff.jacobian",
    "hvp": "autodiff.jacobian",
    "checkpoint": "autodiff.checkpoint",
    "check_grads": "autodiff.check",
    "from_files": "taskgraph.saved",
    "through_files": "taskgraph.saved",
    "TilePlacement": "scheduler_plugins.plugin",
    "KeptValues": "scheduler_plugins.lineage",
    "assign": "scheduler_plugins.placement",
    "exchange": "scheduler_plugins.locality",
    "has_room": "scheduler_plugins.placement",
    "places": "scheduler_plugins.placement",
    "staying": "scheduler_plugins.placement",
    "ReadyQueue": "scheduler_plugins.placement",
    "ReadyTask": "scheduler_plugins.placement",
    "WorkerView": "scheduler_plugins.placement",
    "LocalCluster": "deploy.local",
    "profile": "workers.profile",
    "bytes_per_s": "workers.network",
    "run_bench": "deploy.bench",
    "run_demo": "deploy.demo",
    "run_script": "deploy.programs",
    "show_info": "deploy.programs",
    "load_keys": "deploy.tls",
    "slurm_commands": "deploy.slurm.command_line",
}


def resolve(name: str) -> Any:
    """The object behind a name of the map."""
    return getattr(import_module(WHERE[name]), name)
