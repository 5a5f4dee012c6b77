# SPDX-License-Identifier: Apache-2.0
"""IPv6 that a sandbox may not send, or that cannot be delivered: dropped once, under its reason."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE6,
    BOB6,
    DORA,
    GATEWAY6,
    GUEST6,
    GUEST_MAC,
    NODE6,
    REMOTE6,
    TCP,
    UDP,
    Ether,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    Raw,
    faults,
    from_guest,
    icmp6_error,
    in_vpc,
    six,
)
from tests.programs import REDIRECT, SHOT, Node, assert_dropped

DATA = bytes(range(256)) * 2


def with_ip(**fields) -> Packet:
    """A frame whose IPv6 header says something else than scapy would."""
    return from_guest(UDP(sport=1, dport=2) / DATA, REMOTE6, **fields)


ETHER = Ether(src=GUEST_MAC, dst="02:47:56:00:00:01")
UDP_SHORT = ETHER / IPv6(src=GUEST6, dst=REMOTE6, nh=17) / Raw(bytes(5))
TCP_SHORT = ETHER / IPv6(src=GUEST6, dst=REMOTE6, nh=6) / Raw(bytes(17))
ICMP_SHORT = ETHER / IPv6(src=GUEST6, dst=REMOTE6, nh=58) / Raw(bytes(3))


def cut(extension: bytes, kind: int) -> Packet:
    return ETHER / IPv6(src=GUEST6, dst=REMOTE6, nh=kind) / Raw(extension)


SENT_AND_DROPPED = {
    "spoofed-own-vpc-address": (from_guest(UDP(), REMOTE6, src=ALICE6), "spoofed_address"),
    "spoofed-neighbour": (from_guest(UDP(), REMOTE6, src=BOB6), "spoofed_address"),
    "spoofed-gateway": (from_guest(UDP(), REMOTE6, src=GATEWAY6), "spoofed_address"),
    "spoofed-last-byte": (from_guest(UDP(), REMOTE6, src=GUEST6[:-1] + "3"), "spoofed_address"),
    "spoofed-first-byte": (
        from_guest(UDP(), REMOTE6, src="fc67" + GUEST6[4:]),
        "spoofed_address",
    ),
    "source-nothing": (from_guest(UDP(), REMOTE6, src="::"), "spoofed_address"),
    "source-mapped": (from_guest(UDP(), REMOTE6, src="::ffff:169.254.77.2"), "spoofed_address"),
    "spoofed-mac": (from_guest(UDP(), REMOTE6, eth_src="02:00:00:00:00:99"), "spoofed_mac"),
    "ip-version": (with_ip(version=4), "bad_ip_header"),
    "ip-version-0": (with_ip(version=0), "bad_ip_header"),
    "length-one-beyond-frame": (with_ip(plen=8 + len(DATA) + 1), "short_frame"),
    "length-65535": (with_ip(plen=65535), "short_frame"),
    "udp-header-cut-off": (UDP_SHORT, "short_frame"),
    "tcp-header-cut-off": (TCP_SHORT, "short_frame"),
    "icmp-header-cut-off": (ICMP_SHORT, "short_frame"),
    "udp-header-in-the-padding": (bytes(UDP_SHORT) + bytes(range(20)), "short_frame"),
    "extension-header-cut-off": (cut(b"\x11\x03" + bytes(14), 60), "short_frame"),
    "extension-header-of-one-byte": (cut(b"\x11", 0), "short_frame"),
    "multicast-mac": (from_guest(UDP(), REMOTE6, eth_dst="33:33:00:00:00:01"), "not_unicast"),
    "broadcast-mac": (from_guest(UDP(), REMOTE6, eth_dst="ff:ff:ff:ff:ff:ff"), "not_unicast"),
    "multicast-all-nodes": (from_guest(UDP(), "ff02::1"), "not_unicast"),
    "multicast-global": (from_guest(UDP(), "ff0e::1234"), "not_unicast"),
    "nothing": (from_guest(UDP(), "::"), "not_unicast"),
    "loopback": (from_guest(UDP(), "::1"), "not_unicast"),
    "link-local": (from_guest(UDP(), "fe80::5"), "not_unicast"),
    "link-local-end": (from_guest(UDP(), "febf:ffff::5"), "not_unicast"),
    "mapped-ipv4": (from_guest(UDP(), "::ffff:10.0.2.9"), "bad_ip_header"),
    "mapped-local": (from_guest(UDP(), "::ffff:10.0.1.6"), "bad_ip_header"),
    "just-under-link-local": (from_guest(UDP(), "fe7f::1"), "no_route"),
    "just-over-link-local": (from_guest(UDP(), "fec0::1"), "no_route"),
    "just-under-multicast": (from_guest(UDP(), "feff::1"), "no_route"),
    "ipv4-in-its-last-word": (from_guest(UDP(), "::10.0.2.9"), "no_route"),
    "no-route": (from_guest(UDP(), "2001:db8:77::1"), "no_route"),
    "guest-address-itself": (from_guest(UDP(), GUEST6), "no_route"),
    "underlay-address-of-the-node": (from_guest(TCP(), NODE6), "no_route"),
    "route-of-another-vpc": (from_guest(UDP(), six("10.9.0.1")), "no_route"),
    "blackhole": (from_guest(UDP(), six("10.66.1.1")), "blackhole"),
    "local-and-nobody-there": (from_guest(UDP(), six("10.0.1.200")), "no_endpoint"),
    "local-and-of-the-other-family": (from_guest(UDP(), six(DORA)), "no_endpoint"),
    "no-next-hop": (from_guest(UDP(), six("10.7.0.1")), "no_nexthop"),
    "no-underlay-route": (from_guest(UDP(), six("10.5.0.1")), "no_underlay_route"),
    "underlay-blackhole": (from_guest(UDP(), six("10.51.0.1")), "no_underlay_route"),
    "vtep-is-this-node": (from_guest(UDP(), six("10.52.0.1")), "no_underlay_route"),
}


@pytest.mark.parametrize(
    ("frame", "reason"), SENT_AND_DROPPED.values(), ids=SENT_AND_DROPPED.keys()
)
def test_ipv6_that_a_sandbox_may_not_send_is_dropped(any_node: Node, frame, reason):
    """Exactly one row grows, by one packet and the frame's bytes."""
    assert_dropped(any_node.sends(frame), f"tx {reason}", frame)


