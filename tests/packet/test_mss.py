# SPDX-License-Identifier: Apache-2.0
"""The segment size that TCP asks for, at either end: what the way carries, and no more."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    BOB,
    GUEST,
    IP,
    REMOTE,
    TCP,
    UDP,
    Ether,
    IPv6ExtHdrDestOpt,
    Packet,
    Raw,
    faults,
    from_guest,
    in_vpc,
    is_six,
    six,
    to_guest,
    vtep_of,
)
from tests.programs import REDIRECT, Node, Run, path_mtu

VTEPS_OWN, LOCKED = "10.4.0.1", "10.6.0.1"  # see conftest.py
OUTER = {REMOTE: 1500, VTEPS_OWN: 1400, LOCKED: 1300}
VTEP = {REMOTE: "192.0.2.2", VTEPS_OWN: "192.0.2.40", LOCKED: "203.0.113.6"}
BOTH = [*OUTER, *map(six, OUTER)]
SYN = {"sport": 40000, "dport": 443, "seq": 7, "flags": "S"}
NOP = b"\x01"


def behind(node: Node, dst: str) -> dict[str, str]:
    """Where the outer packet goes."""
    four = next(one for one in OUTER if dst in (one, six(one)))
    return {"dst": vtep_of(VTEP[four], node.family)}


def carried(node: Node, dst: str) -> int:
    """The largest segment: of the outer packet without all headers that have no options."""
    four = next(one for one in OUTER if dst in (one, six(one)))
    return OUTER[four] - node.overhead - (40 if is_six(dst) else 20) - 20


def mss(value: int) -> bytes:
    return b"\x02\x04" + value.to_bytes(2, "big")


def syn(options: bytes, data: bytes = b"", **fields: object) -> Packet:
    """A SYN whose header ends with these options, up to four bytes of nothing behind them."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    return TCP(**{**SYN, **fields}, dataofs=words) / Raw(options + data)


def assert_sent(node: Node, run: Run, payload: Packet, dst: str, **counted: int) -> None:
    """It left in Geneve with this behind its IP header, and every sum is right."""
    source = six(ALICE) if is_six(dst) else ALICE
    assert run.verdict == REDIRECT
    assert run.frame == node.tunnelled(run, in_vpc(payload, source, dst), **behind(node, dst))
    assert faults(run.frame) == []
    assert run.counted == {f"event {event}": times for event, times in counted.items()}


@pytest.mark.parametrize("flags", ["S", "SA", "SEC"], ids=["syn", "syn-ack", "syn-with-ecn"])
@pytest.mark.parametrize("dst", BOTH)
def test_segment_size_is_lowered_to_what_the_way_carries(any_node: Node, dst: str, flags: str):
    """By either side's half of the handshake; the rest of it is as it was."""
    rest = b"\x04\x02\x08\x0a" + bytes(range(8)) + NOP + b"\x03\x03\x07"

    run = any_node.sends(from_guest(syn(mss(8960) + rest, flags=flags), dst))

    expected = syn(mss(carried(any_node, dst)) + rest, flags=flags)
    assert_sent(any_node, run, expected, dst, mss_clamped=1)


@pytest.mark.parametrize("under", [0, 1, 900])
@pytest.mark.parametrize("dst", [REMOTE, six(REMOTE)], ids=["ipv4", "ipv6"])
def test_segment_size_is_never_raised(any_node: Node, dst: str, under: int):
    """What the sandbox asks for may be for a reason."""
    payload = syn(mss(carried(any_node, dst) - under))

    assert_sent(any_node, any_node.sends(from_guest(payload, dst)), payload, dst)


def test_one_more_is_too_many(any_node: Node):
    """The boundary from above."""
    payload = syn(mss(carried(any_node, REMOTE) + 1))

    run = any_node.sends(from_guest(payload))

    assert_sent(any_node, run, syn(mss(carried(any_node, REMOTE))), REMOTE, mss_clamped=1)


