# SPDX-License-Identifier: Apache-2.0
"""What two hosts send each other to see that everything crosses, and what the wire shows of it."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable

from tests.nodes import Host, family_of, send_tcp
from tests.wire import ICMP, ICMP6, Capture, Tunnel, parse_ip, parse_tunnel

UDP_SEGMENT = 103


def exchange(source: Host, target: Host, sizes: Iterable[int]) -> list[int]:
    """Send datagrams of these sizes; the sizes that came, of those whose content is right."""
    family = family_of(target.address)
    server, client = target.udp(5000, family), source.udp(0, family)
    came = []
    for size in sizes:
        data = os.urandom(size)
        client.sendto(data, (target.address, 5000))
        if server.recv(65536) == data:
            came.append(size)
    server.close()
    return came


def stream(source: Host, target: Host, data: bytes) -> bool:
    """Whether a TCP connection takes all of it across."""
    return send_tcp(source, target, data) == hashlib.sha256(data).hexdigest()


def segmented(source: Host, target: Host, size: int = 1200) -> bool:
    """Whether one send of forty datagrams (UDP_SEGMENT) arrives as forty, in order, the last
    one short."""
    family = family_of(target.address)
    server, client = target.udp(5000, family), source.udp(0, family)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    data = os.urandom(39 * size + 7)
    client.sendto(data, (target.address, 5000))
    parts = [server.recv(65536) for _ in range(40)]
    server.close()
    return [len(part) for part in parts] == [size] * 39 + [7] and b"".join(parts) == data


def refused(source: Host, target: Host) -> bool:
    """Whether the ICMP error about a datagram to a closed port finds the socket that sent it."""
    client = source.udp(0, family_of(target.address))
    client.connect((target.address, 9))
    client.send(b"anybody?")
    try:
        client.recv(10)
    except ConnectionRefusedError:
        return True
    return False


def tunnels(wire: Capture) -> tuple[list[Tunnel], list[Tunnel]]:
    """The Geneve packets that left the node, and those that came."""
    ways: tuple[list[Tunnel], list[Tunnel]] = ([], [])
    for frame in wire.frames():
        if (found := parse_tunnel(frame.data)) is not None:
            ways[0 if frame.outgoing else 1].append(found)
    return ways


def is_echo(packet: bytes) -> bool:
    """Whether it is an echo request or its answer."""
    found = parse_ip(packet)
    kinds = {ICMP: (0, 8), ICMP6: (128, 129)}.get(found.protocol, ())
    return found.payload[0] in kinds
