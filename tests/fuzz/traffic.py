# SPDX-License-Identifier: Apache-2.0
"""From a state and a seed, frames: valid of every kind, odd ones, damaged ones.

Destinations are mostly addresses that the state knows, or most frames would end
at the first check. Nothing here knows what must come of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzz.wire import Wire
from tests.model.relay import label
from tests.model.state import Context, Node

SANDBOX_TX, UPLINK_RX, RELAY_RX = 0, 1, 2
SHORTEST = {b"\x08\x00": 34, b"\x86\xdd": 54}  # that BPF_PROG_TEST_RUN takes
LARGEST = 3000


@dataclass(slots=True)
class Item:
    """One frame and how it comes."""

    program: int
    frame: bytes
    context: Context
    mark: int = 0
    priority: int = 0
    complete: bool = False  # with the sum of all its bytes taken by the device


class Traffic(Wire):
    """Frames for one state; the seed decides which."""

    def __init__(self, node: Node, seed: int, uplink_mac: bytes, *, families: str = "46") -> None:
        super().__init__(node, seed, uplink_mac, families=families)
        self._from_sandbox = self._weighted(
            (30, self._packet4),
            (30, self._packet6),
            (6, self._arp),
            (8, self._solicitation),
            (6, self._dhcp),
            (8, self._dhcp6),
            (3, self._membership),
            (2, self._other_type),
        )
        self._from_wire = self._weighted(
            (70, self._tunnelled),
            (8, self._wire_arp),
            (6, self._wire_solicitation),
            (8, self._complaint),
            (8, self._strangers),
        )

    def items(self, count: int) -> Iterator[Item]:
        """The frames, in the order in which they have to be sent."""
        for _ in range(count):
            if self._chance(0.02):
                yield self._from_relay()
            else:
                yield self._from_uplink() if self._chance(0.5) else self._from_slot()

    def _from_slot(self) -> Item:
        slot = self._below(len(self._node.bindings))
        frame = self._damaged(self._pick(self._from_sandbox)(self._node.bindings[slot]))
        context = Context(
            slot=None if self._chance(0.003) else slot,
            may_answer=not self._chance(0.15),
        )
        return self._item(SANDBOX_TX, frame, context)

    def _from_uplink(self) -> Item:
        frame = self._damaged(self._pick(self._from_wire)())
        context = Context(to_us=frame[:6] == self._mac)
        item = self._item(UPLINK_RX, frame, context)
        item.complete = self._chance(0.3)
        return item

    def _from_relay(self) -> Item:
        """What uplink_rx labelled a moment ago, when somebody else may have been there."""
        slot = self._below(len(self._node.bindings))
        binding = self._node.bindings[slot]
        generation = binding.generation if self._chance(0.8) else self._below(20)
        if self._chance(0.05):
            slot = self._below(65536)
        head = label(slot, generation | self._pick((0, 0, 0, 0, 1 << 32, 1 << 63)))
        return self._item(RELAY_RX, self._damaged(head + self._packet4(binding)[12:]), Context())

    def _item(self, program: int, frame: bytes, context: Context) -> Item:
        item = Item(program, frame, context)
        if self._chance(0.1):
            item.mark, item.priority = self._below(1 << 32), self._below(1 << 32)
        return item

    def _damaged(self, frame: bytes) -> bytes:
        """Most frames as they are; some with bytes changed, cut off, or put behind."""
        if len(frame) > 1000 and self._chance(0.2):
            frame += bytes(1 + self._below(46))
        luck = self._random()
        if luck < 0.72:
            return self._fitting(frame)
        data = bytearray(frame)
        if luck < 0.9:
            for _ in range(1 + self._below(3)):
                self._damage(data)
        if 0.86 < luck < 0.95:
            del data[14 + self._below(max(1, len(data) - 14)) :]
        elif luck >= 0.95:
            data += self._bytes(self._below(48)) if self._chance(0.5) else bytes(self._below(48))
        return self._fitting(bytes(data))

    def _damage(self, data: bytearray) -> None:
        at = self._below(min(110, len(data)) if self._chance(0.8) else len(data))
        kind = self._below(4)
        if kind == 0:
            data[at] ^= 1 << self._below(8)
        elif kind == 1:
            data[at] = self._pick((0, 1, 4, 5, 6, 17, 0x45, 0x60, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            data[at] = self._below(256)
        else:  # a 16-bit field that is nearly right
            at = min(at & ~1, len(data) - 2)
            field = (data[at] << 8 | data[at + 1]) + self._pick((-8, -4, -2, -1, 1, 2, 4, 8))
            data[at : at + 2] = (field & 0xFFFF).to_bytes(2, "big")

    def _fitting(self, frame: bytes) -> bytes:
        """Within what a test run takes: too short ones are filled up with zeros."""
        shortest = SHORTEST.get(frame[12:14], 14)
        if len(frame) < shortest:
            frame += bytes(shortest - len(frame))
        return frame[:LARGEST]
