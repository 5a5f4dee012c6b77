# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6 inside, over IPv4 and IPv6: what a sandbox sends and gets, byte by byte.

test_sandbox_tx.py and test_uplink_rx.py say the rest for IPv4 over IPv4.
"""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from geneve_ebpf import abi
from geneve_ebpf.loader.maps import SharedArray
from tests.packets import (
    ALICE,
    ALICE6,
    BOB,
    BOB6,
    CAROL6,
    DORA,
    EMIL6,
    GATEWAY6,
    GUEST,
    GUEST6,
    GUEST_MAC,
    ICMP,
    IP,
    NODE6,
    RED,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    PadN,
    Raw,
    damaged,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    mac_of,
    six,
    to_guest,
    vtep_of,
)
from tests.programs import PASS_ON, REDIRECT, SHOT, Node, assert_dropped

DATA = bytes(range(256)) * 2
SYN = TCP(sport=1, dport=2, flags="S", options=[("MSS", 1220), ("SAckOK", b""), ("NOP", None)])

# Name -> (what is behind the IP header, other fields of the IP header), by family.
PAYLOADS = {
    4: {
        "tcp": (TCP(sport=40000, dport=443, flags="PA", seq=7, ack=9) / DATA, {}),
        "tcp-syn-with-options": (SYN, {}),
        "udp": (UDP(sport=53000, dport=53) / b"odd", {}),
        "udp-without-data": (UDP(sport=1, dport=2), {}),
        "udp-without-checksum": (UDP(sport=1, dport=2, chksum=0) / DATA, {}),
        "icmp-echo": (ICMP(type=8, id=3, seq=4) / DATA, {}),
        "icmp-shortest": (ICMP(type=8), {}),
        "sctp-like": (Raw(DATA), {"proto": 132}),
        "nothing-behind-the-header": (Raw(b""), {"proto": 253}),
        "one-byte-behind-the-header": (Raw(b"!"), {"proto": 253}),
        "ip-options": (UDP(sport=1, dport=2) / DATA, {"options": b"\x94\x04\x00\x00" * 10}),
        "all-header-fields": (
            UDP(sport=1, dport=2) / DATA,
            {"tos": 0xB8, "id": 0xBEEF, "ttl": 1, "flags": "DF"},
        ),
    },
    6: {
        "tcp": (TCP(sport=40000, dport=443, flags="PA", seq=7, ack=9) / DATA, {}),
        "tcp-syn-with-options": (SYN, {}),
        "udp": (UDP(sport=53000, dport=53) / b"odd", {}),
        "udp-without-data": (UDP(sport=1, dport=2), {}),
        "icmp-echo": (ICMPv6EchoRequest(id=3, seq=4) / DATA, {}),
        "icmp-echo-reply": (ICMPv6EchoReply(id=3, seq=4) / b"odd", {}),
        "sctp-like": (Raw(DATA), {"nh": 132}),
        "nothing-behind-the-header": (Raw(b""), {"nh": 59}),
        "one-byte-behind-the-header": (Raw(b"!"), {"nh": 253}),
        "hop-by-hop": (IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]) / UDP() / DATA, {}),
        "destination-options": (
            IPv6ExtHdrDestOpt(options=[PadN(optdata=b"123456789012")]) / TCP() / DATA,
            {},
        ),
        "routing-that-is-over": (
            IPv6ExtHdrRouting(addresses=[six("10.0.3.3")], segleft=0) / UDP() / DATA,
            {},
        ),
        "three-of-them": (
            IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrFragment(id=9)
            / ICMPv6EchoRequest()
            / b"odd",
            {},
        ),
        "whole-in-a-fragment": (IPv6ExtHdrFragment(id=9) / TCP(sport=5, dport=6) / b"odd", {}),
        "all-header-fields": (
            UDP(sport=1, dport=2) / DATA,
            {"tc": 0xB8, "fl": 0xABCDE, "hlim": 1},
        ),
    },
}
ROWS = [
    pytest.param(family, payload, ip, id=f"ipv{family}-{name}")
    for family, rows in PAYLOADS.items()
    for name, (payload, ip) in rows.items()
]
SELF = {4: ALICE, 6: ALICE6}
NEIGHBOUR = {4: BOB, 6: BOB6}
AFAR = {4: REMOTE, 6: REMOTE6}


# -- to another node and from it


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_another_node_leaves_in_geneve(any_node: Node, family, payload, ip):
    """Every byte; the source is the VPC's and all sums are right."""
    sent = from_guest(payload, AFAR[family], **ip)

    run = any_node.sends(sent)

    assert run.verdict == REDIRECT
    assert run.frame == any_node.tunnelled(run, in_vpc(payload, SELF[family], AFAR[family], **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 tx_remote": (1, len(sent) - 14)}


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_a_sandbox_comes_out_of_the_tunnel(any_node: Node, family, payload, ip):
    """Outer headers gone, destination the guest's own address, MACs the slot's, sums right."""
    inner = in_vpc(payload, AFAR[family], SELF[family], **ip)

    run = any_node.receives(any_node.arriving(inner))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, AFAR[family], **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 rx_remote": (1, len(inner) - 14)}


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_sum_of_a_nic_stays_true_through_decapsulation(any_node: Node, family, payload, ip):
    """CHECKSUM_COMPLETE: outer headers leave the sum, a translated address changes it."""
    run = any_node.completes(
        "uplink_rx", any_node.arriving(in_vpc(payload, AFAR[family], SELF[family], **ip))
    )

    assert run.frame == bytes(to_guest(payload, AFAR[family], **ip))


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_a_sandbox_of_this_node_is_handed_over(node: Node, family, payload, ip):
    """No tunnel: source the VPC's address, destination the guest's own, sums right twice over."""
    sent = from_guest(payload, NEIGHBOUR[family], **ip)

    run = node.sends(sent)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, SELF[family], **ip))
    assert faults(run.frame) == []
    size = len(sent) - 14
    assert run.traffic == {"slot-0 tx_local": (1, size), "slot-1 rx_local": (1, size)}


