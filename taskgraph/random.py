"""Random numbers that are the same wherever they are made and however the array is cut.

Design note. An array of random numbers is divided into fixed cells (at most 2**16 elements, by its shape alone). A cell
is drawn from a counter-based generator (Philox4x64; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11)
whose key is the seed and whose counter starts at the cell's number, so a worker makes any block from the position of
the block alone. Neither the chunks nor the device changes a number: the plan may cut a source as it likes, and a
product can make its operands where it needs them. The cost is that a block which cuts a cell draws the whole cell.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskgraph.expr import DType, Shape
from taskgraph.ops.create import make, sizes, source
from taskgraph.tensor import Tensor

CELL = 2**16  # elements: half a millisecond to draw for one element; smaller ones would slow large blocks down
EDGE = 256  # of a cell along the last two axes, so that cells of a matrix are square


def _cell_shape(shape: Shape) -> Shape:
    sides, left = [], CELL
    for axis, size in enumerate(reversed(shape)):
        side = max(1, min(size, left, EDGE if len(shape) > 1 and axis < 2 else left))
        sides.append(side)
        left //= side
    return tuple(reversed(sides))


def _block(start: Shape, block: Shape, *, shape: Shape, dtype: DType, method: str, seed: int, **params: Any) -> Any:
    """The block of that shape which begins at `start`, put together from the cells that it meets."""
    cell = _cell_shape(shape)
    grid = tuple(-(-s // c) for s, c in zip(shape, cell, strict=True))
    result = np.empty(block, dtype)
    met = [range(s // c, -(-(s + n) // c)) for s, n, c in zip(start, block, cell, strict=True)]
    for index in itertools.product(*met):
        values = _draw(_number(index, grid), cell, dtype, method, seed, params)
        into, out_of = [], []
        for i, c, s, n in zip(index, cell, start, block, strict=True):
            low, high = max(i * c, s), min((i + 1) * c, s + n)
            into.append(slice(low - s, high - s))
            out_of.append(slice(low - i * c, high - i * c))
        result[tuple(into)] = values[tuple(out_of)]
    return result


def _number(index: Sequence[int], grid: Sequence[int]) -> int:
    n = 0
    for i, g in zip(index, grid, strict=True):
        n = n * g + i
    return n


def _draw(number: int, cell: Shape, dtype: DType, method: str, seed: int, params: dict[str, Any]) -> Any:
    # the cell's number is the high half of the 256-bit counter: cells cannot overlap
    bits = np.random.Philox(key=seed, counter=[0, 0, number & (2**64 - 1), number >> 64])
    rng = np.random.Generator(bits)
    if method == "integers":
        return rng.integers(params["low"], params["high"], size=cell, dtype=dtype)
    native = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)
    values = getattr(rng, method)(size=cell, dtype=native)
    if method == "random" and dtype == np.float16:
        values = np.floor(values * 2**11) / 2**11  # rounded to its 11 bits, 2047.5 / 2048 would be 1
    return values.astype(dtype, copy=False)


RANDOM = source("random", _block)


class Generator:
    """A stream of random arrays: the same seed gives the same arrays in the same order of calls.

    Made by `default_rng`. Every method gives a lazy tensor; its numbers depend on the seed, the number of arrays drawn
    before and the array's shape, and on nothing else.
    """

    def __init__(self, seed: int | None = None):
        self._seeds = np.random.SeedSequence(seed)

    def __repr__(self) -> str:
        return f"tg.random.Generator(seed={self._seeds.entropy}, drawn={self._seeds.n_children_spawned})"

    @property
    def state(self) -> dict[str, Any]:
        """Where the stream is, as plain data; what is set here, it goes on from."""
        seeds = self._seeds
        return {"entropy": seeds.entropy, "spawn_key": list(seeds.spawn_key), "drawn": seeds.n_children_spawned}

    @state.setter
    def state(self, known: dict[str, Any]) -> None:
        key = tuple(known["spawn_key"])
        self._seeds = np.random.SeedSequence(known["entropy"], spawn_key=key, n_children_spawned=known["drawn"])

    def _make(self, method: str, size: Any, dtype: Any, chunks: Any, device: str | None, **params: Any) -> Tensor:
        low, high = (int(w) for w in self._seeds.spawn(1)[0].generate_state(2, np.uint64))
        shape = () if size is None else size
        return make(RANDOM, shape, dtype, chunks, device, method=method, seed=low | high << 64, **params)

    def random(
        self, size: Any = None, dtype: Any = float, *, chunks: Any = "auto", device: str | None = None
    ) -> Tensor:
        """Numbers uniform in [0, 1)."""
        return self._make("random", size, _real(dtype), chunks, device)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        """Numbers uniform in [low, high)."""
        return low + (high - low) * self.random(size, **kwargs)

    def standard_normal(
        self, size: Any = None, dtype: Any = float, *, chunks: Any = "auto", device: str | None = None
    ) -> Tensor:
        """Numbers of the normal distribution with mean 0 and deviation 1."""
        return self._make("standard_normal", size, _real(dtype), chunks, device)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        """Numbers of the normal distribution with mean `loc` and deviation `scale`."""
        if scale < 0:
            raise ValueError(f"normal: the deviation must not be negative, got {scale}")
        return loc + scale * self.standard_normal(size, **kwargs)

    def exponential(self, scale: float = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        """Numbers of the exponential distribution with mean `scale`."""
        if scale < 0:
            raise ValueError(f"exponential: the mean must not be negative, got {scale}")
        dtype, chunks = kwargs.pop("dtype", float), kwargs.pop("chunks", "auto")
        return scale * self._make("standard_exponential", size, _real(dtype), chunks, kwargs.pop("device", None))

    def integers(
        self,
        low: int,
        high: int | None = None,
        size: Any = None,
        dtype: Any = np.int64,
        *,
        chunks: Any = "auto",
        device: str | None = None,
    ) -> Tensor:
        """Integers uniform in [low, high), or in [0, low) where `high` is None."""
        low, high = (0, low) if high is None else (low, high)
        if low >= high:
            raise ValueError(f"integers: low must be below high, got {low} and {high}")
        np.random.default_rng(0).integers(low, high, dtype=dtype)  # its errors now, not when the graph runs
        return self._make("integers", size, dtype, chunks, device, low=int(low), high=int(high))


def _real(dtype: Any) -> DType:
    found = np.dtype(dtype)
    if found.kind != "f":
        raise TypeError(f"random: needs a floating point dtype, not {found}")
    return found


def default_rng(seed: int | None = None) -> Generator:
    """A generator of random arrays, from a seed or, where None, from the system's entropy.

    >>> import taskgraph as tg
    >>> a = tg.random.default_rng(7).standard_normal((4, 4), chunks=2)
    >>> b = tg.random.default_rng(7).standard_normal((4, 4), chunks=3)
    >>> bool((a.compute() == b.compute()).all())
    True
    """
    return Generator(secrets.randbits(64) if seed is None else seed)


def randn(
    *shape: int,
    dtype: Any = np.float32,
    seed: int | None = None,
    chunks: Any = "auto",
    device: str | None = None,
) -> Tensor:
    """Standard normal numbers, as `torch.randn`: float32 where no dtype is given; from `seed`, or else from entropy."""
    wanted = sizes("randn", shape[0] if len(shape) == 1 else shape)
    return default_rng(seed).standard_normal(wanted, dtype, chunks=chunks, device=device)
