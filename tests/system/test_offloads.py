# SPDX-License-Identifier: Apache-2.0
"""What the wire shows and what arrives, with offloads on and off, and how large a packet may be.

In all four combinations of families inside and outside. After each test the kernel's log must have
nothing to say: a frame with stale marks of a tunnel is reported there first.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from geneve_ebpf.model import Vtep
from tests.nodes import (
    BLUE,
    Bed,
    Node,
    Sandbox,
    eventually,
    family_of,
    introduce,
    send_tcp,
    set_features,
    six,
    two_nodes,
)
from tests.offloads import SUPERPACKETS, SegmentSizes, complaints, kernel_log
from tests.wire import Captured, Tunnel, parse_ethernet, parse_ip, parse_tunnel, parse_udp

DATA = os.urandom(1 << 16) * 32  # 2 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
ETHERNET = 14
UDP_SEGMENT = 103


@dataclass(frozen=True)
class Families:
    """Of a tunnel, and what follows from them."""

    inside: int
    outside: int

    @property
    def overhead(self) -> int:
        """Bytes that the tunnel adds."""
        return 50 if self.outside == 4 else 70

    @property
    def mtu(self) -> int:
        """Bytes of the largest inner packet over a wire of 1500."""
        return 1500 - self.overhead

    @property
    def largest_echo(self) -> int:
        """Bytes of data in the largest echo request."""
        return self.mtu - (28 if self.inside == 4 else 48)

    def of(self, address: str) -> str:
        """An address inside, in that family."""
        return address if self.inside == 4 else six(address)


@pytest.fixture(
    scope="module",
    params=[pytest.param((4, 4), marks=pytest.mark.kernel), (6, 4), (4, 6), (6, 6)],
    ids=lambda pair: f"ipv{pair[0]}-over-ipv{pair[1]}",
)
def families(request: pytest.FixtureRequest) -> Families:
    return Families(*request.param)


@pytest.fixture(scope="module")
def bed(families: Families) -> Iterator[Bed]:
    with Bed(f"off{families.inside}{families.outside}") as made:
        two_nodes(made, outside=families.outside)
        yield made


@pytest.fixture
def ends(bed: Bed, families: Families) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox on either node; the underlay's offloads as a veth has them at first."""
    a, b = bed.nodes
    introduce(a, b)  # also forgets that merged frames came from the other
    said = kernel_log()
    yield a.sandbox(BLUE, families.of("10.0.1.5")), b.sandbox(BLUE, families.of("10.0.2.5"))
    bed.clear()
    for node in bed.nodes:
        features(node, "on", "tx", *SUPERPACKETS)
    assert complaints(said) == []


def features(node: Node, value: str, *names: str) -> None:
    """Set offloads of the uplink."""
    set_features(node.netns, "uplink0", *(word for name in names for word in (name, value)))


def arrived(frames: list[Captured]) -> list[Tunnel]:
    """The Geneve packets that came in."""
    return [
        found
        for one in frames
        if not one.outgoing and (found := parse_tunnel(one.data)) is not None
    ]


def check(tunnel: Tunnel, source: Node, target: Node, vni: int, families: Families) -> None:
    """Every field and every checksum of a Geneve packet, from the outside in."""
    kinds = {4: 0x0800, 6: 0x86DD}
    assert tunnel.eth.kind == kinds[families.outside]
    assert (tunnel.ip.source, tunnel.ip.destination) == (source.settings.vtep, target.settings.vtep)
    assert tunnel.ip.header_right
    assert tunnel.ip.dont_fragment
    assert not tunnel.ip.more_fragments
    assert (tunnel.ip.header_size, tunnel.ip.ttl) == (20 if families.outside == 4 else 40, 64)
    assert tunnel.udp.length == len(tunnel.udp.payload) + 8
    assert tunnel.udp.source >= 32768
    assert tunnel.ip.payload_right
    geneve = tunnel.geneve
    assert (geneve.version, geneve.control, geneve.critical) == (0, False, False)
    assert (geneve.protocol, geneve.vni, geneve.options) == (0x6558, vni, b"")
    assert tunnel.inner.kind == kinds[families.inside]
    packet = tunnel.packet
    assert packet.length == len(tunnel.inner.payload)
    assert packet.header_right
    if not packet.offset and not packet.more_fragments:
        assert packet.payload_right


@pytest.mark.parametrize("inside", ["on", "off"])
def test_every_checksum_on_the_wire_is_right(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families, inside: str
) -> None:
    """TCP, UDP, fragments and ICMP, with no offload on the underlay, so that the bytes say all."""
    a, b = bed.nodes
    one, two = ends
    for sandbox in ends:
        set_features(sandbox.netns, "eth0", "tx", inside)
    for node in bed.nodes:
        features(node, "off", "tx", *SUPERPACKETS)
    server = two.udp(5000, family_of(two.address))
    wire = b.capture()

    digest = send_tcp(one, two, DATA[: 1 << 19])
    client = one.udp(0, family_of(two.address))
    for size in (0, 1, 99, 1400, 5000):
        client.sendto(bytes(size), (two.address, 5000))
        assert len(server.recv(65536)) == size
    assert one.ping(two.address) == 3

    frames = wire.frames()
    assert digest == hashlib.sha256(DATA[: 1 << 19]).hexdigest()
    tunnels = arrived(frames)
    assert len(tunnels) > (1 << 19) // 1450
    icmp = 1 if families.inside == 4 else 58
    assert {tunnel.packet.protocol for tunnel in tunnels} == {icmp, 6, 17}
    for tunnel in tunnels:
        check(tunnel, a, b, BLUE, families)
    for tunnel in (found for x in frames if x.outgoing and (found := parse_tunnel(x.data))):
        check(tunnel, b, a, BLUE, families)
    assert max(len(one.data) for one in frames) <= 1500 + ETHERNET
    assert not any(one.checksum_pending for one in frames)


