# SPDX-License-Identifier: Apache-2.0
"""Headers as bytes. No scapy: a frame should take microseconds, and it may be wrong on purpose."""

from __future__ import annotations

import struct

from tests.model.sums import checksum, folded, ones, pseudo

FULL, ZERO, PARTIAL, WRONG = range(4)  # what a checksum field may hold

_IPV4 = struct.Struct("!BBHHHBBH4s4s").pack
_IPV6 = struct.Struct("!IHBB16s16s").pack
_UDP = struct.Struct("!HHHH").pack
_TCP = struct.Struct("!HHIIBBHHH").pack
_GENEVE = struct.Struct("!BBHI").pack


def ipv4(
    source: bytes,
    destination: bytes,
    protocol: int,
    body: bytes,
    *,
    tos: int = 0,
    ident: int = 0,
    fragment: int = 0,
    ttl: int = 64,
    options: bytes = b"",
    length: int | None = None,
    words: int | None = None,
    sum_mode: int = FULL,
) -> bytes:
    """An IPv4 packet; `length` and `words` (of the header) may be lies."""
    header = 20 + len(options)
    first = 0x40 | (header // 4 if words is None else words)
    total = header + len(body) if length is None else length
    head = _IPV4(first, tos, total & 0xFFFF, ident, fragment, ttl, protocol, 0, source, destination)
    head += options
    field = checksum(head) if sum_mode == FULL else 0 if sum_mode == ZERO else 0x1234
    return head[:10] + field.to_bytes(2, "big") + head[12:] + body


def ipv6(
    source: bytes,
    destination: bytes,
    protocol: int,
    body: bytes,
    *,
    tos: int = 0,
    label: int = 0,
    ttl: int = 64,
    length: int | None = None,
) -> bytes:
    """An IPv6 packet; `length` may be a lie."""
    total = len(body) if length is None else length
    return (
        _IPV6(0x60000000 | tos << 20 | label, total & 0xFFFF, protocol, ttl, source, destination)
        + body
    )


def _sum(head: bytes, segment: bytes, mode: int, protocol: int) -> int:
    if mode == ZERO:
        return 0
    if mode == PARTIAL:
        return ones(head)
    field = checksum(head + segment)
    if mode == WRONG:
        return (field + 0x0101) & 0xFFFF
    return 0xFFFF if protocol == 17 and not field else field


def udp(
    source: bytes,
    destination: bytes,
    ports: tuple[int, int],
    data: bytes,
    *,
    mode: int = FULL,
    length: int | None = None,
) -> bytes:
    """A datagram with the addresses its pseudo-header needs."""
    size = 8 + len(data) if length is None else length
    segment = _UDP(ports[0], ports[1], size & 0xFFFF, 0) + data
    field = _sum(pseudo(source, destination, 17, 8 + len(data)), segment, mode, 17)
    return segment[:6] + field.to_bytes(2, "big") + data


def udp_around(
    source: bytes, destination: bytes, ports: tuple[int, int], data: bytes, start: int, field: int
) -> bytes:
    """A datagram whose sum counts on a device: what is from `start` on in the data is to add up
    to the complement of `field`.
    """
    size = 8 + len(data)
    segment = _UDP(ports[0], ports[1], size & 0xFFFF, 0) + data
    covered = pseudo(source, destination, 17, size) + segment[: 8 + start]
    total = folded(ones(covered) + (field ^ 0xFFFF)) ^ 0xFFFF or 0xFFFF
    return segment[:6] + total.to_bytes(2, "big") + data


def tcp(
    source: bytes,
    destination: bytes,
    ports: tuple[int, int],
    data: bytes,
    *,
    flags: int = 0x10,
    options: bytes = b"",
    mode: int = FULL,
    words: int | None = None,
) -> bytes:
    """A segment; `words` (of the header) may be a lie."""
    offset = 5 + len(options) // 4 if words is None else words
    head = _TCP(ports[0], ports[1], 1, 2, offset << 4, flags, 0x7210, 0, 0)
    segment = head + options + data
    field = _sum(pseudo(source, destination, 6, len(segment)), segment, mode, 6)
    return segment[:16] + field.to_bytes(2, "big") + segment[18:]


def icmp4(kind: int, code: int, word: int, data: bytes, *, mode: int = FULL) -> bytes:
    """An ICMP message; `word` is its second one."""
    message = bytes([kind, code, 0, 0]) + word.to_bytes(4, "big") + data
    field = _sum(b"", message, mode, 1) if mode != PARTIAL else 0
    return message[:2] + field.to_bytes(2, "big") + message[4:]


def icmp6(
    source: bytes,
    destination: bytes,
    kind: int,
    code: int,
    data: bytes,
    *,
    mode: int = FULL,
) -> bytes:
    """An ICMPv6 message; `data` is everything behind its checksum."""
    message = bytes([kind, code, 0, 0]) + data
    field = _sum(pseudo(source, destination, 58, len(message)), message, mode, 58)
    return message[:2] + field.to_bytes(2, "big") + data


def geneve(
    vni: int,
    payload: bytes,
    *,
    options: bytes = b"",
    protocol: int = 0x6558,
    flags: int = 0,
    version: int = 0,
    reserved: int = 0,
    words: int | None = None,
) -> bytes:
    """A Geneve header and what it carries; `words` (of options) may be a lie."""
    size = len(options) // 4 if words is None else words
    return (
        _GENEVE(version << 6 | size & 0x3F, flags, protocol, (vni << 8 | reserved) & 0xFFFFFFFF)
        + options
        + payload
    )
