# SPDX-License-Identifier: Apache-2.0
"""Pinned maps, the latency file and the names of VPCs, as metric families.

Everything is read at scrape time and nothing is kept, so what the exporter
says is true even after the node went down and up again under it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from geneve_ebpf import __version__
from geneve_ebpf.agent import latency
from geneve_ebpf.client import AgentClient
from geneve_ebpf.control.store import vpc_names
from geneve_ebpf.dataplane import Counters, DataPlane
from geneve_ebpf.errors import GeneveError
from geneve_ebpf.exporter import metrics
from geneve_ebpf.model import NodeSettings, SlotKind, SlotState

ASK_TIMEOUT = 0.5  # seconds; an agent that is this slow to say how it is, is not well


class NodeCollector(Collector):
    """Reads one node. A source that cannot be read is said to be so, and left out."""

    def __init__(self, settings: NodeSettings, *, per_sandbox: bool = False) -> None:
        self._settings = settings
        self._per_sandbox = per_sandbox

    def describe(self) -> list[Metric]:
        """Nothing in advance, or the registry would scrape the node to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family of `metrics.METRICS` that can be read now."""
        failed = _gauge(metrics.SCRAPE_ERROR)
        node = self._ask_agent()
        yield _plain(metrics.AGENT_UP, float(node is not None))
        if node is not None:
            yield from _of_agent(node)

        names: dict[int, str] = {}
        bad_state = False
        try:
            names = vpc_names(self._settings.state_directory / "state.db")
        except sqlite3.Error:
            bad_state = True
        failed.add_metric(["state"], float(bad_state))

        for source, read in (
            ("latency", self._latency),
            ("dataplane", lambda: self._data_plane(names)),
            ("vpcs", lambda: self._vpcs(names)),
        ):
            try:
                families = read()
            except (GeneveError, OSError):
                families = []
                failed.add_metric([source], 1.0)
            else:
                failed.add_metric([source], 0.0)
            yield from families
        yield failed

    def _ask_agent(self) -> dict[str, Any] | None:
        """What the agent says of the node; None if it does not answer in time."""
        try:
            with AgentClient(self._settings.run_directory / "api.sock", ASK_TIMEOUT) as client:
                return client.request("GET", "/v1/node")[1]
        except GeneveError:
            return None

    def _latency(self) -> list[Metric]:
        family = HistogramMetricFamily(
            metrics.ATTACH_DURATION.name,
            metrics.ATTACH_DURATION.text,
            labels=metrics.ATTACH_DURATION.labels,
        )
        bounds = [_seconds(bound) for bound in latency.BOUNDS] + ["+Inf"]
        for histogram in latency.read(self._settings.run_directory / "latency"):
            so_far = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip(bounds, histogram.counts, strict=True):
                so_far += count
                buckets.append((bound, float(so_far)))
            family.add_metric([histogram.stage, histogram.result], buckets, histogram.sum_ns / 1e9)
        return [family]

    def _data_plane(self, names: dict[int, str]) -> list[Metric]:
        with self._plane() as plane:
            families: list[Metric] = [
                _labelled(metrics.BUILD_INFO, {(__version__, plane.layout, plane.program): 1.0}),
                self._slots(plane),
                _labelled(
                    metrics.SLOTS_TARGET,
                    {
                        (kind.value,): float(number)
                        for kind, number in self._settings.targets.items()
                    },
                ),
                _counter(
                    metrics.DROPS,
                    {
                        (d.reason.slug, d.direction.value, d.reason.drop_class): d.packets
                        for d in plane.drops()
                    },
                ),
                _counter(metrics.EVENTS, {(e.event.slug,): e.packets for e in plane.events()}),
                _labelled(
                    metrics.PATH_MTU,
                    {(str(vtep),): float(one.mtu) for vtep, one in plane.path_mtus().items()},
                ),
                _labelled(
                    metrics.MAP_PRESSURE,
                    {(name,): ratio for name, ratio in plane.map_pressure().items()},
                ),
            ]
            if self._per_sandbox:
                families += _traffic(
                    metrics.SANDBOX_PACKETS,
                    metrics.SANDBOX_BYTES,
                    {
                        (a.sandbox, names.get(a.endpoint.vni, f"vni:{a.endpoint.vni}")): (
                            plane.counters(a.slot)
                        )
                        for a in plane.attachments()
                    },
                )
            return families

    def _vpcs(self, names: dict[int, str]) -> list[Metric]:
        with self._plane() as plane:
            totals = plane.vpc_totals()
        rows: dict[tuple[str, ...], Counters] = {
            (names.get(vni, f"vni:{vni}"),): counters for vni, counters in totals.items()
        }
        return _traffic(metrics.VPC_PACKETS, metrics.VPC_BYTES, rows)

    def _plane(self) -> closing[DataPlane]:
        return closing(DataPlane.open(self._settings.run_directory, writable=False))

    @staticmethod
    def _slots(plane: DataPlane) -> Metric:
        kinds = {slot.index: slot.kind for slot in plane.slots()}
        states = Counter((slot.state, slot.kind) for slot in plane.slots())
        attached = Counter(kinds.get(one.slot) for one in plane.attachments())
        rows: dict[tuple[str, ...], float] = {}
        for kind in SlotKind:
            rows["ready", kind.value] = states[SlotState.READY, kind]
            rows["reserved", kind.value] = states[SlotState.RESERVED, kind]
            rows["attached", kind.value] = attached[kind]
            # Read one after the other, so a slot may have changed in between.
            rows["retiring", kind.value] = max(0, states[SlotState.TAKEN, kind] - attached[kind])
        return _labelled(metrics.SLOTS, rows)


def _of_agent(node: dict[str, Any]) -> list[Metric]:
    """What only the agent knows: it is in no map."""
    return [
        _plain(metrics.CORDONED, float(node["cordoned"])),
        _plain(metrics.PROBLEMS, float(len(node["problems"]))),
        _plain(metrics.LOST, float(len(node["lost"]))),
        _plain(metrics.WAITING, float(node["waiting"])),
        _labelled(
            metrics.OPERATIONS,
            {(state,): float(count) for state, count in node["operations"].items()},
        ),
    ]


def _traffic(
    packets: metrics.Metric, size: metrics.Metric, rows: dict[tuple[str, ...], Counters]
) -> list[Metric]:
    count: dict[tuple[str, ...], int] = {}
    volume: dict[tuple[str, ...], int] = {}
    for labels, counters in rows.items():
        for direction, path, part in (
            ("tx", "local", counters.tx_local),
            ("tx", "remote", counters.tx_remote),
            ("rx", "local", counters.rx_local),
            ("rx", "remote", counters.rx_remote),
        ):
            count[(*labels, direction, path)] = part.packets
            volume[(*labels, direction, path)] = part.bytes
    return [_counter(packets, count), _counter(size, volume)]


def _gauge(metric: metrics.Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)


def _plain(metric: metrics.Metric, value: float) -> Metric:
    return GaugeMetricFamily(metric.name, metric.text, value=value)


def _labelled(metric: metrics.Metric, rows: dict[tuple[str, ...], float]) -> Metric:
    family = _gauge(metric)
    for labels, value in rows.items():
        family.add_metric(labels, value)
    return family


def _counter(metric: metrics.Metric, rows: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, value in rows.items():
        family.add_metric(labels, value)
    return family


def _seconds(nanoseconds: int) -> str:
    """A bucket's bound: 25000 -> "2.5e-05"."""
    return repr(nanoseconds / 1e9)
