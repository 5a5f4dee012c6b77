# SPDX-License-Identifier: Apache-2.0
"""A node of ours and Open vSwitch, each at one end of a tunnel, and what either makes of the other.

The switch is an Ethernet: its host asks ARP through the tunnel and takes only
what carries its MAC. With the modules of Open vSwitch loaded, its kernel datapath
is a second peer of all these tests.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from geneve_ebpf.model import MacAddress
from tests.nodes import (
    BLUE,
    RED,
    Bed,
    Host,
    Node,
    Sandbox,
    eventually,
    send_tcp,
    set_features,
)
from tests.ovs import HOST, TUNNEL, OpenvSwitch
from tests.wire import (
    BROADCAST,
    Capture,
    Option,
    Tunnel,
    arp_request,
    ethernet,
    parse_options,
    parse_tunnel,
    udp,
)

DATAPATHS = ["netdev", *(["system"] if Path("/sys/module/openvswitch").exists() else [])]

NODE, SWITCH = "192.0.2.1", "192.0.2.9"  # the two VTEPs
HERE, FAR = "10.0.1.5", "10.0.2.5"  # the sandbox and the host behind the switch
FAR_MAC = "02:00:00:00:02:05"
DATA = os.urandom(1 << 16) * 64  # 4 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
ETHERNET = 14


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks in a test."""

    node: Node
    sandbox: Sandbox
    switch: OpenvSwitch
    far: Host
    drops: dict[str, int]  # at the beginning of the test

    def ways(self) -> tuple[tuple[Host, Host], tuple[Host, Host]]:
        """From here to there, and back."""
        return (self.sandbox, self.far), (self.far, self.sandbox)

    def dropped(self, expected: dict[str, int]) -> bool:
        """Whether the test has made the node drop just this."""
        gained = self.node.gained(self.drops, expected)
        assert gained == expected
        return True


@pytest.fixture(scope="module", params=DATAPATHS)
def peers(request: pytest.FixtureRequest) -> Iterator[tuple[Bed, Node, OpenvSwitch, Host]]:
    """One wire with a node at one end and a switch at the other."""
    with Bed("ovs") as bed:
        here, there = bed.namespace("a"), bed.namespace("b", {"ipv4/conf/all/rp_filter": 1})
        bed.wire(here, "uplink0", there, "uplink0")
        bed.address(here, f"{NODE}/24", "uplink0")
        if request.param == "netdev":
            # It reads frames as bytes, in which a checksum left to the device is a wrong one.
            set_features(here, "uplink0", "tx", "off", "tso", "off", "gso", "off")
        node = bed.node(here, NODE)
        node.knows(SWITCH)
        mac = MacAddress(bytes.fromhex(FAR_MAC.replace(":", "")))
        for vni in (BLUE, RED):
            node.route(vni, "10.0.2.0/24", SWITCH, mac=mac)
        with OpenvSwitch(bed, there, request.param) as switch:
            switch.underlay("uplink0", f"{SWITCH}/24")
            far = switch.host(FAR_MAC, f"{FAR}/16")
            yield bed, node, switch, far


@pytest.fixture
def ends(peers: tuple[Bed, Node, OpenvSwitch, Host]) -> Iterator[Ends]:
    """A sandbox, and the switch with its tunnel as it is when nobody says otherwise."""
    bed, node, switch, far = peers
    switch.tunnel(NODE)
    switch.clear_options()
    switch.flows(BLUE)
    yield Ends(node, node.sandbox(BLUE, HERE), switch, far, node.drops())
    bed.clear()


def exchange(source: Host, target: Host, sizes: tuple[int, ...]) -> list[int]:
    """Send datagrams of these sizes; the sizes that came, of those whose content is right."""
    server, client = target.udp(5000), source.udp()
    came = []
    for size in sizes:
        data = os.urandom(size)
        client.sendto(data, (target.address, 5000))
        if server.recv(65536) == data:
            came.append(size)
    server.close()
    return came


