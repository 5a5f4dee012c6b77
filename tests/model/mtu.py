# SPDX-License-Identifier: Apache-2.0
"""How big a packet may be: who is told that his is not (RFC 1191, 8201, 4443), what a SYN asks
for (RFC 9293 section 3.7.1), and what the underlay says of our own (RFC 1191, 8201).
"""

from __future__ import annotations

from tests.model import geneve
from tests.model.packet import ICMP, TCP, UDP, Packet
from tests.model.state import Config, Node
from tests.model.sums import checksum, folded, ones, pseudo, put, updated, word
from tests.model.translate import is_error

MIN6 = 1280  # RFC 8200 section 5
MIN4 = 552  # below it a router's word is not believed; ours to choose, as Linux does
QUOTED = {4: 576 - 20 - 8, 6: MIN6 - 40 - 8}  # RFC 1812 4.3.2.3, RFC 4443 3.2
PLATEAUS = (8166, 4352, 2002, 1492, 1006, MIN4)  # RFC 1191 section 7
_SYN = 0x02


def may_be_told(packet: Packet, mtu: int) -> bool:
    """Whether a sender is to hear of it (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).

    Never in answer to an error or a later fragment; not where only padding is too
    long; nor of an MTU that no host heeds. Without DF too: nobody here fragments.
    """
    if not packet.first or packet.length <= mtu:
        return False
    if packet.family == 6 and mtu < MIN6:
        return False
    if packet.protocol != ICMP[packet.family]:
        return True
    here = packet.body < packet.length
    return here and not is_error(packet.family, packet.data[packet.body])


def too_big(config: Config, packet: Packet, mtu: int) -> bytes:
    """The error that goes back to a sandbox, from its gateway."""
    quote = bytearray(packet.data[: min(packet.length, QUOTED[packet.family])])
    _settle(packet, quote)
    if packet.family == 4:
        message = bytearray(bytes([3, 4, 0, 0, 0, 0]) + mtu.to_bytes(2, "big") + quote)
        put(message, 2, checksum(bytes(message)))
        header = bytearray(b"\x45\xc0" + (20 + len(message)).to_bytes(2, "big"))
        header += bytes([0, 0, 0x40, 0, 64, 1, 0, 0]) + config.gateway + packet.source
        put(header, 10, checksum(bytes(header)))
        ethertype = b"\x08\x00"
    else:
        message = bytearray(bytes([2, 0, 0, 0]) + mtu.to_bytes(4, "big") + quote)
        head = pseudo(config.gateway6, packet.source, ICMP[6], len(message))
        put(message, 2, checksum(head + bytes(message)))
        header = bytearray(b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([ICMP[6], 64]))
        header += config.gateway6 + packet.source
        ethertype = b"\x86\xdd"
    return config.guest_mac + config.gateway_mac + ethertype + bytes(header + message)


def _settle(packet: Packet, quote: bytearray) -> None:
    """A quoted checksum that the kernel still owes is only the pseudo-header's sum.

    Some interfaces have the kernel write the rest, over what is quoted, others
    never do. With half of what is missing in the field the error's own checksum is
    right either way: f = -S/2 where S is the sum of the rest (RFC 1071: modulo 65535).
    """
    if packet.protocol not in (TCP, UDP):
        return
    body = packet.body
    at = body + (16 if packet.protocol == TCP else 6)
    if at + 2 > len(quote):
        return
    size = packet.length - body
    head = pseudo(packet.source, packet.destination, packet.protocol, size)
    if word(quote, at) != ones(head):
        return
    put(quote, at, 0)
    missing = folded(ones(bytes(quote[body:])) + 0xFFFF) ^ 0xFFFF
    put(quote, at, (missing + 0xFFFF if missing & 1 else missing) >> 1)


