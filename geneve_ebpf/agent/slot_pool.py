# SPDX-License-Identifier: Apache-2.0
"""The slots of the node: which are ready, and having made what is missing.

The pool decides, the slot process makes and destroys. It works towards
`target` ready slots: what is reserved or attached is replaced in the
background, what was released or detached is destroyed, never used again.

Slots are made in batches: large ones while nobody attaches, or while few slots
are left; small ones, at a bounded rate and with a look at the clock before
each, while attaches come in.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heapify, heappush
from pathlib import Path
from typing import Any

from geneve_ebpf.abi import constant
from geneve_ebpf.agent.admission import Rate
from geneve_ebpf.agent.asks import Answered, Asks
from geneve_ebpf.agent.channel import Channel
from geneve_ebpf.agent.config import Filling
from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.places import Phase, Place
from geneve_ebpf.agent.portions import BATCH, QUIET, Portions
from geneve_ebpf.agent.stock import Stock
from geneve_ebpf.agent.uplink_report import UplinkReport
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host.given import Given, Records
from geneve_ebpf.model import SlotKind, SlotState, host_interface

SLOTS_MAX = constant("MAX_SLOTS")
_KEYS = {
    SlotKind.NAMESPACE: "node.slots",
    SlotKind.TAP: "node.tap_slots",
    SlotKind.HOST_TAP: "node.host_tap_slots",
}
RETRY = 1.0  # seconds until a slot that could not be made or destroyed is tried again
SILENCE = 10.0  # seconds without a word of the slot process, which has something to do


class SlotPool(Stock):
    """All slots of the node, and what is ordered of the slot process."""

    def __init__(
        self,
        dataplane: DataPlane,
        directory: Path,
        targets: dict[SlotKind, int],
        log: Log,
        filling: Filling | None = None,
    ) -> None:
        """directory: where the slots' namespaces are. targets: ready slots to keep."""
        filling = filling or Filling()
        super().__init__(directory, targets)
        target = self.target
        self.min_ready = min(filling.min_ready, target)
        self._low = target // 4 if filling.low_watermark is None else filling.low_watermark
        self._portions = Portions(filling.refill_rate)
        self._begun = False  # min_ready was reached, as `_look` saw
        self.problem = ""  # why slots cannot be made, until one is
        self._said = ""  # by the last one that could not be made
        self._paused = False  # none is ordered for the moment
        self.uplinks = UplinkReport(dataplane.mtu, log)
        # Called with a slot whose interface is gone, and somebody is attached there.
        self.on_lost: Callable[[Place], None] = lambda _: None
        # Called with a slot that is somebody's, whose fault is another one now.
        self.on_faulty: Callable[[Place], None] = lambda _: None
        self._faulty: dict[int, Place] = {}  # those that are somebody's
        self.on_ready: Callable[[], None] = lambda: None  # called when slots may be ready
        self.refill = Rate(time.monotonic)  # slots that become ready
        self._dataplane = dataplane
        self._log = log
        self._to_destroy: deque[int] = deque()  # who waits longest goes first
        self._ordered_making: set[int] = set()
        self._ordered_destroying: set[int] = set()
        self.asks = Asks()
        self._channel: Channel | None = None
        self._spoke = 0.0  # when the slot process last did, or got something to do
        self._tick: asyncio.TimerHandle | None = None
        self._stopped = False

    # Reading

    @property
    def shortage(self) -> str:
        """Why the pool serves nobody yet, or nobody any more; "" if it does."""
        ready = self._counts[Phase.READY]
        if not self._begun and 0 < self._served() < self.min_ready:
            return f"{ready} of the first {self.min_ready} slots are ready"
        if not ready and self.target:
            return "no slot is ready"
        for kind, target in self.targets.items():
            if target and not self._ready_of[kind]:
                return f"no {kind.value} slot is ready"
        return ""

    @property
    def silence(self) -> str:
        """Why nothing becomes of what was ordered, if that takes far too long; "" if not."""
        waiting = len(self._ordered_making) + len(self._ordered_destroying)
        if not waiting or self._channel is None or time.monotonic() - self._spoke < SILENCE:
            return ""
        return (
            f"the slot process has said nothing for {SILENCE:.0f} s, and {waiting} of its slots"
            " are to be made or destroyed"
        )

    @property
    def faults(self) -> list[str]:
        """What others have done to slots that are somebody's."""
        return [place.fault for _, place in sorted(self._faulty.items())]

    # The slots' lives

    def adopt(self, attached: set[int]) -> None:
        """Take over the slots that the maps hold; `attached` are those with a sandbox."""
        given = dict(Records(self.directory.parent))
        for slot in self._dataplane.slots():
            if slot.index in attached:
                phase = Phase.ATTACHED
            elif slot.state is SlotState.READY:
                phase = Phase.READY
            elif slot.state is SlotState.RESERVED:
                phase = Phase.RESERVED
            else:
                phase = Phase.RETIRING
                self._to_destroy.append(slot.index)
            place = Place(slot.index, slot.ifindex, phase, slot.kind, given.get(slot.index))
            self._enter(place)
        self._next = max(self._places, default=-1) + 1
        self._free = [index for index in range(self._next) if index not in self._places]
        heapify(self._free)

    def lowest_ready(self, kind: SlotKind | None = None) -> Place:
        """The ready slot of the lowest index, which stays ready. Raises NO_SLOT.

        kind: as for `kind_or_default`; the error names it if none is ever made.
        """
        kind = self.kind_or_default(kind)
        place = self._lowest(kind)
        if place is not None:
            return place
        if not self.targets.get(kind):
            raise GeneveError(
                Code.NO_SLOT,
                f"this node keeps no {kind.value} slots",
                hint=_KEYS[kind] + " in its configuration says how many",
                field="kind",
            )
        raise GeneveError(
            Code.NO_SLOT,
            f"no {kind.value} slot is ready on this node",
            hint=self.problem
            or self.silence
            or f"{self._counts[Phase.MAKING]} are being made: wait a moment,"
            " place it elsewhere, or give the node more slots",
            details={"retry_after_s": self.refill.seconds_for(1)},
        )

    def give(
        self, netns: str, interface: str, *, existing: bool = False
    ) -> tuple[int, asyncio.Future[Answered]]:
        """Have a slot made in a namespace of others', for whoever asks. Raises NO_SLOT.

        Its index, and what comes of it; `content` has the index of the slot that is there
        then, which may be one that was there already. It is reserved whoever waits for that.
        """
        if not self._free and self._next >= SLOTS_MAX:
            raise GeneveError(
                Code.NO_SLOT,
                f"all {SLOTS_MAX} slots that a node can have exist",
                hint="place it elsewhere",
            )
        index = self._begin(SlotKind.NAMESPACE)
        asked = self.asks.begin("give", index, netns=netns, interface=interface, existing=existing)
        asked.add_done_callback(partial(self._given, self._places[index]))
        return index, asked

    def _given(self, place: Place, asked: asyncio.Future[Answered]) -> None:
        error, _, content = asked.result()
        if error is None and content and content["slot"] == place.index:
            place.ifindex, place.given = content["ifindex"], Given(**content["given"])
            place.put_into_words(self._directory_text)
            self._turn(place, Phase.RESERVED)
        else:
            self._leave(place)
            heappush(self._free, place.index)

    def move(self, place: Place, phase: Phase) -> None:
        """The slot's sandbox came, or it was reserved; the maps have it already."""
        self._turn(place, phase)
        self._used()

    def attached(self, kind: SlotKind | None, places: Iterable[Place]) -> None:
        """Sandboxes came to these, which were taken by `take_ready` of that kind."""
        count = 0
        for place in places:
            place.phase = Phase.ATTACHED
            count += 1
        self._counts[Phase.READY] -= count
        self._counts[Phase.ATTACHED] += count
        self._ready_of[self.kind_or_default(kind)] -= count
        self._used()

    def _used(self) -> None:
        self._portions.used()
        self._look_soon(QUIET)

    def destroy(self, place: Place) -> None:
        """Have a slot destroyed that the maps have retired or detached."""
        self._faulty.pop(place.index, None)
        self._to_destroy.append(place.index)
        self.move(place, Phase.RETIRING)

    # The slot process

    def connect(self, connection: socket.socket) -> None:
        """A slot process has started: `connection` is our end of its channel."""
        # What an earlier one had been told and not done: the maps know.
        present = {slot.index: slot for slot in self._dataplane.slots()}
        for index in self._ordered_making:
            self._leave(self._places[index])
            slot = present.get(index)
            if slot is not None and slot.state is SlotState.READY:
                self._enter(Place(index, slot.ifindex, Phase.READY, slot.kind))
            else:
                heappush(self._free, index)
        for index in self._ordered_destroying:
            if index in present:
                self._to_destroy.append(index)
            else:
                self._gone(index)
        self._ordered_making.clear()
        self._ordered_destroying.clear()
        for place in self._faulty.values():
            place.fault = ""  # it looks for itself, and tells
        self._faulty.clear()
        self._channel = Channel(connection, self._on_event)
        self.asks.connect(self._channel)
        self._look()

    def disconnect(self) -> None:
        """The slot process has died; `connect` comes when there is another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self.asks.disconnect()

    def stop(self) -> None:
        """Give no more orders."""
        self._stopped = True
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    # Inside

    def _leave(self, place: Place) -> None:
        super()._leave(place)
        self.asks.gone(place.index)

    def _gone(self, index: int) -> None:
        place = self._places.get(index)
        if place is None or place.phase is not Phase.RETIRING:
            return  # said twice
        if self._next >= SLOTS_MAX:
            self.problem, self._paused = "", False
        self._leave(place)
        heappush(self._free, index)

    def _look_soon(self, seconds: float) -> None:
        if self._tick is None:
            # Below a millisecond, the loop's unit, is now: it would come again and again.
            self._tick = asyncio.get_running_loop().call_later(max(seconds, 0.001), self._look_now)

    def _look_now(self) -> None:
        self._tick = None
        self._look()

    def _look(self) -> None:
        """Give what is ready to who waits; order what is missing, as far as it is time for it."""
        if not self._begun:
            self._begun = self._served() >= max(1, self.min_ready)
        self.on_ready()
        channel = self._channel
        if channel is None or self._stopped:
            return
        room, again = self._portions.room(self._is_low())
        if not room:
            self._look_soon(again)
            return
        idle = not self._ordered_making and not self._ordered_destroying
        make: dict[SlotKind, list[int]] = {kind: [] for kind in SlotKind}
        while (kind := self._wanted()) and len(self._ordered_making) < room:
            if not self._free and self._next >= SLOTS_MAX:
                self.problem = f"all {SLOTS_MAX} slots that a node can have exist"
                self._paused = True
                break
            index = self._begin(kind)
            self._ordered_making.add(index)
            make[kind].append(index)
        space = max(0, room - len(self._ordered_destroying))
        waiting = self._to_destroy
        destroy = [waiting.popleft() for _ in range(min(space, len(waiting)))]
        self._ordered_destroying.update(destroy)
        for kind, indexes in make.items():
            for start in range(0, len(indexes), BATCH):
                channel.order("make", indexes[start : start + BATCH], kind=kind.value)
        for start in range(0, len(destroy), BATCH):
            channel.order("destroy", destroy[start : start + BATCH])
        ordered = max(len(destroy), sum(map(len, make.values())))
        if ordered:
            if idle:
                self._spoke = time.monotonic()
            self._portions.ordered(ordered)

    def _is_low(self) -> bool:
        """Whether few slots are left, or few of a kind: as many as its part of the watermark."""
        return self._counts[Phase.READY] < self._low or any(
            self._ready_of[kind] * self.target < self._low * target
            for kind, target in self.targets.items()
        )

    def _wanted(self) -> SlotKind | None:
        """The kind that lacks most of what it should have, by its share; None if none lacks any."""
        if self._paused:
            return None
        best, least = None, 1.0
        for kind, target in self.targets.items():
            there = self._ready_of[kind] + self._making_of[kind]
            if there < target and there / target < least:
                best, least = kind, there / target
        return best

    def _on_event(self, event: dict[str, Any], descriptor: Descriptor | None) -> None:
        self._spoke = time.monotonic()
        if event["event"] == "uplinks":
            told = (event[name] for name in ("mtu", "problems", "down", "merging", "no_relay"))
            self.uplinks.seen(*told)
            return
        if event["event"] == "ready":
            for index, ifindex in event["slots"]:
                if index not in self._ordered_making:
                    continue  # said twice
                self._ordered_making.remove(index)
                place = self._places[index]
                place.ifindex = ifindex
                place.put_into_words(self._directory_text)
                self._turn(place, Phase.READY)
                heappush(self._ready[place.kind], index)
            if not self._paused:
                self.problem = ""
            self.refill.note(more=self._counts[Phase.MAKING] > 0, count=len(event["slots"]))
        elif event["event"] == "gone":
            for index in event["indexes"]:
                self._ordered_destroying.discard(index)
                self._gone(index)
        elif event["event"] == "answered":
            error = event["error"]
            error = error and GeneveError.from_json(error)
            answered = Answered(error, descriptor, event["content"])
            self.asks.answered(event["op"], event["index"], answered)
        elif event["event"] == "lost":
            self._lost(event["index"])
        elif event["event"] == "faulty":
            self._found_faulty(event["index"], event["fault"])
        else:
            self._failed(event["index"], str(event["op"]), str(event["message"]))
        self._look()

    def _lost(self, index: int, *, again: bool = False) -> None:
        """Somebody deleted the interface of a slot: nobody must be attached to it."""
        place = self._places.get(index)
        if place is not None and place.phase is Phase.MAKING and not again:
            # That it is made was said just before, and the one who asked is still to be told.
            asyncio.get_running_loop().call_soon(partial(self._lost, index, again=True))
            return
        if place is not None and place.phase is Phase.ATTACHED:
            self._log.warning("slot-lost", slot=f"slot-{index}", was=place.phase.value)
            self.on_lost(place)
            return
        if place is None or place.phase not in (Phase.READY, Phase.RESERVED):
            return  # taken or given back since
        self._log.warning("slot-lost", slot=f"slot-{index}", was=place.phase.value)
        self._dataplane.retire(index)
        self.destroy(place)

    def _found_faulty(self, index: int, fault: str, *, again: bool = False) -> None:
        """Somebody changed the interface of a slot, or "": undid it."""
        place = self._places.get(index)
        if place is None:
            return
        if place.phase is Phase.MAKING and not again:  # as in `_lost`
            asyncio.get_running_loop().call_soon(
                partial(self._found_faulty, index, fault, again=True)
            )
            return
        if place.phase is Phase.READY and fault:
            self._log.warning("slot-faulty", slot=f"slot-{index}", was="ready", fault=fault)
            self._dataplane.retire(index)
            self.destroy(place)
        elif place.handed_out and fault != place.fault:
            place.fault = fault
            self._faulty[index] = place
            if not fault:
                del self._faulty[index]
            self.on_faulty(place)

    def _failed(self, index: int, op: str, message: str) -> None:
        problem = f"slots cannot be made: {message}"
        # What all of an order fail for is said once for each try, not for each of them.
        if op != "make" or not self._paused or _alike(problem, index) != self._said:
            self._log.warning("slot-failed", slot=f"slot-{index}", op=op, error=message)
        ordered = self._ordered_making if op == "make" else self._ordered_destroying
        if index not in ordered:
            return  # said twice
        ordered.remove(index)
        loop = asyncio.get_running_loop()
        if op == "make":
            self._leave(self._places[index])
            heappush(self._free, index)
            self.problem, self._said = problem, _alike(problem, index)
            if not self._paused:
                self._paused = True
                loop.call_later(RETRY, self._try_again)
        else:
            loop.call_later(RETRY, self._destroy_again, index)

    def _try_again(self) -> None:
        self._paused = False
        if self._wanted() is None:
            self.problem = ""
        self._look()

    def _destroy_again(self, index: int) -> None:
        self._to_destroy.append(index)
        self._look()


def _alike(problem: str, index: int) -> str:
    """What several slots say that fail for one reason."""
    return problem.replace(f"slot-{index}", "").replace(host_interface(index), "")
