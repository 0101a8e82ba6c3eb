"""What a value was made of, as a digest that is the same whenever the same script makes it.

Design note. An expression's own token will not do: it tells apart what a derivative must tell apart (two equal arrays
that a user made), and values that are kept on a cluster have one for each time that they were kept. Here, an array is
its contents, a file its path, time and size, a random array its seed, a kept value what it was computed from, a
checkpoint what was saved there; marks and device pins do not count, since they change no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskgraph.expr import Expr, digest, topological
from taskgraph.lineage import kept

#: What gives its first input's values.
MARKS = ("leaf", "stop_gradient", "argument", "move", "barrier", "checkpoint", "saved")

#: What a checkpoint's reader is called, before the digest of what it holds.
CHECKPOINT = "checkpoint-of-"


def provenance(exprs: Iterable[Expr]) -> dict[Expr, str]:
    """The digest of every expression that these need.

    >>> import taskgraph as tg
    >>> x, y, z = (tg.exp(tg.asarray([1.0, last])).expr for last in (2.0, 2.0, 3.0))
    >>> found = provenance([x, y, z])
    >>> x is y, found[x] == found[y], found[x] == found[z]
    (False, True, False)
    """
    found: dict[Expr, str] = {}
    for node in topological(exprs):
        found[node] = found[node.inputs[0]] if node.op.name in MARKS else _of(node, found)
    return found


def _of(node: Expr, found: dict[Expr, str]) -> str:
    if node.op.name == "read" and node.params["reader"].token.startswith(CHECKPOINT):
        return str(node.params["reader"].token.removeprefix(CHECKPOINT).partition("@")[0])
    lies = kept(node.inputs[0] if node.op.name == "part" else node)
    if lies is not None:
        return (lies.made or {}).get(node.params.get("index"), lies.token)
    if node.op.name == "dask":
        return digest(node.params["array"].value.name)
    return digest(node.op.name, _params(node), [found[i] for i in node.inputs])


def _params(node: Expr) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in node.params.items() if name != "id")
