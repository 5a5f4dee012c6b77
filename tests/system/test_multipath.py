# SPDX-License-Identifier: Apache-2.0
"""Two uplinks, the VTEP on neither: the kernel's routes decide for each flow, and may change."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from geneve_ebpf.dataplane import tear_down
from geneve_ebpf.host import namespaces
from tests.nodes import BLUE, Bed, Node, Sandbox, Stream, eventually, introduce, ping
from tests.watcher import tcx_programs
from tests.wire import Capture, parse_udp

pytestmark = pytest.mark.kernel

FLOWS = 48


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed("mp") as made:
        settings = {
            "ipv4/fib_multipath_hash_policy": 1,
            "ipv4/conf/all/ignore_routes_with_linkdown": 1,
        }
        places = [made.namespace(name, settings) for name in "ab"]
        for number in (0, 1):
            made.wire(places[0], f"uplink{number}", places[1], f"uplink{number}")
        for own, netns in enumerate(places, 1):
            other = 3 - own
            made.address(netns, f"198.51.100.{own}/32", "lo")
            for number in (0, 1):
                made.address(netns, f"192.0.{2 + number}.{own}/24", f"uplink{number}")
            made.route_over_both(netns, f"198.51.100.{other}", other)
        nodes = [
            made.node(netns, f"198.51.100.{own}", "uplink0", "uplink1")
            for own, netns in enumerate(places, 1)
        ]
        introduce(*nodes)
        yield made


@pytest.fixture
def ends(bed: Bed) -> Iterator[tuple[Sandbox, Sandbox]]:
    a, b = bed.nodes
    yield a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    bed.clear()


def talk(one: Sandbox, two: Sandbox, port: int) -> None:
    """One datagram there and back for each of many flows."""
    server = two.udp(port)
    for _ in range(FLOWS):
        client = one.udp()
        client.sendto(b"hello", (two.address, port))
        _, sender = server.recvfrom(10)
        server.sendto(b"hello yourself", sender)
        assert client.recv(100) == b"hello yourself"


def flows(capture: Capture) -> dict[int, set[int]]:
    """Of the captured Geneve packets towards the second node: inner source port to outer ones."""
    found: dict[int, set[int]] = {}
    for tunnel in capture.tunnels():
        if str(tunnel.ip.destination) == "198.51.100.2" and tunnel.packet.protocol == 17:
            flow = parse_udp(tunnel.packet.payload).source
            found.setdefault(flow, set()).add(tunnel.udp.source)
    return found


def test_flows_are_spread_over_both_uplinks(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """And each flow stays on its own, so that nothing overtakes."""
    one, two = ends
    captures = [bed.nodes[1].capture(f"uplink{number}") for number in (0, 1)]

    talk(one, two, 5000)
    client = one.udp()
    server = two.udp(5001)
    for _ in range(20):
        client.sendto(b"again", (two.address, 5001))
        server.recv(10)

    first, second = (flows(capture) for capture in captures)
    assert len(first) + len(second) == FLOWS + 1
    assert not first.keys() & second.keys()
    assert len(first) > FLOWS // 8
    assert len(second) > FLOWS // 8


def test_a_lost_link_moves_its_flows_and_its_return_brings_them_back(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Nothing about a path is kept: the kernel's next answer counts."""
    a, b = bed.nodes
    one, two = ends
    talk(one, two, 5000)
    wires = [b.capture(f"uplink{number}") for number in (0, 1)]
    a.run("ip", "link", "set", "uplink0", "down")
    try:
        assert eventually(lambda: "linkdown" in b.run("ip", "route", "show", "198.51.100.1"))

        talk(one, two, 5001)

        assert wires[0].tunnels() == []
        assert len(flows(wires[1])) == FLOWS
    finally:
        a.run("ip", "link", "set", "uplink0", "up")
        a.bed.route_over_both(a.netns, "198.51.100.2", 2)

    assert eventually(lambda: "linkdown" not in b.run("ip", "route", "show", "198.51.100.1"))
    assert ping(a.netns, "192.0.2.2") == 3
    talk(one, two, 5002)
    assert wires[0].tunnels() != []


def test_a_node_without_a_route_counts_and_recovers(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """No way to the VTEP: dropped as such, not sent by some other way."""
    a, _ = bed.nodes
    one, two = ends
    a.run("ip", "route", "delete", "198.51.100.2")
    try:
        before = a.drops()
        assert not one.reaches(two.address)
        assert a.gained(before, expected := {"tx no_underlay_route": 3}) == expected
    finally:
        a.bed.route_over_both(a.netns, "198.51.100.2", 2)

    assert one.ping(two.address) == 3


def test_a_route_change_under_traffic_loses_nothing(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """A replaced route is one swap for the kernel, and so for us."""
    a, _ = bed.nodes
    one, two = ends
    with Stream(one.netns, two.netns, two.address) as stream:
        for number in (0, 1) * 10:
            a.run(
                "ip", "route", "replace", "198.51.100.2", "via", f"192.0.{2 + number}.2",
                "dev", f"uplink{number}", "src", "198.51.100.1",
            )  # fmt: skip
        a.bed.route_over_both(a.netns, "198.51.100.2", 2)
        assert stream.lost() == set()


def hooked(node: Node) -> list[str]:
    """The programs on both uplinks."""
    with namespaces.entering(node.netns):
        return [
            name
            for number in (0, 1)
            for name in tcx_programs(socket.if_nametoindex(f"uplink{number}"))
        ]


def test_tear_down_leaves_the_uplinks_alone(bed: Bed) -> None:
    """Both still work for the host, and hold no program; brought up again all is as before."""
    a, b = bed.nodes
    tear_down(a.settings)
    try:
        assert ping(a.netns, "192.0.2.2") == ping(a.netns, "192.0.3.2") == 3
        assert hooked(a) == []
    finally:
        a.bring_up()
        introduce(a, b)
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    assert hooked(a) == ["uplink_rx"] * 2
    assert one.ping(two.address) == 3
    bed.clear()
