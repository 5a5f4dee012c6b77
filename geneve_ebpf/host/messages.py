# SPDX-License-Identifier: Apache-2.0
"""rtnetlink requests as bytes: those that make and furnish a slot, thousands of times.

`RouteSocket.tell_all` sends many in one system call, and a `Batch` is ready to be sent again.
A codec for all of rtnetlink takes longer to make such a message than the kernel to obey it.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

# Groups of notifications, for a RouteSocket.
LINKS, TRAFFIC_CONTROL, ADDRESSES6 = 0x1, 0x8, 0x100

NEWLINK, DELLINK, _SETLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH = 16, 17, 19, 20, 24, 28
_GETLINK, _IFLA_OPERSTATE, _IFLA_EXT_MASK = 18, 16, 29
_IFLA_LINK, _IFLA_MASTER, _IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_XDP_ATTACHED = 5, 10, 37, 43, 2
_GETADDR, _GETROUTE, _GETNSID, _NETNSA_NSID, _NETNSA_FD = 22, 26, 90, 1, 3
_RTEXT_FILTER_SKIP_STATS, _IF_OPER_UP = 0x8, 6
NEWQDISC, DELQDISC, _GETQDISC, _DELADDR = 36, 37, 38, 21
_CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
_ECHO = 0x8  # NLM_F_ECHO
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 26, 28, 31, 32
_IFLA_GROUP = 27
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
# By kind: port, "what a packet says counts" (external), both of the driver's IFLA_*.
_TUNNEL_PORT, _TUNNEL_EXTERNAL = {"vxlan": 15, "geneve": 5}, {"vxlan": 25, "geneve": 6}
_VXLAN_LINK, _VXLAN_LEARNING = 3, 7
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_KERNEL, _RTPROT_BOOT, _RTN_UNICAST = 254, 2, 3, 1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
TCA_KIND, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 1, 13, 14
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What is asked of a link that others made."""

    index: int
    name: str
    kind: str  # "veth", …; "" for a device
    peer: int  # the other end's or the lower one's index, in its namespace; 0 if there is none
    peer_namespace: int | None  # that namespace's number in ours; None: it is this one
    master: int  # what it is a port of; 0: of nothing
    xdp: bool  # whether it has an XDP program


class Request:
    """A request's type, flags and body."""

    __slots__ = ("body", "flags", "kind")

    def __init__(self, kind: int, flags: int, body: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.body = body


def _set_link(index: int, flags: int, change: int, attributes: bytes = b"") -> Request:
    head = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)
    return Request(_SETLINK, 0, head + attributes)


def veth(
    name: str, peer: str, *, mtu: int, peer_mtu: int, peer_mac: bytes, peer_namespace: int
) -> Request:
    """A veth pair, down and without ARP; its other end in the namespace open as `peer_namespace`.

    One queue each: the default of one per CPU costs 456 KB and 2.2 ms a pair on 64 of them.
    """
    one = struct.pack("=I", 1)
    both = _attribute(_IFLA_NUM_TX_QUEUES, one) + _attribute(_IFLA_NUM_RX_QUEUES, one)
    silent = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, _IFF_NOARP, _IFF_NOARP)
    other = (
        silent
        + _attribute(_IFLA_IFNAME, peer.encode() + b"\0")
        + _attribute(_IFLA_ADDRESS, peer_mac)
        + _attribute(_IFLA_MTU, struct.pack("=I", peer_mtu))
        + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
        + both
    )
    kind = _attribute(_IFLA_INFO_KIND, b"veth")
    data = _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    attributes = (
        _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + _attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + both
        + _attribute(_IFLA_LINKINFO, kind + data)
    )
    return Request(NEWLINK, _CREATE, silent + attributes)


def tunnel(name: str, kind: str, port: int, link: int = 0) -> Request:
    """A tunnel device ("vxlan" or "geneve"), down, that has no peer and no VNI of its own.

    Up, it owns the UDP port, in either family. link, of VXLAN alone: in the VRF of that interface.
    """
    data = _attribute(_TUNNEL_PORT[kind], port.to_bytes(2, "big"))
    if kind == "vxlan":
        data += _attribute(_TUNNEL_EXTERNAL[kind], b"\1") + _attribute(_VXLAN_LEARNING, b"\0")
        data += _attribute(_VXLAN_LINK, struct.pack("=I", link)) if link else b""
    else:
        data += _attribute(_TUNNEL_EXTERNAL[kind], b"")
    nothing = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    info = _attribute(_IFLA_INFO_KIND, kind.encode()) + _attribute(_IFLA_INFO_DATA, data)
    attributes = _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    return Request(NEWLINK, _CREATE, nothing + attributes + _attribute(_IFLA_LINKINFO, info))


