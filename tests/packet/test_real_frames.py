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
from ipaddress import ip_address

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import RouteKind
from tests import packets, programs
from tests.nodes import eventually, inside, run, set_features, socket_in
from tests.packets import (
    ALICE,
    ALICE6,
    BLUE,
    GUEST,
    GUEST6,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Packet,
    Raw,
    from_guest,
    in_vpc,
    option,
    to_guest,
    vtep_of,
)
from tests.programs import ROUTER_MAC, UPLINK, WIRE_END, Node
from tests.wire import Capture

MTU = 9000
SIZES = (1400, 3601, 3999, 4000, 4095, 4096, 4097, 8191, 8192, 8193, 8800, 8801)
IN_PIECES = (0, 14, 34, 50, 64, 100, 1000)  # bytes that lie together; 0 is all
_VNET_HEADER, _NEEDS_CHECKSUM = 15, 1  # PACKET_VNET_HDR, VIRTIO_NET_HDR_F_NEEDS_CSUM


@pytest.fixture(scope="module", params=[packets.NODE, packets.NODE6], ids=["ipv4", "ipv6"])
def jumbo(request: pytest.FixtureRequest) -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    from pyroute2 import IPRoute

    with programs.loaded(slot_count=1, vtep=request.param, mtu=MTU) as node:
        peer = vtep_of(packets.PEER, node.family)
        node.attach(0, "alice", BLUE, ALICE, ALICE6)
        node.vtep(peer)
        for prefix in ("10.0.2.0/24", packets.six("10.0.2.0/24")):
            node.route(BLUE, prefix, RouteKind.REMOTE, peer)
        with namespaces.entering(node.netns), IPRoute() as ip:
            ip.neigh("add", dst=peer, lladdr=ROUTER_MAC, ifindex=node.uplink, state="permanent")
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
    hold_merged(wire.node, 20_000_000)
    sent = [bytes([number]) * 600 for number in range(1, 65)]
    wanted = {bytes(to_guest(UDP(sport=1, dport=2) / Raw(one), REMOTE)) for one in sent}
    inners = [in_vpc(UDP(sport=1, dport=2) / Raw(one), REMOTE, ALICE) for one in sent]
    frames = [bytes(wire.node.arriving(one, udp={"chksum": None})) for one in inners]
    before, heard, dropped = wire.refused(), [], 0
    try:
        for frame in frames:
            wire.carry(frame)
        assert eventually(lambda: wire.refused()["rx inner_length"] > before["rx inner_length"])
        heard += wire.heard(0.05)
    finally:
        hold_merged(wire.node, 0)
        set_features(wire.node.netns, UPLINK, "gro", "off", "rx-udp-gro-forwarding", "off")

    assert set(heard) <= wanted
    dropped = wire.refused()["rx inner_length"] - before["rx inner_length"]
    assert len(heard) + 2 * dropped <= len(sent)
    grown = {row for row, count in wire.refused().items() if count != before[row]}
    assert grown == {"rx inner_length"}


def hold_merged(node: Node, nanoseconds: int) -> None:
    """How long the uplink's GRO waits for more; 0: no longer than one poll."""
    settings = {"gro_flush_timeout": nanoseconds, "napi_defer_hard_irqs": min(nanoseconds, 1)}
    script = "; ".join(
        ["mount -t sysfs none /sys"]
        + [f"echo {value} > /sys/class/net/{UPLINK}/{name}" for name, value in settings.items()]
    )
    run(*inside(node.netns, "unshare", "--mount", "sh", "-ec", script))


# -- superpackets of a sandbox, as the wire shows them

SEGMENT, SEGMENTS = 1400, 5
TCP_SUPERPACKET = {4: 1, 6: 4}  # VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6
UDP_SUPERPACKET = 5  # VIRTIO_NET_HDR_GSO_UDP_L4


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_superpacket_becomes_right_packets_of_one_flow(wire: Wire, layer, six):
    """Cut up by the kernel behind us: headers repeated, lengths and checksums each segment's own.

    The source port, and the flow label, are those of a small packet of the flow.
    """
    node = wire.node
    text = data(SEGMENT * SEGMENTS - 7)
    guest, alice, remote = (GUEST6, ALICE6, REMOTE6) if six else (GUEST, ALICE, REMOTE)
    header = layer(sport=4321, dport=443, **({"flags": "PA", "seq": 100} if layer is TCP else {}))
    offloads = ("tx", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
    set_features(node.netns, UPLINK, *(word for name in offloads for word in (name, "off")))
    heard = Capture(node.netns, WIRE_END)
    try:
        with Sandbox(node) as sandbox:
            sandbox.send(bytes(from_guest(header / Raw(text[:50]), remote)))
            sandbox.send_superpacket(from_guest(header / Raw(text), remote), layer, guest, remote)
        frames: list[bytes] = []
        assert eventually(
            lambda: (
                frames.extend(f.data for f in heard.frames() if not f.outgoing)
                or len(frames) >= SEGMENTS + 1
            )
        )
    finally:
        heard.close()
        set_features(node.netns, UPLINK, *(word for name in offloads for word in (name, "on")))

    assert len(frames) == SEGMENTS + 1
    assert [packets.faults(frame) for frame in frames] == [[]] * (SEGMENTS + 1)
    assert len({programs.source_port(frame) for frame in frames}) == 1
    if node.family == 6:
        assert len({programs.flow_label(frame) for frame in frames}) == 1
    at = 14 + {4: 20, 6: 40}[node.family] + 16  # of the inner frame
    inners = [packets.Ether(frame[at:]) for frame in frames]
    assert {(inner.payload.src, inner.payload.dst) for inner in inners} == {(alice, remote)}
    assert b"".join(bytes(inner[layer].payload) for inner in inners[1:]) == text
    assert {len(inner[layer].payload) for inner in inners[1:-1]} == {SEGMENT}
    geneve = {frame[at - 8 : at] for frame in frames}
    assert geneve == {bytes.fromhex("00006558 00abcd00")}


class Sandbox:
    """Sends by the slot's eth0 what a kernel or a virtual machine would."""

    def __init__(self, node: Node) -> None:
        self._socket = socket_in(node.slot_netns(0), socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(263, _VNET_HEADER, 1)
        self._socket.bind(("eth0", 0))

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._socket.send(bytes(10) + frame)

    def send_superpacket(self, frame: Packet, layer: type, guest: str, remote: str) -> None:
        """Checksum left to the device: the field holds the pseudo-header's sum."""
        raw = bytearray(bytes(frame))
        l4 = len(raw) - len(bytes(frame[layer]))
        size, field, kind = (20, 16, 6) if layer is TCP else (8, 6, 17)
        ends = ip_address(guest).packed + ip_address(remote).packed
        pseudo = ends + struct.pack("!II", len(raw) - l4, kind)
        raw[l4 + field : l4 + field + 2] = ones_sum(pseudo).to_bytes(2, "big")
        family = ip_address(guest).version
        gso = TCP_SUPERPACKET[family] if layer is TCP else UDP_SUPERPACKET
        header = struct.pack("=BBHHHH", _NEEDS_CHECKSUM, gso, l4 + size, SEGMENT, l4, field)
        self._socket.send(header + raw)


def ones_sum(raw: bytes) -> int:
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
