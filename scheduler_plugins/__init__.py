"""Plugins of the Dask scheduler: register `TilePlacement()` with a client, or start the scheduler with
`dask scheduler --preload scheduler_plugins`."""

from scheduler_plugins.lineage import KeptValues
from scheduler_plugins.plugin import TilePlacement, dask_setup, report

__all__ = ["KeptValues", "TilePlacement", "dask_setup", "report"]
