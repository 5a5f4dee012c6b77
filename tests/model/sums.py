# SPDX-License-Identifier: Apache-2.0
"""Internet checksums: RFC 1071, and RFC 1624 for what changes on the way."""

from __future__ import annotations


def ones(data: bytes) -> int:
    """The one's complement sum of 16-bit words; an odd last byte is a word's first half."""
    if len(data) & 1:
        data += b"\0"
    return folded(int.from_bytes(data, "big"))


def folded(total: int) -> int:
    """A sum brought into 16 bits. Carries come back in at the low end, so that
    only nothing but zeros adds up to 0."""
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: bytes) -> int:
    """The field that makes the whole add up to all ones."""
    return ones(data) ^ 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The pseudo-header, in a form that adds up alike for both families (RFC 768, 8200 8.1)."""
    return source + destination + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


def updated(field: int, before: bytes, after: bytes) -> int:
    """RFC 1624 equation 3: the field after words that it covers have changed.

    They are whole words. A sum that was wrong stays wrong by as much.
    """
    # The sum of inverted words is the inverted sum, folded alike.
    inverted = ones(bytes(byte ^ 0xFF for byte in before))
    return folded((field ^ 0xFFFF) + inverted + ones(after)) ^ 0xFFFF


def word(data: bytes, at: int) -> int:
    """Sixteen bits in network order."""
    return data[at] << 8 | data[at + 1]


def put(data: bytearray, at: int, value: int) -> None:
    """Store sixteen bits in network order."""
    data[at] = value >> 8
    data[at + 1] = value & 0xFF
