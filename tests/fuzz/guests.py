# SPDX-License-Identifier: Apache-2.0
"""What a sandbox sends, its questions to its gateway above all."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.builder import FULL, icmp6, ipv4, ipv6, udp
from tests.fuzz.dice import ODD4, ODD6
from tests.fuzz.packets import Packets
from tests.model.dhcp6 import DUID
from tests.model.state import ZERO4, ZERO6, Binding, guest_address

TYPE4, TYPE6, TYPE_ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"
BROADCAST = b"\xff" * 6


class Guests(Packets):
    """ARP, neighbour discovery, DHCP of both families, group memberships; and packets."""

    def _ethernet(self, ethertype: bytes, destination: bytes | None = None) -> bytes:
        config = self._node.config
        source = config.guest_mac
        if self._chance(0.02):
            source = self._bytes(6)
        if destination is None:
            destination = config.gateway_mac
            if self._chance(0.04):
                destination = self._pick((BROADCAST, b"\x01\0\x5e\0\0\1", self._bytes(6)))
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
            source = self._pick((*others, *ODD6))
        destination = self._address(binding.vni, 6)
        return self._ethernet(TYPE6) + self._packet(6, source, destination)

    def _arp(self, binding: Binding) -> bytes:
        config = self._node.config
        sender = guest_address(config, binding, 4)
        if self._chance(0.15):
            sender = self._pick((binding.address, *ODD4))
        target = config.gateway if self._chance(0.8) else self._address(binding.vni, 4)
        mac = config.guest_mac if self._chance(0.95) else self._bytes(6)
        body = b"\0\1\x08\0\x06\x04\0" + bytes([1 if self._chance(0.9) else self._below(4)])
        body += mac + sender + bytes(6) + target
        if self._chance(0.3):
            body += bytes(18)
        destination = BROADCAST if self._chance(0.8) else None
        return self._ethernet(TYPE_ARP, destination) + body

    def _solicitation(self, binding: Binding) -> bytes:
        """Neighbour and router discovery (RFC 4861), as asked by a guest."""
        if 6 not in self._families:
            return self._arp(binding)
        config = self._node.config
        own = guest_address(config, binding, 6)
        target = config.gateway6 if self._chance(0.75) else self._pick((own, *ODD6))
        source = own if self._chance(0.6) else self._pick((binding.address6, ZERO6, *ODD6))
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        destination = group if self._chance(0.6) else self._pick((target, *ODD6))
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
            group = self._pick(ODD4)
            packet = ipv4(
                config.guest, group, 2, b"\x16\0\0\0" + group, options=b"\x94\x04\0\0", ttl=1
            )
            return self._ethernet(TYPE4, b"\x01\0\x5e\0\0\x16") + packet
        source = self._pick((config.guest6, ZERO6, *ODD6))
        group = self._pick(ODD6)
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
        destination = self._pick((b"\xff" * 4, b"\xff" * 4, config.gateway, self._pick(ODD4)))
        ports = (68, 67) if self._chance(0.95) else self._ports()
        datagram = udp(source, destination, ports, body, mode=self._mode())
        packet = ipv4(
            source, destination, 17, datagram, fragment=self._pick((0, 0, 0x4000, 0x2000))
        )
        ethernet = BROADCAST if destination == b"\xff" * 4 else None
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
        source = local if self._chance(0.75) else self._pick((own, own, other, *ODD6))
        servers = bytes.fromhex("ff020000000000000000000000010002")
        destination = servers if self._chance(0.93) else self._pick((config.gateway6, *ODD6))
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
