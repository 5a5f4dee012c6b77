# SPDX-License-Identifier: Apache-2.0
"""Frames as bytes: capture them, take them apart, put them together, verify their checksums.

Written from the RFCs with `struct` alone, so that nothing which makes our packets
judges them: not the kernel's view, not scapy's, not the headers in bpf/.
"""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from geneve_ebpf.host import namespaces

ETH_ALL, IPV4, ARP, VLAN, TRANSPARENT_ETHERNET = 0x0003, 0x0800, 0x0806, 0x8100, 0x6558
IPV6 = 0x86DD
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
BROADCAST = "ff:ff:ff:ff:ff:ff"
GENEVE_PORT = 6081
UNDERLAY = IPv4Network("192.0.2.0/23")  # every bed's outer addresses
UNDERLAY6 = IPv6Network("2001:db8::/32")

_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_PACKET_OUTGOING = 4
_STATUS_CHECKSUM_NOT_READY, _STATUS_VLAN_VALID = 1 << 3, 1 << 4
_STATUS_CHECKSUM_VALID = 1 << 7
_SO_RCVBUFFORCE = 33
_AUXDATA = struct.Struct("=IIIHHHH")


# -- taking apart


def ones_sum(data: bytes) -> int:
    """RFC 1071: the 16-bit one's complement sum, folded and not inverted."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """What belongs into a checksum field that is 0 in `data`."""
    return ~ones_sum(data) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet frame without tags."""

    destination: str
    source: str
    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ipv4:
    """An IPv4 packet, cut to its total length."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    ttl: int
    tos: int
    dont_fragment: bool
    more_fragments: bool
    offset: int  # bytes
    length: int  # by the header
    header_size: int
    header_right: bool  # the header's checksum
    payload: bytes

    @property
    def pseudo_header(self) -> bytes:
        """What TCP and UDP sum besides themselves."""
        return (
            self.source.packed
            + self.destination.packed
            + struct.pack("!BBH", 0, self.protocol, len(self.payload))
        )

    @property
    def payload_right(self) -> bool:
        """Whether the L4 checksum holds. A UDP checksum of 0 says nothing and passes."""
        if self.offset or self.more_fragments:
            raise ValueError("a fragment's checksum covers more than the fragment")
        if self.protocol == ICMP:
            return ones_sum(self.payload) == 0xFFFF
        if self.protocol == UDP and self.payload[6:8] == b"\0\0":
            return True
        return ones_sum(self.pseudo_header + self.payload) == 0xFFFF


@dataclass(frozen=True, slots=True)
class Ipv6:
    """An IPv6 packet, cut to its length; the names are those of `Ipv4`.

    Extension headers count as header, and `protocol` is what follows them.
    """

    source: IPv6Address
    destination: IPv6Address
    protocol: int
    ttl: int  # hop limit
    tos: int  # traffic class
    flow_label: int
    more_fragments: bool
    offset: int  # bytes
    length: int  # with the header
    header_size: int  # with extension headers
    payload: bytes

    dont_fragment = True  # nobody on the way does
    header_right = True  # there is no checksum to be wrong

    @property
    def pseudo_header(self) -> bytes:
        """RFC 8200 section 8.1."""
        ends = self.source.packed + self.destination.packed
        return ends + struct.pack("!II", len(self.payload), self.protocol)

    @property
    def payload_right(self) -> bool:
        """Whether the L4 checksum holds. A UDP checksum of 0 is a tunnel's right (RFC 6935)."""
        if self.offset or self.more_fragments:
            raise ValueError("a fragment's checksum covers more than the fragment")
        if self.protocol == UDP and self.payload[6:8] == b"\0\0":
            return self.payload[2:4] == GENEVE_PORT.to_bytes(2, "big")
        return ones_sum(self.pseudo_header + self.payload) == 0xFFFF


Ip = Ipv4 | Ipv6


