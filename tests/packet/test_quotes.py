# SPDX-License-Identifier: Apache-2.0
"""ICMP errors that a sandbox sends or gets: what they quote is translated as well, sums and all.

IPv4 and IPv6 inside, over IPv4 and IPv6.
"""

from __future__ import annotations

import pytest

from tests.packets import (
    AFAR,
    ALICE,
    ALICE6,
    GUEST,
    GUEST6,
    ICMP,
    IP,
    NEIGHBOUR,
    REMOTE,
    REMOTE6,
    SELF,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
    Packet,
    Raw,
    error_about,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    ip_header,
    six,
    to_guest,
)
from tests.programs import REDIRECT, Node, assert_dropped

DATA = bytes(range(256)) * 2

QUOTED = {
    "udp-whole": (UDP(sport=53, dport=5353) / DATA, None),
    "udp-eight-bytes": (UDP(sport=53, dport=5353) / DATA, 8),
    "udp-six-bytes": (UDP(sport=53, dport=5353) / DATA, 6),
    "tcp-whole": (TCP(sport=80, dport=8080) / DATA, None),
    "tcp-eight-bytes": (TCP(sport=80, dport=8080) / DATA, 8),
    "tcp-up-to-the-checksum": (TCP(sport=80, dport=8080) / DATA, 18),
    "header-only": (UDP(sport=53, dport=5353) / DATA, 0),
}
QUOTED4 = QUOTED | {
    "udp-without-checksum": (UDP(sport=53, dport=5353, chksum=0) / DATA, None),
    "icmp-echo": (ICMP(type=8, id=1, seq=1) / DATA, None),
}
SIX_HEADERS = IPv6ExtHdrFragment(id=3)
for _ in range(5):
    SIX_HEADERS = IPv6ExtHdrDestOpt() / SIX_HEADERS
QUOTED6 = QUOTED | {
    "icmp-echo": (ICMPv6EchoRequest(id=1, seq=1) / DATA, None),
    "icmp-echo-eight-bytes": (ICMPv6EchoRequest(id=1, seq=1) / DATA, 8),
    "icmp-echo-two-bytes": (ICMPv6EchoRequest(id=1, seq=1) / DATA, 2),
    "later-fragment": (IPv6ExtHdrFragment(id=3, offset=9, nh=17) / Raw(DATA), None),
    "unknown-protocol": (Raw(DATA), None),
    "tcp-behind-options": (IPv6ExtHdrDestOpt() / TCP(sport=80, dport=8080) / DATA, None),
    "udp-of-a-first-fragment": (IPv6ExtHdrFragment(id=3, m=1) / UDP(sport=53) / DATA, None),
    "six-headers": (SIX_HEADERS / UDP(sport=53, dport=5353) / DATA, None),
    "cut-off-in-a-header": (IPv6ExtHdrDestOpt() / TCP(sport=80, dport=8080) / DATA, 7),
    "cut-off-before-the-sum": (IPv6ExtHdrDestOpt() / TCP(sport=80, dport=8080) / DATA, 24),
}
ERRORS = [
    pytest.param(family, payload, length, kind, id=f"ipv{family}-{kind}-{name}")
    for family, rows, kinds in ((4, QUOTED4, (3, 4, 5, 11, 12)), (6, QUOTED6, (1, 2, 3, 4)))
    for name, (payload, length) in rows.items()
    for kind in kinds
]


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_icmp_error_that_a_sandbox_sends_quotes_what_was_sent_to_it(
    any_node: Node, family, payload, length, kind
):
    """The quoted destination is the VPC's address again, and each checksum fits."""
    guest = GUEST6 if family == 6 else GUEST

    run = any_node.sends(
        from_guest(error_about(AFAR[family], guest, payload, length, kind), AFAR[family])
    )

    wanted = error_about(AFAR[family], SELF[family], payload, length, kind)
    assert run.verdict == REDIRECT
    assert run.frame == any_node.tunnelled(run, in_vpc(wanted, SELF[family], AFAR[family]))
    assert faults(run.frame) == []
    assert run.counted == {}


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_icmp_error_that_a_sandbox_gets_quotes_what_it_sent(
    any_node: Node, family, payload, length, kind
):
    """The quoted source is the guest's own address, or it would not know the connection."""
    guest = GUEST6 if family == 6 else GUEST
    said = error_about(SELF[family], AFAR[family], payload, length, kind)

    frame = any_node.arriving(in_vpc(said, AFAR[family], SELF[family]))
    run = any_node.receives(frame)

    wanted = error_about(guest, AFAR[family], payload, length, kind)
    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(wanted, AFAR[family]))
    assert faults(run.frame) == []


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_sum_of_a_nic_stays_true_through_a_quote(any_node: Node, family, payload, length, kind):
    """Two addresses and up to three checksums change in such a frame."""
    said = error_about(SELF[family], AFAR[family], payload, length, kind)

    any_node.completes("uplink_rx", any_node.arriving(in_vpc(said, AFAR[family], SELF[family])))


