# SPDX-License-Identifier: Apache-2.0
"""What the exporter says when there is nothing, or something broken, to read."""

from __future__ import annotations

import sqlite3
from ipaddress import IPv4Address

import pytest
from prometheus_client import CollectorRegistry

from geneve_ebpf.agent.latency import Recorder
from geneve_ebpf.control.store import vpc_names
from geneve_ebpf.exporter.collector import NodeCollector
from geneve_ebpf.model import NodeSettings


@pytest.fixture
def settings(tmp_path):
    """A node that was never brought up."""
    settings = NodeSettings(
        "node1",
        IPv4Address("192.0.2.1"),
        ("eth1",),
        run_root=tmp_path / "run",
        state_root=tmp_path / "state",
    )
    settings.run_directory.mkdir(parents=True)
    settings.state_directory.mkdir(parents=True)
    return settings


@pytest.fixture
def sample(settings):
    """The value of one sample of a fresh scrape; None if it is not exposed."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(settings))

    def sample(name, **labels):
        return registry.get_sample_value(f"geneve_ebpf_{name}", labels)

    return sample


def test_a_node_that_is_down_is_said_to_be_down(sample):
    """No agent, no data plane: two metrics say so, and no counter pretends to be 0."""
    assert sample("agent_up") == 0
    assert sample("scrape_error", source="dataplane") == 1
    assert sample("scrape_error", source="vpcs") == 1
    assert sample("scrape_error", source="state") == 0
    assert sample("scrape_error", source="latency") == 0
    assert sample("events_total", event="unknown_vtep") is None
    assert sample("slots", state="ready") is None


def test_attach_durations_become_a_cumulative_histogram_in_seconds(settings, sample):
    """Every bucket holds the smaller ones; sum and count are those of the recorder."""
    recorder = Recorder(settings.run_directory / "latency")
    for total in (4_000, 60_000, 60_000, 2_000_000_000):
        recorder.record(1_000, 2_000, 3_000, total, ok=True)
    recorder.close()

    total = {"stage": "total", "result": "ok"}
    name = "attach_duration_seconds"
    assert sample(f"{name}_bucket", le="5e-06", **total) == 1
    assert sample(f"{name}_bucket", le="5e-05", **total) == 1
    assert sample(f"{name}_bucket", le="7.5e-05", **total) == 3
    assert sample(f"{name}_bucket", le="1.0", **total) == 3
    assert sample(f"{name}_bucket", le="+Inf", **total) == 4
    assert sample(f"{name}_count", **total) == 4
    assert sample(f"{name}_sum", **total) == pytest.approx(2.000124)
    assert sample(f"{name}_count", stage="total", result="error") == 0


def test_a_broken_latency_file_takes_only_its_own_metric_away(settings, sample):
    """The scrape goes on, and says which source failed."""
    (settings.run_directory / "latency").write_bytes(b"something else")

    assert sample("scrape_error", source="latency") == 1
    assert sample("attach_duration_seconds_count", stage="total", result="ok") is None
    assert sample("agent_up") == 0


def test_a_broken_state_file_is_reported(settings, sample):
    """VPCs are then named by their VNI, which no VPC can be called."""
    (settings.state_directory / "state.db").write_bytes(b"no database" * 100)

    assert sample("scrape_error", source="state") == 1


def test_names_are_read_while_the_agent_writes(tmp_path):
    """What is in the write-ahead log counts, and an open transaction does not block."""
    path = tmp_path / "state.db"
    assert vpc_names(path) == {}

    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE vpcs (name TEXT PRIMARY KEY, vni INTEGER, prefixes TEXT)")
    writer.execute("INSERT INTO vpcs VALUES ('blue', 7, '[]')")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO vpcs VALUES ('red', 8, '[]')")

    assert vpc_names(path) == {7: "blue"}

    writer.execute("COMMIT")
    assert vpc_names(path) == {7: "blue", 8: "red"}
    writer.close()
