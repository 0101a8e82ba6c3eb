"""The network between hosts: measured once, by moving bytes, and the same for every client."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import pytest
from process_cluster import ProcessCluster

import taskgraph as tg
from taskgraph import machine
from taskgraph.machine import LINK_BYTES_PER_S, stepped


@pytest.mark.parametrize(
    ("measured", "taken"), [(1e9, 1e9), (0.72e9, 1e9), (1.4e9, 1e9), (1.5e9, 2e9), (24e9, 32e9), (0.118e9, 0.125e9)]
)
def test_what_was_measured_is_taken_in_steps(measured: float, taken: float) -> None:
    assert stepped(measured) == taken


def test_between_hosts_it_is_measured_once(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path) as cluster:
        client = cluster.client()
        for number, name in enumerate(("cpu-0", "cpu-1", "cpu-2"), 1):
            cluster.start_worker(name, host=f"127.0.0.{number}")
        cluster.wait_for(client, "cpu-0", "cpu-1", "cpu-2")
        with mock.patch.object(machine, "_probed", wraps=machine._probed) as probed:
            m = tg.Machine.from_client(client)
            again, others = tg.Machine.from_client(client), tg.Machine.from_client(cluster.client())
        assert probed.call_count == 1
        (rate,) = {x.link_bytes_per_s for x in (m, again, others)}
        print(f"between three addresses of the loopback device: {rate / 1e9} GB/s")
        assert 2**-6 <= rate / 1e9 <= 2**6, "a rate of memory that is copied a few times"
        assert math.log2(rate / 1e9).is_integer()
        cluster.assert_quiet()


def test_on_one_host_nothing_is_measured(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path) as cluster:
        client = cluster.client()
        for name in ("cpu-0", "cpu-1"):
            cluster.start_worker(name)
        cluster.wait_for(client, "cpu-0", "cpu-1")
        with mock.patch.object(machine, "_probed") as probed:
            assert tg.Machine.from_client(client).link_bytes_per_s == LINK_BYTES_PER_S
        probed.assert_not_called()
