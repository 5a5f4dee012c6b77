# SPDX-License-Identifier: Apache-2.0
"""Destroying slots: their namespaces are let go, and the kernel takes the interfaces with them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable

from pyroute2 import IPRoute

from geneve_ebpf.host import links, namespaces
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import host_interface


def drop(place: Place, index: int) -> bool:
    """Let go of a slot's namespace: its interfaces vanish with it, a little later.

    `gone` says when. A process that lingers in there keeps it alive; then
    `cut_off` takes the interface from it, and so it does from a slot that has no
    namespace: then this returns False.
    """
    netns = place.netns(index)
    if not netns.exists():
        return False
    namespaces.remove(netns)
    return True


def gone(index: int) -> bool:
    """Whether the slot's host-side interface has vanished. For a thread in the node's namespace."""
    try:
        socket.if_nametoindex(host_interface(index))
    except OSError:
        return True
    return False


def cut_off(ip: IPRoute, index: int) -> None:
    """Delete a slot's interfaces, whoever still sits in its namespace."""
    ifindex = links.index_of(ip, host_interface(index))
    if ifindex:
        links.remove(ip, ifindex)


def cut_off_all(door: RouteSocket, indexes: Iterable[int]) -> None:
    """The same for many, in the time of one by the hundred. In the node's namespace."""
    found = []
    for index in indexes:
        # Asked one by one: a list of all takes tens of milliseconds where there are thousands.
        with contextlib.suppress(OSError):
            found.append(socket.if_nametoindex(host_interface(index)))
    if found:
        links.remove_together(door, found)


def wait_gone(ip: IPRoute, indexes: Iterable[int], patience: float = 2.0) -> None:
    """Wait until the slots' interfaces have vanished; cut off those that will not.

    `patience` in seconds, for all of them together. Their namespaces must have
    been dropped.
    """
    end = time.monotonic() + patience
    left = list(indexes)
    while left and time.monotonic() < end:
        left = [index for index in left if not gone(index)]
        if left:
            time.sleep(0.005)
    for index in left:
        cut_off(ip, index)
