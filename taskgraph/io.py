"""Files: checkpoints that a kill cannot spoil, and arrays that workers read where they need them.

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

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import dask.base
import numpy as np
from dask.base import tokenize

from taskgraph import tensor
from taskgraph.chunks import normalize, offsets
from taskgraph.expr import Chunks, DType, Shape
from taskgraph.ops.create import from_dask
from taskgraph.ops.shape import rechunk
from taskgraph.tensor import Tensor, as_tensor

MANIFEST, FORMAT, VERSION = "manifest.json", "taskgraph-checkpoint", 1
PLAIN = (bool, int, float, str, type(None))  # leaves that stand in the manifest themselves
TRIES = 5  # of a load, while another process saves (chosen: a save takes much longer than to read a manifest)

Index = tuple[int, ...]


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
    zarr = _zarr()
    at: list[Tensor] = []
    structure = _described(tree_, "", at)
    folder = Path(path).absolute()
    _check_folder(folder)
    kept = tensor.persist(*at, **kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    generation = folder / f"data-{uuid.uuid4().hex}"
    try:
        zarr.create_group(str(generation))
        arrays = [_to_array(zarr, t, generation / str(n)) for n, t in enumerate(kept)]
        dask.base.compute(*[written for written, _ in arrays], **kwargs)
        for _, files in arrays:
            _check_files(files)
        _sync_folders(generation)
        about = [
            {"chunks": [list(c) for c in t.chunks], "requires_grad": leaf.is_leaf}
            for t, leaf in zip(kept, at, strict=True)
        ]
        manifest = {"format": FORMAT, "version": VERSION, "data": generation.name, "tensors": about, "tree": structure}
        _swap(folder, manifest)
    except BaseException:
        if _manifest(folder).get("data") != generation.name:
            shutil.rmtree(generation, ignore_errors=True)
        raise
    _clean(folder, generation.name)


def load(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """The tree that `save` wrote to `path`; its tensors are read by the workers, and kept there, before this returns.

    Tensors have the blocks that they had; on which devices they go on is not saved: move them (`t.to`). kwargs: as in
    `Tensor.compute`.

    Raises FileNotFoundError where no checkpoint is (none was ever complete), OSError where one is damaged: a missing
    block, one whose checksum is wrong.
    """
    _zarr()
    folder = Path(path).absolute()
    for _ in range(TRIES):
        manifest = _manifest(folder)
        if not manifest:
            raise FileNotFoundError(f"load: there is no checkpoint at {folder}")
        if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
            raise OSError(f"load: {folder / MANIFEST} is none of ours, or of a newer version of this package")
        try:
            return _read_tree(folder, manifest, kwargs)
        except Exception:
            if _manifest(folder) == manifest:
                raise
    raise OSError(f"load: the checkpoint at {folder} was replaced {TRIES} times while it was read")


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


def _restored(node: dict[str, Any], tensors: tuple[Tensor, ...]) -> Any:
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


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as e:
        raise ImportError("files need Zarr, here and on the workers: pip install 'dask-taskgraph[io]'") from e
    return zarr


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


def _swap(folder: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest in the old one's place, so that it is there after a power cut, too."""
    new = folder / f"{MANIFEST}-{uuid.uuid4().hex}"
    with open(new, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / MANIFEST)
    _sync(folder)


def _clean(folder: Path, generation: str) -> None:
    """Remove what earlier saves left, also killed ones; what cannot be removed now, the next save will try again."""
    for p in folder.iterdir():
        if p.name not in (MANIFEST, generation) and _is_ours(p):
            if p.is_dir():
                shutil.rmtree(p, ignore_errors=True)
            else:
                p.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(top: Path) -> None:
    """Sync what the client made: the arrays' metadata, and the entries of all folders, up to where they hang."""
    for at, _, files in os.walk(top, topdown=False):
        if "zarr.json" in files:
            _sync(Path(at) / "zarr.json")
        _sync(Path(at))
    for above in (top.parent, top.parent.parent):
        _sync(above)


def _check_files(files: list[Path]) -> None:
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"save: a worker wrote {file}, not seen here; it must be on a disk that workers and client share"
            )


# -- blocks ------------------------------------------------------------------------------------------------------------


def _even(chunks: Chunks) -> Chunks:
    """Blocks of one size along each axis, but for the last, as Zarr has them: the same where they are so already."""
    return tuple(_evenly(c) for c in chunks)


