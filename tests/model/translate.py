# SPDX-License-Identifier: Apache-2.0
"""One address of a packet for another, one to one and without state.

Every sum that covers the address changes by the difference (RFC 1624), so what
was right stays right and what was wrong stays wrong. An ICMP error quotes a
packet that went the other way: there the same address stands at the other end.
"""

from __future__ import annotations

from tests.model.packet import ICMP, TCP, UDP, Packet, behind_extensions
from tests.model.state import Drop
from tests.model.sums import put, updated, word

SOURCE, DESTINATION = "source", "destination"
_OTHER = {SOURCE: DESTINATION, DESTINATION: SOURCE}
_AT = {(4, SOURCE): 12, (4, DESTINATION): 16, (6, SOURCE): 8, (6, DESTINATION): 24}
_HEADER = {4: 20, 6: 40}
_SUMS = {4: {TCP: 16, UDP: 6}, 6: {TCP: 16, UDP: 6, ICMP[6]: 2}}


def is_error(family: int, kind: int) -> bool:
    """Whether an ICMP message quotes a packet: RFC 792; RFC 4443 section 2.1."""
    return kind in (3, 4, 5, 11, 12) if family == 4 else kind < 128


def translate(packet: Packet, end: str, to: bytes) -> bytes:
    """The packet, and what pads it, with another address at one end."""
    before = packet.source if end == SOURCE else packet.destination
    if before == to:
        return packet.data
    data = bytearray(packet.data)
    at = _AT[packet.family, end]
    if packet.first:
        _transport(packet, data, end, before, to)
    data[at : at + len(to)] = to
    if packet.family == 4:
        put(data, 10, updated(word(data, 10), before, to))
    return bytes(data)


def _transport(packet: Packet, data: bytearray, end: str, before: bytes, to: bytes) -> None:
    body, protocol = packet.body, packet.protocol
    if protocol == TCP:
        _change(data, body + 16, packet.length, before, to)
    elif protocol == UDP:
        _change(data, body + 6, packet.length, before, to, zero_is_none=True)
    elif protocol == ICMP[packet.family]:
        _icmp(packet, data, end, before, to)


def _change(
    data: bytearray,
    at: int,
    end: int,
    before: bytes,
    to: bytes,
    *,
    zero_is_none: bool = False,
) -> None:
    """Bring one checksum field up to date. Raises Drop if it is not there."""
    if at + 2 > end:
        raise Drop("short_frame")
    field = word(data, at)
    if zero_is_none and not field:
        return
    field = updated(field, before, to)
    put(data, at, 0xFFFF if zero_is_none and not field else field)


def _icmp(packet: Packet, data: bytearray, end: str, before: bytes, to: bytes) -> None:
    """An ICMP message, and what it quotes."""
    body, length = packet.body, packet.length
    if body + 1 > length:
        raise Drop("short_frame")
    if is_error(packet.family, data[body]):
        _quote(packet, data, _OTHER[end], before, to)
    if packet.family == 6:  # RFC 4443 section 2.3: the pseudo-header is covered
        _change(data, body + 2, length, before, to)


def _quote(packet: Packet, data: bytearray, end: str, before: bytes, to: bytes) -> None:
    """What an ICMP error quotes, as the other side must see it.

    At least the header must be there (RFC 792; RFC 4443 section 3). The quote
    may end anywhere behind it: a sum that is cut off needs no change.
    """
    family, quote = packet.family, packet.body + 8
    if quote + _HEADER[family] > packet.length:
        raise Drop("short_frame")
    header = (data[quote] & 15) * 4 if family == 4 else 40
    if data[quote] >> 4 != family or header < _HEADER[family]:
        raise Drop("bad_ip_header")
    at = quote + _AT[family, end]
    if data[at : at + len(before)] != before:
        return
    data[at : at + len(to)] = to
    sums = packet.body + 2
    if family == 4:  # the quoted header's own sum makes up for the address
        put(data, quote + 10, updated(word(data, quote + 10), before, to))
    place = _quoted_sum(packet, data, quote, header)
    if place is not None and place[0] + 2 <= packet.length:
        old = bytes(data[place[0] : place[0] + 2])
        if place[1] != UDP or old != b"\0\0":
            field = updated(word(data, place[0]), before, to)
            put(data, place[0], 0xFFFF if place[1] == UDP and not field else field)
            if family == 4:
                new = bytes(data[place[0] : place[0] + 2])
                put(data, sums, updated(word(data, sums), old, new))
            return  # over IPv6 this sum has made up for the address
    if family == 6:
        put(data, sums, updated(word(data, sums), before, to))


def _quoted_sum(
    packet: Packet, data: bytes, quote: int, header: int
) -> tuple[int, int] | None:
    """(where the quoted transport's sum is, protocol), if it has one that covers addresses.

    What is behind extension headers that cannot be skipped has none that anybody could see.
    """
    family = packet.family
    if family == 4 and word(data, quote + 6) & 0x1FFF:
        return None
    protocol, at = data[quote + (9 if family == 4 else 6)], quote + header
    if family == 6:
        behind = behind_extensions(data, at, protocol, packet.length)
        if behind is None:
            return None
        at, protocol = behind
    offset = _SUMS[family].get(protocol)
    return None if offset is None else (at + offset, protocol)
