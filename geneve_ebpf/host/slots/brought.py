# SPDX-License-Identifier: Apache-2.0
"""Slots whose veth others made too: one end in their namespace, the other in the node's.

`find` looks at both ends and refuses what cannot be a slot's; until then nothing is changed.
From there on the veth is the slot's, and goes with it. One that is to be a slot's and does not
become it is given back instead: called as before and open for another try, but down.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import given, links, messages, namespaces
from geneve_ebpf.host.netlink import Batch, RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots.given import GivenKind
from geneve_ebpf.host.slots.kinds import HOST_MTU, HOST_SIDE, Draft, address6
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import IPV6_MTU_MIN, Address, Guest, host_interface

# Whoever is root in the namespace may have made millions, and they are looked at by the process
# that makes all slots.
_LOOKED_AT_MAX = 1000
# A new veth's GRO is off, and would merge what the guest sends.
_OUTSIDE = links.Features(off=(*HOST_SIDE.off, "rx-gro", "rx-gro-list", "rx-udp-gro-forwarding"))


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth between a namespace of others' and the node's: both ends' indexes."""

    inside: int
    outside: int
    name: str  # of the end that is outside


def find(door: RouteSocket, guest: Guest, namespace: int, interface: str) -> Veth:
    """The veth whose end in a namespace, which is open, is called so.

    The socket is in the node's namespace. Raises BAD_INTERFACE for the first reason why it cannot
    be a slot's; changes nothing.
    """
    with namespaces.inside(namespace):
        within = RouteSocket()
    with within:
        try:
            near = _read(within, links.index_by_name(within, interface))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            raise _unfit(
                f"there is no interface {interface} in the namespace",
                "its name in there; without `existing` it would be made",
            ) from None
        far = _other_end(door, near, namespace)
        for end, where in ((near, "the namespace"), (far, "the node's namespace")):
            _refuse_used(end, where)
        try:
            _refuse_addressed(within, near, guest)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise _unfit(
                f"the namespace has more than {_LOOKED_AT_MAX:,} addresses or routes",
                "bring one that nobody has used yet",
            ) from None
        _refuse_busy(door, far)
    return Veth(near.index, far.index, far.name)


def _read(door: RouteSocket, index: int) -> messages.LinkFacts:
    """Raises OSError ENODEV if there is none of that index."""
    return messages.link_facts(door.get_bytes(messages.link(index)))


def _other_end(door: RouteSocket, near: messages.LinkFacts, namespace: int) -> messages.LinkFacts:
    what = f"the namespace's {near.name}"
    if near.kind != "veth":
        raise _unfit(
            f"{what} is no veth, but {near.kind or 'a device'}",
            "make one, or have one made: leave `existing` away",
        )
    outside = f"the other end of {what} is not in the node's namespace"
    hint = "move it there: ip link set NAME netns …"
    if near.peer_namespace is None:
        raise _unfit(outside + " but in the same", hint)
    try:
        far = _read(door, near.peer)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise _unfit(outside, hint) from None
    # Indexes are of one namespace only: this end, too, must say that it belongs to that one.
    number = messages.namespace_number(door.get_bytes(messages.namespace_of(namespace)))
    if (far.kind, far.peer) != ("veth", near.index) or far.peer_namespace != number or number < 0:
        raise _unfit(outside, hint)
    return far


def _refuse_used(end: messages.LinkFacts, where: str) -> None:
    what = f"{end.name}, in {where},"
    if re.match(r"gnv(\d|-)", end.name):
        raise _unfit(f"{what} is a slot's, or the node's own", "bring one that is yours")
    if end.master:
        raise _unfit(f"{what} is a port of another interface", "ip link set NAME nomaster")
    if end.xdp:
        raise _unfit(f"{what} has an XDP program", "ip link set NAME xdp off")


def _refuse_addressed(within: RouteSocket, near: messages.LinkFacts, guest: Guest) -> None:
    # What an earlier try has left there goes with the next.
    own = (guest.address, guest.address6)
    for index, address in _addresses(within, _LOOKED_AT_MAX):
        if index == near.index and address not in own and not _is_kernels(address):
            raise _unfit(
                f"{near.name}, in the namespace, has the address {address}",
                "ip address flush: the guest's comes in its place",
            )
        if index != near.index and address in own:
            raise _unfit(
                f"another interface of the namespace has the guest's address, {address}",
                "a sandbox has one way out, ours",
            )
    for family, gateway in ((socket.AF_INET, guest.gateway), (socket.AF_INET6, guest.gateway6)):
        for body in within.dump_bytes(messages.routes(family), _LOOKED_AT_MAX):
            left = messages.is_route_by(body, near.index, gateway)
            if messages.is_default_route(body) and not left:
                raise _unfit(
                    "the namespace has a default route",
                    "ip route delete default: a sandbox has one way out, ours",
                )


