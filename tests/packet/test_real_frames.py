# SPDX-License-Identifier: Apache-2.0
"""What BPF_PROG_TEST_RUN cannot carry, sent for real: long frames, frames in pieces of memory,
frames of which a NIC has verified something.

From the far end of a veth uplink of 9,000 bytes, by a packet socket whose
virtio-net header says how much of the frame is to lie together.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from geneve_ebpf.host import namespaces
from tests import packets, programs
from tests.nodes import set_features, socket_in
from tests.packets import (
    ALICE,
    ALICE6,
    BLUE,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Packet,
    Raw,
    in_vpc,
    option,
    to_guest,
    vtep_of,
)
from tests.programs import UPLINK, WIRE_END, Node
from tests.wire import Capture

MTU = 9000
SIZES = (1400, 3601, 3999, 4000, 4095, 4096, 4097, 8191, 8192, 8193, 8800, 8801)
IN_PIECES = (0, 14, 34, 50, 64, 100, 1000)  # bytes that lie together; 0 is all
_VNET_HEADER, _NEEDS_CHECKSUM = 15, 1  # PACKET_VNET_HDR, VIRTIO_NET_HDR_F_NEEDS_CSUM


@pytest.fixture(scope="module", params=[packets.NODE, packets.NODE6], ids=["ipv4", "ipv6"])
def jumbo(request: pytest.FixtureRequest) -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    with programs.loaded(slot_count=1, vtep=request.param, mtu=MTU) as node:
        node.attach(0, "alice", BLUE, ALICE, ALICE6)
        node.vtep(vtep_of(packets.PEER, node.family))
        yield node


class Wire:
    """The far end of the uplink, and eth0 of the one slot."""

    def __init__(self, node: Node) -> None:
        self.node = node
        with namespaces.entering(node.netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(263, _VNET_HEADER, 1)
        self._socket.bind((WIRE_END, 0))
        self.sandbox = Capture(node.slot_netns(0), "eth0")

    def close(self) -> None:
        self._socket.close()
        self.sandbox.close()

    def carry(self, frame: bytes, *, together: int = 0, checksum_at: int = 0) -> None:
        """Put a frame on the uplink; `checksum_at`: where a checksum is left to the NIC."""
        flags = _NEEDS_CHECKSUM if checksum_at else 0
        start = checksum_at - 6 if checksum_at else 0
        header = struct.pack("=BBHHHH", flags, 0, together, 0, start, 6 if start else 0)
        self._socket.send(header + frame)

    def refused(self) -> dict[str, int]:
        """What was dropped of what came by the uplink; the sandbox's own answers are not in it."""
        rows = self.node.counted().items()
        return {row: count for row, (count, _) in rows if row.startswith("rx ")}

    def delivered(self, frame: bytes, **how: int) -> bytes | None:
        """What eth0 gets of it; None if the program counts a drop instead."""
        before = self.refused()
        self.sandbox.frames()
        self.carry(frame, **how)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for found in self.heard(0.02):
                return found
            if self.refused() != before:
                return None
        raise AssertionError("neither delivered nor counted")

    def heard(self, seconds: float) -> list[bytes]:
        """What came to eth0 and not from it."""
        return [one.data for one in self.sandbox.wait(seconds) if not one.outgoing]

    def dropped(self, frame: bytes, **how: int) -> dict[str, int]:
        """The rows that grew, by how much."""
        before = self.refused()
        assert self.delivered(frame, **how) is None
        return {
            row: count - before[row]
            for row, count in self.refused().items()
            if count != before[row]
        }


@pytest.fixture
def wire(jumbo: Node) -> Iterator[Wire]:
    made = Wire(jumbo)
    yield made
    made.close()


