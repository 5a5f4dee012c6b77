# SPDX-License-Identifier: Apache-2.0
"""What a sandbox sends by IPv4, and what becomes of it: handed over, tunnelled or dropped."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    BLUE,
    BOB,
    CAROL,
    GATEWAY,
    GATEWAY_MAC,
    GENEVE,
    GUEST,
    GUEST_MAC,
    ICMP,
    IP,
    OVERHEAD,
    RED,
    REMOTE,
    TCP,
    UDP,
    Ether,
    Raw,
    arp_question,
    damaged,
    error_about,
    faults,
    from_guest,
    in_vpc,
    mac_of,
    to_guest,
)
from tests.programs import REDIRECT, SHOT, Node, assert_dropped, source_port

ROUTED_MAC = "02:00:00:00:33:01"  # of the route that carries one, see conftest.py
DATA = bytes(range(256)) * 2

# Name -> (what is behind the IP header, other fields of the IP header).
PAYLOADS = {
    "tcp": (TCP(sport=40000, dport=443, flags="PA", seq=7, ack=9) / DATA, {}),
    "tcp-syn-with-options": (
        TCP(sport=1, dport=2, flags="S", options=[("MSS", 1400), ("SAckOK", b""), ("NOP", None)]),
        {},
    ),
    "udp": (UDP(sport=53000, dport=53) / b"odd", {}),
    "udp-without-data": (UDP(sport=1, dport=2), {}),
    "udp-without-checksum": (UDP(sport=1, dport=2, chksum=0) / DATA, {}),
    "icmp-echo": (ICMP(type=8, id=3, seq=4) / DATA, {}),
    "sctp-like": (Raw(DATA), {"proto": 132}),
    "nothing-behind-the-header": (Raw(b""), {"proto": 253}),
    "ip-options": (UDP(sport=1, dport=2) / DATA, {"options": b"\x94\x04\x00\x00" * 10}),
    "all-header-fields": (
        UDP(sport=1, dport=2) / DATA,
        {"tos": 0xB9, "id": 0xBEEF, "ttl": 1, "flags": "DF"},
    ),
}


# -- to another node


@pytest.mark.parametrize(("payload", "ip"), PAYLOADS.values(), ids=PAYLOADS.keys())
def test_packet_for_another_node_leaves_in_geneve(node: Node, payload, ip):
    """Every byte of the outer headers; inside, the source is the VPC's and all sums are right."""
    sent = from_guest(payload, **ip)

    run = node.sends(sent)

    assert run.verdict == REDIRECT
    ecn = sent[IP].tos & 3
    assert run.frame == node.tunnelled(run, in_vpc(payload, ALICE, REMOTE, **ip), ip={"tos": ecn})
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 tx_remote": (1, len(sent) - 14)}


def test_zero_udp_checksum_stays_zero(node: Node):
    """None was asked for, and a wrong one must not be made up."""
    run = node.sends(from_guest(UDP(sport=1, dport=2, chksum=0) / b"data"))

    assert Ether(run.frame)[GENEVE][UDP].chksum == 0


def test_udp_checksum_that_comes_out_as_zero_is_sent_as_ones(node: Node):
    """Zero would mean that there is none (RFC 768)."""
    # A datagram to REMOTE whose sum, from ALICE, is 0: the data makes up for the rest.
    probe = in_vpc(UDP(sport=1, dport=2, chksum=None) / b"\0\0", ALICE, REMOTE)
    data = Ether(bytes(probe))[UDP].chksum.to_bytes(2, "big")

    run = node.sends(from_guest(UDP(sport=1, dport=2) / data))

    assert run.frame[-4:-2] == b"\xff\xff"
    assert faults(run.frame) == []


@pytest.mark.parametrize("payload", [UDP(sport=1, dport=2), TCP(sport=1, dport=2)], ids=type)
def test_fragments_keep_the_checksum_of_the_whole(node: Node, payload):
    """The first fragment's checksum covers all; later ones have no L4 header to touch."""
    pieces = IP(src=GUEST, dst=REMOTE, id=77) / payload / (DATA * 3)
    expected = IP(src=ALICE, dst=REMOTE, id=77) / payload / (DATA * 3)

    for piece, wanted in zip(pieces.fragment(400), expected.fragment(400), strict=True):
        run = node.sends(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / piece)

        assert run.verdict == REDIRECT
        assert run.frame == node.tunnelled(run, Ether(src=mac_of(ALICE), dst=GATEWAY_MAC) / wanted)
        assert faults(run.frame) == []
        assert run.counted == {}


