# SPDX-License-Identifier: Apache-2.0
"""The IP packet inside a frame: RFC 791 and RFC 8200.

What lies behind the packet's own length is padding. Sums are not checked here:
whoever the packet is for does that.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.state import Drop
from tests.model.sums import word

TCP, UDP = 6, 17
ICMP = {4: 1, 6: 58}
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION)
MAX_EXTENSIONS = 6  # of one packet: ours to choose

MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2

IPV4, IPV6, ARP, TEB = 0x0800, 0x86DD, 0x0806, 0x6558  # Ethernet types


@dataclass(slots=True)
class Packet:
    """An IP packet as it was read; offsets count from its own first byte."""

    family: int
    source: bytes
    destination: bytes
    protocol: int  # of what lies at `body`
    body: int
    length: int  # of the whole packet
    first: bool  # false: a later fragment, whose body is a piece of something
    whole: bool  # no fragment at all
    data: bytes  # the packet, and behind it padding


def read(data: bytes, family: int, end: int | None = None) -> Packet:
    """The packet at the beginning of `data`, which must end within the first `end` bytes.

    Raises Drop if this is no packet of that family, or not all of one.
    """
    room = len(data) if end is None else end
    return _read4(data, room) if family == 4 else _read6(data, room)


def _read4(data: bytes, room: int) -> Packet:
    if len(data) < 20:
        raise Drop("short_frame")
    header, length, fragment = (data[0] & 15) * 4, word(data, 2), word(data, 6)
    if data[0] >> 4 != 4 or header < 20 or length < header:
        raise Drop("bad_ip_header")
    if length > room:
        raise Drop("short_frame")
    return Packet(
        4,
        data[12:16],
        data[16:20],
        data[9],
        header,
        length,
        not fragment & 0x1FFF,
        not fragment & 0x3FFF,
        data,
    )


def _read6(data: bytes, room: int) -> Packet:
    if len(data) < 40:
        raise Drop("short_frame")
    length = 40 + word(data, 4)
    destination = data[24:40]
    # IPv4 in IPv6's clothes is never on a wire (RFC 4038 section 4.2).
    if data[0] >> 4 != 6 or destination[:12] == MAPPED:
        raise Drop("bad_ip_header")
    if length > room:
        raise Drop("short_frame")
    packet = Packet(6, data[8:24], destination, data[6], 40, length, True, True, data)
    _skip_extensions(packet)
    return packet


def behind_extensions(data: bytes, at: int, protocol: int, end: int) -> tuple[int, int] | None:
    """(offset, protocol) of what is behind the extension headers of an IPv6 packet in `data`.

    None where they cannot be skipped, or are a later fragment's.
    """
    packet = Packet(6, b"", b"", protocol, at, end, True, True, data)
    try:
        _skip_extensions(packet)
    except Drop:
        return None
    return (packet.body, packet.protocol) if packet.first else None


def _skip_extensions(packet: Packet) -> None:
    for _ in range(MAX_EXTENSIONS):
        if packet.protocol not in EXTENSIONS or not packet.first:
            return
        _skip_extension(packet)
    if packet.protocol in EXTENSIONS and packet.first:
        raise Drop("short_frame" if packet.body + 8 > packet.length else "extension_header")


def _skip_extension(packet: Packet) -> None:
    """Past one extension header (RFC 8200 section 4).

    A routing header that is not used up names another destination than we see.
    """
    data, at, kind = packet.data, packet.body, packet.protocol
    if at + 8 > packet.length:  # none is shorter
        raise Drop("short_frame")
    if kind == ROUTING and data[at + 3]:
        raise Drop("extension_header")
    size = 8
    if kind == FRAGMENT:
        field = word(data, at + 2)
        packet.first = not field & 0xFFF8
        packet.whole = packet.whole and not field & 0xFFF9
    else:
        size += data[at + 1] * 8
    if at + size > packet.length:
        raise Drop("short_frame")
    packet.protocol = data[at]
    packet.body = at + size


def is_unicast(address: bytes) -> bool:
    """Whether a route may lead there (RFC 1122 section 3.2.1.3, RFC 4291 sections 2.4 to 2.7)."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    if address[0] == 0xFF or (address[:15] == bytes(15) and address[15] < 2):
        return False
    return not (address[0] == 0xFE and address[1] & 0xC0 == 0x80)  # stays on its link
