# SPDX-License-Identifier: Apache-2.0
"""The queue for slots against a model of it: bounds, turns, deadlines."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from geneve_ebpf.agent.admission import WAITING_PER_VPC, Admission, Rate, retry_after
from geneve_ebpf.errors import Code, GeneveError

IN_ALL, PER_GROUP = 7, 3
GROUPS = ("blue", "green", "red", "")


class Queue(RuleBasedStateMachine):
    """The model is a list of tickets in the order in which they came."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.queue = Admission(lambda: self.now, IN_ALL, PER_GROUP)
        self.waiting = []
        self.served = []  # groups, in the order of their turns

    @rule(group=st.sampled_from(GROUPS), seconds=st.integers(-1, 5))
    def enter(self, group, seconds):
        mine = [one for one in self.waiting if one.group == group]
        try:
            ticket = self.queue.enter(group, self.now + seconds)
        except GeneveError as error:
            code, seconds_told = error.code, error.details.get("retry_after_s", 0)
            if code is Code.DEADLINE_EXCEEDED:
                assert seconds <= 0
            else:
                assert code is Code.BUSY
                assert len(self.waiting) == IN_ALL or len(mine) == PER_GROUP
                assert 1 <= retry_after(seconds_told) <= 60
        else:
            assert seconds > 0
            assert len(self.waiting) < IN_ALL
            assert len(mine) < PER_GROUP
            self.waiting.append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        self.queue.leave(ticket)
        self.queue.leave(ticket)  # again, which does nothing
        self.waiting.remove(ticket)

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def call(self):
        """The oldest of its group; late ones are dropped and never done."""
        alive = [one for one in self.waiting if one.deadline > self.now]
        before = list(self.waiting)

        ticket = self.queue.call()

        if not alive:
            assert ticket is None
        if ticket is not None:
            assert ticket in alive
            assert ticket is next(one for one in alive if one.group == ticket.group)
        self.waiting = [one for one in before if one.waiting]
        assert all(one.deadline <= self.now for one in before if not one.waiting and one != ticket)

    @invariant()
    def counts_agree(self):
        assert self.queue.waiting == len(self.waiting) <= IN_ALL
        assert all(one.waiting for one in self.waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_turns_go_round_the_vpcs():
    """A VPC that asks for much is served as often as one that asks for little."""
    queue = Admission(lambda: 0.0)
    for _ in range(200):
        queue.enter("storm", 1)
    for name in ("calm", "quiet"):
        for _ in range(3):
            queue.enter(name, 1)

    first = [queue.call().group for _ in range(9)]

    assert first == ["storm", "calm", "quiet"] * 3
    assert {queue.call().group for _ in range(197)} == {"storm"}
    assert queue.call() is None


def test_one_vpc_cannot_fill_the_queue():
    queue = Admission(lambda: 0.0)
    for _ in range(WAITING_PER_VPC):
        queue.enter("storm", 1)
    with pytest.raises(GeneveError, match="of this VPC"):
        queue.enter("storm", 1)

    queue.enter("calm", 1)


def test_the_time_to_come_back_follows_the_rate():
    """By what came while more was due; a pause in which nothing was due is none."""
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.seconds_for(100) == 1.0  # nothing is known
    rate.note(more=True)
    for _ in range(50):
        now[0] += 0.01
        rate.note(more=True)
    now[0] += 0.01
    rate.note(more=False)
    now[0] += 1000
    rate.note(more=True)

    assert rate.seconds_for(200) == pytest.approx(2.0, rel=0.01)
    now[0] += 0.1  # the next is long overdue
    assert rate.seconds_for(200) == pytest.approx(20, rel=0.01)


def test_retry_after_is_whole_seconds_and_bounded():
    assert [retry_after(seconds) for seconds in (0, 0.01, 1.2, 1e9)] == [1, 1, 2, 60]


def test_who_waits_for_what_is_not_ready_keeps_its_turn():
    """Others go by, of its own VPC too, and it is first when there is something for it."""
    queue = Admission(lambda: 0.0)
    first = queue.enter("blue", 1, "tap")
    queue.enter("red", 1, "tap")
    other = queue.enter("blue", 1, "namespace")

    assert queue.call({"namespace"}.__contains__) is other
    assert queue.call({"namespace"}.__contains__) is None
    assert queue.waiting_for["tap"] == 2
    assert {queue.call().group for _ in range(2)} == {"blue", "red"}
    assert not first.waiting
