# SPDX-License-Identifier: Apache-2.0
"""The frame checker that other tests trust: it must find what is wrong, and only that."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    ALICE6,
    GENEVE,
    ICMP,
    IP,
    NODE,
    NODE6,
    PEER,
    PEER6,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    mac_of,
    on_wire,
    option,
    six,
    with_options,
)

ENDS = {4: (ALICE, REMOTE), 6: (ALICE6, REMOTE6)}
UNDERLAYS = {4: (NODE, PEER), 6: (NODE6, PEER6)}

INNER = {
    "tcp": (4, TCP(sport=1, dport=2) / b"odd", "inner tcp checksum"),
    "udp": (4, UDP(sport=1, dport=2) / b"data", "inner udp checksum"),
    "icmp": (4, ICMP() / b"data", "inner icmp checksum"),
    "quote": (4, icmp_error(bytes(IP(src=REMOTE, dst=ALICE) / TCP())), "inner icmp checksum"),
    "tcp6": (6, TCP(sport=1, dport=2) / b"odd", "inner tcp checksum"),
    "udp6": (6, UDP(sport=1, dport=2) / b"data", "inner udp checksum"),
    "icmp6": (6, ICMPv6EchoRequest() / b"data", "inner icmp checksum"),
    **{
        f"quote6-{kind}": (
            6,
            icmp6_error(bytes(IPv6(src=REMOTE6, dst=ALICE6) / TCP()), kind=kind),
            "inner icmp checksum",
        )
        for kind in (1, 2, 3, 4)
    },
}


def tunnelled(inner, underlay: int = 4, **outer) -> bytes:
    src, dst = UNDERLAYS[underlay]
    return bytes(on_wire(inner, src=src, dst=dst, **outer))


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize(("family", "payload", "_"), INNER.values(), ids=INNER.keys())
def test_a_frame_of_scapys_has_no_fault(family, payload, _, underlay):
    """Two implementations agree."""
    assert faults(tunnelled(in_vpc(payload, *ENDS[family]), underlay)) == []


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize(("family", "payload", "fault"), INNER.values(), ids=INNER.keys())
def test_a_flipped_bit_behind_the_inner_header_is_found(family, payload, fault, underlay):
    """Each of them, one at a time; in the quoted header its own checksum notices too."""
    frame = tunnelled(in_vpc(payload, *ENDS[family]), underlay)
    sizes = {4: 20, 6: 40}
    start = 14 + sizes[underlay] + 8 + 8 + 14 + sizes[family]

    for at in range(start + 8, len(frame)):
        damaged = bytearray(frame)
        damaged[at] ^= 0x10
        assert fault in faults(bytes(damaged)), at


@pytest.mark.parametrize("payload", [TCP(), UDP(), ICMPv6EchoRequest()], ids=type)
def test_a_flipped_bit_in_an_ipv6_address_is_found(payload):
    """There is no header checksum: the one behind it covers the addresses."""
    frame = tunnelled(in_vpc(payload, ALICE6, REMOTE6))
    addresses = 14 + 20 + 8 + 8 + 14 + 8

    for at in range(addresses, addresses + 32):
        damaged = bytearray(frame)
        damaged[at] ^= 0x10
        assert faults(bytes(damaged)) != [], at


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]),
    "destination": IPv6ExtHdrDestOpt(options=[PadN(optdata=b"123456789012")]),
    "routing": IPv6ExtHdrRouting(addresses=[six("10.0.3.3")], segleft=1),
    "routing-that-is-over": IPv6ExtHdrRouting(addresses=[six("10.0.3.3")], segleft=0),
    "whole-in-a-fragment": IPv6ExtHdrFragment(id=7),
    "two": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_extension_headers_are_walked(extension):
    """To the checksum behind them, which covers the packet's last destination."""
    frame = bytes(in_vpc(extension / TCP(sport=1, dport=2) / b"odd", ALICE6, REMOTE6))

    assert faults(frame) == []
    assert faults(frame[:-1] + b"!") == ["outer tcp checksum"]


def test_extension_headers_that_are_wrong_are_found():
    """Hop-by-hop anywhere but first, and one that is longer than the packet."""
    late = in_vpc(IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / TCP(), ALICE6, REMOTE6)
    long = bytearray(bytes(in_vpc(IPv6ExtHdrDestOpt() / TCP(), ALICE6, REMOTE6)))
    long[14 + 40 + 1] = 200

    assert faults(bytes(late)) == ["outer extension order"]
    assert faults(bytes(long)) == ["outer extension header"]


def test_fragments_have_no_checksum_of_their_own():
    """It covers the whole packet; neither the first piece nor a later one can be judged."""
    for offset, more in ((0, 1), (5, 1), (5, 0)):
        piece = IPv6ExtHdrFragment(offset=offset, m=more, nh=17) / Raw(bytes(range(1, 41)))
        assert faults(bytes(in_vpc(piece, ALICE6, REMOTE6))) == []


def test_ipv6_lengths_are_compared():
    """More than there is is a lie, less is padding."""
    frame = bytes(in_vpc(UDP() / b"data", ALICE6, REMOTE6))

    assert faults(frame[:-1]) == ["outer ip length"]
    assert faults(frame + bytes(9)) == []