@pytest.mark.parametrize("state", ["off", "on"])
def test_what_arrives_has_right_checksums(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families, state: str
) -> None:
    """Seen inside the sandbox. A checksum the kernel still owes is right by its own account: with
    the offload the bytes hold half a sum, and what counts is that the socket took it."""
    one, two = ends
    for node in bed.nodes:
        features(node, state, "tx", *SUPERPACKETS)
    server, heard = two.udp(5000, family_of(two.address)), two.capture()

    for number in range(20):
        client = one.udp(0, family_of(two.address))
        client.sendto(bytes([number]) * number * 50, (two.address, 5000))
    sizes = sorted(len(server.recv(65536)) for _ in range(20))
    assert send_tcp(one, two, DATA) == DIGEST

    assert sizes == [number * 50 for number in range(20)]
    for frame in heard.frames():
        packet = parse_ip(parse_ethernet(frame.data).payload)
        assert packet.header_right
        if state == "off" and not frame.outgoing and packet.length <= families.mtu:
            assert frame.checksum_pending or packet.payload_right


def test_large_frames_cross_whole_where_the_wire_takes_them(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families
) -> None:
    """Tunnel segmentation on: GSO stays GSO all the way, and no segment is lost to the header."""
    one, two = ends
    wire, inside, sizes = bed.nodes[1].capture(), two.capture(), SegmentSizes(two)

    assert send_tcp(one, two, DATA) == DIGEST

    big = [tunnel for tunnel in arrived(wire.frames()) if tunnel.packet.length > families.mtu]
    assert sum(tunnel.packet.length for tunnel in big) > len(DATA) // 2
    frames = [frame for frame in inside.frames() if not frame.outgoing]
    assert len(frames) < len(DATA) / 1450 / 3
    # As the sender cut them: who forwards such a frame cuts it by this size again.
    assert sizes.seen() == {families.mtu - (20 if families.inside == 4 else 40) - 32}
    assert bed.nodes[0].drops() == bed.nodes[1].drops() == {}


