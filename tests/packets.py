# SPDX-License-Identifier: Apache-2.0
"""Frames, sent and expected alike, and a receiver that checks every sum and length.

Builders are scapy's; `faults` is our own arithmetic, so that what is compared
with a frame of scapy's was not checked by scapy.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

__all__ = [
    "ARP",
    "GENEVE",
    "ICMP",
    "IP",
    "TCP",
    "UDP",
    "Ether",
    "ICMPv6EchoReply",
    "ICMPv6EchoRequest",
    "IPv6",
    "IPv6ExtHdrDestOpt",
    "IPv6ExtHdrFragment",
    "IPv6ExtHdrHopByHop",
    "IPv6ExtHdrRouting",
    "Packet",
    "PadN",
    "Raw",
]

# What every sandbox sees on eth0.
GUEST, GATEWAY = "169.254.77.2", "169.254.77.1"
GUEST6, GATEWAY6 = "fd67:6e76:77::2", "fe80::1"
GUEST_MAC, GATEWAY_MAC = "02:47:56:00:00:02", "02:47:56:00:00:01"

# The underlay: this node and the one most frames go to or come from.
NODE, PEER = "192.0.2.1", "192.0.2.2"
NODE6, PEER6 = "2001:db8::1", "2001:db8::2"
GENEVE_PORT = 6081
OVERHEAD = 20 + 8 + 8 + 14  # outer IP, UDP, Geneve, inner Ethernet
OVERHEAD6 = 40 + 8 + 8 + 14

# Two VPCs with the same addresses, and who lives in them on this node.
BLUE, RED = 0x00ABCD, 43
ALICE, BOB = "10.0.1.5", "10.0.1.6"  # in BLUE
CAROL = "10.0.1.5"  # in RED
DORA = "10.0.1.7"  # in BLUE, without an IPv6 address
REMOTE = "10.0.2.9"  # in BLUE, behind PEER
NO_MAC = "00:00:00:00:00:00"  # filled in by the kernel's neighbour code


def six(address: str) -> str:
    """The IPv6 address that an endpoint has beside its IPv4 one, or the prefix beside a prefix."""
    network, _, length = address.partition("/")
    beside = IPv6Address(int(IPv6Address("fd00:6e76::")) + int(IPv4Address(network)))
    return f"{beside}/{96 + int(length)}" if length else str(beside)


def vtep_of(address: str, family: int) -> str:
    """A VTEP that is known by its IPv4 address, on an underlay of this family."""
    if family == 4:
        return address
    network, _, host = address.rpartition(".")
    return {"192.0.2": "2001:db8::", "203.0.113": "2001:db8:113::"}[network] + host


ALICE6, BOB6, CAROL6, REMOTE6 = six(ALICE), six(BOB), six(CAROL), six(REMOTE)
EMIL6 = six("10.0.1.8")  # in BLUE, without an IPv4 address
SELF, NEIGHBOUR, AFAR = {4: ALICE, 6: ALICE6}, {4: BOB, 6: BOB6}, {4: REMOTE, 6: REMOTE6}


def is_six(address: str) -> bool:
    """Whether it is an IPv6 address."""
    return ":" in address


def mac_of(address: str) -> str:
    """The MAC an endpoint has inside its VPC: the same for both of its addresses."""
    return "02:47:" + ip_address(address).packed[-4:].hex(":")


def ip_header(src: str, dst: str, **fields: object) -> Packet:
    """An IP header of the family of its addresses; `fields` by scapy's names."""
    return (IPv6 if is_six(dst) else IP)(src=src, dst=dst, **fields)


def guest_address(peer: str) -> str:
    """The guest's own address of the family it reaches `peer` by."""
    return GUEST6 if is_six(peer) else GUEST


def from_guest(
    payload: Packet | bytes,
    dst: str = REMOTE,
    *,
    src: str | None = None,
    eth_src: str = GUEST_MAC,
    eth_dst: str = GATEWAY_MAC,
    **ip: object,
) -> Packet:
    """What a sandbox sends: an IP packet to its gateway's MAC, of the destination's family."""
    header = ip_header(src or guest_address(dst), dst, **ip)
    return Ether(src=eth_src, dst=eth_dst) / header / payload