def test_unbound_slot_sends_no_ipv6(any_node: Node):
    """Reserved or ready, a slot has no VPC."""
    frame = from_guest(UDP(), REMOTE6)

    assert_dropped(any_node.sends(frame, slot=3), "tx unbound", frame)


def inner_with(**fields) -> Packet:
    return in_vpc(UDP(sport=1, dport=2) / DATA, REMOTE6, ALICE6, **fields)


RECEIVED_AND_DROPPED = {
    "ip-version": (inner_with(version=4), "bad_ip_header"),
    "length-one-beyond-frame": (inner_with(plen=8 + len(DATA) + 1), "short_frame"),
    "cut-off-by-one": (bytes(inner_with())[:-1], "short_frame"),
    "cut-off-in-ip-header": (bytes(inner_with())[:53], "short_frame"),
    "udp-header-cut-off": (in_vpc(Raw(bytes(5)), REMOTE6, ALICE6, nh=17), "short_frame"),
    "tcp-header-cut-off": (in_vpc(Raw(bytes(17)), REMOTE6, ALICE6, nh=6), "short_frame"),
    "icmp-header-cut-off": (in_vpc(Raw(bytes(3)), REMOTE6, ALICE6, nh=58), "short_frame"),
    "extension-header-cut-off": (
        in_vpc(Raw(b"\x11\x03" + bytes(14)), REMOTE6, ALICE6, nh=60),
        "short_frame",
    ),
    "broken-quote": (in_vpc(icmp6_error(bytes(39)), REMOTE6, ALICE6), "short_frame"),
    "nobody-has-the-address": (in_vpc(UDP(), REMOTE6, six("10.0.1.200")), "no_endpoint"),
    "of-the-other-family": (in_vpc(UDP(), REMOTE6, six(DORA)), "no_endpoint"),
    "guest-address-itself": (in_vpc(UDP(), REMOTE6, GUEST6), "no_endpoint"),
    "multicast": (in_vpc(UDP(), REMOTE6, "ff02::1"), "no_endpoint"),
    "mapped-ipv4": (in_vpc(UDP(), REMOTE6, "::ffff:10.0.1.5"), "bad_ip_header"),
    "nothing": (in_vpc(UDP(), REMOTE6, "::"), "no_endpoint"),
}


@pytest.mark.parametrize(
    ("inner", "reason"), RECEIVED_AND_DROPPED.values(), ids=RECEIVED_AND_DROPPED.keys()
)
def test_ipv6_from_the_wire_that_we_cannot_deliver_is_dropped(any_node: Node, inner, reason):
    """One row grows by one packet and the bytes of the whole frame."""
    frame = any_node.arriving(inner)

    assert_dropped(any_node.receives(frame), f"rx {reason}", frame)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 20])
def test_six_extension_headers_are_walked(any_node: Node, count):
    """What is deeper is dropped by name: it never passes with a checksum that is wrong."""
    chain = IPv6ExtHdrHopByHop()
    for _ in range(count - 1):
        chain = chain / IPv6ExtHdrDestOpt()
    payload = chain / UDP(sport=1, dport=2) / b"data"

    sent = any_node.sends(from_guest(payload, REMOTE6))
    got = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE6, ALICE6)))

    for run, way in ((sent, "tx"), (got, "rx")):
        if count <= 6:
            assert run.verdict == REDIRECT
            assert faults(run.frame) == []
        else:
            assert run.verdict == SHOT
            assert run.counted == {f"{way} extension_header": 1}


def test_routing_header_with_segments_left_is_dropped(any_node: Node):
    """Its packet's checksum covers another destination than the header has (RFC 8200 8.1)."""
    payload = IPv6ExtHdrRouting(addresses=[six("10.0.3.3")], segleft=1) / UDP(sport=1, dport=2)
    sent = from_guest(payload, REMOTE6)
    arriving = any_node.arriving(in_vpc(payload, REMOTE6, ALICE6))

    assert_dropped(any_node.sends(sent), "tx extension_header", sent)
    assert_dropped(any_node.receives(arriving), "rx extension_header", arriving)
