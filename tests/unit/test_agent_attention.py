# SPDX-License-Identifier: Apache-2.0
"""For whom the agent stays awake after an answer."""

from __future__ import annotations

from geneve_ebpf.agent.attention import Attention

SENDING = 3_000  # nanoseconds


def looks(attention, thinks, times, turn=0):
    """After how many of so many answers the agent looks for the next request.

    thinks: nanoseconds from an answer to the caller's next request. turn: so long has the
    caller had the agent's CPU while the answer was being sent.
    """
    looked, asked = 0, 1 << 30
    for _ in range(times):
        began = asked + 20_000
        now = began + SENDING + turn
        looked += attention.until(asked, began, now, 500) > now
        asked = now + thinks
    return looked


def test_who_asks_at_once_is_looked_for():
    assert looks(Attention(), 30_000, 100) == 100


def test_who_asks_now_and_then_is_looked_for():
    """His next request may be the first of a burst."""
    assert looks(Attention(), 10_000_000, 100) == 100


def test_who_asks_as_soon_as_the_agent_sleeps_is_hardly_looked_for():
    """He has waited for the agent's CPU. Once in 64 answers it is tried again."""
    assert 3 <= looks(Attention(), 130_000, 3000) <= 3 + 3000 // 64 + 1


def test_who_has_had_a_turn_on_our_cpu_is_no_reason_to_look():
    """That he got it this time does not say that he will the next time."""
    beside, across = Attention(), Attention()
    for attention in (beside, across):
        looks(attention, 130_000, 1000)

    assert looks(beside, 1_000, 1000, turn=40_000) <= 1000 // 64 + 1
    assert looks(across, 30_000, 1000) > 500


def test_a_long_answer_takes_its_reader_longer():
    attention = Attention()

    waits = [attention.until(1, 2, 3, size) - 3 for size in (0, 20_000, 1 << 30)]

    assert waits == [100_000, 300_000, 500_000]