def to_guest(payload: Packet | bytes, src: str, **ip: object) -> Packet:
    """What a sandbox receives: an IP packet from its gateway's MAC, of the source's family."""
    header = ip_header(src, guest_address(src), **ip)
    return Ether(src=GATEWAY_MAC, dst=GUEST_MAC) / header / payload


def in_udp(
    payload: Packet | bytes,
    *,
    src: str = NODE,
    dst: str = PEER,
    sport: int = 50000,
    dport: int = GENEVE_PORT,
    eth_src: str = NO_MAC,
    eth_dst: str = NO_MAC,
    ip: dict[str, object] | None = None,
    udp: dict[str, object] | None = None,
) -> Packet:
    """
    A datagram on the underlay, with outer headers as our nodes write them.

    The family is that of the addresses: `ip` has scapy's names for its header,
    and `extension` in it is put between an IPv6 header and UDP.
    """
    fields = dict(ip or {})
    if is_six(dst):
        extension = fields.pop("extension", None)
        header = IPv6(**{"src": src, "dst": dst, "hlim": 64, **fields})
        if extension is not None:
            header = header / extension
    else:
        header = IP(**{"src": src, "dst": dst, "ttl": 64, "flags": "DF", "id": 0, **fields})
    return (
        Ether(src=eth_src, dst=eth_dst)
        / header
        / UDP(**{"sport": sport, "dport": dport, "chksum": 0, **(udp or {})})
        / payload
    )


OUTER_FIELDS = ("src", "dst", "sport", "dport", "eth_src", "eth_dst", "ip", "udp")


def on_wire(inner: Packet, *, vni: int = BLUE, **fields: Any) -> Packet:
    """
    An inner frame in Geneve, as our nodes write it where nothing else is said.

    `fields` are those of `in_udp` and, by scapy's names, of the Geneve header.
    """
    outer = {name: fields.pop(name) for name in OUTER_FIELDS if name in fields}
    header = GENEVE(**{"vni": vni, "proto": 0x6558, **fields})
    return in_udp(header / inner, **outer)


def in_vpc(
    payload: Packet | bytes,
    src: str,
    dst: str,
    *,
    eth_src: str | None = None,
    eth_dst: str = GATEWAY_MAC,
    **ip: object,
) -> Packet:
    """The inner frame as it crosses the underlay: both addresses are the VPC's."""
    return Ether(src=eth_src or mac_of(src), dst=eth_dst) / ip_header(src, dst, **ip) / payload


def arp_question(
    target: str = GATEWAY,
    *,
    sender: str = GUEST,
    sender_mac: str = GUEST_MAC,
    eth_src: str | None = None,
    eth_dst: str = "ff:ff:ff:ff:ff:ff",
    **arp: object,
) -> Packet:
    """Who has `target`? Tell `sender`."""
    fields = {"op": 1, "hwsrc": sender_mac, "psrc": sender, "hwdst": NO_MAC, "pdst": target}
    return Ether(src=eth_src or sender_mac, dst=eth_dst) / ARP(**{**fields, **arp})


def arp_answer(
    target: str, target_mac: str, *, asker: str = GUEST, asker_mac: str = GUEST_MAC
) -> Packet:
    """`target` is at `target_mac`, said to the one that asked."""
    return Ether(src=target_mac, dst=asker_mac) / ARP(
        op=2, hwsrc=target_mac, psrc=target, hwdst=asker_mac, pdst=asker
    )


def icmp_error(quote: bytes, *, kind: int = 3, code: int = 1) -> Packet:
    """An ICMP error about the packet whose first bytes are `quote`."""
    return ICMP(type=kind, code=code) / Raw(quote)


