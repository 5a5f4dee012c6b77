# SPDX-License-Identifier: Apache-2.0
"""A node of ours and Linux's own geneve device, each at one end of a tunnel.

The device is an Ethernet: its host asks ARP and ND through the tunnel and takes
only what carries its MAC. An `external` one is told by the host's routes where to send,
with which options; another kind carries IP without Ethernet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import MacAddress
from lab.network import run
from tests.crossing import exchange, is_echo, refused, segmented, stream, tunnels
from tests.nodes import (
    BLUE,
    RED,
    Bed,
    Host,
    Node,
    Sandbox,
    keep_neighbours,
    set_features,
    six,
)
from tests.patience import EXPENDABLE
from tests.wire import (
    ARP,
    ICMP,
    ICMP6,
    IPV4,
    IPV6,
    TCP,
    UDP,
    Captured,
    Option,
    parse_ethernet,
    parse_ip,
    parse_options,
)

pytestmark = pytest.mark.kernel

VTEPS = {4: ("192.0.2.1", "192.0.2.9"), 6: ("2001:db8::1", "2001:db8::9")}  # ours, the device's
HERE, FAR = "10.0.1.5", "10.0.2.5"  # sandbox, the device's host
FAR_MAC = "02:00:00:00:02:05"
DEVICE = "gnv0"
DATA = os.urandom(1 << 16) * 16  # 1 MiB
ETHERNET = 14
IP_HEADER = {4: 20, 6: 40}
SUPERPACKETS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation")

# What the kernel can be told of outer UDP checksums, by the family outside. A sum over IPv6
# is what it makes if nobody says otherwise.
PLAIN = {4: ("noudpcsum",), 6: ("udp6zerocsumtx", "udp6zerocsumrx")}
SUMMED = {4: ("udpcsum",), 6: ("noudp6zerocsumtx", "udp6zerocsumrx")}

both_inside = pytest.mark.parametrize("ends", [4, 6], indirect=True, ids=["ipv4", "ipv6"])


@dataclass(frozen=True, slots=True)
class Peers:
    """One wire with a node at one end and a namespace with room for a device at the other."""

    bed: Bed
    node: Node
    netns: Path
    outside: int  # family of the underlay


@dataclass(slots=True)
class Ends:
    """Who talks in a test. `address` of either is of the family to use."""

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
    def vteps(self) -> tuple[str, str]:
        """The node's and the device's."""
        return VTEPS[self.peers.outside]

    def ip(self, *words: object) -> str:
        """An `ip` command where the device is, of the family inside."""
        return run("ip", "-n", self.peers.netns.name, f"-{self.inside}", *words)

    def tc(self, *words: object) -> str:
        """A `tc` command there."""
        return run("tc", "-n", self.peers.netns.name, *words)

    def ways(self) -> tuple[tuple[Host, Host], tuple[Host, Host]]:
        """From here to there, and back."""
        return (self.here, self.far), (self.far, self.here)

    def room(self, options: int = 0) -> int:
        """Bytes behind the headers of the largest inner UDP or ICMP packet that fits."""
        return self.node.plane.mtu - options - IP_HEADER[self.inside] - 8

    def device(self, *options: object) -> None:
        """Make the device, with an address of the VPC; options: as `ip link` has them."""
        length = {4: 16, 6: 112}[self.inside]
        mac = () if "innerprotoinherit" in options else ("address", FAR_MAC)
        self.ip(
            *("link", "add", DEVICE, *mac, "mtu", self.node.plane.mtu, "type", "geneve"),
            *options,
        )
        with namespaces.entering(self.peers.netns):
            silent = Path(f"/proc/sys/net/ipv6/conf/{DEVICE}")
            (silent / "disable_ipv6").write_text(str(int(self.inside == 4)))
            (silent / "addr_gen_mode").write_text("1")  # no address of its own making
            (silent / "accept_dad").write_text("0")
            (silent / "router_solicitations").write_text("0")
            keep_neighbours(DEVICE)
        self.tc("qdisc", "add", "dev", DEVICE, "clsact")
        # Which groups its host has joined is not the VPC's matter: what has a hop-by-hop header.
        group_talk = ("u32", "match", "u8", "0", "0xff", "at", "6", "action", "drop")
        self.tc("filter", "add", "dev", DEVICE, "egress", "protocol", "ipv6", *group_talk)
        self.ip("address", "add", f"{self.far.address}/{length}", "dev", DEVICE)
        self.ip("link", "set", DEVICE, "up")

    def to_us(self, sums: str = "none") -> None:
        """The device as most have it: for one VNI and one other end. sums: of the outer UDP
        headers. "whole": as from another machine, with inner ones that are whole, too; "local":
        the inner ones are left to a device that is none."""
        kinds = (PLAIN if sums == "none" else SUMMED)[self.peers.outside]
        self.device("id", BLUE, "remote", self.vteps[0], *kinds)
        if sums == "whole":
            set_features(self.peers.netns, DEVICE, "tx", "off")

    def routed(self, *options: str) -> None:
        """The device as an overlay's control plane has it: the route says where to, and with
        which options, written CLASS:TYPE:DATA: two numbers, and bytes in hex."""
        self.device("external")
        kind = "ip" if self.peers.outside == 4 else "ip6"
        words = ("encap", kind, "id", BLUE, "dst", self.vteps[0])
        if options:
            words += ("geneve_opts", ",".join(options))
        self.ip("route", "add", self.here.address, *words, "dev", DEVICE)
        # Its own questions would have no VNI.
        mac = self.sandbox.endpoint.mac
        self.ip("neigh", "add", self.here.address, "lladdr", mac, "dev", DEVICE)

    def dropped(self, expected: dict[str, int]) -> bool:
        """Whether the test has made the node drop just this."""
        gained = self.node.gained(self.before, expected)
        assert gained == expected
        return True

    def features(self, value: str, *names: str) -> None:
        """Set offloads of the wire, at both ends."""
        for netns in (self.node.netns, self.peers.netns):
            set_features(netns, "uplink0", *(word for name in names for word in (name, value)))


@pytest.fixture(scope="module")
def geneve_is_known() -> None:
    """Skips where it is not."""
    with Bed("gdev") as bed:
        netns = bed.namespace("a")
        try:
            run("ip", "-n", netns.name, "link", "add", DEVICE, "type", "geneve", "external")
        except RuntimeError as error:
            if "Unknown device type" in str(error) or "not supported" in str(error):
                pytest.skip("this kernel has no geneve device")
            raise


@pytest.fixture(scope="module", params=[4, 6], ids=lambda family: f"over-ipv{family}")
def peers(request: pytest.FixtureRequest, geneve_is_known: None) -> Iterator[Peers]:
    """Everything but the device and the sandbox."""
    outside = request.param
    (ours, theirs), length = VTEPS[outside], {4: 24, 6: 64}[outside]
    with Bed("gdev") as bed:
        here, there = bed.namespace("a"), bed.namespace("b", {"ipv4/conf/all/rp_filter": 1})
        bed.wire(here, "uplink0", there, "uplink0")
        bed.address(here, f"{ours}/{length}", "uplink0")
        bed.address(there, f"{theirs}/{length}", "uplink0")
        node = bed.node(here, ours)
        node.knows(theirs)
        mac = MacAddress(bytes.fromhex(FAR_MAC.replace(":", "")))
        for vni, prefix in product((BLUE, RED), ("10.0.2.0/24", six("10.0.2.0/24"))):
            node.route(vni, prefix, theirs, mac=mac)
        yield Peers(bed, node, there, outside)


@pytest.fixture
def ends(request: pytest.FixtureRequest, peers: Peers) -> Iterator[Ends]:
    """A sandbox, and what a device will need; all offloads on."""
    bed, node, family = peers.bed, peers.node, getattr(request, "param", 4)
    here, far = (HERE, FAR) if family == 4 else (six(HERE), six(FAR))
    try:
        sandbox = node.sandbox(BLUE, HERE, address6=six(HERE))
        yield Ends(
            *(peers, sandbox, Host(bed, sandbox.netns, sandbox.interface, here)),
            *(Host(bed, peers.netns, DEVICE, far), family, node.drops()),
        )
    finally:
        bed.clear()
        for netns in (node.netns, peers.netns):
            on = (word for name in ("tx", *SUPERPACKETS) for word in (name, "on"))
            set_features(netns, "uplink0", *on)
        links = run("ip", "-n", peers.netns.name, "-o", "link", "show", "type", "geneve")
        if links:
            run("ip", "-n", peers.netns.name, "link", "delete", DEVICE)


@both_inside
@pytest.mark.parametrize("sums", ["none", "whole", "local"])
def test_echo_and_datagrams_both_ways(ends: Ends, sums: str) -> None:
    """Empty, of three bytes, the largest that fits without fragments, and in fragments. The
    errors of either host come back, too."""
    ends.to_us(sums)
    sizes = (0, 1, 3, 99, ends.room(), ends.room() + 1, 20_000)

    for source, target in ends.ways():
        for size in (0, 56, ends.room()):
            assert source.ping(target.address, "-M", "do", "-s", size) == 3
        assert source.ping(target.address, "-s", 8000) == 3
        assert exchange(source, target, sizes) == [*sizes]
        assert refused(source, target)

    neighbours = ends.ip("neigh", "show", "dev", DEVICE)
    assert f"{ends.here.address} lladdr {ends.sandbox.endpoint.mac}" in neighbours
    assert ends.dropped({})


@both_inside
@pytest.mark.parametrize("sums", ["none", "local"])
@pytest.mark.parametrize("wire", ["whole", "cut"])
def test_superpackets_both_ways(ends: Ends, wire: str, sums: str) -> None:
    """TCP in bulk, on a wire that carries tunnel superpackets and on one that does not."""
    ends.to_us(sums)
    if wire == "cut":
        ends.features("off", *SUPERPACKETS)
    seen = ends.node.capture()

    for source, target in ends.ways():
        assert stream(source, target, DATA)

    largest = [max(map(len, way)) for way in by_way(seen.frames())]
    if wire == "whole":
        assert min(largest) > 10_000
    else:
        assert max(largest) <= 1500 + ETHERNET
    assert ends.dropped({})


def by_way(frames: list[Captured]) -> tuple[list[bytes], list[bytes]]:
    """What left, and what came."""
    return [f.data for f in frames if f.outgoing], [f.data for f in frames if not f.outgoing]


@both_inside
@pytest.mark.parametrize("sums", ["none", "local"])
def test_udp_segmentation_both_ways(ends: Ends, sums: str) -> None:
    """One send of forty datagrams is forty at the other end."""
    ends.to_us(sums)
    ends.features("off", *SUPERPACKETS)

    for source, target in ends.ways():
        assert segmented(source, target)

    assert ends.dropped({})


@both_inside
def test_every_field_and_sum_on_the_wire(ends: Ends) -> None:
    """Both ends write the header that RFC 8926 has, and nothing that it reserves."""
    ends.features("off", "tx", *SUPERPACKETS)
    ends.to_us("whole")
    wire = ends.node.capture()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, (1, 3, 1000)) == [1, 3, 1000]
        assert stream(source, target, DATA[: 1 << 17])

    hosts = {ends.here.address, ends.far.address}
    ours, theirs = tunnels(wire)
    assert all(one.udp.checksum for one in theirs)
    for seen, outer in ((ours, ends.vteps), (theirs, ends.vteps[::-1])):
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
    assert ends.dropped({})


@both_inside
def test_congestion_marks_cross_both_ways(ends: Ends) -> None:
    """RFC 6040: both hosts see the sender's. Of one that is set the device, which follows an
    older RFC, shows the wire less."""
    ends.to_us()
    wire, heard, far_heard = ends.node.capture(), ends.here.capture(), ends.far.capture()

    for ecn in (1, 2, 3):
        for source, target in ends.ways():
            assert source.ping(target.address, "-Q", ecn) == 3
        outer = [
            {one.ip.tos for one in way if one.inner.kind != ARP and is_echo(one.inner.payload)}
            for way in tunnels(wire)
        ]
        assert outer == [{ecn}, {2 if ecn == 3 else ecn}]
        for capture in (heard, far_heard):
            came = [parse_ethernet(one.data) for one in capture.frames() if not one.outgoing]
            echoes = [
                parse_ip(one.payload) for one in came if one.kind != ARP and is_echo(one.payload)
            ]
            assert [one.tos for one in echoes] == [ecn] * 6  # three questions, three answers
    assert ends.dropped({})


def test_another_vni_reaches_nobody(ends: Ends) -> None:
    """The device's is another: what comes is counted, and what goes it does not know."""
    ends.device("id", RED, "remote", ends.vteps[0], *PLAIN[ends.peers.outside])
    ends.ip("neigh", "add", ends.here.address, "lladdr", FAR_MAC, "dev", DEVICE)
    heard = ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0
    assert ends.here.ping(ends.far.address, wait=0.3) == 0

    assert ends.dropped({"rx no_endpoint": 3})
    assert not any(not one.outgoing for one in heard.frames())


