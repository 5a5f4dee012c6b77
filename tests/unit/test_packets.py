# SPDX-License-Identifier: Apache-2.0
"""The frame checker that other tests trust: it must find what is wrong, and only that."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    GENEVE,
    ICMP,
    IP,
    REMOTE,
    TCP,
    UDP,
    Raw,
    faults,
    icmp_error,
    in_vpc,
    on_wire,
)

INNER = {
    "tcp": (TCP(sport=1, dport=2) / b"odd", "inner tcp checksum"),
    "udp": (UDP(sport=1, dport=2) / b"data", "inner udp checksum"),
    "icmp": (ICMP() / b"data", "inner icmp checksum"),
    "quote": (icmp_error(bytes(IP(src=REMOTE, dst=ALICE) / TCP())), "inner icmp checksum"),
}


@pytest.mark.parametrize(("payload", "_"), INNER.values(), ids=INNER.keys())
def test_a_frame_of_scapys_has_no_fault(payload, _):
    """Two implementations agree."""
    assert faults(bytes(on_wire(in_vpc(payload, ALICE, REMOTE)))) == []


@pytest.mark.parametrize(("payload", "fault"), INNER.values(), ids=INNER.keys())
def test_a_flipped_bit_behind_the_inner_header_is_found(payload, fault):
    """Each of them, one at a time; in the quoted header its own checksum notices too."""
    frame = bytes(on_wire(in_vpc(payload, ALICE, REMOTE)))
    start = 14 + 20 + 8 + 8 + 14 + 20

    for at in range(start + 8, len(frame)):
        damaged = bytearray(frame)
        damaged[at] ^= 0x10
        assert fault in faults(bytes(damaged)), at


@pytest.mark.parametrize(("start", "fault"), [(14, "outer"), (64, "inner")])
def test_a_flipped_bit_in_an_ip_header_is_found(start, fault):
    """By its checksum at the latest."""
    frame = bytes(on_wire(in_vpc(UDP(sport=1, dport=2) / b"data", ALICE, REMOTE)))

    for at in range(start, start + 20):
        damaged = bytearray(frame)
        damaged[at] ^= 0x10
        assert any(found.startswith(f"{fault} ip") for found in faults(bytes(damaged))), at


def test_a_wrong_outer_checksum_is_found_and_none_is_none():
    """Zero is allowed over IPv4; anything else must be right."""
    inner = in_vpc(UDP(), ALICE, REMOTE)

    assert faults(bytes(on_wire(inner, udp={"chksum": None}))) == []
    assert faults(bytes(on_wire(inner, udp={"chksum": 0x1234}))) == ["outer udp checksum"]


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
