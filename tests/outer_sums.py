# SPDX-License-Identifier: Apache-2.0
"""The outer UDP checksum of a frame, worked out without scapy and without the programs."""

from __future__ import annotations

from tests.programs import Node

OUTER_IP = {4: 20, 6: 40}


def udp_at(node: Node) -> int:
    return 14 + OUTER_IP[node.family]


def summed(data: bytes) -> int:
    total = sum(
        int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(node: Node, frame: bytes) -> bytes:
    """What the UDP checksum covers besides the datagram (RFC 768, RFC 8200 section 8.1)."""
    at = udp_at(node)
    length = frame[at + 4 : at + 6]
    if node.family == 4:
        return frame[26:34] + b"\0\x11" + length
    return frame[22:54] + b"\0\0" + length + b"\0\0\0\x11"


def with_checksum(node: Node, frame: bytes, checksum: int) -> bytes:
    at = udp_at(node) + 6
    return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2 :]


def right_checksum(node: Node, frame: bytes) -> int:
    blank = with_checksum(node, frame, 0)
    return 0xFFFF - summed(pseudo_header(node, blank) + blank[udp_at(node) :]) or 0xFFFF
