# SPDX-License-Identifier: Apache-2.0
"""RFC 8926 sections 3.4 and 3.5: every field of the Geneve header and every rule of its options.

On both underlays. What is taken must come out the same whatever stands in front
of it: no length of a header is assumed anywhere.
"""

from __future__ import annotations

import random

import pytest

from tests.packets import (
    ALICE,
    ALICE6,
    BLUE,
    CAROL,
    GENEVE,
    RED,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Packet,
    faults,
    from_guest,
    in_vpc,
    option,
    to_guest,
    with_options,
)
from tests.programs import REDIRECT, Node, Run, assert_dropped

HELLO = UDP(sport=1, dport=2) / b"hello"
SOURCE = {4: REMOTE, 6: REMOTE6}
ALICES = {4: ALICE, 6: ALICE6}
OUTER_IP = {4: 20, 6: 40}


def inner(family: int = 4, payload: Packet = HELLO) -> Packet:
    return in_vpc(payload, SOURCE[family], ALICES[family])


def geneve_at(node: Node) -> int:
    return 14 + OUTER_IP[node.family] + 8


def assert_delivered(run: Run, family: int = 4, payload: Packet = HELLO) -> None:
    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, SOURCE[family]))
    assert run.counted == {}
    assert [*run.traffic] == ["slot-0 rx_remote"]


# -- what we send


@pytest.mark.parametrize("family", [4, 6])
def test_header_that_we_send_says_nothing_but_ethernet_and_the_vni(any_node: Node, family):
    """Version 0, no options, O and C clear, reserved bits zero, Ethernet inside."""
    run = any_node.sends(from_guest(HELLO, SOURCE[family]))

    at = geneve_at(any_node)
    assert run.frame[at : at + 8] == bytes.fromhex("0000 6558 00abcd 00")
    assert run.frame[at + 8 + 12 :][:2] == {4: b"\x08\x00", 6: b"\x86\xdd"}[family]


@pytest.mark.parametrize(("slot", "vni"), [(0, BLUE), (2, RED)])
def test_vni_that_we_send_is_the_slots(any_node: Node, slot, vni):
    """24 bits, the highest first."""
    run = any_node.sends(from_guest(HELLO, "10.9.0.1" if vni == RED else REMOTE), slot=slot)

    at = geneve_at(any_node) + 4
    assert run.frame[at : at + 4] == vni.to_bytes(3, "big") + b"\0"


# -- the first eight bytes, received


@pytest.mark.parametrize("version", [1, 2, 3])
def test_other_versions_are_dropped(any_node: Node, version):
    """Nobody knows what their fields mean."""
    frame = any_node.arriving(inner(), version=version)

    assert_dropped(any_node.receives(frame), "rx geneve_version", frame)


@pytest.mark.parametrize("critical", [0, 1])
@pytest.mark.parametrize("options", [b"", option(1, bytes(4)), option(0x80)])
@pytest.mark.parametrize("protocol", [0x6558, 0x0800, 0x86DD, 0x0000])
def test_control_packet_never_reaches_a_sandbox(any_node: Node, critical, options, protocol):
    """Whatever else it says; it is counted under a reason of its own."""
    frame = any_node.arriving(
        options + bytes(inner()),
        oam=1,
        critical=critical,
        optionlen=len(options) // 4,
        proto=protocol,
    )

    assert_dropped(any_node.receives(frame), "rx geneve_control", frame)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("options", [b"", option(1, bytes(4)), option(0x7F) * 63])
