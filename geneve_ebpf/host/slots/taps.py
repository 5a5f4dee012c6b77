# SPDX-License-Identifier: Apache-2.0
"""The two kinds of slot that a virtual machine opens: a tap in a namespace, and one without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from geneve_ebpf.abi import constant
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, messages, namespaces, taps, tc
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots.kinds import GUEST_SIDE, LOOPBACK, Draft, NamespaceKind
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import GUEST_INTERFACE, TAP, SlotKind, host_interface

_DISTANCE = constant("TAP_DISTANCE")
_BLOCK = 6081  # in a namespace of our own, where nobody else has one


@dataclass(frozen=True)
class TapKind(NamespaceKind):
    """A tap in the slot's namespace, spliced to eth0, which has no address there.

    The guest's kernel has them. owner: the uid that may open the tap. program: a
    descriptor of tap_splice.
    """

    owner: int
    program: int
    name = SlotKind.TAP

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """No IPv6 of this kernel's on any interface to come."""
        settings.write("ipv6/conf/default/disable_ipv6", b"1")

    def furnish(self, place: Place, draft: Draft) -> None:
        """The tap beside eth0, and tap_splice on what enters by either, before they are up."""
        inside = draft.socket()
        # What is for the machine is merged; what must not be merged is cut up.
        links.set_features(inside, GUEST_INTERFACE, GUEST_SIDE)
        eth0 = links.index_by_name(inside, GUEST_INTERFACE)
        with namespaces.visiting(place.netns(draft.index)):
            tap = taps.make(TAP, self.owner, eth0 ^ _DISTANCE)
        inside.tell_all(
            [
                messages.link_arp(tap, False),
                messages.clsact(eth0, _BLOCK, _BLOCK + 1),
                messages.clsact(tap, _BLOCK, _BLOCK + 1),
            ]
        )
        tc.set_block_program(inside, _BLOCK, self.program, "tap_splice")
        if len(tc.block_programs(inside, _BLOCK)) != 1:
            raise GeneveError(
                Code.NODE_SETUP,
                f"the block in {draft.name}'s namespace does not hold our program alone",
                hint="keep other tools of the machine out of namespaces of slots",
            )
        inside.tell_all([messages.link_up(one) for one in (LOOPBACK, tap, eth0)])


@dataclass(frozen=True)
class HostTapKind:
    """A tap in the node's namespace. owner: the uid that may open it."""

    owner: int
    name = SlotKind.HOST_TAP
    namespaced = False

    def prepare(self, place: Place, draft: Draft, settings: Settings) -> None:
        """It needs nothing around it."""

    def connect(self, door: RouteSocket, place: Place, drafts: Sequence[Draft]) -> None:
        """The taps themselves."""
        for draft in drafts:
            try:
                draft.ifindex = taps.make(draft.name, self.owner)
                door.tell_all([messages.link_arp(draft.ifindex, False)])
            except OSError as error:
                draft.error = error

    def furnish(self, place: Place, draft: Draft) -> None:
        """It is whole."""

    def settle(self, place: Place, draft: Draft) -> None:
        """Frames pass when somebody opens it."""


@contextmanager
def beside_tap(place: Place, index: int, kind: SlotKind) -> Iterator[str]:
    """This thread, of the node's namespace, is meanwhile where a slot's tap is; the tap's name.

    Raises OSError if there is no such slot any more.
    """
    if kind is SlotKind.HOST_TAP:
        yield host_interface(index)
        return
    with namespaces.visiting(place.netns(index)):
        yield TAP