@dataclass(frozen=True, slots=True)
class Udp:
    """A UDP datagram."""

    source: int
    destination: int
    length: int
    checksum: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Geneve:
    """RFC 8926 section 3.4."""

    version: int
    control: bool
    critical: bool
    protocol: int
    vni: int
    options: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A Geneve packet, from outer Ethernet to what it carries."""

    eth: Ethernet
    ip: Ip
    udp: Udp
    geneve: Geneve
    inner: Ethernet

    @property
    def packet(self) -> Ip:
        """The inner IP packet."""
        return parse_ip(self.inner.payload)


def parse_ethernet(data: bytes) -> Ethernet:
    """The first 14 bytes and the rest."""
    return Ethernet(
        data[:6].hex(":"), data[6:12].hex(":"), int.from_bytes(data[12:14], "big"), data[14:]
    )


def parse_ip(data: bytes) -> Ip:
    """Either family. Raises ValueError for what is no IP packet or is cut off."""
    if data and data[0] >> 4 == 6:
        return _parse_ipv6(data)
    first, tos, length, _, fragment, ttl, protocol, _, source, destination = struct.unpack_from(
        "!BBHHHBBH4s4s", data
    )
    size = (first & 15) * 4
    if first >> 4 != 4 or size < 20 or length < size or length > len(data):
        raise ValueError(f"no IP packet: {data[:20].hex()}")
    return Ipv4(
        IPv4Address(source),
        IPv4Address(destination),
        protocol,
        ttl,
        tos,
        bool(fragment & 0x4000),
        bool(fragment & 0x2000),
        (fragment & 0x1FFF) * 8,
        length,
        size,
        ones_sum(data[:size]) == 0xFFFF,
        data[size:length],
    )


def _parse_ipv6(data: bytes) -> Ipv6:
    first, size, protocol, hops, source, destination = struct.unpack_from("!IHBB16s16s", data)
    at, end, fragment = 40, 40 + size, 0
    if end > len(data):
        raise ValueError(f"no whole IPv6 packet: {data[:40].hex()}")
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS):
        if at + 8 > end:
            raise ValueError(f"an extension header is cut off: {data[:at].hex()}")
        if protocol == FRAGMENT:
            fragment = int.from_bytes(data[at + 2 : at + 4], "big")
        length = 8 if protocol == FRAGMENT else (data[at + 1] + 1) * 8
        protocol, at = data[at], at + length
    return Ipv6(
        IPv6Address(source),
        IPv6Address(destination),
        protocol,
        hops,
        first >> 20 & 0xFF,
        first & 0xFFFFF,
        bool(fragment & 1),
        fragment & 0xFFF8,
        end,
        at,
        data[at:end],
    )


def parse_udp(data: bytes) -> Udp:
    """A UDP header and what follows."""
    return Udp(*struct.unpack_from("!HHHH", data), data[8:])


def parse_geneve(data: bytes) -> Geneve:
    """A Geneve header and what follows."""
    first, flags, protocol, vni = struct.unpack_from("!BBHI", data)
    end = 8 + (first & 0x3F) * 4
    return Geneve(
        first >> 6,
        bool(flags & 0x80),
        bool(flags & 0x40),
        protocol,
        vni >> 8,
        data[8:end],
        data[end:],
    )


@dataclass(frozen=True, slots=True)
class Option:
    """RFC 8926 section 3.5. The uppermost bit of the type: whoever ends the tunnel must know it."""

    option_class: int
    kind: int
    data: bytes


def parse_options(data: bytes) -> list[Option]:
    """The options of a Geneve header, in their order. Raises ValueError if their lengths lie."""
    found = []
    while data:
        if len(data) < 4 or len(data) < (size := 4 + (data[3] & 31) * 4):
            raise ValueError(f"an option is cut off: {data.hex()}")
        found.append(Option(int.from_bytes(data[:2], "big"), data[2], data[4:size]))
        data = data[size:]
    return found


def parse_tunnel(data: bytes, port: int = GENEVE_PORT) -> Tunnel | None:
    """The Geneve packet in an Ethernet frame; None if the frame is something else."""
    eth = parse_ethernet(data)
    if eth.kind not in (IPV4, IPV6):
        return None
    ip = parse_ip(eth.payload)
    if ip.protocol != UDP or ip.offset:
        return None
    udp = parse_udp(ip.payload)
    if udp.destination != port:
        return None
    geneve = parse_geneve(udp.payload)
    return Tunnel(eth, ip, udp, geneve, parse_ethernet(geneve.payload))


# -- putting together


def mac_bytes(mac: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame."""
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, vlan: int) -> bytes:
    """The frame with an 802.1Q tag in it, as on a wire."""
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def ipv4(source: object, destination: object, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet without options."""
    ends = IPv4Address(str(source)).packed + IPv4Address(str(destination)).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(
    source: object, destination: object, protocol: int, payload: bytes, *, hops: int = 64
) -> bytes:
    """An IPv6 packet without extension headers."""
    ends = IPv6Address(str(source)).packed + IPv6Address(str(destination)).packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ends + payload


def udp(source: object, destination: object, ports: tuple[int, int], payload: bytes) -> bytes:
    """An IP packet, of its addresses' family, with a UDP datagram and its checksum."""
    length = 8 + len(payload)
    ends = ip_address(str(source)).packed + ip_address(str(destination)).packed
    pseudo = ends + struct.pack("!II", length, UDP)  # sums up as the one of IPv4 does
    header = struct.pack("!HHHH", *ports, length, 0)
    value = checksum(pseudo + header + payload) or 0xFFFF
    datagram = header[:6] + struct.pack("!H", value) + payload
    return (ipv4 if len(ends) == 8 else ipv6)(source, destination, UDP, datagram)


def neighbour_solicitation(source_mac: str, source: object, target: object) -> bytes:
    """Who has `target`, asked of its solicited-node group (RFC 4861)? From Ethernet header on."""
    wanted = IPv6Address(str(target)).packed
    group = IPv6Address("ff02::1:ff00:0").packed[:13] + wanted[13:]
    link = b"\x01\x01" + mac_bytes(source_mac)
    ends = IPv6Address(str(source)).packed + group
    question = b"\x87\0\0\0" + bytes(4) + wanted + link
    sum_of_it = checksum(ends + struct.pack("!II", len(question), ICMP6) + question)
    question = question[:2] + struct.pack("!H", sum_of_it) + question[4:]
    packet = ipv6(source, IPv6Address(group), ICMP6, question, hops=255)
    return ethernet("33:33:" + group[12:].hex(":"), source_mac, IPV6, packet)


def arp_request(source_mac: str, source: object, target: object) -> bytes:
    """Who has `target`? Without Ethernet header."""
    return (
        struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
        + mac_bytes(source_mac)
        + IPv4Address(str(source)).packed
        + bytes(6)
        + IPv4Address(str(target)).packed
    )


def geneve(vni: int, payload: bytes, *, protocol: int = TRANSPARENT_ETHERNET) -> bytes:
    """A Geneve header without options, and its payload."""
    return struct.pack("!BBHI", 0, 0, protocol, vni << 8) + payload


# -- capturing


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame as it passed an interface."""

    data: bytes  # without the VLAN tag
    outgoing: bool
    vlan: int | None
    checksum_pending: bool  # L4 checksum left to the device: right by contract, not in the bytes
    checksum_verified: bool  # by the device, or on the way from it


def _is_neighbours_talk(frame: bytes) -> bool:
    """ARP, neighbour discovery or group membership among nodes, not inside a tunnel."""
    eth = parse_ethernet(frame)
    if eth.kind == IPV6:
        packet = parse_ip(eth.payload)
        silent = packet.source.is_link_local or packet.source.is_unspecified
        return packet.protocol == ICMP6 and (
            packet.payload[0] in (143, 131, 132)
            or (packet.payload[0] in range(133, 138) and (silent or packet.source in UNDERLAY6))
        )
    if eth.kind != ARP or len(eth.payload) < 28:
        return False
    ends = IPv4Address(eth.payload[14:18]), IPv4Address(eth.payload[24:28])
    return all(end in UNDERLAY for end in ends)


class Capture:
    """Listens on one interface, both ways, from the moment it is made.

    Sees what comes in after GRO and before tc, and what goes out after
    segmentation: on an interface that segments in hardware, superpackets.
    """

    def __init__(self, netns: Path, interface: str) -> None:
        with namespaces.entering(netns):
            # Protocol 0 at first: nothing is queued before the interface is named.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 128 << 20)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.bind((interface, ETH_ALL))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frames(self) -> list[Captured]:
        """What passed since the last call. Fails if the socket overflowed."""
        found = []
        while True:
            try:
                data, ancillary, _, where = self._socket.recvmsg(
                    1 << 17, socket.CMSG_SPACE(_AUXDATA.size), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                break
            status = tci = 0
            for level, kind, value in ancillary:
                if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                    status, _, _, _, _, tci, _ = _AUXDATA.unpack(value)
            found.append(
                Captured(
                    data,
                    where[2] == _PACKET_OUTGOING,
                    tci & 0xFFF if status & _STATUS_VLAN_VALID else None,
                    bool(status & _STATUS_CHECKSUM_NOT_READY),
                    bool(status & _STATUS_CHECKSUM_VALID),
                )
            )
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert not lost, f"the capture missed {lost} frames"
        return found

    def strays(self) -> list[Captured]:
        """As `frames`, without ARP and ND among nodes: kernels renew neighbours when they like."""
        return [one for one in self.frames() if not _is_neighbours_talk(one.data)]

    def wait(self, seconds: float = 2.0) -> list[Captured]:
        """The next frames; [] if none came in time."""
        select.select([self._socket], [], [], seconds)
        return self.frames()

    def tunnels(self, port: int = GENEVE_PORT) -> list[Tunnel]:
        """The Geneve packets among `frames`."""
        return [found for one in self.frames() if (found := parse_tunnel(one.data, port))]