UNSEEN = {
    "seven-headers": [IPv6ExtHdrDestOpt()] * 7,
    "routing-not-used-up": [IPv6ExtHdrRouting(segleft=1, addresses=[REMOTE6])],
}


@pytest.mark.parametrize("headers", UNSEEN.values(), ids=UNSEEN.keys())
def test_quoted_checksum_that_cannot_be_seen_is_left_alone(any_node: Node, headers):
    """The address is translated, and the error's own sum is right; nobody checks a quoted one."""
    quote = IPv6(src=REMOTE6, dst=GUEST6)
    for header in (*headers, TCP(sport=1, dport=2), DATA):
        quote /= header.copy() if isinstance(header, Packet) else header
    wanted = Ether() / IPv6(bytes(quote))
    wanted[IPv6].dst = ALICE6  # all other bytes stay

    sent = any_node.sends(from_guest(icmp6_error(bytes(quote)), REMOTE6))
    answer = in_vpc(icmp6_error(bytes(wanted[IPv6])), ALICE6, REMOTE6)

    assert sent.frame == any_node.tunnelled(sent, answer)


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_error_of_a_router_on_the_way_is_translated_too(any_node: Node, family):
    """Its source is not who the quoted packet went to."""
    router = "10.0.2.200" if family == 4 else six("10.0.2.200")
    guest = GUEST6 if family == 6 else GUEST
    payload = TCP(sport=1, dport=2) / DATA

    run = any_node.receives(
        any_node.arriving(
            in_vpc(error_about(SELF[family], AFAR[family], payload, 8), router, SELF[family])
        )
    )

    wanted = error_about(guest, AFAR[family], payload, 8)
    assert run.frame == bytes(to_guest(wanted, router))


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_error_between_two_sandboxes_is_translated_twice(node: Node, family):
    """Alice reports what Bob sent: he finds his own guest address as source."""
    guest = GUEST6 if family == 6 else GUEST
    payload = TCP(sport=1, dport=2) / DATA
    sent = error_about(NEIGHBOUR[family], guest, payload)

    run = node.sends(from_guest(sent, NEIGHBOUR[family]))

    received = error_about(guest, SELF[family], payload)
    assert run.frame == bytes(to_guest(received, SELF[family]))
    assert faults(run.frame) == []


def quoted(family: int, dst: str) -> bytes:
    """A packet from the other node, as the one at `dst` received it."""
    return bytes(ip_header(AFAR[family], dst) / UDP() / DATA)


FOREIGN = {
    "ipv4-of-somebody-else": (4, quoted(4, "10.9.9.9")),
    "ipv6-of-somebody-else": (6, quoted(6, six("10.9.9.9"))),
    "ipv4-of-our-own-sending": (4, bytes(IP(src=GUEST, dst=REMOTE) / UDP() / DATA)),
    "ipv6-of-our-own-sending": (6, bytes(IPv6(src=GUEST6, dst=REMOTE6) / UDP() / DATA)),
}


