# SPDX-License-Identifier: Apache-2.0
"""DHCP for IPv6 (RFC 8415) as the programs answer it.

There is one address, the guest's, and so one association (IA_NA) is answered, the
last that a message has. Parts stand in an answer in one order: the server's name,
the association, a status, rapid commit or preference, DNS servers, the client's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.dhcp import LEASE, LONGEST, MOST_OPTIONS
from tests.model.nd import is_link_local
from tests.model.packet import UDP, Packet
from tests.model.state import REDIRECT, ZERO6, Binding, Config, Drop, Outcome, guest_address
from tests.model.sums import checksum, ones, pseudo, put, word

SERVER_PORT, CLIENT_PORT = 547, 546
SERVERS = bytes.fromhex("ff020000000000000000000000010002")  # of the link, and relays
SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE = range(1, 9)
INFORMATION = 11
CLIENT, SERVER, IA, ADDRESS, PREFERENCE, STATUS, RAPID, DNS = 1, 2, 3, 5, 7, 13, 14, 23
SUCCESS, NOT_ON_LINK = 0, 4
LONGEST_CLIENT = 130  # section 11.1
HOP_LIMIT = 64
DUID = bytes.fromhex("0004 74c36e29 44c2 4e8b a41d 64da842c435b")  # ours: RFC 6355


def is_question(packet: Packet) -> bool:
    """UDP to the servers' port, to all servers of the link (section 16: nowhere else)."""
    return (
        packet.family == 6
        and packet.protocol == UDP
        and packet.first
        and packet.destination == SERVERS
        and packet.body + 4 <= packet.length
        and word(packet.data, packet.body + 2) == SERVER_PORT
    )


@dataclass(slots=True)
class _Message:
    """What decides of a message: of options that come twice, the last."""

    kind: int
    options: dict[int, bytes] = field(default_factory=dict)
    asked: bytes | None = None  # address in the last association

    @property
    def names_us(self) -> bool:
        return self.options.get(SERVER) == DUID


def answer(config: Config, binding: Binding, packet: Packet) -> Outcome:
    """What goes back to the sandbox. Raises Drop."""
    data, own = packet.data, guest_address(config, binding, 6)
    if packet.body != 40:
        raise Drop("dhcp6_refused")
    if len(data) < 40 + 12:
        raise Drop("short_frame")
    length = word(data, 44)
    if not 12 <= length <= LONGEST or 40 + length > packet.length:
        raise Drop("dhcp6_refused")
    datagram = data[40 : 40 + length]
    head = pseudo(packet.source, packet.destination, UDP, length)
    total, pending = word(datagram, 6), ones(head)
    if not total or (total != pending and ones(head + datagram) != 0xFFFF):
        raise Drop("dhcp6_refused")
    source = packet.source
    if not is_link_local(source) and (own == ZERO6 or source != own):
        raise Drop("spoofed_address")
    message = _read(datagram[8], datagram[12:])
    said = _parts(config, own, message)

    kind = REPLY
    if message.kind == SOLICIT and RAPID not in message.options:
        kind = ADVERTISE
    segment = bytearray(SERVER_PORT.to_bytes(2, "big") + CLIENT_PORT.to_bytes(2, "big"))
    segment += (12 + len(said)).to_bytes(2, "big") + bytes(2)
    segment += bytes([kind]) + datagram[9:12] + said
    head = pseudo(config.gateway6, source, UDP, len(segment))
    # Whoever leaves the sum to the device gets an answer of the same kind.
    done = ones(head) if total == pending else checksum(head + bytes(segment)) or 0xFFFF
    put(segment, 6, done)
    header = b"\x60\0\0\0" + len(segment).to_bytes(2, "big") + bytes([UDP, HOP_LIMIT])
    header += config.gateway6 + source
    out = config.guest_mac + config.gateway_mac + b"\x86\xdd" + header + bytes(segment)
    return Outcome(REDIRECT, out, events=("dhcp6_answered",))


def _read(kind: int, body: bytes) -> _Message:
    """The options, and those in associations, of which each must stay within what it is in.

    Raises Drop where they do not, or are too many.
    """
    message = _Message(kind)
    at, inside, count = 0, 0, 0  # `inside`: the end of an association
    while at < len(body) and count < MOST_OPTIONS:
        count += 1
        limit = inside if at < inside else len(body)
        end = at + 4 + word(body, at + 2) if at + 4 <= len(body) else limit + 1
        if end > limit:
            raise Drop("dhcp6_refused")
        code, value = word(body, at), body[at + 4 : end]
        if at < inside:
            if code == ADDRESS and len(value) >= 24:
                message.asked = value[:16]
        elif code == IA:
            if len(value) < 12:
                raise Drop("dhcp6_refused")
            message.options[IA], message.asked, inside = value[:4], None, end
            end = at + 16
        else:
            message.options[code] = value
        at = end
    if at != len(body):
        raise Drop("dhcp6_refused")
    return message


def _valid(message: _Message) -> bool:
    """Sections 16.2 to 16.12, and that there is something to answer."""
    kind, options = message.kind, message.options
    if kind == INFORMATION:
        return IA not in options and (SERVER not in options or message.names_us)
    if CLIENT not in options:
        return False
    if kind in (SOLICIT, REBIND):
        return SERVER not in options and IA in options
    if kind == CONFIRM:
        return SERVER not in options and message.asked is not None
    if kind in (REQUEST, RENEW):
        return message.names_us and IA in options
    return kind == RELEASE and message.names_us


def _parts(config: Config, own: bytes, message: _Message) -> bytes:
    """The options of the answer. Raises Drop where none is due."""
    kind, options = message.kind, message.options
    if not _valid(message):
        raise Drop("dhcp6_refused")
    client = options.get(CLIENT)
    if client is not None and not 1 <= len(client) <= LONGEST_CLIENT:
        raise Drop("dhcp6_refused")
    leases = kind in (SOLICIT, REQUEST, RENEW, REBIND)
    if leases and own == ZERO6:
        raise Drop("dhcp6_refused")
    another = message.asked is not None and (own == ZERO6 or message.asked != own)

    said = _option(SERVER, DUID)
    if leases:
        said += _association(own, message, another=another)
    elif kind != INFORMATION:
        status = NOT_ON_LINK if kind == CONFIRM and another else SUCCESS
        said += _option(STATUS, status.to_bytes(2, "big"))
    if kind == SOLICIT:
        said += _option(RAPID, b"") if RAPID in options else _option(PREFERENCE, b"\xff")
    if config.dns6 and kind not in (CONFIRM, RELEASE):
        said += _option(DNS, b"".join(config.dns6))
    if client is not None:
        said += _option(CLIENT, client)
    return said


def _association(own: bytes, message: _Message, *, another: bool) -> bytes:
    """Sections 18.3.1 to 18.3.5: its address; an address that is not its any more for 0 seconds."""
    identity = message.options[IA]
    if another and message.kind == REQUEST:
        status = _option(STATUS, NOT_ON_LINK.to_bytes(2, "big"))
        return _option(IA, identity + bytes(8) + status)
    times = _seconds(LEASE // 2) + _seconds(LEASE // 8 * 7)
    held = _option(ADDRESS, own + _seconds(LEASE) * 2)
    if another and message.kind in (RENEW, REBIND) and message.asked:
        held += _option(ADDRESS, message.asked + bytes(8))
    return _option(IA, identity + times + held)


def _option(code: int, value: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def _seconds(value: int) -> bytes:
    return value.to_bytes(4, "big")
