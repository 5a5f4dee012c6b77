# SPDX-License-Identifier: Apache-2.0
"""Slots that are handed out before their tenant is known: reserving, and giving back.

Knows nothing of HTTP, and runs in the agent's one thread. The maps are the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from geneve_ebpf.agent.admission import Admission
from geneve_ebpf.agent.asks import answer_of
from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.agent.intake import Intake
from geneve_ebpf.agent.places import Phase, Place
from geneve_ebpf.agent.slot_pool import SlotPool
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import SlotKind

_NO_INTERFACES = (".", "..", "all", "default", "lo")


class Reservations:
    """What is done with slots that nobody is attached to yet."""

    def __init__(
        self, dataplane: DataPlane, pool: SlotPool, intake: Intake, admission: Admission
    ) -> None:
        self._dataplane = dataplane
        self._pool = pool
        self._intake = intake
        self._admission = admission

    def reserve(self, kind: SlotKind | None = None, *, called: bool = False) -> Place:
        """Hand out the lowest ready slot, to be bound later. Raises NO_SLOT, NODE_CORDONED.

        kind: None is the first that the node keeps. called: whoever asks has waited for a
        slot and has his turn now; else those that wait go first.
        """
        self._intake.check()
        if self._admission.waiting and not called:
            self.let_others_first(kind)
        place = self._pool.lowest_ready(kind)
        self._dataplane.reserve(place.index)
        self._pool.move(place, Phase.RESERVED)
        return place

    async def add(
        self, netns: str, interface: str, existing: bool, added: Callable[[Place], object]
    ) -> tuple[Place, bool]:
        """A reserved slot in a namespace that others made, and whether it is new.

        existing: the interface is there, too, and becomes the slot's. added: called with one that
        is new, even if nobody waits for it any more. Of one interface in one namespace there is
        one slot, whoever asks how often. Raises BAD_NETNS, BAD_INTERFACE, INTERFACE_EXISTS, BUSY,
        NODE_CORDONED, NO_SLOT; then nothing is left, unless the last says that the slot process
        does not answer: it may do it yet.
        """
        check_interface(interface)
        self._intake.check()
        index, asked = self._pool.give(netns, interface, existing=existing)

        def tell(_: object) -> None:
            made = self._pool.handed_out(index)
            if made is not None:
                added(made)

        asked.add_done_callback(tell)
        answered = await answer_of(asked, index)
        assert answered.content is not None
        there = answered.content["slot"]
        place = self._pool.handed_out(there)
        if place is None:
            raise GeneveError(
                Code.BUSY, f"slot-{there} was there and is being destroyed", hint="try again"
            )
        return place, there == index

    def check_owner(self, kind: SlotKind | None) -> None:
        """Raise BAD_REQUEST if slots of that kind have nothing that a user could own."""
        kind = self._pool.kind_or_default(kind)
        if kind is SlotKind.NAMESPACE:
            raise GeneveError(
                Code.BAD_REQUEST,
                f"a {kind.value} slot has no tap to own",
                hint="reserve one of kind tap or host-tap",
                field="owner",
            )

    async def own(self, place: Place, owner: int) -> None:
        """Have a reserved slot's tap belong to a user, for as long as there is that slot.

        Raises why not: TAP_BUSY if somebody has it open.
        """
        await self._pool.asks.ask("own", place.index, kind=place.kind.value, owner=owner)

    async def open_tap(self, slot_id: str) -> tuple[Place, Descriptor]:
        """Open the tap of a slot that is reserved or attached, for a caller who may not.

        Raises TAP_BUSY if somebody has it open, BAD_REQUEST if there is none, SLOT_TAKEN if the
        slot is nobody's, SLOT_NOT_FOUND if it went meanwhile.
        """
        place = self._pool.place(parse_slot(slot_id))
        if place.tap is None:
            raise GeneveError(
                Code.BAD_REQUEST,
                f"{slot_id} is a {place.kind.value} slot, which has no tap",
                hint="reserve one of kind tap or host-tap",
                field="slot",
            )
        if not place.handed_out:
            raise GeneveError(
                Code.SLOT_TAKEN,
                f"{slot_id} is {place.phase.value}, not reserved or attached",
                hint="reserve it first: geneve-ebpf slot reserve",
                field="slot",
            )
        if self._pool.asks.is_open("open", place.index):
            # Each descriptor is of one request alone.
            raise GeneveError(
                Code.TAP_BUSY,
                f"another request opens {slot_id}'s tap, which has one queue",
                hint="end whoever gets its descriptor, or leave it to him",
            )
        answered = await self._pool.asks.ask("open", place.index, kind=place.kind.value)
        descriptor = answered.descriptor
        assert descriptor is not None
        if place not in self._pool or not place.handed_out:
            descriptor.close()
            raise GeneveError(
                Code.SLOT_NOT_FOUND, f"{slot_id} has just gone", hint="reserve another"
            )
        return place, descriptor

    def release(self, slot_id: str) -> Place:
        """Destroy a reserved slot. Raises SLOT_NOT_FOUND; SLOT_TAKEN if it is not reserved."""
        place = self._pool.place(parse_slot(slot_id))
        if place.phase is not Phase.RESERVED:
            there = self._dataplane.attachment(place.index)
            raise GeneveError(
                Code.SLOT_TAKEN,
                f"{slot_id} is {place.phase.value}, not reserved"
                if there is None
                else f"{slot_id} is sandbox {there.sandbox}'s",
                hint="nothing to do"
                if there is None
                else f"geneve-ebpf detach {there.sandbox} gives it back too",
                field="slot",
            )
        self._dataplane.retire(place.index)
        self._pool.destroy(place)
        return place

    def is_reserved(self, slot_id: str | None) -> bool:
        """Is it a slot that was handed out, and nobody attached yet? Raises SLOT_NOT_FOUND."""
        return slot_id is not None and self._pool.place(parse_slot(slot_id)).phase is Phase.RESERVED

    def let_others_first(self, kind: SlotKind | None) -> None:
        """Raise NO_SLOT if somebody waits for a slot of that kind."""
        kind = self._pool.kind_or_default(kind)
        waiting = self._admission.waiting_for[kind.value]
        if not waiting:
            return
        raise GeneveError(
            Code.NO_SLOT,
            f"{waiting} requests wait for a {kind.value} slot",
            hint="wait for one as well, with Request-Timeout, or place it elsewhere",
            details={"retry_after_s": self._pool.refill.seconds_for(waiting + 1)},
        )


def check_interface(name: str) -> None:
    """Raise BAD_REQUEST for what the kernel, or /proc/sys, takes for no interface's name."""
    if name in _NO_INTERFACES:
        raise GeneveError(
            Code.BAD_REQUEST,
            f"{name!r} means something else to the kernel: no sandbox's interface can be called so",
            hint="another name, such as eth0",
            field="interface",
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name, re.ASCII):
        raise GeneveError(
            Code.BAD_REQUEST,
            f"{name[:40]!r} cannot be an interface's name",
            hint="1 to 15 letters, digits, dots, dashes and underscores, such as eth0",
            field="interface",
        )


def parse_slot(text: str) -> int:
    """The index in a slot's id, "slot-3". Raises SLOT_NOT_FOUND: no slot is called otherwise."""
    number = text.removeprefix("slot-")
    if text != number and number.isascii() and number.isdigit() and len(number) < 8:
        index = int(number)
        if f"slot-{index}" == text:
            return index
    raise GeneveError(
        Code.SLOT_NOT_FOUND,
        f"no slot {text!r}",
        hint="slots are called slot-0, slot-1, …: geneve-ebpf slot list",
        field="slot",
    )
