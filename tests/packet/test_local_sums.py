# SPDX-License-Identifier: Apache-2.0
"""An outer UDP checksum that a tunnel device of this machine took around an unfinished inner one.

The kernel's lco_csum() counts on the inner checksum being made: what is from the inner
transport header on adds up to the complement of its checksum's field then, and that field
holds the inner pseudo-header's sum. On a veth nobody makes it, so the outer sum of the bytes
is not right, and yet it is all that can be known of them.
"""

from __future__ import annotations

import pytest

from tests.outer_sums import pseudo_header, right_checksum, summed, udp_at, with_checksum
from tests.packets import (
    ALICE,
    REMOTE,
    TCP,
    UDP,
    ICMPv6EchoRequest,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    Packet,
    in_vpc,
    six,
    with_options,
)
from tests.programs import REDIRECT, Node, assert_dropped

DATA = bytes(1 + at % 255 for at in range(301))
PLACE = {6: 16, 17: 6}  # of the checksum in the transport header
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
BODIES = pytest.mark.parametrize(
    "body",
    [TCP(sport=1, dport=2, flags="PA") / DATA, UDP(sport=1, dport=2) / DATA],
    ids=["tcp", "udp"],
)


def partial(payload: Packet, family: int, **ip: object) -> tuple[bytes, int, int]:
    """(an inner frame, where its transport header is, what its checksum's field holds).

    The field holds the pseudo-header's sum alone: the rest is left to a device.
    """
    src, dst = (six(REMOTE), six(ALICE)) if family == 6 else (REMOTE, ALICE)
    frame = bytearray(bytes(in_vpc(payload, src, dst, **ip)))
    transport = payload.getlayer(TCP) or payload.getlayer(UDP)
    body = bytes(transport)
    at = len(frame) - len(body)
    kind = 6 if transport.haslayer(TCP) else 17
    ends = frame[22:54] if family == 6 else frame[26:34]
    field = summed(bytes(ends) + kind.to_bytes(2, "big") + len(body).to_bytes(4, "big"))
    place = at + PLACE[kind]
    frame[place : place + 2] = field.to_bytes(2, "big")
    return bytes(frame), at, field


def around(node: Node, inner: bytes, at: int, field: int, options: bytes = b"") -> bytes:
    """The inner frame in the tunnel, with the outer sum that the kernel would take."""
    payload, fields = with_options(options, inner)
    sent = with_checksum(node, bytes(node.arriving(payload, **fields)), 0)
    start = udp_at(node)
    covered = sent[start : len(sent) - (len(inner) - at)]
    total = summed(pseudo_header(node, sent) + covered + (field ^ 0xFFFF).to_bytes(2, "big"))
    return with_checksum(node, sent, total ^ 0xFFFF or 0xFFFF)


@pytest.mark.parametrize("options", [0, 1, 63], ids=["no-options", "one", "all"])
@BODIES
@FAMILIES
def test_sum_around_a_partial_one_is_taken(any_node: Node, family, body, options):
    """The sandbox gets the packet as it is; its kernel knows what is still to be made."""
    inner, at, field = partial(body, family)
    frame = around(any_node, inner, at, field, b"\x12\x34\x01\x00" * options)
    assert right_checksum(any_node, frame) != int.from_bytes(
        frame[udp_at(any_node) + 6 : udp_at(any_node) + 8], "big"
    )

    run = any_node.receives(frame)

    assert (run.verdict, run.counted) == (REDIRECT, {})
    assert run.traffic == {"slot-0 rx_remote": (1, len(inner) - 14)}
    assert run.frame[-len(DATA) :] == DATA


@FAMILIES
def test_it_may_be_behind_more_headers(any_node: Node, family):
    """IPv4 options, extensions of IPv6."""
    body: Packet = UDP(sport=1, dport=2) / DATA
    if family == 6:
        inner, at, field = partial(IPv6ExtHdrDestOpt() / body, 6)
    else:
        inner, at, field = partial(body, 4, options=b"\x94\x04\x00\x00" * 3)

    run = any_node.receives(around(any_node, inner, at, field))

    assert (run.verdict, run.counted) == (REDIRECT, {})


@BODIES
@FAMILIES
def test_what_the_sum_does_cover_is_checked(any_node: Node, family, body):
    """Every byte up to the inner transport header, and the field that stands for the rest."""
    inner, at, field = partial(body, family)
    frame = around(any_node, inner, at, field)
    start = udp_at(any_node)
    headers = len(frame) - (len(inner) - at)
    checksum = headers + PLACE[6 if body.haslayer(TCP) else 17]
    # The ports and lengths, Geneve's reserved byte, the inner MACs and the inner IP header.
    for place in (start, start + 15, start + 16, start + 27, headers - 1, headers - 9, checksum):
        damaged = bytearray(frame)
        damaged[place] ^= 0x11
        run = any_node.receives(bytes(damaged))
        assert_dropped(run, "rx outer_checksum", bytes(damaged))


@pytest.mark.parametrize("difference", [1, 0x100, 0xFFFE])
@FAMILIES
def test_wrong_sum_around_a_partial_one_is_dropped(any_node: Node, family, difference):
    """By little and by much."""
    frame = around(any_node, *partial(UDP(sport=1, dport=2) / DATA, family))
    at = udp_at(any_node) + 6
    field = int.from_bytes(frame[at : at + 2], "big")
    wrong = with_checksum(any_node, frame, (field + difference - 1) % 0xFFFF + 1)

    assert_dropped(any_node.receives(wrong), "rx outer_checksum", wrong)


def test_finished_inner_checksum_is_no_reason(any_node: Node):
    """The outer sum must then be that of all bytes."""
    inner = bytes(in_vpc(UDP(sport=1, dport=2) / DATA, REMOTE, ALICE))
    _, at, _ = partial(UDP(sport=1, dport=2) / DATA, 4)
    frame = around(any_node, inner, at, int.from_bytes(inner[at + 6 : at + 8], "big"))
    # That of the bytes is right by chance for a finished one: the rest does add up so.
    wrong = bytearray(frame)
    wrong[-1] ^= 1

    assert_dropped(any_node.receives(bytes(wrong)), "rx outer_checksum", bytes(wrong))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(ICMPv6EchoRequest() / DATA, id="icmpv6"),
        pytest.param(IPv6ExtHdrFragment(offset=3, nh=17) / DATA, id="later-fragment"),
    ],
)
def test_what_no_device_would_finish_is_no_reason(any_node: Node, payload: Packet):
    """Only TCP and UDP are left to one, and never a fragment."""
    inner = bytearray(bytes(in_vpc(payload, six(REMOTE), six(ALICE))))
    at = 54 if payload.haslayer(ICMPv6EchoRequest) else 62
    field = int.from_bytes(inner[at + 6 : at + 8], "big")
    frame = around(any_node, bytes(inner), at, field ^ 0x5A5A)

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)
