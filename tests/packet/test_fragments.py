# SPDX-License-Identifier: Apache-2.0
"""Inner fragments: each travels on its own, and only the first has an L4 header to correct."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    ALICE6,
    BOB,
    BOB6,
    GUEST,
    GUEST6,
    ICMP,
    IP,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    Packet,
    Raw,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    to_guest,
)
from tests.programs import REDIRECT, Node, assert_dropped

DATA = bytes(1 + at % 255 for at in range(1000))
KINDS = {
    4: {"tcp": TCP(sport=1, dport=2), "udp": UDP(sport=1, dport=2), "icmp": ICMP(id=7)},
    6: {
        "tcp": TCP(sport=1, dport=2),
        "udp": UDP(sport=1, dport=2),
        "icmp": ICMPv6EchoRequest(id=7),
    },
}
ROWS = [
    pytest.param(family, layer, id=f"ipv{family}-{name}")
    for family, rows in KINDS.items()
    for name, layer in rows.items()
]
ENDS = {4: (GUEST, ALICE, BOB, REMOTE), 6: (GUEST6, ALICE6, BOB6, REMOTE6)}
STEP = 400  # bytes of payload in all but the last piece; a multiple of 8


def pieces(family: int, layer: Packet, src: str, dst: str) -> list[tuple[Packet | bytes, dict]]:
    """A datagram of `src` to `dst` in fragments: payload and IP fields of each."""
    header = IP(src=src, dst=dst) if family == 4 else IPv6(src=src, dst=dst)
    whole = header / layer / DATA
    protocol = whole.proto if family == 4 else whole.nh
    body = bytes(whole)[20 if family == 4 else 40 :]
    found: list[tuple[Packet | bytes, dict]] = []
    for at in range(0, len(body), STEP):
        part, more = body[at : at + STEP], at + STEP < len(body)
        if family == 4:
            fields = {"id": 77, "frag": at // 8, "flags": "MF" if more else 0, "proto": protocol}
            found.append((Raw(part), fields))
        else:
            fragment = IPv6ExtHdrFragment(id=77, offset=at // 8, m=int(more), nh=protocol)
            found.append((fragment / Raw(part), {}))
    return found


@pytest.mark.parametrize(("family", "layer"), ROWS)
def test_fragments_leave_one_by_one(any_node: Node, family, layer):
    """The first one's checksum is of the whole datagram with the VPC's address."""
    guest, alice, _, remote = ENDS[family]
    sent, wanted = (pieces(family, layer, own, remote) for own in (guest, alice))

    for (payload, ip), (expected, _) in zip(sent, wanted, strict=True):
        run = any_node.sends(from_guest(payload, remote, **ip))

        assert run.verdict == REDIRECT
        assert run.frame == any_node.tunnelled(run, in_vpc(expected, alice, remote, **ip))
        assert faults(run.frame) == []
        assert run.counted == {}


@pytest.mark.parametrize(("family", "layer"), ROWS)
def test_fragments_arrive_one_by_one(any_node: Node, family, layer):
    """In any order: nothing is remembered of the first."""
    guest, alice, _, remote = ENDS[family]
    sent, wanted = (pieces(family, layer, remote, own) for own in (alice, guest))

    for (payload, ip), (expected, _) in [*zip(sent, wanted, strict=True)][::-1]:
        frame = any_node.arriving(in_vpc(payload, remote, alice, **ip))
        run = any_node.receives(frame)

        assert run.verdict == REDIRECT
        assert run.frame == bytes(to_guest(expected, remote, **ip))
        assert faults(run.frame) == []
        assert run.counted == {}


@pytest.mark.parametrize(("family", "layer"), ROWS)
def test_sum_of_a_nic_stays_true_through_fragments(any_node: Node, family, layer):
    """Above all in a later one, where an IPv6 address changes and no checksum makes up for it."""
    _, alice, _, remote = ENDS[family]

    for payload, ip in pieces(family, layer, remote, alice):
        any_node.completes("uplink_rx", any_node.arriving(in_vpc(payload, remote, alice, **ip)))


@pytest.mark.parametrize(("family", "layer"), ROWS)
def test_fragments_between_two_sandboxes(node: Node, family, layer):
    """Both addresses change in each, and the first one's checksum twice."""
    guest, alice, bob, _ = ENDS[family]
    sent, wanted = pieces(family, layer, guest, bob), pieces(family, layer, alice, guest)

    for (payload, ip), (expected, _) in zip(sent, wanted, strict=True):
        run = node.sends(from_guest(payload, bob, **ip))

        assert run.frame == bytes(to_guest(expected, alice, **ip))
        assert faults(run.frame) == []


