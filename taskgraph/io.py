"""Checkpoints that a kill cannot spoil.

Design note. A checkpoint is a folder:

    path/
      manifest.json     the tree, its tensors as numbers of arrays; names the one generation that counts
      <generation>/     a Zarr group (format 3) of arrays 0, 1, ..., one a tensor; a chunk a block, with its checksum

`save` never changes what the manifest speaks of. It

1. makes a generation under a fresh name and lets the workers write every block into it, each syncing its file;
2. checks that all of them are there, and syncs the folders;
3. writes the new manifest beside the old one, syncs it, renames it over the old one, and syncs the folder;
4. removes every other generation.

A kill in 1 or 2 leaves the old manifest and its generation, and files that nobody speaks of, which the next save
removes; in 3 the old or the new manifest, and both generations; in 4 the new one. It is a manifest swapped by a rename,
and not a symbolic link or an exchange of folders, because that is atomic wherever Python runs.

One process may save to a path at a time. Any number may load meanwhile: `load` reads everything before it returns, and
starts again where a new manifest took the place of the one that it began with. What it gives depends on no file.

A missing chunk is zeros to Zarr; here, it is an error. Tensors that are cut unevenly are written in even blocks, and
cut as they were when they are loaded: the cut decides the order of additions, and so the bits of what comes next.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np

from taskgraph import tensor
from taskgraph.expr import Chunks, Shape
from taskgraph.ops import files
from taskgraph.tensor import Tensor, as_tensor

MANIFEST, FORMAT, VERSION = "manifest.json", "taskgraph-checkpoint", 1
PLAIN = (bool, int, float, str, type(None))  # leaves that stand in the manifest themselves
TRIES = 5  # of a load, while another process saves (chosen: a save takes much longer than to read a manifest)


def save(path: str | os.PathLike[str], tree_: Any, **kwargs: Any) -> None:
    """Write a tree of tensors to the folder `path`, in place of the checkpoint that is there.

    tree_: nested dicts (keys: strings, integers), lists and tuples of tensors, arrays, and of Python numbers, strings
    and None, which are kept as they are; a variable is saved by its present value. The workers write the blocks, so
    they and the client must see the same file system. Tensors that were not computed are computed in one run.
    kwargs: as in `Tensor.compute`.

    Whatever happens meanwhile, a kill, a full disk, a lost worker: `load` gives the old tree or the new one.

    Raises ImportError without Zarr, TypeError, naming the place, for what cannot be saved, OSError where files cannot
    be written or seen from here, FileExistsError where `path` is something else than a checkpoint.

    >>> import tempfile, taskgraph as tg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tg.save(f"{folder}/model", {"w": tg.ones((2, 2)), "step": 3})
    ...     tg.load(f"{folder}/model")
    {'w': tg.Tensor(dask, shape=(2, 2), dtype=float64, chunks=(2, 2), device=auto), 'step': 3}
    """
    draft = Draft(path, tree_)
    try:
        tensor.compute(*draft.writes, **kwargs)
        draft.finish()
    except BaseException:
        draft.abandon()
        raise


def load(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """The tree that `save` wrote to `path`; its tensors are read by the workers, and kept there, before this returns.

    Tensors have the blocks that they had; on which devices they go on is not saved: move them (`t.to`). kwargs: as in
    `Tensor.compute`.

    Raises FileNotFoundError where no checkpoint is (none was ever complete), OSError where one is damaged: a missing
    block, one whose checksum is wrong.
    """
    files.zarr_library()
    folder = Path(path).absolute()
    for _ in range(TRIES):
        manifest = _checked(folder)
        if not manifest:
            raise FileNotFoundError(f"load: there is no checkpoint at {folder}")
        try:
            return _read_tree(folder, manifest, kwargs)
        except Exception:
            if _manifest(folder) == manifest:
                raise
    raise OSError(f"load: the checkpoint at {folder} was replaced {TRIES} times while it was read")


class Draft:
    """A generation that is not yet what the manifest speaks of: the checkpoint `path` of a tree once it is finished.

    writes: what is to be computed before that. Raises as `save`.
    """

    def __init__(self, path: str | os.PathLike[str], tree_: Any):
        zarr = files.zarr_library()
        at: list[Tensor] = []
        structure = _described(tree_, "", at)
        self.folder = Path(path).absolute()
        _check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.generation = self.folder / f"data-{uuid.uuid4().hex}"
        about = [{"chunks": [list(c) for c in t.chunks], "requires_grad": t.is_leaf} for t in at]
        manifest = {"data": self.generation.name, "tensors": about, "tree": structure}
        self._manifest = {"format": FORMAT, "version": VERSION, **manifest}
        try:
            zarr.create_group(str(self.generation))
            writing = [files.writing(t, self.generation / str(n)) for n, t in enumerate(at)]
        except BaseException:
            self.abandon()
            raise
        self.writes = [writes for writes, _ in writing]
        self._files = [made for _, made in writing]

    def finish(self) -> None:
        """Put it in the place of the checkpoint that was there."""
        for made in self._files:
            files.check_files(made)
        _sync_folders(self.generation)
        _swap(self.folder, self._manifest)
        _clean(self.folder, self.generation.name)

    def abandon(self) -> None:
        """Remove it, unless it took its place."""
        if _manifest(self.folder).get("data") != self.generation.name:
            shutil.rmtree(self.generation, ignore_errors=True)


@dataclass(frozen=True)
class Content:
    """What a checkpoint has, without its blocks: the tree, with each array as a number, and the arrays."""

    tree: Any
    arrays: tuple[Any, ...]
    generation: Path


def described(path: str | os.PathLike[str]) -> Content | None:
    """What the checkpoint at `path` has; None where there is none. OSError where it is damaged, or none of ours."""
    folder = Path(path).absolute()
    manifest = _checked(folder)
    if not manifest:
        return None
    generation = folder / manifest["data"]
    arrays = tuple(_array(generation / str(n)) for n in range(len(manifest["tensors"])))
    return Content(_restored(manifest["tree"], tuple(range(len(arrays)))), arrays, generation)


# -- the tree ----------------------------------------------------------------------------------------------------------


def _described(node: Any, path: str, tensors: list[Tensor]) -> Any:
    """A tree as JSON holds it; its tensors are noted in `tensors` and stand there as their numbers."""
    if isinstance(node, dict):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"save: keys are strings or integers, at {path or 'the top'} is {key!r}")
        return {"dict": [[key, _described(child, f"{path}[{key!r}]", tensors)] for key, child in node.items()]}
    if type(node) in (list, tuple):
        return {type(node).__name__: [_described(child, f"{path}[{i}]", tensors) for i, child in enumerate(node)]}
    if type(node) in PLAIN:
        return {"value": node}
    if not isinstance(node, Tensor | np.ndarray | np.generic | da.Array):
        raise TypeError(f"save: cannot save a {type(node).__name__}, at {path or 'the top'}")
    tensors.append(as_tensor(node))
    return {"tensor": len(tensors) - 1}


def _restored(node: dict[str, Any], tensors: tuple[Any, ...]) -> Any:
    ((kind, content),) = node.items()
    if kind == "dict":
        return {key: _restored(child, tensors) for key, child in content}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_restored(child, tensors) for child in content)
    return tensors[content] if kind == "tensor" else content


def _read_tree(folder: Path, manifest: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    about = manifest["tensors"]
    lazy = [
        _from_array(folder / manifest["data"] / str(n), tuple(tuple(c) for c in a["chunks"]))
        for n, a in enumerate(about)
    ]
    tensors = tensor.persist(*lazy, settle=True, **kwargs)
    for t, a in zip(tensors, about, strict=True):
        if a["requires_grad"]:
            t.requires_grad = True
    return _restored(manifest["tree"], tensors)


# -- the files ---------------------------------------------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"save: {folder} is a file")
    others = [] if not folder.exists() else [p for p in folder.iterdir() if not _is_ours(p)]
    if others:
        raise FileExistsError(f"save: {folder} holds something else than a checkpoint: {others[0].name}")


def _is_ours(p: Path) -> bool:
    return p.name.startswith((MANIFEST, "data-"))


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}
    return found


def _checked(folder: Path) -> dict[str, Any]:
    manifest = _manifest(folder)
    if manifest and (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise OSError(f"load: {folder / MANIFEST} is none of ours, or of a newer version of this package")
    return manifest


def _swap(folder: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest in the old one's place, so that it is there after a power cut, too."""
    new = folder / f"{MANIFEST}-{uuid.uuid4().hex}"
    with open(new, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / MANIFEST)
    files.sync(folder)


