# SPDX-License-Identifier: Apache-2.0
"""One slot: a namespace with eth0, and its host-side interface behind the shared block.

All the netlink of a sandbox's life happens here, before and after it lives.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, messages, namespaces, tc
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.model import Guest

GUEST_INTERFACE = "eth0"
_ADDRESS_PATIENCE = 0.05  # seconds; after that the slot may say which group it is in
# Of the host side: a veth drops what is larger, uncounted; sandbox_tx counts and answers it.
_HOST_MTU = 65535
_IPV6_MTU_MIN = 1280  # RFC 8200 section 5; with less the kernel has no IPv6 on an interface
_LOOPBACK = 1  # index of `lo`, in every namespace


def host_interface(index: int) -> str:
    """Name of a slot's host-side interface, in the node's namespace."""
    return f"gnv{index}"


@dataclass(frozen=True, slots=True)
class Place:
    """What every slot of a node has in common."""

    directory: Path  # of the namespaces' mounts
    guest: Guest
    mtu: int  # bytes, of eth0
    block: int  # shared tc block of the ingress; the egress's is the next number
    program: int  # id of sandbox_tx, which must be alone on the block
    guard: int  # id of sandbox_guard, likewise on the egress's

    def netns(self, index: int) -> Path:
        """Where a slot's namespace is mounted."""
        return self.directory / f"slot-{index}"


def make(ip: IPRoute, door: RouteSocket, place: Place, index: int) -> int:
    """Make slot `index` and return its host-side interface's index.

    Both sockets are in the node's namespace, and so is the thread. On failure
    nothing is left behind. The interface comes up last, and only when the
    kernel says that our programs are on the blocks it is in: it is never open,
    not for one packet.
    """
    netns = place.netns(index)
    name = host_interface(index)
    namespace = namespaces.create(netns)
    ifindex = 0
    try:
        pair = messages.veth(
            name,
            GUEST_INTERFACE,
            mtu=_HOST_MTU,
            peer_mtu=place.mtu,
            peer_mac=place.guest.mac.octets,
            peer_namespace=namespace,
        )
        door.tell_all([pair])
        ifindex = socket.if_nametoindex(name)
        links.silence(door, ifindex, name)
        links.set_tso(name, False)
        ipv6 = _take_address6(namespace, place.guest)
        if not tc.add_clsact(
            door, ifindex, ingress_block=place.block, egress_block=place.block + 1
        ):
            raise GeneveError(
                Code.NODE_SETUP,
                f"something gave {name} a clsact of its own, so it cannot join the shared block",
                hint="keep other tools of the machine off interfaces called gnv*",
            )
        for block, program in (
            (place.block, place.program),
            (place.block + 1, place.guard),
        ):
            if tc.block_programs(door, block) != [program]:
                raise GeneveError(
                    Code.NODE_SETUP,
                    f"the shared block {block} does not hold our program alone",
                    hint="another tool changed it: geneve-ebpf node down, then start again",
                )
        _furnish(namespace, place.guest, ipv6=ipv6)
        door.tell_all([messages.link_up(ifindex)])
        _await_transmission(namespace)
    except BaseException:
        if ifindex:
            links.remove(ip, ifindex)
        namespaces.remove(netns)
        raise
    finally:
        os.close(namespace)
    return ifindex


@contextmanager
def _within(namespace: int) -> Iterator[None]:
    """This thread is in the namespace meanwhile."""
    before = namespaces.current()
    try:
        namespaces.enter(namespace)
        try:
            yield
        finally:
            namespaces.enter(before)
    finally:
        os.close(before)


