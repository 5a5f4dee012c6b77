# SPDX-License-Identifier: Apache-2.0
"""Frames, sent and expected alike, and a receiver that checks every sum and length.

Builders are scapy's; `faults` is our own arithmetic, so that what is compared
with a frame of scapy's was not checked by scapy.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

__all__ = ["ARP", "GENEVE", "ICMP", "IP", "TCP", "UDP", "Ether", "Packet", "Raw"]

# What every sandbox sees on eth0.
GUEST, GATEWAY = "169.254.77.2", "169.254.77.1"
GUEST_MAC, GATEWAY_MAC = "02:47:56:00:00:02", "02:47:56:00:00:01"

# The underlay: this node and the one most frames go to or come from.
NODE, PEER = "192.0.2.1", "192.0.2.2"
GENEVE_PORT = 6081
OVERHEAD = 20 + 8 + 8 + 14  # outer IP, UDP, Geneve, inner Ethernet

# Two VPCs with the same addresses, and who lives in them on this node.
BLUE, RED = 0x00ABCD, 43
ALICE, BOB = "10.0.1.5", "10.0.1.6"  # in BLUE
CAROL = "10.0.1.5"  # in RED
REMOTE = "10.0.2.9"  # in BLUE, behind PEER
NO_MAC = "00:00:00:00:00:00"  # filled in by the kernel's neighbour code


def mac_of(address: str) -> str:
    """The MAC an endpoint has inside its VPC."""
    return "02:47:" + IPv4Address(address).packed.hex(":")


def from_guest(
    payload: Packet | bytes,
    dst: str = REMOTE,
    *,
    src: str = GUEST,
    eth_src: str = GUEST_MAC,
    eth_dst: str = GATEWAY_MAC,
    **ip: object,
) -> Packet:
    """What a sandbox sends: an IP packet to its gateway's MAC."""
    return Ether(src=eth_src, dst=eth_dst) / IP(src=src, dst=dst, **ip) / payload


def to_guest(payload: Packet | bytes, src: str, **ip: object) -> Packet:
    """What a sandbox receives: an IP packet from its gateway's MAC."""
    return Ether(src=GATEWAY_MAC, dst=GUEST_MAC) / IP(src=src, dst=GUEST, **ip) / payload


def on_wire(
    inner: Packet,
    *,
    vni: int = BLUE,
    src: str = NODE,
    dst: str = PEER,
    sport: int = 50000,
    dport: int = GENEVE_PORT,
    eth_src: str = NO_MAC,
    eth_dst: str = NO_MAC,
    ip: dict[str, object] | None = None,
    udp: dict[str, object] | None = None,
    **geneve: object,
) -> Packet:
    """An inner frame in Geneve, as our nodes write it where nothing else is said."""
    return (
        Ether(src=eth_src, dst=eth_dst)
        / IP(**{"src": src, "dst": dst, "ttl": 64, "flags": "DF", "id": 0, **(ip or {})})
        / UDP(**{"sport": sport, "dport": dport, "chksum": 0, **(udp or {})})
        / GENEVE(**{"vni": vni, "proto": 0x6558, **geneve})
        / inner
    )


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
    return Ether(src=eth_src or mac_of(src), dst=eth_dst) / IP(src=src, dst=dst, **ip) / payload


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


def damaged(frames: list[Packet], seed: int, count: int = 250) -> list[bytes]:
    """
    Copies of the frames with a few bytes changed, a piece cut off or some appended.

    Never under 34 bytes, which BPF_PROG_TEST_RUN refuses of IPv4; half of the
    changes hit the first 80, where headers are.
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
            del frame[max(34, dice.randrange(len(frame))) :]
        elif shape < 0.3:
            frame += bytes(dice.randrange(1, 40))
        found.append(bytes(frame))
    return found


def faults(frame: bytes) -> list[str]:
    """
    What a strict receiver would object to, as "outer udp checksum"; [] if nothing.

    Every IP header's length and checksum, every UDP length, the TCP, UDP and
    ICMP checksums of what is no fragment, the same inside Geneve and in what
    an ICMP error quotes. Bytes behind an IP packet are padding.
    """
    found: list[str] = []
    if len(frame) < 14:
        return ["frame too short"]
    if frame[12:14] == b"\x08\x00":
        _ipv4(frame[14:], "outer", found)
    return found


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
    pseudo = _sum(data[12:20] + bytes([0, data[9]]) + len(body).to_bytes(2, "big"))
    if data[9] == 17:
        _udp(body, pseudo, where, found)
    elif data[9] == 6 and (len(body) < 20 or _sum(body, pseudo) != 0xFFFF):
        found.append(f"{where} tcp checksum")
    elif data[9] == 1:
        if len(body) < 8 or _sum(body) != 0xFFFF:
            found.append(f"{where} icmp checksum")
        elif body[0] in (3, 4, 5, 11, 12):
            _ipv4(body[8:], f"{where} quoted", found, quoted=True)


def _udp(body: bytes, pseudo: int, where: str, found: list[str]) -> None:
    if len(body) < 8 or int.from_bytes(body[4:6], "big") != len(body):
        found.append(f"{where} udp length")
        return
    if body[6:8] != b"\0\0" and _sum(body, pseudo) != 0xFFFF:
        found.append(f"{where} udp checksum")
    if where != "outer" or int.from_bytes(body[2:4], "big") != GENEVE_PORT:
        return
    geneve = body[8:]
    options = (geneve[0] & 63) * 4 if geneve else 0
    inner = geneve[8 + options :]
    if len(geneve) < 8 + options or len(inner) < 14:
        found.append("geneve length")
    elif inner[12:14] == b"\x08\x00":
        _ipv4(inner[14:], "inner", found)
