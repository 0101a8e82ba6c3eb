"""Plans: which grid and which device every product gets."""

from __future__ import annotations

from typing import NotRequired, TypedDict

#: The Dask annotation under which every task of ours carries its `TaskTag`.
TAG = "taskgraph"


class TaskTag(TypedDict):
    """What the plan says of one task; it travels as the task's Dask annotation `TAG`.

    kind: the device class, "cpu" or "gpu", on whose workers alone the task may run.
    slot: the name of the worker that the plan chose for a product's tile, absent where any of the class will do.
    pinned: the user named the slot (`tg.device("gpu:1")`): no other worker of the class takes it while it is alive.
    product, grid, tile: name of the product, its grid (gm, gn, gk), and the tile's place in it (i, j, k).
    """

    kind: str
    slot: NotRequired[str]
    pinned: NotRequired[bool]
    product: NotRequired[str]
    grid: NotRequired[tuple[int, int, int]]
    tile: NotRequired[tuple[int, ...]]
