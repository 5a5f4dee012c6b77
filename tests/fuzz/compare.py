# SPDX-License-Identifier: Apache-2.0
"""A batch of frames through model and programs, and what differs.

Per frame: the verdict, every byte, mark and priority, and of a drop its own
counter. Per batch: every counter there is, so that nothing else was counted; if
that does not add up the batch is run again with all of them read per frame.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, replace

from tests.fuzz.traffic import Item
from tests.fuzz.under_test import CHECKSUM_COMPLETE, HOOKS, UnderTest
from tests.model.geneve import FIRST_PORT
from tests.model.relay import arrives
from tests.model.sandbox import sends
from tests.model.state import PASS_ON, REDIRECT, SHOT, Node, Outcome, Vtep
from tests.model.sums import word
from tests.model.uplink import receives

MODELS = (sends, receives, arrives)  # of each hook
VERDICTS = {SHOT: "dropped", REDIRECT: "redirected", PASS_ON: "passed on"}


@dataclass(slots=True)
class Mismatch:
    """A frame of which model and programs think differently."""

    node: Node
    item: Item
    what: str

    def __str__(self) -> str:
        item = self.item
        return (
            f"{HOOKS[item.program]}: {self.what}\n"
            f"node = {self.node!r}\n"
            f"context = {item.context!r}\n"
            f"mark, priority, complete = {item.mark}, {item.priority}, {item.complete}\n"
            f'frame = bytes.fromhex("{item.frame.hex()}")'
        )


class Comparison:
    """Model and programs, side by side."""

    def __init__(self, under_test: UnderTest) -> None:
        self._programs = under_test
        self.frames = 0
        self.seen: Counter[str] = Counter()  # what became of the frames

    def batch(self, node: Node, items: list[Item]) -> Mismatch | None:
        """Run them in order from this state; the first mismatch, or None."""
        programs = self._programs
        with programs.entered():
            programs.load(node)
            before = programs.counted()
            wanted: Counter[tuple[str, int]] = Counter()
            drops: dict[str, tuple[int, int]] = {}
            flows: dict[tuple[object, ...], tuple[int, ...]] = {}
            now = node
            for item in items:
                expected = expect(now, item)
                what = self._one(item, expected, drops, before, flows)
                self.frames += 1
                if what:
                    return Mismatch(now, item, what)
                now = learn(now, expected)
                _count(wanted, item, expected)
            after = programs.counted()
        if _grown(before, after) == wanted:
            return None
        return self._one_by_one(node, items)

    def alone(self, node: Node, item: Item) -> str:
        """What differs when this frame comes alone, with every counter read; "" if nothing."""
        programs = self._programs
        with programs.entered():
            programs.load(node)
            before = programs.counted()
            expected = expect(node, item)
            what = self._one(item, expected, {}, before, {})
            grown = _grown(before, programs.counted())
            if what:
                return f"{what}: counted {_words(grown)}"
        wanted: Counter[tuple[str, int]] = Counter()
        _count(wanted, item, expected)
        if grown == wanted:
            return ""
        return f"counted {_words(grown)}, should be {_words(wanted)}"

    def _one_by_one(self, node: Node, items: list[Item]) -> Mismatch | None:
        now = node
        for item in items:
            what = self.alone(now, item)
            if what:
                return Mismatch(now, item, what)
            now = learn(now, expect(now, item))
        return Mismatch(node, items[0], "the batch's counters do not add up, each frame's do")

    def _one(
        self,
        item: Item,
        expected: Outcome,
        drops: dict[str, tuple[int, int]],
        before: dict[str, tuple[int, ...]],
        flows: dict[tuple[object, ...], tuple[int, ...]],
    ) -> str:
        programs = self._programs
        slot = item.context.slot
        if expected.asked_limit and slot is not None:
            programs.set_limit(slot, used_up=not item.context.may_answer)
        # What goes out to the wire or is dropped has no use for that sum any more.
        kept = expected.verdict == PASS_ON or bool(expected.traffic)
        flags = CHECKSUM_COMPLETE if item.complete and kept and programs.takes_sums else 0
        try:
            verdict, frame, mark, priority = programs.run(
                item.program, item.frame, slot, item.mark, item.priority, flags
            )
        except OSError as error:
            if error.errno == errno.EBADMSG:
                return "the sum that the device took of the whole frame is not kept true"
            return f"the kernel refuses the test run: {os.strerror(error.errno or 0)}"
        if verdict != expected.verdict:
            return f"{_verdict(verdict)}, should be {_outcome(expected)}"
        if verdict == SHOT:
            name = expected.drop
            packets, size = drops.get(name) or before[name]
            packets, size = packets + 1, size + len(item.frame)
            if programs.drop_row(name) != (packets, size):
                return f"dropped, but not counted once and whole as {name}"
            drops[name] = (packets, size)
            self.seen[name] += 1
            return ""
        if expected.drop:  # and answered
            drops[expected.drop] = programs.drop_row(expected.drop)
        assert expected.frame is not None
        what = _frames_differ(frame, expected, flows)
        if what:
            return what
        if verdict == PASS_ON:
            self.seen["passed on"] += 1
            self.seen.update(expected.events)
            if (mark, priority) != (item.mark, item.priority):
                return "passed on with another mark or priority"
            return ""
        self.seen.update(
            expected.events or [way for _, way, _ in expected.traffic[:1]] or ["relayed"]
        )
        if expected.traffic and (mark, priority) != (0, 0):
            return "delivered with the mark or priority it came with"
        if expected.learned and programs.path_mtu(expected.learned[0]) != expected.learned[1]:
            return "another path MTU was learned"
        return ""


def expect(node: Node, item: Item) -> Outcome:
    """The model's word."""
    return MODELS[item.program](node, item.frame, item.context)