def clamp(packet: Packet, mtu: int) -> bytes | None:
    """The packet with its SYN asking for no more than fits; None: it does so already."""
    largest = mtu - (20 if packet.family == 4 else 40) - 20
    data, body = packet.data, packet.body
    if packet.protocol != TCP or not packet.first or body + 14 > packet.length:
        return None
    if not data[body + 13] & _SYN:
        return None
    end = min(body + (data[body + 12] >> 4) * 4, packet.length)
    at = body + 20
    while at + 4 <= end:
        kind, length = data[at], data[at + 1]
        if kind == 0 or (kind > 1 and length < 2):
            return None
        if kind == 2:
            break
        at += 1 if kind == 1 else length
    else:
        return None
    if length != 4 or word(data, at + 2) <= largest:
        return None
    changed = bytearray(data)
    put(changed, at + 2, largest)
    # The words that the checksum adds up start at even offsets.
    low, size = (at + 1, 4) if at & 1 else (at + 2, 2)
    before = data[low : low + size].ljust(size, b"\0")
    after = bytes(changed[low : low + size]).ljust(size, b"\0")
    put(changed, body + 16, updated(word(data, body + 16), before, after))
    return bytes(changed)


def learn(node: Node, frame: bytes) -> tuple[bytes, int] | None:
    """(VTEP, its path MTU) if this is a router's word on a packet of our tunnel."""
    config, data = node.config, frame[14:]
    found = _icmp4(config, data) if len(config.vtep) == 4 else _icmp6(config, data)
    if word(frame, 12) != (0x0800 if len(config.vtep) == 4 else 0x86DD) or found is None:
        return None
    mtu, quote = found
    sent = _our_tunnel(config, quote)
    if sent is None:
        return None
    to, length = sent
    least = MIN4 if len(to) == 4 else MIN6
    if len(to) == 4 and not mtu:  # a router older than RFC 1191
        mtu = next((step for step in PLATEAUS if step < length), MIN4)
    if mtu < least or mtu >= length or to not in node.vteps:
        return None
    known = node.vteps[to].path_mtu
    return (to, mtu) if not known or mtu < known else None


def _icmp4(config: Config, data: bytes) -> tuple[int, bytes] | None:
    """(MTU, quote) of an undamaged "fragmentation needed" to us."""
    if len(data) < 20 or data[0] >> 4 != 4 or data[9] != ICMP[4] or data[16:20] != config.vtep:
        return None
    header, length = (data[0] & 15) * 4, word(data, 2)
    if header < 20 or word(data, 6) & 0x3FFF or length > len(data):
        return None
    message = data[header:length]
    if len(message) < 8 or ones(message) != 0xFFFF or message[:2] != b"\x03\x04":
        return None
    return word(message, 6), message[8:]


def _icmp6(config: Config, data: bytes) -> tuple[int, bytes] | None:
    """(MTU, quote) of an undamaged "packet too big" to us."""
    if len(data) < 40 or data[0] >> 4 != 6 or data[6] != ICMP[6] or data[24:40] != config.vtep:
        return None
    message = data[40 : 40 + word(data, 4)]
    if len(message) != word(data, 4) or len(message) < 8 or message[0] != 2:
        return None
    head = pseudo(data[8:24], data[24:40], ICMP[6], len(message))
    if ones(head + message) != 0xFFFF:
        return None
    return int.from_bytes(message[4:8], "big"), message[8:]


def _our_tunnel(config: Config, quote: bytes) -> tuple[bytes, int] | None:
    """(where it was going, its length) if a quoted packet may be one of ours.

    Eight bytes behind the IP header are all that a router must quote (RFC 792);
    what it quotes of Geneve must be as we write it.
    """
    if len(config.vtep) == 4:
        header = 20
        ours = len(quote) >= 28 and quote[0] == 0x45 and word(quote, 6) == 0x4000
        if not ours or quote[9] != UDP or quote[12:16] != config.vtep:
            return None
        to, length = quote[16:20], word(quote, 2)
    else:
        header = 40
        ours = len(quote) >= 48 and quote[0] >> 4 == 6
        if not ours or quote[6] != UDP or quote[8:24] != config.vtep:
            return None
        to, length = quote[24:40], 40 + word(quote, 4)
    udp = quote[header:]
    if word(udp, 2) != config.port or word(udp, 0) < geneve.FIRST_PORT:
        return None
    tunnel = udp[8:16]
    if len(tunnel) == 8 and (tunnel[0] >> 6 or tunnel[2:4] != b"\x65\x58" or tunnel[7]):
        return None
    return to, length