def test_critical_bit_alone_drops_nothing(any_node: Node, options, family):
    """It says that options must be read; they were, and none of them is critical."""
    sent = options + bytes(inner(family))

    run = any_node.receives(any_node.arriving(sent, critical=1, optionlen=len(options) // 4))

    assert_delivered(run, family)


@pytest.mark.parametrize("bit", range(6))
def test_each_reserved_bit_is_ignored(any_node: Node, bit):
    """Behind O and C."""
    run = any_node.receives(any_node.arriving(inner(), reserved=1 << bit))

    assert_delivered(run)


@pytest.mark.parametrize("bit", range(8))
def test_each_bit_of_the_reserved_byte_is_ignored(any_node: Node, bit):
    """Behind the VNI: it must not be taken for a part of it."""
    run = any_node.receives(any_node.arriving(inner(), reserved2=1 << bit))

    assert_delivered(run)


@pytest.mark.parametrize("bit", range(24))
def test_every_bit_of_the_vni_counts(any_node: Node, bit):
    """One that is wrong, and it is another VPC, or none."""
    frame = any_node.arriving(inner(), vni=BLUE ^ (1 << bit))

    assert_dropped(any_node.receives(frame), "rx no_endpoint", frame)


@pytest.mark.parametrize("family", [4, 6])
def test_vni_chooses_between_equal_addresses(any_node: Node, family):
    """Alice and Carol have the same two addresses in two VPCs."""
    assert CAROL == ALICE

    runs = [any_node.receives(any_node.arriving(inner(family), vni=vni)) for vni in (BLUE, RED)]

    assert [*runs[0].traffic] == ["slot-0 rx_remote"]
    assert [*runs[1].traffic] == ["slot-2 rx_remote"]


def as_protocol(frame: Packet, family: int) -> tuple[bytes, int]:
    """A frame's IP packet without Ethernet, and the protocol type that says so."""
    return bytes(frame)[14:], {4: 0x0800, 6: 0x86DD}[family]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("length", [0, 4, 60, 252])
@pytest.mark.parametrize("payload", [HELLO, TCP(sport=1, dport=2) / bytes(700)], ids=["udp", "tcp"])
def test_ip_without_ethernet_is_taken(any_node: Node, family, length, payload):
    """Protocol types 0x0800 and 0x86DD, also behind options."""
    packet, protocol = as_protocol(inner(family, payload), family)
    sent = option(1) * (length // 4) + packet

    run = any_node.receives(any_node.arriving(sent, proto=protocol, optionlen=length // 4))

    assert_delivered(run, family, payload)
    assert faults(run.frame) == []


@pytest.mark.parametrize("family", [4, 6])
def test_shortest_ip_without_ethernet_is_taken(any_node: Node, family):
    """A UDP datagram without data is 28 bytes in IPv4, less than an IPv6 header has."""
    payload = UDP(sport=1, dport=2)
    packet, protocol = as_protocol(inner(family, payload), family)

    run = any_node.receives(any_node.arriving(packet, proto=protocol))

    assert_delivered(run, family, payload)


@pytest.mark.parametrize(("said", "family"), [(0x0800, 6), (0x86DD, 4)])
def test_protocol_type_must_agree_with_the_packet(any_node: Node, said, family):
    """IPv4 that begins with a six, or the other way round."""
    packet, _ = as_protocol(inner(family, UDP(sport=1, dport=2) / bytes(40)), family)
    frame = any_node.arriving(packet, proto=said)

    assert_dropped(any_node.receives(frame), "rx bad_ip_header", frame)


OTHER_PROTOCOLS = {
    "none": 0,
    "arp": 0x0806,
    "vlan": 0x8100,
    "mpls": 0x8847,
    "nsh": 0x894F,
    "one-beyond-ethernet": 0x6559,
    "one-below-ethernet": 0x6557,
    "ethernet-bytes-swapped": 0x5865,
    "ipv4-bytes-swapped": 0x0008,
    "all-ones": 0xFFFF,
}


@pytest.mark.parametrize("protocol", OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS.keys())
def test_other_protocol_types_are_dropped(any_node: Node, protocol):
    """A VPC carries Ethernet and IP."""
    frame = any_node.arriving(inner(), proto=protocol)

    assert_dropped(any_node.receives(frame), "rx geneve_protocol", frame)


# -- options


def filled(length: int) -> bytes:
    """Options of this many bytes in all, with as few options as there can be."""
    options = b""
    while len(options) < length:
        size = min(length - len(options) - 4, 124)
        options += option(len(options) & 0x7F, bytes(range(size)))
    return options


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("length", range(0, 256, 4))
def test_options_of_any_length_are_skipped(any_node: Node, family, length):
    """From none to 63 words: the payload begins where the header says."""
    sent, fields = with_options(filled(length), inner(family))

    run = any_node.receives(any_node.arriving(sent, **fields))

    assert fields["optionlen"] == length // 4
    assert_delivered(run, family)


SHAPES = {
    "63-empty-ones": option(5) * 63,
    "one-of-124-bytes": option(5, bytes(124)),
    "the-longest-twice-less-a-word": option(5, bytes(124)) + option(6, bytes(120)),
    "the-same-twice": option(5, b"same") * 2,
    "reserved-bits-of-an-option": option(5, b"data", reserved=7),
    "every-class-of-ours-to-come": option(1, group=0x0000) + option(1, group=0xFFFF),
    "gateway-load-balancer": (
        option(1, bytes(8), group=0x0108)
        + option(2, bytes(8), group=0x0108)
        + option(3, bytes(4), group=0x0108)
    ),
    "data-like-a-critical-option": option(5, b"\xff\xff\x80\x1f"),
    "a-zero-word-is-an-empty-option": bytes(4),
    "type-127": option(0x7F),
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_unknown_options_are_ignored(any_node: Node, options):
    """All of them are unknown to us, and none of these is critical."""
    sent, fields = with_options(options, inner())

    assert_delivered(any_node.receives(any_node.arriving(sent, **fields)))


def test_order_of_options_does_not_matter(any_node: Node):
    """Receivers may not rely on any."""
    dice = random.Random(8926)
    options = [option(kind, bytes(4 * (kind % 4))) for kind in range(20)]

    for _ in range(20):
        dice.shuffle(options)
        sent, fields = with_options(b"".join(options), inner())
        assert_delivered(any_node.receives(any_node.arriving(sent, **fields)))


CRITICAL = {
    "the-only-one": option(0x80),
    "with-data": option(0x81, bytes(124)),
    "type-255": option(0xFF),
    "the-first": option(0x80) + option(1, bytes(8)),
    "the-last": option(1, bytes(8)) + option(0x80),
    "the-last-of-63": option(1) * 62 + option(0x80),
    "behind-the-longest": option(1, bytes(124)) + option(2, bytes(116)) + option(0x80),
    "in-the-middle": option(1, bytes(4)) + option(0x90, bytes(4)) + option(2),
    "twice": option(0x80) * 2,
    "known-class-unknown-type": option(0x80, group=0x0108),
}


@pytest.mark.parametrize("bit", [1, 0], ids=["announced", "not-announced"])
@pytest.mark.parametrize("options", CRITICAL.values(), ids=CRITICAL.keys())
def test_unknown_critical_option_drops_the_packet(any_node: Node, options, bit):
    """Also where the sender forgot the C bit, as Linux' own geneve device does."""
    sent, fields = with_options(options, inner())
    frame = any_node.arriving(sent, **{**fields, "critical": bit})

    assert_dropped(any_node.receives(frame), "rx geneve_critical", frame)


def overrun(words: int, announced: int) -> bytes:
    """So many words of options, of which the last option claims to be longer than is left."""
    return option(1) * (words - 1) + bytes([0xFF, 0xFF, 2, announced])


@pytest.mark.parametrize("words", [1, 2, 5, 32, 62, 63])
@pytest.mark.parametrize("announced", [1, 2, 30, 31])
def test_option_that_reaches_into_the_payload_drops_the_packet(any_node: Node, words, announced):
    """The sum of the options' lengths must be the header's; the payload is long enough."""
    sent = overrun(words, announced) + bytes(inner(payload=UDP(sport=1, dport=2) / bytes(200)))
    frame = any_node.arriving(sent, optionlen=words)

    assert_dropped(any_node.receives(frame), "rx geneve_options", frame)


@pytest.mark.parametrize("length", range(1, 32))
def test_every_length_of_an_option_is_walked_exactly(any_node: Node, length):
    """One word more than is there drops the packet, and what is there does not."""
    whole = option(1, bytes(4 * length))
    cut = whole[:-4]
    exact = any_node.receives(any_node.arriving(whole + bytes(inner()), optionlen=length + 1))
    frame = any_node.arriving(cut + bytes(inner()), optionlen=length)

    assert_delivered(exact)
    assert_dropped(any_node.receives(frame), "rx geneve_options", frame)


def test_options_are_walked_whatever_the_c_bit_says(any_node: Node):
    """A packet whose options do not add up is invalid in any case."""
    for critical in (0, 1):
        frame = any_node.arriving(overrun(2, 3) + bytes(inner()), optionlen=2, critical=critical)
        assert_dropped(any_node.receives(frame), "rx geneve_options", frame)


def test_critical_option_before_a_broken_one(any_node: Node):
    """Either reason is true; it is dropped once."""
    frame = any_node.arriving(option(0x80) + overrun(1, 9) + bytes(inner()), optionlen=2)

    run = any_node.receives(frame)

    assert run.frame
    assert run.counted in ({"rx geneve_critical": 1}, {"rx geneve_options": 1})


@pytest.mark.parametrize("words", [1, 10, 63])
@pytest.mark.parametrize("missing", [1, 4])
def test_options_beyond_the_datagram_drop_the_packet(any_node: Node, words, missing):
    """The header announces more than there is."""
    options = filled(4 * words)[:-missing]
    frame = bytes(any_node.arriving(options, optionlen=words))

    run = any_node.receives(frame)

    assert_dropped(run, "rx short_frame", frame)


@pytest.mark.parametrize("length", [0, 4, 252])
@pytest.mark.parametrize("left", [0, 1, 13])
def test_payload_without_a_whole_ethernet_header_is_dropped(any_node: Node, length, left):
    """The options are whole, what they stand in front of is not."""
    frame = any_node.arriving(filled(length) + bytes(inner())[:left], optionlen=length // 4)

    assert_dropped(any_node.receives(frame), "rx short_frame", frame)


@pytest.mark.parametrize("left", [0, 1, 4, 7])
def test_cut_off_geneve_header_is_dropped(any_node: Node, left):
    """The UDP header was whole, so it is ours."""
    frame = any_node.datagram(bytes(left))

    assert_dropped(any_node.receives(frame), "rx short_frame", frame)


def test_scapys_idea_of_the_header_is_the_rfcs():
    """What the frames here are made of: byte by byte."""
    header = GENEVE(version=1, optionlen=2, oam=1, critical=1, reserved=5, proto=1, vni=0x123456)

    assert bytes(header)[:8] == bytes.fromhex("42c5 0001 123456 00")
