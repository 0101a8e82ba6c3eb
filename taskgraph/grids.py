"""The search for a product's cut: over sets of devices, over how many of them take part, over grids.

Design note. Devices that only slow a product down are left out: for every class of them the fastest ones are tried, in
numbers from all down to one. A lower bound on the seconds (operations over speeds, bytes over links) skips most of
these without a look. For a class alone, the grid is uniform, with few tiles a slot where the slots are alike and more
where they are not, and tiles are dealt in near-rectangles; k is cut across workers where that moves fewer bytes, or
where the output is too small to be cut for all. For both classes together, the output is divided along one axis in
proportion to their speeds, and each part has tiles of its own size: large ones for the GPUs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from taskgraph.bounds import bound_of_shares
from taskgraph.cost import Choice, Cut, Evaluation
from taskgraph.division import Division, Way, by_kind, by_speed
from taskgraph.partition import deal, rectangles
from taskgraph.problem import MOST_TASKS, Problem, divisors, level
from taskgraph.slots import Floats, Ints, Setting, Slots, Unit, slots_of

#: What a product on both classes takes beyond the model's seconds: it waits for the slowest tile of devices whose
#: speeds err apart, and takes CPU workers from everything else (chosen: half the error that a measured rate has).
MIXED_MARGIN = 1.05
#: What one class does sooner than this is not divided between two, and a division never counts as less (chosen: it
#: saves milliseconds, and of small products the search for how many of either class is the dearest part). So a product
#: that takes less has all numbers of the fastest slots to choose from, and no machine that grows makes it slower.
MIXED_S = 0.005
#: Tiles per slot: like slots need one each, unlike ones more, until the last tile of the slowest weighs little. More
#: than sixteen only add tasks (chosen: a ragged end of half a tile is then 3%).
TILES_PER_SLOT = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)
#: Parts of k per slot, where a small output is summed of them: some, whose operands arrive while others compute.
LAYERS_PER_SLOT = (2, 4, 8)
#: Of the best cuts for both classes, of so many sets of devices, shares of the GPUs so many times as large are looked
#: at, too.
MOST_SHARED = 3
SHIFTS = (0.97, 1.02, 1.04, 1.07, 1.1, 1.15, 1.2, 1.25)
#: Cuts that are given besides the cheapest: so many, that cost so many times as much at the most (chosen: the error of
#: the model beside the simulation, which is made of each).
MOST_CANDIDATES, CLOSE = 10, 1.4
#: And so many that are divided by speed: the model does not see what they gain, larger tiles for faster devices.
MOST_BY_SPEED = 3
#: Numbers of slots that are tried: all up to 32, so that one more is never missed, then such that grids of several
#: shapes have so many tiles.
SOME = (*range(1, 33), 36, 42, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640,
        768, 896, 1024, 1280, 1536, 1792, 2048, 3072, 4096, 6144, 8192)  # fmt: skip


def solve(p: Problem, groups: tuple[tuple[Unit, ...], ...], setting: Setting) -> Choice:
    """The cheapest cut of the product for any one of the groups of devices."""
    return ranked(p, groups, setting)[0]


@functools.lru_cache(maxsize=1024)
def ranked(p: Problem, groups: tuple[tuple[Unit, ...], ...], setting: Setting) -> tuple[Choice, ...]:
    """The cheapest cut of the product for any one of the groups of devices, and behind it some that cost little more
    and are unlike it: on other numbers of slots, with k cut across workers or not, in shorter chains.

    Remembered, since the steps of a loop ask for the same again and again.
    """
    found = _Found()
    for units in groups:
        if len({u.kind for u in units}) > 1:
            if not found.best or found.best.bytes_over or found.best.seconds > MIXED_S:
                _mixed(p, units, setting, found)
        else:
            _alone(p, slots_of(units), setting, found)
    if found.best is None:  # too small to be divided between two classes
        for unit in {u.kind: u for units in groups for u in units}.values():
            _alone(p, slots_of([unit]), setting, found)
    return found.few()


class _Found:
    """The choices that were weighed: the best, and the best of each family."""

    def __init__(self) -> None:
        self.best: Choice | None = None
        self.families: dict[Hashable, Choice] = {}
        self.shared: list[tuple[Choice, Callable[[float], Choice | None]]] = []
        self.by_speed: list[Choice] = []

    def add(self, choice: Choice) -> None:
        """Another one."""
        self.best = _better(choice, self.best)
        family = choice.slots.kinds_used(choice.cut.owner), choice.cut.layers, choice.chain, len(choice.cut.owner)
        self.families[family] = _better(choice, self.families.get(family))

    def is_beaten(self, seconds: float) -> bool:
        """Whether what takes at least so long is no better than the best."""
        return self.best is not None and not self.best.bytes_over and seconds >= self.best.seconds

    def few(self) -> tuple[Choice, ...]:
        """The best, and others that are close."""
        best = self.best
        assert best is not None
        close = [
            c
            for c in self.families.values()
            if c is not best and c.bytes_over <= best.bytes_over and c.seconds <= CLOSE * best.seconds
        ]
        shared = sorted(self.shared, key=lambda s: s[0].order)[:MOST_SHARED]
        shifted = [c for choice, at in shared if choice.seconds <= CLOSE * best.seconds for c in map(at, SHIFTS) if c]
        by_speed = [c for c in sorted(self.by_speed, key=lambda c: c.order)[:MOST_BY_SPEED] if c is not best]
        more = [
            c for c in (*by_speed, *shifted) if c.bytes_over <= best.bytes_over and c.seconds <= CLOSE * best.seconds
        ]
        return (best, *sorted(close, key=lambda c: c.order)[: MOST_CANDIDATES - 1], *more)


def _better(new: Choice, best: Choice | None) -> Choice:
    if best is None:
        return new
    return min(best, new, key=lambda c: (c.tasks > MOST_TASKS, *c.order))


# -- one class ---------------------------------------------------------------------------------------------------------


def _alone(p: Problem, slots: Slots, setting: Setting, found: _Found) -> None:
    for some in _some(slots):
        if found.is_beaten(_least_seconds(p, some, setting)):
            continue
        best = None
        for m, n, layers in cuts(p, some):
            if found.is_beaten(_least_computing(p, m, n, layers, some)):
                continue
            choice = _cut_alike(p, some, setting, (m, n, layers), some.rates)
            found.add(choice)
            best = _better(choice, best)
        if best is not None:
            found.add(_dealt_again(p, best, setting))
    groups = by_speed(slots)
    if len(groups) > 1 and not found.is_beaten(_least_seconds(p, slots, setting)):
        for choice, _ in Division(p, slots, setting, groups).between_speeds():
            found.best = _better(choice, found.best)
            found.by_speed.append(choice)


def _dealt_again(p: Problem, choice: Choice, setting: Setting) -> Choice:
    """The same cut, its tiles dealt by what each took every slot, bytes and all, where that is better."""
    slots, cut = choice.slots, choice.cut
    if len(slots) == 1 or len(cut.owner) <= len(slots) or slots.rates[0] == slots.rates[-1]:
        return choice
    rates = Evaluation(p, cut, slots, setting).rates_seen(choice.chain)
    return _better(_cut_alike(p, slots, setting, (cut.m, cut.n, cut.layers), rates), choice)


Blocks = tuple[tuple[int, ...], tuple[int, ...], int]


def _cut_alike(
    p: Problem, slots: Slots, setting: Setting, blocks: Blocks, rates: Floats, chain: int | None = None
) -> Choice:
    """A uniform grid, its tiles dealt by these rates."""
    m, n, layers = blocks
    cut = Cut(m, n, layers, _owners(p, len(m), len(n), layers, rates))
    choice = Evaluation(p, cut, slots, setting).choice(chain)
    return replace(choice, near=partial(_near, p, slots, setting, blocks, rates, choice.chain))


def _near(p: Problem, slots: Slots, setting: Setting, blocks: Blocks, rates: Floats, chain: int) -> Iterator[Choice]:
    """Grids that differ in one number."""
    m, n, layers = blocks
    for longer in (2 * chain, chain // 2):
        if longer:
            yield _cut_alike(p, slots, setting, blocks, rates, longer)
    gm, gn = len(m), len(n)
    for rows, columns, parts in (
        (2 * gm, gn, layers), (gm // 2, gn, layers), (gm + 1, gn, layers), (gm - 1, gn, layers),
        (gm, 2 * gn, layers), (gm, gn // 2, layers), (gm, gn + 1, layers), (gm, gn - 1, layers),
        (gm, gn, 2 * layers), (gm, gn, layers // 2),
    ):  # fmt: skip
        if 0 < rows <= p.m and 0 < columns <= p.n and 0 < parts <= p.k and (parts == layers or layers > 1):
            cut = level(p.m, rows), level(p.n, columns), parts
            yield _cut_alike(p, slots, setting, cut, rates, chain)


def _some(slots: Slots) -> Iterator[Slots]:
    """The slots that are worth a try: all, those before a great step down in speed, the fastest in some numbers; and
    those behind the first step, since like ones share what is bound by bytes better than a fast one with slow ones."""
    steps = [int(i) + 1 for i in np.flatnonzero(slots.rates[1:] < 0.8 * slots.rates[:-1])]
    for start in (0, *steps[:1]):
        stops = {len(slots), len(slots) - 1, *steps, *(start + s for s in SOME if start + s < len(slots))}
        for stop in sorted((s for s in stops if s > start), reverse=True):
            yield slots.between(start, stop)


def _least_seconds(p: Problem, slots: Slots, setting: Setting) -> float:
    """What no cut on these slots can beat."""
    computing = p.flops / float(slots.rates.sum()) + setting.task_seconds
    if not setting.is_cluster or p.batch > 1:
        return computing
    workers = len(np.unique(slots.worker))
    free = (p.a_read > 0, p.b_read > 0)
    moved = bound_of_shares(p.m, p.n, p.k, p.itemsize, [1 / workers] * workers, free=free) / workers
    return max(computing, moved / setting.link_bytes_per_s)


def _least_computing(p: Problem, m: tuple[int, ...], n: tuple[int, ...], layers: int, slots: Slots) -> float:
    """Seconds of the largest tile on the fastest slot, and of all on all."""
    largest = p.flops * max(m) * max(n) / max(1, p.m * p.n * p.batch * layers)
    return max(largest / float(slots.rates[0]), p.flops / float(slots.rates.sum()))


def _owners(p: Problem, gm: int, gn: int, layers: int, rates: Floats) -> Ints:
    """The slot of every part: tiles in near-rectangles, layers and batches one after the other."""
    each = p.batch * layers
    counts = deal(gm * gn * each, rates)
    if each == 1:
        row, column = p.a_bytes / gm, p.b_bytes / gn
        return rectangles(gm, gn, counts, row, column)
    run = np.repeat(np.arange(len(rates)), counts)
    if p.batch == gm == gn == 1 and layers > len(rates):
        # not in a row: a chain's next part begins to fetch when the one before is done, parts apart at once
        run = run[np.argsort((_ranks(counts) + 0.5) / counts[run], kind="stable")]
    return np.ascontiguousarray(run.reshape(p.batch, layers, gm, gn).transpose(0, 2, 3, 1)).ravel()


def _ranks(counts: Ints) -> Ints:
    """For runs of so many, the place of each in its run."""
    ranks: Ints = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def cuts(p: Problem, slots: Slots) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Cuts worth a look, as blocks along m and n and layers of k: as the operands lie, and even ones."""
    count = len(slots)
    if p.batch * len(p.m_blocks) * len(p.n_blocks) <= max(TILES_PER_SLOT) * count:
        yield p.m_blocks, p.n_blocks, 1
    shapes: dict[tuple[int, int, int], None] = {}
    alike = bool(slots.rates[0] == slots.rates[-1])
    for per_slot in TILES_PER_SLOT[: 5 if alike else None]:
        tiles = max(1, round(count * per_slot / p.batch))
        shapes.update(dict.fromkeys(_flat(p, tiles, 3 if per_slot == 1 else 2)))
    if count > 1 and p.batch == 1:
        shapes.update(dict.fromkeys(_layered(p, count, 3)))
        if p.m * p.n <= p.k * min(p.m, p.n):
            several = [count * times for times in LAYERS_PER_SLOT if count * times <= p.k]
            shapes.update(dict.fromkeys((1, 1, layers) for layers in several))
    shapes.update(dict.fromkeys(_that_fit(p, slots)))
    for gm, gn, layers in shapes:
        yield level(p.m, gm), level(p.n, gn), layers


