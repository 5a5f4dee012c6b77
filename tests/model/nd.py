# SPDX-License-Identifier: Apache-2.0
"""Neighbour discovery (RFC 4861) as the programs answer it, and group memberships.

Only what asks for the gateway is answered, and nothing that looks for a
duplicate (RFC 4862 section 5.4): a solicitation from :: or for the asker's own
address.
"""

from __future__ import annotations

from tests.model.packet import ICMP, Packet
from tests.model.state import REDIRECT as TO_INTERFACE
from tests.model.state import ZERO6, Binding, Config, Drop, Outcome, guest_address
from tests.model.sums import checksum, ones, pseudo

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
REDIRECT = 137
MEMBERSHIP = (130, 131, 132, 143)  # MLD: RFC 2710, RFC 3810
IGMP = 2

SOURCE_MAC, TARGET_MAC, MTU = 1, 2, 5  # options
MOST_OPTIONS = 32
HOP_LIMIT = 255
ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
ROUTER_LIFETIME = 1800
ROUTER_HOP_LIMIT = 64
MANAGED, OTHER = 0x80, 0x40

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_ROUTERS = bytes.fromhex("ff020000000000000000000000000002")
_SOLICITED_GROUP = bytes.fromhex("ff0200000000000000000001ff")


def is_membership(packet: Packet) -> bool:
    """Who listens to which group: said to routers of the link, of which there is none."""
    if packet.family == 4:
        return packet.protocol == IGMP
    return _message(packet) in MEMBERSHIP


def is_discovery(packet: Packet) -> bool:
    """Whether it is neighbour discovery at all."""
    return packet.family == 6 and ROUTER_SOLICITATION <= _message(packet) <= REDIRECT


def _message(packet: Packet) -> int:
    """The ICMPv6 type, or 0."""
    here = packet.first and packet.body < packet.length
    return packet.data[packet.body] if here and packet.protocol == ICMP[6] else 0


def group_of(address: bytes) -> bytes:
    """RFC 4291 section 2.7.1."""
    return _SOLICITED_GROUP + address[13:]


def is_link_local(address: bytes) -> bool:
    """fe80::/10"""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def read_question(packet: Packet) -> bytes:
    """The message of a solicitation that may be answered. Raises Drop.

    Valid by sections 6.1.1 and 7.1.1, straight behind the IPv6 header (nobody
    needs more for this), and no search for a duplicate.
    """
    if packet.body != 40:
        raise Drop("nd_refused")
    message = packet.data[40 : packet.length]
    if len(message) < 8:
        raise Drop("short_frame")
    head = pseudo(packet.source, packet.destination, ICMP[6], len(message))
    valid = packet.data[7] == HOP_LIMIT and message[1] == 0 and not len(message) % 8
    if not valid or ones(head + message) != 0xFFFF:
        raise Drop("nd_refused")
    if message[0] == NEIGHBOUR_SOLICITATION:
        if len(message) < 24:
            raise Drop("short_frame")
        options = _options(message[24:])
        target = message[8:24]
        if packet.source in (ZERO6, target):
            raise Drop("nd_refused")
        if packet.destination not in (target, group_of(target)):
            raise Drop("nd_refused")
    elif message[0] == ROUTER_SOLICITATION:
        options = _options(message[8:])
        if packet.source == ZERO6 and SOURCE_MAC in options:
            raise Drop("nd_refused")
    else:
        raise Drop("nd_refused")
    return message


def _options(field: bytes) -> list[int]:
    """Their kinds. Raises Drop where one says no length, or more than there is."""
    found = []
    while field:
        size = field[1] * 8
        if not size or size > len(field) or len(found) == MOST_OPTIONS:
            raise Drop("nd_refused")
        found.append(field[0])
        field = field[size:]
    return found


def answer_sandbox(config: Config, binding: Binding, packet: Packet) -> Outcome:
    """What goes back to a sandbox. Raises Drop."""
    message, source = read_question(packet), packet.source
    own = guest_address(config, binding, 6)
    if source not in (ZERO6, own) and not is_link_local(source):
        raise Drop("spoofed_address")
    if message[0] == ROUTER_SOLICITATION:
        if packet.destination not in (ALL_ROUTERS, config.gateway6):
            raise Drop("nd_refused")
        answer, event = _router(config, own), "router_answered"
    else:
        if message[8:24] != config.gateway6:
            raise Drop("nd_refused")
        flags = ROUTER | SOLICITED | OVERRIDE
        answer = neighbour(config.gateway6, config.gateway_mac, flags)
        event = "nd_answered"
    mac = config.guest_mac
    if source == ZERO6:
        source, mac = ALL_NODES, b"\x33\x33\0\0\0\1"
    out = mac + config.gateway_mac + b"\x86\xdd" + advertised(config.gateway6, source, answer)
    return Outcome(TO_INTERFACE, out, events=(event,))


def neighbour(target: bytes, mac: bytes, flags: int) -> bytes:
    """A neighbour advertisement (section 4.4), its checksum still 0."""
    head = bytes([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0])
    return head + target + bytes([TARGET_MAC, 1]) + mac


def _router(config: Config, own: bytes) -> bytes:
    """A router advertisement (section 4.2): no prefix, our MAC and the MTU.

    DHCPv6 has the guest's address (M), or other things alone (O).
    """
    flags = OTHER if own == ZERO6 else MANAGED
    head = bytes([ROUTER_ADVERTISEMENT, 0, 0, 0, ROUTER_HOP_LIMIT, flags])
    head += ROUTER_LIFETIME.to_bytes(2, "big") + bytes(8)
    mtu = bytes([MTU, 1, 0, 0]) + config.slot_mtu.to_bytes(4, "big")
    return head + bytes([SOURCE_MAC, 1]) + config.gateway_mac + mtu


def advertised(source: bytes, destination: bytes, message: bytes) -> bytes:
    """The packet of an advertisement."""
    field = checksum(pseudo(source, destination, ICMP[6], len(message)) + message)
    message = message[:2] + field.to_bytes(2, "big") + message[4:]
    head = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([ICMP[6], HOP_LIMIT])
    return head + source + destination + message
