"""Simulated makespans of plans beside their bounds: what `python -m benchmarks.makespan` shows at length."""

from __future__ import annotations

import pytest

import taskgraph as tg
from benchmarks.makespan import MACHINES, predicted
from taskgraph.division import Division, by_speed
from taskgraph.problem import problem_of
from taskgraph.slots import setting_of, slots_of, unit_of


# what remains of the second: the first panels' way to the devices, and 0.5 ms for each of 32 tasks on each
@pytest.mark.parametrize(
    ("shape", "most"), [("tall-skinny", 1.10), ("inner", 1.10), ("square 16384", 1.25), ("square 65536", 1.10)]
)
def test_makespans_are_near_their_bounds(shape: str, most: float) -> None:
    p = predicted(shape, MACHINES["8 GPUs + 128 cores"])
    assert p.bound <= p.makespan <= most * p.bound


def test_a_part_for_each_speed() -> None:
    """Devices of three speeds: each part has its share of the output, and each device two tiles of its part's size."""
    m = tg.Machine(devices=[tg.Device("gpu", 2**36, 3000.0 * (1 + g // 8)) for g in range(24)], link_bytes_per_s=1e10)
    a, b = (tg.placeholder("float32", (65536, 65536)) for _ in range(2))
    p = problem_of((a @ b).expr)
    slots = slots_of([unit_of(d, p.dtype) for d in m.devices])
    parts = by_speed(slots)
    assert [len(part) for part in parts] == [8, 8, 8]
    shared = [way for _, way in Division(p, slots, setting_of(m), parts).between_speeds()]
    assert any(way.common * blocks == 2 * 8 for way in shared for blocks in way.blocks)
    for way in shared:
        assert sum(way.shares) == pytest.approx(1)
        assert way.shares == tuple(sorted(way.shares, reverse=True))


def test_few_devices_are_not_divided_by_speed() -> None:
    m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0 * (1 + n)) for n in range(4)])
    x = tg.placeholder("float32", (4096, 4096))
    assert not by_speed(slots_of([unit_of(d, x.dtype) for d in m.devices]))