def tunnels(wire: Capture) -> tuple[list[Tunnel], list[Tunnel]]:
    """The Geneve packets that left the node, and those that came."""
    ways: tuple[list[Tunnel], list[Tunnel]] = ([], [])
    for frame in wire.frames():
        if (found := parse_tunnel(frame.data)) is not None:
            ways[0 if frame.outgoing else 1].append(found)
    return ways


# -- both ways, every protocol


@pytest.mark.parametrize("size", [0, 56, 1422])
def test_echo_both_ways(ends: Ends, size: int) -> None:
    """From nothing to the largest that needs no fragments."""
    for source, target in ends.ways():
        assert source.ping(target.address, "-M", "do", "-s", size) == 3
    assert ends.dropped({})


def test_echo_in_fragments_both_ways(ends: Ends) -> None:
    """Neither end has to put them together: the hosts do."""
    for source, target in ends.ways():
        assert source.ping(target.address, "-s", 8000) == 3
    assert ends.dropped({})


def test_udp_both_ways(ends: Ends) -> None:
    """Empty, odd, the largest that fits, and in fragments."""
    sizes = (0, 1, 99, 1422, 1423, 20_000)

    for source, target in ends.ways():
        assert exchange(source, target, sizes) == [*sizes]
    assert ends.dropped({})


def test_tcp_both_ways(ends: Ends) -> None:
    """Bulk. What the sandbox sends in superpackets is cut up before the wire."""
    host_side = ends.node.capture(ends.node.host_interface(ends.sandbox.slot))
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert send_tcp(source, target, DATA) == DIGEST

    sent = [frame for frame in host_side.frames() if not frame.outgoing]
    assert max(len(frame.data) for frame in sent) > 10_000
    if ends.switch.datapath == "netdev":
        assert max(len(frame.data) for frame in wire.frames()) <= 1500 + ETHERNET
    assert ends.dropped({})


# -- what either sees of the other


def test_every_field_and_sum_on_the_wire(ends: Ends) -> None:
    """Both ends write the header that RFC 8926 has, and nothing that it reserves."""
    if ends.switch.datapath == "system":
        set_features(ends.node.netns, "uplink0", "tx", "off")
        set_features(ends.switch.netns, "uplink0", "tx", "off")
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        exchange(source, target, (1, 1000))
        send_tcp(source, target, DATA[: 1 << 18])

    for seen, outer in zip(tunnels(wire), ((NODE, SWITCH), (SWITCH, NODE)), strict=True):
        assert len(seen) > (1 << 18) // 1450
        assert {one.packet.protocol for one in seen if one.inner.kind == 0x0800} == {1, 6, 17}
        for one in seen:
            assert (str(one.ip.source), str(one.ip.destination)) == outer
            assert one.ip.header_right
            assert one.ip.payload_right
            assert (one.udp.destination, one.udp.length) == (6081, len(one.udp.payload) + 8)
            header = one.geneve
            assert (header.version, header.control, header.critical) == (0, False, False)
            assert (header.protocol, header.vni, header.options) == (0x6558, BLUE, b"")
            if one.inner.kind == 0x0800:
                packet = one.packet
                assert {str(packet.source), str(packet.destination)} == {HERE, FAR}
                assert packet.header_right
                assert packet.payload_right


def test_the_switch_reads_our_header_as_we_meant_it(ends: Ends) -> None:
    """The VNI, both VTEPs and no control bit match, for every packet; and it finds no option."""
    wanted = f"in_port={TUNNEL},tun_id={BLUE},tun_src={NODE},tun_dst={SWITCH},tun_flags=-oam"
    ends.switch.ofctl("del-flows", f"in_port={TUNNEL}")
    ends.switch.ofctl("add-flow", f"priority=9,{wanted} actions=output:{HOST}")
    ends.switch.ofctl("add-flow", f"priority=8,in_port={TUNNEL} actions=drop")

    assert ends.sandbox.ping(FAR, count=20) == 20
    seen = tunnel_flows(ends.switch)

    assert ends.switch.packets(wanted) >= 20
    assert ends.switch.packets(f"in_port={TUNNEL}") == ends.switch.packets(wanted)
    assert seen
    assert not any("class=" in flow for flow in seen)


