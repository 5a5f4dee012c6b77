# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6 inside, over IPv4 and IPv6 underlays: what passes between two nodes and in one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

import pytest

from tests.nodes import BLUE, Bed, Sandbox, eventually, family_of, send_tcp, six, two_nodes
from tests.wire import parse_tunnel

DATA = os.urandom(1 << 16) * 32  # 2 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
HEADERS = {4: 28, 6: 48}  # bytes in front of an echo's data
OVERHEAD = {4: 50, 6: 70}  # what the tunnel adds
ETHERNET = 14


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with Bed(f"fam{request.param}") as made:
        two_nodes(made, outside=request.param)
        yield made


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, bed: Bed) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox on either node, with an address of one family."""
    a, b = bed.nodes
    one, two = "10.0.1.5", "10.0.2.5"
    if request.param == 6:
        one, two = six(one), six(two)
    yield a.sandbox(BLUE, one), b.sandbox(BLUE, two)
    bed.clear()


@pytest.mark.kernel
def test_ping_udp_and_tcp_cross(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Both ways, whole, and nothing is counted as dropped."""
    one, two = ends
    before = [node.drops() for node in bed.nodes]

    assert (one.ping(two.address), two.ping(one.address)) == (3, 3)
    assert send_tcp(one, two, DATA) == send_tcp(two, one, DATA) == DIGEST
    server = two.udp(5000, family_of(two.address))
    client = one.udp(0, family_of(two.address))
    for size in (0, 1, 17, 1380):
        client.sendto(data := os.urandom(size), (two.address, 5000))
        received, sender = server.recvfrom(65536)
        server.sendto(received[::-1], sender)
        assert (received, sender[0], client.recv(65536)) == (data, one.address, data[::-1])

    assert [node.drops() for node in bed.nodes] == before
    assert one.counters.tx_remote == two.counters.rx_remote


