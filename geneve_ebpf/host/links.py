# SPDX-License-Identifier: Apache-2.0
"""Interfaces: look up, make veth pairs, offloads, and the settings that keep them silent.

Functions work in the network namespace of the socket they are given, those
without a socket in the calling thread's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from geneve_ebpf.host import messages
from geneve_ebpf.host.netlink import Batch, RouteSocket

_SIOCETHTOOL = 0x8946
_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFINDEX = 0x8913, 0x8921, 0x8933
_ETHTOOL_GSTRINGS, _ETHTOOL_GSSET_INFO = 0x1B, 0x37
_ETHTOOL_GFEATURES, _ETHTOOL_SFEATURES = 0x3A, 0x3B
_FEATURE_NAMES, _NAME_SIZE = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_TOGETHER = 128  # interfaces that are deleted at once: the lock is held so long


def index_of(ip: IPRoute, name: str) -> int:
    """The interface's index; 0 if there is none of that name."""
    try:
        return int(next(iter(ip.link("get", ifname=name)))["index"])
    except NetlinkError as error:
        if error.code in (errno.ENODEV, errno.ENOENT):
            return 0
        raise


@dataclass(frozen=True, slots=True)
class Link:
    """An interface, as far as an uplink's user wants to know it."""

    index: int
    name: str
    mtu: int  # bytes
    hardware: int  # ARPHRD_*
    kind: str  # "vlan", "bond", …; "" for a NIC
    master: str  # the interface it is a port of; "" if of none
    master_kind: str  # what that is: "vrf", "bond", "bridge", …
    parent: str  # the interface of this namespace that it is on (a VLAN's); "" if on none
    up: bool
    carrier: bool  # whether it is up and something is at its other end, as far as it can tell


def describe(ip: IPRoute, name: str) -> Link | None:
    """The interface of that name, if there is one."""
    try:
        found = next(iter(ip.link("get", ifname=name)))
    except NetlinkError as error:
        if error.code in (errno.ENODEV, errno.ENOENT):
            return None
        raise
    info = found.get_attr("IFLA_LINKINFO")
    master = found.get_attr("IFLA_MASTER") or 0
    return Link(
        int(found["index"]),
        name,
        int(found.get_attr("IFLA_MTU")),
        int(found["ifi_type"]),
        str((info and info.get_attr("IFLA_INFO_KIND")) or ""),
        socket.if_indextoname(master) if master else "",
        str((info and info.get_attr("IFLA_INFO_SLAVE_KIND")) or "") if master else "",
        _parent(found),
        bool(found["flags"] & _IFF_UP),
        bool(found["flags"] & _IFF_LOWER_UP),
    )


def _parent(found: Any) -> str:
    index = found.get_attr("IFLA_LINK") or 0
    if not index or found.get_attr("IFLA_LINK_NETNSID") is not None:
        return ""
    return socket.if_indextoname(index)


def below(ip: IPRoute, link: Link) -> list[str]:
    """Interfaces that packets come by before they come by this one: a bond's or bridge's
    ports, a VLAN's interface; the names of the lowest. Its own name if there are none.
    """
    if link.kind in ("bond", "bridge", "team"):
        under = [one.get_attr("IFLA_IFNAME") for one in ip.link("dump", master=link.index)]
    elif link.kind in ("vlan", "macvlan", "ipvlan") and link.parent:
        under = [link.parent]
    else:
        return [link.name]
    found = [describe(ip, name) for name in under]
    return sorted({name for one in found if one for name in below(ip, one)}) or [link.name]


def mtu_by_name(name: str) -> int:
    """Bytes of the largest packet the interface takes. Raises OSError ENODEV."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        answer = fcntl.ioctl(door, _SIOCGIFMTU, struct.pack("16si20x", name.encode(), 0))
    return int(struct.unpack_from("i", answer, 16)[0])


def set_master(ip: IPRoute, index: int, master: int) -> None:
    """Make the interface a port of another one; 0: of none."""
    ip.link("set", index=index, master=master)


def alias_of(ip: IPRoute, index: int) -> str:
    """The interface's alias, a text that means what its owner wants; "" if it has none."""
    return str(next(iter(ip.link("get", index=index))).get_attr("IFLA_IFALIAS") or "")


