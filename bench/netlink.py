# SPDX-License-Identifier: Apache-2.0
"""Route netlink by hand: what the classic way costs when no library stands between.

Each message is packed with `struct` and acknowledged by the kernel before the
next is sent. Only what the contestants in classic.py need is here.
"""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address

NETLINK_ROUTE = 0
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWLINK, RTM_SETLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 19, 20, 24
IFF_UP = 1
NESTED = 0x8000
IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD = 3, 4, 10, 18, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_GATEWAY, RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 5, 254, 3, 1


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute holding a name."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """An attribute holding a number."""
    return attribute(kind, struct.pack("=I", value))


def link_header(index: int = 0, *, up: bool = False) -> bytes:
    """struct ifinfomsg."""
    return struct.pack(
        "=BxHiII", socket.AF_UNSPEC, 0, index, IFF_UP if up else 0, IFF_UP if up else 0
    )


def link_info(kind: str, data: bytes = b"") -> bytes:
    """IFLA_LINKINFO for a device of this kind."""
    return attribute(
        IFLA_LINKINFO | NESTED,
        text(IFLA_INFO_KIND, kind) + attribute(IFLA_INFO_DATA | NESTED, data),
    )


def tunnel_data(kind: str, vni: int, local: IPv4Address, remote: IPv4Address) -> bytes:
    """What a point-to-point VXLAN or Geneve device is told."""
    if kind == "geneve":  # IFLA_GENEVE_ID, _REMOTE, _PORT
        return u32(1, vni) + attribute(2, remote.packed) + attribute(5, struct.pack(">H", 6081))
    # IFLA_VXLAN_ID, _GROUP, _LOCAL, _PORT
    return (
        u32(1, vni)
        + attribute(2, remote.packed)
        + attribute(4, local.packed)
        + attribute(15, struct.pack(">H", 4789))
    )


class RouteSocket:
    """One netlink socket of the network namespace in which it was opened."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, kind: int, body: bytes) -> None:
        """Send one request and wait for its acknowledgement. Raises OSError."""
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
        self.socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", self.socket.recv(8192), 16)
        if error:
            raise OSError(-error, os.strerror(-error))

    def add_bridge(self, index: int, name: str, group: int) -> None:
        """A bridge, up."""
        self.ask(
            RTM_NEWLINK,
            link_header(index, up=True)
            + text(IFLA_IFNAME, name)
            + u32(IFLA_GROUP, group)
            + link_info("bridge"),
        )

    def add_tunnel(
        self, index: int, name: str, group: int, master: int, mtu: int, kind: str, data: bytes
    ) -> None:
        """A tunnel device, a port of the bridge `master`, up: one message."""
        self.ask(
            RTM_NEWLINK,
            link_header(index, up=True)
            + text(IFLA_IFNAME, name)
            + u32(IFLA_MTU, mtu)
            + u32(IFLA_MASTER, master)
            + u32(IFLA_GROUP, group)
            + link_info(kind, data),
        )

    def add_veth(
        self, index: int, name: str, group: int, master: int, mtu: int, namespace: int
    ) -> None:
        """A veth in the bridge `master`, up, whose peer is link 2, eth0, in `namespace`."""
        peer = (
            link_header(2)
            + text(IFLA_IFNAME, "eth0")
            + u32(IFLA_MTU, mtu)
            + u32(IFLA_NET_NS_FD, namespace)
        )
        self.ask(
            RTM_NEWLINK,
            link_header(index, up=True)
            + text(IFLA_IFNAME, name)
            + u32(IFLA_MTU, mtu)
            + u32(IFLA_MASTER, master)
            + u32(IFLA_GROUP, group)
            + link_info("veth", attribute(VETH_INFO_PEER | NESTED, peer)),
        )

    def set_up(self, index: int) -> None:
        """Bring a link up."""
        self.ask(RTM_SETLINK, link_header(index, up=True))

    def add_address(self, index: int, address: IPv4Address, length: int = 24) -> None:
        """Give a link an address."""
        self.ask(
            RTM_NEWADDR,
            struct.pack("=BBBBi", socket.AF_INET, length, 0, 0, index)
            + attribute(IFA_LOCAL, address.packed)
            + attribute(IFA_ADDRESS, address.packed),
        )

    def add_default_route(self, gateway: IPv4Address) -> None:
        """0.0.0.0/0 through `gateway`."""
        self.ask(
            RTM_NEWROUTE,
            struct.pack(
                "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0
            )
            + attribute(RTA_GATEWAY, gateway.packed),
        )
