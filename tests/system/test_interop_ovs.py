# SPDX-License-Identifier: Apache-2.0
"""A node of ours and Open vSwitch, each at one end of a tunnel, and what either makes of the other.

The switch is an Ethernet: its host asks ARP and ND through the tunnel and takes
only what carries its MAC. Its datapath is its own process, or the kernel where that
has the modules of Open vSwitch loaded: the virtual machine with another kernel has.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from geneve_ebpf.model import MacAddress
from tests.crossing import exchange, is_echo, refused, segmented, stream, tunnels
from tests.nodes import (
    BLUE,
    RED,
    Bed,
    Host,
    Node,
    Sandbox,
    eventually,
    set_features,
    six,
)
from tests.ovs import HOST, TUNNEL, OpenvSwitch
from tests.wire import (
    ARP,
    BROADCAST,
    ICMP,
    ICMP6,
    TCP,
    UDP,
    Option,
    arp_request,
    ethernet,
    neighbour_solicitation,
    parse_ethernet,
    parse_ip,
    parse_options,
    parse_tunnel,
    udp,
)

DATAPATH = "system" if Path("/sys/module/openvswitch").exists() else "netdev"

VTEPS = {4: ("192.0.2.1", "192.0.2.9"), 6: ("2001:db8::1", "2001:db8::9")}  # ours, the switch's
HERE, FAR, ABSENT = "10.0.1.5", "10.0.2.5", "10.0.1.77"  # sandbox, host behind the switch, nobody
FAR_MAC = "02:00:00:00:02:05"
DATA = os.urandom(1 << 16) * 32  # 2 MiB
LONG = 0xABCDEF  # a VNI that uses all its bytes
ETHERNET = 14
IP_HEADER = {4: 20, 6: 40}

# Of the inner packets. Where nothing is said it is IPv4: what happens outside is the same.
both_inside = pytest.mark.parametrize("ends", [4, 6], indirect=True, ids=["ipv4", "ipv6"])


@dataclass(frozen=True, slots=True)
class Peers:
    """One wire with a node at one end and a switch at the other."""

    bed: Bed
    node: Node
    switch: OpenvSwitch
    outside: int  # family of the underlay


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks in a test. Both hosts have both families; `address` is of the one to use."""

    peers: Peers
    sandbox: Sandbox
    here: Host
    far: Host
    inside: int
    before: dict[str, int]  # drops

    @property
    def node(self) -> Node:
        return self.peers.node

    @property
    def switch(self) -> OpenvSwitch:
        return self.peers.switch

    @property
    def vteps(self) -> tuple[str, str]:
        """The node's and the switch's."""
        return VTEPS[self.peers.outside]

    def ways(self) -> tuple[tuple[Host, Host], tuple[Host, Host]]:
        """From here to there, and back."""
        return (self.here, self.far), (self.far, self.here)

    def room(self, options: int = 0) -> int:
        """Bytes behind the headers of the largest inner UDP or ICMP packet that fits."""
        return self.node.plane.mtu - options - IP_HEADER[self.inside] - 8

    def dropped(self, expected: dict[str, int]) -> bool:
        """Whether the test has made the node drop just this."""
        gained = self.node.gained(self.before, expected)
        assert gained == expected
        return True


@pytest.fixture(
    scope="module",
    params=[4, 6],
    ids=lambda outside: f"{DATAPATH}-over-ipv{outside}",
)
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    """Everything but the sandbox."""
    outside = request.param
    (ours, theirs), length = VTEPS[outside], {4: 24, 6: 64}[outside]
    with Bed("ovs") as bed:
        here, there = bed.namespace("a"), bed.namespace("b", {"ipv4/conf/all/rp_filter": 1})
        bed.wire(here, "uplink0", there, "uplink0")
        bed.address(here, f"{ours}/{length}", "uplink0")
        node = bed.node(here, ours)
        node.knows(theirs)
        mac = MacAddress(bytes.fromhex(FAR_MAC.replace(":", "")))
        for vni, prefix in product((BLUE, RED, LONG), ("10.0.2.0/24", six("10.0.2.0/24"))):
            node.route(vni, prefix, theirs, mac=mac)
        with OpenvSwitch(bed, there, DATAPATH) as switch:
            switch.underlay("uplink0", f"{theirs}/{length}")
            switch.host(FAR_MAC, f"{FAR}/16", f"{six(FAR)}/112", mtu=node.plane.mtu)
            yield Peers(bed, node, switch, outside)


