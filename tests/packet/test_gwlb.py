# SPDX-License-Identifier: Apache-2.0
"""Frames of AWS Gateway Load Balancer: three options of its own, and IP packets without Ethernet.

Class 0x0108; type 1 the endpoint's and type 2 the attachment's ID, 64 bits each,
type 3 a flow cookie of 32 bits. An appliance has to send them back with its
answers; to us they are options that we do not know.
"""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.packets import (
    ALICE,
    ALICE6,
    BLUE,
    ICMP,
    IP,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoRequest,
    Packet,
    faults,
    in_vpc,
    ip_header,
    option,
    to_guest,
    with_options,
)
from tests.programs import REDIRECT, Node, assert_dropped

AWS = 0x0108
ENDPOINT = option(1, bytes.fromhex("0a58f2d3c4b5a697"), group=AWS)
ATTACHMENT = option(2, bytes.fromhex("11223344556677ee"), group=AWS)
COOKIE = option(3, bytes.fromhex("c00c1e55"), group=AWS)
OPTIONS = ENDPOINT + ATTACHMENT + COOKIE

DATA = bytes(range(256))
IPV4, IPV6 = (REMOTE, ALICE), (REMOTE6, ALICE6)
PAYLOADS = {
    "tcp": (IPV4, TCP(sport=443, dport=40000, flags="PA", seq=7, ack=9) / DATA),
    "udp": (IPV4, UDP(sport=53, dport=53000) / b"odd"),
    "udp-without-checksum": (IPV4, UDP(sport=1, dport=2, chksum=0) / DATA),
    "icmp": (IPV4, ICMP(type=8, id=3, seq=4) / DATA),
    "tcp-ipv6": (IPV6, TCP(sport=443, dport=40000, flags="PA", seq=7, ack=9) / DATA),
    "udp-ipv6": (IPV6, UDP(sport=53, dport=53000) / b"odd"),
    "icmp-ipv6": (IPV6, ICMPv6EchoRequest(id=3, seq=4) / DATA),
}
HELLO = (IPV4, PAYLOADS["udp"][1])


def balanced(
    node: Node,
    sent: tuple[tuple[str, str], Packet],
    options: bytes = OPTIONS,
    **fields: object,
) -> Packet:
    """An IP packet as the load balancer hands it over."""
    (source, target), payload = sent
    protocol = 0x86DD if ":" in target else 0x0800
    behind, header = with_options(options, ip_header(source, target) / payload)
    return node.arriving(behind, **{"proto": protocol, **header, **fields})


def test_the_options_have_their_length() -> None:
    """32 bytes with three headers of four: what every such packet carries."""
    assert [len(one) for one in (ENDPOINT, ATTACHMENT, COOKIE)] == [12, 12, 8]


@pytest.mark.parametrize("sent", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_packet_with_its_options_is_delivered(any_node: Node, sent) -> None:
    """As if it had come in Ethernet and without an option; every sum is right."""
    (source, _), payload = sent
    expected = to_guest(payload, source)

    run = any_node.receives(balanced(any_node, sent))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(expected)
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 rx_remote": (1, len(expected) - 14)}


@pytest.mark.parametrize("sent", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_the_same_in_ethernet_is_delivered(any_node: Node, sent) -> None:
    """Whoever relays it may put it into Ethernet."""
    (source, target), payload = sent
    behind, header = with_options(OPTIONS, in_vpc(payload, source, target))

    run = any_node.receives(any_node.arriving(behind, **header))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, source))
    assert run.counted == {}


@pytest.mark.parametrize("options", list(permutations((ENDPOINT, ATTACHMENT, COOKIE))))
def test_their_order_means_nothing(any_node: Node, options: tuple[bytes, ...]) -> None:
    """RFC 8926 section 3.5."""
    run = any_node.receives(balanced(any_node, HELLO, b"".join(options)))

    assert run.frame == bytes(to_guest(HELLO[1], REMOTE))
    assert run.counted == {}


@pytest.mark.parametrize(
    "options",
    [ENDPOINT, ATTACHMENT + COOKIE, OPTIONS + option(4, bytes(124), group=AWS), OPTIONS * 7],
    ids=["one", "two", "one-more", "all-of-them-seven-times"],
)
def test_nobody_counts_them(any_node: Node, options: bytes) -> None:
    """Fewer, more, or an unknown one of theirs: all the same."""
    run = any_node.receives(balanced(any_node, HELLO, options))

    assert run.frame == bytes(to_guest(HELLO[1], REMOTE))
    assert run.counted == {}


@pytest.mark.parametrize("sent", [HELLO, (IPV6, HELLO[1])], ids=["ipv4", "ipv6"])
def test_one_of_theirs_that_is_critical_is_refused(any_node: Node, sent) -> None:
    """The class does not matter, the type's uppermost bit does."""
    frame = balanced(any_node, sent, OPTIONS + option(0x83, bytes(4), group=AWS))

    assert_dropped(any_node.receives(frame), "rx geneve_critical", frame)


@pytest.mark.parametrize(
    "options",
    [
        ENDPOINT + ATTACHMENT + COOKIE[:4],
        ENDPOINT + ATTACHMENT + COOKIE[:3] + b"\x02" + COOKIE[4:],
        ENDPOINT[:3] + b"\x1f" + ENDPOINT[4:] + ATTACHMENT + COOKIE,
    ],
    ids=["cookie-cut-off", "cookie-too-long", "endpoint-beyond-all"],
)
def test_options_that_do_not_fill_their_room_are_refused(any_node: Node, options: bytes) -> None:
    """RFC 8926 section 3.5: lengths must add up to that in the header."""
    frame = balanced(any_node, HELLO, options)

    assert_dropped(any_node.receives(frame), "rx geneve_options", frame)


def test_a_fragment_without_ethernet_is_delivered(any_node: Node) -> None:
    """A later one, in which no port is left to look at."""
    whole = IP(src=REMOTE, dst=ALICE, id=77) / UDP(sport=1, dport=2) / (DATA * 3)
    expected = to_guest(UDP(sport=1, dport=2) / (DATA * 3), REMOTE, id=77)[IP].fragment(400)

    for piece, wanted in zip(whole.fragment(400), expected, strict=True):
        behind, header = with_options(OPTIONS, piece)
        run = any_node.receives(any_node.arriving(behind, proto=0x0800, **header))

        assert run.verdict == REDIRECT
        assert run.frame[14:] == bytes(wanted)


def test_what_claims_to_be_without_ethernet_and_is_not_is_refused(any_node: Node) -> None:
    """The frame's first bytes are a MAC then, and no IP header."""
    behind, header = with_options(OPTIONS, Ether() / IP(src=REMOTE, dst=ALICE) / HELLO[1])
    frame = any_node.arriving(behind, proto=0x0800, vni=BLUE, **header)

    assert_dropped(any_node.receives(frame), "rx bad_ip_header", frame)