def set_alias(ip: IPRoute, index: int, text: str) -> None:
    """Give the interface an alias of at most 255 bytes."""
    ip.link("set", index=index, ifalias=text)


def make_veth(ip: IPRoute, name: str, peer: dict[str, Any], *, mtu: int, queues: int = 1) -> int:
    """Make a veth pair, down, and return the index of `name`.

    `peer` holds pyroute2's fields of the other end (ifname, address,
    net_ns_fd). queues: from `name` to the other end; one back. The default of
    one per CPU each way costs 456 KB and 2.2 ms a pair on 64 of them.
    """
    near = {"num_tx_queues": queues, "num_rx_queues": 1, "mtu": mtu}
    far = {"num_tx_queues": 1, "num_rx_queues": queues, "mtu": mtu}
    ip.link("add", ifname=name, kind="veth", peer={**peer, **far}, **near)
    return index_of(ip, name)


def silence(door: RouteSocket, index: int, name: str) -> None:
    """No address of any kind will ever be used on it: no ARP, no IPv6.

    The host's stack then neither speaks nor listens there; daemons that bind to
    it all the same meet sandbox_tx and sandbox_guard.
    """
    door.tell_all([messages.link_arp(index, False)])
    disable_ipv6(name)


def disable_ipv6(name: str) -> None:
    """Not even a link-local address. Fine where the kernel has no IPv6 at all."""
    path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if path.exists():
        path.write_text("1")


def has_ipv6(name: str) -> bool:
    """Whether the interface may have IPv6 addresses; "default": one that is made now."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    return setting.exists() and setting.read_text().strip() == "0"


def believe_no_router(name: str) -> bool:
    """Take nothing from router advertisements. False where the kernel has no IPv6 at all.

    With "default" it is of interfaces to come, which then have no link-local
    address of the kernel's making either.
    """
    settings = Path(f"/proc/sys/net/ipv6/conf/{name}")
    if not settings.exists():
        return False
    (settings / "accept_ra").write_text("0")
    if name == "default":
        (settings / "addr_gen_mode").write_text("1")
    return True


def begin_ipv6_anew(name: str) -> None:
    """Take all IPv6 addresses from an interface, the link's own too, and believe no router."""
    settings = Path(f"/proc/sys/net/ipv6/conf/{name}")
    (settings / "disable_ipv6").write_text("1")
    (settings / "accept_ra").write_text("0")
    (settings / "addr_gen_mode").write_text("1")
    (settings / "disable_ipv6").write_text("0")


def set_up(ip: IPRoute, index: int) -> None:
    """Bring the interface up."""
    ip.link("set", index=index, flags=_IFF_UP, change=_IFF_UP)


def remove(ip: IPRoute, index: int) -> None:
    """Delete the interface (and its peer); no error if it is gone. 20 to 40 ms of RTNL."""
    try:
        ip.link("del", index=index)
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.ENOENT):
            raise


def remove_together(door: RouteSocket, indexes: Sequence[int]) -> None:
    """Delete interfaces, by the hundred in about the time of one; no error if some are gone."""
    for start in range(0, len(indexes), _TOGETHER):
        some = indexes[start : start + _TOGETHER]
        group = secrets.randbits(31) | 1  # 0 is that of all; nobody else is in this one
        told = door.tell_each([Batch([messages.link_group(one, group)]) for one in some])
        told += door.tell_each([Batch([messages.group_remove(group)])])
        for refused in told:
            if refused not in (0, errno.ENODEV):
                raise OSError(refused, os.strerror(refused))


@dataclass(frozen=True, slots=True)
class Features:
    """Offloads to switch, by their names in `ethtool -k`."""

    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()