@pytest.fixture
def ends(request: pytest.FixtureRequest, peers: Peers) -> Iterator[Ends]:
    """A sandbox, and the switch with its tunnel as it is when nobody says otherwise."""
    inside = getattr(request, "param", 4)
    bed, node, switch = peers.bed, peers.node, peers.switch
    of_family = (lambda address: address) if inside == 4 else six
    try:
        if switch.datapath == "netdev":
            # It reads frames as bytes, in which a checksum left to the device is a wrong one.
            no_offload(peers)
        switch.tunnel(VTEPS[peers.outside][0])
        switch.clear_options()
        switch.flows(BLUE)
        sandbox = node.sandbox(BLUE, HERE, address6=six(HERE))
        here = Host(bed, sandbox.netns, sandbox.interface, of_family(HERE))
        far = Host(bed, switch.netns, HOST, of_family(FAR))
        # It drops what it has to ask for the way of, and answers soon.
        assert eventually(lambda: far.ping(here.address) == 3)
        yield Ends(peers, sandbox, here, far, inside, node.drops())
    finally:
        bed.clear()
        for netns in (node.netns, switch.netns):
            set_features(netns, "uplink0", "tx", "on", "tso", "on", "gso", "on")


def no_offload(peers: Peers) -> None:
    """Every checksum and every segment is on the wire as bytes, until the test is over."""
    for netns in (peers.node.netns, peers.switch.netns):
        set_features(netns, "uplink0", "tx", "off", "tso", "off", "gso", "off")


# -- both ways, every protocol


@pytest.mark.kernel
@both_inside
def test_echo_both_ways(ends: Ends) -> None:
    """From nothing to the largest that needs no fragments; and in fragments, which neither end of
    the tunnel has to put together: the hosts do."""
    for source, target in ends.ways():
        for size in (0, 56, ends.room()):
            assert source.ping(target.address, "-M", "do", "-s", size) == 3
        assert source.ping(target.address, "-s", 8000) == 3

    assert ends.dropped({})


@pytest.mark.kernel
@both_inside
def test_udp_both_ways(ends: Ends) -> None:
    """Empty, odd, the largest that fits, and in fragments."""
    sizes = (0, 1, 99, ends.room(), ends.room() + 1, 20_000)

    for source, target in ends.ways():
        assert exchange(source, target, sizes) == [*sizes]

    assert ends.dropped({})


@pytest.mark.kernel
@both_inside
def test_tcp_both_ways(ends: Ends) -> None:
    """Bulk. What the sandbox sends in superpackets is cut up before the wire."""
    host_side = ends.node.capture(ends.node.host_interface(ends.sandbox.slot))
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert stream(source, target, DATA)

    sent = [frame for frame in host_side.frames() if not frame.outgoing]
    assert max(len(frame.data) for frame in sent) > 10_000
    if ends.switch.datapath == "netdev":
        assert max(len(frame.data) for frame in wire.frames()) <= 1500 + ETHERNET
    assert ends.dropped({})


@pytest.mark.kernel
@both_inside
def test_udp_segmentation_crosses(ends: Ends) -> None:
    """One send of forty datagrams arrives behind the switch as forty."""
    assert segmented(ends.here, ends.far)
    assert ends.dropped({})


@pytest.mark.kernel
@both_inside
def test_errors_of_either_host_find_the_socket_they_are_about(ends: Ends) -> None:
    """ICMP quotes the packet it answers; the sandbox's has another address inside and outside."""
    assert [refused(source, target) for source, target in ends.ways()] == [True, True]
    assert ends.dropped({})


# -- what either sees of the other


@pytest.mark.kernel
@both_inside
def test_every_field_and_sum_on_the_wire(ends: Ends) -> None:
    """Both ends write the header that RFC 8926 has, and nothing that it reserves."""
    no_offload(ends.peers)
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        exchange(source, target, (1, 1000))
        assert stream(source, target, DATA[: 1 << 18])

    hosts = {ends.here.address, ends.far.address}
    for seen, outer in zip(tunnels(wire), (ends.vteps, ends.vteps[::-1]), strict=True):
        assert len(seen) > (1 << 18) // 1450
        of_hosts = [one for one in seen if one.inner.kind != ARP]
        echo = {4: ICMP, 6: ICMP6}[ends.inside]
        assert {one.packet.protocol for one in of_hosts} == {echo, TCP, UDP}
        for one in seen:
            assert (str(one.ip.source), str(one.ip.destination)) == outer
            assert one.ip.header_right
            assert one.ip.payload_right
            assert (one.udp.destination, one.udp.length) == (6081, len(one.udp.payload) + 8)
            header = one.geneve
            assert (header.version, header.control, header.critical) == (0, False, False)
            assert (header.protocol, header.vni, header.options) == (0x6558, BLUE, b"")
        for packet in (one.packet for one in of_hosts):
            if packet.protocol != ICMP6:  # whose neighbour discovery has other addresses, too
                assert {str(packet.source), str(packet.destination)} == hosts
            assert packet.header_right
            assert packet.payload_right