def test_zero_udp_checksum_over_ipv6_is_the_tunnels_alone():
    """RFC 8200 section 8.1, RFC 6935 section 5."""
    none = UDP(sport=1, dport=2, chksum=0) / b"data"

    assert faults(tunnelled(in_vpc(UDP(), ALICE6, REMOTE6), 6)) == []
    assert faults(tunnelled(in_vpc(none, ALICE6, REMOTE6), 6)) == ["inner udp checksum"]
    assert faults(tunnelled(in_vpc(none, ALICE, REMOTE), 6)) == []


@pytest.mark.parametrize("length", [40, 44, 48, 60])
def test_a_quote_may_be_cut_off(length):
    """Then its checksum says nothing, and its lengths still must not be less than its header."""
    quote = bytes(IPv6(src=REMOTE6, dst=ALICE6) / TCP() / b"data")

    assert faults(bytes(in_vpc(icmp6_error(quote[:length]), ALICE6, REMOTE6))) == []
    assert faults(bytes(in_vpc(icmp6_error(quote[:39]), ALICE6, REMOTE6))) == [
        "outer quoted ip header"
    ]


def test_a_wrong_checksum_in_a_quote_is_found():
    """Its own, although the ICMPv6 checksum over it is right."""
    quote = bytes(IPv6(src=REMOTE6, dst=ALICE6) / UDP(chksum=0x1234) / b"data")

    found = faults(bytes(in_vpc(icmp6_error(quote), ALICE6, REMOTE6)))

    assert found == ["outer quoted udp checksum"]


@pytest.mark.parametrize(
    ("protocol", "ends"), [(0x0800, (ALICE, REMOTE)), (0x86DD, (ALICE6, REMOTE6))]
)
def test_payload_without_ethernet_is_looked_into(protocol, ends):
    """Geneve may carry IP itself."""
    packet = bytes(in_vpc(TCP() / b"odd", *ends))[14:]

    assert faults(tunnelled(Raw(packet), proto=protocol)) == []
    assert faults(tunnelled(Raw(packet[:-1] + b"!"), proto=protocol)) == ["inner tcp checksum"]


def test_families_follow_the_addresses():
    """One builder for both; an endpoint's MAC is the same for its two addresses."""
    assert from_guest(UDP(), REMOTE6).type == 0x86DD
    assert from_guest(UDP(), REMOTE).type == 0x0800
    assert mac_of(ALICE6) == mac_of(ALICE)
    assert six("10.0.1.0/24") == "fd00:6e76::a00:100/120"
    assert Ether(tunnelled(UDP(), 6))[IPv6].hlim == 64


@pytest.mark.parametrize(("start", "fault"), [(14, "outer"), (64, "inner")])
def test_a_flipped_bit_in_an_ip_header_is_found(start, fault):
    """By its checksum at the latest."""
    frame = tunnelled(in_vpc(UDP(sport=1, dport=2) / b"data", ALICE, REMOTE))

    for at in range(start, start + 20):
        damaged = bytearray(frame)
        damaged[at] ^= 0x10
        assert any(found.startswith(f"{fault} ip") for found in faults(bytes(damaged))), at


@pytest.mark.parametrize("underlay", [4, 6])
def test_a_wrong_outer_checksum_is_found_and_none_is_none(underlay):
    """Zero is a tunnel's right; anything else must be right."""
    inner = in_vpc(UDP(), ALICE, REMOTE)

    assert faults(tunnelled(inner, underlay, udp={"chksum": None})) == []
    assert faults(tunnelled(inner, underlay, udp={"chksum": 0x1234})) == ["outer udp checksum"]


def test_a_geneve_header_that_announces_too_much_is_found():
    """Options beyond the datagram."""
    assert faults(bytes(on_wire(Raw(bytes(20)), optionlen=63))) == ["geneve length"]


def test_options_are_skipped():
    """As many words as the header says."""
    inner = bytes(in_vpc(TCP(), ALICE, REMOTE))
    frame = bytes(on_wire(Raw(bytes(12) + inner), optionlen=3))

    assert faults(frame) == []
    assert faults(frame[:-1] + b"\x01") != []
    assert GENEVE(frame[42:]).optionlen == 3


def test_options_must_fill_their_room():
    """The last one may not reach into the payload (RFC 8926 section 3.5)."""
    inner = bytes(in_vpc(TCP(), ALICE, REMOTE))
    fits = option(1, bytes(8)) + option(2)
    overruns = option(1, bytes(8))[:8]

    assert faults(bytes(on_wire(Raw(fits + inner), optionlen=4))) == []
    assert faults(bytes(on_wire(Raw(overruns + inner), optionlen=2))) == ["geneve options"]


def test_an_option_is_as_the_rfc_draws_it():
    """Class, type with the critical bit, three reserved bits, length in words."""
    assert option(0x81, b"abcd", group=0x0108, reserved=7) == b"\x01\x08\x81\xe1abcd"

    _, plain = with_options(option(1, bytes(4)) + option(2), b"")
    _, critical = with_options(option(1, bytes(4)) + option(0x80), b"")
    assert plain == {"optionlen": 3, "critical": 0}
    assert critical == {"optionlen": 3, "critical": 1}
