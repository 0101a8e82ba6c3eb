"""Values that are written to files when they are computed, and read from there ever after: `t.checkpoint(path)`.

Design note. `checkpoint` puts a mark behind an expression. A run that meets marks first looks which have their file: in
the place of these, and of what they mark, stands a source that reads the file, so nothing behind them is computed, or
remembered. Those without a file are computed and written in a run of their own, before the rest: the first ones of all
branches together, then what comes behind them. What such a run computes and the rest needs, too, is kept for it.

The file is a checkpoint like those of `tg.save` (a kill leaves it whole, or absent), and says the value's provenance.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskgraph import execute, io
from taskgraph.expr import Expr, Opaque, bind, pinned, substitute, topological
from taskgraph.layout import LYING
from taskgraph.ops import files
from taskgraph.ops.create import SAVED, marked
from taskgraph.ops.files import READ
from taskgraph.provenance import CHECKPOINT, provenance
from taskgraph.tensor import Tensor


def checkpoint(t: Tensor, path: str | os.PathLike[str]) -> Tensor:
    """See `Tensor.checkpoint`."""
    files.zarr_library()
    folder = str(Path(path).absolute())
    return marked(SAVED, t, file=Opaque(folder, folder))


def from_files(exprs: Sequence[Expr]) -> tuple[Expr, ...]:
    """The expressions with what was saved before read from its files.

    Raises ValueError where a file has the value of another expression, OSError where it is damaged.
    """
    marks = [node for node in topological(exprs) if node.op is SAVED]
    made = provenance(marks)
    values: dict[Expr, Expr] = {}
    for node in marks:
        found = _read(node, made[node])
        if found is not None:
            values |= {node: found, node.inputs[0]: found}
    return substitute(exprs, values) if values else tuple(exprs)


def through_files(exprs: Sequence[Expr], scheduler: Any, **kwargs: Any) -> tuple[Expr, ...]:
    """The expressions with all that is to be saved computed, written and read from its files."""
    while marks := _first(exprs):
        values = _write(marks, _needed_besides(exprs, marks), scheduler, **kwargs)
        exprs = substitute(exprs, values)
    return tuple(exprs)


def _first(exprs: Sequence[Expr]) -> list[Expr]:
    """The marks that stand behind no other."""
    behind: dict[Expr, bool] = {}  # whether there is a mark at the expression or before it
    found = []
    for node in topological(exprs):
        before = any(behind[i] for i in node.inputs)
        if node.op is SAVED and not before:
            found.append(node)
        behind[node] = before or node.op is SAVED
    return found


def _needed_besides(exprs: Sequence[Expr], marks: Sequence[Expr]) -> list[Expr]:
    """What is computed on the way to the marks and needed for the rest, too: where the one meets the other."""
    read = {*marks, *[m.inputs[0] for m in marks]}
    on_the_way = set(topological(marks)) - read
    rest = [node for node in topological(exprs, until=read) if node not in on_the_way and node not in read]
    met = dict.fromkeys([*[i for node in rest for i in node.inputs], *exprs])
    return [node for node in met if node in on_the_way and node.inputs and node.op.name not in LYING]


def _write(marks: Sequence[Expr], besides: Sequence[Expr], scheduler: Any, **kwargs: Any) -> dict[Expr, Expr]:
    made = provenance(marks)
    drafts: dict[str, io.Draft] = {}
    try:
        for node in marks:
            folder = _folder(node)
            if folder in drafts:
                raise ValueError(f"checkpoint: {folder} is given for two values; give each a path of its own")
            about = {"made": made[node], "value": Tensor(node.inputs[0])}
            drafts[folder] = io.Draft(folder, {"checkpoint": about})
        writes = [t.expr for draft in drafts.values() for t in draft.writes]
        keep = [False] * len(writes) + [True] * len(besides)
        results = execute.run([*writes, *besides], keep, scheduler, settle=True, **kwargs)
        for draft in drafts.values():
            draft.finish()
    except BaseException:
        for draft in drafts.values():
            draft.abandon()
        raise
    values = dict(zip(besides, results[len(writes) :], strict=True))
    for node in marks:
        found = _read(node, made[node])
        assert found is not None, f"{_folder(node)} was written and is not there"
        values |= {node: found, node.inputs[0]: found}
    return values


def _read(node: Expr, made: str) -> Expr | None:
    """What reads the value that a mark's file has; None where it has none."""
    folder = _folder(node)
    content = io.described(folder)
    if content is None:
        return None
    about = content.tree.get("checkpoint") if isinstance(content.tree, dict) else None
    if about is None:
        raise ValueError(
            f"checkpoint: {folder} is what tg.save wrote, not a value of `t.checkpoint`; give another path"
        )
    if about["made"] != made:
        was = content.arrays[0]
        raise ValueError(
            f"checkpoint: {folder} has another value than {node.dtype} {node.shape} made of this expression: "
            f"{was.dtype} {was.shape} of other operations, data or seeds; remove it, or give another path "
            "(random arrays need a seed to be the same again)"
        )
    token = f"{CHECKPOINT}{made}@{content.generation.name}"
    reader = Opaque(partial(io.read_block, str(content.generation / "0")), token)
    with pinned(None):
        return bind(READ, shape=node.shape, dtype=node.dtype, chunks=node.chunks, reader=reader)


def _folder(node: Expr) -> str:
    return str(node.params["file"].value)
