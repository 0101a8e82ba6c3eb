"""Rates of products as real tiles achieved them, kept between runs: one small file a machine and device.

The first worker on a machine measures for a moment; from then on every tile that it computes refines the figure, and
the next worker begins with that instead of measuring. The file lies in the user's cache folder
(`$XDG_CACHE_HOME/dask-taskgraph`, or `~/.cache/dask-taskgraph`). `TASKGRAPH_CACHE`, or Dask's setting
`taskgraph.cache`, names another folder, or says "off". Nothing that goes wrong with the file ever fails a worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np

from workers.backend import Backend
from workers.counters import counts

logger = logging.getLogger(__name__)

#: What BLAS multiplies; the rates of other types say nothing of a device.
DTYPES = ("float32", "float64", "complex64", "complex128")

#: A tile counts if it is at least as much work as a product of this width, the widest that is measured at a start.
#: There a core and a GPU are within some percent of their rate on larger tiles, which is what a placement needs.
WIDTH = {"cpu": 512, "gpu": 4096}

#: And if no side of it is shorter: thin products are bound by memory, and say nothing of others.
THINNEST = 256

#: The weight of one tile. Chosen: some twenty tiles outweigh what was known before, and one beside a disturbance does
#: not.
WEIGHT = 0.1

#: A figure is used so long after its last tile. Chosen: drivers and clocks change, but not every day.
FRESH_S = 30 * 24 * 3600

#: The file is written no more often than this, and when the worker ends.
SAVE_EVERY_S = 30


@dataclass(frozen=True, slots=True)
class Rate:
    """GFLOP/s of one task (of the "link" GB/s), from how many tiles (0: measured at a worker's start), and when the
    last one ended."""

    gflops: float
    tiles: int
    at: float

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d", time.gmtime(self.at))
        return f"{self.tiles} tiles until {day}" if self.tiles else f"measured at a start on {day}"


class RateBook:
    """The kept rates of one device of this machine.

    path: of the file, None to keep nothing between runs. blas_threads: of each task that it hears of.
    """

    def __init__(self, path: Path | None, blas_threads: int = 1) -> None:
        self.path, self.blas_threads = path, blas_threads
        self._lock = threading.Lock()
        self._observed: set[str] = set()
        self._saved_at = time.monotonic()
        self._rates = _read(path)

    def known(self, what: str) -> Rate | None:
        """The rate of products of a dtype (or of the "link"), where it is fresh."""
        rate = self._rates.get(self._key(what))
        return rate if rate is not None and abs(time.time() - rate.at) < FRESH_S else None

    def measured(self, what: str, gflops: float) -> None:
        """Note what was measured when no rate was known."""
        self._note(self._key(what), Rate(gflops, 0, time.time()))

    def tile(self, dtype: str, gflops: float) -> None:
        """Refine the rate by a tile that was computed."""
        key, before = self._key(dtype), self.known(dtype)
        mean = gflops if before is None else before.gflops + WEIGHT * (gflops - before.gflops)
        self._note(key, Rate(mean, 1 if before is None else before.tiles + 1, time.time()))
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file: what this process has seen, beside what others wrote meanwhile."""
        if self.path is None or not self._observed:
            return
        self._saved_at = time.monotonic()
        with self._lock:
            own = {key: self._rates[key] for key in self._observed}
        try:
            _write(self.path, _read(self.path) | own)
        except OSError as error:
            logger.info("The measured rates are not kept: %s", error)

    def _note(self, key: str, rate: Rate) -> None:
        with self._lock:
            self._rates[key] = rate
            self._observed.add(key)

    def _key(self, what: str) -> str:
        return what if what == "link" else f"{what}/{self.blas_threads}"


def folder() -> Path | None:
    """Where the files are, None where nothing is to be kept."""
    setting = os.environ.get("TASKGRAPH_CACHE") or dask.config.get("taskgraph.cache", None)
    if setting is None:
        # A home that is not there, or not known, is no folder.
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(base) / "dask-taskgraph" if os.path.isabs(base) else None
    return None if str(setting).lower() in ("off", "false", "0", "") else Path(setting)


def open_book(backend: Backend, blas_threads: int = 1) -> RateBook:
    """The book of a device of this machine."""
    where = folder()
    name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{socket.gethostname()}-{backend.kind}-{backend.name}")
    return RateBook(where / f"{name}.json" if where else None, blas_threads)


def _versions() -> dict[str, str]:
    """What a rate depends on besides the device."""
    return {"format": "1", "numpy": np.__version__}


def _read(path: Path | None) -> dict[str, Rate]:
    """The rates in a file; none where it is missing, foreign, broken or of other versions."""
    try:
        told = json.loads(path.read_text()) if path is not None else {}
        if told.get("versions") != _versions():
            return {}
        rates = {key: Rate(float(r["gflops"]), int(r["tiles"]), float(r["at"])) for key, r in told["rates"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {key: rate for key, rate in rates.items() if 0 < rate.gflops < float("inf")}


def _write(path: Path, rates: dict[str, Rate]) -> None:
    """Whoever reads meanwhile sees the old file or the new one. Only its owner may read it: the name of a machine and
    what runs on it are nobody else's business."""
    told = {key: {"gflops": r.gflops, "tiles": r.tiles, "at": r.at} for key, r in sorted(rates.items())}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # of mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"versions": _versions(), "rates": told}, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# -- what a task computed ----------------------------------------------------------------------------------------------

#: The book of this process's device; None: nobody wants to know.
_book: RateBook | None = None

#: The products that this thread's task has computed, as `note` heard of them.
_task = threading.local()


@dataclass(frozen=True, slots=True)
class Product:
    """What a kernel did: operations, the shortest side, the type, and the seconds that its thread had of a core.

    Its own time, since the rate is the device's: 64 workers on two cores would have a machine remembered for weeks as
    thirty times slower than it is (measured).
    """

    flops: int
    thinnest: int
    dtype: str
    seconds: float

    def speaks_for(self, width: int) -> bool:
        """Whether its rate is one of large products in general."""
        return self.dtype in DTYPES and self.thinnest >= THINNEST and self.flops >= 2 * width**3


def use(book: RateBook | None) -> None:
    """Have the tiles of this process noted in `book`; None: in none."""
    global _book
    _book = book


def note(shape: Sequence[int], k: int, dtype: str, seconds: float) -> None:
    """A kernel has computed a product of that shape, or launched it: part of this thread's task."""
    products: list[Product] | None = getattr(_task, "products", None)
    if products is not None:
        products.append(Product(2 * k * math.prod(shape), min(k, *shape[-2:]), dtype, seconds))


def rest(here: Backend) -> None:
    """What follows in this thread's task is other work: its time, and what it uploads, are not the product's."""
    if getattr(_task, "products", None):
        here.synchronize()
        _task.until = time.perf_counter(), _uploaded(here)


@contextlib.contextmanager
def observed(here: Backend) -> Iterator[None]:
    """Note the rates of the large products in the block, a task that waits for its device.

    Not where something was uploaded meanwhile: a plan counts the bytes apart. Of a GPU's, whose kernels only launch,
    the task's time up to `rest` counts, and only where it is a single product.
    """
    book = _book
    if book is None:
        yield
        return
    products: list[Product] = []
    _task.products, _task.until = products, None
    uploaded, start = _uploaded(here), time.perf_counter()
    try:
        yield
    finally:
        _task.products = None
    end, uploaded_then = _task.until or (time.perf_counter(), _uploaded(here))
    seconds = end - start
    is_async = here.kind == "gpu" and not here.emulated
    if uploaded_then > uploaded or (is_async and len(products) > 1):
        return
    for product in products:
        if product.speaks_for(WIDTH["gpu" if is_async else "cpu"]):
            book.tile(product.dtype, product.flops / (seconds if is_async else product.seconds) / 1e9)


def _uploaded(here: Backend) -> int:
    return counts()["bytes_uploaded"] if here.kind == "gpu" else 0
