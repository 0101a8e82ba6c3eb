"""What stands behind a kept value: how many steps it is made of, and the values that they start from.

Design note. Dask can make a kept value again after a worker's death, since it keeps the tasks behind it. In a loop
those are all the steps that ever were, so every `CUT_EVERY` steps the value is entered anew, without history, held by
two workers (`scheduler_plugins.lineage` says how). The steps that follow can be made again from such a *base*, but
only while it is there: Dask would forget it as soon as nobody wants it. So every kept value holds its bases, until
its own history is cut. At any moment the cluster holds the present values once and their base twice.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import dask
from dask.core import flatten
from dask.utils import key_split

from taskgraph import connection
from taskgraph.expr import Expr, Opaque, topological

logger = logging.getLogger(__name__)

Key = Any

#: Steps between two cuts (the Dask option `taskgraph.lineage-steps`; 0: never). Chosen: a cut costs what half a small
#: step costs (measured: see benchmarks/training_memory.py), 32 steps are soon made again, and their tasks are some
#: hundred kB in the scheduler.
CUT_EVERY = 32


class LostValues(RuntimeError):
    """Kept values are gone with all the workers that held them, and cannot be made again."""


@dataclass(frozen=True, slots=True, repr=False)
class Kept(Opaque):
    """Blocks that exist, as a Dask array (`value`), and what stands behind them.

    depth: how many runs they are made of, in a row, since their bases were cut; 0 for what was cut itself.
    bases: the cut values that they are made of. names: of the variables that have this value. made: the provenance
    of the value (None), or of each part of it.
    """

    depth: int = 1
    bases: tuple[Kept, ...] = ()
    names: tuple[str, ...] = ()
    made: Mapping[int | None, str] | None = None

    @property
    def keys(self) -> list[Key]:
        return list(flatten(self.value.__dask_keys__()))


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind the results of a run; see `Kept`."""

    depth: int = 1
    bases: tuple[Kept, ...] = ()

    @property
    def is_due(self) -> bool:
        """Whether the history is to be cut now. One that could not be, grows on to the next multiple."""
        every = int(dask.config.get("taskgraph.lineage-steps", CUT_EVERY))
        return every > 0 and self.depth > 0 and self.depth % every == 0


CUT = Behind(depth=0)


def kept(node: Expr) -> Kept | None:
    """The kept blocks that an expression is; None where it is something else."""
    found = node.params.get("array")
    return found if isinstance(found, Kept) else None


def behind(exprs: Sequence[Expr]) -> Behind:
    """What will stand behind the results when these expressions are run."""
    leaves = [found for node in topological(exprs) if (found := kept(node)) is not None]
    bases = {id(base): base for leaf in leaves for base in ([leaf] if leaf.depth == 0 else leaf.bases)}
    return Behind(1 + max((leaf.depth for leaf in leaves), default=0), tuple(bases.values()))


def cut(client: Any, futures: Mapping[Key, Any]) -> dict[Key, Any]:
    """Futures of the same values under new keys, without history, by old key; waits for the values.

    Empty where it could not be done: a value could not be computed, the scheduler lacks our plugin, a worker died.
    """
    from distributed import Future, wait

    wait(list(futures.values()))
    if not futures or any(f.status != "finished" for f in futures.values()):
        return {}
    names = {name: f"{key_split(name)}-{uuid.uuid4().hex}" for name in {key[0] for key in futures}}
    pairs = [(key, (names[key[0]], *key[1:])) for key in futures]
    # Made before the scheduler knows the keys, so that no word of their loss is missed.
    fresh: dict[Key, Any] = {old: Future(new, client) for old, new in pairs}
    try:
        why = client.sync(client.scheduler.taskgraph_cut, pairs=pairs, wanted_by=client.id)
    except Exception as error:
        why = repr(error)
    if why != "":
        logger.warning("The history of kept values was not cut (tried again later): %s", why)
        return {}
    return fresh


@contextlib.contextmanager
def losses_named(client: Any, exprs: Sequence[Expr]) -> Iterator[None]:
    """Raise LostValues, which says what is lost, where a run is cancelled because values that it needs are gone."""
    try:
        yield
    except CancelledError as error:
        connection.check(client)  # or it is asked in vain
        _raise_own_errors(exprs)
        lost = _lost(client, [node for node in topological(exprs) if kept(node) is not None])
        if lost is None:
            raise
        raise LostValues(lost) from error


def _raise_own_errors(exprs: Sequence[Expr]) -> None:
    """Raise what the tasks of a kept value raised, if they did: the value was never there."""
    from distributed import futures_of

    for found in filter(None, map(kept, topological(exprs))):
        for future in futures_of(found.value):
            if future.status == "error":
                future.result()


def _lost(client: Any, leaves: Sequence[Expr]) -> str | None:
    """What is to be said of those of the leaves that are gone; None where none is."""
    of_leaf = {leaf: found for leaf in leaves if (found := kept(leaf)) is not None}
    asked = {key for found in of_leaf.values() for one in (found, *found.bases) for key in one.keys}
    try:
        gone = dict(client.sync(client.scheduler.taskgraph_gone, keys=list(asked)))
    except Exception as error:
        logger.warning("The scheduler does not say what is lost: %r", error)
        return None
    lost = [leaf for leaf, found in of_leaf.items() if not gone.keys().isdisjoint(found.keys)]
    if not lost:
        return None
    whats = dict.fromkeys(_called(leaf) for leaf in lost)
    holders = {
        w for leaf in lost for one in (of_leaf[leaf], *of_leaf[leaf].bases) for k in one.keys for w in gone.get(k, ())
    }
    where = f"the workers that held the last copies ({', '.join(sorted(holders))})" if holders else "their workers"
    return (
        f"{', '.join(whats)} cannot be computed again: {where} are gone, and the steps before are not remembered. "
        "Go on from a checkpoint: tg.load(path) gives what tg.save(path, tree) wrote"
    )


def _called(leaf: Expr) -> str:
    found = kept(leaf)
    if found is not None and found.names:
        return f"variable{'s' * (len(found.names) > 1)} {', '.join(map(repr, found.names))}"
    return f"a persisted tensor {leaf.dtype} {leaf.shape}" if leaf.chunks else "persisted tensors"
