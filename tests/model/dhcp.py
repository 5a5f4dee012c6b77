# SPDX-License-Identifier: Apache-2.0
"""DHCP for IPv4 (RFC 2131, 2132) as the programs answer it.

There is one address to lease, the guest's (a native one has its own), so nothing has
to be remembered. An answer has one layout: an option that is not said is so many pads.
"""

from __future__ import annotations

from tests.model.packet import UDP, Packet
from tests.model.state import (
    REDIRECT,
    ZERO4,
    Binding,
    Config,
    Drop,
    Outcome,
    guest_address,
    is_native,
)
from tests.model.sums import checksum, ones, pseudo, put, word

SERVER_PORT, CLIENT_PORT = 67, 68
EVERYBODY = b"\xff" * 4
MAGIC = bytes.fromhex("63825363")
LEASE = 86400  # seconds
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
MOST_OPTIONS = 32  # of a message, pads included; ours to choose
LONGEST = 1536  # bytes of a datagram; ours to choose
LONGEST_CLIENT = 64  # bytes of an identifier; ours to choose

_BOOTP = 8  # offsets in the datagram
_NAMES = _BOOTP + 44
_MAGIC = _NAMES + 192
_OPTIONS = _MAGIC + 4


def is_question(config: Config, packet: Packet) -> bool:
    """UDP to the server's port, to everybody or to the gateway."""
    return (
        packet.family == 4
        and packet.protocol == UDP
        and packet.first
        and packet.destination in (EVERYBODY, config.gateway)
        and packet.body + 4 <= packet.length
        and word(packet.data, packet.body + 2) == SERVER_PORT
    )


def answer(config: Config, binding: Binding, packet: Packet) -> Outcome:
    """What goes back to the sandbox. Raises Drop."""
    data, guest = packet.data, guest_address(config, binding, 4)
    if packet.body != 20:
        raise Drop("dhcp_refused")
    if len(data) < 20 + _OPTIONS:
        raise Drop("short_frame")
    length = word(data, 24)
    if not packet.whole or not _OPTIONS <= length <= LONGEST or 20 + length > packet.length:
        raise Drop("dhcp_refused")
    if ones(data[:20]) != 0xFFFF:
        raise Drop("dhcp_refused")
    datagram = data[20 : 20 + length]
    head = pseudo(packet.source, packet.destination, UDP, length)
    field, pending = word(datagram, 6), ones(head)
    if field not in (0, pending) and ones(head + datagram) != 0xFFFF:
        raise Drop("dhcp_refused")
    bootp = datagram[_BOOTP:]
    if bootp[:3] != b"\x01\x01\x06" or bootp[24:28] != ZERO4:
        raise Drop("dhcp_refused")
    if bootp[28:34] != config.guest_mac or datagram[_MAGIC:_OPTIONS] != MAGIC:
        raise Drop("dhcp_refused")
    client = bootp[12:16]
    if packet.source not in (ZERO4, guest, client):
        raise Drop("spoofed_address")
    options = _options(datagram[_OPTIONS:])
    kind = _answer_to(config, guest, options, client)
    netmask = EVERYBODY if is_native(binding) else config.netmask
    message = _message(config, (guest, netmask), kind, bootp, options)

    everybody = kind == NAK or (client == ZERO4 and bool(bootp[10] & 0x80))
    to = EVERYBODY if everybody else guest
    mac = b"\xff" * 6 if everybody else config.guest_mac
    segment = bytearray(SERVER_PORT.to_bytes(2, "big") + CLIENT_PORT.to_bytes(2, "big"))
    segment += (8 + len(message)).to_bytes(2, "big") + b"\0\0" + message
    head = pseudo(config.gateway, to, UDP, len(segment))
    # Whoever leaves the sum to the device gets an answer of the same kind.
    total = ones(head) if field == pending else checksum(head + bytes(segment)) or 0xFFFF
    put(segment, 6, total)
    header = bytearray(b"\x45\0" + (20 + len(segment)).to_bytes(2, "big"))
    header += bytes([0, 0, 0x40, 0, 64, UDP, 0, 0]) + config.gateway + to
    put(header, 10, checksum(bytes(header)))
    out = mac + config.gateway_mac + b"\x08\x00" + bytes(header + segment)
    return Outcome(REDIRECT, out, events=("dhcp_answered",))


def _options(field: bytes) -> dict[int, bytes]:
    """What a message says; of an option that comes twice, the last. Raises Drop."""
    found: dict[int, bytes] = {}
    at = 0
    for _ in range(MOST_OPTIONS):
        if at >= len(field) or field[at] == 255:
            return found
        if field[at] == 0:
            at += 1
            continue
        end = at + 2 + field[at + 1] if at + 1 < len(field) else len(field) + 1
        if end > len(field):
            raise Drop("dhcp_refused")
        kind, value = field[at], field[at + 2 : end]
        wanted = {53: (1, 1), 50: (4, 4), 54: (4, 4), 61: (0, LONGEST_CLIENT)}.get(kind)
        if wanted and wanted[0] <= len(value) <= wanted[1]:
            found[kind] = value
        at = end
    raise Drop("dhcp_refused")


def _answer_to(config: Config, guest: bytes, options: dict[int, bytes], client: bytes) -> int:
    """RFC 2131 section 4.3: the type of the answer. Raises Drop where none is due.

    None is to a guest that has no address to give: a native one of IPv6 alone.
    """
    if guest == ZERO4:
        raise Drop("dhcp_refused")
    kind = options.get(53, b"\0")[0]
    server = options.get(54, ZERO4)
    if server in (ZERO4, config.gateway):
        if kind == DISCOVER:
            return OFFER
        if kind == INFORM and client == guest:
            return ACK
        address = options.get(50, ZERO4)
        if address == ZERO4:
            address = client
        if kind == REQUEST and address != ZERO4:
            return ACK if address == guest else NAK
    raise Drop("dhcp_refused")


def _message(
    config: Config,
    lease: tuple[bytes, bytes],
    kind: int,
    asked: bytes,
    options: dict[int, bytes],
) -> bytes:
    """RFC 2131 table 3. `lease`: address and netmask."""
    guest, netmask = lease
    leases = kind != NAK and options[53][0] != INFORM
    head = b"\x02\x01\x06\0" + asked[4:8] + b"\0\0" + asked[10:12]
    head += asked[12:16] if kind == ACK else ZERO4
    head += (guest if leases else ZERO4) + ZERO4 + ZERO4
    head += config.guest_mac + bytes(10) + bytes(192)

    said = bytes([53, 1, kind]) + _number(54, config.gateway)
    for code, seconds in ((51, LEASE), (58, LEASE // 2), (59, LEASE // 8 * 7)):
        said += _number(code, seconds.to_bytes(4, "big")) if leases else bytes(6)
    if kind == NAK:
        said += bytes(12 + 4 + 10)
    else:
        said += _number(1, netmask) + _number(3, config.gateway)
        said += bytes([26, 2]) + config.slot_mtu.to_bytes(2, "big")
        servers = b"".join(config.dns)
        said += (bytes([6, len(servers)]) + servers if servers else b"").ljust(10, b"\0")
    client = options.get(61, b"")
    said += (bytes([61, len(client)]) + client if client else b"").ljust(66, b"\0")
    return head + MAGIC + said + b"\xff"


def _number(code: int, value: bytes) -> bytes:
    return bytes([code, 4]) + value