def test_source_port_is_one_per_flow_and_spreads_flows(node: Node):
    """32768 to 65535; a flow stays on one path, many flows use many."""
    frames = [from_guest(UDP(sport=sport, dport=53) / b"x") for sport in range(1000, 1064)]

    first = [source_port(node.sends(frame).frame) for frame in frames]
    again = [source_port(node.sends(frame).frame) for frame in frames]

    assert first == again
    assert all(port >= 32768 for port in first)
    assert len(set(first)) > 48  # of 64; fewer by chance once in ages


def test_source_port_does_not_depend_on_the_data(node: Node):
    """A flow is its addresses and ports."""
    short, long = (node.sends(from_guest(UDP(sport=5, dport=6) / data)) for data in (b"a", DATA))

    assert source_port(short.frame) == source_port(long.frame)


@pytest.mark.parametrize(
    ("dst", "vtep"),
    [
        pytest.param("10.0.2.78", "192.0.2.2", id="prefix-of-24"),
        pytest.param("10.0.2.77", "192.0.2.4", id="whole-address-before-prefix"),
        pytest.param("10.0.3.1", "192.0.2.3", id="shorter-prefix-for-the-rest"),
    ],
)
def test_most_specific_route_wins(node: Node, dst, vtep):
    """A whole address, then the longest prefix."""
    payload = UDP(sport=1, dport=2)

    run = node.sends(from_guest(payload, dst))

    assert run.frame == node.tunnelled(run, in_vpc(payload, ALICE, dst), dst=vtep)


def test_route_says_the_inner_destination_mac(node: Node):
    """A peer of another make drops frames that are not to its own MAC."""
    payload = UDP(sport=1, dport=2)

    run = node.sends(from_guest(payload, "10.3.0.1"))

    inner = in_vpc(payload, ALICE, "10.3.0.1", eth_dst=ROUTED_MAC)
    assert run.frame == node.tunnelled(run, inner)


def test_vni_and_address_are_those_of_the_slot(node: Node):
    """The same frame from another slot leaves in another VPC."""
    payload = UDP(sport=1, dport=2)

    run = node.sends(from_guest(payload, "10.9.0.1"), slot=2)

    assert run.frame == node.tunnelled(run, in_vpc(payload, CAROL, "10.9.0.1"), vni=RED)
    assert run.traffic == {"slot-2 tx_remote": (1, 28)}


def test_another_udp_port_is_used_when_configured(node: Node):
    """As destination; the source port stays the flow's."""
    payload = UDP(sport=1, dport=2)

    with node.configured(udp_port=6082):
        run = node.sends(from_guest(payload))

    assert run.frame == node.tunnelled(run, in_vpc(payload, ALICE, REMOTE), dport=6082)


def test_destination_mac_of_the_guest_does_not_matter(node: Node):
    """Routing is by address: whatever unicast MAC it believes in, the gateway takes it."""
    payload = UDP(sport=1, dport=2)

    run = node.sends(from_guest(payload, eth_dst="02:11:22:33:44:55"))

    assert run.frame == node.tunnelled(run, in_vpc(payload, ALICE, REMOTE))


def test_ethernet_padding_travels_and_counts_no_traffic(node: Node):
    """Geneve carries the frame as it is; traffic is counted by the IP header."""
    payload = UDP(sport=1, dport=2)
    sent = bytes(from_guest(payload)) + bytes(18)

    run = node.sends(sent)

    inner = bytes(in_vpc(payload, ALICE, REMOTE)) + bytes(18)
    assert run.frame == node.tunnelled(run, Raw(inner))
    assert faults(run.frame) == []
    assert run.traffic == {"slot-0 tx_remote": (1, 28)}


# -- how big


def of_size(length: int, dst: str):
    """A frame whose IP packet has this many bytes."""
    return from_guest(UDP(sport=1, dport=2) / bytes(length - 28), dst)


SIZES = {
    "interface": (REMOTE, 1500),
    "vtep": ("10.4.0.1", 1400),
    "kernel-route": ("10.6.0.1", 1300),
}


