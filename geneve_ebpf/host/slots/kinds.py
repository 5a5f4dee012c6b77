# SPDX-License-Identifier: Apache-2.0
"""The seam for kinds of slot: what differs between a namespace with a veth, and a tap.

`making` takes every kind through the same steps, many slots at once:

1. `prepare`, in the slot's new namespace (`namespaced` kinds), or the node's;
2. `connect`: the host-side interfaces, down and without ARP, all in one go;
3. making's own: no IPv6 on the host side, both shared blocks joined and read back;
4. `furnish`: everything else, so that the slot is whole but for its host side being down;
5. making's own: the host side comes up;
6. `settle`: back when the first frames would pass.

A step that cannot be done for a slot says so in `Draft.error` (or raises, where it
is given one draft); that slot is then undone: its namespace is dropped and its
host-side interface deleted, so a kind has to undo nothing that goes with either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from geneve_ebpf.host import links, messages
from geneve_ebpf.host.netlink import Batch, RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import GUEST_INTERFACE, IPV6_MTU_MIN, Guest, SlotKind, host_interface

# Of the host side: a veth drops what is larger, uncounted; sandbox_tx counts and answers it.
HOST_MTU = 65535
LOOPBACK = 1  # index of `lo`, in every namespace
_ADDRESS_PATIENCE = 0.05  # seconds; after that the slot may say which group it is in
HOST_SIDE = links.Features(off=links.TSO)  # or the peer's GRO never runs
# UDP GSO frames that cross whole cannot be delivered (DROP_MERGED_UDP): have them cut up
# before they leave.
GUEST_SIDE = links.Features(on=("rx-gro",), off=("tx-udp-segmentation",))


@dataclass(slots=True)
class Draft:
    """A slot that is being made."""

    index: int
    namespace: int = -1  # a descriptor; -1 if this kind has none
    inside: RouteSocket | None = None  # in the namespace; hears of IPv6 addresses
    ifindex: int = 0  # of the host-side interface; 0 until it is there
    ipv6: bool = False  # whether the guest has its IPv6 address
    kept: bool = False  # whether the interface is another's, who has it back if this fails
    error: Exception | None = None  # why it will not be

    @property
    def name(self) -> str:
        """Of the host-side interface."""
        return host_interface(self.index)

    def socket(self) -> RouteSocket:
        """`inside`, of a kind that has one."""
        assert self.inside is not None
        return self.inside


class Kind(Protocol):
    """One kind of slot."""

    name: SlotKind
    namespaced: bool  # whether a slot has a namespace of its own

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """The thread is in the draft's new namespace, where only `lo` is, and that down."""

    def connect(self, door: RouteSocket, place: Place, drafts: Sequence[Draft]) -> None:
        """Make host-side interfaces in the node's namespace, and set every `Draft.ifindex`."""

    def furnish(self, place: Place, draft: Draft) -> None:
        """Make the slot whole. The thread is in the node's namespace; `draft.inside` is not."""

    def settle(self, place: Place, draft: Draft) -> None:
        """Return when frames pass."""


class NamespaceKind:
    """A namespace whose eth0 is one end of a veth, the other in the node's namespace."""

    name = SlotKind.NAMESPACE
    namespaced = True
    interface = GUEST_INTERFACE  # inside
    patience = 10.0  # seconds until eth0 must transmit; no other slot is made meanwhile

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """No router is believed that speaks unasked. Interfaces to come inherit that."""
        draft.ipv6 = (
            settings.write("ipv6/conf/default/accept_ra", b"0") and place.mtu >= IPV6_MTU_MIN
        )

    def connect(self, door: RouteSocket, place: Place, drafts: Sequence[Draft]) -> None:
        """The veth pairs; and inside the IPv6 address, without a word on the link.

        No link-local address, so no router is looked for; no duplicate address
        detection; and no report of the address's solicited-node group, since the
        kernel joins none for an address that an interface without ARP takes up.
        Nobody on this link will solicit.
        """
        pairs = [
            Batch(
                [
                    messages.veth(
                        draft.name,
                        self.interface,
                        mtu=HOST_MTU,
                        peer_mtu=place.mtu,
                        peer_mac=place.guest.mac.octets,
                        peer_namespace=draft.namespace,
                    )
                ]
            )
            for draft in drafts
        ]
        for draft, refused in zip(drafts, door.tell_each(pairs), strict=True):
            if refused:
                draft.error = OSError(refused, os.strerror(refused), draft.name)
                continue
            try:
                draft.ifindex = links.index_by_name(door, draft.name)
                links.set_features(door, draft.name, HOST_SIDE)
                if draft.ipv6:
                    inside = draft.socket()
                    eth0 = links.index_by_name(inside, self.interface)
                    inside.tell_batch(address6(place.guest, eth0))
            except OSError as error:
                draft.error = error

    def furnish(self, place: Place, draft: Draft) -> None:
        """Inside: loopback and eth0 up, the guest address, the gateway as only neighbour.

        Addresses alone, a gateway on the link whose MAC is permanent, in both
        families: the sandbox needs no entry of the neighbour table, which all
        namespaces of the host share.
        """
        inside = draft.socket()
        links.set_features(inside, self.interface, GUEST_SIDE)
        self.wait_address6(draft)
        eth0 = links.index_by_name(inside, self.interface)
        inside.tell_batch(_furniture(place.guest, eth0, draft.ipv6))

    def wait_address6(self, draft: Draft) -> None:
        """Return when the kernel has done with the IPv6 address: ARP must not be back before."""
        if draft.ipv6:
            # It says so a little later, from a thread of its own.
            end = time.monotonic() + _ADDRESS_PATIENCE
            inside = draft.socket()
            while not inside.listen(max(0.0, end - time.monotonic())) and time.monotonic() < end:
                pass

    def settle(self, place: Place, draft: Draft) -> None:
        """eth0 was up before its peer: its first frames must not be lost."""
        inside = draft.socket()
        eth0 = links.index_by_name(inside, self.interface)
        links.wait_transmits(inside, eth0, self.patience)


NAMESPACE = NamespaceKind()


@cache
def address6(guest: Guest, eth0: int) -> Batch:
    """What gives eth0 its IPv6 address, and no other."""
    return Batch([messages.no_link_local(eth0), messages.address(eth0, guest.address6)])


@cache
def _furniture(guest: Guest, eth0: int, ipv6: bool) -> Batch:
    return Batch([messages.link_up(LOOPBACK), *furniture(guest, eth0, ipv6)])


def furniture(guest: Guest, eth0: int, ipv6: bool) -> list[messages.Request]:
    """What eth0 has, beside an IPv6 address that it has already."""
    mac = guest.gateway_mac.octets
    requests = [
        messages.link_arp(eth0, True),
        messages.address(eth0, guest.address),
        messages.link_up(eth0),
        messages.neighbour(eth0, guest.gateway, mac),
        messages.on_link(eth0, guest.gateway),
        messages.default_route(eth0, guest.gateway),
    ]
    return [*requests, *routes6(guest, eth0)] if ipv6 else requests


def routes6(guest: Guest, eth0: int) -> list[messages.Request]:
    """How a guest reaches everybody by IPv6, beside its address."""
    return [
        messages.neighbour(eth0, guest.gateway6, guest.gateway_mac.octets),
        messages.default_route(eth0, guest.gateway6),
    ]