def _clean(folder: Path, generation: str) -> None:
    """Remove what earlier saves left, also killed ones; what cannot be removed now, the next save will try again."""
    for p in folder.iterdir():
        if p.name not in (MANIFEST, generation) and _is_ours(p):
            if p.is_dir():
                shutil.rmtree(p, ignore_errors=True)
            else:
                p.unlink(missing_ok=True)


def _sync_folders(top: Path) -> None:
    """Sync what the client made: the arrays' metadata, and the entries of all folders, up to where they hang."""
    for at, _, names in os.walk(top, topdown=False):
        if "zarr.json" in names:
            files.sync(Path(at) / "zarr.json")
        files.sync(Path(at))
    for above in (top.parent, top.parent.parent):
        files.sync(above)


# -- blocks ------------------------------------------------------------------------------------------------------------


def _from_array(path: Path, chunks: Chunks) -> Tensor:
    """A saved tensor, cut as it was."""
    array = _array(path)
    name = f"load-{path.parent.name}-{path.name}"
    return files.read(name, partial(read_block, str(path)), array.shape, array.dtype, chunks)


def _array(path: Path) -> Any:
    try:
        return files.zarr_library().open_array(str(path), mode="r")
    except Exception as e:
        raise OSError(f"load: {path} is damaged: {e}") from e


def read_block(path: str, start: Shape, shape: Shape) -> np.ndarray:
    """That rectangle of a saved array. OSError where a block is damaged or missing."""
    array = files.zarr_library().open_array(path, mode="r")
    if 0 in shape:
        return np.empty(shape, array.dtype)
    try:
        values = np.asarray(array[files.rectangle(start, shape)])
    except Exception as e:
        raise OSError(f"load: the block at {start} of {path} is damaged: {e}") from e
    # Behind the read: Zarr gives zeros for a block that is not there, and another process's save may take it away.
    spans = [range(s // w, (s + n - 1) // w + 1) for s, n, w in zip(start, shape, array.chunks, strict=True)]
    for index in itertools.product(*spans):
        if not files.chunk_file(Path(path), index).exists():
            raise OSError(f"load: block {index} of {path} is missing")
    return values
