# SPDX-License-Identifier: Apache-2.0
"""Packets between sandboxes: over the tunnel, within a node, and never between VPCs."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from tests.nodes import BLUE, RED, Bed, Node, Stream, ping, send_tcp, two_nodes
from tests.wire import UDP, parse_ethernet, parse_ip, parse_udp

pytestmark = pytest.mark.kernel

DATA = os.urandom(1 << 16) * 64  # 4 MiB


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed("fw") as made:
        two_nodes(made)
        yield made


@pytest.fixture
def pair(bed: Bed) -> Iterator[tuple[Node, Node]]:
    yield bed.nodes[0], bed.nodes[1]
    bed.clear()


def test_ping_crosses_the_tunnel_both_ways(pair: tuple[Node, Node]) -> None:
    """And both ends count the same packets."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")

    there, back = one.ping("10.0.2.5"), two.ping("10.0.1.5")

    assert (there, back) == (3, 3)
    assert one.counters.tx_remote.packets == one.counters.rx_remote.packets == 6
    assert one.counters.tx_remote == two.counters.rx_remote
    assert two.counters.tx_remote.bytes == 6 * 84
    assert one.counters.tx_local.packets == one.counters.rx_local.packets == 0


def test_megabytes_of_tcp_arrive_whole(pair: tuple[Node, Node]) -> None:
    """Both ways, and from both VPCs at once on the same addresses."""
    a, b = pair
    for vni in (BLUE, RED):
        one, two = a.sandbox(vni, "10.0.1.5"), b.sandbox(vni, "10.0.2.5")

        there, back = send_tcp(one, two, DATA), send_tcp(two, one, DATA)

        assert there == back == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 17, 1400, 1422, 1423, 8000, 30000])
def test_udp_arrives_as_it_was_sent(pair: tuple[Node, Node], size: int) -> None:
    """Whole, odd, empty and in fragments; the answer to the address that the sender has."""
    a, b = pair
    client, server = a.sandbox(BLUE, "10.0.1.5").udp(), b.sandbox(BLUE, "10.0.2.5").udp(5000)
    data = os.urandom(size)

    client.sendto(data, ("10.0.2.5", 5000))
    received, sender = server.recvfrom(65536)
    server.sendto(received[::-1], sender)
    answer = client.recv(65536)

    assert (received, sender[0]) == (data, "10.0.1.5")
    assert answer == data[::-1]


def test_udp_without_a_checksum_keeps_none(pair: tuple[Node, Node]) -> None:
    """Zero means none; a translated address must not make one of it."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    client, server, capture = one.udp(), two.udp(5000), two.capture()
    client.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK

    client.sendto(b"unchecked", ("10.0.2.5", 5000))

    assert server.recv(100) == b"unchecked"
    (frame,) = [one for one in capture.frames() if not one.outgoing]
    packet = parse_ip(parse_ethernet(frame.data).payload)
    assert packet.protocol == UDP
    assert parse_udp(packet.payload).checksum == 0


def test_an_icmp_error_reaches_the_socket_it_is_about(pair: tuple[Node, Node]) -> None:
    """The quoted packet is translated too, else the sender could not tell which it was."""
    a, b = pair
    client = a.sandbox(BLUE, "10.0.1.5").udp()
    b.sandbox(BLUE, "10.0.2.5")
    client.connect(("10.0.2.5", 9))  # where nobody listens

    client.send(b"anyone?")

    with pytest.raises(ConnectionRefusedError):
        client.recv(1)


def test_sandboxes_of_one_node_do_not_use_the_wire(pair: tuple[Node, Node]) -> None:
    """Ping, UDP and TCP pass from slot to slot; the uplink sees no frame of it."""
    a, _ = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), a.sandbox(BLUE, "10.0.1.6")
    wire = a.capture()

    pings = one.ping("10.0.1.6") + two.ping("10.0.1.5")
    digest = send_tcp(one, two, DATA)

    assert pings == 6
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert wire.strays() == []
    assert one.counters.tx_local == two.counters.rx_local
    assert one.counters.tx_remote.packets == two.counters.rx_remote.packets == 0


def test_a_sandbox_reaches_itself_by_its_vpc_address(pair: tuple[Node, Node]) -> None:
    """It does not have that address, so the packet goes out and comes back."""
    one = pair[0].sandbox(BLUE, "10.0.1.5")

    assert one.ping("10.0.1.5") == 3


def test_vpcs_with_the_same_addresses_do_not_see_each_other(pair: tuple[Node, Node]) -> None:
    """Across the wire and within a node: one VPC's packets never show on another's eth0."""
    a, b = pair
    blue = [a.sandbox(BLUE, "10.0.1.5"), a.sandbox(BLUE, "10.0.1.6"), b.sandbox(BLUE, "10.0.2.5")]
    red = [a.sandbox(RED, "10.0.1.5"), a.sandbox(RED, "10.0.1.6"), b.sandbox(RED, "10.0.2.5")]

    for talking, quiet in ((blue, red), (red, blue)):
        captures = [sandbox.capture() for sandbox in quiet]
        wire = b.capture()

        assert talking[0].ping("10.0.2.5") == talking[0].ping("10.0.1.6") == 3
        assert talking[2].ping("10.0.1.5") == 3

        assert [capture.frames() for capture in captures] == [[], [], []]
        assert {tunnel.geneve.vni for tunnel in wire.tunnels()} == {talking[0].vni}


def test_an_address_of_the_other_vpc_alone_is_nowhere(pair: tuple[Node, Node]) -> None:
    """No endpoint on the node, none behind the route, no route at all: counted apart."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    a.sandbox(RED, "10.0.1.7")
    b.sandbox(RED, "10.0.2.7")
    before_a, before_b = a.drops(), b.drops()

    reached = [one.reaches(address) for address in ("10.0.1.7", "10.0.2.7", "172.16.0.1")]

    assert reached == [False] * 3
    assert a.drops().get("tx no_route", 0) - before_a.get("tx no_route", 0) == 6
    assert b.drops().get("rx no_endpoint", 0) - before_b.get("rx no_endpoint", 0) == 3


