# SPDX-License-Identifier: Apache-2.0
"""Slots in namespaces that others made: a veth into them, and its addresses and routes.

Nothing else in there is touched, not even `lo`, and with the veth all of it goes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import given, links, messages, namespaces, walks
from geneve_ebpf.host.netlink import Batch, RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots.kinds import GUEST_SIDE, Draft, NamespaceKind, furniture
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import GUEST_INTERFACE, IPV6_MTU_MIN


@dataclass(frozen=True)
class GivenKind(NamespaceKind):
    """As a namespace slot, in a namespace that is there already; `namespace` is open."""

    namespace: int
    interface: str
    namespaced = False
    patience = 2.0  # somebody else has the namespace, and may take eth0 down as often as it is up

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """Look whether the interface can be there. Raises INTERFACE_EXISTS if there is one."""
        draft.namespace = os.dup(self.namespace)
        with namespaces.inside(draft.namespace):
            draft.inside = RouteSocket(messages.ADDRESSES6)
            if self.interface in (name for _, name in socket.if_nameindex()):
                raise _exists(
                    f"an interface {self.interface}",
                    "name another, with `interface`, or bring this one, with `existing`",
                )
            draft.ipv6 = place.mtu >= IPV6_MTU_MIN and links.has_ipv6("default")

    def furnish(self, place: Place, draft: Draft) -> None:
        """eth0's addresses, neighbour and routes. Raises INTERFACE_EXISTS if there are such."""
        if draft.ipv6:
            with namespaces.inside(draft.namespace):
                links.believe_no_router(self.interface)
        inside = draft.socket()
        links.set_features(inside, self.interface, GUEST_SIDE)
        self.wait_address6(draft)
        index = links.index_by_name(inside, self.interface)
        try:
            inside.tell_batch(Batch(furniture(place.guest, index, draft.ipv6)))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            raise _exists(
                "a default route, or the guest's address", "a sandbox has one way out, ours"
            ) from None


def _exists(what: str, hint: str) -> GeneveError:
    return GeneveError(
        Code.INTERFACE_EXISTS, f"the namespace has {what} already", hint=hint, field="netns"
    )


@contextmanager
def visiting(place: Place, index: int) -> Iterator[str]:
    """This thread is meanwhile in a slot's namespace; what eth0 is called there.

    Raises OSError if there is no such slot any more, or its namespace is not where it was.
    """
    record = given.Records(place.run_directory).get(index)
    if record is None:
        with namespaces.visiting(place.netns(index)):
            yield GUEST_INTERFACE
        return
    descriptor = record.open()
    try:
        with namespaces.inside(descriptor):
            yield record.interface
    finally:
        os.close(descriptor)


def refuse_ours(place: Place, wanted: given.Given, namespace: int, anchor: str) -> None:
    """Raise BAD_NETNS for the machine's, this node's and its slots' own namespaces.

    And for other nodes', which have an interface that is called as `anchor`, and the slots' of
    those that share our run root. namespace: open.
    """
    own = [Path("/proc/thread-self/ns/net"), Path("/proc/1/ns/net")]
    with namespaces.inside(namespace):
        if anchor in (name for _, name in socket.if_nameindex()):
            raise walks.bad_netns(wanted.path, given.OWN)
    taken = place.run_directory.parent.glob(f"*/{place.directory.name}/slot-*")
    given.refuse_those(wanted, own + list(taken))
