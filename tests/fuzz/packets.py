# SPDX-License-Identifier: Apache-2.0
"""IP packets between two addresses, of all kinds that a sandbox may send or receive."""

from __future__ import annotations

from tests.fuzz.builder import FULL, PARTIAL, WRONG, ZERO, icmp4, icmp6, ipv4, ipv6, tcp, udp
from tests.fuzz.dice import Dice

_PORTS = (0, 1, 53, 67, 68, 80, 443, 4789, 6081, 33000, 65535)


class Packets(Dice):
    """Transport headers with options, extension headers, fragments, quotes, lengths that lie."""

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
