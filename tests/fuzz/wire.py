# SPDX-License-Identifier: Apache-2.0
"""What the underlay brings: Geneve from other nodes, ICMP about ours, and strangers."""

from __future__ import annotations

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
from tests.fuzz.dice import ODD6
from tests.fuzz.guests import BROADCAST, TYPE4, TYPE6, TYPE_ARP, Guests
from tests.model.state import ZERO4, ZERO6


class Wire(Guests):
    """Outer headers that are mostly right around inner frames that mostly are."""

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
        return self._outer(self._geneve(vni, BROADCAST + mac + TYPE_ARP + body, 0x6558))

    def _wire_solicitation(self) -> bytes:
        if 6 not in self._families:
            return self._wire_arp()
        vni = self._vni()
        source = self._address(vni, 6) if self._chance(0.9) else ZERO6
        target = self._local(vni, 6)
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        destination = group if self._chance(0.7) else self._pick((target, *ODD6))
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
        source, destination = self._bytes(16), self._pick(ODD6)
        if family == 4:
            source, destination = source[:4], self._node.config.vtep[:4].ljust(4, b"\0")
        ethertype = TYPE4 if family == 4 else TYPE6
        if luck > 0.9:
            ethertype = self._pick((TYPE_ARP, b"\x88\xcc", TYPE4, TYPE6))
        return self._mac + self._bytes(6) + ethertype + self._packet(family, source, destination)
