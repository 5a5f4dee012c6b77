# SPDX-License-Identifier: Apache-2.0
"""Asynchronous attaches against a model: nothing that failed is lost, retries are bounded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from geneve_ebpf.agent.operations import (
    BACKOFF_MAX,
    BUDGET_EACH,
    BUDGET_MAX,
    DONE_KEPT,
    STEPS_MAX,
    WORTH_A_RETRY,
    Operations,
    State,
)
from geneve_ebpf.errors import Code, GeneveError

MOST, DONE_MOST = 6, 4
HOPELESS = (Code.VPC_NOT_FOUND, Code.SANDBOX_EXISTS, Code.INTERNAL, Code.DEADLINE_EXCEEDED)


class Life(RuleBasedStateMachine):
    """The model is which operations are in which state, in order."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.chance = 0.5
        self.all = Operations(
            lambda: self.now, lambda: self.now, lambda: self.chance,
            prefix="op", most=MOST, done_most=DONE_MOST,
        )  # fmt: skip
        self.pending, self.failed, self.done = [], [], []
        self.retries = self.taken_on = 0

    @rule(timeout=st.integers(1, 100))
    def submit(self, timeout):
        room = len(self.pending) + len(self.failed) < MOST
        try:
            operation = self.all.submit("web", "blue", None, timeout=timeout)
        except GeneveError as error:
            code = error.code
            assert code is Code.BUSY
            assert not room
        else:
            assert room
            self.pending.append(operation)
            self.taken_on += 1

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def succeed(self, data):
        operation = data.draw(st.sampled_from(self.pending))
        self.all.succeeded(operation, b"{}")
        self.pending.remove(operation)
        self.done.append((operation, self.now))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), code=st.sampled_from([*sorted(WORTH_A_RETRY, key=str), *HOPELESS]))
    def fail(self, data, code):
        operation = data.draw(st.sampled_from(self.pending))
        self.chance = data.draw(st.floats(0, 1))
        wait = self.all.failed(operation, GeneveError(code, "no"))
        if wait is None:
            self.pending.remove(operation)
            self.failed.append(operation)
            assert operation.history[-1].what == "failed"
        else:
            assert code in WORTH_A_RETRY
            assert 0 <= wait <= BACKOFF_MAX
            assert self.now + wait < operation.deadline
            self.retries += 1

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def retry(self, data):
        operation = data.draw(st.sampled_from(self.failed))
        self.all.retry(operation)
        self.failed.remove(operation)
        self.pending.append(operation)
        assert operation.deadline == self.now + operation.timeout

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def drop(self, data):
        operation = data.draw(st.sampled_from(self.failed))
        assert self.all.has_failed(operation)
        self.all.drop(operation)
        assert not self.all.has_failed(operation)
        self.failed.remove(operation)
        with pytest.raises(GeneveError):
            self.all.get(operation.id)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def a_pending_one_is_neither_retried_nor_dropped(self, data):
        operation = data.draw(st.sampled_from(self.pending))
        assert not self.all.has_failed(operation)
        for change in (self.all.retry, self.all.drop):
            with pytest.raises(GeneveError) as refused:
                change(operation)
            assert refused.value.code is Code.OPERATION_STATE

    @rule(seconds=st.sampled_from([0.1, 5, 50, DONE_KEPT]))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def nothing_pending_or_failed_is_lost(self):
        done = [one for one, ended in self.done if ended > self.now - DONE_KEPT][-DONE_MOST:]
        for state, model in (
            (State.PENDING, self.pending), (State.FAILED, self.failed), (State.DONE, done)
        ):  # fmt: skip
            assert {one.id for one in self.all.all(state)} == {one.id for one in model}
            assert self.all.counts[state] == len(model)

    @invariant()
    def retries_stay_in_their_budget(self):
        assert self.retries <= BUDGET_MAX / 10 + BUDGET_EACH * self.taken_on

    @invariant()
    def histories_are_bounded_and_begin_at_the_beginning(self):
        for one in (*self.pending, *self.failed):
            assert len(one.history) <= STEPS_MAX
            assert one.history[0].what == "accepted"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_retry_waits_for_as_long_as_the_error_says():
    operations = Operations(lambda: 0.0, lambda: 0.0, lambda: 0.0, prefix="op")
    operation = operations.submit("web", "blue", None, timeout=60)

    error = GeneveError(Code.ADDRESS_RESTING, "rests", details={"retry_after_s": 12.5})

    assert operations.failed(operation, error) == 12.5


def test_what_would_come_too_late_is_not_tried():
    operations = Operations(lambda: 0.0, lambda: 0.0, lambda: 0.0, prefix="op")
    operation = operations.submit("web", "blue", None, timeout=10)

    error = GeneveError(Code.ADDRESS_RESTING, "rests", details={"retry_after_s": 12.5})

    assert operations.failed(operation, error) is None
    assert "no time is left" in operation.history[-1].message
