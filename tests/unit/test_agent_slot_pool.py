# SPDX-License-Identifier: Apache-2.0
"""In which portions the pool has slots made and destroyed; the slot process is played here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from geneve_ebpf.agent.config import Filling
from geneve_ebpf.agent.intake import Intake
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.places import Phase
from geneve_ebpf.agent.portions import BATCH, BATCH_SMALL
from geneve_ebpf.agent.progress import line
from geneve_ebpf.agent.reservations import Reservations
from geneve_ebpf.agent.slot_pool import SILENCE, SlotPool
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import SlotKind


class Maps:
    """The slots that the maps know: none, when the agent starts."""

    mtu = 1450

    def slots(self):
        return iter(())

    def retire(self, slot):
        """Nobody looks at what the maps say."""


class Maker:
    """The slot process's end of the channel, which makes at once whatever is ordered."""

    def __init__(self, pool: SlotPool) -> None:
        ours, self.theirs = socket.socketpair()
        for end in (ours, self.theirs):
            end.setblocking(False)
        self.orders: list[tuple[str, list[int]]] = []
        self._pending = b""
        self._done = 0
        pool.connect(ours)

    def read(self) -> None:
        """Take note of the orders that have come."""
        try:
            *lines, self._pending = (self._pending + self.theirs.recv(1 << 20)).split(b"\n")
        except BlockingIOError:
            return
        self.orders += [(order["op"], order["indexes"]) for order in map(json.loads, lines)]

    def forget(self) -> None:
        """Note orders from here on; all before are done."""
        self.orders, self._done = [], 0

    def obey(self) -> None:
        """Do the next thing that has been ordered."""
        self.read()
        for op, indexes in self.orders[self._done : self._done + 1]:
            self._done += 1
            event = (
                {"event": "ready", "slots": [[index, 100 + index] for index in indexes], "us": 1}
                if op == "make"
                else {"event": "gone", "indexes": indexes}
            )
            self.theirs.send(json.dumps(event).encode() + b"\n")

    async def obey_until(self, reached: Callable[[], bool]) -> None:
        """Go on until something is so."""
        async with asyncio.timeout(60):
            while not reached():
                self.obey()
                await asyncio.sleep(0.001)


def play(target: int, scene, filling: Filling | None = None, **others: int) -> None:
    """Run `scene(pool, maker)` with a pool of so many slots, and so many of other kinds."""
    targets = {SlotKind.NAMESPACE: target} | {SlotKind[kind]: n for kind, n in others.items()}

    async def run() -> None:
        pool = SlotPool(Maps(), Path("/nowhere"), targets, Log(), filling)  # type: ignore[arg-type]
        maker = Maker(pool)
        try:
            await scene(pool, maker)
        finally:
            pool.stop()
            pool.disconnect()
            maker.theirs.close()

    asyncio.run(run())


def test_the_first_slots_are_made_in_large_batches():
    """Two under way at any time; the last one is what is left."""

    async def scene(pool, maker):
        assert pool.counts["making"] == 2 * BATCH

        await maker.obey_until(lambda: pool.counts["ready"] == 100)

        assert sorted(index for _, some in maker.orders for index in some) == list(range(100))
        assert [len(some) for _, some in maker.orders] == [32, 32, 32, 4]

    play(100, scene)


def test_while_attaches_come_in_slots_are_made_by_fours():
    """And destroyed so, until nobody has come for a while."""

    async def scene(pool, maker):
        await maker.obey_until(lambda: pool.counts["ready"] == 100)
        maker.forget()

        for index in range(50):
            pool.move(pool.place(index), Phase.ATTACHED)
        for index in range(50):
            pool.destroy(pool.place(index))
        await maker.obey_until(lambda: len(maker.orders) >= 6)

        assert all(len(some) <= BATCH_SMALL for _, some in maker.orders[:6])
        assert {op for op, _ in maker.orders[:6]} == {"make", "destroy"}
        destroyed = [index for op, some in maker.orders if op == "destroy" for index in some]
        assert destroyed == list(range(len(destroyed)))  # who waits longest goes first

    play(100, scene, Filling(refill_rate=100))