def _flat(p: Problem, tiles: int, most: int) -> list[tuple[int, int, int]]:
    """Grids of so many tiles, or a few more, whose tiles take the fewest bytes."""
    found = {(gm, tiles // gm) for gm in divisors(tiles)}
    ideal = math.sqrt(tiles * p.a_bytes / max(1, p.b_bytes))
    for gm in {max(1, math.floor(ideal)), max(1, math.ceil(ideal))}:
        gm = min(gm, max(1, p.m))
        found.add((gm, math.ceil(tiles / gm)))
    fit = [(gm, gn, 1) for gm, gn in found if gm <= max(1, p.m) and gn <= max(1, p.n)]
    return sorted(fit, key=lambda g: (p.a_bytes * g[1] + p.b_bytes * g[0], g))[:most]


def _layered(p: Problem, slots: int, most: int) -> list[tuple[int, int, int]]:
    """Grids with a part for every slot and k cut across them that move the fewest bytes."""
    fit = [(gm, gn, gk) for gm, gn, gk in _triples(slots) if 1 < gk <= p.k and gm <= p.m and gn <= p.n]
    return sorted(fit, key=lambda g: (_volume(p, *g), g))[:most]


def _volume(p: Problem, gm: int, gn: int, gk: int) -> float:
    return p.a_bytes * (gn - 1) + p.b_bytes * (gm - 1) + p.result_bytes * (gk - 1)


@functools.lru_cache(maxsize=4096)
def _triples(n: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((a, b, n // a // b) for a in divisors(n) for b in divisors(n // a))


def _that_fit(p: Problem, slots: Slots) -> list[tuple[int, int, int]]:
    """Where memory is scarce: near-square tiles of which three take half, or a quarter, of a task's room."""
    found, room = [], float(slots.room.min())
    for part in (2, 4):
        tiles = 3 * part * p.result_bytes / p.batch / max(room, 1)
        if tiles > 1:
            gm = min(max(1, math.ceil(math.sqrt(tiles * p.m / max(1, p.n)))), max(1, p.m))
            gn = min(max(1, math.ceil(tiles / gm)), max(1, p.n))
            if gm * gn <= MOST_TASKS:
                found.append((gm, gn, 1))
    return found


# -- both classes ------------------------------------------------------------------------------------------------------


def _mixed(p: Problem, units: Sequence[Unit], setting: Setting, found: _Found) -> None:
    """Both classes, where that gains something over the best of one."""
    for number, some in enumerate(_sets(units)):
        slots = slots_of(some)
        if found.is_beaten(MIXED_MARGIN * p.flops / float(slots.rates.sum())):
            continue
        division = Division(p, slots, setting, by_kind(slots))
        _shared(division, division.between_kinds(suit_gpus=number == 0), found)
        if number == 0 and len(groups := by_speed(slots)) > 2:
            division = Division(p, slots, setting, groups)
            _shared(division, division.between_speeds(), found)


def _shared(division: Division, ways: Iterator[tuple[Choice, Way]], found: _Found) -> None:
    least, best = MIXED_S if found.best else 0.0, None
    for choice, way in ways:
        choice = replace(choice, seconds=max(least, MIXED_MARGIN * choice.seconds))
        found.add(choice)
        if best is None or choice.order < best[0].order:
            best = choice, partial(_shifted, division, way)
    if best is not None:
        found.shared.append(best)


def _shifted(division: Division, way: Way, by: float) -> Choice | None:
    """The same with a share of the GPUs so many times as large."""
    return division.choice(division.shifted(way, by))


def _sets(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """All, those without the ones much slower, or faster, than others of their class, and one fewer of them."""
    gpus, cpus = (sorted([u for u in units if u.kind == kind], key=lambda u: -u.rate) for kind in ("gpu", "cpu"))
    yield gpus + cpus
    for some, others in ((gpus, cpus), (cpus, gpus)):
        steps = [i for i in range(1, len(some)) if some[i].rate < 0.8 * some[i - 1].rate]
        ends = [len(some), *steps[::-1][:4]]
        for end in dict.fromkeys([*ends, *(end - 1 for end in ends)]):
            for start in (0, *steps[:1]):
                if start < end and (start, end) != (0, len(some)):
                    yield some[start:end] + others