def icmp6_error(quote: bytes, *, kind: int = 1, code: int = 0, value: int = 0) -> Packet:
    """The same in ICMPv6; `value` is the second word: the MTU or where the fault is."""
    header = {
        1: ICMPv6DestUnreach(code=code, unused=value),
        2: ICMPv6PacketTooBig(code=code, mtu=value),
        3: ICMPv6TimeExceeded(code=code, unused=value),
        4: ICMPv6ParamProblem(code=code, ptr=value),
    }[kind]
    return header / Raw(quote)


def error_about(
    src: str, dst: str, payload: Packet, length: int | None = None, kind: int = 3
) -> Packet:
    """An error of that kind, of their family, about a packet from src to dst.

    length: bytes behind the IP header that are quoted; None quotes all.
    """
    extra = {"nh": 253} if is_six(dst) and isinstance(payload, Raw) else {}
    header = ip_header(src, dst, **extra)
    if not is_six(dst):
        header.id = 5
    whole = bytes(header / payload)
    quote = whole if length is None else whole[: len(header) + length]
    if is_six(dst):
        return icmp6_error(quote, kind=kind, value=1280 if kind == 2 else 0)
    return icmp_error(quote, kind=kind)


def option(kind: int = 0, data: bytes = b"", *, group: int = 0xFFFF, reserved: int = 0) -> bytes:
    """One Geneve option (RFC 8926 section 3.5): `group` is its class, `data` whole words."""
    assert len(data) % 4 == 0
    words = len(data) // 4
    return group.to_bytes(2, "big") + bytes([kind, reserved << 5 | words]) + data


