# SPDX-License-Identifier: Apache-2.0
"""The outer UDP checksum of what comes: taken if it is right or none, on both underlays.

RFC 8926 sections 3.3 and 4.3. Frames here are at most 3,700 bytes long, which is what
BPF_PROG_TEST_RUN takes; test_real_frames.py sends longer ones.
"""

from __future__ import annotations

import random

import pytest

from tests.outer_sums import pseudo_header, right_checksum, summed, udp_at, with_checksum
from tests.packets import (
    ALICE,
    REMOTE,
    TCP,
    UDP,
    Packet,
    faults,
    in_vpc,
    option,
    to_guest,
    vtep_of,
)
from tests.programs import (
    REDIRECT,
    Node,
    assert_dropped,
)

HELLO = UDP(sport=1, dport=2) / b"hello"
INNER = in_vpc(HELLO, REMOTE, ALICE)
SIZES = (0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 401, 402, 403, 404, 511, 512, 513, 1023, 1024, 1399)
SIZES += (1400, 1471, 1472, 1999, 2047, 2048, 2049, 3000, 3399, 3400)


def of_size(size: int) -> Packet:
    """An inner frame with so many bytes of data, none of which is zero."""
    data = bytes(1 + at % 255 for at in range(size))
    return in_vpc(UDP(sport=1, dport=2) / data, REMOTE, ALICE)


@pytest.mark.parametrize("size", SIZES)
def test_right_outer_checksum_is_taken(any_node: Node, size):
    """Nobody but us has verified it: this frame comes from no NIC."""
    frame = any_node.arriving(of_size(size), udp={"chksum": None})
    assert faults(bytes(frame)) == []

    run = any_node.receives(frame)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))
    assert run.counted == {}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", [1, 0x100, 0xFFFE])
def test_wrong_outer_checksum_is_dropped(any_node: Node, size, change):
    """By little and by much; one's complement sums are easily wrong by one."""
    sent = bytes(any_node.arriving(of_size(size)))
    wrong = (right_checksum(any_node, sent) + change - 1) % 0xFFFF + 1
    frame = with_checksum(any_node, sent, wrong)
    assert faults(frame) == ["outer udp checksum"]

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


@pytest.mark.parametrize("size", [0, 1, 512, 1399, 1400])
def test_a_changed_byte_anywhere_behind_the_addresses_is_noticed(any_node: Node, size):
    """From the UDP source port to the last byte, which is the odd one in half of the sizes."""
    sent = bytes(any_node.arriving(of_size(size), udp={"chksum": None}))
    start = udp_at(any_node)
    headers = [*range(start, start + 2), *range(start + 8 + 4, start + 8 + 8)]  # source port, VNI
    payload = range(start + 16, len(sent))
    places = headers + ([*payload] if size < 10 else random.Random(size).sample(payload, 40))

    for at in (*places, len(sent) - 1):
        frame = bytearray(sent)
        frame[at] ^= 0x11
        assert_dropped(any_node.receives(bytes(frame)), "rx outer_checksum", bytes(frame))


def test_addresses_are_covered_by_the_checksum(any_node: Node):
    """A frame that was meant for another pair of VTEPs, and lost its way."""
    elsewhere = vtep_of("192.0.2.3", any_node.family)
    meant = bytes(any_node.arriving(INNER, src=elsewhere))
    here = bytes(any_node.arriving(INNER))
    frame = with_checksum(any_node, here, right_checksum(any_node, meant))

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


@pytest.mark.parametrize("size", SIZES)
def test_no_outer_checksum_is_taken(any_node: Node, size):
    """Zero says that there is none; over IPv6 a configured VTEP may (RFC 6935 section 5)."""
    run = any_node.receives(any_node.arriving(of_size(size), udp={"chksum": 0}))

    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))


@pytest.mark.parametrize("size", SIZES)
def test_checksum_that_a_neighbour_left_to_its_nic_is_taken(any_node: Node, size):
    """On a veth or virtio link the field holds the pseudo-header's sum alone."""
    sent = bytes(any_node.arriving(of_size(size)))
    frame = with_checksum(any_node, sent, summed(pseudo_header(any_node, sent)))

    run = any_node.receives(frame)

    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))


def test_inverted_pseudo_header_sum_is_no_partial_checksum(any_node: Node):
    """What a NIC is handed is the sum, not its complement."""
    sent = bytes(any_node.arriving(INNER))
    frame = with_checksum(any_node, sent, 0xFFFF - summed(pseudo_header(any_node, sent)))

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


def test_checksum_that_comes_out_as_zero_is_all_ones(any_node: Node):
    """RFC 768: a sum of zero is sent as ones, because zero means none."""
    sent = bytes(any_node.arriving(INNER))
    # The source port makes up for the rest.
    at = udp_at(any_node)
    port = (50000 - 0 + right_checksum(any_node, sent) - 1) % 0xFFFF + 1
    frame = sent[:at] + port.to_bytes(2, "big") + sent[at + 2 :]
    assert right_checksum(any_node, frame) == 0xFFFF

    run = any_node.receives(with_checksum(any_node, frame, 0xFFFF))

    assert run.frame == bytes(to_guest(HELLO, REMOTE))


@pytest.mark.parametrize("length", [4, 20, 252])
def test_options_are_covered_by_the_checksum(any_node: Node, length):
    """One that a hop on the way has changed is noticed."""
    sent = option(1) * (length // 4) + bytes(INNER)
    good = bytes(any_node.arriving(sent, optionlen=length // 4, udp={"chksum": None}))
    bad = bytearray(good)
    bad[udp_at(any_node) + 16 + 1] ^= 1  # the class of the first option

    assert any_node.receives(good).frame == bytes(to_guest(HELLO, REMOTE))
    assert_dropped(any_node.receives(bytes(bad)), "rx outer_checksum", bytes(bad))


def test_checksum_that_the_nic_summed_is_not_taken_for_verified(any_node: Node):
    """CHECKSUM_COMPLETE is a sum over all bytes, and says nothing by itself."""
    sent = bytes(any_node.arriving(INNER))
    wrong = with_checksum(any_node, sent, 0x1234)

    run = any_node.completes("uplink_rx", wrong)

    assert_dropped(run, "rx outer_checksum", wrong)


def test_damage_inside_is_left_for_the_sandbox_to_notice(any_node: Node):
    """A wrong inner checksum stays wrong by as much: translation adds, and repairs nothing."""
    for chksum, payload in ((0x1234, TCP), (0x4321, UDP)):
        wrong = in_vpc(payload(sport=1, dport=2, chksum=chksum) / b"data", REMOTE, ALICE)

        run = any_node.receives(any_node.arriving(wrong))

        assert run.verdict == REDIRECT
        assert len(faults(run.frame)) == 1