def test_a_row_of_attaches_is_not_disturbed_until_it_has_lasted():
    """Making slots takes milliseconds of a CPU: behind the row, or within it from 50 ms on."""

    async def scene(pool, maker):
        loop = asyncio.get_running_loop()
        await maker.obey_until(lambda: pool.counts["ready"] == 100)
        maker.forget()
        clock = loop.time() + 60
        loop.time = lambda: clock  # type: ignore[method-assign]

        async def attach(index):
            nonlocal clock
            pool.move(pool.place(index), Phase.ATTACHED)
            for _ in range(4):
                clock += 0.00025
                await asyncio.sleep(0)
            maker.read()

        for index in range(20):
            await attach(index)
        in_a_short_row = list(maker.orders)
        for _ in range(4):
            clock += 0.001
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        maker.read()
        behind_it = list(maker.orders)
        assert in_a_short_row == []
        assert [op for op, _ in behind_it] == ["make"]
        maker.obey()
        while pool.counts["making"]:
            await asyncio.sleep(0)
        clock += 0.1
        maker.forget()
        for index in range(20, 75):
            await attach(index)
            if index < 65:
                assert maker.orders == []

        assert [op for op, _ in maker.orders] == ["make"]

    play(100, scene)


def test_who_asks_something_of_a_slot_that_goes_is_told():
    """The next one of its index is not left to wait for an order that nobody gave."""

    async def scene(pool, maker):
        await maker.obey_until(lambda: pool.counts["ready"] == 1)
        place = pool.place(0)
        pool.move(place, Phase.ATTACHED)
        answer = asyncio.ensure_future(pool.asks.ask("number", 0, addresses=["10.0.0.2"]))
        await asyncio.sleep(0)

        pool.destroy(place)
        maker.theirs.send(json.dumps({"event": "gone", "indexes": [0]}).encode() + b"\n")

        with pytest.raises(GeneveError, match="slot-0 is gone"):
            await answer

    play(1, scene)


def given(index, slot, error=None):
    """What the slot process says of a slot in a namespace of others'."""
    record = {"path": "/a", "device": 1, "inode": 2, "interface": "eth0"}
    content = None if error else {"slot": slot, "ifindex": 77, "given": record}
    event = {
        "event": "answered",
        "op": "give",
        "index": index,
        "error": error and error.as_json()["error"],
        "passes": False,
        "content": content,
    }
    return json.dumps(event).encode() + b"\n"


def test_a_slot_in_a_namespace_of_others_is_reserved_though_nobody_waits_any_more():
    """Never ready; found again by who asks again, and then the other index is free."""

    async def scene(pool, maker):
        first, _ = pool.give("/a", "eth0")
        maker.theirs.send(given(first, first))
        await maker.obey_until(lambda: pool.counts["reserved"] == 1)

        place = pool.place(first)
        assert (place.ifindex, pool.netns(place)) == (77, "/a")
        second, asked = pool.give("/a", "eth0")
        maker.theirs.send(given(second, first))
        assert (await asked).content["slot"] == first
        await asyncio.sleep(0)
        assert (pool.counts["making"], pool.counts["reserved"]) == (0, 1)
        assert pool.give("/b", "eth0")[0] == second

    play(0, scene)


@pytest.mark.parametrize("gone", [False, True], ids=["retiring", "gone"])
def test_a_slot_that_is_given_back_while_it_is_asked_for_is_not_handed_out(gone):
    """The slot process found it there, a moment before it heard of that."""

    async def scene(pool, maker):
        reservations, added = Reservations(Maps(), pool, Intake(Path("/nowhere")), None), []
        adding = asyncio.ensure_future(reservations.add("/a", "eth0", False, added.append))
        await asyncio.sleep(0)
        maker.theirs.send(given(0, 0))
        place, new = await adding
        assert (place.index, new) == (0, True)

        again = asyncio.ensure_future(reservations.add("/a", "eth0", False, added.append))
        await asyncio.sleep(0)
        pool.destroy(place)
        if gone:
            maker.theirs.send(json.dumps({"event": "gone", "indexes": [0]}).encode() + b"\n")
        maker.theirs.send(given(1, 0))

        with pytest.raises(GeneveError, match="slot-0 was there") as caught:
            await again
        assert caught.value.code is Code.BUSY
        assert added == [place]

    play(0, scene)


def test_a_slot_is_told_of_though_who_asked_for_it_has_gone():
    """It is there, and is his who asks again."""

    async def scene(pool, maker):
        reservations, added = Reservations(Maps(), pool, Intake(Path("/nowhere")), None), []
        adding = asyncio.ensure_future(reservations.add("/a", "eth0", False, added.append))
        await asyncio.sleep(0)
        adding.cancel()
        maker.theirs.send(given(0, 0))
        await maker.obey_until(lambda: pool.counts["reserved"] == 1)

        assert added == [pool.place(0)]

    play(0, scene)