def data(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def inner(size: int, layer: Packet | None = None, six: bool = False) -> Packet:
    ends = (REMOTE6, ALICE6) if six else (REMOTE, ALICE)
    return in_vpc((layer or UDP(sport=1, dport=2)) / Raw(data(size)), *ends)


def udp_at(node: Node) -> int:
    return 14 + {4: 20, 6: 40}[node.family]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize("size", SIZES)
def test_outer_checksum_of_a_long_packet_is_validated(wire: Wire, size, six):
    """Right it is delivered whole; with one bit changed anywhere it is dropped."""
    payload = UDP(sport=1, dport=2) / Raw(data(size))
    frame = bytes(wire.node.arriving(inner(size, six=six), udp={"chksum": None}))
    wanted = bytes(to_guest(payload, REMOTE6 if six else REMOTE))

    assert wire.delivered(frame) == wanted
    start = udp_at(wire.node) + 16
    for at in (start, (start + len(frame)) // 2, len(frame) - 2, len(frame) - 1):
        wrong = bytearray(frame)
        wrong[at] ^= 1
        assert wire.dropped(bytes(wrong)) == {"rx outer_checksum": 1}, at


@pytest.mark.parametrize("together", IN_PIECES)
@pytest.mark.parametrize("size", [1401, 8800])
def test_frame_in_pieces_of_memory_is_read_alike(wire: Wire, size, together):
    """An AF_PACKET ring or a NIC that splits headers makes such frames."""
    payload = UDP(sport=1, dport=2) / Raw(data(size))
    frame = bytes(wire.node.arriving(inner(size), udp={"chksum": None}))
    wrong = bytearray(frame)
    wrong[-1] ^= 1

    assert wire.delivered(frame, together=together) == bytes(to_guest(payload, REMOTE))
    assert wire.dropped(bytes(wrong), together=together) == {"rx outer_checksum": 1}


@pytest.mark.parametrize("together", IN_PIECES)
@pytest.mark.parametrize("length", [4, 60, 252])
def test_options_in_pieces_of_memory_are_read_alike(wire: Wire, length, together):
    """The walk must not depend on where the bytes lie."""
    payload = UDP(sport=1, dport=2) / Raw(data(5000))
    options = option(1) * (length // 4 - 1)
    fields = {"optionlen": length // 4}
    fine = bytes(wire.node.arriving(options + option(2) + bytes(inner(5000)), **fields))
    critical = bytes(wire.node.arriving(options + option(0x80) + bytes(inner(5000)), **fields))
    overrun = bytes(
        wire.node.arriving(options + b"\xff\xff\x02\x09" + bytes(inner(5000)), **fields)
    )

    assert wire.delivered(fine, together=together) == bytes(to_guest(payload, REMOTE))
    assert wire.dropped(critical, together=together) == {"rx geneve_critical": 1}
    assert wire.dropped(overrun, together=together) == {"rx geneve_options": 1}


@pytest.mark.parametrize("size", [1, 1400, 8800, 8801])
def test_checksum_left_to_the_nic_is_taken(wire: Wire, size):
    """CHECKSUM_PARTIAL over the outer UDP header, as a tunnel of the same machine sends it."""
    at = udp_at(wire.node)
    payload = UDP(sport=1, dport=2) / Raw(data(size))
    frame = bytearray(bytes(wire.node.arriving(inner(size))))
    ends = frame[26:34] if wire.node.family == 4 else frame[22:54]
    pseudo = bytes(ends) + b"\0\x11" + bytes(frame[at + 4 : at + 6])
    frame[at + 6 : at + 8] = ones_sum(pseudo).to_bytes(2, "big")

    got = wire.delivered(bytes(frame), checksum_at=at + 6)

    assert got == bytes(to_guest(payload, REMOTE))


@pytest.mark.parametrize("size", [8800, 8801])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_long_packet_without_outer_checksum_arrives_whole(wire: Wire, layer, size):
    """Zero is none; the inner checksum is right after translation, as the receiver would see."""
    payload = layer(sport=1, dport=2) / Raw(data(size))

    got = wire.delivered(bytes(wire.node.arriving(inner(size, layer(sport=1, dport=2)))))

    assert got == bytes(to_guest(payload, REMOTE))
    assert packets.faults(got) == []


def test_what_was_verified_is_the_outer_checksum_alone(wire: Wire):
    """GRO on the uplink has found the outer checksum right; a wrong inner one must not pass for it.

    The sandbox's own stack says: it verifies what it is not told was verified.
    """
    set_features(wire.node.netns, WIRE_END, "tso", "off")  # or veth takes its frames past GRO
    set_features(wire.node.netns, UPLINK, "gro", "on")
    listener = socket_in(wire.node.slot_netns(0), socket.AF_INET, socket.SOCK_DGRAM)
    try:
        listener.bind(("", 5000))
        listener.settimeout(5)
        for text, chksum in ((b"wrong", 0x1234), (b"right", None)):
            payload = UDP(sport=1, dport=5000, chksum=chksum) / Raw(text)
            frame = wire.node.arriving(in_vpc(payload, REMOTE, ALICE), udp={"chksum": None})
            assert wire.delivered(bytes(frame)) is not None  # into the sandbox, both of them

        assert listener.recv(100) == b"right"
    finally:
        listener.close()
        set_features(wire.node.netns, UPLINK, "gro", "off")
        set_features(wire.node.netns, WIRE_END, "tso", "on")


def test_merging_by_outer_udp_alone_delivers_nothing_wrong(wire: Wire):
    """rx-udp-gro-forwarding glues datagrams together without a look inside.

    Each is delivered as it was, or counted as dropped with those it was glued to.
    """
    set_features(wire.node.netns, UPLINK, "gro", "on", "rx-udp-gro-forwarding", "on")
    sent = [bytes([number]) * 600 for number in range(1, 65)]
    wanted = {bytes(to_guest(UDP(sport=1, dport=2) / Raw(one), REMOTE)) for one in sent}
    frames = [
        bytes(wire.node.arriving(in_vpc(UDP(sport=1, dport=2) / Raw(one), REMOTE, ALICE)))
        for one in sent
    ]
    before, heard, dropped = wire.refused(), [], 0
    try:
        for frame in frames:
            wire.carry(frame)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            heard += wire.heard(0.05)
            dropped = wire.refused()["rx inner_length"] - before["rx inner_length"]
            if len(heard) + 2 * dropped >= len(sent):
                break
    finally:
        set_features(wire.node.netns, UPLINK, "gro", "off", "rx-udp-gro-forwarding", "off")

    assert set(heard) <= wanted
    assert len(heard) == len(sent) or dropped
    grown = {row for row, count in wire.refused().items() if count != before[row]}
    assert grown <= {"rx inner_length"}


def ones_sum(raw: bytes) -> int:
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
