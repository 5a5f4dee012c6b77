# SPDX-License-Identifier: Apache-2.0
"""Slots and who is attached to them: reads and writes of one node's maps."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address

from geneve_ebpf.abi import (
    MAPPED,
    MAPS,
    Address,
    Binding,
    EndpointKey,
    EndpointValue,
    Key32,
    SlotCounters,
)
from geneve_ebpf.dataplane.counters import (
    Counters,
    sum_counters,
    to_row,
)
from geneve_ebpf.dataplane.routes import Routes
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader.maps import SharedArray, Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import Address as AnyAddress
from geneve_ebpf.model import (
    AddressMode,
    Attachment,
    Endpoint,
    MacAddress,
    Slot,
    SlotKind,
    SlotState,
)

_SLOT_KINDS = tuple(SlotKind)
_READY, _RESERVED, _TAKEN = (
    SlotState.READY.value,
    SlotState.RESERVED.value,
    SlotState.TAKEN.value,
)
# Parts of struct binding, and both halves of an endpoint, as attaching writes them.
_TENANT = struct.Struct("=I4s6sB")  # from vni: address, mac, native
_OCCUPANT = struct.Struct("=Q64s")  # from attached_at: sandbox
_ENDPOINT_KEY = struct.Struct("=I12s4s")  # of an IPv4 address
_ENDPOINT_KEY6 = struct.Struct("=I16s")
_ENDPOINT = struct.Struct("=QI4x")
_TENANT_AT, _OCCUPANT_AT = Binding.vni.offset, Binding.attached_at.offset
_ADDRESS6_AT, _NO_IPV4, _NO_IPV6 = Binding.address6.offset, bytes(4), bytes(16)
_STATE_WORD = Binding.state.offset // 4


class Sandboxes(Routes):
    """The slots of one node, their sandboxes and what they count."""

    def _open(self, pins: Pins, writable: bool, opened: ExitStack) -> None:
        super()._open(pins, writable, opened)
        self._bindings = opened.enter_context(
            closing(SharedArray(pins.map("bindings"), Binding, writable=writable))
        )
        self._state_words = self._state.view("Q")
        # A generation is published by one aligned 8-byte store, which a struct
        # module's pack is not (it zeroes first, and goes field by field).
        self._words = self._bindings.view("Q")
        self._words_per_row = self._bindings.step // 8
        self._halves = self._bindings.view("I")
        self._slots_by_ifindex = opened.enter_context(
            closing(Table(pins.map("slot_by_ifindex"), *MAPS["slot_by_ifindex"]))
        )
        self._endpoints: Table[EndpointKey, EndpointValue] = opened.enter_context(
            closing(Table(pins.map("endpoints"), EndpointKey, EndpointValue))
        )
        # Keys of `endpoints`, for who inserts many: the kernel has no such call that refuses
        # what is there already. None: not read yet.
        self._held: set[bytes] | None = None
        self._counters: Table[Key32, SlotCounters] = opened.enter_context(
            closing(Table(pins.map("slot_counters"), Key32, SlotCounters))
        )
        self._folded: Table[Key32, SlotCounters] = opened.enter_context(
            closing(Table(pins.map("vpc_counters"), Key32, SlotCounters))
        )

    @property
    def generation(self) -> int:
        """The last one given to a binding; 0 in maps that are new."""
        return int(self._state_words[0])

    def count_on_from(self, generation: int) -> None:
        """Give generations above this one, in maps that are new. For the writer, at its start."""
        if not self._state_words[0]:
            self._state_words[0] = generation

    # -- sandboxes: map writes only

    def attach(
        self,
        slot: int,
        sandbox: str,
        endpoint: Endpoint,
        mode: AddressMode = AddressMode.CLONE,
    ) -> Attachment:
        """Bind a slot to an endpoint; when this returns, packets pass.

        The slot must be READY or RESERVED (else SLOT_TAKEN) and every address
        free in its VPC (else ADDRESS_IN_USE); MAP_FULL if there is no room. On
        any error nothing has changed. mode NATIVE: the guest has the endpoint's
        addresses on its interface, or asks for them by DHCP.
        """
        if self._state_of(slot) not in (_READY, _RESERVED):
            raise self._not_ready(slot)
        generation = self._state_words[0] + 1
        vni, address, address6 = endpoint.vni, endpoint.address, endpoint.address6
        value = _ENDPOINT.pack(generation, slot)
        # First the half that is looked up by address: without the binding's
        # generation it leads nowhere, so a crash in between attaches nobody.
        held = self._held
        if address is not None:
            key = _ENDPOINT_KEY.pack(vni, MAPPED, address.packed)
            if not self._endpoints.insert_packed(key, value):
                raise _in_use(vni, address)
            if held is not None:
                held.add(key)
        if address6 is not None:
            key = _ENDPOINT_KEY6.pack(vni, address6.packed)
            try:
                if not self._endpoints.insert_packed(key, value):
                    raise _in_use(vni, address6)
            except BaseException:
                if address is not None:
                    self._remove_endpoint(vni, address)
                raise
            if held is not None:
                held.add(key)
        self._state_words[0] = generation
        return self._bind(((slot, sandbox, endpoint),), generation, mode)[0]

    def attach_many(self, wanted: Sequence[tuple[int, str, Endpoint]]) -> list[Attachment]:
        """As `attach` in clone mode, of many slots; one system call for all of their addresses.

        wanted: slot, sandbox and endpoint. All of them, or, on an error, none.
        """
        held = self._held
        if held is None:
            held = self._held = {bytes(key) for key, _ in self._endpoints.items()}
        first = self._state_words[0] + 1
        keys: list[bytes] = []
        values: list[bytes] = []
        slots: set[int] = set()
        for generation, (slot, _, (vni, address, _, address6)) in enumerate(wanted, first):
            if slot in slots or self._state_of(slot) not in (_READY, _RESERVED):
                raise self._not_ready(slot)
            slots.add(slot)
            value = _ENDPOINT.pack(generation, slot)
            if address is not None:
                keys.append(_ENDPOINT_KEY.pack(vni, MAPPED, address.packed))
                values.append(value)
            if address6 is not None:
                keys.append(_ENDPOINT_KEY6.pack(vni, address6.packed))
                values.append(value)
        new = set(keys)
        if len(new) < len(keys) or not new.isdisjoint(held):
            raise _first_in_use(wanted, held)
        try:
            self._endpoints.set_many_packed(keys, values)
        except BaseException:
            for _, _, endpoint in wanted:
                for one in endpoint.addresses:
                    self._remove_endpoint(endpoint.vni, one)
            raise
        held |= new
        self._state_words[0] = first + len(wanted) - 1
        return self._bind(wanted, first, AddressMode.CLONE)

    def _bind(
        self, wanted: Sequence[tuple[int, str, Endpoint]], first: int, mode: AddressMode
    ) -> list[Attachment]:
        """Write bindings, and of each last and alone the generation, which publishes it.

        first: generation of the first.
        """
        now, native = time.time_ns(), mode is AddressMode.NATIVE
        memory, words, halves = self._bindings.memory, self._words, self._halves
        words_per_row, at = self._words_per_row, now / 1e9
        attachments = []
        for generation, (slot, sandbox, endpoint) in enumerate(wanted, first):
            word = slot * words_per_row
            row = word * 8
            vni, address, (mac,), address6 = endpoint
            ipv4 = _NO_IPV4 if address is None else address.packed
            ipv6 = _NO_IPV6 if address6 is None else address6.packed
            # Also where it has none: an attach that was cut short may have left one.
            memory[row + _ADDRESS6_AT : row + _ADDRESS6_AT + 16] = ipv6
            _TENANT.pack_into(memory, row + _TENANT_AT, vni, ipv4, mac, native)
            _OCCUPANT.pack_into(memory, row + _OCCUPANT_AT, now, sandbox.encode())
            halves[word * 2 + _STATE_WORD] = _TAKEN
            words[word] = generation
            attachments.append(Attachment(sandbox, slot, endpoint, generation, at, mode))
        return attachments

    def _remove_endpoint(self, vni: int, address: AnyAddress) -> None:
        key = EndpointKey(vni, Address.of(address))
        self._endpoints.remove(key)
        if self._held is not None:
            self._held.discard(bytes(key))

    def detach(self, slot: int) -> Counters:
        """Unbind a slot; returns its final counters. It is never bound again.

        When this returns no new packet of the sandbox passes; one that a
        program was already working on may. Raises SLOT_NOT_FOUND if nobody is
        attached to the slot.
        """
        word = slot * self._words_per_row
        if not 0 <= slot < self._bindings.max_entries or not self._words[word]:
            raise GeneveError(
                Code.SLOT_NOT_FOUND,
                f"no sandbox is attached to slot-{slot}",
                hint="geneve-ebpf list",
                field="slot",
            )
        binding = self._bindings.copy(slot)
        self._words[word] = 0
        for address in _endpoint_of(binding).addresses:
            self._remove_endpoint(binding.vni, address)
        return self.counters(slot)

    def attachment(self, slot: int) -> Attachment | None:
        """Who is attached to a slot."""
        binding = self._bindings.copy(slot)
        if not binding.generation:
            return None
        return Attachment(
            binding.sandbox.decode(),
            slot,
            _endpoint_of(binding),
            binding.generation,
            binding.attached_at / 1e9,
            AddressMode.NATIVE if binding.native else AddressMode.CLONE,
        )

    def _not_ready(self, slot: int) -> GeneveError:
        there = self.attachment(slot) if self._state_of(slot) == _TAKEN else None
        return GeneveError(
            Code.SLOT_TAKEN,
            f"slot-{slot} is not ready"
            if there is None
            else f"slot-{slot} is sandbox {there.sandbox}'s",
            hint="geneve-ebpf slot list",
            field="slot",
        )

    def attachments(self) -> Iterator[Attachment]:
        """Every attached sandbox, from the maps alone."""
        found = (self.attachment(slot.index) for slot in self.slots())
        return (one for one in found if one is not None)

    def departed(self) -> Iterator[tuple[str, Endpoint]]:
        """Sandboxes that were detached and whose slots are still there: name and endpoint."""
        for slot in self.slots():
            binding = self._bindings.copy(slot.index)
            if slot.state is SlotState.TAKEN and not binding.generation and binding.vni:
                yield binding.sandbox.decode(), _endpoint_of(binding)

    def repair(self) -> int:
        """Undo attaches and detaches that a crash cut short; returns how many.

        An endpoint whose generation is not its binding's leads nowhere and
        holds its address: it is removed. For the writer, at its start.
        """
        stale, held = [], set()
        for key, endpoint in self._endpoints.items():
            if self._words[endpoint.slot * self._words_per_row] == endpoint.generation:
                held.add(bytes(key))
            else:
                stale.append(key)
        self._endpoints.remove_many(stale)
        self._held = held
        state = self._state.row(0)
        if state.fold_sequence % 2:
            state.fold_sequence += 1
        return len(stale)

    # -- slots

    def slot(self, index: int) -> Slot:
        """One slot, with its state."""
        binding = self._bindings.copy(index)
        state, kind = SlotState(binding.state), _SLOT_KINDS[binding.kind]
        return Slot(index, binding.ifindex, state, kind)

    def slot_of(self, ifindex: int) -> int | None:
        """Index of the slot that has this host-side interface."""
        found = self._slots_by_ifindex.get(Key32(ifindex))
        return None if found is None else found.value

    def slots(self) -> Iterator[Slot]:
        """Every slot there is, with its state."""
        return (self.slot(i) for i in sorted(v.value for _, v in self._slots_by_ifindex.items()))

    def add_slot(
        self,
        index: int,
        ifindex: int,
        kind: SlotKind = SlotKind.NAMESPACE,
        state: SlotState = SlotState.READY,
    ) -> None:
        """A slot was made: it becomes READY, or is somebody's at once, RESERVED. For the process
        that makes slots."""
        binding = Binding(state=state.value, ifindex=ifindex, kind=_SLOT_KINDS.index(kind))
        self._bindings.memory[index * self._bindings.step : (index + 1) * self._bindings.step] = (
            bytes(binding)
        )
        self._slots_by_ifindex.set(Key32(ifindex), Key32(index))

    def reserve(self, slot: int) -> None:
        """READY -> RESERVED: hand it out before its tenant is known. Else SLOT_TAKEN."""
        self._move(slot, (_READY,), _RESERVED)

    def retire(self, slot: int) -> None:
        """READY or RESERVED -> TAKEN and unbound: it waits to be destroyed. Else SLOT_TAKEN."""
        self._move(slot, (_READY, _RESERVED), _TAKEN)

    def remove_slot(self, index: int) -> None:
        """A slot was destroyed: it becomes ABSENT, its counters pass to its VPC.

        For the process that destroys slots. An RCU grace period must pass
        before the index is used again (`quiesce`).
        """
        binding = self._bindings.row(index)
        state = self._state.row(0)
        # Whoever is killed in here leaves the slot known, and it is removed once more. Only in
        # the moment between the VPC's new total and `vni = 0` is its traffic then counted twice.
        state.fold_sequence |= 1
        if binding.vni:
            vni = Key32(binding.vni)
            before = self._folded.get(vni)
            total = self.counters(index)
            if before:
                total += sum_counters([before])
            # MAP_FULL: a VPC that is not counted is no reason to keep its slots for ever.
            with contextlib.suppress(GeneveError):
                self._folded.set(vni, to_row(total))
            binding.vni = 0
        # Before the index can be somebody else's, or that one has these counters.
        self._counters.clear_row(Key32(index))
        self._slots_by_ifindex.remove(Key32(binding.ifindex))
        step = self._bindings.step
        self._bindings.memory[index * step : (index + 1) * step] = bytes(step)
        state.fold_sequence += 1

    def forget_vpc(self, vni: int) -> None:
        """Drop what was counted for a VPC: whoever gets its VNI next starts from zero.

        Nobody may be attached to it.
        """
        for slot in self.slots():
            binding = self._bindings.row(slot.index)
            if binding.vni == vni and not binding.generation:
                binding.vni = 0
        self._folded.remove(Key32(vni))

    def _state_of(self, slot: int) -> int:
        if not 0 <= slot < self._bindings.max_entries:
            return SlotState.ABSENT.value
        return self._halves[slot * self._words_per_row * 2 + _STATE_WORD]

    def _move(self, slot: int, allowed: tuple[int, ...], to: int) -> None:
        state = self._state_of(slot)
        if state == SlotState.ABSENT.value:
            raise GeneveError(
                Code.SLOT_NOT_FOUND,
                f"there is no slot-{slot}",
                hint="geneve-ebpf slot list",
                field="slot",
            )
        if state not in allowed:
            raise GeneveError(
                Code.SLOT_TAKEN,
                f"slot-{slot} is {SlotState(state).name.lower()}",
                hint="geneve-ebpf slot list",
                field="slot",
            )
        self._bindings.row(slot).state = to

    def counters(self, slot: int) -> Counters:
        """A slot's traffic since it was made."""
        return sum_counters(self._counters.get_each_cpu(Key32(slot)))


def _endpoint_of(binding: Binding) -> Endpoint:
    ipv4, ipv6 = bytes(binding.address), bytes(binding.address6.word)
    return Endpoint(
        binding.vni,
        None if ipv4 == _NO_IPV4 else IPv4Address(ipv4),
        MacAddress(bytes(binding.mac)),
        None if ipv6 == _NO_IPV6 else IPv6Address(ipv6),
    )


def _first_in_use(wanted: Sequence[tuple[int, str, Endpoint]], held: set[bytes]) -> GeneveError:
    """What is said of the first address that is in `held`, or there twice."""
    seen = set(held)
    for _, _, endpoint in wanted:
        for address in endpoint.addresses:
            key = bytes(EndpointKey(endpoint.vni, Address.of(address)))
            if key in seen:
                return _in_use(endpoint.vni, address)
            seen.add(key)
    raise ValueError("no address is in use")


def _in_use(vni: int, address: AnyAddress) -> GeneveError:
    return GeneveError(
        Code.ADDRESS_IN_USE,
        f"another sandbox of VNI {vni} has {address}",
        hint="leave out the address to get a free one",
        field="address" if address.version == 4 else "address6",
    )
