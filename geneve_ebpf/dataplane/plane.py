# SPDX-License-Identifier: Apache-2.0
"""One node's data plane: its facts and counters, over `Sandboxes` and `Routes`.

Everything here is a read or a write of the node's pinned maps; nothing needs
the agent, netlink or BCC. One process writes, any number may read.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, closing
from pathlib import Path

from geneve_ebpf.abi import (
    Binding,
    Direction,
    Key32,
    SlotCounters,
    TrafficRow,
    drop_reasons,
    event_kinds,
)
from geneve_ebpf.dataplane.counters import (
    Counters,
    Drops,
    Event,
    sum_counters,
    sum_traffic,
)
from geneve_ebpf.dataplane.sandboxes import Sandboxes
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import source
from geneve_ebpf.loader.maps import Table
from geneve_ebpf.loader.pins import Pins

# Seconds that a reader waits for a moment without a fold of counters: the writer may have died in
# the middle of one.
_FOLD_PATIENCE = 0.25


class DataPlane(Sandboxes):
    """The maps of one node. Use `open`, or `bring_up` which also prepares the node."""

    def _open(self, pins: Pins, writable: bool, opened: ExitStack) -> None:
        super()._open(pins, writable, opened)
        self._pins = pins
        self._drops: Table[Key32, TrafficRow] = opened.enter_context(
            closing(Table(pins.map("drop_counts"), Key32, TrafficRow))
        )
        self._events: Table[Key32, TrafficRow] = opened.enter_context(
            closing(Table(pins.map("event_counts"), Key32, TrafficRow))
        )

    @classmethod
    def open(cls, run_directory: Path, *, writable: bool = True) -> DataPlane:
        """Open the pinned maps of the node at `run_directory`.

        Raises GeneveError: NODE_SETUP if the node is not up, LAYOUT_MISMATCH if
        another version made it. Exactly one process may write at a time.
        """
        pins = Pins(run_directory)
        pins.refuse_other_layouts()
        if not pins.have_maps():
            raise GeneveError(
                Code.NODE_SETUP,
                f"no data plane is pinned at {pins.root}",
                hint="start the agent: geneve-ebpf agent run --config FILE",
            )
        return cls(pins, writable=writable)

    # -- facts

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet a sandbox may send: eth0's MTU in new slots."""
        return int(self._state.copy(0).slot_mtu)

    @property
    def layout(self) -> str:
        """Names the shapes of the maps."""
        return self._pins.directory.name

    @property
    def program(self) -> str:
        """Names the programs that this version would run."""
        return source.program_hash()

    # -- reading

    def vpc_totals(self) -> dict[int, Counters]:
        """Traffic by VNI: of sandboxes that are gone, and of those that are here.

        No total is ever less than one that was read before. Raises TimeoutError when a fold
        of counters was begun and does not end.
        """
        # Slots may go meanwhile, as there are thousands. Whose counters have passed to their
        # VPC by the moment that the latter's are read is left out below.
        here = {}
        for slot in self.slots():
            tenant = _tenant(self._bindings.copy(slot.index))
            if tenant[0]:
                here[slot.index] = tenant, self.counters(slot.index)
        folded, bindings = self._folded_at_once()
        totals = {key.value: sum_counters([row]) for key, row in folded}
        for index, (tenant, counters) in here.items():
            row = Binding.from_buffer_copy(bindings, index * self._bindings.step)
            if _tenant(row) == tenant:
                totals[row.vni] = totals.get(row.vni, Counters()) + counters
        return totals

    def _folded_at_once(self) -> tuple[list[tuple[Key32, SlotCounters]], bytes]:
        """The counters of VPCs, and all bindings, as they were at one moment."""
        end = time.monotonic() + _FOLD_PATIENCE
        while True:
            before = self._state.copy(0).fold_sequence
            found = list(self._folded.items()), bytes(self._bindings.memory)
            if before % 2 == 0 and self._state.copy(0).fold_sequence == before:
                return found
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, "counters of a slot are being folded for long")
            time.sleep(0.0005)

    def drops(self) -> list[Drops]:
        """Every reason in both directions, those that never happened included."""
        directions = list(Direction)
        found = []
        for reason in drop_reasons()[1:]:
            for number, direction in enumerate(directions):
                row = Key32(reason.number * len(directions) + number)
                total = sum_traffic(self._drops.get_each_cpu(row))
                found.append(Drops(reason, direction, total.packets, total.bytes))
        return found

    def events(self) -> list[Event]:
        """Every event, those that never happened included."""
        return [
            Event(kind, sum_traffic(self._events.get_each_cpu(Key32(kind.number))).packets)
            for kind in event_kinds()
        ]

    def map_pressure(self) -> dict[str, float]:
        """How full each map is that can fill up: 0.0 to 1.0."""
        return {table.name: table.count() / table.max_entries for table in self._filling()}

    def map_entries(self) -> dict[str, int]:
        """How many entries each of those has."""
        return {table.name: table.count() for table in self._filling()}

    def _filling(self) -> tuple[Table[Key32, Key32], ...]:
        return (
            self._slots_by_ifindex,
            self._endpoints,
            self._exact,
            self._lpm,
            self._nexthops,
            self._vteps,
            self._folded,
        )  # type: ignore[return-value]


def _tenant(row: Binding) -> tuple[int, int, int]:
    """Whose a slot's counters are: VNI (0: nobody's), interface and time of the attach. Another
    slot of the same index has another one."""
    return row.vni, row.ifindex, row.attached_at