@pytest.mark.kernel
@both_inside
def test_the_switch_reads_our_header_as_we_meant_it(ends: Ends) -> None:
    """The VNI, both VTEPs and no control bit match, for every packet; and it finds no option."""
    source, target = ("tun_src", "tun_dst") if ends.peers.outside == 4 else TUNNEL_ENDS_6
    wanted = f"in_port={TUNNEL},tun_id={BLUE},{source}={ends.vteps[0]},{target}={ends.vteps[1]}"
    wanted += ",tun_flags=-oam"
    ends.switch.ofctl("del-flows", f"in_port={TUNNEL}")
    ends.switch.ofctl("add-flow", f"priority=9,{wanted} actions=output:{HOST}")
    ends.switch.ofctl("add-flow", f"priority=8,in_port={TUNNEL} actions=drop")

    assert ends.here.ping(ends.far.address, count=20) == 20
    seen = tunnel_flows(ends.switch)

    assert ends.switch.packets(wanted) >= 20
    assert ends.switch.packets(f"in_port={TUNNEL}") == ends.switch.packets(wanted)
    assert seen
    assert not any("geneve({" in flow for flow in seen)


TUNNEL_ENDS_6 = ("tun_ipv6_src", "tun_ipv6_dst")


def test_the_switch_would_have_shown_an_option(ends: Ends) -> None:
    """What the test above looks at has them when they are there."""
    wire = ends.node.capture()
    assert ends.here.ping(ends.far.address) == 3
    sample = tunnels(wire)[0][-1]
    option = bytes.fromhex("0102050112345678")
    header = struct.pack("!BBHI", len(option) // 4, 0, 0x6558, BLUE << 8)
    packet = udp(*ends.vteps, (40000, 6081), header + option + sample.geneve.payload)
    ends.switch.forget()

    with ends.node.socket(socket.AF_PACKET, socket.SOCK_RAW) as door:
        door.bind(("uplink0", 0))
        door.send(ethernet(sample.eth.destination, sample.eth.source, sample.eth.kind, packet))

    assert eventually(
        lambda: any("geneve({class=0x102" in flow for flow in tunnel_flows(ends.switch))
    )


def tunnel_flows(switch: OpenvSwitch) -> list[str]:
    """What its datapath has seen come out of the tunnel lately."""
    matches = (flow.partition(" actions:")[0] for flow in switch.datapath_flows())
    return [match for match in matches if f"tunnel(tun_id={BLUE:#x}," in match]


@pytest.mark.kernel
@both_inside
def test_neighbours_asked_for_through_the_tunnel(ends: Ends) -> None:
    """Who is here is answered for, with the endpoint's MAC; who is not is counted."""
    if ends.inside == 4:
        event = "wire_arp_answered"
        question = ethernet(BROADCAST, FAR_MAC, ARP, arp_request(FAR_MAC, FAR, ABSENT))
    else:
        event = "wire_nd_answered"
        question = neighbour_solicitation(FAR_MAC, six(FAR), six(ABSENT))
    ends.far.run("ip", "neigh", "flush", "dev", HOST)
    asked = ends.node.events().get(event, 0)

    assert ends.far.ping(ends.here.address, wait=5) == 3
    ends.far.send_frame(question)

    neighbours = ends.far.run("ip", "neigh", "show", "dev", HOST)
    assert f"{ends.here.address} lladdr {ends.sandbox.endpoint.mac}" in neighbours
    assert ends.node.events()[event] > asked
    assert ends.dropped({"rx no_endpoint": 1})


def test_a_vni_of_three_bytes(ends: Ends) -> None:
    """In the order of the wire, at both ends."""
    ends.node.destroy_slots([ends.sandbox.slot])
    sandbox = ends.node.sandbox(LONG, HERE)
    ends.switch.flows(LONG)

    assert ends.far.ping(sandbox.address) == 3
    assert sandbox.ping(ends.far.address) == 3


def test_another_vni_reaches_nobody(ends: Ends) -> None:
    """The switch may write any; the sandbox is in one of them."""
    ends.switch.flows(RED)
    heard = ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    assert ends.dropped({"rx no_endpoint": 3})
    assert heard.frames() == []


# -- the switch's choices


@pytest.mark.kernel
@both_inside
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
    # The host behind the switch has to be told that the options take room.
    route = ("route", "replace", ends.here.address, "dev", HOST)
    ends.far.run("ip", *route, "mtu", ends.node.plane.mtu - 8 - 12 - 128)
    passed = stream(ends.far, ends.here, DATA[: 1 << 20])
    ends.far.run("ip", "route", "delete", ends.here.address, "dev", HOST)

    assert passed
    ours, theirs = tunnels(wire)
    expected = {
        Option(0x0102, 0x05, bytes.fromhex("12345678")),
        Option(0x0103, 0x7F, bytes.fromhex("1122334455667788")),
        Option(0xFFFF, 0x00, b"\x5a" * 124),
    }
    assert sum(one.ip.length for one in theirs) > 1 << 20
    for one in theirs:
        assert set(parse_options(one.geneve.options)) == expected
        assert not one.geneve.critical
    assert all(one.geneve.options == b"" for one in ours)
    assert ends.dropped({})


@pytest.mark.kernel
@pytest.mark.parametrize("lengths", [(124, 120), (4,) * 30 + (8,)], ids=["largest", "most"])
def test_as_many_options_as_a_header_takes(ends: Ends, lengths: tuple[int, ...]) -> None:
    """252 bytes of them, each with a header of four."""
    fields = {
        ends.switch.option(number, 0x0200 + number, number, length): "0x" + "a5" * length
        for number, length in enumerate(lengths)
    }
    ends.switch.flows(BLUE, fields)
    wire = ends.node.capture()

    assert ends.far.ping(ends.here.address) == 3
    assert exchange(ends.far, ends.here, (0, ends.room(252))) == [0, ends.room(252)]

    _, theirs = tunnels(wire)
    assert {len(one.geneve.options) for one in theirs} == {252}
    assert {len(parse_options(one.geneve.options)) for one in theirs} == {len(lengths)}
    assert max(one.ip.length for one in theirs) == 1500
    assert ends.dropped({})


@both_inside
@pytest.mark.parametrize("kind", [pytest.param(0x80, marks=pytest.mark.kernel), 0xFF])
def test_a_critical_option_is_refused_and_counted(ends: Ends, kind: int) -> None:
    """RFC 8926 section 3.5: who does not know it must not take the packet."""
    ends.switch.flows(BLUE, {ends.switch.option(0, 0x0102, kind, 4): "0x1"})
    wire, heard = ends.node.capture(), ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    _, theirs = tunnels(wire)
    critical = [one.geneve.critical for one in theirs]
    assert critical == [True] * max(3, len(critical))  # it may ask for a neighbour meanwhile
    assert ends.dropped({"rx geneve_critical": len(critical)})
    assert heard.frames() == []
    ends.switch.flows(BLUE)
    # The switch goes by what it has worked out before until it has looked at its flows again.
    assert eventually(lambda: ends.far.ping(ends.here.address) == 3)


def test_a_critical_option_among_others_is_found(ends: Ends) -> None:
    """Wherever it stands."""
    switch = ends.switch
    fields = [
        switch.option(0, 0x0102, 0x01, 4),
        switch.option(1, 0x0102, 0x81, 8),
        switch.option(2, 0x0102, 0x02, 16),
    ]
    switch.flows(BLUE, dict.fromkeys(fields, "0x1"))
    wire = ends.node.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    _, theirs = tunnels(wire)
    assert ends.dropped({"rx geneve_critical": max(3, len(theirs))})  # as above


def test_a_tag_inside_is_refused_and_counted(ends: Ends) -> None:
    """The switch may put its host into a VLAN of the VPC; a sandbox has none."""
    ends.switch.flows(BLUE, more="push_vlan:0x8100,set_field:4196->vlan_vid,")
    heard = ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    assert ends.dropped({"rx not_ip": 3})
    assert heard.frames() == []


def test_a_control_packet_is_refused_and_counted(ends: Ends) -> None:
    """The O bit: never into a sandbox."""
    ends.switch.flows(BLUE, {"tun_flags": "oam"})
    heard = ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    assert ends.dropped({"rx geneve_control": 3})
    assert heard.frames() == []


@pytest.mark.parametrize(
    ("oam", "reason"), [(False, "rx no_endpoint"), (True, "rx geneve_control")], ids=["plain", "o"]
)
def test_its_question_whether_the_tunnel_is_alive(ends: Ends, oam: bool, reason: str) -> None:
    """BFD, in VNI 0: nobody's, so it is counted and not answered; traffic goes on meanwhile."""
    heard = ends.here.capture()

    bfd = ("bfd:enable=true", "bfd:min_tx=100", f"bfd:oam={str(oam).lower()}")
    ends.switch.vsctl("set", "interface", TUNNEL, *bfd)
    asked = eventually(lambda: ends.node.drops() != ends.before)
    assert ends.far.ping(ends.here.address) == 3
    ends.switch.vsctl("clear", "interface", TUNNEL, "bfd")

    assert asked
    now = ends.node.drops()
    assert {name for name in now if now[name] != ends.before.get(name)} == {reason}
    assert all(is_echo(parse_ethernet(one.data).payload) for one in heard.frames())


@pytest.mark.kernel
@both_inside
def test_outer_checksums_of_the_switch(ends: Ends) -> None:
    """With them everything gets through; they are there, and right."""
    ends.switch.tunnel(ends.vteps[0], csum=True)
    wire = ends.node.capture()
    sizes = (0, 1, ends.room(), 8000)

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, sizes) == [*sizes]
    assert stream(ends.far, ends.here, DATA)

    _, theirs = tunnels(wire)
    assert sum(one.ip.length for one in theirs) > len(DATA)
    assert all(one.udp.checksum for one in theirs)
    if ends.switch.datapath == "netdev":
        assert all(one.ip.payload_right for one in theirs)
    assert ends.dropped({})