@pytest.mark.kernel
def test_fragments_cross(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Datagrams larger than eth0's MTU arrive whole, the answers too."""
    one, two = ends
    server = two.udp(5000, family_of(two.address))
    client = one.udp(0, family_of(two.address))
    for size in (1500, 8000, 30000):
        data = os.urandom(size)

        client.sendto(data, (two.address, 5000))
        received, sender = server.recvfrom(65536)
        server.sendto(received[::-1], sender)

        assert (received, sender[0]) == (data, one.address)
        assert client.recv(65536) == data[::-1]


@pytest.mark.kernel
def test_the_largest_packet_fills_the_wire(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """eth0's MTU leaves room for the headers of the underlay's family, to the byte."""
    a, b = bed.nodes
    one, two = ends
    outside = a.settings.vtep.version
    inside = two.endpoint.address6.version if two.endpoint.address6 else 4
    wire = b.capture()

    assert a.plane.mtu == a.facts.mtu == 1500 - OVERHEAD[outside]
    size = a.facts.mtu - HEADERS[inside]
    assert one.ping(two.address, "-M", "do", "-s", size) == 3
    assert two.ping(one.address, "-M", "do", "-s", size) == 3
    assert max(len(frame.data) for frame in wire.frames()) == 1500 + ETHERNET


def test_a_routes_own_mtu_counts(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """The kernel is asked for each packet: a tighter route is kept from the next one on. Its MTU
    must be locked, else the kernel holds it a hint that forwarding need not heed."""
    a, b = bed.nodes
    one, two = ends
    outside = a.settings.vtep.version
    inside = two.endpoint.address6.version if two.endpoint.address6 else 4
    fits = 1400 - OVERHEAD[outside] - HEADERS[inside]
    assert one.ping(two.address, "-M", "do", "-s", fits + 1, count=1) == 1
    before = a.drops()
    a.run("ip", f"-{outside}", "route", "add", b.vtep, "dev", "uplink0", "mtu", "lock", 1400)
    try:
        assert one.ping(two.address, "-M", "do", "-s", fits, count=1) == 1
        assert one.ping(two.address, "-M", "do", "-s", fits + 1, count=1, wait=0.3) == 0
        assert a.gained(before, expected := {"tx too_big": 1}) == expected
    finally:
        a.run("ip", f"-{outside}", "route", "delete", b.vtep, "dev", "uplink0", "mtu", "lock", 1400)


def test_a_sandbox_with_a_larger_mtu_is_not_dropped_unseen(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """As one restored from a snapshot that had 1500, or 9000: what does not fit is counted."""
    a, _ = bed.nodes
    one, two = ends
    one.run("ip", "link", "set", "eth0", "mtu", 9000)
    before = a.drops()

    assert one.ping(two.address, "-M", "do", "-s", 8000, count=1, wait=0.3) == 0

    assert a.gained(before, expected := {"tx too_big": 1}) == expected


def test_sandboxes_of_one_node_do_not_use_the_wire(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Neither family does."""
    a, _ = bed.nodes
    one = ends[0]
    other = six("10.0.1.6") if ":" in one.address else "10.0.1.6"
    two = a.sandbox(BLUE, other)
    wire = a.capture()

    assert one.ping(other) == two.ping(one.address) == 3
    assert send_tcp(one, two, DATA) == DIGEST

    assert [frame for frame in wire.frames() if parse_tunnel(frame.data)] == []
    assert one.counters.tx_local == two.counters.rx_local


def test_a_sandbox_of_both_families_speaks_both(bed: Bed) -> None:
    """One endpoint, two addresses; the family it has none of is refused."""
    a, b = bed.nodes
    one = a.sandbox(BLUE, "10.0.1.5", address6=six("10.0.1.5"))
    two = b.sandbox(BLUE, "10.0.2.5", address6=six("10.0.2.5"))
    only = b.sandbox(BLUE, "10.0.2.6")

    assert one.ping(two.address) == one.ping(two.address6) == two.ping(one.address6) == 3
    assert send_tcp(one, two, DATA, two.address6) == DIGEST
    before = b.drops()
    assert only.ping(one.address) == 3
    assert not only.reaches(one.address6)
    assert b.gained(before, expected := {"tx no_address": 3}) == expected
    bed.clear()


def test_nothing_of_a_detached_sandbox_is_left(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Its address is nobody's, on its own node and on the others."""
    _, b = bed.nodes
    one, two = ends
    assert one.ping(two.address) == 3
    before = b.drops()

    two.detach()

    assert not one.reaches(two.address)
    assert eventually(lambda: b.drops() != before)


@pytest.mark.parametrize("says_so", [True, False], ids=["announced", "unsaid"])
def test_a_node_that_changes_its_mac_is_found_again(bed: Bed, says_so: bool) -> None:
    """At once when it announces the new one, else when the kernel asks after a neighbour that does
    not answer any more: the entry ages as if the host itself had sent."""
    a, b = bed.nodes
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    family, notify = {4: ("ipv4", "arp_notify"), 6: ("ipv6", "ndisc_notify")}[
        a.settings.vtep.version
    ]
    b.run("sysctl", "-qw", f"net.{family}.conf.uplink0.{notify}={int(says_so)}")
    for name, value in (
        ("base_reachable_time_ms", 60_000 if says_so else 300),
        ("delay_first_probe_time", 1),
        ("retrans_time_ms", 100),
        ("locktime", 0),
    ):
        a.run("sysctl", "-qw", f"net.{family}.neigh.uplink0.{name}={value}")
    a.run("ip", "neighbour", "flush", "dev", "uplink0")
    before = json.loads(b.run("ip", "-j", "link", "show", "uplink0"))[0]["address"]
    assert one.ping(two.address) == 3
    wire = b.capture()
    try:
        b.run("ip", "link", "set", "uplink0", "address", "02:00:00:00:0b:0b")

        assert eventually(lambda: one.ping(two.address, count=1, wait=0.2) == 1, 30)

        arrived = [found for found in wire.tunnels() if found.ip.destination == b.settings.vtep]
        assert arrived[-1].eth.destination == "02:00:00:00:0b:0b"
        if not says_so:  # it was lost on the old one first
            assert arrived[0].eth.destination == before
    finally:
        b.run("ip", "link", "set", "uplink0", "address", before)
        a.run("ip", "neighbour", "flush", "dev", "uplink0")
        bed.clear()