def test_a_slot_that_is_lost_in_the_breath_in_which_it_is_made_is_not_kept():
    """Both are read at once, before the one who asked for it has heard."""

    async def scene(pool, maker):
        index, _ = pool.give("/a", "eth0")
        lost = json.dumps({"event": "lost", "index": index}).encode() + b"\n"
        maker.theirs.send(given(index, index) + lost)
        await maker.obey_until(lambda: ("destroy", [index]) in maker.orders)

    play(0, scene)


def test_a_slot_that_could_not_be_made_there_leaves_its_index_free():
    """And the error is told as the slot process said it."""

    async def scene(pool, maker):
        index, asked = pool.give("/a", "eth0")
        refusal = GeneveError(Code.BAD_NETNS, "is none", hint="another", field="netns")
        maker.theirs.send(given(index, index, refusal))

        assert (await asked).error.as_json() == refusal.as_json()
        await asyncio.sleep(0)
        assert pool.counts["making"] == 0
        assert pool.give("/b", "eth0")[0] == index

    play(0, scene)


def test_a_pool_that_runs_dry_is_filled_before_all_else():
    """Below the low watermark, whoever attaches meanwhile."""

    async def scene(pool, maker):
        await maker.obey_until(lambda: pool.counts["ready"] == 100)
        maker.forget()

        for index in range(61):
            pool.move(pool.place(index), Phase.ATTACHED)
        await maker.obey_until(lambda: bool(maker.orders))

        assert max(len(some) for _, some in maker.orders) > BATCH_SMALL

    play(100, scene, Filling(low_watermark=40, refill_rate=1))


@pytest.mark.parametrize(
    ("min_ready", "said"), [(40, "32 of the first 40 slots are ready"), (8, "")]
)
def test_a_node_is_ready_with_its_first_slots(min_ready, said):
    """Not only when all are made."""

    async def scene(pool, maker):
        assert pool.shortage == "no slot is ready"
        await maker.obey_until(lambda: pool.counts["ready"] >= BATCH)

        assert pool.counts["ready"] == BATCH
        assert [pool.shortage, pool.shortage] == [said, said]  # asking changes nothing

        await maker.obey_until(lambda: pool.counts["ready"] == 100)
        assert pool.shortage == ""
        for index in range(100):
            pool.move(pool.place(index), Phase.ATTACHED)
        assert pool.shortage == "no slot is ready"

    play(100, scene, Filling(min_ready=min_ready))


def test_the_bar_says_how_far_it_is():
    """Full at the end, and no time left unless there is a rate."""
    assert line(0, 4000, 0, None) == f"slots [{'.' * 30}] 0/4000, 0/s"
    assert (
        line(1000, 4000, 250.4, 11.6) == f"slots [{'#' * 7}{'.' * 23}] 1000/4000, 250/s, 12 s left"
    )
    assert line(4000, 4000, 300, 0) == f"slots [{'#' * 30}] 4000/4000, 300/s, 0 s left"


def test_kinds_are_filled_side_by_side():
    """By their shares, and each slot is of the kind that it was ordered as."""

    async def scene(pool, maker):
        assert pool.counts["making"] == 2 * BATCH
        await maker.obey_until(lambda: pool.counts["ready"] == 150)

        assert pool.kinds["namespace"] == {"ready": 100, "target": 100}
        assert pool.kinds["tap"] == {"ready": 50, "target": 50}
        assert pool.lowest_ready().kind is SlotKind.NAMESPACE
        assert pool.lowest_ready(SlotKind.TAP).kind is SlotKind.TAP
        with pytest.raises(GeneveError, match="keeps no host-tap slots") as caught:
            pool.lowest_ready(SlotKind.HOST_TAP)
        assert (caught.value.code, caught.value.field) == (Code.NO_SLOT, "kind")

    play(100, scene, TAP=50)


def test_a_kind_that_runs_dry_is_filled_before_all_else():
    """Though there are many slots of another."""

    async def scene(pool, maker):
        await maker.obey_until(lambda: pool.counts["ready"] == 150)
        maker.forget()

        for _ in range(45):
            pool.move(pool.lowest_ready(SlotKind.TAP), Phase.ATTACHED)
        await maker.obey_until(lambda: bool(maker.orders))

        assert max(len(some) for _, some in maker.orders) > BATCH_SMALL
        assert pool.shortage == ""

    play(100, scene, Filling(refill_rate=1), TAP=50)