@pytest.mark.parametrize("byte", ["checksum", "last"])
def test_a_packet_of_the_switch_that_was_damaged_on_the_way(ends: Ends, byte: str) -> None:
    """Its outer checksum says so: dropped and counted, whichever bit was flipped."""
    no_offload(ends.peers)
    ends.switch.tunnel(ends.vteps[0], csum=True)
    wire = ends.node.capture()
    assert exchange(ends.far, ends.here, (99,)) == [99]
    (sample,) = (
        frame.data
        for frame in wire.frames()
        if not frame.outgoing
        and (found := parse_tunnel(frame.data)) is not None
        and found.inner.kind != ARP
        and found.packet.protocol == UDP
    )
    server = ends.here.udp(5000)
    damaged = bytearray(sample)
    damaged[{"checksum": ETHERNET + IP_HEADER[ends.peers.outside] + 6, "last": -1}[byte]] ^= 0x10

    for frame in (bytes(damaged), sample):
        with socket_at(ends.switch) as door:
            door.send(frame)

    assert ends.dropped({"rx outer_checksum": 1})
    assert len(server.recv(2048)) == 99
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.recv(2048)


def socket_at(switch: OpenvSwitch) -> socket.socket:
    """What is sent through it leaves the switch's end of the wire as it is."""
    door = Host(switch.bed, switch.netns, "uplink0", "").socket(socket.AF_PACKET, socket.SOCK_RAW)
    door.bind(("uplink0", 0))
    return door


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
    ends.switch.tunnel(ends.vteps[0], **options)
    wire = ends.node.capture()

    assert ends.far.ping(ends.here.address) == 3
    assert exchange(ends.far, ends.here, (0, ends.room())) == [0, ends.room()]

    _, theirs = tunnels(wire)
    flags = {one.ip.dont_fragment for one in theirs}
    assert flags == {ends.peers.outside == 6 or options.get("df_default", True)}
    seen = {(one.ip.ttl, one.ip.tos) for one in theirs}
    assert seen == {(options.get("ttl", 64), options.get("tos", 0))}
    assert ends.dropped({})


@both_inside
@pytest.mark.parametrize(
    "ecn", [1, 2, pytest.param(3, marks=pytest.mark.kernel)], ids=["ect1", "ect0", "ce"]
)
def test_congestion_marks_cross_both_ways(ends: Ends, ecn: int) -> None:
    """RFC 6040: ours copies them to the outer header, all of them; both hosts see their own."""
    wire, heard, far_heard = ends.node.capture(), ends.here.capture(), ends.far.capture()

    assert ends.here.ping(ends.far.address, "-Q", ecn) == 3
    assert ends.far.ping(ends.here.address, "-Q", ecn) == 3

    ours, _ = tunnels(wire)
    asked = [one for one in ours if one.inner.kind != ARP and is_echo(one.inner.payload)]
    assert {one.ip.tos for one in asked} == {ecn}
    for capture in (heard, far_heard):
        came = [parse_ethernet(one.data) for one in capture.frames() if not one.outgoing]
        echoes = [parse_ip(one.payload) for one in came if one.kind != ARP and is_echo(one.payload)]
        assert [one.tos for one in echoes] == [ecn] * 6  # three questions, three answers
    assert ends.dropped({})