def _evenly(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """
    >>> _evenly((4, 4, 2)), _evenly((2, 4, 4)), _evenly((0,))
    ((4, 4, 2), (4, 4, 2), (0,))
    """
    width, total = max(sizes, default=0), sum(sizes)
    return tuple(min(width, total - start) for start in range(0, total, width)) if total else (0,)


def _indices(chunks: Chunks) -> Iterator[tuple[Index, Shape, Shape]]:
    """Every block: its index, where it begins, its shape."""
    starts = [offsets(c) for c in chunks]
    for index in np.ndindex(*[len(c) for c in chunks]):
        yield (
            index,
            tuple(s[i] for s, i in zip(starts, index, strict=True)),
            tuple(c[i] for c, i in zip(chunks, index, strict=True)),
        )


def _to_array(zarr: Any, t: Tensor, path: Path) -> tuple[Any, list[Path]]:
    """A Zarr array for a tensor: what writes its blocks when it is computed, and the files that are then there."""
    even = _even(t.chunks)
    zarr.create_array(
        str(path),
        shape=t.shape,
        chunks=tuple(max(1, c[0]) for c in even),
        dtype=t.dtype,
        zarr_format=3,
        compressors=[zarr.codecs.Crc32cCodec()],  # weights do not compress, and damage must show
    )
    blocks = rechunk(t, even).to_dask()
    ones = tuple((1,) * len(c) for c in even)
    nothing = np.empty((0,) * t.ndim, np.int64)
    written = da.map_blocks(_write_block, blocks, str(path), dtype=np.int64, chunks=ones, meta=nothing)
    files = [_file(str(path), index) for index, _, shape in _indices(even) if 0 not in shape]
    return written, files


def _file(path: str, index: Index) -> Path:
    """Where Zarr (format 3, its default keys) has a chunk."""
    return Path(path, "c", *map(str, index))


def _write_block(block: np.ndarray, path: str, block_id: Index = ()) -> np.ndarray:
    """Write one block, on a worker; gives its bytes, so that nothing else travels to the client."""
    if not os.path.isdir(path):
        raise FileNotFoundError(
            f"save: {socket.gethostname()} does not see {path}; it must be on a disk that workers and client share"
        )
    if block.size:
        array = _zarr().open_array(path, mode="r+").with_config({"write_empty_chunks": True})
        array[_slices(array.chunks, block_id, block.shape)] = block
        _sync(_file(path, block_id))
    return np.full((1,) * block.ndim, block.nbytes)


def _slices(width: Shape, index: Index, shape: Shape) -> Any:
    return tuple(slice(i * w, i * w + n) for i, w, n in zip(index, width, shape, strict=True)) or ...


def _from_array(path: Path, chunks: Chunks) -> Tensor:
    """A saved tensor, cut as it was."""
    try:
        array = _zarr().open_array(str(path), mode="r")
    except Exception as e:
        raise OSError(f"load: {path} is damaged: {e}") from e
    even = normalize(tuple(array.chunks), array.shape, array.dtype)
    blocks = _reading(f"load-{path.parent.name}-{path.name}", partial(_read_block, str(path)), even, array.dtype)
    return rechunk(blocks, chunks)


def _reading(name: str, read: Callable[[Index, Shape, Shape], np.ndarray], chunks: Chunks, dtype: DType) -> Tensor:
    """A tensor whose blocks `read(index, start, shape)` gives, on the workers."""
    tasks: dict[Any, Any] = {(name, *block[0]): (read, *block) for block in _indices(chunks)}
    return from_dask(da.Array(tasks, name, chunks, dtype=dtype))


def _read_block(path: str, index: Index, start: Shape, shape: Shape) -> np.ndarray:
    array = _zarr().open_array(path, mode="r")
    if 0 in shape:
        return np.empty(shape, array.dtype)
    try:
        values = np.asarray(array[_slices(array.chunks, index, shape)])
    except Exception as e:
        raise OSError(f"load: block {index} of {path} is damaged: {e}") from e
    # Behind the read: Zarr gives zeros for a block that is not there, and another process's save may take it away.
    if not _file(path, index).exists():
        raise OSError(f"load: block {index} of {path} is missing")
    return values


# -- arrays of others --------------------------------------------------------------------------------------------------


def from_zarr(path: str | os.PathLike[str], chunks: Any = None) -> Tensor:
    """A Zarr array as a tensor, which the workers read block by block when it is needed.

    chunks: as Dask takes them; the array's own where None. ImportError without Zarr.

    >>> import tempfile, taskgraph as tg, zarr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     zarr.save_array(f"{folder}/x.zarr", np.arange(3.0))
    ...     float(tg.sum(from_zarr(f"{folder}/x.zarr")))
    3.0
    """
    array = _zarr().open_array(str(Path(path).absolute()), mode="r")
    cut = normalize(tuple(array.chunks) if chunks is None else chunks, array.shape, array.dtype)
    return _reading(_name("zarr", path), partial(_zarr_block, str(Path(path).absolute())), cut, array.dtype)


def _zarr_block(path: str, index: Index, start: Shape, shape: Shape) -> np.ndarray:
    array = _zarr().open_array(path, mode="r")
    return np.asarray(array[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True)) or ...])


def from_npy(path: str | os.PathLike[str], chunks: Any = "auto") -> Tensor:
    """An array in a file of NumPy's (`numpy.save`) as a tensor; the workers read the parts that they need of it.

    chunks: as Dask takes them.

    >>> import tempfile, taskgraph as tg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(3.0))
    ...     float(tg.sum(from_npy(f"{folder}/x.npy", chunks=2)))
    3.0
    """
    header = np.load(path, mmap_mode="r")
    cut = normalize(chunks, header.shape, header.dtype)
    return _reading(_name("npy", path), partial(_npy_block, str(Path(path).absolute())), cut, header.dtype)


def _npy_block(path: str, index: Index, start: Shape, shape: Shape) -> np.ndarray:
    part = np.load(path, mmap_mode="r")[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
    return np.array(part)


def _name(kind: str, path: str | os.PathLike[str]) -> str:
    """Of the tasks that read a file: another one when the file has changed."""
    found = os.stat(path)
    return f"{kind}-{tokenize(str(Path(path).absolute()), found.st_mtime_ns, found.st_size)}"