def with_options(options: bytes, inner: Packet | bytes) -> tuple[Packet, dict[str, int]]:
    """What goes behind a Geneve header with these options, and the header's fields for it."""
    assert len(options) % 4 == 0
    critical = any(byte & 0x80 for byte in _option_kinds(options))
    fields = {"optionlen": len(options) // 4, "critical": int(critical)}
    return Raw(options + bytes(inner)), fields


def _option_kinds(options: bytes) -> list[int]:
    kinds, at = [], 0
    while at + 4 <= len(options):
        kinds.append(options[at + 2])
        at += 4 + (options[at + 3] & 31) * 4
    return kinds


def damaged(frames: list[Packet], seed: int, count: int = 250) -> list[bytes]:
    """
    Copies of the frames with a few bytes changed, a piece cut off or some appended.

    Never under 34 bytes of IPv4 and 54 of IPv6, which BPF_PROG_TEST_RUN refuses;
    half of the changes hit the first 80, where headers are.
    """
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        frame = bytearray(bytes(dice.choice(frames)))
        for _ in range(dice.randrange(4)):
            at = dice.randrange(min(80, len(frame)) if dice.random() < 0.5 else len(frame))
            frame[at] = dice.choice((0, 1, 0x45, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        shape = dice.random()
        if shape < 0.2:
            shortest = 54 if frame[12:14] == b"\x86\xdd" else 34
            del frame[max(shortest, dice.randrange(len(frame))) :]
        elif shape < 0.3:
            frame += bytes(dice.randrange(1, 40))
        found.append(bytes(frame))
    return found


# -- the strict receiver

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60  # IPv6 extension headers


def faults(frame: bytes) -> list[str]:
    """
    What a strict receiver would object to, as "outer udp checksum"; [] if nothing.

    Every IP header's length and checksum, IPv6 extension headers, every UDP
    length, the TCP, UDP and ICMP checksums of what is no fragment, Geneve's
    version and options, the same inside Geneve and in what an ICMP error
    quotes. Bytes behind an IP packet are padding. A zero UDP checksum over IPv6
    is a tunnel's right (RFC 6935) and nobody else's.
    """
    found: list[str] = []
    if len(frame) < 14:
        return ["frame too short"]
    _network(frame[12:14], frame[14:], "outer", found)
    return found


def _network(ethertype: bytes, data: bytes, where: str, found: list[str]) -> None:
    if ethertype == b"\x08\x00":
        _ipv4(data, where, found)
    elif ethertype == b"\x86\xdd":
        _ipv6(data, where, found)


def _sum(data: bytes, start: int = 0) -> int:
    if len(data) % 2:
        data += b"\0"
    total = start + sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ipv4(data: bytes, where: str, found: list[str], *, quoted: bool = False) -> None:
    header = (data[0] & 15) * 4 if data else 0
    if len(data) < 20 or data[0] >> 4 != 4 or header < 20 or len(data) < header:
        found.append(f"{where} ip header")
        return
    if _sum(data[:header]) != 0xFFFF:
        found.append(f"{where} ip checksum")
    length = int.from_bytes(data[2:4], "big")
    if length < header or (length > len(data) and not quoted):
        found.append(f"{where} ip length")
        return
    fragment = int.from_bytes(data[6:8], "big") & 0x3FFF  # MF and offset
    if fragment or length > len(data):
        return
    body = data[header:length]
    _transport(data[9], data[12:20], body, where, found)


def _ipv6(data: bytes, where: str, found: list[str], *, quoted: bool = False) -> None:
    if len(data) < 40 or data[0] >> 4 != 6:
        found.append(f"{where} ip header")
        return
    end = 40 + int.from_bytes(data[4:6], "big")
    if end > len(data) and not quoted:
        found.append(f"{where} ip length")
        return
    kind, at, destination = data[6], 40, data[24:40]
    while kind in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
        if kind == HOP_BY_HOP and at != 40:
            found.append(f"{where} extension order")
            return
        size = 8 if kind == FRAGMENT else (data[at + 1] + 1) * 8 if at + 2 <= len(data) else 8
        if at + size > min(end, len(data)):
            if at + size > end:
                found.append(f"{where} extension header")
            return  # a quote is cut off where it likes
        if kind == FRAGMENT and int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF9:
            return  # more to come, or not the first
        if kind == ROUTING and data[at + 3]:
            destination = data[at + size - 16 : at + size]
        kind, at = data[at], at + size
    if end > len(data):
        return
    _transport(kind, data[8:24] + destination, data[at:end], where, found)


def _transport(kind: int, ends: bytes, body: bytes, where: str, found: list[str]) -> None:
    six = len(ends) == 32
    pseudo = _sum(ends + len(body).to_bytes(4, "big") + kind.to_bytes(4, "big"))
    if kind == 17:
        _udp(body, pseudo, where, found, may_be_zero=not six or where == "outer")
    elif kind == 6 and (len(body) < 20 or _sum(body, pseudo) != 0xFFFF):
        found.append(f"{where} tcp checksum")
    elif kind == (58 if six else 1):
        if len(body) < 8 or _sum(body, pseudo if six else 0) != 0xFFFF:
            found.append(f"{where} icmp checksum")
        elif not six and body[0] in (3, 4, 5, 11, 12):
            _ipv4(body[8:], f"{where} quoted", found, quoted=True)
        elif six and body[0] in (1, 2, 3, 4):
            _ipv6(body[8:], f"{where} quoted", found, quoted=True)


def _udp(body: bytes, pseudo: int, where: str, found: list[str], *, may_be_zero: bool) -> None:
    if len(body) < 8 or int.from_bytes(body[4:6], "big") != len(body):
        found.append(f"{where} udp length")
        return
    if body[6:8] == b"\0\0":
        if not may_be_zero:
            found.append(f"{where} udp checksum")
    elif _sum(body, pseudo) != 0xFFFF:
        found.append(f"{where} udp checksum")
    if where == "outer" and int.from_bytes(body[2:4], "big") == GENEVE_PORT:
        _geneve(body[8:], found)


def _geneve(data: bytes, found: list[str]) -> None:
    end = 8 + (data[0] & 63) * 4 if data else 0
    inner = data[end:]
    protocol = data[2:4]
    if len(data) < max(end, 8) or (protocol == b"\x65\x58" and len(inner) < 14):
        found.append("geneve length")
        return
    if data[0] >> 6:
        found.append("geneve version")
    at = 8
    while at < end:
        at += 4 + (data[at + 3] & 31) * 4
    if at != end:
        found.append("geneve options")
    if protocol == b"\x65\x58":
        _network(inner[12:14], inner[14:], "inner", found)
    else:
        _network(protocol, inner, "inner", found)
