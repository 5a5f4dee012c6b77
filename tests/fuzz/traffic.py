# SPDX-License-Identifier: Apache-2.0
"""From a state and a seed, frames: valid of every kind, odd ones, damaged ones.

Destinations are mostly addresses that the state knows, or most frames would end
at the first check. Nothing here knows what must come of a frame.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.fuzz.builder import (
    FULL,
    PARTIAL,
    WRONG,
    ZERO,
    geneve,
    icmp4,
    icmp6,
    ipv4,
    ipv6,
    tcp,
    udp,
    udp_around,
)
from tests.model.dhcp6 import DUID
from tests.model.state import ZERO4, ZERO6, Binding, Context, Node, guest_address

T = TypeVar("T")

SANDBOX_TX, UPLINK_RX = 0, 1
SHORTEST = {b"\x08\x00": 34, b"\x86\xdd": 54}  # that BPF_PROG_TEST_RUN takes
LARGEST = 3000

TYPE4, TYPE6, TYPE_ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"
_BROADCAST = b"\xff" * 6
_PORTS = (0, 1, 53, 67, 68, 80, 443, 4789, 6081, 33000, 65535)
_ODD4 = (
    bytes(4),
    b"\xff" * 4,
    b"\x7f\0\0\1",
    b"\xe0\0\0\1",
    b"\xe0\0\0\x16",
    b"\xef\1\2\3",
    b"\xf0\0\0\1",
    b"\0\1\2\3",
    b"\xa9\xfe\x4d\1",
    b"\xa9\xfe\x4d\2",
    b"\xdf\xff\xff\xff",
    b"\x80\0\0\1",
)
_ODD6 = tuple(
    bytes.fromhex(text)
    for text in (
        "00000000000000000000000000000000",
        "00000000000000000000000000000001",
        "0000000000000000000000000000000a",
        "00000000000000000000ffff0a000105",
        "00000000000000000000ffffa9fe4d02",
        "0064ff9b00000000000000000a000105",
        "fe800000000000000000000000000001",
        "fe800000000000000000000000000099",
        "fe80000000000000004756fffe000002",
        "fec00000000000000000000000000001",
        "ff020000000000000000000000000001",
        "ff020000000000000000000000000002",
        "ff020000000000000000000000000016",
        "ff0200000000000000000001ff000001",
        "ff0200000000000000000001ff000002",
        "ff0e0000000000000000000000000101",
        "fd676e76007700000000000000000002",
        "20010db8000000000000000000000001",
    )
)


@dataclass(slots=True)
class Item:
    """One frame and how it comes."""

    program: int
    frame: bytes
    context: Context
    mark: int = 0
    priority: int = 0
    complete: bool = False  # with the sum of all its bytes taken by the device


class Traffic:
    """Frames for one state; the seed decides which."""

    def __init__(self, node: Node, seed: int, uplink_mac: bytes, *, families: str = "46") -> None:
        self._dice = random.Random(seed)
        self._random = self._dice.random
        self._node = node
        self._mac = uplink_mac
        self._families = [int(letter) for letter in families]
        self._vnis = sorted({vni for vni, _ in node.endpoints} | {1}) or [1]
        self._known: dict[tuple[int, int], list[bytes]] = {}
        self._here: dict[tuple[int, int], list[bytes]] = {}
        for vni in {*self._vnis, *(b.vni for b in node.bindings)}:
            for family in (4, 6):
                self._known[vni, family] = self._addresses(vni, family)
                size = 4 if family == 4 else 16
                self._here[vni, family] = [
                    a for owner, a in node.endpoints if owner == vni and len(a) == size
                ]
        self._vteps = sorted(node.vteps)
        config = node.config
        self._underlay = 6 if len(config.vtep) == 16 else 4
        self._from_sandbox = self._weighted(
            (30, self._packet4),
            (30, self._packet6),
            (6, self._arp),
            (8, self._solicitation),
            (6, self._dhcp),
            (8, self._dhcp6),
            (3, self._membership),
            (2, self._other_type),
        )
        self._from_wire = self._weighted(
            (70, self._tunnelled),
            (8, self._wire_arp),
            (6, self._wire_solicitation),
            (8, self._complaint),
            (8, self._strangers),
        )

    # -- choices

    def _below(self, limit: int) -> int:
        return int(self._random() * limit)

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def _chance(self, probability: float) -> bool:
        return self._random() < probability

    def _bytes(self, size: int) -> bytes:
        return self._dice.randbytes(size)

    @staticmethod
    def _weighted(*choices: tuple[int, T]) -> list[T]:
        return [choice for weight, choice in choices for _ in range(weight)]

    # -- frames

    def items(self, count: int) -> Iterator[Item]:
        """The frames, in the order in which they have to be sent."""
        for _ in range(count):
            yield self._from_uplink() if self._chance(0.5) else self._from_slot()

    def _from_slot(self) -> Item:
        slot = self._below(len(self._node.bindings))
        frame = self._damaged(self._pick(self._from_sandbox)(self._node.bindings[slot]))
        context = Context(
            slot=None if self._chance(0.003) else slot,
            may_answer=not self._chance(0.15),
        )
        return self._item(SANDBOX_TX, frame, context)

    def _from_uplink(self) -> Item:
        frame = self._damaged(self._pick(self._from_wire)())
        context = Context(to_us=frame[:6] == self._mac)
        item = self._item(UPLINK_RX, frame, context)
        item.complete = self._chance(0.3)
        return item

    def _item(self, program: int, frame: bytes, context: Context) -> Item:
        item = Item(program, frame, context)
        if self._chance(0.1):
            item.mark, item.priority = self._below(1 << 32), self._below(1 << 32)
        return item

    def _damaged(self, frame: bytes) -> bytes:
        """Most frames as they are; some with bytes changed, cut off, or put behind."""
        if len(frame) > 1000 and self._chance(0.2):
            frame += bytes(1 + self._below(46))
        luck = self._random()
        if luck < 0.72:
            return self._fitting(frame)
        data = bytearray(frame)
        if luck < 0.9:
            for _ in range(1 + self._below(3)):
                self._damage(data)
        if 0.86 < luck < 0.95:
            del data[14 + self._below(max(1, len(data) - 14)) :]
        elif luck >= 0.95:
            data += self._bytes(self._below(48)) if self._chance(0.5) else bytes(self._below(48))
        return self._fitting(bytes(data))

    def _damage(self, data: bytearray) -> None:
        at = self._below(min(110, len(data)) if self._chance(0.8) else len(data))
        kind = self._below(4)
        if kind == 0:
            data[at] ^= 1 << self._below(8)
        elif kind == 1:
            data[at] = self._pick((0, 1, 4, 5, 6, 17, 0x45, 0x60, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            data[at] = self._below(256)
        else:  # a 16-bit field that is nearly right
            at = min(at & ~1, len(data) - 2)
            field = (data[at] << 8 | data[at + 1]) + self._pick((-8, -4, -2, -1, 1, 2, 4, 8))
            data[at : at + 2] = (field & 0xFFFF).to_bytes(2, "big")

    def _fitting(self, frame: bytes) -> bytes:
        """Within what a test run takes: too short ones are filled up with zeros."""
        shortest = SHORTEST.get(frame[12:14], 14)
        if len(frame) < shortest:
            frame += bytes(shortest - len(frame))
        return frame[:LARGEST]

    # -- addresses

    def _addresses(self, vni: int, family: int) -> list[bytes]:
        """Those that the VPC knows something about, most likely ones several times."""
        size = 4 if family == 4 else 16
        node = self._node
        found = [a for owner, a in node.endpoints if owner == vni and len(a) == size] * 3
        found += [a for owner, a in node.exact if owner == vni and len(a) == size] * 2
        for owner, prefix, bits in node.prefixes:
            if owner == vni and len(prefix) == size:
                found += [self._within(prefix, bits) for _ in range(8)]
        found += [a for owner, a in node.endpoints if owner != vni and len(a) == size]
        return found or [bytes([10, 0, 0, 1]) if size == 4 else bytes.fromhex("fd" + "00" * 15)]

    def _within(self, prefix: bytes, bits: int) -> bytes:
        size = len(prefix) * 8
        host = self._dice.getrandbits(size - bits) if bits < size else 0
        if self._chance(0.3):
            host = min(host, 3)
        return (int.from_bytes(prefix, "big") | host).to_bytes(len(prefix), "big")

    def _address(self, vni: int, family: int) -> bytes:
        luck = self._random()
        if luck < 0.9:
            known = self._known.get((vni, family)) or self._known[self._vnis[0], family]
            return self._pick(known)
        if luck < 0.95:
            return self._bytes(4 if family == 4 else 16)
        return self._pick(_ODD4 if family == 4 else _ODD6)

    def _stranger(self, size: int) -> bytes:
        if self._chance(0.8):
            return self._bytes(size)
        return self._pick(_ODD4 if size == 4 else _ODD6)

    def _local(self, vni: int, family: int) -> bytes:
        """Mostly one that lives on this node."""
        here = self._here.get((vni, family))
        return self._pick(here) if here and self._chance(0.85) else self._address(vni, family)

    # -- payloads

    def _data(self, before: int = 28) -> bytes:
        """What is carried behind so many bytes of inner headers."""
        luck = self._random()
        if luck < 0.66:
            return self._bytes(self._below(40))
        if luck < 0.84:
            return self._bytes(self._below(300))
        # Around the sizes at which something begins not to fit.
        limit = self._pick((1280, 1300, 1350, 1400, 1499, 1500, 1500, 2800))
        room = limit - before - (50 if self._underlay == 4 else 70)
        return self._bytes(room + self._pick((-2, -1, 0, 0, 1, 2, 40)))

    def _mode(self) -> int:
        luck = self._random()
        return FULL if luck < 0.7 else ZERO if luck < 0.8 else PARTIAL if luck < 0.9 else WRONG

    def _ports(self) -> tuple[int, int]:
        if self._chance(0.5):
            return 40000 + self._below(4), 443
        return self._pick(_PORTS), self._pick(_PORTS)

    def _tcp_options(self) -> bytes:
        """Options of a segment, mostly of a SYN: true, doubled, cut short, or none."""
        found = b""
        for _ in range(self._below(5)):
            found += self._pick(
                (
                    b"\x02\x04"
                    + self._pick((536, 1200, 1360, 1410, 1460, 8960)).to_bytes(2, "big"),
                    b"\x01",
                    b"\x01\x01",
                    b"\x03\x03\x07",
                    b"\x04\x02",
                    b"\x08\x0a" + bytes(8),
                    b"\x02\x04\x05\xb4",
                    b"\x02\x03\x05",
                    b"\x02\x00",
                    b"\xfe\x04\x12\x34",
                    b"\x00",
                    b"\x08",
                    b"\x1e\x08" + bytes(6),
                )
            )
        found = found[:40]
        filler = b"\x01" if self._chance(0.5) else b"\x00"
        return found + filler * (-len(found) % 4)

    def _transport(
        self, family: int, source: bytes, destination: bytes, *, backwards: bool
    ) -> tuple[int, bytes]:
        """(protocol, body). `backwards`: an ICMP error may quote what went the other way."""
        header = 20 if family == 4 else 40
        luck = self._random()
        if luck < 0.32:
            syn = self._chance(0.35)
            flags = self._pick((0x02, 0x12, 0xC2, 0x06)) if syn else self._below(256)
            options = self._tcp_options() if syn or self._chance(0.2) else b""
            words = self._below(16) if self._chance(0.03) else None
            return 6, tcp(
                source,
                destination,
                self._ports(),
                self._data(header + 20 + len(options)),
                flags=flags,
                options=options,
                mode=self._mode(),
                words=words,
            )
        if luck < 0.6:
            data = self._data(header + 8)
            return 17, udp(source, destination, self._ports(), data, mode=self._mode())
        if luck < 0.68:
            if family == 4:
                return 1, icmp4(self._pick((0, 8)), 0, 77, self._data(), mode=self._mode())
            message = self._pick((128, 129, 133, 134, 135, 136, 137, 130, 143, 200))
            body = b"\0\x4d\0\1" + self._data()
            return 58, icmp6(source, destination, message, 0, body, mode=self._mode())
        if luck < 0.9 and backwards:
            return self._error(family, source, destination)
        protocol = self._pick((0, 1, 2, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 253))
        return protocol, self._data()

    def _error(self, family: int, source: bytes, destination: bytes) -> tuple[int, bytes]:
        """An ICMP error from source to destination, about a packet of the destination's."""
        quoted_from, quoted_to = (
            (destination, source) if self._chance(0.85) else (source, destination)
        )
        if self._chance(0.1):
            quoted_to = self._address(self._vnis[0], family)
        quote = self._packet(family, quoted_from, quoted_to, backwards=False)
        luck = self._random()
        if luck < 0.4:
            least = 28 if family == 4 else 48
            quote = quote[: least + self._below(60)]
        elif luck < 0.5:
            quote = quote[: self._below(60)]
        else:
            quote = quote[: 548 if family == 4 else 1232]
        if family == 4:
            kind = self._pick((3, 3, 3, 11, 12, 5, 4, 0, 8, 13, 40))
            return 1, icmp4(kind, self._below(6), self._below(1500), quote, mode=self._mode())
        kind = self._pick((1, 2, 2, 3, 4, 0, 5, 100, 127, 128))
        body = self._below(1500).to_bytes(4, "big") + quote
        return 58, icmp6(source, destination, kind, self._below(5), body, mode=self._mode())

    def _extensions(self, protocol: int, body: bytes) -> tuple[int, bytes]:
        """IPv6 extension headers before a body."""
        for _ in range(1 + self._below(3) if self._chance(0.9) else self._below(12)):
            kind = self._pick((0, 43, 44, 44, 60, 60))
            if kind == 44:
                field = self._pick((0, 0, 1, 8, 9, 0x0100, 0x05C8, 6, 0xFFF8, self._below(65536)))
                body = bytes([protocol, 0]) + field.to_bytes(2, "big") + self._bytes(4) + body
            elif kind == 43:
                words = self._pick((0, 2, 4))
                left = self._below(3)
                body = (
                    bytes([protocol, words, self._below(5), left])
                    + self._bytes(4 + words * 8)
                    + body
                )
            else:
                words = self._pick((0, 0, 1, 3))
                body = bytes([protocol, words, 1, 4 + words * 8]) + bytes(4 + words * 8) + body
            protocol = kind
        return protocol, body

    def _packet(
        self, family: int, source: bytes, destination: bytes, *, backwards: bool = True
    ) -> bytes:
        """An IP packet between two addresses."""
        protocol, body = self._transport(family, source, destination, backwards=backwards)
        tos = self._below(256) if self._chance(0.6) else 0
        ttl = self._pick((0, 1, 64, 64, 255))
        if family == 6:
            if self._chance(0.15):
                protocol, body = self._extensions(protocol, body)
            length = self._lie(len(body))
            label = self._below(1 << 20) if self._chance(0.3) else 0
            return ipv6(
                source, destination, protocol, body, tos=tos, label=label, ttl=ttl, length=length
            )
        fragment = self._pick(
            (0, 0, 0, 0x4000, 0x4000, 0x4000, 0x2000, 0x2001, 0x00B9, 0x8000, self._below(65536))
        )
        options = b"\x94\x04\0\0" * self._below(11) if self._chance(0.08) else b""
        length = self._lie(20 + len(options) + len(body))
        words = self._below(16) if self._chance(0.02) else None
        return ipv4(
            source,
            destination,
            protocol,
            body,
            tos=tos,
            ident=self._below(65536),
            fragment=fragment,
            ttl=ttl,
            options=options,
            length=length,
            words=words,
            sum_mode=WRONG if self._chance(0.05) else FULL,
        )

    def _lie(self, length: int) -> int | None:
        """Mostly None, the truth; else something near it, or anything."""
        if self._chance(0.94):
            return None
        if self._chance(0.7):
            return max(0, length + self._pick((-20, -9, -8, -4, -1, 1, 4, 50)))
        return self._below(65536)

    # -- from a sandbox

    def _ethernet(self, ethertype: bytes, destination: bytes | None = None) -> bytes:
        config = self._node.config
        source = config.guest_mac
        if self._chance(0.02):
            source = self._bytes(6)
        if destination is None:
            destination = config.gateway_mac
            if self._chance(0.04):
                destination = self._pick((_BROADCAST, b"\x01\0\x5e\0\0\1", self._bytes(6)))
        return destination + source + ethertype

    def _packet4(self, binding: Binding) -> bytes:
        if 4 not in self._families:
            return self._packet6(binding)
        config = self._node.config
        source = guest_address(config, binding, 4)
        if self._chance(0.04):
            others = (binding.address, config.guest, ZERO4, config.gateway, self._bytes(4))
            source = self._pick(others)
        destination = self._address(binding.vni, 4)
        return self._ethernet(TYPE4) + self._packet(4, source, destination)

    def _packet6(self, binding: Binding) -> bytes:
        if 6 not in self._families:
            return self._packet4(binding)
        config = self._node.config
        source = guest_address(config, binding, 6)
        if self._chance(0.04):
            others = (binding.address6, config.guest6, ZERO6, config.gateway6, self._bytes(16))
            source = self._pick((*others, *_ODD6))
        destination = self._address(binding.vni, 6)
        return self._ethernet(TYPE6) + self._packet(6, source, destination)

    def _arp(self, binding: Binding) -> bytes:
        config = self._node.config
        sender = guest_address(config, binding, 4)
        if self._chance(0.15):
            sender = self._pick((binding.address, *_ODD4))
        target = config.gateway if self._chance(0.8) else self._address(binding.vni, 4)
        mac = config.guest_mac if self._chance(0.95) else self._bytes(6)
        body = b"\0\1\x08\0\x06\x04\0" + bytes([1 if self._chance(0.9) else self._below(4)])
        body += mac + sender + bytes(6) + target
        if self._chance(0.3):
            body += bytes(18)
        destination = _BROADCAST if self._chance(0.8) else None
        return self._ethernet(TYPE_ARP, destination) + body

    def _solicitation(self, binding: Binding) -> bytes:
        """Neighbour and router discovery (RFC 4861), as asked by a guest."""
        if 6 not in self._families:
            return self._arp(binding)
        config = self._node.config
        own = guest_address(config, binding, 6)
        target = config.gateway6 if self._chance(0.75) else self._pick((own, *_ODD6))
        source = own if self._chance(0.6) else self._pick((binding.address6, ZERO6, *_ODD6))
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        destination = group if self._chance(0.6) else self._pick((target, *_ODD6))
        kind = self._pick((135, 135, 135, 133, 133, 134, 136, 137))
        if kind == 133 and self._chance(0.8):
            destination = bytes.fromhex("ff020000000000000000000000000002")
        return self._discovery(kind, source, destination, target, config.guest_mac)

    def _discovery(
        self, kind: int, source: bytes, destination: bytes, target: bytes, mac: bytes
    ) -> bytes:
        body = bytes(4)
        if kind in (135, 136, 137):
            body += target
        for _ in range(self._pick((0, 1, 1, 1, 2))):
            link = mac if self._chance(0.8) else self._bytes(6)
            body += self._pick(
                (
                    b"\x01\x01" + link,
                    b"\x01\x01" + link,
                    b"\x02\x01" + link,
                    b"\x0e\x01" + self._bytes(6),
                    b"\x01\x00" + link,
                    b"\x18\x02" + bytes(14),
                )
            )
        code = 0 if self._chance(0.95) else self._below(256)
        mode = FULL if self._chance(0.85) else self._mode()
        message = icmp6(source, destination, kind, code, body, mode=mode)
        ttl = 255 if self._chance(0.93) else self._pick((64, 254, 1))
        multicast = b"\x33\x33" + destination[12:] if destination[0] == 0xFF else None
        packet = ipv6(source, destination, 58, message, ttl=ttl)
        if self._chance(0.03):
            protocol, extended = self._extensions(58, message)
            packet = ipv6(source, destination, protocol, extended, ttl=ttl)
        return self._ethernet(TYPE6, multicast) + packet

    def _membership(self, binding: Binding) -> bytes:
        """IGMP and MLD: who listens to which group."""
        config = self._node.config
        if (self._chance(0.5) and 4 in self._families) or 6 not in self._families:
            group = self._pick(_ODD4)
            packet = ipv4(
                config.guest, group, 2, b"\x16\0\0\0" + group, options=b"\x94\x04\0\0", ttl=1
            )
            return self._ethernet(TYPE4, b"\x01\0\x5e\0\0\x16") + packet
        source = self._pick((config.guest6, ZERO6, *_ODD6))
        group = self._pick(_ODD6)
        kind = self._pick((130, 131, 132, 143))
        message = icmp6(source, group, kind, 0, bytes(4) + group, mode=self._mode())
        packet = ipv6(source, group, 0, b"\x3a\0\x05\x02\0\0\1\0" + message, ttl=1)
        return self._ethernet(TYPE6, b"\x33\x33" + group[12:]) + packet

    def _dhcp(self, binding: Binding) -> bytes:
        """A DHCP client's messages (RFC 2131)."""
        if 4 not in self._families:
            return self._solicitation(binding)
        config = self._node.config
        kind = self._pick((1, 1, 1, 3, 3, 3, 8, 4, 7, 2, 5, 13))
        own, other = guest_address(config, binding, 4), self._pick((config.guest, binding.address))
        address = self._pick((own, own, other, ZERO4, self._bytes(4)))
        client = self._pick((ZERO4, ZERO4, own, other, self._bytes(4)))
        options = b"\x63\x82\x53\x63" + bytes([53, 1, kind])
        for _ in range(self._below(5)):
            options += self._pick(
                (
                    b"\x32\x04" + address,
                    b"\x36\x04" + (config.gateway if self._chance(0.8) else self._bytes(4)),
                    b"\x37\x04\x01\x03\x06\x1a",
                    b"\x3d\x07\x01" + config.guest_mac,
                    b"\x3d" + bytes([self._below(80)]) + self._bytes(self._below(80)),
                    b"\x0c\x05guest",
                    b"\x00" * self._below(5),
                    b"\x39\x02\x05\xdc",
                    b"\x35\x01" + bytes([self._below(9)]),
                    b"\x35\x02\x01\x01",
                )
            )
        if self._chance(0.9):
            options += b"\xff"
        if self._chance(0.7):
            options += bytes(max(0, 64 - len(options)))
        mac = config.guest_mac if self._chance(0.95) else self._bytes(6)
        head = bytes([1 if self._chance(0.97) else 2, 1, 6, 0])
        head += self._bytes(4) + bytes(2) + (b"\x80\0" if self._chance(0.5) else b"\0\0")
        relay = ZERO4 if self._chance(0.97) else self._bytes(4)
        body = head + client + ZERO4 + ZERO4 + relay + mac + bytes(10) + bytes(192) + options
        source = self._pick((ZERO4, ZERO4, own, client, self._bytes(4)))
        destination = self._pick((b"\xff" * 4, b"\xff" * 4, config.gateway, self._pick(_ODD4)))
        ports = (68, 67) if self._chance(0.95) else self._ports()
        datagram = udp(source, destination, ports, body, mode=self._mode())
        packet = ipv4(
            source, destination, 17, datagram, fragment=self._pick((0, 0, 0x4000, 0x2000))
        )
        ethernet = _BROADCAST if destination == b"\xff" * 4 else None
        return self._ethernet(TYPE4, ethernet) + packet

    def _dhcp6(self, binding: Binding) -> bytes:
        """A DHCPv6 client's messages (RFC 8415)."""
        if 6 not in self._families:
            return self._dhcp(binding)
        config = self._node.config
        own = guest_address(config, binding, 6)
        other = self._pick((config.guest6, binding.address6))
        kind = self._pick((1, 1, 1, 3, 3, 4, 5, 5, 6, 8, 9, 11, 2, 7, 10, self._below(256)))
        body = bytes([kind]) + self._bytes(3)
        options = [self._client_name()] if self._chance(0.9) else []
        if self._chance(0.9 if kind in (3, 5, 8, 9) else 0.1):
            options.append(self._server_name())
        for _ in range(self._pick((0, 1, 1, 1, 1, 1, 2)) if kind != 11 else self._below(2)):
            options.append(self._association((own, own, other, ZERO6, self._bytes(16))))
        for _ in range(self._below(4) if self._chance(0.95) else self._below(40)):
            options.append(
                self._pick(
                    (
                        b"\0\x0e\0\0",
                        b"\0\x0e\0\0",
                        b"\0\6\0\4\0\x17\0\x18",
                        b"\0\x08\0\2\0\0",
                        b"\0\5\0\x18" + own + bytes(8),
                        b"\0\x19\0\x0c" + self._bytes(12),
                        self._below(40).to_bytes(2, "big") + b"\0\1x",
                        self._client_name(),
                    )
                )
            )
        if self._chance(0.3):
            self._dice.shuffle(options)
        body += b"".join(options)
        local = bytes.fromhex("fe80000000000000004756fffe000002")
        source = local if self._chance(0.75) else self._pick((own, own, other, *_ODD6))
        servers = bytes.fromhex("ff020000000000000000000000010002")
        destination = servers if self._chance(0.93) else self._pick((config.gateway6, *_ODD6))
        ports = (546, 547) if self._chance(0.95) else self._ports()
        mode = FULL if self._chance(0.75) else self._mode()
        length = self._lie(8 + len(body))
        datagram = udp(source, destination, ports, body, mode=mode, length=length)
        packet = ipv6(source, destination, 17, datagram)
        if self._chance(0.03):
            packet = ipv6(source, destination, *self._extensions(17, datagram))
        multicast = b"\x33\x33" + destination[12:] if destination[0] == 0xFF else None
        return self._ethernet(TYPE6, multicast) + packet

    def _client_name(self) -> bytes:
        """A client's DUID; hardly any is as long as it may be."""
        size = self._pick((10, 14, 18, 18, 17, 1, 0, 128, 129, 130, 131, self._below(300)))
        return b"\0\1" + size.to_bytes(2, "big") + self._bytes(size)

    def _server_name(self) -> bytes:
        name = DUID if self._chance(0.9) else self._bytes(self._pick((18, 18, 10)))
        if self._chance(0.05):
            name = self._pick((DUID[:-1], DUID + b"\0", DUID[:-1] + b"\0", b"\0\3" + DUID[2:]))
        return b"\0\2" + len(name).to_bytes(2, "big") + name

    def _association(self, addresses: Sequence[bytes]) -> bytes:
        """An IA_NA, mostly with an address in it."""
        inner = b""
        for _ in range(self._pick((0, 1, 1, 1, 2))):
            held = b"\0\5\0\x18" + self._pick(addresses) + self._bytes(8)
            if self._chance(0.1):
                held = b"\0\5\0\x1e" + held[4:] + b"\0\x0d\0\2\0\0"
            odd = (b"\0\x0d\0\2\0\0", held[:-1], b"\0\5\0\2xx")
            inner += held if self._chance(0.7) else self._pick(odd)
        size = 12 + len(inner)
        if self._chance(0.05):
            size = max(0, size + self._pick((-30, -12, -1, 1, 4, 30)))
        return b"\0\3" + size.to_bytes(2, "big") + self._bytes(12) + inner

    def _other_type(self, binding: Binding) -> bytes:
        ethertype = self._pick((b"\x81\0", b"\x88\xcc", b"\0\x2e", b"\x12\x34", b"\x88\x47"))
        return self._ethernet(ethertype) + self._bytes(self._below(60))

    # -- from the wire

    def _outer_addresses(self) -> tuple[bytes, bytes]:
        """(sender, receiver) on the underlay."""
        config = self._node.config
        size = len(config.vtep) or 4
        vteps = [vtep for vtep in self._vteps if len(vtep) == size]
        source = self._pick(vteps) if vteps and self._chance(0.94) else self._bytes(size)
        destination = config.vtep or bytes(size)
        if self._chance(0.02):
            destination = self._bytes(size)
        return source, destination

    def _outer(
        self,
        payload: bytes,
        *,
        ports: tuple[int, int] | None = None,
        around: tuple[int, int] | None = None,
    ) -> bytes:
        """A UDP datagram to our VTEP, with an outer header that is mostly right."""
        source, destination = self._outer_addresses()
        if ports is None:
            port = self._node.config.port if self._chance(0.98) else self._below(65536)
            ports = (0x8000 + self._below(0x8000), port)
        luck = self._random()
        mode = ZERO if luck < 0.6 else FULL if luck < 0.82 else PARTIAL if luck < 0.96 else WRONG
        length = self._lie(8 + len(payload)) if self._chance(0.2) else None
        if around:
            datagram = udp_around(source, destination, ports, payload, *around)
        else:
            datagram = udp(source, destination, ports, payload, mode=mode, length=length)
        odd = self._chance(0.2)
        tos = self._below(256) if self._chance(0.6) else 0
        mac = self._mac if self._chance(0.98) else self._bytes(6)
        head = mac + self._bytes(6)
        if len(source) == 4:
            fragment = 0x4000 if self._chance(0.9) else self._pick((0, 0x2000, 1, 0x2001, 0x8000))
            options = b"\x01" * 4 * self._below(11) if self._chance(0.03) else b""
            return (
                head
                + TYPE4
                + ipv4(
                    source,
                    destination,
                    17 if self._chance(0.99) else self._below(256),
                    datagram,
                    tos=tos,
                    fragment=fragment,
                    ttl=self._pick((1, 64, 255)),
                    options=options,
                    length=self._lie(20 + len(options) + len(datagram)) if odd else None,
                    sum_mode=WRONG if self._chance(0.02) else FULL,
                )
            )
        protocol, body = 17, datagram
        if self._chance(0.05):
            protocol, body = self._extensions(protocol, body)
        return (
            head
            + TYPE6
            + ipv6(
                source,
                destination,
                protocol,
                body,
                tos=tos,
                label=self._below(1 << 20),
                length=self._lie(len(body)) if odd else None,
            )
        )

    def _options(self) -> tuple[bytes, int]:
        """(options, C bit): none, a few whole ones, or a soup."""
        luck = self._random()
        if luck < 0.45:
            return b"", 0x40 if self._chance(0.05) else 0
        found, critical = b"", False
        count = 1 + self._below(4) if luck < 0.85 else 1 + self._below(63)
        for _ in range(count):
            kind = self._below(128)
            if self._chance(0.02):
                kind |= 0x80
                critical = True
            words = self._pick((0, 0, 1, 1, 2, 3)) if self._chance(0.95) else self._below(32)
            group = self._pick((b"\x01\x08", b"\xff\xff", b"\0\0", self._bytes(2)))
            found += group + bytes([kind, self._below(8) << 5 | words]) + self._bytes(words * 4)
            if len(found) >= 252:
                break
        found = found[:252]
        flag = 0x40 if critical else 0
        if self._chance(0.05):
            flag ^= 0x40
        if self._chance(0.03):
            found = self._bytes(4 * self._below(64))
        return found, flag

    def _geneve(self, vni: int, payload: bytes, protocol: int) -> bytes:
        options, flags = self._options()
        if self._chance(0.3):
            flags |= self._below(0x40)
        if self._chance(0.02):
            flags |= 0x80
        words = self._below(64) if self._chance(0.02) else None
        return geneve(
            vni,
            payload,
            options=options,
            protocol=protocol,
            flags=flags,
            version=self._below(4) if self._chance(0.02) else 0,
            reserved=self._below(256),
            words=words,
        )

    def _vni(self) -> int:
        return self._pick(self._vnis) if self._chance(0.96) else self._below(1 << 24)

    def _inner_macs(self) -> bytes:
        return (
            self._node.config.gateway_mac if self._chance(0.6) else self._bytes(6)
        ) + self._bytes(6)

    def _tunnelled(self) -> bytes:
        vni = self._vni()
        family = self._pick(self._families)
        source, destination = self._address(vni, family), self._local(vni, family)
        if self._chance(0.07):
            return self._summed_around(vni, source, destination)
        packet = self._packet(family, source, destination)
        ethertype = TYPE4 if family == 4 else TYPE6
        luck = self._random()
        if luck < 0.78:
            if self._chance(0.03):
                ethertype = self._pick((b"\x81\0", b"\x88\xcc", TYPE4, TYPE6, b"\0\0"))
            return self._outer(self._geneve(vni, self._inner_macs() + ethertype + packet, 0x6558))
        protocol = int.from_bytes(ethertype, "big")
        if luck > 0.97:
            protocol = self._pick((0x0800, 0x86DD, 0x0806, 0x8847, 0, 0xFFFF))
        return self._outer(self._geneve(vni, packet, protocol))

    def _summed_around(self, vni: int, source: bytes, destination: bytes) -> bytes:
        """From a tunnel device of this machine, with an inner checksum left to a NIC."""
        make, protocol, at = self._pick(((tcp, 6, 16), (udp, 17, 6)))
        mode = PARTIAL if self._chance(0.85) else self._mode()
        body = make(source, destination, self._ports(), self._data(), mode=mode)
        field = int.from_bytes(body[at : at + 2], "big")
        ethertype, packet = TYPE4, b""
        if len(source) == 4:
            options = b"\x94\x04\0\0" * self._below(3)
            packet = ipv4(source, destination, protocol, body, options=options)
        else:
            ethertype, behind = TYPE6, body
            if self._chance(0.2):
                protocol, behind = self._extensions(protocol, body)
            packet = ipv6(source, destination, protocol, behind)
        if self._chance(0.8):
            inside = self._geneve(vni, self._inner_macs() + ethertype + packet, 0x6558)
        else:
            inside = self._geneve(vni, packet, int.from_bytes(ethertype, "big"))
        return self._outer(inside, around=(len(inside) - len(body), field))

    def _wire_arp(self) -> bytes:
        vni = self._vni()
        sender = self._address(vni, 4) if self._chance(0.95) else ZERO4
        mac = self._bytes(6)
        body = b"\0\1\x08\0\x06\x04\0" + bytes([1 if self._chance(0.9) else self._below(4)])
        body += mac + sender + bytes(6) + self._local(vni, 4)
        if self._chance(0.3):
            body += bytes(18)
        return self._outer(self._geneve(vni, _BROADCAST + mac + TYPE_ARP + body, 0x6558))

    def _wire_solicitation(self) -> bytes:
        if 6 not in self._families:
            return self._wire_arp()
        vni = self._vni()
        source = self._address(vni, 6) if self._chance(0.9) else ZERO6
        target = self._local(vni, 6)
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        destination = group if self._chance(0.7) else self._pick((target, *_ODD6))
        kind = self._pick((135, 135, 135, 135, 133, 136))
        frame = self._discovery(kind, source, destination, target, self._bytes(6))
        return self._outer(self._geneve(vni, frame, 0x6558))

    def _complaint(self) -> bytes:
        """ICMP about something that we sent on the underlay, or somebody else did."""
        config = self._node.config
        sender, receiver = self._outer_addresses()
        router = sender if self._chance(0.3) else self._stranger(len(sender))
        port = config.port if self._chance(0.9) else self._below(65536)
        ours = self._chance(0.9)
        inside = geneve(
            self._vni(),
            self._bytes(self._below(60)),
            protocol=0x6558 if ours else self._below(65536),
            version=0 if ours else self._below(4),
            reserved=0 if ours else self._below(3),
        )
        datagram = udp(receiver, sender, (0x8000 + self._below(0x8000), port), inside, mode=ZERO)
        mtu = self._pick((0, 68, 552, 575, 576, 1279, 1280, 1400, 1499, 1500, 1501, 9000, 65535))
        sent = self._pick((1400, 1500, 1500, 1500, 9000, 600, 1280, 100, 65535))
        head = (self._mac if self._chance(0.98) else self._bytes(6)) + self._bytes(6)
        if len(sender) == 4:
            fragment = 0x4000 if self._chance(0.95) else self._pick((0, 0x2000, 0x4001))
            quote = ipv4(receiver, sender, 17, datagram, fragment=fragment, length=sent)
            quote = quote[: self._pick((28, 28, 36, 548, 20, 27, 24, 32))]
            kind, code = (3, 4) if self._chance(0.85) else (self._below(13), self._below(6))
            message = icmp4(kind, code, mtu, quote, mode=self._mode())
            return head + TYPE4 + ipv4(router, config.vtep or receiver, 1, message)
        quote = ipv6(receiver, sender, 17, datagram, length=sent - 40)
        quote = quote[: self._pick((48, 56, 1232, 40, 47, 44, 52))]
        kind = 2 if self._chance(0.85) else self._below(6)
        body = mtu.to_bytes(4, "big") + quote
        target = config.vtep or receiver
        message = icmp6(router, target, kind, 0, body, mode=self._mode())
        return head + TYPE6 + ipv6(router, target, 58, message)

    def _strangers(self) -> bytes:
        """What is not Geneve at all."""
        luck = self._random()
        if luck < 0.3:
            return self._outer(self._data(), ports=(53, 53))
        if luck < 0.5:
            return self._outer(self._bytes(self._below(30)))
        family = self._pick((4, 6))
        source, destination = self._bytes(16), self._pick(_ODD6)
        if family == 4:
            source, destination = source[:4], self._node.config.vtep[:4].ljust(4, b"\0")
        ethertype = TYPE4 if family == 4 else TYPE6
        if luck > 0.9:
            ethertype = self._pick((TYPE_ARP, b"\x88\xcc", TYPE4, TYPE6))
        return self._mac + self._bytes(6) + ethertype + self._packet(family, source, destination)
