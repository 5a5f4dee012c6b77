# SPDX-License-Identifier: Apache-2.0
"""Frames on the wire that the receiving kernel takes in one poll, as they come from a busy NIC."""

from __future__ import annotations

import socket

from tests.nodes import Bed, Node, inside, run
from tests.packets import TCP, Packet, Raw, in_vpc, on_wire


class Wire:
    """Puts frames on the wire to the second node, which holds them until it has seen them all."""

    def __init__(self, bed: Bed) -> None:
        self.a, self.b = bed.nodes
        self._macs = [self._mac(node) for node in bed.nodes]
        self._socket = self.a.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind(("uplink0", 0))

    def _mac(self, node: Node) -> str:
        return node.run("ip", "-o", "link", "show", "uplink0").split("link/ether ")[1].split()[0]

    def frame(self, inner: Packet, **fields: object) -> bytes:
        """The inner frame in Geneve from the first node, or what `fields` say."""
        ends = {"src": self.a.vtep, "dst": self.b.vtep}
        macs = {"eth_src": self._macs[0], "eth_dst": self._macs[1]}
        return bytes(on_wire(inner, **{**ends, **macs, **fields}))  # type: ignore[arg-type]

    def segments(self, count: int, to: str = "10.0.2.5") -> list[Packet]:
        """What follows one another in one TCP flow from 10.0.1.6."""
        return [
            in_vpc(
                TCP(sport=1000, dport=2000, flags="A", seq=1 + 1000 * n) / Raw(bytes([n]) * 1000),
                "10.0.1.6",
                to,
                tos=2,  # ECT(0)
                flags="DF",
                id=n,
            )
            for n in range(count)
        ]

    def carry(self, frames: list[bytes]) -> None:
        """All of them in one of the kernel's polls."""
        self._hold(200_000_000)
        try:
            for frame in frames:
                self._socket.send(frame)
        finally:
            self._hold(0)

    def _hold(self, nanoseconds: int) -> None:
        settings = {"gro_flush_timeout": nanoseconds, "napi_defer_hard_irqs": min(nanoseconds, 1)}
        script = "; ".join(
            ["mount -t sysfs none /sys"]
            + [f"echo {value} > /sys/class/net/uplink0/{name}" for name, value in settings.items()]
        )
        run(*inside(self.b.netns, "unshare", "--mount", "sh", "-ec", script))
