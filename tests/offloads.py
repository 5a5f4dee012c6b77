# SPDX-License-Identifier: Apache-2.0
"""Offloads as tests see them: what a device takes, how GSO frames are cut, what the kernel says."""

from __future__ import annotations

import re
import socket
import sys

from tests.nodes import Sandbox, run

SUPERPACKETS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")

_SOL_PACKET, _PACKET_VNET_HEADER, _SO_RCVBUFFORCE = 263, 15, 33
# How the kernel reports a frame whose marks contradict each other.
_COMPLAINT = re.compile(r"WARNING:|BUG:|bad gso|hw csum failure|Call Trace|caps=")


def kernel_log() -> set[str]:
    """All lines that the kernel has written so far and still has, with their times."""
    return set(run("dmesg").splitlines())


def complaints(since: set[str]) -> list[str]:
    """What the kernel has complained of since its log was `since`."""
    return [line for line in kernel_log() - since if _COMPLAINT.search(line)]


class SegmentSizes:
    """Listens on a sandbox's eth0 for how long the segments of GSO frames are, by the kernel."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._socket = sandbox.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HEADER, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("eth0", 0x0003))

    def seen(self) -> set[int]:
        """Of the frames that came in since the start."""
        found = set()
        while True:
            try:
                data, (_, _, kind, *_) = self._socket.recvfrom(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            size = int.from_bytes(data[4:6], sys.byteorder)  # struct virtio_net_hdr
            if kind != socket.PACKET_OUTGOING and data[1] and size:
                found.add(size)