@pytest.mark.parametrize("size", range(20, 61))
def test_every_small_size_passes_from_either_family(any_node: Node, size):
    """A kernel that shrinks from IPv6 to IPv4 wants 40 bytes to be left; there need not be."""
    payload = Raw(bytes(range(1, size - 20 + 1)))

    run = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE, ALICE, proto=253)))

    assert run.frame == bytes(to_guest(payload, REMOTE, proto=253))
    assert run.traffic == {"slot-0 rx_remote": (1, size)}


@pytest.mark.parametrize("size", range(40, 66))
def test_every_small_size_of_ipv6_passes(any_node: Node, size):
    """From nothing behind the header on."""
    payload = Raw(bytes(range(1, size - 40 + 1)))

    run = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE6, ALICE6, nh=253)))

    assert run.frame == bytes(to_guest(payload, REMOTE6, nh=253))
    assert run.traffic == {"slot-0 rx_remote": (1, size)}


def test_zero_udp_checksum_in_ipv6_stays_zero(any_node: Node):
    """Not for us to judge: a tunnel of the sandbox's own may send so (RFC 6935)."""
    payload = UDP(sport=1, dport=2, chksum=0) / DATA

    sent = any_node.sends(from_guest(payload, REMOTE6))
    got = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE6, ALICE6)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, ALICE6, REMOTE6))
    assert got.frame == bytes(to_guest(payload, REMOTE6))


@pytest.mark.parametrize("family", [4, 6])
def test_udp_checksum_that_comes_out_as_zero_is_ones(any_node: Node, family):
    """Zero would mean that there is none (RFC 768); both ways."""
    for outbound in (True, False):
        ends = (SELF[family], AFAR[family]) if outbound else (AFAR[family], SELF[family])
        mine, other = (GUEST6 if family == 6 else GUEST), AFAR[family]
        translated = ends if outbound else (other, mine)
        probe = in_vpc(UDP(sport=1, dport=2) / b"\0\0", *translated)
        data = Ether(bytes(probe))[UDP].chksum.to_bytes(2, "big")
        payload = UDP(sport=1, dport=2) / data

        if outbound:
            run = any_node.sends(from_guest(payload, AFAR[family]))
        else:
            run = any_node.receives(any_node.arriving(in_vpc(payload, *ends)))

        assert run.frame[-4:-2] == b"\xff\xff"
        assert faults(run.frame) == []


