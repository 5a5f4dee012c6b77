# SPDX-License-Identifier: Apache-2.0
"""Asks the node's own programs what becomes of a packet, without sending one.

BPF_PROG_TEST_RUN gives a pinned program a frame, with the maps as they are, and
hands back its verdict and what it made of the frame. A redirect is not carried
out, so nobody receives anything; the counters count it as any other packet.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.abi import Direction
from geneve_ebpf.dataplane.config import read_config
from geneve_ebpf.dataplane.plane import DataPlane
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import Address, AddressMode, Attachment

_REDIRECT = 7  # TC_ACT_REDIRECT
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_UDP = 17
_DISCARD = 9  # the port, RFC 863
_ETHERNET_IN_GENEVE = 0x6558
_NO_MAC = bytes(6)  # the loopback interface's, which a run without an interface comes from
_PAYLOAD = b"geneve-ebpf probe"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one program did with a packet of one family."""

    program: str
    family: int  # 4 or 6
    passed: bool
    saw: str  # in words


class Prober:
    """Probes attachments of one node. Its calls must be made in the node's namespace.

    Raises GeneveError or OSError if the node cannot be asked; then nothing stays open.
    """

    def __init__(self, plane: DataPlane, run_directory: Path) -> None:
        pins = Pins(run_directory)
        self._plane = plane
        self._config = read_config(pins)
        self._programs: dict[str, int] = {}
        try:
            for name in ("sandbox_tx", "uplink_rx"):
                self._programs[name] = bpf.open_pin(pins.program(name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the descriptors."""
        for fd in self._programs.values():
            os.close(fd)

    def probe(self, attachment: Attachment, ifindex: int) -> list[Probe]:
        """Whether a packet of its own reaches the sandbox, from itself and from the wire.

        ifindex: of the slot's host-side interface. For each address: the guest's
        packet to that very address must come back to it translated, and so must
        one in Geneve from a known VTEP; without a VTEP there is nothing to try.
        """
        return list(self._probes(attachment, ifindex))

    def _probes(self, attachment: Attachment, ifindex: int) -> Iterator[Probe]:
        config = self._config
        vtep = next(self._plane.vteps(), None)
        for own in attachment.endpoint.addresses:
            guest: Address = config.guest_address if own.version == 4 else config.guest_address6
            if attachment.mode is AddressMode.NATIVE:
                guest = own
            wanted = _ethernet(config.guest_mac, config.gateway_mac, _datagram(own, guest))
            sent = _ethernet(config.gateway_mac, config.guest_mac, _datagram(guest, own))
            yield self._probe("sandbox_tx", own, sent, wanted, ifindex)
            if vtep is None:
                continue
            mac = attachment.endpoint.mac.octets
            inside = _ethernet(config.gateway_mac, mac, _datagram(own, own))
            geneve = struct.pack("!HHI", 0, _ETHERNET_IN_GENEVE, attachment.endpoint.vni << 8)
            outer = _packet(
                vtep.address, config.vtep, 0xC000, config.udp_port, geneve + inside, summed=False
            )
            yield self._probe("uplink_rx", own, _ethernet(_NO_MAC, _NO_MAC, outer), wanted, 0)

    def _probe(self, program: str, own: Address, sent: bytes, wanted: bytes, ifindex: int) -> Probe:
        fd = self._programs[program]
        try:
            ran = bpf.test_run(fd, sent, ifindex=ifindex)
            if ran.verdict == _REDIRECT and ran.frame == wanted:
                return Probe(program, own.version, True, f"{own} is delivered to the guest")
            if ran.verdict == _REDIRECT:
                saw = f"{own} is delivered as {ran.frame.hex()}, not {wanted.hex()}"
            else:
                saw = self._why(program, fd, sent, ifindex, ran.verdict)
        except OSError as error:
            saw = f"the kernel does not run {program}: {error.strerror}"
        return Probe(program, own.version, False, saw)

    def _why(self, program: str, fd: int, sent: bytes, ifindex: int, verdict: int) -> str:
        """In words why a packet was refused: once more, to see which reason is counted."""
        way = Direction.TX if program == "sandbox_tx" else Direction.RX
        before = {one.reason: one.packets for one in self._plane.drops() if one.direction is way}
        bpf.test_run(fd, sent, ifindex=ifindex)
        grown = [
            one.reason.slug
            for one in self._plane.drops()
            if one.direction is way and one.packets > before[one.reason]
        ]
        return f"dropped: {' or '.join(grown)}" if grown else f"not delivered: verdict {verdict}"


def not_probed(attachment: Attachment, why: str) -> list[Probe]:
    """What is said of each address if the node could not be asked at all."""
    return [
        Probe("sandbox_tx", own.version, False, f"{own} was not looked at: {why}")
        for own in attachment.endpoint.addresses
    ]


def _ethernet(destination: bytes, source: bytes, packet: bytes) -> bytes:
    return destination + source + struct.pack("!H", _ETHERTYPE[packet[0] >> 4]) + packet


def _datagram(source: Address, destination: Address) -> bytes:
    return _packet(source, destination, _DISCARD, _DISCARD, _PAYLOAD, summed=True)


def _packet(
    source: Address, destination: Address, sport: int, dport: int, payload: bytes, *, summed: bool
) -> bytes:
    """UDP in IP, with checksums; a zero one in UDP if it is not to be summed."""
    length = 8 + len(payload)
    udp = struct.pack("!4H", sport, dport, length, 0) + payload
    if summed:
        pseudo = source.packed + destination.packed + struct.pack("!2I", length, _UDP)
        udp = udp[:6] + struct.pack("!H", _checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, length, _UDP, 64)
        return head + source.packed + destination.packed + udp
    head = struct.pack("!BBHIBB", 0x45, 0, 20 + length, 0, 64, _UDP)
    ends = source.packed + destination.packed
    return head + struct.pack("!H", _checksum(head + ends)) + ends + udp


def _checksum(octets: bytes) -> int:
    """RFC 1071's."""
    octets += bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