def about(family: int, quote: bytes) -> Packet:
    """An error of that family with just this quote."""
    return icmp_error(quote) if family == 4 else icmp6_error(quote)


@pytest.mark.parametrize(("family", "quote"), FOREIGN.values(), ids=FOREIGN.keys())
def test_quote_that_was_not_sent_to_the_sandbox_is_left_alone(any_node: Node, family, quote):
    """Only the reporter's own address is translated."""
    said = about(family, quote)

    run = any_node.sends(from_guest(said, AFAR[family]))

    assert run.frame == any_node.tunnelled(run, in_vpc(said, SELF[family], AFAR[family]))
    assert faults(run.frame) == []


BROKEN = {
    "ipv4-19-bytes": (4, quoted(4, GUEST)[:19], "short_frame"),
    "ipv4-none": (4, b"", "short_frame"),
    "ipv4-version-6": (4, b"\x65" + quoted(4, GUEST)[1:], "bad_ip_header"),
    "ipv4-header-of-16": (4, b"\x44" + quoted(4, GUEST)[1:], "bad_ip_header"),
    "ipv6-39-bytes": (6, quoted(6, GUEST6)[:39], "short_frame"),
    "ipv6-none": (6, b"", "short_frame"),
    "ipv6-version-4": (6, b"\x45" + quoted(6, GUEST6)[1:], "bad_ip_header"),
}


@pytest.mark.parametrize(("family", "quote", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_icmp_error_with_a_broken_quote_is_dropped(any_node: Node, family, quote, reason):
    """What cannot be translated would show the guest's address to the VPC."""
    sent = from_guest(about(family, quote), AFAR[family])

    assert_dropped(any_node.sends(sent), f"tx {reason}", sent)


def test_quoted_later_fragment_keeps_its_payload(any_node: Node):
    """There is no L4 header in it, whatever its bytes look like."""
    fragment = {"src": REMOTE, "id": 5, "frag": 50, "proto": 17}
    sent = icmp_error(bytes(IP(dst=GUEST, **fragment) / Raw(DATA)), kind=11)

    run = any_node.sends(from_guest(sent))

    expected = icmp_error(bytes(IP(dst=ALICE, **fragment) / Raw(DATA)), kind=11)
    assert run.frame == any_node.tunnelled(run, in_vpc(expected, ALICE, REMOTE))
    assert faults(run.frame) == []


def test_quote_ends_where_the_ip_packet_does(any_node: Node):
    """Ethernet padding behind it is neither quote nor checksum."""
    padding = bytes(range(1, 61))
    payload = TCP(sport=80, dport=8080) / DATA

    run = any_node.sends(bytes(from_guest(error_about(REMOTE, GUEST, payload, 8))) + padding)

    expected = bytes(in_vpc(error_about(REMOTE, ALICE, payload, 8), ALICE, REMOTE))
    assert run.frame == any_node.tunnelled(run, expected + padding)


def test_quote_that_goes_on_in_the_padding_is_dropped(any_node: Node):
    """A packet's length is what its header says."""
    whole = quoted(4, GUEST)
    sent = bytes(from_guest(icmp_error(whole[:19]))) + whole[19:60]

    assert_dropped(any_node.sends(sent), "tx short_frame", sent)


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_that_is_no_error_is_not_taken_for_a_quote(any_node: Node, family):
    """An echo's data may look like a packet."""
    echo = ICMP(type=8) if family == 4 else ICMPv6EchoRequest()
    payload = echo / Raw(quoted(family, GUEST if family == 4 else GUEST6))

    run = any_node.sends(from_guest(payload, AFAR[family]))

    assert run.frame == any_node.tunnelled(run, in_vpc(payload, SELF[family], AFAR[family]))
