"""Arrays in files: read by the workers where a block is needed, written by them where it is made.

Design note. A file is a source like random numbers: a plan cuts it as a product wants it, and the tasks that use a
block read it. So the one thing that a reader must do is to give any rectangle of the array. Writing is an operation
whose result is the bytes written, block by block; it runs where its block lies, and nothing but a number travels.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import tokenize

from taskgraph import execute, tensor
from taskgraph.chunks import normalize, offsets
from taskgraph.expr import Chunks, DType, Expr, Opaque, Shape
from taskgraph.ops.create import make, source
from taskgraph.ops.shape import rechunk
from taskgraph.primitives import is_dask, no_gradient, primitive
from taskgraph.tensor import Tensor, apply, as_tensor

Index = tuple[int, ...]
PathLike = str | os.PathLike[str]

#: `reader.value(start, shape)` gives that rectangle of an array in a file.
READ = source("read", lambda start, block, *, reader, **_: reader.value(start, block))


def read(name: str, reader: Callable[[Shape, Shape], np.ndarray], shape: Shape, dtype: DType, chunks: Any) -> Tensor:
    """A tensor of what `reader(start, shape)` gives on the workers; `name` is another one when the file has changed."""
    return make(READ, shape, dtype, chunks, None, reader=Opaque(reader, name))


def rectangle(start: Shape, shape: Shape) -> Any:
    """An index that takes so many elements from there along each axis."""
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True)) or ...


def zarr_library() -> Any:
    """The module `zarr`; ImportError, saying what to install, where there is none."""
    try:
        import zarr
    except ImportError as e:
        raise ImportError("files need Zarr, here and on the workers: pip install 'dask-taskgraph[io]'") from e
    return zarr


# -- reading -----------------------------------------------------------------------------------------------------------


def from_zarr(path: PathLike, chunks: Any = None) -> Tensor:
    """A Zarr array as a tensor, which the workers read block by block when it is needed.

    chunks: as Dask takes them; the array's own where None. ImportError without Zarr.

    >>> import tempfile, taskgraph as tg, zarr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     zarr.save_array(f"{folder}/x.zarr", np.arange(3.0))
    ...     float(tg.sum(from_zarr(f"{folder}/x.zarr")))
    3.0
    """
    found = str(Path(path).absolute())
    array = zarr_library().open_array(found, mode="r")
    cut = normalize(tuple(array.chunks) if chunks is None else chunks, array.shape, array.dtype)
    return read(_name("zarr", path), partial(_zarr_block, found), array.shape, array.dtype, cut)


def _zarr_block(path: str, start: Shape, shape: Shape) -> np.ndarray:
    return np.asarray(zarr_library().open_array(path, mode="r")[rectangle(start, shape)])


def from_npy(path: PathLike, chunks: Any = "auto") -> Tensor:
    """An array in a file of NumPy's (`numpy.save`) as a tensor; the workers read the parts that they need of it.

    chunks: as Dask takes them.

    >>> import tempfile, taskgraph as tg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(3.0))
    ...     float(tg.sum(from_npy(f"{folder}/x.npy", chunks=2)))
    3.0
    """
    header = np.load(path, mmap_mode="r")
    return read(_name("npy", path), partial(_npy_block, str(Path(path).absolute())), header.shape, header.dtype, chunks)


def _npy_block(path: str, start: Shape, shape: Shape) -> np.ndarray:
    return np.array(np.load(path, mmap_mode="r")[rectangle(start, shape)])


def from_hdf5(path: PathLike, dataset: str, chunks: Any = None) -> Tensor:
    """A dataset of an HDF5 file as a tensor, which the workers read block by block when it is needed.

    dataset: its name in the file, such as "group/x". chunks: as Dask takes them; the dataset's own where None, or
    Dask's choice where it has none. ImportError without h5py, KeyError for a name that is not there, TypeError for one
    that is no array.

    >>> import tempfile, taskgraph as tg, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(f"{folder}/x.h5", "w") as file:
    ...         file["x"] = np.arange(3.0)
    ...     float(tg.sum(from_hdf5(f"{folder}/x.h5", "x")))
    3.0
    """
    found = str(Path(path).absolute())
    with _hdf5().File(found, "r") as file:
        if dataset not in file:
            raise KeyError(f"from_hdf5: {found} has no dataset {dataset!r}; at the top it has {sorted(file)}")
        array = file[dataset]
        if not hasattr(array, "dtype"):
            raise TypeError(f"from_hdf5: {dataset!r} in {found} is a group of {sorted(array)}, not an array")
        own = chunks if chunks is not None else array.chunks or "auto"
        cut = normalize(own, array.shape, array.dtype)
        return read(_name("hdf5", path, dataset), partial(_hdf5_block, found, dataset), array.shape, array.dtype, cut)


def _hdf5_block(path: str, dataset: str, start: Shape, shape: Shape) -> np.ndarray:
    with _hdf5().File(path, "r") as file:
        return np.asarray(file[dataset][rectangle(start, shape)])


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError as e:
        raise ImportError("HDF5 files need h5py, here and on the workers: pip install 'dask-taskgraph[io]'") from e
    return h5py


def _name(kind: str, path: PathLike, *more: Any) -> str:
    """Of what is read from a file: another one when the file has changed."""
    found = os.stat(path)
    return f"{kind}-{tokenize(str(Path(path).absolute()), *more, found.st_mtime_ns, found.st_size)}"


# -- writing -----------------------------------------------------------------------------------------------------------


def to_zarr(x: Any, path: PathLike, *, overwrite: bool = False, **kwargs: Any) -> None:
    """Compute a tensor and write it to a Zarr array, block by block, where the blocks are made.

    The array appears at `path` when all of it is written, and not at all where anything fails (a task that was still
    writing then may leave parts beside it, under `path` with a suffix). Its chunks are the
    blocks in which the plan makes the tensor, made even where they are not. The workers and the client must see the
    same file system. overwrite: in place of
    what is there. kwargs: as in `Tensor.compute`.

    Raises ImportError without Zarr, FileExistsError where there is something and `overwrite` is not given, OSError
    where files cannot be written or seen from here.

    >>> import tempfile, taskgraph as tg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_zarr(2 * tg.ones((4, 3), chunks=2), f"{folder}/x.zarr")
    ...     float(tg.sum(tg.from_zarr(f"{folder}/x.zarr")))
    24.0
    """
    x, target = as_tensor(x), Path(path).absolute()
    if target.exists() and not overwrite:
        raise FileExistsError(f"to_zarr: {target} is there already; overwrite=True writes in its place")
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        written, files = writing(x, draft, execute.planned_chunks(x.expr, kwargs.get("scheduler")))
        tensor.compute(written, **kwargs)
        check_files(files)
        replace_folder(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_folder(draft: Path, target: Path) -> None:
    """Put a folder in the place of what is there, if anything."""
    if target.exists():
        old = target.with_name(f"{draft.name}-old")
        target.rename(old)
        draft.rename(target)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        draft.rename(target)


def writing(t: Tensor, path: Path, chunks: Chunks | None = None) -> tuple[Tensor, list[Path]]:
    """Make a Zarr array for a tensor; what writes its blocks when it is computed, and the files that are then there.

    chunks: blocks to write, made even where they are not; the tensor's own where None.
    """
    zarr, even = zarr_library(), tuple(_evenly(c) for c in chunks or t.chunks)
    zarr.create_array(
        str(path),
        shape=t.shape,
        chunks=tuple(max(1, c[0]) for c in even),
        dtype=t.dtype,
        zarr_format=3,
        compressors=[zarr.codecs.Crc32cCodec()],  # numbers do not compress, and damage must show
    )
    files = [chunk_file(path, index) for index, _, shape in blocks(even) if 0 not in shape]
    return apply(WRITE, rechunk(t, even), path=str(path), chunks=even), files


def _infer_write(x: Expr, path: str, chunks: Chunks) -> tuple[Shape, DType, Chunks]:
    count = tuple(len(c) for c in chunks)
    return count, np.dtype(np.int64), tuple((1,) * n for n in count)


def _lower_write(xp: Any, x: Any, path: str, chunks: Chunks) -> Any:
    if not is_dask(xp):
        return _write_block(np.asarray(x), path, (0,) * x.ndim)
    ones = tuple((1,) * len(c) for c in chunks)
    nothing = np.empty((0,) * x.ndim, np.int64)
    # A product's plan may have cut it otherwise than the expression said.
    return xp.map_blocks(_write_block, x.rechunk(chunks), path, dtype=np.int64, chunks=ones, meta=nothing)


#: Writes every block to the Zarr array at `path`; gives the bytes of each. (A row whose result is one number a block
#: must be told the blocks: a plan may cut its input otherwise, and no shape may depend on a plan.)
WRITE = primitive("write", kind="array", infer=_infer_write, lower=_lower_write, vjp=no_gradient, jvp=no_gradient)


def _write_block(block: np.ndarray, path: str, block_id: Index = ()) -> np.ndarray:
    """Write one block, on a worker; gives its bytes, so that nothing else travels to the client."""
    if not os.path.isdir(path):
        raise FileNotFoundError(
            f"{socket.gethostname()} does not see {path}; it must be on a disk that workers and client share"
        )
    if block.size:
        array = zarr_library().open_array(path, mode="r+").with_config({"write_empty_chunks": True})
        start = tuple(i * w for i, w in zip(block_id, array.chunks, strict=True))
        array[rectangle(start, block.shape)] = block
        sync(chunk_file(Path(path), block_id))
    return np.full((1,) * block.ndim, block.nbytes)


def sync(path: Path) -> None:
    """Wait until a file (or the entries of a folder) is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_files(files: list[Path]) -> None:
    """Raise FileNotFoundError unless all of them can be seen from here."""
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"a worker wrote {file}, not seen here; it must be on a disk that workers and client share"
            )


def chunk_file(path: Path, index: Index) -> Path:
    """Where Zarr (format 3, its default keys) has a chunk."""
    return Path(path, "c", *map(str, index))


def blocks(chunks: Chunks) -> Iterator[tuple[Index, Shape, Shape]]:
    """Every block: its index, where it begins, its shape."""
    starts = [offsets(c) for c in chunks]
    for index in np.ndindex(*[len(c) for c in chunks]):
        yield (
            index,
            tuple(s[i] for s, i in zip(starts, index, strict=True)),
            tuple(c[i] for c, i in zip(chunks, index, strict=True)),
        )


def _evenly(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """
    >>> _evenly((4, 4, 2)), _evenly((2, 4, 4)), _evenly((0,))
    ((4, 4, 2), (4, 4, 2), (0,))
    """
    width, total = max(sizes, default=0), sum(sizes)
    return tuple(min(width, total - start) for start in range(0, total, width)) if total else (0,)


__all__ = ["from_hdf5", "from_npy", "from_zarr"]