def test_ethernet_padding_behind_ipv6(any_node: Node):
    """It travels, is counted against nothing, and no checksum covers it."""
    payload = UDP(sport=1, dport=2) / b"x"
    padding = b"\xa5" * 9

    sent = any_node.sends(bytes(from_guest(payload, REMOTE6)) + padding)
    got = any_node.receives(any_node.arriving(bytes(in_vpc(payload, REMOTE6, ALICE6)) + padding))

    inner = bytes(in_vpc(payload, ALICE6, REMOTE6)) + padding
    assert sent.frame == any_node.tunnelled(sent, inner)
    assert sent.traffic == {"slot-0 tx_remote": (1, 49)}
    assert got.frame[:63] == bytes(to_guest(payload, REMOTE6))
    assert got.traffic == {"slot-0 rx_remote": (1, 49)}


@pytest.mark.parametrize(
    ("slot", "own", "peer"), [(4, DORA, REMOTE), (5, EMIL6, REMOTE6)], ids=["ipv4", "ipv6"]
)
def test_sandbox_of_one_family_uses_it(any_node: Node, slot, own, peer):
    """It need not have both."""
    payload = UDP(sport=1, dport=2) / b"x"

    sent = any_node.sends(from_guest(payload, peer), slot=slot)
    got = any_node.receives(any_node.arriving(in_vpc(payload, peer, own)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, own, peer))
    assert got.frame == bytes(to_guest(payload, peer))


@pytest.mark.parametrize(("slot", "peer"), [(4, REMOTE6), (4, BOB6), (5, REMOTE), (5, BOB)])
def test_sandbox_cannot_send_a_family_it_has_no_address_of(any_node: Node, slot, peer):
    """Every slot has both on eth0; the VPC gave this one a single address."""
    sent = from_guest(UDP(), peer)

    assert_dropped(any_node.sends(sent, slot=slot), "tx no_address", sent)


def test_ipv6_address_with_zeros_at_both_ends_is_one(any_node: Node):
    """0:0:1:: is not ::, which says that there is none."""
    bindings = SharedArray(any_node.pins.map("bindings"), abi.Binding, writable=True)
    bindings.row(4).address6 = abi.Address.of(IPv6Address("0:0:1::"))
    try:
        run = any_node.sends(from_guest(UDP(), REMOTE6), slot=4)
    finally:
        bindings.row(4).address6 = abi.Address()
        bindings.close()

    assert run.verdict == REDIRECT


@pytest.mark.parametrize(
    ("dst", "vtep"),
    [
        pytest.param("10.0.2.78", "192.0.2.2", id="prefix-of-24"),
        pytest.param("10.0.2.77", "192.0.2.4", id="whole-address-before-prefix"),
        pytest.param("10.0.3.1", "192.0.2.3", id="shorter-prefix-for-the-rest"),
    ],
)
def test_most_specific_route_of_ipv6_wins(any_node: Node, dst, vtep):
    """A whole address, then the longest prefix."""
    payload = UDP(sport=1, dport=2)

    run = any_node.sends(from_guest(payload, six(dst)))

    inner = in_vpc(payload, ALICE6, six(dst))
    assert run.frame == any_node.tunnelled(run, inner, dst=vtep_of(vtep, any_node.family))


def test_vpc_of_the_slot_is_the_frames(any_node: Node):
    """The same frame from another slot leaves in another VPC, or nowhere."""
    payload = UDP(sport=1, dport=2)
    dst = six("10.9.0.1")

    red = any_node.sends(from_guest(payload, dst), slot=2)
    blue = any_node.sends(from_guest(payload, dst), slot=0)

    assert red.frame == any_node.tunnelled(red, in_vpc(payload, CAROL6, dst), vni=RED)
    assert_dropped(blue, "tx no_route", from_guest(payload, dst))