def test_the_switch_would_have_shown_an_option(ends: Ends) -> None:
    """What the test above looks at has them when they are there."""
    wire = ends.node.capture()
    assert ends.sandbox.ping(FAR) == 3
    sample = tunnels(wire)[0][-1]
    option = bytes.fromhex("0102050112345678")
    header = struct.pack("!BBHI", len(option) // 4, 0, 0x6558, BLUE << 8)
    packet = udp(NODE, SWITCH, (40000, 6081), header + option + sample.geneve.payload)

    with ends.node.socket(socket.AF_PACKET, socket.SOCK_RAW) as door:
        door.bind(("uplink0", 0))
        door.send(ethernet(sample.eth.destination, sample.eth.source, 0x0800, packet))

    assert eventually(
        lambda: any("geneve({class=0x102" in flow for flow in tunnel_flows(ends.switch))
    )


def tunnel_flows(switch: OpenvSwitch) -> list[str]:
    """What its datapath has seen come out of the tunnel lately."""
    return [flow for flow in switch.datapath_flows() if f"tunnel(tun_id={BLUE:#x},src=" in flow]


def test_arp_through_the_tunnel_is_answered(ends: Ends) -> None:
    """For who is here, with the endpoint's MAC; not for anybody else, and that is counted."""
    ends.far.run("ip", "neigh", "flush", "dev", HOST)
    asked = ends.node.events().get("wire_arp_answered", 0)

    assert ends.far.ping(HERE) == 3
    question = arp_request(FAR_MAC, FAR, "10.0.1.77")
    ends.far.send_frame(ethernet(BROADCAST, FAR_MAC, 0x0806, question))

    neighbours = ends.far.run("ip", "neigh", "show", "dev", HOST)
    assert f"{HERE} lladdr {ends.sandbox.endpoint.mac}" in neighbours
    assert ends.node.events()["wire_arp_answered"] > asked
    assert ends.dropped({"rx no_endpoint": 1})


def test_another_vni_reaches_nobody(ends: Ends) -> None:
    """The switch may write any; the sandbox is in one of them."""
    assert ends.far.ping(HERE) == 3
    ends.switch.flows(RED)
    heard = ends.sandbox.capture()

    assert ends.far.ping(HERE, wait=0.3) == 0

    assert ends.dropped({"rx no_endpoint": 3})
    assert heard.frames() == []


# -- the switch's choices


def test_options_that_are_not_critical_are_ignored(ends: Ends) -> None:
    """Set by its flows, on every packet: everything gets through as if there were none."""
    switch = ends.switch
    fields = {
        switch.option(0, 0x0102, 0x05, 4): "0x12345678",
        switch.option(1, 0x0103, 0x7F, 8): "0x1122334455667788",
        switch.option(2, 0xFFFF, 0x00, 124): "0x" + "5a" * 124,
    }
    switch.flows(BLUE, fields)
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, (0, 1, 1200)) == [0, 1, 1200]
    ends.far.run("ip", "route", "replace", HERE, "dev", HOST, "advmss", 1200)
    # The host behind the switch has to be told that the options take room.
    ends.far.run("ip", "route", "replace", HERE, "dev", HOST, "mtu", 1300)
    digest = send_tcp(ends.far, ends.sandbox, DATA[: 1 << 20])
    ends.far.run("ip", "route", "delete", HERE)
    assert digest == hashlib.sha256(DATA[: 1 << 20]).hexdigest()

    ours, theirs = tunnels(wire)
    expected = {
        Option(0x0102, 0x05, bytes.fromhex("12345678")),
        Option(0x0103, 0x7F, bytes.fromhex("1122334455667788")),
        Option(0xFFFF, 0x00, b"\x5a" * 124),
    }
    assert len(theirs) > 700
    for one in theirs:
        assert set(parse_options(one.geneve.options)) == expected
        assert not one.geneve.critical
    assert all(one.geneve.options == b"" for one in ours)
    assert ends.dropped({})