def learn(node: Node, outcome: Outcome) -> Node:
    """The state after a frame."""
    if outcome.learned is None:
        return node
    address, mtu = outcome.learned
    vtep: Vtep = replace(node.vteps[address], path_mtu=mtu)
    return replace(node, vteps={**node.vteps, address: vtep})


def _frames_differ(
    got: bytes, expected: Outcome, flows: dict[tuple[object, ...], tuple[int, ...]]
) -> str:
    frame = expected.frame or b""
    if got == frame and not expected.free:
        return ""
    if len(got) != len(frame):
        return f"{len(got)} bytes, should be {len(frame)}: {got.hex()}, should be {frame.hex()}"
    choice = tuple(word(got, at) & mask for at, mask in expected.free)
    if expected.free:
        filled = bytearray(frame)
        for (at, mask), value in zip(expected.free, choice, strict=True):
            field = word(frame, at) & ~mask | value
            filled[at : at + 2] = field.to_bytes(2, "big")
        frame = bytes(filled)
        if choice[-1] < FIRST_PORT:
            return f"source port {choice[-1]}"
        if expected.flow and flows.setdefault(expected.flow, choice) != choice:
            return "another source port or flow label than an earlier frame of this flow"
    if got == frame:
        return ""
    at = next(i for i, (a, b) in enumerate(zip(got, frame, strict=True)) if a != b)
    return f"differs from byte {at} on: {got.hex()}, should be {frame.hex()}"


def _count(wanted: Counter[tuple[str, int]], item: Item, expected: Outcome) -> None:
    if expected.drop:
        wanted[expected.drop, 0] += 1
        wanted[expected.drop, 1] += len(item.frame)
    for event in expected.events:
        wanted[f"event {event}", 0] += 1
    for slot, way, size in expected.traffic:
        wanted[f"slot {slot} {way}", 0] += 1
        wanted[f"slot {slot} {way}", 1] += size


def _grown(
    before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]
) -> Counter[tuple[str, int]]:
    return Counter(
        {
            (name, place): value - before[name][place]
            for name, row in after.items()
            if row != before[name]
            for place, value in enumerate(row)
            if value != before[name][place]
        }
    )


def _words(counted: Counter[tuple[str, int]]) -> str:
    return (
        ", ".join(f"{n} {name}" for (name, place), n in counted.items() if not place) or "nothing"
    )


def _verdict(verdict: int) -> str:
    return VERDICTS.get(verdict, f"verdict {verdict}")


def _outcome(expected: Outcome) -> str:
    return f"{_verdict(expected.verdict)} ({expected.drop or expected.events or expected.traffic})"