def test_without_tunnel_segmentation_the_wire_has_segments_and_the_sandbox_merges_them(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """As with a NIC that can't: nothing above the MTU, and GRO in the receiving sandbox."""
    one, two = ends
    for node in bed.nodes:
        features(node, "off", *SUPERPACKETS)
    wire, inside = bed.nodes[1].capture(), two.capture()

    assert send_tcp(one, two, DATA) == DIGEST

    frames = wire.frames()
    segments = [one for one in frames if not one.outgoing and len(one.data) > 1000]
    merged = [frame for frame in inside.frames() if not frame.outgoing]
    assert max(len(one.data) for one in frames) <= 1500 + ETHERNET
    assert len(segments) >= len(DATA) // 1400
    assert len(merged) < len(segments) / 3
    assert bed.nodes[0].drops() == bed.nodes[1].drops() == {}


def test_a_vtep_that_stops_merging_is_noticed(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """After superpackets, single segments go past the sandbox's GRO for a while, not for ever."""
    one, two = ends
    for node in bed.nodes:
        features(node, "on", *SUPERPACKETS)
    assert send_tcp(one, two, DATA) == DIGEST
    for node in bed.nodes:
        features(node, "off", *SUPERPACKETS)
    assert send_tcp(one, two, DATA) == DIGEST  # a few thousand large frames

    inside = two.capture()
    assert send_tcp(one, two, DATA) == DIGEST

    merged = [frame for frame in inside.frames() if not frame.outgoing]
    assert len(merged) < len(DATA) / 1400 / 3


@pytest.mark.parametrize(
    "superpackets",
    ["off", "on"],
)
def test_udp_segmentation_crosses(
    bed: Bed, ends: tuple[Sandbox, Sandbox], superpackets: str
) -> None:
    """One send of forty datagrams arrives as forty, in order, the last one short."""
    one, two = ends
    for node in bed.nodes:
        features(node, superpackets, *SUPERPACKETS)
    server, client = two.udp(5000, family_of(two.address)), one.udp(0, family_of(two.address))
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
    data = os.urandom(39 * 1200 + 7)

    client.sendto(data, (two.address, 5000))

    parts = [server.recv(65536) for _ in range(40)]
    assert [len(part) for part in parts] == [1200] * 39 + [7]
    assert b"".join(parts) == data


def test_a_udp_gso_frame_that_crosses_whole_is_counted(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """The slot's eth0 cuts them up; a sandbox that switches this off loses them, not silently."""
    one, two = ends
    for node in bed.nodes:
        features(node, "on", *SUPERPACKETS)
    one.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "on")
    client = one.udp(0, family_of(two.address))
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
    before = bed.nodes[1].drops()

    client.sendto(bytes(12_000), (two.address, 5000))

    expected = {"rx merged_udp": 1}
    assert bed.nodes[1].gained(before, expected) == expected


def test_large_frames_pass_between_sandboxes_of_a_node(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families
) -> None:
    """No segmentation where there is no wire."""
    one = ends[0]
    two = bed.nodes[0].sandbox(BLUE, families.of("10.0.1.6"))
    inside = two.capture()

    assert send_tcp(one, two, DATA) == DIGEST

    frames = [frame for frame in inside.frames() if not frame.outgoing]
    assert len(frames) < len(DATA) / 1450 / 3


def test_flows_have_source_ports_of_their_own_and_keep_them(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """RFC 8926 section 3.3: the port is the flow's hash, so that the underlay can spread flows."""
    one, two = ends
    server, wire = two.udp(5000, family_of(two.address)), bed.nodes[1].capture()

    for _ in range(40):
        client = one.udp(0, family_of(two.address))
        for _ in range(3):
            client.sendto(b"x", (two.address, 5000))
            server.recv(10)

    outer: dict[int, set[int]] = {}
    for tunnel in arrived(wire.frames()):
        flow = parse_udp(tunnel.packet.payload).source
        outer.setdefault(flow, set()).add(tunnel.udp.source)
    assert len(outer) == 40
    assert all(len(ports) == 1 for ports in outer.values())
    assert len({min(ports) for ports in outer.values()}) > 30


def test_the_largest_packet_passes_and_one_byte_more_is_counted(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families
) -> None:
    """eth0's MTU leaves room for the header; a sandbox that raises it gains nothing."""
    a, b = bed.nodes
    one, two = ends
    wire = b.capture()
    assert a.facts.mtu == a.plane.mtu == families.mtu

    assert one.ping(two.address, "-M", "do", "-s", families.largest_echo) == 3
    assert max(len(frame.data) for frame in wire.frames()) == 1500 + ETHERNET
    one.run("ip", "link", "set", "eth0", "mtu", 1500)
    assert one.ping(two.address, "-M", "do", "-s", families.largest_echo + 1, wait=0.3) == 0

    # The first was refused and its sender told; the others were not even sent.
    assert a.gained({}, expected := {"tx too_big": 1}) == expected
    assert all(len(frame.data) <= 1500 + ETHERNET for frame in wire.frames())
    two.run("ip", "link", "set", "eth0", "mtu", 1500)
    assert two.ping(one.address, "-M", "do", "-s", families.largest_echo) == 3


def test_a_vteps_own_mtu_is_kept(
    bed: Bed, ends: tuple[Sandbox, Sandbox], families: Families
) -> None:
    """A tighter path to one node: smaller packets only, large frames by their segments."""
    a, b = bed.nodes
    one, two = ends
    before = a.drops().get("tx too_big", 0)
    a.plane.add_vtep(Vtep(b.settings.vtep, mtu=1400))
    try:
        assert one.ping(two.address, "-M", "do", "-s", families.largest_echo - 100) == 3
        assert one.ping(two.address, "-M", "do", "-s", families.largest_echo - 99, wait=0.3) == 0
        assert a.drops()["tx too_big"] == before + 1
        for sandbox in ends:
            sandbox.run("ip", "link", "set", "eth0", "mtu", families.mtu - 100)
        assert send_tcp(one, two, DATA) == DIGEST
    finally:
        a.plane.add_vtep(Vtep(b.settings.vtep))
    assert one.ping(two.address, "-M", "want", "-s", families.largest_echo - 120) == 3


@pytest.mark.kernel
def test_jumbo_frames_and_another_port() -> None:
    """The slots' MTU follows the underlay's; Geneve where the configuration says, both ways, and
    the usual port is then the host's own."""
    with Bed("jumbo") as bed:
        a, b = two_nodes(bed, mtu=9000, udp_port=7777)
        one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
        wire, listener = b.capture(), b.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("", 6081))
        speaker = a.socket(socket.AF_INET, socket.SOCK_DGRAM)

        assert a.facts.mtu == b.facts.mtu == 8950
        assert one.ping(two.address, "-M", "do", "-s", 8922) == 3
        assert two.ping(one.address, "-M", "do", "-s", 8922) == 3
        assert send_tcp(one, two, DATA) == DIGEST
        speaker.sendto(b"to the host", ("192.0.2.2", 6081))

        assert eventually(lambda: listener.recv(100) == b"to the host")
        ports = {
            parse_udp(packet.payload).destination
            for frame in wire.frames()
            if parse_ethernet(frame.data).kind == 0x0800
            and (packet := parse_ip(parse_ethernet(frame.data).payload)).protocol == 17
        }
        assert ports == {7777, 6081}
        assert sum(b.events().values()) == 0
        bed.clear()
