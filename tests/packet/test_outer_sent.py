# SPDX-License-Identifier: Apache-2.0
"""The outer IP and UDP headers that we send: nothing of the inner ones is copied, flows are told
apart by source port and label, and the whole fits the wire. Sections 3.3 and 4.4 of RFC 8926.
"""

from __future__ import annotations

import random

import pytest

from tests.outer_sums import udp_at
from tests.packets import (
    ALICE,
    ALICE6,
    BOB,
    BOB6,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    faults,
    from_guest,
    in_vpc,
)
from tests.programs import (
    REDIRECT,
    Node,
    flow_label,
    source_port,
)

HELLO = UDP(sport=1, dport=2) / b"hello"


@pytest.mark.parametrize("peer", [REMOTE, REMOTE6], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize(
    "ip", [{}, {"dscp": 46}, {"hops": 1}, {"hops": 255}, {"df": True}, {"label": 0x12345}], ids=str
)
def test_outer_header_is_our_own(any_node: Node, peer, ip):
    """TTL 64, DF, no DSCP, no identification: none of the inner packet's is copied (pipe model)."""
    six = ":" in peer
    names = {"dscp": ("tc", 2) if six else ("tos", 2), "hops": ("hlim" if six else "ttl", 0)}
    fields = {}
    for name, value in ip.items():
        if name in names:
            field, shift = names[name]
            fields[field] = value << shift
        elif name == "label" and six:
            fields["fl"] = value
        elif name == "df" and not six:
            fields["flags"] = "DF"

    run = any_node.sends(from_guest(HELLO, peer, **fields))

    inner = in_vpc(HELLO, ALICE6 if six else ALICE, peer, **fields)
    assert run.frame == any_node.tunnelled(run, inner)
    if any_node.family == 4:
        header = run.frame[14:34]
        length = (20 + 16 + len(inner)).to_bytes(2, "big")
        assert header[:10] == b"\x45\x00" + length + b"\x00\x00\x40\x00\x40\x11"
    else:
        header = run.frame[14:54]
        assert header[0] == 0x60
        assert header[1] >> 4 == 0
        assert header[4:8] == (16 + len(inner)).to_bytes(2, "big") + b"\x11\x40"
    assert faults(run.frame) == []


def test_udp_checksum_that_we_send_is_zero(any_node: Node):
    """A program can't have one made for the segments of a GSO frame."""
    at = udp_at(any_node) + 6

    for size in (0, 1, 1000):
        run = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(size)))
        assert run.frame[at : at + 2] == b"\0\0"


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_flows_are_spread_evenly(any_node: Node, six, layer):
    """Over a thousand flows no part of the range is much more likely than another.

    64 cells, so about 16 flows in each: chi-square has a mean of 63 and a
    deviation of 11, and 160 is beyond chance.
    """
    packet = from_guest(layer(sport=1024, dport=443), REMOTE6 if six else REMOTE)
    sent = bytes(packet)
    at = len(sent) - len(bytes(packet[layer]))
    frames = [
        any_node.made_of(sent[:at] + port.to_bytes(2, "big") + sent[at + 2 :])
        for port in range(1024, 2024)
    ]

    ports = [source_port(frame) for frame in frames]
    assert min(ports) >= 32768
    assert chi_square([(port - 32768) % 64 for port in ports]) < 160  # the low bits
    assert chi_square([(port - 32768) * 64 // 32768 for port in ports]) < 160  # the high ones
    assert len(set(ports)) > 960  # by chance about 985
    assert all(one_in_two(ports, bit) for bit in range(15))
    if any_node.family == 6:
        labels = [flow_label(frame) for frame in frames]
        assert chi_square([label % 64 for label in labels]) < 160
        assert chi_square([label >> 14 for label in labels]) < 160
        assert len(set(labels)) > 960
        assert all(one_in_two(labels, bit) for bit in range(20))


def one_in_two(numbers: list[int], bit: int) -> bool:
    """Whether the bit is set in half of a thousand numbers: five deviations of 16 aside."""
    return abs(sum(number >> bit & 1 for number in numbers) - 500) < 80


def chi_square(cells: list[int], count: int = 64) -> float:
    expected = len(cells) / count
    return sum((cells.count(cell) - expected) ** 2 / expected for cell in range(count))


def test_the_bound_is_one_that_a_skewed_spread_exceeds():
    """A port of which one bit never changes, or that takes half of the range twice as often."""
    dice = random.Random(1)
    even = [dice.randrange(64) for _ in range(1000)]
    stuck = [cell & ~1 for cell in even]
    skewed = [cell % 48 for cell in even]

    assert chi_square(even) < 160
    assert chi_square(stuck) > 160
    assert chi_square(skewed) > 160


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
def test_a_flow_keeps_its_port_and_label(any_node: Node, six):
    """Whatever the packet's size, flags, TTL and data."""
    dst = REMOTE6 if six else REMOTE
    ttl = "hlim" if six else "ttl"
    packets = [
        from_guest(TCP(sport=5000, dport=443, flags="S", options=[("MSS", 1400)]), dst),
        from_guest(TCP(sport=5000, dport=443, flags="PA", seq=9) / bytes(1200), dst),
        from_guest(TCP(sport=5000, dport=443, flags="R"), dst, **{ttl: 3}),
    ]

    runs = [any_node.sends(packet) for packet in packets * 2]

    assert len({source_port(run.frame) for run in runs}) == 1
    if any_node.family == 6:
        assert len({flow_label(run.frame) for run in runs}) == 1


def test_sandboxes_of_equal_guest_address_are_told_apart_by_their_ports_alone(any_node: Node):
    """The hash is of the packet as the guest sends it, so equal flows may share a path: no harm."""
    one = any_node.sends(from_guest(UDP(sport=7, dport=8), REMOTE), slot=0)
    other = any_node.sends(from_guest(UDP(sport=7, dport=8), REMOTE), slot=1)

    assert source_port(one.frame) == source_port(other.frame)
    assert one.frame != other.frame


LIMITS = {
    "interface": (REMOTE, 1500),
    "vtep": ("10.4.0.1", 1400),
    "kernel-route": ("10.6.0.1", 1300),
}


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize(("dst", "mtu"), LIMITS.values(), ids=LIMITS.keys())
def test_packet_that_just_fits_passes_and_one_more_byte_does_not(any_node: Node, dst, mtu, six):
    """The tunnel costs 50 bytes over IPv4 and 70 over IPv6, of outer packets that take `mtu`."""
    from tests.packets import six as beside

    dst = beside(dst) if six else dst
    most = mtu - any_node.overhead - (48 if six else 28)

    fits = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(most), dst))
    over = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(most + 1), dst))

    assert fits.verdict == REDIRECT
    assert fits.counted == {}
    assert len(fits.frame) == 14 + mtu
    assert over.counted["tx too_big"] == 1
    assert over.traffic == {}


@pytest.mark.parametrize("dst", [BOB, BOB6])
def test_packet_for_this_node_has_no_outer_mtu(any_node: Node, dst):
    """No tunnel, no overhead."""
    run = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(1452), dst))

    assert run.verdict == REDIRECT
    assert run.counted == {}
