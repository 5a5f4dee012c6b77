# SPDX-License-Identifier: Apache-2.0
"""When a sandbox was last active, told from counters that somebody else keeps."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from geneve_ebpf.agent.activity import Activity
from geneve_ebpf.dataplane import Counters, Traffic
from geneve_ebpf.model import Attachment, Endpoint, endpoint_mac

ADDRESS = IPv4Address("10.0.0.5")


def attachment(slot, generation):
    endpoint = Endpoint(7, ADDRESS, endpoint_mac(ADDRESS), None)
    return Attachment(f"s{slot}", slot, endpoint, generation, 0.0)


class Bench:
    def __init__(self):
        self.now = 100.0
        self.packets = {}
        self.activity = Activity(
            lambda slot: Counters(rx_remote=Traffic(self.packets.get(slot, 0), 0)),
            lambda: self.now,
        )

    def sweep(self, *attachments):
        asyncio.run(self.activity.sweep(list(attachments), lambda _: True))


def test_activity_is_when_the_counters_were_seen_to_grow():
    bench = Bench()
    one = attachment(1, 10)
    bench.sweep(one)
    assert bench.activity.known(one) is None  # never active

    bench.packets[1] = 3
    bench.now = 130.0
    bench.sweep(one)
    bench.now = 160.0
    bench.sweep(one)
    assert bench.activity.known(one) == 130.0

    bench.packets[1] = 4
    bench.now = 170.0
    counters, last = bench.activity.look(one)
    assert (counters.rx_remote.packets, last) == (4, 170.0)


def test_the_next_tenant_of_a_name_or_slot_starts_anew():
    """What is gone is forgotten; what came during the sweep is not."""
    bench = Bench()
    bench.packets[1] = bench.packets[2] = 3
    old, new = attachment(1, 10), attachment(2, 30)
    bench.sweep(old)
    bench.activity.look(new)  # attached after the list was made

    bench.sweep(attachment(3, 20))

    assert bench.activity.known(old) is None
    assert bench.activity.known(new) == 100.0
    assert bench.activity.known(attachment(1, 31)) is None