@pytest.mark.parametrize("dst", [BOB6, REMOTE6], ids=["local", "remote"])
def test_mark_and_priority_do_not_leave_the_slot(any_node: Node, dst):
    """They mean something to the host's own rules."""
    run = any_node.sends(from_guest(UDP(sport=1, dport=2), dst), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


# -- ICMP errors


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
    for family, rows, kinds in ((4, QUOTED4, (3, 11, 12)), (6, QUOTED6, (1, 2, 3, 4)))
    for name, (payload, length) in rows.items()
    for kind in kinds
]


def error(
    family: int, src: str, dst: str, payload: Packet, length: int | None, kind: int
) -> Packet:
    """About a packet from src to dst, of which `length` bytes behind the IP header are quoted."""
    if family == 4:
        whole = bytes(IP(src=src, dst=dst, id=5) / payload)
        return icmp_error(whole if length is None else whole[: 20 + length], kind=kind)
    extra = {"nh": 253} if isinstance(payload, Raw) else {}
    whole = bytes(IPv6(src=src, dst=dst, **extra) / payload)
    value = 1280 if kind == 2 else 0
    return icmp6_error(whole if length is None else whole[: 40 + length], kind=kind, value=value)


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_icmp_error_that_a_sandbox_sends_quotes_what_was_sent_to_it(
    any_node: Node, family, payload, length, kind
):
    """The quoted destination is the VPC's address again, and each checksum fits."""
    guest = GUEST6 if family == 6 else GUEST

    run = any_node.sends(
        from_guest(error(family, AFAR[family], guest, payload, length, kind), AFAR[family])
    )

    quoted = error(family, AFAR[family], SELF[family], payload, length, kind)
    wanted = in_vpc(quoted, SELF[family], AFAR[family])
    assert run.verdict == REDIRECT
    assert run.frame == any_node.tunnelled(run, wanted)
    assert faults(run.frame) == []
    assert run.counted == {}


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_icmp_error_that_a_sandbox_gets_quotes_what_it_sent(
    any_node: Node, family, payload, length, kind
):
    """The quoted source is the guest's own address, or it would not know the connection."""
    guest = GUEST6 if family == 6 else GUEST
    said = error(family, SELF[family], AFAR[family], payload, length, kind)

    frame = any_node.arriving(in_vpc(said, AFAR[family], SELF[family]))
    run = any_node.receives(frame)

    wanted = error(family, guest, AFAR[family], payload, length, kind)
    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(wanted, AFAR[family]))
    assert faults(run.frame) == []


@pytest.mark.parametrize(("family", "payload", "length", "kind"), ERRORS)
def test_sum_of_a_nic_stays_true_through_a_quote(any_node: Node, family, payload, length, kind):
    """Two addresses and up to three checksums change in such a frame."""
    said = error(family, SELF[family], AFAR[family], payload, length, kind)

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
            in_vpc(error(family, SELF[family], AFAR[family], payload, 8, 3), router, SELF[family])
        )
    )

    wanted = error(family, guest, AFAR[family], payload, 8, 3)
    assert run.frame == bytes(to_guest(wanted, router))


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_error_between_two_sandboxes_is_translated_twice(node: Node, family):
    """Alice reports what Bob sent: he finds his own guest address as source."""
    guest = GUEST6 if family == 6 else GUEST
    payload = TCP(sport=1, dport=2) / DATA
    sent = error(family, NEIGHBOUR[family], guest, payload, None, 3)

    run = node.sends(from_guest(sent, NEIGHBOUR[family]))

    received = error(family, guest, SELF[family], payload, None, 3)
    assert run.frame == bytes(to_guest(received, SELF[family]))
    assert faults(run.frame) == []


