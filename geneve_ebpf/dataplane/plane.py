# SPDX-License-Identifier: Apache-2.0
"""One node's data plane: its facts and counters, over `Sandboxes` and `Routes`.

Everything here is a read or a write of the node's pinned maps; nothing needs
the agent, netlink or BCC. One process writes, any number may read.
"""

from __future__ import annotations

import time
from pathlib import Path

from geneve_ebpf.abi import (
    Direction,
    Key32,
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

# How long a reader waits out a fold of counters before it takes what it sees:
# the writer may have died in the middle.
_FOLD_PATIENCE = 100


class DataPlane(Sandboxes):
    """The maps of one node. Use `open`, or `bring_up` which also prepares the node."""

    def __init__(self, pins: Pins, *, writable: bool) -> None:
        super().__init__(pins, writable=writable)
        self._pins = pins
        self._drops: Table[Key32, TrafficRow] = Table(pins.map("drop_counts"), Key32, TrafficRow)
        self._events: Table[Key32, TrafficRow] = Table(pins.map("event_counts"), Key32, TrafficRow)

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

    def close(self) -> None:
        """Give back descriptors and mappings; what is pinned goes on forwarding."""
        super().close()
        self._drops.close()
        self._events.close()

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
        """Traffic by VNI: of sandboxes that are gone, and of those that are here."""
        totals: dict[int, Counters] = {}
        for _ in range(_FOLD_PATIENCE):
            before = self._state.copy(0).fold_sequence
            totals = {key.value: sum_counters([row]) for key, row in self._folded.items()}
            for slot in self.slots():
                vni = self._bindings.copy(slot.index).vni
                if vni:
                    totals[vni] = totals.get(vni, Counters()) + self.counters(slot.index)
            if before % 2 == 0 and self._state.copy(0).fold_sequence == before:
                break
            time.sleep(0.0005)
        return totals

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