def link_arp(index: int, on: bool) -> Request:
    """Whether the kernel uses ARP and neighbour discovery on an interface. Forgets neighbours."""
    return _set_link(index, _IFF_NOARP if not on else 0, _IFF_NOARP)


def link_up(index: int) -> Request:
    """Bring an interface up."""
    return _set_link(index, _IFF_UP, _IFF_UP)


def link_down(index: int) -> Request:
    """Take an interface down. Routes that lead there go, and most of what IPv6 has."""
    return _set_link(index, 0, _IFF_UP)


def link_rename(index: int, name: str) -> Request:
    """Give an interface another name. EEXIST if one has it."""
    return _set_link(index, 0, 0, _attribute(_IFLA_IFNAME, name.encode() + b"\0"))


def link_mac(index: int, mac: bytes) -> Request:
    """Give an interface a MAC."""
    return _set_link(index, 0, 0, _attribute(_IFLA_ADDRESS, mac))


def link_mtu(index: int, mtu: int) -> Request:
    """Give an interface an MTU, in bytes."""
    return _set_link(index, 0, 0, _attribute(_IFLA_MTU, struct.pack("=I", mtu)))


def link(index: int) -> Request:
    """Asks about a link; the answer is for `link_name`, `link_is_operating`, `link_facts`."""
    head = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    no_numbers = struct.pack("=I", _RTEXT_FILTER_SKIP_STATS)
    return Request(_GETLINK, 0, head + _attribute(_IFLA_EXT_MASK, no_numbers))


def link_remove(index: int) -> Request:
    """Delete an interface, and its peer. 20 to 40 ms of RTNL."""
    return Request(DELLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0))


def link_group(index: int, group: int) -> Request:
    """Put an interface into a group, which is a number that the kernel makes nothing of."""
    return _set_link(index, 0, 0, _attribute(_IFLA_GROUP, struct.pack("=I", group)))


def group_remove(group: int) -> Request:
    """Delete all interfaces of a group, in the time of one. ENODEV if there are none."""
    nothing = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(DELLINK, 0, nothing + _attribute(_IFLA_GROUP, struct.pack("=I", group)))


def clsact(index: int, ingress_block: int, egress_block: int) -> Request:
    """A clsact qdisc whose sides are in shared blocks; 0: in none. EEXIST if the interface has one
    already."""
    head = struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0)
    kind = _attribute(TCA_KIND, b"clsact\0")
    sides = ((TCA_INGRESS_BLOCK, ingress_block), (TCA_EGRESS_BLOCK, egress_block))
    blocks = (_attribute(side, struct.pack("=I", block)) for side, block in sides if block)
    return Request(NEWQDISC, _CREATE, head + kind + b"".join(blocks))


def clsact_of(index: int) -> Request:
    """Asks about an interface's clsact; ENOENT or EINVAL if it has none."""
    head = struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0)
    return Request(_GETQDISC, _ECHO, head)  # tc answers to an echo alone


def no_clsact(index: int) -> Request:
    """Take an interface's clsact away. ENOENT or EINVAL if it has none."""
    head = struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0)
    return Request(DELQDISC, 0, head)


QDISCS = Request(_GETQDISC, 0, bytes(20))  # a dump's request: all of the namespace


def attributes(message: bytes, at: int) -> dict[int, bytes]:
    """The attributes of a message whose fixed part has `at` bytes; those it is sure of."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:
            break
        found[kind] = message[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def link_name(notification: bytes) -> str:
    """The name of the interface that a notification of group LINKS is about."""
    name = attributes(notification, 16).get(_IFLA_IFNAME, b"")  # behind struct ifinfomsg
    return name.rstrip(b"\0").decode(errors="replace")


def interface_of(notification: bytes) -> int:
    """Index of the interface that a notification of LINKS or TRAFFIC_CONTROL is about."""
    (index,) = struct.unpack_from("=i", notification, 4)  # of struct ifinfomsg and tcmsg alike
    return int(index)


def link_is_down(notification: bytes) -> bool:
    """Whether a notification of group LINKS is about an interface that nobody has set up."""
    (flags,) = struct.unpack_from("=I", notification, 8)
    return not flags & _IFF_UP


def link_is_operating(answer: bytes) -> bool:
    """Whether the link's state is "up". Not so "unknown", which it is before anybody looked."""
    return attributes(answer, 16)[_IFLA_OPERSTATE][0] == _IF_OPER_UP


def link_facts(answer: bytes) -> LinkFacts:
    """What a link is, and what hangs on it."""
    found = attributes(answer, 16)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    xdp = attributes(found.get(_IFLA_XDP, b""), 0)
    other = found.get(_IFLA_LINK_NETNSID)
    return LinkFacts(
        struct.unpack_from("=i", answer, 4)[0],
        link_name(answer),
        info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        int.from_bytes(found.get(_IFLA_LINK, b""), sys.byteorder),
        None if other is None else int.from_bytes(other, sys.byteorder, signed=True),
        int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
        any(xdp.get(_IFLA_XDP_ATTACHED, b"")),
    )