@pytest.mark.parametrize("dst", [REMOTE, six(REMOTE)], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("before", range(37))
def test_option_is_found_wherever_it_is(any_node: Node, dst: str, before: int):
    """At an odd offset its value lies across two words of the checksum."""
    run = any_node.sends(from_guest(syn(NOP * before + mss(65535)), dst))

    expected = syn(NOP * before + mss(carried(any_node, dst)))
    assert_sent(any_node, run, expected, dst, mss_clamped=1)


@pytest.mark.parametrize("length", range(2, 37))
def test_other_options_are_stepped_over(any_node: Node, length: int):
    """By their length, whatever is in them."""
    other = b"\xfe" + bytes([length]) + b"\x02\x04\xff\xff" * 9
    run = any_node.sends(from_guest(syn(other[:length] + mss(65535))))

    expected = syn(other[:length] + mss(carried(any_node, REMOTE)))
    assert_sent(any_node, run, expected, REMOTE, mss_clamped=1)


UNTOUCHED = {
    "none": b"",
    "others-only": b"\x04\x02" + NOP * 2,
    "behind-the-end": b"\x00" + mss(65535),
    "length-3": b"\x02\x03\xff\xff",
    "length-5": b"\x02\x05\xff\xff\xff",
    "other-of-length-0": b"\xfe\x00" + mss(65535),
    "other-of-length-1": b"\xfe\x01" + mss(65535),
    "other-beyond-the-header": b"\xfe\xff" + mss(65535),
    "cut-off-by-the-header": NOP * 2 + b"\x02\x04",
    "cut-off-in-its-value": NOP + b"\x02\x04\xff",
}


@pytest.mark.parametrize("options", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_what_is_no_such_option_is_left_alone(any_node: Node, options: bytes):
    """Data behind the header that looks like one included. None is added: peers then keep to 536
    or 1220 bytes."""
    payload = syn(options, data=mss(65535) * 4)

    assert_sent(any_node, any_node.sends(from_guest(payload)), payload, REMOTE)


@pytest.mark.parametrize("flags", ["A", "PA", "F", "R", ""])
def test_segments_of_a_connection_are_left_alone(any_node: Node, flags: str):
    """Only a handshake's option means anything."""
    payload = syn(mss(65535), flags=flags)

    assert_sent(any_node, any_node.sends(from_guest(payload)), payload, REMOTE)


def test_header_that_says_less_than_it_must_is_left_alone(any_node: Node):
    """Its options would start inside it."""
    payload = TCP(**SYN, dataofs=4) / Raw(mss(65535) * 4)

    assert_sent(any_node, any_node.sends(from_guest(payload)), payload, REMOTE)


def test_header_beyond_the_packet_is_left_alone(any_node: Node):
    """What the padding holds is no option."""
    payload = TCP(**SYN, dataofs=15) / Raw(NOP * 2)
    frame = bytes(from_guest(payload)) + mss(65535) * 9

    run = any_node.sends(frame)

    inner = bytes(in_vpc(payload, ALICE, REMOTE)) + mss(65535) * 9
    assert run.frame == any_node.tunnelled(run, inner)
    assert run.counted == {}


def test_udp_that_looks_like_it_is_left_alone(any_node: Node):
    """Byte 13 is a flag in TCP only."""
    payload = UDP(sport=1, dport=2) / Raw(bytes(TCP(**SYN)) + mss(65535) * 4)

    assert_sent(any_node, any_node.sends(from_guest(payload)), payload, REMOTE)


def test_later_fragment_is_left_alone(any_node: Node):
    """There is no TCP header in it."""
    fragment = {"frag": 3, "proto": 6}
    payload = Raw(bytes(IP(src=GUEST, dst=REMOTE) / syn(mss(65535)))[20:])

    run = any_node.sends(from_guest(payload, **fragment))

    assert run.frame == any_node.tunnelled(run, in_vpc(payload, ALICE, REMOTE, **fragment))
    assert run.counted == {}


def test_header_behind_others_is_found(any_node: Node):
    """IPv4 options, an extension of IPv6: they do not make the option say less, as RFC 6691 has
    it."""
    options = {"options": b"\x94\x04\x00\x00" * 2}
    run = any_node.sends(from_guest(syn(mss(65535)), **options))
    inner = in_vpc(syn(mss(carried(any_node, REMOTE))), ALICE, REMOTE, **options)
    assert run.frame == any_node.tunnelled(run, inner)

    dst = six(REMOTE)
    run = any_node.sends(from_guest(IPv6ExtHdrDestOpt() / syn(mss(65535)), dst))
    expected = IPv6ExtHdrDestOpt() / syn(mss(carried(any_node, dst)))
    assert_sent(any_node, run, expected, dst, mss_clamped=1)


@pytest.mark.parametrize("dst", [BOB, six(BOB)], ids=["ipv4", "ipv6"])
def test_handshake_within_the_node_is_left_alone(any_node: Node, dst: str):
    """Any size passes there."""
    payload = syn(mss(65535))

    run = any_node.sends(from_guest(payload, dst))

    assert run.frame == bytes(to_guest(payload, six(ALICE) if is_six(dst) else ALICE))
    assert run.counted == {}


def test_padded_syn_keeps_its_padding(any_node: Node):
    """Ethernet's shortest frame is longer."""
    run = any_node.sends(bytes(from_guest(syn(mss(65535)))) + bytes(2))

    inner = bytes(in_vpc(syn(mss(carried(any_node, REMOTE))), ALICE, REMOTE)) + bytes(2)
    assert run.frame == any_node.tunnelled(run, inner)
    assert Ether(inner)[TCP].dataofs == 6


# -- from the wire


FROM = {"192.0.2.2": 1500, "192.0.2.40": 1400}  # a VTEP, and what of an outer packet it takes
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def ends(family: int) -> tuple[str, str]:
    """(a peer, a sandbox of ours)"""
    return (six(REMOTE), six(ALICE)) if family == 6 else (REMOTE, ALICE)


def sendable(node: Node, family: int, sender: str) -> int:
    """The largest segment that a sandbox may send back to that VTEP."""
    return FROM[sender] - node.overhead - (40 if family == 6 else 20) - 20


def arrives(node: Node, payload: Packet, family: int, sender: str = "192.0.2.2") -> Run:
    peer, ours = ends(family)
    inner = in_vpc(payload, peer, ours)
    return node.receives(node.arriving(inner, src=vtep_of(sender, node.family)))


def assert_delivered(run: Run, payload: Packet, family: int, **counted: int) -> None:
    """The sandbox got this behind the IP header, and every sum is right."""
    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, ends(family)[0]))
    assert faults(run.frame) == []
    assert run.counted == {f"event {event}": times for event, times in counted.items()}