@pytest.mark.parametrize("family", [4, 6])
def test_later_fragment_that_looks_like_a_header_is_left_alone(any_node: Node, family):
    """Its first bytes are data, whatever they say: here a UDP header with a checksum."""
    _, alice, _, remote = ENDS[family]
    data = Raw(b"\0\x01\0\x02\0\x10\x12\x34" + DATA)
    if family == 4:
        payload, ip = data, {"id": 1, "frag": 50, "proto": 17}
    else:
        payload, ip = IPv6ExtHdrFragment(id=1, offset=50, nh=17) / data, {}

    sent = any_node.sends(from_guest(payload, remote, **ip))
    got = any_node.receives(any_node.arriving(in_vpc(payload, remote, alice, **ip)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, alice, remote, **ip))
    assert got.frame == bytes(to_guest(payload, remote, **ip))


@pytest.mark.parametrize("family", [4, 6])
def test_later_fragment_of_an_icmp_error_is_not_taken_for_one(any_node: Node, family):
    """A type of 3 (or 1) in the data is no destination unreachable."""
    _, alice, _, remote = ENDS[family]
    data = Raw(bytes([3 if family == 4 else 1, 0, 0, 0, 0, 0, 0, 0]) + bytes(range(100)))
    if family == 4:
        payload, ip = data, {"id": 1, "frag": 50, "proto": 1}
    else:
        payload, ip = IPv6ExtHdrFragment(id=1, offset=50, nh=58) / data, {}

    sent = any_node.sends(from_guest(payload, remote, **ip))
    got = any_node.receives(any_node.arriving(in_vpc(payload, remote, alice, **ip)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, alice, remote, **ip))
    assert got.frame == bytes(to_guest(payload, remote, **ip))


@pytest.mark.parametrize("kind", [6, 17])
@pytest.mark.parametrize("family", [4, 6])
def test_first_fragment_without_the_checksum_is_dropped(any_node: Node, family, kind):
    """Too small to hold what must be changed in it (RFC 8200 4.5, RFC 1858 say: refuse)."""
    _, alice, _, remote = ENDS[family]
    size = {6: 16, 17: 4}[kind]  # the checksum is behind byte 16, or 6
    data = Raw(bytes(range(1, size + 1)))
    if family == 4:
        payload, ip = data, {"id": 1, "flags": "MF", "proto": kind}
    else:
        payload, ip = IPv6ExtHdrFragment(id=1, m=1, nh=kind) / data, {}
    sent = from_guest(payload, remote, **ip)
    arriving = any_node.arriving(in_vpc(payload, remote, alice, **ip))

    assert_dropped(any_node.sends(sent), "tx short_frame", sent)
    assert_dropped(any_node.receives(arriving), "rx short_frame", arriving)


def test_fragment_header_behind_another_extension_header(any_node: Node):
    """Destination options may come before it; what is a later fragment still is one."""
    data = Raw(DATA[:200])
    later = IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=4, offset=100, nh=17) / data

    sent = any_node.sends(from_guest(later, REMOTE6))
    got = any_node.receives(any_node.arriving(in_vpc(later, REMOTE6, ALICE6)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(later, ALICE6, REMOTE6))
    assert got.frame == bytes(to_guest(later, REMOTE6))


def quote(family: int, src: str, dst: str, offset: int) -> Packet:
    """An ICMP error about a fragment of a UDP datagram."""
    data = Raw(DATA[:64])
    if family == 4:
        header = IP(src=src, dst=dst, id=5, frag=offset, flags="MF", proto=17)
        return icmp_error(bytes(header / data), kind=11, code=1)
    fragment = IPv6ExtHdrFragment(id=5, offset=offset, m=1, nh=17)
    return icmp6_error(bytes(IPv6(src=src, dst=dst) / fragment / data), kind=3, code=1)


@pytest.mark.parametrize("family", [4, 6])
def test_quoted_later_fragment_keeps_its_payload(any_node: Node, family):
    """There is no L4 header in it: its addresses change, its data do not; both ways."""
    guest, alice, _, remote = ENDS[family]

    sent = any_node.sends(from_guest(quote(family, remote, guest, 50), remote))
    frame = any_node.arriving(in_vpc(quote(family, alice, remote, 50), remote, alice))
    got = any_node.receives(frame)

    wanted = in_vpc(quote(family, remote, alice, 50), alice, remote)
    assert sent.frame == any_node.tunnelled(sent, wanted)
    assert got.frame == bytes(to_guest(quote(family, guest, remote, 50), remote))
    assert faults(sent.frame) == []
    assert faults(got.frame) == []
    any_node.completes("uplink_rx", frame)