# TCP segmentation in hardware. A veth whose own is off has its peer's GRO run.
TSO = (
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
)


def set_features(door: RouteSocket, name: str, features: Features) -> None:
    """Switch offloads of an interface in the socket's namespace, in one go.

    What this kernel has no such offload for is left out. Raises OSError.
    """
    _ioctl(door, name, _feature_masks(features))


def features_on(door: RouteSocket, name: str) -> set[str]:
    """The offloads of an interface that are on. Raises OSError."""
    names = _feature_names(door, name)
    words = -(-len(names) // 32)
    asked = struct.pack("<II", _ETHTOOL_GFEATURES, words)
    # By words: available, requested, active, never changed.
    answer = _ioctl(door, name, asked + bytes(16 * words))
    on = [struct.unpack_from("<I", answer, 8 + 16 * word + 8)[0] for word in range(words)]
    return {one for at, one in enumerate(names) if on[at // 32] >> at % 32 & 1}


@cache
def _feature_masks(features: Features) -> bytes:
    with RouteSocket() as door:
        names = _feature_names(door, "lo")
    masks = [0] * (2 * -(-len(names) // 32))  # (to change, wanted) for each 32
    for wanted, some in ((1, features.on), (0, features.off)):
        for feature in some:
            if feature in names:
                word, bit = divmod(names.index(feature), 32)
                masks[2 * word] |= 1 << bit
                masks[2 * word + 1] |= wanted << bit
    return struct.pack(f"<II{len(masks)}I", _ETHTOOL_SFEATURES, len(masks) // 2, *masks)


def _feature_names(door: RouteSocket, name: str) -> tuple[str, ...]:
    """What the kernel calls its offloads, in the order of their bits: the same on every one."""
    asked = struct.pack("<IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << _FEATURE_NAMES, 0)
    (count,) = struct.unpack_from("<I", _ioctl(door, name, asked), 16)
    room = struct.pack("<III", _ETHTOOL_GSTRINGS, _FEATURE_NAMES, count)
    text = _ioctl(door, name, room + bytes(count * _NAME_SIZE))[len(room) :]
    return tuple(
        text[at : at + _NAME_SIZE].split(b"\0", 1)[0].decode()
        for at in range(0, len(text), _NAME_SIZE)
    )


def index_by_name(door: RouteSocket, name: str) -> int:
    """Index of an interface in the socket's namespace. Raises OSError ENODEV."""
    answer = fcntl.ioctl(door, _SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
    return int(struct.unpack_from("i", answer, 16)[0])


def is_up(door: RouteSocket, name: str) -> bool:
    """Whether an interface of the socket's namespace is set up. Raises OSError ENODEV."""
    answer = fcntl.ioctl(door, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
    return bool(struct.unpack_from("H", answer, 16)[0] & _IFF_UP)


def wait_transmits(door: RouteSocket, index: int, patience: float) -> None:
    """Return once an interface that is up transmits. Raises TimeoutError after `patience` seconds.

    A veth whose peer came up after it has its carrier at once, but silently
    throws away what is sent until the kernel's link watch has come round and
    given it its queue. That is a moment later, or on a busy machine a second:
    it has turns, and waits for RTNL. The operational state becomes "up" in the
    same turn, under RTNL as our question. IFF_RUNNING does not say it: that is
    set of a link which no link watch has ever looked at. Where asking makes the
    kernel do this link's watch at once (since 6.8) the first answer is the last.
    """
    end = time.monotonic() + patience
    question = messages.link(index)
    while not messages.link_is_operating(door.get_bytes(question)):
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, "the interface is up, but does not transmit")
        time.sleep(0.0002)


def _ioctl(door: RouteSocket, name: str, argument: bytes) -> bytes:
    """SIOCETHTOOL; the argument as the kernel leaves it. Raises OSError."""
    buffer = ctypes.create_string_buffer(argument, len(argument))
    request = struct.pack("16sQ8x", name.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(door, _SIOCETHTOOL, request)
    return buffer.raw