@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(bytes(IPv6(src=REMOTE6, dst=six("10.9.9.9")) / UDP() / DATA), id="foreign"),
        pytest.param(bytes(IPv6(src=GUEST6, dst=REMOTE6) / UDP() / DATA), id="of-our-own-sending"),
    ],
)
def test_quote_that_was_not_sent_to_the_sandbox_is_left_alone(any_node: Node, quote):
    """Only the reporter's own address is translated."""
    run = any_node.sends(from_guest(icmp6_error(quote), REMOTE6))

    assert run.frame == any_node.tunnelled(run, in_vpc(icmp6_error(quote), ALICE6, REMOTE6))
    assert faults(run.frame) == []


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (bytes(IPv6(src=REMOTE6, dst=GUEST6) / UDP())[:39], "short_frame"),
        (b"", "short_frame"),
        (b"\x45" + bytes(IPv6(src=REMOTE6, dst=GUEST6) / UDP())[1:], "bad_ip_header"),
    ],
    ids=["39-bytes", "none", "version-4"],
)
def test_icmpv6_error_with_a_broken_quote_is_dropped(any_node: Node, quote, reason):
    """What cannot be translated would show the guest's address to the VPC."""
    sent = from_guest(icmp6_error(quote), REMOTE6)

    assert_dropped(any_node.sends(sent), f"tx {reason}", sent)


def test_icmpv6_that_is_no_error_is_not_taken_for_a_quote(any_node: Node):
    """An echo's data may look like a packet."""
    payload = ICMPv6EchoRequest() / Raw(bytes(IPv6(src=REMOTE6, dst=GUEST6) / UDP() / DATA))

    run = any_node.sends(from_guest(payload, REMOTE6))

    assert run.frame == any_node.tunnelled(run, in_vpc(payload, ALICE6, REMOTE6))


# -- refused


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


# -- anything


def some_frames(family: int) -> list[Packet]:
    """What a sandbox sends, of each kind, to another node and to its neighbour."""
    guest = GUEST6 if family == 6 else GUEST
    payloads = [payload for payload, ip in PAYLOADS[family].values() if not ip]
    payloads.append(error(family, AFAR[family], guest, TCP() / DATA, 8, 3))
    return [from_guest(one, dst) for dst in (AFAR[family], NEIGHBOUR[family]) for one in payloads]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [4, 6])
def test_any_frame_from_a_sandbox_is_counted_exactly_once(any_node: Node, family, seed):
    """Random damage: each frame is dropped, answered or forwarded, and never the stack's."""
    for frame in damaged(some_frames(family), seed, 150):
        run = any_node.sends(frame)

        assert run.verdict in (SHOT, REDIRECT), frame.hex()
        if run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        elif run.traffic:
            ways = sorted(row.split()[1] for row in run.traffic)
            assert ways in (["tx_remote"], ["rx_local", "tx_local"]), frame.hex()
            assert faults(frame) != [] or faults(run.frame) == [], frame.hex()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [4, 6])
def test_any_frame_from_the_wire_is_ours_or_untouched(any_node: Node, family, seed):
    """Random damage: dropped, delivered or answered and counted once, or as it came."""
    inners = [
        in_vpc(payload, AFAR[family], SELF[family])
        for payload, ip in PAYLOADS[family].values()
        if not ip
    ]
    quote = error(family, SELF[family], AFAR[family], TCP() / DATA, 8, 3)
    inners.append(in_vpc(quote, AFAR[family], SELF[family]))
    frames = [any_node.arriving(inner) for inner in inners]
    frames += [any_node.arriving(bytes(8) + bytes(inner), optionlen=2) for inner in inners]

    for frame in damaged(frames, seed, 150):
        run = any_node.receives(frame)

        if run.verdict == PASS_ON:
            assert run.frame == frame
            assert run.traffic == {}
        elif run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        else:
            assert run.verdict == REDIRECT, frame.hex()


def test_mac_is_the_endpoints_in_both_families(any_node: Node):
    """One interface, one MAC, whichever address it uses."""
    macs = [any_node.sends(from_guest(UDP(), AFAR[family])).frame for family in (4, 6)]

    at = 14 + {4: 20, 6: 40}[any_node.family] + 16 + 6
    assert {frame[at : at + 6].hex(":") for frame in macs} == {mac_of(ALICE)}
