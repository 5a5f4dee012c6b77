# SPDX-License-Identifier: Apache-2.0
"""Keys of requests that may come twice, against a model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from geneve_ebpf.agent.idempotency import TTL, Keys, read_key
from geneve_ebpf.errors import Code, GeneveError

KEYS_MAX, BYTES_MAX = 4, 100
KEYS = st.sampled_from("abcdef")
REQUESTS = st.sampled_from(["one", "other"])


class Repeating(RuleBasedStateMachine):
    """The model: key -> its request, and its answer with size and time."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.keys = Keys(lambda: self.now, KEYS_MAX, BYTES_MAX)
        self.open = {}
        self.answered = {}  # in the order of the answers
        self.count = 0

    @rule(key=KEYS, request=REQUESTS)
    def begin(self, key, request):
        try:
            answer = self.keys.begin(key, request)
        except GeneveError as error:
            code = error.code
            if code is Code.BUSY:
                assert len(self.open) >= KEYS_MAX
                return
            known = self.open.get(key) or self.answered[key][0]
            if code is Code.KEY_REUSED:
                assert known != request
            else:
                assert code is Code.KEY_IN_USE
                assert self.open[key] == request
        else:
            if answer is None:
                assert key not in self.open
                self.forget()
                assert key not in self.answered
                self.open[key] = request
            else:
                assert self.answered[key][:2] == (request, answer)

    @rule(key=KEYS, size=st.integers(0, 60))
    def end(self, key, size):
        if key in self.open:
            self.count += 1
            self.keys.end(key, self.count, size)
            self.answered[key] = (self.open.pop(key), self.count, size, self.now + TTL)
            self.forget()

    @rule(key=KEYS)
    def give_up(self, key):
        if key in self.open:
            self.keys.give_up(key)
            del self.open[key]

    @rule(seconds=st.sampled_from([1, TTL / 2, TTL]))
    def time_passes(self, seconds):
        self.now += seconds
        self.forget()

    def forget(self):
        while self.answered:
            key, (_, _, _, until) = next(iter(self.answered.items()))
            size = sum(one[2] for one in self.answered.values())
            if until > self.now and len(self.answered) <= KEYS_MAX and size <= BYTES_MAX:
                return
            del self.answered[key]

    @invariant()
    def an_answer_is_repeated_while_it_is_kept(self):
        for key, (request, answer, _, _) in list(self.answered.items()):
            assert self.keys.begin(key, request) == answer


TestRepeating = Repeating.TestCase
TestRepeating.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("text", "key"), [("abc", "abc"), ('"abc"', "abc"), ('"', '"'), ("a b", "a b")]
)
def test_a_key_may_be_quoted(text, key):
    assert read_key(text) == key


@pytest.mark.parametrize("text", ["", '""', "x" * 129, "caf\u00e9", "a\tb"])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(GeneveError) as refused:
        read_key(text)
    assert refused.value.code is Code.BAD_REQUEST