# -- IP without Ethernet


@both_inside
def test_ip_without_ethernet(ends: Ends) -> None:
    """What the device sends is IP at once, and arrives; what it gets is Ethernet as always, and
    it takes that for somebody else's until told otherwise."""
    ends.device(
        *("id", BLUE, "remote", ends.vteps[0], "innerprotoinherit"), *PLAIN[ends.peers.outside]
    )
    wire = ends.node.capture()
    one, sizes = ends.far, (0, 1, 3, 99, ends.room(), 8000)

    assert exchange(one, ends.here, sizes) == [*sizes]
    assert one.ping(ends.here.address, wait=0.3) == 0
    take_all = ("matchall", "action", "skbedit", "ptype", "host")
    ends.tc("filter", "add", "dev", DEVICE, "ingress", *take_all)
    for source, target in ends.ways():
        assert source.ping(target.address, "-M", "do", "-s", ends.room()) == 3
        assert exchange(source, target, sizes) == [*sizes]
        assert stream(source, target, DATA)
        assert refused(source, target)

    ours, theirs = tunnels(wire)
    assert {one.geneve.protocol for one in ours} == {0x6558}
    assert {one.geneve.protocol for one in theirs} == {IPV4 if ends.inside == 4 else IPV6}
    assert ends.dropped({})


