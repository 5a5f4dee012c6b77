# SPDX-License-Identifier: Apache-2.0
"""A virtual machine's end of a tap: frames with virtio's header in front, written and read."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from dataclasses import dataclass

from geneve_ebpf.host import namespaces, taps
from geneve_ebpf.model import TAP, Endpoint, endpoint_mac, ip_address
from tests.nodes import BLUE, Node, six
from tests.patience import PATIENCE

OWN = "10.0.1.5"  # the machine's address in its VPC
CHECKSUM, TSO = 1, 6  # linux/if_tun.h: TUN_F_CSUM; TUN_F_TSO4 and TUN_F_TSO6

_TUNSETOFFLOAD = 0x400454D0
_HEADER = struct.Struct("=BBHHHH")  # flags, GSO type, header, segment, sum's start, its offset
_NEEDS_CHECKSUM, _GSO_TCP = 1, {4: 1, 6: 4}


@dataclass(frozen=True, slots=True)
class Received:
    """A frame that came out of the tap, and where its checksum is to be completed; 0: nowhere."""

    frame: bytes
    start: int
    field: int
    merged: bool  # it is to be cut into segments


class Tap:
    """The machine's network interface, attached to a VPC."""

    def __init__(self, node: Node, kind: str, *, offloads: int, vni: int = BLUE) -> None:
        """offloads: what the machine says that it does for the frames it is given."""
        self.node = node
        self.slot = node.tap_slot(kind)
        with namespaces.entering(node.netns if kind == "host-tap" else node.place.netns(self.slot)):
            name = node.host_interface(self.slot) if kind == "host-tap" else TAP
            self._fd = taps.open_tap(name)
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, offloads)
        own, own6 = ip_address(OWN), ip_address(six(OWN))
        name = f"machine-{vni}"
        node.plane.attach(self.slot, name, Endpoint(vni, own, endpoint_mac(own), own6))

    def close(self) -> None:
        """Switch it off."""
        os.close(self._fd)

    def send(self, frame: bytes, *, start: int = 0, offset: int = 0, segment: int = 0) -> None:
        """
        A frame whose checksum, if `start` says where, is not made yet; with `segment`, GSO.

        Not one sooner after another than a sandbox gets answers about them.
        """
        time.sleep(0.01)
        kind = _GSO_TCP[6 if frame[12:14] == b"\x86\xdd" else 4] if segment else 0
        flags = _NEEDS_CHECKSUM if start else 0
        header = start + 20 if segment else 0
        os.write(self._fd, _HEADER.pack(flags, kind, header, segment, start, offset) + frame)

    def receive(self) -> Received:
        """The next frame. Fails if none comes."""
        assert select.select([self._fd], [], [], 2 * PATIENCE)[0]
        data = os.read(self._fd, 1 << 17)
        flags, kind, _, _, start, offset = _HEADER.unpack_from(data)
        if not flags & _NEEDS_CHECKSUM:
            start = offset = 0
        return Received(data[_HEADER.size :], start, start + offset, kind != 0)
