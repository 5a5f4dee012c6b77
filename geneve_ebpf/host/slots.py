# SPDX-License-Identifier: Apache-2.0
"""One slot: a namespace with eth0, and its host-side interface behind the shared block.

All the netlink of a sandbox's life happens here, before and after it lives.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, namespaces, tc
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.model import Guest

GUEST_INTERFACE = "eth0"


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
        peer = {
            "ifname": GUEST_INTERFACE,
            "address": str(place.guest.mac),
            "net_ns_fd": namespace,
        }
        ifindex = links.make_veth(ip, name, peer, mtu=place.mtu)
        links.silence(ip, ifindex, name)
        links.set_tso(name, False)
        _furnish(namespace, place.guest)
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
        links.set_up(ip, ifindex)
        _await_transmission(namespace)
    except BaseException:
        if ifindex:
            links.remove(ip, ifindex)
        namespaces.remove(netns)
        raise
    finally:
        os.close(namespace)
    return ifindex


def _furnish(namespace: int, guest: Guest) -> None:
    """Inside: loopback, eth0 with the guest address, the gateway as only neighbour.

    A /32 with an on-link gateway whose MAC is permanent: the sandbox needs no
    entry of the neighbour table, which all namespaces of the host share.
    """
    before = namespaces.current()
    namespaces.enter(namespace)
    try:
        links.disable_ipv6(GUEST_INTERFACE)
        links.set_gro(GUEST_INTERFACE, True)
        # UDP GSO frames that cross whole cannot be delivered (DROP_MERGED_UDP):
        # have them cut up before they leave.
        links.set_feature(GUEST_INTERFACE, "tx-udp-segmentation", False)
        with IPRoute() as inside:
            links.set_up(inside, 1)
            eth0 = links.index_of(inside, GUEST_INTERFACE)
            inside.addr("add", index=eth0, address=str(guest.address), prefixlen=32)
            links.set_up(inside, eth0)
            inside.neigh(
                "add",
                ifindex=eth0,
                dst=str(guest.gateway),
                lladdr=str(guest.gateway_mac),
                state=0x80,  # NUD_PERMANENT
            )
            inside.route("add", dst=f"{guest.gateway}/32", oif=eth0, scope=253)  # on link
            inside.route("add", dst="0.0.0.0/0", gateway=str(guest.gateway), oif=eth0)
    finally:
        namespaces.enter(before)
        os.close(before)


def _await_transmission(namespace: int) -> None:
    """eth0 was up before its peer: its first frames must not be lost."""
    before = namespaces.current()
    namespaces.enter(namespace)
    try:
        links.wait_running(GUEST_INTERFACE)
    finally:
        namespaces.enter(before)
        os.close(before)


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