def _refuse_busy(door: RouteSocket, far: messages.LinkFacts) -> None:
    what = f"{far.name}, in the node's namespace,"
    for index, address in _addresses(door):
        if index == far.index and not _is_kernels(address):
            raise _unfit(f"{what} has the address {address}", "ip address flush: it has none here")
    for body in door.dump_bytes(messages.QDISCS):
        (index,) = struct.unpack_from("=i", body, 4)
        kind = messages.qdisc_kind(body) if index == far.index else "noqueue"
        if kind != "noqueue":
            raise _unfit(
                f"{what} has a qdisc, {kind}", "tc qdisc delete: it is to be in the node's blocks"
            )
    with RouteSocket() as narrow:
        narrow.ask_strictly()
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in narrow.dump_bytes(messages.routes(family, far.index)):
                if not messages.is_kernels_route(body):
                    raise _unfit(
                        f"routes of the node lead to {far.name}",
                        "ip route flush dev NAME: programs alone send there",
                    )


def _addresses(door: RouteSocket, most: int = 0) -> Iterator[tuple[int, Address]]:
    """(interface, address) of all in the socket's namespace. most: raises E2BIG beyond."""
    return map(messages.own_address, door.dump_bytes(messages.OWN_ADDRESSES, most))


def _is_kernels(address: Address) -> bool:
    """Whether the kernel gives an interface such an address unasked. It goes with its IPv6."""
    return address.version == 6 and address.is_link_local


def _unfit(why: str, hint: str) -> GeneveError:
    return GeneveError(Code.BAD_INTERFACE, why, hint=hint, field="interface")


@dataclass(frozen=True, kw_only=True)
class BroughtKind(GivenKind):
    """As a slot in a namespace of others', of the veth that was found there."""

    veth: Veth

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """Everything was looked at before."""
        draft.kept = True
        draft.namespace = os.dup(self.namespace)

    def connect(self, door: RouteSocket, place: Place, drafts: Sequence[Draft]) -> None:
        """Make both ends what those of a new veth are: down, silent, and called as ours."""
        for draft in drafts:
            try:
                self._take(door, place, draft)
            except OSError as error:
                draft.error = error

    def _take(self, door: RouteSocket, place: Place, draft: Draft) -> None:
        inside, outside = self.veth.inside, self.veth.outside
        # Down first: it is never open, and the name of one that is up is not changed everywhere.
        door.tell_all([messages.link_down(outside), messages.link_rename(outside, draft.name)])
        draft.ifindex = outside
        door.tell_all([messages.link_arp(outside, False), messages.link_mtu(outside, HOST_MTU)])
        links.set_features(door, draft.name, _OUTSIDE)
        with namespaces.inside(draft.namespace):
            with RouteSocket() as within:
                within.tell_all(
                    [
                        messages.link_down(inside),
                        messages.link_arp(inside, False),
                        messages.link_mac(inside, place.guest.mac.octets),
                        messages.link_mtu(inside, place.mtu),
                    ]
                )
                # Of an earlier try; refused where there was none.
                within.tell_each([Batch([messages.address_remove(inside, place.guest.address)])])
            draft.ipv6 = place.mtu >= IPV6_MTU_MIN and links.has_ipv6(self.interface)
            if draft.ipv6:
                links.begin_ipv6_anew(self.interface)
            # It hears of the address that is to come, not of those that have gone.
            draft.inside = RouteSocket(messages.ADDRESSES6)
        if draft.ipv6:
            draft.inside.tell_batch(address6(place.guest, inside))


def give_back(door: RouteSocket, index: int, former: given.Given) -> None:
    """Undo that a veth became slot `index`, as far as it had come; nothing if it had not.

    It is called as before, in no block, and down.
    """
    outside = former.outside_index
    try:
        if links.index_by_name(door, host_interface(index)) != outside:
            return
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return
    refused = door.tell_each(
        [
            Batch([messages.link_down(outside)]),
            Batch([messages.no_clsact(outside)]),
            Batch([messages.link_rename(outside, former.outside)]),
        ]
    )
    if refused[2] == errno.EEXIST:  # the name is another's by now
        refused = [0, 0, *door.tell_each([Batch([messages.link_remove(outside)])])]
    for code in (refused[0], refused[2]):
        if code not in (0, errno.ENODEV):
            raise OSError(code, os.strerror(code), host_interface(index))
