# SPDX-License-Identifier: Apache-2.0
"""Which slots there are: by index, by phase, and which of a kind is the next to be handed out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from heapq import heappop, heappush
from pathlib import Path

from geneve_ebpf.agent.places import Phase, Place
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import SlotKind


class Stock:
    """The book of slots. It decides nothing."""

    def __init__(self, directory: Path, targets: dict[SlotKind, int]) -> None:
        """directory: where the slots' namespaces are. targets: ready slots to keep."""
        self.directory = directory
        self.targets = targets
        self.target = sum(targets.values())
        kept = (kind for kind, number in targets.items() if number)
        self._default_kind = next(kept, SlotKind.NAMESPACE)
        self._directory_text = json.dumps(str(directory))[:-1]
        self._places: dict[int, Place] = {}
        # Heaps, which may hold indexes that are ready no more.
        self._ready: dict[SlotKind, list[int]] = {kind: [] for kind in SlotKind}
        self._ready_of = dict.fromkeys(SlotKind, 0)
        self._making_of = dict.fromkeys(SlotKind, 0)
        self._counts = dict.fromkeys(Phase, 0)
        self._free: list[int] = []  # heap of indexes below _next
        self._next = 0

    @property
    def counts(self) -> dict[str, int]:
        """Slots by phase."""
        return {phase.value: count for phase, count in self._counts.items()}

    @property
    def kinds(self) -> dict[str, dict[str, int]]:
        """Ready slots, and how many are to be, by kind."""
        return {
            kind.value: {"ready": self._ready_of[kind], "target": target}
            for kind, target in self.targets.items()
        }

    def ready_of(self, kind: str) -> int:
        """How many of a kind are ready."""
        return self._ready_of[SlotKind(kind)]

    def kind_or_default(self, kind: SlotKind | None) -> SlotKind:
        """What is meant by None: the first kind that the node keeps ready."""
        return self._default_kind if kind is None else kind

    def places(self) -> list[Place]:
        """All slots, by index; those being made are not there yet."""
        return [
            place for _, place in sorted(self._places.items()) if place.phase is not Phase.MAKING
        ]

    def place(self, index: int) -> Place:
        """The slot of that index. Raises SLOT_NOT_FOUND."""
        place = self._places.get(index)
        if place is None or place.phase is Phase.MAKING:
            raise GeneveError(
                Code.SLOT_NOT_FOUND,
                f"no slot-{index}",
                hint="geneve-ebpf slot list shows those of this node",
                field="slot",
            )
        return place

    def handed_out(self, index: int) -> Place | None:
        """The slot of that index if it is somebody's, reserved or attached."""
        place = self._places.get(index)
        return place if place is not None and place.handed_out else None

    def __contains__(self, place: object) -> bool:
        """Is this very slot still there?"""
        return isinstance(place, Place) and self._places.get(place.index) is place

    def netns(self, place: Place) -> str | None:
        """Path of the slot's namespace; None if it is the node's."""
        if place.given is not None:
            return place.given.path
        if place.kind is SlotKind.HOST_TAP:
            return None
        return f"{self.directory}/slot-{place.index}"

    def _lowest(self, kind: SlotKind) -> Place | None:
        heap = self._ready[kind]
        while heap:
            place = self._places.get(heap[0])
            if place is not None and place.phase is Phase.READY and place.kind is kind:
                return place
            heappop(heap)
        return None

    def take_ready(self, kind: SlotKind | None, most: int) -> list[Place]:
        """Ready slots of the lowest indexes: each is to be moved on or put back, at once.

        kind: as for `kind_or_default`. There may be fewer, or none.
        """
        kind = self.kind_or_default(kind)
        heap = self._ready[kind]
        taken: list[Place] = []
        while heap and len(taken) < most:
            place = self._places.get(heappop(heap))
            if place is None or place.phase is not Phase.READY or place.kind is not kind:
                continue
            if not taken or place is not taken[-1]:  # an index may be there twice
                taken.append(place)
        return taken

    def put_back(self, places: Iterable[Place]) -> None:
        """They were taken by `take_ready`, and are ready still."""
        for place in places:
            heappush(self._ready[place.kind], place.index)

    # A slot comes, changes and goes

    def _begin(self, kind: SlotKind) -> int:
        """Enter a slot that is about to be made, with an index that is free."""
        index = heappop(self._free) if self._free else self._next
        self._next = max(self._next, index + 1)
        self._enter(Place(index, 0, Phase.MAKING, kind))
        return index

    def _enter(self, place: Place) -> None:
        self._places[place.index] = place
        self._count(place, 1)
        if place.phase is not Phase.MAKING:
            place.put_into_words(self._directory_text)
        if place.phase is Phase.READY:
            heappush(self._ready[place.kind], place.index)

    def _leave(self, place: Place) -> None:
        self._count(place, -1)
        del self._places[place.index]

    def _turn(self, place: Place, phase: Phase) -> None:
        self._count(place, -1)
        place.phase = phase
        self._count(place, 1)

    def _served(self) -> int:
        """Slots that are ready, reserved or attached."""
        return sum(self._counts[phase] for phase in (Phase.READY, Phase.RESERVED, Phase.ATTACHED))

    def _count(self, place: Place, more: int) -> None:
        self._counts[place.phase] += more
        if place.phase is Phase.READY:
            self._ready_of[place.kind] += more
        elif place.phase is Phase.MAKING:
            self._making_of[place.kind] += more