# -- options of its routes

# Seen on 6.18: such a route's first packet can take the kernel with it.
risky = pytest.mark.skipif(
    not EXPENDABLE, reason="a kernel that is not to be lost: routes with options have panicked one"
)


@both_inside
def test_an_external_device_without_options(ends: Ends) -> None:
    """Its route says where to; everything crosses."""
    ends.routed()

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, (0, 3, ends.room(), 8000)) == [0, 3, ends.room(), 8000]
        assert stream(source, target, DATA)

    assert ends.dropped({})


@risky
@both_inside
def test_options_that_are_not_critical_are_ignored(ends: Ends) -> None:
    """On every packet, superpackets too: everything gets through as if there were none."""
    fill = "5a" * 124
    ends.routed("0x102:5:12345678", "0x103:0x7f:1122334455667788", f"0xffff:0:{fill}")
    # The device's host has to be told that the options take room.
    room = 8 + 12 + 128
    ends.ip("link", "set", DEVICE, "mtu", ends.node.plane.mtu - room)
    wire = ends.node.capture()
    sizes = (0, 1, 3, ends.room(room), 8000)

    for source, target in ends.ways():
        assert source.ping(target.address) == 3
        assert exchange(source, target, sizes) == [*sizes]
        assert stream(source, target, DATA)

    ours, theirs = tunnels(wire)
    expected = [
        Option(0x0102, 0x05, bytes.fromhex("12345678")),
        Option(0x0103, 0x7F, bytes.fromhex("1122334455667788")),
        Option(0xFFFF, 0x00, bytes.fromhex(fill)),
    ]
    assert all(parse_options(one.geneve.options) == expected for one in theirs)
    assert not any(one.geneve.critical for one in theirs)
    assert max(one.ip.length for one in theirs) > 10_000
    assert all(one.geneve.options == b"" for one in ours)
    assert ends.dropped({})


@risky
@both_inside
def test_a_critical_option_is_refused_and_counted(ends: Ends) -> None:
    """RFC 8926 section 3.5, and whatever the C bit says: a route's options do not set it."""
    ends.routed("0x102:1:01020304", "0x102:0x80:00000000")
    wire, heard = ends.node.capture(), ends.here.capture()

    assert ends.far.ping(ends.here.address, wait=0.3) == 0

    assert ends.dropped({"rx geneve_critical": 3})
    assert [one.geneve.critical for one in tunnels(wire)[1]] == [False] * 3
    assert heard.frames() == []
