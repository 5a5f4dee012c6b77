# SPDX-License-Identifier: Apache-2.0
"""When each sandbox last sent or received: seen by its counters, which the programs keep.

Nothing is added to a packet's way for it. The counters are looked at every
`EVERY` seconds, a few at a time, so a time is late by up to that much, unless
somebody asks for just that sandbox.
"""

from __future__ import annotations

from collections.abc import Callable

from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.dataplane import Counters
from geneve_ebpf.model import Attachment

EVERY = 30.0  # seconds


class Activity:
    """What is known of all that are attached."""

    def __init__(self, counters: Callable[[int], Counters], now: Callable[[], float]) -> None:
        """counters: of a slot. now: seconds since the epoch."""
        self._counters = counters
        self._now = now
        # Attachment by generation -> packets so far, and when they became so many.
        self._seen: dict[int, tuple[int, float]] = {}

    def known(self, one: Attachment) -> float | None:
        """When it was last active, as of the last look; None if it never was."""
        return self._seen.get(one.generation, (0, None))[1]

    def look(self, one: Attachment) -> tuple[Counters, float | None]:
        """Its counters now, and when it was last active."""
        counters = self._counters(one.slot)
        packets = sum(
            part.packets
            for part in (
                counters.tx_local,
                counters.tx_remote,
                counters.rx_local,
                counters.rx_remote,
            )
        )
        if packets != self._seen.get(one.generation, (0, 0.0))[0]:
            self._seen[one.generation] = packets, self._now()
        return counters, self.known(one)

    async def sweep(
        self, attachments: list[Attachment], there: Callable[[Attachment], bool]
    ) -> None:
        """Look at all of them, and forget all others. there: is it still attached?"""
        pace = Pace()
        for one in attachments:
            if there(one):
                self.look(one)
            await pace.breathe()
        alive = {one.generation for one in attachments}
        for generation in [number for number in self._seen if number not in alive]:
            if generation <= max(alive, default=generation):
                del self._seen[generation]