@pytest.mark.parametrize("lengths", [(124, 120), (4,) * 30 + (8,)], ids=["largest", "most"])
def test_as_many_options_as_a_header_takes(ends: Ends, lengths: tuple[int, ...]) -> None:
    """252 bytes of them, each with a header of four."""
    fields = {
        ends.switch.option(number, 0x0200 + number, number, length): "0x" + "a5" * length
        for number, length in enumerate(lengths)
    }
    ends.switch.flows(BLUE, fields)
    wire = ends.node.capture()

    assert ends.far.ping(HERE) == 3
    assert exchange(ends.far, ends.sandbox, (0, 1170)) == [0, 1170]

    _, theirs = tunnels(wire)
    assert {len(one.geneve.options) for one in theirs} == {252}
    assert {len(parse_options(one.geneve.options)) for one in theirs} == {len(lengths)}
    assert max(one.ip.length for one in theirs) == 1500
    assert ends.dropped({})


@pytest.mark.parametrize("kind", [0x80, 0xFF])
def test_a_critical_option_is_refused_and_counted(ends: Ends, kind: int) -> None:
    """RFC 8926 section 3.5: who does not know it must not take the packet."""
    assert ends.far.ping(HERE) == 3  # so that ARP needs no answer now
    ends.switch.flows(BLUE, {ends.switch.option(0, 0x0102, kind, 4): "0x1"})
    wire, heard = ends.node.capture(), ends.sandbox.capture()

    assert ends.far.ping(HERE, wait=0.3) == 0

    assert ends.dropped({"rx geneve_critical": 3})
    _, theirs = tunnels(wire)
    assert [one.geneve.critical for one in theirs] == [True] * 3
    assert heard.frames() == []
    ends.switch.flows(BLUE)
    assert ends.far.ping(HERE) == 3


def test_a_critical_option_among_others_is_found(ends: Ends) -> None:
    """Wherever it stands."""
    assert ends.far.ping(HERE) == 3
    switch = ends.switch
    fields = [
        switch.option(0, 0x0102, 0x01, 4),
        switch.option(1, 0x0102, 0x81, 8),
        switch.option(2, 0x0102, 0x02, 16),
    ]
    switch.flows(BLUE, dict.fromkeys(fields, "0x1"))

    assert ends.far.ping(HERE, wait=0.3) == 0

    assert ends.dropped({"rx geneve_critical": 3})


def test_a_control_packet_is_refused_and_counted(ends: Ends) -> None:
    """The O bit: never into a sandbox."""
    assert ends.far.ping(HERE) == 3
    ends.switch.flows(BLUE, {"tun_flags": "oam"})
    heard = ends.sandbox.capture()

    assert ends.far.ping(HERE, wait=0.3) == 0

    assert ends.dropped({"rx geneve_control": 3})
    assert heard.frames() == []


def test_outer_checksums_of_the_switch(ends: Ends) -> None:
    """With them everything gets through; they are there, and right."""
    ends.switch.tunnel(NODE, csum=True)
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, (0, 1, 1422, 8000)) == [0, 1, 1422, 8000]
    assert send_tcp(ends.far, ends.sandbox, DATA) == DIGEST

    frames = [frame for frame in wire.frames() if not frame.outgoing]
    theirs = [found for frame in frames if (found := parse_tunnel(frame.data)) is not None]
    assert len(theirs) > len(DATA) // 1450
    assert all(one.udp.checksum for one in theirs)
    if ends.switch.datapath == "netdev":
        assert all(one.ip.payload_right for one in theirs)
    assert ends.dropped({})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"df_default": False}, id="may-be-fragmented"),
        pytest.param({"ttl": 255}, id="ttl"),
        pytest.param({"tos": 0xB8}, id="dscp"),
    ],
)
def test_outer_header_of_the_switchs_choice(ends: Ends, options: dict[str, object]) -> None:
    """DF, TTL and DSCP are the sender's to choose."""
    ends.switch.tunnel(NODE, **options)
    wire = ends.node.capture()

    assert ends.far.ping(HERE) == 3
    assert exchange(ends.far, ends.sandbox, (0, 1422)) == [0, 1422]

    _, theirs = tunnels(wire)
    seen = {(one.ip.dont_fragment, one.ip.ttl, one.ip.tos) for one in theirs}
    assert seen == {
        (options.get("df_default", True), options.get("ttl", 64), options.get("tos", 0))
    }
    assert ends.dropped({})
