# SPDX-License-Identifier: Apache-2.0
"""What the programs counted: traffic by slot and VPC, drops, events.

Rows are per CPU and read while packets flow: values of one reading may differ
in age by microseconds, and each only ever grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from geneve_ebpf.abi import Direction, DropReason, EventKind, SlotCounters, TrafficRow


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets (a GSO frame is one) and bytes of inner IP."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Counters:
    """A sandbox's traffic, or a VPC's, seen from the sandbox: tx is what it sent.

    local is between sandboxes of this node, remote through the tunnel.
    """

    tx_local: Traffic = Traffic()
    tx_remote: Traffic = Traffic()
    rx_local: Traffic = Traffic()
    rx_remote: Traffic = Traffic()

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.tx_local + other.tx_local,
            self.tx_remote + other.tx_remote,
            self.rx_local + other.rx_local,
            self.rx_remote + other.rx_remote,
        )


@dataclass(frozen=True, slots=True)
class Drops:
    """What was dropped for one reason in one direction. bytes: whole frames."""

    reason: DropReason
    direction: Direction
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Event:
    """How often something happened that is no drop."""

    event: EventKind
    packets: int


def sum_traffic(rows: Iterable[TrafficRow]) -> Traffic:
    """One total over the CPUs."""
    packets = size = 0
    for row in rows:
        packets += row.packets
        size += row.bytes
    return Traffic(packets, size)


def sum_counters(rows: list[SlotCounters]) -> Counters:
    """One total over the CPUs."""
    return Counters(
        sum_traffic(row.tx_local for row in rows),
        sum_traffic(row.tx_remote for row in rows),
        sum_traffic(row.rx_local for row in rows),
        sum_traffic(row.rx_remote for row in rows),
    )


def to_row(counters: Counters) -> SlotCounters:
    """The layout of a map's value."""
    return SlotCounters(
        *(
            TrafficRow(part.packets, part.bytes)
            for part in (
                counters.tx_local,
                counters.tx_remote,
                counters.rx_local,
                counters.rx_remote,
            )
        )
    )