def _take_address6(namespace: int, guest: Guest) -> bool:
    """Inside: the IPv6 address, without a word on the link. False if the kernel has no IPv6.

    No link-local address, so no router is looked for; no router believed that
    speaks unasked; no duplicate address detection; and no report of the
    address's solicited-node group, since the kernel joins none for an address
    that an interface without ARP takes up. Nobody on this link will solicit.
    """
    with _within(namespace):
        if not links.believe_no_router(GUEST_INTERFACE):
            return False
        eth0 = socket.if_nametoindex(GUEST_INTERFACE)
        with RouteSocket() as inside, RouteSocket(messages.ADDRESSES6) as ear:
            inside.tell_all(
                [
                    messages.no_link_local(eth0),
                    messages.link_arp(eth0, False),
                    messages.address(eth0, guest.address6),
                ]
            )
            # Said when the kernel has done with it, a little later in a thread of its
            # own. ARP must not be back before.
            ear.listen(_ADDRESS_PATIENCE)
    return True


def _furnish(namespace: int, guest: Guest, *, ipv6: bool) -> None:
    """Inside: loopback and eth0 up, the guest address, the gateway as only neighbour.

    Addresses alone, a gateway on the link whose MAC is permanent, in both
    families: the sandbox needs no entry of the neighbour table, which all
    namespaces of the host share.
    """
    with _within(namespace):
        links.set_gro(GUEST_INTERFACE, True)
        # UDP GSO frames that cross whole cannot be delivered (DROP_MERGED_UDP):
        # have them cut up before they leave.
        links.set_feature(GUEST_INTERFACE, "tx-udp-segmentation", False)
        eth0 = socket.if_nametoindex(GUEST_INTERFACE)
        mac = guest.gateway_mac.octets
        requests = [
            messages.link_up(_LOOPBACK),
            messages.link_arp(eth0, True),
            messages.address(eth0, guest.address),
            messages.link_up(eth0),
            messages.neighbour(eth0, guest.gateway, mac),
            messages.on_link(eth0, guest.gateway),
            messages.default_route(eth0, guest.gateway),
        ]
        if ipv6:
            requests += [
                messages.neighbour(eth0, guest.gateway6, mac),
                messages.default_route(eth0, guest.gateway6),
            ]
        with RouteSocket() as inside:
            inside.tell_all(requests)


def _await_transmission(namespace: int) -> None:
    """eth0 was up before its peer: its first frames must not be lost."""
    with _within(namespace):
        links.wait_running(GUEST_INTERFACE)


def resize(place: Place, index: int) -> bool:
    """Give a slot's eth0 the place's MTU, whoever is in there; False if the slot is not there.

    Nobody's connection notices more than the size. An IPv6 address that a tiny
    MTU cost is given back.
    """
    try:
        namespace = os.open(place.netns(index), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with _within(namespace):
            _resize(place)
    except OSError as error:
        # No namespace any more, or nothing in it that is called eth0.
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return False
        raise
    finally:
        os.close(namespace)
    return True


def _resize(place: Place) -> None:
    before = links.mtu_by_name(GUEST_INTERFACE)
    if before == place.mtu:
        return
    eth0 = socket.if_nametoindex(GUEST_INTERFACE)
    requests = [messages.link_mtu(eth0, place.mtu)]
    if before < _IPV6_MTU_MIN <= place.mtu and links.believe_no_router("default"):
        guest, mac = place.guest, place.guest.gateway_mac.octets
        requests += [
            messages.address(eth0, guest.address6),
            messages.neighbour(eth0, guest.gateway6, mac),
            messages.default_route(eth0, guest.gateway6),
        ]
    with RouteSocket() as inside:
        inside.tell_all(requests)


def drop(place: Place, index: int) -> None:
    """Let go of a slot's namespace: its interfaces vanish with it, a little later.

    `gone` says when. A process that lingers in there keeps it alive; then
    `cut_off` takes the interface from it.
    """
    namespaces.remove(place.netns(index))


def gone(index: int) -> bool:
    """Whether the slot's host-side interface has vanished."""
    return not Path(f"/proc/sys/net/ipv4/conf/{host_interface(index)}").exists()


def cut_off(ip: IPRoute, index: int) -> None:
    """Delete a slot's interfaces, whoever still sits in its namespace."""
    ifindex = links.index_of(ip, host_interface(index))
    if ifindex:
        links.remove(ip, ifindex)


def wait_gone(ip: IPRoute, indexes: list[int], patience: float = 2.0) -> None:
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
