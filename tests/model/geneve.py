# SPDX-License-Identifier: Apache-2.0
"""The outer headers: RFC 8926 in RFC 768 in RFC 791 or 8200, with ECN by RFC 6040."""

from __future__ import annotations

from tests.model import packet
from tests.model.packet import IPV4, IPV6, TEB
from tests.model.state import NO_MAC, Config, Drop
from tests.model.sums import checksum, folded, ones, pseudo, put, updated, word

UDP = 17
HOP_LIMIT = 64
ETHERNET, UDP_HEADER, GENEVE_HEADER = 14, 8, 8
IP_HEADER = {4: 20, 6: 40}  # by the length of an address: 4 and 16 bytes
FIRST_PORT = 0x8000  # source ports of ours: the upper half (RFC 8926 section 3.3, RFC 6335)

NOT_ECT, ECT1, ECT0, CE = range(4)

# RFC 6040 figure 4: by inner and outer, the inner that is delivered.
DECAPSULATED = {
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


def ip_header(address: bytes) -> int:
    """Bytes of the IP header that carries an address, without options."""
    return 20 if len(address) == 4 else 40


def overhead(vtep: bytes) -> int:
    """Bytes that the tunnel puts in front of an inner IP packet on the underlay."""
    return ip_header(vtep) + UDP_HEADER + GENEVE_HEADER + ETHERNET


def ecn_of(packet: bytes, family: int) -> int:
    """The two bits of an IP packet (RFC 3168)."""
    return packet[1] & 3 if family == 4 else packet[1] >> 4 & 3


def encapsulate(
    config: Config,
    vtep: bytes,
    vni: int,
    inner_macs: bytes,
    inner_type: int,
    payload: bytes,
    ecn: int,
) -> bytes:
    """A frame for the wire.

    Its MACs are for the kernel's neighbour code to fill in, and the source port
    and an IPv6 flow label for the flow's hash: `free_fields` says where.
    """
    geneve = bytes([0, 0]) + TEB.to_bytes(2, "big") + vni.to_bytes(3, "big") + b"\0"
    inside = geneve + inner_macs + inner_type.to_bytes(2, "big") + payload
    # The UDP checksum is 0: RFC 8926 section 3.3; over IPv6 RFC 6935 section 5.
    length = UDP_HEADER + len(inside)
    udp = b"\0\0" + config.port.to_bytes(2, "big") + length.to_bytes(2, "big") + b"\0\0"
    if len(vtep) == 4:
        header = bytearray([0x45, ecn]) + (20 + length).to_bytes(2, "big")
        header += b"\0\0\x40\0" + bytes([HOP_LIMIT, UDP, 0, 0]) + config.vtep + vtep
        put(header, 10, checksum(bytes(header)))
        ethertype = b"\x08\x00"
    else:
        header = bytearray([0x60, ecn << 4, 0, 0]) + length.to_bytes(2, "big")
        header += bytes([UDP, HOP_LIMIT]) + config.vtep + vtep
        ethertype = b"\x86\xdd"
    return NO_MAC + NO_MAC + ethertype + bytes(header) + udp + inside


def free_fields(vtep: bytes) -> tuple[tuple[int, int], ...]:
    """(offset, mask) of the words of a frame that the flow's hash fills in."""
    if len(vtep) == 4:
        return ((ETHERNET + 20, 0xFFFF),)
    return ((ETHERNET, 0x000F), (ETHERNET + 2, 0xFFFF), (ETHERNET + 40, 0xFFFF))


def udp_sum_is_good(source: bytes, destination: bytes, udp: bytes) -> bool:
    """Whether a datagram's checksum may be believed.

    Zero says that there is none (RFC 768; RFC 6935 section 5 between tunnel ends
    that agree on it, as known VTEPs do). The pseudo-header's sum alone is what a
    sender of the same machine leaves for a device to complete.
    """
    field = word(udp, 6)
    if not field:
        return True
    head = pseudo(source, destination, UDP, len(udp))
    return ones(head + udp) == 0xFFFF or field == ones(head)


def sums_around_partial(sender: bytes, config: Config, data: bytes, udp: int, end: int) -> bool:
    """Whether the outer sum is right if a device is still to make the inner one.

    So a tunnel device takes it, counting on what is from the inner transport header
    on to add up to the complement of its checksum's field. That field holds the
    inner pseudo-header's sum then.
    """
    header = udp + UDP_HEADER
    at = header + GENEVE_HEADER + (data[header] & 0x3F) * 4
    protocol = word(data, header + 2)
    if protocol == TEB:
        at += 14
        protocol = word(data, at - 2) if at <= len(data) else 0
    if protocol not in (IPV4, IPV6):
        return False
    try:
        inner = packet.read(data[at:], 4 if protocol == IPV4 else 6, end - at)
    except Drop:
        return False
    place = {packet.TCP: 16, packet.UDP: 6}.get(inner.protocol, 0) + inner.body
    if not inner.first or place == inner.body or place + 2 > inner.length:
        return False
    field = word(inner.data, place)
    size = inner.length - inner.body
    if field != ones(pseudo(inner.source, inner.destination, inner.protocol, size)):
        return False
    outer = pseudo(sender, config.vtep, UDP, end - udp)
    return folded(ones(outer + data[udp : at + inner.body]) + (field ^ 0xFFFF)) == 0xFFFF


def pseudo_sum(source: bytes, destination: bytes, length: int) -> int:
    """What stands in the UDP checksum's field until a device has made the checksum."""
    return ones(pseudo(source, destination, UDP, length))


def check_header(header: bytes) -> None:
    """A Geneve header with its options (RFC 8926 section 3.4). Raises Drop.

    Reserved bits are ignored, and so is the C bit: the options say it themselves.
    """
    if header[0] >> 6:
        raise Drop("geneve_version")
    if header[1] & 0x80:
        raise Drop("geneve_control")
    options = header[GENEVE_HEADER:]
    # Section 3.5: their lengths add up, and we know no critical one. The first
    # fault decides.
    at = 0
    while at < len(options):
        end = at + 4 + (options[at + 3] & 0x1F) * 4
        if end > len(options):
            raise Drop("geneve_options")
        if options[at + 2] & 0x80:
            raise Drop("geneve_critical")
        at = end


def with_outer_ecn(packet: bytes, family: int, outer: int) -> bytes:
    """The inner packet with the congestion that the outer header met. Raises Drop."""
    inner = ecn_of(packet, family)
    found = DECAPSULATED.get((inner, outer))
    if found is None:
        raise Drop("ecn_invalid")
    if found == inner:
        return packet
    data = bytearray(packet)
    if family == 6:
        data[1] = data[1] & 0xCF | found << 4
        return bytes(data)
    data[1] = data[1] & 0xFC | found
    put(data, 10, updated(word(data, 10), packet[0:2], bytes(data[0:2])))
    return bytes(data)