@pytest.mark.parametrize("flags", ["S", "SA"], ids=["syn", "syn-ack"])
@pytest.mark.parametrize("sender", FROM)
@FAMILIES
def test_peers_segment_size_is_lowered_to_what_goes_back(any_node: Node, family, sender, flags):
    """The slots' MTU, or what the VTEP takes if that is less."""
    rest = b"\x04\x02" + NOP + b"\x03\x03\x07"

    run = arrives(any_node, syn(mss(8960) + rest, flags=flags), family, sender)

    expected = syn(mss(sendable(any_node, family, sender)) + rest, flags=flags)
    assert_delivered(run, expected, family, mss_clamped=1)


@pytest.mark.parametrize("under", [0, 1])
@FAMILIES
def test_peers_segment_size_is_never_raised(any_node: Node, family, under):
    """A larger MTU of a sandbox means nothing to it."""
    payload = syn(mss(sendable(any_node, family, "192.0.2.2") - under))

    assert_delivered(arrives(any_node, payload, family), payload, family)


def test_peers_segment_size_follows_a_learned_path_mtu(any_node: Node):
    """A hop on the way carries less, and has said so."""
    sender = vtep_of("192.0.2.2", any_node.family)
    with path_mtu(any_node.pins, sender, 1320):
        run = arrives(any_node, syn(mss(1460)), 4)

    assert_delivered(run, syn(mss(1320 - any_node.overhead - 40)), 4, mss_clamped=1)


@FAMILIES
def test_peers_option_at_an_odd_place(any_node: Node, family):
    """Its value lies across two words of the checksum."""
    run = arrives(any_node, syn(NOP + mss(65535)), family)

    expected = syn(NOP + mss(sendable(any_node, family, "192.0.2.2")))
    assert_delivered(run, expected, family, mss_clamped=1)


@pytest.mark.parametrize("flags", ["A", "PA"])
def test_peers_segments_are_left_alone(any_node: Node, flags):
    """Only a handshake's option means anything."""
    payload = syn(mss(65535), flags=flags)

    assert_delivered(arrives(any_node, payload, 4), payload, 4)


@FAMILIES
def test_sum_of_a_nic_stays_true_through_a_peers_syn(any_node: Node, family):
    """The option and the checksum make up for each other, at an odd place too."""
    peer, ours = ends(family)
    for options in (mss(65535), NOP + mss(65535)):
        frame = any_node.arriving(in_vpc(syn(options), peer, ours))
        any_node.completes("uplink_rx", frame)
