# SPDX-License-Identifier: Apache-2.0
"""Two uplinks, the VTEP on neither: the kernel's routes decide for each flow, and may change."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from geneve_ebpf.dataplane import tear_down
from geneve_ebpf.host import namespaces
from tests.nodes import BLUE, Bed, Node, Sandbox, Stream, eventually, introduce, link, ping
from tests.watcher import tcx_programs
from tests.wire import Capture, parse_udp

FLOWS = 48


VTEPS = {4: ("198.51.100.", 32), 6: ("2001:db8:100::", 128)}
SETTINGS = {
    4: {
        "ipv4/fib_multipath_hash_policy": 1,
        "ipv4/conf/all/ignore_routes_with_linkdown": 1,
    },
    6: {
        "ipv6/fib_multipath_hash_policy": 1,
        "ipv6/conf/all/ignore_routes_with_linkdown": 1,
        "ipv6/conf/all/keep_addr_on_down": 1,
    },
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(4, marks=pytest.mark.kernel), 6],
    ids=["over-ipv4", "over-ipv6"],
)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    family = request.param
    vtep, alone = VTEPS[family]
    with Bed(f"mp{family}") as made:
        places = [made.namespace(name, SETTINGS[family]) for name in "ab"]
        for number in (0, 1):
            made.wire(places[0], f"uplink{number}", places[1], f"uplink{number}")
        for own, netns in enumerate(places, 1):
            other = 3 - own
            made.address(netns, f"{vtep}{own}/{alone}", "lo")
            for number in (0, 1):
                length = 24 if family == 4 else 64
                made.address(netns, f"{link(family, number, own)}/{length}", f"uplink{number}")
            made.route_over_both(netns, f"{vtep}{other}", other)
        nodes = [
            made.node(netns, f"{vtep}{own}", "uplink0", "uplink1")
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


def ways(node: Node, other: Node) -> str:
    """A node's routes to another's VTEP, as `ip` shows them."""
    return node.run("ip", f"-{node.settings.vtep.version}", "route", "show", other.vtep)


def flows(capture: Capture) -> dict[int, set[int]]:
    """Of the captured Geneve packets towards the second node: inner source port to outer ones."""
    found: dict[int, set[int]] = {}
    for tunnel in capture.tunnels():
        to = str(tunnel.ip.destination)
        if to in ("198.51.100.2", "2001:db8:100::2") and tunnel.packet.protocol == 17:
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
        assert eventually(lambda: "linkdown" in ways(b, a))

        talk(one, two, 5001)

        assert wires[0].tunnels() == []
        assert len(flows(wires[1])) == FLOWS
    finally:
        a.run("ip", "link", "set", "uplink0", "up")
        a.bed.route_over_both(a.netns, b.vtep, 2)

    assert eventually(lambda: "linkdown" not in ways(b, a))
    assert ping(a.netns, link(a.settings.vtep.version, 0, 2)) == 3
    talk(one, two, 5002)
    assert wires[0].tunnels() != []


def test_a_node_without_a_route_counts_and_recovers(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """No way to the VTEP: dropped as such, not sent by some other way."""
    a, b = bed.nodes
    one, two = ends
    a.run("ip", "route", "delete", b.vtep)
    try:
        before = a.drops()
        assert not one.reaches(two.address)
        assert a.gained(before, expected := {"tx no_underlay_route": 3}) == expected
    finally:
        a.bed.route_over_both(a.netns, b.vtep, 2)

    assert one.ping(two.address) == 3


def test_a_route_change_under_traffic_loses_nothing(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """A replaced route is one swap for the kernel, and so for us."""
    a, b = bed.nodes
    one, two = ends
    with Stream(one.netns, two.netns, two.address) as stream:
        for number in (0, 1) * 10:
            a.run(
                "ip", "route", "replace", b.vtep, "via", link(b.settings.vtep.version, number, 2),
                "dev", f"uplink{number}", "src", a.vtep,
            )  # fmt: skip
        a.bed.route_over_both(a.netns, b.vtep, 2)
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
    if a.facts.uplink_hook != "tcx":
        pytest.skip("this kernel has no TCX, and tells otherwise what hangs on an uplink")
    tear_down(a.settings)
    try:
        family = a.settings.vtep.version
        assert [ping(a.netns, link(family, number, 2)) for number in (0, 1)] == [3, 3]
        assert hooked(a) == []
    finally:
        a.bring_up()
        introduce(a, b)
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    assert hooked(a) == ["uplink_rx"] * 2
    assert one.ping(two.address) == 3
    bed.clear()