@pytest.mark.parametrize(("dst", "mtu"), SIZES.values(), ids=SIZES.keys())
def test_packet_that_just_fits_passes(node: Node, dst, mtu):
    """The MTU is of the outer packet: 50 bytes more than the inner one."""
    run = node.sends(of_size(mtu - OVERHEAD, dst))

    assert run.verdict == REDIRECT
    assert len(run.frame) == 14 + mtu
    assert run.counted == {}


@pytest.mark.parametrize(("dst", "mtu"), SIZES.values(), ids=SIZES.keys())
def test_packet_one_byte_too_big_is_dropped(node: Node, dst, mtu):
    """Fragmenting the outer packet would halve the throughput of everybody. What its sender is
    told: test_too_big.py."""
    run = node.sends(of_size(mtu - OVERHEAD + 1, dst))

    assert run.counted["tx too_big"] == 1
    assert run.traffic == {}


def test_padding_counts_against_the_mtu(node: Node):
    """It travels too, so it is part of what must fit."""
    just_fits = bytes(of_size(1400 - OVERHEAD - 6, "10.4.0.1")) + bytes(6)

    assert node.sends(just_fits).counted == {}
    assert_dropped(node.sends(just_fits + b"\0"), "tx too_big", just_fits + b"\0")


# -- to a sandbox of this node


@pytest.mark.parametrize(("payload", "ip"), PAYLOADS.values(), ids=PAYLOADS.keys())
def test_packet_for_a_sandbox_of_this_node_is_handed_over(node: Node, payload, ip):
    """No tunnel: source the VPC's address, destination the guest's own, sums right twice over."""
    sent = from_guest(payload, BOB, **ip)

    run = node.sends(sent)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, ALICE, **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    size = len(sent) - 14
    assert run.traffic == {"slot-0 tx_local": (1, size), "slot-1 rx_local": (1, size)}


def test_sandbox_reaches_its_own_vpc_address(node: Node):
    """A hairpin: a server that connects to the name it is known by."""
    payload = TCP(sport=1, dport=2, flags="S")

    run = node.sends(from_guest(payload, ALICE))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, ALICE))
    assert run.traffic == {"slot-0 tx_local": (1, 40), "slot-0 rx_local": (1, 40)}


def test_endpoint_comes_before_any_route(node: Node):
    """Who is here is here, even if a route says otherwise."""
    payload = UDP(sport=1, dport=2)

    with node.exact_route(BLUE, BOB, kind=3):
        run = node.sends(from_guest(payload, BOB))

    assert run.frame == bytes(to_guest(payload, ALICE))


def test_same_address_in_another_vpc_is_not_reached(node: Node):
    """Carol has Alice's address in RED, where nobody has Bob's."""
    sent = from_guest(UDP(sport=1, dport=2), BOB)

    assert_dropped(node.sends(sent, slot=2), "tx no_route", sent)


@pytest.mark.parametrize(
    ("generation", "slot"), [(1 << 40, 1), (2, 3)], ids=["bound-again", "unbound"]
)
def test_half_an_attachment_gets_no_packet(node: Node, generation, slot):
    """Endpoint and binding must name the same generation."""
    sent = from_guest(UDP(sport=1, dport=2), "10.0.1.99")

    with node.endpoint_of(BLUE, "10.0.1.99", generation=generation, slot=slot):
        run = node.sends(sent)

    assert_dropped(run, "tx stale_endpoint", sent)


@pytest.mark.parametrize("slot", [2, 1], ids=["of-another-vpc", "of-the-same-vpc"])
def test_row_that_became_somebody_elses_gives_him_no_packet(node: Node, slot):
    """The kernel uses a removed row's room at once, while a program still reads it."""
    generation = node.plane.attachment(slot).generation
    sent = from_guest(UDP(sport=1, dport=2), "10.0.1.99")

    with node.endpoint_of(BLUE, "10.0.1.99", generation=generation, slot=slot):
        run = node.sends(sent)

    assert_dropped(run, "tx stale_endpoint", sent)