def test_a_blackhole_swallows_and_is_counted(pair: tuple[Node, Node]) -> None:
    """Also in front of a wider route that leads somewhere."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    b.sandbox(BLUE, "10.0.2.129")
    a.route(BLUE, "10.0.2.128/25", None)
    before = a.drops().get("tx blackhole", 0)

    try:
        assert not one.reaches("10.0.2.129")
    finally:
        a.plane.remove_routes([(BLUE, IPv4Network("10.0.2.128/25"))])

    assert a.drops()["tx blackhole"] - before == 3
    assert one.ping("10.0.2.129") == 3


def test_a_host_route_wins_over_its_prefix(pair: tuple[Node, Node]) -> None:
    """A sandbox that moved: one /32 leads it elsewhere, and back when it is deleted."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    b.sandbox(BLUE, "10.0.3.9")
    assert not one.reaches("10.0.3.9")

    a.route(BLUE, "10.0.3.9/32", b)

    assert one.ping("10.0.3.9") == 3
    a.plane.remove_routes([(BLUE, IPv4Network("10.0.3.9/32"))])
    assert not one.reaches("10.0.3.9")


def test_a_detached_address_comes_back_on_another_slot(pair: tuple[Node, Node]) -> None:
    """After detach nothing answers for it; attached again it does, with a newer generation."""
    a, b = pair
    other, old = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    assert other.ping("10.0.2.5") == 3

    counters = old.detach()
    reached = other.reaches("10.0.2.5")
    new = b.sandbox(BLUE, "10.0.2.5", name="successor")
    back = other.ping("10.0.2.5")

    assert (reached, back) == (False, 3)
    assert counters.rx_remote.packets == 3
    assert new.slot != old.slot
    assert new.attachment.generation > old.attachment.generation
    assert [found.sandbox for found in b.plane.attachments()] == ["successor"]
    assert old.counters.rx_remote.packets == 3  # not one more


def test_a_detached_sandbox_is_cut_off(pair: tuple[Node, Node]) -> None:
    """What it still sends is dropped as unbound; its address is free for others at once."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    assert one.ping("10.0.2.5") == 3
    before = a.drops().get("tx unbound", 0)

    one.detach()
    heard = two.capture()

    assert not one.reaches("10.0.2.5")
    assert a.drops()["tx unbound"] - before == 3
    assert heard.frames() == []


def test_nobody_on_a_reused_slot_gets_what_was_sent_to_its_last_tenant(
    pair: tuple[Node, Node],
) -> None:
    """Same index, new namespace, other address and VPC: the old address is unreachable."""
    a, b = pair
    other, old = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    assert other.ping("10.0.2.5") == 3
    totals = b.plane.vpc_totals()[BLUE]

    b.destroy_slots([old.slot])
    new = b.sandbox(RED, "10.0.2.5")
    heard = new.capture()

    assert new.slot == old.slot
    assert not other.reaches("10.0.2.5")
    assert heard.frames() == []
    assert new.counters.rx_remote.packets == 0
    assert b.plane.vpc_totals()[BLUE] == totals  # a VPC's counters survive its slots


def test_attaching_and_detaching_neighbours_loses_nothing(pair: tuple[Node, Node]) -> None:
    """A stream runs while a hundred others come and go, on its own node and VPC."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")

    with Stream(one.netns, two.netns, "10.0.2.5") as stream:
        for round_number in range(10):
            made = [
                b.sandbox(BLUE, f"10.0.2.{100 + number}", name=f"r{round_number}-{number}")
                for number in range(10)
            ]
            b.destroy_slots([sandbox.slot for sandbox in made])
        lost = stream.lost()

    assert lost == set()
    assert stream.errors == []


def test_nodes_do_not_answer_for_sandboxes(pair: tuple[Node, Node]) -> None:
    """VPC addresses mean nothing in a node's own namespace."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")

    assert ping(a.netns, "10.0.2.5", wait=0.3) == 0
