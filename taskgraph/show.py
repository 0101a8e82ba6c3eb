"""How tensors and graphs are shown: one line, a table for notebooks, counts for explanations."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import dask.array as da
from dask.utils import format_bytes

from taskgraph.expr import topological
from taskgraph.plan import TAG

if TYPE_CHECKING:
    from taskgraph.lower import Lowered
    from taskgraph.tensor import Tensor


def text(t: Tensor) -> str:
    """One line: operation, shape, dtype, the greatest block along every axis, device."""
    blocks = tuple(max(c) for c in t.chunks)
    name = f"{t.expr.params['name']!r}, " if t.expr.params.get("name") else ""
    wants = ", requires_grad=True" if t.requires_grad else ""
    return (
        f"tg.{type(t).__name__}({name}{t.expr.op.name}, shape={t.shape}, dtype={t.dtype}, chunks={blocks}, "
        f"device={t.device}{wants})"
    )


def html(t: Tensor) -> str:
    """Dask's own table and drawing of the blocks, under our heading."""
    stand_in = da.zeros(t.shape, chunks=t.chunks, dtype=t.dtype)
    nodes = len(topological([t.expr]))
    heading = f"<b>tg.{type(t).__name__}</b>: {t.expr.op.name}, {nodes} expressions, device {t.device}"
    body: Any = stand_in._repr_html_()
    return f"<div>{heading}, {format_bytes(t.nbytes)}</div>{body}"


def tasks_per_kind(lowered: Lowered) -> dict[str, int]:
    """How many tasks each device class gets."""
    count: Counter[str] = Counter()
    for layer in lowered.graph.layers.values():
        tag = (layer.annotations or {})[TAG]
        for key in layer:
            count[(tag(key) if callable(tag) else tag)["kind"]] += 1
    return dict(count)