@pytest.mark.parametrize("dst", [BOB, REMOTE], ids=["local", "remote"])
def test_mark_and_priority_do_not_leave_the_slot(node: Node, dst):
    """They mean something to the host's own rules."""
    run = node.sends(from_guest(UDP(sport=1, dport=2), dst), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


# -- refused


def with_ip(**fields):
    """A frame whose IP header says something else than scapy would."""
    return from_guest(UDP(sport=1, dport=2) / DATA, **fields)


UDP_SHORT = IP(src=GUEST, dst=REMOTE, proto=17) / Raw(bytes(5))
TCP_SHORT = IP(src=GUEST, dst=REMOTE, proto=6) / Raw(bytes(17))
ETHER = Ether(src=GUEST_MAC, dst=GATEWAY_MAC)


def of_type(ethertype: int, dst: str = GATEWAY_MAC) -> bytes:
    return bytes(Ether(src=GUEST_MAC, dst=dst, type=ethertype) / Raw(bytes(60)))


DROPPED = {
    "spoofed-mac": (from_guest(UDP(), eth_src="02:00:00:00:00:99"), "spoofed_mac"),
    "spoofed-own-vpc-address": (from_guest(UDP(), src=ALICE), "spoofed_address"),
    "spoofed-neighbour": (from_guest(UDP(), src=BOB), "spoofed_address"),
    "spoofed-gateway": (from_guest(UDP(), src=GATEWAY), "spoofed_address"),
    "source-nothing": (from_guest(UDP(), src="0.0.0.0"), "spoofed_address"),
    "ip-version": (with_ip(version=5), "bad_ip_header"),
    "ip-header-of-16": (with_ip(ihl=4), "bad_ip_header"),
    "ip-header-of-0": (with_ip(ihl=0), "bad_ip_header"),
    "total-length-under-header": (with_ip(len=19), "bad_ip_header"),
    "total-length-of-0": (with_ip(len=0), "bad_ip_header"),
    "total-length-under-options": (with_ip(ihl=15, len=59), "bad_ip_header"),
    "total-length-one-beyond-frame": (with_ip(len=20 + 8 + len(DATA) + 1), "short_frame"),
    "total-length-65535": (with_ip(len=65535), "short_frame"),
    "udp-header-cut-off": (ETHER / UDP_SHORT, "short_frame"),
    "tcp-header-cut-off": (ETHER / TCP_SHORT, "short_frame"),
    "udp-header-in-the-padding": (bytes(ETHER / UDP_SHORT) + bytes(range(20)), "short_frame"),
    "tcp-header-in-the-padding": (bytes(ETHER / TCP_SHORT) + bytes(range(20)), "short_frame"),
    "ipv6-without-its-version": (of_type(0x86DD), "bad_ip_header"),
    "lldp": (of_type(0x88CC, dst="01:80:c2:00:00:0e"), "not_ip"),
    "length-field-802.3": (of_type(60), "not_ip"),
    "ethernet-in-ethernet": (of_type(0x6558), "not_ip"),
    "nothing-behind-ethernet": (of_type(0x1234)[:14], "not_ip"),
    "broadcast-mac": (from_guest(UDP(), eth_dst="ff:ff:ff:ff:ff:ff"), "not_unicast"),
    "multicast-mac": (from_guest(UDP(), eth_dst="01:00:5e:00:00:01"), "not_unicast"),
    "multicast-224": (from_guest(UDP(), "224.0.0.1"), "not_unicast"),
    "multicast-239": (from_guest(UDP(), "239.255.255.250"), "not_unicast"),
    "class-e": (from_guest(UDP(), "240.0.0.1"), "not_unicast"),
    "broadcast": (from_guest(UDP(), "255.255.255.255"), "not_unicast"),
    "zero-network": (from_guest(UDP(), "0.1.2.3"), "not_unicast"),
    "nothing": (from_guest(UDP(), "0.0.0.0"), "not_unicast"),
    "loopback": (from_guest(UDP(), "127.0.0.1"), "not_unicast"),
    "loopback-end": (from_guest(UDP(), "127.255.255.255"), "not_unicast"),
    "no-route": (from_guest(UDP(), "192.168.0.1"), "no_route"),
    "just-under-multicast": (from_guest(UDP(), "223.255.255.255"), "no_route"),
    "just-over-loopback": (from_guest(UDP(), "128.0.0.1"), "no_route"),
    "gateway": (from_guest(ICMP(), GATEWAY), "no_route"),
    "metadata-service": (from_guest(TCP(), "169.254.169.254"), "no_route"),
    "underlay-address-of-the-node": (from_guest(TCP(), "192.0.2.1"), "no_route"),
    "route-of-another-vpc": (from_guest(UDP(), "10.9.0.1"), "no_route"),
    "blackhole": (from_guest(UDP(), "10.66.1.1"), "blackhole"),
    "local-and-nobody-there": (from_guest(UDP(), "10.0.1.200"), "no_endpoint"),
    "no-next-hop": (from_guest(UDP(), "10.7.0.1"), "no_nexthop"),
    "no-underlay-route": (from_guest(UDP(), "10.5.0.1"), "no_underlay_route"),
    "underlay-blackhole": (from_guest(UDP(), "10.51.0.1"), "no_underlay_route"),
    "vtep-is-this-node": (from_guest(UDP(), "10.52.0.1"), "no_underlay_route"),
}


@pytest.mark.parametrize(("frame", "reason"), DROPPED.values(), ids=DROPPED.keys())
def test_a_drop_is_counted_once_under_its_reason(node: Node, frame, reason):
    """Exactly one row grows, by one packet and the frame's bytes."""
    assert_dropped(node.sends(frame), f"tx {reason}", frame)


@pytest.mark.parametrize(
    "frame",
    [
        from_guest(UDP()),
        from_guest(UDP(), BOB),
        from_guest(UDP(), src=ALICE),
        of_type(0x86DD),
    ],
    ids=["remote", "local", "spoofed", "ipv6"],
)
def test_nothing_but_arp_leaves_a_slot_without_a_sandbox(node: Node, frame):
    """Reserved or ready, a slot has no VPC."""
    assert_dropped(node.sends(frame, slot=3), "tx unbound", frame)


def test_interface_that_is_no_slot_sends_nothing(node: Node):
    """A foreign interface in our block is shut, not open."""
    frame = from_guest(UDP())

    run = node.run("sandbox_tx", frame, ifindex=node.uplink)

    assert_dropped(run, "tx no_slot", frame)


def test_interface_whose_row_became_another_slots_sends_nothing(node: Node):
    """As it may while its slot is destroyed: nobody speaks for another slot."""
    frame = from_guest(UDP())

    with node.slot_of(node.uplink, slot=2):
        run = node.run("sandbox_tx", frame, ifindex=node.uplink)

    assert_dropped(run, "tx no_slot", frame)


def test_nothing_passes_before_the_node_is_configured(node: Node):
    """The hook may be there an instant before its configuration."""
    frame = from_guest(UDP())

    with node.configured(vtep=""):
        run = node.sends(frame)

    assert_dropped(run, "tx no_config", frame)


def test_frame_that_cannot_grow_is_dropped(node: Node):
    """The kernel refuses room in a merged frame of a kind that it does not know."""
    frame = from_guest(UDP(sport=1, dport=2) / DATA)

    assert_dropped(node.sends(frame, gso_size=100), "tx no_room", frame)


def test_segments_of_a_merged_frame_are_what_must_fit(node: Node):
    """10.4.0.0/24 takes outer packets of 1400: the frame is bigger, or its segments are."""
    headers = 20 + 8
    frame = from_guest(UDP(sport=1, dport=2) / bytes(1400), "10.4.0.1")
    fits = 1400 - OVERHEAD - headers

    too_big = node.sends(frame, gso_size=fits + 1)
    just_fits = node.sends(frame, gso_size=fits)

    assert too_big.counted["tx too_big"] == 1
    assert just_fits.counted == {"tx no_room": 1}  # past that check; see above


@pytest.mark.parametrize("seed", range(4))
def test_any_frame_is_counted_exactly_once(node: Node, seed):
    """Random damage: each frame is dropped, answered or forwarded, and never the stack's."""
    frames = damaged([from_guest(*row) for row in WELL_FORMED] + [arp_question()], seed)

    for frame in frames:
        run = node.sends(frame)

        assert run.verdict in (SHOT, REDIRECT), frame.hex()
        if run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        elif run.counted:
            assert run.counted == {"event arp_answered": 1}, frame.hex()
            assert run.traffic == {}, frame.hex()
        else:
            ways = sorted(row.split()[1] for row in run.traffic)
            assert ways in (["tx_remote"], ["rx_local", "tx_local"]), frame.hex()
            assert faults(frame) != [] or faults(run.frame) == [], frame.hex()


WELL_FORMED = [
    (payload, dst)
    for dst in (REMOTE, BOB)
    for payload in (
        TCP(sport=1, dport=2, options=[("MSS", 1400)]) / b"data",
        UDP(sport=1, dport=2) / b"data",
        error_about(REMOTE, GUEST, TCP(sport=80, dport=8080)),
        error_about(REMOTE, GUEST, UDP(sport=80, dport=8080) / b"data"),
    )
]
