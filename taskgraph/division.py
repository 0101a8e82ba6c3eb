"""The output divided between devices that are unlike: along one axis, each part with tiles of its own size.

Design note. Parts are either the GPUs and the CPUs, or groups of devices of one speed. All have the same blocks along
the axis that is not divided, so that the result is one grid; along the other axis a part has a share in proportion to
its speed, cut for as many tiles as its devices share evenly. A device of a fast group then has larger tiles, not more
of them: it fetches as little for each operation as it can, and has few tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
#: Rows that suit the GPUs, and parts for each speed, are tried where so many slots have no more than so many speeds,
#: each so far below the one before (chosen: of few slots uniform grids are tried in all numbers, and one more makes
#: nothing slower; of many speeds each would have a sliver).
LEAST_UNLIKE, MOST_SPEEDS, SPEED_STEP = 16, 6, 0.9
#: Tiles of a device then: the operands of one come while the other's are multiplied; a third would be left alone with
#: nothing to hide its operands behind. And tasks in a row for each (chosen: large tiles have large panels of operands,
#: which many devices wait for).
MOST_TILES, CHAIN_BY_SPEED = 2, 8


@dataclass(frozen=True, eq=False)
class Way:
    """How the output is divided. along_n: whether along n, else along m; common: blocks along the other axis; blocks,
    shares: of every part, of the divided one; rates: by which tiles are dealt to slots; chain: tasks in a row for a
    tile, None for as many as the cost model thinks best."""

    along_n: bool
    common: int
    blocks: tuple[int, ...]
    shares: tuple[float, ...]
    rates: Floats
    chain: int | None = None


def by_kind(slots: Slots) -> list[Ints]:
    """The slots of the GPUs and those of the CPUs."""
    kinds = np.asarray(slots.kinds)
    return [np.flatnonzero(kinds == kind) for kind in ("gpu", "cpu")]


def by_speed(slots: Slots) -> list[Ints]:
    """The slots in groups of one kind and speed, CPUs last; none where these are too few or too many."""
    found: list[Ints] = []
    for part in by_kind(slots):
        steps = np.flatnonzero(slots.rates[part][1:] < SPEED_STEP * slots.rates[part][:-1]) + 1
        found += [group for group in np.split(part, steps) if len(group)]
    return found if len(slots) >= LEAST_UNLIKE and 2 <= len(found) <= MOST_SPEEDS else []


class Division:
    """Divisions of one product's output between parts of some slots, the CPUs' the last."""

    def __init__(self, p: Problem, slots: Slots, setting: Setting, parts: list[Ints]) -> None:
        self.p, self.slots, self.setting, self.parts = p, slots, setting, parts
        self.on_cpu = [slots.kinds[part[0]] == "cpu" for part in parts]
        self.shares = tuple(float(slots.rates[part].sum() / slots.rates.sum()) for part in parts)

    def choice(self, way: Way) -> Choice | None:
        """What a division costs; None where a block would be empty."""
        cut = self._cut(way)
        if cut is None:
            return None
        choice = Evaluation(self.p, cut, self.slots, self.setting).choice(way.chain)
        return replace(choice, near=partial(self.near, replace(way, chain=choice.chain)))

    def near(self, way: Way) -> Iterator[Choice]:
        """Divisions that differ in one number."""
        chain, blocks, common = way.chain or 1, way.blocks, way.common
        others = [self.shifted(way, by) for by in SHARES_NEAR if any(self.on_cpu)]
        others += [replace(way, chain=c) for c in (2 * chain, chain // 2) if c]
        others += [
            replace(way, blocks=tuple(n if cpu else change(n) for n, cpu in zip(blocks, self.on_cpu, strict=True)))
            for change in (lambda n: 2 * n, lambda n: n + 1, lambda n: n // 2)
        ]
        others.append(replace(way, common=2 * common, blocks=tuple(n // 2 if n > 1 else n for n in blocks)))
        if common % 2 == 0:
            others.append(replace(way, common=common // 2, blocks=tuple(2 * n for n in blocks)))
        for other in others:
            choice = self.choice(other)
            if choice is not None:
                yield choice

    def shifted(self, way: Way, by: float) -> Way:
        """The same with shares of the GPUs so many times as large."""
        gpus = sum(share for share, cpu in zip(way.shares, self.on_cpu, strict=True) if not cpu)
        wanted = min(1.0, by * gpus)
        more, less = wanted / max(gpus, 1e-300), (1 - wanted) / max(1 - gpus, 1e-300)
        shares = [share * (less if cpu else more) for share, cpu in zip(way.shares, self.on_cpu, strict=True)]
        return replace(way, shares=tuple(shares))

    def between_kinds(self, suit_gpus: bool) -> Iterator[tuple[Choice, Way]]:
        """Of both kinds, for several numbers of tiles; suit_gpus: also with rows that make near-square tiles of theirs,
        where these are several (a single one has all of its part anyway)."""
        suit_gpus = suit_gpus and len(self.parts[0]) > 1 and len(self.slots) >= LEAST_UNLIKE
        return self._some(self._ways_between_kinds(suit_gpus))

    def between_speeds(self) -> Iterator[tuple[Choice, Way]]:
        """Of several speeds, for some numbers of common blocks."""
        return self._some(self._ways_between_speeds())

    def _some(self, ways: Iterator[Way]) -> Iterator[tuple[Choice, Way]]:
        """The best of some ways, with the shares brought to where all parts end at once."""
        found = []
        for way in ways:
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

    def _axes(self) -> Iterator[tuple[bool, int, int]]:
        """Axes to divide, the longer one, and where they are alike each: whether along n, its size, the other's."""
        p = self.p
        if 2 * p.n >= p.m:
            yield True, p.n, p.m
        if 2 * p.m >= p.n:
            yield False, p.m, p.n

    def _ways_between_kinds(self, suit_gpus: bool) -> Iterator[Way]:
        for along_n, size, other in self._axes():
            for common, *blocks in self._counts(other, size, suit_gpus):
                yield Way(along_n, common, tuple(blocks), self.shares, self.slots.rates)

    def _ways_between_speeds(self) -> Iterator[Way]:
        """Common blocks about as many as for near-square tiles, two a slot; each part cut as its slots share best."""
        for along_n, size, other in self._axes():
            square = math.sqrt(2 * len(self.slots) * other / max(1, size))
            for common in range(max(2, int(square / 3)), min(other, int(2 * square)) + 1):
                found = [self._blocks_for(part, common, cpu) for part, cpu in self._known]
                speeds = [share * used for share, (_, used) in zip(self.shares, found, strict=True)]
                shares = tuple(speed / sum(speeds) for speed in speeds)
                yield Way(along_n, common, tuple(n for n, _ in found), shares, self.slots.rates, CHAIN_BY_SPEED)

    @property
    def _known(self) -> Iterator[tuple[Ints, bool]]:
        return zip(self.parts, self.on_cpu, strict=True)

    @staticmethod
    def _blocks_for(part: Ints, common: int, on_cpu: bool) -> tuple[int, float]:
        """Blocks of a part whose tiles its slots share most evenly, and the share of them that is then at work; of a
        GPU two tiles or more, since one's operands come while the other's are multiplied."""

        def used(blocks: int) -> float:
            return blocks * common / (len(part) * math.ceil(blocks * common / len(part)))

        def worth(blocks: int) -> float:
            tiles = math.ceil(blocks * common / len(part))
            return used(blocks) - 0.01 * tiles - 0.1 * (tiles == 1 and not on_cpu)

        most = max(1, MOST_TILES * len(part) // common)
        best = max(range(1, most + 1), key=worth)
        return best, used(best)

    def _levelled(self, choice: Choice, way: Way) -> Way:
        """The same with shares and dealing by what each took the slots."""
        rates = Evaluation(self.p, choice.cut, self.slots, self.setting).rates_seen(choice.chain)
        tiles = way.common * self.p.batch
        seconds = [
            blocks * tiles / float(rates[part].sum()) for blocks, part in zip(way.blocks, self.parts, strict=True)
        ]
        speeds = [share / s for share, s in zip(way.shares, seconds, strict=True)]
        return replace(way, rates=rates, shares=tuple(speed / sum(speeds) for speed in speeds))

    def _counts(self, other: int, size: int, suit_gpus: bool) -> list[tuple[int, int, int]]:
        """Blocks along the axis that is not divided, and along the other one for the GPUs and for the CPUs: as many
        tiles as slots, or some times so many; near-square for the CPUs or for the GPUs; at least so many for memory's
        sake."""
        (gpus, cpus), least = map(len, self.parts), self._least_tiles()
        seen: set[tuple[int, int, int]] = set()
        small = math.ceil(math.sqrt(least)) ** 2  # a number with divisors
        wanted = (*(times * gpus for times in TILES_PER_GPU), least)

        def add(commons: list[int], tiles: int, wanted: Sequence[int]) -> None:
            for c in commons[:COMMONS]:
                seen.update((c, max(1, math.ceil(of_gpus / c)), tiles // c) for of_gpus in wanted)

        def square(tiles: int, share: float) -> float:
            return math.sqrt(tiles * other / max(1.0, size * share))

        for tiles in sorted({cpus, 2 * cpus, max(cpus, small)}):
            near = square(tiles, self.shares[1])
            add(
                sorted((d for d in divisors(tiles) if d <= other), key=lambda d: abs(math.log(d / near))), tiles, wanted
            )
        if suit_gpus:  # any number that leaves few CPUs without a tile, so that one CPU more changes nothing
            near = square(TILES_PER_GPU[1] * gpus, self.shares[0])
            fit = range(max(1, round(near / 1.5)), min(cpus, other, round(1.5 * near)) + 1)
            add(sorted(fit, key=lambda c: (round(cpus % c / cpus, 2), abs(math.log(c / near)))), cpus, wanted[1:-1])
        return sorted(seen)

    def _least_tiles(self) -> int:
        """How many tiles the output must have at least, so that three of them are at most half a task's room."""
        room = max(float(self.slots.room.min()), 1.0)
        return min(MOST_TASKS // 4, math.ceil(6 * self.p.result_bytes / self.p.batch / room))

    def _cut(self, way: Way) -> Cut | None:
        """Every part has its share of the divided axis, in order; None where a block would be empty."""
        p, common = self.p, way.common
        size, other = (p.n, p.m) if way.along_n else (p.m, p.n)
        ends = [round(size * end) for end in np.cumsum(way.shares)[:-1]]
        sizes = np.diff([0, *ends, size])
        for n, blocks in enumerate(way.blocks):  # at least a row for each block, taken from the largest
            lacks = max(0, blocks - int(sizes[n]))
            sizes[n] += lacks
            sizes[int(sizes.argmax())] -= lacks
        if common > other or any(b < 1 or s < b for b, s in zip(way.blocks, sizes, strict=True)):
            return None
        divided = tuple(n for s, b in zip(sizes, way.blocks, strict=True) for n in even(int(s), b))
        owned = [self._owners(way, part, blocks) for part, blocks in zip(self.parts, way.blocks, strict=True)]
        owner = np.concatenate(owned, axis=1)
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
