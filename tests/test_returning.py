"""Plans wait for workers that are away for a moment, where they are told to."""

from __future__ import annotations

from types import SimpleNamespace

import dask
import pytest

from taskgraph import returning
from taskgraph.machine import Device, Machine

CPU = Device("cpu", 2**30, {"float32": 1.0}, "cpu-0")
GPU = Device("gpu", 2**30, {"float32": 9.0}, "gpu-0")


class Client(SimpleNamespace):
    """What a cluster's machine is at each look."""

    __hash__ = object.__hash__


@pytest.fixture
def looks(monkeypatch):
    """Gives a client of a cluster that has these devices, look by look; no time goes by."""
    now = [0.0]
    monkeypatch.setattr(returning.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(returning.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(Machine, "from_client", lambda client: Machine(client.devices.pop(0)))
    return lambda *devices: Client(devices=list(devices))


def test_a_plan_waits_until_the_last_gpu_is_back(looks):
    client = looks((CPU, GPU), (CPU,), (CPU,), (CPU, GPU), (CPU, GPU))
    with dask.config.set({"taskgraph.return-timeout": "60s"}):
        assert [returning.machine_behind(client).devices for _ in range(3)] == [(CPU, GPU)] * 3
    assert client.devices == []


def test_it_waits_once_for_one_that_does_not_come_back(looks):
    client = looks((CPU, GPU), *[(CPU,)] * 8)
    with dask.config.set({"taskgraph.return-timeout": "1s"}):
        assert [returning.machine_behind(client).devices for _ in range(3)] == [(CPU, GPU), (CPU,), (CPU,)]
    assert len(client.devices) == 1


def test_it_does_not_wait_without_the_setting_or_for_one_of_several(looks):
    client = looks((CPU, GPU), (CPU,))
    assert [returning.machine_behind(client).devices for _ in range(2)] == [(CPU, GPU), (CPU,)]
    client = looks((CPU, GPU, GPU), (CPU, GPU))
    with dask.config.set({"taskgraph.return-timeout": "60s"}):
        assert [len(returning.machine_behind(client).devices) for _ in range(2)] == [3, 2]
