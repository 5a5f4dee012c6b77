# SPDX-License-Identifier: Apache-2.0
"""Whether the agent stays awake for a caller's next request, and how long.

It does so after an answer, because being woken by another CPU costs half of what an attach
takes, and requests come in bursts. But whoever shares the agent's CPU may not get it before
the agent sleeps: offering it at every look (`sched_yield`) reaches the agent's own scheduling
group only.
"""

from __future__ import annotations

# Nanoseconds that the agent looks for the next request after an answer before it sleeps; and
# more for each byte of the answer, up to a bound, as whoever asked reads that first.
AWAKE, AWAKE_A_BYTE, AWAKE_MOST = 100_000, 10, 500_000
# A request that comes so soon after the agent has looked for it in vain was held up by that.
SOON = 100_000
# Sending takes longer than that when whoever is woken by it has a turn on this CPU.
TURN = 12_000
# How many answers in a row are not followed by looking, at the most, after looks in vain.
SLEEP_MOST = 63


class Attention:
    """What has been learned of one connection's caller."""

    def __init__(self) -> None:
        self._until = 0  # when the last look ended at the latest; 0: there was none
        self._turned = False  # in sending the last answer, somebody had a turn
        self._sleeps = self._sleep_next = 0  # answers not to look after, now and after a miss

    def until(self, asked: int, began: int, now: int, size: int) -> int:
        """When to stop looking for the next request; 0: not to look at all.

        asked: when the request came that is answered now. began: when the answer, of that
        size, began to be sent. All in nanoseconds, by the same clock.
        """
        if self._until:
            if 0 < asked - self._until < SOON:
                self._sleeps = self._sleep_next = min(4 * self._sleep_next + 3, SLEEP_MOST)
            elif self._turned:
                self._sleeps = self._sleep_next
            elif asked < self._until:
                self._sleep_next //= 2
        self._turned = now - began > TURN
        if self._sleeps:
            self._sleeps -= 1
            self._until = 0
        else:
            self._until = now + min(AWAKE + AWAKE_A_BYTE * size, AWAKE_MOST)
        return self._until