def namespace_of(descriptor: int) -> Request:
    """Asks for the number that a namespace, which is open, has in the socket's."""
    body = bytes(4) + _attribute(_NETNSA_FD, struct.pack("=i", descriptor))
    return Request(_GETNSID, 0, body)


def namespace_number(answer: bytes) -> int:
    """That number; negative if it has none."""
    return int.from_bytes(attributes(answer, 4)[_NETNSA_NSID], sys.byteorder, signed=True)


OWN_ADDRESSES = Request(_GETADDR, 0, bytes(8))  # a dump's request: all of the namespace


def own_address(answer: bytes) -> tuple[int, Address]:
    """(interface, address) of an answer to that."""
    found = attributes(answer, 8)  # behind struct ifaddrmsg
    return (
        struct.unpack_from("=I", answer, 4)[0],
        ip_address(found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))),
    )


def qdisc_kind(answer: bytes) -> str:
    """What kind of qdisc an answer to QDISCS is about."""
    return attributes(answer, 20)[TCA_KIND].rstrip(b"\0").decode(errors="replace")


def no_link_local(index: int) -> Request:
    """Have the kernel make no link-local address for the interface when it comes up."""
    mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))
    return _set_link(index, 0, 0, _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode)))


def address(index: int, own: Address) -> Request:
    """Give an interface an address alone (/32 or /128), without asking whether others have it."""
    head = struct.pack(
        "=BBBBI", _family(own), own.max_prefixlen, _IFA_F_NODAD, _SCOPE_UNIVERSE, index
    )
    attributes = _attribute(_IFA_LOCAL, own.packed) + _attribute(_IFA_ADDRESS, own.packed)
    return Request(_NEWADDR, _CREATE, head + attributes)


def address_remove(index: int, own: Address) -> Request:
    """Take an address from an interface. EADDRNOTAVAIL if it has none such."""
    head = struct.pack("=BBBBI", _family(own), own.max_prefixlen, 0, 0, index)
    return Request(_DELADDR, 0, head + _attribute(_IFA_LOCAL, own.packed))


def neighbour(index: int, other: Address, mac: bytes) -> Request:
    """A neighbour for good: it is never asked for, and not counted against the table's limit."""
    head = struct.pack("=BxHiHBB", _family(other), 0, index, _NUD_PERMANENT, 0, 0)
    attributes = _attribute(_NDA_DST, other.packed) + _attribute(_NDA_LLADDR, mac)
    return Request(_NEWNEIGH, _CREATE, head + attributes)


def _route(family: int, length: int, scope: int, attributes: bytes) -> Request:
    head = struct.pack(
        "=BBBBBBBBI", family, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST, 0
    )
    return Request(_NEWROUTE, _CREATE, head + attributes)


def routes(family: int, index: int = 0) -> Request:
    """A dump's request: all routes, or those to one interface, if the socket asks strictly."""
    only = _attribute(_RTA_OIF, struct.pack("=i", index)) if index else b""
    return Request(_GETROUTE, 0, struct.pack("=B11x", family) + only)


def is_default_route(answer: bytes) -> bool:
    """Whether a route is the main table's way to everywhere."""
    _, length, _, _, table, _, _, kind = struct.unpack_from("=8B", answer)
    return (length, table, kind) == (0, _RT_TABLE_MAIN, _RTN_UNICAST)


def is_route_by(answer: bytes, index: int, gateway: Address) -> bool:
    """Whether a route leads out by an interface, to that gateway."""
    found = attributes(answer, 12)  # behind struct rtmsg
    way = (struct.pack("=i", index), gateway.packed)
    return (found.get(_RTA_OIF), found.get(_RTA_GATEWAY)) == way


def is_kernels_route(answer: bytes) -> bool:
    """Whether the kernel made a route itself, such as one to an address of its own."""
    return answer[5] == _RTPROT_KERNEL


def on_link(index: int, other: Address) -> Request:
    """A route to one address that is on the interface's link."""
    attributes = _attribute(_RTA_DST, other.packed) + _attribute(_RTA_OIF, struct.pack("=i", index))
    return _route(_family(other), other.max_prefixlen, _SCOPE_LINK, attributes)


def default_route(index: int, gateway: Address) -> Request:
    """Everything else by a gateway, which is on the link: by a route, or link-local."""
    attributes = _attribute(_RTA_GATEWAY, gateway.packed) + _attribute(
        _RTA_OIF, struct.pack("=i", index)
    )
    return _route(_family(gateway), 0, _SCOPE_UNIVERSE, attributes)
