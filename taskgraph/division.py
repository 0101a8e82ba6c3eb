"""The output divided between both classes of devices: along one axis, each part with tiles of its own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from taskgraph.cost import Choice, Cut, Evaluation
from taskgraph.partition import deal, rectangles
from taskgraph.problem import MOST_TASKS, Problem, divisors, even
from taskgraph.slots import Floats, Ints, Setting, Slots

#: Of the numbers of blocks along the axis that is not divided, so many are tried that suit the CPUs, and as many that
#: suit the GPUs (chosen: the two next to the best).
COMMONS = 2
#: Tiles for each GPU: several, whose operands arrive while others compute.
TILES_PER_GPU = (1, 4, 8)
#: Cuts near a given one have shares of the GPUs so many times as large.
SHARES_NEAR = (0.94, 0.97, 1.03, 1.06)


@dataclass(frozen=True, eq=False)
class Way:
    """How the output is divided. along_n: whether along n, else along m; common: blocks along the other axis; of_gpus,
    of_cpus: blocks of either part along the divided one; share: of the GPUs; rates: by which tiles are dealt to slots;
    chain: tasks in a row for a tile, None for as many as the cost model thinks best."""

    along_n: bool
    common: int
    of_gpus: int
    of_cpus: int
    share: float
    rates: Floats
    chain: int | None = None


class Division:
    """Divisions of one product's output between the GPUs and the CPUs of some slots."""

    def __init__(self, p: Problem, slots: Slots, setting: Setting) -> None:
        self.p, self.slots, self.setting = p, slots, setting
        kinds = np.asarray(slots.kinds)
        self.gpus, self.cpus = np.flatnonzero(kinds == "gpu"), np.flatnonzero(kinds == "cpu")
        self.fair = float(slots.rates[self.gpus].sum() / slots.rates.sum())

    def choice(self, way: Way) -> Choice | None:
        """What a division costs; None where a block would be empty."""
        cut = self._cut(way)
        if cut is None:
            return None
        choice = Evaluation(self.p, cut, self.slots, self.setting).choice(way.chain)
        return replace(choice, near=partial(self.near, replace(way, chain=choice.chain)))

    def near(self, way: Way) -> Iterator[Choice]:
        """Divisions that differ in one number."""
        chain = way.chain or 1
        others = [replace(way, share=min(1.0, way.share * by)) for by in SHARES_NEAR]
        others += [replace(way, chain=c) for c in (2 * chain, chain // 2) if c]
        others += [replace(way, of_gpus=g) for g in (2 * way.of_gpus, way.of_gpus + 1, way.of_gpus // 2) if g]
        others.append(replace(way, common=2 * way.common, of_cpus=way.of_cpus // 2, of_gpus=-(-way.of_gpus // 2)))
        if way.common % 2 == 0:
            others.append(
                replace(way, common=way.common // 2, of_cpus=2 * way.of_cpus, of_gpus=max(1, 2 * way.of_gpus))
            )
        for other in others:
            choice = self.choice(other) if other.of_cpus else None
            if choice is not None:
                yield choice

    def some(self) -> Iterator[tuple[Choice, Way]]:
        """Along the longer axis (where they are alike, each) for several numbers of tiles; the best of them with the
        shares of the classes brought to where both end at once."""
        found = []
        for way in self._ways():
            choice = self.choice(way)
            if choice is not None:
                found.append((choice, way))
        found.sort(key=lambda f: f[0].order)
        for choice, way in found[:3]:
            yield choice, way
            for _ in range(3):
                again = self._levelled(choice, way)
                best = self.choice(again)
                if best is None:
                    break
                choice, way = best, again
                yield choice, way

    def _ways(self) -> Iterator[Way]:
        p, rates = self.p, self.slots.rates
        for along_n in [along for along, fits in ((True, 2 * p.n >= p.m), (False, 2 * p.m >= p.n)) if fits]:
            size, other = (p.n, p.m) if along_n else (p.m, p.n)
            for common, of_gpus, of_cpus in self._counts(other, size):
                yield Way(along_n, common, of_gpus, of_cpus, self.fair, rates)

    def _levelled(self, choice: Choice, way: Way) -> Way:
        """The same with shares and dealing by what each took the slots."""
        rates = Evaluation(self.p, choice.cut, self.slots, self.setting).rates_seen(choice.chain)
        tiles = way.common * self.p.batch
        seconds = [
            blocks * tiles / float(rates[slots].sum())
            for blocks, slots in ((way.of_gpus, self.gpus), (way.of_cpus, self.cpus))
        ]
        speeds = way.share / seconds[0], (1 - way.share) / seconds[1]
        return replace(way, rates=rates, share=speeds[0] / (speeds[0] + speeds[1]))

    def _counts(self, other: int, size: int) -> list[tuple[int, int, int]]:
        """Blocks along the axis that is not divided, and along the other one for the GPUs and for the CPUs: as many
        tiles as slots, or some times so many; near-square for the CPUs or for the GPUs; at least so many for memory's
        sake."""
        gpus, cpus, least = len(self.gpus), len(self.cpus), self._least_tiles()
        seen: set[tuple[int, int, int]] = set()
        small = math.ceil(math.sqrt(least)) ** 2  # a number with divisors
        for tiles in sorted({cpus, 2 * cpus, max(cpus, small)}):
            squares = [
                math.sqrt(number * other / max(1.0, size * share))
                for number, share in ((tiles, 1 - self.fair), (TILES_PER_GPU[1] * gpus, self.fair))
            ]
            fit = [d for d in divisors(tiles) if d <= other]
            for square in squares:
                for c in sorted(fit, key=lambda d: abs(math.log(d / square)))[:COMMONS]:
                    numbers = (*(times * gpus for times in TILES_PER_GPU), least)
                    seen.update((c, max(1, math.ceil(of_gpus / c)), tiles // c) for of_gpus in numbers)
        return sorted(seen)

    def _least_tiles(self) -> int:
        """How many tiles the output must have at least, so that three of them are at most half a task's room."""
        room = max(float(self.slots.room.min()), 1.0)
        return min(MOST_TASKS // 4, math.ceil(6 * self.p.result_bytes / self.p.batch / room))

    def _cut(self, way: Way) -> Cut | None:
        """The first part, the GPUs', has its share of the divided axis; None where a block would be empty."""
        p, common = self.p, way.common
        size, other = (p.n, p.m) if way.along_n else (p.m, p.n)
        first = min(max(round(way.share * size), way.of_gpus), size - way.of_cpus)
        if first < way.of_gpus or common > other:
            return None
        divided = even(first, way.of_gpus) + even(size - first, way.of_cpus)
        owner = np.concatenate(
            [self._owners(way, self.gpus, way.of_gpus), self._owners(way, self.cpus, way.of_cpus)], axis=1
        )
        if way.along_n:
            return Cut(even(other, common), divided, 1, owner.swapaxes(1, 2).ravel())
        return Cut(divided, even(other, common), 1, owner.ravel())

    def _owners(self, way: Way, slots: Ints, blocks: int) -> Ints:
        """The slots of a part's tiles: over batches, the divided axis, the other one."""
        p, common = self.p, way.common
        counts = deal(p.batch * blocks * common, way.rates[slots])
        if p.batch == 1:
            size, other = (p.n, p.m) if way.along_n else (p.m, p.n)
            row, column = (p.b_bytes, p.a_bytes) if way.along_n else (p.a_bytes, p.b_bytes)
            local = rectangles(blocks, common, counts, row / size, column / other)
        else:
            local = np.repeat(np.arange(len(slots)), counts)
        owned: Ints = slots[local].reshape(p.batch, blocks, common)
        return owned