def test_what_is_said_twice_is_taken_once_and_what_follows_is_read():
    """A slot process that failed half-way may say more of an index than the pool asked."""

    async def scene(pool, maker):
        said = [
            {"event": "failed", "index": 1, "op": "make", "message": "no room"},
            {"event": "failed", "index": 1, "op": "make", "message": "no room"},
            {"event": "ready", "slots": [[0, 100], [1, 101], [0, 100]], "us": 1},
            {"event": "failed", "index": 0, "op": "make", "message": "no room"},
            {"event": "failed", "index": 0, "op": "destroy", "message": "busy"},
            {"event": "gone", "indexes": [0, 7, 1]},
            {"event": "ready", "slots": [[2, 102]], "us": 1},
        ]
        maker.theirs.send(b"".join(json.dumps(one).encode() + b"\n" for one in said))
        async with asyncio.timeout(60):
            while pool.counts["ready"] < 2:
                await asyncio.sleep(0.001)

        assert pool.problem == "slots cannot be made: no room"
        assert [place.index for place in pool.places()] == [0, 2]
        assert (pool.counts["ready"], pool.counts["making"]) == (2, 0)

    play(3, scene)


@pytest.mark.parametrize("what", ["slot-", "gnv"])
def test_why_slots_cannot_be_made_stands_until_they_can(capfd, what):
    """Also while it is tried again; the log has it once for each try."""

    async def scene(pool, maker):
        def say(*events):
            maker.theirs.send(b"".join(json.dumps(one).encode() + b"\n" for one in events))

        async def ordered():
            async with asyncio.timeout(60):
                while not maker.orders:
                    maker.read()
                    await asyncio.sleep(0.001)
            return [index for _, some in maker.orders for index in some]

        for _ in range(2):
            indexes = await ordered()
            assert indexes == [0, 1, 2]
            maker.forget()
            say(*(
                {"event": "failed", "index": n, "op": "make", "message": f"no room: {what}{n}"}
                for n in indexes
            ))  # fmt: skip
            async with asyncio.timeout(60):
                while pool.counts["making"]:
                    await asyncio.sleep(0.001)
            assert pool.problem == f"slots cannot be made: no room: {what}2"

        await ordered()
        assert pool.problem == f"slots cannot be made: no room: {what}2"
        say({"event": "ready", "slots": [[0, 100], [1, 101], [2, 102]], "us": 1})
        async with asyncio.timeout(60):
            while pool.counts["ready"] < 3:
                await asyncio.sleep(0.001)
        assert pool.problem == ""

    play(3, scene)
    assert capfd.readouterr().err.count("event=slot-failed") == 2


def test_a_slot_process_that_says_nothing_for_long_is_a_problem():
    """Until it speaks; one that has nothing to do may be silent."""

    async def scene(pool, maker):
        assert pool.silence == ""
        pool._spoke -= SILENCE
        assert "3 of its slots" in pool.silence
        with pytest.raises(GeneveError) as refused:
            pool.lowest_ready()
        assert refused.value.hint == pool.silence

        await maker.obey_until(lambda: pool.counts["ready"] == 3)
        assert pool.silence == ""
        pool._spoke -= SILENCE
        assert pool.silence == ""
        pool.move(pool.place(1), Phase.ATTACHED)
        maker.forget()
        async with asyncio.timeout(60):
            while not maker.orders:
                maker.read()
                await asyncio.sleep(0.001)
        assert pool.silence == ""

    play(3, scene)


def test_one_slot_that_cannot_be_made_is_no_problem_of_a_full_pool():
    """Others have been made in its place, and nothing is tried any more."""

    async def scene(pool, maker):
        failed = {"event": "failed", "index": 1, "op": "make", "message": "taken"}
        ready = {"event": "ready", "slots": [[0, 100], [2, 102]], "us": 1}
        for event in (failed, ready):
            maker.theirs.send(json.dumps(event).encode() + b"\n")
        maker.read()
        maker.forget()
        async with asyncio.timeout(60):
            while pool.counts["ready"] < 2:
                await asyncio.sleep(0.001)
            assert pool.problem == "slots cannot be made: taken"
            pool.targets[SlotKind.NAMESPACE] = 2
            while pool.problem:
                await asyncio.sleep(0.001)
        maker.read()
        assert maker.orders == []

    play(3, scene)
