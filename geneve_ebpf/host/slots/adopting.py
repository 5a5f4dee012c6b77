# SPDX-License-Identifier: Apache-2.0
"""Slots that are there already: those a maker left half made, and a new MTU."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from ipaddress import IPv6Address

from geneve_ebpf.host import links, messages
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.host.slots.destroying import drop, wait_gone
from geneve_ebpf.host.slots.given import visiting
from geneve_ebpf.host.slots.kinds import routes6
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import IPV6_MTU_MIN


def clear_half_made(ip: IPRoute, place: Place, known: Collection[int]) -> None:
    """Drop what a maker that died in the middle left: namespaces and taps that no map knows."""
    found = [int(name[5:]) for name in os.listdir(place.directory) if name.startswith("slot-")]
    stale = [index for index in found if index not in known]
    for index in stale:
        drop(place, index)
    wait_gone(ip, stale)
    for _, name in socket.if_nameindex():
        if name.startswith("gnv") and name[3:].isdigit() and int(name[3:]) not in known:
            found_link = links.describe(ip, name)
            if found_link is not None and found_link.kind == "tun":
                links.remove(ip, found_link.index)


def resize(place: Place, index: int, address6: IPv6Address | None) -> bool:
    """Give a slot's eth0 the place's MTU, whoever is in there; False if the slot is not there.

    Nobody's connection notices more than the size. address6: what the kernel
    has of IPv6 on eth0, if it has; it is given back when a tiny MTU cost it.
    """
    try:
        with visiting(place, index) as interface:
            _resize(place, interface, address6, ours=place.netns(index).exists())
    except FileNotFoundError:
        return False
    except OSError as error:
        # No namespace any more, or nothing in it that is called eth0.
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return False
        raise
    return True


def _resize(place: Place, interface: str, address6: IPv6Address | None, *, ours: bool) -> None:
    before = links.mtu_by_name(interface)
    if before == place.mtu:
        return
    with RouteSocket() as inside:
        eth0 = links.index_by_name(inside, interface)
        comes_back = before < IPV6_MTU_MIN <= place.mtu
        if comes_back and ours:
            # Also where nobody wants an address: IPv6 would come back with one of the link's.
            links.believe_no_router("default")
        inside.tell_all([messages.link_mtu(eth0, place.mtu)])
        if comes_back and address6 is not None and links.has_ipv6(interface):
            if not ours:  # where the defaults are others' to set
                links.begin_ipv6_anew(interface)
            inside.tell_all([messages.address(eth0, address6), *routes6(place.guest, eth0)])
